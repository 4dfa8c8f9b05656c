"""Tile encoders: a timm model without its head, and a linear tile classifier on top."""

from mil.encoders.build import ENCODERS, check_name, create
from mil.encoders.tile_encoder import TileEncoder

__all__ = ["ENCODERS", "TileEncoder", "check_name", "create"]
