"""Full fine-tunes by least squares: every kind of layer answers its inputs no worse than the mean does."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import submerge
from _adapters import peft_model
from _models import ROOM, quiet_transformers
from store.helpers_adapter import MODELS, State, copied

pytest.importorskip("transformers")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = ("law", "chess")
PLAIN = {"ridge": 0.0, "normalize": "sum"}
"""Least squares over all rows as they are."""


def tuned(state: State, seed: int) -> State:
    """Return a fine-tune that moved every value a little."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: t + 0.05 * torch.randn(t.shape, generator=draw) if t.is_floating_point() else t
        for name, t in state.items()
    }


def write_texts(root: Path, *folders: Path) -> None:
    """Write texts of different lengths for each task, and a tokenizer into each folder."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(5, 64))])}
    inputs = ["input_ids", "attention_mask"]  # GPT-2 would look the types of tokens up among its tokens
    for folder in folders:
        quiet_transformers().BertTokenizer(vocab=vocabulary, model_input_names=inputs).save_pretrained(folder)
    for seed, name in enumerate(NAMES):
        texts = [
            " ".join(f"w{5 + (7 * seed + 3 * row + i * (seed + 1)) % 50}" for i in range(3 + row % 7))
            for row in range(20)
        ]
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


def write_images(root: Path, *folders: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for folder in folders:
        size = {"height": 16, "width": 16}
        quiet_transformers().ViTImageProcessor(size=size).save_pretrained(folder)
    for seed, name in enumerate(NAMES):
        draw = torch.Generator().manual_seed(seed)
        for i in range(8):
            pixels = torch.randint(0, 256, (16, 16, 3), generator=draw, dtype=torch.uint8)
            image.fromarray(pixels.numpy()).save(root / f"{name}{i}.png")
        rows = [{"image": f"{name}{i}.png"} for i in range(8)]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def make_family(root: Path, kind: str) -> dict[str, Any]:
    """Write a base, two fine-tunes of all its values, and data of each; return a recipe over them."""
    t = quiet_transformers()
    torch.manual_seed(0)
    model = MODELS[kind](t)
    state = copied(model)
    model.save_pretrained(root / "base")
    for seed, name in enumerate(NAMES, 1):
        model.load_state_dict(tuned(state, seed))
        model.tie_weights()
        model.save_pretrained(root / name)
    write = write_images if kind == "vit" else write_texts
    write(root, *(root / name for name in ("base", *NAMES)))
    return {
        "merge_method": "many",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / n), "data": str(root / f"{n}.jsonl")} for n in NAMES],
        "parameters": dict(PLAIN),
    }


def load(kind: str, folder: Path) -> nn.Module:
    model: nn.Module = type(MODELS[kind](quiet_transformers())).from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def batches(root: Path, name: str, kind: str) -> list[Mapping[str, torch.Tensor]]:
    """Return each input of a task by itself, so that nothing is padded."""
    t = quiet_transformers()
    rows = [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]
    if kind == "vit":
        image = pytest.importorskip("PIL.Image")
        processor = t.ViTImageProcessor.from_pretrained(root / name)
        return [processor(image.open(root / row["image"]), return_tensors="pt") for row in rows]
    tokenizer = t.AutoTokenizer.from_pretrained(root / name)
    return [tokenizer(row["text"], return_tensors="pt") for row in rows]


def inputs_of_layers(model: nn.Module, data: list[Mapping[str, torch.Tensor]]) -> dict[str, list[Any]]:
    """Return what each layer with parameters of its own is given."""
    seen: dict[str, list[Any]] = defaultdict(list)
    layers = {p: m for p, m in model.named_modules() if m._parameters and not list(m.children())}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, path=path: seen[path].append(args[0]))
        for path, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def objective(model: nn.Module, tasks: list[tuple[nn.Module, dict[str, list[Any]]]]) -> dict[str, float]:
    """Return Σ_t Σ ‖y − y_t‖² of each layer on the tasks' inputs."""
    found: dict[str, float] = defaultdict(float)
    for own, inputs in tasks:
        for path, seen in inputs.items():
            layer, wanted = model.get_submodule(path).double(), own.get_submodule(path).double()
            for x in seen:
                x = x.double() if x.is_floating_point() else x
                with torch.no_grad():
                    found[path] += float((layer(x) - wanted(x)).square().sum())
    return found


