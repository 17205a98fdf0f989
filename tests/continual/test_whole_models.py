"""Tasks that are whole checkpoints of the base: a state of them, and of adapters beside them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _adapters import same_state
from _models import ROOM, quiet_transformers
from continual.conftest import Tasks, save_quietly
from continual.helpers_images import PROJECTOR, ImageTasks, batches
from store.helpers_adapter import MODELS, copied
from submerge.continual._state_folder import LOCK, locked

NAMES = ("law", "chess", "poems")
CHANGED = {
    "law": ("_proj.weight",),
    "chess": ("q_proj.weight", "down_proj.weight", "norm.weight", "embed_tokens"),
    "poems": ("up_proj.weight",),
    "tales": ("_proj.weight",),
}
"""Parts of the names of what each task trained."""


def tuned(
    base: str | Path, out: Path, seed: int, parts: tuple[str, ...], kind: str = "AutoModelForCausalLM"
) -> str:
    """Write a fine-tune of a base: some of its tensors are others."""
    model = getattr(quiet_transformers(), kind).from_pretrained(base, dtype="auto")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=draw)
            if any(part in name for part in parts):
                parameter += noise.to(parameter)
    save_quietly(model, out)
    return str(out)


@pytest.fixture(scope="session")
def whole(made: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    """The tasks' data with a fine-tune of the base for each."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(made.base, root / "base")
    for seed, (name, parts) in enumerate(CHANGED.items()):
        tuned(made.base, root / name, seed, parts)
        for path in (*(made.root / "base").glob("*token*"), *(made.root / "base").glob("*vocab*")):
            shutil.copy(path, root / name / path.name)
        shutil.copy(made.root / f"{name if name in NAMES else 'chess'}.jsonl", root / f"{name}.jsonl")
    return Tasks(root)


def grown(tasks: Tasks, state: Path, *names: str, **options: Any) -> submerge.Continual:
    found = submerge.Continual.begin(state, tasks.base, **options)
    for name in names:
        found.add(*tasks.of(name))
    return found


