"""Random views of whole batches: one affine resampling and one stain jitter a batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["centre_view", "random_view"]


def centre_view(tiles: Tensor, image_px: int) -> Tensor:
    """The centre ``image_px`` square of tiles ``(n, c, size, size)``, as float32."""
    start = (tiles.shape[-1] - image_px) // 2
    return tiles[..., start : start + image_px, start : start + image_px].float()


def random_view(
    tiles: Tensor,
    image_px: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    crop_ratio: tuple[float, float] = (1.0, 1.0),
    horizontal_flip: bool = False,
    quarter_turns: bool = False,
    stain_jitter: float = 0.0,
    optical: bool = True,
) -> Tensor:
    """Random resized crop (Szegedy et al. 2015), flip, quarter turn and stain jitter.

    Args:
        tiles: ``(n, c, size, size)`` uint8.
        image_px: Side of the view.
        rng: Every draw comes from it, in a fixed order.
        crop_scale: Smallest and largest share of the area.
        crop_ratio: Smallest and largest width to height, log-uniform.
        horizontal_flip: Mirror with probability 0.5.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        stain_jitter: Each channel's concentration is multiplied by ``1 + u``, ``u`` uniform in
            ``+-stain_jitter``, and shifted by a tenth of that range.
        optical: The channels are concentrations; False means RGB, jittered as optical density.

    Returns:
        ``(n, c, image_px, image_px)`` float32, in grey levels.
    """
    n, n_channels = tiles.shape[:2]
    area = rng.uniform(*crop_scale, n)
    ratio = np.exp(rng.uniform(np.log(crop_ratio[0]), np.log(crop_ratio[1]), n))
    width = np.minimum(np.sqrt(area * ratio), 1.0)
    height = np.minimum(np.sqrt(area / ratio), 1.0)
    # Offsets in grid_sample's frame, where the tile spans -1..1.
    x, y = (rng.uniform(-1, 1, n) * (1 - side) for side in (width, height))
    mirror = np.where(rng.random(n) < 0.5 * horizontal_flip, -1.0, 1.0)
    turns = rng.integers(0, 4, n) * quarter_turns
    cos, sin = np.round(np.cos(turns * np.pi / 2)), np.round(np.sin(turns * np.pi / 2))
    theta = np.zeros((n, 2, 3), dtype=np.float32)
    theta[:, 0] = np.stack([width * mirror * cos, -width * mirror * sin, x], axis=1)
    theta[:, 1] = np.stack([height * sin, height * cos, y], axis=1)
    grid = F.affine_grid(
        torch.from_numpy(theta).to(tiles.device),
        [n, n_channels, image_px, image_px],
        align_corners=False,
    )
    view = F.grid_sample(tiles.float(), grid, align_corners=False, padding_mode="reflection")
    if stain_jitter == 0:
        return view
    gain = 1 + stain_jitter * rng.uniform(-1, 1, (n, n_channels, 1, 1))
    shift = 0.1 * stain_jitter * rng.uniform(-1, 1, (n, n_channels, 1, 1))
    gain_t, shift_t = (
        torch.from_numpy(v.astype(np.float32)).to(tiles.device) for v in (gain, shift)
    )
    if optical:
        return (view * gain_t + 255 * shift_t).clamp_(0, 255)
    density = -torch.log((view + 1) / 256)
    return (256 * torch.exp(-(density * gain_t + shift_t)) - 1).clamp_(0, 255)
