"""Adapters that are damaged, that lie, or that do not belong together; and runs that do not end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import submerge
from _adapters import CLOSE, Tuned, make_tuned, same_state
from _cli import ROOM as BIG
from _cli import cli, merge, refused
from _models import ROOM, contents
from _victim import start, until
from store.helpers_adapter import State, by_hand
from submerge.store import JOURNAL

OPTIONS = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"]}
FORMS = ("adapter", "checkpoint")
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
A = B.replace("lora_B", "lora_A")

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return make_tuned(tmp_path_factory.mktemp("pair"), "llama", OPTIONS, OPTIONS | {"r": 2})


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def tensors(change: Callable[[State], object]) -> Change:
    def rewrite(folder: Path) -> None:
        state = load_file(weights(folder))
        change(state)
        save_file(state, weights(folder))

    return rewrite


def config(**fields: Any) -> Change:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return rewrite


def cut(count: int) -> Change:
    return lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:count])


def recipe(pair: Tuned, folder: Path, where: Path, form: str, method: str = "cat", **more: Any) -> Path:
    path = where / f"{form}.yaml"
    made = pair.recipe(method, [folder, pair.adapters[1]], {"as": form}, **more)
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


DAMAGED: dict[str, tuple[Change, str]] = {
    "truncated": (cut(-100), "it is truncated"),
    "header cut": (cut(50), "it is truncated"),
    "empty": (cut(0), "is empty"),
    "a pointer": (
        lambda f: weights(f).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n"),
        "Git LFS pointer",
    ),
    "no weights": (lambda f: weights(f).unlink(), "no adapter_model.safetensors"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "JSON list"),
    "LoHa": (config(peft_type="LOHA"), "holds tensors of LoRA"),
    "X-LoRA": (config(peft_type="XLORA"), "is a XLORA adapter, which is not read"),
    "another rank": (config(r=5), "has rank 4, but the configuration says 5"),
    "PiSSA": (config(init_lora_weights="pissa"), "no update of it"),
    "no magnitudes": (config(use_dora=True), "lacks a magnitude"),
    "no B": (tensors(lambda s: s.pop(B)), "lacks its factor B"),
    "B alone longer": (tensors(lambda s: s.update({B: torch.ones(16, 5)})), "do not fit each other"),
    "another base": (tensors(lambda s: s.update({B: torch.ones(17, 4)})), "17, 16]"),
    "unknown": (tensors(lambda s: s.update({"base_model.model.x.y": torch.ones(2)})), "does not account for"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_adapters_are_refused(case: str, form: str, pair: Tuned, tmp_path: Path) -> None:
    change, message = DAMAGED[case]
    shutil.copytree(pair.adapters[0], tmp_path / "a")
    change(tmp_path / "a")
    result = merge(recipe(pair, tmp_path / "a", tmp_path, form), tmp_path / "out")
    assert result.code == 2, result.err
    assert message in result.err
    assert str(tmp_path / "a") in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.incomplete").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("method", ["cat", "ties", "ssam", "tsv_m", "iso_c", "iso_cts", "knots_ties", "wudi"])
def test_values_that_are_no_numbers(method: str, value: str, form: str, pair: Tuned, tmp_path: Path) -> None:
    shutil.copytree(pair.adapters[0], tmp_path / "a")
    tensors(lambda s: s[B][0, 0].fill_(float(value)))(tmp_path / "a")
    own = {"weight": 1.0, "density": 0.5} if method == "ties" else None
    result = merge(recipe(pair, tmp_path / "a", tmp_path, form, method, own=own), tmp_path / "out")
    refused(result, tmp_path / "out", 1, "NaN or Inf", "model.layers.0.self_attn.q_proj.weight")
    left = tmp_path / "out.incomplete"
    assert not (left / "adapter_model.safetensors").exists()
    assert not (left / "adapter_config.json").exists()
    assert not (left / "submerge.json").exists()


def test_no_numbers_where_nothing_is_written(pair: Tuned, tmp_path: Path) -> None:
    """A tensor that has no place in the adapter is compared with the base's, and so looked at."""
    made = make_tuned(tmp_path / "made", "llama", OPTIONS | {"target_modules": ["q_proj"], "lora_bias": True})
    name = B.replace("weight", "bias")
    tensors(lambda s: s[name][0].fill_(float("nan")))(made.adapters[0])
    result = merge(made.written(tmp_path / "r.yaml", output={"as": "adapter"}), tmp_path / "out")
    told = f"model.layers.0.self_attn.q_proj.bias: 1 in {made.adapters[0]}"
    refused(result, tmp_path / "out", 1, "NaN or Inf in 1 tensor", told)


