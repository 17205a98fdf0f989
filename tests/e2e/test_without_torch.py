"""What computes nothing, or by ranges of tensors alone, does so without torch, and writes the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import submerge
from _models import CONFIG, ROOM, SMALL, Family, contents, family, perturbed, state, write
from store.helpers_adapter import by_hand
from submerge.methods import METHODS

STREAMED = [name for name, method in METHODS.items() if method.matrix is None]

BEGIN = """
import sys

class Refusing:
    tried = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "huggingface_hub"):
            self.tried.append(name)
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refusing())
import submerge
"""
END = "assert not Refusing.tried, Refusing.tried\n"  # some packages are gone without where they are absent


def without_torch(code: str) -> str:
    """Return what Python code prints that never imports torch; it has `sys` and `submerge`."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{BEGIN}{code}\n{END}"],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "SUBMERGE_DEBUG": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def commands(*lines: list[object]) -> str:
    """Return what commands print, of which each must end well."""
    texts = [[str(word) for word in words] for words in lines]
    return without_torch(
        "from submerge.cli import main\n"
        f"for words in {texts!r}:\n"
        "    sys.argv = ['submerge', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (words, end.code)\n"
        "assert 'numba' not in sys.modules, 'so little is not worth the compilation'\n"
    )


def check_bytes(recipes: dict[str, dict[str, Any]], folder: Path) -> None:
    """Assert that merges without torch write what those of this process write, which has it."""
    without, by_torch = folder / "without", folder / "with"
    without_torch(
        f"settings = submerge.Settings(max_memory={ROOM.max_memory})\n"
        f"for name, recipe in {recipes!r}.items():\n"
        f"    submerge.merge(recipe, {str(without)!r} + '/' + name, settings=settings)\n"
    )
    for name, recipe in recipes.items():
        submerge.merge(recipe, by_torch / name, settings=ROOM)
        assert contents(without / name) == contents(by_torch / name), name


def test_commands(tmp_path: Path) -> None:
    made = family(tmp_path / "models", tokens={"a": 0, "b": 1}, dtype=torch.bfloat16)
    recipe, out = made.write_recipe("ties", {"density": 0.4}), tmp_path / "out"
    printed = commands(
        ["plan", recipe],
        ["explain", recipe, "-t", "mlp"],
        ["merge", recipe, "-o", out, "--device", "cpu", "--quiet"],
        ["verify", out, "--no-load"],
        ["inspect", "--help"],
    )
    for part in ("model.layers.*.mlp.up.weight", "tuned0 = 0.4   parameters.density", f"{out}\n", "sound"):
        assert part in printed
    submerge.merge(recipe, tmp_path / "again" / "out", settings=ROOM)
    assert contents(out) == contents(tmp_path / "again" / "out")


def test_methods_that_go_by_ranges(tmp_path: Path) -> None:
    made = family(tmp_path / "models", dtype=torch.bfloat16)
    one = Family(made.base, made.tuned[:1], made.architecture)
    recipes = {name: made.recipe(name) for name in STREAMED}
    recipes |= {name: one.recipe(name) for name in ("passthrough", "arcee_fusion")}
    recipes |= {name: one.recipe(name, {"t": 0.3}) for name in ("slerp", "nearswap")}
    check_bytes(recipes, tmp_path)


def test_a_stack(tmp_path: Path) -> None:
    llama = {**CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    folders = [write(tmp_path / name, state(seed=seed), llama) for seed, name in enumerate("ab")]
    sources = [{"sources": [{"model": str(folder), "layer_range": [0, 2]}]} for folder in folders]
    check_bytes({"stack": {"merge_method": "passthrough", "slices": sources}}, tmp_path)


def test_types_that_differ_tied_copies_and_integers(tmp_path: Path) -> None:
    base = state(dtype=torch.float16) | {"steps": torch.arange(5)}
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    tuned = [perturbed(base, i, dtype=dtype) for i, dtype in enumerate((torch.float64, torch.bfloat16))]
    for one in tuned:
        one["lm_head.weight"] = one["model.embed_tokens.weight"].clone()
    folders = {name: tmp_path / name for name in ("base", "a", "b")}
    for folder, tensors in zip(folders.values(), (base, *tuned), strict=True):
        write(folder, tensors, {**CONFIG, "tie_word_embeddings": True})
    made = Family(folders["base"], (folders["a"], folders["b"]), "ToyModel")
    check_bytes({kind: made.recipe("linear", dtype=kind) for kind in ("float16", "float32")}, tmp_path)


def test_the_plan_of_an_adapter(tmp_path: Path) -> None:
    made = family(tmp_path, 1, shapes={**SMALL, "q.weight": (3, 4)})
    models = [{"model": str(folder)} for folder in (by_hand(tmp_path / "adapter"), made.tuned[0])]
    recipe = {
        "merge_method": "ties",
        "base_model": str(made.base),
        "models": models,
        "parameters": {"weight": 1},
    }
    printed = without_torch(f"print(submerge.plan({recipe!r}).models[1].adapter.parts)")
    assert "q.weight" in printed


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    made = family(tmp_path / "models", dtype=torch.bfloat16)
    recipe, out = made.recipe("linear"), tmp_path / "out"
    submerge.merge(recipe, out, settings=ROOM)
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2] + b"\x80\x7f")  # the last value becomes infinite
    code = f"import json\nprint(json.dumps(submerge.verify({str(out)!r}, load=False).to_dict()))"
    found = json.loads(without_torch(code))
    assert len(found["problems"]) == 2
    assert sum(found["nonfinite"].values()) == 1
