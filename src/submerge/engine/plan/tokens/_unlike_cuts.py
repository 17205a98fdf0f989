"""Models whose tokenizers have the output's tokens, and cut texts into others of them."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.engine.plan.tokens._output_tokenizer import fast_backend
from submerge.engine.plan.tokens._tokens import with_tables
from submerge.errors import RequestError, few
from submerge.recipe import Recipe, same_model
from submerge.store import Tokenization, read_tokenization, unlike_settings

__all__ = ["cut_warnings"]

_TEXTS = (
    "The quick brown fox",
    "hello",
    "I'm sure they'll say: \"It's DON'T\"",
    "1234567 and 3.14 of 99%",
    "two  spaces,   three\n\nlines\tand\r\n  more ",
    "def f(x_1): return y[0] != -x",
    "Ångström, café, cafe\u0301, ÜBER straße",
    "ﬁne ½ Ｆｕｌｌ a\u00a0b\u200bc",
    "你好，世界。こんにちは 안녕하세요",
    "Привет, мир! مرحبا नमस्ते",
    "🙂👍🏽",
)
"""What tokenizers treat in different ways: case, signs, numbers, spaces, code, accents, forms, writings."""
_WORDS = 200
"""Of so many tokens that both have, and that are joined otherwise, the texts are cut, too."""


def cut_warnings(recipe: Recipe, inputs: Inputs) -> list[str]:
    """Return which models were trained with a tokenizer that cuts texts otherwise than the output's.

    An adapter that comes out has none: the first of those that are merged counts. A donor's cuts otherwise in
    any case, and so may that of a model which gives layers alone.
    """
    source = inputs.tokenizer or _first(inputs)
    if recipe.tokenizer.new_tokens or not source.model.tokenizer.complete:
        return []
    role = ", which the output has" if inputs.tokenizer else ""
    stacked, warnings = with_tables(recipe), []
    for position in inputs.participants:
        model = inputs.models[position]
        if (stacked and same_model(inputs.specs[position]) not in stacked) or not model.tokenizer.complete:
            continue
        if told := unlike_cuts(model.tokenizer.folder, source.model.tokenizer.folder):
            what = f"its tokenizer cuts texts otherwise than that of {source.label}{role}: {told}"
            warnings.append(f"{model.label}: {what}; it was trained with its own")
    return list(dict.fromkeys(warnings))


def _first(inputs: Inputs) -> TokenizerSource:
    """Return the base, or else the first model that has a tokenizer."""
    models = [inputs.reference_model, *inputs.involved.values()]
    model = next((model for model in models if model.tokenizer.complete), inputs.reference_model)
    return TokenizerSource(model.label, model)


def unlike_cuts(own: Path, other: Path) -> str:
    """Return in what the tokenizer of a folder cuts texts otherwise than that of another; or nothing.

    What `tokenizer_config.json` says of it is compared, and SentencePiece's pieces and rules. Of two
    `tokenizer.json` whose steps, merges or scores differ a difference is told where a text shows it: versions
    write the same in several ways.
    """
    if own == other:
        return ""
    is_one = _are_one_file(own / "tokenizer.json", other / "tokenizer.json")
    ours, theirs = (read_tokenization(folder, steps=not is_one) for folder in (own, other))
    parts = [f"{key} {mine} and not {its}" for key, (mine, its) in unlike_settings(ours, theirs).items()]
    if ours.is_fast and theirs.is_fast:
        parts += _shown(ours, theirs)
    else:
        parts += [f"other {name}" for name in _unlike_steps(ours, theirs) if name in ("merges", "pattern")]
    common = ours.rules.keys() & theirs.rules.keys()
    unlike = sorted(name for name in common if ours.rules[name] != theirs.rules[name])
    return "; ".join([*parts, *(f"other pieces or rules in {name}" for name in unlike)])


def _are_one_file(own: Path, other: Path) -> bool:
    return own.is_file() and other.is_file() and filecmp.cmp(own, other, shallow=False)


def _unlike_steps(ours: Tokenization, theirs: Tokenization) -> list[str]:
    """Return by their names the steps, tables and flags that two tokenizers have, and that differ."""
    steps = [
        name
        for name in dict.fromkeys([*ours.steps, *theirs.steps])
        if ours.steps.get(name) != theirs.steps.get(name)
    ]
    if _joined_otherwise(ours, theirs):
        steps.append("merges")
    scores = ours.scores or {}
    if any(abs(score - scores.get(text, score)) > 1e-4 for text, score in (theirs.scores or {}).items()):
        steps.append("scores")
    return steps + (["added tokens"] if _otherwise_added(ours, theirs) else [])


def _joined_otherwise(ours: Tokenization, theirs: Tokenization) -> list[str]:
    """Return the tokens that two byte-pair models join of other pairs, or in another order.

    The order of pairs that make one token says nothing, nor do those of tokens that were added.
    """
    if ours.merges is None or theirs.merges is None or ours.merges == theirs.merges:
        return []
    pairs = [dict.fromkeys(merges) for merges in (ours.merges, theirs.merges)]
    added = {*ours.added, *theirs.added}
    alone = ["".join(pair) for one, other in (pairs, pairs[::-1]) for pair in one if pair not in other]
    both = ([p for p in one if p in other] for one, other in (pairs, pairs[::-1]))
    orders = [dict.fromkeys(map("".join, shared)) for shared in both]
    moved = [mine for mine, its in zip(*orders, strict=True) if mine != its]
    return [text for text in dict.fromkeys([*alone, *moved]) if text not in added]


def _otherwise_added(ours: Tokenization, theirs: Tokenization) -> list[str]:
    """Return the added tokens of both that are found in texts in two ways."""
    return [text for text, flags in ours.added.items() if theirs.added.get(text, flags) != flags]


def _shown(ours: Tokenization, theirs: Tokenization) -> list[str]:
    """Return a text that two files `tokenizer.json` cut in two ways, and what differs in them; or nothing."""
    unlike = _unlike_steps(ours, theirs)
    if not unlike:
        return []
    if find_spec("tokenizers") is None:
        return [f"other {few(unlike, 6)} in its tokenizer.json (pip install tokenizers to see by a text)"]
    try:
        one, other = fast_backend(ours.folder), fast_backend(theirs.folder)
    except RequestError:  # of a file with tokens alone
        return []
    for text in _texts(ours, theirs, one, other):
        mine, its = _cut(one, text), _cut(other, text)
        if mine and its and mine != its:
            return [f"{text!r} into {_pieces(mine, its)} and not {_pieces(its, mine)} ({few(unlike, 6)})"]
    return []


def _texts(ours: Tokenization, theirs: Tokenization, one: Any, other: Any) -> Iterator[str]:
    """Yield texts that show how tokenizers differ: any, those of tokens, and what their steps name."""
    yield from _TEXTS
    known, its = one.get_vocab(), other.get_vocab()
    common = [text for text, id_ in sorted(known.items(), key=lambda item: item[1]) if text in its]
    plain = [text for text in common if text not in ours.added and text not in theirs.added]
    scored = [t for t, score in (ours.scores or {}).items() if (theirs.scores or {}).get(t, score) != score]
    for text in [*_some(_joined_otherwise(ours, theirs)), *_some(scored), *_some(plain)]:
        if text in known:
            word = one.decode([known[text]], skip_special_tokens=False)
            yield from (word, f"a{word}", word.capitalize())
    for text in _otherwise_added(ours, theirs):
        yield from (f"the {text} fox", f"the{text}fox", f"the {text.upper()} fox")
    named = {text for tokenizer in (ours, theirs) for text in _named(list(tokenizer.steps.values()))}
    short = {text for text in named if len(text) <= 16} - {*ours.added, *theirs.added}
    yield from (f"a{text}b" for text in sorted(short))


def _some(texts: list[str]) -> list[str]:
    """Return some of many texts, from all places among them."""
    return texts[:: -(-len(texts) // _WORDS) or 1]


def _named(part: Any) -> Iterator[str]:
    """Yield all texts in a part of `tokenizer.json`."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list | dict):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _named(inner)


def _cut(backend: Any, text: str) -> list[str]:
    """Return the tokens of a text; none where the tokenizer has none for it, and no token for the unknown."""
    backend.no_padding()  # of a file that was saved with a length for all texts
    backend.no_truncation()
    try:
        ids = backend.encode(text).ids
    except Exception:  # the library raises nothing else
        return []
    return [backend.id_to_token(id_) for id_ in ids]  # encode names added tokens with the spaces they take


def _pieces(tokens: list[str], others: list[str]) -> str:
    """Return tokens as text, from where they differ from others."""
    at = next(i for i, (mine, its) in enumerate(zip_longest(tokens, others)) if mine != its)
    shown = [repr(token) for token in tokens[at : at + 4]]
    before, behind = "… " if at else "", " …" if len(tokens) > at + 4 else ""
    return f"{before}{' '.join(shown) or 'no more'}{behind}"
