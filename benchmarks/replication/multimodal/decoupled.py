"""Decoupled training of a multimodal model (DAMC): text and the modality's tokens have a LoRA each.

    y_t = W x_t + s B_language A_language x_t      where position t holds text
    y_t = W x_t + s B_modality A_modality x_t      where it holds a token of the modality

The encoder is frozen and runs once over each input; the projector and both LoRAs are trained. Any model of
the form encoder → projector → language model will do that has a `multi_modal_projector`, such as
`LlavaForConditionalGeneration` or `Qwen2AudioForConditionalGeneration`. What comes out is a folder of the
same class with its processor, and in it two adapters as PEFT saves them, `language/` and `image/` or
whatever the modality is called.

`python -m benchmarks.replication.multimodal.own` does it for rows of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.console import Say, silent
from benchmarks.replication.loop import linear, minimise, paced, tenths
from submerge.gating import StopForward

__all__ = [
    "ANSWERED",
    "LANGUAGE",
    "Decoupled",
    "DecoupledTraining",
    "EncodedRow",
    "ModalityReader",
    "PromptRow",
    "train",
]

LANGUAGE = "language"
"""The adapter of text."""
ANSWERED = -100
"""Label of a place where nothing is asked for."""
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All maps of a layer, as DAMC has it."""
AT_ONCE = 32
"""Rows of one pass of an encoder."""
INPUT_NAMES = {"image": "images", "audio": "audio", "video": "videos"}
"""Modality -> what its processor calls its inputs."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt with a placeholder for each input, and the answer to it; modality -> inputs, in their order.

    Rows to train on have inputs of one modality. `caption` says what the first is, for the alignment of the
    projector; without one the answer is taken.
    """

    prompt: str
    inputs: Mapping[str, Sequence[Any]]
    answer: str
    caption: str = ""

    @property
    def modality(self) -> str:
        """Return the only modality; an error where there are none or several."""
        (modality,) = self.inputs
        return modality


@dataclass(frozen=True)
class EncodedRow:
    """Token ids, with a placeholder for each feature of the inputs, and the projector's inputs [n, d]."""

    ids: list[int]
    answer: list[int]
    caption: list[int]
    modality: str
    features: torch.Tensor


@dataclass(frozen=True)
class DecoupledTraining:
    """How projector and LoRAs are trained.

    The projector is first aligned to words by `align_steps`, which no pass of the language model needs.
    Without `apart` one LoRA acts on all tokens: the naive training. `targets` are maps of each layer.
    """

    steps: int = 150
    batch: int = 8
    rank: int = 16
    alpha: int = 32
    rate: float = 1e-3
    projector_rate: float = 2e-4
    align_steps: int = 400
    align_rate: float = 2e-3
    align_batch: int = 64
    warmup: int = 10
    clip: float = 1.0
    targets: tuple[str, ...] = MAPS
    apart: bool = True

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)


