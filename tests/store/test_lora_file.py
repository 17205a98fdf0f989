"""LoRA files without a configuration: diffusers' and kohya's forms, and what must be refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import ROOM
from store.helpers_adapter import State, applied, by_hand, same
from store.helpers_store import messages
from submerge.errors import RequestError
from submerge.store import Adapter, Checkpoint, fit_adapter, open_model

UNET = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1"
FLAT = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1"
BASE = UNET.removeprefix("unet.")
TEXT = "text_model.encoder.layers.0.self_attn"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def opened(folder: Path, tensors: State, name: str = "lora", **metadata: str) -> Adapter:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors", metadata=metadata)
    adapter = open_model(f"{name}.safetensors", root=folder)
    assert isinstance(adapter, Adapter)
    return adapter


def merged(adapter: Adapter, base: Mapping[str, torch.Tensor]) -> State:
    return applied(base, fit_adapter(adapter, {name: tuple(t.shape) for name, t in base.items()}))


A, B = draw(2, 8), draw(6, 2)
FORMS: dict[str, tuple[str, State, float]] = {
    "lora_A": (f"{BASE}.to_q", {f"{UNET}.to_q.lora_A.weight": A, f"{UNET}.to_q.lora_B.weight": B}, 1),
    "lora.down": (f"{BASE}.to_q", {f"{UNET}.to_q.lora.down.weight": A, f"{UNET}.to_q.lora.up.weight": B}, 1),
    "processor": (
        f"{BASE}.to_q",
        {
            f"{UNET}.processor.to_q_lora.down.weight": A,
            f"{UNET}.processor.to_q_lora.up.weight": B,
        },
        1,
    ),
    "processor, to_out, without the prefix": (
        f"{BASE}.to_out.0",
        {
            f"{BASE}.processor.to_out_lora.down.weight": A,
            f"{BASE}.processor.to_out_lora.up.weight": B,
        },
        1,
    ),
    "lora_linear_layer": (
        f"{TEXT}.q_proj",
        {
            f"text_encoder.{TEXT}.q_proj.lora_linear_layer.down.weight": A,
            f"text_encoder.{TEXT}.q_proj.lora_linear_layer.up.weight": B,
        },
        1,
    ),
    "older text encoder": (
        f"{TEXT}.out_proj",
        {
            f"text_encoder.{TEXT}.to_out_lora.down.weight": A,
            f"text_encoder.{TEXT}.to_out_lora.up.weight": B,
        },
        1,
    ),
    "kohya": (
        f"{BASE}.to_q",
        {
            f"{FLAT}_to_q.lora_down.weight": A,
            f"{FLAT}_to_q.lora_up.weight": B,
            f"{FLAT}_to_q.alpha": torch.tensor(1.0),
        },
        0.5,
    ),
    "kohya without alpha": (
        f"{BASE}.to_q",
        {f"{FLAT}_to_q.lora_down.weight": A, f"{FLAT}_to_q.lora_up.weight": B},
        1,
    ),
    "kohya, text encoder": (
        f"{TEXT}.q_proj",
        {
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": A,
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": B,
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha": torch.tensor(3.0),
        },
        1.5,
    ),
    "alpha with dots": (
        "blocks.0.attn.q",
        {
            "diffusion_model.blocks.0.attn.q.lora_down.weight": A,
            "diffusion_model.blocks.0.attn.q.lora_up.weight": B,
            "diffusion_model.blocks.0.attn.q.alpha": torch.tensor(4.0),
        },
        2,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    module, tensors, scale = FORMS[form]
    base = {f"{module}.weight": draw(6, 8, seed=5), "other.weight": draw(6, 8)}
    adapter = opened(tmp_path, tensors)
    assert adapter.rank == 2
    wanted = base | {f"{module}.weight": base[f"{module}.weight"] + scale * B @ A}
    same(merged(adapter, base), wanted)
    longer = {f"model.{name}": tensor for name, tensor in base.items()}  # a base with a prefix of its own
    same(merged(adapter, longer), {f"model.{name}": tensor for name, tensor in wanted.items()})


def test_a_text_encoder_of_a_newer_version(tmp_path: Path) -> None:
    """Transformers 5 saves CLIP's text model without the level text_model."""
    for form in ("lora_linear_layer", "kohya, text encoder"):
        _, tensors, scale = FORMS[form]
        base = {"encoder.layers.0.self_attn.q_proj.weight": torch.zeros(6, 8)}
        found = merged(opened(tmp_path, tensors), base)
        torch.testing.assert_close(found["encoder.layers.0.self_attn.q_proj.weight"], scale * B @ A)


