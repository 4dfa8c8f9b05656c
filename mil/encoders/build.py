"""From a name to a tile encoder: short names for the defaults, any timm name beside them.

ResNet: He et al. 2016, arXiv:1512.03385. ViT: Dosovitskiy et al. 2021, arXiv:2010.11929, in the
sizes of Touvron et al. 2021, arXiv:2012.12877. Pathology foundation models:
:mod:`mil.encoders.pathology`. Weights come through timm's own loader, from its hub
(``pretrained``), from a folder (``local-dir:``), or from a local file of the same model
(``checkpoint``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, Literal

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import load_model_config_from_hf
from torch import nn

from mil.encoders import tune as tuning
from mil.encoders.adapt import adapt_first_layer, typical_scale
from mil.encoders.pathology import PATHOLOGY, Card, ClassAndPatches
from mil.encoders.tile_encoder import TileEncoder
from mil.encoders.weights import LOCAL, fill, folder_file, hub, read_weights
from mil.stain.channels import CHANNELS
from mil.stain.separate import UNIT
from splits.errors import InputError, unknown

__all__ = ["ENCODERS", "check_name", "create"]

ENCODERS: Final = {
    "resnet18": "resnet18",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    **{name: card.architecture for name, card in PATHOLOGY.items()},
}
"""Short name -> timm name."""
_HUB: Final = "hf-hub:"
_FAILURES: Final = (
    TypeError, RuntimeError, OSError, ValueError, LookupError, AttributeError, AssertionError,
)  # fmt: skip


def check_name(name: str) -> str:
    """The timm name of an encoder.

    Raises:
        InputError: Neither a short name nor a timm model (the nearest is named), or a folder
            without ``config.json``.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    name = name.replace("hf_hub:", _HUB)  # as the pages of the hub spell it
    if name.startswith(LOCAL):
        if not (Path(name.removeprefix(LOCAL)) / "config.json").is_file():
            message = f"encoder {name!r}: the folder holds no config.json of a timm model"
            raise InputError(message)
        return name
    if name.startswith(_HUB) or timm.is_model(name):
        return name
    near = unknown("encoder", name, [*ENCODERS, *timm.list_models()])
    message = str(near).partition(" (allowed")[0]
    message += (
        f" (allowed: {', '.join(ENCODERS)}, every name of timm.list_models(), {_HUB}OWNER/NAME and "
        f"{LOCAL}FOLDER)"
    )
    raise InputError(message)