class ModalityReader:
    """A multimodal model of one modality, and its processor: what makes rows of prompts and inputs."""

    def __init__(self, folder: Path, modality: str) -> None:
        import transformers

        self.modality = modality
        config = transformers.AutoConfig.from_pretrained(folder)
        self.model: Any = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
        self.processor: Any = transformers.AutoProcessor.from_pretrained(folder)
        self.placeholder: int = getattr(config, f"{modality}_token_id")
        self.model.requires_grad_(False)

    @property
    def projector(self) -> nn.Module:
        """Return the map from features to the language model's width."""
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    def encode(self, rows: Sequence[PromptRow]) -> list[EncodedRow]:
        """Return the rows with the encoder's features of their inputs."""
        parts = (self._encode(rows[at : at + AT_ONCE]) for at in range(0, len(rows), AT_ONCE))
        return [row for part in parts for row in part]

    def _encode(self, rows: Sequence[PromptRow]) -> Iterator[EncodedRow]:
        inputs = self.processor(
            text=[row.prompt for row in rows],
            **{INPUT_NAMES[self.modality]: self._flat(rows)},
            padding=True,
            return_tensors="pt",
            **({"sampling_rate": self._rate} if self.modality == "audio" else {}),
        )
        features = self._features(inputs)
        held = (inputs["input_ids"] == self.placeholder).sum(1).tolist()
        for row, ids, mask, part in zip(
            rows, inputs["input_ids"], inputs["attention_mask"], features.split(held), strict=True
        ):
            answer, caption = self._ids(row.answer), self._ids(row.caption or row.answer)
            yield EncodedRow(ids[mask.bool()].tolist(), answer, caption, self.modality, part.clone())

    def _flat(self, rows: Sequence[PromptRow]) -> list[Any]:
        each = [list(row.inputs[self.modality]) for row in rows]
        return each if self.modality == "image" else [one for row in each for one in row]

    @property
    def _rate(self) -> int:
        return int(self.processor.feature_extractor.sampling_rate)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def _features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the projector gets for the placeholders, in the order of all places, shape [n, d].

        The model's own forward says which: the projector is made to return its rows' numbers, and they are
        read where the language model is given them.
        """
        seen: dict[str, torch.Tensor] = {}

        def number(_: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            seen["features"] = args[0].flatten(0, -2)
            numbers = torch.arange(len(seen["features"]), dtype=out.dtype)
            return numbers.view(*out.shape[:-1], 1).expand_as(out)

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, torch.Tensor]) -> None:
            seen["embeddings"] = kwargs["inputs_embeds"]
            raise StopForward

        language = self.model.model.language_model
        handles = (
            self.projector.register_forward_hook(number),
            language.register_forward_pre_hook(stop, with_kwargs=True),
        )
        try:
            self.model(**inputs)
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        held = inputs["input_ids"] == self.placeholder
        return seen["features"][seen["embeddings"][held][:, 0].long()]


@dataclass
class Streams:
    """Adapter -> where it acts, [B, L]; what the hooks of the adapters read in a pass."""

    masks: dict[str, torch.Tensor] = field(default_factory=dict)


class Decoupled:
    """One language model with a LoRA for text and one for each modality's tokens, read by its readers.

    All readers share the language model of the first. `folders` are where adapters are loaded from; without
    them they are new.
    """

    def __init__(
        self, readers: Sequence[ModalityReader], training: DecoupledTraining, folder: Path | None = None
    ) -> None:
        self.readers = {reader.modality: reader for reader in readers}
        first = readers[0]
        for other in readers[1:]:
            other.model.model.language_model = first.model.model.language_model
        self.language, self.head = first.model.model.language_model, first.model.lm_head
        self.names = (LANGUAGE, *(self.readers if training.apart else ()))
        self.training, self.streams = training, Streams()
        self.adapted = self._adapted(first.model, folder)
        self._hook()

    def _adapted(self, model: nn.Module, folder: Path | None) -> Any:
        from peft import LoraConfig, PeftModel, get_peft_model

        how = self.training
        if folder:
            adapted = PeftModel.from_pretrained(model, folder / LANGUAGE, adapter_name=LANGUAGE)
        else:
            maps = "|".join(how.targets)
            lora = LoraConfig(
                r=how.rank, lora_alpha=how.alpha, target_modules=rf".*language_model\..*\.({maps})"
            )
            adapted = get_peft_model(model, lora, adapter_name=LANGUAGE)
        for name in self.names[1:]:
            if folder:
                adapted.load_adapter(folder / name, name)
            else:
                adapted.add_adapter(name, lora)
        adapted.base_model.set_adapter(list(self.names))
        return adapted

    def _hook(self) -> None:
        """Let each LoRA act on its own tokens alone."""

        def masked(name: str) -> Callable[..., torch.Tensor]:
            return lambda _, args, out: out * self.streams.masks[name][..., None]

        for module in self.adapted.modules():
            for name in self.names if hasattr(module, "lora_B") else ():
                if name in module.lora_B:
                    module.lora_B[name].register_forward_hook(masked(name))

    def save(self, folder: Path) -> None:
        """Write adapters, and what the readers are made of: each a folder, of one reader `folder` itself."""
        self.adapted.save_pretrained(folder)
        self.adapted.unload()
        for name, reader in self.readers.items():
            place = folder if len(self.readers) == 1 else folder / f"model-{name}"
            reader.model.save_pretrained(place)
            reader.processor.save_pretrained(place)

    def hidden(self, rows: Sequence[EncodedRow], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the last hidden states of these ids of the rows, padded on the right, shape [B, L, H]."""
        shape = len(ids), max(map(len, ids))
        tokens, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        for number, one in enumerate(ids):
            tokens[number, : len(one)], mask[number, : len(one)] = torch.tensor(one), 1
        embeddings = self.language.get_input_embeddings()(tokens.clamp(max=self.rows - 1))
        held = {}
        for name, reader in self.readers.items():
            mine = torch.tensor([row.modality == name for row in rows])
            held[name] = (tokens == reader.placeholder) & mine[:, None]
            if mine.any():
                features = torch.cat([row.features for row in rows if row.modality == name])
                embeddings = embeddings.masked_scatter(held[name][..., None], reader.projector(features))
        text = ~torch.stack(list(held.values())).any(0) if self.training.apart else mask >= 0
        self.streams.masks = {LANGUAGE: text.float(), **{name: one.float() for name, one in held.items()}}
        out = self.language(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    @property
    def rows(self) -> int:
        """Return the rows of the table of embeddings."""
        return len(self.language.get_input_embeddings().weight)

    def loss(self, rows: Sequence[EncodedRow], end: int) -> torch.Tensor:
        """Return the mean loss of the answers' tokens and of the end; other logits are not computed."""
        ids, labels = [], []
        for row in rows:
            answer = [*row.answer, end]
            ids.append([*row.ids, *answer[:-1]])
            labels.append([ANSWERED] * (len(row.ids) - 1) + answer)
        longest = max(map(len, ids))
        due = torch.tensor([one + [ANSWERED] * (longest - len(one)) for one in labels])
        hidden = self.hidden(rows, ids)
        return cross_entropy(self.head(hidden[due != ANSWERED]), due[due != ANSWERED])

    @torch.inference_mode()
    def first_tokens(self, rows: Sequence[EncodedRow]) -> list[int]:
        """Return the most likely next token after each prompt, among all."""
        answers = [0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        for at in range(0, len(order), AT_ONCE):
            part = [rows[i] for i in order[at : at + AT_ONCE]]
            hidden = self.hidden(part, [row.ids for row in part])
            last = hidden[torch.arange(len(part)), torch.tensor([len(row.ids) - 1 for row in part])]
            for i, token in zip(order[at : at + AT_ONCE], self.head(last).argmax(-1).tolist(), strict=True):
                answers[i] = token
        return answers


def train(
    models: Mapping[str, Path],
    rows: Sequence[PromptRow],
    folder: Path,
    training: DecoupledTraining,
    seed: int,
    say: Say = silent,
    look: Callable[[Decoupled, int], None] = lambda decoupled, step: None,
) -> list[float]:
    """Train on the rows, write to `folder`, and return the mean loss of every tenth of the steps.

    `models` are modality -> folder; several of them share one language model and its LoRA. Each step takes
    a batch of rows, in a random order that every pass draws anew. `look` is called after every 50 steps.
    """
    torch.manual_seed(seed)
    decoupled = Decoupled([ModalityReader(path, name) for name, path in models.items()], training)
    encoded = _encode(decoupled, rows)
    say(f"{len(encoded)} rows encoded")
    draw = torch.Generator().manual_seed(seed)
    for name, reader in decoupled.readers.items():
        mine = [row for row in encoded if row.modality == name]
        loss = _align(
            reader.projector, decoupled.language.get_input_embeddings().weight, mine, training, draw
        )
        say(f"{name}: projector aligned to words, loss {loss:.3f}")
    losses = _fit(decoupled, encoded, training, draw, say, look)
    decoupled.save(folder)
    return losses


def _encode(decoupled: Decoupled, rows: Sequence[PromptRow]) -> list[EncodedRow]:
    of = {
        name: iter(reader.encode([row for row in rows if row.modality == name]))
        for name, reader in decoupled.readers.items()
    }
    return [next(of[row.modality]) for row in rows]


def _align(
    projector: nn.Module,
    table: torch.Tensor,
    rows: Sequence[EncodedRow],
    training: DecoupledTraining,
    draw: torch.Generator,
) -> float:
    """Draw the mean of an input's tokens to the mean embedding of its caption; return the last loss.

    The loss is the square distance, as a share of the captions' own variance. Rows of several inputs are
    left out.
    """
    if not training.align_steps:
        return float("nan")
    projector.requires_grad_(True)
    targets = torch.stack([table[row.caption].mean(0) for row in rows])
    spread = targets.var(0).sum().clamp(min=1e-6)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=training.align_rate, weight_decay=0.0)
    schedule = paced(optimizer, linear(training.align_steps, training.warmup))

    def loss_of(_: int) -> torch.Tensor:
        which = torch.randint(len(rows), (training.align_batch,), generator=draw).tolist()
        features = [rows[i].features for i in which]
        means = [part.mean(0) for part in projector(torch.cat(features)).split(list(map(len, features)))]
        return (torch.stack(means) - targets[which]).square().sum(1).mean() / spread

    losses = minimise(loss_of, list(projector.parameters()), optimizer, schedule, range(training.align_steps))
    return losses[-1].item()


def _fit(
    decoupled: Decoupled,
    rows: Sequence[EncodedRow],
    training: DecoupledTraining,
    draw: torch.Generator,
    say: Say,
    look: Callable[[Decoupled, int], None],
) -> list[float]:
    projecting = [p for reader in decoupled.readers.values() for p in reader.projector.parameters()]
    for weight in projecting:
        weight.requires_grad_(True)
    adapting = [p for name, p in decoupled.adapted.named_parameters() if "lora_" in name and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": projecting, "lr": training.projector_rate}, {"params": adapting, "lr": training.rate}],
        weight_decay=0.0,
    )
    schedule = paced(optimizer, linear(training.steps, training.warmup))
    first = next(iter(decoupled.readers.values()))
    end, batches = first.processor.tokenizer.eos_token_id, _batches(len(rows), training.batch, draw)

    def after(step: int, loss: torch.Tensor) -> None:
        if (step + 1) % 10 == 0:
            say(f"{step + 1} of {training.steps} steps, loss {loss.item():.3f}")
        if (step + 1) % 50 == 0:
            look(decoupled, step + 1)

    def loss_of(_: int) -> torch.Tensor:
        return decoupled.loss([rows[i] for i in next(batches)], end)

    weights = [*projecting, *adapting]
    steps = range(training.steps)
    return tenths(minimise(loss_of, weights, optimizer, schedule, steps, training.clip, after))


def _batches(count: int, size: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Yield batches without end; each pass has every row once, but for what is left over."""
    while True:
        order = torch.randperm(count, generator=draw).tolist()
        yield from (order[at : at + size] for at in range(0, count - size + 1, size))
