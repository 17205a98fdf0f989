"""Adapters that PEFT made, merged into checkpoints and into adapters, against what PEFT makes of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import submerge
from _adapters import ADAPTER, CLOSE, FIRST, SECOND, Tuned, far, make_tuned, same_state
from _models import ROOM, contents, read
from store.helpers_adapter import CASES, stored


def edited(folder: Path, **fields: Any) -> Path:
    """Change fields of an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


# --- one adapter comes back -----------------------------------------------------------------------

LEFT_OUT = {  # what an adapter in portable form has no place for, and how much of it
    "bias": 4,
    "biases": 8,
    "bias-of-b": 4,
    "classifier-biases": 17,
}
PACKED = {case for case, (kind, _) in CASES.items() if kind in ("mixtral", "qwen3-moe", "gpt-oss", "experts")}
ALONE = {"linear", "rslora", "patterns", "embedding", "conv1d", "both-kinds", "mica", "velora"}


@pytest.mark.parametrize("case", CASES)
def test_one_adapter_comes_back(case: str, tuned_case: Callable[[str], Tuned], tmp_path: Path) -> None:
    made = tuned_case(case)
    made.merge(tmp_path / "checkpoint")
    same_state(read(tmp_path / "checkpoint"), made.merged[0], CLOSE)
    if case in PACKED:
        with pytest.raises(submerge.RequestError, match="no place for packed experts"):
            made.merge(tmp_path / "adapter", output=ADAPTER)
        return
    report = made.merge(tmp_path / "adapter", output=ADAPTER)
    assert max(figures["error"] for figures in report.figures.values() if "rank" in figures) < 1e-6
    with warnings.catch_warnings():
        # PEFT warns that fan_in_fan_out cannot fit both kinds of layers, and mends it
        warnings.filterwarnings("ignore" if case == "both-kinds" else "error", "fan_in_fan_out")
        folded = made.loaded(tmp_path / "adapter")
    wrong = {n for n, tensor in made.merged[0].items() if far({n: folded[n]}, {n: tensor}) > CLOSE}
    assert len(wrong) == LEFT_OUT.get(case, 0)
    told = [line for line in report.warnings if "no place in an adapter" in line]
    assert len(told) == bool(wrong)
    for name in sorted(wrong)[:3]:
        assert name in told[0]
    for name in wrong:
        assert report.figures[name]["left_out"] == pytest.approx(
            float((made.merged[0][name] - made.state[name]).norm()), rel=1e-4
        )
        assert torch.equal(folded[name], made.state[name])


@pytest.mark.parametrize("case", [case for case in CASES if case not in PACKED])
def test_without_its_base_an_adapter_comes_back_or_is_refused(
    case: str, tuned_case: Callable[[str], Tuned], tmp_path: Path
) -> None:
    made = tuned_case(case)
    if case not in ALONE:
        with pytest.raises(submerge.RequestError, match=r"no low-rank update: .* as base_model") as error:
            made.merge(tmp_path / "out", output=ADAPTER, base=False)
        assert len(error.value.problems) <= 2  # one for each reason, not for each tensor
        assert not (tmp_path / "out.incomplete").exists()
        return
    for method, own in (("cat", {}), ("task_arithmetic", {"weight": 1.0}), ("linear", {"weight": 1.0})):
        made.merge(tmp_path / method, method, output=ADAPTER, base=False, own=own)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore" if case == "both-kinds" else "error", "fan_in_fan_out")
            same_state(made.loaded(tmp_path / method), made.merged[0], CLOSE)
        assert stored(tmp_path / method).keys() == stored(tmp_path / "cat").keys()


KEYS = ["q_proj", "self_attn.v_proj", r"layers\.0\..*", "model.layers.1.mlp.up_proj", "embed_tokens"]
NUMBERS = st.dictionaries(st.sampled_from(KEYS), st.integers(1, 20), max_size=3)


@settings(max_examples=12)
@given(
    rank=st.integers(1, 20),
    alpha=st.integers(1, 32),
    ranks=NUMBERS,
    alphas=NUMBERS,
    modules=st.sets(st.sampled_from(["q_proj", "v_proj", "up_proj", "embed_tokens"]), min_size=1),
    flags=st.fixed_dictionaries({"use_rslora": st.booleans(), "use_dora": st.booleans()}),
)
def test_any_configuration_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: int,
    ranks: dict[str, int],
    alphas: dict[str, int],
    modules: set[str],
    flags: dict[str, bool],
) -> None:
    # the first pattern that matches counts, and the file has them in alphabetical order
    patterns = {"rank_pattern": dict(sorted(ranks.items())), "alpha_pattern": dict(sorted(alphas.items()))}
    options = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(modules), **patterns, **flags}
    place = tmp_path_factory.mktemp("any")
    made = make_tuned(place, "llama", options)
    made.merge(place / "checkpoint")
    same_state(read(place / "checkpoint"), made.merged[0], 1e-4)  # weights of up to some tens
    made.merge(place / "adapter", output=ADAPTER, base=flags["use_dora"])
    same_state(made.loaded(place / "adapter"), made.merged[0], 1e-4)


