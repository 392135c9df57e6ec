"""Exports a run's model to files that run without this framework."""

from mbt_core.deploy.export.files import Exported, export

__all__ = ["Exported", "export"]
