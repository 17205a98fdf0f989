"""A recipe that was checked, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias

from submerge.methods import Method
from submerge.recipe._coefficients import WEIGHT, Coefficients
from submerge.recipe._data_spec import DataSource
from submerge.recipe._new_tokens import NewTokens
from submerge.recipe._problems import Positions
from submerge.recipe._rules import Setting
from submerge.store import Checkpoint, ProjectorSettings

__all__ = [
    "LayerSource",
    "ModalityTokens",
    "ModelEntry",
    "ModuleSlices",
    "OutputForm",
    "ProjectorMix",
    "Recipe",
    "Rules",
    "Slice",
    "TaskFolder",
    "TokenRow",
    "TokenizerSettings",
    "projector_options",
    "same_model",
    "single_values",
]

ModalityTokens: TypeAlias = Literal["own", "merged"]
"""What tokens of a modality run with: their specialist's own parameters, or the merged language model's."""


def same_model(spec: str) -> str:
    """Return what two specs of one model have in common: the spec without slashes at its end."""
    parts = []
    for part in spec.split("+"):
        path, at, revision = part.partition("@")
        parts.append((path.rstrip("/") or path) + at + revision)
    return "+".join(parts)


@dataclass(frozen=True)
class ModelEntry:
    """One model as the recipe lists it: its spec and parameters.

    A spec is `path` or `org/name@revision`, of a model or of an adapter, or `model+adapter`. `where` is
    its line, such as `recipe.yaml:7`. Where the method has a gate, `name` is what the task is called at run
    time, and `head` names by patterns what of the model is its own. Where weights come from a file, `name`
    is what the model is called there; `data` are the inputs from which they are learned.

    A specialist of a composed model has a `modality`. Where text and the modality's tokens were trained with
    adapters of their own, `language_lora` (which `model` has behind its `+`) and `modality_lora` name them.
    `placeholder` is how a prompt marks an input of the modality. Where projectors are mixed,
    `share_projector` names another task whose projector this one has.
    """

    model: str
    parameters: Mapping[str, Setting]
    where: str
    name: str = ""
    head: tuple[str, ...] = ()
    data: DataSource | None = None
    modality: str = ""
    language_lora: str = ""
    modality_lora: str = ""
    placeholder: str = ""
    share_projector: str = ""

    @property
    def decoupled(self) -> bool:
        """Whether text and the modality's tokens have adapters of their own."""
        return bool(self.language_lora or self.modality_lora)

    @property
    def adapter_name(self) -> str:
        """What coefficients call the model: its `name`, else the last part of its path, or its adapter's."""
        last = self.model.rpartition("+")[2]
        return self.name or PurePath(last.partition("@")[0]).name or last


@dataclass(frozen=True)
class LayerSource:
    """Layers `start … stop − 1` of one model; all of its layers where `stop` is None."""

    entry: ModelEntry
    start: int = 0
    stop: int | None = None

    def written(self) -> dict[str, Any]:
        """Return the source as a recipe writes it."""
        layers = {} if self.stop is None else {"layer_range": [self.start, self.stop]}
        return {"model": self.entry.model, **layers, "parameters": _written(self.entry.parameters)}


@dataclass(frozen=True, eq=False)
class Slice:
    """A run of the output's layers, each merged from one layer of each source.

    `participants` are the entries that the method sees, and `base` is the base of these layers. `parameters`
    have those of the module and of the recipe behind them; `own` are those of the slice alone. `where` is the
    slice's line.
    """

    sources: tuple[LayerSource, ...]
    participants: tuple[ModelEntry, ...]
    base: str | None
    parameters: Mapping[str, Setting]
    own: Mapping[str, Setting]
    where: str

    def written(self, base: str | None) -> dict[str, Any]:
        """Return the slice as it is written in a recipe with this base."""
        parts = {
            "sources": [source.written() for source in self.sources],
            "base_model": self.base if self.base != base else None,
            "parameters": _written(self.own),
        }
        return {key: value for key, value in parts.items() if value}


@dataclass(frozen=True, eq=False)
class ModuleSlices:
    """The slices of one module; its `name` is empty where a recipe has `slices` and no `modules`.

    `own` are the module's parameters, and `where` is its line.
    """

    name: str
    slices: tuple[Slice, ...]
    own: Mapping[str, Setting]
    where: str

    def written(self, base: str | None) -> dict[str, Any]:
        """Return the module as it is written in a recipe with this base."""
        first = self.slices[0]
        if any(source.stop is None for source in first.sources):
            parts: dict[str, Any] = {"models": [source.written() for source in first.sources]}
        else:
            parts = {"slices": [piece.written(base) for piece in self.slices]}
        return {**parts, **({"parameters": _written(self.own)} if self.own else {})}


