"""`submerge export`: tasks as adapters that PEFT loads, and a router that chooses as ours does."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _cli import cli
from _mass_tasks import text_inputs
from _models import ROOM, TEXT, quiet_transformers

peft = pytest.importorskip("peft")
NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merge of three adapters of a small decoder."""
    root = tmp_path_factory.mktemp("export")
    t = quiet_transformers()
    torch.manual_seed(0)
    base = t.LlamaForCausalLM(t.LlamaConfig(**{**TEXT, "hidden_size": 32}, pad_token_id=0))
    base.save_pretrained(root / "base")
    for number, name in enumerate(NAMES):
        config = peft.LoraConfig(
            r=2 + number, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"
        )
        adapted = peft.get_peft_model(t.LlamaForCausalLM.from_pretrained(root / "base"), config)
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        adapted.save_pretrained(str(root / name))
    recipe = {
        "merge_method": "mass",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / name)} for name in NAMES],
    }
    cut = {**recipe, "parameters": {"rank": 3}}
    submerge.merge(cut, root / "cut", settings=ROOM)
    return submerge.merge(recipe, root / "served", settings=ROOM).out


def loaded(folder: Path, served: Path) -> Any:
    """Return the base with all exported adapters."""
    t = quiet_transformers()
    base = t.LlamaForCausalLM.from_pretrained(served.parent / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, str(folder / NAMES[0]), adapter_name=NAMES[0])
        for name in NAMES[1:]:
            model.load_adapter(str(folder / name), adapter_name=name)
    return model.eval()


def test_adapters_and_their_router(served: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    result = cli("export", served, "--to", "adapters", "-o", out)
    assert result.code == 0, result.err
    assert "rank 4; layer 1 routes" in result.out
    assert "left out" not in result.out
    model = loaded(out, served)
    ours = submerge.load(served, first_pass="base", routing_layers="1")
    inputs = text_inputs(1, 5)
    mask = inputs["attention_mask"].bool()
    for name in NAMES:
        model.set_adapter(name)
        with torch.no_grad():
            found = model(**inputs).logits[mask]
        assert (found - ours(**inputs, task=name).logits[mask]).abs().max() < 1e-4
    check_router(out, model, ours, "leading")
    out = tmp_path / "cut"
    assert cli("export", served.parent / "cut", "-o", out).code == 0
    ours = submerge.load(served.parent / "cut", routing_layers="1")
    check_router(out, loaded(out, served), ours, "residual")


def check_router(out: Path, model: Any, ours: Any, score: str) -> None:
    """Check that the example beside the adapters chooses as the served model does."""
    inputs = text_inputs(1, 5)
    spec = importlib.util.spec_from_file_location("route_example", out / "route.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    router = example.Router(out)
    assert router.score == ours.router.settings["score"] == score
    scores = router.scores(model, **inputs)
    assert (scores - ours.route(**inputs).scores).abs().max() < 1e-3
    assert router(model, **inputs) == ours.route(**inputs, group="batch").tasks[0]


def test_what_is_refused(served: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    assert cli("export", served, "-o", out, "--json").json["rank"] == 4
    again = cli("export", served, "-o", out)
    assert again.code == 2
    assert "allow --overwrite" in again.err
    assert cli("export", served, "-o", out, "--overwrite").code == 0
    assert cli("export", served, "-o", tmp_path / "other", "--to", "onnx").code == 2
    assert cli("export", served.parent / "base", "-o", tmp_path / "other").code == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert cli("export", served, "-o", tmp_path / "mine", "--overwrite").code == 2
    assert (tmp_path / "mine" / "letter.txt").exists()
    assert not (tmp_path / "other").exists()
