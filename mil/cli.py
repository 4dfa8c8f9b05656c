"""The verbs. A stage is imported only when its verb is asked for, so ``--help`` is instant."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mil import cli_experiments, cli_features, cli_splits
from mil import settings as configuration
from mil.cli_experiments import Settings, run_name
from mil.cli_splits import Json, Run
from mil.config import Config
from mil.settings import stored
from mil.terminal import print_json, print_table, say_warning, screen, show_metrics
from splits.errors import InputError, SlidewiseError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Slide-level classification of H&E tiles, with leakage-free splits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/<name of the config>.")]


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


for verb in cli_splits.VERBS:
    app.command()(verb)


@app.command()
def train(run: Run) -> None:
    """Encoders, features, aggregators and predictions."""
    from mil.run import train_run

    with screen() as view:
        train_run(run, stored(run), view.say, view.progress)


@app.command()
def evaluate(
    run: cli_splits.MaybeRun = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(metavar="[METHOD=]FILE", help="Score another tool's predictions instead."),
    ] = None,
    slides: Annotated[Path | None, typer.Option(help="Their labels, a row a slide.")] = None,
    tiles: Annotated[Path | None, typer.Option(help="Their predictions of tiles.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns not recognised: slide_id=name,p_tumour=score.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the slides that every method predicts.")
    ] = False,
    label_order: Annotated[
        str | None, typer.Option(help="Their classes from lowest to highest, if ordered.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for their scores.")] = None,
    json: Json = False,
) -> None:
    """Tile accuracy beside slide accuracy, with intervals."""
    from mil import foreign
    from splits.artifacts import read_json

    if (run is None) == (not predictions) or (not predictions) != (out is None):
        message = "give a run folder, or --predictions FILE with --out FOLDER"
        raise InputError(message)
    extra = {"--slides": slides, "--tiles": tiles, "--columns": columns, "--partial": partial}
    extra["--label-order"] = label_order
    given = [name for name, value in extra.items() if value]
    if run is not None and given:
        message = f"{given[0]} goes with --predictions; a run brings its own"
        raise InputError(message)
    if run is not None:
        if foreign.is_foreign(run):
            message = f"{run} holds predictions of another tool: give them with --predictions again"
            raise InputError(message)
        from mil.run import evaluate_run

        with screen() as view:
            evaluate_run(run, stored(run), view.progress)
        metrics = read_json(run / "metrics.json")
    elif predictions and out is not None:
        with screen() as view:
            scored = foreign.score(
                predictions,
                out,
                slides=slides,
                tiles=tiles,
                columns=cli_splits.columns_of(columns),
                partial=partial,
                label_order=None if label_order is None else label_order.split(","),
                progress=view.progress,
            )
        metrics = scored.metrics
        for kind, said in (("note", scored.notes), ("warning", scored.cautions)):
            for line in said:
                say_warning(line, kind)
    if json:
        print_json(metrics)
    else:
        show_metrics(metrics)


@app.command()
def report(run: Run) -> None:
    """The report, from tables only."""
    from mil import foreign
    from mil.report import build

    if foreign.is_foreign(run):
        typer.echo(build(run, read_tile=None))
        return
    from mil.run import report_run

    typer.echo(report_run(run, stored(run)))


@app.command()
def predict(
    run: Run,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", show_default=False)],
    json: Json = False,
) -> None:
    """Classify new slides (folders of tiles, or feature files) by the models of all folds."""
    from mil.new_slides import predict_new

    records = predict_new(run, stored(run), inputs)
    if json:
        print_json(records)
        return
    rows = []
    for r in records:
        shares = " ".join(f"{name} {p:.2f}" for name, p in r["probabilities"].items())
        held = f"{r['answer']}: {' or '.join(r['set']) or 'like no class'}"
        answer = r["answer"] if len(r["set"]) == 1 else held
        skipped = len(r["skipped"])
        rows.append(
            (r["slide"], r["n_tiles"], r["method"], r["predicted"], shares, answer, skipped)
        )
    sure = f"answer at {records[0]['level']:.0%}" if records else "answer"
    columns = ("slide", "tiles", "method", "class", "p", sure, "skipped")
    print_table("Predictions", columns, rows)


for verb in (*cli_features.VERBS, *cli_experiments.VERBS):
    app.command()(verb)


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
    if page is not None:
        show_metrics(read_json(out / "metrics.json"))
        typer.echo(f"report: {page}")


def _default_out(config: Path) -> Path:
    return Path("runs") / run_name(config)


if __name__ == "__main__":
    main()
