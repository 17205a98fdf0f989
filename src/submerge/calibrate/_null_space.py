"""How much of a model's activations adapters do not see: the matrix over data sets, and the curve over λ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from submerge.arguments import checked, is_finite_number
from submerge.calibrate._encode import MAX_LENGTH
from submerge.calibrate._hooks import LAST_QUARTER
from submerge.calibrate._measurement import (
    BatchCounter,
    Lambdas,
    Measurement,
    Progress,
    Scales,
    measuring,
)
from submerge.calibrate._null_space_results import NullSpaceCurve, NullSpaceMatrix
from submerge.calibrate._reuse import ReusedOutputs
from submerge.calibrate._sources import DataSets, Inputs, Specs
from submerge.errors import Problem, RequestError, few

__all__ = ["CURVE", "SIZE", "curve_of", "matrix_of", "null_space_curve", "null_space_ratio"]

SIZE = 16
CURVE = (0.0, 0.25, 0.5, 0.75, 1.0)


@checked
def null_space_ratio(
    model: str | Path | nn.Module,
    adapters: Specs,
    data: DataSets,
    *,
    hooks: str = LAST_QUARTER,
    scales: Scales | None = None,
    batch_size: int = SIZE,
    max_length: int = MAX_LENGTH,
    processor: Any = None,
    progress: Progress | None = None,
) -> NullSpaceMatrix:
    """Return, for data set j and adapter k, the share of the activations that lies in the null space of A_k.

    A low value says that the adapter knows such inputs: during training a task's own activations move out of
    the null space of its A (arXiv 2603.26317). No labels and no outputs are needed, and one pass over the
    data serves all adapters; it ends at the last module that is measured.

    Args:
        model: the base, a folder or a model of transformers in memory, which is left as it was.
        adapters: LoRA adapters of it, as folders, files or Hub ids, perhaps by name.
        data: inputs of each task: what `submerge.calibrate.read_items` reads (files, folders of images, data
            sets), texts, items, or batches of tensors by name. A sequence has one for each adapter, a mapping
            names them.
        hooks: the modules whose inputs are measured, among those with adapters: those of the last quarter of
            the layers, or those in whose name this regular expression is found.
        scales: λ, the strengths of the adapters in the model that the data goes through: a number for all,
            one for each adapter, or such by module; None for the base itself.
        batch_size: how many inputs a pass has.
        max_length: how many tokens a text has at most.
        processor: what encodes texts, images or both; by default that of the model's folder.
        progress: called after each batch with the batches so far, and all that there are.

    Raises:
        RequestError: an adapter does not fit, no module matches the hooks, an adapter has no null space there
            or changes none of them, or there are no inputs.

    Examples:
        >>> import submerge
        >>> for name in ("chat", "code"):
        ...     report = submerge.extract_lora(name, f"{name}-lora", base="base", rank=4)
        >>> import torch
        >>> tokens = [{"input_ids": torch.arange(32).view(2, 16)}]
        >>> matrix = submerge.null_space_ratio("base", ["chat-lora", "code-lora"], {"numbers": tokens})
        >>> matrix.adapters, matrix.matrix.shape, len(matrix.modules)
        (('chat-lora', 'code-lora'), torch.Size([1, 2]), 7)
    """
    encoding = {"batch_size": batch_size, "max_length": max_length, "processor": processor}
    with measuring(model, adapters, data, hooks, encoding) as measurement:
        counter = BatchCounter(progress, sum(map(len, measurement.data.values())))
        return matrix_of(measurement, measurement.lambdas(scales), counter)


@checked
def null_space_curve(
    model: str | Path | nn.Module,
    adapters: Specs,
    data: DataSets,
    *,
    scales: Sequence[float] = CURVE,
    hooks: str = LAST_QUARTER,
    batch_size: int = SIZE,
    max_length: int = MAX_LENGTH,
    processor: Any = None,
    progress: Progress | None = None,
) -> NullSpaceCurve:
    """Return ω(λ) of each adapter alone: its own inputs' ratio where it is added to the base λ times.

    Coefficients that make the ratio small can only be good ones where the ratio falls from λ = 0, the base,
    to λ = 1, the adapter as it was trained. Look at this before you minimise it: `warnings` name the adapters
    for which it does not fall, and `str` is a table.

    Args:
        scales: the values of λ, of which there must be two; each is one pass over all data, in which
            what comes before the first adapter (an image tower, blocks) is computed for the first one alone.

    The other arguments, and the errors, are those of `null_space_ratio`; there must be data for each adapter.

    Examples:
        >>> import submerge
        >>> report = submerge.extract_lora("chat", "chat-lora", base="base", rank=4)
        >>> import torch
        >>> tokens = [{"input_ids": torch.arange(32).view(2, 16)}]
        >>> curve = submerge.null_space_curve("base", ["chat-lora"], [tokens], scales=[0, 1])
        >>> curve.adapters, curve.scales, curve.values.shape
        (('chat-lora',), (0.0, 1.0), torch.Size([1, 2]))
    """
    if wrong := [value for value in scales if not is_finite_number(value)]:
        raise RequestError(Problem(f"{wrong[0]!r} is no finite number", "scales", "for example [0, 0.5, 1]"))
    points = sorted({float(value) for value in scales})
    if len(points) < 2:
        raise RequestError(Problem("a curve needs two values of λ", "scales", "for example [0, 0.5, 1]"))
    encoding = {"batch_size": batch_size, "max_length": max_length, "processor": processor}
    normal = torch.inference_mode(False)  # in it, nothing shows what depends on the scales
    with normal, measuring(model, adapters, data, hooks, encoding) as measurement:
        measurement.check_own_data()
        own = [measurement.data[name] for name in measurement.names]
        counter = BatchCounter(progress, len(points) * sum(map(len, own)))
        return curve_of(measurement, points, own, counter)


def matrix_of(measurement: Measurement, lambdas: Lambdas, counter: BatchCounter) -> NullSpaceMatrix:
    """Return the ratio of all data for each adapter in the model with scales λ."""
    ratios = [
        measurement.ratios(inputs, lambdas, range(len(measurement.names)), counter)
        for inputs in measurement.data.values()
    ]
    first, counts = ratios[0], [max(r.count for r in one.values()) for one in ratios]
    if unseen := [name for name, count in zip(measurement.data, counts, strict=True) if not count]:
        what = f"no position of {few(unseen)} is measured: all are padding, or no input reaches the hooks"
        raise RequestError(Problem(what, "data", "look at the attention mask, and at the hooks"))
    return NullSpaceMatrix(
        data=tuple(measurement.data),
        adapters=measurement.names,
        modules=tuple(first),
        values=torch.stack([torch.stack([r.mean for r in one.values()]) for one in ratios], dim=1),
        isotropic=torch.stack([ratio.isotropic for ratio in first.values()]),
        counts=tuple(counts),
        left_out=measurement.left_out,
    )


def curve_of(
    measurement: Measurement, points: Sequence[float], own: Sequence[Inputs], counter: BatchCounter
) -> NullSpaceCurve:
    """Return ω(λ) at `points` of each adapter alone, on inputs of its own."""
    reused = ReusedOutputs(measurement.adapters.model, measurement.hooked)
    values = [measurement.alone(k, points, inputs, reused, counter) for k, inputs in enumerate(own)]
    return NullSpaceCurve(measurement.names, tuple(points), tuple(measurement.hooked), torch.stack(values))
