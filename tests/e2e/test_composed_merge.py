"""Composed models: the language model is the merge of the language models, and the bank has the streams."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import submerge
from _cli import cli
from _models import ROOM
from _specialists import ROWS, TEXT, Specialists, State, make_specialists, quiet
from submerge.engine.output import describe, explain
from submerge.errors import RequestError, WorkError
from submerge.store import Manifest

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TABLES = ("lm_head.weight", "model.embed_tokens.weight")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Specialists:
    specialists = make_specialists(tmp_path_factory.mktemp("specialists"))
    specialists.adapt("vision", "vision-lora", 1)
    specialists.adapt("hearing", "hearing-language", 2, r=3, target_modules=r".*language_model.*q_proj")
    specialists.adapt("hearing", "hearing-audio", 3, target_modules=r".*language_model.*(?:k|o)_proj")
    specialists.tune("vision", "vision-tuned", 4)
    specialists.tune("hearing", "hearing-tuned", 5)
    return specialists


def merged(made: Specialists, out: Path, method: str, *entries: dict[str, Any], **more: Any) -> State:
    """Return the language model of the merge's output, after the folder was found to be sound."""
    submerge.merge(made.recipe(method, *entries, **more), out, settings=ROOM)
    report = submerge.verify(out)
    assert report.sound, report.problems
    assert report.loaded == "LlamaForCausalLM"
    return load_file(out / "model.safetensors")


def stream(out: Path, number: int, made: Specialists) -> State:
    """Return the parameters of a stream, by the bank's reading rule."""
    bank, text = load_file(out / "bank.safetensors"), load_file(out / "model.safetensors")
    return {name: _of_stream(bank, number, name, text[name]) for name in text if name not in TABLES}


def _of_stream(bank: State, number: int, name: str, text: torch.Tensor) -> torch.Tensor:
    own = f"streams.{number}.{name}"
    if f"{own}.values" in bank:
        return bank[f"{own}.values"]
    base = bank.get(f"base.{name}")
    if base is None and f"merged.{name}.left" in bank:
        base = text - bank[f"merged.{name}.left"] @ bank[f"merged.{name}.right"]
    base = text if base is None else base
    return base + bank[f"{own}.left"] @ bank[f"{own}.right"] if f"{own}.left" in bank else base


def same(actual: State, expected: State) -> None:
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], **CLOSE)


def without_tables(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in TABLES}


def base_state(made: Specialists) -> State:
    return load_file(made.path("base") / "model.safetensors")


def plain_merge(made: Specialists, method: str, languages: list[State], **options: Any) -> State:
    layers, base = [without_tables(state) for state in languages], without_tables(base_state(made))
    return submerge.merge_state_dicts(layers, base=base, method=method, **options)


