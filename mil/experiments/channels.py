"""Channels on one split: RGB, H, E and H+E, with stain vectors a slide and without.

Nine runs that differ in what the encoder sees and in nothing else. Tiles, identity and split are
made once, in ``OUT/cohort``; every row is an ordinary run folder beside it that takes them over, is
skipped when it is current and resumes when it was killed. Before anything is compared, the tables
that each row holds are proven equal by digest.

Rows are compared on the same slides: one bootstrap draw is the same patients for all of them
(:mod:`mil.statistics`). Which pairs are compared was fixed beforehand: every row with the
reference, H+E with vectors a slide, and what has vectors a slide with its twin that has not. p
values are corrected (Holm 1979) over the pairs of one column, a level and a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mil import settings, train
from mil.config import Config, Evidence
from mil.experiments.channels_compare import REFERENCE, compare_runs, lines
from mil.experiments.channels_page import write_channels
from mil.experiments.probe import probe_run
from mil.models import new_encoder
from mil.prepare import Progress
from mil.prepare import read_tiles as read_tile_table
from mil.run import evaluate_run, prepare_run, report_run, train_run
from splits import split as splitting
from splits import tiles
from splits.artifacts import (
    atomic,
    digest,
    digests_of,
    file_digest,
    is_current,
    read_json,
    write_csv,
    write_json,
)
from splits.errors import InputError, unknown

__all__ = ["Row", "channels", "proof_of", "require_one", "rows_of"]

_FORM: Final = 1
_COHORT: Final = (
    "tiles.parquet", "skipped.csv", "identity.json", "links.parquet", "layout.parquet",
    "split.csv", "split.json", "split_inner.csv", "audit.json", "cache/scan.parquet",
)  # fmt: skip

Say = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """What an encoder sees.

    Attributes:
        name: Its folder.
        channels: A key of ``mil.stain.channels.CHANNELS``.
        stain: ``stain.method``.
        words: For readers.
    """

    name: str
    channels: str
    stain: str
    words: str

    def of(self, config: Config, cohort: Path) -> Config:
        """The config of this row: the cohort's tiles, these channels, all else as it was."""
        sections: dict[str, dict[str, Any]] = {
            "encoder": {"channels": self.channels},
            "stain": {"method": self.stain},
            # Taking tiles away answers another question, at a price for every row.
            "evidence": Evidence(max_slides=0).model_dump(),
        }
        if config.data.phantom is not None:
            # One phantom for all rows: they read its tiles where the cohort has drawn them.
            drawn = cohort / "phantom"
            sections["data"] = {"phantom": None, "root": str(drawn / "tiles")}
            if config.identity.manifest is None:
                sections["identity"] = {"manifest": str(drawn / "manifest.csv")}
        return settings.changed(config, **sections)


def rows_of(config: Config) -> list[Row]:
    """The rows; vectors a slide are Vahadane's where the config asks for them, else Macenko's."""
    slide = "vahadane" if config.stain.method == "vahadane" else "macenko"
    return [
        Row("rgb", "rgb", "none", "RGB as it is"),
        Row("rgb-reinhard", "rgb", "reinhard", "RGB, slides brought to one colour (Reinhard)"),
        Row("h", "h", slide, f"H, vectors a slide ({slide})"),
        Row("e", "e", slide, f"E, vectors a slide ({slide})"),
        Row(REFERENCE, "he", slide, f"H+E, vectors a slide ({slide})"),
        Row("h-fixed", "h", "ruifrok", "H, fixed vectors (ruifrok)"),
        Row("e-fixed", "e", "ruifrok", "E, fixed vectors (ruifrok)"),
        Row("he-fixed", "he", "ruifrok", "H+E, fixed vectors (ruifrok)"),
        Row("he-tile", "he", "macenko_tile", "H+E, vectors a tile (the founding notebook)"),
    ]


