"""Images for Llava and sounds for Qwen2-Audio: classes, sizes and processors, all very small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from _sounds import RATE
from _tasks import SIDE

__all__ = ["MODALITIES", "Modality"]

ENCODER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Modality:
    """The source that facts name, its placeholder in a prompt, and how model and processor are made."""

    name: str
    placeholder: str
    argument: str
    model_class: type
    new_config: Callable[[LlamaConfig, int], Any]
    new_processor: Callable[[Any], Any]

    @property
    def fact(self) -> str:
        """Return what a prompt says about it."""
        return f"{self.name} {self.placeholder} ."


def _llava_config(text: LlamaConfig, placeholder: int) -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=SIDE // 2, **ENCODER),
        text_config=text,
        image_token_index=placeholder,
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def _llava_processor(tokenizer: Any) -> LlavaProcessor:
    from transformers import CLIPImageProcessor  # here, for its import warns where torchvision is missing

    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessor(do_resize=False, do_center_crop=False, image_mean=half, image_std=half)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=SIDE // 2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


MELS, FRAMES = 40, 32
"""Bands of a spectrogram, and its columns for one second."""


def _qwen_config(text: LlamaConfig, placeholder: int) -> Qwen2AudioConfig:
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=MELS,
        max_source_positions=FRAMES // 2,
        d_model=ENCODER["hidden_size"],
        encoder_ffn_dim=ENCODER["intermediate_size"],
        encoder_layers=ENCODER["num_hidden_layers"],
        encoder_attention_heads=ENCODER["num_attention_heads"],
    )
    return Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=placeholder)


def _qwen_processor(tokenizer: Any) -> Qwen2AudioProcessor:
    spectrogram = WhisperFeatureExtractor(
        feature_size=MELS, sampling_rate=RATE, hop_length=RATE // FRAMES, chunk_length=1, n_fft=1024
    )
    return Qwen2AudioProcessor(spectrogram, tokenizer)


MODALITIES = {
    modality.name: modality
    for modality in (
        Modality(
            "image", "<image>", "images", LlavaForConditionalGeneration, _llava_config, _llava_processor
        ),
        Modality(
            "audio", "<|AUDIO|>", "audio", Qwen2AudioForConditionalGeneration, _qwen_config, _qwen_processor
        ),
    )
}
