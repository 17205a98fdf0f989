"""The benchmark of transplants: bits per byte are those of transformers, and its page has all rows."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from benchmarks.transplant import SEPARATOR, bits_of, markdown, read_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from _vocabularies import bpe_tokenizer, language_model


def test_bits_per_byte_are_the_loss_of_transformers(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "model", "llama", bpe_tokenizer(), tied=True)
    texts = ["the quick brown fox", "é"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    nats = 0.0
    for text in texts:
        ids = tokenizer(SEPARATOR + text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    expected = nats / math.log(2) / (len(texts[0]) + 2)
    assert bits_of(folder, {"texts": texts}) == {"texts": pytest.approx(expected, rel=1e-5)}


def test_texts_are_those_of_tables_and_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMERGE_DATA", str(tmp_path))
    for name in ("news", "questions"):
        (tmp_path / "text" / name).mkdir(parents=True)
    with gzip.open(tmp_path / "text" / "news" / "test.csv.gz", "wt") as file:
        file.write('"3","A title","A text, with a comma"\n"1","B","C"\n')
    with gzip.open(tmp_path / "text" / "questions" / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps({"p": "How many?"}) + "\n")
    assert read_texts("news", 1) == ["A text, with a comma"]
    assert read_texts("questions", 5) == ["How many?"]


def test_the_page_has_a_row_for_each_method() -> None:
    bits = {"news": 1.0, "questions": 2.0, "sentences": 3.0}
    took = {
        "seconds": 9.6,
        "cpu_seconds": 5.2,
        "peak_bytes": 5e8,
        "tokens": {"shared": 3, "omp": 1},
        "unused": 2,
    }
    machine = {
        "cpu": "a processor",
        "cores": 2,
        "memory_gb": 8,
        "system": "Linux",
        "python": "3.11",
        "versions": {"torch": "2"},
    }
    results = {
        "command": "python -m benchmarks.transplant",
        "date": "today",
        "machine": machine,
        "texts": 8,
        "threads": 2,
        "rows": {
            "before": {"bits": bits},
            "omp, k = 64": {"bits": bits, **took, "residuals": {"head": 0.25}},
        },
    }
    page = markdown(results)
    assert "3 of its 4 tokens are shared (75.0%), and\n1 are new; 2 of the model's" in page
    assert "| the model before | 1.000 | 2.000 | 3.000 | – | – | – | – |" in page
    assert "| omp, k = 64 | 1.000 | 2.000 | 3.000 | 0.250 | 10 | 5 | 500 MB |" in page
