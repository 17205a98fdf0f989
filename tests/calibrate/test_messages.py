"""Chats in the forms of OpenAI, transformers, TRL, ShareGPT and LLaVA."""

from __future__ import annotations

from typing import Any

import pytest

from submerge.calibrate._messages import as_parts, read_messages
from submerge.errors import RequestError


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def image(value: str) -> dict[str, str]:
    return {"type": "image", "image": value}


def test_the_last_answer_is_removed_and_others_stay() -> None:
    answer = {"role": "assistant", "content": "b"}
    system = {"role": "system", "content": "s"}
    assert read_messages([system, user("a"), answer]) == [system, user("a")]
    assert read_messages([user("a"), answer, user("c"), answer, answer]) == [user("a"), answer, user("c")]


@pytest.mark.parametrize("content", [None, [{"type": "thinking", "thinking": "b"}], {"parts": 1}])
def test_an_answer_that_is_removed_may_have_any_content(content: Any) -> None:
    assert read_messages([user("a"), {"role": "assistant", "content": content}]) == [user("a")]


def test_columns_that_other_rows_have_are_none() -> None:
    """As `datasets` gives messages of two forms, and calls of functions in the form of 2023."""
    assert read_messages([{"role": None, "content": None, "from": "human", "value": "a"}]) == [user("a")]
    call = {"role": "assistant", "content": None, "function_call": {"name": "f"}}
    assert read_messages([user("a"), call, user("b")]) == [user("a"), call | {"content": ""}, user("b")]


def test_sharegpt() -> None:
    rows = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    found = read_messages([{"from": role, "value": value} for role, value in rows])
    assert [(m["role"], m["content"]) for m in found] == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]  # fmt: skip


@pytest.mark.parametrize(
    "role", ["gpt", "chatgpt", "bing", "bard", "bot", "model", "Assistant", "function_call"]
)
def test_an_answer_is_removed_whatever_its_role_is_called(role: str) -> None:
    """A label must not be looked at."""
    assert read_messages([{"from": "human", "value": "a"}, {"from": role, "value": "b"}]) == [user("a")]


def test_roles_of_asking_by_other_names() -> None:
    rows = [("Human", "a"), ("function_call", "f()"), ("observation", "5")]
    found = read_messages([{"from": role, "value": value} for role, value in rows])
    assert [m["role"] for m in found] == ["user", "assistant", "tool"]
    assert read_messages([{"from": "prompter", "value": "a"}]) == [user("a")]


def test_a_role_that_only_a_template_knows_may_not_end_a_chat() -> None:
    documents = {"role": "documents", "content": "d"}
    assert read_messages([documents, user("a")]) == [documents, user("a")]
    with pytest.raises(
        RequestError, match=r"^x:1: its messages end with the role 'Bob', and it is not known"
    ):
        read_messages([user("a"), {"role": "Bob", "content": "b"}], where="x:1")


def test_parts_of_text_are_one_text() -> None:
    assert read_messages([user([text("a"), text("b")])]) == [user("a\nb")]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "x"},
        {"type": "image", "path": "x"},
        {"type": "image", "url": "x", "text": None},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "image_url", "image_url": "x"},
    ],
    ids=str,
)
def test_images_that_a_part_names(part: dict[str, Any]) -> None:
    found = read_messages([user([part, text("a")])], resolve=lambda name: f"at/{name}")
    assert found == [user([image("at/x"), text("a")])]


def test_images_beside_the_messages_take_their_places_in_order() -> None:
    assert read_messages([user([{"type": "image"}, text("a"), {"type": "image"}])], ["x", "y"]) == [
        user([image("x"), text("a"), image("y")])
    ]
    assert read_messages([user("<image>\na <image>"), user("b")], ["x", "y"]) == [
        user([image("x"), text("a "), image("y")]),
        user([text("b")]),
    ]
    system = {"role": "system", "content": "s"}
    assert read_messages([system, user("a")], ["x", "y"]) == [
        {**system, "content": [text("s")]},
        user([image("x"), image("y"), text("a")]),
    ]


def test_a_text_without_images_keeps_what_looks_like_a_placeholder() -> None:
    assert read_messages([user("what is <image>?")]) == [user("what is <image>?")]


def test_what_else_a_message_has_stays() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    tool = {"role": "tool", "content": "5", "name": "f", "more": None}
    assert read_messages([user("a"), call, tool]) == [
        user("a"),
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "5", "name": "f"},
    ]
    assert as_parts([user(""), user("a"), user([text("b")])]) == [
        user([]),
        user([text("a")]),
        user([text("b")]),
    ]


@pytest.mark.parametrize(
    ("value", "images", "message"),
    [
        ("a", [], "its messages are no list of objects"),
        (["a"], [], "its messages are no list of objects"),
        ([], [], "its messages have none of the user"),
        ([{"role": "assistant", "content": "a"}], [], "its messages have none of the user"),
        ([{"content": "a"}], [], "a message has no role"),
        ([user(" ")], [], "its messages of the user are empty"),
        ([{"role": "system", "content": "s"}, user([text("")])], [], "its messages of the user are empty"),
        ([user(None)], [], "a message's content is neither a text nor a list of parts"),
        ([user([{"type": "audio"}])], [], "a part of a message is of type audio, which cannot be read"),
        ([user([{"type": "text"}])], [], "a part of a message is of type text, which cannot be read"),
        ([user(["a"])], [], "a part of a message is of type None"),
        ([user([{"type": "image"}])], [], "there are more placeholders than images"),
        ([user("<image> <image>")], ["x"], "there are more placeholders than images"),
        ([user("<image>")], ["x", "y"], "there are 2 images for 1 placeholders"),
    ],
)
def test_what_is_malformed_is_said_with_its_line(value: Any, images: list[str], message: str) -> None:
    with pytest.raises(RequestError) as error:
        read_messages(value, images, "chats.jsonl:3")
    assert str(error.value).startswith(f"chats.jsonl:3: {message}")
