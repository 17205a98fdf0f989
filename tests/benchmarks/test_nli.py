"""The suite nli-6: its prompts, its batches, and a whole run with a tiny random Llama as its LM."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.replication import __main__ as command
from benchmarks.replication import cache as store
from benchmarks.replication import smollm
from benchmarks.replication.nli import tasks
from benchmarks.replication.nli.boundary import best_accuracy
from benchmarks.replication.nli.model import Prompts, accuracy, load, logits, word_ids
from benchmarks.replication.nli.observation import third_quarter, without_last
from benchmarks.replication.nli.specialists import like_lengths
from benchmarks.replication.nli.suite import NLI_6
from benchmarks.replication.observation import at_step

from _models import quiet_transformers
from submerge.calibrate import choose_hooks

NOUNS = ("dog", "cat", "tree", "house", "river")
WORDS = (*NOUNS, "yes", "no", "maybe", "Premise", "Hypothesis", "Question", "Sentence", "Answer", ":", ".")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random Llama of four layers, and a tokenizer that knows a few words."""
    folder = tmp_path_factory.mktemp("llama")
    _write_base(folder)
    return folder


def _write_base(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    quiet_transformers()
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data in the form of the real ones: pairs of random words."""
    root, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for task, labels in tasks.LABELS.items():
        folder = root / "text" / task
        folder.mkdir(parents=True)
        for part, sick in (("train", "train"), ("validation", "trial"), ("test", "test_annotated")):
            rows = [(_words(draw), _words(draw), labels[i % len(labels)]) for i in range(90)]
            if task == "sick":
                lines = ["sentence_A\tsentence_B\tentailment_judgment"]
                lines += [f"{a}\t{b}\t{label.upper()}" for a, b, label in rows]
                place = folder / f"SICK_{sick}.txt.gz"
            else:
                lines = [json.dumps({"a": a, "b": b, "y": label}) for a, b, label in rows]
                place = folder / f"{part}.jsonl.gz"
            place.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return root


def _words(draw: random.Random) -> str:
    return " ".join(draw.choices(NOUNS, k=draw.randint(3, 9)))


def test_a_prompt_names_its_task_and_cuts_the_longer_text() -> None:
    text = tasks.prompt("qnli", "who ?", "a " * 100)
    assert text.startswith("QNLI. Question: who ? Sentence: a ")
    assert text.endswith(" a Answer:")
    assert text.split().count("a") == tasks.MOST_WORDS - 2
    assert tasks.prompt("rte", "b " * 100, "a").split().count("b") == tasks.MOST_WORDS - 1


def test_every_task_has_a_word_for_each_class() -> None:
    assert tasks.words("mnli") == (" no", " yes", " maybe")
    assert tasks.words("qnli") == (" yes", " no")
    assert set(tasks.LABELS) == set(tasks.KNOWN) == set(NLI_6.tasks)


def test_labels_are_numbered_as_the_words_are(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    for task, split in NLI_6.read().items():
        assert split.classes == len(tasks.words(task))
        assert tasks.LABELS[task] == tuple(sorted(tasks.LABELS[task]))


def test_a_pass_has_every_item_once_in_batches_of_like_lengths() -> None:
    lengths = [random.Random(1).randint(1, 50) for _ in range(256)]
    batches = like_lengths(lengths, 8, seed=0)
    first = [next(batches) for _ in range(32)]
    assert sorted(i for one in first for i in one) == list(range(256))
    widths = [max(lengths[i] for i in one) - min(lengths[i] for i in one) for one in first]
    assert sum(widths) / len(widths) < 6
    assert next(batches) != first[0]


def test_the_logits_are_those_of_the_whole_vocabulary(base: Path) -> None:
    rows = [(tasks.prompt("snli", "dog cat", "tree"), None, 0), (tasks.prompt("snli", "cat", "dog"), None, 2)]
    model, items, answers = load(base, base), Prompts(rows, base), word_ids(base, "snli")
    with torch.no_grad():
        ours = logits(model, items.batch([0, 1]), answers)
        for row, ids in zip(ours, items.ids, strict=True):
            alone = model(torch.tensor([ids])).logits[0, -1, answers]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-4)
    assert accuracy(model, items, answers) == (ours.argmax(1) == torch.tensor([0, 2])).double().mean().item()


def test_the_third_quarter_lies_before_the_last(base: Path) -> None:
    model = load(base, base)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(4)]
    assert choose_hooks(model, names, third_quarter(model)) == names[2:3]
    assert choose_hooks(model, names, "last_quarter") == names[3:]


def test_without_the_position_that_answers_each_prompt_lacks_its_last(base: Path) -> None:
    rows = [(tasks.prompt("snli", "dog", "tree"), None, 0), (tasks.prompt("snli", "cat dog", "dog"), None, 2)]
    items = Prompts(rows, base)
    cut = without_last(items.batch([0, 1]))["attention_mask"].sum(1)
    assert cut.tolist() == [len(ids) - 1 for ids in items.ids]


@pytest.fixture
def ready(data: Path, monkeypatch: pytest.MonkeyPatch, one_process: None) -> Iterator[None]:
    """Take the data and the base of the tests, and give torch its threads back."""
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    monkeypatch.setattr(smollm, "write", _write_base)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_fast_run_ends_with_a_report(
    ready: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["nli-6", "--fast", "--cache", str(tmp_path), "--jobs", "1"]
    rows = ["task_arithmetic", "ties", "many", "nsc", "nsc_learn", "adamerging"]
    assert command.main(["all", *arguments, "--methods", ",".join(rows)]) == 0
    root = tmp_path / "nli-6-fast"
    report = json.loads((root / "replication-nli-6-fast.json").read_text())
    entry = report["kinds"]["lora"]["0"]
    assert list(entry["ceilings"]) == ["base", "individual"]
    assert list(entry["methods"]) == rows
    assert entry["ceilings"]["individual"]["summary"]["mean"] == pytest.approx(1)
    for name in ("nsc_learn", "adamerging"):
        _check_learned(entry["methods"][name])
    _check_observed(report["observed"])
    page = (root / "replication-nli-6-fast.md").read_text()
    assert "| adamerging | 0 |" in page
    assert "ω(λ) of each adapter" in page
    for picture in ("lora-bars", "observation"):
        assert (root / f"replication-nli-6-fast-{picture}.png").exists()
    before = store.read(root / "seed0" / "lora-results" / "adamerging")
    capsys.readouterr()
    command.main(["merge", *arguments, "--methods", "adamerging"])  # all of it lies in the cache
    assert store.read(root / "seed0" / "lora-results" / "adamerging") == before


def _check_learned(result: dict[str, Any]) -> None:
    coefficients = result["coefficients"]
    assert len(coefficients) == 8
    assert all(list(of) == ["snli", "sick"] for of in coefficients.values())
    values = [value for of in coefficients.values() for value in of.values()]
    assert any(value != 0.4 for value in values)
    assert all(abs(value - 0.4) < 0.01 for value in values)
    assert len(result["calibration"]["loss"]) == 3


def _check_observed(observed: dict[str, Any]) -> None:
    assert list(observed) == ["snli, 0.001", "sick, 0.001"]
    followed = {"snli, 0.001": ["10"], "sick, 0.001": ["5", "10"]}
    for name, one in observed.items():
        assert list(one["accuracy"]) == ["0", *followed[name]]
        for steps in one["omega"].values():
            assert list(steps) == followed[name]
            assert all(0 < omega < 1 for omegas in steps.values() for omega in omegas)


def test_an_adapter_of_an_earlier_step_lies_in_the_folder_of_the_last(tmp_path: Path) -> None:
    assert at_step(tmp_path, 200, 200) == tmp_path
    assert at_step(tmp_path, 25, 200) == tmp_path / "step25"


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=12))
def test_the_best_boundary_is_the_best_of_all(pairs: list[tuple[int, int]]) -> None:
    """Equal margins are on one side of it, or on the other."""
    margins = torch.tensor([float(margin) for margin, _ in pairs])
    labels = torch.tensor([label for _, label in pairs])
    cuts = [margin + 0.5 for margin in range(-6, 6)]
    right = [((margins > cut).long() == labels).double().mean().item() for cut in cuts]
    assert best_accuracy(margins, labels) == pytest.approx(max(right))
