from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from mil.report.identity import build
from mil.report.identity_pictures import MAX_SUSPECTS, MAX_TILES
from mil.report.mosaics import Cell, arrange, draw
from splits import tiles as tile_table
from splits.artifacts import write_json, write_table
from splits.content.links import inverse, turned, vector_turned
from splits.errors import InputError
from splits.images import UnreadableTileError
from tests import report_run

SIDE = 48
HOSTILE = "</style><script>alert(1)</script>{{ 7 * 7 }}<img src=x onerror=alert(1)>\"'&amp;"
Read = Callable[[str], np.ndarray]


class Page(report_run.Page):
    def __init__(self, path: Path) -> None:
        self.source = path.read_text(encoding="utf-8")
        super().__init__(path)

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def pictures(self) -> dict[str, np.ndarray]:
        """Decoded pictures by their alternative text."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                kind, body = attributes["src"].split(",")
                assert kind == "data:image/jpeg;base64"
                found[attributes["alt"]] = np.asarray(
                    Image.open(io.BytesIO(base64.b64decode(body)))
                )
        return found


def field(columns: int, rows: int, seed: int) -> np.ndarray:
    """A smooth coloured field without any symmetry, to be cut into tiles."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(rows * SIDE, columns * SIDE, 3)), (7, 7, 0))
    return np.clip(128 + noise * 45 / noise.std(), 0, 255).astype(np.uint8)


def tile_of(image: np.ndarray, column: float, row: float) -> np.ndarray:
    x, y = round(column * SIDE), round(row * SIDE)
    return image[y : y + SIDE, x : x + SIDE]


