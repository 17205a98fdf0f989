"""Images of many sizes, whose patches lie side by side in one row, each with a mixture of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import submerge
from serving.helpers_composed import Specialist, normal, padded, specialist
from serving.helpers_projectors import PATH, projector_sets, with_projector, write_projectors
from submerge.calibrate import task_prototypes

pytest.importorskip("transformers")


@dataclass
class Case:
    """Three images of two sizes, the first two in one prompt, and a model of two projectors.

    The first image and the last are the prototypes.
    """

    one: Specialist
    pixels: torch.Tensor
    sizes: torch.Tensor
    lengths: tuple[int, ...]
    sets: list[dict[str, torch.Tensor]]
    prototypes: torch.Tensor
    model: Any

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {**self.batch, "pixel_values": self.pixels, "image_sizes": self.sizes}

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        first, second, third = (self.of(n) for n in range(3))
        return padded(torch.cat([first["input_ids"], second["input_ids"]], dim=1), third["input_ids"])

    def of(self, number: int) -> dict[str, torch.Tensor]:
        """Return what a model is given of one image alone, cut to its size."""
        height, width = self.sizes[number].tolist()
        return {
            "input_ids": torch.tensor([[5, 6, *[self.one.placeholder] * self.lengths[number]]]),
            "pixel_values": self.pixels[number : number + 1, :, :height, :width],
            "image_sizes": self.sizes[number : number + 1],
        }


@pytest.fixture(scope="module", params=["pixtral", "mistral3"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    one = specialist(request.param, seed=1)
    sizes, sets = torch.tensor([[8, 16], [16, 8], [16, 16]]), projector_sets(one, 2)
    made = Case(one, normal(5, 3, 3, 16, 16), sizes, (2, 2, 4), sets, torch.empty(0), None)
    each = [task_prototypes(one.model, [made.of(n)], f"model.{PATH}").images for n in range(3)]
    made.prototypes = torch.cat(each)
    folder = tmp_path_factory.mktemp(request.param) / "out"
    made.model = submerge.load(write_projectors(folder, one, sets, [each[0], each[2]], temperature=1.0))
    return made


def test_prototypes_are_of_single_images(case: Case) -> None:
    found = task_prototypes(case.one.model, [case.inputs], f"model.{PATH}", vectors=True)
    assert found.count == 3
    torch.testing.assert_close(found.vectors, case.prototypes)


@torch.no_grad()
def test_each_image_has_its_own_shares(case: Case) -> None:
    out = case.model(**case.inputs)
    alone = [case.model(**case.of(number)) for number in range(3)]
    torch.testing.assert_close(out.shares, torch.cat([one.shares for one in alone]))
    assert (out.shares[0] - out.shares[2]).abs().max() > 0.05
    length = alone[2].logits.shape[1]
    torch.testing.assert_close(out.logits[1, -length:], alone[2].logits[0], rtol=1e-4, atol=1e-4)
    features = [with_projector(case.one, own).model.get_image_features for own in case.sets]
    inputs = {name: case.of(2)[name] for name in ("pixel_values", "image_sizes")}
    first, second = (torch.cat(list(own(**inputs).pooler_output)) for own in features)
    wanted = out.shares[2, 0] * first + out.shares[2, 1] * second
    seen: list[torch.Tensor] = []
    hook = case.model.model.get_submodule(PATH).register_forward_hook(lambda *given: seen.append(given[-1]))
    case.model(**case.of(2))
    hook.remove()
    torch.testing.assert_close(seen[-1].reshape_as(wanted), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_samples_of_named_tasks_have_their_own_models(case: Case) -> None:
    out = case.model(**case.inputs, task=["birds", "cars"])
    assert out.tasks == ["birds", "birds", "cars"]
    wanted = with_projector(case.one, case.sets[1])(**case.of(2)).logits[0]
    torch.testing.assert_close(out.logits[1, -len(wanted) :], wanted, rtol=1e-4, atol=1e-4)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "pad_token_id": 0}
    batch = case.model.generate(**case.inputs, task=["birds", "cars"], **how)
    alone = case.model.generate(**case.of(2), task="cars", **how)
    assert torch.equal(batch[1, -alone.shape[1] :], alone[0])


@torch.no_grad()
def test_images_are_told_apart_by_their_lengths(case: Case) -> None:
    """Two of two tokens, side by side in one sample, and one of four: six tokens and three images."""
    mark, tasks = case.one.placeholder, ["birds", "cars"]
    ids = torch.tensor([[5, mark, mark, mark, mark, 6], [7, mark, mark, mark, mark, 8]])
    out = case.model(input_ids=ids, pixel_values=case.pixels, image_sizes=case.sizes, task=tasks)
    assert out.tasks == ["birds", "birds", "cars"]
