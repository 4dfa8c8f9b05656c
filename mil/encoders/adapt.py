"""RGB weights for a network that sees stain concentrations: the first layer is projected.

By the Beer-Lambert law a pixel is ``I_c = exp(-sum_j v_jc a_j)`` with stain vectors ``v`` and
concentrations ``a`` (white = 1). Around a typical concentration ``a0`` the published input
``x_c = (I_c - m_c) / s_c`` is, to first order in the standardised concentration
``z_j = (a_j - a0_j) / sigma_j``,

    x_c = (I0_c - m_c) / s_c  -  sum_j I0_c v_jc sigma_j / s_c * z_j .

Put into a linear layer ``y = W x + b`` this gives filters ``W'_j = -sum_c W_c I0_c v_jc sigma_j
/ s_c`` on the stain channels and a bias ``b' = b + sum_c W_c (I0_c - m_c) / s_c``: the layer
answers a stained pixel as it would have answered the stain-normalised RGB pixel, to first order.
(timm's own rule for other channel numbers repeats and rescales the RGB filters, which tells
nothing of colour.) Zero padding stands for the typical concentration, as it stands for the
mean colour in the published network; there the bias is off by the border's share.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import nn

from mil.stain.vectors import REFERENCE, REFERENCE_P99
from splits.errors import InputError

__all__ = ["TYPICAL_MEAN", "TYPICAL_STD", "adapt_first_layer"]

TYPICAL_MEAN: Final = (0.35, 0.45)
"""Point of expansion: concentrations of H and E in units of a slide's 99th percentile."""
TYPICAL_STD: Final = (0.25, 0.25)
"""Deviation of one standardised unit, in the same unit."""


def adapt_first_layer(
    backbone: nn.Module, n_channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Replace the RGB weights of the first convolution by their projection on H and E.

    Args:
        backbone: A timm model with RGB weights; changed in place.
        n_channels: 2 for H and E.
        mean: Published mean of R, G, B in 0..1.
        std: Published deviation.

    Raises:
        InputError: Another number of channels, or a model whose first layer is no convolution.
    """
    if n_channels != len(REFERENCE):
        message = f"published weights are adapted to H and E together, not to {n_channels} channel"
        raise InputError(message)
    name = backbone.pretrained_cfg.get("first_conv")  # type: ignore[union-attr, operator]
    layer = backbone.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        message = f"the first layer {name!r} of this model cannot be adapted from RGB to H and E"
        raise InputError(message)
    unit = np.asarray(REFERENCE_P99)
    vectors = np.asarray(REFERENCE)  # (2, 3)
    typical = np.exp(-(unit * np.asarray(TYPICAL_MEAN)) @ vectors)  # (3,)
    slope = -vectors * typical / np.asarray(std) * (unit * np.asarray(TYPICAL_STD))[:, None]
    constant = (typical - np.asarray(mean)) / np.asarray(std)  # (3,)
    with torch.no_grad():
        weight = layer.weight  # (n_out, 3, height, width)
        projected = torch.einsum("ocxy,jc->ojxy", weight, torch.tensor(slope, dtype=weight.dtype))
        bias = torch.einsum("ocxy,c->o", weight, torch.tensor(constant, dtype=weight.dtype))
        if layer.bias is not None:
            bias = bias + layer.bias
    layer.weight = nn.Parameter(projected)
    layer.bias = nn.Parameter(bias)
    layer.in_channels = n_channels