def test_convolutions(tmp_path: Path) -> None:
    key = "lora_unet_mid_block_resnets_0_conv1"
    a, b = draw(2, 3, 3, 3), draw(5, 2, 1, 1)
    tensors = {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(1.0)}
    base = {"mid_block.resnets.0.conv1.weight": torch.zeros(5, 3, 3, 3)}
    wanted = 0.5 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    same(merged(opened(tmp_path, tensors), base), {"mid_block.resnets.0.conv1.weight": wanted})


@pytest.mark.parametrize("convolution", ["base", "factors"])
def test_a_linear_map_as_a_convolution(convolution: str, tmp_path: Path) -> None:
    """proj_in is a convolution with a kernel of 1 in some versions, and a linear map in others."""
    ones = (1, 1)
    a, b = (A[..., None, None], B[..., None, None]) if convolution == "factors" else (A, B)
    tensors = {"lora_unet_x_proj_in.lora_down.weight": a, "lora_unet_x_proj_in.lora_up.weight": b}
    shape = (6, 8, *ones) if convolution == "base" else (6, 8)
    found = merged(opened(tmp_path, tensors), {"x.proj_in.weight": torch.zeros(shape)})
    torch.testing.assert_close(found["x.proj_in.weight"], (B @ A).reshape(shape))


def test_a_configuration_in_the_header(tmp_path: Path) -> None:
    fields = {"transformer.r": 2, "transformer.lora_alpha": 5, "transformer.peft_type": "LORA"}
    key = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    adapter = opened(tmp_path, tensors, lora_adapter_metadata=json.dumps(fields))
    base = {"transformer_blocks.0.attn.to_q.weight": torch.zeros(6, 8)}
    same(merged(adapter, base), {"transformer_blocks.0.attn.to_q.weight": 2.5 * B @ A})
    # as `transformer.save_lora_adapter` writes it: no prefix at all
    own = {name.removeprefix("transformer."): value for name, value in fields.items()}
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    adapter = opened(tmp_path, plain, lora_adapter_metadata=json.dumps(own))
    same(merged(adapter, base), {"transformer_blocks.0.attn.to_q.weight": 2.5 * B @ A})


def pipeline(width: int = 10) -> State:
    """Return a LoRA of a denoiser and of two text encoders, the second one wider."""
    parts = {}
    for prefix, wide in (("lora_te1", 8), ("lora_te2", width)):
        key = f"{prefix}_text_model_encoder_layers_0_mlp_fc1"
        parts |= {f"{key}.lora_down.weight": draw(2, wide), f"{key}.lora_up.weight": draw(wide, 2)}
    return parts | {f"{FLAT}_to_q.lora_down.weight": A, f"{FLAT}_to_q.lora_up.weight": B}


def test_one_model_of_a_pipeline(tmp_path: Path) -> None:
    """What is of the base is told by names, and by shapes where two have the same names."""
    adapter = opened(tmp_path, pipeline())
    for name, shape, others in (
        (f"{BASE}.to_q.weight", (6, 8), ("lora_te1", "lora_te2")),
        ("text_model.encoder.layers.0.mlp.fc1.weight", (8, 8), ("lora_te2", "lora_unet")),
        ("text_model.encoder.layers.0.mlp.fc1.weight", (10, 10), ("lora_te1", "lora_unet")),
    ):
        fitted = fit_adapter(adapter, {name: shape})
        assert list(fitted.parts) == [name]
        assert all(any(other in text for text in fitted.left_out) for other in others)
        assert len(fitted.left_out) == 2
    with pytest.raises(RequestError, match="lora_te1 and of lora_te2 both fit the base"):
        fit_adapter(opened(tmp_path, pipeline(8)), {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)})
    with pytest.raises(RequestError, match="not there"):
        fit_adapter(adapter, {"other.weight": (6, 8)})
    with pytest.raises(RequestError, match=r"shape \[6, 8\], but the base has \[8, 6\]"):
        fit_adapter(adapter, {f"{BASE}.to_q.weight": (8, 6)})


