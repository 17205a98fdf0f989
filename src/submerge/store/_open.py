"""What a recipe names: a model, an adapter, or an adapter on a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError, few
from submerge.store._checkpoint import Checkpoint
from submerge.store._lora_file import lora_file
from submerge.store._mlx_adapter import mlx_adapter
from submerge.store._open_checkpoint import open_checkpoint
from submerge.store.adapter import ADAPTER_CONFIG, Adapter, is_adapter, open_adapter
from submerge.store.folder import HoldsAdapterError, HubId, is_readable, locate

__all__ = ["open_model", "split_spec"]


def split_spec(spec: str, root: Path) -> tuple[str, str | None]:
    """Return (model, adapter) of `model+adapter`, or (spec, None); an existing path is what it seems."""
    if "+" not in spec or (root / spec).exists():
        return spec, None
    model, _, adapter = spec.partition("+")
    return model, adapter


def open_model(
    spec: str, *, root: Path, allow_pickle: bool = False, download: bool = True, adapter: bool = False
) -> Checkpoint | Adapter:
    """Return the checkpoint or the adapter, whichever it is, that a spec without `+` names.

    An adapter may be a folder that PEFT or MLX-LM saved, the file in it, or a LoRA file of diffusers or
    kohya's scripts. With `adapter` it must be one. Raises `RequestError` with all that is wrong with the
    files.
    """
    place = locate(spec, root)
    how: dict[str, Any] = {"allow_pickle": allow_pickle, "download": download}
    folder = _peft_folder(place) if isinstance(place, Path) else None
    if folder is not None:
        return replace(open_adapter(str(folder), root=root, **how), label=spec)
    if adapter and isinstance(place, HubId):
        try:
            return open_adapter(spec, root=root, **how)
        except RequestError as error:
            not_peft = error
    try:
        checkpoint = open_checkpoint(spec, root=root, **how)
        lora = mlx_adapter(checkpoint) or lora_file(checkpoint)
    except HoldsAdapterError:
        return open_adapter(spec, root=root, **how)
    if lora is None and isinstance(place, Path):
        _check_form(place, checkpoint)
    if lora is None and adapter:
        if isinstance(place, HubId):
            raise not_peft
        hint = "name the folder in which PEFT saved the adapter, or a LoRA file of diffusers or kohya"
        raise RequestError(Problem("holds no adapter, but a whole model", spec, hint))
    return lora or checkpoint


def _check_form(place: Path, checkpoint: Checkpoint) -> None:
    """Raise `RequestError` for an adapter of an unknown form, whose parts must not be merged one by one."""
    if (place / ADAPTER_CONFIG).is_file() and checkpoint.config is None:
        what = f"holds an {ADAPTER_CONFIG}, no config.json, and nothing of LoRA ({few(checkpoint.tensors)})"
        hint = (
            "merge the adapter into its model with the program that made it, and give that model; of a whole "
            f"model remove {ADAPTER_CONFIG}"
        )
        raise RequestError(Problem(what, str(place), hint))


def _peft_folder(place: Path) -> Path | None:
    """Return the folder of an adapter that PEFT saved, named by itself or by its file."""
    if place.is_file():
        named = place.name.startswith("adapter_model.") and (place.parent / ADAPTER_CONFIG).is_file()
        return place.parent if named else None
    return place if is_readable(place) and is_adapter(place) else None
