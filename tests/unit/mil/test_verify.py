"""``verify`` finds what was planted, and nothing in files without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mil.cli import app
from mil.features.verify import verify

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "mil_features"
SETS = ("musk1", "fox", "tiger", "elephant", "ucsb_breast_features", "sci_med")


def real(name: str) -> dict[str, np.ndarray]:
    path = DATA / f"{name}.npz"
    if not path.exists():
        pytest.skip("../shared/data is not here")
    with np.load(path) as arrays:
        return {key: arrays[key] for key in ("X", "bag", "y")}


def kinds(result: dict[str, Any], *severities: str) -> set[str]:
    wanted = severities or ("unsafe", "warning", "note")
    return {f["kind"] for f in result["findings"] if f["severity"] in wanted}


def one(result: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [f for f in result["findings"] if f["kind"] == kind]
    return dict(found)


def cohort(folder: Path, n: int = 12, dim: int = 6, **changed: dict[str, np.ndarray]) -> Path:
    """Clean slides of random features on a grid; ``changed`` replaces arrays of some slides."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i in range(n):
        size = int(rng.integers(5, 12))
        coords = np.stack([np.arange(size) % 4, np.arange(size) // 4], axis=1) * 256
        arrays = {"features": rng.normal(size=(size, dim)).astype(np.float32), "coords": coords}
        arrays |= changed.get(f"s{i}", {})
        np.savez(folder / f"s{i}.npz", frame="level0_px", **arrays)
    return folder


def table(path: Path, n: int = 12) -> Path:
    path.write_text("slide_id,label\n" + "".join(f"s{i},{'ab'[i % 2]}\n" for i in range(n)))
    return path


def test_clean_files_have_no_finding(tmp_path: Path) -> None:
    result = verify(cohort(tmp_path / "f"), table(tmp_path / "l.csv"))
    assert result["verdict"] == "safe"
    assert kinds(result, "unsafe", "warning") == set()
    assert result["n"]["slides"] == 12
    assert result["labels"] == {"a": 6, "b": 6}
    assert result["frames"] == {"level0_px": 12}


@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_safe(name: str) -> None:
    real(name)
    result = verify(DATA / f"{name}.npz")
    assert result["verdict"] == "safe"
    assert "label_column" not in kinds(result)


@pytest.mark.parametrize("name", SETS)
def test_a_label_in_the_last_column_is_found(tmp_path: Path, name: str) -> None:
    arrays = real(name)
    x, of_bag = arrays["X"].astype(np.float32), arrays["y"][arrays["bag"]]
    column = x.shape[1]
    # As in public copies of MUSK and Fox: -1 and 1, the same in all instances of a bag.
    arrays["X"] = np.column_stack([x, 2.0 * of_bag - 1]).astype(np.float32)
    np.savez(tmp_path / "set.npz", **arrays)
    result = verify(tmp_path / "set.npz")
    assert result["verdict"] == "unsafe"
    assert one(result, "label_column")["columns"] == [column]


def test_an_instance_label_whose_largest_value_is_the_label_is_found(tmp_path: Path) -> None:
    arrays = real("tiger")
    rng = np.random.default_rng(0)
    of_bag = arrays["y"][arrays["bag"]]
    witness = of_bag * (rng.random(len(of_bag)) < 0.3)
    for b in range(len(arrays["y"])):  # every positive bag has one at least
        witness[np.flatnonzero(arrays["bag"] == b)[0]] = arrays["y"][b]
    arrays["X"] = np.column_stack([witness, arrays["X"]]).astype(np.float32)
    np.savez(tmp_path / "set.npz", **arrays)
    assert one(verify(tmp_path / "set.npz"), "label_column")["columns"] == [0]


def test_a_strong_feature_is_a_warning_only(tmp_path: Path) -> None:
    arrays = real("elephant")
    rng = np.random.default_rng(0)
    strong = 5.0 * arrays["y"][arrays["bag"]] + rng.random(len(arrays["X"]))
    arrays["X"] = np.column_stack([arrays["X"], strong]).astype(np.float32)
    np.savez(tmp_path / "set.npz", **arrays)
    result = verify(tmp_path / "set.npz")
    assert result["verdict"] == "safe"
    found = one(result, "separating_column")
    assert (found["severity"], found["columns"]) == ("warning", [230])


def test_shuffled_labels_are_in_no_column(tmp_path: Path) -> None:
    """Of few slides some column separates the classes by chance: that is no finding."""
    rng = np.random.default_rng(0)
    bag = np.repeat(np.arange(8), 5)
    x = rng.normal(size=(40, 2000)).astype(np.float32)
    np.savez(tmp_path / "set.npz", X=x, bag=bag, y=np.arange(8) % 2)
    assert kinds(verify(tmp_path / "set.npz"), "unsafe", "warning") == set()


def test_columns_that_are_no_features_of_tiles(tmp_path: Path) -> None:
    arrays = real("fox")
    bag = arrays["bag"]
    arrays["X"] = np.column_stack([arrays["X"], bag, bag % 7]).astype(np.float32)
    np.savez(tmp_path / "set.npz", **arrays)
    result = verify(tmp_path / "set.npz")
    assert one(result, "slide_column")["columns"] == [230, 231]
    assert len(one(result, "constant_column")["columns"]) == 108


def planted(kind: str) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8, 6)).astype(np.float32)
    grid = np.stack([np.arange(8) % 4, np.arange(8) // 4], axis=1) * 256
    clean = {"features": x, "coords": grid}
    if kind == "not_finite":
        bad = x.copy()
        bad[3, 2], bad[5, 1], bad[6, 0] = np.nan, np.inf, np.nan
        return {"s4": clean | {"features": bad}}
    if kind == "copied_slides":
        return {"s1": clean, "s9": {"features": x[::-1].copy(), "coords": grid}}
    half = np.concatenate([x[:5], rng.normal(size=(3, 6)).astype(np.float32)])
    return {
        "copied_in_part": {"s1": clean, "s9": clean | {"features": half}},
        "repeated_tiles": {"s2": clean | {"features": np.repeat(x[:4], 2, axis=0)}},
        "zero_tiles": {"s2": clean | {"features": x * (np.arange(8) != 3)[:, None]}},
        "coordinates": {"s3": clean | {"coords": grid[:5]}},
        "coordinates_repeated": {"s3": clean | {"coords": np.repeat(grid[:4], 2, axis=0)}},
        "coordinates_doubtful": {"s3": clean | {"coords": grid - 256}},
        "off_grid": {"s3": clean | {"coords": grid + (np.arange(8) == 6)[:, None] * 37}},
        "empty": {"s5": {"features": x[:0], "coords": grid[:0]}},
        "mixed_dim": {"s5": clean | {"features": x[:, :5]}},
        "mixed_dtype": {"s5": clean | {"features": x.astype(np.float16)}},
    }[kind]


@pytest.mark.parametrize(
    ("what", "kind", "severity", "slides"),
    [
        ("not_finite", "not_finite", "unsafe", ["s4"]),
        ("copied_slides", "copied_slides", "unsafe", ["s1", "s9"]),
        ("copied_in_part", "copied_slides", "unsafe", ["s1", "s9"]),
        ("repeated_tiles", "repeated_tiles", "warning", ["s2"]),
        ("zero_tiles", "zero_tiles", "warning", ["s2"]),
        ("coordinates", "coordinates", "unsafe", ["s3"]),
        ("coordinates_repeated", "coordinates_repeated", "warning", ["s3"]),
        ("coordinates_doubtful", "coordinates_doubtful", "warning", ["s3"]),
        ("off_grid", "off_grid", "note", ["s3"]),
        ("empty", "empty", "unsafe", ["s5"]),
        ("mixed_dim", "mixed_dim", "unsafe", ["s5"]),
        ("mixed_dtype", "mixed_dtype", "note", ["s5"]),
    ],
)
def test_each_planted_fault_is_found(
    tmp_path: Path, what: str, kind: str, severity: str, slides: list[str]
) -> None:
    result = verify(cohort(tmp_path / "f", **planted(what)))
    assert kinds(result, "unsafe", "warning") <= {kind}  # and nothing else
    found = one(result, kind)
    assert (found["severity"], found["slides"]) == (severity, slides)
    assert result["verdict"] == ("unsafe" if severity == "unsafe" else "safe")


def test_where_the_first_nan_is(tmp_path: Path) -> None:
    found = one(verify(cohort(tmp_path / "f", **planted("not_finite"))), "not_finite")
    assert found["message"].startswith("2 NaN and 1 infinite values in 1 slide")
    assert "tile 3, column 2 of 's4'" in found["message"]


def test_background_that_slides_share_makes_no_copies(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "f")
    blank = np.full((1, 6), 0.25, np.float32)
    for path in folder.iterdir():
        with np.load(path) as file:
            arrays = dict(file)
        arrays["features"] = np.concatenate([blank, arrays["features"][1:]])
        np.savez(path, **arrays)
    result = verify(folder)
    assert result["verdict"] == "safe"
    assert one(result, "common_tiles")["severity"] == "note"


def test_labels_without_features_and_the_other_way_round(tmp_path: Path) -> None:
    folder, labels = cohort(tmp_path / "f"), table(tmp_path / "l.csv", n=10)
    labels.write_text(labels.read_text() + "ghost,a\n")
    messages = [f["message"] for f in verify(folder, labels)["findings"]]
    assert "no label for 2 slides with features: 's10', 's11'" in messages
    assert "no features for 1 slide with a label: 'ghost'" in messages


def test_the_verb_and_its_exit_codes(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "f", **planted("not_finite"))
    (folder / "s7.npz").write_bytes(b"PK")
    unsafe = CliRunner().invoke(app, ["verify", str(folder)])
    assert unsafe.exit_code == 1
    assert "not_finite" in unsafe.stdout
    assert "s7.npz" in unsafe.stdout.replace("\n", "")
    clean = cohort(tmp_path / "clean")
    safe = CliRunner().invoke(app, ["verify", str(clean), "--json"])
    assert safe.exit_code == 0
    assert '"verdict": "safe"' in safe.stdout