CLIP = "conditioner.embedders.1.model."


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_text_encoder_in_the_form_of_open_clip(form: str, tmp_path: Path) -> None:
    """Checkpoints of SDXL: maps of queries, keys and values are rows of one, others have other names."""
    key = "lora_te2_" if form == "kohya" else "text_encoder_2."
    tensors, updates = {}, {}
    for seed, (leaf, rows, columns) in enumerate(
        (
            ("self_attn.q_proj", 8, 8),
            ("self_attn.v_proj", 8, 8),
            ("self_attn.out_proj", 8, 8),
            ("mlp.fc1", 12, 8),
            ("mlp.fc2", 8, 12),
        )
    ):
        module = f"text_model.encoder.layers.0.{leaf}"
        name = key + (module.replace(".", "_") if form == "kohya" else module)
        tensors[f"{name}.lora_down.weight"] = draw(2, columns, seed=seed)
        tensors[f"{name}.lora_up.weight"] = draw(rows, 2, seed=seed)
        updates[leaf] = draw(rows, 2, seed=seed) @ draw(2, columns, seed=seed)
    projection = f"{key}text_projection"
    tensors |= {f"{projection}.lora_down.weight": draw(2, 8), f"{projection}.lora_up.weight": draw(8, 2)}
    block = f"{CLIP}transformer.resblocks.0."
    base = {
        f"{block}attn.in_proj_weight": torch.zeros(24, 8),
        f"{block}attn.out_proj.weight": torch.zeros(8, 8),
        f"{block}mlp.c_fc.weight": torch.zeros(12, 8),
        f"{block}mlp.c_fc.bias": torch.zeros(12),  # it tells that no weight is stored transposed
        f"{block}mlp.c_proj.weight": torch.zeros(8, 12),
        f"{CLIP}text_projection": torch.zeros(8, 8),
        "time_embed.0.weight": torch.zeros(12, 8),
        "time_embed.0.bias": torch.zeros(12),
    }
    adapter = opened(tmp_path, tensors)
    found = merged(adapter, base)
    wanted = base | {
        f"{block}attn.in_proj_weight": torch.cat(
            [updates["self_attn.q_proj"], torch.zeros(8, 8), updates["self_attn.v_proj"]]
        ),
        f"{block}attn.out_proj.weight": updates["self_attn.out_proj"],
        f"{block}mlp.c_fc.weight": updates["mlp.fc1"],
        f"{block}mlp.c_proj.weight": updates["mlp.fc2"],
        f"{CLIP}text_projection": (draw(8, 2) @ draw(2, 8)).T,
    }
    same(found, wanted)
    assert adapter.scales
    save_file(base, tmp_path / "base.safetensors")
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base.safetensors")}
    models = [{"model": str(tmp_path / "lora.safetensors"), "parameters": {"weight": 1.0}}]
    submerge.merge(recipe | {"models": models}, tmp_path / "out", settings=ROOM)
    same(load_file(tmp_path / "out" / "model.safetensors"), wanted)


def test_a_text_encoder_with_fused_maps(tmp_path: Path) -> None:
    """In checkpoints of SDXL the second text encoder is OpenCLIP's: its part is left out with a word."""
    adapter = opened(tmp_path, pipeline())
    base = {f"model.diffusion_model.{BASE}.to_q.weight": (6, 8)}
    clip = {f"{CLIP}transformer.resblocks.0.attn.in_proj_weight": (30, 10)}  # and no maps of an MLP
    fitted = fit_adapter(adapter, base | clip)
    assert len(fitted.left_out) == 2
    assert all("OpenCLIP's form" in text for text in fitted.left_out)


