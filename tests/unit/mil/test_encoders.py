"""Encoders: names, input channels, the projection of RGB filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mil.encoders import ENCODERS, create
from mil.encoders.adapt import TYPICAL_MEAN, TYPICAL_STD, adapt_first_layer
from mil.stain.channels import CHANNELS
from mil.stain.separate import UNIT
from mil.stain.vectors import REFERENCE, REFERENCE_P99
from splits.errors import InputError

SMALL = "test_resnet.r160_in1k"


def test_short_names_are_timm_models() -> None:
    assert {"resnet18", "vit_tiny", "vit_small", "vit_base"} <= set(ENCODERS)
    for name in ENCODERS.values():
        assert timm.is_model(name)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", SMALL])
@pytest.mark.parametrize("channels", list(CHANNELS))
def test_every_family_takes_every_choice_of_channels(name: str, channels: str) -> None:
    n_channels = len(CHANNELS[channels])
    encoder = create(name, n_channels=n_channels, n_classes=3, image_px=32).eval()
    tiles = torch.randint(0, 256, (2, n_channels, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        embedding = encoder.embed(tiles)
        assert embedding.shape == (2, encoder.dim)
        probabilities = encoder.classify(embedding)
        assert torch.allclose(probabilities, encoder(tiles).softmax(1), atol=1e-5)


def test_unknown_names_and_arguments() -> None:
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        create("resnet81", n_channels=2, n_classes=2, image_px=32)
    with pytest.raises(InputError, match="cannot be built"):
        create("resnet18", n_channels=2, n_classes=2, image_px=32, args={"depht": 3})
    with pytest.raises(InputError, match="does not exist"):
        create(
            "resnet18", n_channels=3, n_classes=2, image_px=32, checkpoint=Path("no.safetensors")
        )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(SMALL, num_classes=1000).state_dict(), path)
    return path


def test_a_local_checkpoint_gives_timm_s_own_embeddings(checkpoint: Path) -> None:
    encoder = create(SMALL, n_channels=3, n_classes=2, image_px=64, checkpoint=checkpoint).eval()
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=1000).eval()
    tiles = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    mean, std = (
        torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    with torch.inference_mode():
        wanted = model.forward_head(
            model.forward_features((tiles / 255 - mean) / std), pre_logits=True
        )
        assert torch.allclose(encoder.embed(tiles), wanted, atol=1e-4)


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError):
        create("resnet18", n_channels=3, n_classes=2, image_px=64, checkpoint=checkpoint)


def stained_rgb(z: np.ndarray) -> np.ndarray:
    """RGB in 0..1 of standardised concentrations ``(n, 2)``, by Beer and Lambert."""
    amount = (np.array(TYPICAL_MEAN) + z * np.array(TYPICAL_STD)) * REFERENCE_P99
    return np.exp(-amount @ REFERENCE)


def test_projected_filters_answer_as_the_rgb_filters_would() -> None:
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=0)
    name = model.pretrained_cfg["first_conv"]
    before = model.get_submodule(name)
    weight, bias = before.weight.detach().clone(), before.bias
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    adapt_first_layer(model, 2, tuple(mean), tuple(std))
    after = model.get_submodule(name)
    assert bias is None
    assert after.weight.shape == (weight.shape[0], 2, *weight.shape[2:])
    for size, allowed in ((0.01, 1e-4), (0.1, 1e-2)):  # the error is of second order
        z = np.random.default_rng(0).normal(0, size, (1, 1, 2))
        rgb = (stained_rgb(z[0]) - mean) / std
        # A uniform field: every window sees the same pixel.
        side = weight.shape[-1]
        field_rgb = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, side, side)
        field_he = torch.tensor(z, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, side, side)
        wanted = torch.nn.functional.conv2d(field_rgb, weight)
        found = torch.nn.functional.conv2d(field_he, after.weight, after.bias)
        assert (found - wanted).abs().max() < allowed * wanted.abs().max()


def test_adaptation_limits(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="H and E together"):
        create(SMALL, n_channels=1, n_classes=2, image_px=64, checkpoint=checkpoint)


def test_an_adapted_encoder_is_rebuilt_from_its_own_weights(checkpoint: Path) -> None:
    torch.manual_seed(5)
    build = {"n_channels": 2, "n_classes": 2, "image_px": 64, "checkpoint": checkpoint}
    encoder = create(SMALL, **build).eval()  # type: ignore[arg-type]
    empty = create(SMALL, **build, load_weights=False).eval()  # type: ignore[arg-type]
    empty.load_state_dict(encoder.state_dict())
    tiles = torch.randint(0, 256, (2, 2, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(encoder.embed(tiles), empty.embed(tiles))
    assert encoder.mean.tolist() == pytest.approx([UNIT * m for m in TYPICAL_MEAN])
