"""Batch normalisation over the batch of all processes, on any device.

Ioffe and Szegedy 2015, arXiv:1502.03167, with the moments of the whole batch, so that several
processes make the updates of one. torch's own ``SyncBatchNorm`` does it on GPUs only.
"""

from __future__ import annotations

import timm
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.nn import functional as distributed

from splits.errors import InputError

__all__ = ["synchronise"]


def _sum(x: Tensor) -> Tensor:
    """Over all processes, with gradients."""
    total: Tensor = distributed.all_reduce(x)  # type: ignore[no-untyped-call]
    return total


class _BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose moments are those of all processes while it trains."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not self.training:
            return super().forward(input)
        x = input.float()
        local = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        n = _sum(local)
        mean = _sum(x.sum((0, 2, 3))) / n
        centred = x - mean.view(1, -1, 1, 1)
        variance = _sum(centred.square().sum((0, 2, 3))) / n
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                share = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * n / (n - 1), share)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        result: Tensor = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return result.to(input.dtype)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch normalisation of ``model`` see the batch of all processes.

    Names and values of the weights stay as they are.

    Raises:
        InputError: A normalisation that can be synchronised on GPUs only.
    """
    if device.type == "cuda":
        converted: nn.Module = timm.layers.convert_sync_batchnorm(model)
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _BatchNorm2d
        elif (
            isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) is not _BatchNorm2d
        ):
            message = (
                f"{type(module).__name__} layers cannot be synchronised over processes on "
                f"{device.type}: take one process, GPUs, or an encoder without them (ResNet18, ViT)"
            )
            raise InputError(message)
    return model
