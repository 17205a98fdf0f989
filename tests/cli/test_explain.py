"""submerge explain."""

from pathlib import Path

import pytest
import torch

from _cli import cli
from _models import Family, perturbed, state, write


def test_explain(made: Family, recipe: Path) -> None:
    result = cli("explain", recipe, "--tensor", "mlp.up")
    assert result.code == 0
    assert result.out.count("model.layers.") >= 2
    assert "filter 'mlp', gradient [0.2, 0.8] at depth 0.000" in result.out
    assert "= 0.8 " in result.out
    assert "default" in result.out
    assert "(ties.yaml:" in result.out
    assert str(made.tuned[1]) in result.out

    found = cli("explain", recipe, "-t", "*.1.mlp*", "--json").json
    assert len(found) == 1
    assert found[0]["tensor"] == "model.layers.1.mlp.up.weight"
    assert found[0]["depth"] == 1.0
    assert [o["value"] for o in found[0]["options"]["density"]] == [0.8, 0.8]
    assert [o["value"] for o in found[0]["options"]["weight"]] == [0.5, 0.5]
    assert found[0]["options"]["normalize"] == [
        {"value": True, "why": found[0]["options"]["normalize"][0]["why"]}
    ]
    assert [r["model"] for r in found[0]["reads"]] == [str(f) for f in (made.base, *made.tuned)]


def test_explain_of_every_treatment(tmp_path: Path) -> None:
    base = state() | {"model.ids": torch.arange(3)}
    tuned = perturbed(base, 0) | {"model.norm.weight": torch.ones(3)}
    made = Family(write(tmp_path / "base", base), (write(tmp_path / "tuned", tuned),), "Toy")
    recipe = made.write_recipe("ties", rules={"shape": "base"})
    found = {line["tensor"]: line for line in cli("explain", recipe, "-t", "model", "--json").json}
    assert found["model.ids"]["treatment"] == "keep"
    assert "I64 is not averaged" in found["model.ids"]["why"]
    assert found["model.norm.weight"]["treatment"] == "base"
    assert "rule shape: base" in found["model.norm.weight"]["why"]
    assert "options" not in found["model.norm.weight"]
    assert "because" in cli("explain", recipe, "-t", "model.ids").out


@pytest.mark.parametrize("pattern", ["nope", "*.nope", "[", "model.layers.9"])
def test_explain_of_nothing(recipe: Path, pattern: str) -> None:
    result = cli("explain", recipe, "--tensor", pattern)
    assert (result.code, result.out) == (2, "")
    assert f"no tensor matches {pattern!r}" in result.err
    assert "names look like" in result.err
