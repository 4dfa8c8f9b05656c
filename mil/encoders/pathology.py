"""Published pathology foundation models that timm can build, each with its preprocessing card.

Every entry was taken from the model's own page and checked against TRIDENT's loader (A. Zhang et
al. 2025, https://github.com/mahmoodlab/TRIDENT, ``patch_encoder_models/load.py``); the number of
parameters that timm builds from it is the published one. The weights are not open: each page asks
for consent to a licence, and most of the licences forbid commercial use. Other models that timm
can build are named ``hf-hub:OWNER/NAME`` and bring their own card (``config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from timm.layers import SwiGLUPacked
from torch import Tensor, nn

__all__ = ["PATHOLOGY", "Card", "ClassAndPatches"]

_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BIOPTIMUS: Final = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_GATED_NC: Final = "CC-BY-NC-ND-4.0 (gated: consent and approval; no commercial use)"


@dataclass(frozen=True)
class Card:
    """What a pathology foundation model needs to give the embeddings of its authors.

    Attributes:
        repository: Where the weights and the licence are, on https://huggingface.co.
        architecture: The timm model.
        args: Its arguments; a SwiGLU block is wider than timm's default by ``mlp_ratio``.
        input_px: Side of the square RGB input.
        interpolation: Of the resize before it.
        scale: Mean and deviation of R, G, B in 0..1.
        patches: The embedding is the class token beside the mean patch token, not the class
            token alone.
        dim: Width of the embedding.
        licence: Of the weights.
        paper: Who published it.
    """

    repository: str
    architecture: str
    dim: int
    licence: str
    paper: str
    args: Mapping[str, Any] = field(default_factory=dict)
    input_px: int = 224
    interpolation: str = "bicubic"
    scale: tuple[tuple[float, float, float], tuple[float, float, float]] = _IMAGENET
    patches: bool = False

    @property
    def url(self) -> str:
        """The page with the weights and the licence."""
        return f"https://huggingface.co/{self.repository}"


_SWIGLU: Final = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}

PATHOLOGY: Final[Mapping[str, Card]] = MappingProxyType(
    {
        "uni": Card(
            repository="MahmoodLab/UNI",
            architecture="vit_large_patch16_224",
            args={"init_values": 1e-5},
            interpolation="bilinear",
            dim=1024,
            licence=_GATED_NC,
            paper="R. J. Chen et al., Nature Medicine 2024",
        ),
        "uni2": Card(
            repository="MahmoodLab/UNI2-h",
            architecture="vit_giant_patch14_224",
            args={
                "depth": 24,
                "num_heads": 24,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "init_values": 1e-5,
                "no_embed_class": True,
                "reg_tokens": 8,
                **_SWIGLU,
            },
            interpolation="bilinear",
            dim=1536,
            licence=_GATED_NC,
            paper="R. J. Chen et al., Nature Medicine 2024 (its second release, 2025)",
        ),
        "virchow": Card(
            repository="paige-ai/Virchow",
            architecture="vit_huge_patch14_224",
            args={"mlp_ratio": 5.3375, "init_values": 1e-5, **_SWIGLU},
            patches=True,
            dim=2560,
            licence="Apache-2.0 (gated: consent and approval)",
            paper="E. Vorontsov et al., Nature Medicine 2024",
        ),
        "virchow2": Card(
            repository="paige-ai/Virchow2",
            architecture="vit_huge_patch14_224",
            args={"mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4, **_SWIGLU},
            patches=True,
            dim=2560,
            licence=_GATED_NC,
            paper="E. Zimmermann et al. 2024, arXiv:2408.00738",
        ),
        "prov_gigapath": Card(
            repository="prov-gigapath/prov-gigapath",
            architecture="vit_giant_patch14_dinov2",
            args={
                "img_size": 224,
                "patch_size": 16,
                "embed_dim": 1536,
                "depth": 40,
                "num_heads": 24,
                "mlp_ratio": 5.33334,
            },
            dim=1536,
            licence="as its page says (gated: consent; research use)",
            paper="H. Xu et al., Nature 2024 (the tile encoder)",
        ),
        "h_optimus_0": Card(
            repository="bioptimus/H-optimus-0",
            architecture="vit_giant_patch14_reg4_dinov2",
            args={"img_size": 224, "init_values": 1e-5},
            interpolation="bilinear",
            scale=_BIOPTIMUS,
            dim=1536,
            licence="Apache-2.0",
            paper="Bioptimus 2024, https://github.com/bioptimus/releases",
        ),
    }
)
"""Short name -> card."""


class ClassAndPatches(nn.Module):
    """The class token beside the mean patch token; register tokens are skipped (Virchow's rule).

    Args:
        vit: A timm vision transformer.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.num_features = 2 * int(vit.num_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(n, 2 * width)`` of images ``(n, n_channels, size, size)``."""
        tokens: Tensor = self.vit.forward_features(x)  # type: ignore[operator]
        first: Any = self.vit.num_prefix_tokens
        return torch.cat([tokens[:, 0], tokens[:, first:].mean(1)], dim=1)