def shrunk(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    size = (like.shape[1], like.shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


class Run:
    """A run folder in the making, with the pixels of its tiles."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.layout: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.pixels: dict[str, np.ndarray] = {}
        self.n_read = 0
        self.report: dict[str, Any] = {"grade": "B", "reason": "a test", "unit": "patient"}

    def tile(self, name: str, pixels: np.ndarray, slide: str, **columns: Any) -> str:
        self.pixels[name] = pixels
        row = {"tile_id": name, "slide_id": slide, "patient_id": slide, "group_id": slide}
        size = {"width_px": pixels.shape[1], "height_px": pixels.shape[0]}
        self.rows.append({**row, **size, "slide_label": "lung", "id_source": "name", **columns})
        return name

    def place(
        self, name: str, component: int, col: float, row: float, turn: int = 0, frame: int = 0
    ) -> None:
        where = {"tile_id": name, "component": component, "frame": frame}
        self.layout.append({**where, "col": col, "row": row, "turn": turn})

    def link(
        self, a: str, b: str, kind: str, turn: int, offset: tuple[float, float], state: str = "used"
    ) -> None:
        geometry = {"turn": turn, "dx": offset[0], "dy": offset[1]}
        pair = {"tile_a": a, "tile_b": b, "kind": kind, "score": 0.9, "state": state}
        self.links.append({**pair, **geometry})

    def conflict(self, a: str, b: str, evidence: str = "a test", n_links: int = 1) -> None:
        slides = {row["tile_id"]: row["slide_id"] for row in self.rows}
        entry = {"level": "patient", "ids": [slides[a], slides[b]], "tiles": [a, b]}
        found = self.report.setdefault("conflicts", [])
        found.append({**entry, "evidence": evidence, "n_links": n_links})

    def read(self, name: str) -> np.ndarray:
        self.n_read += 1
        if name not in self.pixels:
            message = "gone"
            raise UnreadableTileError(message)
        return self.pixels[name]

    def page(self, folder: Path, *, read_tile: Read | None = None, pictures: bool = True) -> Page:
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "tiles.parquet", tile_table.check(pd.DataFrame(self.rows)), {})
        if self.layout:
            write_table(folder / "layout.parquet", pd.DataFrame(self.layout), {})
        if self.links:
            write_table(folder / "links.parquet", pd.DataFrame(self.links), {})
        write_json(folder / "identity.json", self.report, {})
        path = build(folder, read_tile=(read_tile or self.read) if pictures else None)
        assert path == folder / "identity.html"
        return Page(path)


def full_run(suffix: str = "") -> Run:
    """Every part of the page at once."""
    run = Run()
    for component in range(4):
        image = field(3, 2, component)
        names = {}
        for col in range(3):
            for row in range(2):
                name = f"s{component}{suffix}/{col}_{row}.png"
                names[col, row] = run.tile(name, tile_of(image, col, row), f"S{component}{suffix}")
                run.place(name, component, col, row)
        for col in range(2):
            run.link(names[col, 0], names[col + 1, 0], "seam", 0, (1, 0))
    other = run.tile(f"copy{suffix}.png", run.pixels[f"s0{suffix}/0_0.png"], f"S9{suffix}")
    run.place(other, 9, 0, 0)
    run.link(f"s0{suffix}/0_0.png", other, "identical", 0, (0, 0))
    run.link(f"s1{suffix}/0_0.png", other, "overlap", 0, (0.5, 0), "held")
    run.conflict(f"s0{suffix}/0_0.png", other, f"identical pixels{suffix}")
    run.report |= {
        "grade": "C",
        "reason": f"1 hard link joins declared groups{suffix}",
        "rule": f"tcga{suffix}",
        "coverage": 0.973,
        "n": {"tiles": 25, "slides": 5, "patients": 5, "sites": 0, "groups": 5},
        "sources": {"manifest": 0, "name": 25, "content": 0, "none": 0},
        "merges": [{"group_id": f"S0{suffix}", "members": [f"S0{suffix}", f"S9{suffix}"]}],
        "notes": [f"a note{suffix}"],
        "candidates": [
            {"rule": f"tcga{suffix}", "coverage": 0.973, "verdict": "accepted", "reason": ""},
            {"rule": "weak", "coverage": 0.4, "verdict": "refused", "reason": f"no{suffix}"},
        ],
        "unidentified": [f"what{suffix}_{place}.png" for place in range(60)],
        "blank": [f"glass{suffix}.png"],
        "manifest": {"matched": 25, "unmatched": 3, "unused": [f"row{suffix}"]},
        "evidence": {"seam": {"links": 1234, "used": 1200, "held": 30, "cut": 4}},
        "components": {"n": 5, "n_several": 4, "largest": 6, "lone_tiles": 1, "blank_tiles": 2},
        "contradictions": [
            {"tiles": [f"a{suffix}", f"b{suffix}"], "kind": "seam", "why": f"a loop{suffix}"}
        ],
        "twins": {"turned": {"planted": 200, "found": 198}},
        "leakage": {
            "predicted": 0.124, "target": 0.05, "n_eff": 4.5, "largest_share": 0.3,
            "satisfied": False, "reason": f"too few groups{suffix}",
        },
        "scores": {"rl_any": 0.0317, "n_eff": 4.5, "n_tiles": 25},
    }  # fmt: skip
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return full_run().page(tmp_path_factory.mktemp("full"))


def test_page_is_one_balanced_file_that_asks_no_network(page: Page) -> None:
    assert not page.unbalanced
    assert not page.open
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(key, "")
            assert not value or value.startswith(("data:", "#")), (tag, key, value[:60])
    assert len(page.style) > 1000
    assert not re.search(r"url\(|@import", page.style)
    assert not re.search(r"https?://", page.source)
    assert "script" not in {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert len(links) > 10
    assert links <= set(ids)
    assert "weave" in ids


def test_every_part_of_the_report_is_said(page: Page) -> None:
    for words in (
        "1 hard link joins declared groups", "best guess", "never plainly slide-level",
        "1 pair of ids", "identical pixels", "1 group holds several declared ids", "a loop",
        "1 link was held back", "4 components hold several tiles", "2 seams",
        "Of 100 test tiles, by a cautious estimate, 12 would have a sibling",
        "the target is at most 5",
        "above target", "too few groups", "198 of 200 (99.0\u00a0%)", "1234", "97.3\u00a0%",
        "accepted, taken", "refused", "0.0317", "rl_any", "60 tiles", "what_0.png", "glass.png",
        "a note", "unmatched",
    ):  # fmt: skip
        assert " ".join(words.split()) in page.words, words
    # 24 tiles in components of 6 and one alone; five groups of 6, 6, 6, 6 and 1.
    assert "5 to 8" in page.words
    assert f"{25**2 / (4 * 36 + 1):.1f}" in page.words


def test_markup_in_names_is_text(tmp_path: Path, page: Page) -> None:
    hostile = full_run(HOSTILE).page(tmp_path)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in page.tags]
    assert not hostile.unbalanced
    assert not any("onerror" in attributes for _, attributes in hostile.tags)
    assert HOSTILE in hostile.text


def test_mosaic_puts_turned_tiles_where_they_were(tmp_path: Path) -> None:
    run = Run()
    image = field(3, 3, 5)
    cells = [(col, row) for col in range(3) for row in range(3) if (col, row) != (2, 0)]
    for turn, (col, row) in enumerate(cells):
        stored = turned(tile_of(image, col, row), inverse(turn))
        # An origin that is not zero, as a lattice that grew to the left has it.
        run.place(run.tile(f"{turn}.png", stored, "S"), 3, col - 7, row + 2, turn)
    page = run.page(tmp_path)
    drawn = page.pictures()["S, 8 tiles"]
    assert drawn.shape == (3 * 96, 3 * 96, 3)
    expected = shrunk(image, drawn)
    hole = np.zeros(drawn.shape[:2], bool)
    hole[:96, 192:] = True
    assert distance(drawn[~hole], expected[~hole]) < 4
    # The same measure sees one tile that is turned the wrong way.
    wrong = drawn.copy()
    wrong[:96, :96] = turned(drawn[:96, :96], 5)
    assert distance(wrong[:96, :96], expected[:96, :96]) > 20
    assert 'class="holes" d="M192 0h96v96h-96z"' in page.source


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("stored_first", [True, False])
def test_tiles_in_conflict_meet_at_their_seam(
    tmp_path: Path, turn: int, *, stored_first: bool
) -> None:
    run = Run()
    image = field(2, 1, 9)
    first = run.tile("a.png", tile_of(image, 0, 0), "S1")
    second = run.tile("b.png", turned(tile_of(image, 1, 0), inverse(turn)), "S2")
    if stored_first:
        run.link(first, second, "seam", turn, (1, 0))
    else:
        back = inverse(turn)
        x, y = vector_turned(np.array([-1, 0], np.float32), back)
        run.link(second, first, "seam", back, (x, y))
    run.conflict(first, second, "edges that continue each other", n_links=4)
    page = run.page(tmp_path)
    (drawn,) = page.pictures().values()
    assert drawn.shape[1] == 2 * drawn.shape[0]
    assert distance(drawn, shrunk(image, drawn)) < 4
    assert 'class="tick"' in page.source
    assert "4 links" in page.words
    for words in ("S1", "S2", "a.png", "b.png", "edges that continue each other"):
        assert words in page.words


def test_copies_in_conflict_stand_side_by_side_and_alike(tmp_path: Path) -> None:
    run = Run()
    image = field(1, 1, 2)
    run.tile("a.png", image, "S1")
    run.tile("b.png", turned(image, inverse(6)), "S2")
    run.link("a.png", "b.png", "turned", 6, (0, 0))
    run.conflict("a.png", "b.png")
    page = run.page(tmp_path)
    (drawn,) = page.pictures().values()
    side = drawn.shape[0]
    assert 2 * side < drawn.shape[1] < 2.2 * side
    assert distance(drawn[:, :side], drawn[:, -side:]) < 3
    assert 'class="tick"' not in page.source


def test_overlapping_tiles_lie_on_each_other(tmp_path: Path) -> None:
    run = Run()
    image = field(2, 2, 3)
    run.tile("a.png", tile_of(image, 0, 0.5), "S1")
    run.tile("b.png", tile_of(image, 0.5, 0), "S2")
    run.link("a.png", "b.png", "overlap", 0, (0.5, -0.5))
    run.conflict("a.png", "b.png")
    (drawn,) = run.page(tmp_path).pictures().values()
    expected = shrunk(image[: SIDE * 3 // 2, : SIDE * 3 // 2], drawn)
    third = drawn.shape[0] // 3
    assert distance(drawn[third : 2 * third], expected[third : 2 * third]) < 4
    assert distance(drawn[2 * third + 3 :, : 2 * third - 3],
                    expected[2 * third + 3 :, : 2 * third - 3]) < 4  # fmt: skip


def test_a_pair_of_ids_is_drawn_once_and_the_rest_is_listed(tmp_path: Path) -> None:
    run = Run()
    hub = [run.tile(f"hub_{place}.png", field(1, 1, place), "hub") for place in range(2)]
    for place in range(MAX_SUSPECTS + 3):
        name = run.tile(f"other_{place:02d}.png", field(1, 1, 50 + place), f"P{place:02d}")
        run.conflict(hub[0], name, n_links=1)
        run.conflict(name, hub[1], n_links=place)
    page = run.page(tmp_path)
    assert len(page.pictures()) == MAX_SUSPECTS
    assert f"{MAX_SUSPECTS + 3} pairs of ids" in page.words
    assert "3 more pairs" in page.words
    listed = page.words.split("3 more pairs")[1].split("Slides put back")[0]
    for place in range(3):
        assert f"P{place:02d}" in listed
    assert f"{MAX_SUSPECTS + 3} links" in page.words


def test_pieces_and_copies_are_set_apart() -> None:
    rows = [
        {"tile_id": f"{frame}_{col}", "frame": frame, "col": float(col), "row": 0.0, "turn": 0}
        for frame, n in ((0, 3), (1, 2))
        for col in range(n)
    ]
    rows.append({**rows[0], "tile_id": "copy"})
    rows.append({**rows[0], "tile_id": "lost", "col": np.nan, "row": np.nan, "turn": -1})
    found = arrange(pd.DataFrame(rows), limit=50)
    assert (found.n_pieces, found.columns, found.rows, found.n_loose) == (2, 3, 1, 2)
    assert sorted(cell.tile_id for cell in found.cells) == sorted(row["tile_id"] for row in rows)
    spots = {cell.tile_id: (cell.x, cell.y) for cell in found.cells}
    for a, (x, y) in spots.items():
        for b, (x_2, y_2) in spots.items():
            assert a == b or abs(x - x_2) > 0.999 or abs(y - y_2) > 0.999, (a, b)
    assert spots["0_1"] == (spots["0_0"][0] + 1, spots["0_0"][1])


@pytest.mark.parametrize("kept", [1.0, 0.15])
@pytest.mark.parametrize("shape", [(80, 30), (1, 700), (25, 25)])
def test_a_large_piece_is_thinned_evenly(shape: tuple[int, int], kept: float) -> None:
    grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1])), -1).reshape(-1, 2)
    corners = (grid == 0).all(axis=1) | (grid == np.subtract(shape, 1)).all(axis=1)
    grid = grid[corners | (np.random.default_rng(0).random(len(grid)) < kept)]
    names = [f"{col}_{row}" for col, row in grid]
    # Places are measured: here all but the first fall a little short of the lattice.
    measured = grid - 0.1 * (grid > 0)
    columns = {"tile_id": names, "frame": 0, "col": measured[:, 0], "row": measured[:, 1]}
    found = arrange(pd.DataFrame({**columns, "turn": 0}), limit=60)
    assert (found.columns, found.rows) == shape
    assert len(found.cells) <= 60
    assert len({(cell.x, cell.y) for cell in found.cells}) == len(found.cells)
    for cell in found.cells:
        col, row = map(int, cell.tile_id.split("_"))
        assert 0 <= col - cell.x * found.step < found.step
        assert 0 <= row - cell.y * found.step < found.step


def test_many_pieces_keep_to_the_limit() -> None:
    columns = {"tile_id": [f"{n:04d}" for n in range(900)], "frame": np.repeat(np.arange(300), 3)}
    columns |= {"col": np.tile([0.0, 1.0, 2.0], 300), "row": 0.0, "turn": 0}
    found = arrange(pd.DataFrame(columns), limit=40)
    assert 0 < len(found.cells) <= 40
    assert found.n_pieces == 300


def test_tiles_that_are_not_square_keep_their_shape() -> None:
    wide = np.zeros((30, 60, 3), np.uint8)
    drawn = draw([Cell("a", 0, 0), Cell("b", 0, 1)], lambda _: wide, aspect=2.0)
    assert drawn.boxes == ((0, 0, 96, 48), (0, 48, 96, 48))


def test_budget_of_tiles_and_bytes_holds(tmp_path: Path) -> None:
    run = Run()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    sizes = [2500, *range(60, 120)]
    for component, size in enumerate(sizes):
        for place in range(size):
            name = run.tile(f"{component}/{place:05d}.png", noise, f"S{component}")
            run.place(name, component, place % 40, place // 40)
        if component:
            run.conflict(f"{component - 1}/00000.png", f"{component}/00000.png")
    page = run.page(tmp_path)
    assert 600 < run.n_read <= MAX_TILES
    assert len(page.source) < 4_000_000
    assert "S0, 2500 tiles" in page.pictures()
    assert "one tile of every" in page.words
    assert "the largest and a spread of the others are drawn" in page.words


def test_unreadable_tiles_are_grey_and_counted(tmp_path: Path) -> None:
    run = Run()
    for col in range(2):
        run.place(run.tile(f"{col}.png", field(1, 1, col), "S"), 0, col, 0)
    del run.pixels["1.png"]
    page = run.page(tmp_path)
    (drawn,) = page.pictures().values()
    assert np.ptp(drawn[:, 100:].mean(axis=(0, 1))) < 3
    assert drawn[:, 110:].std() < 3
    assert "1 tile could not be read" in page.words


def test_positions_of_names_are_drawn_where_no_layout_is(tmp_path: Path) -> None:
    run = Run()
    image = field(3, 2, 8)
    for col in range(3):
        for row in range(2):
            # The names count px of a level four times as large as the tiles, from an odd origin.
            where = {"x_px": 1000 + 4 * SIDE * col, "y_px": 77 + 4 * SIDE * row}
            run.tile(f"{col}_{row}.png", tile_of(image, col, row), "S", **where)
    run.tile("elsewhere.png", field(1, 1, 0), "T")
    page = run.page(tmp_path)
    drawn = page.pictures()["S, 6 tiles"]
    assert distance(drawn, shrunk(image, drawn)) < 4
    assert "Positions from the names: 1 slide has several tiles" in page.words
    assert "3 \u00d7 2 places" in page.words


def test_without_a_reader_the_page_says_so(tmp_path: Path) -> None:
    page = full_run().page(tmp_path, pictures=False)
    assert not page.pictures()
    assert page.words.count("not at hand") == 2
    assert "s0/0_0.png" in page.words
    assert not page.unbalanced


def test_older_and_empty_runs_build(tmp_path: Path) -> None:
    run = Run()
    run.tile("a.png", field(1, 1, 0), "a.png", slide_label=None)
    run.tile("b.png", field(1, 1, 1), "b.png", group_id=None)
    run.report = {"grade": "D", "reason": "nothing", "leakage": None, "scores": None}
    page = run.page(tmp_path / "older")
    assert not page.unbalanced
    for words in (
        "would be a tile-level split", "No ids were declared", "nothing to draw",
        "Pixels were not compared", "No naming rule was accepted", "No truth was given",
        "No residual leakage was estimated", "No tile has a slide",
    ):  # fmt: skip
        assert words in page.words, words
    for name in ("a.png", "b.png"):
        run.place(name, int(name == "b.png"), np.nan, np.nan, -1)
    assert "No two tiles were joined by their pixels" in run.page(tmp_path / "lone").words
    run.rows = []
    run.layout = []
    write_table(tmp_path / "empty" / "tiles.parquet", tile_table.empty(), {})
    write_json(tmp_path / "empty" / "identity.json", run.report, {})
    assert "No groups in this run" in Page(build(tmp_path / "empty", read_tile=run.read)).words


@pytest.mark.parametrize("grade", ["A", "B", "C", "D"])
def test_each_grade_says_what_a_split_may_be_called(tmp_path: Path, grade: str) -> None:
    run = Run()
    run.tile("a.png", field(1, 1, 0), "S")
    run.report |= {"grade": grade}
    words = run.page(tmp_path).words
    assert ("may be called patient-level" in words) == (grade == "A")
    assert ("may be called slide-level" in words) == (grade == "B")
    assert ("never plainly slide-level" in words) == (grade == "C")
    assert ("refuses to split" in words) == (grade == "D")


@pytest.mark.parametrize("missing", ["identity.json", "tiles.parquet"])
def test_missing_file_names_the_verb(tmp_path: Path, missing: str) -> None:
    full_run().page(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=f"{missing}.*slidewise identify"):
        build(tmp_path, read_tile=None)
