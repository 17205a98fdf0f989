"""The demos of composed and of continual models run, with hardly any training."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo"
BOTH = """
import runpy, sys
demo, *folders = sys.argv[1:]
sys.path[0] = demo
for name, folder in zip(("multimodal", "continual"), folders, strict=True):
    sys.argv = [name, "--fast", "--out", folder]
    runpy.run_path(f"{demo}/{name}.py", run_name="__main__")
"""
"""They share a process: what they import takes seconds."""


@pytest.mark.slow
def test_they_run(tmp_path: Path) -> None:
    folders = [tmp_path / "multimodal", tmp_path / "continual"]
    command = [sys.executable, "-c", BOTH, *map(str, (DEMO, *folders))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = ["language model", "image specialist", "audio specialist"]
    rows += [f"composed: {method}" for method in ("ssam", "linear", "ties")]
    rows += ["own adapter each", "one adapter, trained in turn", "MAny"]
    assert [row for row in rows if row not in done.stdout] == [], done.stdout
    assert "audio <|AUDIO|> . image <image> . sum of audio and image ? → " in done.stdout
    assert (folders[1] / "forgetting.png").stat().st_size > 0