def exported(state: submerge.Continual, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    return load_file(state.export(out, form="checkpoint", settings=ROOM, **options).out / "model.safetensors")


def recipe(tasks: Tasks, *names: str, **parameters: Any) -> dict[str, Any]:
    models = [{"model": tasks.of(name)[1], "data": tasks.of(name)[2]} for name in names]
    return {
        "merge_method": "many",
        "base_model": tasks.base,
        "models": models,
        "parameters": {"missing": "skip", **parameters},
    }


# --- the merge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options"),
    [(("law", "tales"), {}), (("law", "tales"), {"forget": 0.5}), (NAMES, {"missing": "zero", "scale": 2.0})],
)
def test_the_export_is_the_merge_of_the_same_folders(
    whole: Tasks, tmp_path: Path, names: tuple[str, ...], options: dict[str, Any]
) -> None:
    options = {"ridge": 0.1, **options}  # a small one lets show that moments of a recipe are of float32
    found = exported(grown(whole, tmp_path / "state", *names, **options), tmp_path / "out")
    submerge.merge(recipe(whole, *names, **options), tmp_path / "merged", settings=ROOM)
    wanted = load_file(tmp_path / "merged/model.safetensors")
    base = load_file(Path(whole.base) / "model.safetensors")
    maps = [name for name in base if name.endswith("_proj.weight")]
    for name in maps:
        off, update = found[name] - wanted[name], wanted[name] - base[name]
        assert off.norm() <= 1e-4 * update.norm(), f"{name}: {off.norm() / update.norm()}"
    loaded = copied(quiet_transformers().AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert all(torch.equal(loaded[name], found[name]) for name in found)


def test_what_is_no_linear_map_is_the_mean(whole: Tasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", whole.base)
    assert state.add(*whole.of("law")) == []
    (warning,) = state.add(*whole.of("chess"))
    again = tuned(whole.base, tmp_path / "again", 7, CHANGED["chess"])
    state.add("again", again, whole.of("chess")[2])
    assert "6 tensors of chess differ from the base's and are no linear maps" in warning
    assert state.record("chess").others == 6
    found = exported(state, tmp_path / "out")
    both = [load_file(folder / "model.safetensors") for folder in (whole.root / "chess", tmp_path / "again")]
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        torch.testing.assert_close(found[name], (both[0][name] + both[1][name]) / 2)


def test_that_mean_has_the_tasks_weights(whole: Tasks, tmp_path: Path) -> None:
    state = grown(whole, tmp_path / "state", "chess")
    again = tuned(whole.base, tmp_path / "again", 7, CHANGED["chess"])
    state.add("again", again, whole.of("chess")[2])
    found = exported(state, tmp_path / "out", weights={"chess": 3.0})
    one, other = (load_file(folder / "model.safetensors") for folder in (whole.root / "chess", Path(again)))
    name = "model.norm.weight"
    torch.testing.assert_close(found[name], 0.75 * one[name] + 0.25 * other[name])


def test_one_task_is_exported_as_it_was_trained(whole: Tasks, tmp_path: Path) -> None:
    found = exported(grown(whole, tmp_path / "state", "chess"), tmp_path / "out")
    same_state(found, load_file(whole.root / "chess/model.safetensors"), 1e-9)


def test_only_what_differs_is_kept(whole: Tasks, tmp_path: Path) -> None:
    state = grown(whole, tmp_path / "state", "poems")
    record = state.record("poems")
    own = load_file(whole.root / "poems/model.safetensors")
    changed = [tensor for name, tensor in own.items() if "up_proj" in name]
    assert (record.maps, record.others, record.rank) == (len(changed), 0, 0)
    assert record.weight_bytes == sum(tensor.nbytes for tensor in changed) == state.status().weight_bytes
    assert "full" in str(state.status())
    assert "weights of whole models" in str(state.status())


def test_adapters_beside_whole_models(whole: Tasks, made: Tasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", whole.base)
    state.add(*whole.of("law"))
    state.add("lora", *made.of("chess")[1:])
    found = exported(state, tmp_path / "out")
    mixed = recipe(whole, "law")
    mixed["models"].append({"model": made.of("chess")[1], "data": made.of("chess")[2]})
    submerge.merge(mixed, tmp_path / "merged", settings=ROOM)
    base = load_file(Path(whole.base) / "model.safetensors")
    wanted = load_file(tmp_path / "merged/model.safetensors")
    same_state({n: found[n] - base[n] for n in base}, {n: wanted[n] - base[n] for n in base}, 1e-4)


def test_an_adapter_of_whole_models_has_the_rank_that_is_asked_for(whole: Tasks, tmp_path: Path) -> None:
    import peft

    state = grown(whole, tmp_path / "state", "law", "chess")
    with pytest.raises(submerge.RequestError, match="whose updates have no low rank"):
        state.export(tmp_path / "none")
    report = state.export(tmp_path / "lora", rank=16)
    (warning,) = report.warnings
    assert "the adapter leaves them as the base's" in warning
    assert report.rank == 16
    assert report.error < 1e-6
    t = quiet_transformers()
    model = peft.PeftModel.from_pretrained(
        t.AutoModelForCausalLM.from_pretrained(whole.base), str(report.out)
    ).merge_and_unload()
    dense = exported(state, tmp_path / "dense")
    maps = [name for name in dense if name.endswith("_proj.weight")]
    same_state({n: copied(model)[n].double() for n in maps}, {n: dense[n] for n in maps}, 1e-5)
    assert state.export(tmp_path / "small", rank=2).error > 0.1
    cut = exported(state, tmp_path / "cut", rank=2)
    assert not torch.allclose(cut[maps[0]], dense[maps[0]])


def test_transposed_maps(tmp_path: Path) -> None:
    """GPT-2 stores its linear maps as [in, out]."""
    torch.manual_seed(0)
    MODELS["gpt2"](quiet_transformers()).save_pretrained(tmp_path / "base")
    one = tuned(tmp_path / "base", tmp_path / "one", 1, ("c_attn.weight", "c_fc.weight"))
    state = submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base"))
    state.add("one", one, [{"input_ids": torch.randint(64, (8, 12))}])
    same_state(exported(state, tmp_path / "out"), load_file(tmp_path / "one/model.safetensors"), 1e-5)


# --- any history ------------------------------------------------------------------------------------------


def test_order_and_removal(whole: Tasks, tmp_path: Path) -> None:
    def data(state: submerge.Continual, out: Path) -> bytes:
        return (state.export(out, form="checkpoint", settings=ROOM).out / "model.safetensors").read_bytes()

    never = grown(whole, tmp_path / "never", "chess", "poems")
    wanted = data(never, tmp_path / "wanted")
    for number, names in enumerate(itertools.islice(itertools.permutations(NAMES), 0, 6, 2)):
        state = grown(whole, tmp_path / f"s{number}", *names)
        state.remove("law")
        assert data(state, tmp_path / f"o{number}") == wanted
    one, other = grown(whole, tmp_path / "a", "poems"), grown(whole, tmp_path / "b", "chess")
    joined = submerge.Continual.join(tmp_path / "a", tmp_path / "b", tmp_path / "joined")
    assert data(joined, tmp_path / "c") == wanted
    assert (one.tasks, other.tasks) == (("poems",), ("chess",))


def test_a_state_of_adapters_is_of_the_version_before(whole: Tasks, tmp_path: Path) -> None:
    state = grown(whole, tmp_path / "state", "poems")
    assert json.loads((tmp_path / "state/state.json").read_text())["version"] == 3
    state.remove("poems")
    assert json.loads((tmp_path / "state/state.json").read_text())["version"] == 1


# --- models with images -----------------------------------------------------------------------------------


def test_a_whole_llava_has_its_projector_mixed(images: ImageTasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", images.base)
    kind = "LlavaForConditionalGeneration"
    for seed, name in enumerate(("birds", "cars")):
        model = tuned(images.base, tmp_path / name, seed, ("language_model.layers", PROJECTOR), kind)
        assert any("no linear maps" in warning for warning in state.add(name, model, batches(name)))
        projector = state.record(name).projector
        assert projector is not None
        assert projector.bytes > 0
    report = state.export(tmp_path / "out", form="checkpoint", settings=ROOM)
    assert report.projectors == 2
    model = submerge.load(report.out)
    for name in ("birds", "cars"):
        assert set(model(**batches(name)[0]).tasks) == {name}
    assert state.export(tmp_path / "lora", rank=4).projectors == 2
    assert state.export(tmp_path / "merged", form="checkpoint", projectors="merged").projectors == 0


def test_an_encoder_that_differs_is_refused(images: ImageTasks, tmp_path: Path) -> None:
    parts = ("q_proj",)  # of both towers
    model = tuned(images.base, tmp_path / "tuned", 1, parts, "LlavaForConditionalGeneration")
    state = submerge.Continual.begin(tmp_path / "state", images.base)
    with pytest.raises(submerge.RequestError, match="which has to stay the base's"):
        state.add("birds", model, batches("birds"))
    assert state.tasks == ()


# --- what is refused --------------------------------------------------------------------------------------


def test_models_that_are_no_fine_tunes_of_the_base(whole: Tasks, tmp_path: Path) -> None:
    t = quiet_transformers()
    state = grown(whole, tmp_path / "state", "poems")
    data = whole.of("law")[2]
    MODELS["gpt2"](t).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(submerge.RequestError, match="is another model than"):
        state.add("other", str(tmp_path / "gpt2"), data)
    config = t.AutoConfig.from_pretrained(whole.base)
    config.intermediate_size += 8
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    with pytest.raises(submerge.RequestError, match="have other shapes than the base's"):
        state.add("other", str(tmp_path / "wide"), data)
    config.intermediate_size -= 8
    config.num_hidden_layers = 1
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "short")
    with pytest.raises(submerge.RequestError, match=r"lacks model\.layers\.1"):
        state.add("other", str(tmp_path / "short"), data)
    with pytest.raises(submerge.RequestError, match="changes no linear map of the language model"):
        state.add("other", whole.base, data)
    assert state.tasks == ("poems",)


def test_an_output_that_exists_is_not_written_over(whole: Tasks, tmp_path: Path) -> None:
    state = grown(whole, tmp_path / "state", "poems")
    exported(state, tmp_path / "out")
    with pytest.raises(submerge.RequestError, match="the output exists and is not empty"):
        state.export(tmp_path / "out", form="checkpoint")
    exported(state, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "state"]


def test_a_checkpoint_that_cannot_be_written_is_refused_before_it_is_computed(
    whole: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = grown(whole, tmp_path / "state", "law")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear")
    monkeypatch.setattr("submerge.continual._export.write_adapter", None)  # so that it cannot be called
    for overwrite, told in {False: "not empty", True: "holds no model"}.items():
        with pytest.raises(submerge.RequestError, match=told):
            state.export(tmp_path / "out", form="checkpoint", overwrite=overwrite)
    assert (tmp_path / "out" / "diary.txt").read_text() == "dear"


def test_what_a_killed_export_left_is_removed(whole: Tasks, tmp_path: Path) -> None:
    """But not what another one is at, nor what is the user's."""
    state = grown(whole, tmp_path / "state", "law")
    left, used, own = (tmp_path / f"out.tasks-{name}" for name in ("left", "used", "own"))
    for folder in (left, used, own):
        (folder / "merged-tasks").mkdir(parents=True)
        (folder / LOCK).write_text("1")
    (own / "notes.txt").write_text("mine")
    with locked(used):
        exported(state, tmp_path / "out")
    assert not left.exists()
    assert {path.name for path in tmp_path.glob("out*")} == {"out", used.name, own.name}


def test_sums_are_of_adapters_alone(whole: Tasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", whole.base, keep="none")
    with pytest.raises(submerge.RequestError, match="has sums of adapters alone") as caught:
        state.add(*whole.of("law"))
    assert "submerge extract-lora" in str(caught.value)


def test_a_damaged_weight_is_told(whole: Tasks, tmp_path: Path) -> None:
    state = grown(whole, tmp_path / "state", "poems")
    (file,) = (tmp_path / "state/tasks").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(submerge.RequestError, match="its content is not what was written"):
        state.export(tmp_path / "out", form="checkpoint")
    assert not list(tmp_path.glob("out.tasks-*"))


def test_tied_embeddings_stay_tied(made: Tasks, tmp_path: Path) -> None:
    t = quiet_transformers()
    shutil.copytree(made.base, tmp_path / "base")
    config = t.AutoConfig.from_pretrained(made.base)
    config.tie_word_embeddings = True
    t.LlamaForCausalLM(config).double().save_pretrained(tmp_path / "base")
    task = tuned(tmp_path / "base", tmp_path / "task", 1, ("embed_tokens", "q_proj.weight"))
    state = submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base"))
    state.add("task", task, made.of("law")[2])
    found = exported(state, tmp_path / "out")
    assert "lm_head.weight" not in found
    same_state(found, load_file(tmp_path / "task/model.safetensors"), 1e-9)
    model = t.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