def test_factors_and_scale_are_untouched_where_the_form_allows_it(tmp_path: Path) -> None:
    """alpha = r: what comes out is what went in, bit for bit, but for names."""
    made = make_tuned(tmp_path, "llama", FIRST | {"lora_alpha": 4})
    made.merge(tmp_path / "out", output=ADAPTER, base=False)
    given, found = stored(made.adapters[0]), stored(tmp_path / "out")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[key], given[key]) for key in given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    """The factors' dtype is kept, and a scale that is a power of two is exact."""
    made = make_tuned(tmp_path, "llama", FIRST | {"lora_alpha": 8})
    folder = made.adapters[0]
    save_file({k: v.to(dtype) for k, v in stored(folder).items()}, folder / "adapter_model.safetensors")
    expected = made.loaded(folder)
    made.merge(tmp_path / "adapter", output=ADAPTER, base=False)
    assert {tensor.dtype for tensor in stored(tmp_path / "adapter").values()} == {dtype}
    same_state(made.loaded(tmp_path / "adapter"), expected, CLOSE)
    made.merge(tmp_path / "checkpoint")
    same_state(read(tmp_path / "checkpoint"), expected, CLOSE)
    made.merge(tmp_path / "wide", output=ADAPTER, base=False, dtype="float32")
    assert {tensor.dtype for tensor in stored(tmp_path / "wide").values()} == {torch.float32}


def test_a_rank_above_the_dimensions(tmp_path: Path) -> None:
    made = make_tuned(tmp_path, "llama", FIRST | {"r": 40})
    made.merge(tmp_path / "out", output=ADAPTER, base=False)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 16
    same_state(made.loaded(tmp_path / "out"), made.merged[0], 2e-5)


def test_an_adapter_without_effect(tmp_path: Path) -> None:
    """B = 0: an adapter as PEFT starts it; it counts as a model, and changes nothing."""
    made = make_tuned(tmp_path, "llama", FIRST, SECOND)
    nothing = {k: v * ("lora_A" in k) for k, v in stored(made.adapters[1]).items()}
    save_file(nothing, made.adapters[1] / "adapter_model.safetensors")
    made.merge(tmp_path / "both", output=ADAPTER, base=False)
    same_state(made.loaded(tmp_path / "both"), made.merged[0], CLOSE)
    made.merge(tmp_path / "alone", models=[made.adapters[1]], output=ADAPTER, base=False)
    same_state(made.loaded(tmp_path / "alone"), made.state, 0)
    for method in ("ssam", "tsv_m", "iso_c", "iso_cts", "knots_ties", "wudi"):
        with pytest.raises(submerge.WorkError, match="every merged update is zero"):
            made.merge(tmp_path / method, method, models=[made.adapters[1]] * 2, output=ADAPTER)
        made.merge(tmp_path / method, method, models=[made.adapters[1]] * 2)
        same_state(read(tmp_path / method), made.state, 0)


# --- adapters wherever models can be --------------------------------------------------------------


def test_every_way_to_name_an_adapter(two: Tuned, full: list[Path], tmp_path: Path) -> None:
    joined = [f"{two.base}+{folder}" for folder in two.adapters]
    two.merge(tmp_path / "expected", models=full)
    expected = read(tmp_path / "expected")
    ways: dict[str, list[Any]] = {
        "bare": list(two.adapters),
        "joined": joined,
        "mixed": [joined[0], two.adapters[1]],
        "half": [full[0], two.adapters[1]],
    }
    for way, models in ways.items():
        two.merge(tmp_path / way, models=models)
        same_state(read(tmp_path / way), expected, CLOSE)
    recipe = two.recipe()
    recipe["models"] = [{"model": {"path": str(two.base)}, "lora": str(folder)} for folder in two.adapters]
    submerge.merge(recipe, tmp_path / "lora", settings=ROOM)
    same_state(read(tmp_path / "lora"), expected, CLOSE)