FLUX: dict[str, tuple[tuple[str, int], ...]] = {
    "double_blocks.0.img_attn.qkv": tuple((f"transformer_blocks.0.attn.to_{k}", 8) for k in "qkv"),
    "double_blocks.0.txt_attn.qkv": tuple((f"transformer_blocks.0.attn.add_{k}_proj", 8) for k in "qkv"),
    "double_blocks.0.img_attn.proj": (("transformer_blocks.0.attn.to_out.0", 8),),
    "double_blocks.0.txt_mlp.0": (("transformer_blocks.0.ff_context.net.0.proj", 32),),
    "double_blocks.0.img_mod.lin": (("transformer_blocks.0.norm1.linear", 48),),
    "single_blocks.0.linear1": (
        *((f"single_transformer_blocks.0.attn.to_{k}", 8) for k in "qkv"),
        ("single_transformer_blocks.0.proj_mlp", 32),
    ),
    "single_blocks.0.modulation.lin": (("single_transformer_blocks.0.norm.linear", 24),),
    "vector_in.in_layer": (("time_text_embed.text_embedder.linear_1", 8),),
    "final_layer.adaLN_modulation.1": (("norm_out.linear", 16),),
}
"""Maps of Flux with eight inputs, and those of diffusers that are runs of their rows."""
FLUX_2: dict[str, tuple[tuple[str, int], ...]] = {
    "double_blocks.0.img_attn.qkv": FLUX["double_blocks.0.img_attn.qkv"],
    "double_blocks.0.txt_mlp.0": (("transformer_blocks.0.ff_context.linear_in", 48),),
    "double_stream_modulation_img.lin": (("double_stream_modulation_img.linear", 48),),
    "single_blocks.0.linear1": (("single_transformer_blocks.0.attn.to_qkv_mlp_proj", 72),),
    "final_layer.adaLN_modulation.1": (("norm_out.linear", 16),),
}
SD_3: dict[str, tuple[tuple[str, int], ...]] = {
    "joint_blocks.0.x_block.attn.qkv": FLUX["double_blocks.0.img_attn.qkv"],
    "joint_blocks.0.context_block.attn.qkv": FLUX["double_blocks.0.txt_attn.qkv"],
    "joint_blocks.0.x_block.mlp.fc1": (("transformer_blocks.0.ff.net.0.proj", 32),),
    "joint_blocks.0.context_block.adaLN_modulation.1": (("transformer_blocks.0.norm1_context.linear", 48),),
    "joint_blocks.1.context_block.adaLN_modulation.1": (("transformer_blocks.1.norm1_context.linear", 16),),
    "final_layer.adaLN_modulation.1": (("norm_out.linear", 16),),
}
SWAPPED = ("final_layer.adaLN_modulation.1", "joint_blocks.1.context_block.adaLN_modulation.1")
"""Maps whose halves diffusers has in the other order."""
Runs = dict[str, tuple[tuple[str, int], ...]]


