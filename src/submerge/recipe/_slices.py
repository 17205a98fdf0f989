"""The sections `slices` and `modules`: which layers of which models the output's layers are merged from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submerge.errors import few
from submerge.methods import REQUIRED, Method
from submerge.recipe._entries import read_entry
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._parameters import parameter_names, read_parameters
from submerge.recipe._participants import check_participants, find_participants
from submerge.recipe._problems import KeyPath, Report, show
from submerge.recipe._rules import Setting
from submerge.recipe._schema import ABSENT_KEYS, ENTRY_KEYS
from submerge.recipe._sections import OutputForm
from submerge.recipe._specs import read_spec
from submerge.recipe._stack import LayerSource, ModuleSlices, Slice

__all__ = ["SliceReader", "has_slices"]

SECTIONS = ("models", "slices", "modules")
"""The sections that say what is merged: a recipe has one of them, and a module one of the first two."""
SLICE_KEYS = ("sources", "base_model", "parameters")
SOURCE_KEYS = ("model", "lora", "layer_range", "parameters")
WHOLE_MODELS = ("coefficients", "moments", "projectors", "prototypes", "modality_tokens")
"""Sections that say something of models whose layers are not moved."""


def has_slices(data: Mapping[str, Any]) -> bool:
    """Return whether a recipe stacks layers: by `slices`, or module by module."""
    return bool(data.get("slices") or data.get("modules"))


@dataclass(frozen=True)
class SliceReader:
    """Reads a recipe's slices, and notes what is wrong with them.

    `top` are the recipe's own parameters, and `base` is its base.
    """

    method: Method | None
    methods: Mapping[str, Method]
    top: Mapping[str, Setting]
    base: str | None
    report: Report

    def modules(self, data: dict[str, Any], form: OutputForm) -> tuple[ModuleSlices, ...]:
        """Return the modules with their slices: one without a name where there are slices alone."""
        self._check_sections(data, ())
        self._check_fit(data, form)
        if data.get("slices"):
            slices = self._slices(data["slices"], ("slices",), self.top)
            return (ModuleSlices("", slices, {}, self.report.where(("slices",))),)
        raw = data["modules"]
        if not isinstance(raw, dict):
            self.report.add(f"'modules' is a mapping, not {show(raw)}", ("modules",), "write 'name: …' lines")
            return ()
        return tuple(self._module(str(name), of_module) for name, of_module in raw.items())

    def _check_sections(self, raw: Mapping[str, Any], path: KeyPath) -> None:
        """Note that there are several of the sections that say what is merged."""
        given = [key for key in SECTIONS if raw.get(key)]
        for key in given[1:]:
            what = f"both '{given[0]}' and '{key}' say what is merged"
            self.report.add(what, (*path, key), "keep one of them")

    def _check_fit(self, data: Mapping[str, Any], form: OutputForm) -> None:
        """Note sections, methods and outputs that go with whole models alone."""
        hint = "list the models under 'models', and stack the layers of the result"
        for key in WHOLE_MODELS:
            if data.get(key) is not None:
                self.report.add(f"'{key}' does not go with layers that are stacked", (key,), hint)
        if form.form == "adapter":
            what = "layers are stacked into a checkpoint, and an adapter is asked for"
            as_adapter = "an adapter has the layers of its base: list the models under 'models'"
            self.report.add(what, ("output",), as_adapter)
        method = self.method
        if method is not None and (method.gate or method.calibration or method.moments):
            what = f"{method.name} goes by inputs of whole models, and layers are stacked here"
            self.report.add(what, ("merge_method",), hint)

    def _module(self, name: str, raw: Any) -> ModuleSlices:
        """Return one of `modules`: with slices, or with models of which all layers are taken."""
        path: KeyPath = ("modules", name)
        if not isinstance(raw, dict):
            hint = "write 'slices: …' or 'models: …'"
            self.report.add(f"a module is a mapping, not {show(raw)}", path, hint)
            return ModuleSlices(name, (), {}, self.report.where(path))
        self._check_sections(raw, path)
        self._check_keys(raw, ("slices", "models", "parameters"), path)
        own = self._parameters(raw, path)
        outer = _over(own, self.top)
        slices: tuple[Slice, ...] = ()
        if raw.get("slices"):
            slices = self._slices(raw["slices"], (*path, "slices"), outer)
        elif isinstance(raw.get("models"), list) and raw["models"]:
            slices = (self._slice({"sources": raw["models"]}, path, outer, "models"),)
        else:
            self.report.add(f"the module {show(name)} lists nothing", path, "add 'slices: …' or 'models: …'")
        return ModuleSlices(name, slices, own, self.report.where(path))

    def _slices(self, raw: Any, path: KeyPath, outer: Mapping[str, Setting]) -> tuple[Slice, ...]:
        if not isinstance(raw, list):
            hint = "write '- sources: …', once for each run of layers"
            self.report.add(f"'slices' is a list, not {show(raw)}", path, hint)
            return ()
        return tuple(self._slice(item, (*path, i), outer, "sources") for i, item in enumerate(raw))

    def _slice(self, raw: Any, path: KeyPath, outer: Mapping[str, Setting], key: str) -> Slice:
        """Return one slice; `key` is what the recipe calls its sources: `models` are taken whole."""
        sources: tuple[LayerSource, ...] = ()
        own: dict[str, Setting] = {}
        base = self.base
        if isinstance(raw, dict):
            self._check_keys(raw, SLICE_KEYS, path)
            own = self._parameters(raw, path)
            if raw.get("base_model") is not None:
                base = read_spec(raw["base_model"], (*path, "base_model"), self.report)
            sources = self._sources(raw.get("sources"), (*path, key), with_layers=key == "sources")
        else:
            self.report.add(f"a slice is a mapping, not {show(raw)}", path, "write '- sources: …'")
        parameters = _over(own, outer)
        participants = self._participants(sources, base, parameters, (*path, key))
        return Slice(sources, participants, base, parameters, own, self.report.where(path))

    def _parameters(self, raw: Mapping[str, Any], path: KeyPath) -> dict[str, Setting]:
        """Return the parameters of a slice or of a module."""
        path = (*path, "parameters")
        settings = read_parameters(raw.get("parameters"), path, self.method, self.methods, self.report)
        for name in settings:
            option = self.method.option(name) if self.method else None
            if option is not None and option.single:
                hint = "move it to the recipe's top-level 'parameters'"
                self.report.add(f"'{name}' is one value for all tensors", (*path, name), hint)
        return settings

    def _check_keys(self, raw: Mapping[str, Any], valid: tuple[str, ...], path: KeyPath) -> None:
        """Note keys that are unknown here, besides those of whole models, which have no place in a slice."""
        misplaced = [key for key in raw if key in ENTRY_KEYS and key not in valid]
        for key in misplaced:
            self.report.add_ignored(f"'{key}' has no place in a slice", (*path, key), "remove the key")
        others = {key: value for key, value in raw.items() if key not in misplaced}
        names = parameter_names(self.method, self.methods)
        self.report.check_keys(others, valid, path, absent=ABSENT_KEYS, parameters=names)

    def _sources(self, raw: Any, path: KeyPath, *, with_layers: bool) -> tuple[LayerSource, ...]:
        """Return the sources of one slice, as far as they could be read, which must be of equal length."""
        if not isinstance(raw, list) or not raw:
            what = "a slice without sources" if not raw else f"'sources' is a list, not {show(raw)}"
            self.report.add(what, path, "write '- model: …' with its 'layer_range'")
            return ()
        read = [self._source(item, (*path, i), with_layers) for i, item in enumerate(raw)]
        sources = tuple(source for source in read if source is not None)
        counts = [source.stop - source.start for source in sources if source.stop is not None]
        if len(set(counts)) > 1:
            numbers = ", ".join(map(str, counts))
            hint = "give each source as many layers as the others"
            self.report.add(f"the sources of a slice have unlike numbers of layers: {numbers}", path, hint)
        names = [same_model(source.entry.model) for source in sources]
        if twice := list(dict.fromkeys(name for name in names if names.count(name) > 1)):
            hint = "write several slices, or merge two copies of the model"
            self.report.add(f"a slice names {few(twice)} more than once", path, hint)
        return sources

    def _source(self, raw: Any, path: KeyPath, with_layers: bool) -> LayerSource | None:
        if not isinstance(raw, dict):
            hint = f"write '- model: {raw}'" if isinstance(raw, str) else "write '- model: …'"
            self.report.add(f"a source is a mapping, not {show(raw)}", path, hint)
            return None
        valid = SOURCE_KEYS if with_layers else tuple(key for key in SOURCE_KEYS if key != "layer_range")
        self._check_keys(raw, valid, path)
        given = {key: raw[key] for key in ("model", "lora", "parameters") if key in raw}
        entry = read_entry(given, path, self.method, self.methods, self.report)
        if not with_layers:
            return None if entry is None else LayerSource(entry)
        layers = self._layer_range(raw.get("layer_range"), path)
        return None if entry is None or layers is None else LayerSource(entry, *layers)

    def _layer_range(self, raw: Any, path: KeyPath) -> tuple[int, int] | None:
        """Return the first layer of a source, and the one behind its last."""
        if raw is None:
            self.report.add(
                "this source names no layers", path, "add 'layer_range: [first, behind the last]'"
            )
            return None
        path = (*path, "layer_range")
        numbers = [n for n in map(_whole, raw) if n is not None] if isinstance(raw, list) else []
        if len(numbers) != 2 or len(raw) != 2:
            what = f"layer_range is a list of two whole numbers, not {show(raw)}"
            self.report.add(what, path, "write [0, 16] for the first 16 layers")
            return None
        start, stop = numbers
        if (start, stop) == (0, 0) and path[0] == "modules":  # of a module without layers, as a projector
            return 0, 0
        if start < 0 or stop <= start:
            why = "counts from 0 on" if start < 0 or stop < 0 else "has no layer"
            hint = "write [0, 16] for layers 0 to 15; a range does not run backwards"
            note = self.report.add if min(start, stop) < 0 else self.report.add_ignored
            note(f"layer_range [{start}, {stop}] {why}", path, hint)
            return (start, start) if start >= 0 else None  # the source still has what is beside the layers
        return start, stop

    def _participants(
        self,
        sources: tuple[LayerSource, ...],
        base: str | None,
        parameters: Mapping[str, Setting],
        path: KeyPath,
    ) -> tuple[ModelEntry, ...]:
        """Return the models that the method sees, and note what is missing of them or of the base."""
        if self.method is None or not sources or self.report.has(path):
            return ()
        entries = [source.entry for source in sources]
        participants = find_participants(self.method, entries, base, parameters, self.report)
        check_participants(self.method, participants, entries, parameters, self.report, path=path)
        self._check_shared(self.method, parameters, path)
        if base is None and self.method.needs_base:
            hint = "add 'base_model: …', to the recipe or to the slice"
            self.report.add(f"{self.method.name} needs a base_model", path, hint)
        listed = base is None or same_model(base) in {same_model(entry.model) for entry in entries}
        if not listed and len({(source.start, source.stop) for source in sources}) > 1:
            what = f"the base {base} is not among the sources, and these have different layers"
            self.report.add(what, path, "list the base, too, with its 'layer_range'")
        return participants

    def _check_shared(self, method: Method, parameters: Mapping[str, Setting], path: KeyPath) -> None:
        """Note the options of all models that must be given and that no place gives for this slice."""
        if self.report.has(("parameters",)) or self.report.has((*path[:-1], "parameters")):
            return
        for option in method.options:
            if option.scope == "shared" and option.default is REQUIRED and option.name not in parameters:
                hint = "add it to the slice's 'parameters', or to those of the recipe"
                self.report.add(f"{method.name} needs the parameter '{option.name}'", path, hint)


def _whole(raw: Any) -> int | None:
    """Return a whole number, also from one in quotes or one with a point; None for anything else."""
    text = str(raw) if isinstance(raw, (str, int)) and not isinstance(raw, bool) else ""
    if isinstance(raw, float) and raw.is_integer():
        text = str(int(raw))
    return int(text) if len(text) < 10 and text.removeprefix("-").isdecimal() else None


def _over(own: Mapping[str, Setting], outer: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return parameters of one place with those of the place around it behind them."""
    return {**outer, **{name: setting.before(outer.get(name)) for name, setting in own.items()}}
