"""How much of a published network is trained: all of it, its last block, or low-rank changes.

LoRA: Hu et al. 2021, arXiv:2106.09685. A layer keeps its weight ``W`` ``(n_out, n_in)`` and learns
``W + alpha / r * B A`` with ``A`` ``(r, n_in)`` and ``B`` ``(n_out, r)``; ``B`` starts at zero, so
training starts at the published network, bit for bit. Here every linear and convolutional layer of
the backbone takes part, not attention alone: the filters of a convolution are a matrix
``(n_out, n_in * height * width)``, and the first layer must be able to learn to read stain channels
and further scales. It is a parametrisation of torch in a few lines; the ``peft`` library would
bring transformers along.
"""

from __future__ import annotations

import math
from itertools import takewhile
from typing import Any, Final

from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn.utils import parametrize

from splits.errors import InputError

__all__ = ["LORA_ALPHA", "add_lora", "keep_last_block", "merge_lora"]

LORA_ALPHA: Final = 16
"""``alpha``: fixed, as the paper does, so that another rank needs no other learning rate."""
_UNMATCHED: Final = "\0"


class LowRank(nn.Module):
    """``W -> W + scale * B A`` for a weight ``(n_out, ...)``.

    Args:
        weight: The weight that is kept.
        rank: ``r``; lowered where ``A`` and ``B`` would outnumber the weight (depthwise filters).
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        n_out, n_in = weight.flatten(1).shape
        self.scale = LORA_ALPHA / rank
        rank = max(1, min(rank, n_out * n_in // (n_out + n_in)))
        self.a = nn.Parameter(weight.new_empty(rank, n_in))
        self.b = nn.Parameter(weight.new_zeros(n_out, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, in the shape of the kept one."""
        return weight + (self.scale * (self.b @ self.a)).view_as(weight)


def add_lora(backbone: nn.Module, rank: int) -> None:
    """Freeze a network and give every linear and convolutional layer a low-rank change.

    Raises:
        InputError: It has no such layer.
    """
    backbone.requires_grad_(requires_grad=False)
    layers = [m for m in backbone.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        message = "encoder.tune=lora: this model has neither linear nor convolutional layers"
        raise InputError(message)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merge_lora(model: nn.Module) -> None:
    """Write low-rank changes into the weights, in place: the plain network, for reading only."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight: Any = module.weight
            # Not torch's own removal: it changes the class, which copies of the module share.
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.weight = nn.Parameter(weight.detach(), requires_grad=False)


def keep_last_block(backbone: nn.Module) -> None:
    """Freeze a timm network up to its last block; that and what follows it are trained.

    timm groups the parameters of every model by depth (``group_matcher``, for learning rates a
    layer). The last block is the deepest group that a block pattern matches; trained is the
    unbroken run of parameters from there to the end of the network, so that tokens and
    normalisation at its entrance stay fixed.

    Raises:
        InputError: The model has no such grouping, or only one group.
    """
    names = [name for name, _ in backbone.named_parameters()]
    matcher = getattr(backbone, "group_matcher", None)
    if matcher is None:
        message = "encoder.tune=last_block: timm names no blocks of this model; take all or lora"
        raise InputError(message)
    groups = group_with_matcher(((n, n) for n in [*names, _UNMATCHED]), matcher(coarse=False))
    (rest,) = (i for i, group in groups.items() if _UNMATCHED in group)
    blocks = [i for i in groups if i != rest]
    if len(blocks) < 2:
        message = "encoder.tune=last_block: this model is one block for timm; take all or lora"
        raise InputError(message)
    tail = {*groups[max(blocks)], *groups[rest]}
    trained = set(takewhile(tail.__contains__, reversed(names)))
    parameters = dict(backbone.named_parameters())
    if not any(parameters[name].ndim > 1 for name in trained):
        message = (
            "encoder.tune=last_block: the last block of this model is not at its end; "
            "take all or lora"
        )
        raise InputError(message)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