def divided(weights: State, maps: Runs) -> State:
    """Return weights of the original's maps as diffusers has them."""
    found = {}
    for whole, runs in maps.items():
        values = weights[f"{whole}.weight"]
        values = values.roll(len(values) // 2, 0) if whole in SWAPPED else values
        rows = values.split([count for _, count in runs])
        found |= {f"{name}.weight": own.contiguous() for (name, _), own in zip(runs, rows, strict=True)}
    return found


@pytest.mark.parametrize(
    ("maps", "flat"),
    [(FLUX, False), (FLUX, True), (FLUX_2, False), (SD_3, True)],
    ids=["flux", "flux-flat", "flux-2", "sd-3"],
)
def test_denoisers_in_the_form_of_the_other(maps: Runs, flat: bool, tmp_path: Path) -> None:
    """What a file does to the base in its own form, it does to the base in the other form."""
    sizes = {whole: sum(count for _, count in runs) for whole, runs in maps.items()}
    original = {f"{whole}.weight": draw(rows, 8) for whole, rows in sizes.items()}
    bases = (original, divided(original, maps))
    rows = [sizes, {name: count for runs in maps.values() for name, count in runs}]
    for number, own in enumerate(rows):
        tensors = {}
        for seed, (name, count) in enumerate(own.items()):
            key = f"lora_unet_{name.replace('.', '_')}" if flat else f"transformer.{name}"
            tensors[f"{key}.lora_down.weight"] = draw(2, 8, seed=seed)
            tensors[f"{key}.lora_up.weight"] = draw(count, 2, seed=seed)
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
        adapter = opened(tmp_path, tensors)
        found = [merged(adapter, {f"root.{k}": v for k, v in base.items()}) for base in bases]
        first, second = ({k.removeprefix("root."): v for k, v in state.items()} for state in found)
        same(divided(first, maps), second)
        assert all(not torch.equal(first[name], original[name]) for name in original)
        recipe = {"merge_method": "cat", "base_model": str(tmp_path / "base.safetensors")}
        save_file(bases[1 - number], tmp_path / "base.safetensors")
        models = [{"model": str(tmp_path / "lora.safetensors"), "parameters": {"weight": 1.0}}]
        submerge.merge(recipe | {"models": models}, tmp_path / f"out{number}", settings=ROOM)
        same(load_file(tmp_path / f"out{number}" / "model.safetensors"), (second, first)[number])


def test_dora_of_maps_that_flux_divides(tmp_path: Path) -> None:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_down.weight": draw(2, 8), f"{key}.lora_up.weight": draw(24, 2)}
    base = {f"{name}.weight": (rows, 8) for runs in FLUX.values() for name, rows in runs}
    with pytest.raises(RequestError, match="names modules as the original checkpoint does"):
        fit_adapter(opened(tmp_path, tensors | {f"{key}.dora_scale": draw(24, 1)}), base)


@pytest.mark.parametrize(
    ("module", "base"),
    [
        ("lora_unet_down_blocks_0_attn_to_q", "model.diffusion_model.input_blocks.1.1.attn1.to_q"),
        ("unet.up_blocks.0.attn.to_q", "model.diffusion_model.output_blocks.1.1.attn1.to_q"),
        ("transformer.transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "transformer_blocks.0.attn.to_q"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "single_transformer_blocks.0.attn.to_q"),
    ],
)
def test_two_ways_to_call_the_modules_of_a_model(module: str, base: str, tmp_path: Path) -> None:
    tensors = {f"{module}.lora_down.weight": A, f"{module}.lora_up.weight": B}
    with pytest.raises(RequestError) as caught:
        fit_adapter(opened(tmp_path, tensors), {f"{base}.weight": (6, 8)})
    assert "names modules as" in messages(caught.value)
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    text = {f"{key}.lora_down.weight": A.clone(), f"{key}.lora_up.weight": B.clone()}
    if module.startswith("lora_"):  # the text encoder's part alone would fit
        shapes = {f"{base}.weight": (6, 8), "te.text_model.encoder.layers.0.mlp.fc1.weight": (6, 8)}
        with pytest.raises(RequestError, match="names modules as"):
            fit_adapter(opened(tmp_path, tensors | text), shapes)


def refused(folder: Path, tensors: State, name: str = "file", config: str | None = None) -> str:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    if config is not None:
        (folder / "config.json").write_text(config)
    with pytest.raises(RequestError) as caught:
        open_model(".", root=folder)
    return messages(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("base_model.model.layers.0.mlp.down_proj.ia3_l", "IA3"),
        ("prompt_embeddings", "leave it out"),
        ("base_model.model.layers.0.q_proj.vera_lambda_b", "VeRA"),
        ("base_model.model.layers.0.q_proj.oft_R.weight", "OFT"),
        ("base_model.model.layers.0.q_proj.lora_E", "AdaLoRA"),
        ("unet:0:up", "cloneofsimo"),
        ("lora_controlnet", "Control-LoRA"),
    ],
)
def test_other_adapters_are_refused_by_name(name: str, kind: str, tmp_path: Path) -> None:
    alone = refused(tmp_path, {name: torch.ones(2, 2)})
    assert kind in alone
    assert ("give the folder in which PEFT saved it" in alone) == name.startswith("base_model")
    mixed = {f"{FLAT}_to_q.lora_down.weight": A, f"{FLAT}_to_q.lora_up.weight": B, name: torch.ones(2, 2)}
    assert kind in refused(tmp_path, mixed)


@pytest.mark.parametrize(
    "prefix", ["base_model.model.model.layers.0.", "model.layers.0.", "transformer.h.0."]
)
def test_factors_without_a_scale_are_refused(prefix: str, tmp_path: Path) -> None:
    tensors = {f"{prefix}q_proj.lora_A.weight": A, f"{prefix}q_proj.lora_B.weight": B}
    text = refused(tmp_path, tensors)
    assert "nothing says their scale" in text
    assert "adapter_config.json" in text


@pytest.mark.parametrize(
    "ends",
    [
        ("lora_a.weight", "lora_b.weight"),  # torchtune
        ("processor.qkv_lora1.down.weight", "processor.qkv_lora1.up.weight"),  # XLabs
    ],
)
def test_forms_that_are_not_known_are_refused(ends: tuple[str, str], tmp_path: Path) -> None:
    tensors = dict(zip((f"model.layers.0.q_proj.{end}" for end in ends), (A, B), strict=True))
    assert "in a form that is not known" in refused(tmp_path, tensors, "adapters")


def test_models_with_an_adapter_in_them_are_refused(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.q_proj.base_layer.weight": draw(6, 8),
        "model.layers.0.q_proj.lora_A.default.weight": A,
        "model.layers.0.q_proj.lora_B.default.weight": B,
        "model.norm.weight": draw(8),
    }
    assert "merge_and_unload" in refused(tmp_path, tensors, "model")
    plain = {name.replace(".default", ""): tensor for name, tensor in tensors.items()}
    assert "merge_and_unload" in refused(tmp_path, plain, "model")


def test_models_that_have_such_modules_themselves(tmp_path: Path) -> None:
    """Phi-4-multimodal and others are made with LoRA modules, and their configuration says so."""
    tensors = {"model.q.base_layer.weight": draw(6, 8), "model.q.lora_A.vision.weight": A}
    config = json.dumps({"vision_lora": {"r": 2}})
    (tmp_path / "config.json").write_text(config)
    save_file(tensors, tmp_path / "model.safetensors")
    assert isinstance(open_model(".", root=tmp_path), Checkpoint)
    assert "LoRA" in refused(tmp_path, tensors, "model", json.dumps({"q_lora_rank": 4}))
    for name in ("model.layers.0.attn.w_lora.lora.0.weight", "model.layers.0.self_attn.q_a_proj.weight"):
        (tmp_path / "other").mkdir(exist_ok=True)
        save_file({name: A}, tmp_path / "other" / "model.safetensors")
        assert isinstance(open_model("other", root=tmp_path), Checkpoint)


ATTENTION = "base_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([f"{ATTENTION}.shira_weight"], "another kind of PEFT's"),
        ([f"{ATTENTION}.hira_A", f"{ATTENTION}.hira_B"], "another kind of PEFT's"),
        (["base_model.model.norm.ln_tuning_layers.weight"], "another kind of PEFT's"),
        (["base_model.model.wte.token_adapter.trainable_tokens_delta"], "another kind of PEFT's"),
        ([f"diffusion_model.x.{end}.weight" for end in ("a1", "a2", "b1", "b2")], "GLoRA"),
        (["language_model.layers.0.q_proj.A", "language_model.layers.0.q_proj.B"], "MLX-VLM"),
    ],
)
def test_adapters_without_words_of_lora_are_no_models(names: list[str], kind: str, tmp_path: Path) -> None:
    """Their parts would be merged one by one, as parameters of a model."""
    assert kind in refused(tmp_path, {name: torch.ones(2, 2) for name in names}, "downloaded")


