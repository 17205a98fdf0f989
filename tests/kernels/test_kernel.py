"""How a kernel is run: compiled, without a cache where there can be none, and by numpy where numba fails."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import submerge
from submerge import kernels
from submerge.kernels import Kernel, _kernel, compiling_for, kernel, uses_numba

SOURCE = Path(submerge.__file__).parents[1]

MERGE = """
import sys
import numpy as np
from submerge.kernels import compiling_for, store, uses_numba
with compiling_for(1 << 30):
    out = np.empty(3, np.uint16)
    store("BF16", np.array([1, 1.001, np.nan], np.float32), out)
    store("BF16", np.array([1, 1.001, np.nan], np.float32), out)
    print(out.tolist(), uses_numba(), "numba" in sys.modules)
"""
VALUES = "[16256, 16256, 32704]"


def run(code: str, source: Path = SOURCE, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    own |= {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", code], env=own, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def test_a_loop_is_compiled_and_does_what_numpy_does() -> None:
    result = run(MERGE)
    assert result.stdout.split("\n")[0] == f"{VALUES} True True"
    assert result.stderr == ""


def test_numpy_by_the_environment() -> None:
    result = run(MERGE, SUBMERGE_KERNELS="numpy")
    assert result.stdout.split("\n")[0] == f"{VALUES} False False"
    assert result.stderr == ""


def test_a_choice_that_is_not_known_is_told_once() -> None:
    result = run(f"{MERGE}\nimport submerge.engine.work", SUBMERGE_KERNELS="numbaa", SUBMERGE_KERNEL="numpy")
    assert result.stdout.split("\n")[0] == f"{VALUES} True True"
    told = [line for line in result.stderr.splitlines() if "RuntimeWarning" in line]
    assert [line.partition("RuntimeWarning: ")[2] for line in told] == [
        "environment: SUBMERGE_KERNELS is 'numbaa', which is ignored — did you mean 'numba'?",
        "environment: SUBMERGE_KERNEL is ignored — did you mean 'SUBMERGE_KERNELS'?",
    ]


def test_what_is_known_is_not_told() -> None:
    result = run(MERGE, SUBMERGE_KERNELS=" NumPy", SUBMERGE_DATA="x", SUBMERGE_SERVICE_HOST="x")
    assert result.stdout.split("\n")[0] == f"{VALUES} False False"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("disabled", "compiles"), [("1", False), ("0", True), ("", True), ("2", False), ("no", True)]
)
def test_numpy_where_numba_is_told_to_compile_nothing(disabled: str, compiles: bool) -> None:
    """Not the loops as Python, which would take days, and warn of integers that overflow."""
    code = "from submerge.kernels import uses_numba; print(uses_numba())"
    assert run(code, NUMBA_DISABLE_JIT=disabled).stdout.strip() == str(compiles)


@pytest.mark.parametrize(
    "broken", ["raise ImportError('no numba here')", "raise OSError('an unknown processor')"]
)
def test_without_numba_one_warning_says_what_to_do(tmp_path: Path, broken: str) -> None:
    (tmp_path / "numba.py").write_text(broken)
    result = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{MERGE}")
    assert result.stdout.split("\n")[0].startswith(f"{VALUES} False")
    assert result.stderr.count("numba cannot be used") == 1
    assert "pip install --upgrade numba" in result.stderr
    assert broken.split("'")[1] in result.stderr


def test_a_loop_that_cannot_be_compiled_is_run_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernel, "_choice", _kernel._Choice())

    @kernel(lambda values: np.multiply(values, 2, out=values))
    def doubled(values: np.ndarray) -> None:
        values.nothing_that_numba_knows()

    values = np.ones(3)
    with pytest.warns(RuntimeWarning, match="numba cannot be used .*: numpy computes the same bytes"):
        doubled(values)
    doubled(values)
    assert values.tolist() == [4.0] * 3
    assert not uses_numba()


def test_where_nothing_can_be_cached_kernels_are_compiled_all_the_same(tmp_path: Path) -> None:
    source = tmp_path / "site-packages"
    shutil.copytree(SOURCE / "submerge", source / "submerge", ignore=shutil.ignore_patterns("__pycache__"))
    (
        source / "submerge" / "kernels" / "__pycache__"
    ).touch()  # no folder, so that root cannot write there either
    result = run(MERGE, source, HOME=os.devnull, XDG_CACHE_HOME=os.devnull)
    assert result.stdout.split("\n")[0] == f"{VALUES} True True"
    assert result.stderr == ""


def test_a_full_disk_takes_no_cache(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    result = run(limit + MERGE, NUMBA_CACHE_DIR=str(tmp_path))
    assert result.stdout.split("\n")[0] == f"{VALUES} True True"
    assert result.stderr == ""


def test_small_merges_do_without_numba() -> None:
    result = run(MERGE.replace("1 << 30", "1000"))
    assert result.stdout.split("\n")[0] == f"{VALUES} False False"


def test_numba_by_the_environment() -> None:
    result = run(MERGE.replace("1 << 30", "1000"), SUBMERGE_KERNELS="numba")
    assert result.stdout.split("\n")[0] == f"{VALUES} True True"


def test_the_choice_is_of_the_merge_alone() -> None:
    before = uses_numba()
    with compiling_for(1):
        assert not uses_numba()
    assert uses_numba() == before


def test_a_reference_warns_of_nothing() -> None:
    twice = Kernel(lambda values: None, lambda values: np.multiply(values, 2, out=values))
    with compiling_for(1):
        values = np.array([3e38], np.float32)
        twice(values)
    assert values.tolist() == [np.inf]


def test_numba_is_imported_without_linear_algebra_and_knows_of_it() -> None:
    result = run(
        "import gc, sys\n"
        "from submerge.kernels import compiling_for\n"
        "with compiling_for(1 << 30): print('scipy.linalg' in sys.modules, gc.isenabled())\n"
        "from numba.np import arraymath, linalg\n"
        "print(arraymath._HAVE_BLAS, linalg.ensure_blas.__module__)\n"
    )
    assert result.stdout.split("\n")[:2] == ["False True", "True numba.np.linalg"]


def test_kernels_call_only_kernels_of_their_own_file() -> None:
    """numba's cache has what a loop calls, too, and is dropped where the file of the loop itself changes."""
    for name in (info.name for info in pkgutil.iter_modules(kernels.__path__, "submerge.kernels.")):
        module = importlib.import_module(name)
        own = {key: value for key, value in vars(module).items() if isinstance(value, Kernel)}
        assert [key for key, value in own.items() if value.loop.__module__ != name] == []
