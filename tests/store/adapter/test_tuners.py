"""PEFT's kinds beside LoRA: what PEFT merges of each, and what Submerge makes of the same file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import submerge
from _models import ROOM, quiet_transformers, read, write
from store.helpers_adapter import MODELS, Made, copied, loaded, same, stored
from submerge.engine.work._adapter_edit import adapter_edit
from submerge.errors import RequestError, WorkError
from submerge.store import FileTable, Replace, TensorEntry, fit_adapter, open_adapter

State = dict[str, torch.Tensor]

Q = "base_model.model.model.layers.0.self_attn.q_proj"
MAPS = ["q_proj", "up_proj", "down_proj"]
KERNELS = ["flat", "plane", "point"]
GPT2 = ["c_attn", "c_fc", "c_proj"]
ADALORA = {"init_r": 4, "target_r": 2, "lora_alpha": 6, "total_step": 10}
OFT = {"oft_block_size": 4, "target_modules": MAPS}
BY_PARTS = {"r": 0, "oft_block_size": 4}
BANK = {"r": 2, "num_vectors": 5, "vector_length": 4}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AdaLoRA": ("llama", "AdaLoraConfig", ADALORA | {"target_modules": MAPS}),
    "AdaLoRA without alpha": ("llama", "AdaLoraConfig", ADALORA | {"lora_alpha": 0, "target_modules": MAPS}),
    "AdaLoRA, Conv1D": ("gpt2", "AdaLoraConfig", ADALORA | {"target_modules": GPT2, "fan_in_fan_out": True}),
    "AdaLoRA of convolutions": ("convolutions", "AdaLoraConfig", ADALORA | {"target_modules": KERNELS[1:]}),
    "LoHa": (
        "llama",
        "LoHaConfig",
        {
            "r": 3,
            "alpha": 5,
            "target_modules": MAPS,
            "rank_pattern": {"up_proj": 2},
            "alpha_pattern": {"q_proj": 1},
            "modules_to_save": ["norm"],
            "rank_dropout": 0.1,
        },
    ),
    "LoHa with cores": (
        "convolutions",
        "LoHaConfig",
        {"r": 2, "alpha": 5, "target_modules": KERNELS, "use_effective_conv2d": True},
    ),
    "LoHa of convolutions": ("convolutions", "LoHaConfig", {"r": 2, "alpha": 5, "target_modules": KERNELS}),
    "LoKr": (
        "llama",
        "LoKrConfig",
        {"r": 2, "alpha": 5, "target_modules": MAPS, "rank_pattern": {"q_proj": 1}},
    ),
    # PEFT divides by the rank also where no matrix is factored, and LyCORIS does not
    "LoKr of whole matrices": ("llama", "LoKrConfig", {"r": 32, "alpha": 5, "target_modules": MAPS}),
    "LoKr, both factored": (
        "llama",
        "LoKrConfig",
        {"r": 1, "alpha": 5, "target_modules": MAPS, "decompose_both": True, "decompose_factor": 4},
    ),
    "LoKr with cores": (
        "convolutions",
        "LoKrConfig",
        {
            "r": 1,
            "alpha": 5,
            "decompose_factor": 1,
            "target_modules": ["plane"],
            "use_effective_conv2d": True,
        },
    ),
    "LoKr of convolutions": ("convolutions", "LoKrConfig", {"r": 1, "alpha": 5, "target_modules": KERNELS}),
    # PEFT multiplies axes of one-dimensional kernels that LyCORIS does not
    "LoKr of whole kernels": ("convolutions", "LoKrConfig", {"r": 8, "alpha": 5, "target_modules": KERNELS}),
    "IA3": ("llama", "IA3Config", {"target_modules": MAPS, "feedforward_modules": ["down_proj"]}),
    "IA3, Conv1D": (
        "gpt2",
        "IA3Config",
        {"target_modules": ["c_attn", "mlp.c_proj", "attn.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
    "IA3 of convolutions": (
        "convolutions",
        "IA3Config",
        {"target_modules": ["plane", "point"], "feedforward_modules": ".*point"},
    ),
    "IA3 of a classifier": (
        "bert",
        "IA3Config",
        {"target_modules": ["query", "dense"], "feedforward_modules": ["dense"], "task_type": "SEQ_CLS"},
    ),
    "OFT": ("llama", "OFTConfig", OFT),
    "OFT, exact": ("llama", "OFTConfig", OFT | {"use_cayley_neumann": False}),
    "OFT, two terms": ("llama", "OFTConfig", OFT | {"num_cayley_neumann_terms": 2}),
    "OFT, three terms": ("llama", "OFTConfig", OFT | {"num_cayley_neumann_terms": 3}),
    "OFT, one block": ("llama", "OFTConfig", OFT | {"block_share": True}),
    "OFT, constrained": ("llama", "OFTConfig", OFT | {"coft": True, "eps": 0.3}),
    "OFT of convolutions": ("convolutions", "OFTConfig", {"oft_block_size": 5, "target_modules": ["point"]}),
    "BOFT": ("llama", "BOFTConfig", {"boft_block_size": 4, "target_modules": MAPS, "bias": "boft_only"}),
    "BOFT of convolutions": (
        "convolutions",
        "BOFTConfig",
        {"boft_block_size": 5, "target_modules": ["point"]},
    ),
    "HRA": ("llama", "HRAConfig", {"r": 3, "target_modules": MAPS}),
    "HRA, orthogonal": ("llama", "HRAConfig", {"r": 3, "target_modules": MAPS, "apply_GS": True}),
    "VeRA": ("llama", "VeraConfig", {"r": 4, "target_modules": MAPS}),
    "VeRA, Conv1D": ("gpt2", "VeraConfig", {"r": 4, "target_modules": GPT2}),
    "FourierFT": (
        "llama",
        "FourierFTConfig",
        {"n_frequency": 20, "target_modules": MAPS, "scaling": 30.0, "random_loc_seed": 5},
    ),
    "FourierFT, Conv1D": ("gpt2", "FourierFTConfig", {"n_frequency": 20, "target_modules": GPT2}),
    # whose configuration has one flag for both, that of the last module
    "FourierFT, Conv1D and linear": (
        "gpt2-untied",
        "FourierFTConfig",
        {"n_frequency": 20, "target_modules": [*GPT2, "lm_head"]},
    ),
    "MiSS": ("llama", "MissConfig", {"r": 4, "target_modules": MAPS}),
    "MiSS, inputs no multiple": ("llama", "MissConfig", {"r": 5, "target_modules": MAPS}),
    "MiSS, small": (
        "llama",
        "MissConfig",
        {"r": 4, "mini_r": 2, "init_weights": "mini", "target_modules": MAPS},
    ),
    "PVeRA": ("llama", "PveraConfig", {"r": 3, "target_modules": MAPS}),
    "BD-LoRA": (
        "llama",
        "LoraConfig",
        {
            "r": 4,
            "lora_alpha": 3,
            "target_modules": MAPS,
            "use_bdlora": {
                "target_modules_bd_a": ["q_proj"],
                "target_modules_bd_b": ["up_proj"],
                "nblocks": 2,
                "match_strict": False,
            },
        },
    ),
    "MonteCLoRA": ("llama", "LoraConfig", {"r": 4, "target_modules": MAPS, "monteclora_config": {}}),
    "RandLoRA": ("llama", "RandLoraConfig", {"r": 3, "target_modules": MAPS}),
    "RandLoRA, Conv1D": ("gpt2", "RandLoraConfig", {"r": 5, "target_modules": GPT2, "sparse": True}),
    "VB-LoRA": ("llama", "VBLoRAConfig", BANK | {"target_modules": MAPS}),
    "VB-LoRA, largest alone": (
        "gpt2",
        "VBLoRAConfig",
        BANK | {"target_modules": GPT2, "save_only_topk_weights": True, "topk": 3},
    ),
    "Uni-LoRA": ("gpt2", "UniLoraConfig", {"r": 3, "target_modules": GPT2, "save_indices": True}),
    "DeLoRA": ("llama", "DeloraConfig", {"r": 3, "target_modules": MAPS, "rank_pattern": {"q_proj": 2}}),
    "GraLoRA": ("llama", "GraloraConfig", {"r": 4, "gralora_k": 2, "hybrid_r": 2, "target_modules": MAPS}),
    "GraLoRA, Conv1D": ("gpt2", "GraloraConfig", {"r": 4, "gralora_k": 4, "target_modules": GPT2}),
    "C3A": ("llama", "C3AConfig", {"block_size": 4, "target_modules": MAPS}),
    "SHiRA": ("llama", "ShiraConfig", {"r": 2, "target_modules": MAPS}),
    "Super-Tuning": (
        "llama",
        "SupertuningConfig",
        {"sparsity": 0.9, "r": 2, "lora_alpha": 3, "target_modules": MAPS},
    ),
    "WaveFT": ("llama", "WaveFTConfig", {"n_frequency": 40, "target_modules": MAPS}),
    "WaveFT, of an odd size": (
        "convolutions",
        "WaveFTConfig",
        {"n_frequency": 9, "target_modules": ["head"]},
    ),
    "WaveFT, Conv1D, as it is": (
        "gpt2",
        "WaveFTConfig",
        {"n_frequency": 40, "target_modules": GPT2, "use_idwt": False},
    ),
    "HiRA": ("llama", "HiraConfig", {"r": 3, "target_modules": [*MAPS, "embed_tokens"]}),
    "HiRA of convolutions": ("convolutions", "HiraConfig", {"r": 2, "target_modules": KERNELS}),
    "GLoRA": ("llama", "GloraConfig", {"r": 3, "target_modules": MAPS, "config_C": "none"}),
    "GLoRA of rows": (
        "bert",
        "GloraConfig",
        {
            "target_modules": ["query", "dense"],
            "config_A_B": "vector",
            "config_C": "none",
            "config_D_E": "vector",
        },
    ),
    **{
        f"RoAd {number}": (
            "llama",
            "RoadConfig",
            {"variant": f"road_{number}", "group_size": 4, "target_modules": MAPS},
        )
        for number in (1, 2, 4)
    },
    "BEFT": ("llama", "BeftConfig", {"target_modules": ["q_proj"]}),
    "LN tuning": ("bert", "LNTuningConfig", {"target_modules": ["LayerNorm"]}),
    "trainable tokens": ("llama", "TrainableTokensConfig", {"token_indices": [3, 7, 5]}),
    "trainable tokens, tied": ("tied", "TrainableTokensConfig", {"token_indices": [3, 7, 5]}),
}


def make(case: str, folder: Path, **more: Any) -> Made:
    """Write an adapter of random values, as PEFT saves it, and return it with what PEFT merges."""
    kind, config, options = CASES[case]
    transformers = quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        torch.manual_seed(0)
        model = MODELS[kind](transformers)
        base = copied(model)
        wrapped = peft.get_peft_model(model, getattr(peft, config)(**options | more))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.5 * torch.randn_like(parameter))
        wrapped.save_pretrained(str(folder))
        return Made(folder, base, copied(wrapped.merge_and_unload()))


def adapted(made: Made, cuts: list[int]) -> State:
    """Return the base's tensors with what the adapter does to them, range by range."""
    adapter = fit_adapter(open_adapter(str(made.folder)), made.shapes)
    found = dict(made.base)
    with FileTable() as table:
        for name, part in adapter.parts.items():
            if isinstance(part, Replace):
                found[name] = adapter.tensor(name, table)
                continue
            entry = TensorEntry(name, "F32", made.shapes[name], None, 0, 0)
            edit = adapter_edit(adapter, name, entry, table)
            flat = made.base[name].reshape(-1)
            values = flat.clone()
            ends = sorted({0, len(flat), *(cut for cut in cuts if cut < len(flat))})
            for start, stop in pairwise(ends):
                edit.apply_(start, values[start:stop], lambda a, b, flat=flat: flat[a:b].clone())
            found[name] = values.view(made.shapes[name])
    return found


