"""The step before a mixture of experts is written: gates' weights, from the prompts of the experts.

A prompt p has the state h_l(p) before layer l: that of the base at its last token ("hidden"), the mean over
its tokens ("hidden_avg"), or for all layers the mean embedding of all prompts' tokens ("cheap_embed"). An
expert's row of layer l's gate is then

    g_l ∝ h̄_l(positive) − h̄_l(negative),    ‖g_l‖ = 1,

so that the gate's logit of a token's state x is ⟨g_l, x⟩: how alike it is to the expert's prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from submerge.deferred import np, npt
from submerge.engine.plan import MergePlan, MixturePlan
from submerge.errors import Problem, RequestError, WorkError, few
from submerge.recipe import Expert
from submerge.store import Checkpoint, FileTable, digest, read_values, text_encoder, trained_adapter

if TYPE_CHECKING:
    from submerge.calibrate import PromptPooling, Step

__all__ = ["with_gates"]

Array: TypeAlias = "npt.NDArray[Any]"

EMBEDDINGS = "model.embed_tokens.weight"
LEAST = 1e-8
"""The least length by which a state is divided."""
ILL = 5.0
"""The condition number of a gate beyond which its rows are too much alike."""


def with_gates(plan: MergePlan, progress: Callable[[Step], None] | None) -> MergePlan:
    """Return the plan of a mixture with the weights of its gates, and warnings about them.

    Those that are drawn at random are known already. Raises `RequestError` where the base has no tokenizer,
    or no model of transformers, and `WorkError` where it makes NaN or Inf of a prompt.
    """
    mixture = plan.mixture
    assert mixture is not None
    recipe = mixture.recipe
    if not recipe.reads_prompts:
        return plan
    experts = [*recipe.experts, *(recipe.shared_experts if recipe.gates_shared else ())]
    rows = _rows(mixture, experts, plan.settings.device, progress)  # [L, experts, n]
    if not np.isfinite(rows).all():
        what = f"{mixture.base.label} makes NaN or Inf of prompts"
        raise WorkError(f"{what} — look at its weights, or write 'gate_mode: random'")
    chosen = len(recipe.experts)
    weights = rows.astype(np.float32)
    memory = {
        name: part
        for names, of_layer in zip(mixture.gate_names, weights, strict=True)
        for name, part in zip(names, (of_layer[:chosen], of_layer[chosen:]), strict=False)
    }
    models = list(plan.models)
    models[mixture.gates] = replace(models[mixture.gates], memory=memory)
    return replace(
        plan,
        inputs=plan.inputs.of_models(models),
        mixture=replace(mixture, digest=digest(weights.tobytes())),
        warnings=(*plan.warnings, *_alike(rows)),
    )


def _rows(
    mixture: MixturePlan, experts: Sequence[Expert], device: str, progress: Callable[[Step], None] | None
) -> Array:
    """Return the rows [L, experts, n] of all gates, each of length 1, in float64."""
    base, mode = mixture.base, mixture.recipe.gate_mode
    tokens = _Tokens(base)
    prompts = [tokens.of(expert.positive) for expert in experts]
    prompts += [tokens.of(expert.negative) for expert in experts]
    if mode == "cheap_embed":
        states = _embedded(base, prompts, len(mixture.gate_names))
    else:
        states = _hidden(base, prompts, "mean" if mode == "hidden_avg" else "last", device, progress)
    rows = states[: len(experts)].copy()  # [experts, L, n]
    for number, expert in enumerate(experts):
        if expert.negative:
            rows[number] -= states[len(experts) + number]
    return np.ascontiguousarray(_normalised(rows).swapaxes(0, 1))


def _normalised(rows: Array) -> Array:
    lengths: Array = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), LEAST)
    return rows / lengths


class _Tokens:
    """The tokenizer of a base, which gives prompts as ids with the token that begins a text before them."""

    def __init__(self, base: Checkpoint) -> None:
        self._folder: Path = base.tokenizer.folder
        self._rows = base.tensors[EMBEDDINGS].shape[0]
        if not base.tokenizer.complete:
            hint = "copy one into its folder, or write 'gate_mode: random'"
            raise RequestError(Problem("there is no tokenizer for the prompts", base.label, hint))
        self._encode = text_encoder(self._folder)

    def of(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of prompts, each at least one."""
        encoded = [self._encode(prompt) for prompt in prompts]
        if empty := [prompt for prompt, ids in zip(prompts, encoded, strict=True) if not ids]:
            what = f"prompts without any token: {few([repr(prompt) for prompt in empty])}"
            raise RequestError(Problem(what, str(self._folder), "leave them out"))
        if beyond := [token for ids in encoded for token in ids if token >= self._rows]:
            what = f"a prompt has the token {beyond[0]}, beyond the {self._rows} rows of the embedding"
            hint = "give prompts without tokens that were added later"
            raise RequestError(Problem(what, str(self._folder), hint))
        return encoded


def _embedded(base: Checkpoint, prompts: Sequence[list[list[int]]], layers: int) -> Array:
    """Return the mean embedding of each set's tokens, of length 1, for all layers alike [sets, L, n]."""
    if base.adapter is not None and base.part(EMBEDDINGS):
        hint = "merge it into its model first, or write 'gate_mode: hidden'"
        raise RequestError(Problem("the adapter changes the embeddings", str(base.adapter.path), hint))
    width = base.tensors[EMBEDDINGS].shape[1]
    rows = np.zeros((len(prompts), width))
    with FileTable() as table:
        for number, of_set in enumerate(prompts):
            for ids in of_set:
                rows[number] += _table_rows(base, ids, table).sum(0, dtype=np.float64)
    return np.repeat(_normalised(rows)[:, np.newaxis], layers, axis=1)


def _table_rows(base: Checkpoint, ids: Sequence[int], table: FileTable) -> Array:
    """Return the embeddings of tokens, one a row."""
    entry = base.tensors[EMBEDDINGS]
    source, width = base.source(EMBEDDINGS, table), entry.shape[1]
    return np.stack([read_values(source, entry.dtype, token * width, width) for token in ids])


def _hidden(
    base: Checkpoint,
    prompts: Sequence[list[list[int]]],
    pooling: PromptPooling,
    device: str,
    progress: Callable[[Step], None] | None,
) -> Array:
    """Return the mean states of each set of prompts before each layer [sets, L, n]; zeros for no prompts."""
    from submerge.calibrate import Step, prompt_states  # here: it loads transformers

    total = sum(map(len, prompts))

    def tell(done: int) -> None:
        if progress is not None:
            progress(Step(done, total, measuring=True, what="prompts"))

    used = [number for number, of_set in enumerate(prompts) if of_set]
    states = prompt_states(
        base.under or base,
        trained_adapter(base),
        [prompts[number] for number in used],
        pooling=pooling,
        device=device,
        progress=tell,
    )
    result = np.zeros((len(prompts), *states.shape[1:]))
    result[used] = states.numpy()
    return result


def _alike(rows: Array) -> list[str]:
    """Return a warning where rows of a layer's gate are so much alike that some experts are hardly chosen."""
    ill = [str(layer) for layer, gate in enumerate(rows) if not np.linalg.cond(gate) <= ILL]
    if not ill:
        return []
    where = "all layers" if len(ill) == len(rows) else f"layers {few(ill, 8)}"
    return [f"the gates of {where} have rows that are much alike: give the experts prompts that differ more"]
