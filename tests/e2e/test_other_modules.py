"""Fine-tunes with heads, towers or layers that the base lacks, or that lack some of the base's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _cli import merge
from _models import ROOM, read
from _two_forms import (
    SIZES,
    VISION,
    bert,
    gpt2,
    llava,
    moved,
    pair,
    recipe,
    renamed,
    same,
    save,
    transformers,
)

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
