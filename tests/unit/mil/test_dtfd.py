"""How DTFD deals tiles to pseudo-bags."""

from __future__ import annotations

import pytest
import torch

from mil.aggregators import DTFD, Output, create
from splits.errors import InputError

DIM, N_CLASSES, N_PSEUDO = 4, 2, 5


def built(distill: str = "afs") -> DTFD:
    torch.manual_seed(0)
    args = {"hidden": 8, "n_pseudo": N_PSEUDO, "distill": distill}
    return create("dtfd", dim=DIM, n_classes=N_CLASSES, **args).double().eval()


def bag(n_tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n_tiles, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0, n_tiles])


def tiers(module: DTFD, x: torch.Tensor, offsets: torch.Tensor, seed: int) -> Output:
    torch.manual_seed(seed)
    with torch.no_grad():
        return module(x, offsets)


@pytest.mark.parametrize(("n_tiles", "n_pseudo"), [(1, 1), (3, 3), (5, 5), (12, 5)])
def test_a_bag_of_few_tiles_has_fewer_pseudo_bags(n_tiles: int, n_pseudo: int) -> None:
    scores, parts = built()(*bag(n_tiles)).auxiliary
    assert len(scores) == n_pseudo
    assert parts.tolist() == [0, n_pseudo]


def test_every_tile_is_in_one_pseudo_bag_and_their_sizes_differ_by_one_at_most() -> None:
    x = bag(12)[0]
    both = torch.cat([x, x[:3]]), torch.tensor([0, 12, 15])
    order, pseudo, parts = built()._deal(*both)
    assert sorted(order[:12].tolist()) == list(range(12))
    assert sorted(order[12:].tolist()) == [12, 13, 14]
    assert pseudo.diff().tolist() == [3, 3, 2, 2, 2, 1, 1, 1]
    assert parts.tolist() == [0, 5, 8]


@pytest.mark.parametrize("distill", ["afs", "maxmin"])
def test_training_deals_anew_on_each_pass_and_never_by_the_order_of_tiles(distill: str) -> None:
    module, (x, offsets) = built(distill).train(), bag(40)
    one = tiers(module, x, offsets, seed=1)
    order = torch.arange(40).flip(0)
    torch.testing.assert_close(tiers(module, x[order], offsets, seed=1).logits, one.logits)
    assert not torch.allclose(tiers(module, x, offsets, seed=2).logits, one.logits)
    fixed = tiers(module.eval(), x, offsets, seed=1).logits
    torch.testing.assert_close(tiers(module, x, offsets, seed=2).logits, fixed, rtol=0, atol=0)


@pytest.mark.parametrize("distill", ["afs", "maxmin"])
def test_the_logits_are_those_of_the_tiles_under_the_attention(distill: str) -> None:
    module, (x, offsets) = built(distill), bag(23)
    output = module(x, offsets)
    torch.testing.assert_close(
        module.classifier(output.attention @ module.embed(x)), output.logits[0]
    )


@pytest.mark.parametrize("distill", ["afs", "maxmin"])
def test_identical_tiles_change_no_logit_by_their_order(distill: str) -> None:
    module, (x, _) = built(distill), bag(9)
    twice, offsets = torch.cat([x, x[:4], x[:4]]), torch.tensor([0, 17])
    order = torch.randperm(17)
    torch.testing.assert_close(module(twice[order], offsets).logits, module(twice, offsets).logits)


def test_with_two_classes_maxmin_takes_the_most_and_the_least_positive_tile() -> None:
    module, (x, offsets) = built("maxmin"), bag(31)
    with torch.no_grad():
        h, place = module.embed(x), x @ module.direction
        expected = set()
        for m in range(N_PSEUDO):
            mine = place.argsort()[m::N_PSEUDO]
            own = module.tile_attention(h[mine]).softmax(0)
            positive = (own * h[mine] @ module.tile_classifier.weight.T).softmax(1)[:, 1]
            expected |= {int(mine[positive.argmax()]), int(mine[positive.argmin()])}
        attention = module(x, offsets).attention
    assert len(expected) == 2 * N_PSEUDO
    assert set(attention.nonzero()[:, 0].tolist()) == expected


def test_an_unknown_distillation_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"'maxmim'; did you mean 'maxmin'\? \(allowed: afs, maxm"):
        create("dtfd", dim=DIM, n_classes=N_CLASSES, distill="maxmim")