def test_folders_of_unknown_adapters_are_no_models(tmp_path: Path) -> None:
    """An adapter's configuration beside weights of no known form; a model may have one left over."""
    (tmp_path / "adapter_config.json").write_text('{"rank": 2}')
    assert "nothing of LoRA (x.gain)" in refused(tmp_path, {"x.gain": torch.ones(2)}, "weights")
    (tmp_path / "config.json").write_text("{}")
    assert isinstance(open_model(".", root=tmp_path), Checkpoint)


def test_names_with_that_of_the_adapter(tmp_path: Path) -> None:
    """DiffSynth-Studio saves `lora_A.default.weight`, with no name of the component and no scale."""
    module = "transformer_blocks.0.attn.to_q"
    tensors = {f"{module}.lora_A.default.weight": A, f"{module}.lora_B.default.weight": B}
    text = refused(tmp_path, tensors)
    assert "nothing says their scale" in text
    (tmp_path / "file.safetensors").rename(tmp_path / "pytorch_lora_weights.safetensors")  # as the hint says
    base = {f"{module}.weight": torch.zeros(6, 8)}
    found = open_model("pytorch_lora_weights.safetensors", root=tmp_path)
    assert isinstance(found, Adapter)
    same(merged(found, base), {f"{module}.weight": B @ A})
    tensors[f"{module}.alpha"] = torch.tensor(3.0)  # then the file says the scale itself
    same(merged(opened(tmp_path / "scaled", tensors), base), {f"{module}.weight": 1.5 * B @ A})


