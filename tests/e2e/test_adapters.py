"""Adapters that PEFT made, merged into checkpoints and into adapters, against what PEFT makes of them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import submerge
from _adapters import Tuned, far, make_tuned, peft_model, same_state
from _models import ROOM, contents, quiet_transformers, read, write
from store.helpers_adapter import CASES, MODELS, stored

CLOSE = 1e-5  # float32 sums in another order, of numbers below 10
ADAPTER = {"as": "adapter"}
FIRST = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"]}
SECOND = {"r": 3, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of one base, of different rank, alpha, scale and modules."""
    return make_tuned(tmp_path_factory.mktemp("two"), "llama", FIRST, SECOND)


@pytest.fixture(scope="module")
def full(two: Tuned) -> list[Path]:
    return two.full()


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
    "tokens": 1,
    "rows-by-name": 2,
    "classifier-biases": 17,
}
PACKED = {case for case, (kind, _) in CASES.items() if kind in ("mixtral", "qwen3-moe", "gpt-oss")}
ALONE = {"linear", "rslora", "patterns", "embedding", "conv1d", "both-kinds", "mica", "velora"}


@pytest.mark.parametrize("case", CASES)
def test_one_adapter_comes_back(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = make_tuned(tmp_path, kind, options)
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
def test_without_its_base_an_adapter_comes_back_or_is_refused(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = make_tuned(tmp_path, kind, options)
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
    for method in ("ssam", "tsv_m", "iso_c", "iso_cts", "knots_ties"):
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


@pytest.mark.parametrize("method", ["cat", "ssam", "tsv_m", "iso_c", "knots_ties"])
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


# --- PEFT's own merges of adapters ----------------------------------------------------------------


def weighted(made: Tuned, combination: str, weights: list[float], **more: Any) -> dict[str, torch.Tensor]:
    """Return the state after PEFT's add_weighted_adapter is merged into the base."""
    import peft

    model = peft_model(made.kind, made.state, 0, r=1, target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, folder in enumerate(made.adapters):
            model.load_adapter(str(folder), adapter_name=f"a{i}")
        names = [f"a{i}" for i in range(len(made.adapters))]
        model.add_weighted_adapter(names, weights, "sum", combination_type=combination, **more)
        assert isinstance(model, peft.PeftModel)
        merged = model.merge_and_unload(adapter_names=["sum"])
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of one configuration, which is what PEFT merges exactly."""
    return make_tuned(tmp_path_factory.mktemp("plain"), "llama", PLAIN, PLAIN)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.2]])
def test_cat_is_pefts(plain: Tuned, weights: list[float], tmp_path: Path) -> None:
    recipe = plain.recipe(output=ADAPTER, base=False)
    for entry, weight in zip(recipe["models"], weights, strict=True):
        entry["parameters"] = {"weight": weight}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    same_state(plain.loaded(tmp_path / "out"), weighted(plain, "cat", weights), CLOSE)


@pytest.mark.parametrize("rank", [2, 8])
def test_svd_is_pefts(plain: Tuned, rank: int, tmp_path: Path) -> None:
    plain.merge(tmp_path / "out", output=ADAPTER | {"rank": rank}, base=False, own={"weight": 0.7})
    same_state(plain.loaded(tmp_path / "out"), weighted(plain, "svd", [0.7, 0.7], svd_rank=rank), CLOSE)


def test_pefts_linear_has_cross_terms(plain: Tuned, tmp_path: Path) -> None:
    """(Σ √w B)(Σ √w A) is Σ w B A and the products of one adapter's B with another's A."""
    plain.merge(tmp_path / "out", "task_arithmetic", output=ADAPTER, base=False, own={"weight": 0.5})
    ours, theirs = plain.loaded(tmp_path / "out"), weighted(plain, "linear", [0.5, 0.5])
    assert far(ours, theirs) > 0.1
    name = "model.layers.0.self_attn.q_proj"
    left, right = (
        [stored(folder)[f"base_model.model.{name}.lora_{side}.weight"] for folder in plain.adapters]
        for side in "BA"
    )
    cross = 0.5 * 2 * (left[0] @ right[1] + left[1] @ right[0])
    found = theirs[f"{name}.weight"] - ours[f"{name}.weight"]
    torch.testing.assert_close(found, cross, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_peft_applies_the_scale_of_rslora_twice(combination: str, tmp_path: Path) -> None:
    """PEFT puts each scale into the factors, and then gives the sum, of rank 8, the scale 8 / √8."""
    made = make_tuned(tmp_path, "llama", PLAIN | {"use_rslora": True}, PLAIN | {"use_rslora": True})
    made.merge(tmp_path / "out", output=ADAPTER, base=False, own={"weight": 0.5})
    more = {"svd_rank": 8} if combination == "svd" else {}
    ours, theirs = made.loaded(tmp_path / "out"), weighted(made, combination, [0.5, 0.5], **more)
    update = {n: (theirs[n] - made.state[n]) / math.sqrt(8) for n in theirs}
    same_state({n: made.state[n] + update[n] for n in update}, ours, CLOSE)


def test_scales_of_rslora_are_kept(two: Tuned, tmp_path: Path) -> None:
    """What comes out has no rsLoRA, for its scale alpha / √r is in the factors."""
    two.merge(tmp_path / "out", output=ADAPTER, base=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"], config["lora_alpha"]) == (False, 7, 7)
    total = {n: sum((m[n] - two.state[n] for m in two.merged), two.state[n]) for n in two.state}
    same_state(two.loaded(tmp_path / "out"), total, CLOSE)


# --- names ----------------------------------------------------------------------------------------

OLD, NEW = "base_model.model.language_model.model.", "base_model.model.model.language_model."


def test_prefixes_of_old_and_new_versions(two: Tuned, tmp_path: Path) -> None:
    """Adapters of one multimodal model, trained with two versions of Transformers."""
    folders = []
    for number, (folder, prefix) in enumerate(zip(two.adapters, (OLD, NEW), strict=True)):
        moved = {k.replace("base_model.model.model.", prefix): v for k, v in stored(folder).items()}
        place = tmp_path / f"a{number}"
        place.mkdir()
        save_file(moved, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        folders.append(place)
    two.merge(tmp_path / "plain", output=ADAPTER, base=False)
    two.merge(tmp_path / "moved", models=folders, output=ADAPTER, base=False)
    expected = stored(tmp_path / "plain")
    found = stored(tmp_path / "moved")
    assert {k.replace(OLD, "base_model.model.model."): v.shape for k, v in found.items()} == {
        k: v.shape for k, v in expected.items()
    }
    assert all(torch.equal(v, expected[k.replace(OLD, "base_model.model.model.")]) for k, v in found.items())
    base = {k.replace("model.", "model.language_model.", 1): v for k, v in two.state.items()}
    write(tmp_path / "base", base, {"model_type": "vlm"})
    two.merge(tmp_path / "folded", models=folders, base=str(tmp_path / "base"))
    two.merge(tmp_path / "expected")
    renamed = {
        k.replace("model.", "model.language_model.", 1): v for k, v in read(tmp_path / "expected").items()
    }
    same_state(read(tmp_path / "folded"), renamed, 0)


def test_an_adapter_keeps_its_own_names(tmp_path: Path) -> None:
    """Checkpoints of multimodal models keep names of old versions, which PEFT would not find in a model."""
    options = {"r": 2, "target_modules": ["q_proj", "linear_1"]}
    made = make_tuned(
        tmp_path, "llava", options | {"use_dora": True}, options | {"target_modules": ["q_proj"]}
    )
    model = MODELS["llava"](quiet_transformers())
    model.load_state_dict(made.state)
    model.save_pretrained(tmp_path / "old")
    assert any(name.startswith("language_model.model.") for name in read(tmp_path / "old"))
    model.load_state_dict(made.merged[1])
    model.save_pretrained(tmp_path / "full")
    total = {n: made.merged[0][n] + made.merged[1][n] - made.state[n] for n in made.state}
    for number, second in enumerate((made.adapters[1], tmp_path / "full")):
        out = tmp_path / f"{number}"
        base = str(tmp_path / "old")
        made.merge(out, models=[made.adapters[0], second], base=base, output=ADAPTER)
        same_state(made.loaded(out), total, CLOSE)
        assert submerge.verify(out).sound


# --- in a live model ------------------------------------------------------------------------------


def live(made: Tuned) -> Any:
    model = peft_model(made.kind, made.state, 0, r=1, target_modules=["k_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, folder in enumerate(made.adapters):
            model.load_adapter(str(folder), adapter_name=f"a{i}")
    model.set_adapter("a0")
    return model


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "options"),
    [("cat", {"weight": [0.7, 0.2]}), ("ssam", {}), ("tsv_m", {}), ("ties", {"density": 0.5, "weight": 1.0})],
)
def test_merge_adapters_is_the_merge_of_folders(
    method: str, options: dict[str, Any], two: Tuned, tmp_path: Path
) -> None:
    model = live(two)
    before = tensors(model)
    report = submerge.merge_adapters(model, ["a0", "a1"], method=method, rank=5, **options)
    after = tensors(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.active_adapters == ["a0"]
    assert model.peft_config["merged"].r == (4 if method == "ssam" else 5)
    assert not report.warnings
    recipe = two.recipe(method, base=False, output=ADAPTER | {"rank": 5})
    for i, entry in enumerate(recipe["models"]):
        entry["parameters"] = {k: v[i] if isinstance(v, list) else v for k, v in options.items()}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    new = {name: tensor for name, tensor in after.items() if ".merged." in name}
    expected = stored(tmp_path / "out")
    for name, tensor in new.items():
        assert torch.equal(tensor, expected[name.replace(".merged.", ".")]), name
    assert len(new) == len(expected)


@pytest.mark.parametrize(
    ("adapters", "options", "message"),
    [
        (["a0", "nix"], {}, "there is no adapter 'nix'"),
        (["a0"], {"name": "a1"}, "is there already"),
        (["a0"], {"method": "nix"}, "unknown method"),
        (["a0"], {"method": "slerp", "t": 0.5}, "slerp"),
        (["a0"], {"rank": 0}, "positive whole number"),
        (["a0"], {"energy": 2.0}, "a share in"),
        (["a0", "a1"], {"weight": [1.0]}, "1 values for 2 models"),
        (["a0"], {"nix": 1}, "nix"),
    ],
)
def test_errors_leave_the_model_alone(
    adapters: list[str], options: dict[str, Any], message: str, two: Tuned
) -> None:
    model = live(two)
    before = tensors(model)
    with pytest.raises(submerge.RequestError, match=message):
        submerge.merge_adapters(model, adapters, **options)
    after = tensors(model)
    assert list(model.peft_config) == ["default", "a0", "a1"]
    assert model.active_adapters == ["a0"]
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


# --- extract-lora ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_was_extracted_loads_and_is_as_near_as_told(
    kind: str, dtype: str | None, tmp_path: Path
) -> None:
    made = make_tuned(tmp_path, kind)
    draw = torch.Generator().manual_seed(5)
    matrices = {
        name
        for name, tensor in made.state.items()
        if tensor.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
    }
    tuned = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=draw) * (name in matrices)
        for name, tensor in made.state.items()
    }
    write(tmp_path / "tuned", tuned, {"model_type": kind})
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(made.base), rank=5, dtype=dtype, settings=ROOM
    )
    folded = made.loaded(tmp_path / "out")
    assert set(report.figures) >= matrices
    assert not report.warnings
    for name in matrices:
        update = (tuned[name] - made.state[name]).double()
        error = float(((folded[name] - made.state[name]).double() - update).norm() / update.norm())
        assert report.figures[name]["error"] == pytest.approx(error, rel=1e-3)
        assert report.figures[name]["rank"] == 5
        singular = torch.linalg.svdvals(update)
        best = float(singular[5:].norm() / singular.norm())
        assert error == pytest.approx(best, rel=1e-3 if dtype is None else 0.05)
    same_state(
        {n: folded[n] for n in made.state if n not in matrices},
        {n: made.state[n] for n in made.state if n not in matrices},
        0,
    )


def test_a_rank_that_is_enough_is_exact(two: Tuned, full: list[Path], tmp_path: Path) -> None:
    for rank in (4, 16):
        report = submerge.extract_lora(
            str(full[0]), tmp_path / f"{rank}", base=str(two.base), rank=rank, settings=ROOM
        )
        errors = [figures["error"] for figures in report.figures.values() if figures.get("rank")]
        assert len(errors) == 6
        assert max(errors) < 1e-6
        same_state(two.loaded(tmp_path / f"{rank}"), two.merged[0], CLOSE)
        assert not report.warnings


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_energy_asks_for_the_smallest_rank(
    energy: float, two: Tuned, full: list[Path], tmp_path: Path
) -> None:
    report = submerge.extract_lora(
        str(full[0]), tmp_path / "out", base=str(two.base), energy=energy, settings=ROOM
    )
    for name, figures in report.figures.items():
        if not figures.get("rank"):
            continue
        squares = torch.linalg.svdvals((two.merged[0][name] - two.state[name]).double()).square()
        shares = squares.cumsum(0) / squares.sum()
        assert figures["rank"] == int((shares < energy).sum()) + 1
        assert figures["kept_by_rank"] >= energy
        assert figures["error"] == pytest.approx(math.sqrt(1 - figures["kept_by_rank"]), abs=1e-5)
    capped = submerge.extract_lora(
        str(full[0]), tmp_path / "cap", base=str(two.base), energy=energy, rank=1, settings=ROOM
    )
    assert {figures["rank"] for figures in capped.figures.values() if figures.get("rank")} == {1}


def test_only_what_differs_and_is_left_out_is_warned_about(two: Tuned, tmp_path: Path) -> None:
    tuned = dict(two.merged[0])
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 1
    tuned["model.embed_tokens.weight"] = tuned["model.embed_tokens.weight"] * 1.5
    write(tmp_path / "tuned", tuned, {"model_type": "llama"})
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(two.base), rank=4, settings=ROOM
    )
    (line,) = report.warnings
    assert line.startswith("2 tensors differ")
    assert "model.norm.weight" in line
    assert "model.embed_tokens.weight" in line
    assert report.figures["model.norm.weight"]["left_out"] == pytest.approx(4.0, rel=1e-5)


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