def create(
    name: str,
    *,
    channels: str,
    n_classes: int,
    image_px: int,
    scales: Sequence[int] = (1,),
    pretrained: bool = False,
    checkpoint: Path | None = None,
    load_weights: bool = True,
    frozen: bool = False,
    tune: Literal["all", "last_block", "lora"] = "all",
    lora_rank: int = 8,
    args: Mapping[str, Any] | None = None,
) -> TileEncoder:
    """Build a tile encoder.

    Where published weights meet several scales, their first layer gets zero filters for the
    further ones if it is trained. If it is not (``frozen``, ``last_block``) it could never learn to
    read them: then each scale is embedded by the same weights, and ``dim`` grows by the number of
    scales.

    Args:
        name: Short name or timm name.
        channels: A key of ``CHANNELS``: ``he``, ``h``, ``e`` or ``rgb``.
        n_classes: Classes of the tile classifier.
        image_px: Side of the square input.
        scales: The tile (1) and its surroundings at 1/2, 1/4, ...; channels arrive scale by scale.
        pretrained: Take the weights that are published for this model (of the folder, for
            ``local-dir:``).
        checkpoint: Take them from this file instead.
        load_weights: False builds the same layers with random weights, to be filled from a run.
        frozen: Nothing of the backbone is to be trained.
        tune: What of it is trained otherwise (:mod:`mil.encoders.tune`).
        lora_rank: Rank of ``lora``.
        args: Further arguments of the timm model.

    Raises:
        InputError: Unknown name or argument, an input size that the model does not take, or
            weights that are missing or do not fit.
    """
    check_name(name)
    card = PATHOLOGY.get(name)
    from_weights = pretrained or checkpoint is not None
    n_channels = len(CHANNELS[channels])
    settings: dict[str, Any] = {"num_classes": 0, **(card.args if card else {}), **(args or {})}
    # Published filters see RGB; other channels get theirs by projection, not by a random start.
    settings["in_chans"] = 3 if from_weights else n_channels * len(scales)
    source = _source(name, card, checkpoint, pretrained=pretrained)
    file = checkpoint
    if file is None and pretrained and name.startswith(LOCAL):
        file = folder_file(name)
    tensors = read_weights(file) if file is not None and load_weights else None
    from_hub = load_weights and pretrained and file is None
    backbone = _backbone(name, settings, image_px, source, from_hub=from_hub)
    if tensors is not None:
        fill(backbone, tensors, str(file))
    published: Any = backbone.pretrained_cfg
    mean, std, grey_levels = tuple(published["mean"]), tuple(published["std"]), 255
    apart = from_weights and (frozen or tune == "last_block")
    if from_weights and (channels != "rgb" or (len(scales) > 1 and not apart)):
        n_scales = 1 if apart else len(scales)
        adapt_first_layer(backbone, channels, mean, std, n_scales=n_scales)
    if from_weights and channels != "rgb":
        mean, std = typical_scale(channels)
        grey_levels = UNIT
    if frozen:
        backbone.requires_grad_(requires_grad=False)
    elif tune == "last_block":
        tuning.keep_last_block(backbone)
    elif tune == "lora":
        tuning.add_lora(backbone, lora_rank)
    encoder = TileEncoder(
        ClassAndPatches(backbone) if card and card.patches else backbone,
        n_channels * len(scales),
        n_classes,
        n_scales_apart=len(scales) if apart else 1,
    )
    if from_weights:
        encoder.set_scale(
            torch.tensor(mean).repeat(len(scales)) * grey_levels,
            torch.tensor(std).repeat(len(scales)) * grey_levels,
        )
    encoder.card = {
        "name": name,
        "architecture": published.get("architecture"),
        "weights": source,
        "channels": list(CHANNELS[channels]),
        "scales": list(scales),
        "scales_apart": apart and len(scales) > 1,
        "image_px": image_px,
        "embedding": _embedding(backbone, card),
        "dim": encoder.dim,
    }
    if from_weights:
        encoder.card["published"] = _published(published, card, of_file=checkpoint is not None)
    return encoder


def _backbone(
    name: str,
    settings: dict[str, Any],
    image_px: int,
    source: str,
    *,
    from_hub: bool,
) -> nn.Module:
    """The timm model without a classifier; with its published weights where a hub has them."""
    timm_name, card = check_name(name), PATHOLOGY.get(name)
    if settings.get("global_pool") == "":
        message = "encoder.args.global_pool='' leaves tokens: an embedding a tile is needed"
        raise InputError(message)
    overlay: dict[str, Any] = {}
    if card is not None:
        mean, std = card.scale
        size = (3, card.input_px, card.input_px)
        overlay = {
            "hf_hub_id": card.repository, "hf_hub_filename": None, "url": "", "custom_load": False,
            "num_classes": 0, "mean": mean, "std": std, "input_size": size,
            "interpolation": card.interpolation, "license": card.licence, "tag": name,
        }  # fmt: skip
    online = from_hub or timm_name.startswith(_HUB)
    try:
        with hub() if online else nullcontext():
            if card is None:
                _fix_size(timm_name, settings, image_px)
            elif image_px != card.input_px:
                # Positions are interpolated from the published grid.
                settings.setdefault("dynamic_img_size", True)
            backbone: nn.Module = timm.create_model(
                timm_name, pretrained=from_hub, pretrained_cfg_overlay=overlay, **settings
            )
    except _FAILURES as error:
        if online and isinstance(error, OSError):
            raise _unreached(name, source, error) from error
        cause = (str(error) or type(error).__name__).splitlines()[0]
        message = f"encoder {name!r} cannot be built: {cause}"
        raise InputError(message) from error
    _check_size(backbone, name, image_px)
    return backbone


