"""The same recipe file through mergekit and through Submerge, on disk: the same tensors come out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, perturbed, read, state, write

LAYERS, HIDDEN, WIDE, VOCABULARY = 4, 16, 24, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        for name, shape in {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (WIDE, HIDDEN),
            "mlp.up_proj": (WIDE, HIDDEN),
            "mlp.down_proj": (HIDDEN, WIDE),
        }.items():
            found[f"model.layers.{i}.{name}.weight"] = shape
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `a`, `b` and `c`, as a recipe with relative paths names them."""
    found = tmp_path_factory.mktemp("parity")
    base = state(shapes())
    write(found / "base", base, CONFIG)
    for number, name in enumerate("abc"):
        write(found / name, perturbed(base, number, scale=0.3), CONFIG, shards=1 + number)
    return found


RECIPES = {
    "linear": """
merge_method: linear
models:
- {model: a, parameters: {weight: 1.0}}
- {model: b, parameters: {weight: [0, 0.5, 1]}}
- {model: c, parameters: {weight: [{filter: mlp, value: 2}, {value: 0.25}]}}
""",
    "linear of weights and base": """
merge_method: linear
base_model: base
models:
- {model: base, parameters: {weight: 0.3}}
- {model: a, parameters: {weight: 1.0}}
- {model: b, parameters: {weight: -0.2}}
parameters: {normalize: false}
""",
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: base
models:
- {model: a, parameters: {weight: 0.4}}
- {model: b, parameters: {weight: [{filter: self_attn, value: [0.2, 0.9]}, {value: 0.7}]}}
- {model: c, parameters: {weight: -0.5}}
parameters: {lambda: 0.8}
""",
    "task_arithmetic with the base listed": """
merge_method: task_arithmetic
base_model: base
models:
- {model: a, parameters: {weight: 0.4}}
- model: base
- {model: b, parameters: {weight: 0.6}}
parameters: {normalize: true}
""",
    "ties": """
merge_method: ties
base_model: base
models:
- {model: a, parameters: {weight: 0.5, density: 0.3}}
- {model: b, parameters: {weight: [1, 0.2], density: [0.2, 0.9]}}
- {model: c, parameters: {weight: 1, density: 1}}
parameters: {normalize: true, lambda: 1.1, int8_mask: true}
""",
    "slerp": """
merge_method: slerp
base_model: base
models: [{model: base}, {model: a}]
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
  - {value: 0.5}
""",
    "slerp with the base second": """
merge_method: slerp
base_model: base
models: [{model: a}, {model: base}]
parameters: {t: 0.2}
""",
    "nuslerp": """
merge_method: nuslerp
models:
- {model: a, parameters: {weight: 0.3}}
- {model: b, parameters: {weight: [0.1, 0.9]}}
""",
    "nuslerp of updates by row": """
merge_method: nuslerp
base_model: base
models:
- {model: a, parameters: {weight: 0.3}}
- {model: b, parameters: {weight: 0.7}}
parameters: {nuslerp_flatten: false}
""",
    "nuslerp by column": """
merge_method: nuslerp
models:
- {model: a, parameters: {weight: 0.3}}
- {model: b, parameters: {weight: 0.7}}
parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
""",
    "karcher": """
merge_method: karcher
models: [{model: a}, {model: b}, {model: c}]
parameters: {max_iter: 20, tol: 1e-9}
""",
    "multislerp": """
merge_method: multislerp
models:
- {model: a, parameters: {weight: 0.3}}
- {model: b, parameters: {weight: [0.1, 0.9]}}
- {model: c, parameters: {weight: 1}}
""",
    "multislerp of updates": """
merge_method: multislerp
base_model: base
models: [{model: a}, {model: b}]
parameters: {weight: 0.5, normalize_weights: false}
""",
    "nearswap": """
merge_method: nearswap
base_model: base
models: [{model: base}, {model: a}]
parameters: {t: [0.001, 0.02]}
""",
    "arcee_fusion": """
merge_method: arcee_fusion
base_model: base
models: [{model: base}, {model: a}]
""",
    "ram": """
merge_method: ram
base_model: base
models: [{model: a}, {model: b}, {model: c}]
parameters: {epsilon: 0.01}
""",
    "ramplus_tl": """
merge_method: ramplus_tl
base_model: base
models: [{model: a}, {model: b}, {model: c}]
parameters: {epsilon: [0.001, 0.05], r: 0.3, alpha: 0.6}
""",
    "model_stock": """
merge_method: model_stock
base_model: base
models: [{model: a}, {model: b}, {model: c}]
""",
    "model_stock by filter": """
merge_method: model_stock
base_model: base
models: [{model: a}, {model: b}]
parameters: {filter_wise: true}
""",
    "sce": """
merge_method: sce
base_model: base
models: [{model: a}, {model: b}, {model: c}]
parameters: {select_topk: [0.3, 0.9]}
""",
    "breadcrumbs": """
merge_method: breadcrumbs
base_model: base
models:
- {model: a, parameters: {weight: 0.5, density: 0.4, gamma: 0.1}}
- {model: b, parameters: {weight: 0.7, density: 0.9, gamma: 0.05}}
""",
    "breadcrumbs_ties": """
merge_method: breadcrumbs_ties
base_model: base
models:
- {model: a, parameters: {weight: 0.5, density: 0.4, gamma: 0.1}}
- {model: b, parameters: {weight: 0.7, density: 0.9, gamma: 0.05}}
- {model: c, parameters: {weight: 0.7, density: 0.5}}
""",
    "passthrough": """
merge_method: passthrough
models:
- {model: a, parameters: {scale: [{filter: down_proj, value: 0.5}, {value: 1}]}}
""",
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_file_gives_the_same_tensors(
    name: str, root: Path, run_mergekit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (tmp_path / "recipe.yaml").write_text(RECIPES[name])
    theirs = read(run_mergekit(RECIPES[name], tmp_path / "theirs"))
    ours = submerge.merge(tmp_path / "recipe.yaml", tmp_path / "ours", settings=ROOM).out
    agree(read(ours), theirs)

    # what we write for mergekit beside the output, mergekit reads, and it means the same
    written = (ours / "mergekit_config.yml").read_text()
    agree(read(run_mergekit(written, tmp_path / "again")), theirs, rtol=1e-6, atol=1e-7)


def agree(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], rtol: float = 1e-5, atol: float = 2e-6
) -> None:
    assert set(ours) == set(theirs)
    for name, found in ours.items():
        torch.testing.assert_close(
            found, theirs[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


REALISTIC = """\
# as people publish them
slices: null
models:
  - model: base
    # no parameters necessary for base model
  - model: a
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: c
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
dtype: float32
out_dtype: bfloat16
"""


def test_a_realistic_config(
    root: Path, run_mergekit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    path = tmp_path / "mergekit_config.yml"
    path.write_text(REALISTIC)
    ours = submerge.merge(path, tmp_path / "ours", settings=ROOM).out
    theirs = run_mergekit(REALISTIC, tmp_path / "theirs")
    agree(read(ours), read(theirs), rtol=2**-7, atol=1e-6)
    exact = [torch.equal(t, read(theirs)[n]) for n, t in read(ours).items()]
    assert sum(exact) > 0.7 * len(exact), "only the last bit may differ, and seldom"
    assert json.loads((ours / "config.json").read_text())["dtype"] == "bfloat16"
    again = run_mergekit((ours / "mergekit_config.yml").read_text(), tmp_path / "again")
    agree(read(again), read(theirs), rtol=0, atol=0)


def test_random_methods_keep_what_mergekit_keeps_on_average(
    root: Path, run_mergekit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DARE draws other numbers than mergekit's: what is kept is the same update, and as much of it."""
    monkeypatch.chdir(root)
    recipe = (
        "merge_method: dare_linear\nbase_model: base\nparameters: {rescale: false}\n"
        "models:\n- {model: a, parameters: {weight: 1, density: 0.5}}\n"
    )
    base, tuned = read(root / "base"), read(root / "a")
    shares = []
    for out in (
        run_mergekit(recipe, tmp_path / "theirs"),
        submerge.merge(recipe, tmp_path / "ours", settings=ROOM).out,
    ):
        kept = total = 0
        for name, value in read(out).items():
            moved = value != base[name]
            torch.testing.assert_close(value[moved], tuned[name][moved])
            kept, total = kept + int(moved.sum()), total + value.numel()
        shares.append(kept / total)
    assert shares == pytest.approx([0.5, 0.5], abs=0.03)


def test_a_recipe_that_mergekit_cannot_read_leaves_no_mergekit_file(root: Path, tmp_path: Path) -> None:
    made = submerge.merge(
        {
            "merge_method": "ties",
            "base_model": str(root / "base"),
            "models": [{"model": str(root / "a"), "parameters": {"weight": 1}}],
            "parameters": {"variant": "paper"},
        },
        tmp_path / "out",
        settings=ROOM,
    ).out
    assert not (made / "mergekit_config.yml").exists()
    shutil.rmtree(made)
