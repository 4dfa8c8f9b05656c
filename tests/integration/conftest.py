"""One small finished run that several tests look at (and copy before they change it)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mil import settings
from mil.config import Config
from mil.run import run

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / ".." / "shared" / "data"


def smoke(*changes: str) -> Config:
    return settings.load(ROOT / "configs" / "smoke.yaml", ["compute.threads=1", *changes])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "smoke"
    run(path, smoke(), say=lambda _: None)
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip("../shared/data is not here")
        return Path(os.path.relpath(path.resolve()))

    return find
