"""The flags of mergekit-yaml: every one is understood, or answered."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from _cli import ROOM, cli
from _models import contents, family
from submerge.cli._mergekit import FLAGS, SAME, translated


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
        ("--out-path merged -I /tmp/x --lazy --no-lazy", "--out merged --keep-parts --resume"),
        ("--device cuda:1 --device=cpu", "--device cuda:1 --device cpu"),
        ("--verbose --json --no-load", "--verbose --json --no-load"),
        ("-- --cuda", "-- --cuda"),
    ],
)
def test_what_stands_in_their_place(theirs: str, ours: str) -> None:
    words, notes = translated(theirs.split())
    assert words == ours.split()
    assert notes == (
        ["-I is not needed: results of documents with names are kept in OUT.parts"] * ("-I" in theirs)
    )


def test_the_best_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert translated(["--device", "auto"])[0] == ["--device", device]


def test_a_command_gets_the_options_that_it_has(recipe: Path) -> None:
    assert translated(["--out-path", "x", "--lazy", "--cuda"], ["--device"]) == (["--device", "cuda"], [])
    assert cli("plan", recipe, "--out-path", "x", "-I", "y", "--lazy", "--quiet", "-v").code == 0


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


FATES = {
    "refused": {"--transformers-cache", "--random-seed", "--unsafe-truncate-embeddings"},
    "always so": {"--copy-tokenizer", "--write-model-card", "--safe-serialization"},
    "the same": {"--device", "--quiet", "-v"},
    "not needed": {
        "--low-cpu-memory", "--read-to-gpu", "--lazy-unpickle", "--async-write", "--write-threads",
        "--clone-tensors", "--lora-merge-cache", "--lora-merge-dtype", "--allow-crimes",
        "--trust-remote-code",
    },
    "--device": {"--cuda", "--multi-gpu", "--gpu-rich"},
    "--threads": {"-j", "--num-threads"},
    "--shard-size": {"--out-shard-size"},
    "--out": {"--out-path"},
    "--keep-parts": {"-I", "--intermediate-dir"},
    "--resume": {"--lazy"},
}  # fmt: skip
"""What becomes of each flag of mergekit-yaml and mergekit-multi; of ours, which one."""


def fate(flag: str) -> str:
    """Return what becomes of a flag, as the table says it."""
    if flag in SAME or flag == "--device":
        return "the same"
    own = FLAGS[flag]
    return (
        "refused" if own.refusal else own.ours[0] if own.ours else "not needed" if own.note else "always so"
    )


@pytest.mark.parametrize(
    ("word", "flag"), [(word, flag) for word, of_fate in FATES.items() for flag in sorted(of_fate)]
)
def test_each_flag(word: str, flag: str, recipe: Path, tmp_path: Path) -> None:
    """It is understood by the command, or answered with a way out."""
    assert fate(flag) == word
    takes_value = flag in FLAGS and FLAGS[flag].takes_value
    value = [
        {"--device": "cpu", "--out-shard-size": "2B", "--out-path": str(tmp_path / "out")}.get(flag, "2")
    ]
    out = [] if flag == "--out-path" else [tmp_path / "out"]
    result = cli("merge", recipe, *out, flag, *(value if takes_value else []), *ROOM)
    if word == "refused":
        assert result.code == 2
        assert result.err.startswith(f"error: {flag}: ")
        assert " — " in result.err
    elif word == "--device" and not torch.cuda.is_available():
        assert result.code == 2
        assert "no CUDA device is available" in result.err
    else:
        assert result.code == 0, result.err
        assert (f"note: {flag} is not needed: " in result.err) == (
            word == "not needed" or bool(flag in FLAGS and FLAGS[flag].note)
        )
        if flag not in ("-v",):
            assert contents(tmp_path / "out").keys() >= {"config.json", "submerge.json"}


def test_every_flag_of_mergekit_is_known() -> None:
    options = pytest.importorskip("mergekit.options")
    multi = pytest.importorskip("mergekit.scripts.multimerge")
    known = set().union(*FATES.values())
    assert known == set(FLAGS) - {flag for flag in FLAGS if flag.startswith("--no-")} | set(SAME)
    theirs = [*options_of(options), *multi.main.params]
    for option in theirs:
        if option.opts[0].startswith("-"):
            assert set(option.opts) <= known, option.opts
        for off in option.secondary_opts:
            words, refused = (
                ([], True) if off in FLAGS and FLAGS[off].refusal else (translated([off])[0], False)
            )
            assert words == [] or refused, off


def test_the_table_of_the_documentation_says_what_becomes_of_each() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "migrating.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `-")]
    told = {flag: answer.strip() for flags, answer in rows for flag in re.findall(r"`(-[^` ]+)", flags)}
    assert set(told) == set().union(*FATES.values())
    for flag, answer in told.items():
        word = fate(flag)
        assert answer.startswith(f"`{word}" if word.startswith("-") else word), f"{flag}: {answer}"


def options_of(options: Any) -> list[Any]:
    """Return the options of mergekit-yaml, as its command has them."""
    import click

    @click.command()
    def command() -> None: ...

    return list(options.add_merge_options(command).params)
