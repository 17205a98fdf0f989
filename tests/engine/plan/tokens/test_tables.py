"""Which tensors are tables: by name and by the vocabulary, and against the modules of real architectures."""

from typing import Any

import pytest
import torch

from _models import CONFIGS, TEXT, VISION, quiet_transformers
from submerge.engine.plan.tokens._tables import is_matrix, is_table, token_rows, token_tables
from submerge.store import TensorEntry

BYTES = {"vocab_size": 256, "hidden_size": 256, "intermediate_size": 256}


@pytest.mark.parametrize(
    ("name", "shape", "config", "matrix"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (8, 8), None, True),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", (8, 4), None, True),
        ("model.embed_tokens.weight", (8, 4), None, False),
        ("transformer.wte.weight", (8, 4), None, False),
        ("transformer.wpe.weight", (8, 4), None, False),
        ("bert.embeddings.position_embeddings.weight", (8, 4), None, False),
        ("shared.weight", (8, 4), None, False),
        ("lm_head.weight", (8, 4), None, False),
        ("output.weight", (32000, 4), {"vocab_size": 32000}, False),
        ("block.0.SelfAttention.relative_attention_bias.weight", (32, 4), None, False),
        ("model.norm.weight", (8,), None, False),
        ("row.weight", (1, 8), None, False),
        ("conv.weight", (8, 3, 2, 2), None, False),
        ("mlp.experts.gate_up_proj", (2, 8, 4), None, False),
        # a side as long as the vocabulary says nothing
        ("model.layers.0.mlp.down_proj.weight", (256, 256), BYTES, True),
        ("model.layers.0.output.weight", (256, 256), BYTES, True),
        ("bert.pooler.dense.weight", (256, 256), BYTES, True),
        ("cls.predictions.transform.dense.weight", (256, 256), BYTES, True),
        ("output.weight", (256, 8), {"text_config": {"vocab_size": 256}}, False),
        ("output.weight", (4, 256), BYTES, True),
        # linear maps that are called after embeddings
        ("electra.embeddings_project.weight", (8, 4), None, True),
        ("albert.encoder.embedding_hidden_mapping_in.weight", (8, 4), None, True),
        ("time_embedding.linear_1.weight", (8, 4), None, True),
        ("time_embed.0.weight", (8, 4), None, True),
        ("vision_model.embeddings.patch_embedding.weight", (8, 4), None, True),
        ("time_text_embed.timestep_embedder.linear_2.weight", (8, 4), None, True),
        ("context_embedder.weight", (8, 4), None, True),
        ("model.vision_embed_tokens.weight", (8, 4), None, True),
        # tables under other names
        ("vision_model.embeddings.position_embedding.weight", (5, 4), None, False),
        ("visual.positional_embedding", (5, 4), None, False),
        ("gpt_neox.embed_in.weight", (8, 4), None, False),
        ("embed_out.weight", (8, 4), None, False),
        ("backbone.embeddings.weight", (8, 4), None, False),
        ("tok_embeddings.weight", (8, 4), None, False),
        ("model.decoder.embed_tokens.3.weight", (8, 4), None, False),
        ("class_embedder.embedding_table.weight", (8, 4), None, False),
        ("layer.0.attn.relative_position_bias_table", (8, 4), None, False),
        # parameters that are no maps
        ("backbone.layers.0.mixer.A_log", (8, 4), None, False),
        ("mlp.experts.down_proj_bias", (8, 4), None, False),
        ("attn.in_proj_weight", (12, 4), None, True),
        ("visual.proj", (8, 4), None, True),
        ("text_projection", (8, 4), None, True),
    ],
)
def test_what_is_a_matrix(name: str, shape: tuple[int, ...], config: Any, matrix: bool) -> None:
    assert is_matrix(name, shape, config) is matrix


