"""The frame of all commands: help, wrong usage, and what a process of its own shows."""

import importlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import submerge
import submerge.__main__
from _cli import ROOM, cli, merge
from _models import Family, contents
from submerge.cli._app import app

COMMANDS = ["merge", "calibrate", "plan", "explain", "export", "extract-lora", "methods", "route", "verify"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_at_80_columns_breaks_no_word(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli(command, "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    words = set(shown.translate({ord(line): " " for line in "│╭╮╰╯─"}).split())
    parsed = get_command(app).commands[command]  # type: ignore[attr-defined]
    texts = [parsed.help, *(getattr(parameter, "help", None) or "" for parameter in parsed.params)]
    options = [name for parameter in parsed.params for name in parameter.opts if name.startswith("-")]
    missing = [word for word in [*" ".join(texts).split(), *options] if word not in words]
    assert not missing, f"{missing} in\n{shown}"
    for line in parsed.help.splitlines():  # commands to copy stand on one line
        if line.startswith("submerge"):
            assert any(line in row for row in shown.splitlines()), line


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("submerge mer", ["merge"]),
        ("submerge merge --shard", ["--shard-size"]),
        ("submerge cal", ["calibrate"]),
        ("submerge calibrate nsc.yaml --st", ["--steps"]),
        ("submerge methods breadcrumbs_", ["breadcrumbs_ties"]),
        ("submerge merge recipe.yaml --as ad", ["adapter"]),
        ("submerge merge rec", []),  # nothing of its own: the shell completes files
    ],
)
def test_a_shell_completes(line: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SUBMERGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert cli().out.split() == found


# --- the frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [["--help"], ["-h"], ["merge", "--help"], ["plan", "-h"], ["methods", "-h"], ["--version"]]
)
def test_help_and_version(argv: list[str]) -> None:
    result = cli(*argv)
    assert result.code == 0
    assert result.err == ""
    assert (submerge.__version__ if argv == ["--version"] else "Usage") in result.out


@pytest.mark.parametrize(
    "argv",
    [
        ["merg"], ["merge"], ["merge", "r.yaml"], ["merge", "r.yaml", "-o"], ["plan"], ["explain", "r"],
        ["verify"], ["merge", "r.yaml", "-o", "o", "--threads", "0"], ["merge", "r.yaml", "-o", "o", "-x"],
        ["merge", "r.yaml", "-o", "o", "--threads", "two"],
    ],
)  # fmt: skip
def test_wrong_usage(argv: list[str]) -> None:
    result = cli(*argv)
    assert result.code == 2
    assert result.out == ""
    assert "error" in result.err.lower()
    assert "Traceback" not in result.err


def test_a_bug_is_told_in_one_line(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("submerge.engine.plan._make_plan.plan_tensors", broken)
    result = merge(recipe, tmp_path / "out")
    assert result.code == 1
    assert result.err.startswith("error: ZeroDivisionError: oh — this is a bug in submerge")
    assert result.err.count("\n") == 1
    monkeypatch.setenv("SUBMERGE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        merge(recipe, tmp_path / "out")
    monkeypatch.setenv("SUBMERGE_DEBUG", "0")
    assert merge(recipe, tmp_path / "out").err == result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_counts_whatever_a_library_makes_of_it(
    number: signal.Signals, code: int, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that is interrupted comes out of transformers as a module that cannot be found."""

    def importing(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)  # the handler runs in here, at the latest
        except BaseException as error:
            raise ModuleNotFoundError("could not import module") from error

    monkeypatch.setattr("submerge.engine.plan._make_plan.plan_tensors", importing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = merge(recipe, tmp_path / "out")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.code, result.err) == (code, "")


# --- as a user starts it --------------------------------------------------------------------------


def python(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False,
        preexec_fn=heeding_ctrl_c,
    )  # fmt: skip


def heeding_ctrl_c() -> None:
    """Let a process heed Ctrl-C, which those of a shell's background, tests among them, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


INTERRUPTED = {
    "as it is": "send()",
    "by a library that makes another error of it": """
try:
    send()
except BaseException as error:
    raise ImportError("no typer") from error
""",
    "where Python drops it": """
class Closed:
    def __del__(self):
        send()
Closed()
""",
}


@pytest.mark.parametrize("how", INTERRUPTED)
def test_ctrl_c_while_the_commands_are_imported(how: str, tmp_path: Path) -> None:
    send = "import os, signal, time\ndef send():\n    os.kill(os.getpid(), 2)\n    time.sleep(9)\n"
    (tmp_path / "typer.py").write_text(send + INTERRUPTED[how])
    path = os.pathsep.join([str(tmp_path), *sys.path])
    result = python("-m", "submerge", "methods", PYTHONPATH=path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_the_script_runs_what_python_m_runs() -> None:
    script = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = script["submerge"].partition(":")
    assert getattr(importlib.import_module(module), function) is submerge.__main__.main


def test_a_misspelt_setting_of_the_environment_is_told_once(recipe: Path, tmp_path: Path) -> None:
    argv = ("-m", "submerge", "merge", recipe, "-o", tmp_path / "out", "--quiet")
    result = python(*argv, SUBMERGE_KERNELS="nunpy")
    told = "warning: environment: SUBMERGE_KERNELS is 'nunpy', which is ignored — did you mean 'numpy'?\n"
    assert (result.returncode, result.stderr) == (0, told)


def test_python_m_submerge(recipe: Path, tmp_path: Path) -> None:
    result = python("-m", "submerge", "merge", recipe, "-o", tmp_path / "out", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{tmp_path / 'out'}\n", "")
    assert submerge.verify(tmp_path / "out", load=False).sound


def test_where_numba_fails_a_line_says_so_and_the_bytes_are_the_same(made: Family, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('no numba')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    argv = ("-m", "submerge", "merge", made.write_recipe("ties"), *ROOM, "--out")
    broken = python(*argv, tmp_path / "numpy" / "out", PYTHONPATH=path, SUBMERGE_KERNELS="numba")
    usual = python(*argv, tmp_path / "numba" / "out", SUBMERGE_KERNELS="numba")
    assert (broken.returncode, usual.returncode) == (0, 0)
    (line,) = [line for line in broken.stderr.splitlines() if "numba cannot be used" in line]
    assert line.startswith("warning: numba cannot be used (ImportError: no numba): ")
    assert "numba" not in usual.stderr
    assert contents(tmp_path / "numpy" / "out") == contents(tmp_path / "numba" / "out")


def test_a_terminal_that_knows_only_ascii(recipe: Path) -> None:
    result = python("-m", "submerge", "plan", recipe, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.returncode == 0, result.stderr
    assert "model.layers.*.mlp.up.weight" in result.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_output_that_cannot_be_written(recipe: Path) -> None:
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-m", "submerge", "plan", str(recipe), "--json"]
        result = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert result.returncode == 1
    assert "the output of the command cannot be written (No space left on device) — free" in result.stderr


def test_a_reader_that_goes_away(recipe: Path) -> None:
    command = f'"{sys.executable}" -m submerge methods --json | head -c 1; echo "${{PIPESTATUS[0]}}"'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_the_package_and_its_help_are_light() -> None:
    code = (
        "import sys, submerge\n"
        "heavy = {'torch', 'transformers', 'numpy', 'numba', 'huggingface_hub', 'rich.table', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import submerge.cli\n"
        "assert not {*heavy, 'submerge.store'} & set(sys.modules), 'the frame of the commands'\n"
        "assert callable(submerge.merge) and callable(submerge.plan)\n"
        "assert not {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert all(hasattr(submerge, name) for name in submerge.__all__)\n"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_what_computes_nothing_loads_no_torch(made: Family, tmp_path: Path) -> None:
    """Help, methods, and requests that the recipe, a flag or a model's place shows to be wrong."""
    good = made.write_recipe("ties")
    refused = {
        "syntax": "merge_method: [",
        "key": good.read_text() + "sed: 1\n",
        "method": good.read_text().replace("ties", "tie"),
        "option": good.read_text() + "parameters: {density: 2}\n",
        "model": good.read_text().replace(str(made.base), str(tmp_path / "nothing")),
    }
    for name, text in refused.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    recipes = [str(tmp_path / f"{name}.yaml") for name in refused]
    out = str(tmp_path / "out")
    requests = [
        (0, ["--help"]),
        (0, ["--version"]),
        (0, ["merge", "--help"]),
        (0, ["methods"]),
        (0, ["methods", "--json"]),
        (0, ["methods", "mass"]),
        (2, ["methods", "tie"]),
        (2, ["merge", str(good), "-o", out, "--shard-size", "large"]),
        *((2, ["plan", path]) for path in recipes),
        *((2, ["merge", path, "-o", out]) for path in recipes),
        *((2, ["explain", path, "-t", "mlp"]) for path in recipes),
    ]
    code = (
        "import sys\n"
        "from submerge.cli import main\n"
        f"for wanted, words in {requests!r}:\n"
        "    sys.argv = ['submerge', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert (stop.code or 0) == wanted, (words, stop.code)\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'numba', 'huggingface_hub'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
