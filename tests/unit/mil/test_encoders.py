"""Encoders: names, input channels, the projection of RGB filters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mil.encoders import ENCODERS, create
from mil.encoders.adapt import TYPICAL_MEAN, TYPICAL_STD
from mil.stain.channels import CHANNELS
from mil.stain.separate import UNIT
from mil.stain.vectors import REFERENCE, REFERENCE_P99
from splits.errors import InputError

SMALL = "test_resnet.r160_in1k"


def test_short_names_are_timm_models() -> None:
    assert {"resnet18", "vit_tiny", "vit_small", "vit_base"} <= set(ENCODERS)
    for name in ENCODERS.values():
        assert timm.is_model(name)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", SMALL, "mobilenetv3_small_050"])
@pytest.mark.parametrize("channels", list(CHANNELS))
def test_every_family_takes_every_choice_of_channels(name: str, channels: str) -> None:
    scales = (1, 4) if channels == "he" else (1,)
    n_channels = len(CHANNELS[channels]) * len(scales)
    encoder = create(name, channels=channels, n_classes=3, image_px=32, scales=scales).eval()
    tiles = torch.randint(0, 256, (2, n_channels, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        embedding = encoder.embed(tiles)
        assert embedding.shape == (2, encoder.dim)
        probabilities = encoder.classify(embedding)
        assert torch.allclose(probabilities, encoder(tiles).softmax(1), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet18'"),
        ({"args": {"depht": 3}}, "cannot be built"),
        ({"args": {"global_pool": ""}}, "leaves tokens"),
        ({"checkpoint": Path("no.safetensors")}, "does not exist"),
        ({"name": "vit_tiny", "image_px": 100}, "such as 96 or 112"),
        ({"name": "local-dir:nowhere"}, "no config.json"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        create(
            **{
                "name": "resnet18",
                "channels": "rgb",
                "n_classes": 2,
                "image_px": 32,
                **settings,
            }
        )
    assert "\n" not in str(caught.value)


def published(path: Path, name: str = SMALL, **args: Any) -> torch.nn.Module:
    """A timm model in eval mode, its weights in a file."""
    torch.manual_seed(0)
    model = timm.create_model(name, **args).eval()
    save_file(model.state_dict(), path)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    published(path, num_classes=1000)
    return path


def normalised(rgb: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    card: Any = model.pretrained_cfg
    mean, std = (torch.tensor(card[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (rgb - mean) / std


def test_a_local_checkpoint_gives_timm_s_own_embeddings(checkpoint: Path) -> None:
    encoder = create(SMALL, channels="rgb", n_classes=2, image_px=64, checkpoint=checkpoint).eval()
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=1000).eval()
    tiles = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        features = model.forward_features(normalised(tiles / 255, model))
        wanted = model.forward_head(features, pre_logits=True)
        assert torch.allclose(encoder.embed(tiles), wanted, atol=1e-4)


def stained_rgb(z: np.ndarray) -> np.ndarray:
    """RGB in 0..1 of standardised concentrations ``(..., 2)``, by Beer and Lambert."""
    amount = (np.array(TYPICAL_MEAN) + z * np.array(TYPICAL_STD)) * REFERENCE_P99
    return np.exp(-amount @ REFERENCE)


def first_answer(model: torch.nn.Module, run: Callable[[], object], layer: str) -> torch.Tensor:
    """What a layer says while ``run`` runs, without the border that padding reaches."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.inference_mode():
        run()
    hook.remove()
    return seen[0][..., 1:-1, 1:-1]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (SMALL, {}),
        ("test_vit", {"img_size": 64}),
        ("test_convnext", {}),
        ("test_efficientnet", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1)}),
    ],
)
@pytest.mark.parametrize("channels", ["he", "h", "e"])
def test_an_adapted_network_answers_as_the_published_one_on_rgb(
    name: str, args: dict[str, Any], channels: str, tmp_path: Path
) -> None:
    model = published(tmp_path / "weights.safetensors", name, **args)
    encoder = create(
        name,
        channels=channels,
        n_classes=2,
        image_px=64,
        checkpoint=tmp_path / "weights.safetensors",
        args=args,
    ).eval()
    layer = str(model.pretrained_cfg["first_conv"])  # type: ignore[index]
    stains = [("H", "E").index(stain) for stain in CHANNELS[channels]]
    pattern = np.random.default_rng(0).normal(0, 1, (1, 64, 64, 2))
    pattern[..., [j for j in (0, 1) if j not in stains]] = 0  # held at its typical amount
    errors = []
    for size in (0.1, 0.05):
        z = size * pattern
        amount = np.array(TYPICAL_MEAN) + z * np.array(TYPICAL_STD)
        tiles = torch.tensor(UNIT * amount[..., stains], dtype=torch.float32).permute(0, 3, 1, 2)
        rgb = torch.tensor(stained_rgb(z), dtype=torch.float32).permute(0, 3, 1, 2)
        x = normalised(rgb, model)
        wanted = first_answer(model, partial(model, x), layer)
        found = first_answer(encoder.backbone, partial(encoder.embed, tiles), layer)
        change = first_answer(model, partial(model, normalised(rgb * 0 + rgb.mean(), model)), layer)
        errors.append(float((found - wanted).abs().max() / (change - wanted).abs().max()))
    # What is left out is of second order: half the contrast, a quarter of the error.
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 3


