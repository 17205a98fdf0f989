"""Passes in which reducers take in the inputs of modules: which rows, and how far a pass goes."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch

from _models import CONFIGS, TEXT, inputs, quiet_transformers
from calibrate.helpers_null_space import all_inputs, batch
from submerge.calibrate import Reducer, collect
from submerge.errors import RequestError, WorkError

pytest.importorskip("transformers")
NAMES = [f"model.layers.{i}.{m}_proj" for i in (0, 1) for m in ("self_attn.q", "self_attn.v", "mlp.up")]


class Rows(Reducer):
    """Holds all rows."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    def update(self, rows: torch.Tensor) -> None:
        self.rows.append(rows)


def model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    t = quiet_transformers()
    torch.manual_seed(0)
    name, config = CONFIGS[kind]
    return getattr(t, name)(config(t)).to(dtype).eval().requires_grad_(False)


def test_rows_are_those_of_a_full_pass_without_padding() -> None:
    lm, batches = model(), [batch(0), batch(1, size=2, length=5)]
    reducers = {name: Rows() for name in NAMES}
    collect(lm, batches, reducers)
    for number, one in enumerate(batches):
        for name, rows in all_inputs(lm, NAMES, one).items():
            assert torch.equal(reducers[name].rows[number], rows)
            assert len(rows) == one["attention_mask"].sum()


def test_a_pass_ends_after_the_last_module() -> None:
    lm, ran = model(), []
    for name in ("model.layers.1.mlp.down_proj", "model.norm", "lm_head"):
        lm.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    collect(lm, [batch(0)], {name: Rows() for name in NAMES})
    assert not ran
    collect(lm, [batch(0)], {**{name: Rows() for name in NAMES}, "lm_head": Rows()})
    assert ran == ["model.layers.1.mlp.down_proj", "model.norm", "lm_head"]


def test_padding_changes_no_row() -> None:
    """On either side: a sample's rows are those that it has alone."""
    lm, (a, b) = model(), (torch.arange(5, 12), torch.arange(20, 24))
    alone = Rows()
    collect(lm, [{"input_ids": ids.unsqueeze(0)} for ids in (a, b)], {NAMES[4]: alone})
    for left in (True, False):
        pad = torch.zeros(3, dtype=torch.long)
        ids = torch.stack([a, torch.cat([pad, b] if left else [b, pad])])
        found = Rows()
        collect(lm, [{"input_ids": ids, "attention_mask": (ids > 0).long()}], {NAMES[4]: found})
        assert (found.rows[0] - torch.cat(alone.rows)).abs().max() < 1e-5