def test_values_that_are_no_numbers_and_are_allowed(pair: Tuned, tmp_path: Path) -> None:
    shutil.copytree(pair.adapters[0], tmp_path / "a")
    tensors(lambda s: s[B][0, 0].fill_(float("nan")))(tmp_path / "a")
    asked = recipe(pair, tmp_path / "a", tmp_path, "adapter")
    result = merge(asked, tmp_path / "out", "--allow-nonfinite")
    assert result.code == 0, result.err
    assert "warning: NaN or Inf in model.layers.0.self_attn.q_proj.weight: 1 in the output" in result.err
    quiet = merge(asked, tmp_path / "q", "--allow-nonfinite", "-q")
    assert (quiet.out, quiet.err) == (f"{tmp_path / 'q'}\n", result.err)
    report = submerge.verify(tmp_path / "out")
    assert report.sound, report.problems
    assert report.nonfinite == {B: 1}


@pytest.mark.parametrize(
    ("method", "parameters"), [("slerp", {"t": 0.5}), ("karcher", {}), ("passthrough", {})]
)
def test_methods_of_whole_weights_give_no_adapter(
    method: str, parameters: dict[str, Any], pair: Tuned, tmp_path: Path
) -> None:
    models = list(pair.adapters)[: 2 if method == "karcher" else 1]
    path = pair.written(tmp_path / "r.yaml", method=method, models=models, parameters=parameters)
    result = merge(path, tmp_path / "out", "--as", "adapter")
    refused(result, tmp_path / "out", 2, f"{method} merges whole weights")


def test_requests_that_cannot_be(pair: Tuned, tmp_path: Path) -> None:
    path = pair.written(tmp_path / "r.yaml")
    uneven = pair.written(
        tmp_path / "u.yaml", method="linear", own={"weight": 0.7}, parameters={"normalize": False}
    )
    out = tmp_path / "out"
    for arguments, parts in {
        (path, "--as", "checkpoint", "--rank", 2): ("'rank' is given for a checkpoint",),
        (path, "--as", "checkpoint", "--energy", 0.5): ("'energy' is given for a checkpoint",),
        (path, "--energy", 2): ("a share in (0, 1]",),
        (path, "--as", "lora"): ("the output's form is 'lora'",),
        (uneven, "--as", "adapter"): ("weights sum to 1.4", "task_arithmetic"),
    }.items():
        refused(cli("merge", *arguments[:1], "-o", out, *BIG, *arguments[1:]), out, 2, *parts)
    assert cli("merge", path, "-o", out, "--rank", 0).code == 2
    double = pair.written(tmp_path / "d.yaml", dtype="float64")
    refused(merge(double, out, "--as", "adapter"), out, 2, "float64 is no type for an adapter")
    nothing = pair.written(tmp_path / "z.yaml", own={"weight": 0.0})
    refused(merge(nothing, out, "--as", "adapter"), out, 1, "every merged update is zero")


def test_an_adapter_on_another_model_than_it_was_trained_on_is_told(pair: Tuned, tmp_path: Path) -> None:
    moved, other, path = tmp_path / "moved", tmp_path / "other", tmp_path / "r.yaml"
    shutil.copytree(pair.adapters[0], moved)
    shutil.copytree(pair.base, other)
    config(base_model_name_or_path=str(other))(moved)
    text = "was trained on"
    path.write_text(yaml.safe_dump(pair.recipe("passthrough", [moved])))
    assert text not in merge(path, tmp_path / "copy").err
    state = {name: 2 * tensor for name, tensor in pair.state.items()}
    save_file(state, other / "model.safetensors")
    assert f"moved: {text} {other}, as its file says, and lies on" in merge(path, tmp_path / "out").err
    path.write_text(yaml.safe_dump(pair.recipe("passthrough", [f"{pair.base}+{moved}"])))
    assert text not in merge(path, tmp_path / "named").err, "the recipe names what it is to lie on"


def test_an_adapter_trained_on_a_model_with_an_adapter(pair: Tuned, tmp_path: Path) -> None:
    """Its update is one of that model: on the plain base the other adapter's would be missing."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, source, base in ((first, 0, pair.base), (second, 1, first)):
        shutil.copytree(pair.adapters[source], folder)
        config(base_model_name_or_path=str(base))(folder)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(pair.recipe("passthrough", [second], base=False)))
    out = tmp_path / "out"
    refused(merge(path, out), out, 2, "was trained on a model with the adapter", "merge_method: passthrough")
    path.write_text(yaml.safe_dump(pair.recipe("passthrough", [f"{pair.base}+{second}"], base=False)))
    found = merge(path, out)
    assert f"is that the model with {first} merged into it?" in found.err
    pair.merge(tmp_path / "middle", "passthrough", [f"{pair.base}+{first}"], base=False)  # as the hint says
    report = pair.merge(tmp_path / "whole", "passthrough", [second], base=str(tmp_path / "middle"))
    found = load_file(report.out / "model.safetensors")
    both = {n: t + pair.merged[1][n] - pair.state[n] for n, t in pair.merged[0].items()}
    same_state(found, both, to=CLOSE)


def test_what_was_saved_empty(pair: Tuned, tmp_path: Path) -> None:
    """DeepSpeed's third stage leaves one value of nothing for what was not gathered."""
    folder = tmp_path / "a"
    shutil.copytree(pair.adapters[0], folder)
    config(modules_to_save=["lm_head"])(folder)
    tensors(lambda s: s.update({"base_model.model.lm_head.weight": torch.ones(0)}))(folder)
    with pytest.raises(submerge.RequestError, match="sharded training without gathering"):
        submerge.plan(pair.recipe("cat", [folder]), settings=ROOM)