METHODS: dict[str, dict[str, Any]] = {
    "ties": {"weight": 0.5, "density": 0.5},
    "ssam": {"rank": 2, "scale": "auto"},
    "task_arithmetic": {"weight": 0.5},
    "linear": {"weight": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
def test_tuned_language_models(made: Specialists, method: str, tmp_path: Path) -> None:
    entries = [made.entry("vision-tuned", "image"), made.entry("hearing-tuned", "audio")]
    out = tmp_path / "out"
    text = merged(made, out, method, *entries, parameters=METHODS[method])
    own = [made.language(dict(made.load(name).state_dict())) for name in ("vision-tuned", "hearing-tuned")]
    expected = plain_merge(made, method, own, **METHODS[method])
    assert all(torch.equal(text[name], expected[name]) for name in text if name not in TABLES)
    for number, language in enumerate(own):
        same(stream(out, number, made), language)


@pytest.mark.parametrize("method", METHODS)
def test_adapters(made: Specialists, method: str, tmp_path: Path) -> None:
    entries = [
        made.entry("vision", "image", lora="vision-lora"),
        made.entry("hearing", "audio", language_lora="hearing-language", modality_lora="hearing-audio"),
    ]
    out = tmp_path / "out"
    text = merged(made, out, method, *entries, parameters=METHODS[method])
    vision = made.language(made.adapted("vision", "vision-lora"))
    hearing = made.language(made.adapted("hearing", "hearing-language"))
    same(without_tables(text), plain_merge(made, method, [vision, hearing], **METHODS[method]))
    same(stream(out, 0, made), vision)
    same(stream(out, 1, made), made.language(made.adapted("hearing", "hearing-audio")))
    bank = load_file(out / "bank.safetensors")
    q = "model.layers.0.self_attn.q_proj.weight"
    assert bank[f"streams.0.{q}.left"].shape == (16, 2)
    assert f"streams.1.{q}.left" not in bank
    assert (f"merged.{q}.left" in bank) == (method != "ties")
    assert (f"base.{q}" in bank) == (method == "ties")


def same_modules(out: Path, number: int, expected: State) -> None:
    """Check a specialist's own modules in the bank; there must be some."""
    prefix, bank = f"modules.{number}.", load_file(out / "bank.safetensors")
    own = {name.removeprefix(prefix): tensor for name, tensor in bank.items() if name.startswith(prefix)}
    assert own
    for name, tensor in own.items():
        (match,) = [other for other in expected if other in (name, f"model.{name}")]
        torch.testing.assert_close(tensor, expected[match], **CLOSE)


ONE: dict[str, Any] = {"parameters": {"weight": 1.0}}


@pytest.mark.parametrize(
    "apart", [("language_lora", "modality_lora"), ("language_lora",), ("modality_lora",)]
)
def test_adapters_of_a_tuned_language_model(
    made: Specialists, apart: tuple[str, ...], tmp_path: Path
) -> None:
    """Tokens of the modality run with the specialist's own language model, under their adapter."""
    loras = {"language_lora": "hearing-language", "modality_lora": "hearing-audio"}
    entry = made.entry("hearing-tuned", "audio", **{key: loras[key] for key in apart})
    out = tmp_path / "out"
    text = merged(made, out, "task_arithmetic", entry, **ONE)
    whole = dict(made.load("hearing-tuned").state_dict())
    states = {key: made.adapted("hearing-tuned", loras[key]) if key in apart else whole for key in loras}
    same(without_tables(text), without_tables(made.language(states["language_lora"])))
    same(stream(out, 0, made), made.language(states["modality_lora"]))


@pytest.mark.parametrize("key", ["lora", "modality_lora"])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*(?:q_proj|linear_1|fc1)"},
        {"modules_to_save": ["multi_modal_projector"]},
        {"use_dora": True},
        {"bias": "lora_only", "target_modules": r".*vision_tower.*q_proj"},
    ],
    ids=["encoder", "saved", "dora", "bias"],
)
def test_adapters_beyond_the_language_model(
    made: Specialists, key: str, options: dict[str, Any], tmp_path: Path
) -> None:
    made.adapt("vision", str(tmp_path / "lora"), 6, **options)
    out = tmp_path / "out"
    entry = {"model": str(made.path("vision")), "modality": "image", key: str(tmp_path / "lora")}
    merged(made, out, "task_arithmetic", entry, **ONE)
    expected = made.adapted("vision", str(tmp_path / "lora"))
    same(stream(out, 0, made), made.language(expected))
    same_modules(out, 0, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_that_saves_the_embedding_alone(tied: bool, tmp_path: Path) -> None:
    """It is the language model's under both names of its files, and the head that it is tied to is not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = make_specialists(tmp_path)
    with quiet():
        LlamaForCausalLM(LlamaConfig(**TEXT | {"tie_word_embeddings": tied})).save_pretrained(
            tmp_path / "base"
        )
        vision = made.load("vision")
        vision.config.text_config.tie_word_embeddings = vision.config.tie_word_embeddings = tied
        vision.tie_weights()
        vision.save_pretrained(tmp_path / "vision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that the two are no longer tied
        made.adapt("vision", "lora", 8, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    changed = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    (name,) = [key for key in changed if "embed_tokens" in key]
    saved = changed[name]
    changed[name] = saved + 1
    save_file(changed, tmp_path / "lora" / "adapter_model.safetensors")
    out = tmp_path / "out"
    text = merged(made, out, "task_arithmetic", made.entry("vision", "image", lora="lora"), **ONE)
    rows = text["model.embed_tokens.weight"]
    torch.testing.assert_close(rows, saved[: len(rows)] + 1, **CLOSE)
    before = vision.lm_head.weight.detach()
    torch.testing.assert_close(text["lm_head.weight"], before[: len(rows)], **CLOSE)
    assert not [key for key in load_file(out / "bank.safetensors") if "embed_tokens" in key]


def test_an_adapter_of_the_language_model_alone(made: Specialists, tmp_path: Path) -> None:
    made.adapt("base", str(tmp_path / "lora"), 7, target_modules=["q_proj", "down_proj"])
    out = tmp_path / "out"
    entry = made.entry("vision", "image") | {"lora": str(tmp_path / "lora")}
    text = merged(made, out, "task_arithmetic", entry, **ONE)
    expected = without_tables(made.adapted("base", str(tmp_path / "lora")))
    same(without_tables(text), expected)
    same(stream(out, 0, made), expected)


@pytest.mark.parametrize("inside", [True, False])
def test_adapters_that_peft_saved_in_subfolders(made: Specialists, inside: bool, tmp_path: Path) -> None:
    folder = tmp_path / "specialist"
    if inside:
        shutil.copytree(made.path("hearing"), folder)
    for name, adapter in {"language": "hearing-language", "audio": "hearing-audio"}.items():
        shutil.copytree(made.path(adapter), folder / name)
    plan = submerge.plan(
        made.recipe("task_arithmetic", {"model": str(folder), "modality": "audio"}, **ONE), ROOM
    )
    (own,) = plan.inputs.specialists
    assert own.decoupled
    assert plan.models[own.model].adapter is not None
    assert plan.models[own.model].adapter.rank == 3
    assert own.stream is not None
    assert plan.models[own.stream].adapter.rank == 2


def test_merged_modality_tokens_need_no_streams(made: Specialists, tmp_path: Path) -> None:
    entries = [made.entry("vision-tuned", "image"), made.entry("hearing-tuned", "audio")]
    recipe = made.recipe("task_arithmetic", *entries, modality_tokens="merged", **ONE)
    assert "none: all tokens run with the merged model" in repr(submerge.plan(recipe, ROOM))
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    bank = load_file(tmp_path / "out" / "bank.safetensors")
    assert {name.partition(".")[0] for name in bank} == {"modules"}
    gate = Manifest.read(tmp_path / "out").gate
    assert gate is not None
    assert gate.settings == {"modality_tokens": "merged"}


def test_an_unchanged_language_model_needs_no_streams(made: Specialists, tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [made.entry("vision", "image"), made.entry("hearing", "audio")]
    text = merged(made, out, "ties", *entries, parameters=METHODS["ties"])
    assert all(torch.equal(text[name], value) for name, value in without_tables(base_state(made)).items())
    assert all(name.startswith("modules.") for name in load_file(out / "bank.safetensors"))


def test_what_the_folder_says_of_its_specialists(made: Specialists, tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [made.entry("vision", "image"), made.entry("hearing", "audio", placeholder="<sound>")]
    submerge.merge(made.recipe("task_arithmetic", *entries, **ONE), out, settings=ROOM)
    gate = Manifest.read(out).gate
    assert gate is not None
    assert gate.method == "modality"
    assert [(task["name"], task["kind"], task["placeholder"]) for task in gate.tasks] == [
        ("image", "image", "<image>"),
        ("audio", "audio", "<sound>"),
    ]
    assert [task["placeholder_id"] for task in gate.tasks] == [64, 65]
    assert gate.tasks[1]["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    assert "`LlavaForConditionalGeneration`" in (out / "README.md").read_text()
    config = json.loads((out / "modalities" / "audio" / "config.json").read_text())
    assert config["audio_token_index"] == 65
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 66


def test_a_composed_model_as_an_input_is_its_language_model(made: Specialists, tmp_path: Path) -> None:
    text = merged(made, tmp_path / "out", "task_arithmetic", made.entry("vision-tuned", "image"), **ONE)
    again = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "out")}]}
    report = submerge.merge(again, tmp_path / "again", settings=ROOM)
    (warning,) = report.warnings
    assert warning.endswith("its gate and bank.safetensors are left out: what is merged is the checkpoint "
                            "beside them")  # fmt: skip
    same(load_file(tmp_path / "again" / "model.safetensors"), text)
    assert not (tmp_path / "again" / "modalities").exists()


def test_bytes_do_not_depend_on_threads_nor_on_a_stop(
    made: Specialists, tmp_path: Path, tiny_chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_chunks()
    entries = [made.entry("vision", "image", lora="vision-lora"), made.entry("hearing-tuned", "audio")]
    recipe = made.recipe("ssam", *entries, parameters=METHODS["ssam"])
    for threads in (1, 3):
        settings = replace(ROOM, threads=threads)
        submerge.merge(recipe, tmp_path / f"out{threads}", settings=settings)
    with monkeypatch.context() as patched:
        patched.setattr("submerge.engine.output._checkpoint_target.composed_bank", _stopped)
        with pytest.raises(KeyboardInterrupt):
            submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True)
    assert report.resumed
    for file in ("model.safetensors", "bank.safetensors", "submerge.json"):
        expected = (tmp_path / "out1" / file).read_bytes()
        assert (tmp_path / "out3" / file).read_bytes() == expected
        assert (tmp_path / "out" / file).read_bytes() == expected


def _stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_damaged_bank_is_detected(made: Specialists, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged(made, out, "task_arithmetic", made.entry("vision-tuned", "image"), **ONE)
    with (out / "bank.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01\x02")
    report = submerge.verify(out, load=False)
    assert any("bank.safetensors" in problem for problem in report.problems)


def test_damaged_files_of_a_modality_are_detected(made: Specialists, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged(made, out, "task_arithmetic", made.entry("vision", "image"), **ONE)
    config, processor = (
        out / "modalities" / "image" / name for name in ("config.json", "preprocessor_config.json")
    )
    processor.write_text("{")
    told = submerge.verify(out, load=False).problems
    assert [str(processor) in problem for problem in told] == [True]
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"image_token_id": 3, "image_token_index": 3}))
    assert any("its image token is not" in problem for problem in submerge.verify(out, load=False).problems)
    config.write_text("[]")
    assert any(str(config) in problem for problem in submerge.verify(out, load=False).problems)
    with pytest.raises(RequestError, match="cannot be made"):
        submerge.load(out)
    config.unlink()
    assert any(str(config) in problem for problem in submerge.verify(out, load=False).problems)


@pytest.mark.parametrize("place", [".", "modalities/image"])
def test_a_missing_tokenizer_is_detected(made: Specialists, place: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged(made, out, "task_arithmetic", made.entry("vision", "image"), **ONE)
    (out / place / "tokenizer.json").unlink()
    (told,) = submerge.verify(out, load=False).problems
    assert told == f"{out / place}: there is no tokenizer here"


def test_configurations_without_architectures(made: Specialists, tmp_path: Path) -> None:
    """The type of a specialist's configuration says its class, and the base is a causal language model."""
    for name in ("base", "vision-tuned"):
        shutil.copytree(made.path(name), tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        del config["architectures"]
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    entry, out = Specialists(tmp_path).entry("vision-tuned", "image"), tmp_path / "out"
    submerge.merge(Specialists(tmp_path).recipe("task_arithmetic", entry, **ONE), out, settings=ROOM)
    assert type(submerge.load(out)).__mro__[1].__name__ == "LlamaForCausalLM"
    config = json.loads((tmp_path / "vision-tuned" / "config.json").read_text())
    (tmp_path / "vision-tuned" / "config.json").write_text(json.dumps(config | {"model_type": "no-type"}))
    with pytest.raises(RequestError, match="which class of transformers it is"):
        submerge.plan(Specialists(tmp_path).recipe("task_arithmetic", entry, **ONE))


def test_specialists_of_another_base(made: Specialists, tmp_path: Path) -> None:
    """Shapes alone do not show it; of another width they are refused by that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    entry = made.entry("vision-tuned", "image")
    assert not submerge.plan(made.recipe("task_arithmetic", entry, **ONE)).warnings
    for name, more in (("other", {}), ("wide", {"hidden_size": 32})):
        shutil.copytree(made.path("base"), tmp_path / name)
        torch.manual_seed(9)
        with quiet():
            LlamaForCausalLM(LlamaConfig(**TEXT | more)).save_pretrained(tmp_path / name)
    recipe = made.recipe("task_arithmetic", entry, **ONE)
    (warning,) = submerge.plan(recipe | {"base_model": str(tmp_path / "other")}).warnings
    assert "has nothing in common with" in warning
    with pytest.raises(RequestError, match=r"is \[16\] here, and \[32\] in"):
        submerge.plan(recipe | {"base_model": str(tmp_path / "wide")})


def test_a_placeholder_without_its_token_is_told(made: Specialists) -> None:
    entry = made.entry("vision", "image") | {"placeholder": "a picture"}
    (warning,) = submerge.plan(made.recipe("task_arithmetic", entry, **ONE)).warnings
    assert warning == "image: placeholder 'a picture' has no '<image>': load_processor refuses it"


def test_a_placeholder_with_its_token_twice_is_told(made: Specialists) -> None:
    entry = made.entry("vision", "image", placeholder="<image><image>")
    (warning,) = submerge.plan(made.recipe("task_arithmetic", entry, **ONE)).warnings
    assert warning == "image: placeholder '<image><image>' has 2 '<image>': load_processor refuses it"


@pytest.mark.parametrize(("id_", "token"), [(7, "w7"), (2, "</s>")])
def test_a_placeholder_that_texts_have_is_told(
    made: Specialists, id_: int, token: str, tmp_path: Path
) -> None:
    """An ordinary word, or what ends a text: every one of them would be taken for an image."""
    vision = _with_config(made, tmp_path, image_token_index=id_)
    (warning,) = submerge.plan(made.recipe("task_arithmetic", vision, **ONE)).warnings
    assert warning.startswith(f"image: its placeholder {token!r} ({id_}) is a token of texts, too")


def test_a_placeholder_of_another_kind_without_its_token(made: Specialists, tmp_path: Path) -> None:
    """It has a name of its own, and not that of the modality's."""
    vision = _with_config(made, tmp_path, video_token_id=ROWS + 1)
    (warning,) = submerge.plan(made.recipe("task_arithmetic", vision, **ONE)).warnings
    assert warning == "image: no tokenizer names its token 65 (video): it is called '<video>'"


def _with_config(made: Specialists, folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the entry of a copy of `vision` with another configuration."""
    shutil.copytree(made.path("vision"), folder / "vision")
    path = folder / "vision" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return {"model": str(folder / "vision"), "modality": "image"}


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ssam"])
@pytest.mark.parametrize("modality_tokens", ["own", "merged"])
def test_the_banks_size_is_planned(
    made: Specialists, method: str, modality_tokens: str, tmp_path: Path
) -> None:
    """Within a twentieth: parameters that specialists leave as they are take nothing."""
    hearing = made.entry("hearing", "audio", language_lora="hearing-language")
    own = made.entry("hearing", "audio", language_lora="hearing-language", modality_lora="hearing-audio")
    more = {"parameters": METHODS[method], "modality_tokens": modality_tokens}
    sets = [
        [made.entry("vision-tuned", "image"), made.entry("hearing-tuned", "audio")],
        [made.entry("vision", "image", lora="vision-lora"), hearing if modality_tokens == "merged" else own],
        [made.entry("vision", "image"), hearing],
    ]
    for number, entries in enumerate(sets):
        out, recipe = tmp_path / str(number), made.recipe(method, *entries, **more)
        planned = describe(submerge.plan(recipe, ROOM))["bank"]["most"]
        submerge.merge(recipe, out, settings=ROOM)
        held = sum(tensor.nbytes for tensor in load_file(out / "bank.safetensors").values())
        assert held <= planned <= 1.05 * held, number


def test_what_each_stream_runs_with_is_explained(made: Specialists) -> None:
    entries = [
        made.entry("vision-tuned", "image"),
        made.entry("hearing", "audio", language_lora="hearing-language", modality_lora="hearing-audio"),
    ]
    plan = submerge.plan(made.recipe("task_arithmetic", *entries, **ONE), ROOM)

    def streams(name: str) -> list[str]:
        (told,) = explain(plan, name)
        return [f"{each['modality']}: {each['runs_with']}" for each in told["streams"]]

    vision, hearing = (str(made.path(name)) for name in ("vision-tuned", "hearing"))
    adapter = made.path("hearing-audio")
    assert streams("layers.0.self_attn.k_proj") == [
        f"image: values of {vision}",
        f"audio: the base's values with {adapter}, rank 2",
    ]
    assert streams("layers.0.self_attn.q_proj")[1] == "audio: the base's values"
    assert streams("embed_tokens") == []
    (made.root / "both.yaml").write_text(yaml.safe_dump(made.recipe("task_arithmetic", *entries, **ONE)))
    told = cli("explain", made.root / "both.yaml", "--tensor", "layers.0.self_attn.k_proj").out
    assert f"audio  runs with the base's values with {adapter}, rank 2 (192 B in the bank)" in told
    told = cli("explain", made.root / "both.yaml", "--tensor", "embed_tokens").out
    assert "streams  none: all tokens run with what is written" in told
    assert hearing not in str(streams("layers.0.self_attn.q_proj"))


@pytest.mark.parametrize("how", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_tables_that_an_adapter_of_a_modality_changes_are_told(
    made: Specialists, how: dict[str, Any], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, that it saves the table
        made.adapt("vision", str(tmp_path / "adapter"), 6, **how)
    entry = {"language_lora": str(made.path("vision-lora")), "modality_lora": str(tmp_path / "adapter")}
    recipe = made.recipe("task_arithmetic", made.entry("vision", "image") | entry, **ONE)
    (warning,) = submerge.plan(recipe, ROOM).warnings
    assert "lm_head.weight, which is left out: all tokens have the merged embeddings and head" in warning


def test_what_tokens_run_with_others_than_in_training_is_told(made: Specialists) -> None:
    entry = made.entry("hearing", "audio", language_lora="hearing-language")
    recipe = made.recipe("task_arithmetic", entry, **ONE)
    assert not submerge.plan(recipe).warnings
    (warning,) = submerge.plan(recipe | {"modality_tokens": "merged"}).warnings
    assert (
        warning == "audio: its tokens were trained with the base's parameters, and run with the merged ones"
    )


def test_another_kind_of_inputs_than_the_modality_says_is_told(made: Specialists) -> None:
    (warning,) = submerge.plan(made.recipe("task_arithmetic", made.entry("vision", "audio"), **ONE)).warnings
    assert warning.startswith("audio: its configuration has a placeholder of the kind image")
    assert not submerge.plan(made.recipe("task_arithmetic", made.entry("vision", "depth"), **ONE)).warnings


def test_tables_are_told_by_their_tokens(made: Specialists) -> None:
    plan = submerge.plan(made.recipe("task_arithmetic", made.entry("vision", "image"), **ONE))
    assert plan.inputs.reference_model.renamed.startswith("a row for each shared token in lm_head.weight")


@pytest.mark.parametrize("where", ["vision_tower", "multi_modal_projector", "modality_lora"])
def test_nan_where_the_merge_reads_nothing(made: Specialists, where: str, tmp_path: Path) -> None:
    """A specialist's own modules, and what its stream has, are checked as merged tensors are."""
    own, allowing = Specialists(tmp_path), replace(ROOM, allow_nonfinite=True)
    entry = made.entry("vision", "image")
    folder = own.path("damaged")
    if where == "modality_lora":
        entry["modality_lora"] = str(shutil.copytree(made.path("vision-lora"), folder))
    else:
        entry["model"] = str(shutil.copytree(made.path("vision"), folder))
    (file,) = folder.glob("*model.safetensors")
    state = load_file(file)
    name = next(n for n in state if where in n or where == "modality_lora")
    state[name].view(-1)[0] = float("nan")
    save_file(state, file)
    recipe = made.recipe("task_arithmetic", entry, **ONE)
    with pytest.raises(WorkError, match=r"NaN or Inf in 1 tensor(.|\n)* 1 in .*damaged"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    report = submerge.merge(recipe, tmp_path / "out", settings=allowing, resume=True)
    ((_, counts),) = report.nonfinite.items()
    assert list(counts.values()) == [1]
    assert submerge.verify(tmp_path / "out").sound
