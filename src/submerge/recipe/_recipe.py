"""A recipe that was checked, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from submerge.methods import Method
from submerge.recipe._coefficients import WEIGHT, Coefficients
from submerge.recipe._modalities import ModalityTokens
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._parameters import single_values
from submerge.recipe._problems import Positions
from submerge.recipe._projector_mix import ProjectorMix
from submerge.recipe._rules import Setting, written_settings
from submerge.recipe._sections import OutputForm, Rules
from submerge.recipe._stack import ModuleSlices, Slice
from submerge.recipe._task_folder import TaskFolder
from submerge.recipe._tokenizer_settings import TokenizerSettings
from submerge.store import Checkpoint

__all__ = ["Recipe"]


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
        documents: what the results of the file's other documents are called.
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
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    chat_template: str | None = None
    rules: Rules = field(default_factory=Rules)
    output: OutputForm = field(default_factory=OutputForm)
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
    documents: tuple[str, ...] = ()
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
            "parameters": _defaults(self) | written_settings(self.parameters),
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
            "output": self.output.written(),
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
        return {"models": [entry.written() for entry in self.models]}


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the defaults that a recipe can write: not those that must be given, nor None.

    Nor that of weights which come from elsewhere.
    """
    writable = (bool, int, float, str)
    options = [o for o in recipe.method.options if o.name != WEIGHT or not recipe.weights_from]
    return {option.name: option.default for option in options if isinstance(option.default, writable)}