def test_another_shape_in_the_model_that_the_output_is_like(pair: Tuned, tmp_path: Path) -> None:
    """Without a base the rule `shape: base` has no values to take: it ended with a KeyError."""
    folder = tmp_path / "a"
    shutil.copytree(pair.adapters[0], folder)
    config(modules_to_save=["lm_head"])(folder)
    rows = len(pair.state["lm_head.weight"]) + 3
    tensors(lambda s: s.update({"base_model.model.lm_head.weight": torch.ones(rows, 16)}))(folder)
    one = f"{pair.base}+{folder}"
    recipe = pair.recipe("passthrough", [one], base=False, rules={"shape": "base"})
    with pytest.raises(submerge.RequestError, match=rf"shape \[{rows}, 16\], but the base has"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)


@pytest.mark.parametrize("form", FORMS)
def test_models_that_cannot_be(form: str, pair: Tuned, tmp_path: Path) -> None:
    full = pair.full()[0]
    wrong: dict[str, tuple[list[Any], str | bool, str]] = {
        "nowhere": ([tmp_path / "nix"], True, "no such file or folder"),
        "no adapter": ([f"{pair.base}+{full}"], True, "holds no adapter"),
        "on nothing": ([f"{tmp_path / 'nix'}+{pair.adapters[0]}", full], True, "no such file or folder"),
        "an adapter as base": ([full], str(pair.adapters[0]), "where a model is needed"),
        "twice": ([f"{pair.base}+{pair.adapters[0]}+{pair.adapters[1]}"], True, "more than one adapter"),
    }
    for name, (models, base, message) in wrong.items():
        path = pair.written(tmp_path / f"{name}.yaml", models=models, base=base)
        refused(merge(path, tmp_path / "out", "--as", form), tmp_path / "out", 2, message)


def test_names_that_are_one_parameter(pair: Tuned, tmp_path: Path) -> None:
    both = {f"{p}layers.0.q.lora_{s}.weight": torch.ones(2, 2) for p in ("", "model.") for s in "AB"}
    folder = by_hand(
        tmp_path / "a", both | {"q.lora_A.weight": torch.ones(()), "q.lora_B.weight": torch.ones(())}
    )
    path = pair.written(tmp_path / "r.yaml", models=[folder], base=False, output={"as": "adapter"})
    refused(merge(path, tmp_path / "out"), tmp_path / "out", 2, "all stand for")


# --- places and interruptions ---------------------------------------------------------------------


def test_an_output_over_or_inside_an_input_is_refused(pair: Tuned, tmp_path: Path) -> None:
    before = {place: contents(place) for place in (pair.base, *pair.adapters)}
    for form in FORMS:
        path = pair.written(tmp_path / f"{form}.yaml", output={"as": form})
        for place in (pair.adapters[0], pair.adapters[1] / "x", pair.base / "x", pair.base):
            result = merge(path, place, "--overwrite")
            assert result.code == 2
            assert result.err.count("would lie in, or over, the input") == 1
    assert before == {place: contents(place) for place in (pair.base, *pair.adapters)}


def test_an_existing_output(pair: Tuned, tmp_path: Path) -> None:
    path, out = pair.written(tmp_path / "r.yaml", output={"as": "adapter"}), tmp_path / "out"
    assert merge(path, out).code == 0
    whole = contents(out)
    result = merge(path, out)
    assert result.code == 2
    assert "allow --overwrite" in result.err
    assert contents(out) == whole
    (out / "adapter_model.safetensors").write_bytes(b"")
    assert merge(path, out, "--overwrite").code == 0
    assert contents(out) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "r.yaml"]


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_an_interrupted_run_leaves_nothing_that_looks_whole(how: str, pair: Tuned, tmp_path: Path) -> None:
    path, out = pair.written(tmp_path / "r.yaml", output={"as": "adapter"}), tmp_path / "out"
    left = tmp_path / "out.incomplete"
    victim = start(["merge", path, "-o", out, "--threads", 1], tmp_path / "logs", hold=1)
    until((left / JOURNAL).exists)
    getattr(victim.process, how)()
    victim.wait()
    assert not out.exists()
    assert [p.name for p in left.iterdir()] == [JOURNAL]
    for flags in (["--resume"], []):
        again = merge(path, out, *flags, "--overwrite")
        assert again.code == 0, again.err
        assert not left.exists()
    assert submerge.verify(out).sound