def test_an_adapted_base(two: Tuned, full: list[Path], tmp_path: Path) -> None:
    joined = [f"{two.base}+{folder}" for folder in two.adapters]
    two.merge(tmp_path / "expected", models=[full[1]], base=str(full[0]), own={"weight": 0.5})
    for i, model in enumerate((full[1], joined[1])):
        two.merge(tmp_path / f"{i}", models=[model], base=joined[0], own={"weight": 0.5})
        same_state(read(tmp_path / f"{i}"), read(tmp_path / "expected"), CLOSE)
    for form in ("adapter", "checkpoint"):
        with pytest.raises(submerge.RequestError, match="cannot be laid on a base that has one"):
            two.merge(tmp_path / "no", models=[two.adapters[1]], base=joined[0], output={"as": form})


def test_an_adapter_that_names_its_base(tmp_path: Path) -> None:
    made = make_tuned(tmp_path, "llama", FIRST, SECOND)
    with pytest.raises(submerge.RequestError, match="does not say what it was trained on"):
        made.merge(tmp_path / "no", "linear", base=False, own={"weight": 1.0})
    for folder in made.adapters:
        edited(folder, base_model_name_or_path=str(made.base), revision=None)
    made.merge(tmp_path / "out", "linear", base=False, own={"weight": 1.0})
    mean = {n: (made.merged[0][n] + made.merged[1][n]) / 2 for n in made.state}
    same_state(read(tmp_path / "out"), mean, CLOSE)
    made.merge(tmp_path / "adapter", base=False, output=ADAPTER)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made.base)


MERGES: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    "cat": ("cat", {"weight": 0.7}, {"scale": 0.5}, CLOSE),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.7}, {}, CLOSE),
    "linear": ("linear", {"weight": 0.7}, {}, CLOSE),
    "ties": ("ties", {"weight": 0.7, "density": 0.5}, {}, CLOSE),
    "dare_ties": ("dare_ties", {"weight": 0.7, "density": 0.5}, {}, CLOSE),
    "model_stock": ("model_stock", {}, {}, CLOSE),
    "knots_ties": ("knots_ties", {"weight": 0.7, "density": 0.5}, {}, 1e-4),
    "tsv_m": ("tsv_m", {}, {}, 1e-4),
    "iso_c": ("iso_c", {}, {}, 1e-4),
    # directions that the rounding of whole weights invents get a share: the singular values are made equal
    "iso_cts": ("iso_cts", {}, {}, 2e-3),
    "wudi": ("wudi", {"weight": 0.7}, {}, 1e-4),
    "wudi-adaptive": ("wudi", {}, {"variant": "aswudi"}, 1e-4),
    # the default rank is that of the largest update, and a whole weight's is not told from its shape
    "ssam": ("ssam", {}, {"rank": "4"}, 1e-4),
    "ssam-full": ("ssam", {}, {"rank": "full"}, 1e-4),
}


@pytest.mark.parametrize("case", MERGES)
def test_adapters_merge_as_the_models_that_they_make(
    case: str, two: Tuned, full: list[Path], tmp_path: Path
) -> None:
    method, own, parameters, to = MERGES[case]
    options: dict[str, Any] = {"own": own, "parameters": parameters, "base": method != "linear"}
    two.merge(tmp_path / "full", method, models=full, **options)
    joined = [f"{two.base}+{folder}" for folder in two.adapters]
    two.merge(tmp_path / "adapters", method, models=joined, **options)
    same_state(read(tmp_path / "adapters"), read(tmp_path / "full"), to)
    two.merge(tmp_path / "mixed", method, models=[joined[0], full[1]], **options)
    same_state(read(tmp_path / "mixed"), read(tmp_path / "full"), to)


def test_slerp_of_a_base_and_an_adapter(two: Tuned, full: list[Path], tmp_path: Path) -> None:
    for name, model in (("full", full[0]), ("adapter", two.adapters[0])):
        two.merge(tmp_path / name, "slerp", models=[model], parameters={"t": 0.3})
    same_state(read(tmp_path / "adapter"), read(tmp_path / "full"), CLOSE)


FOLDED = {name: row for name, row in MERGES.items() if row[0] != "dare_ties"}


@pytest.mark.parametrize("case", FOLDED)
@pytest.mark.parametrize("models", ["bare", "mixed"])
def test_the_checkpoint_is_the_adapter_folded_in(
    case: str, models: str, two: Tuned, full: list[Path], tmp_path: Path
) -> None:
    method, own, parameters, to = FOLDED[case]
    chosen = list(two.adapters) if models == "bare" else [two.adapters[0], full[1]]
    options: dict[str, Any] = {"models": chosen, "own": own, "parameters": parameters}
    two.merge(tmp_path / "checkpoint", method, **options)
    # a sum of signs has full rank: by default it is cut to the sum of the adapters' ranks, as told
    whole = ADAPTER | ({"rank": 64} if method in ("ties", "model_stock") else {})
    report = two.merge(tmp_path / "adapter", method, output=whole, **options)
    assert min(figures["kept_by_rank"] for figures in report.figures.values()) > 1 - 1e-6
    same_state(two.loaded(tmp_path / "adapter"), read(tmp_path / "checkpoint"), max(to, 5e-5))


