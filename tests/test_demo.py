"""The demo of a composed model runs, though with hardly any training."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo"


@pytest.mark.slow
def test_multimodal_composes_two_specialists_and_asks_about_both(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        str(DEMO / "multimodal.py"),
        "--fast",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = (
        "language model",
        "image specialist",
        "audio specialist",
        *(f"composed: {m}" for m in ("ssam", "linear", "ties")),
    )
    assert all(row in done.stdout for row in rows), done.stdout
    assert (
        "image <image> . audio <|AUDIO|> . sum of image and audio ?" in done.stdout
        or "audio <|AUDIO|> . image" in done.stdout
    )
