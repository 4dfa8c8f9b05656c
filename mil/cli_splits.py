"""The verbs before any learning: tables, identity, splits, their audit, and the plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mil import settings as configuration
from mil.settings import changed, stored
from mil.terminal import (
    print_json,
    print_table,
    say_warning,
    screen,
    show_audit,
    show_identity,
    show_split,
)
from splits.errors import InputError

__all__ = ["VERBS", "Columns", "Json", "Run", "columns_of"]

Run = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]
MaybeRun = Annotated[Path | None, typer.Argument(help="Run folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output, nothing else.")]
Columns = Annotated[
    str | None, typer.Option(help="Columns of the table: slide_id=name,label=cohort.")
]


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
    known = stored(out) if (out / "config.yaml").exists() else None
    config = changed(known, data=data)
    with screen() as view:
        prepare.scan(out, config, view.progress)
    configuration.save(config, out / "config.yaml")
    table, skipped = read_table(out / "tiles.parquet"), ledger.read(out)
    typer.echo(f"{len(table)} tiles in {out}/tiles.parquet, {len(skipped)} lines in skipped.csv")


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
    given = {"columns": columns_of(columns) or None, "rule": rule, "content": content}
    changes |= {name: value for name, value in given.items() if value is not None}
    config = changed(stored(run), identity=changes)
    with screen() as view:
        report = identify_run(run, config, truth, view.progress)
    configuration.save(config, run / "config.yaml")
    if json:
        print_json(report)
    else:
        show_identity(report, run / "identity.html")


def split(
    run: MaybeRun = None,
    folds: Annotated[int | None, typer.Option(help="Folds, each tested once.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Times the folds are dealt anew.")] = None,
    inner: Annotated[
        int | None, typer.Option(help="Folds within each fold, to choose with (nested).")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(help="One fold instead: shares as in 0.7,0.15,0.15.")
    ] = None,
    leave_one_site_out: Annotated[
        bool, typer.Option("--leave-one-site-out", help="One fold a site instead.")
    ] = False,
    unit: Annotated[
        str | None, typer.Option(help="Never cut: patient, slide or site (site-preserved).")
    ] = None,
    balance: Annotated[str | None, typer.Option(help="label,tissue,site,tiles,stain.")] = None,
    label_policy: Annotated[
        str | None,
        typer.Option(help="Patients whose slides differ: slide, majority, max or reject."),
    ] = None,
    label_order: Annotated[
        str | None, typer.Option(help="Classes from lowest to highest: benign,malignant.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None,
    slides: Annotated[Path | None, typer.Option(help="Split this table, without tiles.")] = None,
    columns: Columns = None,
    out: Annotated[Path | None, typer.Option(help="Split file for --slides.")] = None,
    export: Annotated[
        str | None,
        typer.Option(help="For another tool: clam, patho-bench, stamp, torchmil, slideflow, ..."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="New folder for --export.")] = None,
    json: Json = False,
) -> None:
    """The split, its balance, and what no split can avoid."""
    from mil import prepare, tissue
    from splits import formats

    if (run is None) == (slides is None) or (slides is None) != (out is None):
        message = "give a run folder, or --slides CSV with --out FILE"
        raise InputError(message)
    if (export is None) != (to is None):
        message = "--export KIND and --to FOLDER go together"
        raise InputError(message)
    if export is not None and to is not None:
        formats.require_writable(export, to)
    given = {"unit": unit, "seed": seed, "label_policy": label_policy}
    listed = {"balance": balance, "label_order": label_order}
    changes = _method(folds, repeats, inner, holdout, one_site=leave_one_site_out)
    changes |= {name: value for name, value in given.items() if value is not None}
    changes |= {name: value.split(",") for name, value in listed.items() if value is not None}
    notes: list[str] = []
    found: dict[str, Any] = {"verdict": "clean"}
    write: Callable[[str, Path], Any]
    if run is not None:
        from mil.report.audit import audit_run

        config = changed(stored(run), split=changes)
        with screen() as view:
            amounts = tissue.amounts(run, config, view.progress)
            result = prepare.split(run, config, amounts)
            configuration.save(config, run / "config.yaml")
            found = audit_run(run, config, encoders=False)
        path, write = run / "split.csv", partial(prepare.export, run, config, result)
    elif slides is not None and out is not None:
        settings = changed(None, data={"root": "."}, split=changes).split
        result, dealt, notes = prepare.split_table(slides, out, settings, columns_of(columns))
        path, write = out, partial(formats.write, result.table, slides=dealt)
    if json:
        print_json(result.meta)
    else:
        show_split(result, path)
    for note in notes:
        say_warning(note, "note")
    if export is not None and to is not None:
        written = write(export, to)
        if not json:
            typer.echo(f"{len(written.files)} file(s) for {export} -> {to}")
        for lost in written.lost:
            say_warning(lost, "not in these files")
    if found["verdict"] == "leak":
        if not json:
            show_audit(found, path.with_name("audit.html"))
        raise typer.Exit(1)


def _method(
    folds: int | None,
    repeats: int | None,
    inner: int | None,
    holdout: str | None,
    *,
    one_site: bool,
) -> dict[str, Any]:
    """What the options say of the way to split; options that exclude each other are refused."""
    numbers = {"folds": folds, "repeats": repeats, "inner": inner}
    asked = {f"--{name}": value for name, value in numbers.items() if value is not None}
    ways = [
        *(["--holdout"] if holdout is not None else []),
        *(["--leave-one-site-out"] if one_site else []),
        *([next(iter(asked))] if asked else []),
    ]
    if len(ways) > 1:
        message = f"{ways[1]} and {ways[0]} exclude each other"
        raise InputError(message)
    if holdout is not None:
        return {"method": "holdout", "ratios": _ratios(holdout), "repeats": 1, "inner": None}
    if one_site:
        method = {"method": "leave-one-site-out", "unit": "site"}
        return {**method, "repeats": 1, "inner": None}
    if not asked:
        return {}
    return {"method": "kfold", **{name.strip("-"): value for name, value in asked.items()}}


def audit(
    run: MaybeRun = None,
    split: Annotated[
        list[Path] | None,
        typer.Option(help="Split file of any known format, or a folder of train, val, test."),
    ] = None,
    slides: Annotated[Path | None, typer.Option(help="Table of slides.")] = None,
    columns: Columns = None,
    tiles: Annotated[
        Path | None, typer.Option(help="Folder of the tiles: compare pixels too.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Features of tiles (npz, parquet, npy): more tests.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="What the split claims to keep whole: patient, slide, site.")
    ] = None,
    claims: Annotated[
        str | None, typer.Option(help="What it claims to be: kfold, holdout, monte-carlo.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for audit.json and audit.html of --split.")
    ] = None,
    json: Json = False,
) -> None:
    """Look for leaks in our own or a foreign split: findings, tests, and a page of tiles."""
    from mil import auditing
    from mil.report import audit as pages

    if (run is None) == (not split):
        message = "give a run folder, or --split FILE"
        raise InputError(message)
    foreign = {"--slides": slides, "--columns": columns, "--tiles": tiles, "--features": features}
    foreign |= {"--unit": unit, "--claims": claims, "--out": out}
    extra = [name for name, value in foreign.items() if value is not None]
    if run is not None and extra:
        message = f"{extra[0]} goes with --split; a run brings its own"
        raise InputError(message)
    with screen() as view:
        if run is not None:
            result = pages.audit_run(run, stored(run))
            page: Path | None = run / "audit.html"
        else:
            paths = split or []
            result, material = auditing.audit_files(
                paths,
                slides,
                columns=columns_of(columns),
                tiles_root=tiles,
                features=features,
                unit=unit,
                claims=claims,
                progress=view.progress,
            )
            page = None
            if out is not None:
                page = pages.write(out, paths[0].resolve().name, result, material)
    if json:
        print_json(result)
    else:
        show_audit(result, page)
    if result["verdict"] == "leak":
        raise typer.Exit(1)


def plan(
    slides: Annotated[int | None, typer.Option(help="Slides.")] = None,
    patients: Annotated[int | None, typer.Option(help="Patients; default one a slide.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes; default 2.")] = None,
    shares: Annotated[str | None, typer.Option(help="Share of each class: 0.7,0.3.")] = None,
    slides_table: Annotated[
        Path | None, typer.Option(help="Instead of these: a table of real slides.")
    ] = None,
    columns: Columns = None,
    accuracy: Annotated[
        str, typer.Option(help="Expected slide accuracy, or one a class: 0.9,0.7.")
    ] = "0.8",
    correlation: Annotated[
        float, typer.Option(help="Of being right, between two slides of a patient.")
    ] = 0.3,
    discordance: Annotated[
        float | None, typer.Option(help="Share of slides that one of two methods gets right.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Folds, each tested once; default 5.")] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Instead: the share of patients that is tested.")
    ] = None,
    width: Annotated[float | None, typer.Option(help="A wanted width of the interval.")] = None,
    difference: Annotated[
        float | None, typer.Option(help="A wanted difference that is seen.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    json: Json = False,
) -> None:
    """Before training: how wide the interval will be, and which difference can be seen."""
    from mil import plan as planning
    from mil import plan_cohort, plan_tables
    from splits import slide_table

    made = {"--slides": slides, "--patients": patients, "--classes": classes, "--shares": shares}
    extra = [name for name, value in made.items() if value is not None]
    if slides_table is not None and extra:
        message = f"{extra[0]} and --slides-table exclude each other: the table says it"
        raise InputError(message)
    if slides_table is not None:
        table, notes = slide_table.read(slides_table, columns_of(columns))
        for note in notes:
            say_warning(note, "note")
        cohort = plan_cohort.table_cohort(table)
    elif slides is not None:
        given = None if shares is None else _numbers("--shares", shares)
        default = 2 if given is None else len(given)
        cohort = plan_cohort.even_cohort(
            slides=slides,
            patients=slides if patients is None else patients,
            classes=default if classes is None else classes,
            shares=given,
        )
    else:
        message = "give --slides N (and --patients N), or --slides-table CSV"
        raise InputError(message)
    values = _numbers("--accuracy", accuracy)
    expected = plan_cohort.Expected(
        values[0] if len(values) == 1 else values,
        correlation,
        discordance,
        folds=folds,
        holdout=holdout,
    )
    found = planning.plan(cohort, expected, width=width, difference=difference, seed=seed)
    if json:
        print_json(found.as_dict())
        return
    for each in plan_tables.tables(found):
        print_table(*each)
    for warning in found.warnings:
        say_warning(warning)


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if len(ratios) != 3:
        message = f"--holdout {text!r}: three shares are needed, as in 0.7,0.15,0.15"
        raise InputError(message)
    return ratios


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        message = f"{option} {text!r}: a number, or several separated by commas, is needed"
        raise InputError(message) from error


def columns_of(text: str | None) -> dict[str, str]:
    """Our name -> the table's, from ``slide_id=name,label=cohort``."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(not equals for _, equals, _ in pairs):
        message = f"--columns {text!r}: our name = name in the table, as in slide_id=slide"
        raise InputError(message)
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


VERBS: Final[tuple[Callable[..., None], ...]] = (scan, names, identify, plan, split, audit)
"""In the order in which they are used."""