def test_embeddings_that_are_bundled(tmp_path: Path) -> None:
    """OneTrainer writes the textual inversions that it trained into the file."""
    module, tensors, scale = FORMS["kohya"]
    adapter = opened(tmp_path, tensors | {"bundle_emb.ink.clip_l": draw(1, 8)})
    same(merged(adapter, {f"{module}.weight": torch.zeros(6, 8)}), {f"{module}.weight": scale * B @ A})
    assert "bundle_emb.ink.clip_l" in adapter.left_out[0]


def test_damaged_files(tmp_path: Path) -> None:
    tensors = FORMS["kohya"][1]
    assert "lacks its factor B" in refused(tmp_path, {f"{FLAT}_to_q.lora_down.weight": A})
    wrong = tensors | {f"{FLAT}_to_q.alpha": torch.ones(2)}
    assert "it is no number" in refused(tmp_path, wrong)
    odd = tensors | {f"{FLAT}_to_q.reshape_weight": torch.ones(2)}
    assert "beside tensors that are none" in refused(tmp_path, odd)
    again = tensors | {f"{FLAT}_to_q.lora_A.weight": A.clone()}
    assert "in two forms" in refused(tmp_path, again)
    alone = tensors | {f"{FLAT}_to_k.alpha": torch.tensor(1.0)}
    assert "to_k.alpha" in refused(tmp_path, alone)


def test_the_file_that_peft_saved(tmp_path: Path) -> None:
    """adapter_model.safetensors, named as a file, has its configuration beside it."""
    folder = by_hand(tmp_path / "a")
    found = open_model("a/adapter_model.safetensors", root=tmp_path)
    assert isinstance(found, Adapter)
    assert (found.form, found.label) == ("peft", "a/adapter_model.safetensors")
    same(merged(found, {"q.weight": torch.zeros(3, 4)}), {"q.weight": torch.full((3, 4), 4.0)})
    (folder / "adapter_config.json").unlink()
    with pytest.raises(RequestError, match="nothing says their scale"):
        open_model("a/adapter_model.safetensors", root=tmp_path)


def test_pickled_files(tmp_path: Path) -> None:
    module, tensors, scale = FORMS["kohya"]
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    found = open_model(".", root=tmp_path, allow_pickle=True, adapter=True)
    assert isinstance(found, Adapter)
    same(merged(found, {f"{module}.weight": torch.zeros(6, 8)}), {f"{module}.weight": scale * B @ A})


