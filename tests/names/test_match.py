from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.helpers_store import messages
from submerge.errors import RequestError
from submerge.names import match_names, respelling

words = st.sampled_from(
    ["model", "layers", "0", "1", "mlp", "attn", "weight", "lm_head", "visual", "encoder"]
)
names = st.lists(st.lists(words, min_size=1, max_size=5).map(".".join), unique=True, max_size=6)


@given(available=names, data=st.data())
def test_names_that_are_there_stand_for_themselves(available: list[str], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(available), unique=True)) if available else []
    matched = match_names(wanted, available)
    assert matched.names == {name: name for name in wanted}
    assert matched.description == f"{len(wanted)} as named"


@given(wanted=names, available=names)
def test_a_match_is_to_one_name_each_or_refused(wanted: list[str], available: list[str]) -> None:
    try:
        matched = match_names(wanted, available)
    except RequestError:
        return
    assert list(matched.names) == wanted
    assert len(set(matched.names.values())) == len(wanted)
    assert set(matched.names.values()) <= set(available)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("language_model.model.layers.0.q.weight", "model.language_model.layers.0.q.weight"),
        ("language_model.model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.layers.0.q.weight", "model.language_model.layers.0.q.weight"),
        ("visual.blocks.0.q.weight", "model.visual.blocks.0.q.weight"),
        (
            "vision_tower.vision_model.encoder.layers.0.q.weight",
            "model.vision_tower.encoder.layers.0.q.weight",
        ),
        ("vision_tower.encoder.layers.0.q.weight", "model.vision_tower.encoder.layers.0.q.weight"),
        ("thinker.model.layers.0.q.weight", "model.language_model.layers.0.q.weight"),
        ("bert.encoder.layer.0.q.weight", "encoder.layer.0.q.weight"),
        ("vision_model.encoder.layers.0.q.weight", "encoder.layers.0.q.weight"),
        ("model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"),
        ("transformer.h.0.c_attn.weight", "h.0.c_attn.weight"),
        ("base_model.model.layers.0.q.weight", "layers.0.q.weight"),
    ],
)
def test_versions_and_task_heads(old: str, new: str) -> None:
    others = ["lm_head.bias", "classifier.weight", "norm.weight"]
    assert match_names([old], [new, *others]).names == {old: new}
    assert match_names([new], [old, *others]).names == {new: old}


def test_a_tower_is_not_taken_for_the_text() -> None:
    both = ["model.language_model.layers.0.q.weight", "model.vision_tower.layers.0.q.weight"]
    found = match_names(["model.layers.0.q.weight", "vision_tower.layers.0.q.weight"], both).names
    assert list(found.values()) == both


def test_the_description_counts_what_was_changed() -> None:
    wanted = [f"language_model.model.layers.{i}.q.weight" for i in range(3)] + [
        "head.weight",
        "bert.x.y.weight",
    ]
    available = [f"model.language_model.layers.{i}.q.weight" for i in range(3)] + [
        "head.weight",
        "x.y.weight",
    ]
    text = match_names(wanted, available).description
    assert (
        text
        == "1 as named, 1 with 'bert' left out, 3 with 'language_model.model' read as 'model.language_model'"
    )
    assert match_names(["x.y.weight"], ["bert.x.y.weight"]).description == "1 with 'bert' put before"


def refused(wanted: list[str], available: list[str]) -> str:
    with pytest.raises(RequestError) as caught:
        match_names(wanted, available, "file")
    return messages(caught.value)


def test_refusals() -> None:
    text = refused(["layers.0.k.weight", "layers.0.z.weight"], ["layers.0.q.weight", "layers.0.kk.weight"])
    assert text == (
        "file: 2 parameters are not there: layers.0.k.weight, layers.0.z.weight — "
        "did you mean 'layers.0.kk.weight'?"
    )
    assert "is it of this model?" in refused(["a.b"], ["some.thing.else"])
    several = ["language_model.layers.0.q.weight", "model.language_model.layers.0.q.weight"]
    assert "may stand for any of" in refused(["model.layers.0.q.weight"], several)
    assert "all stand for" in refused(["model.model.layers.0.q", "language_model.layers.0.q"], ["layers.0.q"])
    assert "lm_head.dense.weight" in refused(
        ["lm_head.dense.weight"], ["pooler.dense.weight", "dense.weight"]
    )
    assert "layers.0.q.weight" in refused(["layers.0.q.weight"], ["visual.layers.0.q.weight"])
    assert "is not there: a.b" in refused(["a.b"], [])


def test_other_names_are_spelled_as_known_ones_are() -> None:
    spelled = respelling({
        "language_model.model.layers.0.q.weight": "model.language_model.layers.0.q.weight",
        "vision_tower.layers.0.q.weight": "model.vision_tower.layers.0.q.weight",
        "lm_head.weight": "lm_head.weight",
    })  # fmt: skip
    assert spelled("language_model.model.layers.1.k.weight") == "model.language_model.layers.1.k.weight"
    assert spelled("vision_tower.layers.0.q.weight") == "model.vision_tower.layers.0.q.weight"
    assert spelled("lm_head.weight") == "lm_head.weight"
    assert respelling({"a.b.weight": "a.b.weight"})("c.weight") == "c.weight"
    assert respelling({"model.a.weight": "a.weight"})("model.b.weight") == "b.weight"
