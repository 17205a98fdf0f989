"""What a calibration found: coefficients, the loss on the way, and what was measured, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge._version import __version__
from submerge.arguments import finite_or_none
from submerge.calibrate._null_space_results import NullSpaceCurve, NullSpaceMatrix
from submerge.errors import writing
from submerge.recipe import COEFFICIENTS_VERSION
from submerge.store import whole_file

__all__ = ["Calibration"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Merge coefficients that were learned from unlabelled inputs, and all that was measured on the way.

    Modules are named as in the base's folder, without `.weight`; where the model was given in memory, as
    there.

    Attributes:
        objective: what was minimised: `null_space`, `match` or `energy`.
        loss: steps + 1 values: that of the first batches before any step, …, and that after the last step.
        coefficients: λ by module and adapter; of units a list, in the order of the rows of A_k.
        initial: λ before the first step.
        matrix: the ratio ω of all data for each adapter in the merged model with these coefficients.
        curve: ω(λ) of each adapter alone on up to 64 of its own inputs.
        unreached: modules whose coefficients got no gradient and are `initial`, as all behind the last hook.
        kept: adapters whose coefficients were not learned, because their ω does not fall with λ.
        warnings: what to know before the coefficients are used, a sentence each.
        settings: the arguments.
        inputs: digests of each adapter's file and of its encoded data, the scales that its configuration puts
            on its updates, and how many items these are.
        seconds: of all, with what was measured before and after.
        seconds_per_step: NaN where there was no step.
        peak_memory_bytes: the most that the process has held; on a GPU, of its memory.
        base: a digest of the base's names, types, shapes and some values; None of a model in memory.

    Examples:
        >>> import torch
        >>> import submerge
        >>> report = submerge.extract_lora("chat", "chat-lora", base="base", rank=4)
        >>> tokens = [{"input_ids": torch.arange(32).view(2, 16)}]
        >>> calibration = submerge.learn_coefficients("base", ["chat-lora"], [tokens], steps=0)
        >>> calibration.save("coefficients.json")
        >>> calibration.coefficients["model.layers.0.self_attn.q_proj"]
        {'chat-lora': 0.4}
    """

    objective: str
    loss: tuple[float, ...]
    coefficients: Mapping[str, Mapping[str, float | list[float]]]
    initial: float
    matrix: NullSpaceMatrix
    curve: NullSpaceCurve
    unreached: tuple[str, ...]
    kept: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    seconds: float
    seconds_per_step: float
    peak_memory_bytes: int
    base: str | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """The modules whose inputs were measured."""
        return self.matrix.modules

    @property
    def ratios(self) -> dict[str, dict[str, float]]:
        """ω by data set and adapter, means over the modules that the adapter changes."""
        return self._by_data(self.matrix.matrix.tolist())

    @property
    def ratios_by_module(self) -> dict[str, dict[str, dict[str, float]]]:
        """ω by module, data set and adapter; NaN where the adapter does not change the module."""
        values = zip(self.hooks, self.matrix.values.tolist(), strict=True)
        return {module: self._by_data(rows) for module, rows in values}

    @property
    def isotropic(self) -> dict[str, float]:
        """√(1 − r/n) by adapter, about the ratio of inputs without any structure, as a mean over modules."""
        return dict(zip(self.matrix.adapters, self.matrix.isotropic.nanmean(0).tolist(), strict=True))

    def _by_data(self, rows: list[list[float]]) -> dict[str, dict[str, float]]:
        by_adapter = (dict(zip(self.matrix.adapters, row, strict=True)) for row in rows)
        return dict(zip(self.matrix.data, by_adapter, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold; None stands for NaN, and for a bound that is infinite."""
        values = zip(self.curve.adapters, self.curve.values.tolist(), strict=True)
        content: dict[str, Any] = finite_or_none(
            {
                "version": COEFFICIENTS_VERSION,
                "submerge": __version__,
                "method": self.objective,
                "coefficients": self.coefficients,
                "initial": self.initial,
                "loss": self.loss,
                "hooks": self.hooks,
                "ratios": self.ratios,
                "ratios_by_module": self.ratios_by_module,
                "isotropic": self.isotropic,
                "curve": {"scales": self.curve.scales, "values": dict(values)},
                "unreached": self.unreached,
                "kept": self.kept,
                "warnings": self.warnings,
                "settings": self.settings,
                "base": self.base,
                "inputs": self.inputs,
                "seconds": self.seconds,
                "seconds_per_step": self.seconds_per_step,
                "peak_memory_bytes": self.peak_memory_bytes,
            }
        )
        return content

    def to_json(self) -> str:
        """Return all of it as `save` writes it."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write it as JSON, all of it or nothing; raise `WorkError` where the disk refuses."""
        path = Path(path)
        with writing(f"{path}: writing the coefficients failed"), whole_file(path) as unfinished:
            unfinished.write_text(self.to_json(), encoding="utf-8")
