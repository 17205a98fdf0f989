"""A model with the tensors of another: the same parameters, whatever its files call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from submerge.errors import Problem, RequestError, few
from submerge.names import (
    Block,
    Loading,
    Shape,
    View,
    assembled,
    correspond,
    empty_model,
    is_buffer,
    is_composite,
    layer_of,
    loading,
    model_types,
    related,
)
from submerge.store._checkpoint import Checkpoint
from submerge.store._class_rows import class_views
from submerge.store.adapter import Adapter
from submerge.store.format import TensorEntry

__all__ = ["Aligner", "Alignment"]

HEAD = "lm_head.weight"
_LABELS = ("id2label", "label2id")
NO_PARAMETER = "no parameter of the model"
OTHER_PART = "of a part that it lacks"
NO_MODULE = "of a module that its class lacks"


@dataclass(frozen=True)
class Alignment:
    """A model under the base's names.

    `lacks` are tensors of the base that it rightly has none for, with the reason; `refused` says why
    tensors that look alike were not taken for the same parameters, and `notes` what is to be said of rows of
    classes, which are in another order than in the model's file where they go `by_class`.
    """

    model: Checkpoint
    lacks: Mapping[str, str] = field(default_factory=dict)
    refused: Sequence[str] = ()
    notes: Sequence[str] = ()
    by_class: bool = False

    def of(self, model: Checkpoint) -> Alignment:
        """Return the alignment of the same model, after more of its tensors have the base's names."""
        return replace(
            self, model=model, lacks={n: w for n, w in self.lacks.items() if n not in model.tensors}
        )


@dataclass
class Aligner:
    """Gives models the names of one base."""

    base: Checkpoint

    def align(self, model: Checkpoint) -> Alignment:
        """Return the model with its tensors named and packed as the same parameters are in the base.

        Names and shapes decide (`correspond`), and for the other tensors what transformers makes of both
        files, if it is installed. Tensors that stand for nothing keep their own names. Classifiers of the
        same classes get the base's order of them. Raises `RequestError` where the model's adapter changes a
        tensor that the base packs otherwise.
        """
        aligned = self._by_names(model)
        if aligned.refused:
            return aligned
        views, note = class_views(aligned.model, self.base)
        if not views:
            return replace(aligned, notes=[note] if note else [])
        labels = {key: value for key, value in (self.base.config or {}).items() if key in _LABELS}
        named = replace(aligned.model, config={**(model.config or {}), **labels})
        return replace(aligned, model=_renamed(named, views), notes=[note], by_class=True)

    def _by_names(self, model: Checkpoint) -> Alignment:
        base = self.base
        if base.config is None and model.config is not None:  # a bare file: of the model's own kind
            return Aligner(replace(base, config=model.config))._by_names(model)
        floats = [name for name, entry in base.tensors.items() if entry.is_float]
        if why := self._unlike(model, floats):
            return Alignment(model, refused=[why])
        if all(name in model.tensors for name in floats):
            return Alignment(model)
        own = model.shapes
        by_name = correspond(own, self._shapes)
        views = {name: View.of(old, own[old]) for name, old in by_name.names.items()}
        missing = [name for name in floats if name not in views]
        ignored: frozenset[str] = frozenset()
        # what names alone cannot tell is how parameters are packed; to ask transformers takes a while, and a
        # head that is tied needs no answer
        if any(not _is_head(name) for name in missing):
            views |= self._by_loading(model, own, missing)
            missing = [name for name in missing if name not in views]
            ignored = self._loading.ignored
        lacks = {name: NO_PARAMETER for name in missing if name in ignored}
        lacks |= {name: OTHER_PART for name in self._other_parts(views, missing) if name not in lacks}
        lacks |= {name: NO_MODULE for name in self._without_module(model, missing) if name not in lacks}
        refused = by_name.refused if len(lacks) < len(missing) else []
        return Alignment(_renamed(model, views | self._own_head(own, views)), lacks, refused)

    def _own_head(self, own: Mapping[str, Shape], views: Mapping[str, View]) -> dict[str, View]:
        """Return a model's output head where the base stores none, which ties its embeddings to it.

        What stands for nothing in the base keeps its name, and by that of a multimodal model it would not be
        known that the head is the base's language model's: `language_model.lm_head.weight`.
        """
        used = {source for view in views.values() for source in view.sources}
        heads = [name for name in own if _is_head(name) and name not in used]
        if len(heads) != 1 or is_composite(self.base.config) or any(map(_is_head, self._shapes)):
            return {}
        return {HEAD: View.of(heads[0], own[heads[0]])}

    def _unlike(self, model: Checkpoint, floats: Sequence[str]) -> str:
        """Return why a model is of another architecture, whatever names they share; else an empty text.

        Another type alone is no reason, where the tensors are the base's: some models are relabelled.
        """
        own, base = model_types(model.config), model_types(self.base.config)
        if related(own, base):
            return ""
        why = f"its config names the type {own[0]}, that of {self.base.label} {base[0]}"
        if 2 * sum(name in model.tensors for name in floats) < len(floats):
            return why
        layers = {layer_of(name) for name in floats} - {None}
        new = [n for n in model.tensors if n not in self.base.tensors and layer_of(n) in layers]
        new = [name for name in new if not is_buffer(name)]
        return f"{why}, and its layers have {few(new)} besides" if new else ""

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return self.base.shapes

    @cached_property
    def _network(self) -> Any | None:
        return empty_model(self.base.config)

    @cached_property
    def _loading(self) -> Loading:
        """What transformers makes of the base's file."""
        return Loading() if self._network is None else loading(self._network, self._shapes)

    def _by_loading(
        self, model: Checkpoint, own: Mapping[str, Shape], missing: Sequence[str]
    ) -> dict[str, View]:
        """Return what tensors of the base are made of, by the parameters that both files are loaded into."""
        same_type = model_types(model.config)[:1] in ([], model_types(self.base.config)[:1])
        network = self._network if same_type else empty_model(model.config)
        if network is None or not self._loading.views:
            return {}
        # Both files are loaded into parameters, which today's classes name alike, however each file packs
        # them. So a tensor of the base is made of what the model's file holds of the same parameters.
        ours, theirs = self._loading.views, loading(network, own).views
        shapes = [{name: view.shape for name, view in views.items()} for views in (theirs, ours)]
        wanted = set(missing)
        assembled_views: dict[str, View | None] = {}
        parts: dict[str, list[tuple[Block, View]]] = {}
        for name, old in correspond(*shapes).names.items():
            alias = ours[name].alias
            if alias in wanted and theirs[old].alias:  # of whatever shape: the plan says what to do
                assembled_views[alias] = theirs[old]
            elif theirs[old].shape == ours[name].shape:
                for block in ours[name].blocks:
                    if block.source in wanted:
                        parts.setdefault(block.source, []).append((block, theirs[old]))
        assembled_views |= {name: assembled(self._shapes[name], blocks) for name, blocks in parts.items()}
        views = {name: view for name, view in assembled_views.items() if view is not None}
        # a view is read as one type, so that its parts must be of one
        return {n: v for n, v in views.items() if len({model.tensors[s].dtype for s in v.sources}) == 1}

    def _other_parts(self, views: Mapping[str, View], missing: Sequence[str]) -> list[str]:
        """Return which tensors are of towers that the model has none of, where the base has several."""
        stacks = {place[0] for name in views if (place := layer_of(name))}
        absent = {place[0] for name in missing if (place := layer_of(name))} - stacks
        if not stacks or not absent or not is_composite(self.base.config):
            return []
        known = {prefix for name in views for prefix in _parents(name)}
        towers = {next((p for p in (*_parents(s), s) if p not in known), s) for s in absent}
        inside = tuple(tower + "." for tower in towers)
        own = tuple(stack.rpartition(".")[0] + "." for stack in stacks)
        shapes = {self._shapes[name] for name in views if name in self._shapes}

        def elsewhere(name: str) -> bool:
            if _is_head(name) and self._shapes[name] in shapes:  # its embeddings are there
                return False
            return "." not in own and not name.startswith(own)

        return [name for name in missing if name.startswith(inside) or elsewhere(name)]

    def _without_module(self, model: Checkpoint, missing: Sequence[str]) -> list[str]:
        """Return which tensors beside the layers the model's class has no parameter for: a pooler, a head.

        A file without them is complete. transformers knows; nothing is returned where it is not installed.
        """
        beside = [name for name in missing if layer_of(name) is None]
        network = empty_model(model.config) if beside else None
        if network is None:
            return []
        own = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
        has = correspond(own, self._shapes).names  # of all tensors: the layers show which prefix is meant
        return [name for name in beside if name not in has]