def _fix_size(name: str, settings: dict[str, Any], image_px: int) -> None:
    """Tell timm the input size where a model is built for one."""
    if name.startswith(_HUB):
        found, _, saved = load_model_config_from_hf(name.removeprefix(_HUB))
    elif name.startswith(LOCAL):
        path = Path(name.removeprefix(LOCAL)) / "config.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        found, saved = document.get("pretrained_cfg", document), document.get("model_args")
    else:
        published = timm.get_pretrained_cfg(name)
        found, saved = published.to_dict() if published is not None else {}, {}
    dynamic = {**(saved or {}), **settings}.get("dynamic_img_size", False)
    if found.get("fixed_input_size") and not dynamic:
        settings.setdefault("img_size", image_px)


def _check_size(backbone: nn.Module, name: str, image_px: int) -> None:
    """Refuse a size that would lose pixels at the border of the patches."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(side, int) and image_px % side:
        lower = image_px // side * side
        near = " or ".join(str(px) for px in (lower, lower + side) if px)
        message = (
            f"encoder.image_px={image_px} does not fit {name!r}, whose patches are {side} px wide: "
            f"take a multiple, such as {near}"
        )
        raise InputError(message)


def _source(name: str, card: Card | None, checkpoint: Path | None, *, pretrained: bool) -> str:
    if checkpoint is not None:
        return str(checkpoint)
    if not pretrained:
        return "random"
    return f"{_HUB}{card.repository}" if card else check_name(name)


def _embedding(backbone: nn.Module, card: Card | None) -> str:
    if card is not None and card.patches:
        return "class token and mean patch token"
    pool = getattr(backbone, "global_pool", None)
    pool = getattr(pool, "pool_type", pool)
    names = {"token": "class token", "avg": "mean", "max": "maximum"}
    return names.get(pool, pool) if isinstance(pool, str) else "pooled by the model"


def _published(found: Mapping[str, Any], card: Card | None, *, of_file: bool) -> dict[str, Any]:
    """The preprocessing card of the weights: what their RGB network saw, and whose it is."""
    known: dict[str, Any] = {
        "image_px": (found.get("input_size") or (3, None, None))[-1],
        "mean": list(found["mean"]),
        "std": list(found["std"]),
        "interpolation": found.get("interpolation"),
    }
    if card is not None:
        return {**known, "licence": card.licence, "page": card.url, "paper": card.paper}
    if of_file:
        return known  # whose file it is, timm cannot know
    hub_id = found.get("hf_hub_id")
    page = f"https://huggingface.co/{hub_id}" if hub_id else found.get("origin_url")
    return {**known, "licence": found.get("license"), "page": page}


def _unreached(name: str, source: str, error: Exception) -> InputError:
    """The error for weights of the hub that could not be had: what to do, on one line."""
    cause = str(error).strip().partition("\n")[0].partition(" (Request")[0]
    if isinstance(error, LocalEntryNotFoundError):
        cause = "no answer"
    if source.startswith(_HUB):
        repository = source.removeprefix(_HUB)
    else:
        published = timm.get_pretrained_cfg(check_name(name))
        repository = (published.hf_hub_id if published is not None else None) or ""
    page = f"https://huggingface.co/{repository}".rstrip("/")
    return InputError(
        f"the weights of encoder {name!r} are not in the cache and {page} does not give them "
        f"({cause}): go online and, where it asks for it, accept the licence there and set "
        "HF_TOKEN; or download the file elsewhere and set encoder.checkpoint"
    )
