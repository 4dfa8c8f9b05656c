"""What is trained: low-rank changes, the last block, and that the rest stays as published."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.nn.utils import parametrize

from mil.config import Encoder
from mil.encoders import TileEncoder, create
from mil.encoders.tune import keep_last_block, merge_lora
from mil.loop import load_weights, save_weights
from splits.errors import InputError

NETS = ["test_resnet.r160_in1k", "test_vit", "test_efficientnet"]


def build(name: str, folder: Path, **settings: Any) -> TileEncoder:
    path = folder / "weights.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        state = timm.create_model(name, **({"img_size": 64} if "vit" in name else {})).state_dict()
        # timm starts residual branches at zero, where no gradient passes; published ones are not.
        save_file({n: t + 0.1 * torch.rand(t.shape).to(t.dtype) for n, t in state.items()}, path)
    torch.manual_seed(1)
    build = {"channels": "he", "n_classes": 3, "image_px": 64, "checkpoint": path, **settings}
    return create(name, **build)


def tiles(n: int = 4, n_channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, n_channels, 64, 64), dtype=torch.uint8, generator=generator)


def changed_by_a_step(encoder: TileEncoder, x: torch.Tensor) -> set[str]:
    """Names in the state dict that two steps of training move."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.train()
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # the first moves B alone: A has no gradient where B is zero
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(encoder(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    after = encoder.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("name", NETS)
def test_lora_starts_at_the_published_network_and_changes_nothing_else(
    name: str, tmp_path: Path
) -> None:
    plain, encoder = build(name, tmp_path).eval(), build(name, tmp_path, tune="lora", lora_rank=4)
    encoder.eval()
    with torch.inference_mode():
        assert torch.equal(encoder.embed(tiles()), plain.embed(tiles()))
    changed = changed_by_a_step(encoder, tiles())
    adapters = {n for n in encoder.state_dict() if n.endswith((".0.a", ".0.b"))}
    assert changed <= {*adapters, "head.weight", "head.bias"}, "something frozen has moved"
    assert {n for n in adapters if n.endswith("b")} <= changed, "every layer learns"
    assert any(n.endswith(".0.a") for n in changed)
    first = "backbone." + str(plain.backbone.pretrained_cfg["first_conv"])  # type: ignore[index]
    assert f"{first}.parametrizations.weight.0.b" in changed
    learnt = sum(p.numel() for p in encoder.backbone.parameters() if p.requires_grad)
    assert learnt < 0.6 * sum(p.numel() for p in plain.backbone.parameters())


def test_a_low_rank_change_has_the_rank_and_scale_of_the_paper(tmp_path: Path) -> None:
    encoder = build("test_vit", tmp_path, tune="lora", lora_rank=2)
    layer: Any = encoder.backbone.get_submodule("blocks.0.attn.qkv")
    low: Any = layer.parametrizations.weight[0]
    with torch.no_grad():
        low.b.normal_()
    change = layer.weight - layer.parametrizations.weight.original
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    assert torch.allclose(change, 16 / 2 * low.b @ low.a, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_merged_changes_are_the_plain_network(name: str, tmp_path: Path) -> None:
    plain, encoder = build(name, tmp_path), build(name, tmp_path, tune="lora")
    changed_by_a_step(encoder, tiles())
    merged = copy.deepcopy(encoder)
    merge_lora(merged)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    with torch.inference_mode():
        assert torch.equal(merged.eval().embed(tiles()), encoder.eval().embed(tiles()))
    layers = [m for m in encoder.modules() if parametrize.is_parametrized(m)]
    assert layers, "the encoder itself is left as it is"


@pytest.mark.parametrize("name", NETS)
def test_only_the_last_block_is_trained(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path, tune="last_block")
    changed = changed_by_a_step(encoder, tiles())
    allowed = {
        "test_resnet.r160_in1k": ("backbone.layer4.",),
        "test_vit": ("backbone.blocks.5.", "backbone.norm."),
        "test_efficientnet": ("backbone.blocks.4.", "backbone.conv_head", "backbone.bn2"),
    }[name]
    moved = {n for n in changed if not n.startswith("head.")}
    assert all(n.startswith(allowed) for n in moved), "something frozen has moved"
    parameters = [n for n, _ in encoder.named_parameters() if n.startswith(allowed)]
    assert len(moved.intersection(parameters)) > 0.9 * len(parameters)
    assert "head.weight" in changed


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_every_family_of_timm_embeds_and_has_a_last_block(name: str) -> None:
    encoder = create(name, channels="he", n_classes=2, image_px=64, tune="last_block").eval()
    with torch.inference_mode():
        assert encoder.embed(tiles(2)).shape == (2, encoder.dim)
    trained = [p.requires_grad for p in encoder.backbone.parameters()]
    assert not trained[0]
    assert 0 < sum(trained) < len(trained)
    # What is trained is the end of the network, in one piece.
    assert trained == sorted(trained)


def test_statistics_of_frozen_batch_normalisation_rest(tmp_path: Path) -> None:
    name = NETS[0]
    moved = {}
    for tune in ("all", "last_block", "lora"):
        changed = changed_by_a_step(build(name, tmp_path, tune=tune), tiles())
        moved[tune] = {n.split(".")[1] for n in changed if n.endswith("running_mean")}
    assert {"layer1", "layer2", "layer3", "layer4"} <= moved["all"]
    assert moved["last_block"] == {"layer4"}
    assert moved["lora"] == set()


def test_dropout_of_a_trained_part_stays_on(tmp_path: Path) -> None:
    encoder = build("test_vit", tmp_path, tune="last_block", args={"proj_drop_rate": 0.5}).train()
    off, on = (encoder.backbone.get_submodule(f"blocks.{i}.attn.proj_drop") for i in (0, 5))
    assert on.training
    assert not off.training
    encoder.eval()
    assert not on.training


@pytest.mark.parametrize("tune", ["last_block", "lora"])
def test_trained_weights_come_back_from_their_file(tune: str, tmp_path: Path) -> None:
    encoder = build("test_vit", tmp_path, tune=tune, scales=(1, 4))
    x = tiles(n_channels=4)
    changed_by_a_step(encoder, x)
    save_weights(encoder, tmp_path / "model.safetensors")
    empty = build("test_vit", tmp_path, tune=tune, scales=(1, 4), load_weights=False)
    load_weights(empty, tmp_path / "model.safetensors")
    with torch.inference_mode():
        assert torch.equal(empty.eval()(x), encoder.eval()(x))


def test_training_is_the_same_twice(tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        encoder = build("test_vit", tmp_path, tune="lora")
        changed_by_a_step(encoder, tiles())
        states.append(encoder.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_further_scales_under_partial_training(tmp_path: Path) -> None:
    """LoRA learns to read them in the first layer; before a last block they stand apart."""
    plain = build("test_vit", tmp_path)
    lora = build("test_vit", tmp_path, tune="lora", scales=(1, 4))
    assert lora.dim == plain.dim
    x, other = tiles(n_channels=4), tiles(n_channels=4)
    other[:, 2:] = 255 - other[:, 2:]
    assert torch.equal(lora.eval().embed(x), lora.embed(other))
    changed_by_a_step(lora, x)
    assert not torch.equal(lora.eval().embed(x), lora.embed(other))
    assert build("test_vit", tmp_path, tune="last_block", scales=(1, 4)).dim == 2 * plain.dim


def test_a_model_without_an_order_of_blocks_is_refused() -> None:
    for name, said in (("pit_ti_224", "names no blocks"), ("twins_svt_small", "not at its end")):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        with pytest.raises(InputError, match=said):
            keep_last_block(model)


def test_partial_training_needs_published_weights() -> None:
    for settings in (
        {"tune": "lora"},
        {"tune": "last_block", "pretrained": True, "frozen": True},
        {"tune": "all", "pretrained": True, "lora_rank": 4},
    ):
        with pytest.raises(ValidationError, match=r"encoder\.(tune|lora_rank)"):
            Encoder(**settings)  # type: ignore[arg-type]
    assert Encoder(tune="lora", pretrained=True, lora_rank=4).lora_rank == 4
