"""Data in all forms as batches of a model's inputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from _adapters import FIRST, peft_model
from _models import quiet_transformers
from calibrate.helpers_processors import (
    ids,
    image_processor,
    llava,
    llava_processor,
    word_tokenizer,
    write_images,
)
from store.helpers_adapter import MODELS, copied
from submerge import learn_coefficients, null_space_curve, null_space_ratio
from submerge.calibrate import Item
from submerge.calibrate._sources import load_backbone, open_adapters, read_data
from submerge.errors import RequestError

pytest.importorskip("transformers")


def inputs_of(source: Any, processor: Any = None, size: int = 2, model: Any = None) -> Any:
    how = {"processor": processor, "batch_size": size, "max_length": 16}
    return read_data([source], ["k"], model, **how)["k"]


def test_all_forms_of_texts_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb c\nd\n")
    path = str(tmp_path / "a.txt")
    texts = ["a", "b c", "d"]
    forms: list[Any] = [path, Path(path), {"path": path}, texts, iter(texts), [{"text": t} for t in texts]]
    for source in [*forms, [Item(text) for text in texts]]:
        found = inputs_of(source, word_tokenizer())
        assert [batch["input_ids"].tolist() for batch in found] == [
            [[*ids("<s> a"), 0], ids("<s> b c")], [ids("<s> d")]]  # fmt: skip
    (limited,) = inputs_of({"path": path, "limit": 1}, word_tokenizer())
    assert limited["input_ids"].shape == (1, 2)


def test_samples_are_evenly_spaced() -> None:
    how = {"processor": word_tokenizer(), "batch_size": 2, "max_length": 16}
    for samples, wanted in ((2, "a c"), (3, "a b c"), (9, "a b c d")):
        (own,) = read_data([["a", "b", "c", "d"]], ["k"], None, **how, samples=samples).values()
        assert [item.text for item in own.items] == wanted.split(), samples


@pytest.mark.parametrize("texts", [["Ein Hund.", "Zwei Hunde."], ["Ein Hund.", "a dog"]])
def test_texts_of_which_no_word_is_known_are_told(texts: list[str]) -> None:
    with pytest.warns(UserWarning, match="of 2 texts that were looked at are without a known token to the"):
        inputs_of(texts, word_tokenizer())


def test_texts_of_which_nothing_is_left_are_told() -> None:
    words = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
    with pytest.warns(UserWarning, match="1 of 2 texts that were looked at are without a known token"):
        inputs_of(["\u200b", "a"], quiet_transformers().BertTokenizer(vocab=words))


def test_a_few_texts_of_unknown_words_are_no_warning() -> None:
    inputs_of(["a dog", "Hunde", "a dog"], word_tokenizer())


@pytest.mark.parametrize(("allowed", "hint"), [(99, "max_length: 18 reads them all"), (9, "the tokenizer")])
def test_texts_that_are_cut_are_told(allowed: int, hint: str) -> None:
    """A question may stand at the end of its context."""
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = allowed
    told = f"1 of 2 inputs that were looked at have more than {min(allowed, 16)} tokens, and .* — {hint}"
    chats = [{"messages": [{"role": "user", "content": text}]} for text in ("a " * 13, "a")]
    for source in (["a " * 17, "a"], chats):
        with pytest.warns(UserWarning, match=told):
            inputs_of(source, tokenizer)


@pytest.mark.parametrize("measure", [null_space_ratio, null_space_curve, learn_coefficients])
def test_a_model_without_values_is_refused(tmp_path: Path, measure: Any) -> None:
    t = quiet_transformers()
    model = MODELS["llama"](t)
    adapter = peft_model("llama", copied(model), 1, **FIRST)
    adapter.save_pretrained(str(tmp_path / "k"))
    with pytest.raises(RequestError, match="is on the device meta, and has no values"):
        measure(model.to("meta"), [tmp_path / "k"], [[{"input_ids": torch.tensor([[1, 2]])}]])


def test_batches_of_tensors_are_taken_as_they_are() -> None:
    batches = [{"input_ids": torch.zeros(1, 2)}]
    assert inputs_of(batches)[0] is batches[0]


def test_labels_of_batches_are_not_given_to_the_model() -> None:
    """An encoder-decoder would make the inputs of its decoder of them."""
    ids = torch.zeros(1, 2)
    for name in ("labels", "label", "label_ids"):
        (batch,) = inputs_of([{"input_ids": ids, name: torch.zeros(1)}])
        assert list(batch) == ["input_ids"]


@pytest.mark.parametrize(
    ("package", "frame"), [("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "table")]
)
def test_tables_go_by_rows(package: str, frame: str) -> None:
    """What they give themselves is their columns, whose names would be read as texts."""
    table = getattr(pytest.importorskip(package), frame)({"text": ["a", "b"], "label": [0, 1]})
    (batch,) = inputs_of(table, word_tokenizer())
    assert batch["input_ids"].tolist() == [ids("<s> a"), ids("<s> b")]


def test_images_of_a_list_need_no_names(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    (path,) = write_images(tmp_path, "0.png")
    with pil.open(path) as image:
        for source in ([path], [image], [Item(image=str(path))]):  # type: ignore[arg-type]
            (batch,) = inputs_of(source, image_processor())
            assert batch["pixel_values"].shape == (1, 3, 16, 16)


def test_rows_may_be_chats() -> None:
    (batch,) = inputs_of([{"messages": [{"role": "user", "content": "a"}]}], word_tokenizer())
    assert batch["input_ids"].tolist() == [ids("<s> USER : a ASSISTANT :")]


def test_nothing_is_read_before_its_batch(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    paths = write_images(tmp_path, *(f"{n}.png" for n in range(5)))
    found = inputs_of(tmp_path, image_processor())
    assert len(found) == 3
    paths[-1].write_text("damaged")
    assert [found[number]["pixel_values"].shape[0] for number in (1, 0, -3)] == [2, 2, 2]
    assert len(found[:2]) == 2
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(RequestError, match=r"4.png cannot be read"):
        list(found)


def test_the_processor_is_that_of_the_models_folder(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (picture,) = write_images(tmp_path, "0.png")
    llava_processor().save_pretrained(tmp_path)
    model = SimpleNamespace(name_or_path=str(tmp_path))
    names = ["a", "b", "c"]
    data = [["a"], [Item(image=picture)], [Item("a", image=picture)]]
    found = read_data(data, names, model, processor=None, batch_size=2, max_length=9)
    assert {name: sorted(found[name][0]) for name in names} == {
        "a": ["attention_mask", "input_ids"],
        "b": ["pixel_values"],
        "c": ["attention_mask", "input_ids", "pixel_values"],
    }


def test_a_vision_language_model_takes_all_kinds(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    peft = pytest.importorskip("peft")
    model = llava()
    model.save_pretrained(tmp_path / "base")
    llava_processor().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    (picture,) = write_images(tmp_path, "0.png")
    chat = [{"from": "human", "value": "<image>\na b"}, {"from": "gpt", "value": "c"}]
    data = {
        "texts": ["a b"],
        "chats": [{"messages": [{"role": "user", "content": "a"}]}],
        "images": [{"image": picture, "text": "a"}, {"image": picture, "text": "a b c"}],
        "images in chats": [{"image": picture, "conversations": chat}],
    }
    found = null_space_ratio(tmp_path / "base", [tmp_path / "adapter"], data, scales=0.4)
    assert found.counts == (3, 5, 10 + 12, 11), "tokens, of which an image has four"
    assert not found.matrix.isnan().any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "data of k: there are no inputs — give a few dozen"),
        ({"train": ["a"]}, "data of k: is a mapping of train, and has no path — give one split of a"),
        (3, "data of k: is neither a file, nor texts, items, rows, or batches of tensors by name"),
        ([3], "data of k: is neither a file, nor texts, items, rows, or batches of tensors by name"),
        (["a", {"input_ids": torch.zeros(1)}], "data of k: is neither a file"),
        (
            ["a", {"question": "b"}],
            "data of k, item 2: has no text and no image — columns are question",
        ),
        (["a", {"messages": [{"role": "user", "content": "b"}]}], "data of k: there are texts and chats"),
        (["a", " "], "data of k, item 2: has no text and no image"),
        ({"path": "a.csv", "limits": 1}, "data: unknown key 'limits' — did you mean 'limit'?"),
    ],
)
def test_what_is_no_data(source: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        inputs_of(source, word_tokenizer())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("one", ["a.jsonl", Path("a.jsonl"), None])
def test_one_path_in_the_place_of_several(one: Any) -> None:
    with pytest.raises(RequestError, match=r"^adapters: .* is neither a list nor a mapping .* put it"):
        open_adapters(one)
    with pytest.raises(RequestError, match=r"^data: .* is neither a list nor a mapping of the data"):
        read_data(one, ["k"], None, processor=None, batch_size=1, max_length=8)


def test_an_adapter_that_is_there_twice() -> None:
    with pytest.raises(RequestError, match="adapters: an adapter is there twice: a, b, a — name them"):
        open_adapters(["a", "b", Path("a")])


def test_a_damaged_base(tmp_path: Path) -> None:
    MODELS["llama"](quiet_transformers()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(RequestError, match="transformers cannot load it"):
        load_backbone(tmp_path)
    with pytest.raises(RequestError, match="transformers cannot load it"):
        load_backbone(tmp_path / "nothing")
