"""Parameters with several names, in real models: stored once or often, adapted, untied."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _models import ROOM, TEXT, perturbed, quiet_transformers, read, write
from submerge.store import _aliases

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SEQUENCE = {"vocab_size": 64, "d_model": 16, "decoder_start_token_id": 0}
KINDS: dict[str, tuple[str, str, dict[str, Any], list[tuple[str, ...]]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        [("transformer.wte.weight", HEAD)],
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**TEXT, "head_dim": 8}, [(EMBEDDING, HEAD)]),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**SEQUENCE, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
        [("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD)],
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {**SEQUENCE, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
         "max_position_embeddings": 32},
        [("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight",
          HEAD)],
    ),
    "bert": (
        "BertForMaskedLM",
        "BertConfig",
        {k: v for k, v in TEXT.items() if k != "num_key_value_heads"},
        [("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
         ("cls.predictions.bias", "cls.predictions.decoder.bias")],
    ),
}  # fmt: skip


def made(kind: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the configuration that transformers saves of a new model."""
    t = quiet_transformers()
    torch.manual_seed(0)
    name, config, options, _ = KINDS[kind]
    model = getattr(t, name)(getattr(t, config)(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return read(folder), json.loads((folder / "config.json").read_text())


def copied(tensors: Mapping[str, torch.Tensor], groups: list[tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """Return the tensors with every copy of each parameter."""
    result = dict(tensors)
    for names in groups:
        value = next(tensors[name] for name in names if name in tensors)
        result |= {name: value.clone() for name in names}
    return result


def single(tensors: Mapping[str, torch.Tensor], groups: list[tuple[str, ...]], keep: int) -> dict[str, Any]:
    """Return the tensors with one copy of each parameter, under the name of that number."""
    whole = copied(tensors, groups)
    gone = {name for names in groups for name in names if name != names[min(keep, len(names) - 1)]}
    return {name: tensor for name, tensor in whole.items() if name not in gone}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_does_not_matter_how_often_a_parameter_is_stored(
    kind: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where transformers knows the class nor where names alone tell."""
    if not known:
        monkeypatch.setattr(_aliases, "_class_tying", lambda *_: None)
    groups = KINDS[kind][3]
    base, config = made(kind, tmp_path / "made")
    if kind != "bart":  # as transformers 4 writes it
        config.pop("tie_word_embeddings", None)
    base = single(base, groups, 0)
    tuned = [perturbed(base, i) for i in range(2)]
    forms = {
        "once": (base, tuned),
        "base often": (copied(base, groups), tuned),
        "tuned often": (base, [copied(t, groups) for t in tuned]),
        "another name": (base, [single(t, groups, 1) for t in tuned]),
        "all often": (copied(base, groups), [copied(t, groups) for t in tuned]),
    }
    results = {}
    for number, (form, (own, others)) in enumerate(forms.items()):
        write(tmp_path / f"{number}b", own, config, shards=3)
        models = [{"model": str(write(tmp_path / f"{number}t{i}", t, config))} for i, t in enumerate(others)]
        recipe = {
            "merge_method": "dare_ties",
            "base_model": str(tmp_path / f"{number}b"),
            "models": models,
            "parameters": {"weight": 0.5, "density": 0.5},
        }
        report = submerge.merge(recipe, tmp_path / f"{number}o", settings=ROOM)
        assert not report.warnings, form
        results[form] = read(report.out)
        assert set(results[form]) == set(own)
        assert (report.out / "config.json").read_bytes() == (tmp_path / f"{number}b/config.json").read_bytes()
        assert submerge.verify(report.out).sound
    wanted = copied(results["once"], groups)
    for form, found in results.items():
        for name, tensor in found.items():
            assert torch.equal(tensor, wanted[name]), f"{form}: {name}"


# --- adapters, beside PEFT ------------------------------------------------------------------------

TRAINED: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "lora on the head": {"target_modules": ["lm_head", "q_proj"]},
    "lora tied": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "lora on both": {"target_modules": ["embed_tokens", "lm_head"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
                   "ensure_weight_tying": True},
}  # fmt: skip
IN_BOTH = {"lora", "dora", "lora on the head", "lora tied", "rows", "saved tied"}
WARNED = {"lora", "dora", "lora on the head"}


def llama(tied: bool = True) -> Any:
    t = quiet_transformers()
    torch.manual_seed(0)
    return t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=tied)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(8)[None]).logits.detach()


def loaded(folder: Path) -> Any:
    return quiet_transformers().AutoModelForCausalLM.from_pretrained(folder)


def train(base: Any, folder: Path, **options: Any) -> torch.Tensor:
    """Save an adapter whose weights were moved, and return the logits of the model that it was trained in."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=4, **options))
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in ("lora_", "trainable_tokens_delta", "modules_to_save")):
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        result = logits(model)
        model.save_pretrained(str(folder))
    return result


def merged_by_peft(base: Any, folder: Path) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def alone(model: str) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": model}]}


def twice(folder: Path) -> Path:
    """Add the second copy to a saved model, in a file of its own."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()
    return write(folder, {**tensors, HEAD: tensors[EMBEDDING].clone()}, config, shards=2)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", TRAINED)
def test_an_adapter_on_a_tied_base_gives_what_was_trained_or_what_peft_merges(
    kind: str, copies: int, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path / "base")
    if copies == 2:
        twice(tmp_path / "base")
    trained = train(loaded(tmp_path / "base"), tmp_path / "adapter", **TRAINED[kind])
    recipe = alone(f"{tmp_path}/base+{tmp_path}/adapter")
    if copies == 1 and kind in {"lora on the head", "lora on both"}:
        with pytest.raises(submerge.RequestError, match=r"untie the base: .* tie_word_embeddings=False"):
            submerge.plan(recipe, ROOM)
        return
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    found, tensors = loaded(report.out), read(report.out)
    if kind in WARNED:
        assert [w for w in report.warnings if "alone" in w and str(tmp_path / "adapter") in w]
        wanted = logits(merged_by_peft(loaded(tmp_path / "base"), tmp_path / "adapter"))
    else:
        wanted = trained
    torch.testing.assert_close(logits(found), wanted, rtol=1e-4, atol=1e-4)
    config = json.loads((report.out / "config.json").read_text())
    if kind in IN_BOTH:
        assert len(report.warnings) == (kind in WARNED)
        assert config["tie_word_embeddings"]
        assert copies == 1 or torch.equal(tensors[EMBEDDING], tensors[HEAD])
    else:
        assert [w for w in report.warnings if "tie_word_embeddings: false" in w]
        assert config["tie_word_embeddings"] is False
        assert not torch.equal(tensors[EMBEDDING], tensors[HEAD])
    assert submerge.verify(report.out).sound


@pytest.mark.parametrize("kind", ["head saved", "both saved"])
def test_an_adapter_has_no_place_for_a_head_that_its_base_does_not_store(kind: str, tmp_path: Path) -> None:
    """In a checkpoint the head is merged; it is not left out of an adapter without a word."""
    llama().save_pretrained(tmp_path / "base")
    for name, options in (("one", TRAINED[kind]), ("two", {"target_modules": ["q_proj"]})):
        train(loaded(tmp_path / "base"), tmp_path / name, **options)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in ("one", "two")],
    }
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    base, found = read(tmp_path / "base")[EMBEDDING], read(out)
    head = next(v for n, v in read(tmp_path / "one").items() if n.endswith("lm_head.weight"))
    torch.testing.assert_close(found[HEAD], (base + head) / 2)
    with pytest.raises(submerge.RequestError, match=r"changes lm_head\.weight by itself"):
        submerge.plan(recipe | {"output": {"as": "adapter"}}, ROOM)


@pytest.mark.parametrize(
    ("kind", "module", "as_one"),
    [
        ("gpt2", "wte", False),
        ("t5", "shared", False),
        ("gpt2", "lm_head", True),
        ("t5", "embed_tokens", True),
    ],
)
def test_peft_ties_modules_of_two_names_alone(tmp_path: Path, kind: str, module: str, as_one: bool) -> None:
    """With `ensure_weight_tying`, too, it trains a copy of a table that is called otherwise."""
    import peft

    t = quiet_transformers()
    torch.manual_seed(0)
    sizes = {
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2},
        "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    }
    config = t.AutoConfig.for_model(kind, vocab_size=16, **sizes[kind])
    classes = {"gpt2": t.AutoModelForCausalLM, "t5": t.AutoModelForSeq2SeqLM}
    base, folder = classes[kind].from_config(config), tmp_path / "adapter"
    base.save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn" if kind == "gpt2" else "q"], "modules_to_save": [module]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, ensure_weight_tying=True, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape))
    ids = torch.arange(8)[None]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "t5" else {})
    model.save_pretrained(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = peft.PeftModel.from_pretrained(
            classes[kind].from_pretrained(tmp_path / "base"), str(folder)
        )
    expected = trained.eval()(**inputs).logits
    report = submerge.merge(alone(f"{tmp_path}/base+{folder}"), tmp_path / "out", settings=ROOM)
    merged = classes[kind].from_pretrained(report.out).eval()
    torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert as_one == (not any("the output has both" in warning for warning in report.warnings))


def test_an_adapter_on_a_tied_head_of_another_name_is_refused_likewise(tmp_path: Path) -> None:
    base, config = made("bert", tmp_path / "made")
    write(tmp_path / "base", single(base, KINDS["bert"][3], 0), config)
    model = quiet_transformers().BertForMaskedLM.from_pretrained(tmp_path / "made")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "decoder"]))
        wrapped.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(submerge.RequestError, match=r"changes cls\.predictions\.decoder\.weight by itself"):
        submerge.plan(alone(f"{tmp_path}/base+{tmp_path}/adapter"), ROOM)


def test_an_embedding_that_an_adapter_replaced_leaves_the_head_as_the_base_has_it(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    train(loaded(tmp_path / "base"), tmp_path / "adapter", **TRAINED["saved"])
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
              "models": [{"model": str(tmp_path / "adapter"), "parameters": {"weight": 0.5}}]}  # fmt: skip
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    base, out = read(tmp_path / "base"), read(report.out)
    new = load_file(tmp_path / "adapter/adapter_model.safetensors")[f"base_model.model.{EMBEDDING}"]
    torch.testing.assert_close(out[EMBEDDING], (base[EMBEDDING] + new) / 2)
    torch.testing.assert_close(out[HEAD], base[EMBEDDING])
    assert [w for w in report.warnings if "tie_word_embeddings: false" in w]
    assert submerge.verify(report.out).sound


@pytest.mark.parametrize("copies", [1, 2])
def test_adapters_on_a_tied_base_merge_to_one_that_adapts_the_same_modules(
    copies: int, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path / "base")
    if copies == 2:
        twice(tmp_path / "base")
    train(loaded(tmp_path / "base"), tmp_path / "adapter", **TRAINED["lora"])
    tuned = perturbed(read(tmp_path / "base"), 1)
    if copies == 2:
        tuned[HEAD] = tuned[EMBEDDING].clone()
    write(tmp_path / "tuned", tuned, json.loads((tmp_path / "base/config.json").read_text()))
    for models in (["adapter"], ["adapter", "tuned"]):
        recipe = {
            "merge_method": "cat",
            "base_model": str(tmp_path / "base"),
            "models": [{"model": str(tmp_path / name)} for name in models],
            "output": {"as": "adapter", "rank": 16},
        }
        out = submerge.merge(recipe, tmp_path / "-".join(["out", *models]), settings=ROOM).out
        names = load_file(out / "adapter_model.safetensors")
        assert [name for name in names if "embed_tokens" in name]
        assert not [name for name in names if "lm_head" in name]
        assert submerge.verify(out).sound


def test_the_hint_for_an_adapter_on_a_tied_head_can_be_followed(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    trained = train(loaded(tmp_path / "base"), tmp_path / "adapter", **TRAINED["lora on the head"])
    t = quiet_transformers()
    model = t.AutoModelForCausalLM.from_pretrained(tmp_path / "base", tie_word_embeddings=False)
    model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
    model.save_pretrained(tmp_path / "untied")
    recipe = alone(f"{tmp_path}/untied+{tmp_path}/adapter")
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert not report.warnings
    torch.testing.assert_close(logits(loaded(report.out)), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "rows", "saved", "saved tied"])
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_tied_model_with_an_adapter_is_to_an_untied_base_what_it_is_when_baked(
    kind: str, method: str, tmp_path: Path
) -> None:
    llama(False).save_pretrained(tmp_path / "untied")
    llama().save_pretrained(tmp_path / "tied")
    train(loaded(tmp_path / "tied"), tmp_path / "adapter", **TRAINED[kind])
    merged_by_peft(loaded(tmp_path / "tied"), tmp_path / "adapter").save_pretrained(tmp_path / "baked")
    results = {}
    for name, model in (("live", f"{tmp_path}/tied+{tmp_path}/adapter"), ("baked", f"{tmp_path}/baked")):
        weight = {"parameters": {"weight": 0.5}} if method == "linear" else {}
        recipe: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": f"{tmp_path}/untied", **weight}, {"model": model, **weight}],
        }
        if method == "slerp":
            recipe |= {"base_model": f"{tmp_path}/untied", "parameters": {"t": 0.5}}
        results[name] = read(submerge.merge(recipe, tmp_path / f"{name} out", settings=ROOM).out)
    for name, tensor in results["baked"].items():
        torch.testing.assert_close(results["live"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


# --- models that untie --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bart", "bert"])
@pytest.mark.parametrize("says", [True, False])
def test_a_head_that_a_fine_tune_keeps_apart_is_merged_and_the_config_unties_it(
    kind: str, says: bool, tmp_path: Path
) -> None:
    if kind == "llama":
        llama().save_pretrained(tmp_path / "made")
        base, config = read(tmp_path / "made"), json.loads((tmp_path / "made/config.json").read_text())
        groups = [(EMBEDDING, HEAD)]
    else:
        base, config = made(kind, tmp_path / "made")
        groups = KINDS[kind][3]
    base = single(base, groups, 0)
    tuned = perturbed(copied(base, groups), 1)
    for names in groups:
        tuned |= {name: tuned[names[0]].clone() for name in names[1:-1]}
    write(tmp_path / "base", base, config)
    write(tmp_path / "tuned", tuned, {**config, "tie_word_embeddings": not says})
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 0.5}}],
    }
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert [w for w in report.warnings if "tie_word_embeddings: false" in w and str(tmp_path / "tuned") in w]
    assert json.loads((report.out / "config.json").read_text())["tie_word_embeddings"] is False
    whole, found = copied(base, groups), read(report.out)
    assert set(found) == set(whole)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (whole[name] + tuned[name]) / 2)
    assert submerge.verify(report.out).sound, submerge.verify(report.out).problems


def test_both_places_of_a_vision_language_model_untie(tmp_path: Path) -> None:
    t = quiet_transformers()
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**vision),
        text_config=t.LlamaConfig(**TEXT, tie_word_embeddings=True),
        tie_word_embeddings=True,
        image_token_index=63,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    t.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    base = read(tmp_path / "base")
    said = json.loads((tmp_path / "base/config.json").read_text())
    embedding = next(name for name in base if name.endswith("embed_tokens.weight"))
    head = "lm_head.weight" if embedding.startswith("model.") else "language_model.lm_head.weight"
    tuned = perturbed({**base, head: base[embedding].clone()}, 1)
    write(tmp_path / "tuned", tuned, said)
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
              "models": [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 1.0}}]}  # fmt: skip
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    written = json.loads((report.out / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert written["text_config"]["tie_word_embeddings"] is False
    model = t.LlavaForConditionalGeneration.from_pretrained(report.out)
    torch.testing.assert_close(model.get_output_embeddings().weight, tuned[head])
    torch.testing.assert_close(model.get_input_embeddings().weight, tuned[embedding])
    assert submerge.verify(report.out).sound


def test_a_t5_whose_config_cannot_untie_is_warned_of(tmp_path: Path) -> None:
    base, config = made("t5", tmp_path / "made")
    groups = KINDS["t5"][3]
    tuned = perturbed(base, 1)
    write(tmp_path / "base", copied(base, groups), config)
    write(tmp_path / "tuned", {**copied(tuned, groups), HEAD: 2 * tuned["shared.weight"]}, config)
    recipe = {"merge_method": "linear", "models": [{"model": str(tmp_path / n)} for n in ("base", "tuned")],
              "parameters": {"weight": 0.5}}  # fmt: skip
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert [w for w in report.warnings if "a config.json of t5 cannot say so" in w]
    assert (report.out / "config.json").read_bytes() == (tmp_path / "base/config.json").read_bytes()
    found = read(report.out)
    assert torch.equal(found["shared.weight"], found["encoder.embed_tokens.weight"])
    assert not torch.equal(found["shared.weight"], found[HEAD])
    assert [p for p in submerge.verify(report.out).problems if "the configuration ties them" in p]


def test_a_class_that_ties_the_head_to_one_of_two_embeddings_is_asked(tmp_path: Path) -> None:
    """By names alone the embeddings of a Marian's encoder and decoder would be one."""
    t = quiet_transformers()
    options = {key: value for key, value in KINDS["bart"][2].items() if key != "vocab_size"}
    torch.manual_seed(0)
    config = t.MarianConfig(vocab_size=64, decoder_vocab_size=64, pad_token_id=1,
                            share_encoder_decoder_embeddings=False, **options)  # fmt: skip
    t.MarianMTModel(config).save_pretrained(tmp_path / "base")
    base, said = read(tmp_path / "base"), json.loads((tmp_path / "base/config.json").read_text())
    assert not torch.equal(
        base["model.encoder.embed_tokens.weight"], base["model.decoder.embed_tokens.weight"]
    )
    tuned = perturbed(base, 1)
    write(tmp_path / "tuned", tuned, {**said, "tie_word_embeddings": True})
    write(tmp_path / "base", base, {**said, "tie_word_embeddings": True})
    report = submerge.merge(
        {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
         "models": [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 1.0}}]},
        tmp_path / "out", settings=ROOM,
    )  # fmt: skip
    assert not report.warnings
    for name, tensor in read(report.out).items():
        torch.testing.assert_close(tensor, tuned[name])
    assert submerge.verify(report.out).sound


def test_a_base_without_a_head_takes_none(tmp_path: Path) -> None:
    t = quiet_transformers()
    llama().save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    t.LlamaModel(t.LlamaConfig(**TEXT, tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    base = read(tmp_path / "base")
    tuned = perturbed(base, 1)
    write(tmp_path / "tuned", {**tuned, HEAD: 2 * tuned["embed_tokens.weight"]})
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
              "models": [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 1.0}}]}  # fmt: skip
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert [w for w in report.warnings if HEAD in w and "no place" in w]
    assert set(read(report.out)) == set(base)
