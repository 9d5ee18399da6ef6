"""Weights room."""

from .backbones import from_backbone
from .mask2former import from_mask2former

__all__ = ["from_backbone", "from_mask2former"]
