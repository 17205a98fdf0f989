"""Tables with a row for each token of a shared tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from _tokenizers import fast_tokenizer, language_model, multimodal_model, special
from engine.plan.helpers_plan import low_rank
from submerge.engine.plan import Inputs, share_tokens, with_token_rows
from submerge.errors import RequestError
from submerge.recipe import load_recipe
from submerge.store import (
    Adapter,
    Add,
    Aligner,
    Checkpoint,
    FileTable,
    Rows,
    TensorEntry,
    byte_view,
    open_checkpoint,
    torch_dtype,
)

EMBEDDING, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"


def values(model: Checkpoint, name: str) -> torch.Tensor:
    """Return a tensor of a model, as a merge reads it."""
    entry = model.tensors[name]
    raw = torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
    with FileTable() as table:
        model.source(name, table).read(0, entry.numel, byte_view(raw))
    return raw


def base_model(folder: Path, rows: int = 16, **more: Any) -> Checkpoint:
    language_model(folder, rows, **more)
    fast_tokenizer().save_pretrained(folder)
    return open_checkpoint(str(folder))


def specialist(folder: Path, added: Sequence[AddedToken], rows: int = 20, **more: Any) -> Checkpoint:
    multimodal_model(folder, rows, **more)
    fast_tokenizer(added).save_pretrained(folder)
    return open_checkpoint(str(folder))


def with_rows(base: Checkpoint, *models: Checkpoint) -> tuple[Checkpoint, ...]:
    """Return a base and its specialists with all rows."""
    names = [f"m{n}" for n in range(len(models))]
    tokens, problems = share_tokens(base, list(zip(names, models, strict=True)))
    assert not problems
    recipe = load_recipe(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": name} for name in names],
            "parameters": {"weight": 1.0},
        }
    )
    aligned = [Aligner(base).align(model).model for model in models]
    inputs = Inputs.of(recipe, {"base": base, **dict(zip(names, aligned, strict=True))})
    return with_token_rows(inputs, tokens).models


@pytest.mark.parametrize("prefix", ["", "language_model."])
@pytest.mark.parametrize("base_rows", [16, 24])
def test_each_token_has_its_own_row(tmp_path: Path, base_rows: int, prefix: str) -> None:
    """In the base that of the first specialist that has it; where a specialist has none, the base's."""
    base = base_model(tmp_path / "lm", base_rows)
    one = specialist(tmp_path / "v", special("<image>", "<pad>"), seed=1, prefix=prefix)
    two = specialist(tmp_path / "a", special("<audio>", "<pad>", "<end>"), seed=2, prefix=prefix)
    rows = max(20, base_rows)
    new_base, vision, audio = with_rows(base, one, two)
    for name in (EMBEDDING, HEAD):
        w, v, a = values(base, name), values(one, prefix + name), values(two, prefix + name)
        added = torch.stack([v[16], v[17], a[16], a[18]])
        padding = w[20:] if base_rows == 24 else w[:0]
        assert torch.equal(values(new_base, name), torch.cat([w[:16], added, padding]))
        assert torch.equal(values(vision, name), torch.cat([v[:18], a[16:17], a[18:19], padding]))
        expected = torch.cat([a[:16], v[16:17], a[17:18], a[16:17], a[18:19], padding])
        assert torch.equal(values(audio, name), expected)
        assert new_base.tensors[name].shape == (rows, 4)
    assert {m.config["vocab_size"] for m in (new_base,) if m.config} == {rows}
    assert all(m.config and m.config["text_config"]["vocab_size"] == rows for m in (vision, audio))


