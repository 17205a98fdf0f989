"""The plan of a merge: everything that can be known before a weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from submerge.deprecated import warn_renamed
from submerge.engine.plan._mixture import MixturePlan, mixture_facts
from submerge.engine.plan._show import Fact, ModelRow, as_html, as_text
from submerge.engine.plan.composition import Composition, composition_facts
from submerge.engine.plan.inputs import Inputs, Settings, stated_licences
from submerge.engine.plan.projectors import ProjectorPlan, projector_facts
from submerge.engine.plan.stacks import StackPlan, stack_facts
from submerge.engine.plan.tensors import Budget, GatePlan, TensorPlan
from submerge.engine.plan.tokens import DonorRows, TokenPlan
from submerge.errors import few, size
from submerge.recipe import Recipe
from submerge.store import MANIFEST, MODALITIES, Checkpoint, GateRecord, Shard, TensorEntry, is_tokenizer_file

__all__ = ["MergePlan"]


@dataclass(frozen=True, repr=False, kw_only=True)
class MergePlan:
    """What a merge will read, compute and write; printed, it is a summary in a few lines.

    Attributes:
        recipe: what was asked for.
        settings: how it will be run.
        inputs: the models, and what part each takes.
        tensors: what happens to each tensor of the output, with the value of each option.
        shards: the files of weights that will be written.
        unused: for a model, the names of its tensors that no output reads.
        warnings: what deserves a look.
        budget: memory and workers.
        gate: what of a method is evaluated for each input, if it has a gate.
        composition: the specialists of a composed model.
        projectors: those whose outputs are mixed.
        tokens: where the tokenizer comes from; an adapter, or a merge in memory, has none.
        unties: whether the output's configuration must untie its embeddings.
        ties: embeddings that an adapter changes together with a head that the base ties to them, and the
            names of that which get their new values, too.
        by_class: whether rows of a model's head go by its classes, and not by their place.
        stack: the slices, where layers are stacked.
        mixture: of a mixture of experts, its architecture and its gates.
        virtual_reads: how often others read the result, where it is merged as it is read; 0 for a folder.

    Examples:
        >>> import submerge
        >>> plan = submerge.plan("recipe.yaml")
        >>> len(plan.tensors), plan.bytes_read, plan.bytes_written
        (39, 1577472, 398408)
        >>> plan.inputs.reference_model.label
        'base'
    """

    recipe: Recipe
    settings: Settings
    inputs: Inputs
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    unused: Mapping[int, tuple[str, ...]]
    warnings: tuple[str, ...]
    budget: Budget
    gate: GatePlan | None = None
    composition: Composition | None = None
    projectors: ProjectorPlan | None = None
    tokens: TokenPlan | None = None
    unties: bool = False
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_class: bool = False
    stack: StackPlan | None = None
    mixture: MixturePlan | None = None
    virtual_reads: int = 0

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The output's tensors by name, with their places in the shards."""
        return {name: entry for shard in self.shards for name, entry in shard.entries.items()}

    @cached_property
    def licences(self) -> Mapping[str, Mapping[str, str]]:
        """What the cards of the models say of their licences, by the models' names."""
        computed = self.mixture.gates if self.mixture else None
        return stated_licences([model for place, model in enumerate(self.models) if place != computed])

    def __repr__(self) -> str:
        return as_text(f"MergePlan: {self.recipe.method.name}", self._model_rows(), self._facts())

    def _repr_html_(self) -> str:
        method = self.recipe.method
        return as_html(method.title, method.equation, self._model_rows(), self._facts())

    def _model_rows(self) -> list[ModelRow]:
        return [
            ModelRow(
                name=model.label,
                role=self.role(position),
                tensors=str(len(model.tensors)),
                size=size(sum(entry.nbytes for entry in model.tensors.values())),
            )
            for position, model in enumerate(self.models)
            if self.mixture is None or position != self.mixture.gates  # which is none of the recipe's
        ]

    def _facts(self) -> list[Fact]:
        treatments = Counter(tensor.treatment for tensor in self.tensors)
        files = few([shard.file for shard in self.shards]) or "an adapter"
        facts = [
            ("tensors", ", ".join(f"{word}: {count}" for word, count in treatments.items())),
            ("reads", size(self.bytes_read)),
            ("writes", f"{size(self.bytes_written)}: {files}" if self.shards else files),
            ("memory", f"at most {size(self.budget.peak)} with {self.budget.workers} workers"),
        ]
        if self.recipe.weights_from:
            facts.append(("coefficients", self.recipe.weights_from))
        if self.recipe.collects_moments:
            count = len(self.recipe.participants)
            facts.append(("moments", f"collected before the merge, from data of {count} models"))
        if self.gate:
            facts.append(("keeps", f"a gate over {len(self.gate.tasks)} tasks"))
        facts += composition_facts(self.composition, self.models) if self.composition else []
        facts += stack_facts(self.stack) if self.stack else []
        facts += mixture_facts(self.mixture) if self.mixture else []
        facts += projector_facts(self.projectors, self.recipe) if self.projectors else []
        if self.warnings:
            facts.append(("warnings", f"{len(self.warnings)}: {self.warnings[0]}"))
        return facts

    @property
    def gate_record(self) -> GateRecord | None:
        """What `submerge.json` says of the gate: a method's, that of modalities, or that of projectors."""
        gate = self.gate or self.composition or self.projectors
        return gate.record(self.models) if gate else None

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The output's configuration, where it is another than the reference's."""
        return self.mixture.config if self.mixture else self.stack.config if self.stack else None

    @property
    def donor_rows(self) -> DonorRows | None:
        """The rows of a donor's tokens, where the output has a donor's tokenizer."""
        vocabulary = self.tokens.vocabulary if self.tokens else None
        return vocabulary.donor if vocabulary else None

    @property
    def models(self) -> tuple[Checkpoint, ...]:
        """The distinct models."""
        return self.inputs.models

    @property
    def participants(self) -> tuple[int, ...]:
        """Positions of the models that are merged, in the method's order."""
        return self.inputs.participants

    @property
    def donor(self) -> int:
        """Deprecated: it is called `inputs.reference`."""
        warn_renamed("MergePlan.donor", "MergePlan.inputs.reference")
        return self.inputs.reference

    def role(self, index: int) -> str:
        """Return what a model takes part as: base, merged or an expert, both, or with its files only."""
        role = self.inputs.role(index)
        return role.replace("merged", "expert") if self.mixture else role

    @property
    def carried(self) -> list[tuple[Path, Path]]:
        """The files that travel beside the weights: their folders, and their paths inside."""
        reference = self.inputs.reference_model
        tokenizer = self.tokens.tokenizer if self.tokens else reference.tokenizer
        files = [file for file in reference.side_files if not is_tokenizer_file(file)]
        if (reference.path / MANIFEST).is_file():  # the specialists of a composed model are left out
            files = [file for file in files if file.parts[0] != MODALITIES]
        return [
            *((reference.path, file) for file in files),
            *((tokenizer.folder, file) for file in tokenizer.files if file not in files),
            *((reference.path, file) for file in reference.other_weights),
        ]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """How the models' vocabularies compare, a line for each."""
        return self.tokens.lines if self.tokens else ()

    @property
    def pending(self) -> bool:
        """Whether weights of models on the Hub are still to be downloaded."""
        donor = [self.inputs.tokenizer.model] if self.inputs.tokenizer else []
        return any(model.pending for model in (*self.models, *donor))

    @property
    def bytes_read(self) -> int:
        """Bytes of input that the result depends on, each counted once for each model that it is of."""
        adapters = {file for m in self.models if m.adapter for file in m.adapter.files if file.exists()}
        read = [i for t in self.tensors for i in t.read]
        values = sum(i.entry.nbytes for i in read if self.models[i.model].virtual is None)
        values += sum(m.virtual.nbytes for m in self.models if m.virtual)
        return values + sum(file.stat().st_size for file in adapters)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output's weight files."""
        return sum(shard.size for shard in self.shards)