def test_what_a_model_draws_is_drawn_alike_in_every_pass() -> None:
    """ViTMAE hides patches at random, when it is evaluated, too."""
    t = quiet_transformers()
    config = t.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16,
        patch_size=4,
    )  # fmt: skip
    mae, images = t.ViTMAEModel(config).eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    name = next(n for n, m in mae.named_modules() if n.endswith(("query", "q_proj")))
    before, found = torch.get_rng_state(), Rows()
    collect(mae, [images, images], {name: found})
    assert torch.equal(*found.rows)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_that_runs_twice_counts_once() -> None:
    t = quiet_transformers()
    config = t.AlbertConfig(
        vocab_size=64, embedding_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2,
    )  # fmt: skip
    albert, found = t.AlbertModel(config).eval(), Rows()
    name = next(n for n, m in albert.named_modules() if n.endswith("query") or n.endswith("q_proj"))
    collect(albert, [batch(0)], {name: found, "pooler": Rows()})
    assert [len(rows) for rows in found.rows] == [int(batch(0)["attention_mask"].sum())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_come_in_the_models_dtype(dtype: torch.dtype) -> None:
    vit, found = model("vit", dtype), Rows()
    name = [n for n, m in vit.named_modules() if isinstance(m, torch.nn.Linear)][-2]
    steps: list[int] = []
    collect(vit, [inputs("vit")] * 2, {name: found}, progress=steps.append)
    assert {rows.dtype for rows in found.rows} == {dtype}
    assert [len(rows) for rows in found.rows] == [5, 5]
    assert steps == [1, 2]


def _audio_model() -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a tiny Qwen2-Audio, and two prompts with a sound each, of 40 and of 24 frames."""
    t = quiet_transformers()
    torch.manual_seed(0)
    audio = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    audio |= {"num_mel_bins": 8, "max_source_positions": 20}
    config = t.Qwen2AudioConfig(audio_config=audio, text_config={**TEXT, "model_type": "qwen2"})
    config.audio_token_index = config.audio_token_id = 63
    frames = torch.ones(2, 40).long()
    frames[1, 24:] = 0
    ids = batch(0, size=2, length=14)["input_ids"]
    ids[0, 1:11], ids[1, 1:7] = 63, 63  # as many as the tower gives
    mask = torch.ones(2, 14).long()
    mask[1, 12:] = 0
    features = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": mask, "input_features": features}
    model = t.Qwen2AudioForConditionalGeneration(config).eval().requires_grad_(False)
    return model, {**inputs, "feature_attention_mask": frames}


def test_a_tower_s_rows_are_told_by_the_mask_of_its_frames() -> None:
    lm, inputs_ = _audio_model()
    tower, text = "model.audio_tower.layers.1.fc1", "model.language_model.layers.1.self_attn.q_proj"
    reducers = {tower: Rows(), text: Rows()}
    collect(lm, [inputs_], reducers)
    assert len(reducers[tower].rows[0]) == (40 + 24) / 2
    assert len(reducers[text].rows[0]) == 14 + 12


def test_a_text_s_mask_is_none_of_an_image_tower() -> None:
    """Though there are as many patches as tokens."""
    lm, found = model("llava"), Rows()
    tokens = batch(0, size=2, length=5)
    tokens["input_ids"][:, 1:] = lm.config.image_token_index
    tokens["attention_mask"][1, 0] = 0
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    collect(lm, [{**tokens, "pixel_values": images}], {"model.vision_tower.encoder.layers.1.mlp.fc1": found})
    assert len(found.rows[0]) == 2 * 5


def test_inputs_that_the_model_refuses_are_told() -> None:
    with pytest.raises(RequestError, match=r"LlamaForCausalLM: it refuses inputs of attention_mask"):
        collect(model(), [{"attention_mask": torch.ones(1, 4).long()}], {NAMES[0]: Rows()})


def test_inputs_of_the_other_tower_are_told() -> None:
    clip = model("clip")
    reducers = {"vision_model.encoder.layers.1.self_attn.q_proj": Rows()}
    told = r"CLIPModel: inputs of input_ids, attention_mask run through a tower without any of the modules"
    with pytest.raises(RequestError, match=told):
        collect(clip, [batch(0, size=1)], reducers)


def test_shapes_that_the_model_refuses_are_told() -> None:
    embeds = {"inputs_embeds": torch.zeros(1, 4, 7)}  # the model has other rows
    with pytest.raises(RequestError, match=r"LlamaForCausalLM: it refuses inputs of inputs_embeds"):
        collect(model(), [embeds], {NAMES[0]: Rows()})


def test_texts_beyond_the_model_s_positions_are_told() -> None:
    """Of a tokenizer that does not say how long texts may be."""
    t = quiet_transformers()
    config = t.BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8)  # fmt: skip
    query = "encoder.layer.0.attention.self.query"
    with pytest.raises(RequestError, match="have up to 12 tokens, and the model 8 positions: set max_length"):
        collect(t.BertModel(config).eval(), [batch(0, length=12)], {query: Rows()})


@pytest.mark.parametrize("error", [RuntimeError("no CPU kernel"), ValueError("odd"), IndexError("5")])
def test_what_a_reducer_raises_is_no_word_of_the_model(error: Exception) -> None:
    """A fault of this package, which no other inputs would mend."""

    class Faulty(Reducer):
        def update(self, rows: torch.Tensor) -> None:
            raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        collect(model(), [{"input_ids": torch.ones(1, 4).long()}], {NAMES[0]: Faulty()})
    assert caught.value is error


def test_memory_that_does_not_suffice_for_a_reducer_is_told() -> None:
    class Large(Reducer):
        def update(self, rows: torch.Tensor) -> None:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(WorkError, match=r"the memory does not suffice for a batch"):
        collect(model(), [{"input_ids": torch.ones(1, 4).long()}], {NAMES[0]: Large()})


def test_memory_that_does_not_suffice_is_no_fault_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, text = model(), "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    monkeypatch.setattr(lm, "forward", Mock(side_effect=RuntimeError(text)))
    with pytest.raises(WorkError, match=r"the memory does not suffice for a batch .* smaller batch_size"):
        collect(lm, [{"input_ids": torch.ones(1, 4).long()}], {NAMES[0]: Rows()})


MASKED = {"encoder": 10, "decoder": 9}
"""Tokens of two texts of six, of which some are padding, that the encoder and the decoder are given."""


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (
            "T5",
            {
                "encoder.block.1.layer.0.SelfAttention.q": "encoder",
                "decoder.block.0.layer.0.SelfAttention.q": "decoder",
                "decoder.block.0.layer.1.EncDecAttention.q": "decoder",
                "decoder.block.0.layer.1.EncDecAttention.v": "encoder",
                "decoder.block.1.layer.2.DenseReluDense.wo": "decoder",
            },
        ),
        (
            "Bart",
            {
                "encoder.layers.1.fc1": "encoder",
                "decoder.layers.0.self_attn.k_proj": "decoder",
                "decoder.layers.0.encoder_attn.k_proj": "encoder",
                "decoder.layers.0.encoder_attn.out_proj": "decoder",
                "decoder.layers.1.fc2": "decoder",
            },
        ),
    ],
)
def test_a_decoder_has_a_mask_of_its_own(kind: str, rows: dict[str, str]) -> None:
    """Though both texts have as many tokens."""
    t = quiet_transformers()
    sizes = {"d_model": 16, "vocab_size": 64}
    if kind == "T5":
        sizes |= {"num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 24}
    for part in MASKED if kind == "Bart" else ():
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 24}
    model = getattr(t, f"{kind}Model")(getattr(t, f"{kind}Config")(**sizes)).eval()
    ids, masks = torch.randint(5, 64, (2, 6)), {part: torch.ones(2, 6).long() for part in MASKED}
    for part, count in MASKED.items():
        masks[part][1, count - 6 :] = 0
    given = {"input_ids": ids, "attention_mask": masks["encoder"], "decoder_input_ids": ids}
    found = {name: Rows() for name in rows}
    collect(model, [{**given, "decoder_attention_mask": masks["decoder"]}], found)
    assert {name: len(found[name].rows[0]) for name in rows} == {
        name: MASKED[part] for name, part in rows.items()
    }
    last = list(rows)[-1]
    found = {last: Rows()}
    collect(model, [given], found)
    assert len(found[last].rows[0]) == 12, "without a mask no token of the decoder is padding"


def t5(**config: Any) -> Any:
    t = quiet_transformers()
    sizes = {"d_model": 16, "vocab_size": 64, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 24}
    return t.T5Model(t.T5Config(**sizes, **config)).eval()


def test_a_decoder_without_inputs_begins_as_generate_does() -> None:
    """Labels are not looked at: the decoder has its first token alone, and no position is padding."""
    names = [f"decoder.block.0.layer.{layer}" for layer in ("0.SelfAttention.q", "1.EncDecAttention.k")]
    lm, one = t5(decoder_start_token_id=3), batch(0)
    given, made = ({name: Rows() for name in names} for _ in range(2))
    collect(lm, [one], made)
    collect(lm, [{**one, "decoder_input_ids": torch.full((3, 1), 3)}], given)
    assert [len(made[name].rows[0]) for name in names] == [3, int(one["attention_mask"].sum())]
    for name in names:
        assert torch.equal(made[name].rows[0], given[name].rows[0])


def test_a_decoder_without_a_first_token_needs_inputs() -> None:
    name = "decoder.block.0.layer.0.SelfAttention.q"
    with pytest.raises(RequestError, match="give batches of tensors with decoder_input_ids, too"):
        collect(t5(decoder_start_token_id=None), [batch(0)], {name: Rows()})


@pytest.mark.parametrize(("kind", "tower"), [("texts", "text_model"), ("images", "vision_model")])
def test_each_tower_of_clip_runs_alone(kind: str, tower: str) -> None:
    """Also where hooks are in the other one, which such inputs do not reach."""
    clip, both = model("clip"), inputs("clip")
    names = ("pixel_values",) if kind == "images" else ("input_ids", "attention_mask")
    own = {name: value for name, value in both.items() if name in names}
    path = ".encoder.layers.0.self_attn.q_proj"
    alone, together = ({f"{t}{path}": Rows() for t in ("text_model", "vision_model")} for _ in range(2))
    collect(clip, [own], alone)
    collect(clip, [both], together)
    for name, rows in alone.items():
        assert len(rows.rows) == name.startswith(tower)
    assert torch.equal(alone[tower + path].rows[0], together[tower + path].rows[0])
