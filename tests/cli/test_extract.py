"""`submerge extract-lora`, and what the other commands print of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from _adapters import Tuned, make_tuned
from _cli import ROOM, Result, cli, merge
from _models import read, write

OPTIONS = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    made = make_tuned(tmp_path_factory.mktemp("made"), "llama", OPTIONS, OPTIONS | {"r": 2})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (made.base / "config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def tuned(made: Tuned) -> Path:
    return made.full()[0]


def extract(model: object, base: object, out: Path, *more: object) -> Result:
    return cli("extract-lora", model, "--base", base, "-o", out, *ROOM, *more)


def test_it_prints_the_path_and_the_errors(made: Tuned, tuned: Path, tmp_path: Path) -> None:
    result = extract(tuned, made.base, tmp_path / "out", "--rank", 2)
    assert result.code == 0, result.err
    assert result.err == ""
    path, summary, *layers, last = result.out.splitlines()
    assert path == str(tmp_path / "out")
    assert summary.startswith("4 weights, rank 2 to 2 · relative error of the updates 0.")
    assert len(layers) == 4
    errors = [float(line.split()[0]) for line in layers]
    assert errors == sorted(errors, reverse=True)
    assert all("rank 2  model.layers." in line for line in layers)
    serve = f"vllm serve {made.base} --enable-lora --max-lora-rank 8 --lora-modules out={tmp_path / 'out'}"
    assert last == f"serve it with vLLM: {serve}"
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


def test_a_rank_that_is_not_needed_is_not_written(made: Tuned, tuned: Path, tmp_path: Path) -> None:
    result = extract(tuned, made.base, tmp_path / "out", "--rank", 12)
    assert "--max-lora-rank 8 " in result.out.splitlines()[-1], "the least of those that vLLM allows"
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3


def test_json_and_verbose(made: Tuned, tuned: Path, tmp_path: Path) -> None:
    result = extract(tuned, made.base, tmp_path / "json", "--energy", 0.8, "--json")
    figures = json.loads(result.out)["figures"]
    shown = extract(tuned, made.base, tmp_path / "text", "--energy", 0.8, "--verbose").out
    ranked = {name: found for name, found in figures.items() if found.get("rank")}
    assert len(ranked) == 4
    for name, found in ranked.items():
        assert f"{found['error']:.4f}  rank {found['rank']}  {name}" in shown
        assert found["kept_by_rank"] >= 0.8
    assert read(tmp_path / "json").keys() == read(tmp_path / "text").keys()


def test_an_adapter_can_be_cut(made: Tuned, tmp_path: Path) -> None:
    """The model may itself be an adapter of the base; its errors are told alike."""
    for number, model in enumerate((made.adapters[0], f"{made.base}+{made.adapters[0]}")):
        out = tmp_path / f"{number}"
        figures = json.loads(extract(model, made.base, out, "--rank", 1, "--json").out)["figures"]
        folded = made.loaded(out)
        for name, found in figures.items():
            update = made.merged[0][name] - made.state[name]
            error = float((folded[name] - made.merged[0][name]).norm() / update.norm())
            assert found["error"] == pytest.approx(error, rel=1e-3)
            assert error > 0.1


def test_what_has_no_place_is_warned_about(made: Tuned, tmp_path: Path) -> None:
    tuned = dict(made.merged[0])
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 1
    write(tmp_path / "tuned", tuned, {"model_type": "llama"})
    result = extract(tmp_path / "tuned", made.base, tmp_path / "out", "--rank", 3)
    assert result.code == 0
    assert result.err == (
        "warning: 1 tensor differs from the base and has no place in an adapter: model.norm.weight\n"
    )


def test_requests_that_cannot_be(made: Tuned, tuned: Path, tmp_path: Path) -> None:
    out, same = tmp_path / "out", write(tmp_path / "same", made.state, {"model_type": "llama"})
    matrix = "model.layers.0.self_attn.q_proj.weight"
    odd = write(tmp_path / "odd", made.state | {matrix: torch.ones(17, 16)})
    norm = {"model.norm.weight": made.state["model.norm.weight"] + 1}
    normed = write(tmp_path / "normed", made.state | norm, {"model_type": "llama"})
    lacking = write(tmp_path / "lacking", {n: t for n, t in made.state.items() if n != matrix})
    cases: list[tuple[object, object, tuple[object, ...], int, str]] = [
        (tuned, made.base, (), 2, "neither a rank nor an energy"),
        (tuned, made.base, ("--energy", 1.5), 2, "error: --energy: energy is a share in (0, 1]"),
        (tuned, made.base, ("--rank", 4, "--dtype", "float64"), 2, "float64 is no type for an adapter"),
        (tuned, made.base, ("--rank", 4, "--dtype", "nix"), 2, "unknown dtype"),
        (tuned, tmp_path / "nix", ("--rank", 4), 2, "no such file or folder"),
        (tmp_path / "nix", made.base, ("--rank", 4), 2, "no such file or folder"),
        (tuned, made.adapters[0], ("--rank", 4), 2, "where a model is needed"),
        (made.base, made.base, ("--rank", 4), 2, "is the base itself"),
        (same, made.base, ("--rank", 4), 1, "every merged update is zero"),
        (
            normed,
            made.base,
            ("--rank", 4),
            1,
            "no place for what differs from the base: model.norm.weight — ",
        ),
        (odd, made.base, ("--rank", 4), 2, "shapes differ"),
        (odd, made.base, ("--rank", 4), 2, "output: {as: adapter, rank: 4}, rules: {shape: base}}"),
        (lacking, made.base, ("--energy", 0.9), 2, "as: adapter, energy: 0.9}, rules: {missing: base}}"),
    ]
    for model, base, flags, code, message in cases:
        result = extract(model, base, out, *flags)
        assert result.code == code, result.err
        assert message in result.err
        assert "Traceback" not in result.err
        assert "bug in submerge" not in result.err
        assert result.out == ""
        assert not out.exists()
    assert extract(tuned, made.base, made.base / "x", "--rank", 4).code == 2
    assert extract(tuned, made.base, out, "--rank", 0).code == 2


def test_added_tokens_are_left_out(made: Tuned, tuned: Path, tmp_path: Path) -> None:
    """An adapter has no place for embeddings, so that theirs may have other rows than the base's."""
    state = load_file(tuned / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.ones(2, 16)])
    longer = write(tmp_path / "longer", state, {"model_type": "llama", "vocab_size": 66})
    assert extract(tuned, made.base, tmp_path / "plain", "--rank", 4).code == 0
    result = extract(longer, made.base, tmp_path / "out", "--rank", 4)
    assert result.code == 0, result.err
    assert "lm_head.weight" in result.err
    assert "[66, 16] for [64, 16]: added tokens are not in it" in result.err
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()


