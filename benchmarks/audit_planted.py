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
IDS = (
    "tile in two parts", "tile of a slide moved", "slide of a patient moved", "site on both sides",
    "id with extension", "label conflict", "encoder saw test", "coordinates overlap",
)  # fmt: skip


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


def leaked(result: dict[str, Any], kinds: set[str]) -> set[str]:
    """Ids in findings of some kinds, and the tiles of their pairs."""
    names: set[str] = set()
    for finding in result["findings"]:
        if finding["kind"] in kinds:
            names.update(finding["ids"])
            names.update(name for pair in finding["pairs"] for name in pair["tiles"])
    return names


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
    names = table["tile_id"].tolist()
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
    leaks = {f["kind"] for f in result["findings"] if f["severity"] == "leak"}
    named = leaked(result, leaks)
    counts: Counter[tuple[str, str]] = Counter()
    for kind, tile_ids in planted.items():
        counts[kind, "planted"] += len(tile_ids)
        counts[kind, "found"] += sum(name in named for name in tile_ids)
    return counts


def by_ids(table: pd.DataFrame, share: float, seed: int) -> Counter[tuple[str, str]]:
    """Planted and found, by kind, from tables alone; two of each patient's slides are made up."""
    random = np.random.default_rng(seed)
    rows = table[["tile_id", "patient_id", "site_id", "slide_label"]].assign(
        slide_id=table["slide_id"] + np.where(random.random(len(table)) < 0.5, "-a", "-b"),
        part=dealt(table, random),
    )
    slides = rows.groupby("slide_id")[["patient_id", "site_id", "slide_label", "part"]].first()
    slides = slides.rename(columns={"slide_label": "label"}).reset_index()
    n = max(1, round(share * len(table)))
    counts: Counter[tuple[str, str]] = Counter()
    for kind in IDS:
        pick = random.permutation(len(slides))[:n]
        some = slides.iloc[pick]
        away = [elsewhere(part, random) for part in some["part"]]
        split, options = slides[["slide_id", "part"]], {}
        known = slides.drop(columns="part")
        tiles, expected = None, set(some["slide_id"])
        if kind in {"tile in two parts", "tile of a slide moved", "coordinates overlap"}:
            own = rows.iloc[random.permutation(len(rows))[:n]]
            moved = own.assign(part=[elsewhere(part, random) for part in own["part"]])
            tiles = rows[["tile_id", "slide_id"]]
            keep = rows if kind == "tile in two parts" else rows.drop(own.index)
            split = pd.concat([keep, moved])[["tile_id", "part"]]
            expected = set(own["slide_id"] if kind == "tile of a slide moved" else own["tile_id"])
            if kind == "coordinates overlap":
                extra = own.assign(tile_id=own["tile_id"] + "-new")
                at = table[["tile_id", "x_px", "y_px", "width_px", "height_px", "region"]]
                tiles = rows.merge(at, on="tile_id")
                shifted = tiles.set_index("tile_id").loc[own["tile_id"]].reset_index()
                shifted = shifted.assign(tile_id=extra["tile_id"].tolist(),
                                         x_px=shifted["x_px"] + 7)  # fmt: skip
                tiles = pd.concat([tiles, shifted]).drop(columns=["part", "slide_label"])
                moved = moved.assign(tile_id=extra["tile_id"])
                split = pd.concat([rows, moved])[["tile_id", "part"]]
                expected = set(extra["tile_id"])
        elif kind == "slide of a patient moved":
            both = slides["patient_id"].duplicated(keep=False)
            some = slides[both].drop_duplicates("patient_id").iloc[:n]
            part = {s: elsewhere(p, random) for s, p in zip(some["slide_id"], some["part"],
                                                            strict=True)}  # fmt: skip
            split = split.assign(part=split["slide_id"].map(part).fillna(split["part"]))
            expected = set(some["patient_id"])
        elif kind == "site on both sides":
            by_site = slides.groupby("site_id")["part"].transform("first")
            split = split.assign(part=by_site)
            twice = slides[slides["site_id"].duplicated(keep=False)]
            some = twice.drop_duplicates("site_id").iloc[:n]
            moved = split["slide_id"].isin(some["slide_id"])
            split = split.assign(
                part=[elsewhere(p, random) if m else p
                      for p, m in zip(split["part"], moved, strict=True)]
            )  # fmt: skip
            options, expected = {"unit": "site"}, set(some["site_id"])
        elif kind == "id with extension":
            twin = pd.DataFrame({"slide_id": some["slide_id"] + ".svs", "part": away})
            split = pd.concat([split, twin])
            expected = set(twin["slide_id"])
        elif kind == "label conflict":
            tiles = rows.assign(slide_label=rows["slide_label"].where(
                ~rows["slide_id"].isin(some["slide_id"]), "another"))  # fmt: skip
        elif kind == "encoder saw test":
            tests = slides[slides["part"] == "test"].iloc[:n]
            options, expected = {"seen": {0: tests["slide_id"]}}, set(tests["slide_id"])
        result = audit(split, known, tiles, **options)
        wanted = "warning" if kind == "label conflict" else "leak"
        kinds = {f["kind"] for f in result["findings"] if f["severity"] == wanted}
        counts[kind, "planted"] += len(expected)
        counts[kind, "found"] += len(expected & leaked(result, kinds))
    return counts


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
    for kind in (*PIXELS, "seam neighbour", *IDS):
        planted, found = counts[kind, "planted"], counts[kind, "found"]
        print(f"| {kind} | {planted} | {found} | {found / max(planted, 1):.3f} |")
    if given.clean:
        evidence = gather([*table["sha256"]], images.__getitem__, signatures)
        named = Pixels.of(evidence, table["tile_id"].tolist())
        alarms = clean(table, named, given.clean)
        print(f"{given.clean} clean splits: {alarms['leaks']} with a leak, "
              f"{alarms['battery']} with a warning of the battery")  # fmt: skip


if __name__ == "__main__":
    main()
