"""Parameters under two names, by names and shapes alone."""

import pytest

from submerge.names._correspondence import correspond

Shapes = dict[str, tuple[int, ...]]


def layers(prefix: str, count: int = 2, width: int = 4, more: Shapes | None = None) -> Shapes:
    """Return a stack of layers."""
    one: Shapes = {"attn.q.weight": (width, width), "norm.weight": (width,), "norm.bias": (width,)}
    one |= more or {}
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in one.items()}


TEXT = layers("layers") | {"embed_tokens.weight": (9, 4), "norm.weight": (4,)}
TOWER = layers("encoder.layers", 3, 6) | {"patch.weight": (6, 3)}


def put(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("own", "base"),
    [
        ("model", "language_model.model"),
        ("model", "model.language_model"),
        ("transformer", ""),
        ("", "bert"),
        ("", "text.inner"),
        ("model.text", "text"),
    ],
)
def test_prefixes(own: str, base: str) -> None:
    """A prefix is put before, left out, or a wrapper; beside another tower and heads of its own."""
    mine = put(own, TEXT) if own else dict(TEXT)
    wanted = put(base, TEXT) if base else dict(TEXT)
    found = correspond(mine | {"classifier.weight": (2, 4)}, wanted | put("vision_tower.vision_model", TOWER))
    expected = {b: o for o, b in zip(mine, wanted, strict=True)}
    assert found.names == expected
    assert not found.refused


def test_equal_names_come_first() -> None:
    assert correspond(TEXT, TEXT).names == {name: name for name in TEXT}
    assert correspond(TEXT, put("a", TOWER)).names == {}


def test_several_prefixes_at_once() -> None:
    own = put("visual", TOWER) | put("model", TEXT) | {"lm_head.weight": (9, 4)}
    base = put("model.visual", TOWER) | put("model.language_model", TEXT) | {"lm_head.weight": (9, 4)}
    found = correspond(own, base)
    assert found.names == dict(zip(base, own, strict=True))
    assert correspond(base, own).names == dict(zip(own, base, strict=True))


def test_old_spellings() -> None:
    own: Shapes = {"bert.layer.0.LayerNorm.gamma": (4,), "bert.layer.0.LayerNorm.beta": (4,)}
    own |= {"bert.layer.0.conv.weight_g": (4, 1), "bert.layer.0.conv.weight_v": (4, 4)}
    base: Shapes = {"layer.0.LayerNorm.weight": (4,), "layer.0.LayerNorm.bias": (4,)}
    base |= {
        "layer.0.conv.parametrizations.weight.original0": (4, 1),
        "layer.0.conv.parametrizations.weight.original1": (4, 4),
    }
    assert correspond(own, base).names == dict(zip(base, own, strict=True))
    assert correspond(base, own).names == dict(zip(own, base, strict=True))


def test_words_that_training_puts_in() -> None:
    own = {
        name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."): s
        for name, s in put("_orig_mod.model", TEXT).items()
    }
    base = put("model", TEXT)
    assert correspond(own, base).names == dict(zip(base, own, strict=True))


def test_shapes_decide_between_two_towers() -> None:
    base = put("left", layers("layers", width=4)) | put("right", layers("layers", width=6))
    own = layers("layers", width=6)
    assert correspond(own, base).names == {f"right.{name}": name for name in own}


def test_two_towers_of_one_shape_are_not_guessed() -> None:
    base = put("left", layers("layers")) | put("right", layers("layers"))
    found = correspond(layers("layers"), base)
    assert not found.names
    assert "'left' put before and with 'right' put before" in found.refused[0]
    found = correspond(put("left", layers("layers")) | put("right", layers("layers")), layers("layers"))
    assert not found.names
    assert found.refused


def test_layers_with_more_are_of_another_architecture() -> None:
    own = layers("model.layers", more={"attn.q.bias": (4,)})
    found = correspond(own, put("language_model", layers("model.layers")))
    assert not found.names
    assert "model.layers.0.attn.q.bias" in found.refused[0]
    own = layers("layers", more={"attn.q.bias": (4,)})
    found = correspond(own, put("bert", layers("layers")))
    assert not found.names
    assert "layers.0.attn.q.bias" in found.refused[0]


def test_masks_and_frequencies_are_not_counted() -> None:
    own = layers("h", more={"attn.bias": (1, 1, 8, 8), "attn.masked_bias": (), "rotary.inv_freq": (2,)})
    base = put("transformer", layers("h"))
    assert len(correspond(own, base).names) == len(base)


def test_words_are_not_swapped() -> None:
    """An encoder is no decoder, though its layers look alike."""
    assert not correspond(put("encoder", layers("layers")), put("decoder", layers("layers"))).names
    assert not correspond(put("audio_tower", TOWER), put("vision_tower", TOWER)).names


def test_single_tensors_that_look_alike_are_left_alone() -> None:
    base = put("bert", TEXT) | {"bert.pooler.dense.weight": (4, 4)}
    found = correspond(dict(TEXT) | {"classifier.dense.weight": (4, 4)}, base)
    assert "bert.pooler.dense.weight" not in found.names
    assert len(found.names) == len(TEXT)


def test_models_without_layers() -> None:
    base: Shapes = {"inner.weight": (3, 4), "inner.bias": (3,)}
    assert correspond(put("net", base), base).names == {n: f"net.{n}" for n in base}
    assert not correspond({"net.inner.bias": (3,)}, base | {"a": (1,), "b": (1,)}).names


def test_other_sizes_are_paired_for_the_plan_to_say_so() -> None:
    """A resized embedding is the same parameter: what is done about its shape, the plan's rules say."""
    own = put("model", TEXT | {"embed_tokens.weight": (11, 4)})
    found = correspond(own, put("language_model.model", TEXT))
    assert found.names["language_model.model.embed_tokens.weight"] == "model.embed_tokens.weight"
