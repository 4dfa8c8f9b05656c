"""RGB weights for a network that sees stain concentrations: the first layer is projected.

By the Beer-Lambert law a pixel is ``I_c = exp(-sum_j v_jc a_j)`` with stain vectors ``v`` and
concentrations ``a`` (white = 1). Around a typical concentration ``a0`` the published input
``x_c = (I_c - m_c) / s_c`` is, to first order in the standardised concentration
``z_j = (a_j - a0_j) / sigma_j``,

    x_c = (I0_c - m_c) / s_c  -  sum_j I0_c v_jc sigma_j / s_c * z_j .

Put into a linear layer ``y = W x + b`` this gives filters ``W'_j = -sum_c W_c I0_c v_jc sigma_j
/ s_c`` on the stain channels and a bias ``b' = b + sum_c W_c (I0_c - m_c) / s_c``: the layer
answers a stained pixel as it would have answered the stain-normalised RGB pixel, to first order.
With one stain alone the other is held at its typical concentration. (timm's own rule for other
channel numbers repeats and rescales the RGB filters, which tells nothing of colour.) Zero padding
stands for the typical concentration, as it stands for the mean colour in the published network;
there the bias is off by the border's share.

Filters of further scales start at zero, so that training starts at the published network.

What can be adapted is a convolution of three channels that is linear in its weights: stems of
ResNet, ConvNeXt and EfficientNet, patch embeddings of ViT and Swin. What cannot: weights that are
standardised on the way (BiT, NFNet), stems that fold pixels into channels first (TResNet), patches
that pass a linear layer (NaFlexViT).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from mil.stain.channels import CHANNELS
from mil.stain.vectors import REFERENCE, REFERENCE_P99
from splits.errors import InputError

__all__ = ["TYPICAL_MEAN", "TYPICAL_STD", "adapt_first_layer", "typical_scale"]

TYPICAL_MEAN: Final = (0.35, 0.45)
"""Point of expansion: concentrations of H and E in units of a slide's 99th percentile."""
TYPICAL_STD: Final = (0.25, 0.25)
"""Deviation of one standardised unit, in the same unit."""
_STAINS: Final = ("H", "E")


def typical_scale(channels: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each stain of a choice of channels, in 99th percentiles."""
    stains = [_STAINS.index(name) for name in CHANNELS[channels]]
    return tuple(TYPICAL_MEAN[j] for j in stains), tuple(TYPICAL_STD[j] for j in stains)


def adapt_first_layer(
    backbone: nn.Module,
    channels: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    n_scales: int = 1,
) -> None:
    """Let the RGB weights of a network read other channels.

    Args:
        backbone: A timm model with RGB weights; changed in place.
        channels: ``rgb``, ``he``, ``h`` or ``e``.
        mean: Published mean of R, G, B in 0..1.
        std: Published deviation.
        n_scales: Scales that arrive one after the other; the first has the published filters.

    Raises:
        InputError: The first layer of the model cannot be adapted (see above).
    """
    for layer in _first_layers(backbone):
        weight = layer.weight.detach()  # (n_out, 3, height, width)
        bias = None if layer.bias is None else layer.bias.detach()
        if channels != "rgb":
            weight, bias = _project(weight, bias, channels, mean, std)
        further = weight.new_zeros(len(weight), (n_scales - 1) * weight.shape[1], *weight.shape[2:])
        layer.weight = nn.Parameter(torch.cat([weight, further], dim=1))
        layer.bias = None if bias is None else nn.Parameter(bias)
        layer.in_channels = layer.weight.shape[1]


def _project(
    weight: Tensor,
    bias: Tensor | None,
    channels: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    unit = np.asarray(REFERENCE_P99)
    vectors = np.asarray(REFERENCE)  # (2, 3)
    typical = np.exp(-(unit * np.asarray(TYPICAL_MEAN)) @ vectors)  # (3,)
    slope = -vectors * typical / np.asarray(std) * (unit * np.asarray(TYPICAL_STD))[:, None]
    slope = slope[[_STAINS.index(name) for name in CHANNELS[channels]]]  # (n_stains, 3)
    constant = (typical - np.asarray(mean)) / np.asarray(std)  # (3,)
    projected = torch.einsum("ocxy,jc->ojxy", weight, torch.tensor(slope, dtype=weight.dtype))
    offset = torch.einsum("ocxy,c->o", weight, torch.tensor(constant, dtype=weight.dtype))
    return projected, offset if bias is None else bias + offset


def _first_layers(backbone: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that see the image: one, or one a branch (CrossViT, FastViT)."""
    card: Any = backbone.pretrained_cfg
    named = card.get("first_conv")
    if named:
        names = (named,) if isinstance(named, str) else tuple(named)
        found = [backbone.get_submodule(name) for name in names]
    else:
        # A card from a hub may not say it; then it must be plain.
        sees = [m for m in backbone.modules() if getattr(m, "in_channels", None) == 3]
        found = sees if len(sees) == 1 else []
    layers = [
        m
        for m in found
        # No other subclass: some standardise their weights.
        if isinstance(m, nn.Conv2d) and type(m) in (nn.Conv2d, Conv2dSame)
        if m.groups == 1 and m.in_channels == 3
    ]
    if not layers or len(layers) < len(found):
        kind = type(found[0]).__name__ if found else "unknown"
        message = (
            f"the first layer {named!r} ({kind}) of {card.get('architecture')!r} cannot be adapted "
            "from RGB: it is no plain convolution of three channels; set encoder.channels=rgb and "
            "stain.method=none, or take another model"
        )
        raise InputError(message)
    return layers
