"""Tile encoders: a timm model without its head, and a linear tile classifier on top."""

from mil.encoders.build import ENCODERS, check_name, create
from mil.encoders.pathology import PATHOLOGY
from mil.encoders.tile_encoder import TileEncoder
from mil.encoders.weights import origin_digest

__all__ = ["ENCODERS", "PATHOLOGY", "TileEncoder", "check_name", "create", "origin_digest"]
