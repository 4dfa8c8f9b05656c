"""What every aggregator of the registry owes, and the science controls on the trained ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import mil.aggregators
from mil.aggregators import AGGREGATORS, Aggregator, Output, create, create_loss, segments, tiles
from splits.errors import InputError
from tests.contract.references import REFERENCES, VARIANTS

DIM, N_CLASSES = 6, 3
SIZES = (5, 1, 9, 2)
DRAWS_PSEUDO_BAGS = {"dtfd"}
"""In training anew on each pass, so that two passes differ without dropout, too."""
every_variant = pytest.mark.parametrize(("name", "args"), VARIANTS)
every_name = pytest.mark.parametrize("name", list(AGGREGATORS))


def build(name: str, args: dict[str, object], *, seed: int = 0) -> Aggregator:
    """In float64 and evaluation mode, nothing at zero: biases and standardisation count, too."""
    torch.manual_seed(seed)
    module = create(name, dim=DIM, n_classes=N_CLASSES, **args).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            # In proportion to what a layer sums: wide layers in a row must not saturate softmax.
            width = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.add_(0.3 * torch.randn_like(parameter) / width**0.5)
    module.standardise(np.random.default_rng(seed).normal(0.2, 1.5, (50, DIM)))
    return module


def packed(sizes: tuple[int, ...] = SIZES, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), DIM, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, *np.cumsum(sizes)])


def spans(offsets: torch.Tensor) -> list[slice]:
    return [slice(*pair) for pair in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def run(module: Aggregator, x: torch.Tensor, offsets: torch.Tensor) -> Output:
    """With positions where the aggregator takes them: tile k of a bag lies at (k, k * k % 5)."""
    if not module.takes_positions:
        return module(x, offsets)
    k = torch.cat([torch.arange(int(n)) for n in offsets.diff()])
    return module(x, offsets, torch.stack([k, k * k % 5], dim=1))


def per_tile(one: Output, other: Output) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The outputs that have a row a tile, where there are any, in pairs."""
    pairs = list(zip(one[1:4], other[1:4], strict=True))
    assert all((a is None) == (b is None) for a, b in pairs)
    return [(a, b) for a, b in pairs if a is not None]


def whole_loss(
    module: Aggregator, name: str, output: Output, offsets: torch.Tensor
) -> torch.Tensor:
    """Loss of the bags and, where the method has one, on tiles."""
    label = torch.arange(len(offsets) - 1) % N_CLASSES
    torch.manual_seed(5)
    extra = create_loss(name, module)
    loss = nn.functional.cross_entropy(output.logits, label)
    return loss if extra is None else loss + extra.weight * extra.double()(output, offsets, label)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_the_registry_holds_what_the_modules_define() -> None:
    folder = Path(mil.aggregators.__file__).parent
    entered = sum(f.read_text().count("@AGGREGATORS.register(") for f in folder.glob("*.py"))
    assert entered == len(list(AGGREGATORS)) >= 4
    assert set(REFERENCES) == set(AGGREGATORS)


@every_variant
def test_shapes_and_types(name: str, args: dict[str, object]) -> None:
    x, offsets = packed()
    output = build(name, args)(x, offsets)
    assert isinstance(output, Output)
    assert output.logits.shape == (len(SIZES), N_CLASSES)
    by_class = output.class_attention
    assert by_class is None or output.attention is not None
    for weights, shape in ((output.attention, (len(x),)), (by_class, (len(x), N_CLASSES))):
        if weights is None:
            continue
        assert weights.shape == shape
        assert (weights >= 0).all()
        for span in spans(offsets):
            sums = weights[span].sum(0)
            close(sums, torch.ones_like(sums))
    if by_class is not None:
        for i, span in enumerate(spans(offsets)):
            close(output.attention[span], by_class[span, output.logits[i].argmax()])


@every_variant
def test_contributions_and_one_bias_for_all_bags_sum_to_the_logits(
    name: str, args: dict[str, object]
) -> None:
    module, (x, offsets) = build(name, args), packed()
    output = module(x, offsets)
    if output.contributions is None:
        return  # its logits are no sum over tiles: the plain reference has none, either
    assert output.contributions.shape == (len(x), N_CLASSES)
    sums = torch.stack([output.contributions[span].sum(0) for span in spans(offsets)])
    bias = output.logits - sums  # (n_bags, n_classes)
    close(bias, bias[:1].expand_as(bias))


