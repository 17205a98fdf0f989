"""A CLIP whose tasks are told apart by texts: heads in files, as the paper's experiments have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

import submerge
from _models import CONFIGS, ROOM, quiet_transformers

pytest.importorskip("transformers")
CLASSES = (2, 5, 3)
IMAGES = {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
FORMS = ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel")
"""How fine-tunes are saved: with both towers, images alone, and without the base's projection."""


def made(root: Path, form: str, base: str = "CLIPModel") -> list[Any]:
    """Save a base and three fine-tunes of its images, and heads; return each task's own logits."""
    t = quiet_transformers()
    torch.manual_seed(0)
    config = CONFIGS["clip"][1](t)
    config.vision_config.projection_dim = 8
    whole = t.CLIPModel(config).eval()
    whole.save_pretrained(root / "clip")
    start = whole if base == "CLIPModel" else getattr(t, base).from_pretrained(root / "clip")
    start.save_pretrained(root / "base")
    wanted = []
    for number, classes in enumerate(CLASSES):
        model = t.CLIPModel.from_pretrained(root / "clip").eval()
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.startswith("vision_model") and tensor.ndim < 4:
                    tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw))
        model.save_pretrained(root / f"whole{number}")
        tuned = model if form == "CLIPModel" else getattr(t, form).from_pretrained(root / f"whole{number}")
        tuned.save_pretrained(root / f"task{number}")
        texts, scale = torch.randn(classes, 8, generator=draw), torch.tensor(2.0 + number)
        save_file({"class_texts": texts, "logit_scale": scale}, root / f"head{number}.safetensors")
        with torch.no_grad():
            images = t.CLIPVisionModelWithProjection.from_pretrained(root / f"whole{number}").eval()
            features = normalize(images(**IMAGES).image_embeds, dim=-1)
            wanted.append(scale.exp() * features @ normalize(texts, dim=-1).T)
    return wanted


def recipe(root: Path, **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(root / f"task{i}"), "head": str(root / f"head{i}.safetensors")} for i in range(3)]
    return {
        "merge_method": "mass",
        "base_model": str(root / "base"),
        "models": models,
        "parameters": parameters,
    }


@pytest.mark.parametrize(("form", "base"), [*((form, "CLIPModel") for form in FORMS), (FORMS[1], FORMS[1])])
def test_a_named_task_is_the_papers_classifier(form: str, base: str, tmp_path: Path) -> None:
    wanted = made(tmp_path, form, base)
    out = submerge.merge(recipe(tmp_path, rank=1000), tmp_path / "out", settings=ROOM).out
    assert submerge.verify(out).sound
    model = submerge.load(out)
    names = [f"task{i % 3}" for i in range(6)]
    found = model(**IMAGES, task=names)
    for row, name in enumerate(names):
        logits = wanted[int(name[-1])][row]
        assert (found.logits[row, : len(logits)] - logits).abs().max() < 1e-4
        assert found.logits[row, len(logits) :].eq(-torch.inf).all()
        assert found.labels[row] == f"LABEL_{int(logits.argmax())}"
    features = submerge.load(out, features=True)(**IMAGES, task=names).image_embeds
    assert features.shape == (6, 8)


def test_images_of_another_size(tmp_path: Path) -> None:
    """Their positions are interpolated from the table of the task, which the model reads by itself."""
    made(tmp_path, "CLIPModel")
    out = submerge.merge(recipe(tmp_path, rank=1000), tmp_path / "out", settings=ROOM).out
    large = {"pixel_values": torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))}
    large["interpolate_pos_encoding"] = True  # type: ignore[assignment]
    model, numbers = submerge.load(out, features=True), (0, 2, 1, 0)
    found = model(**large, task=[f"task{number}" for number in numbers]).image_embeds
    for number in set(numbers):
        own = quiet_transformers().CLIPVisionModelWithProjection.from_pretrained(tmp_path / f"whole{number}")
        with torch.no_grad():
            wanted = own.eval()(**large).image_embeds
        rows = [row for row, other in enumerate(numbers) if other == number]
        torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-3, atol=1e-4)
        alone = model(**large, task=f"task{number}").image_embeds
        torch.testing.assert_close(alone, wanted, rtol=1e-3, atol=1e-4)
    assert set(model(**large).tasks) <= {"task0", "task1", "task2"}


def test_it_routes_and_hears_its_texts(tmp_path: Path) -> None:
    made(tmp_path, "CLIPModel")
    out = submerge.merge(recipe(tmp_path), tmp_path / "out", settings=ROOM).out
    heard, deaf = submerge.load(out), submerge.load(out, head_evidence="none")
    assert set(heard(**IMAGES).tasks) <= {"task0", "task1", "task2"}
    assert (heard.route(**IMAGES).scores - deaf.route(**IMAGES).scores).abs().max() > 0.1
    paper = submerge.load(out, preset="paper")(**IMAGES)
    assert not paper.logits.isnan().any()
    assert paper.logits.amax(1).isfinite().all()


def test_what_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "CLIPModel")
    texts, scale = torch.zeros(2, 8), torch.tensor(1.0)
    narrow = torch.zeros(2, 7)
    for name, tensors, message in (
        ("narrow", {"class_texts": narrow, "logit_scale": scale}, "have 7 numbers, projected images 8"),
        ("bare", {"class_texts": texts}, "lacks logit_scale"),
        ("more", {"class_texts": texts, "logit_scale": scale, "bias": texts[0].clone()}, "holds bias"),
        ("flat", {"class_texts": torch.zeros(8), "logit_scale": scale}, "class_texts F32 [8]"),
        ("whole", {"class_texts": texts.long(), "logit_scale": scale}, "class_texts I64"),
    ):  # fmt: skip
        save_file(tensors, tmp_path / f"{name}.safetensors")
        wrong = recipe(tmp_path)
        wrong["models"][1]["head"] = str(tmp_path / f"{name}.safetensors")
        with pytest.raises(submerge.RequestError) as error:
            submerge.merge(wrong, tmp_path / "out", settings=ROOM)
        assert message in str(error.value)
    for head, message in (
        (str(tmp_path / "nothing.safetensors"), "nothing.safetensors"),
        ([str(tmp_path / "head0.safetensors"), "classifier"], "head names a file, and something else"),
    ):
        wrong = recipe(tmp_path)
        wrong["models"][1]["head"] = head
        with pytest.raises(submerge.RequestError) as error:
            submerge.merge(wrong, tmp_path / "out", settings=ROOM)
        assert message in str(error.value)
    assert not (tmp_path / "out").exists()
