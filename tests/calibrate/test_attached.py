"""Adapters at a model's modules: the models that their scales make, and gradients to the scales."""

from __future__ import annotations

import copy
import shutil
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from _adapters import FIRST, SECOND, Tuned, make_tuned, peft_model
from calibrate.helpers_null_space import all_inputs, base_model, batch, normal, on_base, opened, projected
from submerge.calibrate import NullSpaceRatio, attached, collect
from submerge.errors import RequestError
from submerge.store import FileTable, open_adapter

peft = pytest.importorskip("peft")
DOUBLE = torch.float64
ON_Q: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"]}
ON_CONV1D: dict[str, Any] = {"r": 2, "fan_in_fan_out": True}
OPTIONS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "unequal": ("llama", (FIRST, SECOND)),
    "embedding": ("llama", ({"r": 3, "target_modules": ["embed_tokens", "q_proj", "lm_head"]}, SECOND)),
    "conv1d": ("gpt2", ({"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},) * 2),
    "bert": ("bert", ({"r": 2, "target_modules": ["query", "value"]}, {"r": 3, "target_modules": ["dense"]})),
    "new values": (
        "llama",
        ({**ON_Q, "modules_to_save": ["input_layernorm", "down_proj", "lm_head", "norm"]}, SECOND),
    ),
    "new embeddings": (
        "llama",
        ({**ON_Q, "modules_to_save": ["embed_tokens", "post_attention_layernorm"]},) * 2,
    ),
    "new values of one, factors of the other": (
        "llama",
        ({**ON_Q, "modules_to_save": ["up_proj", "v_proj"]}, FIRST),
    ),
    "rows": (
        "llama",
        ({**ON_Q, "trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [2]}}, SECOND),
    ),
    "biases": ("llama", ({**ON_Q, "bias": "all"}, {**ON_Q, "bias": "lora_only"})),
    "biases of B": ("llama", ({**ON_Q, "lora_alpha": 5, "lora_bias": True}, SECOND)),
    "new values of Conv1D": (
        "gpt2",
        (
            {
                "r": 2,
                "target_modules": ["c_attn"],
                "fan_in_fan_out": True,
                "modules_to_save": ["c_fc", "ln_1"],
            },
            {"r": 2, "target_modules": ["c_fc"], "fan_in_fan_out": True, "modules_to_save": ["wpe", "ln_f"]},
        ),
    ),
    "head": ("bert", ({"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"},) * 2),
    "kernels": ("llava", ({"r": 2, "target_modules": ["q_proj", "patch_embedding"]}, SECOND)),
    "packed experts": (
        "qwen3-moe",
        ({**ON_Q, "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]}, ON_Q),
    ),
    "projector": ("llava", ({**ON_Q, "modules_to_save": ["multi_modal_projector"]},) * 2),
}


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    if kind != "llava":
        return batch(0) if kind != "bert" else {"input_ids": batch(0)["input_ids"] + 1}
    inputs = batch(0)
    inputs["input_ids"][:, 2:6] = 63  # the four patches of an image
    return {**inputs, "attention_mask": torch.ones(3, 7).long(), "pixel_values": normal(5, 3, 3, 16, 16)}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return make_tuned(tmp_path_factory.mktemp("unequal"), "llama", FIRST, SECOND)


def output(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model.config._experts_implementation = "eager"  # grouped products are of at most 32 bits
    found: torch.Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("case", OPTIONS)
def test_scales_make_the_base_each_model_and_task_arithmetic(case: str, tmp_path: Any) -> None:
    kind, options = OPTIONS[case]
    tuned = make_tuned(tmp_path, kind, *options)
    inputs = inputs_of(kind)
    model = base_model(tuned)
    plain = output(model, inputs)
    with attached(model, opened(tuned)) as adapters:
        assert torch.equal(output(model, inputs), plain)
        for scales in (None, torch.zeros(2)):
            with adapters.over(scales):
                assert torch.equal(output(model, inputs), plain)
        for scales in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.full((2,), 0.4)):
            wanted = copy.deepcopy(base_model(tuned))
            wanted.load_state_dict(
                {
                    name: value
                    + sum(
                        s * (m[name].double() - value)
                        for s, m in zip(scales.tolist(), tuned.merged, strict=True)
                    )
                    for name, value in wanted.state_dict().items()
                    if value.is_floating_point()
                },
                strict=False,
            )
            with adapters.over(scales):
                assert (output(model, inputs) - output(wanted, inputs)).abs().max() < 1e-5


def test_the_model_is_left_as_it_was(tuned: Tuned) -> None:
    model = base_model(tuned, torch.float32)
    before, state = [name for name, _ in model.named_modules()], copy.deepcopy(model.state_dict())
    plain = output(model, batch(0))
    with attached(model, opened(tuned)) as adapters:
        assert list(model.state_dict()) == list(state), "what is attached is no part of the state"
        with pytest.raises(KeyError), adapters.over(torch.ones(2)):
            raise KeyError
        assert torch.equal(output(model, batch(0)), plain)
    assert [name for name, _ in model.named_modules()] == before
    assert torch.equal(output(model, batch(0)), plain)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_embeddings_are_modules_without_a_null_space(tmp_path: Any) -> None:
    tuned = make_tuned(tmp_path, "llama", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]})
    with on_base(tuned) as (_, adapters):
        assert set(adapters.modules) - set(adapters.down) == {"model.embed_tokens"}


def test_factors_are_those_of_the_adapters_that_change_a_module(tuned: Tuned) -> None:
    with on_base(tuned) as (_, adapters):
        assert {path: sorted(own) for path, own in adapters.down.items() if ".0." in path} == {
            "model.layers.0.self_attn.q_proj": [0, 1],
            "model.layers.0.self_attn.v_proj": [0],
            "model.layers.0.mlp.up_proj": [0, 1],
        }
        q = adapters.down["model.layers.0.self_attn.q_proj"]
        assert [tuple(a.shape) for a in q.values()] == [(4, 16), (3, 16)]


# --- gradients --------------------------------------------------------------------------------------------

SITES = [f"transformer.h.{i}.{m}" for i in (0, 1) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
HOOKS = SITES[3:5]
"""Both have adapter 0, the first has adapter 1, too."""


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A model whose norms work in float64, as those of a Llama do not."""
    first = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "attn.c_proj", "c_fc"]}
    second = {"r": 3, "lora_alpha": 12, "use_rslora": True, "target_modules": ["c_attn", "c_fc"]}
    options = [{**one, "fan_in_fan_out": True} for one in (first, second)]
    return make_tuned(tmp_path_factory.mktemp("smooth"), "gpt2", *options)


def omega(model: Any, adapters: Any, inputs: Any, hooks: list[str], k: int) -> torch.Tensor:
    """Return Ω_k of a batch under the scales in force, a function of these."""
    factors = {name: [adapters.down[name].get(i) for i in range(2)] for name in hooks}
    reducers = {name: NullSpaceRatio(own) for name, own in factors.items()}
    collect(model, [inputs], reducers)
    return torch.stack([ratio.mean[k] for ratio in reducers.values()]).nanmean()


def loss(scales: torch.Tensor, model: Any, adapters: Any, hooks: list[str] = HOOKS) -> torch.Tensor:
    """Return (Ω_0 + Ω_1) / 2 for scales [modules, K]."""
    with adapters.over(dict(zip(SITES, scales, strict=True))):
        return torch.stack([omega(model, adapters, batch(k), hooks, k) for k in range(2)]).mean()


def test_gradients_are_those_of_finite_differences(smooth: Tuned) -> None:
    with on_base(smooth) as (model, adapters):
        scales = (0.3 + 0.1 * normal(0, len(SITES), 2)).requires_grad_()
        assert torch.autograd.gradcheck(lambda s: loss(s, model, adapters), (scales,))


def test_gradients_are_those_of_the_outputs_times_the_updates(smooth: Tuned) -> None:
    """dL/dλ_k = Σ ⟨g, s_k B_k A_k x⟩ with g the gradient at the module's output."""
    with on_base(smooth) as (model, adapters):
        scales = torch.full((len(SITES), 2), 0.4, dtype=DOUBLE, requires_grad=True)
        seen: dict[str, Any] = {}

        def note(module: Any, args: Any, y: torch.Tensor) -> None:
            if y.requires_grad:
                y.retain_grad()
                seen["x"], seen["y"] = args[0].detach(), y

        handle = model.get_submodule(SITES[0]).register_forward_hook(note)
        with adapters.over(dict(zip(SITES, scales, strict=True))):
            omega(model, adapters, batch(0), HOOKS, 0).backward()
        handle.remove()
        for k in range(2):
            name = f"{SITES[0]}.weight"
            update = (smooth.merged[k][name] - smooth.state[name]).double()  # [in, out]
            wanted = (seen["y"].grad * (seen["x"] @ update)).sum()
            assert scales.grad is not None
            assert float(scales.grad[0, k]) == pytest.approx(float(wanted), rel=1e-4, abs=1e-9)


def test_scales_behind_every_hook_have_no_gradient(smooth: Tuned) -> None:
    with on_base(smooth) as (model, adapters):
        scales = torch.full((len(SITES), 2), 0.4, dtype=DOUBLE, requires_grad=True)
        loss(scales, model, adapters, HOOKS[:1]).backward()
        assert scales.grad is not None
        assert (scales.grad[:3].abs().sum(1) > 0).all()
        assert not scales.grad[3:].any(), "that of the hooks themselves, too"


def test_loss_is_that_of_explicit_projectors_in_a_full_pass(smooth: Tuned) -> None:
    with on_base(smooth) as (model, adapters):
        scales = torch.full((len(SITES), 2), 0.4, dtype=DOUBLE, requires_grad=True)
        found = loss(scales, model, adapters)
        (gradient,) = torch.autograd.grad(found, scales)
        explicit = []
        with adapters.over(dict(zip(SITES, scales, strict=True))):
            for k in range(2):
                rows = all_inputs(model, HOOKS, batch(k))
                down = {name: adapters.down[name].get(k) for name in HOOKS}
                own = [projected(a, rows[name]).mean() for name, a in down.items() if a is not None]
                explicit.append(torch.stack(own).mean())
        wanted = torch.stack(explicit).mean()
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-10)
        assert (gradient - torch.autograd.grad(wanted, scales)[0]).abs().max() < 1e-10


def test_units_of_equal_scales_are_their_adapter_s_scale(smooth: Tuned) -> None:
    """And the gradients of units add up to that of the one scale."""
    with on_base(smooth) as (model, adapters):
        names = SITES[:3]
        one = torch.full((2,), 0.4, dtype=DOUBLE, requires_grad=True)
        ranks = {name: {k: len(a) for k, a in adapters.down[name].items()} for name in names}
        units = {
            name: {k: torch.full((r,), 0.4, dtype=DOUBLE, requires_grad=True) for k, r in own.items()}
            for name, own in ranks.items()
        }
        losses = []
        for scales in (dict.fromkeys(names, one), units):
            with adapters.over(scales):
                losses.append(omega(model, adapters, batch(0), HOOKS, 0))
        assert (losses[0] - losses[1]).abs() < 1e-14
        losses[0].backward()
        losses[1].backward()
        assert one.grad is not None
        for k in range(2):
            added = sum(own[k].grad.sum() for own in units.values() if k in own)  # type: ignore[union-attr]
            assert float(one.grad[k]) == pytest.approx(float(added), abs=1e-12)


def test_gradients_to_scales_of_new_values_are_those_of_finite_differences(tmp_path: Any) -> None:
    """Of a linear map, an embedding, a norm and biases, beside factors of the other adapter."""
    new = {
        **ON_CONV1D,
        "target_modules": ["c_attn"],
        "modules_to_save": ["c_fc", "ln_1", "wpe"],
        "bias": "all",
    }
    tuned = make_tuned(tmp_path, "gpt2", new, {**ON_CONV1D, "target_modules": ["c_attn", "c_fc", "wte"]})
    with on_base(tuned) as (model, adapters):
        names = [name for name in adapters.modules if "h.1" not in name]
        assert {"transformer.wpe", "transformer.h.0.ln_1", "transformer.h.0.mlp.c_fc"} < set(names)
        assert adapters.units["transformer.h.0.attn.c_attn"] == {0: 2, 1: 2}
        assert adapters.units["transformer.h.0.mlp.c_fc"] == {0: 1, 1: 2}, "one for new values"

        def of(scales: torch.Tensor) -> torch.Tensor:
            with adapters.over(dict(zip(names, scales, strict=True))):
                return omega(model, adapters, batch(0), ["transformer.h.1.attn.c_attn"], 0)

        scales = (0.3 + 0.1 * normal(0, len(names), 2)).requires_grad_()
        assert torch.autograd.gradcheck(of, (scales,))


# --- what does not fit ------------------------------------------------------------------------------------


def test_a_head_of_a_task_is_left_out(tmp_path: Any) -> None:
    """A classifier's adapter on the encoder without a head, whose names have no prefix."""
    tuned = make_tuned(tmp_path, "bert", {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"})
    encoder = base_model(tuned).bert
    with attached(encoder, opened(tuned)) as adapters:
        assert all(path.startswith("encoder.layer.") for path in adapters.down)
        assert adapters.left_out == (("classifier.bias", "classifier.weight"),)
        with adapters.over(torch.ones(1)):
            encoder(input_ids=batch(0)["input_ids"])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dora": True}, "changes model.layers.0.self_attn.q_proj.weight, .* DoRA rescales"),
    ],
    ids=str,
)
def test_what_scales_do_not_act_on_is_refused_where_it_runs(tmp_path: Any, options: Any, what: str) -> None:
    tuned = make_tuned(tmp_path, "llama", {"r": 2, "target_modules": ["q_proj"], **options}, SECOND)
    with on_base(tuned) as (model, adapters):
        with adapters.over(torch.tensor([0.0, 1.0])):
            model(**batch(0))
        with pytest.raises(RequestError, match=what), adapters.over(torch.tensor([0.5, 0.5])):
            model(**batch(0))


def test_new_values_behind_the_last_hook_do_not_matter(tmp_path: Any) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    tuned = make_tuned(tmp_path, "llama", options, SECOND)
    with on_base(tuned) as (model, adapters), adapters.over(torch.ones(2)):
        assert omega(model, adapters, batch(0), ["model.layers.0.self_attn.q_proj"], 0) < 1


def test_adapters_that_do_not_fit(tuned: Tuned, tmp_path: Any) -> None:
    other = make_tuned(tmp_path, "gpt2", {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True})
    model = base_model(tuned)
    both = {**opened(tuned), "other": open_adapter(str(other.adapters[0]))}
    with pytest.raises(RequestError, match="c_attn"), attached(model, both):
        pass
    assert not any("forward" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("more", [2, -3])
def test_tables_of_more_or_fewer_tokens(tmp_path: Any, more: int) -> None:
    """Rows are of the model's tokens: of others the model keeps its own, or has none."""
    tuned = make_tuned(tmp_path, "llama", {**ON_Q, "modules_to_save": ["embed_tokens"]})
    path, name = tuned.adapters[0] / "adapter_model.safetensors", "model.embed_tokens.weight"
    tensors = load_file(path)
    (key,) = (key for key in tensors if "embed_tokens" in key)
    table, rows = tensors[key], len(tensors[key])
    tensors[key] = torch.cat([table, table[:2]]) if more > 0 else table[:more].contiguous()
    save_file(tensors, path, {"format": "pt"})
    merged = {n: value.double() for n, value in tuned.merged[0].items()}
    merged[name][min(rows, rows + more) :] = tuned.state[name][min(rows, rows + more) :]
    wanted = base_model(tuned)
    wanted.load_state_dict(merged)
    inputs = {"input_ids": torch.arange(rows).view(4, -1)}
    model = base_model(tuned)
    with attached(model, opened(tuned), other_rows=True) as at, at.over(torch.ones(1)):
        assert at.left_out == (((f"{name}[{rows}:]",) if more > 0 else ()),)
        assert (output(model, inputs) - output(wanted, inputs)).abs().max() < 1e-5
    with pytest.raises(RequestError, match="another vocabulary"), attached(model, opened(tuned)):
        pass


@pytest.mark.parametrize(("part", "value"), [("lora_A", torch.nan), ("lora_B", torch.inf)])
def test_adapters_that_are_not_finite(tuned: Tuned, tmp_path: Any, part: str, value: float) -> None:
    shutil.copytree(tuned.adapters[0], tmp_path / "a0")
    path = tmp_path / "a0" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for name, tensor in tensors.items() if part in name)[0, 0] = value
    save_file(tensors, path)
    told = r"a0: what it does to model\.layers\..* has NaN or Inf — train it again"
    with (
        pytest.raises(RequestError, match=told),
        attached(base_model(tuned), {"a0": open_adapter(str(path.parent))}),
    ):
        pass


def test_models_with_adapters_already(tuned: Tuned) -> None:
    wrapped = peft_model("llama", tuned.state, 0, **FIRST)
    with pytest.raises(RequestError, match="has adapters of PEFT already"), attached(wrapped, opened(tuned)):
        pass
    model = base_model(tuned)
    with (
        attached(model, opened(tuned)),
        pytest.raises(RequestError, match="run by a forward that was put in the place of their own"),
        attached(model, opened(tuned)),
    ):
        pass


class _Attends(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.attention(query=x, key=x, value=x)[0])
        return y


def test_a_projection_that_never_runs_acts_where_it_is_read(tmp_path: Any) -> None:
    """`nn.MultiheadAttention` reads its output projection's weight, past all gates and hooks of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["out_proj", "head"], init_lora_weights=False)
        peft.get_peft_model(_Attends(), config).save_pretrained(tmp_path)
    model, x = _Attends().double().eval(), normal(0, 1, 3, 8)
    adapter, name = open_adapter(str(tmp_path)), "attention.out_proj"
    own = model.attention.out_proj.weight
    with FileTable() as table:
        left, right = (factor.double() for factor in adapter.factors(f"{name}.weight", table))
    with attached(model, {"one": adapter}) as adapters:
        assert adapters.units[name] == {0: 2}
        plain = model(x)
        for value in (1.0, 0.3):
            scale = torch.tensor([value], dtype=DOUBLE, requires_grad=True)
            wanted = torch.func.functional_call(
                model, {f"{name}.weight": own + scale * (left @ right)}, (x,)
            ).sum()
            with adapters.over({name: scale}):
                found = model(x).sum()
            assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
            gradients = [torch.autograd.grad(y, scale)[0].item() for y in (found, wanted)]
            assert gradients[0] == pytest.approx(gradients[1], abs=1e-12)
        with adapters.over({name: {0: scale.detach()}}), adapters.over({name: torch.zeros(1)}):
            assert torch.equal(model(x), plain), "values count from the module's own"
    assert model.attention.out_proj.weight is own
    assert not any("submerge" in path for path, _ in model.named_modules())


def test_what_scales_do_not_act_on_is_refused_where_another_module_reads_it(tmp_path: Any) -> None:
    options = {"r": 2, "target_modules": ["dt_proj"], "use_dora": True}
    tuned = make_tuned(tmp_path, "mamba", options)
    what = r"backbone\.layers\.0\.mixer: a0 changes backbone\.layers\.0\.mixer\.dt_proj\.weight, .*DoRA"
    with (
        on_base(tuned) as (model, adapters),
        pytest.raises(RequestError, match=what),
        adapters.over(torch.ones(1)),
    ):
        model(**batch(0))


@pytest.mark.parametrize(
    "options",
    [
        {"r": 2, "target_modules": ["embed_tokens", "q_proj"]},
        {**ON_Q, "trainable_token_indices": {"embed_tokens": [7, 3]}},
    ],
)
def test_a_model_with_another_table_than_was_trained_on_is_refused(
    options: dict[str, Any], tmp_path: Any
) -> None:
    """PEFT would load the table that it saved, in the place of the model's."""
    tuned = make_tuned(tmp_path, "llama", SECOND)
    wrapped = peft_model("llama", tuned.state, 3, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(tmp_path / "saved"), save_embedding_layers=True)
    adapters = {"saved": open_adapter(str(tmp_path / "saved"))}
    model = base_model(tuned).to(torch.bfloat16)
    with attached(model, adapters):
        pass
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1
    message = r"other values of model\.embed_tokens\.weight than the model's"
    with pytest.raises(RequestError, match=message), attached(model, adapters):
        pass
