"""One specialist of two modalities: what it needs lies in the bank once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import submerge
from _cli import cli
from _models import ROOM
from _specialists import ROWS, TEXT, Specialists, make_specialists
from _tokenizers import fast_tokenizer, special
from submerge.errors import RequestError

pytest.importorskip("peft")
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, ROWS)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Specialists:
    """Return specialists with `watching` (Video-LLaVA), which takes images and videos, and its kin."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
    )

    specialists = make_specialists(tmp_path_factory.mktemp("specialists"))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = VideoLlavaConfig(
        text_config=LlamaConfig(**TEXT | {"vocab_size": ROWS + 4}),
        vision_config=CLIPVisionConfig(**tower, image_size=8, patch_size=4),
        image_token_index=ROWS,
        video_token_index=ROWS + 1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = VideoLlavaForConditionalGeneration(config)
    specialists.write("watching", model, specialists.load("base"), "<image>")
    fast_tokenizer(special("<image>", "<video>"), WORDS).save_pretrained(specialists.path("watching"))
    specialists.adapt("watching", "watching-lora", 2)
    specialists.tune("watching", "watching-tuned", 3)
    return specialists


def entry(made: Specialists, name: str, modality: str, **more: str) -> dict[str, Any]:
    return {**made.entry(name, modality, **more), "parameters": {"weight": 1.0}}


def composed(made: Specialists, out: Path, *entries: dict[str, Any]) -> Any:
    submerge.merge(made.recipe("linear", *entries), out, settings=ROOM)
    report = submerge.verify(out, load=False)
    assert report.sound, report.problems
    return submerge.load(out)


@pytest.mark.parametrize("how", ["lora", "tuned"])
def test_a_specialist_of_two_modalities_is_stored_once(how: str, made: Specialists, tmp_path: Path) -> None:
    name, more = ("watching", {"lora": "watching-lora"}) if how == "lora" else ("watching-tuned", {})
    image, video = (entry(made, name, modality, **more) for modality in ("image", "video"))
    pair = composed(made, tmp_path / "pair", image, video)
    alone = composed(made, tmp_path / "alone", video)
    both, one = (load_file(tmp_path / folder / "bank.safetensors") for folder in ("pair", "alone"))
    assert both.keys() == one.keys()
    tasks = json.loads((tmp_path / "pair" / "submerge.json").read_text())["gate"]["tasks"]
    assert [task.get("parts_of") for task in tasks] == [None, "image"]
    assert pair.encoders[0].model is pair.encoders[1].model
    assert pair.num_parameters() == alone.num_parameters()
    image_stream, video_stream = pair.controller.streams
    assert image_stream == video_stream
    frames = torch.randn(1, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prompt = torch.cat([torch.tensor([5, 9]), torch.full((8 * 5,), ROWS + 1), torch.tensor([7])])[None]
    with torch.no_grad():
        found, wanted = (m(input_ids=prompt, pixel_values_videos=frames).logits for m in (pair, alone))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    still, frame = prompt[:, :6].clone(), frames[:, 0]
    still[0, 2:] = ROWS
    with torch.no_grad():
        assert bool(pair(input_ids=still, pixel_values_images=frame).logits.isfinite().all())


def test_a_plan_counts_it_once(made: Specialists, tmp_path: Path) -> None:
    entries = [entry(made, "watching-tuned", modality) for modality in ("image", "video")]
    sizes = []
    for number, chosen in enumerate((entries, entries[1:])):
        (recipe := tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(made.recipe("linear", *chosen)))
        sizes.append(cli("plan", recipe, "--json").json["bank"]["most"])
    assert sizes[0] == sizes[1]


def test_parts_of_a_specialist_that_is_not_there_are_told(made: Specialists, tmp_path: Path) -> None:
    entries = [entry(made, "watching", modality) for modality in ("image", "video")]
    composed(made, tmp_path / "out", *entries)
    manifest = json.loads((tmp_path / "out" / "submerge.json").read_text())
    manifest["gate"]["tasks"][1]["parts_of"] = "video"
    (tmp_path / "out" / "submerge.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="video has the parts of 'video', of which there are none before"):
        submerge.load(tmp_path / "out")
