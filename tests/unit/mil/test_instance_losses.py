"""The losses on tiles against the papers' equations, one bag and one tile at a time in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil.aggregators import Aggregator, InstanceLoss, create, create_loss
from splits.errors import InputError

DIM, N_CLASSES = 5, 3
SIZES = (9, 1, 2, 7, 30)
LABEL = torch.tensor([2, 0, 1, 1, 0])


def case(name: str, model: dict[str, object], loss: dict[str, object]) -> tuple:
    """Aggregator and loss in float64, packed bags, and what the aggregator says of them."""
    torch.manual_seed(0)
    aggregator = create(name, dim=DIM, n_classes=N_CLASSES, **model).double().eval()
    extra = create_loss(name, aggregator, **loss)
    x = torch.randn(sum(SIZES), DIM, dtype=torch.float64)
    offsets = torch.tensor([0, *np.cumsum(SIZES)])
    return aggregator, extra.double(), x, offsets, aggregator(x, offsets)


def value(extra: InstanceLoss, output: object, offsets: torch.Tensor) -> float:
    return extra(output, offsets, LABEL).item()


def softplus_loss(scores: np.ndarray, label: int, margin: float = 0.0) -> float:
    """Cross entropy of one row; with a margin, the smooth top-1 SVM loss at temperature 1."""
    costs = [s + margin * (j != label) - scores[label] for j, s in enumerate(scores)]
    return float(np.log(np.exp(costs).sum()))


# CLAM.


def clustering(
    aggregator: Aggregator,
    extra: InstanceLoss,
    x: torch.Tensor,
    attention: np.ndarray,
    *,
    k: int,
    subtyping: bool,
    margin: float,
) -> float:
    """``attention (n_tiles, n_classes)``, already of each class."""
    with torch.no_grad():
        h = aggregator.embed(x).numpy()
    w, b = (p.detach().numpy() for p in extra.parameters())
    start, total = 0, 0.0
    for size, label in zip(SIZES, LABEL.tolist(), strict=True):
        rows = range(start, start + size)
        start += size
        n = min(k, size // 2)
        per_class = []
        for m in range(N_CLASSES if subtyping else 1):
            asked = m if subtyping else label
            ranked = sorted(rows, key=lambda row, asked=asked: attention[row, asked])
            highest = ranked[size - n :]
            if asked == label:
                judged = [(row, 1) for row in highest] + [(row, 0) for row in ranked[:n]]
            else:
                judged = [(row, 0) for row in highest]
            losses = [
                softplus_loss((w @ h[row] + b)[2 * asked : 2 * asked + 2], y, margin)
                for row, y in judged
            ]
            per_class.append(np.mean(losses) if losses else 0.0)
        total += float(np.mean(per_class))
    return total / len(SIZES)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize(("k", "margin"), [(3, 1.0), (8, 0.0), (1, 0.5)])
def test_the_cluster_loss_equals_its_definition(
    name: str, k: int, margin: float, *, subtyping: bool
) -> None:
    args = {"k": k, "subtyping": subtyping, "margin": margin}
    aggregator, extra, x, offsets, output = case(name, {"hidden": 6, "attention_dim": 4}, args)
    attention = output.class_attention
    if attention is None:
        attention = output.attention[:, None].expand(-1, N_CLASSES)
    expected = clustering(aggregator, extra, x, attention.detach().numpy(), **args)
    assert value(extra, output, offsets) == pytest.approx(expected, abs=1e-12)


def test_the_cluster_loss_of_a_bag_of_one_tile_is_zero_and_trains() -> None:
    aggregator, extra, x, _, _ = case("clam_mb", {}, {"subtyping": True})
    offsets = torch.tensor([0, 1])
    loss = extra(aggregator(x[:1], offsets), offsets, LABEL[:1])
    assert loss.item() == 0
    loss.backward()


def test_the_cluster_loss_weighs_what_the_share_of_the_bags_leaves() -> None:
    aggregator = create("clam_sb", dim=DIM, n_classes=N_CLASSES)
    assert create_loss("clam_sb", aggregator).weight == pytest.approx(0.3 / 0.7)
    assert create_loss("clam_sb", aggregator, bag_weight=1).weight == 0


@pytest.mark.parametrize(
    ("argument", "given"),
    [("k", 0), ("margin", -1.0), ("margin", "1"), ("bag_weight", 0), ("bag_weight", 1.5)],
)
def test_arguments_of_the_cluster_loss_outside_their_range_are_refused(
    argument: str, given: object
) -> None:
    aggregator = create("clam_sb", dim=DIM, n_classes=N_CLASSES)
    with pytest.raises(InputError, match=f"{argument} is {given!r}, allowed is"):
        create_loss("clam_sb", aggregator, **{argument: given})


def test_a_method_without_loss_takes_no_arguments_of_one() -> None:
    aggregator = create("abmil", dim=DIM, n_classes=N_CLASSES)
    assert create_loss("abmil", aggregator) is None
    with pytest.raises(InputError, match="'abmil' has no instance loss: k given"):
        create_loss("abmil", aggregator, k=8)


# DSMIL.


@pytest.mark.parametrize("hidden", [None, 6])
def test_the_loss_of_the_first_stream_judges_the_highest_score_of_each_class(
    hidden: int | None,
) -> None:
    aggregator, extra, x, offsets, output = case("dsmil", {"hidden": hidden}, {})
    w, b = aggregator.instance.weight.detach().numpy(), aggregator.instance.bias.detach().numpy()
    with torch.no_grad():
        h = aggregator.embed(x).numpy()
    expected = []
    for start, stop, label in zip(offsets[:-1], offsets[1:], LABEL.tolist(), strict=True):
        highest = [max(w[c] @ h_k + b[c] for h_k in h[start:stop]) for c in range(N_CLASSES)]
        expected.append(softplus_loss(np.array(highest), label))
    assert value(extra, output, offsets) == pytest.approx(np.mean(expected), abs=1e-12)
    assert extra.weight == 1


# DTFD.


@pytest.mark.parametrize("distill", ["afs", "maxmin"])
def test_the_loss_of_tier_1_gives_each_pseudo_bag_the_label_of_its_slide(distill: str) -> None:
    args = {"n_pseudo": 4, "distill": distill, "hidden": 6}
    aggregator, extra, x, offsets, output = case("dtfd", args, {})
    place = x @ aggregator.direction
    expected = []
    for start, stop, label in zip(offsets[:-1], offsets[1:], LABEL.tolist(), strict=True):
        ranked = start + place[start:stop].argsort()
        losses = []
        for m in range(min(4, len(ranked))):
            with torch.no_grad():
                h = aggregator.embed(x[ranked[m::4]])
                pooled = aggregator.tile_attention(h).softmax(0).T @ h
                scores = aggregator.tile_classifier(pooled)[0].numpy()
            losses.append(softplus_loss(scores, label))
        expected.append(np.mean(losses))
    assert value(extra, output, offsets) == pytest.approx(np.mean(expected), abs=1e-12)
    assert extra.weight == 1
