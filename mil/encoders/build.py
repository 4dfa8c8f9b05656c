"""From a name to a tile encoder: short names for the defaults, any timm name beside them.

ResNet: He et al. 2016, arXiv:1512.03385. ViT: Dosovitskiy et al. 2021, arXiv:2010.11929, in the
sizes of Touvron et al. 2021, arXiv:2012.12877. Weights come through timm's own loader, from its
hub (``pretrained``) or from a local file of the same model (``checkpoint``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import nn

from mil.encoders.adapt import TYPICAL_MEAN, TYPICAL_STD, adapt_first_layer
from mil.encoders.tile_encoder import TileEncoder
from mil.stain.separate import UNIT
from splits.errors import InputError, unknown

__all__ = ["ENCODERS", "check_name", "create"]

ENCODERS: Final = {
    "resnet18": "resnet18",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}
"""Short name -> timm name."""


def check_name(name: str) -> str:
    """The timm name of an encoder.

    Raises:
        InputError: Neither a short name nor a timm model; the nearest is named.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith("hf-hub:") or timm.is_model(name):
        return name
    near = unknown("encoder", name, [*ENCODERS, *timm.list_models()])
    message = str(near).partition(" (allowed")[0]
    message += f" (allowed: {', '.join(ENCODERS)} and every name of timm.list_models())"
    raise InputError(message)


def create(
    name: str,
    *,
    n_channels: int,
    n_classes: int,
    image_px: int,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    load_weights: bool = True,
    args: Mapping[str, Any] | None = None,
) -> TileEncoder:
    """Build a tile encoder.

    Args:
        name: Short name or timm name.
        n_channels: 3 for RGB, 2 for H and E, 1 for one stain.
        n_classes: Classes of the tile classifier.
        image_px: Side of the square input.
        pretrained: Take the weights that timm publishes for this model.
        checkpoint: Take them from this file instead.
        load_weights: False builds the same layers with random weights, to be filled from a run.
        args: Further arguments of the timm model.

    Raises:
        InputError: Unknown name or argument, or weights that are missing or do not fit.
    """
    timm_name = check_name(name)
    settings: dict[str, Any] = {"num_classes": 0, **(args or {})}
    published = timm.get_pretrained_cfg(timm_name)
    if published is not None and published.fixed_input_size:
        settings["img_size"] = image_px
    from_weights = pretrained or checkpoint is not None
    if from_weights and load_weights:
        settings["pretrained"] = True
        if checkpoint is not None:
            if not checkpoint.is_file():
                message = f"encoder.checkpoint {str(checkpoint)!r} does not exist"
                raise InputError(message)
            settings["pretrained_cfg_overlay"] = {"file": str(checkpoint)}
    # Published filters see RGB; stain channels get them by projection, not by a random start.
    in_chans = 3 if from_weights else n_channels
    try:
        backbone = timm.create_model(timm_name, in_chans=in_chans, **settings)
    except (TypeError, RuntimeError, OSError, ValueError, KeyError) as error:
        message = f"encoder {name!r} cannot be built: {error}".splitlines()[0]
        raise InputError(message) from error
    mean, std = _published_scale(backbone)
    if from_weights and n_channels != 3:
        adapt_first_layer(backbone, n_channels, mean, std)
        mean, std, grey_levels = TYPICAL_MEAN, TYPICAL_STD, UNIT
    else:
        grey_levels = 255
    encoder = TileEncoder(backbone, n_channels, n_classes)
    if from_weights:
        encoder.set_scale(torch.tensor(mean) * grey_levels, torch.tensor(std) * grey_levels)
    return encoder


def _published_scale(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    card = backbone.pretrained_cfg
    return tuple(card["mean"]), tuple(card["std"])  # type: ignore[index]
