"""From a recipe with modalities to answers: a composed model of one specialist is that specialist."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _models import ROOM
from _specialists import ROWS, TEXT, Specialists, make_specialists, quiet
from serving.helpers_composed import by_token

pytest.importorskip("transformers")
pytest.importorskip("peft")

PLACEHOLDER = ROWS
HOW: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
    "suppress_tokens": list(range(ROWS, ROWS + 4)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Specialists:
    specialists = make_specialists(tmp_path_factory.mktemp("specialists"))
    specialists.adapt("vision", "vision-lora", 1)
    specialists.adapt("hearing", "hearing-language", 2, r=3, target_modules=r".*language_model.*q_proj")
    specialists.adapt("hearing", "hearing-audio", 3, target_modules=r".*language_model.*(?:k|o)_proj")
    specialists.tune("vision", "vision-tuned", 4)
    specialists.tune("hearing", "hearing-tuned", 5)
    return specialists


def composed(made: Specialists, out: Path, *entries: dict[str, Any], **more: Any) -> Any:
    """Return the loaded merge of specialists; one alone has its whole update."""
    method = "task_arithmetic" if len(entries) == 1 else "ssam"
    parameters = {"weight": 1.0} if len(entries) == 1 else {"rank": 2, "scale": "auto"}
    with quiet():
        submerge.merge(made.recipe(method, *entries, parameters=parameters, **more), out, settings=ROOM)
    return submerge.load(out)


def adapted(made: Specialists, name: str, folder: str) -> Any:
    """Return a specialist with an adapter."""
    from peft import PeftModel

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(made.load(name), made.path(folder)).merge_and_unload().eval()


def request_(kind: str) -> dict[str, torch.Tensor]:
    """Return a batch of two prompts with one and two inputs; the first is filled up on the left."""
    draw = torch.Generator().manual_seed(3)
    count = 4 if kind == "image" else 5
    ids = torch.randint(3, ROWS, (2, 2 * count + 6), generator=draw)
    ids[:, -count - 2 : -2] = PLACEHOLDER
    ids[1, 2 : 2 + count] = PLACEHOLDER
    mask = torch.ones_like(ids)
    ids[0, :3], mask[0, :3] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "image":
        return {**batch, "pixel_values": torch.randn(3, 3, 8, 8, generator=draw)}
    heard = torch.ones(3, 32, dtype=torch.long)
    heard[:, 20:] = 0
    return {**batch, "input_features": torch.randn(3, 8, 32, generator=draw), "feature_attention_mask": heard}


def same_answers(model: Any, other: Any, batch: dict[str, torch.Tensor]) -> None:
    real = batch["attention_mask"].bool()
    found, wanted = (m(**batch).logits[..., :ROWS][real] for m in (model, other))
    assert (found - wanted).abs().max() < 1e-4
    assert wanted.std() > 0.01
    assert torch.equal(model.generate(**batch, **HOW), other.generate(**batch, **HOW))


@pytest.mark.parametrize(("name", "kind"), [("vision-tuned", "image"), ("hearing-tuned", "audio")])
@torch.no_grad()
def test_a_tuned_specialist(made: Specialists, name: str, kind: str, tmp_path: Path) -> None:
    model = composed(made, tmp_path / "out", made.entry(name, kind))
    same_answers(model, made.load(name).eval(), request_(kind))


@torch.no_grad()
def test_an_untouched_language_model(made: Specialists, tmp_path: Path) -> None:
    model = composed(made, tmp_path / "out", made.entry("hearing", "audio"))
    assert not model.controller.gated.modules
    same_answers(model, made.load("hearing").eval(), request_("audio"))


@pytest.mark.parametrize("rows", [ROWS, ROWS + 4])
@torch.no_grad()
def test_a_head_of_its_own_where_the_base_ties_it(made: Specialists, rows: int, tmp_path: Path) -> None:
    """The head is merged, whatever it is called, and however many rows it has."""
    import transformers

    own = Specialists(tmp_path)
    config = transformers.LlamaConfig(**TEXT | {"tie_word_embeddings": True, "vocab_size": rows})
    language = {k: v[:rows] for k, v in made.language(made.load("vision-tuned").state_dict()).items()}
    base = transformers.LlamaForCausalLM(config)
    base.load_state_dict({k: v for k, v in language.items() if k != "lm_head.weight"}, strict=False)
    for name in ("base", "vision-tuned"):
        shutil.copytree(made.path(name), own.path(name))
    with quiet():
        base.save_pretrained(own.path("base"))
    assert "lm_head.weight" not in load_file(own.path("base") / "model.safetensors")
    entry = own.entry("vision-tuned", "image")
    (warning,) = submerge.plan(own.recipe("ssam", entry)).warnings
    assert "unties lm_head.weight from model.embed_tokens.weight" in warning
    model = composed(own, tmp_path / "out", entry)
    assert submerge.verify(tmp_path / "out").sound
    same_answers(model, made.load("vision-tuned").eval(), request_("image"))


@torch.no_grad()
def test_one_adapter_for_all_tokens(made: Specialists, tmp_path: Path) -> None:
    model = composed(made, tmp_path / "out", made.entry("vision", "image", lora="vision-lora"))
    same_answers(model, adapted(made, "vision", "vision-lora"), request_("image"))


@torch.no_grad()
def test_a_fold_for_all_tokens(made: Specialists, tmp_path: Path) -> None:
    entry = made.entry("vision-tuned", "image")
    model = composed(made, tmp_path / "out", entry, modality_tokens="merged")
    assert not model.controller.gated.modules
    same_answers(model, made.load("vision-tuned").eval(), request_("image"))


@torch.no_grad()
def test_an_adapter_for_text_and_one_for_the_modality(made: Specialists, tmp_path: Path) -> None:
    loras = {"language_lora": "hearing-language", "modality_lora": "hearing-audio"}
    model = composed(made, tmp_path / "out", made.entry("hearing", "audio", **loras))
    batch = request_("audio")
    labels = (batch["input_ids"] == PLACEHOLDER).long()
    text, stream = (adapted(made, "hearing", loras[kind]) for kind in ("language_lora", "modality_lora"))
    wanted = by_token([text, stream], labels, **batch)[..., :ROWS]
    assert (model(**batch).logits[..., :ROWS] - wanted)[batch["attention_mask"].bool()].abs().max() < 1e-4


@torch.no_grad()
def test_two_specialists_answer_together(made: Specialists, tmp_path: Path) -> None:
    entries = [made.entry("vision", "image", lora="vision-lora"), made.entry("hearing-tuned", "audio")]
    model = composed(made, tmp_path / "out", *entries)
    ids = [task["placeholder_id"] for task in _tasks(tmp_path / "out")]
    assert len(set(ids)) == 2
    prompt = torch.tensor([[4, *[ids[0]] * 4, 5, *[ids[1]] * 5, 6, *[ids[0]] * 4, 7]])
    image, audio = request_("image"), request_("audio")
    inputs = {
        "pixel_values": image["pixel_values"][:2],
        "input_features": audio["input_features"][:1],
        "feature_attention_mask": audio["feature_attention_mask"][:1],
    }
    logits = model(prompt, **inputs).logits
    assert logits.shape == (1, prompt.shape[1], logits.shape[-1])
    assert model.generate(prompt, **inputs, **HOW).shape[1] == prompt.shape[1] + 5
    swapped = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert (model(prompt, **swapped).logits - logits).abs().max() > 1e-4
    model.save_pretrained(tmp_path / "copy")
    assert torch.equal(submerge.load(tmp_path / "copy")(prompt, **inputs).logits, logits)


def _tasks(folder: Path) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads((folder / "submerge.json").read_text())["gate"]["tasks"]
    return tasks
