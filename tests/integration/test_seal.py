"""Labels of test slides may be anything: no weight of their fold changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mil.cohort import folds_of
from mil.predictions import read_slides
from mil.run import train_run
from splits import tiles
from splits.artifacts import digests_of, file_digest, read_table, write_table
from tests.integration.conftest import smoke


def weights(run: Path, fold: int) -> dict[str, str]:
    found = sorted(run.glob(f"*/**/fold{fold}/model.safetensors"))
    assert len(found) == 3, "the encoder and two aggregators"
    return {path.relative_to(run).as_posix(): file_digest(path) for path in found}


def poison(run: Path, slides: list[str]) -> None:
    """Give these slides each other's labels; the split stays as it is."""
    path = run / "tiles.parquet"
    table, digests = read_table(path), digests_of(path)
    label = tiles.slides(table).astype(object).set_index("slide_id")["label"]
    others = {s: next(c for c in sorted(set(label)) if c != label[s]) for s in slides}
    chosen = table["slide_id"].isin(slides)
    told = table["slide_label"].astype(object)
    table["slide_label"] = told.where(~chosen, table["slide_id"].map(others))
    identity = tiles.identity_digest(tiles.check(table))
    write_table(path, tiles.check(table), {**digests, "identity": identity})
    account = json.loads((run / "split.json").read_text())
    account["digests"]["identity"] = identity
    (run / "split.json").write_text(json.dumps(account))


def test_poisoned_test_labels_change_no_trained_weight(copied: Path) -> None:
    config = smoke()
    fold = next(folds_of(copied, config))
    before = {k: weights(copied, k) for k in (0, 1)}
    of_test = read_slides(copied / "predictions.parquet").query("fold == 0")
    for name in ("encoder", "features", "aggregators"):
        shutil.rmtree(copied / name)
    poison(copied, fold.slides["test"])
    train_run(copied, config, say=lambda _: None)
    assert weights(copied, 0) == before[0]
    assert not set(weights(copied, 1).values()) & set(before[1].values()), "there they train"
    # What the models of the fold say is the same, too; only the column `label` is another.
    again = read_slides(copied / "predictions.parquet").query("fold == 0")
    assert (again["label"] != of_test["label"]).all()
    assert again.drop(columns="label").equals(of_test.drop(columns="label"))
