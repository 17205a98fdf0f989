"""The demo of a composed model runs, with hardly any training."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo"


@pytest.mark.slow
def test_two_specialists_are_composed_and_asked_about_both(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO / "multimodal.py"), "--fast", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = ["language model", "image specialist", "audio specialist"]
    rows += [f"composed: {method}" for method in ("ssam", "linear", "ties")]
    assert [row for row in rows if row not in done.stdout] == [], done.stdout
    assert "audio <|AUDIO|> . image <image> . sum of audio and image ? → " in done.stdout


@pytest.mark.slow
def test_three_tasks_one_after_another(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO / "continual.py"), "--fast", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = ["own adapter each", "one adapter, trained in turn", "MAny"]
    assert [row for row in rows if row not in done.stdout] == [], done.stdout
    assert (tmp_path / "forgetting.png").stat().st_size > 0
