"""submerge methods."""

import pytest

from _cli import cli
from submerge.methods import METHODS

FAMILIES = {
    "task_arithmetic": (
        "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"
    ),
    "iso": ("iso_c", "iso_cts"),
    "ram": ("ramplus_tl",),
    "many": ("regmean",),
}  # fmt: skip
MODULES = {name: module for module, names in FAMILIES.items() for name in names}
"""Where methods are that are not in a module of their name."""


@pytest.mark.parametrize("name", ["TIES", "Ties", "dare-ties", "DARE ties", "Model Stock", "TASK_arithmetic"])
def test_methods_are_found_in_any_spelling(name: str) -> None:
    result = cli("methods", name, "--json")
    assert result.json["name"] == name.lower().replace("-", "_").replace(" ", "_")


def test_methods() -> None:
    result = cli("methods")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == list(METHODS)
    found = cli("methods", "--json").json
    assert [m["name"] for m in found] == list(METHODS)
    for method in found:
        assert set(method) == {
            "name", "title", "equation", "source", "use", "base", "models", "differs", "options"
        }  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_one_method(name: str) -> None:
    result = cli("methods", name)
    assert result.code == 0
    method = METHODS[name]
    assert method.equation in result.out
    assert method.source in result.out
    assert f"\ncode     submerge.methods.{MODULES.get(name, name)}\n" in result.out
    for option in method.options:
        assert f"  {option.name} (" in result.out
        assert option.help in result.out
    found = cli("methods", name, "--json").json
    assert [o["name"] for o in found["options"]] == [o.name for o in method.options]
    assert all(o["required"] == (o["default"] is None) for o in found["options"])


@pytest.mark.parametrize(
    ("name", "hint"), [("tise", "did you mean 'ties'?"), ("zzzz", "there are linear, slerp")]
)
def test_no_such_method(name: str, hint: str) -> None:
    result = cli("methods", name)
    assert (result.code, result.out) == (2, "")
    assert f"no method is called '{name}'" in result.err
    assert hint in result.err
