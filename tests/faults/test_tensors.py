"""Models that do not fit together, and values that are no numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _cli import cli, merge, refused
from _models import CONFIG, ROOM, TOKENIZER, Family, perturbed, read, state, write
from submerge.errors import WorkError

UP = "model.layers.1.mlp.up.weight"
NORM = "model.norm.weight"
State = dict[str, torch.Tensor]


def models(tmp_path: Path, base: State, *tuned: State, **more: Any) -> Family:
    """Write these tensors as a base and its fine-tunes."""
    folders = tuple(write(tmp_path / f"tuned{i}", t, **more) for i, t in enumerate(tuned))
    return Family(write(tmp_path / "base", base, **more), folders, "Toy")


@pytest.fixture
def base() -> State:
    return state() | {"model.position_ids": torch.arange(7), "model.mask": torch.tensor([True, False])}


@pytest.fixture
def tuned(base: State) -> list[State]:
    return [perturbed(base, i) for i in range(2)]


def run(made: Family, tmp_path: Path, method: str = "task_arithmetic", **more: Any) -> tuple[Any, State]:
    report = submerge.merge(made.recipe(method, **more), tmp_path / "out", settings=ROOM)
    return report, read(report.out)


# --- NaN and Inf ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_ties", "sce", "karcher", "multislerp", "ram"]
)
@pytest.mark.parametrize("where", ["base", "tuned"])
def test_nan_and_inf_are_named(
    base: State, tuned: list[State], tmp_path: Path, method: str, value: float, where: str
) -> None:
    (base if where == "base" else tuned[1])[UP][3, 5] = value
    made = models(tmp_path, base, *tuned)
    label = str(made.base if where == "base" else made.tuned[1])
    everyone = {"weight": 1.0} if method == "linear" else {}  # with a weight, the base takes part
    recipe = made.write_recipe(method, everyone)
    result = merge(recipe, tmp_path / "out")
    refused(
        result, tmp_path / "out", 1, "NaN or Inf in 1 tensor — ", UP, f"1 in {label}", "--allow-nonfinite"
    )
    assert NORM not in result.err

    allowed = merge(recipe, tmp_path / "out", "--allow-nonfinite", "--json")
    assert allowed.code == 0
    assert set(allowed.json["nonfinite"]) == {UP}
    assert allowed.json["nonfinite"][UP][label] == 1
    manifest = json.loads((tmp_path / "out" / "submerge.json").read_text())
    assert manifest["nonfinite"] == allowed.json["nonfinite"]
    checked = submerge.verify(tmp_path / "out")
    assert checked.sound, "what was allowed is no fault"
    out = read(tmp_path / "out")
    assert set(checked.nonfinite) == {
        n for n, t in out.items() if t.is_floating_point() and not t.isfinite().all()
    }
    clean = [n for n, t in out.items() if n != UP and t.is_floating_point()]
    assert all(out[n].isfinite().all() for n in clean)


def test_overflow_of_the_outputs_type_is_told(base: State, tuned: list[State], tmp_path: Path) -> None:
    base[UP][0, 0] = tuned[0][UP][0, 0] = tuned[1][UP][0, 0] = 1e5
    made = models(tmp_path, base, *tuned)
    recipe = made.write_recipe("task_arithmetic", dtype="float16")
    refused(merge(recipe, tmp_path / "out"), tmp_path / "out", 1, UP, "1 in the output")


def test_large_finite_values_are_no_fault(base: State, tuned: list[State], tmp_path: Path) -> None:
    for one in (base, *tuned):
        one[UP].fill_(3e38)  # whose sum overflows
    report, out = run(models(tmp_path, base, *tuned), tmp_path)
    assert not report.nonfinite
    assert torch.equal(out[UP], base[UP])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variances_below_zero_are_told(
    base: State, tuned: list[State], tmp_path: Path, dtype: torch.dtype
) -> None:
    """Updates that are added up take a small variance below zero; a batch norm gives NaN with it."""
    name, hint = "bn.running_var", {"filter": "running_", "value": 0}
    base[name] = torch.tensor([0.1, 0.0, 2.0]).to(dtype)
    for one in tuned:
        one[name] = torch.tensor([0.02, 0.0, 1.5]).to(dtype)
    made = models(tmp_path, base, *tuned)
    recipe = made.recipe("task_arithmetic")
    for model in recipe["models"]:
        model["parameters"] = {"weight": 1.0}
    told = "Negative variances in 1 tensor — updates have taken them below zero: choose smaller weights"
    with pytest.raises(WorkError, match=told) as error:
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert f"{name}: 1 in the output" in str(error.value)
    with pytest.raises(WorkError, match=told):
        submerge.merge_state_dicts(tuned, base=base, method="task_arithmetic", weight=1.0)
    for model in recipe["models"]:
        model["parameters"] = {"weight": [hint, {"value": 1.0}]}
    report = submerge.merge(recipe, tmp_path / "kept", settings=ROOM)
    assert torch.equal(read(report.out)[name], base[name])
    assert any("are not those of the merged model" in warning for warning in report.warnings)


# --- names ----------------------------------------------------------------------------------------


def test_missing_tensors(base: State, tuned: list[State], tmp_path: Path) -> None:
    del tuned[1][UP], tuned[1][NORM]
    made = models(tmp_path, base, *tuned)
    result = merge(made.write_recipe("task_arithmetic"), tmp_path / "out")
    refused(
        result,
        tmp_path / "out",
        2,
        "tensors are missing",
        UP,
        NORM,
        str(made.tuned[1]),
        "rules: {missing: base}",
    )
    report, out = run(made, tmp_path, rules={"missing": "base"})
    torch.testing.assert_close(out[UP], base[UP] + 0.5 * (tuned[0][UP] - base[UP]))
    manifest = json.loads((report.out / "submerge.json").read_text())
    assert "missing, read from the base" in manifest["tensors"][UP]["note"]
    assert "note" not in manifest["tensors"]["lm_head.weight"]


def test_missing_integer_tensors_are_kept_from_the_base(
    base: State, tuned: list[State], tmp_path: Path
) -> None:
    del tuned[0]["model.position_ids"]
    report, out = run(models(tmp_path, base, *tuned), tmp_path)
    assert torch.equal(out["model.position_ids"], base["model.position_ids"])
    assert not report.differs


def test_extra_tensors_are_listed(base: State, tuned: list[State], tmp_path: Path) -> None:
    tuned[0]["model.layers.2.extra.weight"] = torch.ones(3)
    made = models(tmp_path, base, *tuned)
    report, out = run(made, tmp_path)
    assert set(out) == set(base)
    assert any("model.layers.2.extra.weight" in w and "no place in the output" in w for w in report.warnings)
    manifest = json.loads((report.out / "submerge.json").read_text())
    assert manifest["models"][1]["unused"] == ["model.layers.2.extra.weight"]
    assert "unused" not in manifest["models"][2]


def test_models_of_another_kind(base: State, tmp_path: Path) -> None:
    other = state({"transformer.h.0.weight": (3, 3)})
    made = models(tmp_path, base, other)
    result = merge(made.write_recipe("linear"), tmp_path / "out")
    refused(result, tmp_path / "out", 2, "tensors are missing", "and 6 more")


# --- shapes and types -----------------------------------------------------------------------------


def test_wrong_shapes(base: State, tuned: list[State], tmp_path: Path) -> None:
    tuned[0][UP] = torch.ones(49, 16)
    tuned[1][NORM] = torch.ones(1, 16)  # as many values, and yet another shape
    made = models(tmp_path, base, *tuned)
    result = merge(made.write_recipe("task_arithmetic"), tmp_path / "out")
    refused(
        result, tmp_path / "out", 2, f"{UP} ([49, 16], there [48, 16])", f"{NORM} ([1, 16], there [16])",
        "rules: {shape: base}",
    )  # fmt: skip
    report, out = run(made, tmp_path, rules={"shape": "base"})
    assert report.tensors == {"merge": 7, "keep": 2, "base": 2}
    assert torch.equal(out[UP], base[UP])
    assert torch.equal(out[NORM], base[NORM])
    assert not torch.equal(out["lm_head.weight"], base["lm_head.weight"])


@pytest.mark.parametrize("rules", [{}, {"shape": "base"}])
@pytest.mark.parametrize("whose", ["base", "tuned0"])
def test_tensors_without_values_are_told(
    base: State, tuned: list[State], tmp_path: Path, whose: str, rules: dict[str, str]
) -> None:
    """As ZeRO-3 leaves them, where weights were not gathered before they were saved."""
    (base if whose == "base" else tuned[0])[UP] = torch.zeros(0)
    recipe = models(tmp_path, base, *tuned).write_recipe("task_arithmetic", rules=rules)
    told = f"{tmp_path / whose}: holds no values of tensors", "zero_to_fp32.py", UP
    refused(merge(recipe, tmp_path / "out"), tmp_path / "out", 2, *told)


def test_floats_that_meet_integers(base: State, tuned: list[State], tmp_path: Path) -> None:
    tuned[0][NORM] = tuned[0][NORM].to(torch.int64)
    result = merge(models(tmp_path, base, *tuned).write_recipe("task_arithmetic"), tmp_path / "out")
    refused(result, tmp_path / "out", 2, "tensors are I64 here and F32", NORM)


def test_integer_buffers_that_differ_are_kept_and_told(
    base: State, tuned: list[State], tmp_path: Path
) -> None:
    tuned[1]["model.position_ids"] = torch.arange(7) + 1
    tuned[1]["model.mask"] = torch.tensor([False, False])
    made = models(tmp_path, base, *tuned)
    result = merge(made.write_recipe("task_arithmetic"), tmp_path / "out")
    assert result.code == 0
    assert f"model.position_ids is kept from the base; it is not the same in {made.tuned[1]}" in result.out
    out = read(tmp_path / "out")
    assert torch.equal(out["model.position_ids"], base["model.position_ids"])
    assert torch.equal(out["model.mask"], base["model.mask"])
    manifest = json.loads((tmp_path / "out" / "submerge.json").read_text())
    assert manifest["differs"] == {n: [str(made.tuned[1])] for n in ("model.position_ids", "model.mask")}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_mixed_types_are_computed_in_float32(tmp_path: Path, method: str) -> None:
    base = state(dtype=torch.bfloat16)
    exact = state()
    tuned = [perturbed(exact, 0), perturbed(exact, 1, dtype=torch.float16)]
    made = models(tmp_path, base, *tuned)
    _, out = run(made, tmp_path, method, rules={"missing": "base"})
    assert {t.dtype for t in out.values()} == {torch.bfloat16}
    if method != "ties":
        a, b, origin = (s[UP].double() for s in (*tuned, base))
        wanted = origin + 0.5 * (a - origin) + 0.5 * (b - origin)
        if method == "linear":
            wanted = (a + b) / 2  # the base has no weight, and no part
        torch.testing.assert_close(out[UP].double(), wanted, rtol=2**-8, atol=1e-6)


def test_biases_of_routers_are_not_narrowed(tmp_path: Path) -> None:
    """GLM's lie between 6.8 and 7.1, where bfloat16 has eight values; transformers keeps float32."""
    shapes = {
        "model.layers.0.mlp.gate.weight": (8, 4),
        "model.layers.0.mlp.gate.e_score_correction_bias": (8,),
    }
    weight, bias = shapes
    base = {name: tensor + 7 for name, tensor in state(shapes).items()}
    for dtype, expected in (("bfloat16", torch.float32), ("float64", torch.float64)):
        made = models(tmp_path / dtype, base, perturbed(base, 1))
        _, out = run(made, tmp_path / dtype, dtype=dtype)
        assert (out[weight].dtype, out[bias].dtype) == (getattr(torch, dtype), expected)


