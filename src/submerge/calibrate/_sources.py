"""What a user measures on: a model, adapters, and data for each, in the forms in which they may be given."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn

from submerge.calibrate._batches import EncodedItems
from submerge.calibrate._collect import ModelInputs
from submerge.calibrate._images import is_pillow
from submerge.calibrate._item import Item
from submerge.calibrate._items import check_one_kind, items_of, read_items
from submerge.calibrate._numbers import check_counts
from submerge.calibrate._processors import processor_for
from submerge.calibrate._spaced import spaced, spaced_rows
from submerge.calibrate._unknown_texts import warn_of_cut, warn_of_unknown
from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError, few, first_line
from submerge.recipe import DataSource
from submerge.store import Adapter, open_model

__all__ = [
    "HELD",
    "DataSets",
    "Inputs",
    "Specs",
    "holding",
    "is_batch",
    "load_backbone",
    "open_adapters",
    "read_data",
]

_MODEL_INPUTS = frozenset({"input_ids", "inputs_embeds", "pixel_values", "input_features"})
_ANSWERS = frozenset({"labels", "label", "label_ids"})
"""What collators put beside a model's inputs: of it an encoder-decoder would make its decoder's inputs."""
HELD = 1 << 31
"""Bytes of encoded inputs that are held where there are several passes, of all tasks together."""
Inputs: TypeAlias = Sequence[ModelInputs]
"""Batches of a model's inputs."""
Data: TypeAlias = DataSource | Iterable[str | Item | Mapping[str, Any]]
"""What `read_items` reads; or texts, items, rows by column, or batches of a model's inputs as they are."""
DataSets: TypeAlias = Mapping[str, Data] | Sequence[Data]
Specs: TypeAlias = Mapping[str, str | Path] | Sequence[str | Path]
"""Folders, files or Hub ids, perhaps by name."""


