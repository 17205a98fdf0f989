"""Which tensors of two models are one parameter, by their names and shapes alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias

from submerge.errors import few
from submerge.names._layers import layer_of
from submerge.names._match import (
    differing_prefixes,
    grouped,
    layer_position,
    newly_spelled,
    without_wrappers,
)
from submerge.names._view import Shape

__all__ = ["Correspondence", "correspond", "is_buffer"]

# what some versions save beside the parameters of a layer: masks, positions and frequencies
_BUFFER = re.compile(
    r"\b(attn|attention)\.(masked_)?bias$|inv_freq$|(cos|sin)_cached$|position_ids$|relative_position_index$"
)
_LEAST_SHARE = 0.5
"""The share of the base's tensors, or of one stack's, that must agree for models, or stacks, to be alike."""


@dataclass
class Correspondence:
    """For names of the base the model's own ones, and why others that look alike were not taken."""

    names: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def correspond(own: Mapping[str, Shape], base: Mapping[str, Shape]) -> Correspondence:
    """Return which of a model's tensors each tensor of the base stands for.

    Equal names are one parameter. Others are if they agree but for wrappers (`model.layers.0` and
    `language_model.model.layers.0`), or but for a prefix (`h.0` and `transformer.h.0`) under which whole
    layers agree in names and shapes. A layer that has a tensor which the base's has no place for is of
    another architecture, and nothing of its stack is taken. Where two places are equally good, none is.
    """
    return _Matcher(own, base).matched()


_Rule: TypeAlias = tuple[str, str]  # the prefix that is replaced, and what by


@dataclass(frozen=True)
class _Candidate:
    """A change of a prefix: which own names it makes names of the base, how many of them of its shape."""

    rule: _Rule
    pairs: Mapping[str, str]
    alike: int

    def competes(self, other: _Candidate) -> bool:
        """Return whether both want the same tensor, on either side."""
        mine, theirs = self.pairs, other.pairs
        return bool(mine.keys() & theirs.keys() or set(mine.values()) & set(theirs.values()))


