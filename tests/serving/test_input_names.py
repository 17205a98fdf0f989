"""What a composed model calls its specialists' inputs."""

from __future__ import annotations

import pytest

import submerge
from submerge.serving import input_names

pytest.importorskip("transformers")


def task(architecture: str, kind: str, name: str = "") -> dict[str, object]:
    return {"name": name or kind, "architectures": [architecture], "kind": kind}


def test_names_are_those_of_the_classes() -> None:
    llava, qwen = (
        task("LlavaForConditionalGeneration", "image"),
        task("Qwen2AudioForConditionalGeneration", "audio"),
    )
    image, audio = input_names([llava, qwen])
    assert image == {"pixel_values": "pixel_values", "image_sizes": "image_sizes"}
    assert audio == {"input_features": "input_features", "feature_attention_mask": "feature_attention_mask"}


def test_a_class_of_several_kinds_gives_those_of_one() -> None:
    both = "LlavaNextVideoForConditionalGeneration"
    image, video = input_names([task(both, "image"), task(both, "video")])
    assert image == {"pixel_values": "pixel_values", "image_sizes": "image_sizes"}
    assert video == {"pixel_values_videos": "pixel_values_videos"}
    (other,) = input_names([task("LlavaForConditionalGeneration", "video")])
    assert "pixel_values" in other


def test_shared_names_are_told_apart() -> None:
    llava, vip, qwen = (
        task("LlavaForConditionalGeneration", "image"),
        task("VipLlavaForConditionalGeneration", "image", "depth"),
        task("Qwen2AudioForConditionalGeneration", "audio"),
    )
    image, depth, audio = input_names([llava, vip, qwen])
    assert image == {"image_pixel_values": "pixel_values", "image_sizes": "image_sizes"}
    assert depth == {"depth_pixel_values": "pixel_values"}
    assert "input_features" in audio


def test_a_class_that_transformers_lacks_is_told() -> None:
    with pytest.raises(submerge.RequestError, match="image: transformers has no architecture 'Lava'"):
        input_names([task("Lava", "image")])