@pytest.mark.parametrize("case", CASES)
def test_merges_are_those_of_peft(case: str, tmp_path: Path) -> None:
    made = make(case, tmp_path / "a")
    assert any(not torch.equal(made.base[name], made.merged[name]) for name in made.base)
    same(adapted(made, [5, 40, 41, 130]), made.merged)


def test_butterflies_of_several_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT has them where its extension for CUDA is built: what that computes is put in its place."""
    from peft.tuners.boft import layer

    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*own) for own in blocks])]

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: SimpleNamespace(forward=forward))
    made = make("BOFT", tmp_path / "a", boft_n_butterfly_factor=3, boft_block_size=2)
    assert stored(made.folder)[f"{Q}.boft_R"].shape == (3, 8, 2, 2)
    same(adapted(made, [7]), made.merged)


def test_ranks_that_a_budget_left(tmp_path: Path) -> None:
    """AdaLoRA saves what is left of each module, perhaps nothing, and divides by the rank of before."""
    import peft

    torch.manual_seed(0)
    model = MODELS["llama"](quiet_transformers())
    base = copied(model)
    wrapped = peft.get_peft_model(model, peft.AdaLoraConfig(**ADALORA, target_modules=["q_proj", "up_proj"]))
    names = [name for name, _ in wrapped.base_model.model.named_parameters() if "lora_E" in name]
    kept = [[True, False, True, True], [False] * 4, [True] * 4, [False, False, False, True]]
    wrapped.peft_config["default"].rank_pattern = dict(zip(names, kept, strict=True))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of factors without values
        wrapped.save_pretrained(tmp_path / "a")
        made = Made(tmp_path / "a", base, loaded("llama", tmp_path / "a", base))
    adapter = open_adapter(str(made.folder))
    assert len(adapter.parts) == 3
    assert "model.layers.0.mlp.up_proj has no rank left" in adapter.notes
    same(adapted(made, []), made.merged)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Adapters of five kinds on one base."""
    folder = tmp_path_factory.mktemp("kinds")
    made = {case: make(case, folder / case) for case in ("AdaLoRA", "LoHa", "LoKr", "VeRA", "OFT")}
    write(folder / "base", made["OFT"].base, {"model_type": "llama"})
    return made


