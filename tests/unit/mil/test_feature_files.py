"""Feature files of other tools: read by what they are, refused with the file and the cause."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mil.features import Bag, find
from mil.features.bag import require_usable
from mil.features.export import WRITERS
from mil.features.labels import label
from mil.features.packing import packed
from mil.features.verify import verify
from splits.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4)).astype(np.float32)
COORDS = np.array([[0, 0], [512, 0], [1024, 0], [0, 512], [512, 512]])


def trident(path: Path, x: np.ndarray = X) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=x, chunks=(1, x.shape[1]), maxshape=(None, x.shape[1]))
        file["features"].attrs["encoder"] = "uni_v1"
        file["coords"] = COORDS[: len(x)]
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "overlap": 0})


def clam(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = X, COORDS.astype(np.int32)


def stamp(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = X.astype(np.float16), (COORDS / 2).astype(np.float32)
        file.attrs.update({"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224})
        file.attrs["extractor"] = "virchow2"


def tensor(path: Path) -> None:
    torch.save(torch.from_numpy(X), path)


def npz(path: Path) -> None:
    np.savez(path, X=X, coords=COORDS)


@pytest.mark.parametrize(
    ("write", "name", "form", "frame", "encoder"),
    [
        (trident, "s.h5", "trident", "level0_px", "uni_v1"),
        (clam, "s.h5", "clam-h5", "level0_px", None),
        (stamp, "s.h5", "stamp", "um", "virchow2"),
        (tensor, "s.pt", "clam-pt", None, None),
        (npz, "s.npz", "npz", None, None),
    ],
)
def test_a_file_is_recognised_by_what_it_holds(
    tmp_path: Path,
    write: Callable[[Path], None],
    name: str,
    form: str,
    frame: str | None,
    encoder: str | None,
) -> None:
    write(tmp_path / name)
    found = find(tmp_path)
    assert found.slide_ids == ["s"]
    bag = found.read("s")
    assert (bag.form, bag.frame, bag.encoder) == (form, frame, encoder)
    np.testing.assert_allclose(bag.x, X, rtol=1e-3)
    require_usable(bag, "s")


def test_frames_are_converted_with_known_sizes_only(tmp_path: Path) -> None:
    stamp(tmp_path / "s.h5")
    bag = find(tmp_path).read("s")
    place = bag.place_px()
    assert place is not None
    # 256 um are 224 px of the tile.
    np.testing.assert_allclose(place, COORDS / 2 * 224 / 256)
    assert bag.side_px() == pytest.approx(224)
    trident_file = tmp_path / "t.h5"
    trident(trident_file)
    bag = find(trident_file).read("t")
    assert bag.side_px() == 512
    assert bag.place_um() is None  # the magnification says no micrometres
    assert Bag("s", "npz", X, COORDS).place_px() is None
    grid = Bag("s", "npz", X, COORDS // 512, "grid", tile=512.0)
    np.testing.assert_array_equal(grid.place_px(), COORDS)
    assert Bag("s", "npz", X, COORDS // 512, "grid").place_px() is None


def test_an_old_stamp_file_declares_no_frame(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["feats"], file["coords"] = X, COORDS
    bag = find(tmp_path).read("s")
    assert (bag.form, bag.frame) == ("stamp", None)
    assert "old STAMP" in bag.notes[0]


def test_slideflow_bags_and_a_tfrecord_index(tmp_path: Path) -> None:
    tensor(tmp_path / "a.pt")
    tensor(tmp_path / "b.pt")
    np.savez(tmp_path / "a.index.npz", COORDS)
    np.savez(tmp_path / "b.index.npz", arr_0=np.arange(10), locations=COORDS)
    config = {"extractor": {"class": "uni"}, "tile_px": 256, "tile_um": 128, "num_features": 4}
    (tmp_path / "bags_config.json").write_text(json.dumps(config))
    found = find(tmp_path)
    assert found.slide_ids == ["a", "b"]
    assert found.notes == ()
    a, b = found.read("a"), found.read("b")
    np.testing.assert_array_equal(a.coords, COORDS)
    assert (a.form, a.centred, a.encoder, a.tile_px) == ("slideflow", True, "uni", 256)
    assert b.coords is None
    assert "TFRecord" in b.warnings[0]


@pytest.mark.parametrize("given", ["", "features", "features/features_uni"])
def test_torchmil_folders(tmp_path: Path, given: str) -> None:
    deep = tmp_path / "patches_512" / "features" / "features_uni"
    for folder, values in ((deep, X), (tmp_path / "patches_512" / "coords", COORDS)):
        folder.mkdir(parents=True)
        np.save(folder / "s.npy", values)
    (tmp_path / "patches_512" / "labels").mkdir()
    np.save(tmp_path / "patches_512" / "labels" / "s.npy", np.array([1.0]))
    found = find(tmp_path / "patches_512" / given)
    bag = found.read("s")
    np.testing.assert_array_equal(bag.coords, COORDS)
    assert (bag.form, bag.frame) == ("torchmil", None)
    assert found.labels == {"s": "1"}


def test_clams_folder_gives_coordinates_before_tensors(tmp_path: Path) -> None:
    for name in ("h5_files", "pt_files"):
        (tmp_path / name).mkdir()
    clam(tmp_path / "h5_files" / "s.h5")
    tensor(tmp_path / "pt_files" / "s.pt")
    found = find(tmp_path)
    assert found.read("s").form == "clam-h5"
    assert "pt_files was not read" in found.notes[0]


def test_a_set_of_bags_in_one_file(tmp_path: Path) -> None:
    bag = np.array([2, 0, 0, 2, 1])
    np.savez(tmp_path / "set.npz", X=X, bag=bag, y=np.array([1, 0, 1], np.int8))
    found = find(tmp_path / "set.npz")
    assert found.labels == {"bag_0": "1", "bag_1": "0", "bag_2": "1"}
    np.testing.assert_array_equal(found.read("bag_2").x, X[[0, 3]])
    np.testing.assert_array_equal(found.read("bag_1").x, X[[4]])


def test_numbers_and_labels_of_a_set_may_be_odd(tmp_path: Path) -> None:
    bag = np.array([10**12, 3, 3, 10**12, 3])
    np.savez(tmp_path / "far.npz", X=X, bag=bag)
    found = find(tmp_path / "far.npz")
    assert [len(found.read(name)) for name in found.slide_ids] == [3, 2]
    assert found.labels == {}
    bag = np.array([0, 0, 1, 2, 2])
    np.savez(tmp_path / "y.npz", X=X, bag=bag, y=np.array([[1.0], [np.nan], [-1.0]]))
    assert find(tmp_path / "y.npz").labels == {"bag_0": "1", "bag_2": "-1"}
    np.savez(tmp_path / "two.npz", X=X, bag=bag, y=np.ones((3, 2)))
    with pytest.raises(InputError, match="one label a bag"):
        find(tmp_path / "two.npz")
    np.savez(tmp_path / "few.npz", X=X, bag=bag, y=np.ones(2))
    with pytest.raises(InputError, match="bag goes from 0 to 2, and y has 2"):
        find(tmp_path / "few.npz")


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    tensor(tmp_path / "a.pt")
    (tmp_path / "b.pt").symlink_to(tmp_path / "gone.pt")
    assert find(tmp_path).notes == ("1 link(s) lead nowhere, the first is b.pt",)


def test_a_set_with_a_label_and_no_rows_has_an_empty_bag(tmp_path: Path) -> None:
    bag = np.array([0, 0, 0, 2, 2])
    np.savez(tmp_path / "set.npz", X=X, bag=bag, y=np.array([1, 0, 1, 1]))
    found = find(tmp_path / "set.npz")
    assert [len(found.read(name)) for name in found.slide_ids] == [3, 0, 2, 0]
    with pytest.raises(InputError, match="no tiles"):
        require_usable(found.read("bag_1"), "bag_1")


def test_an_id_is_text_without_the_suffix_alone(tmp_path: Path) -> None:
    for name in ("007.pt", "TCGA-A1-A0SB-01Z-00-DX1.8f2c.pt", "NA.pt", "1e5.PT"):
        tensor(tmp_path / name)
    assert find(tmp_path).slide_ids == ["007", "1e5", "NA", "TCGA-A1-A0SB-01Z-00-DX1.8f2c"]


def test_two_files_of_a_slide_are_refused(tmp_path: Path) -> None:
    tensor(tmp_path / "a.pt")
    clam(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"'a' has two files .*a\.h5 and a\.pt"):
        find(tmp_path)


def test_other_files_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    tensor(tmp_path / "a.pt")
    for name in ("readme.txt", "old.pkl", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    assert find(tmp_path).notes == ("2 other file(s) were not read: old.pkl, readme.txt",)


def test_a_folder_above_names_the_folders_that_hold_features(tmp_path: Path) -> None:
    (tmp_path / "features_uni_v1").mkdir()
    trident(tmp_path / "features_uni_v1" / "s.h5")
    with pytest.raises(InputError, match="features_uni_v1 hold some: give one"):
        find(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this ran",)


def test_a_pickle_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "b.pt")
    np.savez(tmp_path / "c.npz", features=np.array([Evil()], dtype=object))
    found = find(tmp_path)
    for name in found.slide_ids:
        with pytest.raises(InputError, match="run any code"):
            found.read(name)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"features": torch.ones(2, 3)}, "a dictionary with the keys features"),
        ([torch.ones(2, 3)], "a list of 1 values"),
        (torch.ones(3), "one vector of 3 numbers"),
        (torch.ones(2, 3, 4), r"the shape \(2, 3, 4\)"),
        (torch.ones(2, 3, dtype=torch.complex64), "complex64"),
        (torch.eye(3).to_sparse(), "sparse"),
    ],
)
def test_a_tensor_file_of_anything_else_is_refused(
    tmp_path: Path, content: object, said: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=said):
        find(tmp_path).read("a")


def test_a_saved_slice_is_read_and_named(tmp_path: Path) -> None:
    whole = torch.zeros(4096, 256)
    whole[7] = 1
    torch.save(whole[5:10], tmp_path / "a.pt")
    bag = find(tmp_path).read("a")
    assert bag.x.shape == (5, 256)
    assert bag.x[2].all()
    assert "a slice was saved" in bag.warnings[0]
    said = [f for f in verify(tmp_path)["findings"] if f["kind"] == "file"]
    assert [(f["severity"], f["slides"]) for f in said] == [("warning", ["a"])]


@pytest.mark.parametrize(
    ("write", "name"), [(trident, "s.h5"), (tensor, "s.pt"), (npz, "s.npz"), (clam, "s.h5")]
)
@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.9])
def test_a_file_cut_short_is_an_input_error(
    tmp_path: Path, write: Callable[[Path], None], name: str, keep: float
) -> None:
    path = tmp_path / name
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(InputError, match=name):
        find(tmp_path).read("s")


def test_numpy_files_cut_short(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", X)
    data = (tmp_path / "s.npy").read_bytes()
    (tmp_path / "s.npy").write_bytes(data[:-5])
    with pytest.raises(InputError, match="cut short"):
        find(tmp_path).read("s")


def test_coordinates_alone_are_no_features(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s_patches.h5", "w") as file:
        file["coords"] = COORDS
    with pytest.raises(InputError, match="a file of coordinates") as raised:
        find(tmp_path).read("s_patches")
    assert "damaged" not in str(raised.value), "the file is whole"


@pytest.mark.parametrize(
    ("bag", "said"),
    [
        (Bag("s", "npz", X, COORDS[:3]), r"5 tiles and coordinates of shape \(3, 2\)"),
        (Bag("s", "npz", X[:0]), "no tiles"),
        (Bag("s", "npz", np.where(np.arange(4) == 2, np.nan, X)), "tile 0, column 2 is nan"),
    ],
)
def test_what_no_model_can_learn_from_is_refused(bag: Bag, said: str) -> None:
    with pytest.raises(InputError, match=f"s.npz.*{said}"):
        require_usable(bag, "s.npz")


def test_kinds_of_numbers(tmp_path: Path) -> None:
    for name, values in (("half", X.astype(np.float16)), ("double", X.astype(np.float64))):
        np.savez(tmp_path / name, features=values)
    torch.save(torch.ones(2, 3, dtype=torch.bfloat16), tmp_path / "brain.pt")
    np.savez(tmp_path / "long", features=np.array([[2**24 + 1]]))
    found = find(tmp_path)
    assert found.read("half").x.dtype == np.float16
    assert found.read("double").x.dtype == np.float32
    assert found.read("brain").x.dtype == np.float32
    assert found.read("brain").notes == ("bfloat16 values were read as float32",)
    with pytest.raises(InputError, match="beyond what float32 holds"):
        found.read("long")


def test_labels_are_matched_with_files_of_another_spelling(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for name in ("007", "S1", "S2", "S3"):
        tensor(folder / f"{name}.pt")
    table = tmp_path / "labels.csv"
    table.write_text(
        "PATIENT,FILENAME,label\np1,007.h5,a\np1,S1.h5,b\np2,S2.h5,\np3,S9.h5,a\n", encoding="utf-8"
    )
    made = label(find(folder), table)
    assert made.slides["slide_id"].tolist() == ["007", "S1"]
    assert made.slides["label"].tolist() == ["a", "b"]
    assert made.without_label == ["S2", "S3"]
    assert made.without_features == ["S9.h5"]
    table.write_text("slide_id,label\nT1,a\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no slide of .*'T1', the files '007'"):
        label(find(folder), table)
    with pytest.raises(InputError, match="brings no labels"):
        label(find(folder), None)


def test_the_digest_follows_the_files(tmp_path: Path) -> None:
    tensor(tmp_path / "a.pt")
    before = find(tmp_path).digest
    assert find(tmp_path).digest == before
    np.savez(tmp_path / "a.index.npz", COORDS)
    assert find(tmp_path).digest != before


PLACED = Bag(
    "s.1",
    "slidewise",
    X,
    COORDS,
    "level0_px",
    tile=512.0,
    tile_px=512,
    mpp=0.25,
    encoder="uni",
)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read_back(tmp_path: Path, kind: str, dtype: type) -> None:
    bag = replace(PLACED, x=X.astype(dtype))
    notes = WRITERS[kind](bag, tmp_path)
    found = find(tmp_path)
    assert found.slide_ids == ["s.1"]
    assert found.notes == ()
    read = found.read("s.1")
    assert read.form == kind
    held = {"stamp": np.float16, "clam-h5": np.float32}.get(kind, dtype)
    assert read.x.dtype == held
    np.testing.assert_array_equal(read.x, bag.x.astype(held))
    require_usable(read, kind)
    if kind == "clam-pt":
        assert read.coords is None
        assert "no place for coordinates" in notes[0]
        return
    # The middle of a tile for slideflow, micrometres for STAMP, the corner for all others.
    place = {"slideflow": COORDS + 256, "stamp": COORDS * 0.25}.get(kind, COORDS)
    np.testing.assert_array_equal(read.coords, place)
    assert read.frame == {"stamp": "um", "torchmil": None}.get(kind, "level0_px")
    if kind in ("trident", "stamp", "npz"):
        assert (read.encoder, read.tile_px) == ("uni", 512)
        np.testing.assert_allclose(read.place_px(), COORDS)
        assert read.side_px() == 512
    if kind == "npz":
        assert all(getattr(read, f.name) == getattr(bag, f.name) for f in fields(bag)[4:])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_bag_without_coordinates(tmp_path: Path, kind: str) -> None:
    bag = Bag("s", "slidewise", X)
    if kind == "stamp":
        with pytest.raises(InputError, match=r"micrometres.*has no coordinates"):
            WRITERS[kind](bag, tmp_path)
        with pytest.raises(InputError, match="has no mpp"):
            WRITERS[kind](replace(PLACED, mpp=None), tmp_path)
        return
    notes = WRITERS[kind](bag, tmp_path)
    read = find(tmp_path).read("s")
    np.testing.assert_array_equal(read.x, X)
    assert read.coords is None
    assert bool(notes) == (kind not in ("clam-pt", "npz"))


def test_stamp_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="beyond 65504"):
        WRITERS["stamp"](replace(PLACED, x=X + 1e5), tmp_path)


def test_a_written_tensor_stores_no_more_than_itself(tmp_path: Path) -> None:
    whole = np.zeros((50_000, 64), np.float32)
    WRITERS["clam-pt"](Bag("s", "slidewise", whole[:10]), tmp_path)
    assert (tmp_path / "pt_files" / "s.pt").stat().st_size < 10_000


@pytest.mark.parametrize("kinds", [(2, 2, 2), (2, 4, 2), (4, 2, 2), (2, 2, 4)])
def test_packing_keeps_every_value_whatever_the_types(
    tmp_path: Path, kinds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mil.features.packing._ROWS", 3)
    rng = np.random.default_rng(2)
    bags = [
        rng.normal(size=(n, 4)).astype(f"f{kind}") for n, kind in zip((5, 1, 7), kinds, strict=True)
    ]
    with packed(tmp_path / "x.npy") as matrix:
        for bag in bags:
            matrix.add(bag, "here")
    made = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert made.dtype == (np.float16 if set(kinds) == {2} else np.float32)
    np.testing.assert_array_equal(made, np.concatenate([bag.astype(np.float64) for bag in bags]))


def test_packing_leaves_nothing_behind_a_failure(tmp_path: Path) -> None:
    def pack() -> None:
        with packed(tmp_path / "x.npy") as matrix:
            matrix.add(X, "a")
            matrix.add(X[:, :3], "b")

    with pytest.raises(InputError, match="b has features of dimension 3 and the slides before 4"):
        pack()
    assert not list(tmp_path.iterdir())
