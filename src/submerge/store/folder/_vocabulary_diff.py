"""How the vocabularies of two folders differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from submerge.errors import counted
from submerge.store.folder._vocabulary import Vocabulary

__all__ = ["VocabularyDiff", "compare_vocabularies"]

_SHOWN = 5


@dataclass(frozen=True)
class VocabularyDiff:
    """How two vocabularies differ; the tuples hold the first few examples, the counts count all."""

    equal: bool
    comparable: bool
    missing_in_a: int = 0
    missing_in_b: int = 0
    moved: int = 0
    examples_missing_in_a: tuple[str, ...] = ()
    examples_missing_in_b: tuple[str, ...] = ()
    examples_moved: tuple[tuple[str, int, int], ...] = ()

    @property
    def within_a(self) -> bool:
        """Whether the first has all tokens of the second, with the same ids."""
        return self.equal or (self.comparable and not self.missing_in_a and not self.moved)

    def describe(self, a: str = "the first", b: str = "the second") -> str:
        """Return the difference as text, with `a` and `b` naming the two sides."""
        if self.equal:
            return "the vocabularies are equal"
        if not self.comparable:
            return "their files are of kinds that cannot be compared by token"
        parts = []
        for count, side, shown in (
            (self.missing_in_a, a, self.examples_missing_in_a),
            (self.missing_in_b, b, self.examples_missing_in_b),
        ):
            if count:
                parts.append(
                    f"{counted(count, 'token')} missing in {side} ({_list(map(repr, shown), count)})"
                )
        if self.moved:
            shown = tuple(f"{token!r}: {in_a} and {in_b}" for token, in_a, in_b in self.examples_moved)
            parts.append(f"{counted(self.moved, 'token')} with other ids ({_list(shown, self.moved)})")
        return "; ".join(parts)


def _list(shown: Iterable[str], count: int) -> str:
    texts = list(shown)
    return ", ".join(texts) + (", …" if count > len(texts) else "")


def compare_vocabularies(a: Vocabulary, b: Vocabulary) -> VocabularyDiff:
    """Return how two vocabularies differ, token by token where both are known, else by digest.

    Of one sentencepiece file the tokens that were added to it are compared.
    """
    in_a, in_b = a.tokens, b.tokens
    is_one_file = a.digest is not None and a.digest == b.digest
    if is_one_file and in_a is None and in_b is None:
        in_a, in_b = a.added, b.added
    if in_a is None or in_b is None:
        return VocabularyDiff(equal=is_one_file, comparable=False)
    if in_a == in_b:
        return VocabularyDiff(equal=True, comparable=True)
    only_a = sorted((token for token in in_a if token not in in_b), key=in_a.__getitem__)
    only_b = sorted((token for token in in_b if token not in in_a), key=in_b.__getitem__)
    moved = [(token, id_, in_b[token]) for token, id_ in in_a.items() if in_b.get(token, id_) != id_]
    return VocabularyDiff(
        equal=False,
        comparable=True,
        missing_in_a=len(only_b),
        missing_in_b=len(only_a),
        moved=len(moved),
        examples_missing_in_a=tuple(only_b[:_SHOWN]),
        examples_missing_in_b=tuple(only_a[:_SHOWN]),
        examples_moved=tuple(sorted(moved, key=lambda row: row[1])[:_SHOWN]),
    )