def merged(several: dict[str, Made], cases: list[str], out: Path, base: bool = True, **more: Any) -> Path:
    models = [{"model": str(several[case].folder), "parameters": {"weight": 0.5}} for case in cases]
    recipe = {"merge_method": "task_arithmetic", "models": models, **more}
    if base:
        recipe["base_model"] = str(several["OFT"].folder.parent / "base")
    submerge.merge(recipe, out, settings=ROOM)
    return out


def summed(several: dict[str, Made], cases: list[str]) -> State:
    base = several["OFT"].base
    return {
        name: base[name] + sum(0.5 * (several[c].merged[name] - base[name]) for c in cases) for name in base
    }


def test_kinds_are_merged_with_each_other(several: dict[str, Made], tmp_path: Path) -> None:
    out = merged(several, list(several), tmp_path / "out")
    same(read(out), summed(several, list(several)))
    assert submerge.verify(out).sound


ADDED = ["AdaLoRA", "LoKr"]


@pytest.mark.parametrize(
    ("cases", "base"), [(ADDED, False), (["AdaLoRA", "VeRA", "OFT"], True)], ids=["by factors", "with a base"]
)
def test_kinds_become_one_adapter(
    cases: list[str], base: bool, several: dict[str, Made], tmp_path: Path
) -> None:
    out = merged(
        several, cases, tmp_path / "out", base, output={"as": "adapter", **({"rank": 32} if base else {})}
    )
    same(loaded("llama", out, several["OFT"].base), summed(several, cases))


