"""The flags of mergekit-yaml: every one is understood, or answered."""

from pathlib import Path

import pytest

from _cli import ROOM, cli
from _models import contents, family
from submerge.cli._mergekit import translated
from submerge.errors import RequestError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return family(tmp_path / "models", tokens={"a": 0, "b": 1}).write_recipe("ties")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--cuda", "--device cuda"),
        ("--no-cuda", ""),
        ("--num-threads 3", "--threads 3"),
        ("-j 3", "--threads 3"),
        ("-j3", "--threads 3"),
        ("--num-threads=3", "--threads 3"),
        ("--out-shard-size 2B", "--shard-size 2GB"),
        ("--out-shard-size=500m", "--shard-size 500MB"),
        ("--out-shard-size 3GiB", "--shard-size 3GiB"),
        ("--out-shard-size 4000000", "--shard-size 4000000"),
        ("--copy-tokenizer --write-model-card --safe-serialization", ""),
        ("--no-quiet --no-allow-crimes --no-lazy-unpickle", ""),
        ("--verbose --json --no-load", "--verbose --json --no-load"),
        ("-- --cuda", "-- --cuda"),
    ],
)
def test_what_stands_in_their_place(theirs: str, ours: str) -> None:
    assert translated(theirs.split()) == (ours.split(), [])


def test_a_common_command_runs_as_it_is(recipe: Path, tmp_path: Path) -> None:
    words = "--allow-crimes --lazy-unpickle --copy-tokenizer --lora-merge-cache /tmp/x --out-shard-size 1B -v"
    result = cli("merge", recipe, tmp_path / "out", *words.split(), *ROOM)
    assert result.code == 0, result.err
    for flag in ("--allow-crimes", "--lazy-unpickle", "--lora-merge-cache"):
        assert f"note: {flag} is not needed: " in result.err
    assert "copy-tokenizer" not in result.err
    plain = cli("merge", recipe, "-o", tmp_path / "same" / "out", "--quiet", "--low-cpu-memory", *ROOM)
    assert (plain.code, plain.err) == (0, "")
    assert contents(tmp_path / "out") == contents(tmp_path / "same" / "out")
    assert cli("plan", recipe, *words.split()[:-1]).code == 0


def test_what_is_not_done_is_answered(recipe: Path, tmp_path: Path) -> None:
    words = "--random-seed 7 --transformers-cache /x --no-copy-tokenizer --unsafe-truncate-embeddings"
    result = cli("merge", recipe, tmp_path / "out", *words.split())
    assert result.code == 2
    assert [line.split(":")[1].strip() for line in result.err.splitlines()] == [
        word for word in words.split() if word.startswith("--")
    ]
    assert "write 'seed: 7' in it" in result.err
    assert "set HF_HUB_CACHE=/x" in result.err
    assert not (tmp_path / "out").exists()


def test_every_flag_of_mergekit_is_known() -> None:
    mergekit = pytest.importorskip("mergekit.options")
    ours = {"--device", "--quiet", "--verbose", "-v"}
    for flag in (name for names in flags(mergekit) for name in names if name not in ours):
        try:
            left, notes = translated([flag, "1"])
        except RequestError:
            continue
        assert flag not in left or notes, f"{flag} is not understood"


def flags(options: object) -> list[list[str]]:
    """Return the names of each of mergekit-yaml's options."""
    import click

    @click.command()
    def command() -> None: ...

    return [
        [*option.opts, *option.secondary_opts]
        for option in options.add_merge_options(command).params  # type: ignore[attr-defined]
        if option.name != "verbosity"
    ]
