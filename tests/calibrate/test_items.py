"""Items of files and folders: their columns and kinds, and what is wrong with them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from submerge.calibrate import Item, open_image, read_items
from submerge.calibrate._items import items_of
from submerge.errors import RequestError


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"text": "a", "text_pair": "b", "task": "t", "more": 1}\n\n{"text": 7}\n')
    assert read_items(path) == [Item("a", "b", None, "t"), Item("7")]
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}')  # as some editors begin a file
    assert read_items(path) == [Item("a")]


def test_tables_say_what_json_lines_say(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,text_pair,task\n"a, b",c,t\nd,,\n')
    (tmp_path / "a.tsv").write_text("text\ttext_pair\ttask\na, b\tc\tt\nd\t\t\n")
    expected = [Item("a, b", "c", None, "t"), Item("d")]
    assert read_items(tmp_path / "a.csv") == expected
    assert read_items(tmp_path / "a.tsv") == expected


def test_images_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").touch()
    path = tmp_path / "inputs.csv"
    path.write_text("image,task\nimages/one.png,digits\n")
    (item,) = read_items(path)
    assert item == Item(image=tmp_path / "images" / "one.png", task="digits")
    assert item.shown == str(tmp_path / "images" / "one.png")
    assert Item("a", "b").shown == "a | b"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "w7"}\n{"text"', "a.jsonl:2: is no JSON"),
        (
            "a.jsonl",
            "[1]",
            "a.jsonl:1: has no text and no image — columns are text, text_pair, image, messages, task",
        ),
        ("a.csv", "text\n\nx\n\nword\n", ""),
        ("a.jsonl", "\n", "a.jsonl: there are no inputs"),
        ("a.jsonl", '{"image": "nothing.png"}', "a.jsonl:1: there is no image"),
        (
            "a.xml",
            "w7",
            "a.xml: is no kind of file that is read — .jsonl, .json, .csv, .tsv, .txt, these",
        ),
        ("a.tsv", "word\nw7\n", "a.tsv:2: has no text and no image"),
        (
            "a.tsv",
            "question\tanswer\nw7\tw8\n",
            "a.tsv:2: has no text and no image — columns are question, answer; name one with columns: "
            "{text: question}",
        ),
        (
            "a.jsonl",
            '{"text": " ", "n": 1}',
            "a.jsonl:1: has no text and no image — text is empty: fill it, or leave the row out",
        ),
        (
            "a.jsonl",
            '{"task": "a"}',
            "a.jsonl:1: has no text and no image — columns are text, text_pair, image",
        ),
        (
            "a.json",
            '{"data": [{"text": "a"}]}',
            "a.json:1: has no text and no image — columns are text, text_pair",
        ),
        ("a.jsonl", '{"text": {"en": "a"}}', "a.jsonl:1: a text is a mapping — name a column of texts"),
        ("a.jsonl", '{"text": "a", "text_pair": ["b"]}', "a.jsonl:1: a text is a list"),
        ("a.jsonl", '{"text": ["a", "b"]}', "a.jsonl:1: a text is a list — name a column of texts"),
        ("a.jsonl", '{"messages": []}', "a.jsonl:1: has no text and no image — messages is empty: fill it"),
        ("a.jsonl", '{"text_pair": "a", "image": "a.jsonl"}', "a.jsonl:1: has a text_pair, and an image"),
        ("a.jsonl", '{"image": ["a.jsonl", "a.jsonl"]}', "a.jsonl:1: has several images and no text"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "a.jsonl:1: a message's content is neither"),
        ("a.jsonl", '{"image": "' + "A" * 5000 + '"}', "a.jsonl:1: there is no image"),
        ("a.jsonl", '{"image": "data:' + "A" * 5000 + '"}', "a.jsonl:1: an image is data:AAA"),
        ("a.jsonl", '{"image": "https://a.org/a.png"}', "and not a path — save it, and give its path"),
        ("a.jsonl", '{"text": NaN}', "a.jsonl:1: has no text and no image — text is empty"),
        (
            "a.jsonl",
            '{"premise": "a", "hypothesis": "b", "label": 0}',
            "name one with columns: {text: premise, text_pair: hypothesis}",
        ),
        ("a.jsonl", '{"chosen": [{"role": "user"}]}', "name one with columns: {messages: chosen}"),
        ("a.jsonl", '{"id": 3, "picture": "a.PNG"}', "name one with columns: {image: picture}"),
        ("a.jsonl", '{"tokens": ["a"]}', "tools; there are tokens"),
        (
            "a.jsonl",
            '{"instruction": "a", "input": "b", "output": "c"}',
            "columns are instruction, input, output; write instruction and input into one column text, with",
        ),
        ("a.jsonl", '{"audio": "a.wav", "text": "what was said"}', "a.jsonl:1: has audio, which is not read"),
        ("a.jsonl", '{"video": {"path": "a.mp4"}, "prompt": "What?"}', "has video, which is not read"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}], "tools": "{"}',
            "a.jsonl:1: its tools are no JSON",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}], "tools": ["f"]}',
            "a.jsonl:1: its tools are no list of objects",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    if not message:
        assert len(read_items(tmp_path / name)) == 2
        return
    with pytest.raises(RequestError) as error:
        read_items(tmp_path / name)
    assert message in str(error.value)


def test_an_instruction_without_its_input_is_told(tmp_path: Path) -> None:
    """Of Alpaca's rows, of which the first have none; a column of both is what the hint asks for."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "a", "input": ""}\n{"instruction": "b", "input": "c"}\n')
    with pytest.raises(RequestError, match="write instruction and input into one column text, with the temp"):
        read_items(path)
    said = f"{path}:2: the instruction is read without its input — write instruction and input into one"
    with pytest.warns(UserWarning, match=re.escape(said)):
        read_items({"path": path, "columns": {"text": "instruction"}})
    path.write_text('{"instruction": "b", "input": "c", "text": "b: c"}\n')
    assert read_items(path) == [Item("b: c")]


