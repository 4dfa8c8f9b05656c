"""Split files of other tools, both ways: recognised by their content, and written for them.

`read` brings any of `RECOGNISED` to one table; `write` makes the files of a tool in `WRITABLE` and
says in words what that tool's format cannot hold. The exact keys come from the tools themselves;
``docs/formats.md`` lists them.
"""

from __future__ import annotations

from splits.formats.foreign import RECOGNISED, ForeignSplit, read, read_all
from splits.formats.source import PART_NAMES
from splits.formats.writers import WRITABLE, Written, require_writable, write

__all__ = [
    "PART_NAMES",
    "RECOGNISED",
    "WRITABLE",
    "ForeignSplit",
    "Written",
    "read",
    "read_all",
    "require_writable",
    "write",
]