def test_overwrite(made: Tuned, tuned: Path, tmp_path: Path) -> None:
    assert extract(tuned, made.base, tmp_path / "out", "--rank", 2).code == 0
    again = extract(tuned, made.base, tmp_path / "out", "--rank", 1)
    assert again.code == 2
    assert "--overwrite" in again.err
    assert extract(tuned, made.base, tmp_path / "out", "--rank", 1, "--overwrite").code == 0


# --- the other commands ---------------------------------------------------------------------------


def test_a_rank_asks_for_an_adapter(made: Tuned, tmp_path: Path) -> None:
    recipe = made.written(tmp_path / "r.yaml")
    result = merge(recipe, tmp_path / "out", "--rank", 2)
    assert result.code == 0, result.err
    assert "kept by the rank: " in result.out
    assert f"serve it with vLLM: vllm serve {made.base} --enable-lora --max-lora-rank 8" in result.out
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert "adapter_model.safetensors" in cli("plan", recipe, "--rank", 2, *ROOM).out


def test_a_checkpoint_asks_for_no_rank(made: Tuned, tmp_path: Path) -> None:
    recipe = made.written(tmp_path / "r.yaml", output={"as": "adapter", "rank": 2})
    result = merge(recipe, tmp_path / "out", "--as", "checkpoint")
    assert result.code == 0, result.err
    assert "vLLM" not in result.out
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("method", ["cat", "ssam", "ties", "knots_ties"])
def test_plan_and_explain_know_adapters(method: str, base: bool, made: Tuned, tmp_path: Path) -> None:
    own = {"weight": 1.0, "density": 0.5} if method == "ties" else None
    options = {"method": method, "base": base, "own": own}
    recipe = made.written(tmp_path / "r.yaml", output={"as": "adapter"}, **options)
    planned = cli("plan", recipe, *ROOM)
    assert planned.code == 0, planned.err
    plan = json.loads(cli("plan", recipe, *ROOM, "--json").out)
    assert {(group["treatment"], group["count"]) for group in plan["groups"]} == {("merge", 2)}
    assert plan["reads"] == sum((a / "adapter_model.safetensors").stat().st_size for a in made.adapters)
    explained = cli("explain", recipe, "-t", "q_proj")
    assert explained.code == 0, explained.err
    assert explained.out.count("merge → factors") == 2
    assert str(made.adapters[0]) in explained.out


def test_plan_says_what_has_no_place(tmp_path: Path) -> None:
    made = make_tuned(tmp_path, "llama", OPTIONS | {"bias": "lora_only", "modules_to_save": ["lm_head"]})
    recipe = made.written(tmp_path / "r.yaml", output={"as": "adapter"})
    plan = json.loads(cli("plan", recipe, *ROOM, "--json").out)
    found = {group["tensors"]: group["treatment"] for group in plan["groups"]}
    assert found == {
        "lm_head.weight": "merge",
        "model.layers.*.mlp.up_proj.weight": "merge",
        "model.layers.*.self_attn.q_proj.bias": "drop",
        "model.layers.*.self_attn.q_proj.weight": "merge",
    }
    explained = cli("explain", recipe, "-t", "q_proj.bias")
    assert "an adapter has no place for it" in explained.out
    result = merge(recipe, tmp_path / "out", "--verbose")
    assert "tensors: 5 merged, 2 left to the base" in result.out
    assert "warning: 2 tensors differ from the base" in result.err
    assert "q_proj.bias: left to the base: an adapter has no place for it" in result.err


def test_verify_prints_of_an_adapter(made: Tuned, tmp_path: Path) -> None:
    merge(made.written(tmp_path / "r.yaml", output={"as": "adapter"}), tmp_path / "out")
    assert cli("verify", tmp_path / "out").code == 0
    path = tmp_path / "out" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)
    result = cli("verify", tmp_path / "out")
    assert result.code == 1
    assert "are not those that were written" in result.out + result.err
