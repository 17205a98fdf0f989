"""Prototypes are means of what a projector is given, in real classes, and the language model does not run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from _models import quiet_transformers
from _updates import assert_close
from submerge.calibrate import pooled, question_vectors, task_prototypes
from submerge.errors import RequestError
from submerge.names import projector_of

pytest.importorskip("transformers")
PLACEHOLDER, PAD, ROWS = 60, 0, 64
TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(kind: str) -> Any:
    """Return a tiny model of a class, in evaluation mode."""
    t = quiet_transformers()
    text = t.LlamaConfig(**TOWER, num_key_value_heads=1, vocab_size=ROWS, pad_token_id=PAD)
    vision = t.CLIPVisionConfig(**TOWER, image_size=8, patch_size=4)
    audio = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8}
    configs: dict[str, Any] = {
        "Llava": {"vision_config": vision, "image_token_index": PLACEHOLDER},
        "LlavaNext": {
            "vision_config": vision,
            "image_token_index": PLACEHOLDER,
            "image_grid_pinpoints": [[8, 16], [16, 8]],
        },
        "Qwen2Audio": {
            "audio_config": {**audio, "num_mel_bins": 4, "max_source_positions": 16},
            "audio_token_index": PLACEHOLDER,
        },
    }
    torch.manual_seed(0)
    config = getattr(t, f"{kind}Config")(text_config=text, pad_token_id=PAD, **configs[kind])
    return getattr(t, f"{kind}ForConditionalGeneration")(config).eval()


def batch(kind: str, seed: int, size: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, PLACEHOLDER, (size, 6), generator=draw)
    ids[:, 1] = PLACEHOLDER
    ids[0, -2:] = PAD
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    images = torch.randn(size, 3, 8, 8, generator=draw)
    if kind == "Llava":
        return {**inputs, "pixel_values": images}
    if kind == "LlavaNext":  # the whole image, and its two halves
        tiles = torch.randn(size, 3, 3, 8, 8, generator=draw)
        return {**inputs, "pixel_values": tiles, "image_sizes": torch.tensor([[8, 16]] * size)}
    frames = torch.randn(size, 4, 32, generator=draw)
    mask = torch.ones(size, 32, dtype=torch.long)
    return {**inputs, "input_features": frames, "feature_attention_mask": mask}


def projector(of: Any) -> str:
    path = projector_of({name: tuple(tensor.shape) for name, tensor in of.state_dict().items()})
    assert path is not None
    return path


def features(of: Any, kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the projector is given, by the class's own function."""
    seen: list[torch.Tensor] = []
    module = of.get_submodule(projector(of))
    with module.register_forward_pre_hook(lambda _, given: seen.append(given[0])), torch.no_grad():
        if kind == "Qwen2Audio":
            of.model.multi_modal_projector(of.model.audio_tower(inputs["input_features"]).last_hidden_state)
        else:
            own = {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}
            of.model.get_image_features(**own)
    return seen[0]


@pytest.mark.parametrize("kind", ["Llava", "LlavaNext", "Qwen2Audio"])
@pytest.mark.parametrize("pooling", ["mean", "position"])
def test_the_mean_of_what_the_projector_is_given(
    kind: str, pooling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = model(kind)
    batches = [batch(kind, 0), batch(kind, 1, size=3)]
    rows = torch.cat([features(of, kind, one) for one in batches])
    decoder = of.get_decoder()
    monkeypatch.setattr(decoder, "forward", None)  # it is not to run
    found = task_prototypes(of, batches, projector(of), pooling=pooling, vectors=True)
    assert found.vectors is not None
    assert_close(found.vectors, pooled(rows, pooling), 1e-6)
    assert_close(found.images[0], pooled(rows, pooling).mean(0), 1e-6)
    assert found.count == len(rows) == (15 if kind == "LlavaNext" else 5)
    assert (found.images.dtype, found.text) == (torch.float32, None)


def test_two_shards_of_the_data_add() -> None:
    of = model("Llava")
    one, other = ([batch("Llava", seed, size=seed + 1)] for seed in (0, 1))
    whole = task_prototypes(of, [*one, *other], projector(of))
    parts = [task_prototypes(of, shard, projector(of)) for shard in (one, other)]
    total = sum(part.count * part.images.double() for part in parts) / sum(part.count for part in parts)
    assert_close(whole.images, total, 1e-6)
    assert whole.vectors is None


def test_questions() -> None:
    of = model("Llava")
    inputs = batch("Llava", 0)
    table = of.get_input_embeddings().weight
    own = [[i for i in row if i not in (PLACEHOLDER, PAD)] for row in inputs["input_ids"].tolist()]
    wanted = torch.stack([table[row].mean(0) for row in own])
    with torch.no_grad():
        assert_close(question_vectors(of, inputs), wanted, 1e-6)
    found = task_prototypes(of, [inputs], projector(of), text=True)
    assert found.text is not None
    assert_close(found.text[0], wanted.mean(0), 1e-6)


def test_texts_alone_show_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("Llava")
    text = {"input_ids": torch.randint(3, PLACEHOLDER, (4, 6))}
    monkeypatch.setattr(of.get_decoder(), "forward", None)
    found = task_prototypes(of, [text, batch("Llava", 0), text], projector(of), text=True)
    assert found.count == 2
    assert_close(found.images, task_prototypes(of, [batch("Llava", 0)], projector(of)).images, 1e-12)
    with pytest.raises(RequestError, match="no input has an image for the projector"):
        task_prototypes(of, [text], projector(of))


class Given(nn.Module):
    """A model whose projector is given what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projector(x)


def test_inputs_of_another_form() -> None:
    with pytest.raises(RequestError, match=r"is given \[4, 2\], and not \[images, positions, width\]"):
        task_prototypes(Given(), [{"x": torch.ones(4, 2)}], "projector")
    unlike = [{"x": torch.ones(1, 3, 2)}, {"x": torch.ones(1, 4, 2)}]
    assert task_prototypes(Given(), unlike, "projector").count == 2
    with pytest.raises(RequestError, match="use the mean over positions"):
        task_prototypes(Given(), unlike, "projector", pooling="position")


class Flat(Given):
    """Its projector is given the positions of all inputs one after another, as that of Voxtral."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(0, 1))


@pytest.mark.parametrize("pooling", ["mean", "position"])
def test_positions_of_all_inputs_one_after_another(pooling: Any) -> None:
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    found, wanted = (
        task_prototypes(of(), [{"x": x[:1]}, {"x": x[1:]}], "projector", pooling=pooling, vectors=True)
        for of in (Flat, Given)
    )
    assert found.count == wanted.count == 4
    assert_close(found.images, wanted.images, 1e-6)
    assert found.vectors is not None
    assert wanted.vectors is not None
    assert torch.equal(found.vectors, wanted.vectors)


def test_several_prototypes_are_means_of_clusters() -> None:
    x = torch.tensor([[1.0, 0.0], [1.2, 0.0], [0.0, 5.0], [0.0, 7.0], [0.0, 6.0]]).unsqueeze(1)
    found = task_prototypes(Given(), [{"x": x[:3]}, {"x": x[3:]}], "projector", count=2)
    assert_close(found.images, torch.tensor([[0.0, 6.0], [1.1, 0.0]]), 1e-6)
    assert (found.count, found.vectors) == (5, None)
    assert len(task_prototypes(Given(), [{"x": x}], "projector", count=9).images) == 5
