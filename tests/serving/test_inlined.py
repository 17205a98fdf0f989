"""A module as one file that runs without the library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from submerge.serving import _inlined
from submerge.serving._inlined import inlined

Write = Callable[[Mapping[str, str]], str]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A function that makes a library `house` of these files, and inlines its `main`."""

    def write(files: Mapping[str, str]) -> str:
        (tmp_path / "house").mkdir()
        for name, text in {"__init__": "", **files}.items():
            (tmp_path / "house" / f"{name}.py").write_text(text)
        return inlined("house.main", f"# {tmp_path}")

    monkeypatch.setattr(_inlined, "LIBRARY", "house")
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]


def run(text: str) -> dict[str, Any]:
    module = sys.modules["house.alone"] = ModuleType("house.alone")
    exec(compile(text, "alone", "exec"), vars(module))
    return vars(module)


MAIN = '''"""What it is for."""

from __future__ import annotations

from house.rules import Rule as Law
from house.rules import parse

ROUND = parse("round")


def law() -> type:
    return Law


Rule = "of its own"
'''
RULES = '''"""Rules."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from house.numbers import half

if TYPE_CHECKING:
    from house.heavy import Heavy

LEAST: int = 1
"""The least number."""


@dataclass(frozen=True)
class Rule:
    """A rule.

    Examples:
        >>> parse("round").least
        1
    """

    name: str

    @property
    def least(self) -> int:
        from house.numbers import third

        return half(2 * LEAST) * third(3)

    def unused(self, heavy: "Heavy") -> float:
        return math.pi


def parse(text: str) -> Rule:
    return Round(text)


class Round(Rule):
    pass


def not_needed() -> None:
    import house.heavy
'''
NUMBERS = "def half(x):\n    return x // 2\n\n\ndef third(x):\n    return x // 3\n"


def test_what_is_used_comes_along_in_an_order_that_runs(house: Write) -> None:
    text = house({"main": MAIN, "rules": RULES, "numbers": NUMBERS, "heavy": "raise ImportError"})
    names = run(text)
    assert names["__doc__"] == "What it is for."
    assert names["ROUND"].least == 1
    assert names["law"]().__name__ == "Rule", "the name of before, though the file has another of it"
    assert names["Rule"] == "of its own"
    assert "house" not in text.replace("/house", "")
    assert "not_needed" not in text
    assert ">>>" not in text
    assert '"""The least number."""' in text
    assert text.index("from __future__") < text.index("import math") < text.index("# /")


def test_two_things_of_one_name_are_refused(house: Write) -> None:
    one = "from house.two import second\n\n\ndef _help():\n    return second()\n"
    two = "def _help():\n    return 2\n\n\ndef second():\n    return _help()\n"
    with pytest.raises(ValueError, match=r"defined twice in what house\.main needs: _help"):
        house({"main": f'"""It."""\n\n{one}', "two": two})
