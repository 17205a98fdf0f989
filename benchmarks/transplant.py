"""`python -m benchmarks.transplant`: what a chat model is worth with another model's tokenizer.

SmolLM2-135M-Instruct gets the tokenizer of Whisper tiny.en, by each method for the rows of new tokens. The
bits that it needs for a byte of some texts compare models whose tokenizers cut these in different places.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import page
from benchmarks.console import say
from benchmarks.process import ProcessRun, measure
from benchmarks.replication import smollm
from benchmarks.replication.data import data_folder
from benchmarks.replication.multimodal.whisper import write_tokens

METHODS: Mapping[str, tuple[str, ...]] = {
    "subword": ("--method", "subword"),
    "mean": ("--method", "mean"),
    "zero": ("--method", "zero"),
    "omp, k = 16": ("--method", "omp", "-k", "16"),
    "omp, k = 64": ("--method", "omp", "-k", "64"),
}
"""The rows of the table, and the options of the command."""
MERGEKIT = "mergekit-tokensurgeon, omp, k = 64"
SETS = {"news": "agnews", "questions": "gsm8k", "sentences": "asset"}
"""The sets of texts, and what they are called in the folder of data."""
SEPARATOR = "<|endoftext|>"
"""The token before each text, in both vocabularies."""


def main() -> None:
    """Measure every method, and write `transplant.json` and `transplant.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transplant", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("transplant-work"))
    parser.add_argument("--texts", type=int, default=40, help="of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="*", default=list(METHODS), help="those measured; others stay")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    options = parser.parse_args()
    model, donor = options.work / "model", options.work / "donor"
    if not model.exists():
        smollm.write(model)
    if not donor.exists():
        write_tokens(donor)
    texts = {name: read_texts(folder, options.texts) for name, folder in SETS.items()}
    path = options.out / "transplant.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    results = page.header("benchmarks.transplant")
    results |= {
        "load_before": os.getloadavg()[0],
        "threads": options.threads,
        "texts": options.texts,
        "rows": {},
    }
    stay = before.get("texts") == options.texts  # others are rows of other texts
    results["rows"] = before["rows"] if stay else {"before": {"bits": bits_of(model, texts)}}
    for name in options.rows:
        say(name)
        results["rows"][name] = measured(name, options, texts)
        page.write(options.out, "transplant", results, markdown(results))


def measured(name: str, options: Any, texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return what a transplant takes, what it says of itself, and what its result is worth."""
    model, donor = str(options.work / "model"), str(options.work / "donor")
    out, log = options.work / "out", options.work / "log.txt"
    shutil.rmtree(out, ignore_errors=True)
    if name == MERGEKIT:
        program = Path(sys.executable).with_name("mergekit-tokensurgeon")
        command = [str(program), model, donor, str(out), "-a", "omp", "-k", "64"]
    else:
        more = [*METHODS[name], "--threads", str(options.threads), "--json"]
        command = [sys.executable, "-m", "submerge", "transplant", model, donor, "-o", str(out), *more]
    run = measure(command, log)
    report = {}
    if name != MERGEKIT:
        text = log.read_text()
        report = json.loads(text[text.index("{") :])
    kept = {key: report[key] for key in ("tokens", "unused", "residuals") if key in report}
    return {**kept, **took(run), "bits": bits_of(out, texts)}


def took(run: ProcessRun) -> dict[str, float]:
    """Return what a process took."""
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "peak_bytes": run.peak_bytes}


def read_texts(folder: str, count: int) -> list[str]:
    """Return the first texts of a set that are test rows."""
    return [text for text, _ in zip(_texts(data_folder() / "text" / folder), range(count), strict=False)]


def _texts(folder: Path) -> Iterator[str]:
    if (table := folder / "test.csv.gz").exists():
        with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
            yield from (row[-1] for row in csv.reader(file))
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from (json.loads(line)["p"] for line in file)


@torch.no_grad()
def bits_of(folder: Path, texts: Mapping[str, list[str]]) -> dict[str, float]:
    """Return −Σ log₂ p(token | all before it) of a model over the bytes of each set's texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    first = tokenizer.convert_tokens_to_ids(SEPARATOR)
    bits = {}
    for name, own in texts.items():
        loss = 0.0
        for text in own:
            ids = torch.tensor([[first, *tokenizer(text, add_special_tokens=False).input_ids]])
            logits = model(ids).logits[0, :-1]
            loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        bits[name] = loss / math.log(2) / sum(len(text.encode()) for text in own)
    return bits


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page: a row for each method."""
    rows = results["rows"]
    lines = ["# A tokenizer transplanted", "", *page.made_by(results)]
    reports = [row for row in rows.values() if "tokens" in row]
    if reports:
        counts, unused = reports[0]["tokens"], reports[0]["unused"]
        total, shared = sum(counts.values()), counts["shared"]
        lines += [
            "SmolLM2-135M-Instruct (49,152 tokens, rows of 576) gets the tokenizer of Whisper tiny.en (rows",
            f"of 384): {shared:,} of its {total:,} tokens are shared ({shared / total:.1%}), and",
            f"{total - shared:,} are new; {unused:,} of the model's have no use any more. Bits per byte of",
            f"{results['texts']} texts of each set; {results['threads']} threads.",
            "",
        ]
    sets = [f"{name}, bits per byte" for name in SETS]
    columns = ["rows of new tokens", *sets, "residual", "seconds", "CPU seconds", "peak memory"]
    lines += [f"| {' | '.join(columns)} |", f"|---{'|---:' * (len(columns) - 1)}|"]
    lines += [_line(name, row) for name, row in rows.items()]
    lines += ["", results["note"]] if "note" in results else []
    return "\n".join(lines) + "\n"


def _line(name: str, row: Mapping[str, Any]) -> str:
    bits = [f"{value:.3f}" for value in row["bits"].values()]
    residual = [f"{value:.3f}" for value in row.get("residuals", {}).values()] or ["–"]
    units = {"seconds": (1, ""), "cpu_seconds": (1, ""), "peak_bytes": (1e6, " MB")}
    cost = [f"{row[key] / unit:.0f}{end}" if key in row else "–" for key, (unit, end) in units.items()]
    label = "the model before" if name == "before" else name
    return f"| {' | '.join([label, *bits, ', '.join(residual), *cost])} |"


if __name__ == "__main__":
    main()
