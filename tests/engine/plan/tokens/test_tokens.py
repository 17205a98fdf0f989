"""Whose tokenizer the output has, whose vocabulary is compared, and ids that have no row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import submerge
from _cli import cli
from _models import CONFIG, ROOM, SMALL, contents, perturbed, state, write
from _tokenizers import fast_tokenizer, language_model, special

TOKENS = {f"w{i}": i for i in range(30)}
CHAT = TOKENS | {"<|im_start|>": 30, "<|im_end|>": 31}
MANY = CHAT | {"<|tool|>": 40}
"""40 rows are there: one token too many."""
EMBEDDING = "model.embed_tokens.weight"


def fast(folder: Path, tokens: Mapping[str, int], template: str = "") -> Path:
    """Put a fast tokenizer into a folder, and a chat template if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"model": {"type": "WordLevel", "vocab": dict(tokens)}}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def adapter(folder: Path, tokens: Mapping[str, int] | None = None, template: str = "") -> Path:
    """Write an adapter of the hand-made model, with a tokenizer of its own if tokens are given."""
    folder.mkdir(parents=True)
    module = "base_model.model.model.layers.0.attn.q"
    save_file(
        {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder if tokens is None else fast(folder, tokens, template)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = fast(write(tmp_path / "base", state()), TOKENS)
    (folder / "special_tokens_map.json").write_text("{}")
    return folder


def recipe(base: Path | str, *models: Path | str, **more: Any) -> dict[str, Any]:
    listed = [{"model": str(m), "parameters": {"weight": 1.0}} for m in models]
    return {"merge_method": "task_arithmetic", "base_model": str(base), "models": listed, **more}


def merged(tmp_path: Path, made: Mapping[str, Any]) -> tuple[submerge.MergeReport, dict[str, bytes]]:
    report = submerge.merge(dict(made), tmp_path / "out", settings=ROOM)
    return report, contents(report.out)


def problems(made: Mapping[str, Any]) -> list[str]:
    with pytest.raises(submerge.RequestError) as error:
        submerge.plan(dict(made), ROOM)
    return [str(problem) for problem in error.value.problems]


# --- whose tokenizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["alone", "on the base", "its part"])
def test_an_adapter_gives_its_tokenizer(tmp_path: Path, base: Path, spelling: str) -> None:
    ours = adapter(tmp_path / "ours", CHAT, "chat")
    (ours / "additional_chat_templates").mkdir()
    (ours / "additional_chat_templates" / "tools.jinja").write_text("tools")
    model = str(ours) if spelling == "alone" else f"{base}+{ours}"
    source = str(ours) if spelling == "its part" else model
    report, found = merged(tmp_path, recipe(base, model, tokenizer_source=source))
    for name in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja"):
        assert found[name] == (ours / name).read_bytes()
    assert "special_tokens_map.json" not in found, "a file of the other tokenizer"
    assert "adapter_config.json" not in found
    assert not report.warnings
    assert submerge.verify(report.out, load=False).sound


def test_a_model_that_stands_before_a_plus_gives_its_own_tokenizer(tmp_path: Path, base: Path) -> None:
    chat = fast(write(tmp_path / "chat", perturbed(state(), 1)), CHAT, "chat")
    ours = adapter(tmp_path / "ours", TOKENS, "ours")
    _, found = merged(tmp_path, recipe(base, f"{chat}+{ours}", tokenizer_source=f"{chat}/"))
    assert found["chat_template.jinja"] == b"chat"


def test_the_base_keeps_its_tokenizer_beside_an_adapter_with_another_template(
    tmp_path: Path, base: Path
) -> None:
    _, found = merged(tmp_path, recipe(base, adapter(tmp_path / "ours", TOKENS, "chat")))
    assert found["tokenizer.json"] == (base / "tokenizer.json").read_bytes()
    assert "chat_template.jinja" not in found


@pytest.mark.parametrize("held", [{}, {"chat_template.jinja": "chat"}, {"tokenizer_config.json": "{}"}])
def test_an_adapter_without_a_tokenizer_has_that_of_its_model(
    tmp_path: Path, base: Path, held: Mapping[str, str]
) -> None:
    ours = adapter(tmp_path / "ours")
    for name, text in held.items():
        (ours / name).write_text(text)
    report, found = merged(tmp_path, recipe(base, ours, tokenizer_source=str(ours)))
    assert report.warnings == (f"{ours}: the adapter brings no tokenizer; that of its model is taken",)
    assert found["tokenizer.json"] == (base / "tokenizer.json").read_bytes()
    assert "chat_template.jinja" not in found


def test_a_model_without_a_tokenizer_cannot_give_one(tmp_path: Path, base: Path) -> None:
    bare = write(tmp_path / "bare", perturbed(state(), 1))
    assert problems(recipe(base, bare, tokenizer_source=str(bare))) == [
        f"{bare}: there is no tokenizer here to take — name 'base', or a model that has one"
    ]
    report, found = merged(tmp_path, recipe(bare, base, tokenizer_source="base"))
    assert "tokenizer.json" not in found
    assert report.warnings == (f"{bare}: there is no tokenizer here, so that the output has none",)


def test_an_adapter_carries_no_tokenizer(tmp_path: Path, base: Path) -> None:
    ours = adapter(tmp_path / "ours", CHAT)
    made = recipe(base, ours, tokenizer_source=str(ours), output={"as": "adapter"})
    report, found = merged(tmp_path, made)
    assert "tokenizer_source: an adapter carries no tokenizer" in report.warnings
    assert "tokenizer.json" not in found


def test_a_private_file_behind_an_adapters_link_is_not_carried(tmp_path: Path, base: Path) -> None:
    ours = adapter(tmp_path / "ours")
    (tmp_path / "private").write_text("secret")
    (ours / "tokenizer.json").symlink_to(tmp_path / "private")
    [told] = problems(recipe(base, ours, tokenizer_source=str(ours)))
    assert "outside the model's folder" in told


# --- vocabularies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["alone", "on the base"])
def test_the_vocabulary_of_an_adapter_is_compared(tmp_path: Path, base: Path, spelling: str) -> None:
    ours = adapter(tmp_path / "ours", CHAT)
    model = str(ours) if spelling == "alone" else f"{base}+{ours}"
    [told] = problems(recipe(base, model))
    assert (
        f"{model}: the vocabularies differ: 2 tokens missing in {base} ('<|im_start|>', '<|im_end|>')" in told
    )
    hint = f"tokenizer_source: {model}"
    assert hint in told
    _, found = merged(tmp_path, recipe(base, model, tokenizer_source=hint.partition(": ")[2]))
    assert found["tokenizer.json"] == (ours / "tokenizer.json").read_bytes()


def test_an_adapter_has_the_vocabulary_of_its_model(tmp_path: Path, base: Path) -> None:
    chat = fast(write(tmp_path / "chat", perturbed(state(), 1)), CHAT)
    [told] = problems(recipe(base, f"{chat}+{adapter(tmp_path / 'ours')}"))
    assert "'<|im_start|>'" in told


def test_models_that_extend_the_base_in_two_ways_are_refused(tmp_path: Path, base: Path) -> None:
    ours = adapter(tmp_path / "ours", CHAT)
    theirs = adapter(tmp_path / "theirs", TOKENS | {"[INST]": 30})
    told = problems(recipe(base, ours, theirs))
    assert "'[INST]'" in told[-1]
    assert "by-position" in told[-1], "no tokenizer has all tokens"
    assert "tokenizer_source: union" in told[-1]
    _, found = merged(
        tmp_path,
        recipe(base, ours, theirs, tokenizer_source=str(ours), rules={"vocabulary": "by-position"}),
    )
    assert found["tokenizer.json"] == (ours / "tokenizer.json").read_bytes()


def test_a_token_with_another_id_is_refused_unless_rows_go_by_tokens(tmp_path: Path, base: Path) -> None:
    ours = adapter(tmp_path / "ours", CHAT | {"w0": 1, "w1": 0})
    [told] = problems(recipe(base, ours))
    assert told.startswith(f"{ours}: the vocabularies differ: ")
    assert "2 tokens with other ids" in told
    assert "tokenizer_source: union" in told


# --- ids without rows -----------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def pieces(count: int) -> bytes:
    """Return a sentencepiece model of so many pieces: (1: text, 2: score), and a trainer's settings."""
    body = b""
    for number in range(count):
        text = f"piece{number}".encode()
        piece = b"\x0a" + _varint(len(text)) + text + b"\x15\x00\x00\x80\x3f"
        body += b"\x0a" + _varint(len(piece)) + piece
    return body + b"\x12\x02\x18\x01"


def _json(name: str, content: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(content))


def _decoder(folder: Path) -> None:
    fast(folder, TOKENS)
    decoder = {"40": {"content": "<|tool|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))


def _older(folder: Path) -> None:
    fast(folder, TOKENS)
    (folder / "added_tokens.json").write_text(json.dumps({"<|tool|>": 40}))


def _lines(folder: Path) -> None:
    (folder / "vocab.txt").write_text("".join(f"w{i}\n" for i in range(41)))


def _pieces(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(pieces(41))


def _added_pieces(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(pieces(30))
    (folder / "added_tokens.json").write_text(json.dumps({"<|tool|>": 40}))


TOO_MANY: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer.json": (lambda folder: fast(folder, MANY), "'<|tool|>' (40)"),
    "tokenizer_config.json": (_decoder, "'<|tool|>' (40)"),
    "added_tokens.json": (_older, "'<|tool|>' (40)"),
    "vocab.json": (_json("vocab.json", MANY), "'<|tool|>' (40)"),
    "vocab.txt": (_lines, "'w40' (40)"),
    "sentencepiece": (_pieces, "'pieces 40 to 40 of tokenizer.model' (40)"),
    "added to sentencepiece": (_added_pieces, "'<|tool|>' (40)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOO_MANY)
def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path, base: Path, kind: str) -> None:
    put, shown = TOO_MANY[kind]
    tuned = write(tmp_path / "tuned", perturbed(state({EMBEDDING: (41, 16)}), 1) | perturbed(_rest(), 1))
    put(tuned)
    rules = {"vocabulary": "by-position", "shape": "base"}
    [told] = problems(recipe(base, tuned, tokenizer_source=str(tuned), rules=rules))
    assert told.startswith(f"{tuned}: 1 token has an id beyond the 40 rows of the embedding: {shown} — ")
    assert "tokenizer_source: base leaves them out" in told
    merged(tmp_path, recipe(base, tuned, tokenizer_source="base", rules=rules))


def _rest() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state().items() if name != EMBEDDING}


def test_an_adapters_tokens_need_rows_too(tmp_path: Path, base: Path) -> None:
    ours = adapter(tmp_path / "ours", MANY)
    [told] = problems(recipe(base, ours, tokenizer_source=str(ours)))
    assert "'<|tool|>' (40)" in told
    assert "tokenizer_source: base with rules: {vocabulary: by-position} leaves them out" in told
    merged(tmp_path, recipe(base, ours, tokenizer_source="base", rules={"vocabulary": "by-position"}))
    [told] = problems(recipe(base, ours))
    assert "give the base's embedding 41 rows" in told
    assert "by-position" in told
    told = "\n".join(problems(recipe(f"{base}+{ours}", base)))
    assert f"tokenizer_source: {base} with rules" in told, "that of the model under it"


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.embed_tokens.weight",
        "bert.embeddings.word_embeddings.weight",
        "transformer.wte.weight",
        "shared.weight",
        "gpt_neox.embed_in.weight",
        "backbone.embeddings.weight",
        "text_model.embeddings.token_embedding.weight",
        "tok_embeddings.weight",
    ],
)
def test_rows_are_found_under_any_name(tmp_path: Path, name: str) -> None:
    shapes = {name: (40, 16), "vision.patch.weight": (64, 16), "vision.position_embedding.weight": (64, 16)}
    config = {"vocab_size": 999, "model_type": "toy"}  # the rows of the file count
    base = fast(write(tmp_path / "base", state(shapes), config), TOKENS)
    tuned = fast(write(tmp_path / "tuned", perturbed(state(shapes), 1), config), MANY)
    [told] = problems(recipe(base, tuned, tokenizer_source=str(tuned)))
    assert "beyond the 40 rows" in told


def test_a_model_without_an_embedding_has_no_rows_to_miss(tmp_path: Path) -> None:
    shapes = {"encoder.layers.0.attention.q_proj.weight": (8, 8), "lm_head.weight": (32, 8)}
    base = fast(write(tmp_path / "base", state(shapes), {"vocab_size": 32}), MANY)
    tuned = fast(write(tmp_path / "tuned", perturbed(state(shapes), 1), {"vocab_size": 32}), MANY)
    report, _ = merged(tmp_path, recipe(base, tuned))
    assert not report.warnings


def test_what_was_published_so_is_told_and_merged(tmp_path: Path) -> None:
    base = fast(write(tmp_path / "base", state()), MANY)
    tuned = fast(write(tmp_path / "tuned", perturbed(state(), 1)), MANY)
    told = "1 token has an id beyond the 40 rows of the embedding: '<|tool|>' (40)"
    for source in ({}, {"tokenizer_source": str(tuned)}):
        report, _ = merged(tmp_path, recipe(base, tuned, **source))
        label = tuned if source else base
        assert report.warnings == (f"{label}: {told}, as it was published",)
        checked = submerge.verify(report.out, load=False)
        assert checked.sound
        assert f"{told}, as in the base" in checked.skipped
        for path in report.out.iterdir():
            path.unlink()
        report.out.rmdir()


@pytest.mark.parametrize("kind", TOO_MANY)
def test_verify_finds_ids_beyond_the_rows(tmp_path: Path, base: Path, kind: str) -> None:
    tuned = fast(write(tmp_path / "tuned", perturbed(state(), 1)), TOKENS)
    report, _ = merged(tmp_path, recipe(base, tuned))
    assert submerge.verify(report.out, load=False).sound
    (report.out / "tokenizer.json").unlink()
    put, shown = TOO_MANY[kind]
    put(report.out)
    result = cli("verify", report.out, "--no-load")
    assert result.code == 1
    assert f"wrong    1 token has an id beyond the 40 rows of the embedding: {shown}" in result.out


def test_verify_of_a_broken_tokenizer(tmp_path: Path, base: Path) -> None:
    tuned = fast(write(tmp_path / "tuned", perturbed(state(), 1)), TOKENS)
    report, _ = merged(tmp_path, recipe(base, tuned))
    (report.out / "tokenizer.json").write_text("{")
    assert any(
        "tokenizer.json: is not valid JSON" in p for p in submerge.verify(report.out, load=False).problems
    )


def test_tokens_that_differ_are_a_warning_where_recipes_are_read_as_by_mergekit(
    base: Path, tmp_path: Path
) -> None:
    """It compares tokens only where a tokenizer is named."""
    chat = fast(write(tmp_path / "chat", perturbed(state(), 1)), CHAT)
    made = recipe(base, chat)
    with pytest.raises(submerge.RequestError, match="the vocabularies differ"):
        submerge.plan(made, ROOM)
    plan = submerge.plan(submerge.load_recipe(made, mergekit=True), ROOM)
    told = f"{chat}: the vocabularies differ, and rows are merged by position: 2 tokens missing in {base}"
    assert [w for w in plan.warnings if w.startswith(told)], plan.warnings

    named = submerge.load_recipe(made | {"tokenizer_source": "base"}, mergekit=True)
    assert named.rules.vocabulary == "refuse"
    strict = submerge.load_recipe(made | {"rules": {"vocabulary": "refuse"}}, mergekit=True)
    with pytest.raises(submerge.RequestError, match="the vocabularies differ"):
        submerge.plan(strict, ROOM)


def test_models_that_give_layers_alone_may_have_other_tokens(base: Path, tmp_path: Path) -> None:
    chat = fast(write(tmp_path / "chat", perturbed(state(), 1)), CHAT)

    def stacked(*models: Path) -> dict[str, Any]:
        sources = [{"model": str(model), "layer_range": [i, i + 1]} for i, model in enumerate(models)]
        return {"merge_method": "passthrough", "slices": [{"sources": [source]} for source in sources]}

    layers = {name: shape for name, shape in SMALL.items() if ".0." not in name and ".1." not in name}
    of_layer = {name: shape for name, shape in SMALL.items() if ".0." in name}
    deep = layers | {n.replace(".0.", f".{i}."): shape for i in range(3) for n, shape in of_layer.items()}
    config = CONFIG | {"num_hidden_layers": 3}
    for folder, seed in ((base, 0), (chat, 1)):
        write(folder, perturbed(state(deep), seed), config)
    plan = submerge.plan(stacked(base, chat, base), ROOM)
    assert not [warning for warning in plan.warnings if "vocabular" in warning]
    with pytest.raises(submerge.RequestError, match="the vocabularies differ"):
        submerge.plan(stacked(base, base, chat), ROOM)


def test_padded_tables_of_one_vocabulary(tmp_path: Path) -> None:
    """Tables of another length are merged by token where both have a tokenizer, as the error says."""
    for seed, (name, rows) in enumerate({"base": 16, "padded": 24}.items()):
        language_model(tmp_path / name, rows, seed)
    recipe = {
        "merge_method": "linear",
        "models": [str(tmp_path / "base"), str(tmp_path / "padded")],
        "parameters": {"weight": 1},
    }
    by_token = "tokenizer_source: union (or a model) merges rows by token"
    with pytest.raises(submerge.RequestError) as caught:
        submerge.plan(recipe)
    assert by_token not in str(caught.value)
    for name in ("base", "padded"):
        fast_tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(submerge.RequestError) as caught:
        submerge.plan(recipe)
    assert by_token in str(caught.value)
    rows = len(fast_tokenizer())
    plan = submerge.plan(recipe | {"tokenizer_source": "union"})
    assert max(tensor.shape[0] for tensor in plan.tensors) == rows


@pytest.mark.parametrize("rows", [24, 26])
@pytest.mark.parametrize("generation", [True, False])
def test_texts_end_where_the_tokenizer_says(generation: bool, rows: int, tmp_path: Path) -> None:
    """A chat model's tokenizer on a base: `generate` stops at the end of a turn, too, in its new id."""
    tokens = {"base": special("<|im_end|>"), "chat": special("<|im_start|>", "<|im_end|>")}
    if rows == 24:
        tokens["base"] = tokens["chat"]
    for seed, (name, added) in enumerate(tokens.items()):
        language_model(tmp_path / name, 24 if name == "base" else rows, seed)
        tokenizer = fast_tokenizer(added)
        if name == "chat":
            tokenizer.eos_token = "<|im_end|>"
        tokenizer.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
        if generation:
            (tmp_path / name / "generation_config.json").write_text('{"eos_token_id": 2}')
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "base"), str(tmp_path / "chat")],
        "parameters": {"weight": 1},
        "tokenizer_source": str(tmp_path / "chat"),
    }
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    where = "generation_config.json" if generation else "config.json"
    end = fast_tokenizer(tokens["chat"]).convert_tokens_to_ids("<|im_end|>")
    assert json.loads((out / where).read_text())["eos_token_id"] == [2, end]
    plans = [submerge.plan(recipe), submerge.plan(recipe | {"tokenizer_source": "base"})]
    (named, plain) = (plan.tokens for plan in plans if plan.tokens)
    assert f"text ends at <|im_end|> {end}, too" in named.lines
    assert not plain.ends


