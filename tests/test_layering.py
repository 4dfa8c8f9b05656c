"""Imports go strictly down, modules stay small, and `import splits, mil.cli` loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up. A package name covers its modules unless a module is named itself.
LAYERS = [
    ["splits"],
    [
        "mil.registry",
        "mil.seeds",
        "mil.phantom_canvas",
        "mil.phantom_tissue",
        "mil.phantom_plan",
        "mil.phantom",
        "mil.config_data",
        "mil.config_mil",
        "mil.config",
        "mil.settings",
        "mil.metrics",
        "mil.weighted",
        "mil.clusters",
        "mil.statistics",
        "mil.scores",
        "mil.paired",
        "mil.plan_cohort",
        "mil.plan_trial",
        "mil.plan",
        "mil.plan_tables",
        "mil.terminal",
    ],
    [
        "mil.devices",
        "mil.prepare",
        "mil.auditing",
        "mil.cohort",
        "mil.predictions",
        "mil.calibration",
        "mil.conformal",
        "mil.selection",
        "mil.stain",
        "mil.data",
        "mil.features",
        "mil.tissue",
    ],
    ["mil.encoders", "mil.aggregators", "mil.checkpoint", "mil.loop"],
    ["mil.pixels"],
    [
        "mil.models",
        "mil.encode",
        "mil.predict",
        "mil.new_slides",
        "mil.perturb",
        "mil.pieces",
        "mil.tile_training",
        "mil.bag_training",
    ],
    ["mil.classifier"],
    ["mil.select", "mil.train"],
    [
        "mil.seal",
        "mil.evaluate",
        "mil.beside",
        "mil.flips",
        "mil.evidence",
        "mil.foreign",
        "mil.reliability",
        "mil.tracking",
    ],
    ["mil.report"],
    ["mil.run", "mil.doctor"],
    ["mil.experiments"],
    ["mil.cli_splits", "mil.cli_features", "mil.cli_experiments"],
    ["mil.cli"],
]
MAX_LINES = 400
TORCH = {"torch", "torchvision", "timm", "lightning_fabric", "safetensors"}
WITHOUT_TORCH = {"mil.cli", "mil.config", "mil.phantom", "mil.registry", "mil.seeds"}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("splits", "mil"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    assert len(found) > 30, "the walk over the packages found too few files"
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Names of our modules that a file imports, `from mil import train` expanded."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
    return names


def layer(module: str) -> int:
    candidates = [
        (len(name), rank)
        for rank, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert candidates, f"{module} has no layer: enter it in LAYERS"
    return max(candidates)[1]


@pytest.mark.parametrize("module", [m for m in MODULES if m != "mil"])
def test_imports_go_down(module: str) -> None:
    for name in imports(MODULES[module]):
        if name.split(".")[0] in {"mil", "splits"} and name != "mil":
            assert layer(name) <= layer(module), f"{module} imports {name}, which lies above it"


def test_no_cycles() -> None:
    graph = {m: {n for n in imports(p) if n in MODULES and n != m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' > '.join([*path, module])}"
        if module not in done:
            # A package's __init__ re-exports its own modules; they may import each other.
            for name in graph[module]:
                if not (module.startswith(f"{name}.") or name.startswith(f"{module}.")):
                    visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_splits_never_imports_torch_or_mil() -> None:
    for module, path in MODULES.items():
        if module.split(".")[0] == "splits":
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {*TORCH, "mil"}, module


def test_a_bare_import_loads_no_torch() -> None:
    ours = "splits, splits.audit, mil.cli, mil.features.verify"
    code = f"import sys, {ours}; print('torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("module", list(MODULES))
def test_modules_are_small_and_two_levels_deep(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines"
    assert module.count(".") <= 2


def test_no_junk_drawers() -> None:
    for module in MODULES:
        assert not {"utils", "helpers", "common"} & set(module.split(".")), module