def test_numbers_are_read_as_texts_also_zero(tmp_path: Path) -> None:
    """As classes of a column `task` are numbered, from 0 on."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "task": 0}\n{"text": 0, "text_pair": 0, "task": 1}\n')
    assert read_items(path) == [Item("a", task="0"), Item("0", "0", task="1")]


def test_texts_alone_are_rows_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["a", "b"]')
    assert read_items(tmp_path / "a.json") == [Item("a"), Item("b")]


def test_what_is_not_read_may_be_left_out_by_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"audio": "a.wav", "text": "a"}\n{"text": "b", "video": false}')
    assert read_items({"path": tmp_path / "a.jsonl", "columns": {"text": "text"}}) == [Item("a"), Item("b")]


def test_the_list_of_an_image_folder(tmp_path: Path) -> None:
    """A `file_name` that names no image is where a text came from."""
    (tmp_path / "one.PNG").touch()
    (tmp_path / "metadata.csv").write_text("file_name,text,label\none.PNG,a,0\n")
    assert read_items(tmp_path / "metadata.csv") == [Item("a", image=tmp_path / "one.PNG")]
    (tmp_path / "code.jsonl").write_text('{"file_name": "one.py", "text": "a"}')
    assert read_items(tmp_path / "code.jsonl") == [Item("a")]


def test_a_system_and_tools_beside_a_chat(tmp_path: Path) -> None:
    turn, system = {"role": "user", "content": "a"}, {"role": "system", "content": "s"}
    tools = [{"type": "function"}]
    rows = [
        {"messages": [turn], "system": "s", "tools": tools},
        {"messages": [system, turn], "system": "other", "tools": json.dumps(tools)},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_items(tmp_path / "a.jsonl") == [Item(messages=(system, turn), tools=tuple(tools))] * 2


def test_columns_and_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,context,text,task\na,b,c,t\nd,e,f,t\ng,h,i,t\n")
    source = {"path": path, "columns": {"text": "question", "text_pair": "context"}, "limit": 2}
    assert read_items(source) == [Item("a", "b"), Item("d", "e")]
    assert read_items({"path": path, "limit": 9})[2] == Item("i", task="t")
    with pytest.raises(RequestError, match=r"csv:2: there is no column q — columns are question, context"):
        read_items({"path": path, "columns": {"text": "q"}})
    with pytest.raises(RequestError, match=r"a.csv: has no splits and no names — leave split and name out"):
        read_items({"path": path, "split": "test"})


def test_what_is_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "text_pair": "b"}\n{"text": "c"}\nno JSON\n')
    columns = {"text": "text", "text_pair": "text_pair"}
    assert read_items({"path": path, "columns": columns, "limit": 2}) == [Item("a", "b"), Item("c")]


def test_prompts_and_chats(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [{"messages": turns, "prompt": "a"}, {"conversations": sharegpt}, {"prompt": turns[:1]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    items = read_items(path)
    assert items == [Item(messages=tuple(turns[:1]))] * 3
    assert [item.where for item in items] == [f"{path}:{number}" for number in (1, 2, 3)]
    assert (items[0].kind, items[0].shown) == ("chats", "a")
    path.write_text('{"prompt": "a\\nb", "completion": "c"}')
    (item,) = read_items(path)
    assert (item, item.shown) == (Item("a\nb"), "a b")


def test_images_with_texts(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    one.touch()
    two.touch()
    content = [{"type": "image_url", "image_url": {"url": "one.png"}}, {"type": "text", "text": "a"}]
    llava = [{"from": "human", "value": "<image>\nb"}, {"from": "gpt", "value": "c"}]
    rows: list[dict[str, Any]] = [
        {"image": "one.png", "text": "a"},
        {"images": ["one.png", "two.png"], "text": "a"},
        {"messages": [{"role": "user", "content": content}]},
        {"image": "two.png", "conversations": llava},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    items = read_items(path)
    assert items[:2] == [Item("a", image=one), Item("a", image=(one, two))]
    assert [item.images for item in items] == [(one,), (one, two), (one,), (two,)]
    assert {item.kind for item in items} == {"images with texts"}
    assert items[3].shown == f"{two} | b"
    rows[2]["messages"][0]["content"][0]["image_url"]["url"] = "three.png"
    path.write_text(json.dumps(rows))
    with pytest.raises(RequestError, match=r"a.json, element 3: there is no image .*three.png — paths start"):
        read_items(path)


def test_images_that_are_no_files_of_their_own(tmp_path: Path) -> None:
    """In base64, as bytes of a file, as `datasets` gives them undecoded and decoded, and by an address."""
    image = pytest.importorskip("PIL.Image")
    one = tmp_path / "one.png"
    image.new("RGB", (3, 2), (7, 8, 9)).save(one)
    uri = "data:image/png;base64," + base64.b64encode(one.read_bytes()).decode()
    part = {"type": "image", "base64": uri.partition(",")[2]}
    forms: list[dict[str, Any]] = [
        {"image": uri},
        {"image": one.read_bytes()},
        {"image": {"bytes": one.read_bytes(), "path": "one.png"}},
        {"image": {"bytes": None, "path": str(one)}},
        {"image": f"file://{one}"},
        {"image": image.new("RGB", (3, 2), (7, 8, 9))},
        {"messages": [{"role": "user", "content": [part]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": {"bytes": one.read_bytes()}}]}
            ]
        },
    ]
    for (item,) in (items_of([("x:1", form)], Path()) for form in forms):
        opened = open_image(item.images[0], None, item.where)
        assert (opened.size, opened.getpixel((0, 0))) == ((3, 2), (7, 8, 9)), item
        assert len(item.shown) < 999
    (item,) = items_of([("x:1", {"image": "data:image/png;base64,AAAA"})], Path())
    with pytest.raises(RequestError, match=r"^x:1: the image data:image/png;base64,AA… cannot be read"):
        open_image(item.images[0], None, item.where)


def test_arrays_are_images_where_it_is_known_how(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    array = np.zeros((2, 3, 3), np.uint8)
    (item,) = items_of([("x:1", {"image": array})], Path())
    assert open_image(item.images[0], None, "x:1").size == (3, 2)
    for other in (array.astype(np.float32), np.zeros((3, 2, 5), np.uint8)):
        with pytest.raises(
            RequestError, match=r"^x:1: an image is an array \[\d, \d, \d\] of .* — give \[hei"
        ):
            items_of([("x:1", {"image": other})], Path())


def test_a_folder_whose_list_has_texts_tells_that_they_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,b\n")
    with pytest.warns(
        UserWarning, match=r"the images are read, and not text of metadata.csv — name that file"
    ):
        assert read_items(tmp_path) == [Item(image=tmp_path / "a.png")]
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,0\n")
    assert len(read_items(tmp_path)) == 1


def test_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("c.png", "b/a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    images = [tmp_path / "b" / "a.jpg", tmp_path / "c.png"]
    assert read_items(tmp_path) == [Item(image=image) for image in images]
    assert read_items({"path": str(tmp_path), "limit": 1}) == [Item(image=images[0])]


def test_texts_and_chats_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(RequestError, match="there are texts and chats — make two files"):
        read_items(tmp_path / "a.jsonl")


def test_texts_and_images_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"image": "one.png"}\n')
    with pytest.raises(RequestError, match="there are texts and images — make two files"):
        read_items(tmp_path / "a.jsonl")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file or directory"):
        read_items(tmp_path / "nothing.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\xfc\xfe")
    with pytest.raises(RequestError, match="cannot be read \\(not UTF-8\\)"):
        read_items(tmp_path / "a.jsonl")
