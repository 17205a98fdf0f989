"""`generate` of composed models, in all the ways of transformers, and what stays of them: files, copies."""

from __future__ import annotations

import copy
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import contents, quiet_transformers
from serving.helpers_composed import (
    IMAGE,
    TEXT,
    Specialist,
    factors,
    lora,
    padded,
    prompt,
    prompt_embeddings,
    specialist,
    updated,
    write_composed,
)

pytest.importorskip("transformers")

HOW: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def one() -> Specialist:
    return specialist("llava", seed=1)


@pytest.fixture(scope="module")
def folder(one: Specialist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composed model of an image specialist with two LoRAs."""
    base = one.lm()
    language, own = lora(base, seed=10), lora(base, seed=50)
    bank = factors("streams.0", own) | factors("merged", language)
    return write_composed(tmp_path_factory.mktemp("one") / "out", updated(base, language), [one], bank)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return submerge.load(folder)


@pytest.fixture(scope="module")
def request_(one: Specialist) -> dict[str, Any]:
    return {"input_ids": prompt(1, 4, one, 3, one, 2), **one.inputs(1, 2)}


@torch.no_grad()
def by_hand(model: Any, request_: dict[str, Any], steps: int = 6) -> torch.Tensor:
    """Return a prompt with the likeliest tokens, by a forward over all of it for each."""
    ids = request_["input_ids"]
    length = ids.shape[1]
    for _ in range(steps):
        ids = torch.cat([ids, model(**{**request_, "input_ids": ids}).logits[:, -1:].argmax(-1)], dim=1)
    assert ids[:, length:].unique().numel() > 2
    return ids


@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"assistant_early_exit": 1},
        {"return_dict_in_generate": True, "output_scores": True},
        {"guidance_scale": 1.0 + 1e-9},
    ],
    ids=lambda how: next(iter(how)),
)
@torch.no_grad()
def test_ways_to_generate_agree(model: Any, request_: dict[str, Any], how: dict[str, Any]) -> None:
    found = model.generate(**request_, **HOW, **how)
    found = found if isinstance(found, torch.Tensor) else found.sequences
    assert torch.equal(found, by_hand(model, request_))


@torch.no_grad()
def test_an_assistant_drafts(model: Any, request_: dict[str, Any], folder: Path) -> None:
    t = quiet_transformers()
    plain, composed = t.AutoModelForCausalLM.from_pretrained(folder), submerge.load(folder)
    for assistant in (plain, composed):
        found = model.generate(**request_, **HOW, assistant_model=assistant)
        assert torch.equal(found, by_hand(model, request_))
    with pytest.raises(submerge.RequestError, match="0 features"):
        composed.generate(request_["input_ids"], **HOW)


@torch.no_grad()
def test_tokens_are_streamed_and_sampled(model: Any, request_: dict[str, Any]) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    streamer = Streamer()
    found = model.generate(request_["input_ids"], **{k: v for k, v in request_.items() if k != "input_ids"},
                           **HOW, streamer=streamer)  # fmt: skip
    assert streamer.ids == [*found[0].tolist(), -1]
    torch.manual_seed(0)
    sampled = model.generate(**request_, **{**HOW, "do_sample": True}, num_return_sequences=3, top_k=1)
    assert torch.equal(sampled, found.expand(3, -1))


@torch.no_grad()
def test_a_conversation_goes_on_from_its_cache(model: Any, one: Specialist, request_: dict[str, Any]) -> None:
    first = model.generate(**request_, **HOW, return_dict_in_generate=True)
    more = torch.cat([first.sequences, prompt(9, 2, one, 3)], dim=1)
    third = one.inputs(3)["pixel_values"]
    every = torch.cat([request_["pixel_values"], third])
    wanted = model.generate(more, pixel_values=every, **HOW)
    for given in (every, third):  # the inputs of all of the conversation, or those that are new
        cache = copy.deepcopy(first.past_key_values)
        assert torch.equal(model.generate(more, pixel_values=given, past_key_values=cache, **HOW), wanted)
    cache = copy.deepcopy(first.past_key_values)
    new = more[:, cache.get_seq_length() :]
    mask = torch.ones_like(more)
    found = model.generate(new, pixel_values=third, past_key_values=cache, attention_mask=mask, **HOW)
    assert torch.equal(found[:, new.shape[1] :], wanted[:, more.shape[1] :])
    text = torch.cat([first.sequences, prompt(9, 4)], dim=1)
    wanted = model.generate(text, pixel_values=request_["pixel_values"], **HOW)
    cache = copy.deepcopy(first.past_key_values)
    assert torch.equal(model.generate(text, past_key_values=cache, **HOW), wanted), "a question of text alone"


@torch.no_grad()
def test_a_loop_by_hand_with_a_cache(model: Any, request_: dict[str, Any]) -> None:
    out = model(**request_, use_cache=True)
    ids = request_["input_ids"]
    for _ in range(6):
        new = out.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], dim=1)
        out = model(input_ids=new, past_key_values=out.past_key_values, use_cache=True)
    assert torch.equal(ids, by_hand(model, request_))


@torch.no_grad()
def test_a_negative_prompt_is_text(model: Any, one: Specialist, request_: dict[str, Any]) -> None:
    negative = prompt(8, request_["input_ids"].shape[1])
    how = {**HOW, "guidance_scale": 2.0, "negative_prompt_ids": negative}
    found = model.generate(**request_, **how)
    ids, length = request_["input_ids"], negative.shape[1]
    for _ in range(6):
        scores = [model(**{**request_, "input_ids": ids}).logits, model(negative).logits]
        with_, without = (x[:, -1:].log_softmax(-1) for x in scores)
        new = (without + 2.0 * (with_ - without)).argmax(-1)
        ids, negative = torch.cat([ids, new], dim=1), torch.cat([negative, new], dim=1)
    assert torch.equal(found[:, length:], ids[:, length:])


@torch.no_grad()
def test_a_generated_placeholder_is_text(model: Any, request_: dict[str, Any]) -> None:
    def always(batch: int, ids: torch.Tensor) -> list[int]:
        return [IMAGE]

    found = model.generate(**request_, **HOW, prefix_allowed_tokens_fn=always)
    assert found[0, -6:].tolist() == [IMAGE] * 6


@torch.no_grad()
def test_a_call_within_a_generate_has_its_own_inputs(
    model: Any, one: Specialist, request_: dict[str, Any]
) -> None:
    other = {"input_ids": prompt(2, 2, one, 4), **one.inputs(3)}
    wanted, found = model(**other).logits, list[torch.Tensor]()

    def contrast(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found.append(model(**other).logits)
        return scores

    sequences = model.generate(**request_, **HOW, logits_processor=[contrast])
    assert torch.equal(sequences, by_hand(model, request_))
    assert len(found) == 6
    assert all(torch.equal(logits, wanted) for logits in found)


@torch.no_grad()
def test_a_call_of_another_thread_waits(model: Any, one: Specialist, request_: dict[str, Any]) -> None:
    """What a gate decides holds for all of the model: calls would see the prompt of another."""
    other = {"input_ids": prompt(2, 2, one, 4), **one.inputs(3)}
    wanted, found = model(**other).logits, list[torch.Tensor]()
    thread = threading.Thread(target=lambda: found.append(model(**other).logits))

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            if thread.ident is None:
                thread.start()
                thread.join(timeout=0.2)  # what does not wait is done by then

        def end(self) -> None:
            pass

    assert torch.equal(model.generate(**request_, **HOW, streamer=Streamer()), by_hand(model, request_))
    thread.join()
    assert torch.equal(found[0], wanted)


# --- files and copies -----------------------------------------------------------------------------


@torch.no_grad()
def test_the_class_of_a_model_loads_its_gate(model: Any, folder: Path, request_: dict[str, Any]) -> None:
    again = type(model).from_pretrained(folder, dtype="float64")
    assert again.dtype == torch.float64
    assert type(again) is type(model)
    assert (again(**request_).logits - model(**request_).logits).abs().max() < 1e-4
    with pytest.raises(submerge.RequestError, match="no settings: foo — load takes dtype, device and attn"):
        type(model).from_pretrained(folder, foo=1)


@torch.no_grad()
def test_a_model_is_loaded_as_transformers_loads_one(
    model: Any, folder: Path, request_: dict[str, Any]
) -> None:
    how = {"torch_dtype": "float64", "device_map": "auto", "attn_implementation": "eager"}
    how |= {"low_cpu_mem_usage": True, "local_files_only": True, "use_safetensors": True}
    again = submerge.load(folder, **how)
    assert {x.dtype for x in again.parameters()} == {torch.float64}
    out = again(**request_, output_attentions=True)
    assert len(out.attentions) == 2, "kernels return none"
    assert {e.model.config._attn_implementation for e in again.encoders} == {"eager"}
    assert (out.logits - model(**request_).logits).abs().max() < 1e-4
    for wrong, part in (
        ({"device_map": {"model": "cpu", "lm_head": "cuda:0"}}, "device_map: a model with a gate is on one"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "both dtype and torch_dtype are given"),
        ({"torch_dtype": "float11"}, "there is no dtype 'float11'"),
        ({"load_in_8bit": True}, "load_in_8bit is no option of a model with a gate — updates"),
        ({"subfolder": "x"}, "subfolder is no option .* — give the path of that folder itself"),
    ):
        with pytest.raises(submerge.RequestError, match=part):
            submerge.load(folder, **wrong)


@torch.no_grad()
def test_encoders_have_the_dtype_of_their_own_models(one: Specialist, tmp_path: Path) -> None:
    """An encoder in float32 beside a language model in bfloat16 gives the features that it was trained to."""
    model = submerge.load(write_composed(tmp_path, one.lm().to(torch.bfloat16), [one], {}))
    lm = quiet_transformers().AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (model.dtype, model.encoders[0].model.dtype) == (torch.bfloat16, torch.float32)
    ids, inputs = prompt(1, 4, one, 3), one.inputs(1)
    wanted = lm(inputs_embeds=prompt_embeddings(one, ids, inputs).to(torch.bfloat16)).logits
    found = model(ids, **inputs).logits
    assert torch.equal(found[:, 4:8], wanted[:, 4:8]), "bits of features"
    assert model.generate(ids, **inputs, **HOW).shape == (1, ids.shape[1] + 6)
    every = submerge.load(tmp_path, dtype="bfloat16")
    assert {x.dtype for x in every.parameters()} == {torch.bfloat16}


def test_the_signature_has_the_specialists_inputs(model: Any, request_: dict[str, Any]) -> None:
    """transformers' Trainer leaves out columns of data that the signature lacks."""
    from transformers import Trainer, TrainingArguments

    ids, image = request_["input_ids"][0], request_["pixel_values"][:1]
    rows = [{"input_ids": ids, "pixel_values": image, "labels": ids, "unknown": 1}] * 2
    trained = copy.deepcopy(model)
    trained.requires_grad_(True)
    trainer = Trainer(trained, TrainingArguments("unused", report_to=[], use_cpu=True))
    kept = trainer._get_collator_with_removed_columns(lambda x: x)(rows)
    assert kept[0].keys() == {"input_ids", "pixel_values", "labels"}


def test_a_model_is_saved_from_another_place(
    folder: Path, request_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    model = submerge.load("own")
    monkeypatch.chdir("/")
    model.save_pretrained(tmp_path / "copy")
    assert submerge.load(tmp_path / "copy").modalities == model.modalities
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(submerge.RequestError, match="the folder that the model was loaded from is gone"):
        model.save_pretrained(tmp_path / "late")
    assert not (tmp_path / "late").exists(), "weights alone would look whole"


@torch.no_grad()
def test_a_saved_model_is_loaded_again(
    model: Any, folder: Path, request_: dict[str, Any], tmp_path: Path
) -> None:
    t = quiet_transformers()
    (folder / "tokenizer.json").write_text("{}")
    model.save_pretrained(tmp_path / "copy")
    again = submerge.load(tmp_path / "copy")
    assert torch.equal(again(**request_).logits, model(**request_).logits)
    plain = t.AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert type(plain) is t.LlamaForCausalLM
    assert list(plain.state_dict()) == list(model.state_dict())
    ids = prompt(3, 7)
    assert torch.equal(plain(ids).logits, model(ids).logits)
    before, after = contents(folder), contents(tmp_path / "copy")
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"config.json", "generation_config.json", "model.safetensors"}
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert torch.equal(submerge.load(tmp_path / "shards")(**request_).logits, model(**request_).logits)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"variant": "fp16"}, r"weights without one — .* use model.half\(\).save_pretrained"),
        ({"push_to_hub": True}, r"upload the weights without .* — call model.push_to_hub\("),
    ],
    ids=["variant", "push_to_hub"],
)
def test_a_model_that_could_not_be_loaded_is_not_saved(
    model: Any, tmp_path: Path, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(submerge.RequestError, match=message):
        model.save_pretrained(tmp_path / "copy", **option)
    assert not (tmp_path / "copy").exists()
    model.save_pretrained(tmp_path / "copy", is_main_process=False)
    assert list((tmp_path / "copy").iterdir()) == [], "another process writes them"


def test_a_checkpoint_without_all_parameters_is_told(model: Any, tmp_path: Path) -> None:
    """transformers would make them at random, and say so in a log that loading silences."""
    state = {name: x for name, x in model.state_dict().items() if ".layers.1.mlp" not in name}
    state["model.norm.weight"] = torch.ones(3)
    model.save_pretrained(tmp_path / "copy", state_dict=state)
    with pytest.raises(submerge.RequestError, match=r"or has others: model.layers.1.mlp.down.* and 1 more"):
        submerge.load(tmp_path / "copy")


@torch.no_grad()
def test_an_adapter_on_top_is_saved_with_its_part_for_encoders(
    folder: Path, request_: dict[str, Any], tmp_path: Path
) -> None:
    """`q_proj` is a name in encoders, too."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    plain = submerge.load(folder)
    wanted = plain(**request_).logits
    adapted = peft.get_peft_model(plain, config).eval()
    out = adapted(**request_).logits
    assert (out - wanted).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(submerge.load(folder), tmp_path).eval()
    assert torch.equal(again(**request_).logits, out)
    kept = again.base_model.model.encoders.state_dict()
    assert kept
    assert all("lora_" in name for name in kept)
    assert list(again.unload().encoders.state_dict()) == []


@torch.no_grad()
def test_changed_encoders_are_not_saved_in_silence(
    folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = submerge.load(folder)
    for same in (model, model.half(), model.float()):
        same.save_pretrained(tmp_path / "same")
    assert not [w for w in recwarn if "encoders" in str(w.message)]
    next(model.encoders[0].model.parameters()).add_(1e-3)
    with pytest.warns(
        UserWarning, match="encoders of image were changed, and the copy has those of the bank"
    ):
        model.save_pretrained(tmp_path / "copy")


@torch.no_grad()
def test_a_model_is_saved_where_it_was_loaded_from(
    folder: Path, request_: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    model = submerge.load(tmp_path / "own")
    expected = model(**request_).logits
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(submerge.load(tmp_path / "own")(**request_).logits, expected)


@torch.no_grad()
def test_a_state_dict_is_the_language_models(model: Any, folder: Path, request_: dict[str, Any]) -> None:
    wanted = model(**request_).logits
    state = {name: x.clone() for name, x in model.state_dict().items()}
    other = submerge.load(folder)
    for parameter in other.model.parameters():
        parameter.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(**request_).logits, wanted)
    del state["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*\"model.norm.weight\"\. $"):
        other.load_state_dict(state)


@torch.no_grad()
def test_tied_tables_stay_tied(tmp_path: Path) -> None:
    t = quiet_transformers()
    one = specialist("llava", "qwen2", seed=1)
    lm = t.Qwen2ForCausalLM(t.Qwen2Config(**{**TEXT, "tie_word_embeddings": True}))
    bank = factors("streams.0", lora(lm, seed=50))
    model = submerge.load(write_composed(tmp_path / "out", lm.eval(), [one], bank))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids, inputs = prompt(1, 4, one, 3), one.inputs(1)
    model.save_pretrained(tmp_path / "copy")
    again = submerge.load(tmp_path / "copy")
    assert torch.equal(again(ids, **inputs).logits, model(ids, **inputs).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(model: Any, request_: dict[str, Any]) -> None:
    twin = copy.deepcopy(model)
    wanted = model(**request_).logits
    assert torch.equal(twin(**request_).logits, wanted)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(**request_).logits, wanted)
    assert torch.equal(model.generate(**request_, **HOW), by_hand(model, request_))
    assert twin.controller.encoders is twin.encoders
    assert twin.controller.gated.gate is not model.controller.gated.gate


@torch.no_grad()
def test_a_model_in_16_bits(model: Any, folder: Path, one: Specialist) -> None:
    batch = padded(prompt(1, 4, one, 3), prompt(2, 7))
    real, wanted = batch["attention_mask"].bool(), model(**batch, **one.inputs(1)).logits
    # encoders and streams are of the dtype that is asked for, and move with the model
    for half in (submerge.load(folder, dtype=torch.bfloat16), submerge.load(folder).to(torch.bfloat16)):
        tensors = [x for x in (*half.parameters(), *half.buffers()) if x.is_floating_point() and x.ndim > 1]
        assert {x.dtype for x in tensors} == {torch.bfloat16}
        found = half(**batch, **one.inputs(1)).logits
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted)[real].norm() < 0.05 * wanted[real].norm()
        assert half.generate(**batch, **one.inputs(1), **HOW).shape == (2, real.shape[1] + 6)


@torch.no_grad()
def test_a_static_fold_gates_nothing(one: Specialist, tmp_path: Path) -> None:
    merged = one.lm()
    model = submerge.load(write_composed(tmp_path, merged, [one], {}, modality_tokens="merged"))
    assert not model.controller.gated.modules
    batch, inputs = padded(prompt(1, 4, one, 3), prompt(2, 7)), one.inputs(1)
    assert torch.equal(model(**batch, **inputs).logits, one.model(**batch, **inputs).logits)
    assert torch.equal(model.generate(**batch, **inputs, **HOW), one.model.generate(**batch, **inputs, **HOW))
