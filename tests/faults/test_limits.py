"""Too little disk, memory or permission; other people's limits."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _cli import cli, merge, refused
from _models import ROOM, Family, contents, family
from _victim import start
from submerge.engine.plan.inputs import _settings

SHAPES = {f"model.layers.{i}.weight": (300, 300) for i in range(4)}  # 1.4 MB in float32


@pytest.fixture
def made(tmp_path: Path) -> Family:
    return family(tmp_path / "models", shapes=SHAPES)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(made: Family, small_disk: Path) -> None:
    out = small_disk / "out"
    result = merge(made.write_recipe("task_arithmetic"), out)
    refused(result, out, 1, "model.safetensors", "needs 1.4 MiB", "is free", "free some space")
    assert os.listdir(small_disk) == []


def test_a_disk_that_holds_the_weights_and_not_the_rest(made: Family, small_disk: Path) -> None:
    out = small_disk / "out"
    (made.base / "notes.txt").write_bytes(b"x" * 800_000)
    recipe = made.write_recipe("task_arithmetic", dtype="bfloat16")
    refused(merge(recipe, out), out, 1, "notes.txt", "No space left", "--resume")
    (made.base / "notes.txt").write_text("short")
    again = merge(recipe, out, "--resume")
    assert again.code == 0
    assert "ranges taken over" in again.out


def test_an_output_that_is_a_mount_point(made: Family, small_disk: Path) -> None:
    result = merge(made.write_recipe("task_arithmetic"), small_disk)
    assert result.code == 2
    assert "mount point" in result.err
    assert "name a folder inside it" in result.err


def test_a_disk_that_fills_up_while_it_is_written(
    made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that cannot reserve space."""
    real, calls = os.pwrite, iter(range(10**6))

    def full(fd: int, data: Any, offset: int) -> int:
        if next(calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    recipe = made.write_recipe("task_arithmetic")
    monkeypatch.setattr(os, "pwrite", full)
    refused(
        merge(recipe, tmp_path / "out"), tmp_path / "out", 1, "model.layers", "is free", "free some space"
    )
    monkeypatch.setattr(os, "pwrite", real)
    assert merge(recipe, tmp_path / "out", "--resume").code == 0
    assert merge(recipe, tmp_path / "other" / "out").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "other" / "out")


def test_short_writes_and_reads_are_completed(
    made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = contents(submerge.merge(made.recipe("ties"), tmp_path / "a" / "out", settings=ROOM).out)
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1001], at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:1003]], at))
    assert contents(submerge.merge(made.recipe("ties"), tmp_path / "b" / "out", settings=ROOM).out) == wanted


