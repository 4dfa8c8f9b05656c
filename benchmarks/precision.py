"""ResNet18 training steps in float32 and bfloat16, side by side in one process.

python benchmarks/precision.py
"""

from __future__ import annotations

import time

import timm
import torch

BATCH, SIZE_PX, STEPS = 16, 96, 4


def images_a_second(*, half: bool) -> float:
    """Training throughput after two warm-up steps, 2 channels, channels_last, SGD."""
    model = timm.create_model("resnet18", in_chans=2, num_classes=4)
    model = model.to(memory_format=torch.channels_last).train()
    x = torch.randn(BATCH, 2, SIZE_PX, SIZE_PX).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS + 2):
        if step == 2:
            began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = model(x).float().logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return STEPS * BATCH / (time.perf_counter() - began)


if __name__ == "__main__":
    full, half = images_a_second(half=False), images_a_second(half=True)
    print(f"float32 {full:.1f} img/s, bfloat16 {half:.1f} img/s, ratio {half / full:.2f}")
