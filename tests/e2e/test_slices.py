"""Layers of several models in one: as mergekit stacks them, in models that transformers loads."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import submerge
from _models import ROOM, TEXT, VISION, contents, quiet_transformers, read, write

LAYERS = 4
SIZES = TEXT | {
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OWN = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
CONFIGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "llama": ("LlamaForCausalLM", lambda t: t.LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "mistral": ("MistralForCausalLM", lambda t: t.MistralConfig(**SIZES, sliding_window=8)),
    "qwen2": (
        "Qwen2ForCausalLM",
        lambda t: t.Qwen2Config(
            **SIZES, tie_word_embeddings=True, use_sliding_window=True, max_window_layers=2, sliding_window=4
        ),
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", lambda t: t.GPTNeoXConfig(**OWN)),
    "gemma": ("GemmaForCausalLM", lambda t: t.GemmaConfig(**SIZES, head_dim=8)),
}

FULL = "[0, 4]"
MERGED = f"""
merge_method: slerp
base_model: base
slices:
- sources:
  - {{model: base, layer_range: {FULL}}}
  - {{model: a, layer_range: {FULL}}}
parameters:
  t:
  - {{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}
  - {{filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}}
  - {{value: 0.5}}
"""
RECIPES = {
    "one full slice": MERGED,
    "passthrough": """
merge_method: passthrough
slices:
- sources:
  - model: a
    layer_range: [0, 3]
    parameters: {scale: [{filter: mlp, value: 0.5}, {filter: layers.1.self_attn, value: 0.25}, {value: 1}]}
- sources:
  - {model: b, layer_range: [1, 4], parameters: {scale: [{filter: layers.2, value: 0.75}, {value: 1}]}}
- sources: [{model: a, layer_range: [2, 4]}]
""",
    "slerp of shifted layers": """
merge_method: slerp
base_model: base
slices:
- sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [1, 3]}]
  parameters: {t: [{filter: attn, value: [0, 1]}]}
- sources: [{model: b, layer_range: [0, 3]}, {model: a, layer_range: [1, 4]}]
  base_model: b
parameters: {t: [{filter: mlp, value: [1, 0]}, {value: 0.5}]}
""",
    "ties": """
merge_method: ties
base_model: base
slices:
- sources:
  - {model: base, layer_range: [0, 2]}
  - {model: a, layer_range: [0, 2], parameters: {weight: 0.5, density: 0.4}}
  - {model: b, layer_range: [1, 3], parameters: {weight: 0.5}}
- sources:
  - {model: base, layer_range: [1, 4]}
  - {model: b, layer_range: [1, 4], parameters: {weight: [1, 0.2], density: 0.7}}
  - {model: a, layer_range: [0, 3], parameters: {weight: 1.0}}
  parameters: {density: [{filter: mlp, value: 0.3}]}
parameters: {normalize: true, density: 0.9}
""",
    "linear by modules": """
merge_method: linear
modules:
  default:
    slices:
    - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [2, 4], parameters: {weight: 3}}]
    - sources: [{model: b, layer_range: [0, 1]}]
    parameters: {weight: [{filter: attn, value: 2}]}
parameters: {weight: 1}
""",
}


@pytest.fixture(scope="module", params=CONFIGS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `a` and `b` of one architecture, as a recipe with relative paths names them."""
    t = quiet_transformers()
    name, config = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = getattr(t, name)(config(t))
    for number, model_name in enumerate(("base", "a", "b")):
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        model.save_pretrained(folder / model_name, max_shard_size="20KB" if number == 1 else "1GB")
        if request.param == "gpt_neox":
            _add_buffers(folder / model_name)
    (folder / "class").write_text(name)
    return folder


def _add_buffers(folder: Path) -> None:
    """Give each layer the buffers that files of Pythia have, and that mergekit asks for."""
    buffers = {}
    for layer in range(LAYERS):
        attention = f"gpt_neox.layers.{layer}.attention"
        buffers[f"{attention}.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
        buffers[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{attention}.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.01])
    tensors = read(folder) | buffers
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    write(folder, tensors, json.loads((folder / "config.json").read_text()))


