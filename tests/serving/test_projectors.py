"""Models whose projectors are mixed by image, against the same models of plain modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from serving.helpers_composed import Specialist, normal, padded, prompt, specialist
from serving.helpers_projectors import (
    PATH,
    TASKS,
    expected_weights,
    given_to_projector,
    mixed,
    projector_sets,
    with_projector,
    write_projectors,
)

pytest.importorskip("transformers")

KINDS = (
    "llava",
    "llava_next",
    "vipllava",
    "llava_onevision",
    "qwen2_audio",
    "voxtral",
    "next_video",
    "video_llava",
)


class Case:
    """A folder of three tasks, its loaded model, and what it is made of."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.one = kind, specialist(kind, seed=1)
        self.sets = projector_sets(self.one, 3)
        x = given_to_projector(self.one, self.inputs(1, 2, 3), prompt(1, *[self.one] * 3))
        pooled = torch.stack([part.flatten(0, -2).mean(0) for part in x.split(len(x) // 3)])
        self.prototypes = list(pooled + 0.3 * pooled.std() * normal(7, *pooled.shape))
        self.folder = write_projectors(root / kind, self.one, self.sets, self.prototypes)

    def inputs(self, *seeds: int) -> dict[str, torch.Tensor]:
        return self.one.inputs(*seeds)

    def load(self, **settings: Any) -> Any:
        return submerge.load(self.folder, **settings)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def get(kind: str) -> Case:
        if kind not in made:
            made[kind] = Case(kind, tmp_path_factory.mktemp("projectors"))
        return made[kind]

    return get


@pytest.fixture(scope="module")
def llava(case: Any) -> Case:
    return case("llava")


@pytest.fixture(scope="module")
def model(llava: Case) -> Any:
    return llava.load()


def request(one: Specialist, *seeds: int) -> dict[str, Any]:
    """Return a prompt with an input for each seed, apart from one another."""
    parts = [part for _ in seeds for part in (2, one)]
    return {"input_ids": prompt(1, *parts, 3), **one.inputs(*seeds)}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outputs_of_all_projectors_are_mixed(case: Any, kind: str) -> None:
    own: Case = case(kind)
    call, model = request(own.one, 5, 6), own.load()
    out = model(**call)
    x = given_to_projector(own.one, own.inputs(5, 6), call["input_ids"])
    each = len(x) // 2
    weights = expected_weights(x, [each, each], own.prototypes)
    torch.testing.assert_close(out.shares, weights.float())
    wanted = mixed(own.one, own.sets, weights, [each, each])(**call).logits
    torch.testing.assert_close(out.logits, wanted, rtol=1e-4, atol=1e-5)
    assert out.tasks == [TASKS[k] for k in weights.argmax(1).tolist()]
    torch.testing.assert_close(model.shares(**call), out.shares)
    assert model.tasks == TASKS
    averaged = type(own.one.model).from_pretrained(own.folder)(**call).logits
    assert (out.logits - averaged).abs().max() > 1e-3, "weights are not averaged"


@torch.no_grad()
def test_a_loss_is_that_of_the_mixture(llava: Case, model: Any) -> None:
    call = request(llava.one, 5, 6)
    call["labels"] = call["input_ids"].where(call["input_ids"] != llava.one.placeholder, -100)
    out = model(**call)
    wanted = mixed(llava.one, llava.sets, out.shares, [1, 1])(**call).loss
    torch.testing.assert_close(out.loss, wanted)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_named_task_answers_as_its_own_model(case: Any, kind: str) -> None:
    own: Case = case(kind)
    call, model = request(own.one, 5, 6), own.load()
    for k, task in enumerate(TASKS):
        out = model(**call, task=task)
        assert torch.equal(out.logits, with_projector(own.one, own.sets[k])(**call).logits)
        assert out.tasks == [task, task]


@torch.no_grad()
def test_one_task_is_its_own_model(llava: Case, tmp_path: Path) -> None:
    folder = write_projectors(tmp_path / "one", llava.one, llava.sets[:1], llava.prototypes[:1])
    call = request(llava.one, 5, 6)
    out = submerge.load(folder)(**call)
    assert torch.equal(out.logits, with_projector(llava.one, llava.sets[0])(**call).logits)
    assert out.shares.eq(1).all()


@torch.no_grad()
def test_a_low_temperature_or_one_projector_at_most_takes_the_nearest(llava: Case) -> None:
    for settings in ({"temperature": 0.0}, {"temperature": 1e-9}, {"top": 1}):
        model = llava.load(**settings)
        for seed in (1, 2, 3):
            call = request(llava.one, seed)
            out = model(**call)
            k = TASKS.index(out.tasks[0])
            assert k == seed - 1, "the prototypes are those of these images"
            assert torch.equal(out.logits, with_projector(llava.one, llava.sets[k])(**call).logits)


@torch.no_grad()
def test_a_high_temperature_weighs_all_alike(llava: Case) -> None:
    out = llava.load(temperature=1e9)(**request(llava.one, 1, 2))
    torch.testing.assert_close(out.shares, torch.full((2, 3), 1 / 3))


@torch.no_grad()
def test_equal_projectors_are_that_one(llava: Case, tmp_path: Path) -> None:
    folder = write_projectors(tmp_path / "equal", llava.one, [llava.sets[0]] * 3, llava.prototypes)
    call = request(llava.one, 5)
    wanted = with_projector(llava.one, llava.sets[0])(**call).logits
    torch.testing.assert_close(submerge.load(folder)(**call).logits, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_linear_projectors_could_be_averaged(case: Any) -> None:
    """Of a linear map mixing outputs is mixing weights: Qwen2-Audio's projector is one."""
    own: Case = case("qwen2_audio")
    call, model = request(own.one, 5), own.load()
    out = model(**call)
    weights = out.shares[0]
    merged = {n: sum(w * s[n] for w, s in zip(weights, own.sets, strict=True)) for n in own.sets[0]}
    wanted = with_projector(own.one, merged)(**call).logits
    torch.testing.assert_close(out.logits, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_text_alone_uses_no_projector(llava: Case, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(1, 6)
    wanted = llava.one.model(input_ids=ids).logits

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the projector was called")

    monkeypatch.setattr(model.get_submodule(f"model.{PATH}"), "forward", refuse)
    out = model(input_ids=ids)
    assert torch.equal(out.logits, wanted)
    assert out.tasks == []
    assert out.shares.shape == (0, 3)
    assert model.shares(input_ids=ids).shape == (0, 3)
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (1, 8)


@torch.no_grad()
def test_a_batch_answers_as_its_samples_do(llava: Case, model: Any) -> None:
    """Samples of two images, of none, and of one, filled up on the left."""
    one = llava.one
    prompts = [prompt(1, 2, one, 3, one, 1), prompt(2, 4), prompt(3, one, 2)]
    batch = model(**padded(*prompts), **one.inputs(4, 5, 6))
    for row, (ids, seeds, at) in enumerate(
        zip(prompts, [(4, 5), (), (6,)], [slice(0, 2), slice(2, 2), slice(2, 3)], strict=True)
    ):
        alone = model(input_ids=ids, **(one.inputs(*seeds) if seeds else {}))
        torch.testing.assert_close(batch.logits[row, -ids.shape[1] :], alone.logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.shares[at], alone.shares)
        assert batch.tasks[at] == alone.tasks


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_each_sample_has_the_task_that_is_named_for_it(llava: Case, model: Any, beams: int) -> None:
    one, names = llava.one, ["texts", "birds", "cars"]
    prompts = [prompt(1, 2, one, 3, one, 1), prompt(2, 4), prompt(3, one, 2)]
    batch, images = padded(*prompts), one.inputs(4, 5, 6)
    out = model(**batch, **images, task=names)
    assert out.tasks == ["texts", "texts", "cars"]
    own = with_projector(one, llava.sets[2])(input_ids=prompts[0], **one.inputs(4, 5)).logits
    torch.testing.assert_close(out.logits[0, -own.shape[1] :], own[0], rtol=1e-4, atol=1e-5)
    how = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    found = model.generate(**batch, **images, task=names, **how)
    at = batch["input_ids"].shape[1]
    for row, seeds in enumerate([(4, 5), (), (6,)]):
        plain = with_projector(one, llava.sets[TASKS.index(names[row])])
        inputs = one.inputs(*seeds) if seeds else {}
        wanted = plain.generate(input_ids=prompts[row], **inputs, **how)
        assert found[row, at:].tolist() == wanted[0, prompts[row].shape[1] :].tolist()


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@torch.no_grad()
def test_generate_goes_on_from_the_mixture(llava: Case, model: Any, how: dict[str, Any]) -> None:
    call = request(llava.one, 5)
    weights = model.shares(**call).double()
    plain = mixed(llava.one, llava.sets, weights, [1])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **how}
    found, wanted = model.generate(**call, **settings), plain.generate(**call, **settings)
    assert found.tolist() == wanted.tolist()
    assert found.unique().numel() > 3


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_generate_tells_inputs_apart_as_a_forward_does(case: Any, kind: str, beams: int) -> None:
    """With the rows of two inputs, whether features are made before the prompt runs or with it."""
    own: Case = case(kind)
    call, model = request(own.one, 5, 6), own.load()
    x = given_to_projector(own.one, own.inputs(5, 6), call["input_ids"])
    rows = [len(x) // 2] * 2
    if kind in ("qwen2_audio", "voxtral"):  # sounds are repeated for each beam
        rows = [each * beams for each in rows]
    plain = mixed(own.one, own.sets, model.shares(**call).double(), rows)
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "num_beams": beams}
    out = model.generate(**call, **how, return_dict_in_generate=True)
    assert out.sequences.tolist() == plain.generate(**call, **how).tolist()
    torch.testing.assert_close(out.shares, model.shares(**call))


@torch.no_grad()
def test_a_cache_is_as_good_as_none(llava: Case, model: Any) -> None:
    call = request(llava.one, 5)
    whole = torch.cat([call["input_ids"], prompt(9, 3, llava.one, 2)], dim=1)
    both = llava.one.inputs(5, 6)
    wanted = model(input_ids=whole, **both).logits
    first = model(**call, use_cache=True)
    mask = torch.ones_like(whole)
    second = model(
        input_ids=whole[:, call["input_ids"].shape[1] :],
        attention_mask=mask,
        past_key_values=first.past_key_values,
        **llava.one.inputs(6),
    )
    torch.testing.assert_close(second.logits, wanted[:, call["input_ids"].shape[1] :], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_alone_are_mixed_too(llava: Case, model: Any) -> None:
    images = llava.inputs(5, 6)
    features = torch.stack(list(model.get_image_features(**images).pooler_output))
    shares = model.shares(**request(llava.one, 5, 6))
    each = [
        torch.stack(list(with_projector(llava.one, own).get_image_features(**images).pooler_output))
        for own in llava.sets
    ]
    wanted = sum(shares[:, k, None, None] * y for k, y in enumerate(each))
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tiles_of_an_image_have_one_weight_vector(case: Any) -> None:
    """Images of two and of three tiles, which are padded to three."""
    own: Case = case("llava_onevision")
    small, large = own.one.make(5), {"pixel_values": normal(6, 1, 3, 3, 16, 16)}
    fill = torch.nn.functional.pad(small["pixel_values"], (0, 0, 0, 0, 0, 0, 0, 1))
    images = {
        "pixel_values": torch.cat([fill, large["pixel_values"]]),
        "image_sizes": torch.tensor([[16, 16], [16, 32]]),
    }
    image = own.one.placeholder
    ids = torch.tensor([[5, *[image] * 10, 6, *[image] * 14, 7]])
    model = own.load()
    out = model(input_ids=ids, **images)
    x = given_to_projector(own.one, images, ids)
    weights = expected_weights(x, [2, 3], own.prototypes)
    torch.testing.assert_close(out.shares, weights.float())
    wanted = mixed(own.one, own.sets, weights, [2, 3])(input_ids=ids, **images).logits
    torch.testing.assert_close(out.logits, wanted, rtol=1e-4, atol=1e-5)
    alone = model(input_ids=ids[:, :12], **small)
    torch.testing.assert_close(alone.shares, out.shares[:1])


@torch.no_grad()
def test_frames_of_a_video_have_one_weight_vector(case: Any) -> None:
    own: Case = case("llava_onevision")
    video = {"pixel_values_videos": normal(8, 2, 3, 3, 16, 16)}
    call = {**request(own.one, 5), **video}
    tokens = own.one.model.model.get_video_features(**video).pooler_output.shape[1]
    ids = torch.cat([call["input_ids"], torch.full((1, 2 * tokens), own.one.model.config.video_token_id)], 1)
    out = own.load()(**{**call, "input_ids": ids})
    assert out.shares.shape == (3, 3), "an image, and two videos"
    torch.testing.assert_close(out.shares.sum(1), torch.ones(3))


@pytest.mark.parametrize("key", ["text", "both"])
@torch.no_grad()
def test_texts_count_for_the_choice(llava: Case, tmp_path: Path, key: str) -> None:
    one = llava.one
    questions = list(normal(3, 3, 2, 16))
    folder = write_projectors(tmp_path / "out", one, llava.sets, llava.prototypes, questions, key=key)
    model = submerge.load(folder)
    prompts = [prompt(1, 2, one, 3, one, 1), prompt(2, 4), prompt(3, one, 2)]
    batch, images = padded(*prompts), one.inputs(4, 5, 6)
    out = model(**batch, **images)
    table = one.model.get_input_embeddings()
    texts = torch.stack([table(ids[ids < 60]).mean(0) for ids in (prompts[0], prompts[0], prompts[2])])
    similarity = submerge.algebra.Prototypes(questions).similarity(texts, centred=True)
    if key == "both":
        x = given_to_projector(one, one.inputs(4, 5, 6), prompt(1, *[one] * 3))
        similarity += submerge.algebra.Prototypes(llava.prototypes).similarity(x.mean(1), centred=True)
        similarity /= 2
    torch.testing.assert_close(out.shares, (similarity / 0.03).softmax(1).float(), rtol=1e-4, atol=1e-5)
    for row, (ids, seeds) in enumerate([(prompts[0], (4, 5)), (prompts[2], (6,))]):
        alone = model(input_ids=ids, **one.inputs(*seeds))
        torch.testing.assert_close(out.shares[2 * row :][: len(seeds)], alone.shares)
    assert torch.equal(
        submerge.load(folder, key="image").shares(**batch, **images), llava.load().shares(**batch, **images)
    )
    assert model.generate(**batch, **images, max_new_tokens=2, do_sample=False, num_beams=1).shape[1] > 2


@torch.no_grad()
def test_by_position_and_with_several_prototypes(llava: Case, tmp_path: Path) -> None:
    one = llava.one
    x = given_to_projector(one, one.inputs(1, 2, 3, 4), prompt(1, *[one] * 4)).flatten(1)
    prototypes = [x[:2], x[2:3], x[3:]]
    folder = write_projectors(
        tmp_path / "out", one, llava.sets, prototypes, pooling="position", centred=False
    )
    out = submerge.load(folder, temperature=0.0)(**request(one, 1, 2, 3, 4))
    assert out.tasks == ["birds", "birds", "cars", "texts"]


@torch.no_grad()
def test_tasks_can_share_a_projector(llava: Case, tmp_path: Path) -> None:
    folder = write_projectors(
        tmp_path / "out", llava.one, llava.sets[:2], llava.prototypes[:2], groups=(0, 1, 0)
    )
    model, call = submerge.load(folder), request(llava.one, 1)
    assert model.projectors == (("birds", "texts"), ("cars",))
    out = model(**call)
    assert out.tasks == ["birds+texts"]
    assert torch.equal(model(**call, task="texts").logits, model(**call, task="birds").logits)


@torch.no_grad()
def test_what_is_saved_can_be_loaded(llava: Case, model: Any, tmp_path: Path) -> None:
    call = request(llava.one, 5, 6)
    model.save_pretrained(tmp_path / "again")
    again = submerge.load(tmp_path / "again")
    assert torch.equal(again(**call).logits, model(**call).logits)
    own = type(llava.one.model).from_pretrained
    assert torch.equal(own(tmp_path / "again")(**call).logits, own(llava.folder)(**call).logits)


@torch.no_grad()
def test_in_half_precision(llava: Case, model: Any) -> None:
    call = request(llava.one, 5, 6)
    half = llava.load(dtype=torch.bfloat16)
    out = half(**{name: x.bfloat16() if x.is_floating_point() else x for name, x in call.items()})
    assert out.logits.dtype == torch.bfloat16
    assert (out.shares - model(**call).shares).abs().max() < 0.05
    torch.testing.assert_close(out.shares.sum(1), torch.ones(2))
