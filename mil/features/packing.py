"""Bags of many files as one packed matrix that grows while they are read: a memory map afterwards.

A slice of one map is read at the speed of memory; HDF5 in chunks of one row, as TRIDENT writes it,
is many times slower. float16 stays float16; where files differ in type, all become float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from mil.features.bag import Array
from splits.artifacts import atomic
from splits.errors import InputError

__all__ = ["Packed", "packed"]

_ROWS = 65536


class Packed:
    """A ``.npy`` matrix under construction.

    Attributes:
        shape: ``(n_tiles, dim)`` so far.
        dtype: float16 or float32; None before the first bag.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.shape = (0, 0)
        self.dtype: np.dtype[Any] | None = None

    def add(self, x: Array, where: str) -> None:
        """Append the tiles of a slide ``(n_tiles, dim)``.

        Raises:
            InputError: Another dimension than the slides before.
        """
        n, dim = self.shape
        if self.dtype is None:
            dim, self.dtype = x.shape[1], x.dtype
            self._write_header(n, dim)
        if x.shape[1] != dim:
            message = (
                f"{where} has features of dimension {x.shape[1]} and the slides before {dim}: "
                "files of one encoder are needed (`slidewise verify` lists them)"
            )
            raise InputError(message)
        if x.dtype != self.dtype and self.dtype == np.float16:
            self._widen()
        self._file.write(np.ascontiguousarray(x, dtype=self.dtype).data)
        self.shape = (n + len(x), dim)

    def finish(self) -> None:
        """Write the number of rows where it belongs."""
        self._write_header(*self.shape)

    def _write_header(self, n: int, dim: int) -> None:
        # numpy leaves room in a header for the first axis to grow, so its length never changes.
        self._file.seek(0)
        descr = np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        header = {"descr": descr, "fortran_order": False, "shape": (n, dim)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _widen(self) -> None:
        """Rewrite what is there as float32, from the end, so that nothing is overwritten early."""
        n, dim = self.shape
        self._write_header(n, dim)
        start = self._file.tell()
        for first in reversed(range(0, n, _ROWS)):
            rows = min(_ROWS, n - first)
            self._file.seek(start + first * dim * 2)
            block = np.frombuffer(self._file.read(rows * dim * 2), dtype=np.float16)
            self._file.seek(start + first * dim * 4)
            self._file.write(block.astype(np.float32).data)
        self.dtype = np.dtype(np.float32)
        self._file.seek(start + n * dim * 4)


@contextmanager
def packed(path: Path) -> Iterator[Packed]:
    """Write ``path`` bag by bag; it appears when the block ends without an error."""
    with atomic(path) as temporary, temporary.open("w+b") as file:
        matrix = Packed(file)
        yield matrix
        matrix.finish()
