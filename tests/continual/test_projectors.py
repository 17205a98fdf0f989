"""States of tasks with images: each has a projector, and prototypes by which their outputs are mixed."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _adapters import same_state
from _models import ROOM, quiet_transformers
from continual.conftest import Tasks, save_quietly
from continual.helpers_images import (
    PROJECTOR,
    ImageTasks,
    batches,
    llava,
)
from submerge.store import BANK, MANIFEST, Manifest

WEIGHTS = "adapter_model.safetensors"
FILES = (WEIGHTS, BANK, MANIFEST)


def grown(images: ImageTasks, state: Path, *names: str, **options: Any) -> submerge.Continual:
    found = submerge.Continual.begin(state, images.base, **options)
    for name in names:
        found.add(*images.of(name))
    return found


def exported(state: submerge.Continual, out: Path, **options: Any) -> dict[str, bytes]:
    """Return the bytes of an adapter's files, but for the card, which has its own name."""
    folder = state.export(out, **options).out
    return {name: (folder / name).read_bytes() for name in FILES}


def features(images: ImageTasks, name: str) -> torch.Tensor:
    """Return what the projector is given on a task's images, as means over positions, by transformers."""
    model = quiet_transformers().LlavaModel.from_pretrained(images.base)
    with torch.no_grad():
        pixels = torch.cat([batch["pixel_values"] for batch in batches(name)])
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    return hidden[:, 1:].mean(1)


