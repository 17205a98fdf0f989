"""The tokenizer that a recipe asks for: whose tokens the output has, and what rows they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from submerge.arguments import is_whole_number
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._new_tokens import read_new_tokens
from submerge.recipe._problems import KeyPath, Report, listed, show
from submerge.recipe._sections import Rules, read_count
from submerge.recipe._specs import read_spec
from submerge.recipe._tokenizer_settings import TokenizerSettings, TokenRow

__all__ = ["check_rows", "read_tokenizer"]

_KEYS = ("source", "tokens", "pad_to_multiple_of", "new_tokens")
_RULE_KEYS = ("source", "force")
_KINDS = ("model_token", "zero")


def read_tokenizer(
    data: dict[str, Any], base: str | None, models: Sequence[ModelEntry] | None, report: Report
) -> TokenizerSettings:
    """Return the section `tokenizer`, or the key `tokenizer_source`, in which mergekit says less."""
    section, source = data.get("tokenizer"), data.get("tokenizer_source")
    named = [*(entry.model for entry in models or ()), *([base] if base else [])]
    parts = [part for name in named for part in name.split("+")]  # also a model or an adapter of a `+` alone
    known = {same_model(name): name for name in [*parts, *named]}
    if section is None:
        path: KeyPath = ("tokenizer_source",)
        return TokenizerSettings(_source(source, path, data, known, report), where=report.where(path))
    if source is not None:
        report.add("both 'tokenizer' and 'tokenizer_source' are given", ("tokenizer",), "keep one")
        return TokenizerSettings()
    if not isinstance(section, dict):
        what = f"'tokenizer' is a mapping, not {show(section)}"
        report.add(what, ("tokenizer",), "write {source: union}")
        return TokenizerSettings()
    report.check_keys(section, _KEYS, ("tokenizer",))
    path = ("tokenizer", "source")
    raw = "union" if section.get("source") is None else section["source"]
    settings = TokenizerSettings(
        source=_source(raw, path, data, known, report),
        tokens=_tokens(section.get("tokens"), {same_model(name): name for name in named}, report),
        pad_to_multiple_of=read_count(section, ("tokenizer", "pad_to_multiple_of"), "write 64, say", report),
        new_tokens=read_new_tokens(section.get("new_tokens"), section.get("source"), report),
        where=report.where(path),
    )
    if settings.new_tokens and settings.tokens:
        what = "rows of single tokens are not chosen where all tokens are a donor's"
        report.add(what, ("tokenizer", "tokens"), "leave 'tokens' or 'new_tokens' out")
    return settings


def check_rows(tokenizer: TokenizerSettings, rules: Rules, report: Report) -> None:
    """Note that rows cannot be merged both by the tokens that they are of and by their place."""
    if rules.vocabulary == "by-position" and (tokenizer.source == "union" or tokenizer.changes_tables):
        what = "rows are merged by tokens and by their position"
        report.add(what, ("rules", "vocabulary"), "keep the tokenizer's section or this rule")


def _source(
    raw: Any, path: KeyPath, data: Mapping[str, Any], known: Mapping[str, str], report: Report
) -> str | None:
    """Return None, `base`, `union`, or the spec of a model, which need not be one of the recipe's."""
    if raw == "base" and data.get("base_model") is None:
        what = "the tokenizer is the base's, and there is no base_model"
        report.add_ignored(what, path, "add 'base_model: …'")
        return None
    if raw is None or raw in ("base", "union"):
        return raw  # type: ignore[no-any-return] # None or one of the two words
    spec = read_spec(raw, path, report)
    return None if spec is None else known.get(same_model(spec), spec)


def _tokens(raw: Any, known: Mapping[str, str], report: Report) -> dict[str, TokenRow]:
    """Return the rules for single tokens, by their texts."""
    path: KeyPath = ("tokenizer", "tokens")
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        report.add(f"'tokens' is a mapping, not {show(raw)}", path, "write {'<|tool|>': {source: MODEL}}")
        return {}
    if "" in raw:
        report.add("a token has no text", (*path, ""), "write what it is called, such as '<|tool|>'")
    return {text: _token_row(rule, (*path, text), known, report) for text, rule in raw.items()}


def _token_row(raw: Any, path: KeyPath, known: Mapping[str, str], report: Report) -> TokenRow:
    """Return the rule for one token."""
    rule = {} if raw is None else raw
    if not isinstance(rule, dict):
        report.add(f"the rule for a token is a mapping, not {show(raw)}", path, "write {source: MODEL}")
        return TokenRow()
    report.check_keys(rule, _RULE_KEYS, path)
    force = rule.get("force", False)
    if force not in (True, False, None):
        report.add(f"force is true or false, not {show(force)}", (*path, "force"))
        force = False
    source, where = rule.get("source"), report.where(path)
    if source is None:
        if force:
            report.add("a row is forced, and its source is not named", path, "add 'source: …'")
        return TokenRow(where=where)
    if isinstance(source, dict) and "kind" in source:
        return _of_kind(source, bool(force), (*path, "source"), known, report)
    return TokenRow("model", _model(source, (*path, "source"), known, report), force=bool(force), where=where)


def _of_kind(
    raw: Mapping[str, Any], force: bool, path: KeyPath, known: Mapping[str, str], report: Report
) -> TokenRow:
    """Return the rule `{kind: zero}`, or `{kind: model_token, model: …, token: …}` with a token or an id."""
    kind, where = raw["kind"], report.where(path)
    valid = ("kind",) if kind == "zero" else ("kind", "model", "token", "token_id")
    if kind not in _KINDS:
        report.add(f"the kind of a row is {show(kind)}", (*path, "kind"), f"one of {listed(_KINDS)}")
        return TokenRow()
    report.check_keys(raw, valid, path)
    if kind == "zero":
        return TokenRow("zero", force=force, where=where)
    token, token_id = raw.get("token"), raw.get("token_id")
    if (token is None) == (token_id is None):
        report.add("a row of a model is named by its token or by its id", path, "give one of the two")
    if token is not None and not isinstance(token, str):
        report.add(f"a token is text, not {show(token)}", (*path, "token"), "put it in quotes")
        token = None
    if token_id is not None and not (is_whole_number(token_id) and token_id >= 0):
        report.add(f"a token's id is a whole number from 0, not {show(token_id)}", (*path, "token_id"))
        token_id = None
    model = _model(raw.get("model"), (*path, "model"), known, report)
    return TokenRow("model_token", model, token, token_id, force, where)


def _model(raw: Any, path: KeyPath, known: Mapping[str, str], report: Report) -> str:
    """Return the spec of a model that is merged, which alone has a row to give."""
    spec = read_spec(raw, path, report)
    if spec is not None and same_model(spec) not in known:
        report.add(f"{show(spec)} is no model of this recipe", path, "name one of its models")
    return "" if spec is None else known.get(same_model(spec), spec)