@every_variant
def test_permuting_the_tiles_of_each_bag_changes_nothing(
    name: str, args: dict[str, object]
) -> None:
    module, (x, offsets) = build(name, args), packed()
    order = torch.cat(
        [span.start + torch.randperm(span.stop - span.start) for span in spans(offsets)]
    )
    plain, permuted = module(x, offsets), module(x[order], offsets)
    close(plain.logits, permuted.logits)
    for before, after in per_tile(plain, permuted):
        close(before[order], after)


@every_variant
def test_packed_equals_bag_by_bag(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed()
    output = module(x, offsets)
    for i, span in enumerate(spans(offsets)):
        alone = module(x[span], torch.tensor([0, span.stop - span.start]))
        close(output.logits[i : i + 1], alone.logits)
        for packed_rows, rows in per_tile(output, alone):
            close(packed_rows[span], rows)


@every_variant
def test_gradients_packed_equal_those_summed_bag_by_bag(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed()
    weight = torch.randn(len(SIZES), N_CLASSES, dtype=torch.float64)
    inputs = [x.requires_grad_(), *module.parameters()]
    # Some parameters get their gradient from the instance loss alone.
    gradients = partial(torch.autograd.grad, inputs=inputs, materialize_grads=True)
    together = gradients((run(module, x, offsets).logits * weight).sum())
    apart = sum(
        (run(module, x[span], torch.tensor([0, span.stop - span.start])).logits * weight[i]).sum()
        for i, span in enumerate(spans(offsets))
    )
    for one, other in zip(together, gradients(apart), strict=True):
        close(one, other)


@every_variant
def test_a_bag_of_one_tile(name: str, args: dict[str, object]) -> None:
    x, offsets = packed((1,))
    output = build(name, args)(x, offsets)
    assert output.logits.isfinite().all()
    if output.attention is not None:
        close(output.attention, torch.ones(1, dtype=torch.float64))


@every_variant
def test_the_gradient_reaches_every_parameter(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed()
    whole_loss(module, name, run(module, x, offsets), offsets).backward()
    named = dict(module.named_parameters())
    assert named
    silent = [
        key for key, value in named.items() if value.grad is None or value.grad.abs().max() < 1e-9
    ]
    assert silent == []


@every_name
def test_dropout_acts_in_training_and_never_in_evaluation(name: str) -> None:
    module, (x, offsets) = build(name, {"dropout": 0.5}), packed()
    agree = partial(torch.testing.assert_close, rtol=0, atol=0)
    agree(module(x, offsets)[:4], module(x, offsets)[:4])
    module.train()
    assert not torch.equal(module(x, offsets).logits, module(x, offsets).logits)
    if name in DRAWS_PSEUDO_BAGS:
        return
    without = build(name, {}).train()
    agree(without(x, offsets)[:4], without(x, offsets)[:4])


@every_name
def test_the_seed_decides_the_weights(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        module = create(name, dim=DIM, n_classes=N_CLASSES)
        return nn.utils.parameters_to_vector(module.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@every_name
def test_bfloat16_autocast_stays_near_and_its_attention_is_float32(name: str) -> None:
    module, (x, offsets) = build(name, {}).float(), packed((400, 3000))
    exact = module(x.float(), offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(x.float(), offsets)
    torch.testing.assert_close(rough.logits.float(), exact.logits, rtol=0.05, atol=0.05)
    if rough.attention is not None:
        assert rough.attention.dtype == torch.float32
        for span in spans(offsets):
            assert abs(rough.attention[span].sum().item() - 1) < 1e-4


@every_name
def test_scores_far_beyond_exp_stay_finite(name: str) -> None:
    module, (x, offsets) = build(name, {}).float(), packed()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(100)
    output = module(x.float() * 100, offsets)
    assert output.logits.isfinite().all()
    assert output.attention is None or output.attention.isfinite().all()


@every_variant
def test_output_equals_the_equations_of_the_paper(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed()
    with torch.no_grad():
        output = module(x, offsets)
    weights = {key: value.numpy() for key, value in module.state_dict().items()}
    for i, span in enumerate(spans(offsets)):
        expected = REFERENCES[name](weights, args, x[span].numpy())
        given = [output.logits[i], *(r if r is None else r[span] for r in output[1:4])]
        for one, other in zip(given, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@every_variant
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_chunks_beyond_the_budget_give_the_same_results_and_gradients(
    name: str, args: dict[str, object], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_BLOCK", 4)
    x, offsets = packed()
    found = []
    for budget in (1, 1000):
        module = build(name, {**args, "dropout": 0.0}).train(mode == "train")
        module.budget = budget
        torch.manual_seed(3)
        output = run(module, x, offsets)
        whole_loss(module, name, output, offsets).backward()
        gradients = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
        found.append((output, gradients))
    (chunks, chunk_gradients), (whole, gradients) = found
    close(chunks.logits, whole.logits)
    for one, other in per_tile(chunks, whole):
        close(one, other)
    assert set(chunk_gradients) == set(gradients) == {k for k, _ in module.named_parameters()}
    for key, gradient in gradients.items():
        close(chunk_gradients[key], gradient)


@every_name
def test_chunks_draw_the_same_dropout_forward_and_backward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_BLOCK", 4)
    module, (x, offsets) = build(name, {"dropout": 0.5}).train(), packed()
    module.budget = 1
    parameter = next(p for p in module.parameters() if p.ndim == 2)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return module(x, offsets).logits.square().sum()

    (gradient,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn_like(parameter)
    step = 1e-6
    with torch.no_grad():
        parameter.add_(step * direction)
    up = loss().detach()
    with torch.no_grad():
        parameter.sub_(2 * step * direction)
    down = loss().detach()
    torch.testing.assert_close(
        (up - down) / (2 * step), (gradient * direction).sum(), rtol=1e-5, atol=1e-7
    )


# Segment operations against a loop over the bags.


def test_segment_operations_equal_a_loop_over_bags() -> None:
    x, offsets = packed()
    weights = torch.rand(len(x), dtype=torch.float64)
    cuts = spans(offsets)
    assert segments.segment_ids(offsets).tolist() == [0] * 5 + [1] + [2] * 9 + [3] * 2
    close(segments.segment_sum(x, offsets), torch.stack([x[c].sum(0) for c in cuts]))
    close(
        segments.segment_sum(x, offsets, weights),
        torch.stack([(weights[c, None] * x[c]).sum(0) for c in cuts]),
    )
    close(segments.segment_mean(x, offsets), torch.stack([x[c].mean(0) for c in cuts]))
    close(segments.segment_max(x, offsets), torch.stack([x[c].max(0).values for c in cuts]))
    close(
        segments.segment_softmax(x[:, 0], offsets),
        torch.cat([x[c, 0].softmax(0) for c in cuts]),
    )
    close(segments.segment_softmax(x, offsets), torch.cat([x[c].softmax(0) for c in cuts]))
    ordered = torch.cat([c.start + x[c, 0].argsort() for c in cuts])
    assert segments.segment_argsort(x[:, 0], offsets).tolist() == ordered.tolist()
    x[1] = x[0] = 9  # a tie
    first = torch.cat([(x[c] == x[c].max(0).values).double() for c in cuts])
    first[:2] = 0.5
    close(segments.segment_highest(x, offsets), first)


@pytest.mark.parametrize("operation", ["segment_sum", "segment_mean", "segment_max"])
def test_segment_gradients_equal_finite_differences(operation: str) -> None:
    x, offsets = packed((3, 1, 2))
    function = getattr(segments, operation)
    assert torch.autograd.gradcheck(lambda v: function(v, offsets), x.requires_grad_())


def test_weighted_sum_and_softmax_gradients_equal_finite_differences() -> None:
    x, offsets = packed((3, 1, 2))
    scores = x[:, 0].clone().requires_grad_()

    def attend(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        weights = segments.segment_softmax(scores, offsets)
        return segments.segment_sum(values, offsets, weights)

    assert torch.autograd.gradcheck(attend, (x.requires_grad_(), scores))


def test_softmax_ignores_a_constant_as_large_as_you_like() -> None:
    x, offsets = packed()
    near = segments.segment_softmax(x[:, 0], offsets)
    for shift in (-1e6, 1e6):
        close(segments.segment_softmax(x[:, 0] + shift, offsets), near, atol=1e-8)


def test_softmax_of_half_precision_is_computed_in_float32() -> None:
    scores, offsets = torch.zeros(5000, dtype=torch.bfloat16), torch.tensor([0, 5000])
    weights = segments.segment_softmax(scores, offsets)
    assert weights.dtype == torch.float32
    assert abs(weights.sum().item() - 1) < 1e-4


# Names and arguments.


def test_unknown_names_and_arguments_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'gated_abmill'; did you mean 'gated_abmil'"):
        create("gated_abmill", dim=4, n_classes=2)
    with pytest.raises(InputError, match="'hiden'; did you mean 'hidden'"):
        create("abmil", dim=4, n_classes=2, hiden=8)
    with pytest.raises(InputError, match="'attention_dim'"):
        create("mean", dim=4, n_classes=2, attention_dim=8)
    with pytest.raises(InputError, match="'n_classes'"):
        create("abmil", dim=4)


@every_name
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dim", 0),
        ("n_classes", 1),
        ("hidden", 0),
        ("hidden", "128"),
        ("hidden", 12.5),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", "0.1"),
    ],
)
def test_values_outside_their_range_are_refused(name: str, argument: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{argument} is {value!r}, allowed is"):
        create(name, **{"dim": 4, "n_classes": 2, argument: value})


@pytest.mark.parametrize("sharpness", [0, -1.0, float("inf"), float("nan"), "1"])
def test_sharpness_outside_its_range_is_refused(sharpness: object) -> None:
    with pytest.raises(InputError, match=r"sharpness is .*, allowed is a finite number above 0"):
        create("lse", dim=4, n_classes=2, sharpness=sharpness)


def test_log_sum_exp_lies_between_the_mean_and_the_maximum_and_reaches_both() -> None:
    x, offsets = packed()
    pooled = {
        name: build(name, args).pool(build(name, args).tiles(x, offsets, nn.Identity()))
        for name, args in [("mean", {}), ("max", {}), ("lse", {})]
    }
    assert (pooled["mean"] <= pooled["lse"] + 1e-12).all()
    assert (pooled["lse"] <= pooled["max"] + 1e-12).all()
    for sharpness, limit in ((1e-6, "mean"), (1e6, "max")):
        module = build("lse", {"sharpness": sharpness})
        close(module.pool(module.tiles(x, offsets, nn.Identity())), pooled[limit], atol=1e-5)


def test_standardisation_reads_the_given_rows_in_blocks_and_loses_no_digits() -> None:
    rng = np.random.default_rng(0)
    features = (1e4 + rng.normal(size=(9000, 3)) * [0.1, 1, 10]).astype(np.float32)
    rows = np.flatnonzero(rng.random(9000) < 0.7)
    module = create("mean", dim=3, n_classes=2).double()
    module.standardise(features, rows)
    exact = features[rows].astype(np.float64)
    np.testing.assert_allclose(module.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(module.std.numpy(), exact.std(0), rtol=1e-9)


# Science controls: one tile makes the bag, and shuffled labels teach nothing.


class Planted:
    """Bags of noise; in a positive bag, one tile carries the signal, at a random place."""

    def __init__(self, n_bags: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sizes = rng.integers(5, 16, size=n_bags)
        edges = np.concatenate([[0], np.cumsum(sizes)])
        x = rng.normal(size=(edges[-1], 8)).astype(np.float32)
        self.label = torch.from_numpy(np.arange(n_bags) % 2)
        self.key = edges[:-1] + rng.integers(0, sizes)
        x[self.key[1::2], :2] += 4
        self.x, self.offsets = torch.from_numpy(x), torch.from_numpy(edges)


def train(module: nn.Module, data: Planted, label: torch.Tensor, *, n_steps: int) -> None:
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(n_steps):
        loss = nn.functional.cross_entropy(module(data.x, data.offsets).logits, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("name", ["abmil", "gated_abmil"])
def test_a_bag_whose_label_is_one_tile_is_learned_and_attention_finds_the_tile(name: str) -> None:
    torch.manual_seed(0)
    module = create(name, dim=8, n_classes=2, hidden=16, attention_dim=16)
    seen, unseen = Planted(120, seed=1), Planted(200, seed=2)
    train(module, seen, seen.label, n_steps=80)
    with torch.no_grad():
        output = module.eval()(unseen.x, unseen.offsets)
    assert roc_auc_score(unseen.label, output.logits.diff(dim=1)[:, 0]) > 0.95
    found = [
        span.start + int(output.attention[span].argmax()) == key
        for span, key, label in zip(
            spans(unseen.offsets), unseen.key, unseen.label.tolist(), strict=True
        )
        if label == 1
    ]
    assert np.mean(found) > 0.9  # 0.1 by chance: bags have 5 to 15 tiles


@every_name
def test_shuffled_labels_give_an_auroc_near_one_half_on_unseen_bags(name: str) -> None:
    torch.manual_seed(0)
    module = create(name, dim=8, n_classes=2, hidden=16)
    seen, unseen = Planted(120, seed=1), Planted(1000, seed=2)
    shuffled = seen.label[torch.randperm(len(seen.label))]
    train(module, seen, shuffled, n_steps=60)
    label = unseen.label[torch.randperm(len(unseen.label))]
    with torch.no_grad():
        output = module.eval()(unseen.x, unseen.offsets)
    # The standard error is 0.018 with 500 bags a class.
    assert abs(roc_auc_score(label, output.logits.diff(dim=1)[:, 0]) - 0.5) < 0.06
