"""Fusion strategies: one class each, all behind the contract `Fusion`."""

from mbt_core.model.fusion.base import JOINT, Fusion, LayerRecord

__all__ = ["JOINT", "Fusion", "LayerRecord"]