class _Matcher:
    """What of two models is matched so far, and what is not: `*_unmatched` by the names' new spelling."""

    def __init__(self, own: Mapping[str, Shape], base: Mapping[str, Shape]) -> None:
        self.own, self.base = own, base
        self.result = Correspondence({name: name for name in base if name in own})
        self.own_unmatched = {newly_spelled(name): name for name in own if name not in base}
        self.base_unmatched = {newly_spelled(name): name for name in base if name not in own}

    def matched(self) -> Correspondence:
        pairs, self.result.refused = self._alike(self._without_wrappers())
        self._accept(pairs)
        dropped: set[_Rule] = set()
        # Every pair of tensors that agree from their layer on proposes the change of prefix between them. All
        # tensors vote on each change: it has the votes of those that it gives a partner of their shape. The
        # right one gets nearly all of them, a wrong one a few that happen to be alike. So the one with most
        # votes is accepted, and the remaining tensors vote again, for another tower has another prefix.
        while candidates := self._candidates(dropped):
            best = candidates[0]
            rivals = [c for c in candidates[1:] if c.alike == best.alike and c.competes(best)]
            if rivals:  # two towers of one size: to guess would merge the weights of one with the other's
                self.result.refused.append(_ambiguity([c.rule for c in (best, *rivals)]))
                dropped.update(c.rule for c in (best, *rivals))
            else:
                self._accept(best.pairs)
        return self.result

    def _accept(self, pairs: Mapping[str, str]) -> None:
        for own, base in pairs.items():
            self.result.names[self.base_unmatched.pop(base)] = self.own_unmatched.pop(own)

    def _without_wrappers(self) -> dict[str, str]:
        """Return the base's spelled name by the own one, where one on either side agrees but for wrappers."""
        base_names = grouped(self.base_unmatched, without_wrappers)
        pairs: dict[str, str] = {}
        for key, own_names in grouped(self.own_unmatched, without_wrappers).items():
            matches = [
                (own, base)
                for own, base in product(own_names, base_names.get(key, ()))
                if len(own_names) == len(base_names[key]) == 1 or self._shape(own) == self._base_shape(base)
            ]
            if len(matches) == 1:
                own, base = matches[0]
                pairs[own] = base
        return pairs

    def _candidates(self, dropped: set[_Rule]) -> list[_Candidate]:
        """Return the changes of a prefix by which two models are alike, the one with most tensors first."""
        by_tail: defaultdict[tuple[str, Shape], list[str]] = defaultdict(list)
        for name in self.base_unmatched:
            by_tail[_tail(name), self._base_shape(name)].append(name)
        rules = {
            differing_prefixes(own, base)
            for own in self.own_unmatched
            for base in by_tail.get((_tail(own), self._shape(own)), ())
        }
        candidates = []
        for rule in sorted(rule for rule in rules - dropped if _is_prefix(rule)):
            renamed = {own: _reprefixed(own, rule) for own in self.own_unmatched}
            pairs = {own: new for own, new in renamed.items() if new in self.base_unmatched}
            layers = {own for own in pairs if _stack(own)}
            pairs, refused = self._alike(pairs)
            if not (layers & pairs.keys() if layers else self._is_most(pairs)):
                dropped.add(rule)
                self.result.refused += [line for line in refused if line not in self.result.refused]
                continue
            alike = sum(self._shape(own) == self._base_shape(base) for own, base in pairs.items())
            candidates.append(_Candidate(rule, pairs, alike))
        return sorted(candidates, key=lambda candidate: -candidate.alike)

    def _is_most(self, pairs: Mapping[str, str]) -> bool:
        """Return whether pairs are enough where no layers show that two models are alike."""
        return len(pairs) >= _LEAST_SHARE * len(self.base)

    def _alike(self, pairs: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Return the pairs without stacks of layers that are not alike, and what those have besides."""
        stacks = {(_stack(own), _stack(base)) for own, base in pairs.items()}
        unlike: set[tuple[str, str]] = set()
        refused = []
        for own, base in sorted(stack_pair for stack_pair in stacks if stack_pair[0]):
            # a layer with a tensor that has no partner computes something else: then equal names mean little
            extra = [
                n for n in self.own_unmatched if _stack(n) == own and n not in pairs and not is_buffer(n)
            ]
            wanted = [n for n in self.base_unmatched if _stack(n) == base and not is_buffer(n)]
            if sum(_stack(n) == base for n in pairs.values()) < _LEAST_SHARE * len(wanted):
                unlike.add((own, base))
            elif extra:
                unlike.add((own, base))
                spelled = few([self.own_unmatched[name] for name in extra])
                refused.append(f"its layers have tensors that '{base}' has no place for: {spelled}")
        return {o: b for o, b in pairs.items() if (_stack(o), _stack(b)) not in unlike}, refused

    def _shape(self, spelled: str) -> Shape:
        return self.own[self.own_unmatched[spelled]]

    def _base_shape(self, spelled: str) -> Shape:
        return self.base[self.base_unmatched[spelled]]


def is_buffer(name: str) -> bool:
    """Return whether a name is that of a mask, of positions or of frequencies, which some versions save."""
    return _BUFFER.search(name) is not None


def _stack(name: str) -> str:
    """Return the prefix of the stack of layers that a tensor is in, or an empty text."""
    place = layer_of(name)
    return place[0] if place else ""


def _tail(name: str) -> str:
    """Return the end of a name that no change of prefix touches: from its layers on, or two words."""
    parts = name.split(".")
    return ".".join(parts[max(0, layer_position(parts) - 1) :])


def _reprefixed(name: str, rule: _Rule) -> str:
    """Return a name with its prefix replaced; an empty text if it has another."""
    old, new = rule
    if old and not name.startswith(old + "."):
        return ""
    rest = name[len(old) + 1 :] if old else name
    return f"{new}.{rest}" if new else rest


def _is_prefix(rule: _Rule) -> bool:
    """Return whether a rule adds words or leaves some out, and swaps none: an encoder is no decoder."""
    old, new = (_words(prefix) for prefix in rule)
    short, long = sorted((old, new), key=len)
    following = iter(long)  # which `in` uses up: the words must come in the same order
    return all(word in following for word in short)


def _words(prefix: str) -> list[str]:
    return [word for word in without_wrappers(prefix + ".0").split(".")[:-1] if word]


def _ambiguity(rules: Iterable[_Rule]) -> str:
    """Return a line on places that are equally good."""
    places = [f"'{old}' read as '{new}'" if old else f"'{new}' put before" for old, new in rules]
    return f"its names fit equally with {' and with '.join(places[:3])}"
