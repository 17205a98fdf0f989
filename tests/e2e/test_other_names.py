"""Fine-tunes whose files name or pack the same parameters otherwise than the base's: exact at weight 1."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import submerge
from _cli import ROOM as ROOM_ARGUMENTS
from _cli import cli, merge
from _models import ROOM, contents, quiet_transformers, read
from submerge.engine.output import _run
from submerge.errors import RequestError

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IDS = torch.arange(8)[None]
VISION = {**SIZES, "image_size": 8, "patch_size": 4}
del VISION["vocab_size"]

transformers = quiet_transformers()


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def bert(kind: str = "BertModel", **more: Any) -> Any:
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, max_position_embeddings=32, **more))


def qwen2_vl() -> Any:
    text = dict(**SIZES, num_key_value_heads=2, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
    config = transformers.Qwen2VLConfig(
        text_config={**text, "tie_word_embeddings": False},
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 16,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        vision_start_token_id=46,
        image_token_id=47,
        video_token_id=48,
        vision_end_token_id=49,
        tie_word_embeddings=False,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        **SIZES,
        num_key_value_heads=2,
        moe_intermediate_size=12,
        num_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        tie_word_embeddings=False,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3)
    )


def olmoe() -> Any:
    config = transformers.OlmoeConfig(
        **SIZES,
        num_experts=4,
        num_experts_per_tok=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return transformers.OlmoeForCausalLM(config)


def llava() -> Any:
    text = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)
    vision = transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=49, tie_word_embeddings=False
    )
    return transformers.LlavaForConditionalGeneration(config)


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=3))


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=4,
        max_source_positions=8,
        max_target_positions=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


def wav2vec() -> Any:
    config = transformers.Wav2Vec2Config(
        **SIZES,
        conv_dim=(8,),
        conv_kernel=(3,),
        conv_stride=(2,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=1,
    )
    return transformers.Wav2Vec2ForCTC(config)


def moved(model: Any, seed: int = 1) -> Any:
    """Return the model with every parameter changed."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def renamed(*steps: tuple[str, str]) -> Callable[[Path], None]:
    """Return what replaces patterns in the names of a model's files."""

    def change(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            tensors = {}
            for name, tensor in load_file(file).items():
                for old, new in steps:
                    name = re.sub(old, new, name)
                tensors[name] = tensor
            save_file(tensors, file, metadata={"format": "pt"})

    return change


def as_it_is(folder: Path) -> None:
    """Leave the files alone."""


NEW = {"save_original_format": False}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any], Callable[[Path], None]]] = {
    "gpt2": (gpt2, {}, renamed(("^transformer\\.", ""))),
    "bert": (
        bert,
        {},
        renamed(
            ("^", "bert."), ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")
        ),
    ),
    "qwen2vl": (qwen2_vl, NEW, as_it_is),
    "qwen3moe": (qwen3_moe, NEW, as_it_is),
    "mixtral": (mixtral, NEW, as_it_is),
    "olmoe": (olmoe, NEW, as_it_is),
    "llava": (llava, NEW, as_it_is),
    "vit": (vit, NEW, as_it_is),
    "whisper": (whisper, {}, renamed(("^model\\.", ""))),
    "wav2vec": (
        wav2vec,
        {},
        renamed(
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ),
    ),
}
"""Model, how the other form is saved, and what is then done to its file."""
BY_NAME = ("gpt2", "bert", "qwen2vl", "llava", "whisper", "wav2vec")


def save(model: Any, folder: Path, **more: Any) -> Path:
    model.save_pretrained(folder, **more)
    return folder


def pair(kind: str, root: Path, *, other: str) -> tuple[Path, Path, Any]:
    """Return a base and a fine-tune, `other` of which is in the other form, and the fine-tune itself."""
    make, form, change = KINDS[kind]
    torch.manual_seed(0)
    base, tuned = make(), moved(make())
    tuned.load_state_dict(tuned.state_dict())
    places = {"base": root / "base", "tuned": root / "tuned"}
    for name, model in (("base", base), ("tuned", tuned)):
        save(model, places[name], **(form if name == other else {}))
        if name == other:
            change(places[name])
    assert read(places["base"]).keys() != read(places["tuned"]).keys()
    return places["base"], places["tuned"], tuned


