"""Real architectures: merged by a recipe file, loaded by transformers, compared with a dense merge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import submerge
from _dense import expected
from _models import CONFIGS, ROOM, Family, architecture, contents, inputs, quiet_transformers, read
from _support import Case

TIED = {"qwen2", "gemma", "gemma2", "bert", "t5"}
CASES = (
    Case("linear", "linear", {"weight": [0.25, 0.5]}, models=2, base=False),
    Case("task_arithmetic", "task_arithmetic", {"weight": [0.75, -0.25], "lambda": 0.5}, models=2),
    Case("ties", "ties", {"weight": [0.5, 1.0], "density": [0.5, 0.25]}, models=2),
)


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def family(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    found = architecture(kind, tmp_path_factory.mktemp(kind))
    before = [contents(folder) for folder in (found.base, *found.tuned)]
    yield found
    assert [contents(folder) for folder in (found.base, *found.tuned)] == before, "an input was touched"


def recipe_of(case: Case, family: Family, **more: Any) -> dict[str, Any]:
    """Return the case as a recipe."""
    each = {k: v for k, v in case.options.items() if isinstance(v, list)}
    shared = {k: v for k, v in case.options.items() if k not in each}
    return {
        "merge_method": case.method,
        "models": [
            {"model": str(folder), "parameters": {k: v[i] for k, v in each.items()}}
            for i, folder in enumerate(family.tuned)
        ],
        **({"base_model": str(family.base)} if case.base else {}),
        **({"parameters": shared} if shared else {}),
        **more,
    }


def load(folder: Path, family: Family, dtype: Any = "auto") -> tuple[Any, dict[str, Any]]:
    model, info = getattr(quiet_transformers(), family.architecture).from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    return model.eval(), info


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merge_and_load(case: Case, kind: str, family: Family, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(case, family)))
    report = submerge.merge(tmp_path / "recipe.yaml", tmp_path / "out", settings=ROOM)

    base, tuned, out = read(family.base), [read(folder) for folder in family.tuned], read(report.out)
    reference = base if case.base else tuned[0]
    assert set(out) == set(reference) == set(base)
    assert {n: (t.dtype, t.shape) for n, t in out.items()} == {
        n: (t.dtype, t.shape) for n, t in reference.items()
    }
    for name, wanted in expected(case, base, tuned).items():
        torch.testing.assert_close(
            out[name].double(), wanted, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )

    first = family.base if case.base else family.tuned[0]
    for name in ("config.json", "generation_config.json", "LICENSE"):
        if (first / name).exists():
            assert (report.out / name).read_bytes() == (first / name).read_bytes()
    assert not list(report.out.glob("*.index.json"))

    model, info = load(report.out, family)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    if kind in TIED:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        result = model(**inputs(kind))
    logits = result.logits_per_image if kind == "clip" else result.logits
    assert logits.isfinite().all()

    # the names inside a model are not those on disk (experts are packed, prefixes change): look there too
    if case.method != "ties":  # which trims by the tensor on disk
        inside = [load(folder, family)[0].state_dict() for folder in (family.base, *family.tuned)]
        for name, wanted in expected(case, inside[0], inside[1:]).items():
            torch.testing.assert_close(model.state_dict()[name].double(), wanted, rtol=1e-5, atol=1e-6)


def dtypes_in(config: Any) -> set[str]:
    """Return every dtype that a config names, its parts included."""
    found = {config[key] for key in ("dtype", "torch_dtype") if config.get(key)}
    return found.union(*(dtypes_in(part) for part in config.values() if isinstance(part, dict)))


def test_a_recipes_dtype_is_that_of_tensors_and_config(kind: str, family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(CASES[1], family, dtype="bfloat16")
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    wanted = expected(CASES[1], read(family.base), [read(folder) for folder in family.tuned])
    for name, found in read(out).items():
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted[name], rtol=2**-8, atol=1e-6)
    config = json.loads((out / "config.json").read_text())
    assert dtypes_in(config) == {"bfloat16"}
    original = json.loads((family.base / "config.json").read_text())
    assert set(config) == set(original)
    model, info = load(out, family)
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert submerge.verify(out).sound


def test_the_dtype_of_the_base_is_kept(tmp_path: Path) -> None:
    made = architecture("llama", tmp_path, dtype=torch.bfloat16)
    out = submerge.merge(recipe_of(CASES[2], made), tmp_path / "out", settings=ROOM).out
    tuned = [read(folder) for folder in made.tuned]
    wanted = expected(CASES[2], read(made.base), tuned)
    for name, found in read(out).items():
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, wanted[name].to(torch.bfloat16)) or torch.allclose(
            found.double(), wanted[name], rtol=2**-8
        )
    assert (out / "config.json").read_bytes() == (made.base / "config.json").read_bytes()
    assert load(out, made)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("sound", [True, False])
def test_transformers_logs_as_before_when_it_was_checked(bars: bool, sound: bool, tmp_path: Path) -> None:
    from transformers import logging

    made = architecture("bert", tmp_path)
    out = submerge.merge(recipe_of(CASES[2], made), tmp_path / "out", settings=ROOM).out
    if not sound:
        (out / "config.json").write_text(
            json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "x"})
        )
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        assert submerge.verify(out).sound is sound
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() is bars
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