def test_what_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    published(path, "test_nfnet")
    with pytest.raises(InputError, match="ScaledStdConv2d"):
        create("test_nfnet", channels="he", n_classes=2, image_px=64, checkpoint=path)
    create("test_nfnet", channels="rgb", n_classes=2, image_px=64, checkpoint=path)


def test_an_adapted_encoder_is_rebuilt_from_its_own_weights(checkpoint: Path) -> None:
    torch.manual_seed(5)
    build = {"channels": "he", "n_classes": 2, "image_px": 64, "checkpoint": checkpoint}
    encoder = create(SMALL, **build).eval()  # type: ignore[arg-type]
    empty = create(SMALL, **build, load_weights=False).eval()  # type: ignore[arg-type]
    empty.load_state_dict(encoder.state_dict())
    tiles = torch.randint(0, 256, (2, 2, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(encoder.embed(tiles), empty.embed(tiles))
    assert encoder.mean.tolist() == pytest.approx([UNIT * m for m in TYPICAL_MEAN])


@pytest.mark.parametrize("channels", ["he", "rgb"])
def test_further_scales_start_unseen_and_can_be_learnt(channels: str, checkpoint: Path) -> None:
    build: dict[str, Any] = {
        "channels": channels,
        "n_classes": 2,
        "image_px": 64,
        "checkpoint": checkpoint,
    }
    alone = create(SMALL, **build).eval()
    scales = create(SMALL, **build, scales=(1, 4)).eval()
    n = len(CHANNELS[channels])
    tiles = torch.randint(0, 256, (2, 2 * n, 64, 64), dtype=torch.uint8)
    assert torch.allclose(scales.embed(tiles), alone.embed(tiles[:, :n]), atol=1e-5)
    scales(tiles).sum().backward()
    first: Any = scales.backbone.get_submodule(scales.backbone.pretrained_cfg["first_conv"])  # type: ignore[index]
    assert first.weight.grad[:, n:].abs().max() > 0


def test_a_frozen_first_layer_reads_each_scale_apart(checkpoint: Path) -> None:
    build: dict[str, Any] = {
        "channels": "he",
        "n_classes": 2,
        "image_px": 64,
        "checkpoint": checkpoint,
        "frozen": True,
    }
    alone, scales = create(SMALL, **build).eval(), create(SMALL, **build, scales=(1, 4)).eval()
    assert scales.dim == 2 * alone.dim
    assert not any(p.requires_grad for p in scales.backbone.parameters())
    tiles = torch.randint(0, 256, (3, 4, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = torch.cat([alone.embed(tiles[:, :2]), alone.embed(tiles[:, 2:])], dim=1)
        assert torch.allclose(scales.embed(tiles), wanted, atol=1e-5)