@dataclass(frozen=True)
class Rules:
    """What is done where the models' tensors differ; Submerge's own section `rules` of a recipe.

    `missing`: a tensor that a model lacks is refused, or read from the base. `shape`: likewise where
    the shapes differ. `vocabulary`: models whose tokens differ are refused, or merged row by row as
    if they did not.
    """

    missing: Literal["refuse", "base"] = "refuse"
    shape: Literal["refuse", "base"] = "refuse"
    vocabulary: Literal["refuse", "by-position"] = "refuse"


@dataclass(frozen=True)
class TokenRow:
    """Where a model has the row of a token from that it lacks; with `force`, that it has, too.

    `kind` says what it is: `zero`, the row of this token in `model`, or that of another token of `model`
    (`model_token`), which `token` or `token_id` names. What follows from the models that have the token is
    the `default`. `where` is its line.
    """

    kind: Literal["default", "zero", "model", "model_token"] = "default"
    model: str = ""
    token: str | None = None
    token_id: int | None = None
    force: bool = False
    where: str = ""

    def written(self) -> dict[str, Any]:
        """Return the mapping that a recipe has."""
        token: dict[str, Any] = (
            {"token": self.token} if self.token_id is None else {"token_id": self.token_id}
        )
        sources: dict[str, Any] = {
            "zero": {"kind": "zero"},
            "model": self.model,
            "model_token": {"kind": "model_token", "model": self.model, **token},
        }
        source = {"source": sources[self.kind]} if self.kind in sources else {}
        return source | ({"force": True} if self.force else {})


@dataclass(frozen=True)
class TokenizerSettings:
    """Whose tokens the output has: `source` is None, `base`, `union` or the spec of a model.

    `tokens` are the rules for single tokens, by their texts; a tokenizer that lacks one gets it. The tables
    have a number of rows that is a multiple of `pad_to_multiple_of`. With `new_tokens` the source is a donor,
    whose tokenizer the models get in the place of their own. `where` is the source's line.
    """

    source: str | None = None
    tokens: Mapping[str, TokenRow] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    new_tokens: NewTokens | None = None
    where: str = ""

    @property
    def changes_tables(self) -> bool:
        """Whether tables change though all models have one vocabulary."""
        return bool(self.tokens) or self.pad_to_multiple_of is not None or self.new_tokens is not None

    def written(self) -> dict[str, Any]:
        """Return the keys that a recipe has."""
        if not self.changes_tables:
            return {"tokenizer_source": self.source}
        tokens = {text: row.written() for text, row in self.tokens.items()}
        section: dict[str, Any] = {"source": self.source, "tokens": tokens or None}
        section["pad_to_multiple_of"] = self.pad_to_multiple_of
        section["new_tokens"] = self.new_tokens and self.new_tokens.written()
        return {"tokenizer": {key: value for key, value in section.items() if value is not None}}


@dataclass(frozen=True)
class OutputForm:
    """What comes out: an ordinary checkpoint, or a LoRA adapter; the section `output` of a recipe.

    `rank` is the most that the adapter may have; None keeps all that the merged updates hold, up to the
    sum of the inputs' ranks. `energy` in (0, 1] asks for the smallest rank that keeps this share of each
    update's squared norm.
    """

    form: Literal["checkpoint", "adapter"] = "checkpoint"
    rank: int | None = None
    energy: float | None = None


@dataclass(frozen=True)
class TaskFolder:
    """A folder with a file for each task: where it is, and how the recipe names it, if it does."""

    path: Path
    named: str = ""

    def file(self, task: str) -> Path:
        """Return the place of a task's file."""
        return self.path / f"{task}.safetensors"


