"""The suite multimodal-3: its questions, its decoupled training, and a run with tiny random models."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("PIL")
pytest.importorskip("psutil")

from benchmarks.replication import __main__ as command
from benchmarks.replication import cache as store
from benchmarks.replication.multimodal import abilities, inputs, own, unions, whisper
from benchmarks.replication.multimodal.decoupled import LANGUAGE, Decoupled, DecoupledTraining
from benchmarks.replication.multimodal.plots import draw
from benchmarks.replication.multimodal.probes import PROBES, groups, without
from benchmarks.replication.multimodal.questions import KINDS, SHARED, SKILLS, draw_joint, draw_rows
from benchmarks.replication.multimodal.reader import ModalityReader, PromptRow
from benchmarks.replication.multimodal.report import REFERENCES
from benchmarks.replication.multimodal.rows import SSAM_RANKS, merges
from benchmarks.replication.multimodal.suite import MULTIMODAL_3
from benchmarks.replication.multimodal.training import train

from _tiny_multimodal import put_bases, write_encoder, write_language_model

SENTENCE = """bird dog frog yes no user assistant Which digit is What plus Are and the same larger or one
animal a follows precedes"""
WORDS = (*"0123456789AB:?,.", *SENTENCE.split())
TINY = DecoupledTraining(steps=2, batch=2, rank=2, alpha=4, align_steps=2, align_batch=4)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("llama"), WORDS)


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def models(lm: Path, eyes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Return modality -> a folder of its model with a new projector, the encoder of sounds being random."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        _random_whisper(patch)
        unions.write_image_model(lm, eyes, root / "image")
        unions.write_audio_model(lm, eyes, root / "audio")
        yield {name: root / name for name in unions.WRITERS}


def _random_whisper(patch: pytest.MonkeyPatch) -> None:
    from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig

    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    patch.setattr(whisper, "CONFIG", sizes | {"num_mel_bins": 80})

    def state(positions: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = Qwen2AudioEncoderConfig(**whisper.CONFIG, max_source_positions=positions)
        return dict(Qwen2AudioEncoder(config).state_dict())

    patch.setattr(whisper, "encoder_state", state)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data in the form of the real ones: random pictures and sounds."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    digits, names = np.arange(7100) % 10, np.array(["cat", "dog", "bird", "frog"])

    def pictures(name: str, file: str, shape: tuple[int, ...], counts: dict[str, int], **more: Any) -> None:
        values = {f"x_{part}": draw.integers(0, 256, (n, *shape), np.uint8) for part, n in counts.items()}
        values |= {f"y_{part}": (np.arange(n) % 10).astype(np.uint8) for part, n in counts.items()}
        (root / name).mkdir()
        np.savez(root / name / file, **values, **more)

    pictures("mnist", "mnist_t10k.npz", (28, 28), {"train": 7100, "test": 40})
    classes = np.array(["airplane", "cat", "bird", "deer", "dog", "frog", "car", "horse", "ship", "truck"])
    pictures("cifar10", "cifar10.npz", (32, 32, 3), {"train": 240, "test": 40}, classes=classes)
    sounds = 200
    pcm = draw.integers(-9000, 9000, 800 * sounds).astype(np.int16)
    common = {"pcm": pcm, "offsets": 800 * np.arange(sounds + 1)}
    for name in ("fsdd", "animals", "text/arc_easy"):
        (root / name).mkdir(parents=True)
    np.savez(root / "fsdd" / "fsdd8k.npz", digit=digits[:sounds], index=np.arange(sounds) // 10, **common)
    label, number = np.arange(sounds) % 4, 1 + np.arange(sounds) // 4
    np.savez(root / "animals" / "animals8k.npz", label=label, number=number, classes=names, **common)
    lines = [{"p": "Which is larger ?", "choices": list("135"), "key": i % 3} for i in range(9)]
    text = "\n".join(map(json.dumps, lines))
    (root / "text" / "arc_easy" / "test.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return root


@pytest.fixture(scope="module")
def sets(data: Path) -> dict[str, inputs.Sets]:
    return inputs.read(data)


def _rows(sets: dict[str, inputs.Sets], modality: str, count: int = 9) -> list[PromptRow]:
    draw = np.random.default_rng(0)
    return draw_rows(sets, modality, "train", [*SHARED, SKILLS[modality]], count, draw)


def test_parts_share_no_input(sets: dict[str, inputs.Sets]) -> None:
    for kinds in sets.values():
        for parts in kinds.values():
            held = [{one.tobytes() for one in parts[part].inputs} for part in inputs.PARTS]
            assert all(held)
            assert len(set.union(*held)) == sum(map(len, held))


def test_a_sound_at_twice_the_rate_has_the_same_tones() -> None:
    time = np.arange(800) / 8000
    sound = inputs._sound((8000 * np.sin(2 * np.pi * 500 * time)).astype(np.int16))
    wanted = 8000 / 32768 * np.sin(2 * np.pi * 500 * np.arange(1600) / 16000)
    np.testing.assert_allclose(sound, wanted, atol=1e-3)


def test_the_answer_follows_from_the_words() -> None:
    assert KINDS["sum"].answer(("3", "4")) == "7"
    assert KINDS["larger"].answer(("3", "4")) == "4"
    assert [KINDS["same"].answer(words) for words in (("3", "3"), ("3", "4"))] == ["yes", "no"]
    assert [KINDS["bird"].answer(words) for words in (("bird", "dog"), ("dog", "bird"))] == ["A", "B"]


def test_a_joint_question_has_an_input_of_each_modality_in_its_place(sets: dict[str, inputs.Sets]) -> None:
    rows = draw_joint(sets, "sum", "test", 8, np.random.default_rng(0))
    orders = {tuple(row.inputs) for row in rows}
    assert orders == {("image", "audio"), ("audio", "image")}
    for row in rows:
        places = [row.prompt.index(unions.PLACEHOLDERS[name]) for name in row.inputs]
        assert places == sorted(places)
        (alone,) = without([row], "audio")
        assert "<image>" not in alone.prompt
        assert list(alone.inputs) == ["audio"]


def test_items_are_the_same_whenever_they_are_drawn(sets: dict[str, inputs.Sets]) -> None:
    for probe in PROBES:
        first, second = (probe.items(sets, "test", 4) for _ in range(2))
        assert [row.prompt for row in first] == [row.prompt for row in second]
    means = groups({probe.name: 0.5 for probe in PROBES})
    assert means["mean"] == 0.5


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_new_adapters_leave_the_model_as_it_is(
    models: dict[str, Path], sets: dict[str, inputs.Sets], modality: str
) -> None:
    """The pass on cached features gives what the model's own forward gives."""
    reader = ModalityReader(models[modality], modality)
    rows = _rows(sets, modality)
    (both,) = (row for row in rows if len(row.inputs[modality]) == 2)
    encoded = reader.encode([both])
    given = {"image": "images", "audio": "audio"}[modality]
    more = {"sampling_rate": inputs.RATE} if modality == "audio" else {}
    batch = reader.processor(
        text=[both.prompt], **{given: list(both.inputs[modality])}, return_tensors="pt", **more
    )
    with torch.no_grad():
        wanted = reader.model(**batch).logits
        decoupled = Decoupled([reader], TINY)
        found = decoupled.head(decoupled.hidden(encoded, [encoded[0].ids]))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_each_adapter_acts_on_its_own_tokens(models: dict[str, Path], sets: dict[str, inputs.Sets]) -> None:
    reader = ModalityReader(models["image"], "image")
    (row,) = reader.encode(_rows(sets, "image", 1))
    decoupled = Decoupled([reader], TINY)
    first = row.ids.index(reader.placeholder)
    with torch.no_grad():
        before = decoupled.hidden([row], [row.ids])
        _noise(decoupled, "image")
        modality = decoupled.hidden([row], [row.ids])
        _noise(decoupled, LANGUAGE)
        language = decoupled.hidden([row], [row.ids])
    torch.testing.assert_close(modality[:, :first], before[:, :first])
    assert not torch.allclose(modality[:, first:], before[:, first:])
    assert not torch.allclose(language[:, :first], before[:, :first])