def test_products_are_factors_of_themselves(tmp_path: Path) -> None:
    """LoHa and LoKr, with factors and whole, and what has factors of its own, become LoRA without a base."""
    products = ("LoHa", "LoKr of whole matrices", "LoKr, both factored", "LoKr with cores")
    factored = ("LoKr of whole kernels", "BD-LoRA", "DeLoRA", "VB-LoRA, largest alone", "Uni-LoRA")
    for case in (*products, *factored):
        made = make(case, tmp_path / case, modules_to_save=None)
        models = [{"model": str(made.folder), "parameters": {"weight": 1.0}}]
        recipe = {"merge_method": "task_arithmetic", "models": models, "output": {"as": "adapter"}}
        submerge.merge(recipe, tmp_path / f"{case} out", settings=ROOM)
        same(loaded(CASES[case][0], tmp_path / f"{case} out", made.base), made.merged)


def test_kinds_that_need_a_base(several: dict[str, Made], tmp_path: Path) -> None:
    for case, why in (
        ("VeRA", "the base alone tells the size"),
        ("OFT", "multiplies the base's own weights"),
    ):
        with pytest.raises(RequestError, match=f"{why}.* name the base that it was trained on"):
            merged(several, [case, "AdaLoRA"], tmp_path / "out", False, output={"as": "adapter"})