def channels(
    out: Path,
    config: Config,
    say: Say,
    progress: Progress | None = None,
    *,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Run every row and compare them: ``channels.json``, ``channels.csv``, ``channels.html``.

    Args:
        out: Folder of the experiment.
        config: Of the rows; its ``encoder.channels`` and ``stain.method`` are set by each row.
        say: Called with a line a step.
        progress: Of long steps.
        only: Names of rows; all of them if empty.

    Returns:
        The content of ``channels.json``.

    Raises:
        InputError: The config starts from features, there is no row of a name, none can be run, or
            one holds other tiles or another split than the cohort.
        NegativeVerdictError: No slide-level split exists, or the split leaks.
    """
    if config.data.features is not None:
        message = (
            "channels compares what an encoder sees, and data.features holds what one has made of "
            "it already: give data.root (a folder of images) or data.phantom"
        )
        raise InputError(message)
    cohort = out / "cohort"
    rows, absent = _possible(config, cohort, only)
    prepare_run(cohort, config, say, progress)
    for row in rows:
        say(f"{row.name}: {row.words}")
        _run(out / row.name, cohort, row.of(config, cohort), say, progress)
    one = require_one({name: proof_of(out / name) for name in ["cohort", *(r.name for r in rows)]})
    n_draws, seed = config.evaluate.bootstrap, config.seed
    listed = [asdict(row) for row in rows]
    made_from = [
        digests_of(out / row.name / name) for row in rows for name in ("metrics.json", "probe.json")
    ]
    digests = {
        **one,
        "rows": digest([listed, made_from]),
        "absent": digest(absent),
        "channels": digest([_FORM, n_draws, seed]),
    }
    path = out / "channels.json"
    if not is_current(path, digests):
        result = compare_runs(out, listed, absent, n_draws=n_draws, seed=seed)
        write_csv(out / "channels.csv", lines(result))
        write_json(path, {**result, "seed": seed, "cohort": one}, digests)
    result = read_json(path)
    write_channels(out, result, config)
    return result


def _possible(
    config: Config, cohort: Path, only: Sequence[str]
) -> tuple[list[Row], list[dict[str, str]]]:
    """Rows that the encoder can do, and the others with the reason; before any work starts."""
    train.check(config)
    asked = {row.name: row for row in rows_of(config)}
    for name in only:
        if name not in asked:
            raise unknown(kind="row", given=name, allowed=asked)
    verdicts: dict[str, str | None] = {}
    rows, absent = [], []
    for row in asked.values():
        if only and row.name not in only:
            continue
        own = row.of(config, cohort)
        if row.channels not in verdicts:
            try:
                # The layers are built and adapted to the channels; weights would change nothing.
                new_encoder(own, ["a", "b"], load_weights=False)
                verdicts[row.channels] = None
            except InputError as error:
                verdicts[row.channels] = str(error)
        reason = verdicts[row.channels]
        if reason is None:
            rows.append(row)
        else:
            absent.append({"row": row.name, "words": row.words, "reason": reason})
    if not rows:
        raise InputError(absent[0]["reason"])
    return rows, absent


def _run(run: Path, cohort: Path, config: Config, say: Say, progress: Progress | None) -> None:
    _adopt(run, cohort)
    settings.save(config, run / "config.yaml")
    train_run(run, config, say, progress)
    evaluate_run(run, config)
    probe_run(run, config)
    page, made_from = run / "report.html", run / "metrics.json"
    if not page.exists() or page.stat().st_mtime_ns < made_from.stat().st_mtime_ns:
        report_run(run, config)


def _adopt(run: Path, cohort: Path) -> None:
    """Give a row the tables of the cohort.

    Raises:
        InputError: Its split says that it is the cohort's, and is not.
    """
    if (run / "split.csv").exists() and digests_of(run / "split.json") == digests_of(
        cohort / "split.json"
    ):
        require_one({name.name: proof_of(name) for name in (cohort, run)})
    for name in _COHORT:
        source, target = cohort / name, run / name
        if not source.exists():
            target.unlink(missing_ok=True)
        elif not target.exists() or file_digest(source) != file_digest(target):
            with atomic(target) as temporary:
                temporary.write_bytes(source.read_bytes())


def proof_of(run: Path) -> dict[str, str]:
    """Digests of the tiles with their identity and of the split, from what lies in a run now."""
    table, split = read_tile_table(run), splitting.load(run)
    return {"identity": tiles.identity_digest(table), "split": split.digest}


def require_one(proofs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The digests that all runs share.

    Args:
        proofs: Run -> :func:`proof_of`.

    Raises:
        InputError: With the first run that differs from the first of all.
    """
    (first, expected), *others = proofs.items()
    for name, proof in others:
        for what, value in proof.items():
            if value != expected[what]:
                message = (
                    f"{name} holds another {what} than {first} (digest {value}, not "
                    f"{expected[what]}): rows on different slides cannot be compared; remove the "
                    f"folder {name}, and it is made anew"
                )
                raise InputError(message)
    return dict(expected)