def test_turns_end_as_the_chosen_template_says(tmp_path: Path) -> None:
    """With another model's template, or the tokenizer of an adapter on the base."""
    for seed, name in enumerate(("base", "chat")):
        language_model(tmp_path / name, 24, seed)
        tokenizer = fast_tokenizer(special("<|im_end|>"))
        if name == "chat":
            tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", "{{ 'chat' }}"
        tokenizer.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    end = fast_tokenizer(special("<|im_end|>")).convert_tokens_to_ids("<|im_end|>")
    models = [str(tmp_path / "base"), str(tmp_path / "chat")]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    for template, ends in (("auto", (end,)), ("{{ 'mine' }}", ())):
        tokens = submerge.plan(recipe | {"chat_template": template}).tokens
        assert tokens is not None
        assert tokens.ends == ends


@pytest.mark.parametrize(
    ("file", "text"),
    [("tokenizer.json", "{"), ("tokenizer_config.json", "[]"), ("added_tokens.json", '["x"]')],
)
def test_what_is_said_of_a_broken_tokenizer_helps(tmp_path: Path, base: Path, file: str, text: str) -> None:
    tuned = fast(write(tmp_path / "tuned", perturbed(state(), 1)), TOKENS)
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (base / name).write_text("{}")
    (tuned / file).write_text(text)
    [told] = problems(recipe(base, tuned))
    assert told.startswith(f"{tuned / file}: ")
    assert "copy the tokenizer's files of a model with the same tokens in the place of these" in told
    for path in base.glob("*token*.json"):
        (tuned / path.name).write_bytes(path.read_bytes())
    assert not submerge.plan(recipe(base, tuned), ROOM).warnings


