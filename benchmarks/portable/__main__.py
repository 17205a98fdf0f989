"""`python -m benchmarks.portable`: do merges have the same bytes on another processor?

The same small models are merged by every method, as checkpoints and as adapters, into bfloat16 and float32,
once as it is and once for each setting below. MKL (`MKL_CBWR`) and PyTorch (`ATEN_CPU_CAPABILITY`) can be
set to compute as on older processors, as near as one machine comes to another. Each setting has a process of
its own. A table goes to standard output: what differs from the first run, and by how much of the largest
value of a tensor. `python -m benchmarks.portable digests` compares with the bytes of other machines.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import submerge
from benchmarks.adapters.models import make_adapters
from benchmarks.portable import digests
from benchmarks.portable.golden import ANY_PROCESSOR, SPARSE, model_count
from benchmarks.speed.models import BASE, TUNED, Shape, make_models
from submerge.methods import METHODS

SHAPE = Shape(hidden=192, intermediate=520, layers=1, vocabulary=640, heads=4, kv_heads=1)
ROOM = submerge.Settings(max_memory=4 * 10**9)
PLAIN: dict[str, str] = {"OMP_NUM_THREADS": "1", "SUBMERGE_KERNELS": "numba"}
SETTINGS: dict[str, tuple[dict[str, str], submerge.Settings]] = {
    "as it is": (PLAIN, replace(ROOM, threads=1)),
    "4 workers": (PLAIN, replace(ROOM, threads=4)),
    "4 threads of PyTorch": ({"OMP_NUM_THREADS": "4"}, ROOM),
    "numpy for numba": (PLAIN | {"SUBMERGE_KERNELS": "numpy"}, replace(ROOM, threads=1)),
    "numpy for numba, 2 workers": (PLAIN | {"SUBMERGE_KERNELS": "numpy"}, replace(ROOM, threads=2)),
    "numba for any processor": (PLAIN | ANY_PROCESSOR, replace(ROOM, threads=1)),
    "half the memory": (PLAIN, replace(ROOM, max_memory=2 * 10**9)),
    "another order of sets": (PLAIN | {"PYTHONHASHSEED": "7"}, ROOM),
    "MKL as with AVX2": (PLAIN | {"MKL_CBWR": "AVX2"}, ROOM),
    "MKL on any processor": (PLAIN | {"MKL_CBWR": "COMPATIBLE"}, ROOM),
    "PyTorch with AVX2": (PLAIN | {"ATEN_CPU_CAPABILITY": "avx2"}, ROOM),
    "PyTorch on any processor": (PLAIN | {"ATEN_CPU_CAPABILITY": "default"}, ROOM),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 1e-3},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"epsilon": 1e-5},
    "ssam": {"rank": 8},
    "sce": {"select_topk": 0.5},
    "mass": {"rank": 8},
    "many": {"statistics": "identity"},
    "regmean": {"statistics": "identity"},
}


def recipes(folder: Path, chosen: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and a recipe for each of the methods, form of input and number format."""
    for form, named in (("checkpoints", TUNED), ("adapters", [f"adapter-{i}" for i in range(3)])):
        for name, method in ((name, METHODS[name]) for name in chosen):
            options = {o: value for o, value in SPARSE.items() if method.option(o)} | OPTIONS.get(name, {})
            own = {"parameters": {"weight": 0.4}} if method.option("weight") else {}
            paths = [str(folder / model) for model in named[: model_count(method)]]
            if form == "adapters":
                paths = [f"{folder / BASE}+{path}" for path in paths]
            for dtype in ("float32", "bfloat16"):
                recipe: dict[str, Any] = {
                    "merge_method": name,
                    "models": [{"model": path, **own} for path in paths],
                    "parameters": options,
                    "dtype": dtype,
                }
                if name != "passthrough":
                    recipe["base_model"] = str(folder / BASE)
                yield f"{name} {form} {dtype}", recipe


def merge_all(folder: Path, out: Path, settings: submerge.Settings, chosen: Sequence[str]) -> None:
    """Merge by every recipe into folders of `out`."""
    for name, recipe in recipes(folder, chosen):
        submerge.merge(recipe, out / name, settings=settings)


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of two merges, as a share of the tensor's largest value."""
    files = [folder / "model.safetensors" for folder in (one, other)]
    if files[0].read_bytes() == files[1].read_bytes():
        return 0.0
    a, b = (load_file(file) for file in files)
    return max(float((a[n].double() - b[n].double()).abs().max() / a[n].double().abs().max()) for n in a)


def main(arguments: list[str]) -> int:
    """Merge under all settings, and print the table; return the exit status."""
    if arguments[:1] == ["digests"]:
        return digests.main(arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", help="all by default")
    parser.add_argument("--child", nargs=3, metavar=("MODELS", "OUT", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    chosen, child = options.methods or list(METHODS), options.child
    if child:
        merge_all(Path(child[0]), Path(child[1]), SETTINGS[child[2]][1], chosen)
        return 0
    with tempfile.TemporaryDirectory() as place:
        models = Path(place, "models")
        make_models(models, SHAPE, lambda _: None)
        make_adapters(models, SHAPE, 3, 8, lambda _: None)
        for name, (environment, _) in SETTINGS.items():
            child = [*chosen, "--child", str(models), f"{place}/{name}", name]
            argv = [sys.executable, "-m", "benchmarks.portable", *child]
            subprocess.run(argv, env={**os.environ, **environment}, check=True)
            print(name, file=sys.stderr)
        table(Path(place), [name for name, _ in recipes(models, chosen)])
    return 0


def table(place: Path, names: list[str]) -> None:
    """Print a row for each method and form, with what differs in either number format."""
    first, *others = SETTINGS
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", end="\n\n")
    print("| method | from | " + " | ".join(others) + " |\n|---|---|" + "---|" * len(others))
    for name in names:
        method, form, dtype = name.split()
        if dtype == "float32":
            cells = []
            for setting in others:
                off = [
                    difference(
                        place / first / f"{method} {form} {d}", place / setting / f"{method} {form} {d}"
                    )
                    for d in ("float32", "bfloat16")
                ]
                cells.append(" / ".join("same" if not x else f"{x:.0e}" for x in off) if any(off) else "same")
            print(f"| `{method}` | {form} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
