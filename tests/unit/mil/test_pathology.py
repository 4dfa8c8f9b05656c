"""Foundation models: their cards, local folders and checkpoints, and the hub that is not there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from mil.encoders import PATHOLOGY, build, create
from mil.encoders.pathology import Card, ClassAndPatches
from splits.errors import InputError

PARAMETERS = {  # millions, as published
    "uni": 303,
    "uni2": 681,
    "virchow": 631,
    "virchow2": 631,
    "prov_gigapath": 1135,
    "h_optimus_0": 1135,
}
MEAN, STD = (0.71, 0.55, 0.7), (0.2, 0.24, 0.18)


@pytest.mark.parametrize("name", list(PATHOLOGY))
def test_cards_build_the_published_network(name: str) -> None:
    card = PATHOLOGY[name]
    with torch.device("meta"):
        vit = timm.create_model(card.architecture, num_classes=0, **card.args)
        model = ClassAndPatches(vit) if card.patches else vit
        x = torch.empty(2, 3, card.input_px, card.input_px)
        assert model.eval()(x).shape == (2, card.dim)
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=1)
    assert card.licence
    assert card.url.startswith("https://huggingface.co/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as timm writes it for the hub: its weights and its card."""
    torch.manual_seed(0)
    args = {"img_size": 64, "dynamic_img_size": True, "init_values": 1e-5}
    model = timm.create_model("test_vit", num_classes=0, **args)
    model.pretrained_cfg.update(  # type: ignore[union-attr, operator]
        mean=MEAN, std=STD, input_size=(3, 64, 64), interpolation="bicubic", license="secret-1.0"
    )
    timm.models.save_for_hf(model, tmp_path / "model", model_args=args, safe_serialization=True)
    return tmp_path / "model"


def rgb(n: int = 2, px: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, px, px), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("px", [64, 96])
def test_a_folder_gives_timm_s_embeddings_under_its_own_card(folder: Path, px: int) -> None:
    name = f"local-dir:{folder}"
    encoder = create(name, channels="rgb", n_classes=2, image_px=px, pretrained=True).eval()
    model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.inference_mode():
        wanted = model((rgb(px=px) / 255 - mean) / std)
        assert torch.allclose(encoder.embed(rgb(px=px)), wanted, atol=1e-5)
    assert json.loads(json.dumps(encoder.card)) == encoder.card
    assert encoder.card["image_px"] == px
    told = encoder.card["published"]
    assert (told["image_px"], told["mean"], told["std"]) == (64, list(MEAN), list(STD))
    assert (told["interpolation"], told["licence"]) == ("bicubic", "secret-1.0")
    random = create(name, channels="rgb", n_classes=2, image_px=px)
    assert "published" not in random.card
    drawn, loaded = (e.backbone.patch_embed.proj.weight for e in (random, encoder))  # type: ignore[union-attr]
    assert not torch.equal(drawn, loaded)


def test_a_folder_is_projected_on_stains(folder: Path) -> None:
    name = f"local-dir:{folder}"
    encoder = create(name, channels="he", n_classes=2, image_px=64, pretrained=True)
    assert encoder.backbone.patch_embed.proj.in_channels == 2  # type: ignore[union-attr]
    assert encoder.card["channels"] == ["H", "E"]


def test_sizes_that_cut_patches_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="such as 64 or 80"):
        create(f"local-dir:{folder}", channels="rgb", n_classes=2, image_px=70, pretrained=True)


def test_a_folder_without_weights_or_of_nonsense(folder: Path) -> None:
    name = f"local-dir:{folder}"
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        create(name, channels="rgb", n_classes=2, image_px=64, pretrained=True)
    for text in ("{", "[]", '{"architecture": "no_such_net", "pretrained_cfg": {}}', "{}"):
        (folder / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="cannot be built") as caught:
            create(name, channels="rgb", n_classes=2, image_px=64)
        assert "\n" not in str(caught.value)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A foundation model small enough to be built: registers, SwiGLU and Virchow's embedding."""
    real = PATHOLOGY["virchow2"]
    args = {
        **real.args,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 4,
        "patch_size": 16,
        "mlp_ratio": 4,
    }
    card = Card(
        repository="nobody/Tiny",
        architecture="vit_huge_patch14_224",
        args=args,
        input_px=64,
        scale=(MEAN, STD),
        patches=True,
        dim=128,
        licence="none",
        paper="none",
    )
    monkeypatch.setattr(build, "PATHOLOGY", {"tiny": card})
    monkeypatch.setitem(build.ENCODERS, "tiny", card.architecture)  # type: ignore[misc]
    return card


@pytest.mark.parametrize("px", [64, 96])
def test_a_checkpoint_under_a_short_name_is_embedded_by_its_card(
    tiny: Card, tmp_path: Path, px: int
) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        tiny.architecture, num_classes=0, img_size=64, dynamic_img_size=True, **tiny.args
    ).eval()
    save_file(vit.state_dict(), tmp_path / "tiny.safetensors")
    encoder = create(
        "tiny",
        channels="rgb",
        n_classes=2,
        image_px=px,
        checkpoint=tmp_path / "tiny.safetensors",
    ).eval()
    pixels = rgb(px=px).numpy().transpose(0, 2, 3, 1) / 255
    x = torch.tensor((pixels - np.array(MEAN)) / np.array(STD)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        tokens = vit.forward_features(x)
        n_patches = (px // 16) ** 2
        assert tokens.shape[1] == 1 + 4 + n_patches
        wanted = torch.cat([tokens[:, 0], tokens[:, -n_patches:].mean(1)], dim=1)
        assert torch.allclose(encoder.embed(rgb(px=px)), wanted, atol=1e-5)
    assert encoder.dim == tiny.dim
    assert encoder.card["published"]["page"] == "https://huggingface.co/nobody/Tiny"
    assert encoder.card["embedding"] == "class token and mean patch token"


def refused(name: str) -> str:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        create(name, channels="rgb", n_classes=2, image_px=64, pretrained=True)
    assert time.monotonic() - began < 5
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.fixture
def hub_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Moves the hub to another address and empties its cache."""

    def move(address: str) -> None:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    return move


@pytest.mark.parametrize("name", ["tiny", "hf-hub:nobody/Tiny", "hf_hub:nobody/Tiny"])
def test_a_hub_that_does_not_answer_is_said_at_once(
    name: str, tiny: Card, hub_at: Callable[[str], None]
) -> None:
    hub_at("http://127.0.0.1:9")
    said = refused(name)
    for part in (name, "https://huggingface.co/nobody/Tiny", "licence", "HF_TOKEN", "checkpoint"):
        assert part in said
    assert constants.HF_HUB_OFFLINE is False


class Gated(BaseHTTPRequestHandler):
    """The hub's answer for a model whose licence was not accepted."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model nobody/Tiny is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_licence_that_was_not_accepted_is_said(tiny: Card, hub_at: Callable[[str], None]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gated) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub_at(f"http://127.0.0.1:{server.server_port}")
        said = refused("tiny")
        server.shutdown()
    assert "401" in said
    assert "accept the licence there and set HF_TOKEN" in said