def test_tokens_that_a_template_lacks_can_be_added_as_is_said(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "tuned")):
        fast_tokenizer().save_pretrained(language_model(tmp_path / name, seed=seed))
    made = recipe(tmp_path / "base", tmp_path / "tuned", chat_template="chatml")
    lacks = "chat_template: the tokenizer lacks '<|im_start|>', '<|im_end|>': "
    assert f"{lacks}add them under 'tokens' in the section 'tokenizer'" in submerge.plan(made, ROOM).warnings
    section = {"source": "base", "tokens": {"<|im_start|>": None, "<|im_end|>": None}}
    assert not [w for w in submerge.plan({**made, "tokenizer": section}, ROOM).warnings if "lacks" in w]
    donor = {"source": str(tmp_path / "tuned"), "new_tokens": "mean"}
    told = submerge.plan({**made, "tokenizer": donor}, ROOM).warnings
    assert f"{lacks}choose another template, or a donor that has them" in told


def test_a_donor_without_weights_has_methods_that_need_none(tmp_path: Path) -> None:
    fast_tokenizer().save_pretrained(language_model(tmp_path / "model"))
    fast_tokenizer(special("<x>")).save_pretrained(tmp_path / "donor")
    folders = (tmp_path / "model", tmp_path / "donor", tmp_path / "out")
    with pytest.raises(
        submerge.RequestError, match="or choose the method subword or mean, for which its token"
    ):
        submerge.transplant(*folders)
    assert submerge.transplant(*folders, method="subword").tokens["shared"] == 16
    with pytest.raises(submerge.RequestError) as error:
        submerge.transplant(tmp_path / "model", tmp_path / "none", tmp_path / "out")
    assert "subword" not in str(error.value)


