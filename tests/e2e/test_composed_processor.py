"""From a recipe to an answer: model and processor of a composed folder, beside a specialist's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import submerge
from _processors import image, llava, tokenizer
from submerge.deferred import quietly

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """An image model with the base's language model, its processor, and the composed model of it alone."""
    folder = tmp_path_factory.mktemp("composed")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.LlamaConfig(**sizes, vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    torch.manual_seed(0)
    lm = transformers.LlamaForCausalLM(text)
    lm.save_pretrained(folder / "lm")
    tokenizer().save_pretrained(folder / "lm")
    own = llava(tokenizer(["<image>"]))
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=own.image_token_id,
        vision_feature_select_strategy="full",
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.get_decoder().load_state_dict(lm.model.state_dict())
    model.lm_head.load_state_dict(lm.lm_head.state_dict())
    model.save_pretrained(folder / "vision")
    own.save_pretrained(folder / "vision")
    models = [{"model": str(folder / "vision"), "modality": "image", "parameters": {"weight": 1}}]
    recipe = {"merge_method": "linear", "base_model": str(folder / "lm"), "models": models}
    submerge.merge(recipe, folder / "out")
    return model, own, folder / "out"


def test_one_specialist_answers_as_by_itself(specialist: tuple[Any, Any, Path]) -> None:
    model, own, out = specialist
    composed, processor = submerge.load(out), submerge.load_processor(out)
    call = {"text": ["see <image>?", "a\n<image> <image>"], "images": [image(n) for n in range(3)]}
    call |= {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    theirs, ours = own(**call), processor(**call)
    with torch.no_grad():
        expected, logits = model(**theirs).logits, composed(**ours).logits
    real = ours["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=0)
    answers = [
        [kind.decode(row) for row in one.generate(**inputs, max_new_tokens=6, do_sample=False)]
        for one, kind, inputs in ((model, own, theirs), (composed, processor, ours))
    ]
    assert answers[0] == answers[1]


def test_the_card_says_how_to_use_it(
    specialist: tuple[Any, Any, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, out = specialist
    _, _, code = (out / "README.md").read_text().partition("```python\n")
    monkeypatch.chdir(out.parent)
    exec(code.partition("```")[0], {})
    assert capsys.readouterr().out.startswith("['")


def test_chats_and_texts_alone_are_answered(specialist: tuple[Any, Any, Path]) -> None:
    _, _, out = specialist
    composed, processor = submerge.load(out), submerge.load_processor(out)
    content = [{"type": "image", "image": image(0)}, {"type": "text", "text": "what?"}]
    messages = [[{"role": "user", "content": content}], [{"role": "user", "content": "hello"}]]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, padding=True, padding_side="left", **options)
    together = composed.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
    for row, conversation in zip(together, messages, strict=True):
        alone = processor.apply_chat_template(conversation, **options)
        assert composed.generate(**alone, max_new_tokens=4, do_sample=False)[0, -4:].equal(row)


def test_a_pipeline_of_transformers_takes_both(specialist: tuple[Any, Any, Path]) -> None:
    _, _, out = specialist
    composed, processor = submerge.load(out), submerge.load_processor(out)
    with quietly(transformers.logging):  # the class is no multimodal one by its name
        pipe = transformers.pipeline("image-text-to-text", model=composed, processor=processor)
        picture, greedy = Image.fromarray(image(0)), {"max_new_tokens": 4, "do_sample": False}
        (answer,) = pipe(images=picture, text="see <image>", generate_kwargs=greedy)
    inputs = processor(text="see <image>", images=picture, return_tensors="pt")
    rows = (composed.generate(**inputs, **greedy)[0], inputs["input_ids"][0])
    whole, prompt = (processor.decode(row, skip_special_tokens=True) for row in rows)
    assert len(whole) > len(prompt)
    assert answer["generated_text"] == "see <image>" + whole.removeprefix(prompt)
