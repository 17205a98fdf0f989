"""Adapters: what their files hold, how they fit onto a base, and how they are written."""

from submerge.store.adapter._adapter import Adapter
from submerge.store.adapter._build import build_parts
from submerge.store.adapter._composed import Composed
from submerge.store.adapter._computed import ComputedUpdate
from submerge.store.adapter._config import ADAPTER_CONFIG, AdapterConfig, adapter_config
from submerge.store.adapter._dense_updates import dense_updates
from submerge.store.adapter._fit import fit_adapter
from submerge.store.adapter._layout import LoraKeys
from submerge.store.adapter._lora_names import LoraNames, component_of, is_of_lora, lora_names
from submerge.store.adapter._narrow import narrow_factors, widened
from submerge.store.adapter._open_adapter import is_adapter, open_adapter
from submerge.store.adapter._parts import (
    Add,
    Kind,
    LowRankPart,
    Part,
    Replace,
    Rows,
    SharedFactors,
    StackedRows,
    is_of_pipeline,
    is_relative,
    saved_table,
)
from submerge.store.adapter._task_type import AUTO_CLASSES, task_type_of
from submerge.store.adapter._transformed import RowMap, Transformed
from submerge.store.adapter._value_writer import write_values
from submerge.store.adapter._writer import ADAPTER_STEM, LORA_STEM, AdapterWriter

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_STEM",
    "AUTO_CLASSES",
    "LORA_STEM",
    "Adapter",
    "AdapterConfig",
    "AdapterWriter",
    "Add",
    "Composed",
    "ComputedUpdate",
    "Kind",
    "LoraKeys",
    "LoraNames",
    "LowRankPart",
    "Part",
    "Replace",
    "RowMap",
    "Rows",
    "SharedFactors",
    "StackedRows",
    "Transformed",
    "adapter_config",
    "build_parts",
    "component_of",
    "dense_updates",
    "fit_adapter",
    "is_adapter",
    "is_of_lora",
    "is_of_pipeline",
    "is_relative",
    "lora_names",
    "narrow_factors",
    "open_adapter",
    "saved_table",
    "task_type_of",
    "widened",
    "write_values",
]