def answer(folder: Path, name: str) -> list[int]:
    """Return the tokens that a model says."""
    model, info = getattr(quiet_transformers(), name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    prompt = torch.arange(6).unsqueeze(0) + 2
    model.generation_config.eos_token_id = None
    return model.eval().generate(prompt, max_new_tokens=12, do_sample=False)[0].tolist()


def placed(recipe: str, root: Path) -> str:
    """Return a recipe with the models' full paths, by which mergekit keeps models that it has opened."""
    return re.sub(r"model: (?=(?:base|a|b)\b)", f"model: {root}/", recipe)


def stacked_by(run_mergekit: Any, recipe: str, typed: bool, out: Path) -> Path:
    """Run mergekit; of models that have a type for each layer its last step fails, the configuration."""
    match = "must be equal to the number of `layer_types`"
    with pytest.raises(Exception, match=match) if typed else nullcontext():
        run_mergekit(recipe, out)
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_layers_are_stacked_as_by_mergekit(name: str, root: Path, run_mergekit: Any, tmp_path: Path) -> None:
    recipe = placed(RECIPES[name], root)
    typed = "layer_types" in (root / "a" / "config.json").read_text() and name != "one full slice"
    theirs = stacked_by(run_mergekit, recipe, typed, tmp_path / "theirs")
    ours = submerge.merge(recipe, tmp_path / "ours", settings=ROOM).out
    merged, expected = read(ours), read(theirs)
    assert set(merged) == set(expected)
    for tensor, values in merged.items():
        torch.testing.assert_close(
            values, expected[tensor], rtol=1e-5, atol=2e-6, msg=lambda text, n=tensor: f"{n}: {text}"
        )
    assert submerge.verify(ours).problems == []

    config = json.loads((ours / "config.json").read_text())
    if not typed:
        assert (
            config["num_hidden_layers"]
            == json.loads((theirs / "config.json").read_text())["num_hidden_layers"]
        )
    else:
        assert len(config["layer_types"]) == config["num_hidden_layers"]
        shutil.copy(ours / "config.json", theirs)
    architecture = (root / "class").read_text()
    assert answer(ours, architecture) == answer(theirs, architecture)

    # what is written for mergekit beside the output means the same to it
    written = (ours / "mergekit_config.yml").read_text()
    again = read(stacked_by(run_mergekit, written, typed, tmp_path / "again"))
    for tensor, values in again.items():
        torch.testing.assert_close(
            values, expected[tensor], rtol=1e-6, atol=1e-7, msg=lambda text, n=tensor: f"{n}: {text}"
        )


def test_one_slice_of_all_layers_is_the_same_as_models(root: Path, tmp_path: Path) -> None:
    slices = yaml.safe_load(placed(MERGED, root))
    models = {key: value for key, value in slices.items() if key != "slices"}
    models["models"] = [{"model": f"{root}/base"}, {"model": f"{root}/a"}]
    stacked = contents(submerge.merge(slices, tmp_path / "slices", settings=ROOM).out)
    plain = contents(submerge.merge(models, tmp_path / "models", settings=ROOM).out)
    for files in (stacked, plain):
        del files["README.md"]
    assert stacked == plain


def test_what_layers_have_a_value_for_follows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other layer of a Gemma 2 has a window: layers keep theirs wherever they go."""
    t = quiet_transformers()
    monkeypatch.chdir(tmp_path)
    t.Gemma2ForCausalLM(t.Gemma2Config(**SIZES, head_dim=8, sliding_window=8)).save_pretrained("a")
    layers = "[{model: a, layer_range: [0, 2]}]", "[{model: a, layer_range: [2, 3]}]"
    recipe = f"merge_method: passthrough\nslices: [{{sources: {layers[0]}}}, {{sources: {layers[1]}}}]\n"
    recipe = recipe.replace("slices: [", "slices: [{sources: [{model: a, layer_range: [1, 2]}]}, ")
    out = submerge.merge(recipe, "out", settings=ROOM).out
    full, window = "full_attention", "sliding_attention"
    assert json.loads((out / "config.json").read_text())["layer_types"] == [full, window, full, window]
    assert answer(out, "Gemma2ForCausalLM")


def test_experts_are_where_a_stacked_model_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other layer has experts, also where layers are taken in an order that no step says."""
    t = quiet_transformers()
    monkeypatch.chdir(tmp_path)
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 2}
    config = t.Qwen2MoeConfig(**SIZES, **moe, shared_expert_intermediate_size=8)
    t.Qwen2MoeForCausalLM(config).save_pretrained("a")
    recipe = "merge_method: passthrough\nslices:\n" + "".join(
        f"- sources: [{{model: a, layer_range: [{start}, {stop}]}}]\n"
        for start, stop in ((1, 3), (1, 2), (0, 1))
    )
    out = submerge.merge(recipe, "out", settings=ROOM).out
    assert json.loads((out / "config.json").read_text())["mlp_only_layers"] == [1, 3]
    _, loading = t.Qwen2MoeForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