def test_products_that_may_be_of_convolutions(tmp_path: Path) -> None:
    """PEFT has other factors of convolutions, and only the base tells which maps are some."""
    made = make("LoHa of convolutions", tmp_path / "a")
    recipe = {"merge_method": "cat", "models": [{"model": str(made.folder), "parameters": {"weight": 1.0}}]}
    with pytest.raises(RequestError, match=r"a product of matrices \(LoHa\).* name the base"):
        submerge.plan(recipe | {"output": {"as": "adapter"}}, settings=ROOM)


ZEROS = {
    "AdaLoRA": "lora_E",
    "VeRA": "vera_lambda_b",
    "LoHa of convolutions": "hada_w2_b",
    "LoKr": "lokr_w1",
    "OFT": "oft_R.weight",
    "FourierFT": "fourierft_spectrum",
    "MiSS": "miss_block",
}
"""The tensors that are zero where PEFT begins."""


def test_updates_of_zero_are_told(tmp_path: Path) -> None:
    for case, ending in ZEROS.items():
        folder = make(case, tmp_path / case).folder
        assert not open_adapter(str(folder)).is_idle()
        changed(folder, lambda state, end=ending: {k: v * (not k.endswith(end)) for k, v in state.items()})
        assert open_adapter(str(folder)).is_idle(), case


# --- what is refused --------------------------------------------------------------------------------


