"""Planted leaks of every kind: how many the audit finds, and what it says of clean splits.

    python benchmarks/audit_planted.py IMAGES [--seed 0 1 2] [--share 0.005] [--clean 20]

IMAGES is a folder of tiles whose names say slide, patient and place (``tcga_organs``, the tiles of
a phantom run). Patients are dealt to train, val and test at random; then ``share`` of the tiles (at
least one of them) is leaked in each of the ways below, and one audit looks for all of them.

Pixel leaks are looked for without any id, by pixels alone: a tile with tissue gets a copy in
another part (identical, saved again, turned, or rotated, cropped and saved again), or a tile that
covers half of it and half of its neighbour; a *seam neighbour* is a tile that moves to another part
while its neighbours stay. Leaks by id are looked for in the tables, without pixels. ``clean``
splits, nothing planted, must give no leak and no warning of the battery.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.audit import audit
from splits.auditing.pixels import Pixels
from splits.content.evidence import gather
from splits.content.links import turned
from splits.content.signatures import Signatures, sign
from splits.identity.declare import declare
from splits.images import read_tile
from splits.scan import list_folder, scan

Image = npt.NDArray[np.uint8]
PARTS = ("train", "val", "test")
PIXELS = ("identical", "saved again", "turned", "rotated, cropped, saved", "half overlap")


def saved(tile: Image, quality: int) -> Image:
    """The tile as JPEG gives it back."""
    _, code = cv2.imencode(".jpg", tile[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def altered(kind: str, tile: Image, neighbour: Image, random: np.random.Generator) -> Image:
    """A leaked version of a tile."""
    height, width = tile.shape[:2]
    if kind == "saved again":
        return saved(tile, int(random.integers(60, 91)))
    if kind == "turned":
        return np.ascontiguousarray(turned(tile, int(random.integers(1, 8))))
    if kind == "rotated, cropped, saved":
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-25, 25), 1.15)
        moved = cv2.warpAffine(tile, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        return saved(moved, int(random.integers(70, 96)))
    if kind == "half overlap":
        return np.concatenate([tile[:, width // 2 :], neighbour[:, : width // 2]], axis=1)
    return tile


def digest(image: Image) -> str:
    """Hash of the pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def load(root: Path) -> tuple[pd.DataFrame, list[Image], Signatures]:
    """Tiles with their declared ids, pixels and signatures."""
    table, _ = scan(list_folder(root))
    table, _, _ = declare(table, None, "auto", [])
    images = [read_tile(root, name) for name in table["tile_id"]]
    return table, images, sign(images.__getitem__, len(images))


def neighbours(table: pd.DataFrame) -> dict[int, int]:
    """Row of a tile -> row of its right neighbour."""
    at = {
        (row.slide_id, str(row.region), int(row.x_px), int(row.y_px)): place
        for place, row in enumerate(table.itertuples())
        if not pd.isna(row.x_px)
    }
    width = int(table["width_px"].iloc[0])
    right = {key: (*key[:2], key[2] + width, key[3]) for key in at}
    return {at[key]: at[other] for key, other in right.items() if other in at}


def dealt(table: pd.DataFrame, random: np.random.Generator) -> pd.Series:
    """A part for every tile, by patient."""
    patients = sorted(table["patient_id"].unique())
    part = dict(zip(patients, random.choice(PARTS, len(patients), p=[0.6, 0.2, 0.2]), strict=True))
    return table["patient_id"].map(part)


def elsewhere(part: str, random: np.random.Generator) -> str:
    """Another part."""
    return str(random.choice([name for name in PARTS if name != part]))


def leaked(result: dict[str, Any]) -> set[str]:
    """What the leaks name: their ids, and the tiles of their pairs."""
    leaks = [finding for finding in result["findings"] if finding["severity"] == "leak"]
    pairs = {name for finding in leaks for pair in finding["pairs"] for name in pair["tiles"]}
    return pairs | {name for finding in leaks for name in finding["ids"]}