def test_a_layer_that_is_another_kind_at_its_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first layer of T5's encoder looks distances up."""
    t = quiet_transformers()
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    config = t.T5Config(**sizes, num_layers=2, num_decoder_layers=2)
    t.T5ForConditionalGeneration(config).save_pretrained("a")
    recipe = """
merge_method: passthrough
modules:
  default: {models: [{model: a}]}
  decoder: {models: [{model: a}]}
  encoder: {slices: [{sources: [{model: a, layer_range: [1, 2]}]}]}
"""
    told = "lacks encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(submerge.RequestError, match=re.escape(told)):
        submerge.plan(recipe, ROOM)
    assert submerge.plan(recipe.replace("[1, 2]", "[0, 1]"), ROOM).tensors


MODULES = """
merge_method: linear
modules:
  text_decoder:
    slices:
    - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
    - sources: [{model: a, layer_range: [1, 4]}, {model: b, layer_range: [0, 3], parameters: {weight: 2}}]
  vision_tower:
    slices:
    - sources: [{model: a, layer_range: [0, 3]}]
    - sources: [{model: b, layer_range: [1, 4]}]
    parameters: {weight: [{filter: mlp, value: 0.5}]}
  multi_modal_projector:
    slices:
    - sources: [{model: a, layer_range: [0, 0]}, {model: b, layer_range: [0, 0]}]
parameters: {weight: 1.0}
"""


def _write_vlm(t: Any, folder: Path, seed: int) -> None:
    """Write a Gemma 3 that reads images, with the names that files had before transformers 5."""
    text = SIZES | {"head_dim": 8, "sliding_window": 8, "model_type": "gemma3_text"}
    vision = VISION | {
        "num_hidden_layers": LAYERS,
        "vision_use_head": False,
        "model_type": "siglip_vision_model",
    }
    torch.manual_seed(seed)
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    t.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in read(folder).items()
    }
    write(folder, tensors, json.loads((folder / "config.json").read_text()))


def test_modules_are_stacked_as_by_mergekit(run_mergekit: Any, tmp_path: Path) -> None:
    t = quiet_transformers()
    for seed, name in enumerate("ab"):
        _write_vlm(t, tmp_path / name, seed)
    recipe = placed(MODULES, tmp_path)
    theirs = run_mergekit(recipe, tmp_path / "theirs")
    ours = submerge.merge(recipe, tmp_path / "ours", settings=ROOM).out
    merged, expected = read(ours), read(theirs)
    assert set(merged) == set(expected)
    for tensor, values in merged.items():
        torch.testing.assert_close(values, expected[tensor], rtol=1e-5, atol=2e-6, msg=tensor)
    config = json.loads((ours / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == len(config["text_config"]["layer_types"]) == 5
    assert config["vision_config"]["num_hidden_layers"] == 6
    assert submerge.verify(ours).problems == []
