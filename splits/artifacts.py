"""Files of a run: written under a temporary name and renamed, with a format version and digests.

A *digest* names an input by its content. Every table and JSON file carries the digests of what it
was made from, so that a stage can tell a finished output from a stale one and refuse the latter.
CSV files have no place for them: the JSON file beside each carries them (``split.json`` for
``split.csv``, ``card.json`` for ``log.csv``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from splits.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "atomic",
    "digest",
    "digests_of",
    "file_digest",
    "is_current",
    "read_csv",
    "read_json",
    "read_table",
    "require_digests",
    "write_csv",
    "write_json",
    "write_table",
]

FORMAT_VERSION = 1
_METADATA_KEY = b"slidewise"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it on success, remove it on failure.

    A crash or a full disk therefore never leaves half a file under a final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(value: object) -> str:
    """SHA-256 (first 16 hex digits) of any JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def write_json(path: Path, payload: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Write ``payload`` with ``format_version`` and ``digests`` in front."""
    document = {"format_version": FORMAT_VERSION, "digests": dict(digests), **payload}
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run.

    Raises:
        InputError: The file is missing, is not JSON, or has a newer format version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"{path} does not exist"
        raise InputError(message) from error
    except ValueError as error:
        message = f"{path} is not valid JSON ({error})"
        raise InputError(message) from error
    if not isinstance(document, dict):
        message = f"{path} holds no JSON object"
        raise InputError(message)
    _check_version(path, document.get("format_version"))
    return document


def write_table(path: Path, table: pd.DataFrame, digests: Mapping[str, str]) -> None:
    """Write a parquet table; version and digests go into its schema metadata."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    note = json.dumps({"format_version": FORMAT_VERSION, "digests": dict(digests)})
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _METADATA_KEY: note})
    with atomic(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd")


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table of a run.

    Raises:
        InputError: The file is missing, damaged or of a newer format version.
    """
    if not path.exists():
        message = f"{path} does not exist"
        raise InputError(message)
    try:
        arrow = pq.read_table(path)
    except pa.ArrowException as error:
        message = f"{path} is not a readable parquet table ({error})"
        raise InputError(message) from error
    note = json.loads((arrow.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    _check_version(path, note.get("format_version"))
    return arrow.to_pandas()


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file (UTF-8, no index)."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file with every cell as text: ``NA``, ``05`` and ``3E`` are ids, not values.

    Raises:
        InputError: The file is missing, empty or not a table.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        message = f"{path} does not exist"
        raise InputError(message) from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        message = f"{path} is not a readable CSV table ({error})"
        raise InputError(message) from error


def digests_of(path: Path) -> dict[str, str]:
    """The digests that a JSON file or parquet table carries; empty if the file does not exist."""
    if not path.exists():
        return {}
    if path.suffix == ".json":
        return dict(read_json(path).get("digests", {}))
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowException:
        return {}
    return dict(json.loads(metadata.get(_METADATA_KEY, b"{}")).get("digests", {}))


def is_current(path: Path, digests: Mapping[str, str]) -> bool:
    """Whether ``path`` exists and was made from exactly these inputs."""
    return path.exists() and digests_of(path) == dict(digests)


def require_digests(path: Path, expected: Mapping[str, str], verb: str) -> None:
    """Refuse an input that was made from something else.

    Args:
        path: The file that a stage is about to read.
        expected: Digests that it must carry; further ones are ignored.
        verb: The verb that makes the file anew, such as ``"slidewise split"``.

    Raises:
        InputError: The file is missing or stale.
    """
    if not path.exists():
        message = f"{path} does not exist: run `{verb}` first"
        raise InputError(message)
    found = digests_of(path)
    for name, value in expected.items():
        if found.get(name) != value:
            message = (
                f"{path} was made for another {name} (digest {found.get(name)}, now {value}): "
                f"run `{verb}` again"
            )
            raise InputError(message)


def _check_version(path: Path, version: object) -> None:
    if isinstance(version, int) and version > FORMAT_VERSION:
        message = (
            f"{path} has format version {version}; this Slidewise reads up to {FORMAT_VERSION}"
        )
        raise InputError(message)