def projector_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `store.ProjectorSettings` but for the module, which no recipe says.

    Score, key and temperature are None where they are not given: they depend on the tasks' images.
    """
    settings = asdict(ProjectorSettings.from_mapping({**given, "module": "projector"}))
    left_open = {name: given.get(name) for name in ("temperature", "key", "score")}
    return {name: value for name, value in (settings | left_open).items() if name != "module"}


@dataclass(frozen=True)
class ProjectorMix:
    """How the outputs of the tasks' projectors are mixed (CPM); the mapping `projectors` of a recipe.

    `options` are the fields of `store.ProjectorSettings` but for the module, and `prototypes` is the
    most that a task has.
    """

    options: Mapping[str, Any] = field(default_factory=lambda: projector_options({}))
    prototypes: int = 1

    def settings(
        self, module: str, score: str = "prototypes", key: str = ProjectorSettings.key
    ) -> ProjectorSettings:
        """Return the settings of the gate for the projector at this path.

        `score` and `key` are what they are where the recipe says nothing of them.
        """
        chosen = {"score": self.options["score"] or score, "key": self.options["key"] or key}
        return ProjectorSettings(module, **{**self.options, **chosen})

    def written(self) -> dict[str, Any]:
        """Return the mapping that a recipe has."""
        given = {name: value for name, value in self.options.items() if value is not None}
        return {"mix": "prototypes", **given, "prototypes": self.prototypes}


@dataclass(frozen=True, eq=False)
class Recipe:
    """A recipe that was checked in full; compare two by `resolved()`.

    Attributes:
        method: the merge method.
        models: the entries as written.
        base: the spec of the base, or None.
        participants: the entries that the method sees, in its order: without the base where the method
            merges updates, with the base first where the method takes it as one more model.
        parameters: the top-level ones.
        coefficients: weights from a file, or learned; None where the parameters have them.
        moments: the folder of the second moments of each model's inputs; None where there is none.
        projectors: how the tasks' projectors are mixed; `merged` where they become one, and None where the
            recipe says neither.
        prototypes: the folder of the prototypes by which they are mixed; None where there is none.
        calibrates: whether the weights are learned from the entries' data before the merge.
        modality_tokens: of a composed model, what tokens of a modality run with.
        stack: the modules whose layers are stacked from layers of the models; empty where models are merged
            layer by layer. `models` are then all that stand there, and `participants` the same.
        dtype: number format of the result, such as `bfloat16`; the base's where it is None.
        out_dtype: the same, in mergekit's second spelling.
        tokenizer: whose tokens the output has, and what rows they get.
        chat_template: None, `"auto"`, the name of a template, or its text.
        rules: what is done where the models' tensors differ.
        output: what comes out: a checkpoint or an adapter.
        seed: for methods that draw at random.
        path: the recipe's file, if it was one.
        text: its YAML.
        name: what the result is called, by which other documents of a file can name it as a model.
        parts: results of other documents by their names: the folder of each, or what is planned of it.
        warnings: what is ignored, as by mergekit.
        positions: the line of each key.

    Examples:
        >>> import submerge
        >>> recipe = submerge.load_recipe("recipe.yaml")
        >>> recipe.resolved()["models"][0]
        {'model': 'chat', 'parameters': {'weight': 0.5}}
        >>> submerge.load_recipe(recipe.resolved()).resolved() == recipe.resolved()
        True
    """

    method: Method
    models: tuple[ModelEntry, ...]
    base: str | None
    participants: tuple[ModelEntry, ...]
    parameters: Mapping[str, Setting]
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerSettings = TokenizerSettings()
    chat_template: str | None = None
    rules: Rules = Rules()
    output: OutputForm = OutputForm()
    seed: int = 0
    path: Path | None = None
    text: str = ""
    positions: Positions = field(default_factory=dict, repr=False)
    coefficients: Coefficients | None = None
    calibrates: bool = False
    moments: TaskFolder | None = None
    projectors: ProjectorMix | Literal["merged"] | None = None
    prototypes: TaskFolder | None = None
    modality_tokens: ModalityTokens = "own"
    stack: tuple[ModuleSlices, ...] = ()
    name: str = ""
    parts: Mapping[str, Path | Checkpoint] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    def of_slice(self, piece: Slice) -> Recipe:
        """Return the recipe by which the layers of a slice are merged."""
        return replace(
            self,
            models=tuple(source.entry for source in piece.sources),
            base=piece.base,
            participants=piece.participants,
            parameters=piece.parameters,
            stack=(),
        )

    @property
    def tokenizer_source(self) -> str | None:
        """None, `base`, `union` or the spec of a model."""
        return self.tokenizer.source

    @property
    def gathers_rows(self) -> bool:
        """Whether rows of tables are merged by the tokens that they are of, and not by their place."""
        return self.tokenizer_source is not None and self.rules.vocabulary == "refuse"

    @property
    def composed(self) -> bool:
        """Whether a composed model is asked for: one language model with a specialist for each modality."""
        return any(entry.modality for entry in self.models)

    @property
    def collects_moments(self) -> bool:
        """Whether second moments are collected from the entries' data before the merge."""
        return self.statistics != "identity" and self.moments is None

    @property
    def statistics(self) -> str:
        """The kind of second moments that the method merges by; `identity` where it needs none."""
        if not self.method.moments:
            return "identity"
        return str(self.single_option("statistics"))

    @property
    def moment_files(self) -> tuple[Path, ...]:
        """The files of second moments, one for each participant; none where the recipe has no folder."""
        if self.moments is None:
            return ()
        return tuple(self.moments.file(entry.adapter_name) for entry in self.participants)

    @property
    def tasks(self) -> tuple[ModelEntry, ...]:
        """The entries of models other than the base: those with a projector of their own."""
        base = None if self.base is None else same_model(self.base)
        return tuple(entry for entry in self.models if same_model(entry.model) != base)

    @property
    def makes_prototypes(self) -> bool:
        """Whether prototypes are made of the entries' data before the merge."""
        return isinstance(self.projectors, ProjectorMix) and self.prototypes is None

    @property
    def prototype_files(self) -> tuple[Path, ...]:
        """The files of prototypes, one for each task; none where the recipe has no folder."""
        return tuple(self.prototypes.file(e.adapter_name) for e in self.tasks) if self.prototypes else ()

    def single_option(self, name: str) -> Any:
        """Return the value of an option that has one for all tensors, or its default."""
        option = self.method.option(name)
        assert option is not None
        return self.single_options.get(name, option.default)

    @property
    def root(self) -> Path:
        """The folder that relative model paths start from: the current one, as in mergekit."""
        return Path.cwd()

    @property
    def single_options(self) -> dict[str, Any]:
        """The options that the recipe gives once for all models and all tensors."""
        return single_values(self.method, self.parameters)

    @property
    def weights_from(self) -> str:
        """Where weights come from that the parameters do not have; empty where they do."""
        if self.coefficients is not None:
            return self.coefficients.path or "calibration"
        if not self.calibrates:
            return ""
        steps = self.calibration_settings()["steps"]
        return f"learned before the merge, from data of {len(self.participants)} tasks in {steps} steps"

    def calibration_settings(self, *, vision: bool = False) -> dict[str, Any]:
        """Return the arguments of `learn_coefficients`, for a base that is a model of images alone or not."""
        assert self.method.calibration is not None
        return self.method.calibration.settings(self.single_options, vision)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain data that JSON holds and `load_recipe` reads back.

        Numbers, dtypes and model specs are in their normal form, and the method's defaults are
        written out.
        """
        sections: dict[str, Any] = {
            "merge_method": self.method.name,
            "base_model": self.base,
            **self.layout(),
            "parameters": _defaults(self) | _written(self.parameters),
            "coefficients": (self.coefficients.path or None) if self.coefficients else None,
            "moments": (self.moments.named or None) if self.moments else None,
            "projectors": p.written() if isinstance(p := self.projectors, ProjectorMix) else p,
            "prototypes": (self.prototypes.named or None) if self.prototypes else None,
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            **self.tokenizer.written(),
            "chat_template": self.chat_template,
            "modality_tokens": self.modality_tokens if self.composed else None,
            "rules": vars(self.rules) | {},
            "output": _form(self.output),
            "seed": self.seed,
        }
        return {key: value for key, value in sections.items() if value is not None}

    def layout(self) -> dict[str, Any]:
        """Return what is merged, as a recipe writes it: `models`, `slices` or `modules`."""
        modules = {module.name: module.written(self.base) for module in self.stack}
        if "" in modules:
            return {"slices": modules[""]["slices"]}
        if modules:
            return {"modules": modules}
        return {
            "models": [
                {"model": _spec(entry), "parameters": _written(entry.parameters)} | _about(entry)
                for entry in self.models
            ]
        }


def single_values(method: Method, parameters: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the options that are given once for all models and all tensors, as plain values."""
    single = [o.name for o in method.options if o.single and o.scope == "shared"]
    return {name: parameters[name].rules[0].value for name in single if name in parameters}


