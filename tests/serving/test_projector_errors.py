"""Folders of projectors that are damaged, and calls that cannot be answered: what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from serving.helpers_composed import Specialist, normal, padded, prompt, specialist
from serving.helpers_projectors import PATH, projector_sets, write_projectors
from submerge.errors import RequestError
from submerge.serving import export_adapters

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def one() -> Specialist:
    return specialist("llava", seed=1)


@pytest.fixture(scope="module")
def sound(one: Specialist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "out"
    return write_projectors(folder, one, projector_sets(one, 2), list(normal(1, 2, 16)[:, None]))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def model(sound: Path) -> Any:
    return submerge.load(sound)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, and the bank with it so far as that lacks tensors."""
    manifest = json.loads((folder / "submerge.json").read_text())
    change(manifest)
    (folder / "submerge.json").write_text(json.dumps(manifest))
    bank = load_file(folder / "bank.safetensors")
    listed = manifest["bank"]["tensors"]
    save_file({name: x for name, x in bank.items() if name in listed}, folder / "bank.safetensors")


def test_a_folder_as_it_was_written_is_sound(folder: Path) -> None:
    report = submerge.verify(folder)
    assert report.problems == []
    assert report.loaded == "LlavaForConditionalGeneration"


def lose(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["bank"]["tensors"].pop(name)


def setting(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["gate"]["settings"].update({name: value})


def regroup(manifest: dict[str, Any]) -> None:
    manifest["gate"]["tasks"][1]["group"] = 2


WEIGHT = f"{PATH}.linear_1.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lose("prototypes.1"), r"bank.*lacks prototypes\.1"),
        (lose(f"modules.1.{WEIGHT}"), f"not all groups have {WEIGHT}"),
        (setting("key", "both"), r"lacks questions\.0"),
        (setting("tau", 1), "unknown settings.*tau"),
        (setting("module", "projector"), "no parameters of projector"),
        (setting("temperature", -1), "temperature is -1"),
        (regroup, "groups 0, 2"),
    ],
)
def test_incomplete_banks_are_found(folder: Path, change: Any, said: str) -> None:
    edit(folder, change)
    problems = submerge.verify(folder, load=False).problems
    assert len(problems) == 1
    with pytest.raises(RequestError, match=said):
        submerge.load(folder)
    with pytest.raises(RequestError, match=said):
        raise RequestError(problems[0])


def test_a_changed_bank_is_found(folder: Path) -> None:
    with (folder / "bank.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01\x02")
    assert "not those that were written" in submerge.verify(folder, load=False).problems[0]


def test_a_checkpoint_with_another_projector_is_found(folder: Path) -> None:
    for k in range(2):
        edit(folder, lose(f"modules.{k}.{PATH}.linear_2.bias"))
    (problem,) = submerge.verify(folder, load=False).problems
    assert f"other parameters: {PATH}.linear_2.bias" in problem
    with pytest.raises(RequestError, match=r"lacks: linear_2\.bias"):
        submerge.load(folder)


def test_prototypes_that_are_no_numbers(one: Specialist, tmp_path: Path) -> None:
    prototypes = [torch.ones(1, 16), torch.full((1, 16), torch.nan)]
    folder = write_projectors(tmp_path / "out", one, projector_sets(one, 2), prototypes)
    with pytest.raises(RequestError, match="NaN"):
        submerge.load(folder)
    assert "NaN" in submerge.verify(folder, load=False).problems[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top": 0}, "top is 0"),
        ({"pooling": "position"}, "made with the settings pooling"),
        ({"key": "text"}, "no prototypes of texts"),
        ({"select": "top1"}, "unknown settings.*select"),
    ],
)
def test_settings_that_load_refuses(sound: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        submerge.load(sound, **settings)


def test_tasks_that_are_not_there(one: Specialist, model: Any) -> None:
    call = {"input_ids": prompt(1, 2, one), **one.inputs(5)}
    for task, said in (("planes", "no task 'planes'"), (["birds", "cars"], "names 2 inputs")):
        with pytest.raises(RequestError, match=said):
            model(**call, task=task)
        with pytest.raises(RequestError, match=said):
            model.generate(**call, task=task)
        with pytest.raises(RequestError, match=said):
            model(input_ids=call["input_ids"][:, :2], task=task)


def test_images_whose_samples_are_not_known(one: Specialist, model: Any) -> None:
    """Two images side by side in one sample, and a part of one in another, are told apart by no rule."""
    batch = padded(prompt(1, one, one, 1), prompt(2, one, 2))
    batch["input_ids"][1, -3] = 5
    with pytest.raises(RequestError, match="which image inputs"):
        model(**batch, **one.inputs(4, 5, 6), task=["birds", "cars"])


def test_features_of_another_width(one: Specialist, tmp_path: Path) -> None:
    prototypes = list(normal(1, 2, 1, 17))
    folder = write_projectors(tmp_path / "out", one, projector_sets(one, 2), prototypes)
    with pytest.raises(RequestError, match="16 numbers, and prototypes of 17"):
        submerge.load(folder)(input_ids=prompt(1, 2, one), **one.inputs(5))


def test_broken_images(one: Specialist, model: Any) -> None:
    with pytest.raises(RequestError, match="NaN"):
        model(input_ids=prompt(1, one), pixel_values=torch.full((1, 3, 16, 16), torch.nan))


def test_rows_of_which_nothing_is_known(tmp_path: Path) -> None:
    """Voxtral's projector is given rows of all sounds at once: how many there are it cannot tell."""
    one = specialist("voxtral", seed=1)
    folder = write_projectors(tmp_path / "out", one, projector_sets(one, 2), list(normal(1, 2, 1, 64)))
    with pytest.raises(RequestError, match="cannot be told apart"):
        submerge.load(folder).get_audio_features(**one.inputs(1))


@torch.no_grad()
def test_images_side_by_side_without_their_sizes(tmp_path: Path) -> None:
    one = specialist("pixtral", seed=1)
    folder = write_projectors(tmp_path / "out", one, projector_sets(one, 2), list(normal(1, 2, 1, 16)))
    model, images = submerge.load(folder), one.inputs(5, 6)
    with pytest.raises(RequestError, match="given 1 rows, of which 2 inputs"):
        model(input_ids=prompt(1, 2, one, 1, one), pixel_values=images["pixel_values"])


def test_texts_without_ids(one: Specialist, tmp_path: Path) -> None:
    prototypes = list(normal(1, 2, 1, 16))
    folder = write_projectors(
        tmp_path / "out", one, projector_sets(one, 2), prototypes, prototypes, key="text"
    )
    model = submerge.load(folder)
    embeddings = model.get_input_embeddings()(prompt(1, 2, one))
    with pytest.raises(RequestError, match="no input_ids"):
        model(inputs_embeds=embeddings, **one.inputs(5))


def test_no_adapters_can_be_exported(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="projectors of their own"):
        export_adapters(sound, tmp_path / "adapters")
