"""Merge coefficients from unlabelled inputs: steps of AdamW on what the hooked modules' inputs tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from submerge.arguments import checked
from submerge.calibrate._calibration import Calibration
from submerge.calibrate._checkpointing import checkpointed
from submerge.calibrate._encode import MAX_LENGTH
from submerge.calibrate._hooks import LAST_QUARTER
from submerge.calibrate._measurement import measuring
from submerge.calibrate._null_space import SIZE
from submerge.calibrate._options import DTYPES, LearnOptions, Step
from submerge.calibrate._record import folder_modules, peak_memory, record_inputs
from submerge.calibrate._run import CalibrationRun, renamed
from submerge.calibrate._sources import DataSets, Specs, load_backbone
from submerge.device import check_device
from submerge.errors import Problem, RequestError
from submerge.store import model_digest, open_checkpoint

__all__ = ["learn_coefficients"]


@checked
def learn_coefficients(
    model: str | Path | nn.Module,
    adapters: Specs,
    data: DataSets,
    *,
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = SIZE,
    hooks: str = LAST_QUARTER,
    initial: float = 0.4,
    weight_decay: float = 0.0,
    objective: str = "null_space",
    parametrisation: str = "module",
    bounds: tuple[float, float] | None = None,
    pull: float = 0.0,
    where_rising: str = "keep",
    seed: int = 0,
    max_length: int = MAX_LENGTH,
    processor: Any = None,
    checkpointing: bool = False,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Calibration:
    """Return merge coefficients λ of adapters that were learned from unlabelled inputs of each task.

    NSC (arXiv 2603.26317, §3): in the merged model W + Σ_k λ_k s_k B_k A_k the inputs of task k shall lie as
    little as possible in the null spaces of A_k. With ω_k(x) of `null_space_ratio`

        L(λ) = 1/K Σ_k Ω_k,     Ω_k = mean over hooked modules of the mean over positions of ω_k(x),

    each step takes the next batch of every task, adds up their gradients, and moves λ by AdamW (the defaults
    of torch but for rate and weight decay). A pass ends at the last hooked module; coefficients that no
    gradient reaches, as those behind it, keep their initial value to the bit, and are named in `unreached`.

    First the curve ω(λ) of each adapter alone is measured on up to 64 of its own inputs, evenly spaced. Where
    it does not fall, to minimise ω would only weaken the adapter: its coefficients stay what they are, unless
    `where_rising` is "learn". The same inputs and number of threads give the same coefficients.

    Args:
        model: the base, a folder or a model of transformers in memory, which is left as it was.
        adapters: LoRA adapters of it, as folders, files or Hub ids, perhaps by name.
        data: unlabelled inputs of each adapter's task, as of `null_space_ratio`. More data sets, of tasks
            without an adapter, are measured only.
        steps: how many; 0 only measures.
        learning_rate: of AdamW.
        batch_size: inputs of each task in a step.
        hooks: the modules whose inputs are looked at, among those with adapters: those of the last quarter of
            the layers, or those in whose name this regular expression is found.
        initial: λ before the first step.
        weight_decay: of AdamW, towards 0.
        objective: "null_space" as above; "energy" its second moments, Ω_k = Σ ‖P_N x‖² / Σ ‖x‖²; "match" the
            inputs' relative squared distance to those in the base with adapter k alone, where the curve
            decides nothing.
        parametrisation: "module" has a λ for each adapter and module, "type" one for each adapter and kind of
            module (`q_proj`, …), "adapter" one for each adapter, "unit" one for each rank-one unit b_i a_iᵀ
            of an adapter's update of a module.
        bounds: an interval to which λ are clamped after each step.
        pull: this times the mean of (λ − initial)², over the coefficients that gradients reach, is added to
            the loss.
        where_rising: "keep" or "learn": what becomes of adapters whose ω does not fall with λ.
        seed: batches of a task are formed in the order of its items, and taken in turn. With a seed other
            than 0 their order is drawn anew for each pass over them.
        max_length: how many tokens a text has at most.
        processor: the tokenizer or image processor; by default that of the model's folder.
        checkpointing: compute activations again in the backward pass, for less memory and more time.
        dtype: in which the model of a folder runs, such as "bfloat16"; by default that of its files. The
            ratio and λ are computed in float32 or float64.
        device: on which the model of a folder runs, such as "cuda"; by default the CPU.
        progress: called with a `Step` whenever a loss was measured, and after each batch of the curves and of
            the ratios at the end.

    Raises:
        RequestError: an argument is out of range, or what `null_space_ratio` raises it for.

    Examples:
        >>> import submerge
        >>> for name in ("chat", "code"):
        ...     report = submerge.extract_lora(name, f"{name}-lora", base="base", rank=4)
        >>> import torch
        >>> tokens = [{"input_ids": torch.arange(32).view(2, 16)}]
        >>> data = {"chat-lora": tokens, "code-lora": tokens}
        >>> calibration = submerge.learn_coefficients(
        ...     "base", ["chat-lora", "code-lora"], data, steps=2, where_rising="learn"
        ... )
        >>> len(calibration.loss), len(calibration.coefficients), calibration.unreached[-1]
        (3, 28, 'model.layers.3.mlp.down_proj')
    """
    options = LearnOptions(
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        hooks=hooks,
        initial=initial,
        weight_decay=weight_decay,
        objective=objective,
        parametrisation=parametrisation,
        bounds=bounds,
        pull=pull,
        where_rising=where_rising,
        seed=seed,
        max_length=max_length,
        checkpointing=checkpointing,
        dtype=dtype,
    )
    with torch.inference_mode(False):  # in which nothing has gradients
        return _learned(options, model, adapters, data, processor, device, progress)


def _learned(
    options: LearnOptions,
    model: str | Path | nn.Module,
    adapters: Specs,
    data: DataSets,
    processor: Any,
    device: str | torch.device | None,
    progress: Callable[[Step], None] | None,
) -> Calibration:
    start = time.perf_counter()
    encoding = {"batch_size": options.batch_size, "max_length": options.max_length, "processor": processor}
    loaded, folder = _loaded(model, options.dtype, device), None if isinstance(model, nn.Module) else model
    with ExitStack() as stack:
        measurement = stack.enter_context(
            measuring(loaded, adapters, data, options.hooks, encoding, folder)
        ).holding()
        if options.checkpointing:
            stack.enter_context(checkpointed(measurement.adapters))
        measurement.check_own_data()
        inputs = record_inputs(measurement.opened, measurement.data)
        stored = _names(model, loaded, measurement.adapters.modules)
        names = {path: own[0] for path, own in stored.items()}
        run = CalibrationRun(measurement, options, progress or (lambda _: None))
        run.learn()
        matrix = renamed(run.matrix(), names)
        return Calibration(
            objective=options.objective,
            loss=tuple(run.descent.loss),
            coefficients={
                name: own for path, own in run.coefficients.values(run.names).items() for name in stored[path]
            },
            initial=float(options.initial),
            matrix=matrix,
            curve=renamed(run.curve, names),
            unreached=tuple(name for path in run.unreached for name in stored[path]),
            kept=tuple(run.names[k] for k in sorted(run.kept)),
            warnings=tuple(run.warnings(matrix)),
            settings={**_places(model, adapters), **options.to_dict()},
            inputs=inputs,
            seconds=time.perf_counter() - start,
            seconds_per_step=run.descent.seconds / run.steps if run.steps else math.nan,
            peak_memory_bytes=peak_memory(loaded),
            base=None if isinstance(model, nn.Module) else model_digest(open_checkpoint(str(model))),
        )


def _names(
    model: str | Path | nn.Module, loaded: nn.Module, modules: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return what the result calls the modules: as the base's files do, or the model that was given.

    Those that the model packs, as experts, have several names in the files.
    """
    if isinstance(model, nn.Module):
        return {path: (path,) for path in modules}
    return folder_modules(str(model), loaded, modules)


def _places(model: str | Path | nn.Module, adapters: Specs) -> dict[str, Any]:
    """Return where the model and the adapters are, for the file."""
    where = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    specs = adapters.values() if isinstance(adapters, Mapping) else adapters
    return {"model": where, "adapters": [str(spec) for spec in specs]}


def _loaded(model: str | Path | nn.Module, dtype: str | None, device: str | torch.device | None) -> nn.Module:
    if device is not None:
        device = check_device(device, "device")
    if not isinstance(model, nn.Module):
        return load_backbone(model).to(device, None if dtype is None else DTYPES[dtype])
    if device is not None and not _is_on(next(model.parameters()).device, torch.device(device)):
        what = f"a model in memory is not moved to {device}"
        raise RequestError(Problem(what, "device", "move it before, or give its folder"))
    if dtype is not None and next(model.parameters()).dtype != DTYPES[dtype]:
        what = f"a model in memory is not converted to {dtype}"
        raise RequestError(Problem(what, "dtype", "convert it before, or give its folder"))
    return model


def _is_on(found: torch.device, wanted: torch.device) -> bool:
    """Return whether one device is the other; `cuda` is any of its devices."""
    return found.type == wanted.type and wanted.index in (None, found.index)
