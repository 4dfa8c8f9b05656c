"""The verbs that make many runs which differ in one thing, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mil import settings as configuration
from mil.cli_splits import Json, Run
from mil.terminal import print_json, print_table, say_warning, screen

__all__ = ["VERBS", "Settings", "run_name"]

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value: --set train.lr=3e-4.")
]


def run_name(config: Path) -> Path:
    """What a run is called after its config: ``smoke``, ``tcga_organs/he_resnet18``."""
    parent = config.resolve().parent.name
    return Path(config.stem) if parent == "configs" else Path(parent, config.stem)


def gap(
    config: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default runs/gap/<name of the config>.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Deals and trainings of each scheme.")] = 3,
    null: Annotated[
        bool, typer.Option("--null/--no-null", help="Also with labels shuffled over patients.")
    ] = True,
    json: Json = False,
) -> None:
    """The leakage gap: one experiment under random-tile, slide, patient and site splits."""
    from mil.experiments.gap import measure
    from mil.experiments.gap_page import gap_rows, null_rows, score_rows, sentences

    folder = out or Path("runs", "gap") / run_name(config)
    loaded = configuration.load(config, settings or ())
    with screen() as view:
        result = measure(
            folder, loaded, n_seeds=seeds, null=null, say=view.say, progress=view.progress
        )
    if result is None:
        return
    if json:
        print_json(result)
        return
    for title, rows in (("Accuracy", score_rows(result)), ("Gaps", gap_rows(result))):
        print_table(title, rows[0], rows[1:])
    if shuffled := null_rows(result):
        print_table("Labels shuffled over patients", shuffled[0], shuffled[1:])
    for line in sentences(result):
        typer.echo(line)
    for line in result["cautions"]:
        say_warning(line, "caution")
    typer.echo(f"page: {folder / 'gap.html'}")


def channels(
    config: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default runs/channels/<name of the config>.")
    ] = None,
    rows: Annotated[
        str, typer.Option(help="Some rows only, as in rgb,he,he-fixed.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """RGB, H, E and H+E on one split, with stain vectors a slide and without; paired tests."""
    from mil.experiments.channels import channels as run_all
    from mil.experiments.channels_page import table_of

    folder = out or Path("runs", "channels") / run_name(config)
    loaded = configuration.load(config, settings or ())
    with screen() as view:
        only = [name.strip() for name in rows.split(",") if name.strip()]
        result = run_all(folder, loaded, view.say, view.progress, only=only)
    if json:
        print_json(result)
        return
    print_table(*table_of(result))
    for absent in result["not_run"]:
        say_warning(f"{absent['row']} ({absent['words']}): {absent['reason']}", "not run")
    typer.echo(f"page: {folder / 'channels.html'}")


def probe(run: Run, json: Json = False) -> None:
    """The shortcut probe: can slide, site and preparation be read off the embeddings?"""
    from mil.experiments.probe import probe_run, table_of

    result = probe_run(run, configuration.stored(run))
    if json:
        print_json(result)
        return
    title, columns, rows = table_of(result)
    print_table(title, columns, rows)
    for note in result["notes"]:
        say_warning(note, "note")


VERBS = (gap, channels, probe)