def _renamed(model: Checkpoint, views: Mapping[str, View]) -> Checkpoint:
    """Return the model with the views as its tensors, and besides those that are in none of them."""
    if all(view.alias == name for name, view in views.items()):
        return model
    used = {source for view in views.values() for source in view.sources}
    others = {name: e.shape for name, e in model.tensors.items() if name not in used and name not in views}
    views = {**views, **{name: View.of(name, shape) for name, shape in others.items()}}
    return replace(
        model,
        tensors={name: _entry(name, view, model.tensors) for name, view in views.items()},
        views={name: view for name, view in views.items() if view.alias != name},
        stored=model,
        under=model.under and _renamed(model.under, _of_tensors(views, model.under)),
        adapter=model.adapter and _refitted(model.adapter, views, model.label),
    )


def _of_tensors(views: Mapping[str, View], model: Checkpoint) -> dict[str, View]:
    """Return those of the views that are made of this model's tensors."""
    return {name: view for name, view in views.items() if set(view.sources) <= model.tensors.keys()}


def _entry(name: str, view: View, stored: Mapping[str, TensorEntry]) -> TensorEntry:
    first = stored[view.sources[0]]
    if view.alias is not None:
        return first if first.name == name else replace(first, name=name)
    nbytes = first.nbytes // max(1, first.numel) * view.numel
    return TensorEntry(name, first.dtype, view.shape, None, 0, nbytes)


def _refitted(adapter: Adapter, views: Mapping[str, View], label: str) -> Adapter:
    """Return an adapter for the renamed tensors."""
    new = {view.alias: name for name, view in views.items() if view.alias is not None}
    if repacked := [name for name in adapter.parts if name not in new]:
        what = f"the adapter changes tensors that the base packs otherwise: {few(repacked)}"
        hint = "merge it into its model first: a recipe with merge_method: passthrough and this model alone"
        raise RequestError(Problem(what, label, hint))
    return replace(
        adapter,
        parts={new[name]: part for name, part in adapter.parts.items()},
        names={new.get(name, name): own for name, own in adapter.names.items()},
        replaced=frozenset(new.get(name, name) for name in adapter.replaced),
        folded={new.get(name, name): part for name, part in adapter.folded.items()},
    )


def _is_head(name: str) -> bool:
    """Return whether a tensor is a language model's output head, which may be tied."""
    return f".{name}".endswith(f".{HEAD}")


def _parents(name: str) -> list[str]:
    """Return the modules that a tensor is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:stop]) for stop in range(1, len(parts))]
