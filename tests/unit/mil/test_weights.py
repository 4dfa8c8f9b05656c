"""Files of weights: what is read, what is refused, and that no file ever runs code."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from mil.encoders import create, origin_digest
from mil.encoders.weights import hub, read_weights
from splits.errors import InputError

SMALL = "test_resnet.r160_in1k"


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(timm.create_model(SMALL).state_dict())


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def build(checkpoint: Path, name: str = SMALL) -> torch.nn.Module:
    return create(name, channels="rgb", n_classes=2, image_px=64, checkpoint=checkpoint)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_never_runs(tmp_path: Path, suffix: str, zipped: bool) -> None:  # noqa: FBT001
    marker = tmp_path / "ran"
    path = tmp_path / f"weights{suffix}"
    if zipped:
        torch.save({"state_dict": state(), "args": Marker(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"args": Marker(marker)}))
    with pytest.raises(InputError) as caught:
        build(path)
    assert not marker.exists()
    if suffix != ".safetensors":
        assert "safetensors.torch.save_file" in str(caught.value)
    pickle.loads(pickle.dumps(Marker(marker)))
    assert marker.exists(), "the file would have shown it"


def test_a_pickle_in_a_folder_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = local_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({**state(), "more": Marker(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="refused"):
        create(f"local-dir:{folder}", channels="rgb", n_classes=2, image_px=64, pretrained=True)
    assert not marker.exists()


def test_the_hub_forces_tensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mil.encoders.weights._answers", lambda: False)
    marker, path = tmp_path / "ran", tmp_path / "weights.bin"
    torch.save({"more": Marker(marker)}, path)
    before = dict(os.environ)
    with hub(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not marker.exists()
    assert dict(os.environ) == before


def test_state_dicts_of_pytorch_are_read(tmp_path: Path) -> None:
    wanted = state()
    for wrapped in (
        wanted,
        {"state_dict": wanted},
        {"model": {f"module.{k}": v for k, v in wanted.items()}},
    ):
        torch.save(wrapped, tmp_path / "weights.pth")
        found = read_weights(tmp_path / "weights.pth")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_a_training_checkpoint_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"model": state(), "args": argparse.Namespace(lr=1)}, tmp_path / "last.pth")
    with pytest.raises(InputError, match="safetensors"):
        build(tmp_path / "last.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"weights, honestly", "neither safetensors nor"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, content: bytes, said: str) -> None:
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{said}|no safetensors file") as caught:
            build(path)
        assert "\n" not in str(caught.value)


def test_cut_short_folder_and_missing(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(state(), whole)
    (tmp_path / "cut.pth").write_bytes(whole.getvalue()[:-5000])
    save_file(state(), tmp_path / "cut.safetensors")
    os.truncate(tmp_path / "cut.safetensors", 50_000)
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(InputError, match="cut short"):
            build(tmp_path / name)
    with pytest.raises(InputError, match=r"encoder\.name=local-dir:"):
        build(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        build(tmp_path / "none.safetensors")


def test_weights_of_another_model_say_how_many_tensors_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state(), path)
    n = len(
        [k for k in timm.create_model("resnet18", num_classes=0).state_dict() if "tracked" not in k]
    )
    with pytest.raises(InputError, match=rf"\d+ of its {n} tensors are there"):
        build(path, "resnet18")
    # Names that all fit, but of a deeper network.
    more = {**state(), "layer4.1.conv1.weight": torch.zeros(3, 3)}
    save_file(more, path)
    with pytest.raises(InputError, match=r"'layer4\.1\.conv1\.weight' is too much"):
        build(path)
    # No name fits at all: timm alone would go on with random weights.
    save_file({f"net.{k}": v for k, v in state().items()}, path)
    with pytest.raises(InputError, match=" 0 of its "):
        build(path)


def local_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=0)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def test_the_digest_of_local_weights_follows_their_content(tmp_path: Path) -> None:
    folder = local_folder(tmp_path)
    name = f"local-dir:{folder}"
    before = origin_digest(name, None)
    assert before == origin_digest(name, None)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(folder / "model.safetensors", copy)
    assert origin_digest(SMALL, copy) == origin_digest(SMALL, folder / "model.safetensors")
    save_file({k: v + 1 for k, v in state().items()}, folder / "model.safetensors")
    assert origin_digest(name, None) != before
    assert origin_digest(SMALL, None) is None
