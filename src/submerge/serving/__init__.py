"""From a merged folder to a transformers model with a gate, or to adapters that others serve."""

from submerge.serving._export import Exported, export_adapters

__all__ = ["Exported", "export_adapters"]
