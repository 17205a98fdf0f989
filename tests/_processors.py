"""Folders of composed models without weights: a shared tokenizer, and specialists' processors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    CLIPImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from submerge.store import MANIFEST

RATE = 16_000
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat template that takes strings, as those of language models do."""
IMAGES_FIRST = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% endfor %}"
)
"""A chat template of a specialist, which writes all images of a message before its texts."""
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
SIZE = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def tokenizer(added: Iterable[str] = (), *, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Return a tokenizer of characters, and of the added tokens."""
    letters = [*"abcdefghijklmnopqrstuvwxyzAU 0123456789?:.[]\n"]
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        chat_template=chat,
    )
    made.add_tokens(list(added), special_tokens=True)
    return made


def llava(own: Any) -> LlavaProcessor:
    """Return a processor that makes 5 tokens of an image."""
    encoder = CLIPImageProcessor(**SIZE)
    return LlavaProcessor(
        encoder,
        own,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="full",
        chat_template=IMAGES_FIRST,
    )


def llava_next(own: Any) -> LlavaNextProcessor:
    """Return a processor whose images have as many tokens as their shape asks for, called `<depth>`."""
    encoder = LlavaNextImageProcessor(**SIZE, image_grid_pinpoints=[[16, 32], [32, 16]])
    return LlavaNextProcessor(
        encoder, own, patch_size=8, num_additional_image_tokens=1, image_token="<depth>"
    )


def qwen_audio(own: Any) -> Qwen2AudioProcessor:
    """Return a processor that makes tokens of a sound by its length."""
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=4, chunk_length=1), own)


SPECIALISTS: Mapping[str, tuple[Any, str, str, tuple[str, ...]]] = {
    "image": (llava, "image", "LlavaForConditionalGeneration", ("<image>",)),
    "audio": (qwen_audio, "audio", "Qwen2AudioForConditionalGeneration", AUDIO_TOKENS),
    "depth": (llava_next, "image", "LlavaNextForConditionalGeneration", ("<depth>",)),
}
"""For each modality how its processor is made, its kind, its model's class, and the tokens that it adds."""


def own_processor(name: str) -> Any:
    """Return a specialist's own processor, as before it was part of a composed model."""
    make, _, _, added = SPECIALISTS[name]
    return make(tokenizer(added))


def composed(folder: Path, names: Sequence[str], *, chat: str | None = CHAT, **keys: Any) -> Path:
    """Write a composed model's folder without its weights; `keys` go to every specialist's record."""
    added = [token for name in reversed(names) for token in SPECIALISTS[name][3]]
    shared = tokenizer(added, chat=chat)
    shared.save_pretrained(folder)
    tasks = []
    for name in names:
        make, kind, architecture, tokens = SPECIALISTS[name]
        make(tokenizer(added)).save_pretrained(folder / "modalities" / name)
        task = {"name": name, "kind": kind, "architectures": [architecture], "placeholder": tokens[0]}
        tasks.append({**task, "placeholder_id": shared.convert_tokens_to_ids(tokens[0]), **keys})
    gate = {"method": "modality", "tasks": tasks, "settings": {}}
    content = {"recipe": {}, "tensors": {}, "gate": gate, "bank": {"tensors": {}}}
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def image(seed: int, height: int = 20, width: int = 20) -> np.ndarray:
    """Return a picture [h, w, 3] of bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sound(seed: int, seconds: float = 0.5) -> np.ndarray:
    """Return a waveform."""
    return np.random.default_rng(seed).standard_normal(int(RATE * seconds)).astype(np.float32)


def tokens_of(own: Any, outputs: Any) -> list[list[str]]:
    """Return the tokens that ids stand for."""
    return [own.convert_ids_to_tokens(row) for row in outputs["input_ids"]]


def assert_same(
    ours: Any, shared: Any, theirs: Any, own: Any, names: Mapping[str, str] | None = None
) -> None:
    """Assert that the outputs are those of a specialist's own processor, whose ids are others."""
    assert tokens_of(shared, ours) == tokens_of(own, theirs)
    names = names or {}
    assert set(ours) == {names.get(key, key) for key in theirs}
    for key in set(theirs) - {"input_ids"}:
        assert torch.equal(torch.as_tensor(ours[names.get(key, key)]), torch.as_tensor(theirs[key])), key
