"""The matrix of ratios over data sets and adapters, and the curve over λ, as users ask for them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _adapters import FIRST, SECOND, Tuned, make_tuned
from _models import quiet_transformers
from calibrate.helpers_null_space import all_inputs, base_model, batch, projected
from store.helpers_adapter import MODELS
from submerge import RequestError, learn_coefficients, null_space_curve, null_space_ratio
from submerge.calibrate import Item, choose_hooks
from submerge.store import FileTable, open_adapter

pytest.importorskip("peft")
Q1, V1, UP1 = (f"model.layers.1.{m}_proj" for m in ("self_attn.q", "self_attn.v", "mlp.up"))
DATA = {"a0": [batch(0), batch(1, size=2)], "a1": [batch(2)]}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return make_tuned(tmp_path_factory.mktemp("null"), "llama", FIRST, SECOND)


def by_projectors(model: Any, tuned: Tuned, hooks: list[str], data: list[Any], k: int) -> torch.Tensor:
    """Return ω of an adapter at each module, by explicit projectors from full passes; NaN where it is not."""
    adapter, found = open_adapter(str(tuned.adapters[k])), []
    passes = [all_inputs(model, hooks, one) for one in data]
    with FileTable() as table:
        for name in hooks:
            if f"{name}.weight" in adapter.parts:
                _, a = adapter.factors(f"{name}.weight", table)
                found.append(projected(a, torch.cat([one[name] for one in passes])).mean())
            else:
                found.append(torch.tensor(float("nan"), dtype=torch.float64))
    return torch.stack(found)


@pytest.mark.parametrize("scales", [None, 0.0, 0.4, [0.0, 1.0], torch.tensor([0.7, -0.2])], ids=str)
def test_the_matrix_is_that_of_explicit_projectors(tuned: Tuned, scales: Any) -> None:
    found = null_space_ratio(base_model(tuned), list(tuned.adapters), DATA, scales=scales)
    assert (found.adapters, found.data, found.modules) == (("a0", "a1"), ("a0", "a1"), (Q1, V1, UP1))
    weights = torch.as_tensor(scales or 0.0 if not isinstance(scales, torch.Tensor) else scales).expand(2)
    model = base_model(tuned)
    for name, value in model.state_dict().items():
        for s, merged in zip(weights.tolist(), tuned.merged, strict=True):
            value += s * (merged[name].double() - tuned.state[name].double())
    for j, data in enumerate(DATA.values()):
        for k in range(2):
            wanted = by_projectors(model, tuned, list(found.modules), data, k)
            assert torch.allclose(found.values[:, j, k], wanted, atol=1e-5, rtol=0, equal_nan=True)
            assert float(found.matrix[j, k]) == pytest.approx(float(wanted.nanmean()), abs=1e-5)
    assert found.counts == tuple(sum(int(b["attention_mask"].sum()) for b in data) for data in DATA.values())
    assert found.values[1].isnan().tolist() == [[False, True]] * 2, "only the first adapter changes v"


def test_one_adapter_at_scale_1_is_the_single_model(tuned: Tuned) -> None:
    single = base_model(tuned)
    single.load_state_dict(tuned.merged[1])
    found = null_space_ratio(base_model(tuned), tuned.adapters[1:], [DATA["a1"]], scales=1.0)
    wanted = by_projectors(single.double(), tuned, list(found.modules), DATA["a1"], 1)
    assert (found.values[:, 0, 0] - wanted).abs().max() < 1e-5


def test_the_order_of_the_adapters_does_not_matter(tuned: Tuned) -> None:
    model, (one, two) = base_model(tuned), tuned.adapters
    found = null_space_ratio(model, [one, two], DATA, scales=[0.2, 0.6])
    turned = null_space_ratio(model, {"a1": two, "a0": one}, dict(reversed(DATA.items())), scales=[0.6, 0.2])
    places = [turned.modules.index(name) for name in found.modules]
    assert torch.allclose(turned.values[places].flip(1, 2), found.values, atol=1e-12, equal_nan=True)


def test_scales_by_module(tuned: Tuned) -> None:
    model, adapters = base_model(tuned), list(tuned.adapters)
    every = {
        f"model.layers.{i}.{m}_proj": [0.3, 0.3]
        for i in (0, 1)
        for m in ("self_attn.q", "self_attn.v", "mlp.up")
    }
    found, wanted = (null_space_ratio(model, adapters, DATA, scales=s) for s in (every, 0.3))
    assert torch.allclose(found.values, wanted.values, atol=1e-12, equal_nan=True)
    with pytest.raises(RequestError, match=r"no adapter changes elsewhere"):
        null_space_ratio(model, adapters, DATA, scales={"elsewhere": [1, 1]})
    with pytest.raises(RequestError, match=r"there are \[3\] values for 2 adapters"):
        null_space_ratio(model, adapters, DATA, scales=[1, 2, 3])


def test_curves_are_each_adapter_alone_on_its_own_data(tuned: Tuned) -> None:
    model, steps = base_model(tuned), []
    curve = null_space_curve(
        model, list(tuned.adapters), DATA, scales=[1, 0, 0.5], progress=lambda *s: steps.append(s)
    )
    assert (curve.scales, curve.modules) == ((0.0, 0.5, 1.0), (Q1, V1, UP1))
    assert steps == [(n, 9) for n in range(1, 10)]
    for k, name in enumerate(DATA):
        for s, scale in enumerate(curve.scales):
            alone = null_space_ratio(model, tuned.adapters[k : k + 1], [DATA[name]], scales=scale)
            assert float(curve.values[k, s]) == pytest.approx(float(alone.matrix[0, 0]), abs=1e-12)


def test_warnings_say_where_the_ratio_does_not_fall() -> None:
    values = torch.tensor([[0.9, 0.8, 0.7], [0.7, 0.8, 0.9], [0.8, 0.7, 0.9], [0.8, 0.9, 0.7]])
    curve = submerge.NullSpaceCurve(("a", "b", "c", "d"), (0.0, 0.5, 1.0), ("m",), values)
    assert curve.falls == (True, False, False, False)
    assert curve.warnings == (
        "b: ω is smallest at λ = 0, and does not fall with λ: minimising it would weaken this adapter",
        "c: ω is smallest at λ = 0.5, and does not fall with λ: minimising it would weaken this adapter",
        "d: ω is smallest at λ = 1, and does not fall with λ",
    )
    assert str(curve).splitlines()[0] == "adapter    λ = 0  λ = 0.5    λ = 1"
    assert str(curve).splitlines()[5:] == list(curve.warnings)


def test_tables(tuned: Tuned) -> None:
    found = null_space_ratio(base_model(tuned), list(tuned.adapters), DATA)
    lines = found.table(V1).splitlines()
    assert lines[0].split() == ["data", "a0", "a1"]
    assert lines[1].split() == ["a0", f"{float(found.values[1, 0, 0]):.5f}", "nan"]
    assert lines[3].split() == ["isotropic", f"{(1 - 4 / 16) ** 0.5:.5f}", "nan"]
    assert str(found).splitlines()[2].split()[1:] == [f"{x:.5f}" for x in found.matrix[1].tolist()]
    assert set(found.nearest) <= {"a0", "a1"}


def test_a_folder_and_texts(tmp_path: Path) -> None:
    """What a user has: folders, adapters by path, texts of each task as a file and in memory."""
    t = quiet_transformers()
    tuned = make_tuned(tmp_path, "bert", {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"})
    model = MODELS["bert"](t)
    model.load_state_dict(tuned.state)
    model.save_pretrained(tmp_path / "folder")
    words = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"))}
    t.BertTokenizer(vocab=words).save_pretrained(tmp_path / "folder")
    texts = ["a b c", "d", "e f g h a b"]
    file = tmp_path / "inputs.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.warns(UserWarning, match="1 of 3 inputs .* max_length: 8 reads them all"):
        found = [
            null_space_ratio(where, tuned.adapters, [data], batch_size=2, max_length=5)
            for where in (tmp_path / "folder", t.BertModel.from_pretrained(tmp_path / "folder"))
            for data in (file, texts, [Item(text) for text in texts])
        ]
    assert len({one.values.sum().item() for one in found}) == 1
    assert found[0].counts == (5 + 3 + 5,)
    assert found[0].left_out == ("a0: the model has no classifier.bias, classifier.weight",)
    assert null_space_curve(str(tmp_path / "folder"), tuned.adapters, [file], scales=[0, 1]).values.shape == (
        1,
        2,
    )


def test_the_model_keeps_its_mode_and_its_modules(tuned: Tuned) -> None:
    model = base_model(tuned).train()
    model.model.norm.eval()
    names = [name for name, _ in model.named_modules()]
    null_space_ratio(model, list(tuned.adapters), DATA)
    assert [name for name, module in model.named_modules() if not module.training] == ["model.norm"]
    assert [name for name, _ in model.named_modules()] == names


def test_hooks(tuned: Tuned) -> None:
    model = base_model(tuned)
    adapted = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert choose_hooks(model, adapted, "last_quarter") == adapted[1:]
    assert choose_hooks(model, adapted, r"layers\.0\.") == adapted[:1]
    for hooks, what in (
        ("o_proj", "no module with an adapter matches 'o_proj'"),
        ("(", "no regular expression"),
    ):
        with pytest.raises(RequestError, match=what):
            choose_hooks(model, adapted, hooks)
    deep = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(30))})
    assert choose_hooks(deep, [f"layers.{i}" for i in range(30)], "last_quarter")[0] == "layers.23"


PADDING = {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.zeros(2, 4).long()}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"adapters": []}, "there are no adapters"),
        ({"adapters": ["nowhere", "not-here"]}, "nowhere[\\s\\S]*not-here"),
        ({"data": {}}, "there are no data sets"),
        ({"data": [[batch(0)]]}, "there are 1 data sets for 2 adapters"),
        ({"data": {"a0": []}}, "data of a0: there are no inputs"),
        ({"data": {"a0": [7]}}, "data of a0: is neither a file, nor texts"),
        ({"data": {"a0": "nowhere.jsonl"}}, "nowhere.jsonl: cannot be read"),
        ({"data": {"a0": ["a text"]}}, "there is no tokenizer"),
        ({"data": {"a0": [{"input_ids": [[5, 6]]}]}}, "item 1: holds input_ids, and no tensors of torch"),
        ({"batch_size": 0}, "batch_size: 0 is no whole number from 1"),
        ({"max_length": "8"}, "max_length: takes a whole number, and not '8'"),
        ({"scales": float("nan")}, "scales: nan has what is no finite number"),
        ({"scales": ["a", 1]}, "scales: .* has what is no finite number"),
        ({"data": {"a0": [PADDING]}}, "no position of a0 is measured: all are padding"),
        ({"hooks": "v_proj"}, "a1 changes none of the modules that are measured: .*v_proj"),
        ({"hooks": "norm"}, "no module with an adapter matches 'norm' — the adapters change model.layers"),
        ({"model": "nowhere"}, "nowhere: transformers cannot load it"),
    ],
    ids=str,
)
def test_requests_that_are_wrong(tuned: Tuned, change: dict[str, Any], what: str) -> None:
    request: dict[str, Any] = {"model": base_model(tuned), "adapters": tuned.adapters, "data": DATA, **change}
    with pytest.raises(RequestError, match=what):
        null_space_ratio(**request)


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [(torch.float64, "look at the weights of the base"), (torch.bfloat16, "run it in float32")],
)
def test_activations_that_are_no_numbers_are_not_left_out(
    tuned: Tuned, dtype: torch.dtype, hint: str
) -> None:
    """NaN at the last position alone, of a decoder: all others have a ratio."""
    model = base_model(tuned, dtype)
    model.model.embed_tokens.weight[61] = torch.nan
    wrong = batch(0)
    wrong["input_ids"][0, -1] = 61
    data = {"a0": [batch(1), wrong], "a1": [batch(2)]}
    what = f"the inputs of .*layers.1.self_attn.q_proj.* have NaN or Inf, in {dtype}".replace("torch.", "")
    with pytest.raises(RequestError, match=f"{what} — {hint}"):
        null_space_ratio(model, list(tuned.adapters), data)
    for objective in ("null_space", "match"):
        with pytest.raises(RequestError, match=what):
            learn_coefficients(model, list(tuned.adapters), data, steps=1, objective=objective)


def test_curves_need_data_for_each_adapter_and_two_scales(tuned: Tuned) -> None:
    model = base_model(tuned)
    with pytest.raises(RequestError, match="there is no data for a1 — there is data for a0"):
        null_space_curve(model, list(tuned.adapters), {"a0": DATA["a0"]})
    with pytest.raises(RequestError, match="a curve needs two values of λ"):
        null_space_curve(model, list(tuned.adapters), DATA, scales=[1, 1])
    for wrong in ("a", float("nan")):
        with pytest.raises(RequestError, match=r"scales: .* is no finite number"):
            null_space_curve(model, list(tuned.adapters), DATA, scales=[0, wrong])  # type: ignore[list-item]


def test_ranks_that_are_not_below_the_width(tmp_path: Path) -> None:
    full = {"r": 16, "target_modules": ["q_proj", "down_proj"]}  # widths 16 and 24
    tuned = make_tuned(tmp_path, "llama", full, SECOND)
    model, adapters = base_model(tuned), list(tuned.adapters)
    with pytest.raises(
        RequestError, match=r"rank of a0 is not below the width 16 of .*can be measured at [\w.]*down_proj"
    ):
        null_space_ratio(model, adapters, DATA, hooks="q_proj")
    found = null_space_ratio(model, adapters, DATA, hooks="layers.1.*(q|down)_proj")
    assert found.values.isnan().any(1).tolist() == [[True, False], [False, True]]
    wide = make_tuned(tmp_path / "wide", "llama", {**full, "target_modules": ["q_proj"]}, SECOND)
    with pytest.raises(RequestError, match="null space — nor is it anywhere else: leave it out"):
        null_space_ratio(base_model(wide), list(wide.adapters), DATA)


def test_adapters_without_factors_of_linear_maps(tuned: Tuned, tmp_path: Path) -> None:
    option = {"r": 2, "target_modules": ["embed_tokens"]}
    only = make_tuned(tmp_path, "llama", option)
    with pytest.raises(
        RequestError, match=r"no adapter changes a linear map by factors.* — give adapters of"
    ):
        null_space_ratio(base_model(only), only.adapters, [DATA["a0"]])
    adapters = {"a0": tuned.adapters[0], "embeddings": only.adapters[0]}
    with pytest.raises(RequestError, match=r"embeddings changes none .* — it has no factors .* leave it out"):
        null_space_ratio(base_model(tuned), adapters, DATA)


def test_adapters_that_change_heads_alone_or_are_of_dora(tuned: Tuned, tmp_path: Path) -> None:
    heads = make_tuned(tmp_path / "heads", "llama", {"r": 2, "target_modules": ["lm_head"]})
    what = r"changes lm_head.weight alone, which LlamaModel does not have — .* if that is a head, leave"
    with pytest.raises(RequestError, match=what):
        null_space_ratio(base_model(tuned).model, heads.adapters, [DATA["a0"]])
    dora = {"r": 2, "target_modules": ["q_proj"], "use_dora": True}
    both = make_tuned(tmp_path / "dora", "llama", dora, dora)
    with pytest.raises(RequestError, match=r"a0 changes .* DoRA rescales[\s\S]*a1 changes .* DoRA rescales"):
        null_space_ratio(base_model(both), list(both.adapters), DATA)


def test_adapters_of_another_base(tuned: Tuned, tmp_path: Path) -> None:
    wide = copy.deepcopy(base_model(tuned).config)
    wide.hidden_size, wide.head_dim = 32, 16
    model = quiet_transformers().LlamaForCausalLM(wide)
    with pytest.raises(RequestError, match="but the base has"):
        null_space_ratio(model, list(tuned.adapters), DATA)
