"""Recipes of the kinds that people publish, over tiny models: planned and merged as by mergekit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from _cli import ROOM as FLAGS
from _cli import cli
from _models import ROOM, quiet_transformers, read
from _published import write_published_models
from submerge.engine import merge_documents
from submerge.recipe import Documents, load_documents

FOLDER = Path(__file__).parent / "mergekit_recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RANDOM = {"dare-linear", "dare-ties", "dare-ties-gradient", "della", "della-linear", "arcee-fusion"}
"""Masks are drawn from other streams than mergekit's, or from its rounding: tensors have the same shapes, and
other values."""
OTHER_NAMES = {"neox-linear", "neox-ties"}
"""mergekit asks these models for tensors that their files have not had for years."""
PACKED = {"experts-arithmetic", "experts-soup", "experts-stack"}
"""mergekit writes the experts of a layer as one tensor, as transformers loads them."""
HALF = {
    "linear-half",
    "phi-slerp",
    "ties-many",
    "dare-ties",
    "dare-ties-gradient",
    "slerp-slices",
    "passthrough-repeat",
}
"""mergekit rounds the inputs to `dtype` before it merges them, or all that comes of them after."""
FEWER_TURNS = {"karcher-modules": ("max_iter: 9999", "max_iter: 99")}
"""mergekit computes the mean in float32, whose last turns never differ by less than the recipe's `tol`: it
would turn to the end, which takes half a minute. Means of two models stand still long before."""


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the models, as the current one."""
    pytest.importorskip("transformers")
    folder = write_published_models(tmp_path_factory.mktemp("published"))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def documents(name: str) -> Documents:
    return load_documents(FOLDER / f"{name}.yaml", mergekit=True)


def test_there_are_fifty_of_them() -> None:
    assert len(RECIPES) >= 50
    assert RANDOM | OTHER_NAMES | HALF <= set(RECIPES)


def test_the_documentation_says_how_many_run() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
    assert f"All of {len(RECIPES)} recipes" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_planned_as_it_is(name: str) -> None:
    result = cli("plan", FOLDER / f"{name}.yaml", "--mergekit", *FLAGS)
    assert result.code == 0, result.err


@pytest.fixture(scope="module")
def run_mergekit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Merge by the text of a recipe, as mergekit-yaml or mergekit-multi does; return the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        multi = pytest.importorskip("mergekit.scripts.multimerge")
    options = multi.MergeOptions(quiet=True, write_model_card=False, random_seed=0, lora_merge_cache="loras")

    def run(text: str) -> Path:
        folder = tmp_path_factory.mktemp("theirs")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(list(yaml.safe_load_all(text))) == 1:
                config = multi.MergeConfiguration.model_validate(yaml.safe_load(text))
                multi.run_merge(config, str(folder / "out"), options)
            else:
                tasks = multi.make_tasks(
                    *multi.load_config(text, str(folder)), options, str(folder), str(folder / "out"), True
                )
                multi.Executor(tasks, math_device="cpu", storage_device="cpu").execute(desc="")
        return folder / "out"

    return run


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the parameters of a model as transformers loads it, with none left over."""
    model, loading = quiet_transformers().AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return dict(model.state_dict())


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OTHER_NAMES])
def test_it_is_merged_as_by_mergekit(name: str, run_mergekit: Any, tmp_path: Path) -> None:
    tensors = loaded if name in PACKED else read
    text = (FOLDER / f"{name}.yaml").read_text()
    old, new = FEWER_TURNS.get(name, ("", ""))
    assert old in text
    theirs = tensors(run_mergekit(text.replace(old, new) if old else text))
    merge_documents(documents(name), tmp_path / "ours", settings=ROOM)
    ours = tensors(tmp_path / "ours")
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    for tensor, found in ours.items() if name not in RANDOM else ():
        expected = theirs[tensor].float()
        tolerance = {"rtol": 2**-6, "atol": 1e-3} if name in HALF else {"rtol": 1e-5, "atol": 2e-6}
        close = torch.isclose(found.float(), expected, **tolerance)
        assert close.float().mean() > (0.98 if name in HALF else 0.9999), tensor
