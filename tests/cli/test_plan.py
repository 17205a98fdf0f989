"""submerge plan."""

import os
from pathlib import Path

import pytest
import torch

from _cli import ROOM, cli, merge, standard_input
from _models import Family, family, perturbed, read, write


def test_plan(made: Family, recipe: Path, tmp_path: Path) -> None:
    base = read(made.base) | {"model.ids": torch.arange(3)}
    write(made.base, base, tokens={"a": 0, "b": 1})
    write(made.tuned[0], perturbed(base, 0) | {"extra.weight": torch.ones(1)}, tokens={"a": 0, "b": 1})
    before = sorted(os.listdir(tmp_path))
    result = cli("plan", recipe, *ROOM)
    assert result.code == 0
    assert result.err == ""
    text = result.out
    for part in (
        "ties", "model.layers.*.mlp.up.weight", "48×16", "extra.weight", "vocabularies are equal", "warning",
        "I64 is not", "reads", "writes", "model.safetensors", "carries", "tokenizer.json", "memory", "time",
    ):  # fmt: skip
        assert part in text, part
    assert sorted(os.listdir(tmp_path)) == before

    found = cli("plan", recipe, *ROOM, "--json").json
    assert set(found) == {
        "method", "equation", "models", "groups", "vocabulary", "warnings", "reads", "writes", "files",
        "side_files", "workers", "memory", "compute_seconds", "free",
    }  # fmt: skip
    assert [m["role"] for m in found["models"]] == ["base", "merged", "merged"]
    assert found["models"][1]["unused"] == ["extra.weight"]
    groups = {g["tensors"]: g for g in found["groups"]}
    assert groups["model.layers.*.mlp.up.weight"]["count"] == 2
    assert groups["model.ids"]["treatment"] == "keep"
    assert sum(g["count"] for g in found["groups"]) == len(base)
    assert sum(g["elements"] for g in found["groups"]) == sum(t.numel() for t in base.values())
    assert merge(recipe, tmp_path / "out").code == 0
    assert found["files"] == {"model.safetensors": (tmp_path / "out" / "model.safetensors").stat().st_size}
    assert found["writes"] == sum(found["files"].values())


def test_a_stack_of_layers_is_shown_as_a_picture(made: Family, tmp_path: Path) -> None:
    for folder in (made.base, *made.tuned):
        (folder / "config.json").write_text('{"model_type": "toy", "num_hidden_layers": 2}')
    one, other = made.tuned
    recipe = tmp_path / "stack.yaml"
    recipe.write_text(
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
        f"- sources: [{{model: {one}, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {one}, layer_range: [0, 1]}}, {{model: {other}, layer_range: [1, 2]}}]\n"
    )
    result = cli("plan", recipe, *ROOM)
    assert result.code == 0, result.err
    lines = [
        line.replace(str(one), "ONE").replace(str(other), "OTHER").split() for line in result.out.splitlines()
    ]
    start = next(i for i, line in enumerate(lines) if line[:1] == ["stack"])
    assert lines[start : start + 7] == [
        ["stack", "model.layers:", "3", "layers"],
        ["0–1", "←", "ONE", "0–1", "██"],
        ["2", "←", "ONE", "0", "█·"],
        ["OTHER", "1", "·█"],
        ["before", "the", "layers:", "ONE"],
        ["behind", "the", "layers:", "ONE", "+", "OTHER"],
        ["not", "read:", "0", "of", "OTHER"],
    ]
    told = cli("explain", recipe, "--tensor", "layers.2.norm")
    assert [line.split()[2] for line in told.out.splitlines() if "reads" in line] == [
        "model.layers.0.norm.weight",
        "model.layers.1.norm.weight",
    ]


def test_plan_of_names_that_look_like_markup(tmp_path: Path) -> None:
    root = tmp_path / "[bold]x[" / "y]:smile:"
    shapes = {"a[0].weight": (2, 2), "[/INST].weight": (2,)}
    found = family(root, shapes=shapes, tokens={"[/INST]": 0})
    (found.tuned[0] / "tokenizer.json").write_text('{"model": {"vocab": {"[/b]": 0}}}')
    recipe = found.write_recipe("task_arithmetic", rules={"vocabulary": "by-position"})
    result = cli("plan", recipe, *ROOM)
    assert result.code == 0, result.err
    for part in ("a[0].weight", "[/INST].weight", "'[/b]'", "'[/INST]'"):
        assert part in result.out
    assert ":smile:" in result.out.replace("\n", "")
    assert merge(recipe, tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"merge_method: ties\n\xff", "standard input:2: this is not UTF-8 text"),
        (b"# \n" + b" " * (1 << 20), "standard input: larger than 1048576 bytes"),
    ],
)
def test_standard_input_that_is_no_recipe(
    monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", standard_input(content))
    result = cli("plan", "-")
    assert (result.code, result.err) == (2, f"error: {message} — is this a recipe?\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_standard_input_as_editors_of_windows_write_it(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, encoding: str
) -> None:
    """Whatever the locale's encoding is."""
    monkeypatch.setattr("sys.stdin", standard_input(recipe.read_text().encode(encoding), "ascii"))
    assert cli("plan", "-").out.splitlines()[0] == cli("plan", recipe).out.splitlines()[0]
