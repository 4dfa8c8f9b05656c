"""Fast encoders say what the plain encoder says."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch._inductor.config
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from mil import devices
from mil.config import Compute
from mil.encoders import TileEncoder, create
from mil.encoders.augment import centre_view
from mil.encoders.inference import _Relu, fast

IMAGE_PX = 48
HALF = devices.weight_dtype(devices.fabric(Compute())) is torch.bfloat16


def tiles(n: int) -> Tensor:
    """Smooth random pictures: noise alone tells an untrained encoder's tiles hardly apart."""
    coarse = torch.rand((n, 2, 4, 4), generator=torch.Generator().manual_seed(0)) * 255
    return nn.functional.interpolate(coarse, size=64, mode="bilinear").byte()


def full() -> Fabric:
    return devices.fabric(Compute(device="cpu", precision="float32"))


@pytest.fixture(scope="module")
def encoder() -> TileEncoder:
    """ResNet18 whose norms are not the identity, with a head that splits the tiles evenly."""
    torch.manual_seed(0)
    encoder = create("resnet18", channels="he", n_classes=2, image_px=IMAGE_PX)
    with torch.no_grad():
        encoder.train()(centre_view(tiles(32), IMAGE_PX))
        encoder.eval()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
        x = encoder.embed(centre_view(tiles(200), IMAGE_PX))
        direction = torch.linalg.svd(x - x.mean(0)).Vh[0]
        encoder.head.weight.copy_(torch.stack([-direction, direction]))
        middle = (x @ direction).median()
        encoder.head.bias.copy_(torch.stack([middle, -middle]))
    return encoder


def plain(encoder: TileEncoder, seen: Tensor) -> Tensor:
    with torch.inference_mode():
        return encoder.embed(centre_view(seen, IMAGE_PX))


def test_in_float32_folding_changes_rounding_only(encoder: TileEncoder) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    seen = tiles(5)
    found = fast(encoder, full(), IMAGE_PX)(seen)
    assert torch.allclose(found, plain(encoder, seen), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.skipif(not HALF, reason="no bfloat16 units: they would be emulated")
def test_in_half_precision_classes_stay(encoder: TileEncoder) -> None:
    seen = tiles(400)
    embed = fast(encoder, devices.fabric(Compute(device="cpu")), IMAGE_PX)
    found, wanted = embed(seen), plain(encoder, seen)
    assert found.dtype == torch.float32
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 0.02
    with torch.no_grad():
        classes, expected = (encoder.classify(x).argmax(1) for x in (found, wanted))
    assert 0.3 < expected.float().mean() < 0.7
    assert (classes == expected).float().mean() >= 0.995


def test_relu_by_bits_is_relu() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    for inplace in (False, True):
        x = numbers.clone()
        assert torch.equal(_Relu(inplace=inplace)(x), numbers.relu())
        assert torch.equal(x, numbers.relu() if inplace else numbers)


def test_equal_calls_give_equal_bits_and_company_matters_by_rounding(encoder: TileEncoder) -> None:
    seen = tiles(64 + 9)
    embed = fast(encoder, devices.fabric(Compute(device="cpu")), IMAGE_PX)
    together = embed(seen)
    assert together.shape == (64 + 9, encoder.dim)
    assert embed(seen[:0]).shape == (0, encoder.dim)
    assert torch.equal(together, embed(seen))
    allowed = (2.0**-7 if HALF else 1e-5) * together.abs().max()
    assert (embed(seen[3:4])[0] - together[3]).abs().max() <= allowed
    assert (embed(seen.flip(0)).flip(0) - together).abs().max() <= allowed


@pytest.mark.parametrize("name", ["vit_tiny", "efficientnet_lite0"])
def test_encoders_without_plain_batch_norms(name: str) -> None:
    torch.manual_seed(0)
    encoder = create(name, channels="he", n_classes=2, image_px=IMAGE_PX).eval()
    seen = tiles(3)
    found = fast(encoder, full(), IMAGE_PX)(seen)
    assert torch.allclose(found, plain(encoder, seen), rtol=1e-3, atol=1e-4)


def test_without_a_compiler_it_says_so_and_goes_on(
    encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A fresh cache folder, or an earlier compilation would be found there.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    said: list[str] = []
    seen = tiles(2)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        embed = fast(encoder, full(), IMAGE_PX, compiled=True, say=said.append)
    assert len(said) == 1
    assert "not compiled" in said[0]
    assert torch.allclose(embed(seen), plain(encoder, seen), rtol=1e-4, atol=1e-5)


def test_compiled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet.r160_in1k", num_classes=1000).state_dict(), path)
    small = create(
        "test_resnet.r160_in1k", channels="he", n_classes=2, image_px=IMAGE_PX, checkpoint=path
    ).eval()
    said: list[str] = []
    embed = fast(small, full(), IMAGE_PX, compiled=True, say=said.append)
    if said:
        pytest.skip(said[0])
    seen = tiles(64 + 3)
    assert torch.allclose(embed(seen), plain(small, seen), rtol=1e-3, atol=1e-4)
    assert torch.allclose(embed(seen[:1]), plain(small, seen[:1]), rtol=1e-3, atol=1e-4)