def _spec(entry: ModelEntry) -> str:
    """Return the model of an entry as it is written beside its `language_lora`, if it has one."""
    return entry.model.removesuffix(f"+{entry.language_lora}") if entry.language_lora else entry.model


def _about(entry: ModelEntry) -> dict[str, Any]:
    """Return what an entry says of its task, its data and its modality, if anything."""
    own = ("modality", "language_lora", "modality_lora", "placeholder", "share_projector")
    keys = {"name": entry.name, "head": list(entry.head), "data": entry.data}
    keys |= {key: getattr(entry, key) for key in own}
    return {key: value for key, value in keys.items() if value}


def _form(output: OutputForm) -> dict[str, Any] | None:
    """Return the section `output`, or None where it would only say the default."""
    if output == OutputForm():
        return None
    limits = {"rank": output.rank, "energy": output.energy}
    return {"as": output.form} | {key: value for key, value in limits.items() if value is not None}


def _written(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    return {name: setting.written() for name, setting in parameters.items()}


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the defaults that a recipe can write: not those that must be given, nor None.

    Nor that of weights which come from elsewhere.
    """
    writable = (bool, int, float, str)
    options = [o for o in recipe.method.options if o.name != WEIGHT or not recipe.weights_from]
    return {option.name: option.default for option in options if isinstance(option.default, writable)}
