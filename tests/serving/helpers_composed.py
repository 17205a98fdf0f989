"""Tiny specialists, and folders of composed models that are written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from _models import VISION, quiet_transformers, read
from submerge.store import GateRecord, Manifest, TensorRecord

TEXT = {"vocab_size": 80, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}  # fmt: skip
AUDIO = {"num_mel_bins": 8, "max_source_positions": 16}
WORDS = 60
"""Ids below are words; placeholders are above."""
IMAGE, SOUND, VIDEO, OTHER = 70, 71, 72, 73
"""Placeholders of images, sounds and videos, and of what a class takes besides."""


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Specialist:
    """A specialist: its model, what its config calls its inputs, and how many features each input has."""

    name: str
    model: Any
    kind: str
    placeholder: int
    tokens: int
    make: Callable[[int], dict[str, torch.Tensor]]

    def inputs(self, *seeds: int) -> dict[str, torch.Tensor]:
        """Return inputs, one for each seed."""
        each = [self.make(seed) for seed in seeds]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    @property
    def decoder(self) -> Any:
        return self.model.get_decoder()

    def lm(self) -> Any:
        """Return its language model as a model of its own."""
        t = quiet_transformers()
        config = self.model.config.text_config
        family = type(self.decoder).__name__.removesuffix("Model").removesuffix("Text")
        lm = getattr(t, f"{family}ForCausalLM")(config)
        lm.model.load_state_dict(self.decoder.state_dict())
        lm.lm_head.load_state_dict(self.model.get_output_embeddings().state_dict())
        return lm.eval()

    def modules(self) -> dict[str, torch.Tensor]:
        """Return its own tensors, by their names in its files."""
        with TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            tensors = read(Path(folder))
        return {n: x for n, x in tensors.items() if not n.startswith(("language_model.", "lm_head."))}


def _text(t: Any, lm: str) -> Any:
    if lm == "gemma3":  # norms of queries and keys, with heads before positions
        return t.Gemma3TextConfig(**TEXT | {"num_attention_heads": 8}, head_dim=16)
    return (t.Qwen2Config if lm == "qwen2" else t.LlamaConfig)(**TEXT)


def _llava(t: Any, lm: str) -> tuple[Any, ...]:
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=_text(t, lm),
        image_token_index=IMAGE,
        vision_feature_select_strategy="default",
    )
    return (
        t.LlavaForConditionalGeneration(config),
        "image",
        IMAGE,
        4,
        lambda s: {"pixel_values": normal(s, 1, 3, 16, 16)},
    )


def _llava_next(t: Any, lm: str) -> tuple[Any, ...]:
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=_text(t, lm),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 16]],
    )
    model = t.LlavaNextForConditionalGeneration(config)

    def image(seed: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": normal(seed, 1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}

    return model, "image", IMAGE, 10, image  # 4 of all of it, 2 rows of 2 and a newline


def _qwen2_audio(t: Any, lm: str) -> tuple[Any, ...]:
    encoder = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    config = t.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **encoder, **AUDIO},
        text_config=_text(t, lm),
        audio_token_index=SOUND,
    )

    def sound(seed: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(1, 32, dtype=torch.long)
        mask[:, 20:] = 0  # 5 features of 8
        return {"input_features": normal(seed, 1, 8, 32), "feature_attention_mask": mask}

    return t.Qwen2AudioForConditionalGeneration(config), "audio", SOUND, 5, sound


def _voxtral(t: Any, lm: str) -> tuple[Any, ...]:
    encoder = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder", **encoder, **AUDIO},
        text_config=_text(t, lm),
        audio_token_id=SOUND,
    )
    model = t.VoxtralForConditionalGeneration(config)
    return model, "audio", SOUND, 4, lambda seed: {"input_features": normal(seed, 1, 8, 32)}


def _next_video(t: Any, lm: str) -> tuple[Any, ...]:
    config = t.LlavaNextVideoConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=_text(t, lm),
        image_token_index=OTHER,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 16]],
    )
    model = t.LlavaNextVideoForConditionalGeneration(config)
    return model, "video", VIDEO, 3, lambda seed: {"pixel_values_videos": normal(seed, 1, 3, 3, 16, 16)}


def _video_llava(t: Any, lm: str) -> tuple[Any, ...]:
    config = t.VideoLlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=_text(t, lm),
        image_token_index=OTHER,
        video_token_index=VIDEO,
    )
    model = t.VideoLlavaForConditionalGeneration(config)
    return model, "video", VIDEO, 40, lambda seed: {"pixel_values_videos": normal(seed, 1, 8, 3, 16, 16)}


def _vipllava(t: Any, lm: str) -> tuple[Any, ...]:
    config = t.VipLlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=_text(t, lm),
        image_token_index=IMAGE,
        vision_feature_layers=[-1, -2],
    )
    model = t.VipLlavaForConditionalGeneration(config)
    return model, "image", IMAGE, 4, lambda seed: {"pixel_values": normal(seed, 1, 3, 16, 16)}


def _llava_onevision(t: Any, lm: str) -> tuple[Any, ...]:
    config = t.LlavaOnevisionConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=_text(t, lm),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 16], [16, 32]],
        vision_feature_select_strategy="default",
        vision_aspect_ratio="anyres_max_9",
    )
    model = t.LlavaOnevisionForConditionalGeneration(config)

    def image(seed: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": normal(seed, 1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}

    return model, "image", IMAGE, 10, image


def _got_ocr2(t: Any, lm: str) -> tuple[Any, ...]:
    encoder = {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "window_size": 4,
    }
    config = t.GotOcr2Config(
        vision_config={
            **encoder,
            "output_channels": 8,
            "image_size": 64,
            "patch_size": 8,
            "global_attn_indexes": [0],
        },
        text_config=_text(t, lm),
        image_token_index=IMAGE,
    )
    model = t.GotOcr2ForConditionalGeneration(config)
    return model, "image", IMAGE, 4, lambda seed: {"pixel_values": normal(seed, 1, 3, 64, 64)}


def _instruct_blip(t: Any, lm: str) -> tuple[Any, ...]:
    sizes = {name: size for name, size in VISION.items() if not name.startswith(("image", "patch"))}
    config = t.InstructBlipConfig(
        vision_config=VISION,
        qformer_config={**sizes, "vocab_size": 8, "encoder_hidden_size": 16},
        text_config=_text(t, lm),
        num_query_tokens=4,
        image_token_index=IMAGE,
    )

    def image(seed: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": normal(seed, 1, 3, 16, 16), "qformer_input_ids": torch.tensor([[1, 2]])}

    return t.InstructBlipForConditionalGeneration(config), "image", IMAGE, 4, image


def _mistral3(t: Any, lm: str) -> tuple[Any, ...]:
    encoder = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**encoder, image_size=16, patch_size=4, head_dim=8),
        text_config=_text(t, lm),
        image_token_index=IMAGE,
    )

    def image(seed: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": normal(seed, 1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}

    return t.Mistral3ForConditionalGeneration(config), "image", IMAGE, 4, image


def _pixtral(t: Any, lm: str) -> tuple[Any, ...]:
    """Return a LLaVA whose encoder takes images of all sizes, side by side in one row."""
    encoder = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.LlavaConfig(
        vision_config=t.PixtralVisionConfig(**encoder, image_size=16, patch_size=8),
        text_config=_text(t, lm),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )

    def image(seed: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": normal(seed, 1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}

    return t.LlavaForConditionalGeneration(config), "image", IMAGE, 4, image


def _granite_speech(t: Any, lm: str) -> tuple[Any, ...]:
    sizes = {name: size for name, size in VISION.items() if not name.startswith(("image", "patch"))}
    config = t.GraniteSpeechConfig(
        encoder_config={"input_dim": 8, "num_layers": 1, "hidden_dim": 16, "num_heads": 2, "dim_head": 8,
                        "output_dim": 4, "context_size": 10, "max_pos_emb": 32, "conv_kernel_size": 3},
        projector_config={"model_type": "blip_2_qformer", **sizes, "encoder_hidden_size": 16},
        text_config=_text(t, lm),
        audio_token_index=SOUND,
        has_lora_adapter=False,
    )  # fmt: skip
    model = t.GraniteSpeechForConditionalGeneration(config)
    return model, "audio", SOUND, 6, lambda seed: {"input_features": normal(seed, 1, 30, 8)}


BUILDERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_audio": _qwen2_audio,
    "voxtral": _voxtral,
    "next_video": _next_video,
    "video_llava": _video_llava,
    "vipllava": _vipllava,
    "llava_onevision": _llava_onevision,
    "got_ocr2": _got_ocr2,
    "instruct_blip": _instruct_blip,
    "mistral3": _mistral3,
    "pixtral": _pixtral,
    "granite_speech": _granite_speech,
}


def specialist(kind: str, lm: str = "llama", seed: int = 0, name: str = "") -> Specialist:
    """Return a random specialist of a kind, in float32, with weights large enough to matter."""
    t = quiet_transformers()
    torch.manual_seed(seed)
    model, modality, *rest = BUILDERS[kind](t, lm)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    for parameter in model.get_decoder().parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0
    model.generation_config.eos_token_id = None
    return Specialist(name or modality, model.eval().requires_grad_(False), modality, *rest)


# --- folders --------------------------------------------------------------------------------------


def write_composed(
    folder: Path,
    lm: Any,
    specialists: Sequence[Specialist],
    streams: Mapping[str, torch.Tensor],
    modality_tokens: str = "own",
) -> Path:
    """Write a composed model: its language model, the specialists' own tensors, and streams of the bank."""
    lm.generation_config.eos_token_id = None
    lm.save_pretrained(folder)
    own = {f"modules.{n}.{name}": x for n, s in enumerate(specialists) for name, x in s.modules().items()}
    bank = {name: x.contiguous().clone() for name, x in {**own, **streams}.items()}
    save_file(bank, folder / "bank.safetensors")
    for one in specialists:
        place = folder / "modalities" / one.name
        place.mkdir(parents=True)
        config = {**one.model.config.to_dict(), "architectures": [type(one.model).__name__]}
        (place / "config.json").write_text(json.dumps(config))
    gate = GateRecord("modality", tuple(map(_task, specialists)), {"modality_tokens": modality_tokens})
    records = {name: TensorRecord("F32", tuple(x.shape), "0" * 32) for name, x in bank.items()}
    manifest = Manifest("0", {"merge_method": "ssam"}, (), (), {}, {}, {}, gate=gate, bank=records)
    (folder / "submerge.json").write_text(manifest.text)
    return folder


