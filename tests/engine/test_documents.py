"""Several documents of one file: planned together, merged in turn, resumed, and nothing left behind."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from _cli import ROOM as FLAGS
from _cli import cli
from _kills import file_calls, killed_at
from _models import CONFIG, ROOM, SMALL, contents, perturbed, read, state, write
from submerge.engine import MergePlan, merge, merge_documents, plan_documents
from submerge.errors import RequestError
from submerge.recipe import load_documents

TOKENS = {f"t{i}": i for i in range(40)}
FIVE = """\
merge_method: slerp
base_model: both
models: [both, further]
parameters: {t: 0.5}
---
name: both
merge_method: linear
models: [a, b]
parameters: {weight: 1}
dtype: bfloat16
---
name: further
merge_method: ties
base_model: base
models: [both, {model: c, parameters: {weight: 0.2}}]
parameters: {weight: 1, density: 0.5}
tokenizer_source: both
---
name: alone
merge_method: karcher
models: [further, b]
---
name: last
merge_method: task_arithmetic
base_model: alone
models: [c]
parameters: {weight: 0.3}
"""
NAMED = FIVE.split("---\n", 1)[1]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `base`, `a`, `b` and `c`."""
    base = state()
    write(tmp_path / "base", base, tokens=TOKENS)
    for number, name in enumerate("abc"):
        write(tmp_path / name, perturbed(base, number), tokens=TOKENS, shards=1 + number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


def by_hand(root: Path) -> Path:
    """Merge document by document, with the folders of results in the place of their names."""
    result, both, further, *_ = FIVE.split("---\n")
    hand = root / "hand"
    for name, text in (("both", both), ("further", further), ("result", result)):
        for part in ("both", "further"):
            text = text.replace(f"name: {part}\n", "").replace(part, str(hand / part))
        merge(text, hand / name, settings=ROOM)
    return hand / "result"


def test_it_is_what_one_merge_after_another_gives(root: Path) -> None:
    reports = merge_documents(load_documents(FIVE), "out", settings=ROOM)
    assert list(reports) == ["both", "further", ""], "what nothing needs is not merged"
    assert weights(root / "out") == weights(by_hand(root))
    assert sorted(path.name for path in root.glob("out*")) == ["out"]
    manifest = json.loads((root / "out" / "submerge.json").read_text())
    assert manifest["recipe"]["base_model"] == "both"
    assert cli("verify", root / "out", "--no-load").code == 0


def test_the_plans_are_those_of_the_merges(root: Path) -> None:
    documents = load_documents(FIVE)
    plans = plan_documents(documents, ROOM)
    assert set(plans) == {"both", "further", "alone", "last", ""}
    merged: dict[str, MergePlan] = {}

    def started(name: str, plan: MergePlan | None) -> None:
        assert plan is not None
        merged[name] = plan

    merge_documents(documents, "out", settings=ROOM, keep_parts=True, started=started)
    assert set(merged) == set(plans)
    for name, plan in merged.items():
        before = plans[name]
        assert [(t.name, t.dtype, t.shape, t.action) for t in plan.tensors] == [
            (t.name, t.dtype, t.shape, t.action) for t in before.tensors
        ]
        assert [shard.header for shard in plan.shards] == [shard.header for shard in before.shards]
        assert len(plan.vocabulary) == len(before.vocabulary)
        assert plan.warnings == before.warnings
        assert [model.label for model in plan.models] == [model.label for model in before.models]
        assert sorted(file for _, file in plan.carried) == sorted(file for _, file in before.carried)
    assert sorted(path.name for path in (root / "out.parts").iterdir()) == [
        "alone", "both", "further", "last", "parts.json",
    ]  # fmt: skip


def test_all_results_are_wanted_where_all_have_names(root: Path) -> None:
    merge_documents(load_documents(NAMED), "all", settings=ROOM)
    assert sorted(path.name for path in (root / "all").iterdir()) == [
        "alone", "both", "further", "last", "parts.json",
    ]  # fmt: skip
    assert read(root / "all" / "both")["model.norm.weight"].dtype == torch.bfloat16
    with pytest.raises(RequestError, match="not empty"):
        merge_documents(load_documents(NAMED), "all", settings=ROOM)
    again = merge_documents(load_documents(NAMED), "all", settings=ROOM, resume=True)
    assert again == {}, "all are there"
    assert set(merge_documents(load_documents(NAMED), "all", settings=ROOM, overwrite=True)) == {
        "both", "further", "alone", "last"
    }  # fmt: skip


def test_problems_come_before_any_work(root: Path) -> None:
    wrong = FIVE.replace("models: [c]", "models: [nowhere]").replace("models: [a, b]", "models: [a, none]")
    with pytest.raises(RequestError) as caught:
        merge_documents(load_documents(wrong), "out", settings=ROOM)
    assert [problem.where for problem in caught.value.problems] == ["none"], "others need this one"
    write(root / "odd", perturbed(state({"other.weight": (3, 3)}), 9), tokens=TOKENS)
    with pytest.raises(RequestError) as caught:
        merge_documents(load_documents(FIVE.replace("models: [both, further]", "models: [both, odd]")), "out")
    assert "odd" in str(caught.value)
    (root / "taken").mkdir()
    (root / "taken" / "letter").write_text("dear")
    for out in ("taken", "a"):
        with pytest.raises(RequestError):
            merge_documents(load_documents(FIVE), out, settings=ROOM)
    assert not list(root.glob("*.parts")) + list(root.glob("out*"))


def test_a_folder_that_is_not_ours_is_left_alone(root: Path) -> None:
    (root / "out.parts").mkdir()
    (root / "out.parts" / "letter").write_text("dear")
    with pytest.raises(RequestError, match="the folder for the results of several documents is not empty"):
        merge_documents(load_documents(FIVE), "out", settings=ROOM)
    assert (root / "out.parts" / "letter").read_text() == "dear"


LATER = """\
merge_method: task_arithmetic
base_model: base
models: [base+summed, a]
parameters: {weight: 0.5}
---
name: summed
merge_method: cat
base_model: base
models: [a, b]
parameters: {weight: 0.5}
output: {as: adapter, rank: 4}
"""


def test_what_needs_an_adapter_is_planned_when_that_is_merged(root: Path) -> None:
    (root / "later.yaml").write_text(LATER)
    documents = load_documents(LATER)
    assert list(plan_documents(documents, ROOM)) == ["summed"]
    told = cli("plan", "later.yaml", *FLAGS)
    assert told.code == 0
    assert "document of the result, from summed: planned when these are merged" in told.out
    assert cli("plan", "later.yaml", "--json", *FLAGS).json["later"] == [""]

    merge_documents(documents, "out", settings=ROOM, keep_parts=True)
    by_hand = LATER.split("---")[0].replace("summed", "out.parts/summed")
    merge(by_hand, "hand", settings=ROOM)
    assert weights(root / "out") == weights(root / "hand")
    assert (root / "out.parts" / "summed" / "adapter_model.safetensors").is_file()


def test_a_vocabulary_of_several_can_be_merged_again(root: Path) -> None:
    more = dict(TOKENS) | {"extra": 40}
    shapes = {name: (41 if 40 in shape else shape[0], *shape[1:]) for name, shape in SMALL.items()}
    write(root / "wide", state(shapes, 5), dict(CONFIG) | {"vocab_size": 41}, tokens=more)
    text = """\
name: united
merge_method: linear
models: [wide, a]
parameters: {weight: 1}
tokenizer_source: union
---
merge_method: linear
models: [united, wide]
parameters: {weight: 1}
"""
    documents = load_documents(text)
    assert list(plan_documents(documents, ROOM)) == ["united"]
    merge_documents(documents, "out", settings=ROOM)
    assert read(root / "out")["lm_head.weight"].shape[0] >= 41


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(root: Path) -> None:
    recipe = root / "five.yaml"
    recipe.write_text(FIVE)
    argv = ["merge", recipe, root / "out", "--quiet", "--threads", 1, *FLAGS]
    calls = file_calls(argv, root / "log")
    expected = contents(root / "out")
    for call in range(5, calls, max(1, calls // 6)):
        (root / "out").rename(root / f"kept{call}")
        shutil.rmtree(root / "out.parts", ignore_errors=True)
        killed_at(call, argv, root / "log")
        if (root / "out").exists():
            assert weights(root / "out") == weights(root / "kept5")
            continue
        finished = {
            path: path.stat().st_mtime_ns for path in (root / "out.parts").glob("*/model.safetensors")
        }
        noted = (
            json.loads(record.read_text()) if (record := root / "out.parts" / "parts.json").exists() else {}
        )
        assert cli(*argv, "--resume", "--keep-parts").code == 0
        for path, time in finished.items():
            if path.parent.name in noted:
                assert path.stat().st_mtime_ns == time, f"{path} was merged again"
        assert contents(root / "out") == expected
        assert cli(*argv, "--overwrite").code == 0, "what --keep-parts left is ours to replace"
        assert not (root / "out.parts").exists()


def test_a_part_of_other_inputs_is_merged_again(root: Path) -> None:
    documents = load_documents(FIVE)
    merge_documents(documents, "out", settings=ROOM, keep_parts=True)
    write(root / "b", perturbed(state(), 7), tokens=TOKENS, shards=2)
    reports = merge_documents(documents, "second", settings=ROOM)
    (root / "out").rename(root / "first")
    again = merge_documents(documents, "out", settings=ROOM, resume=True)
    assert list(again) == list(reports) == ["both", "further", ""]
    assert weights(root / "out") == weights(root / "second") != weights(root / "first")


def test_a_damaged_record_counts_for_nothing(root: Path) -> None:
    documents = load_documents(FIVE)
    merge_documents(documents, "out", settings=ROOM, keep_parts=True)
    (root / "out").rename(root / "first")
    (root / "out.parts" / "parts.json").write_text('["both"')
    again = merge_documents(documents, "out", settings=ROOM, resume=True)
    assert list(again) == ["both", "further", ""]
    assert weights(root / "out") == weights(root / "first")


def test_the_command_says_what_it_merges(root: Path) -> None:
    recipe = root / "five.yaml"
    recipe.write_text(FIVE + "what: ever\n")
    refused = cli("merge", recipe, root / "out", *FLAGS)
    assert refused.code == 2
    assert "error: five.yaml:28: unknown key 'what'" in refused.err
    assert "mergekit ignores these — with --mergekit" in refused.err.splitlines()[-1]

    merged = cli("merge", recipe, root / "out", "--mergekit", *FLAGS)
    assert merged.code == 0, merged.err
    lines = merged.err.splitlines()
    assert lines[:2] == [
        "warning: no document merges the result of 'alone'",
        "warning: no document merges the result of 'last'",
    ]
    assert [line for line in lines if line.startswith("document ")] == [
        "document both: merging",
        "document further: merging",
        "document of the result: merging",
    ]
    assert merged.out.splitlines()[0] == str(root / "out")

    told = cli("plan", recipe, "--mergekit")
    assert told.code == 0
    assert [line for line in told.out.splitlines() if line.startswith("document ")] == [
        "document both",
        "document further, from both",
        "document alone, from further",
        "document last, from alone",
        "document of the result, from both, further",
    ]
    assert "warning  five.yaml:28: unknown key 'what'; it is ignored, as by mergekit" in told.out
    planned = cli("plan", recipe, "--mergekit", "--json").json
    assert [plan["uses"] for plan in planned["documents"] if plan["name"] == "further"] == [["both"]]
    explained = cli("explain", recipe, "--mergekit", "-t", "norm", "--json").json
    assert set(explained) == {"", "both", "further", "alone", "last"}
    told = cli("merge", recipe, root / "json", "--mergekit", "--json", "-q", *FLAGS).json
    assert list(told["documents"]) == ["both", "further", ""]


@pytest.mark.slow
def test_the_result_is_that_of_mergekit_multi(root: Path) -> None:
    multi = pytest.importorskip("mergekit.scripts.multimerge")
    from click.testing import CliRunner

    llama = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "vocab_size": 40,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "tie_word_embeddings": False, "max_position_embeddings": 8, "dtype": "float32",
    }  # fmt: skip
    layer = {f"self_attn.{name}_proj": (16, 16) for name in "qkvo"} | {
        "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
        "input_layernorm": (16,), "post_attention_layernorm": (16,),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (40, 16)}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (16,), "lm_head.weight": (40, 16)}
    base = state(shapes)
    for number, name in enumerate(("base", "a", "b", "c")):
        shutil.rmtree(root / name)
        write(root / name, perturbed(base, number), llama)
    text = FIVE.replace("tokenizer_source: both\n", "").replace("dtype: bfloat16\n", "dtype: float32\n")
    for words in ("[both, further]", "[a, b]", "[further, b]", "[c]"):
        listed = ", ".join(f"{{model: {word}}}" for word in words.strip("[]").split(", "))
        text = text.replace(f"models: {words}", f"models: [{listed}]")
    text = text.replace("[both, {", "[{model: both}, {")
    (root / "multi.yaml").write_text(text)
    flags = ["--out-path", "theirs", "-I", "parts", "--no-copy-tokenizer", "--no-write-model-card"]
    loaders = importlib.import_module("mergekit.io.tasks").LoaderCache.loaders
    loaders.clear()  # it knows models by their names, and other tests have others of these
    ran = CliRunner().invoke(multi.main, ["multi.yaml", *flags], catch_exceptions=False)
    loaders.clear()
    assert ran.exit_code == 0, ran.output
    merge_documents(load_documents(text), "ours", settings=ROOM, keep_parts=True)
    for ours, theirs in (
        ("ours", "theirs"),
        *((f"ours.parts/{n}", f"parts/{n}") for n in ("further", "last")),
    ):
        expected = read(root / theirs)
        for name, found in read(root / ours).items():
            torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=2e-6)


def test_a_misspelt_document_is_answered_with_those_that_there_are(root: Path) -> None:
    """Neither a file nor a repository may be meant."""
    text = FIVE.replace("models: [both, further]", "models: [both, furhter]").replace(
        "tokenizer_source: both", "tokenizer_source: boht"
    )
    with pytest.raises(RequestError) as caught:
        plan_documents(load_documents(text), ROOM)
    names = ["both", "further", "alone", "last"]
    for spec, meant, others in (("furhter", "further", names), ("boht", "both", ["both", "alone", "last"])):
        (told,) = [str(problem) for problem in caught.value.problems if spec in str(problem)]
        called = ", ".join(f"'{name}'" for name in others)
        assert f" — did you mean '{meant}'? documents are called {called}; check the path" in told
    with pytest.raises(RequestError, match="no document is called 'lost' — did you mean 'last'"):
        load_documents(FIVE).one("lost")
