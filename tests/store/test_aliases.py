"""Which names of a model are those of one parameter."""

import pytest

from _models import CONFIG
from _tied import EMBEDDING, HEAD
from submerge.store import find_aliases


@pytest.mark.parametrize(
    ("shapes", "groups"),
    [
        ({EMBEDDING: (40, 16), HEAD: (40, 16), "model.norm.weight": (16,)}, [(EMBEDDING, HEAD)]),
        ({"transformer.wte.weight": (40, 8), "transformer.wpe.weight": (40, 8), HEAD: (40, 8)},
         [("transformer.wte.weight", HEAD)]),
        ({"gpt_neox.embed_in.weight": (40, 8), "embed_out.weight": (40, 8)},
         [("gpt_neox.embed_in.weight", "embed_out.weight")]),
        ({"decoder.embed_tokens.weight": (40, 8), HEAD: (40, 8), "shared.weight": (40, 8)},
         [("shared.weight", "decoder.embed_tokens.weight", HEAD)]),
        ({"a.embed_tokens.weight": (40, 8), "b.embed_tokens.weight": (40, 8), "b.lm_head.weight": (40, 8)},
         [("b.embed_tokens.weight", "b.lm_head.weight")]),
        ({"a.embed_tokens.weight": (40, 8), "b.embed_tokens.weight": (40, 8), HEAD: (40, 8)}, []),
        ({"roberta.embeddings.word_embeddings.weight": (40, 8), "lm_head.decoder.weight": (40, 8),
          "lm_head.bias": (40,), "lm_head.decoder.bias": (40,)},
         [("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
          ("lm_head.bias", "lm_head.decoder.bias")]),
        ({"encoder.0.weight": (40, 16), "decoder.weight": (40, 16)}, []),
        ({EMBEDDING: (39, 16), HEAD: (39, 16)}, [(EMBEDDING, HEAD)]),
        ({EMBEDDING: (39, 16), "decoder.weight": (39, 16)}, []),
        ({EMBEDDING: (39, 16), HEAD: (40, 16)}, []),
        ({"model.layers.0.embed_tokens.weight": (40, 16), HEAD: (40, 16)}, []),
    ],
)  # fmt: skip
def test_names_and_shapes_tell_what_is_one(
    shapes: dict[str, tuple[int, ...]], groups: list[tuple[str, ...]]
) -> None:
    found = find_aliases(CONFIG, shapes, ask=False)
    assert [group.names for group in found.groups] == groups