def _entries(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
    return {name: TensorEntry(name, "F32", shape, None, 0, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ({"model.embed_tokens.weight": (40, 8), "lm_head.weight": (44, 8)}, 40),
        ({"language_model.model.embed_tokens.weight": (40, 8), "vision.pos_embed": (50, 8)}, 40),
        ({"text_encoder.shared.weight": (40, 8), "decoder.model.decoder.embed_tokens.0.weight": (20, 8)}, 40),
        (
            {"model.embed_tokens.weight": (40, 8), "model.embed_tokens.additional_embedding.weight": (2, 8)},
            42,
        ),
        ({"wav2vec2.encoder.layers.0.attention.q_proj.weight": (8, 8), "lm_head.weight": (32, 8)}, None),
        ({"vit.embeddings.position_embeddings": (1, 5, 8), "classifier.weight": (3, 8)}, None),
        ({"model.embed_tokens.weight": (40,)}, None),
    ],
)
def test_rows_for_token_ids(shapes: dict[str, tuple[int, ...]], rows: int | None) -> None:
    assert token_rows(_entries(shapes)) == rows


# --- against transformers -------------------------------------------------------------------------

ENCODER = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}
ONE = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
SEQ2SEQ = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
MORE: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": TEXT | {"vocab_size": 24},  # as long as the intermediate size
    "GPT2LMHeadModel": ONE,
    "GPTNeoXForCausalLM": ENCODER,
    "BloomForCausalLM": {"vocab_size": 64, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "FalconForCausalLM": ENCODER,
    "OPTForCausalLM": ENCODER | {"ffn_dim": 24, "word_embed_proj_dim": 8},
    "MambaForCausalLM": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1},
    "RwkvForCausalLM": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1},
    "CTRLLMHeadModel": ONE | {"dff": 24},
    "XLNetLMHeadModel": {"vocab_size": 64, "d_model": 16, "n_layer": 1, "n_head": 2},
    "RobertaForMaskedLM": ENCODER,
    "AlbertForMaskedLM": ENCODER | {"embedding_size": 8},
    "ElectraForMaskedLM": ENCODER | {"embedding_size": 8},
    "DistilBertForMaskedLM": {"vocab_size": 64, "dim": 16, "n_layers": 1, "n_heads": 2},
    "ModernBertForMaskedLM": ENCODER | {"pad_token_id": 0},
    "BartForConditionalGeneration": SEQ2SEQ,
    "WhisperForConditionalGeneration": SEQ2SEQ | {"encoder_attention_heads": 2, "decoder_attention_heads": 2},
    "Wav2Vec2ForCTC": {"vocab_size": 32, "hidden_size": 48, "num_hidden_layers": 1},
    "SiglipModel": {"text_config": ENCODER, "vision_config": VISION},
    "ViTMAEForPreTraining": VISION | {"decoder_hidden_size": 8, "decoder_num_attention_heads": 2},
    "Swinv2Model": {"embed_dim": 8, "depths": [1], "num_heads": [2], "image_size": 16},
}


def _built(kind: str) -> Any:
    """Return a model of real modules, without values."""
    t = quiet_transformers()
    name, make = CONFIGS.get(kind, (kind, lambda _: getattr(t, name).config_class(**MORE[name])))
    with torch.device("meta"):
        return getattr(t, name)(make(t))


def _called(model: Any, module: Any) -> str:
    return next(name for name, found in model.named_modules() if found is module)


@pytest.mark.parametrize("kind", [*CONFIGS, *MORE])
def test_tables_are_what_transformers_looks_up(kind: str) -> None:
    model = _built(kind)
    config = model.config.to_dict()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    output = model.get_output_embeddings()
    looked_up, maps = [], []
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, torch.nn.Embedding) or module is output:
            looked_up.append(name)
        elif isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            maps.append(name)
    for name in looked_up:
        assert is_table(name, shapes[name], config), name
    for name in set(maps) - {"lm_head.weight"}:  # CTC's, which is no output embedding to transformers
        assert is_matrix(name, shapes[name], config) == (min(shapes[name]) > 1), name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "bert", "t5", "llava", *list(MORE)[:17]])
def test_rows_are_those_of_the_input_embedding(kind: str) -> None:
    model = _built(kind)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    inputs = model.get_input_embeddings()
    assert token_rows(_entries(shapes)) == inputs.num_embeddings, _called(model, inputs)


def test_tables_of_tokens_are_embeddings_heads_and_their_biases() -> None:
    shapes = {
        "lm_head.bias": (40,),
        "lm_head.weight": (40, 8),
        "model.embed_tokens.weight": (40, 8),
        "model.embed_positions.weight": (40, 8),
        "model.layers.0.mlp.up_proj.weight": (40, 8),
        "model.layers.0.mlp.up_proj.bias": (40,),
        "tower.embed_tokens.weight": (24, 8),
    }
    tables = token_tables(_entries(shapes), 40)
    assert tables == ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"]