def test_rows_behind_the_last_token_are_left_out(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"), rows=64)
    new_base, vision = with_rows(base, one)
    assert new_base.tensors[EMBEDDING].shape == vision.tensors[EMBEDDING].shape == (17, 4)
    assert torch.equal(values(vision, EMBEDDING), values(one, EMBEDDING)[:17])


def test_a_specialist_with_fewer_rows_has_the_bases_behind_them(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm", 24), specialist(tmp_path / "v", special("<image>"), rows=17)
    new_base, vision = with_rows(base, one)
    own = torch.cat([values(one, EMBEDDING), values(base, EMBEDDING)[17:]])
    assert torch.equal(values(vision, EMBEDDING), own)
    assert values(new_base, EMBEDDING)[16].equal(own[16])


def test_models_whose_rows_are_right_are_left_as_they_are(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", [], rows=16)
    assert with_rows(base, one) == (base, one)
    assert with_rows(base, one)[1] is one


def test_a_tied_embedding_stands_for_the_head(tmp_path: Path) -> None:
    base = base_model(tmp_path / "lm", tied=True)
    one = specialist(tmp_path / "v", special("<image>"), seed=1)
    two = specialist(tmp_path / "a", special("<audio>"), seed=2, tied=True)
    new_base, vision, audio = with_rows(base, one, two)
    assert HEAD not in new_base.tensors
    assert HEAD not in audio.tensors
    head = values(vision, HEAD)
    assert torch.equal(head[:17], values(one, HEAD)[:17])
    assert head[17].equal(values(two, EMBEDDING)[16]), "of a specialist that ties its head"


def test_a_head_has_the_embeddings_of_a_specialist_that_ties_it(tmp_path: Path) -> None:
    base, two = base_model(tmp_path / "lm"), specialist(tmp_path / "a", special("<audio>"), tied=True)
    new_base, audio = with_rows(base, two)
    assert HEAD not in audio.tensors
    assert values(new_base, HEAD)[16].equal(values(two, EMBEDDING)[16])


def test_the_bias_of_a_head_has_a_value_for_each_token(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"))

    def biased(model: Checkpoint, rows: int) -> Checkpoint:
        entry = TensorEntry(BIAS, "F32", (rows,), None, 0, 4 * rows)
        return replace(model, tensors={**model.tensors, BIAS: entry}, memory={BIAS: torch.rand(rows)})

    base, one = biased(base, 16), biased(one, 20)
    new_base, vision = with_rows(base, one)
    assert torch.equal(values(vision, BIAS), one.memory[BIAS][:17])
    assert torch.equal(values(new_base, BIAS), torch.cat([base.memory[BIAS], one.memory[BIAS][16:17]]))


def test_rows_of_another_type_are_brought_to_the_models(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"))
    half = {name: values(one, name).bfloat16() for name in one.tensors}
    entries = {n: replace(e, dtype="BF16", file=None, nbytes=e.nbytes // 2) for n, e in one.tensors.items()}
    new_base, vision = with_rows(base, replace(one, tensors=entries, memory=half))
    assert vision.tensors[EMBEDDING].dtype == "BF16"
    assert values(new_base, EMBEDDING)[16].equal(half[EMBEDDING][16].float())


def test_a_token_without_a_row_in_one_table_is_refused(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"))
    wide = replace(one, tensors={**one.tensors, EMBEDDING: replace(one.tensors[EMBEDDING], shape=(20, 5))})
    tokens, _ = share_tokens(base, [("m0", one)])
    with pytest.raises(RequestError, match=r"a row of model.embed_tokens.weight is \[5\] here, and \[4\]"):
        with_token_rows(_inputs(base, wide), tokens)


# --- adapters -------------------------------------------------------------------------------------


def _inputs(base: Checkpoint, *models: Checkpoint) -> Inputs:
    positions = tuple(range(1, len(models) + 1))
    return Inputs((base, *models), ("base", *map(str, positions)), 0, 0, positions)


def adapted(model: Checkpoint, parts: dict[str, Any], under: Checkpoint | None = None) -> Checkpoint:
    adapter = Adapter("adapter", Path("adapter"), None, {}, None, None, parts)
    return replace(model, adapter=adapter, under=under or model)


def test_adapters_on_the_base_itself_still_have_its_very_tables(tmp_path: Path) -> None:
    """So that their updates are known without the values."""
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"))
    tokens, _ = share_tokens(base, [("m0", one), ("m1", base)])
    on_base = adapted(base, {})
    new_base, _, lora = with_token_rows(_inputs(base, one, on_base), tokens).models
    assert lora.tensors[EMBEDDING] is new_base.tensors[EMBEDDING]
    assert torch.equal(values(lora, EMBEDDING), values(new_base, EMBEDDING))


@pytest.mark.parametrize("prefix", ["", "language_model."])
@pytest.mark.parametrize("how", ["rows", "factors", "transposed factors", "norms", "transposed norms"])
def test_what_was_trained_of_a_table_goes_where_its_tokens_are(tmp_path: Path, how: str, prefix: str) -> None:
    """And the row of a token that is a specialist's alone is as it was trained, in the base, too."""
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"))
    two = specialist(tmp_path / "a", special("<audio>"), prefix=prefix)
    aligned = Aligner(base).align(two).model
    before = values(aligned, EMBEDDING)
    trained, memory = before.clone(), dict[str, torch.Tensor]()
    part: Any = Rows(TensorEntry("rows", "F32", (2, 4), None, 0, 0), (3, 16))
    if how == "rows":
        memory["rows"] = torch.randn(2, 4)
        trained[[3, 16]] = memory["rows"]
    else:
        transposed = "transposed" in how
        part = low_rank(shape=(4, 20) if transposed else (20, 4))
        part = replace(part, scale=0.5, transposed=transposed)
        memory = {e.name: torch.randn(e.shape) for e in (part.left_entry, part.right_entry)}
        update = 0.5 * memory["B"] @ memory["A"]
        trained += update.T if transposed else update
        if "norms" in how:
            side = 0 if transposed else 1
            memory["m"] = torch.rand(trained.shape[1 - side])
            part = replace(part, magnitude=TensorEntry("m", "F32", (len(memory["m"]),), None, 0, 0))
            trained *= memory["m"].unsqueeze(side) / trained.norm(dim=side, keepdim=True)
    changed = adapted(aligned, {EMBEDDING: part})
    assert changed.adapter is not None
    changed = replace(changed, adapter=replace(changed.adapter, memory=memory))
    tokens, _ = share_tokens(base, [("m0", one), ("m1", two)])
    new_base, _, audio = with_token_rows(_inputs(base, one, changed), tokens).models
    found = values(audio, EMBEDDING)
    torch.testing.assert_close(found[:16], trained[:16])
    torch.testing.assert_close(found[17], trained[16])
    assert torch.equal(values(new_base, EMBEDDING)[17], found[17])
    assert torch.equal(values(new_base, EMBEDDING)[:16], values(base, EMBEDDING))
    assert audio.adapter is not None
    assert not audio.adapter.parts
    assert audio.adapter.replaced == {EMBEDDING}


def test_an_update_of_the_bias_of_a_head_is_in_it_before_its_values_move(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"))

    def biased(model: Checkpoint, rows: int, adapter: Adapter | None = None) -> Checkpoint:
        tensors = {**model.tensors, BIAS: TensorEntry(BIAS, "F32", (rows,), None, 0, 4 * rows)}
        return replace(model, tensors=tensors, memory={BIAS: torch.rand(rows)}, adapter=adapter)

    part, update = Add(TensorEntry("b", "F32", (20,), None, 0, 80), 0.5), torch.rand(20)
    lora = Adapter("lora", Path("lora"), None, {}, None, None, {BIAS: part}, memory={"b": update})
    base, one = biased(base, 16), biased(one, 20, lora)
    new_base, vision = with_rows(base, one)
    trained = one.memory[BIAS] + 0.5 * update
    torch.testing.assert_close(values(vision, BIAS), trained[:17])
    torch.testing.assert_close(values(new_base, BIAS), torch.cat([base.memory[BIAS], trained[16:17]]))


def test_a_row_of_one_alone_is_as_it_was_trained_where_no_row_moves(tmp_path: Path) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>"), rows=17)
    part = Rows(TensorEntry("rows", "F32", (1, 4), None, 0, 0), (16,))
    changed = adapted(one, {EMBEDDING: part})
    assert changed.adapter is not None
    changed = replace(changed, adapter=replace(changed.adapter, memory={"rows": torch.randn(1, 4)}))
    tokens, _ = share_tokens(base, [("m0", one)])
    new_base, image = with_token_rows(_inputs(base, changed), tokens).models
    for model in (new_base, image):
        assert torch.equal(values(model, EMBEDDING)[16], changed.adapter.memory["rows"][0])


@pytest.mark.parametrize(
    "part",
    [
        Rows(TensorEntry("rows", "F32", (1, 4), None, 0, 0), (17,)),
        Rows(TensorEntry("rows", "F32", (1, 4), None, 0, 0), (19,)),
    ],
    ids=["a row that is another token's now", "a row that is left out"],
)
def test_a_trained_row_that_is_no_tokens_is_refused(tmp_path: Path, part: Any) -> None:
    base, one = base_model(tmp_path / "lm"), specialist(tmp_path / "v", special("<image>", "<pad>"))
    two = specialist(tmp_path / "a", special("<audio>"))
    tokens, _ = share_tokens(base, [("m0", one), ("m1", two)])
    with pytest.raises(RequestError, match=r"trained rows of model.embed_tokens.weight that no token of its"):
        with_token_rows(_inputs(base, one, adapted(two, {EMBEDDING: part})), tokens)