SPELLINGS = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "fsdp": lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
    "ddp": lambda key: f"module.{key}",
    "twice": lambda key: f"base_model.model.{key}",
    "named": lambda key: key.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_state_dicts_that_training_saved(spelling: str, form: str, pair: Tuned, tmp_path: Path) -> None:
    """PEFT loads nothing of these keys; what comes out is as of PEFT's own, and has PEFT's keys."""
    spelled = SPELLINGS[spelling]
    shutil.copytree(pair.adapters[0], tmp_path / "a")
    state = load_file(weights(tmp_path / "a"))
    save_file({spelled(key): tensor for key, tensor in state.items()}, weights(tmp_path / "a"))
    outs = []
    for folder in (pair.adapters[0], tmp_path / "a"):
        recipe = {
            "merge_method": "cat",
            "base_model": str(pair.base),
            "models": [str(folder)],
            "parameters": {"weight": 0.5},
            "output": {"as": form},
        }
        report = submerge.merge(recipe, tmp_path / f"out{len(outs)}", settings=ROOM)
        assert not report.warnings
        outs.append(load_file(next(report.out.glob("*.safetensors"))))
    assert outs[0].keys() == outs[1].keys()
    assert all(torch.equal(outs[1][key], tensor) for key, tensor in outs[0].items())


def test_what_the_file_lacks_of_its_configuration_is_told(pair: Tuned, tmp_path: Path) -> None:
    """As PEFT's `Found missing adapter keys`: modules that stay the base's, and adapters that do nothing."""
    shutil.copytree(pair.adapters[0], tmp_path / "a")
    change = config(
        target_modules=["q_proj", "v_proj", "up_proj", "k_proj", "query"], modules_to_save=["norm"]
    )
    change(tmp_path / "a")
    plan = submerge.plan({"merge_method": "passthrough", "models": [f"{pair.base}+{tmp_path / 'a'}"]})
    assert [w.partition(": ")[2] for w in plan.warnings] == [
        f"{field} in its configuration names {name}, of which the file holds nothing: the base's values stay "
        "there; was it saved in full?"
        for field, name in (("target_modules", "k_proj"), ("modules_to_save", "norm"))
    ]
    config(exclude_modules=["k_proj"], modules_to_save=None)(tmp_path / "a")
    tensors(lambda state: state.update({k: v * 0 for k, v in state.items() if "lora_B" in k}))(tmp_path / "a")
    for recipe in (
        {"merge_method": "passthrough", "models": [f"{pair.base}+{tmp_path / 'a'}"]},
        {"merge_method": "cat", "models": [str(tmp_path / "a")], "output": {"as": "adapter"}},
    ):
        (warning,) = submerge.plan(recipe | {"parameters": {}}).warnings
        assert "all of its updates are zero: it changes nothing" in warning
    config(lora_alpha=0)(tmp_path / "a")  # as verl's merger of checkpoints writes it
    (warning,) = submerge.plan(
        {"merge_method": "passthrough", "models": [f"{pair.base}+{tmp_path / 'a'}"]}
    ).warnings
    assert "lora_alpha is 0 in its configuration" in warning


def test_patterns_of_no_module_are_told(pair: Tuned, tmp_path: Path) -> None:
    """Such scales are not applied: `^` cannot stand in a path, and PEFT's prefix is no part of one."""
    shutil.copytree(pair.adapters[0], tmp_path / "a")
    one, other = "^q_proj", "base_model.model.model.layers.0.mlp.up_proj"
    config(alpha_pattern={one: 100, "v_proj": 6, other: 50})(tmp_path / "a")
    plan = submerge.plan({"merge_method": "passthrough", "models": [f"{pair.base}+{tmp_path / 'a'}"]})
    (warning,) = plan.warnings
    assert f"alpha_pattern in its configuration names {one}, {other}, which no module" in warning


def test_a_wrong_flag_for_transposed_weights(tmp_path: Path) -> None:
    """Of square matrices the others of the layer tell the layout, where no bias of the base does."""
    tuned = make_tuned(tmp_path, "llama", OPTIONS)
    config(fan_in_fan_out=True)(tuned.adapters[0])
    recipe = {"merge_method": "passthrough", "models": [f"{tuned.base}+{tuned.adapters[0]}"]}
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    same_state(load_file(out / "model.safetensors"), tuned.merged[0], CLOSE)
