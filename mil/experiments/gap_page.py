from pathlib import Path

from mil.config import Config


def write(out: Path, config: Config) -> None: ...