def test_weights_beside_an_adapter(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    assert open_model(".", root=folder).left_out == ()  # type: ignore[union-attr]
    for name in ("non_lora_trainables.bin", "optimizer.pt", "training_args.bin", "adapter_model.bin"):
        (folder / name).touch()
    save_file({"v_head.weight": A}, folder / "value_head.safetensors")
    (note,) = open_model(".", root=folder).left_out  # type: ignore[union-attr]
    assert note.endswith("left out: non_lora_trainables.bin, value_head.safetensors")


def test_more_than_factors_in_a_lora_file(tmp_path: Path) -> None:
    """LoRAs for Wan hold differences of biases and norms besides, some for Flux the norms themselves."""
    module = "diffusion_model.blocks.0.q"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)}
    for more in (f"{module}.set_weight", "diffusion_model.blocks.0.norm3.scale"):
        save_file(factors | {more: torch.ones(8)}, tmp_path / "wan.safetensors")
        with pytest.raises(RequestError, match="LoRA files may hold factors alone: merge it into its model"):
            open_model("wan.safetensors", root=tmp_path)


def test_a_model_that_is_prompted_is_no_adapter(tmp_path: Path) -> None:
    """The module of a Segment Anything model that encodes points is called as PEFT's prompt encoder is."""
    names = ("prompt_encoder.point_embed.0.weight", "vision_encoder.layers.0.attn.qkv.weight")
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "model.safetensors")
    model = open_model(".", root=tmp_path)
    assert isinstance(model, Checkpoint)
    assert set(model.tensors) == set(names)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_8_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    """Without scales they are floats like any, and bfloat16 holds them all: values of each file and form."""
    narrow = {name: tensor.to(dtype) for name, tensor in FORMS["kohya"][1].items()}
    wide = {name: tensor.float() for name, tensor in narrow.items()}
    base = {f"{BASE}.to_q.weight": draw(6, 8, seed=3)}
    same(merged(opened(tmp_path, narrow), base), merged(opened(tmp_path, wide, "wide"), base))
    peft = {"q.lora_A.weight": draw(2, 4).to(dtype), "q.lora_B.weight": draw(3, 2).to(dtype)}
    folders = [
        by_hand(tmp_path / "narrow", peft),
        by_hand(tmp_path / "wide", {k: v.float() for k, v in peft.items()}),
    ]
    save_file({"q.weight": draw(3, 4)}, tmp_path / "base.safetensors")
    for number, folder in enumerate(folders):
        spec = f"{tmp_path / 'base.safetensors'}+{folder}"
        recipe = {"merge_method": "passthrough", "models": [{"model": spec}]}
        submerge.merge(recipe, tmp_path / f"out{number}", settings=ROOM)
        recipe = {"merge_method": "cat", "models": [{"model": str(folder), "parameters": {"weight": 0.5}}]}
        submerge.merge(recipe | {"output": {"as": "adapter"}}, tmp_path / f"sum{number}", settings=ROOM)
    same(*(load_file(tmp_path / f"out{number}" / "model.safetensors") for number in (0, 1)))
    same(*(_floats(tmp_path / f"sum{number}" / "adapter_model.safetensors") for number in (0, 1)))


def _floats(path: Path) -> State:
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def test_the_scale_in_the_header_counts_for_8_bits(tmp_path: Path) -> None:
    """diffusers' configuration in the header is read, though the factors are not in the file as they are."""
    narrow = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in FORMS["lora_A"][1].items()}
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 6})
    adapter = opened(tmp_path, narrow, lora_adapter_metadata=config)
    assert set(adapter.scales.values()) == {3.0}


def test_factors_with_scales_of_8_bits_are_refused(tmp_path: Path) -> None:
    narrow = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in FORMS["kohya"][1].items()}
    narrow |= {f"{FLAT}_to_q.lora_down.scale_weight": torch.ones(1)}
    save_file(narrow, tmp_path / "lora.safetensors")
    with pytest.raises(
        RequestError, match=r"parts of quantised weights.* give the LoRA as it was before that"
    ):
        open_model("lora.safetensors", root=tmp_path)