def _noise(decoupled: Decoupled, name: str) -> None:
    for key, weight in decoupled.adapted.named_parameters():
        if f"lora_B.{name}" in key:
            weight.normal_()


def test_a_specialist_is_a_folder_of_its_class_with_two_adapters(
    models: dict[str, Path], sets: dict[str, inputs.Sets], tmp_path: Path
) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    rows = _rows(sets, "image")
    losses = train({"image": models["image"]}, rows, tmp_path / "out", TINY, 0)
    assert len(losses) == 2
    before, after = (
        LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
        for folder in (models["image"], tmp_path / "out")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}
    AutoProcessor.from_pretrained(tmp_path / "out")
    for name in (LANGUAGE, "image"):
        config = json.loads((tmp_path / "out" / name / "adapter_config.json").read_text())
        assert config["r"] == 2
    reader = ModalityReader(tmp_path / "out", "image")
    decoupled = Decoupled([reader], TINY, tmp_path / "out")
    weights = dict(decoupled.adapted.named_parameters())
    assert any(value.any() for key, value in weights.items() if "lora_B.image" in key)
    assert len(decoupled.first_tokens(reader.encode(rows))) == len(rows)


def test_the_joint_model_shares_one_language_model(
    models: dict[str, Path], sets: dict[str, inputs.Sets], tmp_path: Path
) -> None:
    rows = [*_rows(sets, "image", 2), *_rows(sets, "audio", 2)]
    train(models, rows, tmp_path / "out", TINY, 0)
    written = {path.parent.name for path in (tmp_path / "out").glob("*/adapter_config.json")}
    assert written == {LANGUAGE, "image", "audio"}
    for name in models:
        ModalityReader(tmp_path / "out" / f"model-{name}", name)


