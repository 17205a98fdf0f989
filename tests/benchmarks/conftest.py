"""What the suites' tests share: a tiny decoder LM, pretrained once, and the numbers of their trainings."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny LM that was pretrained for a few steps."""
    pytest.importorskip("transformers")
    from benchmarks.replication.lm import pretrain

    from _decoder import PRETRAINING
    from _models import quiet_transformers

    quiet_transformers()
    folder = tmp_path_factory.mktemp("pretrained") / "lm"
    pretrain.pretrain(PRETRAINING, folder, least=0.0)
    return folder


@pytest.fixture
def pretrained(tiny_lm: Path, tmp_path: Path) -> None:
    """Put the tiny LM where suites with the cache `tmp_path` look for theirs."""
    for name in ("lm", "lm-text"):
        shutil.copytree(tiny_lm.with_name(name), tmp_path / name)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a merge be measured as a process of its own once; later ones get log and numbers of the first."""
    from benchmarks.process import ProcessRun
    from benchmarks.process import measure as real

    first: list[tuple[ProcessRun, str]] = []

    def measure(command: Sequence[str], log: Path) -> ProcessRun:
        if not first:
            first.append((real(command, log), log.read_text()))
        log.write_text(first[0][1])
        return first[0][0]

    for place in ("benchmarks.process", "benchmarks.replication.bench"):
        monkeypatch.setattr(f"{place}.measure", measure)
