from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from splits.errors import InputError
from splits.identity.embedding import read

IDS = ["a/1.png", "a/2.png", "b/1.png"]
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def npz(path: Path, names: list[str], x: np.ndarray) -> Path:
    np.savez(path, tile_id=np.array(names), x=x)
    return path


def test_rows_find_their_tiles_in_any_order(tmp_path: Path) -> None:
    order = [2, 0, 1]
    names = [IDS[row] for row in order]
    stored = npz(tmp_path / "x.npz", [*names, "c/9.png"], np.vstack([X[order], [[9, 9]]]))
    np.testing.assert_array_equal(read(stored, IDS), X)
    table = pd.DataFrame(X[order].astype(np.float64), columns=["f0", "f1"])
    table.insert(1, "tile_id", names)
    table.to_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(read(tmp_path / "x.parquet", IDS), X)
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    np.testing.assert_array_equal(read(tmp_path / "x.npy", IDS), X)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    nan = X.copy()
    nan[1, 0] = np.nan
    np.save(tmp_path / "few.npy", X[:2])
    np.save(tmp_path / "flat.npy", X[:, 0])
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "keys.npz", features=X)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "x.csv").write_text("tile_id,f0\n")
    pd.DataFrame({"tile_id": IDS, "label": list("xyz")}).to_parquet(tmp_path / "text.parquet")
    for path, words in {
        npz(tmp_path / "missing.npz", IDS[:2], X[:2]): "lacks 1 of 3 tiles, the first is 'b/1.png'",
        npz(tmp_path / "twice.npz", [*IDS, IDS[0]], np.vstack([X, X[:1]])): "twice: 'a/1.png'",
        npz(tmp_path / "nan.npz", IDS, nan): "not finite, the first is 'a/2.png'",
        npz(tmp_path / "rows.npz", IDS, X[:2]): "names 3 tiles and has 2 rows",
        tmp_path / "few.npy": "2 rows for 3 tiles",
        tmp_path / "flat.npy": "shape",
        tmp_path / "pickle.npy": "not a readable embedding",
        tmp_path / "keys.npz": "tile_id and x needed",
        tmp_path / "broken.npz": "not a readable embedding",
        tmp_path / "text.parquet": "'label' holds no numbers",
        tmp_path / "x.csv": ".npz",
        tmp_path / "none.npy": "does not exist",
    }.items():
        with pytest.raises(InputError) as raised:
            read(path, IDS)
        assert words in str(raised.value)
