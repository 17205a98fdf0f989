"""`submerge transplant`: what it prints, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from _cli import ROOM, cli
from _vocabularies import bpe_tokenizer, language_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    model = language_model(root / "model", "llama", bpe_tokenizer(), tied=True)
    donor = bpe_tokenizer(("<|new|>",), size=310, texts=["other words for another tokenizer"])
    return model, language_model(root / "donor", "llama", donor, hidden_size=24)


def test_it_says_whose_rows_tokens_have(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = cli("transplant", *models, "-o", tmp_path / "out", "-k", 4, *ROOM)
    assert result.code == 0, result.err
    path, tokens, new, residual, unused, cost = result.out.splitlines()
    assert path == str(tmp_path / "out")
    total, shared = (int(word) for word in tokens.replace(" tokens,", "").split()[:2])
    assert new == f"  {total - shared} approximated by OMP"
    assert residual.startswith("  relative residual of those by OMP 0.")
    assert residual.endswith("on average, for model.embed_tokens.weight")
    assert unused.endswith(" tokens of the model have no use any more")
    assert " in " in cost
    assert cli("verify", tmp_path / "out").code == 0


def test_json(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = cli("transplant", *models, "-o", tmp_path / "out", "--method", "subword", "--json", *ROOM)
    report = json.loads(result.out)
    assert report["out"] == str(tmp_path / "out")
    assert report["tokens"].keys() == {"shared", "subword"}
    assert report["residuals"] == {}
    assert report["unused"] > 0


def test_a_dry_run_writes_nothing(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = cli("transplant", *models, "-o", tmp_path / "out", "--dry-run", *ROOM)
    assert result.code == 0, result.err
    assert f"{models[0]}: " in result.out
    assert "of them shared" in result.out
    assert result.out.splitlines()[-1].startswith("writes ")
    described = cli("transplant", *models, "-o", tmp_path / "out", "--dry-run", "--json", *ROOM)
    assert json.loads(described.out)["method"] == "passthrough"
    assert not list(tmp_path.iterdir())


def test_wrong_requests_exit_with_2(models: tuple[Path, Path], tmp_path: Path) -> None:
    for more in (["--method", "best"], ["-k", 0], ["--pad-to-multiple-of", 0]):
        result = cli("transplant", *models, "-o", tmp_path / "out", *more, *ROOM)
        assert result.code == 2
        assert result.err.startswith(f"error: {more[0]}: ")
        assert "Traceback" not in result.err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    result = cli("transplant", *models, "-o", tmp_path / "out", *ROOM)
    assert result.code == 2
    assert "not empty" in result.err
    result = cli("transplant", models[0], tmp_path / "nothing", "-o", tmp_path / "new", *ROOM)
    assert result.code == 2
    assert "nothing" in result.err
