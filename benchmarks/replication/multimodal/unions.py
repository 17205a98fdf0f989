"""Multimodal models with a new projector: an encoder and a language model in a class of transformers.

    image   LlavaForConditionalGeneration        a ViT, and a map with one hidden layer
    audio   Qwen2AudioForConditionalGeneration   the encoder of Whisper, and one map

The language model is as it was. Its tokenizer gets the placeholder of the modality, and its tables get a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.replication.multimodal import whisper
from benchmarks.replication.multimodal.encoders import PIXELS
from benchmarks.replication.multimodal.inputs import RATE, SIDE

__all__ = ["CHAT", "PLACEHOLDERS", "WRITERS", "write_audio_model", "write_image_model"]

PLACEHOLDERS = {"image": "<image>", "audio": "<|AUDIO|>"}
"""Modality -> the token that stands for an input of it."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}PLACEHOLDER{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of SmolLM2 for messages with inputs among their text, without its message of 20 tokens."""


def write_image_model(lm: Path, encoder: Path, folder: Path) -> None:
    """Write a `LlavaForConditionalGeneration` and its processor; an input has a token for each patch."""
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        ViTModel,
    )

    eyes = ViTModel.from_pretrained(encoder, add_pooling_layer=False)
    language, tokenizer, placeholder = _language(lm, "image")
    patch = eyes.config.patch_size
    config = LlavaConfig(
        vision_config=eyes.config,
        text_config=language.config,
        image_token_index=placeholder,
        image_seq_length=(eyes.config.image_size // patch) ** 2,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(eyes.state_dict(), strict=False)  # all but the pooler
    _give(model, language)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(
        do_resize=False,
        size=size,
        crop_size=size,
        image_mean=[PIXELS["mean"]] * 3,
        image_std=[PIXELS["deviation"]] * 3,
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("PLACEHOLDER", PLACEHOLDERS["image"]),
    ).save_pretrained(folder)


def write_audio_model(lm: Path, _: Path, folder: Path, positions: int = 50) -> None:
    """Write a `Qwen2AudioForConditionalGeneration` and its processor, for sounds of up to a second.

    A second is 50 positions of the encoder, and 25 tokens; a shorter sound has fewer.
    """
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    language, tokenizer, placeholder = _language(lm, "audio")
    ears = Qwen2AudioEncoderConfig(**whisper.CONFIG, max_source_positions=positions)
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config=ears, text_config=language.config, audio_token_index=placeholder)
    )
    model.model.audio_tower.load_state_dict(whisper.encoder_state(positions))
    _give(model, language)
    model.save_pretrained(folder)
    sounds = WhisperFeatureExtractor(sampling_rate=RATE, chunk_length=positions // 50)
    template = CHAT.replace("PLACEHOLDER", PLACEHOLDERS["audio"])
    Qwen2AudioProcessor(sounds, tokenizer, chat_template=template).save_pretrained(folder)


WRITERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "image": write_image_model,
    "audio": write_audio_model,
}


def _language(lm: Path, modality: str) -> tuple[Any, Any, int]:
    """Return the language model, the tokenizer and the placeholder's id; the tables have a row for it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lm)
    tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDERS[modality]]})
    language = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return language, tokenizer, tokenizer.convert_tokens_to_ids(PLACEHOLDERS[modality])


def _give(model: nn.Module, language: nn.Module) -> None:
    """Put the language model's parameters into a multimodal model."""
    inner: Any = model
    inner.model.language_model.load_state_dict(language.model.state_dict())
    inner.lm_head.load_state_dict(language.lm_head.state_dict())
