"""Passes that take outputs from an earlier one, or compute activations again: the same bits as without."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from _adapters import make_tuned
from calibrate.helpers_null_space import base_model, batch, on_base, opened
from calibrate.test_attached import inputs_of
from submerge import null_space_curve
from submerge.calibrate import AttachedAdapters, NullSpaceRatio, attached, collect
from submerge.calibrate._checkpointing import checkpointed
from submerge.calibrate._null_space import CURVE
from submerge.calibrate._reuse import ReusedOutputs

pytest.importorskip("peft")
LANGUAGE = {"r": 2, "target_modules": r".*language_model.*(q|v)_proj"}
LAST = {"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}
K = "layers.0.self_attn.k_proj"
CASES: dict[str, tuple[str, Any, set[str]]] = {
    "an image tower and its projector": (
        "llava",
        LANGUAGE,
        {
            "model.vision_tower",
            "model.multi_modal_projector",
            "model.language_model.layers.0.self_attn.k_proj",
        },
    ),
    "the blocks before the first adapter": (
        "llama",
        LAST,
        {"model.layers.0", "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"},
    ),
}


def measured(
    adapters: AttachedAdapters, inputs: Any, hooks: list[str], around: AbstractContextManager[None]
) -> list[torch.Tensor]:
    """Return Ω of a batch, and its gradients to scales of each module."""
    scales = {name: torch.full((2,), 0.4, requires_grad=True) for name in adapters.modules}
    ratios = {name: NullSpaceRatio([adapters.down[name][0]]) for name in hooks}
    with adapters.over(scales), around:
        collect(adapters.model, [inputs], ratios)
    loss = torch.stack([ratio.mean[0] for ratio in ratios.values()]).mean()
    gradients = torch.autograd.grad(loss, list(scales.values()), allow_unused=True)
    return [loss.detach(), *(g for g in gradients if g is not None)]


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("case", CASES)
def test_outputs_that_do_not_depend_on_scales_are_computed_once_a_batch(case: str, tmp_path: Path) -> None:
    kind, options, constant = CASES[case]
    tuned = make_tuned(tmp_path, kind, options, options)
    with on_base(tuned) as (model, adapters):
        hooks = [name for name in adapters.down if "layers.1" in name]
        batches = [inputs_of(kind), inputs_of(kind)]
        batches[1]["input_ids"][:, 0] = 9
        wanted = [measured(adapters, one, hooks, nullcontext()) for one in batches]
        reused, ran = ReusedOutputs(model, hooks), []
        for name in constant:
            for inner in model.get_submodule(name).modules():
                if "forward" not in inner.__dict__ and not list(inner.children()):
                    inner.register_forward_hook(lambda *_, name=name: ran.append(name))
        for turn in range(4):
            ran.clear()
            for one, own in zip(batches, wanted, strict=True):
                assert same(measured(adapters, one, hooks, reused.over(one)), own)
            inner_ran = {name for name in ran if not name.endswith("_proj")}
            assert bool(inner_ran) == (turn < 2), "the first batch only shows which modules these are"
        with torch.no_grad(), reused.over(batches[0]):
            collect(model, [batches[0]], {name: NullSpaceRatio([adapters.down[name][0]]) for name in hooks})
        assert set(reused._constant[frozenset(batches[0])]) == constant
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_of_a_stack_only_the_last_output_is_held(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama", {**LAST, "target_modules": ["o_proj"]}, LAST)
    with on_base(tuned) as (model, adapters):
        layers, inputs = model.model.layers, batch(0)
        layers.insert(0, type(layers[0])(model.config, 0).double().eval().requires_grad_(False))
        model.config.num_hidden_layers = 3
        hook = "model.layers.2.self_attn.o_proj"
        adapters.down[hook] = adapters.down["model.layers.1.self_attn.o_proj"]
        wanted = measured(adapters, inputs, [hook], nullcontext())
        reused = ReusedOutputs(model, [hook])
        for _ in range(3):
            assert same(measured(adapters, inputs, [hook], reused.over(inputs)), wanted)
        _, held = reused._held[id(inputs)]
        assert [held[f"model.layers.{i}", 0].used for i in (0, 1)] == [False, True]


def test_what_does_not_fit_is_computed_anew(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama", LAST, LAST)
    with on_base(tuned) as (model, adapters):
        hooks, inputs = [name for name in adapters.down if "up_proj" in name], batch(0)
        wanted = measured(adapters, inputs, hooks, nullcontext())
        reused = ReusedOutputs(model, hooks, limit=8)
        for _ in range(3):
            assert same(measured(adapters, inputs, hooks, reused.over(inputs)), wanted)
        assert not reused._held


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llava"])
def test_checkpoints_give_the_same_gradients(kind: str, tmp_path: Path) -> None:
    """Hooks are in the last layer, and the pass ends inside of it."""
    options = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True} if kind == "gpt2" else LANGUAGE
    if kind == "llama":
        options = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    tuned = make_tuned(tmp_path, kind, options, options)
    model, inputs = base_model(tuned), inputs_of(kind)
    with attached(model, opened(tuned)) as adapters:
        hooks = list(adapters.down)
        wanted = measured(adapters, inputs, hooks, nullcontext())
        held: list[int] = []
        for around in (nullcontext(), checkpointed(adapters)):
            sizes: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x, sizes=sizes: (sizes.append(x.nbytes), x)[1], lambda x: x
            ):
                found = measured(adapters, inputs, hooks, around)
            assert same(found, wanted)
            held.append(sum(sizes))
        reused = ReusedOutputs(model, hooks)
        for _ in range(3):
            with checkpointed(adapters):
                assert same(measured(adapters, inputs, hooks, reused.over(inputs)), wanted)
    assert held[1] < held[0]
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("case", CASES)
def test_curves_compute_them_once_a_batch(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, options, _ = CASES[case]
    tuned = make_tuned(tmp_path, kind, options, options)
    batches = [inputs_of(kind), inputs_of(kind)]
    batches[1]["input_ids"][:, 0] = 9
    model, ran = base_model(tuned).requires_grad_(True), []
    tower = model.model.vision_tower if kind == "llava" else model.model
    linear = next(m for name, m in tower.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    linear.register_forward_hook(lambda *_: ran.append(1))

    def curve() -> torch.Tensor:
        ran.clear()
        data = {"a0": batches, "a1": batches[:1]}
        values = null_space_curve(model, dict(zip(data, tuned.adapters, strict=True)), data).values
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any("forward" in module.__dict__ for module in model.modules())
        return values

    found = curve()
    assert len(ran) == 1 + 3, "one pass finds what can be held; each adapter has its batches"
    with torch.inference_mode():
        assert torch.equal(curve(), found)
    assert len(ran) == 1 + 3
    monkeypatch.setattr(ReusedOutputs, "over", lambda *_: nullcontext())
    assert torch.equal(curve(), found)
    assert len(ran) == 1 + 3 * len(CURVE)
    with torch.inference_mode():  # of such a model it does not show what depends on scales
        for module in model.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(value.clone(), requires_grad=False))
    values = null_space_curve(model, list(tuned.adapters), [batches, batches[:1]]).values
    assert torch.equal(values, found)