def test_float64_is_computed_in_float64(tmp_path: Path) -> None:
    base = state(dtype=torch.float64)
    tuned = {n: t + 1e-12 for n, t in base.items()}
    _, out = run(models(tmp_path, base, tuned), tmp_path)
    assert out[UP].dtype == torch.float64
    torch.testing.assert_close(out[UP] - base[UP], torch.full_like(base[UP], 5e-13), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_merge_of_equal_models_is_that_model(tmp_path: Path, dtype: torch.dtype) -> None:
    base = state(dtype=dtype)
    made = models(tmp_path, base, base, base)
    for method in (
        "linear",
        "task_arithmetic",
        "ties",
        "slerp",
        "model_stock",
        "sce",
        "breadcrumbs",
        "karcher",
        "multislerp",
        "nearswap",
        "arcee_fusion",
        "ram",
        "ramplus_tl",
    ):
        if method in ("slerp", "nearswap", "arcee_fusion"):
            made = replace(made, tuned=made.tuned[:1])
        recipe = made.recipe(method, {"t": 0.4} if method in ("slerp", "nearswap") else {})
        out = read(submerge.merge(recipe, tmp_path / method, settings=ROOM).out)
        for name, value in out.items():
            torch.testing.assert_close(value, base[name], rtol=1e-6 if dtype.itemsize >= 4 else 0, atol=0)
        made = replace(made, tuned=(tmp_path / "tuned0", tmp_path / "tuned1"))


# --- vocabularies ---------------------------------------------------------------------------------


TOKENS = {"a": 0, "b": 1, "[/INST]": 2}


def test_other_vocabularies_are_refused_with_the_tokens_named(
    base: State, tuned: list[State], tmp_path: Path
) -> None:
    made = models(tmp_path, base, *tuned, tokens=TOKENS)
    new = {"b": 0, "a": 1, "[/SYS]": 2}
    (made.tuned[0] / TOKENIZER).write_text(json.dumps({"model": {"vocab": new}}))
    recipe = made.write_recipe("task_arithmetic")
    refused(
        merge(recipe, tmp_path / "out"), tmp_path / "out", 2, str(made.tuned[0]), "vocabularies differ",
        "'[/SYS]'", "'[/INST]'", "'a': 0 and 1", "rules: {vocabulary: by-position}",
    )  # fmt: skip
    recipe = made.write_recipe("task_arithmetic", rules={"vocabulary": "by-position"})
    planned = cli("plan", recipe, "--max-memory", "64GB")
    assert planned.code == 0
    assert "[/SYS]" in planned.out
    assert merge(recipe, tmp_path / "out").code == 0
    assert (tmp_path / "out" / TOKENIZER).read_bytes() == (made.base / TOKENIZER).read_bytes()


def test_padded_rows_are_kept(base: State, tuned: list[State], tmp_path: Path) -> None:
    made = models(tmp_path, base, *tuned, tokens=TOKENS)
    _, out = run(made, tmp_path)
    assert out["model.embed_tokens.weight"].shape == (40, 16), "3 tokens, 40 rows"


def test_a_model_without_a_tokenizer_is_not_compared(base: State, tuned: list[State], tmp_path: Path) -> None:
    made = models(tmp_path, base, *tuned, tokens=TOKENS)
    (made.tuned[0] / TOKENIZER).unlink()
    plan = submerge.plan(made.recipe("task_arithmetic"), ROOM)
    assert any("no tokenizer to compare" in line for line in plan.vocabulary)
    assert any("are equal" in line for line in plan.vocabulary)


def test_more_tokens_in_one_model(base: State, tuned: list[State], tmp_path: Path) -> None:
    made = models(tmp_path, base, *tuned, tokens=TOKENS)
    resized = tuned[0] | {n: torch.ones(41, 16) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    write(made.tuned[0], resized, tokens=TOKENS | {"<new>": 40})
    result = merge(made.write_recipe("task_arithmetic"), tmp_path / "out")
    refused(result, tmp_path / "out", 2, "<new>", "shapes differ", "[41, 16]")


# --- roles ----------------------------------------------------------------------------------------


def test_the_base_alone_is_not_merged_with_itself(base: State, tmp_path: Path) -> None:
    write(tmp_path / "base", base)
    made = Family(tmp_path / "base", (tmp_path / "base",), "Toy")
    refused(
        merge(made.write_recipe("task_arithmetic"), tmp_path / "out"), tmp_path / "out", 2,
        "task_arithmetic merges at least 1 model besides the base; found 0",
    )  # fmt: skip


def test_the_same_model_twice_counts_twice(base: State, tuned: list[State], tmp_path: Path) -> None:
    made = models(tmp_path, base, tuned[0])
    made = replace(made, tuned=(*made.tuned, *made.tuned))
    _, out = run(made, tmp_path)
    torch.testing.assert_close(out[UP], tuned[0][UP])


def test_configs_of_different_types_are_told(base: State, tuned: list[State], tmp_path: Path) -> None:
    made = models(tmp_path, base, *tuned)
    (made.tuned[0] / "config.json").write_text(json.dumps(CONFIG | {"model_type": "other"}))
    plan = submerge.plan(made.recipe("task_arithmetic"), ROOM)
    assert any("different model types: other, toy" in w for w in plan.warnings)


def test_a_method_that_refuses_its_options_says_for_which_tensors(
    base: State, tuned: list[State], tmp_path: Path
) -> None:
    made = models(tmp_path, base, *tuned)
    pairs = zip(made.tuned, (1, -1), strict=True)
    entries = [{"model": str(t), "parameters": {"weight": w}} for t, w in pairs]
    recipe = made.write_recipe("linear", models=entries)
    refused(
        merge(recipe, tmp_path / "out"), tmp_path / "out", 2, "weights sum to zero", "and 6 more",
        "normalize: false",
    )  # fmt: skip
