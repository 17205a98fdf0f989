"""Results that need no folder: merged as others read them, with the bytes that a folder would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from _cli import ROOM as FLAGS
from _cli import cli
from _kills import file_calls, killed_at
from _models import ROOM, contents, perturbed, read, state, write
from _vocabularies import CHATML, bpe_tokenizer, language_model, perturbed_model
from submerge.engine import MergePlan, Settings, _virtual, extract_lora, merge_documents, plan_documents
from submerge.engine.plan import _virtual as _planned_virtual
from submerge.engine.work import _forked
from submerge.errors import WorkError
from submerge.recipe import load_documents

RESULT = """\
merge_method: {method}
base_model: base
models: [both, c]
parameters: {{{parameters}}}
---
"""
LINEAR = """\
name: both
merge_method: linear
models: [a, b]
parameters: {weight: 1}
dtype: bfloat16
"""
INNER = {
    "linear": LINEAR,
    "task_arithmetic": """\
name: both
merge_method: task_arithmetic
base_model: base
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: [0.1, 0.9]}}]
""",
    "nearswap": "name: both\nmerge_method: nearswap\nbase_model: a\nmodels: [b]\nparameters: {t: 0.001}\n",
    "dare_linear": """\
name: both
merge_method: dare_linear
base_model: base
models: [a, b]
parameters: {weight: 0.5, density: 0.5, rescale: false}
dtype: float16
""",
    "passthrough": "name: both\nmerge_method: passthrough\nmodels: [a]\ndtype: bfloat16\n",
    "nested": """\
