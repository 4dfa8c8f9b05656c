"""Encoding at the speed of the machine: folded, in half precision, compiled where asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from mil import devices
from mil.encoders.augment import centre_view
from mil.encoders.tile_encoder import TileEncoder
from mil.encoders.tune import merge_lora

__all__ = ["Reader", "fast"]

Reader = Callable[[Tensor], Tensor]
"""Tiles ``(n, c, size, size)`` in grey levels -> embeddings ``(n, dim)`` float32."""


def fast(
    encoder: TileEncoder,
    fabric: Fabric,
    image_px: int,
    *,
    batch: int = 64,
    compiled: bool = False,
    say: Callable[[str], object] = print,
) -> Reader:
    """An encoder for reading only; the one given is left as it is.

    Batch norms are folded into their convolutions (in float32), weights are bfloat16 where the
    device multiplies it, images stand channels last. Input scaling and embedding stay float32.

    Args:
        encoder: Trained encoder.
        fabric: Device and precision.
        image_px: Side of the centre square that the encoder sees.
        batch: Tiles a call: every shape costs oneDNN its set-up, and a compiled encoder is made
            for one.
        compiled: Compile for such batches with the weights as constants. Takes some twenty
            seconds and, on a CPU, a C++ compiler; without one it says so and goes on uncompiled.
        say: Called with that line.

    Returns:
        Tiles ``(n, c, size, size)`` in grey levels, any number, on any device -> embeddings
        ``(n, dim)`` float32 on the fabric's device. Equal calls give equal bits; how many tiles
        come together changes an embedding by rounding only.
    """
    reader = copy.deepcopy(encoder).eval()
    merge_lora(reader)
    dtype, backbone = devices.weight_dtype(fabric), _folded(reader.backbone)
    if dtype is torch.bfloat16 and fabric.device.type == "cpu" and not compiled:
        _quicken_relus(backbone)
    reader.backbone = _Backbone(backbone, dtype)
    reader.to(fabric.device)

    work = (
        _compile(reader, (batch, len(reader.mean), image_px, image_px), fabric, say)
        if compiled
        else reader.embed
    )
    whole = work != reader.embed  # a compiled encoder takes whole batches

    def embed(tiles: Tensor) -> Tensor:
        found = [torch.empty((0, reader.dim), device=fabric.device)]
        with torch.inference_mode():
            for start in range(0, len(tiles), batch):
                block = tiles[start : start + batch].to(fabric.device)
                view = centre_view(block, image_px).contiguous()
                missing = batch - len(view) if whole else 0
                found.append(work(F.pad(view, (0, 0) * 3 + (0, missing)))[: len(view)])
        return torch.cat(found)

    return embed


class _Backbone(nn.Module):
    """A backbone with weights of a type of their own between float32 input and output."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.backbone = backbone.to(dtype).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.backbone(
            x.to(self.dtype, memory_format=torch.channels_last)  # (n, c, image_px, image_px)
        )
        return embedding.float()


class _Relu(nn.Module):
    """ReLU of bfloat16 as whole numbers: a negative one is a negative int16.

    Four times as fast as torch's own on a CPU, which goes by way of float32; the same bits.
    """

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        bits = x.view(torch.int16)
        return (bits.clamp_(min=0) if self.inplace else bits.clamp(min=0)).view(x.dtype)


def _quicken_relus(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.ReLU:
            setattr(module, name, _Relu(inplace=child.inplace))
        else:
            _quicken_relus(child)


def _folded(backbone: nn.Module) -> nn.Module:
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        return backbone
    try:
        folded: nn.Module = fuse(backbone)
    except TraceError:
        return backbone  # its forward depends on data: the same result, norm by norm
    return folded


def _compile(
    reader: TileEncoder,
    shape: tuple[int, int, int, int],
    fabric: Fabric,
    say: Callable[[str], object],
) -> Reader:
    made: Reader = torch.compile(reader.embed, dynamic=False, options={"freezing": True})
    blank = torch.zeros(shape, device=fabric.device)
    try:
        with torch.inference_mode():
            made(blank)
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[0]
        say(f"the encoder is not compiled, which costs time only: {cause}")
        return reader.embed
    return made