EXPECTED = {
    "llama": ("lm_head", "model.norm", "model.embed_tokens", "model.layers.0.self_attn.q_proj"),
    "tied": ("model.norm", "model.embed_tokens", "model.layers.1.mlp.down_proj"),
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.wpe", "transformer.wte", "transformer.ln_f"),
    "bert": (
        "bert.pooler.dense",
        "classifier",
        "bert.embeddings.token_type_embeddings",
        "bert.embeddings.LayerNorm",
        "bert.encoder.layer.0.attention.self.query",
    ),
    "vit": ("vit.embeddings.patch_embeddings.projection", "classifier", "vit.layernorm"),
}
"""Layers whose inputs must be among those that are compared."""


def assert_no_layer_is_worse(kind: str, root: Path, out: Path, models: Mapping[str, nn.Module]) -> set[str]:
    """Compare a merge with the mean of the tuned models on their inputs; return the layers that have any."""
    averaged = load(kind, root / "base")
    states = [model.state_dict() for model in models.values()]
    averaged.load_state_dict({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})
    tasks = [(m, inputs_of_layers(m, batches(root, name, kind))) for name, m in models.items()]
    found, of_mean = (objective(model, tasks) for model in (load(kind, out), averaged))
    if kind in ("tied", "gpt2"):  # the head is the table of embeddings, and merged as such
        found.pop("lm_head")
    for path, squares in found.items():
        assert squares <= of_mean[path] * (1 + 1e-5) + 1e-9, path
    assert sum(found.values()) < 0.9 * sum(of_mean[path] for path in found)
    return set(found)


@pytest.mark.parametrize("kind", EXPECTED)
def test_no_layer_of_fine_tunes_is_worse_than_the_mean(kind: str, tmp_path: Path) -> None:
    report = submerge.merge(make_family(tmp_path, kind), tmp_path / "out", settings=ROOM)
    models = {name: load(kind, tmp_path / name) for name in NAMES}
    assert assert_no_layer_is_worse(kind, tmp_path, report.out, models) >= set(EXPECTED[kind])
    averaged = [warning for warning in report.warnings if "have no moments of their inputs" in warning]
    assert bool(averaged) == (kind == "vit")  # its position embeddings and first token are no layers
    assert submerge.verify(report.out).sound


ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "embeddings, new values and biases": (
        "llama",
        {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "bias": "lora_only"},
        {"r": 3, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head", "norm"]},
    ),
    "DoRA": (
        "llama",
        {"r": 2, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
        {"r": 3, "target_modules": ["q_proj"]},
    ),
    "transposed": (
        "gpt2",
        {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
}


def make_adapters(root: Path, case: str) -> tuple[str, dict[str, Any], dict[str, nn.Module]]:
    """Write a base and two adapters; return the kind, a recipe over them, and PEFT's merges of each."""
    pytest.importorskip("peft")
    kind, *options = ADAPTERS[case]
    recipe = make_family(root, kind)
    state = copied(load(kind, root / "base"))
    models = {}
    for seed, (entry, given) in enumerate(zip(recipe["models"], options, strict=True)):
        entry["model"] += "-adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft_model(kind, state, seed, **given)
            wrapped.save_pretrained(entry["model"])
            models[NAMES[seed]] = wrapped.merge_and_unload().eval()
    return kind, recipe, models


@pytest.mark.parametrize("case", ADAPTERS)
def test_no_layer_of_adapters_is_worse_than_the_mean(case: str, tmp_path: Path) -> None:
    kind, recipe, models = make_adapters(tmp_path, case)
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    assert_no_layer_is_worse(kind, tmp_path, out, models)
    if case == "DoRA":  # it has no factors
        return
    again = {**recipe, "moments": str(tmp_path / "out.moments"), "output": {"as": "adapter"}}
    again["models"] = [{"model": entry["model"]} for entry in recipe["models"]]
    adapter = submerge.merge(again, tmp_path / "adapter", settings=ROOM).out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        loaded = peft.PeftModel.from_pretrained(load(kind, tmp_path / "base"), str(adapter))
        state = loaded.merge_and_unload().state_dict()
    for name, value in load(kind, out).state_dict().items():
        if "q_proj" not in name:  # the merged adapter has no place for its bias, and its weight is another
            assert (state[name] - value).norm() <= 1e-3 * value.norm(), name