name: both
merge_method: task_arithmetic
base_model: base
models: [inner]
parameters: {weight: 0.7}
dtype: float16
---
name: inner
merge_method: linear
models: [a, c]
parameters: {weight: 1}
dtype: bfloat16
""",
}
OUTER = {"linear": "weight: 1", "ties": "weight: 1, density: 0.5", "sce": "select_topk: 0.5"}
TOKENS = {f"t{i}": i for i in range(40)}
LLAMA = {"model.embed_tokens.weight": (40, 8)}
LLAMA |= {f"model.layers.{i}.mlp.up_proj.weight": (8, 8) for i in range(2)}
LLAMA |= {"model.norm.weight": (8,), "lm_head.weight": (40, 8)}
LLAMA_CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 40, "tie_word_embeddings": False}
TWO = RESULT.format(method="linear", parameters="weight: 1") + LINEAR


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `base`, `a`, `b` and `c`."""
    base = state()
    write(tmp_path / "base", base)
    for number, name in enumerate("abc"):
        write(tmp_path / name, perturbed(base, number), shards=1 + number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def virtual(text: str) -> dict[str, int]:
    plans = plan_documents(load_documents(text), ROOM)
    return {name: plan.virtual_reads for name, plan in plans.items() if plan.virtual_reads}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can do without a folder has none, however often it is read."""
    monkeypatch.setattr(_virtual, "count_passes", lambda plan: 1)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_the_output_is_the_same_with_folders(root: Path, inner: str, outer: str) -> None:
    text = RESULT.format(method=outer, parameters=OUTER[outer]) + INNER[inner]
    same_with_folders(root, text)


def same_with_folders(root: Path, text: str, settings: Settings = ROOM) -> None:
    """Merge with folders and without any; compare all files: weights, configuration, manifest."""
    documents = load_documents(text)
    merge_documents(documents, "out", settings=ROOM, keep_parts=True)
    assert (root / "out.parts" / "both" / "submerge.json").is_file()
    (root / "out").rename("kept")
    shutil.rmtree("out.parts")
    reports = merge_documents(documents, "out", settings=settings)
    assert list(reports) == [""]
    assert contents(root / "out") == contents(root / "kept")
    assert not (root / "out.parts").exists()
    assert cli("verify", root / "out", "--no-load").code == 0


def test_a_head_that_a_model_unties_is_in_the_output(root: Path) -> None:
    """The base that is merged as it is read ties it, and stores no head."""
    shapes = {"model.embed_tokens.weight": (12, 8), "model.layers.0.up.weight": (16, 8)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 12}
    tied = state(shapes)
    write(root / "tied", tied, {**config, "tie_word_embeddings": True})
    write(root / "tied2", perturbed(tied, 1), {**config, "tie_word_embeddings": True})
    untied = {**perturbed(tied, 2), "lm_head.weight": torch.ones(12, 8)}
    write(root / "untied", untied, {**config, "tie_word_embeddings": False})
    inner = "name: both\nmerge_method: linear\nmodels: [tied, tied2]\nparameters: {weight: 1}\n"
    outer = "merge_method: task_arithmetic\nbase_model: both\nmodels: [untied]\nparameters: {weight: 0.5}\n"
    assert virtual(f"{outer}---\n{inner}") == {"both": 1}
    same_with_folders(root, f"{outer}---\n{inner}")
    assert "lm_head.weight" in read(root / "out")


STACK = """\
slices:
  - sources: [{model: both, layer_range: [0, 2]}]
  - sources: [{model: c, layer_range: [1, 2]}]
  - sources: [{model: both, layer_range: [0, 1]}]
merge_method: passthrough
dtype: float16
---
name: both
slices:
  - sources: [{model: a, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [0, 2]}]
merge_method: passthrough
chat_template: "{{ messages }}"
---
name: unread
merge_method: linear
models: [a, b]
parameters: {weight: 1}
"""
UNION = """\
merge_method: ties
base_model: both
models: [wide]
parameters: {weight: 1, density: 0.5}
tokenizer: {source: union, pad_to_multiple_of: 16}
---
"""


def test_layers_of_stacks_are_stacked_again(root: Path) -> None:
    base = state(LLAMA)
    for number, name in enumerate("abc"):
        shutil.rmtree(root / name)
        write(root / name, perturbed(base, number), LLAMA_CONFIG, tokens=TOKENS)
    same_with_folders(root, STACK)
    assert json.loads((root / "out" / "config.json").read_text())["num_hidden_layers"] == 4


@pytest.mark.usefixtures("always")
def test_rows_of_tokens_are_gathered(root: Path) -> None:
    tokenizer = bpe_tokenizer()
    base = language_model(root / "lm", "llama", tokenizer)
    for number, name in enumerate("ab"):
        shutil.rmtree(root / name)
        perturbed_model(root / name, base, tokenizer, number)
    perturbed_model(root / "wide", base, bpe_tokenizer(CHATML), 7)
    same_with_folders(root, UNION + LINEAR)


ADAPTED = """\
merge_method: ties
base_model: both
models: [both+lora, c]
parameters: {weight: 1, density: 0.5}
---
"""
AS_ADAPTER = """\
merge_method: knots_ties
base_model: both
models: [c, base]
output: {as: adapter, rank: 4}
---
"""


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("text", [ADAPTED, AS_ADAPTER], ids=["on", "of"])
def test_adapters_lie_on_it_and_come_of_it(root: Path, text: str) -> None:
    extract_lora("a", "lora", base="base", rank=4)
    same_with_folders(root, text + LINEAR)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("forks", [False, True])
def test_bytes_do_not_depend_on_workers(
    root: Path, threads: int, forks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {f"layers.{i}.weight": (300, 1000) for i in range(8)}
    base = state(shapes)
    for number, name in enumerate(("base", "a", "b", "c")):
        shutil.rmtree(root / name)
        write(root / name, perturbed(base, number))
    monkeypatch.setattr(_forked, "WORTHWHILE", 1 if forks else 1 << 62)
    text = RESULT.format(method="ties", parameters="weight: 1, density: 0.5") + INNER["nested"]
    same_with_folders(root, text, Settings(threads=threads, max_memory=ROOM.max_memory))


def test_what_is_read_is_counted(root: Path) -> None:
    plans = plan_documents(load_documents(TWO), ROOM)
    inner, outer = plans["both"], plans[""]
    size = sum(path.stat().st_size for name in "ab" for path in (root / name).glob("*.safetensors"))
    assert size * 0.9 < inner.bytes_read < size
    assert outer.bytes_read == inner.bytes_read + 2 * inner.bytes_read // 2
    report = merge_documents(load_documents(TWO), "out", settings=ROOM)[""]
    assert report.bytes_read == outer.bytes_read
    (root / "out").rename("first")
    kept = merge_documents(load_documents(TWO), "out", settings=ROOM, keep_parts=True)[""]
    assert kept.bytes_read < report.bytes_read


def test_memory_counts_what_is_computed_on_the_way(root: Path) -> None:
    documents = load_documents(TWO)
    needs = [plan_documents(documents, ROOM, keep_parts=kept)[""].budget.per_worker for kept in (False, True)]
    assert needs[0] > needs[1]


def test_what_memory_does_not_hold_has_a_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_planned_virtual, "reading_bytes", lambda tensors, models: 1 << 62)
    assert not virtual(TWO)
    assert list(merge_documents(load_documents(TWO), "out", settings=ROOM)) == ["both", ""]


def test_what_needs_a_reduction_or_costs_more_has_a_folder(root: Path) -> None:
    linear, sce = (RESULT.format(method=name, parameters=OUTER[name]) for name in ("linear", "sce"))
    inner = "name: both\nmerge_method: {}\nbase_model: base\nmodels: {}\nparameters: {{{}}}\n"
    for method, models, own in (
        ("ties", "[a, b]", "weight: 1, density: 0.5"),
        ("slerp", "[b]", "t: 0.5"),
        ("dare_linear", "[a, b]", "weight: 1, density: 0.5"),  # lengths are restored: sums over the tensor
        ("wudi", "[a, b]", ""),
    ):
        assert not virtual(linear + inner.format(method, models, own))
    assert virtual(TWO) == {"both": 1}
    assert virtual(linear + INNER["nested"]) == {"both": 1, "inner": 1}
    assert virtual(sce + INNER["passthrough"]) == {"both": 3}
    assert not virtual(sce + INNER["task_arithmetic"]), "to read three inputs three times is more"
    assert not virtual("name: result\n" + TWO), "all results are wanted"
    models = "[{model: both, data: x.txt}, {model: c, data: x.txt}]"
    learns = f"merge_method: regmean\nbase_model: base\nmodels: {models}\n"
    (root / "x.txt").write_text("text\n")
    assert not virtual(learns + "---\n" + LINEAR), "models are run"


def test_an_interrupted_run_goes_on_unless_a_source_changed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "two.yaml").write_text(TWO)
    argv = ["merge", root / "two.yaml", root / "out", "--quiet", "--threads", 1, *FLAGS]
    calls = file_calls(argv, root / "log")
    expected = contents(root / "out")
    shutil.rmtree(root / "out")
    killed_at(calls - 12, argv, root / "log")
    assert (root / "out.incomplete").is_dir()
    shutil.copytree(root / "out.incomplete", root / "copy")
    resumed = cli(*[a for a in argv if a != "--quiet"], "--resume")
    assert resumed.code == 0
    assert "ranges taken over" in resumed.out
    assert contents(root / "out") == expected

    shutil.rmtree(root / "out")
    (root / "copy").rename(root / "out.incomplete")
    write(root / "b", perturbed(state(), 9), shards=2)
    refused = cli(*argv, "--resume")
    assert refused.code == 2
    assert "from inputs that have changed" in refused.err
    assert cli(*argv).code == 0


def test_a_result_that_lies_there_is_read(root: Path) -> None:
    documents = load_documents(TWO)
    merge_documents(documents, "out", settings=ROOM, keep_parts=True)
    (root / "out").rename("first")
    said: list[tuple[str, bool]] = []

    def started(name: str, plan: MergePlan | None) -> None:
        said.append((name, plan is None))

    merge_documents(documents, "out", settings=ROOM, resume=True, started=started)
    assert said == [("both", True), ("", False)]
    assert weights_of(root / "out") == weights_of(root / "first")


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_nonfinite_values_are_told(root: Path) -> None:
    broken = perturbed(state(), 0)
    broken["lm_head.weight"][3, 3] = torch.nan
    write(root / "a", broken)
    with pytest.raises(WorkError, match=r"lm_head.weight: 1 in both, 1 in the output"):
        merge_documents(load_documents(TWO), "out", settings=ROOM)


def test_the_commands_say_so(root: Path) -> None:
    (root / "two.yaml").write_text(TWO)
    told = cli("plan", "two.yaml", *FLAGS)
    assert "needs no folder: it is merged as others read it, once in all" in told.out
    planned = cli("plan", "two.yaml", "--json", *FLAGS).json["documents"]
    assert [plan.get("virtual_reads") for plan in planned] == [1, None]
    merged = cli("merge", "two.yaml", "out", *FLAGS)
    assert "document both: merged as it is read" in merged.err
    assert "document both" not in merged.out


def test_its_tokenizer_can_be_taken(root: Path) -> None:
    for number, name in enumerate("abc"):
        shutil.rmtree(root / name)
        write(root / name, perturbed(state(), number), tokens=TOKENS)
    text = "merge_method: linear\nmodels: [c, base]\nparameters: {weight: 1}\ntokenizer_source: both\n---\n"
    same_with_folders(root, text + LINEAR)
    assert (root / "out" / "tokenizer.json").read_bytes() == (root / "a" / "tokenizer.json").read_bytes()