def recipe(root: Path, base: Path, *tuned: Path, **more: Any) -> Path:
    path = root / "recipe.yaml"
    models = [{"model": str(t), "parameters": {"weight": 1.0}} for t in tuned]
    content = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models, **more}
    path.write_text(yaml.safe_dump(content))
    return path


def same(folder: Path, wanted: Any) -> bool:
    """Return whether a folder loads into a model's values, up to a rounding of θ0 + (θ − θ0)."""
    found = type(wanted).from_pretrained(folder).state_dict()
    return all(torch.allclose(found[n], v, atol=1e-6) for n, v in wanted.state_dict().items())


@pytest.mark.parametrize("other", ["base", "tuned"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_exactly(kind: str, other: str, tmp_path: Path) -> None:
    base, tuned, model = pair(kind, tmp_path, other=other)
    report = submerge.merge(recipe(tmp_path, base, tuned), tmp_path / "out", settings=ROOM)
    assert not report.warnings
    assert {n: t.shape for n, t in read(tmp_path / "out").items()} == {
        n: t.shape for n, t in read(base).items()
    }
    assert same(tmp_path / "out", model)
    if kind not in ("vit", "whisper", "wav2vec"):
        found = type(model).from_pretrained(tmp_path / "out").eval()(input_ids=IDS)[0]
        torch.testing.assert_close(found, model.eval()(input_ids=IDS)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", ["base", "tuned"])
@pytest.mark.parametrize("kind", BY_NAME)
def test_names_alone_will_do(kind: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers, too, where prefixes and spellings are all that differs."""
    base, tuned, model = pair(kind, tmp_path, other=other)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        submerge.merge(recipe(tmp_path, base, tuned), tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", model)


def test_packed_experts_need_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, _ = pair("qwen3moe", tmp_path, other="tuned")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match="experts") as refused:
        submerge.plan(recipe(tmp_path, base, tuned), ROOM)
    assert "missing: base" not in str(refused.value)
    assert 'pip install "submerge[models]"' in str(refused.value)


# --- heads, towers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForNextSentencePrediction"])
def test_heads_over_a_headless_base(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, tuned = bert(), moved(bert(kind))
    save(base, tmp_path / "base")
    save(tuned, tmp_path / "tuned")
    report = submerge.merge(
        recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM
    )
    assert same(tmp_path / "out", tuned.bert)
    (warning,) = report.warnings
    assert "2 of its tensors have no place in the output (cl" in warning


WITHOUT = {  # the classes of a base and of a fine-tune, and what of the base the fine-tune has no module for
    "pooler of a ViT": ("ViTModel", "ViTForImageClassification", "pooler."),
    "pooler of a RoBERTa": ("RobertaModel", "RobertaForSequenceClassification", "pooler."),
    "head of a RoBERTa": ("RobertaForSequenceClassification", "RobertaModel", "classifier."),
    "other heads": ("BertForMaskedLM", "BertForSequenceClassification", "cls."),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_modules_that_a_class_lacks_stay_the_bases(kind: str, tmp_path: Path) -> None:
    base_class, tuned_class, module = WITHOUT[kind]
    config = getattr(transformers, base_class).config_class(**(VISION if "ViT" in base_class else SIZES))
    torch.manual_seed(0)
    base = getattr(transformers, base_class)(config)
    save(base, tmp_path / "base")
    tuned = moved(getattr(transformers, tuned_class).from_pretrained(tmp_path / "base"))
    save(tuned, tmp_path / "tuned")
    result = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out")
    assert result.code == 0, result.err
    assert f"of a module that its class lacks, and stay the base's ({module}" in result.err
    found, before = read(tmp_path / "out"), read(tmp_path / "base")
    assert {name for name in found if torch.equal(found[name], before[name])} == {
        name for name in before if name.startswith(module) and "decoder" not in name
    }


def test_a_pooler_under_a_prefix_is_not_lacked_by_the_class(tmp_path: Path) -> None:
    """Beside a head that the class does lack: its file without the pooler is not whole."""
    save(bert("BertForPreTraining"), tmp_path / "base")
    save(moved(bert()), tmp_path / "tuned")
    tensors = {n: t for n, t in read(tmp_path / "tuned").items() if not n.startswith("pooler.")}
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    result = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out")
    assert result.code == 2
    assert "tensors are missing: bert.pooler.dense.bias, bert.pooler.dense.weight" in result.err


def test_a_class_that_has_the_module_must_save_it(tmp_path: Path) -> None:
    """A file that lacks what its class has is not whole; nothing is taken from the base unasked."""
    save(bert(), tmp_path / "base")
    save(moved(bert()), tmp_path / "tuned")
    tensors = read(tmp_path / "tuned")
    del tensors["pooler.dense.weight"]
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    result = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out")
    assert result.code == 2
    assert "tensors are missing: pooler.dense.weight" in result.err


def test_models_of_other_depths(tmp_path: Path) -> None:
    """The rule would make a model of some layers of one and some of the other: it is not offered."""
    for name, layers in (("shallow", 1), ("deep", 2)):
        config = transformers.LlamaConfig(**SIZES | {"num_hidden_layers": layers}, num_key_value_heads=2)
        torch.manual_seed(0)
        save(transformers.LlamaForCausalLM(config), tmp_path / name)
    result = merge(recipe(tmp_path, tmp_path / "deep", tmp_path / "shallow"), tmp_path / "out")
    assert result.code == 2
    assert "its config says 1 layer," in result.err
    assert "missing: base" not in result.err
    result = merge(recipe(tmp_path, tmp_path / "shallow", tmp_path / "deep"), tmp_path / "out")
    assert "its config says 2 layers, that of" in result.err


def test_two_models_under_two_names(tmp_path: Path) -> None:
    """Each model has its own form, and the mean is that of the parameters."""
    torch.manual_seed(0)
    base, one, two = gpt2(), moved(gpt2(), 1), moved(gpt2(), 2)
    folders = [save(m, tmp_path / n) for n, m in (("base", base), ("one", one), ("two", two))]
    renamed(("^transformer\\.", ""))(folders[2])
    path = recipe(tmp_path, *folders, parameters={"lambda": 0.5})
    submerge.merge(path, tmp_path / "out", settings=ROOM)
    values = [m.state_dict() for m in (base, one, two)]
    mean = gpt2()
    mean.load_state_dict({n: v + 0.5 * (values[1][n] - v + values[2][n] - v) for n, v in values[0].items()})
    assert same(tmp_path / "out", mean)


@pytest.fixture
def vlm(tmp_path: Path) -> tuple[Path, Path, Any]:
    """A LLaVA, and a text fine-tune of its language model, with what the merge is to give."""
    torch.manual_seed(0)
    model = llava()
    save(model, tmp_path / "base")
    text = transformers.LlamaForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    save(moved(text), tmp_path / "tuned")
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    return tmp_path / "base", tmp_path / "tuned", model


def test_a_text_model_in_a_vision_model(vlm: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, tuned, wanted = vlm
    report = submerge.merge(recipe(tmp_path, base, tuned), tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", wanted)
    (warning,) = report.warnings
    assert "43 tensors" in warning
    assert "of a part that it lacks" in warning
    note = json.loads((tmp_path / "out" / "submerge.json").read_text())["tensors"]
    assert "of a part that it lacks" in note["multi_modal_projector.linear_1.weight"]["note"]
    assert submerge.verify(tmp_path / "out").sound


def test_a_text_model_that_lacks_a_tensor(vlm: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, tuned, _ = vlm
    tensors = load_file(tuned / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    result = merge(recipe(tmp_path, base, tuned), tmp_path / "out")
    assert result.code == 2
    assert "missing: language_model.model.layers.1.mlp.up_proj.weight" in result.err


def test_a_vision_model_in_a_text_model(vlm: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """The other way round: the language model of a fine-tuned vision model."""
    base, tuned, _ = vlm
    report = submerge.merge(recipe(tmp_path, tuned, base), tmp_path / "out", settings=ROOM)
    wanted = transformers.LlavaForConditionalGeneration.from_pretrained(base)
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(found.lm_head.weight, wanted.lm_head.weight, atol=1e-6)
    states = found.model.state_dict(), wanted.model.language_model.state_dict()
    assert all(torch.allclose(states[0][n], v, atol=1e-6) for n, v in states[1].items())
    assert "have no place in the output" in report.warnings[0]


# --- refusals -------------------------------------------------------------------------------------


def test_another_architecture_is_not_merged(tmp_path: Path) -> None:
    """A RoBERTa's names are a BERT's but for the prefix, and it is none."""
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=32, type_vocab_size=2)
    save(transformers.RobertaForMaskedLM(config), tmp_path / "roberta")
    save(bert(), tmp_path / "base")
    for more in ({}, {"rules": {"missing": "base"}}):
        result = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "roberta", **more), tmp_path / "out")
        assert result.code == 2
        assert "its config names the type roberta" in result.err
        assert "rules: {missing" not in result.err


def test_the_same_names_with_more_in_the_layers(tmp_path: Path) -> None:
    """A Qwen2 has all of a Llama's names, and biases besides; a Mistral has the very same."""
    torch.manual_seed(0)
    more = {"num_key_value_heads": 2, "tie_word_embeddings": False}
    save(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **more)), tmp_path / "base")
    save(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, **more)), tmp_path / "qwen")
    save(transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, **more)), tmp_path / "mistral")
    result = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "qwen"), tmp_path / "out")
    assert result.code == 2
    assert "the type qwen2" in result.err
    assert "model.layers.0.self_attn.k_proj.bias" in result.err
    assert merge(recipe(tmp_path, tmp_path / "base", tmp_path / "mistral"), tmp_path / "out").code == 0


