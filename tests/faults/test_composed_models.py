"""Composed models that cannot be: every request is refused before any work, with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import ROOM
from _specialists import IMAGE, ROWS, TEXT, WORDS, Specialists, make_specialists, quiet
from _tokenizers import fast_tokenizer, special

Recipe = dict[str, Any]
Change = Callable[[Specialists, Path], Recipe]
ONE = {"parameters": {"weight": 1.0}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Specialists:
    return make_specialists(tmp_path_factory.mktemp("specialists"))


def one(made: Specialists, folder: Path, modality: str = "image") -> Recipe:
    return made.recipe("task_arithmetic", {"model": str(folder), "modality": modality}, **ONE)


def copied(made: Specialists, name: str, folder: Path) -> Path:
    return Path(shutil.copytree(made.path(name), folder / name))


def with_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_module(made: Specialists, folder: Path) -> Recipe:
    shutil.copytree(made.path("base"), folder / "alone")
    return one(made, folder / "alone")


def other_layers(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    state = load_file(vision / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.q_proj"
    save_file(state | {f"{name}.bias": torch.zeros(16)}, vision / "model.safetensors")
    return one(made, vision)


def other_shapes(made: Specialists, folder: Path) -> Recipe:
    from transformers import LlamaConfig, LlamaForCausalLM

    with quiet():
        LlamaForCausalLM(LlamaConfig(**TEXT | {"intermediate_size": 32})).save_pretrained(folder / "base")
    fast_tokenizer(
        [], {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 64)}
    ).save_pretrained(folder / "base")
    return one(made, made.path("vision")) | {"base_model": str(folder / "base")}


def composite_base(made: Specialists, folder: Path) -> Recipe:
    return one(made, made.path("vision")) | {"base_model": str(made.path("hearing"))}


def no_processor(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    (vision / "preprocessor_config.json").unlink()
    return one(made, vision)


def no_placeholder(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, image_token_index=None)
    return one(made, vision)


def unknown_placeholder(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, image_token_index=5000)
    return one(made, vision)


def negative_placeholder(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, image_token_index=-200)
    return one(made, vision)


def packed_experts(made: Specialists, folder: Path) -> Recipe:
    """Of a mixture whose experts were tuned: transformers has one tensor for all of them."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return tuned_vision(folder, MixtralForCausalLM, MixtralConfig, {"num_local_experts": 2}, "")


def sinks_of_attention(made: Specialists, folder: Path) -> Recipe:
    """Of a module that mixes tokens, a parameter of its own."""
    from transformers import GptOssConfig, GptOssForCausalLM

    more = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    return tuned_vision(folder, GptOssForCausalLM, GptOssConfig, more, "sinks")


def convolution_over_tokens(made: Specialists, folder: Path) -> Recipe:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    more = {"layer_types": ["conv", "full_attention"]}
    return tuned_vision(folder, Lfm2ForCausalLM, Lfm2Config, more, "conv.conv")


