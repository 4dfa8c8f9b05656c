"""The verbs about feature files: what is wrong with them, and ours in the layout of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mil.cli_splits import Columns, Json, Run, columns_of
from mil.terminal import print_json, print_table, say_warning, screen

__all__ = ["VERBS"]

Fold = Annotated[int | None, typer.Option(help="Whose encoder, where folds have one each.")]


def verify(
    features: Annotated[
        Path,
        typer.Argument(help="Folder of feature files, one file, or a run.", show_default=False),
    ],
    labels: Annotated[Path | None, typer.Option(help="Table of slides and labels.")] = None,
    columns: Columns = None,
    fold: Fold = None,
    json: Json = False,
) -> None:
    """What is in feature files, and what makes them unsafe to learn from."""
    from mil.features.verify import verify as look

    with screen() as view:
        result = look(
            features, labels, columns=columns_of(columns), fold=fold, progress=view.progress
        )
    if json:
        print_json(result)
    else:
        _show(result)
    if result["verdict"] == "unsafe":
        raise typer.Exit(1)


def _show(result: dict[str, Any]) -> None:
    n = result["n"]
    rows = [("slides", str(n["slides"])), ("tiles", str(n["tiles"]))]
    if n["unreadable"]:
        rows.append(("unreadable files", str(n["unreadable"])))
    if n["slides"]:
        rows.append(("tiles a slide", f"{n['smallest']} to {n['largest']}, median {n['median']}"))
    named = {"formats": "format", "dims": "dimension", "dtypes": "type", "frames": "coordinates"}
    named |= {"encoders": "encoder", "labels": "labels"}
    for key, word in named.items():
        counts = result[key]
        listed = ", ".join(
            f"{value} ({n})" if len(counts) > 1 else value for value, n in counts.items()
        )
        rows.append((word, listed or "none given"))
    typer.echo(f"{result['verdict']}: {result['path']}")
    print_table("Features", ("", ""), rows)
    found = [(one["severity"], one["kind"], one["message"]) for one in result["findings"]]
    if found:
        print_table("Findings", ("severity", "kind", "what"), found)


def export(
    run: Run,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="trident, clam-h5, clam-pt, stamp, torchmil, slideflow or npz.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder.", show_default=False)],
    fold: Fold = None,
) -> None:
    """The features of a run as another tool's files."""
    from mil.features.export import export as write

    with screen() as view:
        done = write(run, kind, out, fold=fold, progress=view.progress)
    typer.echo(f"{done.n_slides} slides for {kind} -> {out}")
    for note in done.notes:
        say_warning(note, "note")


VERBS = (verify, export)
