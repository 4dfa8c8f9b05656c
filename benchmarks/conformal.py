"""Do conformal sets cover what they say? 200 resampled phantom cohorts, patients as units.

    python benchmarks/conformal.py [--patients 600] [--cohorts 200]

Each phantom slide is a block of 24 tiles of which 1, 2, 4 or 8 slides are made, each with a random
half of the tiles, as sections of one block are: slides of a patient resemble each other. An ABMIL
learns on a third of the patients from fixed colour statistics of tiles (how good it is does not
matter here), a twelfth choose its epoch. The others are dealt 200 times to calibration and test.
Four ways to calibrate at 90 %:

- patients: what Slidewise does, with an epoch that other patients chose;
- patients that also chose the epoch, by their log loss, as validation slides do in a run;
- one random slide of each patient (Dunn, Wasserman & Ramdas 2023, subsampling once);
- slides as units, which they are not.

Then the score: 1 - p (Sadinle et al. 2019) beside APS (Romano et al. 2020) and RAPS (Angelopoulos
et al. 2021), both randomised.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mil.aggregators import create
from mil.conformal import score_threshold
from mil.data.bags import Bags
from mil.phantom import CLASSES, Phantom, render
from mil.phantom_plan import slides_of
from mil.seeds import generator

LEVEL, EPOCHS, PER_BLOCK, PER_SLIDE = 0.9, 60, 24, 12
SIZES = (5, 9, 20, 50, 150)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Slides that trained nothing.

    Attributes:
        said: What each epoch says of them, ``(n_epochs, n, n_classes)``.
        truth: ``(n,)``.
        patient: ``(n,)``, from 0.
        chosen: The epoch that other patients chose.
    """

    said: Floats
    truth: Ints
    patient: Ints
    chosen: int


def statistics_of(tiles: npt.NDArray[np.uint8]) -> Floats:
    """Colour and grain of tiles ``(n, side, side, 3)``: ``(n, 18)``."""
    density = -np.log((tiles.astype(np.float64) + 1) / 256)
    flat = density.reshape(len(tiles), -1, 3)
    grain = np.abs(np.diff(density, axis=1)).mean(axis=(1, 2))
    parts = [flat.mean(1), flat.std(1), *np.quantile(flat, (0.1, 0.5, 0.9), axis=1), grain]
    return np.concatenate(parts, axis=1)