def tuned_vision(folder: Path, kind: Any, config_of: Any, more: Recipe, changed: str) -> Recipe:
    """Return a recipe of a LLaVA on a language model of some class, whose parameters of a name were tuned."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    own, text = Specialists(folder), TEXT | more
    base = kind(config_of(**text))
    with quiet():
        base.save_pretrained(own.path("base"))
    fast_tokenizer([], WORDS).save_pretrained(own.path("base"))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=config_of(**text | {"vocab_size": ROWS + 4}),
        vision_config=CLIPVisionConfig(**tower, image_size=8, patch_size=4),
        image_token_index=ROWS,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    own.write("vision", LlavaForConditionalGeneration(config), base, IMAGE)
    tuned = own.load("vision")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if changed in name:
                parameter += 0.05 * torch.randn_like(parameter)
    own.save(tuned, "tuned", own.path("vision"))
    return own.recipe("task_arithmetic", own.entry("tuned", "image"), **ONE)


def model_as_adapter(made: Specialists, folder: Path) -> Recipe:
    vision = str(made.path("vision"))
    return made.recipe("task_arithmetic", made.entry("vision", "image") | {"lora": vision}, **ONE)


def two_kinds(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, video_token_index=65)
    return one(made, vision, "sight")


def one_placeholder(made: Specialists, folder: Path) -> Recipe:
    hearing = copied(made, "hearing", folder)
    words = json.loads((hearing / "tokenizer.json").read_text())["model"]["vocab"]
    fast_tokenizer(special(IMAGE), words).save_pretrained(hearing)
    entries = [made.entry("vision", "image"), {"model": str(hearing), "modality": "audio"}]
    return made.recipe("task_arithmetic", *entries, **ONE)


def positions(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    text = json.loads((vision / "config.json").read_text())["text_config"]
    rope = text["rope_parameters"] | {"mrope_section": [2, 1, 1]}
    with_config(vision, text_config=text | {"rope_parameters": rope})
    return one(made, vision)


def deep_features(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    config = json.loads((vision / "config.json").read_text())["vision_config"]
    with_config(vision, vision_config=config | {"deepstack_visual_indexes": [0, 1]})
    return one(made, vision)


def indicators(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, visual_indicator_token_ids=[5, 6])
    return one(made, vision)


def inputs_as_tokens(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, vocabulary_map={"<image>": 64})
    return one(made, vision)


def masks(made: Specialists, folder: Path) -> Recipe:
    vision = copied(made, "vision", folder)
    with_config(vision, architectures=["PaliGemmaForConditionalGeneration"])
    return one(made, vision)


def both_on_the_projector(made: Specialists, folder: Path) -> Recipe:
    for name in ("first", "second"):
        made.adapt("vision", str(folder / name), 1, target_modules=["linear_1"])
    entry = {"language_lora": str(folder / "first"), "modality_lora": str(folder / "second")}
    return made.recipe("task_arithmetic", made.entry("vision", "image") | entry, **ONE)


def adapters_in_a_fold(made: Specialists, folder: Path) -> Recipe:
    """PEFT's two adapters in one folder, of which one is for tokens that have no stream."""
    for name in ("language", "image"):
        made.adapt("vision", str(folder / "trained" / name), 1)
    return one(made, folder / "trained") | {"modality_tokens": "merged"}


FAULTS: list[tuple[Change, str]] = [
    (no_module, "no encoder, and no projector — name the folder of a multimodal model"),
    (other_layers, "has tensors that .*base has not: .*q_proj.bias — give the language model that"),
    (other_shapes, r"shapes differ from .*: model.layers.0.mlp.down_proj.weight \(\[16, 48\]"),
    (composite_base, "its configuration has parts of others — give the language model"),
    (no_processor, "there is no processor: none of preprocessor_config.json.* — copy these files"),
    (no_placeholder, "config.json: it names no placeholder token.* — give a model that transformers loads"),
    (unknown_placeholder, "config.json: its placeholder of the kind image is 5000, and no token has this id"),
    (negative_placeholder, "config.json: it names no placeholder token"),
    (packed_experts, "packs parameters together .*experts.* — add 'modality_tokens: merged'"),
    (
        sinks_of_attention,
        "values of their own of .*sinks.*GptOssAttention is not known to map .* — add 'modality_to",
    ),
    (
        convolution_over_tokens,
        "their own of .*conv.conv.weight: Conv1d is not known to map .* — add 'modality_tok",
    ),
    (model_as_adapter, "vision: is a whole model, and an adapter is needed — name the folder in which PEFT"),
    (
        two_kinds,
        "placeholders for image and video, and the modality is called 'sight' — write 'modality: image'",
    ),
    (one_placeholder, "mark their inputs with '<image>' — give one of them a token of its own"),
    (positions, "LlavaForConditionalGeneration gives its language model positions of several dimensions"),
    (deep_features, "features in layers behind the first"),
    (indicators, r"features in the places of other tokens than its placeholder \(visual_indicator_token"),
    (inputs_as_tokens, r"its inputs as tokens of its vocabulary \(vocabulary_map\)"),
    (masks, "PaliGemmaForConditionalGeneration gives its language model masks"),
    (adapters_in_a_fold, "trained/image is for tokens that modality_tokens: merged gives the merged model"),
    (both_on_the_projector, "both adapters of image change its own modules: .*linear_1.weight — train one"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[change.__name__ for change, _ in FAULTS])
def test_it_is_refused_before_work(made: Specialists, change: Change, message: str, tmp_path: Path) -> None:
    recipe = change(made, tmp_path)
    with pytest.raises(submerge.RequestError, match=message) as caught:
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.glob("out*"))


def test_what_no_stream_can_have_is_merged_for_all_tokens(made: Specialists, tmp_path: Path) -> None:
    recipe = convolution_over_tokens(made, tmp_path) | {"modality_tokens": "merged"}
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    name = "layers.0.conv.conv.weight"
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    wanted = next(tensor for own, tensor in tuned.items() if own.endswith(name))
    torch.testing.assert_close(load_file(out / "model.safetensors")[f"model.{name}"], wanted)
