"""Heads that one model ties and another does not, and the files that travel with a model."""

import json
from pathlib import Path

import pytest
import torch

import submerge
from _models import CONFIG, ROOM, contents, family, perturbed, read, state, write

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def recipe(base: Path, *tuned: Path, **more: object) -> dict[str, object]:
    models = [{"model": str(t), "parameters": {"weight": 1.0}} for t in tuned]
    return {"merge_method": "task_arithmetic", "base_model": str(base), "models": models, **more}


def test_a_tied_fine_tune_of_an_untied_base_gives_its_embedding_for_the_head(tmp_path: Path) -> None:
    base = state()
    tuned = perturbed(base, 1)
    del tuned[HEAD]
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", tuned, CONFIG | {"tie_word_embeddings": True})
    plan = submerge.plan(recipe(tmp_path / "base", tmp_path / "tuned"), ROOM)
    assert "tied to model.embed_tokens.weight" in next(t.why for t in plan.tensors if t.name == HEAD)
    out = read(submerge.merge(plan, tmp_path / "out").out)
    torch.testing.assert_close(out[HEAD], tuned[EMBEDDING])


def test_an_untied_fine_tune_of_a_tied_base_loses_its_head_and_is_told_so(tmp_path: Path) -> None:
    base = state()
    tuned = perturbed(base, 1)
    del base[HEAD]
    write(tmp_path / "base", base, CONFIG | {"tie_word_embeddings": True})
    write(tmp_path / "tuned", tuned)
    plan = submerge.plan(recipe(tmp_path / "base", tmp_path / "tuned"), ROOM)
    assert any(HEAD in w and "no place in the output" in w for w in plan.warnings)
    assert any("unties" in w for w in plan.warnings)
    assert set(read(submerge.merge(plan, tmp_path / "out").out)) == set(base)


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"),
        ("encoder.layer.0.shared.weight", "encoder.layer.1.shared.weight"),
    ],
)
def test_a_tied_config_does_not_make_other_tensors_stand_in(tmp_path: Path, missing: str, left: str) -> None:
    shape = (16,) if "Norm" in missing else (16, 16)
    base = state({missing: shape, left: shape, "bert.embeddings.word_embeddings.weight": (40, 16)})
    tuned = perturbed(base, 1)
    del tuned[missing]
    tied = CONFIG | {"tie_word_embeddings": True}
    write(tmp_path / "base", base, tied)
    write(tmp_path / "tuned", tuned, tied)
    with pytest.raises(submerge.RequestError, match=missing):
        submerge.plan(recipe(tmp_path / "base", tmp_path / "tuned"), ROOM)


def test_every_side_file_is_carried_and_nothing_else(tmp_path: Path) -> None:
    made = family(tmp_path, shards=2)
    carried = {
        "tokenizer.json": json.dumps({"model": {"vocab": {"a": 0}}}),
        "merges.txt": "a b\r\n",
        "chat_template.jinja": "{{ bos }}\n",
        "modeling_toy.py": "x = 1\n",
        "LICENSE": "free\n",
        "1_Pooling/config.json": "{}",
        "journal.jsonl": "not ours\n",
        "näme with spaces.txt": "odd\n",
    }
    left = {
        "README.md": "the old card",
        "submerge.json": "{}",
        "optimizer.pt": "x",
        "training_args.bin": "x",
        "pytorch_model.bin": "x",
        "model.gguf": "x",
        ".gitattributes": "x",
        "checkpoint-10/config.json": "{}",
        "onnx/model.onnx": "x",
    }
    for name, text in (carried | left).items():
        (made.base / name).parent.mkdir(exist_ok=True)
        (made.base / name).write_bytes(text.encode())
    out = submerge.merge(made.recipe("task_arithmetic"), tmp_path / "out", settings=ROOM).out
    found = contents(out)
    assert set(found) == set(carried) | {
        "config.json", "model.safetensors", "submerge.json", "README.md", "mergekit_config.yml"
    }  # fmt: skip
    for name, text in carried.items():
        assert found[name] == text.encode()
    assert found["README.md"] != b"the old card"


def test_the_tokenizer_comes_from_the_model_that_the_recipe_names(tmp_path: Path) -> None:
    made = family(tmp_path, tokens={"a": 0, "b": 1})
    for folder in (made.base, *made.tuned):
        (folder / "tokenizer_config.json").write_text(json.dumps({"name": folder.name}))
        (folder / "preprocessor_config.json").write_text(folder.name)
    (made.tuned[0] / "chat_template.jinja").write_text("new")
    (made.base / "special_tokens_map.json").write_text("{}")
    recipe = made.recipe("task_arithmetic", tokenizer_source=f"{made.tuned[0]}/")
    found = contents(submerge.merge(recipe, tmp_path / "out", settings=ROOM).out)
    assert found["tokenizer_config.json"] == b'{"name": "tuned0"}'
    assert found["chat_template.jinja"] == b"new"
    assert found["preprocessor_config.json"] == b"base"
    assert "special_tokens_map.json" not in found, "a file of the other tokenizer"


def test_weights_in_subfolders_are_copied_with_a_warning(tmp_path: Path) -> None:
    made = family(tmp_path)
    (made.base / "2_Dense").mkdir()
    write(made.base / "2_Dense", {"linear.weight": torch.ones(2, 2)})
    report = submerge.merge(made.recipe("task_arithmetic"), tmp_path / "out", settings=ROOM)
    assert any("2_Dense/model.safetensors" in w and "not merged" in w for w in report.warnings)
    theirs, ours = contents(made.base / "2_Dense"), contents(report.out / "2_Dense")
    assert theirs == ours


def test_a_base_that_is_a_bare_file_gives_bare_weights(tmp_path: Path) -> None:
    made = family(tmp_path)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(t / "model.safetensors"), "parameters": {"weight": 1}} for t in made.tuned],
    }
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    assert set(contents(out)) == {"model.safetensors", "submerge.json", "README.md", "mergekit_config.yml"}
    a, b = (read(t) for t in made.tuned)
    for name, found in read(out).items():
        torch.testing.assert_close(found, (a[name] + b[name]) / 2)