def test_a_disk_that_cannot_be_read(made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    result = merge(made.write_recipe("task_arithmetic"), tmp_path / "out")
    refused(
        result, tmp_path / "out", 1, "reading failed", "Input/output error", "model.layers", "check the disk"
    )


@pytest.mark.parametrize("limit", [1_000_000, 100_000])
def test_a_limit_on_files(made: Family, tmp_path: Path, limit: int) -> None:
    argv = ["merge", made.write_recipe("task_arithmetic"), "-o", tmp_path / "out"]
    victim = start(argv, tmp_path / "logs", limits={"RLIMIT_FSIZE": limit})
    assert victim.wait() == 1
    told = victim.stderr.read_text()
    assert "use smaller shards" in told
    assert "Traceback" not in told
    assert sorted(os.listdir(tmp_path)) == ["logs", "models"]
    again = start([*argv, "--shard-size", "1MB"], tmp_path / "logs", limits={"RLIMIT_FSIZE": 1_000_000})
    assert again.wait() == 0


def test_a_limit_on_open_files(tmp_path: Path) -> None:
    made = family(tmp_path / "models", shapes={f"model.layers.{i}.weight": (512, 512) for i in range(4)})
    argv = ["merge", made.write_recipe("task_arithmetic"), "-o", tmp_path / "out", "--shard-size", "1MB"]
    victim = start(argv, tmp_path / "logs", limits={"RLIMIT_NOFILE": 15})
    assert victim.wait() == 1
    assert "ulimit -n" in victim.stderr.read_text()
    assert not (tmp_path / "out").exists()


CLOSED = {
    "target": (1, "cannot be made (Permission denied)"),
    "side file": (1, "notes.txt: finishing failed (Permission denied)"),
    "weights": (2, "cannot be read (Permission denied)"),
    "config": (2, "config.json: cannot be read (Permission denied)"),
    "tokenizer": (2, "tokenizer.json: cannot be read (Permission denied)"),
    "folder": (2, "tuned0: the folder cannot be read"),
    "recipe": (2, "task_arithmetic.yaml: cannot be read: Permission denied"),
    "out": (2, "out: the output cannot be looked at (Permission denied)"),
    "out.incomplete": (1, "out.incomplete: cannot be made (Permission denied)"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="takes capabilities away, which Linux has")
@pytest.mark.parametrize("what", CLOSED)
@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_what_may_not_be_read_or_written(tmp_path: Path, what: str, flag: str) -> None:
    made = family(tmp_path / "models", shapes=SHAPES, tokens={"a": 0})
    (made.base / "notes.txt").write_text("x")
    recipe = made.write_recipe("task_arithmetic")
    out = tmp_path / "target" / "out"
    out.parent.mkdir()
    place = {
        "target": out.parent,
        "side file": made.base / "notes.txt",
        "weights": made.tuned[0] / "model.safetensors",
        "config": made.tuned[0] / "config.json",
        "tokenizer": made.tuned[0] / "tokenizer.json",
        "folder": made.tuned[0],
        "recipe": recipe,
        "out": out,
        "out.incomplete": out.with_name("out.incomplete"),
    }[what]
    if not place.exists():
        place.mkdir()
    mode = place.stat().st_mode
    place.chmod(0o555 if what == "target" else 0)
    victim = start(["merge", recipe, "-o", out, flag], tmp_path / "logs", plain=True)
    code = victim.wait()
    place.chmod(mode)
    told = victim.stderr.read_text()
    assert (code, CLOSED[what][1] in told) == (CLOSED[what][0], True), told
    assert "bug in submerge" not in told
    assert "Traceback" not in told
    assert victim.stdout.read_text() == ""
    assert what == "out" or not out.exists()


# --- memory ---------------------------------------------------------------------------------------


def test_too_little_memory(made: Family, tmp_path: Path) -> None:
    recipe = made.write_recipe("task_arithmetic")
    result = cli("merge", recipe, "-o", tmp_path / "out", "--max-memory", "50MB")
    refused(
        result,
        tmp_path / "out",
        2,
        "50 MB do not hold one worker",
        "model.layers",
        "--max-memory",
        "allow at least",
    )
    enough = int(result.err.split("allow at least ")[1].split(" MB")[0])
    assert cli("merge", recipe, "-o", tmp_path / "out", "--max-memory", f"{enough + 50}MB").code == 0


def test_less_memory_means_fewer_workers(made: Family) -> None:
    plan = submerge.plan(made.recipe("ties"), replace(ROOM, threads=8))
    assert plan.budget.workers == 8
    tight = plan.budget.peak - 3 * plan.budget.per_worker
    fewer = submerge.plan(made.recipe("ties"), replace(ROOM, threads=8, max_memory=tight))
    assert 1 <= fewer.budget.workers < 8
    assert fewer.budget.peak <= tight


@pytest.mark.parametrize(
    ("pages", "limit", "bound"),
    [
        (4_000_000, None, 4_096_000_000),  # of 16 GB a quarter
        (4_000_000, "max\n", 4_096_000_000),
        (4_000_000, "12000000000\n", 3_000_000_000),  # a container that may take less
        (4_000_000, "9223372036854771712\n", 4_096_000_000),
        (500_000, None, 2_000_000_000),
        (None, None, 2_000_000_000),
    ],
)
def test_the_default_bound_is_a_share_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int | None, limit: str | None, bound: int
) -> None:
    def sysconf(name: str) -> int:
        if pages is None:
            raise ValueError("unrecognized configuration name")
        return {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}[name]

    told = tmp_path / "memory.max"
    if limit is not None:
        told.write_text(limit)
    monkeypatch.setattr(os, "sysconf", sysconf)
    monkeypatch.setattr(_settings, "LIMITS", (told,))
    assert submerge.Settings().max_memory == bound


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Two models of 64 MB, of which no more than a few MB may be held."""
    root = tmp_path_factory.mktemp("big")
    yield family(root, shapes={"a.weight": (3200, 5000)})
    shutil.rmtree(root)


# --- the command line's own values ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--max-memory", "lots"], ("'lots' is not a size", "--max-memory", "2GB")),
        (["--max-memory", "-1GB"], ("is not a size",)),
        (["--max-memory", ""], ("is not a size",)),
        (["--max-memory", "1" * 400], ("is not a size",)),
        (["--shard-size", "5PB"], ("'5PB' is not a size", "--shard-size")),
        (["--shard-size", "0"], ("'0' is 0 B, less than 1 MB", "--shard-size", "such as 10GB")),
        (["--shard-size", "0.1"], ("less than 1 MB", "--shard-size")),
        (["--shard-size", "999kB"], ("'999kB' is 999 kB, less than 1 MB",)),
        (
            ["--shard-size", "5B"],
            ("'5B' is 5 B", "mergekit's 5B are 5 billion parameters", "10GB in 16 bits"),
        ),
        (["--shard-size", "0.5 b"], ("less than 1 MB", "1GB in 16 bits")),
        (["--max-memory", "16"], ("'16' is 16 B, less than 1 MB", "--max-memory")),
        (["--device", "gpu"], ("no such device: gpu", "--device", "use cpu or cuda")),
        (["--device", "meta"], ("meta is not supported",)),
        (["--device", ""], ("no such device",)),
    ],
)
@pytest.mark.parametrize("command", ["merge", "plan"])
def test_bad_values(
    made: Family, tmp_path: Path, flags: list[str], parts: tuple[str, ...], command: str
) -> None:
    recipe = made.write_recipe("task_arithmetic")
    argv = [command, recipe, *flags] + (["-o", tmp_path / "out"] if command == "merge" else [])
    result = cli(*argv)
    assert result.code == 2
    assert result.out == ""
    assert "bug in submerge" not in result.err
    for part in parts:
        assert part in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["shard_size", "max_memory"])
def test_sizes_from_python_are_numbers_of_bytes(name: str) -> None:
    with pytest.raises(submerge.RequestError, match=f"{name} is a number of bytes; found '5B'"):
        submerge.Settings(**{name: "5B"})


def test_no_cuda_device_of_that_number(made: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(submerge.RequestError, match="no CUDA device is available"):
        submerge.plan(made.recipe("ties"), replace(ROOM, device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(submerge.RequestError, match="cuda:2"):
        submerge.plan(made.recipe("ties"), replace(ROOM, device="cuda:2"))
    assert submerge.plan(made.recipe("ties"), replace(ROOM, device="cuda:1")).budget.workers >= 1