def pool_of(n_patients: int) -> Pool:
    """Draw, train, and predict what is left."""
    settings = Phantom(slides=n_patients, tiles_per_slide=PER_BLOCK, tile_px=32)
    blocks = slides_of(settings)
    rng = generator(0, "cut")
    x, rows, truth, owner = [], {}, [], []
    for block in blocks:
        found = statistics_of(render(settings, block.index))
        for _ in range(int(rng.choice([1, 2, 4, 8]))):
            start = PER_SLIDE * len(truth)
            rows[f"{len(truth):05d}"] = np.arange(start, start + PER_SLIDE)
            x.append(found[rng.permutation(PER_BLOCK)[:PER_SLIDE]])
            truth.append(CLASSES.index(block.label))
            owner.append(block.patient_id)
    names, patient = np.unique(owner, return_inverse=True)
    label, order = np.array(truth), generator(0, "deal").permutation(len(names))
    third = len(names) // 3
    part = np.full(len(names), 2)
    part[order[:third]] = 0  # train
    part[order[third : third + third // 4]] = 1  # choose the epoch
    slides = np.array(sorted(rows), dtype=object)
    known = {s: int(k) for s, k, p in zip(slides, label, part[patient], strict=True) if p == 0}
    features = np.concatenate(x).astype(np.float32)
    bags = Bags(features, rows, known)
    train = slides[part[patient] == 0].tolist()
    said = epochs_of(bags, train, features, slides.tolist())
    judges = part[patient] == 1
    chosen = int(losses(said[:, judges], label[judges]).argmin())
    left = part[patient] == 2
    return Pool(
        said[:, left], label[left], np.unique(patient[left], return_inverse=True)[1], chosen
    )


def epochs_of(
    bags: Bags, train: list[str], features: npt.NDArray[np.float32], slides: list[str]
) -> Floats:
    """What the model says of all slides after each epoch, ``(n_epochs, n, n_classes)``."""
    torch.manual_seed(0)
    model = create("abmil", dim=bags.dim, n_classes=len(CLASSES))
    model.standardise(features, np.concatenate([bags.batch([s]).rows.numpy() for s in train]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    rng, whole, said = generator(0, "order"), bags.batch(slides), []
    for _ in range(EPOCHS):
        model.train()
        for batch in bags.batches(train, max_tiles=16 * PER_SLIDE, generator=rng):
            optimiser.zero_grad()
            F.cross_entropy(model(batch.x, batch.offsets).logits, batch.label).backward()
            optimiser.step()
        model.eval()
        with torch.inference_mode():
            logits = model(whole.x, whole.offsets).logits.double()
        said.append(F.softmax(logits, dim=1).numpy())
    return np.stack(said)


def losses(said: Floats, truth: Ints) -> Floats:
    """Log loss of each epoch, ``(n_epochs,)``."""
    return -np.log(said[:, np.arange(len(truth)), truth]).mean(1)


def least_likely(p: Floats, _: Floats) -> Floats:
    """1 - p."""
    return 1 - p


def adaptive(p: Floats, u: Floats, penalty: float = 0.0) -> Floats:
    """APS; RAPS with a penalty for every class after the first."""
    order = np.argsort(-p, axis=1)
    sorted_p = np.take_along_axis(p, order, 1)
    score = sorted_p.cumsum(1) - u[:, None] * sorted_p + penalty * np.arange(p.shape[1])
    out = np.empty_like(p)
    np.put_along_axis(out, order, score, 1)
    return out


def shares(held: npt.NDArray[np.bool_], truth: Ints, patient: Ints) -> Floats:
    """Coverage of slides, of patients, mean size, share not sure, accuracy when sure."""
    covered, size = held[np.arange(len(truth)), truth], held.sum(1)
    _, code = np.unique(patient, return_inverse=True)
    of_patients = (np.bincount(code, covered) / np.bincount(code)).mean()
    sure = size == 1
    right = covered[sure].mean() if sure.any() else np.nan
    return np.array([covered.mean(), of_patients, size.mean(), (~sure).mean(), right])


Calibrate = Callable[[Floats, Ints, np.random.Generator], float | None]


def by_patients(of_true: Floats, patient: Ints, _: np.random.Generator) -> float | None:
    """Slidewise."""
    return score_threshold(of_true, patient, LEVEL)


def by_one_slide(of_true: Floats, patient: Ints, rng: np.random.Generator) -> float | None:
    """One random slide of each patient."""
    order = rng.permutation(len(patient))
    one = order[np.unique(patient[order], return_index=True)[1]]
    return score_threshold(of_true[one], patient[one], LEVEL)


def by_slides(of_true: Floats, patient: Ints, _: np.random.Generator) -> float | None:
    """As if slides were independent."""
    return score_threshold(of_true, np.arange(len(patient)), LEVEL)


def resampled(
    pool: Pool,
    n_calibration: int,
    n_cohorts: int,
    calibrate: Calibrate,
    score: Callable[[Floats, Floats], Floats] = least_likely,
    *,
    choose: bool = False,
) -> Floats:
    """:func:`shares` of each cohort, ``(n_cohorts, 5)``."""
    found = []
    for cohort in range(n_cohorts):
        rng = generator(1, "cohort", cohort)
        order = rng.permutation(pool.patient.max() + 1)
        known = np.isin(pool.patient, order[:n_calibration])
        epoch = pool.chosen
        if choose:
            epoch = int(losses(pool.said[:, known], pool.truth[known]).argmin())
        unlike = score(pool.said[epoch], rng.random(len(pool.truth)))
        of_true = unlike[known, pool.truth[known]]
        highest = calibrate(of_true, pool.patient[known], rng)
        held = unlike[~known] <= (np.inf if highest is None else highest)
        found.append(shares(held, pool.truth[~known], pool.patient[~known]))
    return np.array(found)


def line(*cells: object) -> None:
    """One row of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=600, help="phantom blocks to draw")
    parser.add_argument("--cohorts", type=int, default=200, help="resampled cohorts")
    args = parser.parse_args()
    began = time.perf_counter()
    pool = pool_of(args.patients)
    said = pool.said[pool.chosen]
    accuracy = (said.argmax(1) == pool.truth).mean()
    n_patients = pool.patient.max() + 1
    print(
        f"{len(pool.truth)} slides of {n_patients} patients that trained nothing; epoch "
        f"{pool.chosen + 1} of {EPOCHS}; slide accuracy {accuracy:.3f}; level {LEVEL:.0%}; mean of "
        f"{args.cohorts} cohorts (5th to 95th percentile of cohorts)\n"
    )
    line(
        "calibration patients",
        "way",
        "coverage of slides, %",
        "of patients, %",
        "mean size",
        "not sure, %",
    )
    line(*["---"] * 6)
    ways: list[tuple[str, Calibrate, bool]] = [
        ("patients", by_patients, False),
        ("patients that also chose the epoch", by_patients, True),
        ("one slide a patient", by_one_slide, False),
        ("slides as units", by_slides, False),
    ]
    sizes = [n for n in SIZES if 3 * n < 2 * n_patients]
    for n in sizes:
        for name, calibrate, choose in ways:
            found = resampled(pool, n, args.cohorts, calibrate, choose=choose)
            low, high = 100 * np.quantile(found[:, 0], (0.05, 0.95))
            mean = found.mean(0)
            line(
                n,
                name,
                f"{100 * mean[0]:.1f} ({low:.1f} to {high:.1f})",
                f"{100 * mean[1]:.1f}",
                f"{mean[2]:.2f}",
                f"{100 * mean[3]:.0f}",
            )
    print()
    line(
        f"score, {sizes[-1]} patients",
        "coverage of slides, %",
        "mean size",
        "not sure, %",
        "accuracy when sure, %",
    )
    line(*["---"] * 5)
    for name, score in (
        ("1 - p", least_likely),
        ("APS", adaptive),
        ("RAPS, 0.1", lambda p, u: adaptive(p, u, 0.1)),
    ):
        mean = np.nanmean(resampled(pool, sizes[-1], args.cohorts, by_patients, score), axis=0)
        line(
            name,
            *(
                f"{v:.{d}f}"
                for v, d in zip(mean[[0, 2, 3, 4]] * [100, 1, 100, 100], (1, 2, 0, 1), strict=True)
            ),
        )
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
