"""Small real models with tasks that they were trained on: a base, fine-tunes, and the merge of a recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import submerge
from _mass_reference import Reference, routed, site_inputs, with_heads
from _models import ROOM, TEXT, quiet_transformers

COUNT = 4
STEPS = 6
TOLERANCE = 1e-4
LINEAR = ("query", "key", "value")


@dataclass
class Served:
    """The tasks of one architecture: models in memory and on disk, the reference, inputs of every task."""

    kind: str
    root: Path
    base: Any
    tuned: list[Any]
    reference: Reference
    inputs: Callable[[int, int], dict[str, torch.Tensor]]
    sites: list[list[str]]
    paths: list[Path] = field(default_factory=list)

    def recipe(self, **parameters: Any) -> dict[str, Any]:
        models = [{"model": str(path), "name": f"task{i}"} for i, path in enumerate(self.paths)]
        return {
            "merge_method": "mass",
            "base_model": str(self.root / "base"),
            "models": models,
            "parameters": parameters,
        }

    def merged(self, name: str, **parameters: Any) -> Path:
        out = self.root / name
        if not out.exists():
            submerge.merge(self.recipe(**parameters), out, settings=ROOM)
        return out

    def mixed(self, each: int = 2, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[int]]:
        """Return a batch of inputs of all tasks, not sorted by task, and the task of each."""
        parts = [self.inputs(t, each + seed) for t in range(len(self.tuned))]
        batch = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        labels = [t for t in range(len(parts)) for _ in range(next(iter(parts[t].values())).shape[0])]
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        return {k: v[order] for k, v in batch.items()}, [labels[i] for i in order.tolist()]


def words(task: int, count: int, length: int = 9) -> torch.Tensor:
    """Return token ids that are mostly of a task's own tenth of the vocabulary."""
    draw = torch.Generator().manual_seed(100 * task + count)
    own = torch.randint(5 + 12 * task, 17 + 12 * task, (count, length), generator=draw)
    other = torch.randint(5, 60, (count, length), generator=draw)
    return torch.where(torch.rand(count, length, generator=draw) < 0.8, own, other)


def text_inputs(task: int, count: int) -> dict[str, torch.Tensor]:
    ids = words(task, count)
    mask = torch.ones_like(ids)
    for row in range(count):
        mask[row, 9 - (row + task) % 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def image_inputs(task: int, count: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 * task + count)
    pattern = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(task))
    return {"pixel_values": pattern + 0.5 * torch.randn(count, 3, 16, 16, generator=draw)}