@pytest.mark.parametrize("bare", ["base", "tuned"])
def test_bare_files(bare: str, tmp_path: Path) -> None:
    """A file without a config is of the other's kind."""
    folders = dict(zip(("base", "tuned"), pair("mixtral", tmp_path, other="tuned")[:2], strict=True))
    whole = submerge.merge(recipe(tmp_path, *folders.values()), tmp_path / "whole", settings=ROOM)
    folders[bare] = folders[bare] / "model.safetensors"
    report = submerge.merge(recipe(tmp_path, *folders.values()), tmp_path / "out", settings=ROOM)
    one, two = read(whole.out), read(report.out)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_layer_with_more_is_another_architecture(vlm: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, _, _ = vlm
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, tie_word_embeddings=False, attention_bias=True
    )
    save(transformers.LlamaForCausalLM(config), tmp_path / "biased")
    for more in ({}, {"rules": {"missing": "base"}}):
        result = merge(recipe(tmp_path, base, tmp_path / "biased", **more), tmp_path / "out")
        assert result.code == 2
        assert "self_attn.q_proj.bias" in result.err


def test_a_model_that_takes_no_part_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(bert(), tmp_path / "base")
    save(gpt2(), tmp_path / "gpt2")
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
    path = recipe(tmp_path, tmp_path / "base", tmp_path / "gpt2", rules={"missing": "base"})
    result = merge(path, tmp_path / "out")
    assert result.code == 2
    assert "takes no part in the merge" in result.err
    plain = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "gpt2"), tmp_path / "out")
    assert plain.code == 2
    assert "tensors are missing" in plain.err
    assert "rules:" not in plain.err
    assert not (tmp_path / "out").exists()


