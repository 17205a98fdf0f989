"""Models that sentence-transformers saved: what follows the encoder lies beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import submerge
from _models import ROOM, write
from store.helpers_adapter import by_hand

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def sentence_folder(folder: Path, pooling: str) -> Path:
    """Write what sentence-transformers writes beside weights."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    (folder / "config_sentence_transformers.json").write_text("{}")
    return folder


def warnings(*models: object, **more: object) -> list[str]:
    recipe = {"merge_method": "passthrough", "models": [{"model": str(model)} for model in models]}
    return list(submerge.plan(recipe | more, settings=ROOM).warnings)


def test_modules_that_the_output_lacks_are_told(tmp_path: Path) -> None:
    """A merge onto the bare encoder is loaded with the mean of all tokens, whatever was trained."""
    state = {"q.weight": torch.ones(3, 4)}
    bare = write(tmp_path / "bare", state, {"model_type": "bert"})
    adapter = by_hand(sentence_folder(tmp_path / "adapter", "cls"))
    (warning,) = warnings(f"{bare}+{adapter}")
    assert "the output has none: copy 1_Pooling, config_sentence_transformers.json, modules.json" in warning
    same = write(sentence_folder(tmp_path / "same", "cls"), state, {"model_type": "bert"})
    assert warnings(f"{same}+{adapter}") == []
    other = write(sentence_folder(tmp_path / "other", "mean"), state, {"model_type": "bert"})
    (warning,) = warnings(f"{other}+{adapter}")
    assert f"the output has those of {other}+{adapter}, which are others" in warning
    models = [{"model": str(model), "parameters": {"weight": 0.5}} for model in (bare, same)]
    plan = submerge.plan({"merge_method": "linear", "models": models}, settings=ROOM)
    assert any(f"{same}: was saved by sentence-transformers" in warning for warning in plan.warnings)
