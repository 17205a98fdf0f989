"""Data of the package `datasets`: saved folders, parquet files and names of the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from calibrate.helpers_processors import write_images
from submerge.calibrate import Item, batches, image_files, load_processor, read_items
from submerge.calibrate._datasets import StoredImage
from submerge.errors import RequestError

datasets = pytest.importorskip("datasets")
COLUMNS = {"premise": list("abcd"), "hypothesis": list("efgh"), "label": [0, 1, 2, 0]}
SOURCE = {"columns": {"text": "premise", "text_pair": "hypothesis"}, "limit": 3}
PAIRS = [Item("a", "e"), Item("b", "f"), Item("c", "g")]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def test_a_saved_folder(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(COLUMNS)
    data.save_to_disk(tmp_path / "saved")
    items = read_items({"path": str(tmp_path / "saved"), **SOURCE})
    assert items == PAIRS
    assert items[2].where == f"{tmp_path}/saved, row 3"
    data.select([3, 0]).save_to_disk(tmp_path / "chosen")
    assert [item.text for item in read_items({"path": tmp_path / "chosen", **SOURCE})] == ["d", "a"]
    with pytest.raises(RequestError, match="saved: has no splits and no names — leave split"):
        read_items({"path": str(tmp_path / "saved"), "split": "train", **SOURCE})
    with pytest.raises(RequestError, match=r"row 1: .* — columns are premise, hypothesis, label; name"):
        read_items(tmp_path / "saved")


def test_splits_of_a_saved_folder(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(COLUMNS)
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "one")
    assert read_items({"path": str(tmp_path / "one"), **SOURCE}) == PAIRS
    both = datasets.DatasetDict({"train": data, "test": data.select([3])})
    both.save_to_disk(tmp_path / "two")
    source = {"path": str(tmp_path / "two"), **SOURCE}
    assert read_items(source | {"split": "test"}) == [Item("d", "h")]
    with pytest.raises(RequestError, match="there are several splits — name one with split: train, test"):
        read_items(source)
    with pytest.raises(RequestError, match="there is no split tests — name one with split: train, test"):
        read_items(source | {"split": "tests"})


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(COLUMNS).to_parquet(path)
    assert read_items({"path": str(path), **SOURCE}) == PAIRS
    path.write_bytes(b"PAR1")
    with pytest.raises(RequestError, match=r"a.parquet: datasets cannot open it"):
        read_items(path)


def test_an_arrow_file_of_a_saved_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    assert read_items({"path": path, **SOURCE}) == PAIRS
    path.write_bytes(b"ARROW1")
    with pytest.raises(RequestError, match=r"arrow: datasets cannot open it"):
        read_items(path)


def test_chats(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    datasets.Dataset.from_dict({"prompt": ["a"], "messages": messages}).save_to_disk(tmp_path / "saved")
    (item,) = read_items(tmp_path / "saved")
    assert item.messages == ({"role": "user", "content": "a"},)


@pytest.mark.parametrize("kind", ["saved", "a.parquet"])
def test_images_are_read_with_their_batch(tmp_path: Path, kind: str) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [image.open(path).convert("RGB") for path in write_images(tmp_path, "0.png", "1.png", "2.png")]
    columns = {"text": list("ab"), "image": pictures[:2], "images": [pictures[1:], pictures[:1]]}
    data = datasets.Dataset.from_dict(columns)
    (data.save_to_disk if kind == "saved" else data.to_parquet)(tmp_path / kind)
    one, two = read_items({"path": tmp_path / kind, "columns": {"image": "image"}})
    assert isinstance(two.image, StoredImage)
    assert two.shown == "row 2, image"
    several = read_items({"path": tmp_path / kind, "columns": {"text": "text", "image": "images"}})
    assert [len(item.images) for item in several] == [2, 1]
    assert several[0].shown == "row 1, images[0] | row 1, images[1] | a"
    for item, picture in ((one, 0), (two, 1), (several[0], 1), (several[1], 0)):
        assert isinstance(item.images[0], StoredImage)
        (tmp_path / "read.png").write_bytes(item.images[0].read())
        assert image.open(tmp_path / "read.png").getpixel((0, 0)) == pictures[picture].getpixel((0, 0))


def test_images_of_which_a_data_set_holds_the_paths(tmp_path: Path) -> None:
    """They may change without it; `image_files` names them."""
    picture, source = tmp_path / "0.png", tmp_path / "a.arrow"
    picture.write_bytes(b"1")
    arrow = pytest.importorskip("pyarrow")
    image = [{"bytes": None, "path": str(picture)}, {"bytes": b"2", "path": "1.png"}]
    table = arrow.table({"image": image})
    with arrow.OSFile(str(source), "wb") as file, arrow.ipc.new_stream(file, table.schema) as written:
        written.write_table(table)
    assert image_files(source) == [picture]
    assert [item.images[0].read() for item in read_items(source)] == [b"1", b"2"]


def test_images_make_batches(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    transformers = pytest.importorskip("transformers")
    pictures = [image.new("RGB", (20, 24), 7 * number) for number in range(2)]
    datasets.Dataset.from_dict({"image": pictures}).save_to_disk(tmp_path / "saved")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    (batch,) = batches(read_items(tmp_path / "saved"), load_processor(tmp_path, images=True))
    assert batch.inputs["pixel_values"].shape == (2, 3, 16, 16)


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    def load(*args: Any, **more: Any) -> Any:
        asked.append((*args, more))
        return datasets.Dataset.from_dict(COLUMNS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, name: ["validation"])
    assert read_items({"path": "org/pairs", "split": "test", **SOURCE}) == PAIRS
    assert read_items({"path": "org/pairs", "name": "mnli", **SOURCE}) == PAIRS
    assert read_items({"path": "pairs", "split": "train[:2]", **SOURCE}) == PAIRS
    with pytest.raises(RequestError, match="org/pairs, row 1: has no text and no image"):
        read_items("org/pairs")
    assert asked == [
        ("org/pairs", None, {"split": "test"}),
        ("org/pairs", "mnli", {"split": "validation"}),
        ("pairs", None, {"split": "train[:2]"}),
        ("org/pairs", None, {"split": "validation"}),
    ]


def test_paths_are_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network is asked for nothing that is meant as a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("org/inputs.jsonl", "org/a.parquet", "data/inputs", "./org/name", "a/b/c", "inputs", "/a/b"):
        with pytest.raises(RequestError, match=r"cannot be read .No such file or directory"):
            read_items(name)
    for name in ("org/inputs.csv", "./org/name", "/a/b", "a/b/c"):
        with pytest.raises(RequestError, match="has no splits and no names"):
            read_items({"path": name, "split": "test"})


def test_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/x' doesn't exist on the Hub.\nMore.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(RequestError) as error:
        read_items({"path": "org/x", "split": "train"})
    what = "datasets cannot open it (Dataset 'org/x' doesn't exist on the Hub.)"
    assert str(error.value) == f"org/x: {what} — check the path or the name"


def test_files_in_a_folder_whose_split_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "copy").mkdir()
    datasets.Dataset.from_dict(COLUMNS).to_csv(tmp_path / "copy" / "test.csv")
    assert read_items({"path": str(tmp_path / "copy"), "split": "test", **SOURCE}) == PAIRS


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match="org/x needs the package datasets — pip install datasets"):
        read_items("org/x")