def test_a_missing_layer_under_another_name(tmp_path: Path) -> None:
    """The rule of the hint would take such layers from the base, so that it is not named."""
    torch.manual_seed(0)
    base, tuned = gpt2(), moved(gpt2())
    save(base, tmp_path / "base")
    save(tuned, tmp_path / "tuned")
    renamed(("h\\.0\\.attn\\.c_attn", "h.0.attn.qkv"))(tmp_path / "tuned")
    result = merge(recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out")
    assert result.code == 2
    assert "missing: transformer.h.0.attn.c_attn.bias" in result.err
    assert "transformer.h.0.attn.qkv.bias" in result.err
    assert "rules:" not in result.err


# --- adapters, buffers ----------------------------------------------------------------------------


def adapted(model: Any, targets: list[str], folder: Path) -> Any:
    """Save an adapter of a model, and return the model with it merged."""
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    wrapped.save_pretrained(str(folder))
    return wrapped.merge_and_unload()


@pytest.mark.parametrize("kind", ["qwen2vl", "mixtral"])
@pytest.mark.parametrize("other", ["base", "tuned"])
def test_an_adapter_on_a_model_under_other_names(kind: str, other: str, tmp_path: Path) -> None:
    base, tuned, model = pair(kind, tmp_path, other=other)
    merged = adapted(model, ["q_proj", "v_proj"], tmp_path / "adapter")
    path = recipe(tmp_path, base, f"{tuned}+{tmp_path / 'adapter'}")
    report = submerge.merge(path, tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", merged)
    assert json.loads((report.out / "submerge.json").read_text())["models"][1]["adapter"]


def test_an_adapter_on_experts_that_the_base_packs_otherwise(tmp_path: Path) -> None:
    """It is refused by name, and what the hint says leads to the right result."""
    import peft

    base, tuned, model = pair("mixtral", tmp_path, other="base")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    )
    moved(wrapped, 5)
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    both = f"{tuned}+{tmp_path / 'adapter'}"
    result = merge(recipe(tmp_path, base, both), tmp_path / "out")
    assert result.code == 2
    assert "packs otherwise: model.layers.0" in result.err
    assert "merge_method: passthrough" in result.err
    submerge.merge(
        {"merge_method": "passthrough", "models": [{"model": both}]}, tmp_path / "one", settings=ROOM
    )
    submerge.merge(recipe(tmp_path, base, tmp_path / "one"), tmp_path / "out", settings=ROOM)
    one, two = (mixtral().from_pretrained(tmp_path / n).state_dict() for n in ("one", "out"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_masks_that_one_version_saves(tmp_path: Path) -> None:
    """GPT-2's old files have the causal mask of each layer, which is no parameter."""
    torch.manual_seed(0)
    base, tuned = gpt2(), moved(gpt2())
    save(base, tmp_path / "base")
    renamed(("^transformer\\.", ""))(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    masks = {f"h.{i}.attn.bias": torch.ones(32, 32).tril()[None, None] for i in range(2)}
    save_file({**load_file(file), **masks}, file, metadata={"format": "pt"})
    save(tuned, tmp_path / "tuned")
    report = submerge.merge(
        recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM
    )
    assert same(tmp_path / "out", tuned)
    (warning,) = report.warnings
    assert "no parameter of the model" in warning
    assert torch.equal(read(tmp_path / "out")["h.0.attn.bias"], masks["h.0.attn.bias"])


def test_an_adapter_extracted(tmp_path: Path) -> None:
    """A fine-tune under other names than its base becomes an adapter of that base."""
    base, tuned, model = pair("bert", tmp_path, other="base")
    result = cli("extract-lora", tuned, "--base", base, "--out", tmp_path / "lora", "--rank", "16")
    assert result.code == 0, result.err
    text = {"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'lora'}"}]}
    submerge.merge(text, tmp_path / "out", settings=ROOM)
    found = type(model).from_pretrained(tmp_path / "out").state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(found[name], model.state_dict()[name], atol=1e-4, rtol=1e-4)


# --- what stays true ------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["base", "tuned"])
def test_explained_and_resumed(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts in ranges: any threads, chunks and shards give the same bytes, and what is read is told."""
    base, tuned, model = pair("mixtral", tmp_path, other=other)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    save(whole, tmp_path / "sharded", max_shard_size="20KB", **({} if other == "base" else NEW))
    path = recipe(tmp_path, base, tuned, tmp_path / "sharded", parameters={"lambda": 0.5})
    submerge.merge(path, tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", model)
    monkeypatch.setattr("submerge.engine.plan._tensor.CHUNK_VALUES", 1)
    monkeypatch.setattr("submerge.engine.plan._tensor.TASK_ELEMENTS", 1)
    submerge.merge(
        path, tmp_path / "again", settings=submerge.Settings(threads=2, max_memory=ROOM.max_memory)
    )
    one, two = read(tmp_path / "out"), read(tmp_path / "again")
    assert all(torch.equal(one[name], two[name]) for name in one)
    manifest = json.loads((tmp_path / "out" / "submerge.json").read_text())
    assert "packed otherwise" in manifest["models"][1]["names"]
    shown = cli("plan", path, *ROOM_ARGUMENTS)
    assert "packed otherwise (" in shown.out
    shown = cli("explain", path, "-t", "*layers.0.*experts*")
    assert shown.code == 0
    names = read(tuned).keys()
    assert any(f"{tuned} {name}" in shown.out for name in names if "experts" in name)


def test_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped goes on to the same bytes."""
    base, tuned, _ = pair("mixtral", tmp_path, other="tuned")
    path = recipe(tmp_path, base, tuned, merge_method="ties", parameters={"density": 0.5})
    whole = submerge.merge(path, tmp_path / "whole", settings=ROOM)
    finished = _run.Run._finished
    count = iter(range(10**6))

    def stopping(self: Any, record: Any) -> None:
        finished(self, record)
        if next(count) == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", stopping)
        with pytest.raises(KeyboardInterrupt):
            submerge.merge(path, tmp_path / "out", settings=ROOM)
    report = submerge.merge(path, tmp_path / "out", settings=ROOM, resume=True)
    assert report.resumed >= 12
    one, two = contents(report.out), contents(whole.out)
    assert {n: v for n, v in one.items() if n != "README.md"} == {
        n: v for n, v in two.items() if n != "README.md"
    }


def test_bfloat16_and_methods_on_matrices(tmp_path: Path) -> None:
    """A fine-tune of another type, and a method that takes a matrix whole."""
    torch.manual_seed(0)
    base, tuned = mixtral(), moved(mixtral()).bfloat16()
    save(base, tmp_path / "base")
    save(tuned, tmp_path / "tuned", **NEW)
    path = recipe(tmp_path, tmp_path / "base", tmp_path / "tuned", merge_method="cat")
    submerge.merge(path, tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", tuned.float())


def test_two_places_that_fit_are_not_guessed() -> None:
    own = {f"layers.{i}.weight": torch.ones(2, 2) for i in range(2)}
    base = {f"{side}.{name}": torch.zeros(2, 2) for side in ("left", "right") for name in own}
    for rules in (None, {"missing": "base"}):
        with pytest.raises(RequestError, match="fit equally with 'left' put before and with 'right'"):
            submerge.merge_state_dicts([own], base=base, method="task_arithmetic", weight=1.0, rules=rules)
    base |= {f"left.{name}": torch.zeros(3, 3) for name in own}
    with pytest.raises(
        RequestError, match=r"missing: left\.layers\.0\.weight"
    ):  # shapes decide for the right
        submerge.merge_state_dicts([own], base=base, method="task_arithmetic", weight=1.0)


def test_in_memory() -> None:
    base = {"h.0.weight": torch.zeros(2, 2), "h.1.weight": torch.zeros(2, 2), "wte.weight": torch.zeros(3, 2)}
    tuned = {f"transformer.{name}": torch.ones_like(tensor) for name, tensor in base.items()}
    found = submerge.merge_state_dicts([tuned], base=base, method="task_arithmetic", weight=1.0)
    assert found.keys() == base.keys()
    assert all(bool((tensor == 1).all()) for tensor in found.values())
