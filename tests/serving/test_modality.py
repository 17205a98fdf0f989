"""Composed models: exact copies of their specialists, each token with the parameters of its stream."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from serving.helpers_composed import (
    IMAGE,
    SOUND,
    Specialist,
    by_token,
    factors,
    lora,
    padded,
    prompt,
    prompt_embeddings,
    specialist,
    updated,
    values,
    write_composed,
)

pytest.importorskip("transformers")

KINDS = [("llava", "llama"), ("llava", "qwen2"), ("qwen2_audio", "qwen2"), ("voxtral", "llama"),
         ("next_video", "llama"), ("video_llava", "llama"), ("llava_next", "qwen2"),
         ("got_ocr2", "qwen2"), ("mistral3", "llama"), ("granite_speech", "qwen2")]  # fmt: skip
Pair = tuple[Specialist, Specialist]
Composed = tuple[Any, list[Any]]
HOW: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def close(found: torch.Tensor, wanted: torch.Tensor, mask: Any = None) -> None:
    error = (found - wanted).abs()
    assert (error if mask is None else error[mask.bool()]).max() < 1e-4
    assert wanted.std() > 0.1, "a test of nothing"


def same_tokens(model: Any, other: Any, **inputs: Any) -> None:
    found, wanted = (m.generate(**inputs, **HOW) for m in (model, other))
    assert torch.equal(found, wanted)
    assert wanted[:, -HOW["max_new_tokens"] :].unique().numel() > 2, "a test of nothing"


@pytest.mark.parametrize(("kind", "lm"), KINDS)
@torch.no_grad()
def test_one_tuned_specialist_is_that_specialist(kind: str, lm: str, tmp_path: Path) -> None:
    one, base = specialist(kind, lm, seed=1), specialist(kind, lm, seed=2).lm()
    text = one.lm()  # all of the update of the language model
    model = submerge.load(write_composed(tmp_path, text, [one], values(0, text, base)))
    assert model.modalities == (one.name,)
    batch = padded(prompt(1, 4, one, 3), prompt(2, 2, one, 1, one, 4))
    inputs = one.inputs(1, 2, 3)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    outputs = [m(**batch, **inputs, labels=targets) for m in (model, one.model)]
    close(outputs[0].logits, outputs[1].logits, batch["attention_mask"])
    assert abs(outputs[0].loss - outputs[1].loss) < 1e-4
    same_tokens(model, one.model, **batch, **inputs)
    same_tokens(model, one.model, **batch, **inputs, use_cache=False)
    same_tokens(model, one.model, **batch, **one.inputs(3, 2, 1))
    # transformers gives beams the inputs of other samples where samples have several sounds
    batch, inputs = padded(prompt(1, 4, one, 3), prompt(2, 2, one, 6)), one.inputs(1, 2)
    same_tokens(model, one.model, **batch, **inputs, num_beams=3, num_return_sequences=2)


@pytest.mark.parametrize("words", [1, 3])
@torch.no_grad()
def test_norms_that_see_heads_before_positions_are_those_of_each_token(words: int, tmp_path: Path) -> None:
    """Also where there are as many heads as positions, and where there is one head of keys."""
    one, text = specialist("llava", "gemma3", seed=1), specialist("llava", "gemma3", seed=2).lm()
    assert (text.config.num_attention_heads, text.config.num_key_value_heads) == (8, 1)
    own = {name: x for name, x in values(0, one.lm(), text).items() if "_norm" in name}
    assert any("q_norm" in name for name in own)
    model = submerge.load(write_composed(tmp_path, text, [one], own))
    twin = copy.deepcopy(text)
    for name, x in own.items():
        twin.get_parameter(name.removeprefix("streams.0.").removesuffix(".values")).copy_(x)
    ids, inputs = prompt(1, 1, one, words), one.inputs(1)
    features, of_text = prompt_embeddings(one, ids, inputs), text.get_input_embeddings()(ids)
    embeddings = torch.where((ids == IMAGE).unsqueeze(-1), features, of_text)
    wanted = by_token([text, twin], (ids == IMAGE).long(), inputs_embeds=embeddings)
    close(model(input_ids=ids, **inputs).logits, wanted)
    how = {**HOW, "suppress_tokens": [IMAGE]}
    cached, again = (model.generate(input_ids=ids, **inputs, **how, use_cache=use) for use in (True, False))
    assert torch.equal(cached, again)


@torch.no_grad()
def test_a_class_whose_language_model_has_the_head(tmp_path: Path) -> None:
    one = specialist("instruct_blip", seed=1)
    model = submerge.load(write_composed(tmp_path, one.lm(), [one], {}))
    ids, inputs = prompt(1, 4, one, 3), one.inputs(1)
    close(model(ids, **inputs).logits, one.model(input_ids=ids, **inputs).logits)


# --- streams ------------------------------------------------------------------------------------------


def one_lora(one: Specialist, how: str, tmp_path: Path) -> Composed:
    """Return a composed model of a specialist with two LoRAs, and the language models of text and its stream.

    The base's values follow from the factors of the merged update, or are in the bank, or are the checkpoint.
    """
    base = one.lm()
    language, own = lora(base, seed=10), lora(base, seed=50)
    text, stream = (base if how == "text" else updated(base, language)), updated(base, own)
    bank = factors("streams.0", own)
    if how == "merged":
        bank |= factors("merged", language)
    elif how == "base":
        bank |= {f"base.{name}": base.state_dict()[name] for name in language}
    model = submerge.load(write_composed(tmp_path / how, text, [one], bank))
    return model, [text, stream]


@pytest.mark.parametrize("how", ["merged", "base", "text"])
@torch.no_grad()
def test_text_and_a_modality_have_updates_of_their_own(how: str, tmp_path: Path) -> None:
    one = specialist("llava", seed=1)
    model, lms = one_lora(one, how, tmp_path)
    ids, inputs = prompt(1, 4, one, 3, one, 2), one.inputs(1, 2)
    embeddings = prompt_embeddings(one, ids, inputs)
    wanted = by_token(lms, (ids == IMAGE).long(), inputs_embeds=embeddings)
    close(model(ids, **inputs).logits, wanted)
    assert (wanted - lms[0](inputs_embeds=embeddings).logits).abs().max() > 0.1
    sequence = ids
    for _ in range(5):  # what is generated is text
        embeddings = prompt_embeddings(one, sequence, inputs)
        logits = by_token(lms, (sequence == IMAGE).long(), inputs_embeds=embeddings)
        sequence = torch.cat([sequence, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(ids, **inputs, **HOW), sequence)


@torch.no_grad()
def test_a_stream_that_the_bank_says_nothing_of_is_the_base(tmp_path: Path) -> None:
    one = specialist("llava", seed=1)
    base = one.lm()
    language = lora(base, seed=10)
    text = updated(base, language)
    for name, bank in {
        "merged": factors("merged", language),
        "base": {f"base.{name}": base.state_dict()[name] for name in language},
    }.items():
        model = submerge.load(write_composed(tmp_path / name, text, [one], bank))
        ids, inputs = prompt(1, 4, one, 3), one.inputs(1)
        embeddings = prompt_embeddings(one, ids, inputs)
        close(
            model(ids, **inputs).logits,
            by_token([text, base], (ids == IMAGE).long(), inputs_embeds=embeddings),
        )


@torch.no_grad()
def test_an_adapter_of_peft_for_all_tokens_is_the_specialist_with_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    one = specialist("llava", seed=1)
    base = one.lm()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    tuned = peft.get_peft_model(one.model, config).eval()
    update = {}
    for path, module in tuned.named_modules():
        if hasattr(module, "lora_A"):
            torch.nn.init.normal_(module.lora_B["default"].weight)
            left, right = module.lora_B["default"].weight, module.lora_A["default"].weight
            name = path.removeprefix("base_model.model.model.language_model.")
            update[f"model.{name}.weight"] = (module.scaling["default"] * left, right)
    assert len(update) == 4
    plain = specialist("llava", seed=1)  # the files of a specialist with an adapter are without it
    bank = {**factors("streams.0", update), **factors("merged", update)}
    model = submerge.load(write_composed(tmp_path, updated(base, update), [plain], bank))
    batch, inputs = padded(prompt(1, 4, one, 3), prompt(2, 2, one, 1, one, 4)), one.inputs(1, 2, 3)
    close(model(**batch, **inputs).logits, tuned(**batch, **inputs).logits, batch["attention_mask"])
    same_tokens(model, tuned, **batch, **inputs)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Specialists of images and of sounds, whose language models are tuned from one base."""
    return specialist("llava", "llama", seed=1), specialist("voxtral", "llama", seed=2)