EMBEDDED = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "embed_tokens"]}
HEADED = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "o_proj"]}


@pytest.mark.parametrize("method", ["cat", "ssam", "tsv_m", "iso_c", "knots_ties", "wudi"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", EMBEDDED),
        ("llama", HEADED),
        ("convolutions", {"r": 2, "target_modules": ["flat", "plane", "point"]}),
        ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_both_forms_treat_a_tensor_alike(
    method: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Embeddings and kernels have no singular vectors in either form, whole modules have them in both."""
    made = make_tuned(tmp_path, kind, options, options)
    made.merge(tmp_path / "checkpoint", method)
    made.merge(tmp_path / "adapter", method, output=ADAPTER)
    same_state(made.loaded(tmp_path / "adapter"), read(tmp_path / "checkpoint"), 5e-5)


def test_a_cut_rank_is_told(two: Tuned, tmp_path: Path) -> None:
    report = two.merge(tmp_path / "out", output=ADAPTER | {"rank": 2}, base=False)
    folded = two.loaded(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    for name, figures in report.figures.items():
        wanted = sum(merged[name] - two.state[name] for merged in two.merged)
        error = float((folded[name] - two.state[name] - wanted).norm() / wanted.norm())
        assert figures["error"] == pytest.approx(error, rel=1e-3)
        assert figures["kept_by_rank"] == pytest.approx(1 - error**2, rel=1e-3)
        singular = torch.linalg.svdvals(wanted.double())
        assert error == pytest.approx(float(singular[2:].norm() / singular.norm()), rel=1e-3)
    report = two.merge(tmp_path / "ties", "ties", own={"weight": 1.0, "density": 0.5}, output=ADAPTER)
    assert {figures["rank"] for figures in report.figures.values()} == {4, 7}
    assert all(0.5 < figures["kept_by_rank"] < 1 for figures in report.figures.values())


# --- bytes and checks -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "ties", "ssam", "iso_c"])
def test_the_same_bytes_again_and_with_more_threads(
    method: str, two: Tuned, full: list[Path], tmp_path: Path
) -> None:
    own = {"weight": 0.5, "density": 0.5} if method == "ties" else {}
    for models in ([*two.adapters], [two.adapters[0], full[1]]):
        for form in ("adapter", "checkpoint"):
            found = []
            for run, threads in enumerate((1, 2, 2)):
                recipe = two.recipe(method, models=models, own=own, output={"as": form})
                place = tmp_path / f"{run}"
                run_by = submerge.Settings(threads=threads, max_memory=64 * 10**9)
                submerge.merge(recipe, place / "out", settings=run_by, overwrite=True)
                found.append(contents(place / "out"))
            assert found[0] == found[1] == found[2]


def test_verify_knows_an_adapter(two: Tuned, tmp_path: Path) -> None:
    two.merge(tmp_path / "out", output=ADAPTER, base=False)
    report = submerge.verify(tmp_path / "out")
    assert report.sound
    assert report.tensors == len(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    path = tmp_path / "out" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = submerge.verify(tmp_path / "out")
    assert not report.sound
    assert "are not those that were written" in report.problems[0]
    (tmp_path / "out" / "adapter_config.json").unlink()
    assert not submerge.verify(tmp_path / "out").sound


# --- the base's digits ----------------------------------------------------------------------------


def test_on_a_base_in_float64_nothing_is_rounded_to_float32(tmp_path: Path) -> None:
    """alpha / rank is 1/3, by which float32 factors are not multiplied without rounding."""
    options = {"r": 3, "lora_alpha": 1, "target_modules": ["q_proj"], "lora_bias": True}
    made = make_tuned(tmp_path, "llama", options)
    base = {name: tensor.double() for name, tensor in made.state.items()}
    save_file(base, made.base / "model.safetensors", metadata={"format": "pt"})
    made.merge(tmp_path / "out", method="task_arithmetic", parameters={"weight": 1.0})
    merged, factors = read(tmp_path / "out"), load_file(made.adapters[0] / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    wanted = base[f"{name}.weight"] + b @ a / 3
    assert float((merged[f"{name}.weight"] - wanted).abs().max()) < 1e-13
