"""Models of real architectures, and the same parameters in files under other names or packed otherwise."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from _models import quiet_transformers, read

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IDS = torch.arange(8)[None]
VISION = {**SIZES, "image_size": 8, "patch_size": 4}
del VISION["vocab_size"]

transformers = quiet_transformers()


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def bert(kind: str = "BertModel", **more: Any) -> Any:
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, max_position_embeddings=32, **more))


def qwen2_vl() -> Any:
    text = dict(**SIZES, num_key_value_heads=2, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
    config = transformers.Qwen2VLConfig(
        text_config={**text, "tie_word_embeddings": False},
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 16,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        vision_start_token_id=46,
        image_token_id=47,
        video_token_id=48,
        vision_end_token_id=49,
        tie_word_embeddings=False,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        **SIZES,
        num_key_value_heads=2,
        moe_intermediate_size=12,
        num_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        tie_word_embeddings=False,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3)
    )


def olmoe() -> Any:
    config = transformers.OlmoeConfig(
        **SIZES,
        num_experts=4,
        num_experts_per_tok=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return transformers.OlmoeForCausalLM(config)


def llava() -> Any:
    text = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)
    vision = transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=49, tie_word_embeddings=False
    )
    return transformers.LlavaForConditionalGeneration(config)


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=3))


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=4,
        max_source_positions=8,
        max_target_positions=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


def wav2vec() -> Any:
    config = transformers.Wav2Vec2Config(
        **SIZES,
        conv_dim=(8,),
        conv_kernel=(3,),
        conv_stride=(2,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=1,
    )
    return transformers.Wav2Vec2ForCTC(config)


def moved(model: Any, seed: int = 1) -> Any:
    """Return the model with every parameter changed."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def renamed(*steps: tuple[str, str]) -> Callable[[Path], None]:
    """Return what replaces patterns in the names of a model's files."""

    def change(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            tensors = {}
            for name, tensor in load_file(file).items():
                for old, new in steps:
                    name = re.sub(old, new, name)
                tensors[name] = tensor
            save_file(tensors, file, metadata={"format": "pt"})

    return change


def as_it_is(folder: Path) -> None:
    """Leave the files alone."""


NEW = {"save_original_format": False}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any], Callable[[Path], None]]] = {
    "gpt2": (gpt2, {}, renamed(("^transformer\\.", ""))),
    "bert": (
        bert,
        {},
        renamed(
            ("^", "bert."), ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")
        ),
    ),
    "qwen2vl": (qwen2_vl, NEW, as_it_is),
    "qwen3moe": (qwen3_moe, NEW, as_it_is),
    "mixtral": (mixtral, NEW, as_it_is),
    "olmoe": (olmoe, NEW, as_it_is),
    "llava": (llava, NEW, as_it_is),
    "vit": (vit, NEW, as_it_is),
    "whisper": (whisper, {}, renamed(("^model\\.", ""))),
    "wav2vec": (
        wav2vec,
        {},
        renamed(
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ),
    ),
}
"""Model, how the other form is saved, and what is then done to its file."""
BY_NAME = ("gpt2", "bert", "qwen2vl", "llava", "whisper", "wav2vec")


def save(model: Any, folder: Path, **more: Any) -> Path:
    model.save_pretrained(folder, **more)
    return folder


def pair(kind: str, root: Path, *, other: str) -> tuple[Path, Path, Any]:
    """Return a base and a fine-tune, `other` of which is in the other form, and the fine-tune itself."""
    make, form, change = KINDS[kind]
    torch.manual_seed(0)
    base, tuned = make(), moved(make())
    tuned.load_state_dict(tuned.state_dict())
    places = {"base": root / "base", "tuned": root / "tuned"}
    for name, model in (("base", base), ("tuned", tuned)):
        save(model, places[name], **(form if name == other else {}))
        if name == other:
            change(places[name])
    assert read(places["base"]).keys() != read(places["tuned"]).keys()
    return places["base"], places["tuned"], tuned


def recipe(root: Path, base: Path, *tuned: Path, **more: Any) -> Path:
    path = root / "recipe.yaml"
    models = [{"model": str(t), "parameters": {"weight": 1.0}} for t in tuned]
    content = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models, **more}
    path.write_text(yaml.safe_dump(content))
    return path


def same(folder: Path, wanted: Any) -> bool:
    """Return whether a folder loads into a model's values, up to a rounding of θ0 + (θ − θ0)."""
    found = type(wanted).from_pretrained(folder).state_dict()
    return all(torch.allclose(found[n], v, atol=1e-6) for n, v in wanted.state_dict().items())
