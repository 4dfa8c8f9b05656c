"""Which aggregators keep the MIL assumption: the algorithmic unit tests of Raff & Holt (2023).

    python benchmarks/mil_assumption.py [--names abmil dsmil] [--seeds 5] [--epochs 30]

Source: "Reproducibility in multiple instance learning: a case for algorithmic unit tests", NeurIPS
2023. A bag is positive because of what it holds. Each test makes another signal easier in training
and turns it round in the test bags: whoever learned that signal falls below an AUC of one half.

single    Standard MIL, one concept (algorithm 1). A positive bag holds 1 to 3 tiles of N(0, 3) or
          N(1, 1); all bags hold background tiles of N(0, 1). Poison: a tile of N(-10, 0.1) in every
          *negative* bag of the training set and in every *positive* bag of the test set.
multiple  Both concepts, N(2, 0.1) and N(3, 0.1), make a bag positive (algorithm 2): 1 to 3 pairs.
          A negative bag holds one tile of one of them. Background and poison as above.
frequency Both concepts make a bag positive, 1 tile of each, however many (algorithm 3). A negative
          bag holds tiles of one of them: 1 in training, 35 to 44 in the test set. No poison.

Means and deviations are those of every coordinate, drawn alone. The paper's text was not at hand:
distributions and counts were read from the re-implementation in torchmil 1.0, which cites the
algorithms by number. Unsure and chosen here: 16 dimensions; 10 background tiles in `single` and 1
to 9 in the others; N(0, 3) as a standard deviation of 3; as many negative bags as positive; in
`frequency` the concept of a negative bag drawn with equal odds; 2,000 bags to train and 1,000 to
test.

Each method of the registry is trained with its instance loss: 50 bags a step, AdamW, learning rate
0.01, width 64, otherwise its defaults, for at most 30 epochs and until the mean loss of the bags in
an epoch is below 0.01. AUC is printed as mean (lowest to highest) of the seeds.

The rule, fixed before the first run: a method has *learned* where the AUC of the training bags is
at least 0.9 with every seed; it *respects* the assumption where it has learned and the AUC of the
test bags is at least 0.75 with every seed, *violates* it where it has learned and the mean is below
0.5, and is *unclear* between. What has not learned has shown nothing, either way. Bags and epochs
were raised after the first run, in which `max_instance` had not learned `single`. Verdicts of
`frequency` depend on the last digits of the arithmetic: with 3 seeds, `dsmil` was seen to respect
it in one build and not to learn it in the next.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from mil.aggregators import AGGREGATORS, Aggregator, Output, create, create_loss

DIM, WIDTH, BATCH, LEARNING_RATE, LEARNED = 16, 64, 50, 1e-2, 0.01
N_TRAIN, N_TEST = 2000, 1000


class Bags(NamedTuple):
    """Packed bags of one test; those with an odd number are positive."""

    x: torch.Tensor
    offsets: torch.Tensor
    label: torch.Tensor


class Scores(NamedTuple):
    """AUC of the bags seen in training, and of those where the easy signal is turned round."""

    train: float
    test: float


def single(rng: np.random.Generator, *, positive: bool, training: bool) -> list[np.ndarray]:
    """The tiles of one bag of algorithm 1."""
    concepts = rng.integers(0, 2, size=rng.integers(1, 4)) if positive else ()
    evidence = [normal(rng, 1, *((0, 3), (1, 1))[concept]) for concept in concepts]
    background = normal(rng, 10, 0, 1)
    return [background, *evidence, *poison(rng, positive=positive, training=training)]


def multiple(rng: np.random.Generator, *, positive: bool, training: bool) -> list[np.ndarray]:
    """The tiles of one bag of algorithm 2."""
    n_pairs = rng.integers(1, 4)
    evidence = (
        [normal(rng, n_pairs, 2, 0.1), normal(rng, n_pairs, 3, 0.1)]
        if positive
        else [normal(rng, 1, rng.integers(2, 4), 0.1)]
    )
    background = normal(rng, rng.integers(1, 10), 0, 1)
    return [background, *evidence, *poison(rng, positive=positive, training=training)]


def frequency(rng: np.random.Generator, *, positive: bool, training: bool) -> list[np.ndarray]:
    """The tiles of one bag of algorithm 3."""
    n_alone = 1 if training else rng.integers(35, 45)
    evidence = (
        [normal(rng, 1, 2, 0.1), normal(rng, 1, 3, 0.1)]
        if positive
        else [normal(rng, n_alone, rng.integers(2, 4), 0.1)]
    )
    return [normal(rng, rng.integers(1, 10), 0, 1), *evidence]


TESTS = {"single": single, "multiple": multiple, "frequency": frequency}


def normal(rng: np.random.Generator, n_tiles: int, mean: float, deviation: float) -> np.ndarray:
    """Tiles ``(n_tiles, DIM)``."""
    return rng.normal(mean, deviation, size=(n_tiles, DIM))


def poison(rng: np.random.Generator, *, positive: bool, training: bool) -> list[np.ndarray]:
    """The easy signal: with the negative bags in training, with the positive ones after."""
    return [normal(rng, 1, -10, 0.1)] if positive != training else []


def make(test: str, n_bags: int, seed: int, *, training: bool) -> Bags:
    """Bags of one test."""
    rng = np.random.default_rng([seed, training])
    label = np.arange(n_bags) % 2
    bags = [np.concatenate(TESTS[test](rng, positive=bool(y), training=training)) for y in label]
    offsets = np.cumsum([0, *map(len, bags)])
    x = np.concatenate(bags).astype(np.float32)
    return Bags(torch.from_numpy(x), torch.from_numpy(offsets), torch.from_numpy(label))


def batches(bags: Bags, order: torch.Tensor) -> list[Bags]:
    """The bags dealt to steps, in the given order."""
    dealt = []
    for some in order.split(BATCH):
        rows = [torch.arange(bags.offsets[i], bags.offsets[i + 1]) for i in some]
        offsets = torch.tensor([0, *np.cumsum([len(r) for r in rows])])
        dealt.append(Bags(bags.x[torch.cat(rows)], offsets, bags.label[some]))
    return dealt


def forward(module: Aggregator, bags: Bags) -> Output:
    """What a method says, without positions."""
    positions = (None,) if module.takes_positions else ()
    said: Output = module(bags.x, bags.offsets, *positions)
    return said


def auc(module: Aggregator, bags: Bags) -> float:
    """AUC of the positive class."""
    with torch.inference_mode():
        logits = forward(module.eval(), bags).logits
    return float(roc_auc_score(bags.label, logits[:, 1] - logits[:, 0]))


def train(name: str, bags: Bags, *, n_epochs: int, seed: int) -> Aggregator:
    """A method fitted to bags, with its instance loss."""
    torch.manual_seed(seed)
    module = create(name, dim=DIM, n_classes=2, hidden=WIDTH)
    module.standardise(bags.x.numpy())
    extra = create_loss(name, module)
    parameters = [*module.parameters(), *([] if extra is None else extra.parameters())]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    dealt = batches(bags, torch.randperm(len(bags.label)))
    module.train()
    for _ in range(n_epochs):
        of_bags = 0.0
        for batch in dealt:
            output = forward(module, batch)
            loss = F.cross_entropy(output.logits, batch.label)
            of_bags += loss.item() / len(dealt)
            if extra is not None:
                loss = loss + extra.weight * extra(output, batch.offsets, batch.label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if of_bags < LEARNED:
            break
    return module


def score(name: str, test: str, *, n_epochs: int, seed: int) -> Scores:
    """Train on one test and score both sides of it."""
    seen = make(test, N_TRAIN, seed, training=True)
    unseen = make(test, N_TEST, seed, training=False)
    module = train(name, seen, n_epochs=n_epochs, seed=seed)
    return Scores(auc(module, seen), auc(module, unseen))


def verdict(scores: list[Scores]) -> str:
    """The rule of the docstring above."""
    train_auc, test_auc = zip(*scores, strict=True)
    if min(train_auc) < 0.9:
        return "not learned"
    if min(test_auc) >= 0.75:
        return "respects"
    return "violates" if np.mean(test_auc) < 0.5 else "unclear"


def spread(values: tuple[float, ...]) -> str:
    """Mean, lowest and highest."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(AGGREGATORS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    print("| method | test | train AUC | test AUC | verdict |\n|---|---|---|---|---|")
    for name in args.names:
        for test in TESTS:
            found = [
                score(name, test, n_epochs=args.epochs, seed=seed) for seed in range(args.seeds)
            ]
            train_auc, test_auc = map(spread, zip(*found, strict=True))
            print(f"| {name} | {test} | {train_auc} | {test_auc} | {verdict(found)} |", flush=True)
    print(f"{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