def fine_tune(
    model: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, steps: int = STEPS
) -> Any:
    """Return a copy that was trained for some steps, all parameters of it."""
    tuned = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(tuned.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        tuned(**inputs, labels=labels).loss.backward()
        optimizer.step()
    return tuned.eval()


def make(kind: str, root: Path, count: int = COUNT) -> Served:
    """Train and save a base and its tasks."""
    torch.manual_seed(0)
    return _MAKERS[kind](quiet_transformers(), root, count)


def _served(
    kind: str,
    root: Path,
    base: Any,
    tuned: Sequence[Any],
    inputs: Callable[[int, int], dict[str, torch.Tensor]],
    sites: list[list[str]],
    prefix: str = "",
) -> Served:
    base.save_pretrained(root / "base")
    paths = []
    for number, model in enumerate(tuned):
        model.save_pretrained(root / f"task{number}")
        paths.append(root / f"task{number}")
    own = {prefix + name: values for name, values in base.state_dict().items()}
    states = [model.state_dict() for model in tuned]
    heads = [{n: v for n, v in state.items() if n not in own or own[n].shape != v.shape} for state in states]
    output = tuned[0].get_output_embeddings()
    tables = frozenset(
        f"{path}.weight"
        for path, module in tuned[0].named_modules()
        if isinstance(module, torch.nn.Embedding) or (output is not None and module is output)
    )
    reference = Reference(own, states, heads if any(heads) else (), tables=tables)
    return Served(kind, root, base, list(tuned), reference, inputs, sites, paths)


def _bert(t: Any, root: Path, count: int) -> Served:
    config = {**TEXT, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    base = t.BertModel(t.BertConfig(**config))
    tuned = []
    for task in range(count):
        labels = (2, 5, 1, 3)[task % 4]
        model = t.BertForSequenceClassification(t.BertConfig(**config, num_labels=labels))
        model.bert.load_state_dict(base.state_dict())
        inputs = text_inputs(task, 24)
        wanted = inputs["input_ids"].sum(1) % labels
        tuned.append(fine_tune(model, inputs, wanted.float() if labels == 1 else wanted))
    sites = []
    for layer in range(2):
        path = f"bert.encoder.layer.{layer}."
        sites.append([f"{path}attention.self.{name}" for name in LINEAR])
        sites += [[path + name] for name in ("attention.output.dense", "intermediate.dense", "output.dense")]
    return _served("bert", root, base, tuned, text_inputs, sites, "bert.")


def _vit(t: Any, root: Path, count: int) -> Served:
    config = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    base = t.ViTModel(t.ViTConfig(**config), add_pooling_layer=False)
    tuned = []
    for task in range(count):
        labels = (2, 5, 4, 3)[task % 4]
        model = t.ViTForImageClassification(t.ViTConfig(**config, num_labels=labels))
        model.vit.load_state_dict(base.state_dict())
        inputs = image_inputs(task, 24)
        tuned.append(fine_tune(model, inputs, torch.arange(24) % labels))
    return _served("vit", root, base, tuned, image_inputs, [], "vit.")


def _llama(t: Any, root: Path, count: int) -> Served:
    config = t.LlamaConfig(**{**TEXT, "hidden_size": 32}, tie_word_embeddings=True, pad_token_id=0)
    base = t.LlamaForCausalLM(config)
    tuned = []
    for task in range(count):
        inputs = text_inputs(task, 24)
        tuned.append(fine_tune(base, inputs, inputs["input_ids"]))
    sites = []
    for layer in range(2):
        path = f"model.layers.{layer}."
        sites.append([f"{path}self_attn.{name}_proj" for name in "qkv"])
        sites += [[f"{path}self_attn.o_proj"], [f"{path}mlp.gate_proj", f"{path}mlp.up_proj"]]
        sites.append([f"{path}mlp.down_proj"])
    return _served("llama", root, base.eval(), tuned, text_inputs, sites)


def _t5(t: Any, root: Path, count: int) -> Served:
    config = t.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    base = t.T5ForConditionalGeneration(config)
    tuned = []
    for task in range(count):
        inputs = text_inputs(task, 24)
        tuned.append(fine_tune(base, inputs, inputs["input_ids"][:, :5].contiguous()))
    sites = []
    for layer in range(2):
        path = f"encoder.block.{layer}.layer."
        sites.append([f"{path}0.SelfAttention.{name}" for name in "qkv"])
        sites += [
            [f"{path}0.SelfAttention.o"],
            [f"{path}1.DenseReluDense.wi"],
            [f"{path}1.DenseReluDense.wo"],
        ]
    return _served("t5", root, base.eval(), tuned, text_inputs, sites)


_MAKERS: dict[str, Callable[[Any, Path, int], Served]] = {
    "bert": _bert,
    "vit": _vit,
    "llama": _llama,
    "t5": _t5,
}


def one(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: value[row : row + 1] for name, value in inputs.items()}


def extra(served: Served, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what a forward pass of the whole model takes besides."""
    ids = inputs.get("input_ids")
    return {"decoder_input_ids": ids[:, :4]} if served.kind == "t5" and ids is not None else {}


def sites_of(served: Served) -> list[list[str]]:
    if served.sites:
        return served.sites
    model = served.tuned[0]
    names = [
        n.removesuffix(".weight") for n in served.reference.triplets if ".layers." in n or ".layer." in n
    ]
    names = [n for n in names if n.endswith(("proj", "fc1", "fc2", "dense", "query", "key", "value"))]
    seen = site_inputs(model, names, one(served.inputs(0, 2), 0))
    groups: list[list[str]] = []
    for name in seen:
        if groups and seen[groups[-1][0]] is seen[name]:
            groups[-1].append(name)
        else:
            groups.append([name])
    served.sites = groups
    return groups


def encoder(served: Served) -> Any:
    return served.tuned[0]


def scores(served: Served, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """Return the default's scores: the first pass is the base's, and heads of classes are heard."""
    base = served.reference.base
    found = site_scores(served, inputs, first=base, **more)
    if served.kind not in ("bert", "vit"):
        return found
    return with_heads(found, served.reference, served.tuned[0], inputs, base)


def site_scores(served: Served, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """Return what the sites say, by default in a first pass of the merge."""
    pool = "tokens" if served.kind == "vit" else "mean"
    return routed(
        served.reference,
        encoder(served),
        more.pop("sites", sites_of(served)),
        inputs | extra(served, inputs),
        pool=more.pop("pool", pool),
        **more,
    )


def same_logits(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    width = wanted.shape[-1]
    assert found[..., width:].eq(-torch.inf).all()
    error = (found[..., :width] - wanted).abs().amax(-1)
    assert (error if mask is None else error[mask.bool()]).max() <= TOLERANCE
