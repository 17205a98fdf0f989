"""What the suites' tests share: a tiny decoder LM, pretrained once, and the numbers of their trainings."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _victim import start

if TYPE_CHECKING:
    from benchmarks.process import ProcessRun


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


@pytest.fixture(scope="session")
def measured() -> list[ProcessRun]:
    """What was measured of the first process of the session, once there was one."""
    return []


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, measured: list[ProcessRun], tmp_path: Path) -> None:
    """Let a merge be measured as a process of its own once in a session, whose numbers all others get.

    Of each test the first `merge` and the first `many` run, forked from a server that need not import torch
    again; later ones get their logs.
    """
    from benchmarks.process import measure as real

    logs: dict[tuple[str, ...], str] = {}

    def measure(command: Sequence[str], log: Path) -> ProcessRun:
        *program, name = kind = tuple(command[:4])
        if kind in logs:
            log.write_text(logs[kind])
        elif measured and program == [sys.executable, "-m", "submerge"]:
            victim = start([name, *command[4:]], tmp_path / "forked")
            assert victim.wait() == 0, victim.stderr.read_text()
            log.write_text(victim.stderr.read_text() + victim.stdout.read_text())
        else:
            measured.append(real(command, log))
        logs[kind] = log.read_text()
        return measured[0]

    for place in ("process", "replication.bench", "replication.sequence"):
        monkeypatch.setattr(f"benchmarks.{place}.measure", measure)