@pytest.fixture(scope="module")
def composed(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """A composed model of images, fully tuned, and sounds, with a LoRA; and each label's language model."""
    base, tuned = specialist("llava", seed=7).lm(), pair[0].lm()
    merged, own = lora(base, seed=10), lora(base, seed=50)
    text = updated(base, merged)
    norm = "model.norm.weight"
    heard = updated(base, own)
    heard.model.norm.weight.data += 0.5
    bank = values(0, tuned, base) | factors("streams.1", own) | factors("merged", merged)
    bank |= {f"streams.1.{norm}.values": heard.state_dict()[norm]}
    folder = write_composed(tmp_path_factory.mktemp("pair") / "out", text, pair, bank)
    return submerge.load(folder), [text, tuned, heard]


def mixed(pair: Pair) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return ids with two images and a sound between them, their labels, and the inputs."""
    image, sound = pair
    ids = prompt(1, 3, image, 2, sound, 1, image, 4)
    labels = (ids == IMAGE).long() + 2 * (ids == SOUND).long()
    return ids, labels, {**image.inputs(1, 2), **sound.inputs(3)}


@torch.no_grad()
def test_each_token_runs_with_the_parameters_of_its_stream(pair: Pair, composed: Composed) -> None:
    model, lms = composed
    ids, labels, inputs = mixed(pair)
    embeddings = lms[0].get_input_embeddings()(ids)
    for label, one in enumerate(pair, 1):
        own = {name: x for name, x in inputs.items() if name in one.make(0)}
        features = prompt_embeddings(one, torch.where(labels == label, ids, 3), own)
        embeddings = torch.where((labels == label).unsqueeze(-1), features, embeddings)
    close(model(ids, **inputs).logits, by_token(lms, labels, inputs_embeds=embeddings))


@torch.no_grad()
def test_subsets_of_modalities_are_as_alone(pair: Pair, composed: Composed, tmp_path: Path) -> None:
    model, lms = composed
    image = pair[0]
    alone = submerge.load(write_composed(tmp_path, lms[0], [image], values(0, lms[1], lms[0])))
    ids, inputs = prompt(1, 3, image, 2), image.inputs(1)
    close(model(ids, **inputs).logits, alone(ids, **inputs).logits)


@torch.no_grad()
def test_a_batch_is_as_its_samples(pair: Pair, composed: Composed) -> None:
    model, _ = composed
    image, sound = pair
    prompts = [prompt(1, 3, image, 2, sound, 1, image), prompt(2, 5), prompt(3, 2, sound, 4)]
    batch = padded(*prompts)
    inputs = {**image.inputs(1, 2), **sound.inputs(3, 4)}
    each = [{**image.inputs(1, 2), **sound.inputs(3)}, {}, sound.inputs(4)]
    logits, beams = model(**batch, **inputs).logits, {"num_beams": 2}
    sequences = [model.generate(**batch, **inputs, **HOW, **more) for more in ({}, beams)]
    for row, (ids, own) in enumerate(zip(prompts, each, strict=True)):
        close(logits[row, -ids.shape[1] :], model(ids, **own).logits[0])
        for found, more in zip(sequences, ({}, beams), strict=True):
            alone = model.generate(ids, **own, **HOW, **more)
            assert torch.equal(found[row, -alone.shape[1] :], alone[0])


@torch.no_grad()
def test_text_is_bitwise_that_of_the_plain_language_model(pair: Pair, composed: Composed) -> None:
    model, lms = composed
    batch = padded(prompt(1, 5), prompt(2, 8))
    assert torch.equal(model(**batch).logits, lms[0](**batch).logits)
    same_tokens(model, lms[0], **batch)
    same_tokens(model, lms[0], **batch, num_beams=3)
    ids, _, inputs = mixed(pair)
    model(ids, **inputs)
    assert torch.equal(model(**batch).logits, lms[0](**batch).logits), "nothing is left of the call before"
    assert model.controller.gated.gate.assignment is None


@torch.no_grad()
def test_pickle_and_copies_keep_the_gate(pair: Pair, composed: Composed) -> None:
    one, model = pair[0], submerge.load(composed[0].controller.path)
    ids, inputs = prompt(1, 3, one, 2), one.inputs(1)
    pickled = pickle.loads(pickle.dumps(model))  # transformers' hooks, which a forward adds, cannot be
    wanted = model(input_ids=ids, **inputs).logits
    for again in (pickled, copy.deepcopy(model)):
        assert type(again) is type(model)
        assert torch.equal(again(input_ids=ids, **inputs).logits, wanted)
        assert not {id(p) for p in again.parameters()} & {id(p) for p in model.parameters()}
        again.double()  # a copy that ran the modules it was made from would not notice
        assert again(input_ids=ids, **inputs).logits.dtype == torch.float64
        assert torch.equal(model(input_ids=ids, **inputs).logits, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpoints(pair: Pair, composed: Composed, reentrant: bool) -> None:
    """Layers that are run again in the backward pass have the streams of their first run."""
    (one, sound), model = pair, copy.deepcopy(composed[0]).train()
    model.requires_grad_(True)
    prompts = [prompt(1, 3, one, 2), prompt(2, 4, sound, 1)]
    batch = {**padded(*prompts), **one.inputs(1), **sound.inputs(2)}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        model(input_ids=prompts[0][:, :3])  # another call between the two passes
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    wanted = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    before = [layer._gradient_checkpointing_func for layer in model.model.layers]
    runs = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found = gradients()
    hook.remove()
    assert len(runs) == 3, "two calls, and once more in the backward pass"
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}")
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == before