def load_backbone(folder: str | Path, *, head: str | None = None) -> nn.Module:
    """Return the model of a folder without a head, which no ratio depends on, as transformers loads it.

    `head` names a class of transformers with the head that the folder has, which is loaded instead.
    Raises `RequestError` where transformers is missing, or cannot load it.
    """
    transformers = required("transformers", "a model's inputs need")
    try:
        with warnings.catch_warnings(), quietly(transformers.logging):
            warnings.simplefilter("ignore")
            kind = getattr(transformers, head or "AutoModel")
            model: nn.Module = kind.from_pretrained(
                folder, dtype="auto", local_files_only=True, adapter_kwargs={"local_files_only": True}
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        what = f"transformers cannot load it ({first_line(error)})"
        raise RequestError(Problem(what, str(folder), "give a folder, or the model itself")) from error
    return model


def open_adapters(adapters: Specs) -> dict[str, Adapter]:
    """Return adapters by name: that of a mapping, or the last part of the path, where paths differ in it.

    Raises `RequestError` with all that is wrong with them.
    """
    _check_several(adapters, "adapters", "the paths of adapters")
    specs: Collection[Any] = adapters.values() if isinstance(adapters, Mapping) else adapters
    if wrong := [spec for spec in specs if not isinstance(spec, (str, Path))]:
        hint = "give a folder, a file or a Hub id for each"
        raise RequestError(Problem(f"{wrong[0]!r:.80} is no path of an adapter", "adapters", hint))
    if not isinstance(adapters, Mapping):
        short = [Path(spec).name for spec in adapters]
        if len(set(map(str, adapters))) < len(short):
            what = f"an adapter is there twice: {few(map(str, adapters))}"
            raise RequestError(Problem(what, "adapters", "name them by a mapping: {'a': …, 'b': …}"))
        distinct = len(set(short)) == len(short)
        adapters = dict(zip(short if distinct else map(str, adapters), adapters, strict=True))
    opened: dict[str, Adapter] = {}
    problems: list[Problem] = []
    for name, spec in adapters.items():
        try:
            adapter = open_model(str(spec), root=Path.cwd(), adapter=True)
        except RequestError as error:
            problems += error.problems
            continue
        assert isinstance(adapter, Adapter)
        opened[name] = adapter
    if not adapters:
        problems.append(Problem("there are no adapters", "adapters", "name one or several"))
    if problems:
        raise RequestError(problems)
    return opened


def read_data(
    data: DataSets,
    names: Sequence[str],
    model: Any,
    *,
    processor: Any,
    batch_size: int,
    max_length: int,
    samples: int | None = None,
) -> dict[str, Inputs]:
    """Return the batches of each data set, by name; a sequence has one for each of the adapters' `names`.

    With `samples` there are at most so many inputs of each, evenly spaced: of batches of tensors, too.

    Where half of the texts or more have no known token, a Python warning tells it. Raises `RequestError`
    where there are no inputs, or they cannot be read, for sizes that are none, or a model without values.
    """
    _check_values(model)
    check_counts({"batch_size": batch_size, "max_length": max_length, "samples": samples})
    _check_several(data, "data", "the data of each adapter")
    if not isinstance(data, Mapping):
        if len(data) != len(names):
            what = f"there are {len(data)} data sets for {len(names)} adapters"
            raise RequestError(Problem(what, "data", "give one for each, or a mapping from names"))
        data = dict(zip(names, data, strict=True))
    encoding = (batch_size, max_length)
    by_name = {
        name: _batches(name, source, model, processor, encoding, samples) for name, source in data.items()
    }
    if not by_name:
        raise RequestError(Problem("there are no data sets", "data", "give one or several"))
    return by_name


def _check_values(model: Any) -> None:
    """Raise `RequestError` for a model on torch's device `meta`, through which no data runs."""
    if isinstance(model, nn.Module) and any(parameter.is_meta for parameter in model.parameters()):
        what = f"{type(model).__name__} is on the device meta, and has no values"
        raise RequestError(Problem(what, "device", "use cpu or cuda, and a model whose weights are loaded"))


def _check_several(values: Any, name: str, of: str) -> None:
    """Raise `RequestError` for one path in the place of several."""
    if isinstance(values, (str, Path)) or not isinstance(values, Collection):
        what = f"{values!r:.80} is neither a list nor a mapping of {of}"
        raise RequestError(Problem(what, name, "put it into a list: […]"))


def _batches(
    name: str, source: Data, model: Any, processor: Any, encoding: tuple[int, int], samples: int | None
) -> Inputs:
    """Return one data set as batches: encoded, unless it is batches already."""
    where = f"data of {name}"
    if is_batch(source):
        raise RequestError(Problem("is one batch, and not several", where, "write a list of it: [batch]"))
    if isinstance(source, Mapping) and "path" not in source:
        hint = "give one split of a DatasetDict, rows as a list, or {path: …}"
        raise RequestError(Problem(f"is a mapping of {few(source, 5)}, and has no path", where, hint))
    if isinstance(source, (str, Path, Mapping)):
        items = read_items(source)
    else:
        values = _listed(source)
        if not values:
            raise RequestError(Problem("there are no inputs", where, "give a few dozen"))
        if all(map(is_batch, values)):
            values = list(map(_without_answers, values))
            return spaced_rows(values, samples) if samples is not None else values
        items = [_item(value, where, number) for number, value in enumerate(values, 1)]
        check_one_kind(items, where)
    if processor is None:
        processor = processor_for(items[0], Path(model.name_or_path))
    items = spaced(items, samples)
    warn_of_unknown(items, processor, where)
    warn_of_cut(items, processor, where, encoding[1])
    return EncodedItems(items, processor, *encoding)


def _listed(source: Any) -> list[Any]:
    """Return what is in a source; the rows of a table of pandas, polars or pyarrow, which goes by columns."""
    for rows, more in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if hasattr(source, "columns") and callable(found := getattr(source, rows, None)):
            return list(found(*more))
    return list(source) if isinstance(source, Iterable) else [source]


def _without_answers(batch: ModelInputs) -> ModelInputs:
    """Return a batch without the labels that a collator put there; the same where there are none."""
    if not _ANSWERS & batch.keys():
        return batch
    return {name: value for name, value in batch.items() if name not in _ANSWERS}


def holding(inputs: Inputs, room: int = HELD) -> Inputs:
    """Return inputs that hold so many bytes of what they encode, for several passes over them."""
    return inputs.holding(room) if isinstance(inputs, EncodedItems) else inputs


def is_batch(value: Any) -> bool:
    """Return whether something is a mapping that holds a model's inputs, and no row of data."""
    return isinstance(value, Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _item(value: Any, where: str, number: int) -> Item:
    if isinstance(value, Item):
        return value
    row = {"image": value} if is_pillow(value) or isinstance(value, Path) else value
    row = {"text": row} if isinstance(row, str) else row
    if isinstance(row, Mapping) and not is_batch(row) and not _MODEL_INPUTS.isdisjoint(row):
        what = f"holds {few(sorted(_MODEL_INPUTS.intersection(row)))}, and no tensors of torch"
        raise RequestError(Problem(what, f"{where}, item {number}", "make them: torch.as_tensor(…)"))
    if not isinstance(row, Mapping) or is_batch(row):
        what = "is neither a file, nor texts, items, rows, or batches of tensors by name"
        raise RequestError(Problem(what, where, "see the documentation of null_space_ratio"))
    return items_of([(f"{where}, item {number}", row)], Path())[0]
