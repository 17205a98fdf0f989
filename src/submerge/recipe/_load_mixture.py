"""`load_mixture`: a recipe for a mixture of experts, in the form that mergekit-moe reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submerge.arguments import is_finite_number
from submerge.errors import RequestError, did_you_mean
from submerge.methods import MIXTURE
from submerge.recipe._mixture import GATE_MODES, PROMPT_MODES, Expert, MixtureRecipe
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._problems import KeyPath, Report, show
from submerge.recipe._sections import read_count, read_dtype, read_name, read_seed
from submerge.recipe._source import RecipeSource, check_mapping, open_documents, open_source
from submerge.recipe._specs import read_spec

__all__ = ["describes_mixture", "is_mixture", "load_mixture", "read_mixture"]

KEYS = (
    "base_model",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "experts",
    "shared_experts",
    "architecture",
    "seed",
)
EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")


def load_mixture(source: str | Path | Mapping[str, Any], *, mergekit: bool = False) -> MixtureRecipe:
    """Return the recipe for a mixture of experts in `source`: a file's path, YAML text, or a mapping.

    Args:
        source: a str that holds a line end is text, any other a path.
        mergekit: take for a warning what mergekit ignores: keys that it does not know.

    Raises:
        RequestError: holds every problem, each with its line and what to do.

    Examples:
        >>> from submerge.recipe import load_mixture
        >>> experts = [{"source_model": name, "positive_prompts": [name]} for name in ("chat", "code")]
        >>> load_mixture({"base_model": "base", "experts": experts}).gate_mode
        'hidden'
    """
    return read_mixture(open_source(source, lenient=mergekit))


def read_mixture(opened: RecipeSource, *, named: bool = False) -> MixtureRecipe:
    """Return the recipe for a mixture in the data of one document, which may have a name.

    Errors are those of `load_mixture`.
    """
    data, report = opened.data, opened.report
    check_mapping(opened, "base_model")
    _check_keys(data, report, named=named)
    base = _read_base(data, report)
    mode = _read_gate_mode(data.get("gate_mode"), report)
    experts = _read_experts(data.get("experts"), "experts", report)
    shared = _read_experts(data.get("shared_experts"), "shared_experts", report)
    count = read_count(data, ("experts_per_token",), "write 2, say", report)
    count = count or MixtureRecipe.experts_per_token
    _check_experts(experts, count, report)
    if mode in PROMPT_MODES:
        _check_prompts(experts, report)
    _check_shared(shared, report)
    sections: dict[str, Any] = {
        "dtype": read_dtype(data, "dtype", report),
        "seed": read_seed(data.get("seed"), report),
        "architecture": _read_architecture(data.get("architecture"), report),
        "name": read_name(data, report) if named else "",
    }
    report.raise_if_any()
    entries = _entries([*experts, *shared])
    return MixtureRecipe(
        method=MIXTURE,
        models=entries,
        base=base,
        participants=entries,
        parameters={},
        path=opened.path,
        text=opened.text,
        positions=report.positions,
        warnings=report.warnings,
        experts=tuple(experts),
        shared_experts=tuple(shared),
        gate_mode=mode,
        experts_per_token=count,
        **sections,
    )


def is_mixture(source: str | Path | Mapping[str, Any]) -> bool:
    """Return whether a source is one recipe for a mixture of experts, as far as it can be read."""
    try:
        opened, *others = open_documents(source)
    except RequestError:
        return False
    return not others and describes_mixture(opened.data)


def describes_mixture(data: Any) -> bool:
    """Return whether the data of a recipe are those of mergekit-moe."""
    return isinstance(data, dict) and "experts" in data and "merge_method" not in data


def _entries(experts: Sequence[Expert]) -> tuple[ModelEntry, ...]:
    """Return an entry for each distinct model."""
    distinct = {same_model(e.model): ModelEntry(e.model, {}, e.where) for e in reversed(experts)}
    return tuple(reversed(distinct.values()))


def _check_keys(data: dict[str, Any], report: Report, *, named: bool) -> None:
    """Note keys that are unknown; one who names a method wants a merge."""
    for key in data:
        if key == "merge_method" or (key in ("models", "slices", "modules") and "experts" not in data):
            report.add(f"'{key}' belongs to a merge", (key,), "submerge merge makes one")
        elif key not in KEYS and not (named and key == "name"):
            report.unknown_key(key, KEYS, (key,))


def _read_base(data: dict[str, Any], report: Report) -> str | None:
    """Return the model that gives all but the experts."""
    if data.get("base_model") is None:
        what = "the recipe names no base_model, which gives the attention, the norms and the embeddings"
        report.add(what, ("base_model",), "add 'base_model: …'")
        return None
    return read_spec(data["base_model"], ("base_model",), report)


def _read_gate_mode(raw: Any, report: Report) -> str:
    if raw is None:
        return MixtureRecipe.gate_mode
    if isinstance(raw, str) and raw in GATE_MODES:
        return raw
    hint = did_you_mean(raw if isinstance(raw, str) else "", GATE_MODES)
    report.add(f"unknown gate_mode {show(raw)}", ("gate_mode",), hint)
    return "random"  # which asks for nothing else


def _read_architecture(raw: Any, report: Report) -> str | None:
    if raw is None or (isinstance(raw, str) and raw.strip()):
        return raw
    hint = "one of mixtral, deepseek, qwen, qwen3"
    report.add(f"an architecture is a name, not {show(raw)}", ("architecture",), hint)
    return None


def _read_experts(raw: Any, key: str, report: Report) -> list[Expert]:
    """Return the experts of a list, as far as they could be read."""
    if key == "shared_experts" and (raw is None or raw == []):
        return []
    if not isinstance(raw, list) or not raw:
        what = f"'{key}' is empty" if raw in (None, [], {}) else f"'{key}' is a list, not {show(raw)}"
        report.add(what, (key,), "write '- source_model: …', once for each expert")
        return []
    experts = [_read_expert(item, (key, i), report) for i, item in enumerate(raw)]
    return [expert for expert in experts if expert is not None]


def _read_expert(raw: Any, path: KeyPath, report: Report) -> Expert | None:
    if not isinstance(raw, dict):
        report.add(f"an expert is a mapping, not {show(raw)}", path, "write '- source_model: …'")
        return None
    report.check_keys(raw, EXPERT_KEYS, path)
    positive = _read_prompts(raw, "positive_prompts", path, report)
    negative = _read_prompts(raw, "negative_prompts", path, report)
    noise = _read_number(raw, "noise_scale", 0.0, path, report)
    scale = _read_number(raw, "residual_scale", 1.0, path, report)
    if "source_model" not in raw:
        report.add("this expert names no model", path, "add 'source_model: …'")
        return None
    spec = read_spec(raw["source_model"], (*path, "source_model"), report)
    if spec is None:
        return None
    return Expert(spec, positive, negative, noise, scale, report.where(path))


def _read_prompts(raw: dict[str, Any], key: str, path: KeyPath, report: Report) -> tuple[str, ...]:
    """Return prompts; a blank one stands for any text, as in recipes whose gates are drawn at random."""
    prompts = raw.get(key)
    if prompts is None:
        return ()
    if not isinstance(prompts, list):
        report.add(f"{key} is a list of texts, not {show(prompts)}", (*path, key), "write '- …' lines")
        return ()
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            what = f"a prompt is a text, not {show(prompt)}"
            report.add(what, (*path, key, i), "put it in quotes")
    return tuple(prompt for prompt in prompts if isinstance(prompt, str))


def _read_number(raw: dict[str, Any], key: str, default: float, path: KeyPath, report: Report) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if is_finite_number(value):
        return float(value)
    report.add(f"{key} is a number, not {show(value)}", (*path, key), f"write {default}, say")
    return default


def _check_experts(experts: Sequence[Expert], count: int, report: Report) -> None:
    """Note that there are too few experts."""
    if report.has(("experts",)):
        return
    if len(experts) == 1:
        what = "there is one expert, and a gate chooses among several"
        report.add(what, ("experts",), "add another one, or merge the models (submerge merge)")
    elif count > len(experts):
        what = f"experts_per_token is {count}, and there are {len(experts)} experts"
        report.add(what, ("experts_per_token",), f"write {min(2, len(experts))}, or add experts")


def _check_prompts(experts: Sequence[Expert], report: Report) -> None:
    """Note experts without prompts, and prompts by which no gate could choose."""
    if report.has(("experts",)):
        return
    for i, expert in enumerate(experts):
        if not expert.positive:
            hint = "add prompts that it is to answer, or write 'gate_mode: random'"
            report.add("this expert has no positive_prompts", ("experts", i), hint)
    if not report.has(("experts",)) and len({(e.positive, e.negative) for e in experts}) == 1:
        what = "all experts have the same prompts, so that no gate can choose among them"
        report.add(what, ("experts",), "give each expert prompts of its own")


def _check_shared(shared: Sequence[Expert], report: Report) -> None:
    """Note shared experts of which some have prompts and others none."""
    if len({bool(expert.positive) for expert in shared}) > 1:
        what = "some shared experts have positive_prompts and others have none"
        report.add(what, ("shared_experts",), "give prompts to all of them, or to none")
