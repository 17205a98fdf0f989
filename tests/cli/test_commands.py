"""What the commands print, where, and with which exit code."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.main import get_command

import submerge
from _cli import ROOM, cli, merge
from _models import ROOM as SETTINGS
from _models import Family, family, perturbed, read, state, write
from submerge.cli import _progress
from submerge.cli._app import app
from submerge.cli._common import size
from submerge.methods import METHODS


@pytest.fixture
def made(tmp_path: Path) -> Family:
    return family(tmp_path / "models", tokens={"a": 0, "b": 1})


@pytest.fixture
def recipe(made: Family) -> Path:
    return made.write_recipe(
        "ties",
        {
            "density": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}],
            "normalize": True,
        },
    )


# --- merge ----------------------------------------------------------------------------------------


def test_merge_prints_the_path_and_a_summary(recipe: Path, tmp_path: Path) -> None:
    result = merge(recipe, tmp_path / "out")
    assert result.code == 0
    path, *summary = result.out.splitlines()
    assert path == str(tmp_path / "out")
    assert len(summary) == 3
    assert re.search(r"[1-9][\d.]* [kMG]?B/s$", summary[0])
    assert "peak memory" in summary[1]
    assert summary[2] == "tensors: 9 merged"
    assert result.err == ""


def test_quiet_prints_the_path_alone(made: Family, tmp_path: Path) -> None:
    write(made.tuned[0], read(made.tuned[0]) | {"extra": torch.ones(1)}, tokens={"a": 0, "b": 1})
    recipe = made.write_recipe("ties")
    for flag in ("-q", "--quiet"):
        result = merge(recipe, tmp_path / flag, flag)
        assert result.out == f"{tmp_path / flag}\n"
        assert result.err == ""


def test_warnings_go_to_stderr(made: Family, tmp_path: Path) -> None:
    write(made.tuned[0], read(made.tuned[0]) | {"extra": torch.ones(1)}, tokens={"a": 0, "b": 1})
    result = merge(made.write_recipe("ties"), tmp_path / "out")
    assert result.err.startswith("warning: ")
    assert "extra" in result.err
    assert "warning:" not in result.out
    assert result.out.startswith(str(tmp_path / "out"))


def test_merge_json(made: Family, recipe: Path, tmp_path: Path) -> None:
    found = merge(recipe, tmp_path / "out", "--json").json
    assert set(found) == {
        "out", "seconds", "bytes_read", "bytes_written", "reading", "writing", "peak_memory_bytes", "workers",
        "tensors", "resumed", "nonfinite", "differs", "warnings", "rate", "figures", "serve",
    }  # fmt: skip
    assert found["out"] == str(tmp_path / "out")
    assert found["tensors"] == {"merge": 9}
    assert found["bytes_written"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    inputs = sum(t.nbytes for f in (made.base, *made.tuned) for t in read(f).values())
    assert found["bytes_read"] >= inputs


def test_a_terminal_sees_a_bar_on_stderr(recipe: Path, tmp_path: Path) -> None:
    result = cli("merge", recipe, "-o", tmp_path / "out", *ROOM, terminal=True)
    assert result.code == 0
    assert "merging" in result.err
    assert "merging" not in result.out
    assert result.out.splitlines()[0] == str(tmp_path / "out")
    assert re.search(r"100%  [\d.]+ kB at [\d.]+ [kMG]?B/s", result.err), result.err
    silent = cli("merge", recipe, "-o", tmp_path / "quiet", "-q", *ROOM, terminal=True)
    assert (silent.out, silent.err) == (f"{tmp_path / 'quiet'}\n", "")
    assert cli("plan", recipe, *ROOM, terminal=True).code == 0


def test_a_log_gets_a_line_now_and_then(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert merge(recipe, tmp_path / "short").err == ""
    monkeypatch.setattr(_progress, "FIRST", 0.0)
    result = merge(recipe, tmp_path / "out")
    assert re.fullmatch(r"merging: \d+%, [\d.]+ k?B at [\d.]+ [kMG]?B/s(, about \d+ s left)?\n", result.err)
    assert merge(recipe, tmp_path / "quiet", "--quiet").err == ""


def test_the_folder_may_follow_the_recipe(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("merge", recipe, out, "--quiet", *ROOM).out == f"{out}\n"
    assert cli("merge", recipe, out, "-o", out, "--overwrite", "-q", *ROOM).out == f"{out}\n"
    both = cli("merge", recipe, out, "--out", tmp_path / "other", *ROOM)
    assert (both.code, "two folders are named" in both.err) == (2, True)
    none = cli("merge", recipe)
    assert (none.code, "submerge merge recipe.yaml merged/" in none.err) == (2, True)


COMMANDS = ["merge", "plan", "explain", "export", "extract-lora", "methods", "route", "verify"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_at_80_columns_breaks_no_word(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli(command, "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    words = set(shown.translate({ord(line): " " for line in "│╭╮╰╯─"}).split())
    parsed = get_command(app).commands[command]  # type: ignore[attr-defined]
    texts = [parsed.help, *(getattr(parameter, "help", None) or "" for parameter in parsed.params)]
    options = [name for parameter in parsed.params for name in parameter.opts if name.startswith("-")]
    missing = [word for word in [*" ".join(texts).split(), *options] if word not in words]
    assert not missing, f"{missing} in\n{shown}"
    for line in parsed.help.splitlines():  # commands to copy stand on one line
        if line.startswith("submerge"):
            assert any(line in row for row in shown.splitlines()), line


@pytest.mark.parametrize("name", ["TIES", "Ties", "dare-ties", "DARE ties", "Model Stock", "TASK_arithmetic"])
def test_methods_are_found_in_any_spelling(name: str) -> None:
    result = cli("methods", name, "--json")
    assert result.json["name"] == name.lower().replace("-", "_").replace(" ", "_")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("submerge mer", ["merge"]),
        ("submerge merge --shard", ["--shard-size"]),
        ("submerge methods breadcrumbs_", ["breadcrumbs_ties"]),
        ("submerge merge recipe.yaml --as ad", ["adapter"]),
        ("submerge merge rec", []),  # nothing of its own: the shell completes files
    ],
)
def test_a_shell_completes(line: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SUBMERGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert cli().out.split() == found


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (12_345_678_901, "12.3 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_a_path_that_is_no_utf8(recipe: Path, tmp_path: Path) -> None:
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert merge(recipe, out).code == 0
    assert cli("verify", out, "--no-load").code == 0
    assert json.loads((out / "submerge.json").read_bytes())
    assert "caf\\udce9" in (out / "README.md").read_text(encoding="utf-8")


def test_a_hub_id_without_a_network(made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = made.write_recipe("ties", base_model="some-org/some-model@abc")
    result = merge(recipe, tmp_path / "out")
    assert result.code in (1, 2)
    assert "some-org/some-model" in result.err
    assert "hf download some-org/some-model --revision abc" in result.err
    assert "Traceback" not in result.err


def test_nothing_is_said_on_stdout_when_it_fails(tmp_path: Path) -> None:
    result = merge(tmp_path / "nowhere.yaml", tmp_path / "out", "--json")
    assert (result.code, result.out) == (2, "")


def test_every_problem_has_a_line(made: Family, tmp_path: Path) -> None:
    recipe = made.write_recipe("ties", {"density": 2, "lamda": 1}, dtype="int4")
    result = merge(recipe, tmp_path / "out")
    lines = result.err.splitlines()
    assert result.code == 2
    assert len(lines) == 3
    assert all(line.startswith("error: ties.yaml:") for line in lines)
    assert "did you mean 'lambda'?" in result.err


# --- plan -----------------------------------------------------------------------------------------


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


# --- explain --------------------------------------------------------------------------------------


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


# --- methods --------------------------------------------------------------------------------------


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


# --- verify ---------------------------------------------------------------------------------------


@pytest.fixture
def merged(recipe: Path, tmp_path: Path) -> Path:
    return submerge.merge(recipe, tmp_path / "out", settings=replace(SETTINGS, shard_size=5000)).out


def test_verify(merged: Path) -> None:
    result = cli("verify", merged)
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith("sound: 9 tensors")
    assert "note" in result.out, "there is no class called ToyModel"
    found = cli("verify", merged, "--json", "--no-load").json
    assert set(found) == {
        "folder", "tensors", "bytes", "nonfinite", "problems", "skipped", "loaded", "sound"
    }  # fmt: skip
    assert found["sound"] is True
    assert found["tensors"] == 9


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_verify_names_the_tensor_of_a_flipped_bit(merged: Path) -> None:
    index = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    file = index["model.norm.weight"]
    tensors = [n for n, f in index.items() if f == file]
    flip(merged / file, -1)  # in the file's last tensor
    result = cli("verify", merged, "--no-load")
    assert result.code == 1
    wrong = [line for line in result.out.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 1
    assert any(name in wrong[0] for name in tensors)
    assert file in wrong[0]
    assert "NOT sound: 1 problem" in result.out
    assert cli("verify", merged, "--no-load", "--json").json["sound"] is False


@pytest.mark.parametrize("damage", ["nan", "shard gone", "shard cut", "renamed", "resaved", "other base"])
def test_verify_finds(merged: Path, made: Family, damage: str) -> None:
    shard = merged / "model-00001-of-00004.safetensors"
    first = next(iter(read_shard(shard)))
    argv: list[object] = ["verify", merged, "--no-load"]
    part = first
    if damage == "nan":
        tensors = read_shard(shard)
        tensors[first].view(-1)[0] = torch.nan
        save(tensors, shard)
        part = f"{first}: 1 values are NaN or Inf"
    elif damage == "shard gone":
        shard.unlink()
        part = f"the shard {shard.name}, which the index names, is missing"
    elif damage == "shard cut":
        os.truncate(shard, 1000)
        part = "truncated"
    elif damage == "renamed":
        tensors = read_shard(shard)
        save({("new" if n == first else n): t for n, t in tensors.items()}, shard)
        part = "index"
    elif damage == "resaved":
        save({n: t.to(torch.bfloat16) for n, t in read_shard(shard).items()}, shard)
        part = f"{first}: is BF16"
    elif damage == "other base":
        other = state({"model.norm.weight": (3,)})
        argv += ["--base", write(merged.parent / "other", other)]
        part = "model.norm.weight: the base's shape is [3]"
    result = cli(*argv)
    assert result.code == 1, result.out
    assert part in result.out
    assert "bug in submerge" not in result.err


def read_shard(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {n: t.clone() for n, t in load_file(file).items()}


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "manifest",
    [
        "{", "[]", "{}", '{"tensors": {}}', '{"tensors": [], "recipe": {}}', "\0\xff",
        '{"tensors": {"model.norm.weight": {}}, "recipe": {}}',
        '{"tensors": {"model.norm.weight": 3}, "recipe": {}}',
        '{"tensors": {"a": {"dtype": "F32", "shape": [16], "block": 0, "xxh3_128": "a"}}, "recipe": {}}',
    ],
)  # fmt: skip
def test_verify_with_a_damaged_manifest(merged: Path, manifest: str) -> None:
    (merged / "submerge.json").write_text(manifest)
    result = cli("verify", merged, "--no-load")
    assert result.code == 2
    assert "submerge.json" in result.err
    assert "the file is damaged" in result.err


def test_verify_of_other_folders(made: Family, tmp_path: Path) -> None:
    for folder in (made.base, tmp_path / "nowhere"):
        result = cli("verify", folder)
        assert (result.code, result.out) == (2, "")
        assert "there is no submerge.json" in result.err
        assert str(folder) in result.err


def test_verify_when_the_inputs_are_gone(merged: Path, made: Family) -> None:
    made.base.rename(made.base.with_name("moved"))
    result = cli("verify", merged, "--no-load")
    assert result.code == 0
    assert "names against the base" in result.out
    result = cli("verify", merged, "--no-load", "--base", made.base.with_name("moved"))
    assert result.code == 0
    assert "names against the base" not in result.out
    assert cli("verify", merged, "--no-load", "--base", made.base).code == 2


# --- the frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [["--help"], ["-h"], ["merge", "--help"], ["plan", "-h"], ["methods", "-h"], ["--version"]]
)
def test_help_and_version(argv: list[str]) -> None:
    result = cli(*argv)
    assert result.code == 0
    assert result.err == ""
    assert (submerge.__version__ if argv == ["--version"] else "Usage") in result.out


@pytest.mark.parametrize(
    "argv",
    [
        ["merg"], ["merge"], ["merge", "r.yaml"], ["merge", "r.yaml", "-o"], ["plan"], ["explain", "r"],
        ["verify"], ["merge", "r.yaml", "-o", "o", "--threads", "0"], ["merge", "r.yaml", "-o", "o", "-x"],
        ["merge", "r.yaml", "-o", "o", "--threads", "two"],
    ],
)  # fmt: skip
def test_wrong_usage(argv: list[str]) -> None:
    result = cli(*argv)
    assert result.code == 2
    assert result.out == ""
    assert "error" in result.err.lower()
    assert "Traceback" not in result.err


def test_a_bug_is_told_in_one_line(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("submerge.engine.plan._make_plan.plan_tensors", broken)
    result = merge(recipe, tmp_path / "out")
    assert result.code == 1
    assert result.err.startswith("error: ZeroDivisionError: oh — this is a bug in submerge")
    assert result.err.count("\n") == 1
    monkeypatch.setenv("SUBMERGE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        merge(recipe, tmp_path / "out")


# --- as a user starts it --------------------------------------------------------------------------


def python(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def test_python_m_submerge(recipe: Path, tmp_path: Path) -> None:
    result = python("-m", "submerge", "merge", recipe, "-o", tmp_path / "out", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{tmp_path / 'out'}\n", "")
    assert submerge.verify(tmp_path / "out", load=False).sound


def test_a_terminal_that_knows_only_ascii(recipe: Path) -> None:
    result = python("-m", "submerge", "plan", recipe, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.returncode == 0, result.stderr
    assert "model.layers.*.mlp.up.weight" in result.stdout


def test_a_reader_that_goes_away(recipe: Path) -> None:
    command = f'"{sys.executable}" -m submerge methods --json | head -c 1; echo "${{PIPESTATUS[0]}}"'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_the_package_and_its_help_are_light() -> None:
    code = (
        "import sys, submerge\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'rich.table', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import submerge.cli\n"
        "assert not {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert callable(submerge.merge) and callable(submerge.plan)\n"
        "assert not {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert all(hasattr(submerge, name) for name in submerge.__all__)\n"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_what_computes_nothing_loads_no_torch(made: Family, tmp_path: Path) -> None:
    """Help, methods, and requests that the recipe, a flag or a model's place shows to be wrong."""
    good = made.write_recipe("ties")
    refused = {
        "syntax": "merge_method: [",
        "key": good.read_text() + "sed: 1\n",
        "method": good.read_text().replace("ties", "tie"),
        "option": good.read_text() + "parameters: {density: 2}\n",
        "model": good.read_text().replace(str(made.base), str(tmp_path / "nothing")),
    }
    for name, text in refused.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    recipes = [str(tmp_path / f"{name}.yaml") for name in refused]
    out = str(tmp_path / "out")
    requests = [
        (0, ["--help"]),
        (0, ["--version"]),
        (0, ["merge", "--help"]),
        (0, ["methods"]),
        (0, ["methods", "--json"]),
        (0, ["methods", "mass"]),
        (2, ["methods", "tie"]),
        (2, ["merge", str(good), "-o", out, "--shard-size", "large"]),
        *((2, ["plan", path]) for path in recipes),
        *((2, ["merge", path, "-o", out]) for path in recipes),
        *((2, ["explain", path, "-t", "mlp"]) for path in recipes),
    ]
    code = (
        "import sys\n"
        "from submerge.cli import main\n"
        f"for wanted, words in {requests!r}:\n"
        "    sys.argv = ['submerge', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert (stop.code or 0) == wanted, (words, stop.code)\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