def by_pixels(
    table: pd.DataFrame, images: list[Image], signatures: Signatures, share: float, seed: int
) -> Counter[tuple[str, str]]:
    """Planted and found, by kind, with no id at hand."""
    random = np.random.default_rng(seed)
    part = dealt(table, random).tolist()
    beside = neighbours(table)
    tissue = ~(signatures.blank | signatures.faint)
    usable = [row for row, other in beside.items() if tissue[row] and tissue[other]]
    n = max(1, round(share * len(table)))
    chosen = random.permutation(usable)[: n * (len(PIXELS) + 1)].tolist()
    names = [f"{row:06d}.png" for row in range(len(table))]  # the real ones say the slide
    new: list[Image] = []
    planted: dict[str, list[str]] = {kind: [] for kind in (*PIXELS, "seam neighbour")}
    for place, row in enumerate(chosen):
        kind = (*PIXELS, "seam neighbour")[place % (len(PIXELS) + 1)]
        if kind == "seam neighbour":
            part[row] = elsewhere(part[row], random)
            planted[kind].append(names[row])
            continue
        new.append(altered(kind, images[row], images[beside[row]], random))
        planted[kind].append(f"planted/{len(new):04d}.png")
        names.append(planted[kind][-1])
        part.append(elsewhere(part[row], random))
    everything = [*images, *new]
    hashes = [*table["sha256"], *map(digest, new)]
    for place, row in enumerate(chosen):  # an identical copy has the hash of its tile
        if place % (len(PIXELS) + 1) == 0:
            hashes[names.index(planted["identical"][place // (len(PIXELS) + 1)])] = hashes[row]
    signed = signatures.joined(sign(new.__getitem__, len(new)))
    found = Pixels.of(gather(hashes, everything.__getitem__, signed), names)
    tiles = pd.DataFrame({"tile_id": names, "sha256": hashes, "slide_id": None})
    result = audit(tiles[["tile_id"]].assign(part=part), None, tiles, found=found, seed=seed)
    leaks = leaked(result)
    counts: Counter[tuple[str, str]] = Counter()
    for kind, tile_ids in planted.items():
        counts[kind, "planted"] += len(tile_ids)
        counts[kind, "found"] += sum(name in leaks for name in tile_ids)
    return counts


def by_ids(table: pd.DataFrame, share: float, seed: int) -> Counter[tuple[str, str]]:
    """Planted and found, by kind, from tables alone; each slide is made two of its patient."""
    random = np.random.default_rng(seed)
    halves = np.where(random.random(len(table)) < 0.5, "-a", "-b")
    tiles = table.assign(slide_id=table["slide_id"] + halves)
    part = dealt(table, random)
    slides = tiles.assign(part=part).groupby("slide_id")[
        ["patient_id", "site_id", "slide_label", "part"]
    ]
    known = slides.first().rename(columns={"slide_label": "label"}).reset_index()
    n = max(1, round(share * len(table)))
    counts: Counter[tuple[str, str]] = Counter()
    for kind, plant in PLANTS.items():
        expected, found = plant(tiles.assign(part=part), known, n, random)
        counts[kind, "planted"] += len(expected)
        counts[kind, "found"] += len(expected & found)
    return counts


Planted = tuple[set[str], set[str]]
"""Ids that were leaked, and ids that the audit names."""


def some_moved(rows: pd.DataFrame, n: int, random: np.random.Generator) -> pd.DataFrame:
    """A few rows, in another part."""
    chosen = rows.iloc[random.permutation(len(rows))[:n]]
    return chosen.assign(part=[elsewhere(part, random) for part in chosen["part"]])


def named(result: dict[str, Any], kind: str, severity: str = "leak") -> set[str]:
    """Ids that findings of one kind name."""
    found = [f for f in result["findings"] if (f["kind"], f["severity"]) == (kind, severity)]
    return {name for finding in found for name in finding["ids"]}


def tile_in_two_parts(
    tiles: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator
) -> Planted:
    """The tile stays, and is listed in another part too."""
    moved = some_moved(tiles, n, random)
    result = audit(pd.concat([tiles, moved])[["tile_id", "part"]], slides, tiles)
    return set(moved["tile_id"]), named(result, "shared_tile")


def tile_moved(
    tiles: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator
) -> Planted:
    """One tile of a slide moves."""
    moved = some_moved(tiles, n, random)
    split = pd.concat([tiles.drop(moved.index), moved])[["tile_id", "part"]]
    return set(moved["slide_id"]), named(audit(split, slides, tiles), "shared_slide")


def overlapping(
    tiles: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator
) -> Planted:
    """A tile 7 px beside another comes into another part."""
    new = some_moved(tiles, n, random)
    new = new.assign(tile_id=new["tile_id"] + "-new", x_px=new["x_px"] + 7)
    everything = pd.concat([tiles, new], ignore_index=True)
    result = audit(everything[["tile_id", "part"]], slides, everything)
    return set(new["tile_id"]), named(result, "overlapping_coordinates")


def slide_moved(
    _: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator
) -> Planted:
    """One of the two slides of a patient moves."""
    pairs = slides[slides["patient_id"].duplicated(keep=False)].drop_duplicates("patient_id")
    moved = some_moved(pairs, n, random)
    split = pd.concat([slides.drop(moved.index), moved])[["slide_id", "part"]]
    result = audit(split, slides.drop(columns="part"))
    return set(moved["patient_id"]), named(result, "shared_patient")


def site_crossed(
    _: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator
) -> Planted:
    """One slide of a site moves, where all others of it lie in one part."""
    by_site = slides.assign(part=slides.groupby("site_id")["part"].transform("first"))
    several = by_site[by_site["site_id"].duplicated(keep=False)].drop_duplicates("site_id")
    moved = some_moved(several, n, random)
    split = pd.concat([by_site.drop(moved.index), moved])[["slide_id", "part"]]
    result = audit(split, slides.drop(columns="part"), unit="site")
    return set(moved["site_id"]), named(result, "shared_site")


def spelled(_: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator) -> Planted:
    """A slide is listed again, with a file extension, in another part."""
    again = some_moved(slides, n, random)
    again = again.assign(slide_id=again["slide_id"] + ".svs")
    split = pd.concat([slides, again])[["slide_id", "part"]]
    result = audit(split, slides.drop(columns="part"))
    return set(again["slide_id"]), named(result, "spelled_twice")


def relabelled(
    tiles: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator
) -> Planted:
    """The tiles of a slide carry another label than its table."""
    chosen = set(some_moved(slides, n, random)["slide_id"])
    label = tiles["slide_label"].where(~tiles["slide_id"].isin(chosen), "another")
    result = audit(
        slides[["slide_id", "part"]], slides.drop(columns="part"), tiles.assign(slide_label=label)
    )
    return chosen, named(result, "label_conflict", "warning")


def seen(_: pd.DataFrame, slides: pd.DataFrame, n: int, random: np.random.Generator) -> Planted:
    """The encoder was trained on some test slides."""
    tests = slides[slides["part"] == "test"]
    chosen = set(some_moved(tests, n, random)["slide_id"])
    result = audit(slides[["slide_id", "part"]], unit="slide", seen={0: chosen})
    return chosen, named(result, "encoder_saw_test")


PLANTS = {
    "tile in two parts": tile_in_two_parts,
    "tile of a slide moved": tile_moved,
    "coordinates overlap": overlapping,
    "slide of a patient moved": slide_moved,
    "site on both sides": site_crossed,
    "id with extension": spelled,
    "label conflict": relabelled,
    "encoder saw test": seen,
}


def clean(table: pd.DataFrame, found: Pixels, n_splits: int) -> Counter[str]:
    """Leaks, and warnings of the battery, over splits in which nothing was planted."""
    counts: Counter[str] = Counter()
    slides = table.groupby("slide_id")[["patient_id", "site_id", "slide_label"]].first()
    slides = slides.rename(columns={"slide_label": "label"}).reset_index()
    for seed in range(n_splits):
        split = table[["tile_id"]].assign(part=dealt(table, np.random.default_rng(seed)))
        result = audit(split, slides, table, found=found, seed=seed)
        counts["leaks"] += result["verdict"] == "leak"
        counts["battery"] += any(one["severity"] == "warning" for one in result["battery"])
    return counts


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--share", type=float, default=0.005)
    parser.add_argument("--clean", type=int, default=20)
    given = parser.parse_args()
    table, images, signatures = load(given.images)
    counts: Counter[tuple[str, str]] = Counter()
    start = time.perf_counter()
    for seed in given.seed:
        counts += by_pixels(table, images, signatures, given.share, seed)
        counts += by_ids(table, given.share, seed)
    seconds = (time.perf_counter() - start) / len(given.seed)
    print(f"{len(table):,} tiles, {table['slide_id'].nunique()} slides, {len(given.seed)} draws")
    print(f"{100 * given.share:g} % a kind and draw, {seconds:.0f} s a draw")
    print("| leak | planted | found | recall |\n|---|---|---|---|")
    for kind in (*PIXELS, "seam neighbour", *PLANTS):
        planted, found = counts[kind, "planted"], counts[kind, "found"]
        print(f"| {kind} | {planted} | {found} | {found / max(planted, 1):.3f} |")
    if given.clean:
        evidence = gather([*table["sha256"]], images.__getitem__, signatures)
        pixels = Pixels.of(evidence, table["tile_id"].tolist())
        alarms = clean(table, pixels, given.clean)
        print(f"{given.clean} clean splits: {alarms['leaks']} with a leak, "
              f"{alarms['battery']} with a warning of the battery")  # fmt: skip


if __name__ == "__main__":
    main()
