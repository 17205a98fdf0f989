"""Losses, gradients and steps beside a plain implementation, on models of five kinds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from _adapters import Tuned, make_tuned
from calibrate.helpers_null_space import base_model, batch, normal
from calibrate.helpers_plain import Plain
from submerge import learn_coefficients, null_space_ratio
from submerge.calibrate._measurement import Measurement, measuring
from submerge.calibrate._objectives import OBJECTIVES

pytest.importorskip("peft")
TARGETS = {
    "llama": (["q_proj", "v_proj", "up_proj"], ["q_proj", "up_proj"]),
    "gpt2": (["c_attn", "attn.c_proj", "c_fc"], ["c_attn", "c_fc"]),
    "bert": (["query", "value", "intermediate.dense"], ["query", "intermediate.dense"]),
    "vit": (["q_proj", "v_proj", "fc1"], ["q_proj", "fc1"]),
    "mamba": (["in_proj", "x_proj", "dt_proj"], ["in_proj", "dt_proj"]),
}
"""Mamba's mixer reads the weight of `dt_proj`, which never runs."""


def images(seed: int, size: int = 2) -> dict[str, torch.Tensor]:
    return {"pixel_values": normal(seed, size, 3, 16, 16, dtype=torch.float32)}


@pytest.fixture(scope="module", params=TARGETS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters: unequal ranks and alphas, rsLoRA, and modules that the second one lacks."""
    kind = request.param
    more = {"fan_in_fan_out": True} if kind == "gpt2" else {}
    first = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[kind][0], **more}
    second = {"r": 3, "lora_alpha": 12, "use_rslora": True, "target_modules": TARGETS[kind][1], **more}
    return make_tuned(tmp_path_factory.mktemp(kind), kind, first, second)


def batches(tuned: Tuned, task: int) -> list[Any]:
    draw = images if tuned.kind == "vit" else batch
    return [draw(2 * task), draw(2 * task + 1, size=1 + task)]


@pytest.fixture
def measurement(tuned: Tuned) -> Iterator[Measurement]:
    data = [batches(tuned, 0), batches(tuned, 1)]
    how = {"batch_size": 1, "max_length": 1, "processor": None}
    with measuring(base_model(tuned), tuned.adapters, data, "last_quarter", how) as measurement:
        yield measurement


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients_are_those_of_a_plain_implementation(
    name: str, tuned: Tuned, measurement: Measurement
) -> None:
    adapters = measurement.adapters
    plain = Plain(base_model(tuned), tuned.adapters, list(measurement.hooked))
    values = 0.4 + 0.2 * normal(3, len(plain.keys))
    scales = {key: value.requires_grad_() for key, value in zip(plain.keys, values.unbind(), strict=True)}
    zero = torch.zeros((), dtype=torch.float64)
    by_module = {
        path: torch.stack([scales.get((path, k), zero) for k in range(2)]) for path in adapters.modules
    }
    objective = OBJECTIVES[name](adapters, measurement.factors())
    close = 1e-6 if tuned.kind == "mamba" else 1e-7  # its scan works in float32
    for k in range(2):
        one = batches(tuned, k)[1]
        found, wanted = objective(k, one, by_module), plain.task(k, scales, one, name)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=close, rel=close)
        gradients = [
            torch.autograd.grad(loss, list(scales.values()), retain_graph=True, allow_unused=True)
            for loss in (found, wanted)
        ]
        for key, ours, theirs in zip(scales, *gradients, strict=True):
            assert (ours is None) == (theirs is None), key
            if ours is not None and theirs is not None:
                assert float(ours) == pytest.approx(float(theirs), abs=10 * close, rel=10 * close), key
        assert any(g is not None and g.abs() > 1e-4 for g in gradients[0])


def right_padded(seed: int) -> dict[str, torch.Tensor]:
    """Return token ids of inputs of four lengths, one of them of a single token."""
    ids = torch.randint(5, 60, (4, 8), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(8) < torch.tensor([[8], [5], [1], [6]])
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def dependent(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "lora_A" in name:
        tensor[1], tensor[-1] = tensor[0], 2 * tensor[0]
    return tensor


ODD: dict[str, Any] = {
    "rows of A that depend on others": dependent,
    "A of zeros": lambda name, tensor: 0 * tensor if "lora_A" in name else tensor,
    "B of zeros": lambda name, tensor: 0 * tensor if "lora_B" in name else tensor,
    "in bfloat16": lambda name, tensor: tensor.bfloat16(),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_factors_and_lengths_are_those_of_a_plain_implementation(
    odd: str, tuned: Tuned, tmp_path: Path
) -> None:
    """Of the ratio of all data for each adapter, too, which `Plain` gives where data and adapter are one."""
    if tuned.kind not in ("bert", "gpt2"):
        pytest.skip("encoders with padding on the right, and weights that are stored transposed, will do")
    folder = tmp_path / "a0"
    shutil.copytree(tuned.adapters[0], folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {name: ODD[odd](name, tensor.clone()).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors")
    folders, data = (
        [folder, tuned.adapters[1]],
        {name: [right_padded(k)] for k, name in enumerate(("a0", "a1"))},
    )
    how = {"batch_size": 1, "max_length": 1, "processor": None}
    with measuring(base_model(tuned), folders, data, "last_quarter", how) as measurement:
        plain = Plain(base_model(tuned), folders, list(measurement.hooked))
        scales = {key: torch.tensor(0.4, dtype=torch.float64, requires_grad=True) for key in plain.keys}
        zero = torch.zeros((), dtype=torch.float64)
        by_module = {
            path: torch.stack([scales.get((path, k), zero) for k in range(2)])
            for path in measurement.adapters.modules
        }
        objective = OBJECTIVES["null_space"](measurement.adapters, measurement.factors())
        for k, name in enumerate(data):
            found = objective(k, data[name][0], by_module)
            wanted = plain.task(k, scales, data[name][0], "null_space")
            assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-7)
            ours, theirs = (
                torch.autograd.grad(x, [*scales.values()], allow_unused=True) for x in (found, wanted)
            )
            for key, one, other in zip(scales, ours, theirs, strict=True):
                one, other = (0.0 if g is None else float(g) for g in (one, other))
                assert one == pytest.approx(other, abs=1e-6), key
    matrix = null_space_ratio(base_model(tuned), folders, data, scales=0.4).matrix
    for k, name in enumerate(data):
        wanted = plain.task(k, scales, data[name][0], "null_space").detach()
        assert float(matrix[k, k]) == pytest.approx(float(wanted), abs=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_are_those_of_a_plain_implementation(name: str, tuned: Tuned) -> None:
    data = [batches(tuned, 0), batches(tuned, 1)]
    adamw = {"lr": 0.02, "weight_decay": 0.01}
    found = learn_coefficients(
        base_model(tuned),
        list(tuned.adapters),
        data,
        steps=3,
        learning_rate=adamw["lr"],
        weight_decay=adamw["weight_decay"],
        objective=name,
        where_rising="learn",
    )
    plain = Plain(base_model(tuned), tuned.adapters, found.hooks)
    turns = [[own[step % 2] for own in data] for step in range(4)]
    losses, scales = plain.learn(turns, name, **adamw)
    assert found.loss == pytest.approx(losses, abs=1e-5)
    names = list(found.curve.adapters)
    for (path, k), value in scales.items():
        assert found.coefficients[path][names[k]] == pytest.approx(value, abs=1e-5), (path, k)
    unreached = {path for path, own in found.coefficients.items() if set(own.values()) == {0.4}}
    assert set(found.unreached) == unreached != set()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name: str, tuned: Tuned, measurement: Measurement) -> None:
    if tuned.kind in ("llama", "mamba"):
        pytest.skip("norms, or scans, that work in float32")
    objective = OBJECTIVES[name](measurement.adapters, measurement.factors())
    paths = measurement.adapters.modules

    def loss(scales: torch.Tensor) -> torch.Tensor:
        by_module = dict(zip(paths, scales, strict=True))
        return torch.stack([objective(k, batches(tuned, k)[0], by_module) for k in range(2)]).mean()

    scales = (0.3 + 0.1 * normal(0, len(paths), 2)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (scales,))
