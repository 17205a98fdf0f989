"""Mixtures of experts: mergekit's tensors, in models that transformers loads and that answer."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from _hub_server import importing, serving
from _mixtures import DENSE, NAMES, dense_models, mixture_recipe
from _models import ROOM, quiet_transformers, read
from _tokenizers import fast_tokenizer
from submerge.engine import moe, verify

pytest.importorskip("transformers")

IDS = torch.tensor([[2, 5, 3, 8, 4, 7, 9, 6]])
SHARED = [{"positive_prompts": ["w2 w9"]}]
MIXTURES = {
    "llama": ("mixtral", None),
    "mistral": ("mixtral", None),
    "qwen2": ("qwen2_moe", SHARED),
    "qwen3": ("qwen3_moe", None),
    "llama with a shared expert": ("qwen2_moe", SHARED),
}
"""By the dense model: the mixture, and its shared experts."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder with the models of a kind, made once."""
    return cache(lambda kind: dense_models(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(scope="module")
def mergekit_moe() -> Iterator[Any]:
    """What makes a mixture by mergekit-moe: its base runs in float32, with the tokenizer of its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = pytest.importorskip("mergekit.scripts.moe")
        config = pytest.importorskip("mergekit.moe.config")
        router = pytest.importorskip("mergekit.moe.router")
        options = pytest.importorskip("mergekit.options")
    level = logging.getLogger().level
    kind = router.AutoModelForCausalLM

    class InFloat32:
        @staticmethod
        def from_pretrained(*args: Any, **more: Any) -> Any:
            return kind.from_pretrained(*args, dtype=torch.float32)

    def run(recipe: dict[str, Any], out: Path) -> Path:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setattr(router, "AutoModelForCausalLM", InFloat32)
            patch.setattr(script.transformers, "AutoTokenizer", script.transformers.PreTrainedTokenizerFast)
            script.build(
                config.MoEMergeConfig.model_validate(recipe),
                str(out),
                options.MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False),
                device="cpu",
                allow_all_same=True,
            )
        return out

    yield run
    logging.getLogger().setLevel(level)


def loaded(folder: Path) -> Any:
    """Return the model of a folder, which must have all of its weights."""
    model, info = quiet_transformers().AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def recipe_of(models: Callable[[str], Path], name: str, gate_mode: str) -> dict[str, Any]:
    root, shared = models(name.split()[0]), MIXTURES[name][1]
    more = {"shared_experts": [{"source_model": str(root / "b"), **shared[0]}]} if shared else {}
    return mixture_recipe(root, gate_mode, **more)


@pytest.mark.parametrize("gate_mode", ["cheap_embed", "hidden"])
@pytest.mark.parametrize("name", MIXTURES)
def test_tensors_are_those_of_mergekit(
    name: str, gate_mode: str, models: Callable[[str], Path], mergekit_moe: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(models, name, gate_mode)
    moe(recipe, tmp_path / "ours", settings=ROOM)
    named = {"architecture": "qwen"} if name.endswith("expert") else {}
    theirs = loaded(mergekit_moe(recipe | named, tmp_path / "theirs"))
    ours = loaded(tmp_path / "ours")
    assert ours.config.model_type == theirs.config.model_type == MIXTURES[name][0]
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for key, value in ours.state_dict().items():
        gate = key.endswith("gate.weight")
        torch.testing.assert_close(value, expected[key], atol=2e-6 if gate else 0, rtol=0, msg=key)
    if name != "mistral":  # whose window mergekit drops
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gate_mode", ["random", "uniform_random", "hidden_avg", "hidden_last"])
@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_answer(name: str, gate_mode: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    moe(recipe_of(models, name, gate_mode), tmp_path / "mixture", settings=ROOM)
    model = loaded(tmp_path / "mixture")
    assert model(IDS).logits.isfinite().all()
    assert model.generate(IDS, max_new_tokens=4, do_sample=False, min_new_tokens=4).shape == (1, 12)
    checked = verify(tmp_path / "mixture")
    assert (checked.problems, checked.loaded) == ([], type(model).__name__)


@pytest.mark.parametrize("kind", ["llama", "llama3", "mistral", "qwen3"])
def test_equal_experts_are_the_dense_model(kind: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    base = str(models(kind) / "base")
    recipe = {"base_model": base, "gate_mode": "random", "experts": [{"source_model": base}] * 3}
    report = moe(recipe, tmp_path / "mixture", settings=ROOM)
    assert report.warnings == (
        "all experts are the same: until it is trained the mixture answers as a model with one of them",
    )
    dense, mixture = loaded(Path(base)), loaded(tmp_path / "mixture")
    torch.testing.assert_close(mixture(IDS).logits, dense(IDS).logits, atol=1e-4, rtol=1e-4)


def test_an_ungated_shared_expert_is_added_as_it_is(models: Callable[[str], Path], tmp_path: Path) -> None:
    """With experts that add nothing, what is left is the shared expert: the dense model."""
    base = str(models("llama") / "base")
    experts = [{"source_model": str(models("llama") / n), "residual_scale": 0.0} for n in "ab"]
    recipe = {"base_model": base, "gate_mode": "random", "experts": experts}
    moe(recipe | {"shared_experts": [{"source_model": base}]}, tmp_path / "mixture", settings=ROOM)
    dense, mixture = loaded(Path(base)), loaded(tmp_path / "mixture")
    assert type(mixture).__name__ == "Qwen2MoeForCausalLM"
    torch.testing.assert_close(mixture(IDS).logits, dense(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_deepseek_has_mergekits_files(
    shared: bool, models: Callable[[str], Path], mergekit_moe: Any, tmp_path: Path
) -> None:
    """transformers loads it with code from the Hub alone, so that files are compared."""
    root = models("llama")
    more = {"shared_experts": [{"source_model": str(root / "b")}]} if shared else {}
    recipe = mixture_recipe(root, architecture="deepseek", **more)
    report = moe(recipe, tmp_path / "ours", settings=ROOM)
    assert "trust_remote_code" in report.warnings[0]
    ours, theirs = read(tmp_path / "ours"), read(mergekit_moe(recipe, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-6, rtol=0, msg=name)
    own, expected = (json.loads((tmp_path / out / "config.json").read_text()) for out in ("ours", "theirs"))
    left = {key for key, value in expected.items() if key in own and own[key] != value}
    assert left <= {"transformers_version"}
    assert own.keys() >= {"auto_map", "n_routed_experts", "n_shared_experts", "moe_intermediate_size"}


def test_residual_scale_is_that_of_mergekit(
    models: Callable[[str], Path], mergekit_moe: Any, tmp_path: Path
) -> None:
    recipe = mixture_recipe(models("qwen3"), dtype="bfloat16")
    recipe["experts"][1]["residual_scale"] = 0.3
    moe(recipe, tmp_path / "ours", settings=ROOM)
    ours, theirs = loaded(tmp_path / "ours"), loaded(mergekit_moe(recipe, tmp_path / "theirs"))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, atol=1e-2, rtol=2**-8, msg=key)
    assert read(tmp_path / "ours")["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("gate_mode", ["random", "cheap_embed", "hidden"])
def test_adapters_are_models(gate_mode: str, tmp_path: Path) -> None:
    """An adapter on the base is an expert, and a base, like the model that it makes."""
    root = dense_models(tmp_path / "models", "llama")
    base, adapter, full = str(root / "base"), str(root / "adapter"), str(root / "full")
    _write_adapter(root)
    made = {}
    for out, model in (("adapted", adapter), ("full", full)):
        as_base = f"{base}+{model}" if model == adapter else model
        recipe = mixture_recipe(root, gate_mode, base_model=as_base)
        recipe["experts"][0]["source_model"] = as_base
        recipe["experts"][1]["source_model"] = base
        moe(recipe, tmp_path / out, settings=ROOM)
        made[out] = read(tmp_path / out)
    assert made["adapted"].keys() == made["full"].keys()
    for name, tensor in made["adapted"].items():
        torch.testing.assert_close(tensor, made["full"][name], atol=1e-4, rtol=1e-4, msg=name)


def _write_adapter(root: Path) -> None:
    """Write an adapter of attention and feed-forward blocks, and what PEFT makes of it."""
    transformers = quiet_transformers()
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))
    wrapped.save_pretrained(str(root / "adapter"))
    wrapped.merge_and_unload().save_pretrained(root / "full")
    fast_tokenizer().save_pretrained(root / "full")


@pytest.mark.parametrize("gate_mode", ["cheap_embed", "hidden"])
def test_an_interrupted_run_goes_on(gate_mode: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """Gates are computed again, and are those of the run that was interrupted."""
    recipe, out = mixture_recipe(models("llama"), gate_mode), tmp_path / "out"

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moe(recipe, out, settings=ROOM, progress=stop)
    assert not out.exists()
    assert moe(recipe, out, settings=ROOM, resume=True).resumed > 0
    moe(recipe, tmp_path / "again", settings=ROOM)
    assert all(torch.equal(t, read(tmp_path / "again")[name]) for name, t in read(out).items())


def test_models_of_the_hub(models: Callable[[str], Path], tmp_path: Path) -> None:
    """They are planned by their headers, and fetched for the work."""
    root, weights = models("llama"), "model.safetensors"
    recipe = mixture_recipe(Path("org"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with (
        serving({f"org/{name}": root / name for name in NAMES}) as hub,
        importing(hub, tmp_path, "transformers.models.llama.modeling_llama") as command,
    ):
        planned = command("moe", "recipe.yaml", "--plan", "--json")
        assert planned.code == 0, planned.err
        assert hub.whole(weights) == 0
        made = command("moe", "recipe.yaml", "mixture", "-q")
        assert made.code == 0, made.err
        assert hub.whole(weights) == len(NAMES)
    moe(mixture_recipe(root), tmp_path / "local", settings=ROOM)
    assert (tmp_path / "mixture" / weights).read_bytes() == (tmp_path / "local" / weights).read_bytes()


def test_a_window_of_attention_stays(models: Callable[[str], Path], tmp_path: Path) -> None:
    moe(mixture_recipe(models("mistral"), "random"), tmp_path / "mixture", settings=ROOM)
    assert loaded(tmp_path / "mixture").config.sliding_window == DENSE["mistral"][1]["sliding_window"]
