"""The verbs. A stage is imported only when its verb is asked for, so ``--help`` is instant."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mil import settings as configuration
from mil.config import Config
from mil.terminal import (
    print_json,
    print_table,
    screen,
    show_identity,
    show_metrics,
    show_split,
)
from splits.errors import InputError, SlidewiseError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Slide-level classification of H&E tiles, with leakage-free splits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/<name of the config>.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value: --set train.lr=3e-4.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output, nothing else.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    settings: Settings = None,
) -> None:
    """Make the phantom cohort and run everything on it."""
    from mil.run import demo_config

    _run(out, configuration.override(demo_config(), settings or ()))


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    settings: Settings = None,
    out: Out = None,
) -> None:
    """All stages; finished ones are skipped, an interrupted one resumes."""
    _run(out or _default_out(config), configuration.load(config, settings or ()))


@app.command()
def scan(
    root: Annotated[Path, typer.Argument(help="Folder of images.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    label: Annotated[
        str, typer.Option(help="folder, none, or a regex with (?P<label>...).")
    ] = "folder",
    tile_px: Annotated[
        int | None, typer.Option(help="Cut images into squares of this size.")
    ] = None,
) -> None:
    """Tile table and skip ledger."""
    from mil import prepare
    from splits import ledger
    from splits.artifacts import read_table

    data = {"root": str(root), "label": label, "tile_px": tile_px}
    known = _stored(out) if (out / "config.yaml").exists() else None
    config = _with(known, data=data)
    with screen() as view:
        prepare.scan(out, config, view.progress)
    configuration.save(config, out / "config.yaml")
    table, skipped = read_table(out / "tiles.parquet"), ledger.read(out)
    typer.echo(f"{len(table)} tiles in {out}/tiles.parquet, {len(skipped)} lines in skipped.csv")


@app.command()
def names(
    given: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
    file: Annotated[Path | None, typer.Option(help="A list, one name a line.")] = None,
    json: Json = False,
) -> None:
    """What each name says: grammar, site, patient, slide, region, x, y."""
    from splits.identity.grammar import describe
    from splits.identity.table import read_text

    listed = list(given or ())
    if file is not None:
        listed += [line for line in read_text(file).splitlines() if line]
    if not listed:
        message = "no name given: slidewise names NAME... or --file LIST"
        raise InputError(message)
    rows = [describe(name) for name in listed]
    if json:
        print_json(rows)
        return
    typer.echo("\t".join(rows[0]))
    for row in rows:
        # A tab within a name would shift its columns.
        typer.echo("\t".join(value.replace("\t", "\\t") for value in row.values()))


@app.command()
def preview(
    config: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    settings: Settings = None,
    out: Out = None,
) -> None:
    """A picture of what the encoder will see."""
    from mil.report.samples import preview_run

    folder = out or _default_out(config)
    loaded = configuration.load(config, settings or ())
    with screen() as view:
        typer.echo(preview_run(folder, loaded, view.progress))


@app.command()
def identify(
    run: Run,
    manifest: Annotated[Path | None, typer.Option(help="Table of ids by tile or slide.")] = None,
    columns: Annotated[str | None, typer.Option(help="Its columns, as for split.")] = None,
    patients: Annotated[Path | None, typer.Option(help="Patients, joined to it.")] = None,
    sites: Annotated[Path | None, typer.Option(help="Table: site code, institution.")] = None,
    rule: Annotated[str | None, typer.Option(help="Grammar or regex.")] = None,
    content: Annotated[
        bool | None, typer.Option(help="Look for copies, overlaps and seams in the pixels.")
    ] = None,
    embedding: Annotated[Path | None, typer.Option(help="Features of the tiles (npz).")] = None,
    truth: Annotated[Path | None, typer.Option(help="True ids, for scoring only.")] = None,
    json: Json = False,
) -> None:
    """Slide, patient and site of every tile, with the reason, a grade and a page of pictures."""
    from mil.report.identity import identify_run

    files = {"manifest": manifest, "patients": patients, "sites": sites, "embedding": embedding}
    changes: dict[str, Any] = {name: str(path) for name, path in files.items() if path is not None}
    given = {"columns": _columns(columns) or None, "rule": rule, "content": content}
    changes |= {name: value for name, value in given.items() if value is not None}
    config = _with(_stored(run), identity=changes)
    with screen() as view:
        report = identify_run(run, config, truth, view.progress)
    configuration.save(config, run / "config.yaml")
    if json:
        print_json(report)
    else:
        show_identity(report, run / "identity.html")


@app.command()
def split(
    run: Annotated[Path | None, typer.Argument(help="Run folder.", show_default=False)] = None,
    folds: Annotated[int | None, typer.Option(help="Folds.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Shares, as in 0.7,0.15,0.15.")] = None,
    unit: Annotated[str | None, typer.Option(help="patient, slide or site.")] = None,
    balance: Annotated[str | None, typer.Option(help="label,site,tiles.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None,
    slides: Annotated[Path | None, typer.Option(help="Split this table, without tiles.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Its columns: slide_id=name,label=cohort.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Split file for --slides.")] = None,
) -> None:
    """The split and its balance."""
    from mil import prepare

    changes: dict[str, Any] = {}
    if folds is not None and holdout is not None:
        message = "--folds and --holdout exclude each other"
        raise InputError(message)
    if folds is not None:
        changes.update(method="kfold", folds=folds)
    if holdout is not None:
        changes.update(method="holdout", ratios=_ratios(holdout))
    changes.update({k: v for k, v in (("unit", unit), ("seed", seed)) if v is not None})
    if balance is not None:
        changes["balance"] = balance.split(",")
    if (run is None) == (slides is None):
        message = "give a run folder, or --slides CSV with --out FILE"
        raise InputError(message)
    if run is not None:
        config = _with(_stored(run), split=changes)
        result = prepare.split(run, config)
        configuration.save(config, run / "config.yaml")
        show_split(result, run / "split.csv")
        prepare.audit(run, config)
        return
    if slides is None or out is None:
        message = "--slides needs --out FILE for the split"
        raise InputError(message)
    settings = _with(None, data={"root": "."}, split=changes).split
    result, notes = prepare.split_table(slides, out, settings, _columns(columns))
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    show_split(result, out)


@app.command()
def audit(
    run: Annotated[Path | None, typer.Argument(help="Run folder.", show_default=False)] = None,
    split: Annotated[
        list[Path] | None, typer.Option(help="Split file of any known format.")
    ] = None,
    slides: Annotated[Path | None, typer.Option(help="Table of slides.")] = None,
    columns: Annotated[str | None, typer.Option(help="Its columns, as for split.")] = None,
    json: Json = False,
) -> None:
    """Look for leaks in our own or a foreign split."""
    from mil import prepare
    from splits.audit import summarise

    if (run is None) == (not split):
        message = "give a run folder, or --split FILE"
        raise InputError(message)
    if run is not None:
        result = prepare.audit_run(run, _stored(run))
    else:
        result = prepare.audit_files(split or [], slides, _columns(columns))
    if json:
        print_json({"verdict": result["verdict"], "findings": result["findings"]})
    else:
        typer.echo(summarise(result))
        rows = [
            (f["severity"], f["kind"], f["level"], ", ".join(f["ids"][:5]), f["evidence"])
            for f in result["findings"]
        ]
        if rows:
            print_table(
                "Findings", ("severity", "kind", "level", "ids (first 5)", "evidence"), rows
            )
    if result["verdict"] == "leak":
        raise typer.Exit(1)


@app.command()
def train(run: Run) -> None:
    """Encoders, features, aggregators and predictions."""
    from mil.run import train_run

    with screen() as view:
        train_run(run, _stored(run), view.say, view.progress)


@app.command()
def evaluate(run: Run, json: Json = False) -> None:
    """Tile accuracy beside slide accuracy, with intervals."""
    from mil.run import evaluate_run
    from splits.artifacts import read_json

    evaluate_run(run, _stored(run))
    metrics = read_json(run / "metrics.json")
    if json:
        print_json(metrics)
    else:
        show_metrics(metrics)


@app.command()
def report(run: Run) -> None:
    """The report, from tables only."""
    from mil.run import report_run

    typer.echo(report_run(run, _stored(run)))


@app.command()
def predict(
    run: Run,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", show_default=False)],
    json: Json = False,
) -> None:
    """Classify new slides, each a folder of tiles, by the models of all folds."""
    from mil.predict import predict_new

    records = predict_new(run, _stored(run), inputs)
    if json:
        print_json(records)
        return
    rows = []
    for r in records:
        shares = " ".join(f"{name} {p:.2f}" for name, p in r["probabilities"].items())
        skipped = len(r["skipped"])
        rows.append((r["slide"], r["n_tiles"], r["method"], r["predicted"], shares, skipped))
    print_table("Predictions", ("slide", "tiles", "method", "class", "p", "skipped"), rows)


@app.command()
def doctor(json: Json = False) -> None:
    """Versions, devices, optional readers, free space."""
    from mil.doctor import examine

    found = examine()
    if json:
        print_json([asdict(item) for item in found])
        return
    print_table("Doctor", ("what", "found", "remark"), [(i.what, i.found, i.remark) for i in found])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors become one line and an exit code, never a traceback."""
    # The base of Typer's own usage errors, wherever the installed release keeps it.
    usage_error: Any = typer.BadParameter.__mro__[2]
    warnings.showwarning = _show_warning
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except SlidewiseError as error:
        _fail(str(error), error.exit_code)
    except usage_error as error:
        _fail(error.format_message() or "see slidewise --help", 2)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{place}; what was finished is kept, run again", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; what was finished is kept, the same command resumes", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    typer.echo(f"slidewise: {line}", err=True)
    sys.exit(code)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object
) -> None:
    # What our own code warns of is for the user; the libraries' warnings are for us.
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _run(out: Path, config: Config) -> None:
    from mil.run import run as run_all
    from splits.artifacts import read_json

    with screen() as view:
        page = run_all(out, config, view.say, view.progress)
    show_metrics(read_json(out / "metrics.json"))
    typer.echo(f"report: {page}")


def _default_out(config: Path) -> Path:
    parent = config.resolve().parent.name
    return Path("runs") / (config.stem if parent == "configs" else f"{parent}/{config.stem}")


def _stored(run: Path) -> Config:
    path = run / "config.yaml"
    if not path.exists():
        message = f"{run} is not a run folder: `slidewise scan ROOT --out {run}` makes one"
        raise InputError(message)
    return configuration.load(path)


def _with(config: Config | None, **sections: dict[str, Any]) -> Config:
    """The config with some values of some sections replaced."""
    document = {} if config is None else config.model_dump(mode="json")
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    return configuration.parse(document, "command line")


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if len(ratios) != 3:
        message = f"--holdout {text!r}: three shares are needed, as in 0.7,0.15,0.15"
        raise InputError(message)
    return ratios


def _columns(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(not equals for _, equals, _ in pairs):
        message = f"--columns {text!r}: our name = name in the table, as in slide_id=slide"
        raise InputError(message)
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


if __name__ == "__main__":
    main()
