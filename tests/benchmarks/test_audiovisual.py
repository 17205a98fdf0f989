"""The suite audio-visual: its language, its streams of tokens, and a whole run on tiny models and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.replication import __main__ as command
from benchmarks.replication import cache as store
from benchmarks.replication.audiovisual import items, modalities, probes, specialists
from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.steps import STEPS
from benchmarks.replication.audiovisual.suite import AudioVisual
from benchmarks.replication.lm import corpus, pretrain, updates, words
from benchmarks.replication.lm.streams import TEXT, StreamedLM, StreamUpdates, TokenBatch

from _decoder import PRETRAINING, TUNING
from _models import quiet_transformers
from submerge.algebra import Dense, LowRank


@pytest.fixture(scope="module")
def features() -> dict[str, dict[str, Features]]:
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> Features:
        x = torch.randn(count, 64, generator=draw)
        return Features(x, -x, torch.arange(count) % 10)

    return {slot: {part: some(30) for part in ("train", "validation", "test")} for slot in items.STREAMS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data in the form of the real ones: noise, a tenth of it for each digit."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    parts = ("train", "test")
    images = {f"x_{part}": draw.integers(256, size=(300, 28, 28), dtype=np.uint8) for part in parts}
    digits = {f"y_{part}": np.arange(300) % 10 for part in parts}
    for name in ("mnist/mnist_t10k.npz", "farsi/hoda_test20000_first1000pc.npz"):
        (root / name).parent.mkdir()
        np.savez(root / name, **images, **digits)
    (root / "fsdd").mkdir()
    np.savez(
        root / "fsdd" / "fsdd8k.npz",
        pcm=draw.integers(-999, 999, size=200 * 3000, dtype=np.int16),
        offsets=np.arange(201) * 3000,
        digit=np.arange(200, dtype=np.uint8) % 10,
        index=np.arange(200, dtype=np.uint8) // 10,
    )
    return root


def _numbers(passage: corpus.Passage) -> dict[str, int]:
    pairs = zip(passage.words, passage.words[1:], strict=False)
    return {a: words.NUMBERS.index(b) for a, b in pairs if a in words.SLOTS and b in words.NUMBERS}


def test_a_passage_says_what_is_true() -> None:
    for skill in ("number", "sum", "above", "largest", "both"):
        for passage in corpus.skill_passages(skill, 20):
            facts = _numbers(passage)
            asked = passage.words[: passage.answers[0]]
            slots = [word for word in asked[len(asked) - asked[::-1].index(".") :] if word in words.SLOTS]
            values = [facts[slot] for slot in slots] or list(facts.values())
            right = words.QUESTIONS[skill].answer(values[0], values[-1], 0)
            assert passage.words[passage.answers[0]] == right, " ".join(passage.words)


def test_passages_never_name_a_new_skill() -> None:
    draw = np.random.default_rng(0)
    new = {one.name for one in words.NEW}
    for maker in (corpus.numbers, corpus.restated, corpus.described, corpus.uncertain):
        for _ in range(100):
            assert not new & set(maker(draw).words)
    assert len(set(words.VOCABULARY)) == len(words.VOCABULARY)


def test_a_label_stands_before_its_answer() -> None:
    draw = np.random.default_rng(0)
    some = [corpus.numbers(draw), corpus.restated(draw), corpus.uncertain(draw)]
    ids, labels, evidence = corpus.batch(some)
    for row, one in enumerate(some):
        due = labels[row].ge(0).nonzero()[:, 0]
        assert (due + 1).tolist() == one.answers
        assert torch.equal(labels[row, due], ids[row, due + 1])
    torch.testing.assert_close(evidence[:, 2:].sum(1), torch.ones(len(evidence)))
    assert {words.VOCABULARY[ids[int(row), int(place)]] for row, place in evidence[:, :2].tolist()} <= set(
        words.NUMBERS
    )


def test_an_lm_that_knows_too_little_is_refused(tiny_lm: Path) -> None:
    with pytest.raises(SystemExit, match="does not know its text"):
        pretrain.pretrain(PRETRAINING, tiny_lm)
    before = store.read(tiny_lm)
    assert pretrain.pretrain(PRETRAINING, tiny_lm, least=0.0) == before, "it is not trained again"


def test_the_lm_is_a_plain_checkpoint(tiny_lm: Path) -> None:
    t = quiet_transformers()
    tokenizer = t.AutoTokenizer.from_pretrained(tiny_lm)
    ids = tokenizer("<s> image three . number of image ?", return_tensors="pt").input_ids
    assert ids.tolist()[0] == _ids("<s> image three . number of image ?")
    assert t.AutoModelForCausalLM.from_pretrained(tiny_lm)(ids).logits.shape == (1, 8, len(words.VOCABULARY))


def _ids(text: str) -> list[int]:
    return words.ids(text.split())


def _updates(model: torch.nn.Module) -> dict[str, LowRank]:
    made = updates.new(model, 4, 0)
    for one in made.values():
        torch.nn.init.normal_(one.left, std=0.1)
    return made


def _batch(stream: int) -> TokenBatch:
    ids = torch.tensor([_ids("<s> image three . number of image ?")] * 2)
    labels = torch.full(ids.shape, -100)
    labels[:, -1] = words.ids(["three"])[0]
    return TokenBatch(ids, torch.full(ids.shape, stream), labels)


def test_a_saved_adapter_does_in_peft_what_the_stream_does(tiny_lm: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = pretrain.load(tiny_lm)
    streamed = StreamedLM(model, {}, [StreamUpdates(_updates(model), (TEXT,))])
    folder = updates.save_adapter(streamed.updates[0].updates, tmp_path / "a", tiny_lm)
    with torch.inference_mode():
        ours, _ = streamed.answers(_batch(TEXT))
        theirs = PeftModel.from_pretrained(pretrain.load(tiny_lm), folder)(_batch(TEXT).ids).logits[:, -1]
        torch.testing.assert_close(ours, theirs)
        streamed.updates = [StreamUpdates(updates.dense(folder, model), (TEXT,))]
        torch.testing.assert_close(streamed.answers(_batch(TEXT))[0], ours)
        streamed.updates = []
        plain, _ = streamed.answers(_batch(TEXT))
        assert not torch.allclose(plain, ours)
        streamed.updates = [StreamUpdates(_updates(model), (TEXT,))]
        torch.testing.assert_close(streamed.answers(_batch(1))[0], plain, msg="another stream goes without")


def test_every_token_takes_the_update_of_its_stream(tiny_lm: Path) -> None:
    model = pretrain.load(tiny_lm)
    one, two = _updates(model), {name: Dense(2 * one.dense()) for name, one in _updates(model).items()}
    streamed = StreamedLM(model, {}, [StreamUpdates(one, (TEXT,)), StreamUpdates(two, (1, 2))])
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    name, module = next(updates.linears(model))
    module.register_forward_hook(lambda _, args, out: seen.update({name: (args[0], out)}))
    ids = torch.tensor([_ids("<s> image three .")])
    kinds = torch.tensor([[0, 1, 2, 0]])
    with torch.inference_mode():
        streamed.hidden(TokenBatch(ids, kinds, torch.full(ids.shape, -100)))
        x, out = seen[name]
        change = out - x @ module.weight.T
        torch.testing.assert_close(change[0, [0, 3]], x[0, [0, 3]] @ one[name].dense().T)
        torch.testing.assert_close(change[0, [1, 2]], x[0, [1, 2]] @ two[name].matrix.T)


def test_soft_tokens_stand_where_the_word_stood(features: dict[str, dict[str, Features]]) -> None:
    pool = items.InputPool({slot: some["test"] for slot, some in features.items()})
    draw = np.random.default_rng(0)
    item = items.draw(pool, ["sum"], ["audio", "image"], draw, noisy=True)
    told = replace(item, slots=(item.slots[0], items.SlotValue("note", 3)))
    found = items.batch([item, told], pool.features)
    first = "<s> image <soft> <soft> . audio <soft> <soft> . sum of audio and image ?"
    assert found.ids[0].tolist() == _ids(first)
    assert found.streams[0].tolist() == [0, 0, 1, 1, 0, 0, 2, 2, 0, *[0] * 6]
    second = "<s> audio <soft> <soft> . note three . sum of audio and note ?"
    assert found.ids[1, : found.labels[1].argmax() + 1].tolist() == _ids(second)
    assert found.labels.max(1).values.tolist() == words.ids([item.answer, told.answer])
    deaf = items.batch([item, told], pool.features, ["image"])
    assert deaf.ids[0, : deaf.labels[0].argmax() + 1].tolist() == _ids(
        "<s> image <soft> <soft> . sum of audio and image ?"
    )
    assert set(deaf.soft) == {"image"}
    audio = found.soft["audio"]
    assert (audio.rows.tolist(), audio.places.tolist()) == ([0, 1], [6, 2])
    row = item.slots[0].row
    assert torch.equal(audio.features[0], pool.features["audio"].noisy[row])
    assert pool.features["audio"].digits[row] == item.slots[0].value


def test_probes_are_fixed_and_cover_all_subsets(features: dict[str, dict[str, Features]]) -> None:
    pool = items.InputPool({slot: some["test"] for slot, some in features.items()})
    for probe in probes.PROBES:
        assert probe.items(pool, 5, "test") == probe.items(pool, 5, "test")
    shown = {tuple(sorted(set(probe.slots) & set(items.STREAMS))) for probe in probes.PROBES}
    assert {len(some) for some in shown} == {1, 2, 3}
    assert len([some for some in shown if len(some) == 2]) == 3, "all pairs"
    found = probes.groups({probe.name: 0.5 for probe in probes.PROBES})
    assert found["mean"] == 0.5
    assert "mean" not in probes.groups({"own image": 1.0})


def test_training_is_repeatable(
    tiny_lm: Path, features: dict[str, dict[str, Features]], tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b"):
        folder = tmp_path / name
        specialists.train(tiny_lm, features, folder, ["image"], "decoupled", 0, TUNING)
        files.append([file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))])
    assert files[0] == files[1]
    assert len(files[0]) == 3, "language LoRA, modality LoRA, projector"


def test_points_have_no_order_and_sounds_no_loudness() -> None:
    cloud, x = modalities.MODALITIES[2].encoder(), torch.randn(3, 64, 2)
    torch.testing.assert_close(cloud(x), cloud(x.flip(1)))
    image = np.zeros((28, 28), np.uint8)
    image[3:6, 20] = 255
    found = (modalities.points(image, 0) + 1) * 14
    assert found.shape == (64, 2)
    assert ((found >= [3, 20]) & (found < [6, 21])).all()
    quiet = np.zeros(9000, np.int16)
    quiet[6000:] = np.random.default_rng(0).integers(-999, 999, 3000)
    assert modalities.log_mel(quiet).shape == (32, 32)
    assert modalities.log_mel(quiet)[:, -4:].min() > modalities.log_mel(np.zeros(9, np.int16)).max(), (
        "the loud end"
    )


def test_modalities_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    draw, asked = np.random.default_rng(0), []

    def entries(repo: str, count: int) -> list[dict[str, object]]:
        if "spoken" in repo:
            tones = [{"array": draw.uniform(-1, 1, 4000), "sampling_rate": 8000} for _ in range(count)]
            return [{"audio": tone, "label": i % 10} for i, tone in enumerate(tones)]
        side = 16 if "usps" in repo else 28
        pictures = draw.integers(256, size=(count, side, side), dtype=np.uint8)
        return [{"image": image.fromarray(one), "label": i % 10} for i, one in enumerate(pictures)]

    def load_dataset(repo: str, *_: object, **__: object) -> dict[str, list[dict[str, object]]]:
        asked.append(repo)
        return {"train": entries(repo, 30), "test": entries(repo, 20)}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    shapes = {"image": (1, 28, 28), "audio": (1, 32, 32), "points": (64, 2)}
    for modality in modalities.MODALITIES:
        found = modalities.parts(modality, None)
        assert {name: len(one.digits) for name, one in found.items()} == {
            "train": 20,
            "validation": 10,
            "test": 20,
        }
        assert found["train"].inputs.shape[1:] == shapes[modality.slot]
        assert found["train"].inputs.mean().abs() < 1e-6
        assert found["test"].digits.tolist() == [i % 10 for i in range(20)]
    assert asked == [modality.hub.repo for modality in modalities.MODALITIES]
    with pytest.raises(SystemExit, match="44100 samples a second, not 8000"):
        modalities.MODALITIES[1].cell({"array": [0.0], "sampling_rate": 44100})


@pytest.mark.slow
@pytest.mark.usefixtures("one_process", "pretrained")
def test_a_whole_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = AudioVisual(
        pretraining=PRETRAINING,
        tuning=TUNING,
        validation=4,
        test=6,
        grid=(0.3, 1.0),
        epochs=1,
        most=300,
        least=0.0,
    )
    monkeypatch.setattr(command, "OTHERS", {"audio-visual": (suite, STEPS)})
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    arguments = ["--seeds", "1", "--jobs", "1", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="nothing to report"):
        command.main(["report", "audio-visual", *arguments])
    with pytest.raises(SystemExit, match="not trained yet"):
        command.main(["merge", "audio-visual", *arguments])
    asked = [*arguments, "--methods", "ties,ssam_12"]
    for step in ("train", "merge"):
        assert command.main([step, "audio-visual", *asked, "--kinds", "naive"]) == 0
    assert not (tmp_path / "audio-visual" / "seed0" / "decoupled").exists()
    assert command.main(["all", "audio-visual", *asked]) == 0
    results = json.loads((tmp_path / "out" / "replication-audio-visual.json").read_text())
    assert set(results["ways"]) == set(specialists.WAYS)
    rows = results["ways"]["decoupled"]["0"]
    assert {"average", "ties", "ssam_12", "individual", "joint", "no language LoRA"} <= set(rows)
    assert set(rows["ties"]["curve"]) == {"0.3", "1.0"}
    assert str(tmp_path) not in json.dumps(results), "no path of this machine"
    page = (tmp_path / "out" / "replication-audio-visual.md").read_text()
    assert "joint questions: the average is above every specialist alone" in page
    assert "Work: encoders and models trained in 0 min" in page
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    recipe = tmp_path / "audio-visual" / "seed0" / "decoupled-results" / "ties" / "recipe.yaml"
    assert recipe.read_text().startswith("merge_method: ties")
    monkeypatch.setattr(specialists, "fit", lambda *_: pytest.fail("it was trained again"))
    for step in ("train", "merge"):
        assert command.main([step, "audio-visual", *asked]) == 0


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--tasks", "sst2"], ["--kinds", "full"]):
        with pytest.raises(SystemExit):
            command._options(["train", "audio-visual", *wrong])
        assert "not for audio-visual" in capsys.readouterr().err
    fast = AudioVisual().fast()
    assert (fast.name, fast.lm) == ("audio-visual-fast", "lm-fast")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