def _task(one: Specialist) -> dict[str, Any]:
    return {
        "name": one.name,
        "model": one.name,
        "architectures": [type(one.model).__name__],
        "kind": one.kind,
        "placeholder": f"<{one.kind}>",
        "placeholder_id": one.placeholder,
    }


def values(number: int, lm: Any, base: Any) -> dict[str, torch.Tensor]:
    """Return a stream of whole parameters: those of `lm` that differ from the base's, tables left out."""
    theirs = base.state_dict()
    return {
        f"streams.{number}.{name}.values": x
        for name, x in lm.state_dict().items()
        if not torch.equal(x, theirs[name]) and "embed_tokens" not in name and "lm_head" not in name
    }


def lora(lm: Any, seed: int, rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return random factors for the maps of all blocks, by the name of the weight."""
    weights = {n: x for n, x in lm.state_dict().items() if x.ndim == 2 and ".layers." in n}
    return {
        name: (0.3 * normal(seed + k, x.shape[0], rank), 0.3 * normal(seed - k, rank, x.shape[1]))
        for k, (name, x) in enumerate(weights.items())
    }


def factors(prefix: str, update: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return factors by the names that they have in a bank."""
    return {
        f"{prefix}.{name}.{side}": x
        for name, pair in update.items()
        for side, x in zip(("left", "right"), pair, strict=True)
    }


def updated(lm: Any, update: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Return a copy of a language model with an update of its maps."""
    copied = type(lm)(lm.config).eval().requires_grad_(False)
    state = dict(lm.state_dict())
    for name, (left, right) in update.items():
        state[name] = state[name] + left @ right
    copied.load_state_dict(state)
    return copied


# --- prompts and references -----------------------------------------------------------------------


def prompt(seed: int, *parts: int | Specialist) -> torch.Tensor:
    """Return ids [1, L]: so many words, or the placeholders of one input of a specialist."""
    draw = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(3, WORDS, (part,), generator=draw).tolist()
        else:
            ids += [part.placeholder] * part.tokens
    return torch.tensor([ids])


def padded(*prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return prompts as one batch, filled up on the left."""
    longest = max(ids.shape[1] for ids in prompts)
    fill = [torch.nn.functional.pad(ids, (longest - ids.shape[1], 0)) for ids in prompts]
    masks = [torch.nn.functional.pad(torch.ones_like(ids), (longest - ids.shape[1], 0)) for ids in prompts]
    return {"input_ids": torch.cat(fill), "attention_mask": torch.cat(masks)}


def prompt_embeddings(one: Specialist, ids: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return what a specialist's own forward hands to its language model [B, L, d]."""
    seen: dict[str, Any] = {}
    hook = one.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    one.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    hook.remove()
    embeddings: torch.Tensor = seen["inputs_embeds"]
    return embeddings


def by_token(lms: Sequence[Any], labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return the logits of a model each of whose modules runs a token as that of its label does.

    `lms` are the model of each label [B, L]; all modules run on all tokens, and one is picked.
    """
    hooks = []
    twins = [dict(lm.get_decoder().named_modules()) for lm in lms]
    for name, module in twins[0].items():
        if any(True for _ in module.parameters(recurse=False)) and "embed_tokens" not in name:
            hooks.append(module.register_forward_hook(_picking([t[name] for t in twins[1:]], labels)))
    logits: torch.Tensor = lms[0](**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


def _picking(twins: Sequence[Any], labels: torch.Tensor) -> Any:
    def pick(module: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        has_heads_first = out.ndim == 4 and type(module).__name__ == "Gemma3RMSNorm"
        rows = labels[:, None, :, None] if has_heads_first else labels.unsqueeze(-1)
        for label, twin in enumerate(twins, 1):
            out = torch.where(rows == label, twin(*args), out)
        return out

    return pick