def mean(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


# --- what is exported -------------------------------------------------------------------------------------


def test_a_checkpoint_with_its_gate(images: ImageTasks, tmp_path: Path) -> None:
    names = ["birds", "cars", "maps", "signs"]
    state = grown(images, tmp_path / "state", *names)
    options = {"temperature": 0.05, "top": 2}
    report = state.export(tmp_path / "out", form="checkpoint", settings=ROOM, score="prototypes", **options)
    assert (report.projectors, report.tasks) == (4, tuple(names))
    manifest = Manifest.read(report.out)
    assert manifest.gate is not None
    assert manifest.gate.to_json() == {
        "method": "projectors",
        "tasks": [{"name": name, "group": k} for k, name in enumerate(names)],
        "settings": {"module": PROJECTOR, "pooling": "mean", "centred": True, "key": "image", **options},
    }
    bank = load_file(report.out / BANK)
    own = {name: images.projector(name) for name in names}
    for k, name in enumerate(names):
        same_state({key: bank.pop(f"modules.{k}.{key}") for key in own[name]}, own[name], 1e-6)
        wanted = features(images, name).mean(0, keepdim=True)
        torch.testing.assert_close(bank.pop(f"prototypes.{k}"), wanted, rtol=1e-5, atol=1e-6)
    assert not bank
    loaded = quiet_transformers().LlavaForConditionalGeneration.from_pretrained(report.out)
    merged = {f"{PROJECTOR}.{key}": t for key, t in loaded.model.multi_modal_projector.state_dict().items()}
    same_state(merged, mean(list(own.values())), 1e-5)
    assert submerge.verify(report.out).problems == []


def test_what_a_checkpoint_says_of_itself(images: ImageTasks, tmp_path: Path) -> None:
    out = grown(images, tmp_path / "s", "birds", "cars").export(tmp_path / "out", form="checkpoint").out
    text = (out / MANIFEST).read_text()
    assert "merged-tasks" not in text
    manifest = Manifest.read(out)
    assert manifest.recipe["models"] == [{"model": "birds"}, {"model": "cars"}]
    assert [record.model for record in manifest.models] == [images.base, "birds", "cars"]
    assert manifest.base == images.base
    assert "* `birds`" in (out / "README.md").read_text()
    assert not (out / "mergekit_config.yml").exists()


def test_what_is_exported_is_served(images: ImageTasks, tmp_path: Path) -> None:
    names = ["birds", "cars", "maps"]
    state = grown(images, tmp_path / "state", *names)
    model = submerge.load(state.export(tmp_path / "out", form="checkpoint").out)
    assert model.tasks == tuple(names)
    lora = submerge.load(state.export(tmp_path / "lora").out)
    assert submerge.verify(tmp_path / "lora").problems == []
    for name in names:
        (batch, _) = batches(name)
        out, same = model(**batch), lora(**batch)
        assert out.tasks == same.tasks == [name] * 4
        torch.testing.assert_close(same.logits, out.logits, rtol=1e-4, atol=1e-5)
    pixels, seen = batches("birds")[0]["pixel_values"], []
    with model.model.multi_modal_projector.register_forward_hook(lambda *call: seen.append(call[2])):
        model(**batches("birds")[0], task="cars")
    with torch.no_grad():
        wanted = images.tuned("cars").model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(seen[0], torch.stack(list(wanted)), rtol=1e-4, atol=1e-5)


def test_text_may_be_a_key(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds", "cars")
    out = state.export(tmp_path / "out", key="both").out
    table = load_file(Path(images.base) / "model.safetensors")["language_model.model.embed_tokens.weight"]
    ids = torch.cat([batch["input_ids"] for batch in batches("cars")])
    wanted = torch.cat([table[ids[:, :1]], table[ids[:, 5:]]], dim=1).mean((0, 1))
    torch.testing.assert_close(load_file(out / BANK)["questions.1"], wanted.unsqueeze(0))
    assert "questions.1" not in load_file(state.export(tmp_path / "image").out / BANK)


def test_several_prototypes_of_all_positions(images: ImageTasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", images.base, pooling="position")
    state.add(*images.of("birds"), prototypes=3)
    state.add(*images.of("cars"))
    bank = load_file(state.export(tmp_path / "out").out / BANK)
    assert (bank["prototypes.0"].shape, bank["prototypes.1"].shape) == ((3, 32), (1, 32))
    assert Manifest.read(tmp_path / "out").gate.settings["pooling"] == "position"  # type: ignore[union-attr]


def test_without_a_gate_the_projector_is_the_mean(images: ImageTasks, tmp_path: Path) -> None:
    import peft

    state = grown(images, tmp_path / "state", "birds", "cars")
    report = state.export(tmp_path / "lora", projectors="merged")
    assert report.projectors == 0
    assert not (report.out / BANK).exists()
    model = quiet_transformers().LlavaForConditionalGeneration.from_pretrained(images.base)
    merged = peft.PeftModel.from_pretrained(model, str(report.out)).merge_and_unload().state_dict()
    wanted = mean([images.projector(name) for name in ("birds", "cars")])
    same_state({name: merged[f"model.{name}"] for name in wanted}, wanted, 1e-6)
    whole = state.export(tmp_path / "whole", form="checkpoint", projectors="merged").out
    assert Manifest.read(whole).gate is None
    tensors = load_file(whole / "model.safetensors")
    same_state({name: tensors[name] for name in wanted}, wanted, 1e-5)


def test_one_task_with_a_projector_has_a_gate(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds")
    report = state.export(tmp_path / "a", form="checkpoint")
    assert report.projectors == 1
    tensors, wanted = load_file(report.out / "model.safetensors"), images.projector("birds")
    same_state({name: tensors[name] for name in wanted}, wanted, 1e-5)
    bank = load_file(report.out / BANK)
    same_state({name: bank[f"modules.0.{name}"] for name in wanted}, wanted, 1e-5)


def test_projectors_that_no_task_trained_need_no_gate(images: ImageTasks, tmp_path: Path) -> None:
    frozen = submerge.Continual.begin(tmp_path / "state", images.base)
    for name in ("first", "second"):
        frozen.add(name, *images.of("signs")[1:])
    out = frozen.export(tmp_path / "b").out
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "adapter_config.json", WEIGHTS]


# --- the moments are those of the task's own model --------------------------------------------------------


def test_moments_are_measured_behind_the_tasks_own_projector(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds")
    (file,) = (tmp_path / "state/tasks").iterdir()
    packed = load_file(file)
    tuned, rows = images.tuned("birds"), []
    module = tuned.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    with module.register_forward_pre_hook(lambda _, x: rows.append(x[0].flatten(0, 1))), torch.no_grad():
        for batch in batches("birds"):
            tuned(**batch)
    x = torch.cat(rows).double()
    triangle = packed["inputs.language_model.model.layers.0.self_attn.q_proj.triangle"].double()
    wanted = (x.T @ x)[tuple(torch.tril_indices(16, 16))]
    torch.testing.assert_close(triangle, wanted, rtol=1e-4, atol=1e-4)
    assert state.record("birds").maps == 4


# --- any history ------------------------------------------------------------------------------------------


def test_the_order_of_adding_does_not_matter(images: ImageTasks, tmp_path: Path) -> None:
    found = []
    for number, names in enumerate(itertools.permutations(("birds", "maps", "signs"))):
        state = grown(images, tmp_path / f"s{number}", *names)
        found.append(exported(state, tmp_path / f"o{number}"))
    assert all(files == found[0] for files in found)
    assert set(found[0]) == set(FILES)


@pytest.mark.parametrize("removed", ["birds", "cars", "signs"])
def test_a_removed_task_was_never_there(images: ImageTasks, tmp_path: Path, removed: str) -> None:
    names = ["birds", "cars", "signs"]
    rest = [name for name in names if name != removed]
    found = grown(images, tmp_path / "removed", *names)
    found.remove(removed)
    assert removed not in (tmp_path / "removed/state.json").read_text()
    never = grown(images, tmp_path / "never", *rest)
    assert exported(found, tmp_path / "a") == exported(never, tmp_path / "b")


def test_a_group_lasts_when_its_first_task_is_removed(images: ImageTasks, tmp_path: Path) -> None:
    def shared(state: Path, *names: str) -> submerge.Continual:
        grown_state = submerge.Continual.begin(state, images.base)
        grown_state.add(*images.of("signs"))
        for name in names:
            share = None if name == names[0] else names[0]
            grown_state.add(*images.of(name), share_projector=share)
        return grown_state

    found = shared(tmp_path / "one", "birds", "cars", "maps")
    found.remove("birds")
    never = shared(tmp_path / "two", "cars", "maps")
    assert exported(found, tmp_path / "a") == exported(never, tmp_path / "b")
    assert found.record("maps").projector.group == "cars"  # type: ignore[union-attr]


def test_two_halves_are_all(images: ImageTasks, tmp_path: Path) -> None:
    grown(images, tmp_path / "one", "birds")
    grown(images, tmp_path / "two", "cars", "signs")
    joined = submerge.Continual.join(tmp_path / "one", tmp_path / "two", tmp_path / "joined")
    whole = grown(images, tmp_path / "all", "birds", "cars", "signs")
    assert exported(joined, tmp_path / "a") == exported(whole, tmp_path / "b")
    submerge.Continual.begin(tmp_path / "other", images.base, pooling="position")
    with pytest.raises(submerge.RequestError, match="begun with other options"):
        submerge.Continual.join(tmp_path / "joined", tmp_path / "other", tmp_path / "out")


def test_sums_alone(images: ImageTasks, tmp_path: Path) -> None:
    found = grown(images, tmp_path / "state", "birds", "cars", keep="none")
    name, model, data = images.of("cars")
    found.remove(name, model=model, data=data)
    never = grown(images, tmp_path / "never", "birds", keep="none")
    one, other = (load_file(s.export(tmp_path / o).out / WEIGHTS) for s, o in ((found, "a"), (never, "b")))
    same_state(one, other, 1e-4)


def test_identity_statistics(images: ImageTasks, tmp_path: Path) -> None:
    found = grown(images, tmp_path / "state", "birds", statistics="identity")
    name, model, _ = images.of("cars")
    with pytest.raises(submerge.RequestError, match="there are no inputs of the task 'cars'"):
        found.add(name, model)
    found.add("plain", images.of("signs")[1])  # it has no projector of its own
    assert found.record("plain").projector is None
    assert found.export(tmp_path / "out").projectors == 1


# --- tasks that a discriminant tells apart ----------------------------------------------------------------


def fitted(images: ImageTasks, names: list[str]) -> torch.Tensor:
    """Return the rows (w, b) of the discriminant of some tasks, from all of their vectors."""
    groups = [features(images, name) for name in names]
    found = submerge.algebra.linear_discriminant(groups)
    return torch.cat([found.weights, found.offsets.unsqueeze(1)], dim=1).float()


def test_a_discriminant_is_exported_with_its_score(images: ImageTasks, tmp_path: Path) -> None:
    names = ["birds", "cars", "signs"]
    state = grown(images, tmp_path / "state", *names)
    out = state.export(tmp_path / "out").out
    gate, bank = Manifest.read(out).gate, load_file(out / BANK)
    assert gate is not None
    assert (gate.settings["score"], gate.settings["key"], gate.settings["temperature"]) == (
        "discriminant",
        "image",
        1.0,
    )
    rows = torch.cat([bank[f"discriminants.{k}"] for k in range(3)])
    torch.testing.assert_close(rows, fitted(images, names), rtol=1e-3, atol=1e-3)
    assert "question_discriminants.0" not in bank
    both = load_file(state.export(tmp_path / "both", key="both", temperature=2.0).out / BANK)
    assert both["question_discriminants.0"].shape == (1, 17)
    assert torch.equal(both["discriminants.0"], bank["discriminants.0"])


@pytest.mark.parametrize("key", ["image", "text", "both"])
def test_shares_are_the_posteriors_of_a_discriminant(images: ImageTasks, tmp_path: Path, key: str) -> None:
    names = ["birds", "cars"]
    state = grown(images, tmp_path / "state", *names)
    out = state.export(tmp_path / "out", form="checkpoint", key=key, settings=ROOM).out
    bank = load_file(out / BANK)

    def scores(vectors: torch.Tensor, kind: str) -> torch.Tensor:
        rows = torch.cat([bank[f"{kind}.{k}"] for k in range(2)]).double()
        return vectors.double() @ rows[:, :-1].T + rows[:, -1]

    table = load_file(Path(images.base) / "model.safetensors")["language_model.model.embed_tokens.weight"]
    (batch, _) = batches("cars")
    ids = batch["input_ids"]
    asked = torch.cat([table[ids[:, :1]], table[ids[:, 5:]]], dim=1).mean(1)
    wanted = torch.zeros(4, 2, dtype=torch.float64)
    wanted += scores(features(images, "cars")[:4], "discriminants") if key != "text" else 0
    wanted += scores(asked, "question_discriminants") if key != "image" else 0
    for temperature in (1.0, 5.0):
        shares = submerge.load(out, temperature=temperature).shares(**batch)
        torch.testing.assert_close(shares, (wanted / temperature).softmax(1).float(), rtol=1e-3, atol=1e-4)
    prototypes = submerge.load(out, score="prototypes")
    own = state.export(tmp_path / "own", form="checkpoint", key=key, score="prototypes", settings=ROOM).out
    torch.testing.assert_close(prototypes.shares(**batch), submerge.load(own).shares(**batch))
    with pytest.raises(submerge.RequestError, match="score is discriminant, and the bank has none"):
        submerge.load(own, score="discriminant")


def test_both_keys_are_chosen_where_images_overlap_and_questions_do_not(
    images: ImageTasks, tmp_path: Path
) -> None:
    state = grown(images, tmp_path / "state", "birds")
    asked = [{**batch, "input_ids": batch["input_ids"].clone()} for batch in batches("birds")]
    for batch in asked:
        batch["input_ids"][:, 5:] = 7
    state.add("again", images.of("maps")[1], asked)
    report = state.export(tmp_path / "out")
    gate = Manifest.read(report.out).gate
    assert gate is not None
    assert (gate.settings["key"], gate.settings["score"]) == ("both", "discriminant")
    assert [line.partition(": ")[2] for line in report.warnings] == [
        "their questions count, too (key: both)"
    ] * 2
    shares = submerge.load(report.out).shares(**asked[0])
    assert (shares.argmax(1) == 0).all(), "again is before birds"
    by_image = state.export(tmp_path / "image", key="image")
    assert all("set 'key: both', or let them share a projector" in line for line in by_image.warnings)
    assert Manifest.read(by_image.out).gate.settings["key"] == "image"  # type: ignore[union-attr]
    state.remove("again")
    assert state.export(tmp_path / "alone").warnings == ()


def test_what_an_earlier_version_added_has_prototypes_alone(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds", "cars")
    without_statistics(tmp_path / "state", "birds")
    out = state.export(tmp_path / "out").out
    gate = Manifest.read(out).gate
    assert gate is not None
    assert "score" not in gate.settings, "an earlier version reads it"
    assert gate.settings["temperature"] == 0.03
    with pytest.raises(submerge.RequestError, match="no statistics of images of birds"):
        state.export(tmp_path / "no", score="discriminant")
    assert state.status().overlaps is None
    (warning,) = state.add("again", images.of("maps")[1], batches("birds"))
    assert "the images of again overlap by 100% with those of birds: by images alone" in warning


def without_statistics(state: Path, task: str) -> None:
    """Make a task's file what a version without statistics would have written."""
    (path,) = (state / "tasks").glob(f"{task}-*.safetensors")
    tensors, metadata = load_file(path), submerge.store.read_header(path).metadata
    parts = ("sizes", "factor", "moments")
    kept = {n: t for n, t in tensors.items() if not (n.startswith("prototypes.") and n.endswith(parts))}
    assert len(kept) == len(tensors) - 6
    save_file(kept, path, dict(metadata))
    text = json.loads((state / "state.json").read_text())
    for record in text["tasks"]:
        if record["name"] == task:
            record |= {"bytes": path.stat().st_size, "digest": submerge.store.file_digest(path)}
    (state / "state.json").write_text(json.dumps(text))


def test_a_discriminant_is_of_means_over_positions(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds", "cars", pooling="position")
    assert "score" not in Manifest.read(state.export(tmp_path / "out").out).gate.settings  # type: ignore[union-attr]
    with pytest.raises(submerge.RequestError, match="score is 'discriminant', and must be prototypes"):
        state.export(tmp_path / "no", score="discriminant")


@pytest.mark.parametrize("wrong", [{"score": "nearest"}, {"key": "sound"}, {"centred": 1}])
def test_settings_of_the_gate_are_checked(images: ImageTasks, tmp_path: Path, wrong: dict[str, Any]) -> None:
    state = grown(images, tmp_path / "state", "birds", "cars")
    with pytest.raises(submerge.RequestError, match=f"{next(iter(wrong))}(:| is)"):
        state.export(tmp_path / "out", **wrong)


# --- projectors that are shared ---------------------------------------------------------------------------


def test_tasks_that_share_a_projector(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds", "signs")
    assert state.add(*images.of("cars"), share_projector="birds") == []
    out = state.export(tmp_path / "out").out
    gate, bank = Manifest.read(out).gate, load_file(out / BANK)
    assert gate is not None
    assert [task["group"] for task in gate.tasks] == [0, 0, 1]
    wanted = mean([images.projector(name) for name in ("birds", "cars")])
    same_state({name: bank[f"modules.0.{name}"] for name in wanted}, wanted, 1e-6)
    means = torch.stack([features(images, name).mean(0) for name in ("birds", "cars")])
    torch.testing.assert_close(bank["prototypes.0"], means, rtol=1e-5, atol=1e-6)
    with pytest.raises(submerge.RequestError, match=r"^--share-projector: there is no task 'bird'"):
        state.add("more", *images.of("maps")[1:], share_projector="bird")


def test_tasks_with_the_same_images_are_told(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds", "signs")
    assert state.record("signs").projector.overlap == 0  # type: ignore[union-attr]
    (warning,) = state.add("again", images.of("maps")[1], batches("birds"), prototypes=1)
    assert "--share-projector birds" in warning
    assert "the images of again overlap by 100% with those of birds: by images alone" in warning


def test_status(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds", "signs")
    state.add(*images.of("cars"), share_projector="birds")
    status = state.status()
    assert status.projector_bytes == 2 * sum(t.nbytes for t in images.projector("birds").values())
    assert status.cosines is not None
    assert list(status.cosines) == ["birds", "signs"]
    assert status.cosines["birds"]["signs"] == pytest.approx(status.cosines["signs"]["birds"])
    assert status.overlaps is not None
    assert list(status.overlaps["birds"]) == ["signs"], "birds and cars share a projector"
    assert 0 <= status.overlaps["birds"]["signs"] < 0.01
    packed = [load_file(path) for path in (tmp_path / "state/tasks").iterdir()]
    own = [t for task in packed for n, t in task.items() if n.startswith("prototypes.") and n.count(".") == 2]
    assert status.statistics_bytes == sum(tensor.nbytes for tensor in own) > 0
    text = str(status)
    parts = ("projectors", "birds, cars", "cosines of the nearest prototypes", "overlap of images")
    for part in (*parts, "for a discriminant:"):
        assert part in text
    assert status.to_dict()["projector_bytes"] == status.projector_bytes


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tower", "belongs to the encoder, which has to stay the base's"),
        ("norms", "norm.weight cannot be merged by least squares: it was saved whole"),
    ],
)
def test_what_is_refused(images: ImageTasks, tmp_path: Path, name: str, part: str) -> None:
    state = grown(images, tmp_path / "state", "birds")
    before = (tmp_path / "state/state.json").read_bytes()
    with pytest.raises(submerge.RequestError, match=part):
        state.add(*images.of(name))
    assert (tmp_path / "state/state.json").read_bytes() == before


def test_a_projector_of_another_shape(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds")
    shutil.copytree(images.root / "cars", tmp_path / "cars")
    tensors = load_file(tmp_path / "cars" / WEIGHTS)
    name = next(key for key in tensors if key.endswith("linear_1.weight"))
    tensors[name] = torch.zeros(16, 12)
    save_file(tensors, tmp_path / "cars" / WEIGHTS)
    with pytest.raises(submerge.RequestError, match=r"linear_1.* \[16, 12\], but the base has \[16, 8\]"):
        state.add("cars", str(tmp_path / "cars"), batches("cars"))
    assert state.tasks == ("birds",)


def test_texts_alone(images: ImageTasks, tmp_path: Path) -> None:
    state = grown(images, tmp_path / "state", "birds")
    texts = [{"input_ids": torch.randint(3, 60, (4, 9))}]
    with pytest.raises(submerge.RequestError, match="no input has an image"):
        state.add("cars", images.of("cars")[1], texts)
    (warning,) = (w for w in state.add("prose", images.of("signs")[1], texts) if "image" in w)
    assert "no input has an image for the projector" in warning
    with pytest.raises(submerge.RequestError, match="the task 'prose' has no prototypes"):
        state.add(*images.of("cars"), share_projector="prose")
    state.add(*images.of("cars"))
    gate = Manifest.read(state.export(tmp_path / "out").out).gate
    assert gate is not None
    assert [task["name"] for task in gate.tasks] == ["birds", "cars"]


# --- the format -------------------------------------------------------------------------------------------


def test_a_state_without_projectors_is_of_version_1(images: ImageTasks, made: Tasks, tmp_path: Path) -> None:
    plain = submerge.Continual.begin(tmp_path / "plain", made.base)
    plain.add(*made.of("law"))
    content = json.loads((tmp_path / "plain/state.json").read_text())
    assert content["version"] == 1
    assert "pooling" not in content["options"]
    assert "projector" not in content["tasks"][0]
    state = grown(images, tmp_path / "state", "birds")
    assert json.loads((tmp_path / "state/state.json").read_text())["version"] == 2
    state.remove("birds")
    assert json.loads((tmp_path / "state/state.json").read_text())["version"] == 1


def test_an_export_that_cannot_be_completed_leaves_what_was_there(
    images: ImageTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submerge.continual import _projectors

    state = grown(images, tmp_path / "state", "birds", "cars")
    before = exported(state, tmp_path / "out")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_projectors, "write_bank_tensors", full)
    for form in ("adapter", "checkpoint"):
        with pytest.raises(submerge.WorkError, match="No space left"):
            state.export(tmp_path / "out", form=form, overwrite=True)
        assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before


def test_another_architecture(images: ImageTasks, tmp_path: Path) -> None:
    save_quietly(llava(quiet_transformers(), width=16), tmp_path / "base")
    with pytest.raises(submerge.RequestError, match="but the base has"):
        submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base")).add(*images.of("birds"))
