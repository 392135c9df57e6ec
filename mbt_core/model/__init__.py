"""The model: block, streams, fusion strategies, positions, head, MBT."""

from mbt_core.model.fusion import Fusion
from mbt_core.model.mbt import MBT, Prediction

__all__ = ["MBT", "Fusion", "Prediction"]
