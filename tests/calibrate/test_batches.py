"""Batches of items: each once, as it is alone, and in a form that a model of transformers takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from _models import TEXT, VISION, quiet_transformers
from submerge.calibrate import Item, batches, load_processor
from submerge.calibrate._batches import EncodedItems

pytest.importorskip("transformers")
WORDS = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"))}
ITEMS = [Item("a b c"), Item("a", "b c"), Item("d"), Item("e f g h a b"), Item("h", "g"), Item("b b")]


@pytest.fixture
def tokenizer() -> Any:
    return quiet_transformers().BertTokenizer(vocab=dict(WORDS))


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_each_item_is_in_one_batch_as_it_is_alone(tokenizer: Any, size: int) -> None:
    seen: list[int] = []
    for batch in batches(ITEMS, tokenizer, size):
        assert len(batch.places) == len(batch.inputs["input_ids"]) <= size
        assert len({bool(ITEMS[place].text_pair) for place in batch.places}) == 1
        for row, place in enumerate(batch.places):
            item = ITEMS[place]
            alone = tokenizer(item.text, item.text_pair or None, return_tensors="pt")
            for name, values in alone.items():
                length = values.shape[1]
                assert torch.equal(batch.inputs[name][row, :length], values[0])
            assert not batch.inputs["attention_mask"][row, length:].any()
        seen += batch.places
    assert seen == [0, 2, 3, 5, 1, 4]


def test_another_pass_gives_the_same_batches(tokenizer: Any) -> None:
    one, other = (list(batches(ITEMS, tokenizer, 2)) for _ in range(2))
    assert [batch.places for batch in one] == [batch.places for batch in other]
    assert all(
        torch.equal(a.inputs["input_ids"], b.inputs["input_ids"]) for a, b in zip(one, other, strict=True)
    )
    assert list(batches([], tokenizer)) == []


def test_batches_are_held_while_there_is_room(tokenizer: Any) -> None:
    plain = EncodedItems(ITEMS, tokenizer, 2, 16)
    assert plain[0] is not plain[0]
    held = plain.holding(1 << 20)
    assert all(one is again for one, again in zip(held, held[:], strict=True))
    assert held[-1] is held[len(held) - 1]
    assert held.holding(1) is held, "what is held already stays"
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(plain, held, strict=True))
    first = sum(tensor.nbytes for tensor in plain[0].values())
    tight = plain.holding(first)
    assert [tight[place] is tight[place] for place in range(len(tight))] == [True, *[False] * 2]
    assert plain.spaced(6) is plain
    assert [item.text for item in held.spaced(2).items] == ["a b c", "e f g h a b"]
    with pytest.raises(IndexError):
        plain[3]


def test_texts_are_cut(tokenizer: Any) -> None:
    (batch,) = batches([Item("a b c d e f g h")], tokenizer, max_length=5)
    assert batch.inputs["input_ids"].tolist() == [[2, 5, 6, 7, 3]]


def test_a_model_takes_what_its_own_processor_gives(tmp_path: Path, tokenizer: Any) -> None:
    """A model whose tokenizer pads with nothing of its own, and that takes no types of tokens."""
    t = quiet_transformers()
    model = t.LlamaForCausalLM(t.LlamaConfig(**TEXT)).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, images=False)
    loaded.model_input_names = ["input_ids", "attention_mask"]
    for batch in batches(ITEMS, loaded, 4):
        assert model(**batch.inputs).logits.shape[:2] == batch.inputs["input_ids"].shape


def test_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    t = quiet_transformers()
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    for number, mode in enumerate(("RGB", "L", "RGBA")):
        image.new(mode, (20, 24), 7 * number).save(tmp_path / f"{number}.png")
    items = [Item(image=tmp_path / f"{number}.png", task="t") for number in range(3)]
    processor = load_processor(tmp_path, images=True)
    first, last = batches(items, processor, 2)
    assert (first.places, last.places) == ((0, 1), (2,))
    assert first.inputs["pixel_values"].shape == (2, 3, 16, 16)
    model = t.ViTModel(t.ViTConfig(**VISION)).eval()
    assert model(**last.inputs).last_hidden_state.shape[0] == 1