def test_a_tokenizer_whose_class_is_not_named_says_so(tmp_path: Path) -> None:
    fast_tokenizer().save_pretrained(language_model(tmp_path / "model"))
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w1", "w2"]))
    with pytest.raises(submerge.RequestError, match=r"add its tokenizer_config.json, which names its class"):
        submerge.transplant(tmp_path / "model", donor, tmp_path / "out", method="mean")
    (donor / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(submerge.RequestError, match=r"no token of .* is one of its own"):
        submerge.transplant(tmp_path / "model", donor, tmp_path / "out", method="mean")


def test_a_model_that_lacks_rows_for_its_own_tokens_is_to_get_them(tmp_path: Path) -> None:
    fast_tokenizer().save_pretrained(language_model(tmp_path / "base"))
    fast_tokenizer(special("<x>", "<y>")).save_pretrained(language_model(tmp_path / "tuned", seed=1))
    tuned = tmp_path / "tuned"
    made = recipe(tmp_path / "base", tuned)
    [told] = problems(made)
    assert f"give {tuned}'s embedding 18 rows (transformers: resize_token_embeddings), and " in told
    [named] = problems(made | {"tokenizer_source": str(tuned)})
    assert "beyond the 16 rows" in named
    assert named.endswith(f"or give {tuned} these rows first (transformers: resize_token_embeddings)")
    language_model(tuned, 18, seed=1)
    assert not submerge.plan(made | {"tokenizer_source": str(tuned)}, ROOM).warnings
