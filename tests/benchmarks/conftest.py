"""What the suites' tests share: a tiny decoder LM, pretrained once, and the numbers of their trainings."""

from __future__ import annotations

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
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a merge be measured as a process of its own once; later ones get the numbers of the first."""
    from benchmarks.process import ProcessRun
    from benchmarks.replication import bench

    real, runs = bench.measure, list[ProcessRun]()

    def measure(command: Sequence[str], log: Path) -> ProcessRun:
        if not runs:
            runs.append(real(command, log))
        return runs[0]

    monkeypatch.setattr(bench, "measure", measure)