def changed(folder: Path, tensors: Callable[[State], State] = dict, **fields: Any) -> Path:
    """Change an adapter's tensors and fields of its configuration; None removes a field."""
    save_file(tensors(stored(folder)), folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def without(*endings: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not key.endswith(endings)}


FAULTS: dict[str, tuple[str, Callable[[State], State], dict[str, Any], str]] = {
    "AdaLoRA without E": ("AdaLoRA", without("q_proj.lora_E"), {}, "lacks one of lora_A, lora_B and lora_E"),
    "AdaLoRA that does not fit": (
        "AdaLoRA",
        lambda s: s | {f"{Q}.lora_E": torch.ones(3, 1)},
        {},
        "factors that do not fit each other",
    ),
    "LoHa of another rank": ("LoHa", dict, {"r": 7}, "has rank 3, but the configuration says 7"),
    "LoHa without a matrix": (
        "LoHa",
        without("q_proj.hada_w2_b"),
        {},
        "has matrices that do not fit each other",
    ),
    "LoHa that is called LoKr": ("LoHa", dict, {"peft_type": "LOKR"}, "holds tensors of LoHa .*says LoKr"),
    "IA3 with sides exchanged": (
        "IA3",
        dict,
        {"feedforward_modules": ["q_proj"]},
        "feedforward_modules says otherwise",
    ),
    "IA3 with a wrong pattern": (
        "IA3",
        dict,
        {"feedforward_modules": "("},
        "is not named by feedforward_modules",
    ),
    "OFT before the series of today": ("OFT", dict, {"peft_version": "0.17.1"}, "merge it with PEFT 0.17"),
    "OFT without a version": ("OFT", dict, {"peft_version": None}, "merge it with PEFT 0.17"),
    "OFT with half a block": (
        "OFT",
        lambda s: s | {f"{Q}.oft_R.weight": torch.ones(4, 5)},
        {},
        "no whole blocks",
    ),
    "OFT with a text for a number": ("OFT", dict, {"eps": "small"}, "eps is 'small' where a number"),
    "OFT with a text for a flag": ("OFT", dict, {"coft": "no"}, "coft is 'no' where true or false"),
    "BOFT without scales": ("BOFT", without("q_proj.boft_s"), {}, "lacks its tensor boft_s"),
    "VeRA without projections": (
        "VeRA",
        without("vera_A", "vera_B"),
        {},
        "were not saved with it .save_projection.",
    ),
    "VeRA of another rank": (
        "VeRA",
        lambda s: s | {f"{Q}.vera_lambda_d": torch.ones(3)},
        {},
        "has vectors of 16 and 3 values",
    ),
    "MiSS that multiplies": (
        "MiSS",
        dict,
        {"init_weights": "bat"},
        "multiplies blocks of the base's weights",
    ),
    "Uni-LoRA without places": ("Uni-LoRA", without("_A", "_B"), {}, "not saved with it .save_indices."),
    "Super-Tuning without places": (
        "Super-Tuning",
        without("supertuning_indices"),
        {},
        "not saved with it .save_precomputed_indices.",
    ),
    "WaveFT of other wavelets": (
        "WaveFT",
        dict,
        {"wavelet_family": "db2"},
        "wavelets that are not known .db2",
    ),
    "GLoRA of weights in biases": (
        "GLoRA",
        lambda s: s | {f"{Q}.glora_C.Xd": torch.ones(16, 3)},
        {},
        "products of the base's weights to biases",
    ),
    "RoAd of another variant": ("RoAd 1", dict, {"variant": "road_3"}, "the variant 'road_3'"),
    "DeLoRA of another rank": ("DeLoRA", dict, {"r": 5}, "has rank 3, but the configuration says 5"),
    "VB-LoRA of more vectors": ("VB-LoRA", dict, {"topk": 9}, "chooses 9 of 5 vectors"),
    "an unknown variant": ("HRA", dict, {"use_more": True}, "a variant of HRA that is not known"),
    "tokens that are not named": (
        "trainable tokens",
        dict,
        {"token_indices": [1]},
        "trained rows of .* names 1",
    ),
}


def test_tables_that_were_saved_beside_factors(tmp_path: Path) -> None:
    """PEFT saves a head that was adapted, and its values count where they are not the base's."""
    made = make("AdaLoRA", tmp_path / "a", target_modules=["lm_head"])
    assert any(key.endswith("lm_head.base_layer.weight") for key in stored(made.folder))
    same(adapted(made, []), made.merged)
    other = {name: tensor + (name == "lm_head.weight") for name, tensor in made.base.items()}
    write(tmp_path / "base", other, {"model_type": "llama"})
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{made.folder}"}]}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    same(read(tmp_path / "out"), other | {"lm_head.weight": made.merged["lm_head.weight"]})


@pytest.mark.parametrize(
    ("case", "table"),
    [("LoHa", "lm_head"), ("IA3", "lm_head"), ("OFT", "model.embed_tokens"), ("RoAd 2", "lm_head")],
)
def test_tables_that_were_saved_beside_other_kinds(case: str, table: str, tmp_path: Path) -> None:
    """They are changed as those of LoRA are, and count where they are not the base's."""
    made = make(case, tmp_path / "a", target_modules=table)
    assert any(key.endswith(f"{table}.base_layer.weight") for key in stored(made.folder))
    same(adapted(made, [5, 40, 41, 130]), made.merged)
    name = f"{table}.weight"
    write(tmp_path / "base", made.merged | {name: made.base[name] + 1}, {"model_type": "llama"})
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{made.folder}"}]}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    same(read(tmp_path / "out"), made.merged)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_refused(fault: str, tmp_path: Path) -> None:
    case, tensors, fields, message = FAULTS[fault]
    folder = changed(make(case, tmp_path / "a").folder, tensors, **fields)
    with pytest.raises(RequestError, match=message):
        open_adapter(str(folder))


def test_patterns_of_ranks_that_are_used(tmp_path: Path) -> None:
    made = make("HiRA", tmp_path / "a", rank_pattern={"q_proj": 2})
    adapter = open_adapter(str(made.folder))
    assert not adapter.left_out
    same(adapted(made, []), made.merged)


def test_places_beyond_the_weight(tmp_path: Path) -> None:
    made = make("SHiRA", tmp_path / "a")
    changed(made.folder, lambda s: {k: v + 99 * k.endswith("indices") for k, v in s.items()})
    with pytest.raises(WorkError, match="shira_indices names a place beyond 16"):
        adapted(made, [])


def test_a_base_of_another_size(several: dict[str, Made]) -> None:
    shapes = {
        name: (2 * shape[0] + 1, *shape[1:-1], 2 * shape[-1] + 1)
        for name, shape in several["OFT"].shapes.items()
    }
    told = {
        "LoHa": r"update of the shape \[16, 16\]",
        "VeRA": "update of 16 outputs",
        "OFT": r"multiplied by a tensor \[4, 6\] \(OFT\)",
    }
    for case, what in told.items():
        with pytest.raises(RequestError, match=what):
            fit_adapter(open_adapter(str(several[case].folder)), shapes)