def test_rows_of_ones_own_are_trained_on(models: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.png")
    line = {"prompt": "A : <image> Which animal is A ?", "inputs": ["black.png"], "answer": "dog"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
    arguments = [str(models["image"]), "image", str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    assert own.main([*arguments, "--steps", "1", "--batch", "2", "--rank", "2"]) == 0
    assert (tmp_path / "out" / "image" / "adapter_model.safetensors").exists()


def test_the_likeliest_answer_is_the_one_of_the_model(lm: Path, data: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(lm), AutoTokenizer.from_pretrained(lm)
    items = abilities.read(data, 3)
    assert len(items) == 3
    scores = abilities.scores(model.eval(), tokenizer, items)
    ids = tokenizer("Question: Which is larger ?\nAnswer:").input_ids
    with torch.no_grad():
        spread = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    right = [float(spread[tokenizer(word).input_ids[0]]) for word in "135"]
    assert scores["likelihood"] == pytest.approx(sum(right) / 3, abs=1e-5)


def test_scores_are_drawn_along_scale_and_rank(tmp_path: Path) -> None:
    from matplotlib.image import imread

    group = {"mean": 0.5, "joint": 0.4}

    def row(shift: float, *scales: str) -> dict[str, Any]:
        found = {name: value + shift for name, value in group.items()}
        return {"groups": found, **({"curve": dict.fromkeys(scales, found)} if scales else {})}

    rows = {name: row(rank / 100, "0.5", "1.0") for name, rank in SSAM_RANKS.items()}
    rows |= {"average": row(0.1), "ties": row(0.2, "1.0"), "no language LoRA": row(0.0)}
    seeds = {"0": rows, "1": {**rows, "ties": row(0.3, "1.5")}}
    drawn = draw({"seeds": seeds}, tmp_path, "fake")
    assert [path.name for path in drawn] == ["fake-scale.png", "fake-rank.png"]
    assert all(imread(path).std() > 0 for path in drawn)
    assert draw({"seeds": {"0": {"average": row(0.1)}}}, tmp_path, "none") == []


def test_ranks_of_ssam_are_rows_of_the_suite() -> None:
    shared = {row.name: row.shared.get("rank") for row in merges(None)}
    assert {"ties", "knots_ties", "tsv_m", "iso_c", "wudi", *SSAM_RANKS} <= set(shared)
    assert all(shared[name] == rank for name, rank in SSAM_RANKS.items() if name != "ssam")


@pytest.fixture
def ready(
    lm: Path, eyes: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Put the tiny bases where the suite looks for its own; return its folder, and give torch its threads."""
    suite, threads = MULTIMODAL_3.fast(), torch.get_num_threads()
    _random_whisper(monkeypatch)
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    put_bases(suite, tmp_path, lm, eyes)
    yield tmp_path / suite.name
    torch.set_num_threads(threads)


def test_a_fast_run_ends_with_a_report(ready: Path, one_process: None) -> None:
    arguments = ["multimodal-3", "--fast", "--cache", str(ready.parent), "--jobs", "1"]
    assert command.main(["all", *arguments, "--methods", "average,ssam"]) == 0
    report = json.loads((ready / f"replication-{ready.name}.json").read_text())
    rows = report["seeds"]["0"]
    assert list(rows) == [*REFERENCES, "average", "ssam"]
    for name, row in rows.items():
        assert ("abilities" in row) == ("alone" not in name)
        if name != "base" and "alone" not in name:
            assert set(row["test"]) == {probe.name for probe in PROBES}
    assert "| ssam |" in (ready / f"replication-{ready.name}.md").read_text()
    before = store.read(ready / "seed0" / "decoupled-results" / "ssam")
    assert command.main(["merge", *arguments, "--methods", "ssam"]) == 0  # all of it lies in the cache
    assert store.read(ready / "seed0" / "decoupled-results" / "ssam") == before
    assert command.main(["train", *arguments, "--kinds", "naive"]) == 0
    assert command.main(["merge", *arguments, "--methods", "naive_average"]) == 0
    naive = store.read(ready / "seed0" / "naive-results" / "naive_average")
    assert naive is not None
    assert all(not trained["training"]["apart"] for trained in naive["config"]["trained"])
    assert naive["test"].keys() == rows["ssam"]["test"].keys()
    assert command.main(["report", *arguments, "--methods", "average,naive_average"]) == 0
    assert "| naive_average |" in (ready / f"replication-{ready.name}.md").read_text()
