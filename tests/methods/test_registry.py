"""Methods by name: ours first, then those of installed packages."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import submerge.methods
from submerge.engine import merge_state_dicts
from submerge.errors import WorkError
from submerge.methods import METHODS

Registry = type(METHODS)

PLUGIN = """
from submerge.algebra import combine
from submerge.methods import Method

def plan(spec, o):
    return lambda chunk: combine(chunk.updates, [-1.0] * spec.count)
    yield

def method(name):
    return Method(name, "Negation", "θ = θ_0 − Σ Δ_t", "nobody", "Never.", plan)

one = method("negate")
two = (method("negate"), method("deny"))
ours = method("ties")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that installs a package with the plugin above and these entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(package: str, *points: str) -> None:
        (tmp_path / f"{package}.py").write_text(PLUGIN)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{point} = {package}:{point}" for point in points]
        (info / "entry_points.txt").write_text("\n".join(["[submerge.methods]", *lines, ""]))

    return make


def test_methods_are_listed_by_their_names() -> None:
    assert all(method.name == name for name, method in METHODS.items())
    assert len(METHODS) == len(list(METHODS)) >= 14
    assert "ties" in METHODS
    assert "no such method" not in METHODS
    with pytest.raises(KeyError):
        METHODS["no such method"]


def test_a_package_adds_a_method(install: Callable[..., None]) -> None:
    install("submerge_test_one", "one")
    found = Registry()
    assert list(found) == [*METHODS, "negate"], "ours come first"
    assert found["negate"].title == "Negation"


def test_a_package_adds_several_methods(install: Callable[..., None]) -> None:
    install("submerge_test_two", "two")
    assert list(Registry()) == [*METHODS, "negate", "deny"]


def test_a_method_of_a_package_merges(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("submerge_test_merges", "one")
    registry = Registry()
    monkeypatch.setattr(submerge.methods, "METHODS", registry)
    monkeypatch.setattr("submerge.engine._arguments.METHODS", registry)
    base, model = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 1.0])}
    assert merge_state_dicts([model], base=base, method="negate")["w"].tolist() == [0.5, 3.0]


def test_a_second_method_of_one_name_is_refused(install: Callable[..., None]) -> None:
    install("submerge_test_twice", "one", "two")
    with pytest.raises(WorkError, match=r"submerge_test_twice:two registers a second .* 'negate'"):
        list(Registry())


def test_our_methods_cannot_be_replaced(install: Callable[..., None]) -> None:
    install("submerge_test_ours", "ours")
    with pytest.raises(WorkError, match="second merge method called 'ties'"):
        list(Registry())
