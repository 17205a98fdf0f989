"""Parameters with several names, in files made by hand and in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _models import CONFIG, ROOM, SMALL, perturbed, read, state, write
from _tied import EMBEDDING, HEAD, TIED, State, both, once, recipe
from submerge.engine import Settings, explain, merge_state_dicts


@pytest.mark.parametrize("method", ["dare_ties", "della", "ties", "linear", "task_arithmetic", "breadcrumbs"])
def test_copies_come_out_equal_whoever_stores_them(method: str, tmp_path: Path) -> None:
    base, tuned = once(), [perturbed(once(), i) for i in range(2)]
    write(tmp_path / "base", both(base), TIED, shards=4)
    write(tmp_path / "a", both(tuned[0]), TIED, shards=2)
    write(tmp_path / "b", tuned[1], TIED)
    out = {}
    for threads in (1, 2):
        made = submerge.merge(
            recipe(tmp_path / "base", tmp_path / "a", tmp_path / "b", merge_method=method,
                   parameters={} if method in ("linear", "task_arithmetic") else {"density": 0.5}),
            tmp_path / f"out{threads}",
            settings=Settings(max_memory=ROOM.max_memory, threads=threads),
        )  # fmt: skip
        assert not made.warnings
        out[threads] = read(made.out)
    assert all(torch.equal(out[1][name], out[2][name]) for name in out[1])
    assert torch.equal(out[1][HEAD], out[1][EMBEDDING])
    assert not torch.equal(out[1][HEAD], base[EMBEDDING])
    assert submerge.verify(tmp_path / "out1").sound


def test_a_rule_for_the_head_cannot_take_one_parameter_apart(tmp_path: Path) -> None:
    write(tmp_path / "base", both(once()), TIED)
    write(tmp_path / "tuned", perturbed(once(), 1), TIED)
    rules = [{"filter": "lm_head", "value": 0.25}, {"value": 1.0}]
    made = recipe(tmp_path / "base", merge_method="task_arithmetic", parameters={})
    made["models"] = [{"model": str(tmp_path / "tuned"), "parameters": {"weight": rules}}]
    plan = submerge.plan(made, ROOM)
    found = explain(plan, HEAD)[0]
    assert found["options"]["weight"][0]["value"] == 1.0
    assert f"one parameter with {EMBEDDING}" in found["why"]
    out = read(submerge.merge(plan, tmp_path / "out").out)
    assert torch.equal(out[HEAD], out[EMBEDDING])


def test_copies_that_differ_in_a_file_are_two_parameters_whatever_the_config_says(tmp_path: Path) -> None:
    base = {**once(), HEAD: state({HEAD: SMALL[HEAD]}, seed=7)[HEAD]}
    tuned = perturbed(base, 1)
    write(tmp_path / "base", base, TIED)
    write(tmp_path / "tuned", tuned, TIED)
    report = submerge.merge(recipe(tmp_path / "base", tmp_path / "tuned", merge_method="task_arithmetic",
                                   parameters={}), tmp_path / "out", settings=ROOM)  # fmt: skip
    assert any("tie_word_embeddings: false" in warning for warning in report.warnings)
    assert json.loads((report.out / "config.json").read_text()) == {**TIED, "tie_word_embeddings": False}
    for name, tensor in read(report.out).items():
        torch.testing.assert_close(tensor, (base[name] + tuned[name]) / 2)
    assert submerge.verify(report.out).sound


def test_a_config_that_says_nothing_of_an_unknown_class_is_left_alone(tmp_path: Path) -> None:
    silent = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
    base = state()
    write(tmp_path / "base", base, silent)
    write(tmp_path / "tuned", perturbed(base, 1), silent)
    report = submerge.merge(recipe(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM)
    assert not report.warnings
    assert (report.out / "config.json").read_bytes() == (tmp_path / "base/config.json").read_bytes()
    assert submerge.verify(report.out).sound


def test_equal_copies_of_an_untied_model_stay_two(tmp_path: Path) -> None:
    untied = {**TIED, "tie_word_embeddings": False}
    write(tmp_path / "base", both(once()), untied)
    tuned = [perturbed(both(once()), i) for i in range(2)]
    folders = [write(tmp_path / f"t{i}", t, untied) for i, t in enumerate(tuned)]
    report = submerge.merge(recipe(tmp_path / "base", *folders), tmp_path / "out", settings=ROOM)
    out = read(report.out)
    assert not torch.equal(out[HEAD], out[EMBEDDING])
    assert not report.warnings
    write(tmp_path / "headless", once(), untied)
    with pytest.raises(submerge.RequestError, match=f"tensors are missing: {HEAD}"):
        submerge.plan(recipe(tmp_path / "base", tmp_path / "headless"), ROOM)


def test_it_is_taken_up_again_with_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "base", once(), TIED)
    tuned = perturbed(both(once()), 1)
    write(tmp_path / "tuned", tuned, TIED)
    bad = {**tuned, "model.norm.weight": torch.full((16,), float("nan"))}
    write(tmp_path / "bad", bad, TIED)
    made = recipe(tmp_path / "base", tmp_path / "tuned", tmp_path / "bad")
    with pytest.raises(submerge.WorkError, match="NaN"):
        submerge.merge(made, tmp_path / "out", settings=ROOM)
    lenient = Settings(max_memory=ROOM.max_memory, allow_nonfinite=True)
    report = submerge.merge(made, tmp_path / "out", settings=lenient, resume=True)
    assert report.resumed == len(SMALL)
    again = submerge.merge(made, tmp_path / "again", settings=lenient)
    for name in ("model.safetensors", "config.json", "submerge.json"):
        assert (report.out / name).read_bytes() == (again.out / name).read_bytes()
    assert set(read(report.out)) == set(SMALL)


@pytest.mark.parametrize("base_often", [True, False])
def test_state_dicts(base_often: bool) -> None:
    base, tuned = once(), [perturbed(once(), i) for i in range(2)]
    options: dict[str, Any] = {"method": "dare_ties", "weight": 0.5, "density": 0.5}
    plain = merge_state_dicts(tuned, base=base, **options)
    given = [both(tuned[0]), tuned[1]]
    found = merge_state_dicts(given, base=both(base) if base_often else base, **options)
    assert set(found) == set(SMALL if base_often else base)
    for name, tensor in found.items():
        assert torch.equal(tensor, plain[EMBEDDING if name == HEAD else name])


def test_copies_are_equal_where_matrices_are_merged_whole() -> None:
    """The name `decoder` does not say that it is a head."""
    base = state({"embed_tokens.weight": (48, 16), "layers.0.q.weight": (16, 16)})
    models = [base, perturbed(base, 1), perturbed(base, 2)]
    first, *tuned = ({**model, "decoder.weight": model["embed_tokens.weight"].clone()} for model in models)
    found = merge_state_dicts(tuned, base=first, method="tsv_m")
    assert torch.equal(found["embed_tokens.weight"], found["decoder.weight"])


def test_state_dicts_of_an_untied_base_do_not_lend_their_head() -> None:
    with pytest.raises(submerge.RequestError, match="missing"):
        merge_state_dicts([once()], base=state(), method="task_arithmetic", weight=1.0)


def test_a_fine_tune_without_a_head_becomes_an_adapter(tmp_path: Path) -> None:
    write(tmp_path / "base", both(once()), TIED)
    tuned = perturbed(once(), 1)
    write(tmp_path / "tuned", tuned, TIED)
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(tmp_path / "base"), rank=16, settings=ROOM
    )
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert not [name for name in written if "lm_head" in name or "embed" in name]
    assert any(EMBEDDING in w and HEAD in w and "no place in an adapter" in w for w in report.warnings)


def test_an_untied_fine_tune_becomes_an_adapter_without_its_head(tmp_path: Path) -> None:
    write(tmp_path / "base", once(), TIED)
    tuned = perturbed(both(once()), 1)
    write(tmp_path / "tuned", tuned, {**TIED, "tie_word_embeddings": False})
    report = submerge.extract_lora(
        str(tmp_path / "tuned"), tmp_path / "out", base=str(tmp_path / "base"), rank=16, settings=ROOM
    )
    others = [name for name, shape in SMALL.items() if len(shape) == 1]
    assert any(f"{2 + len(others)} tensors differ" in w for w in report.warnings), "the head among them"
    assert submerge.verify(report.out).sound


@pytest.mark.parametrize("base_often", [True, False])
def test_the_trunk_of_an_untied_t5_is_one(base_often: bool, tmp_path: Path) -> None:
    shapes = {"shared.weight": (40, 16), "encoder.block.0.layer.0.q.weight": (16, 16), HEAD: (40, 16)}
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 40,
              "tie_word_embeddings": False}  # fmt: skip
    base = state(shapes)
    tuned = perturbed(base, 1)

    def often(model: State) -> State:
        copies = {
            f"{side}.embed_tokens.weight": model["shared.weight"].clone() for side in ("encoder", "decoder")
        }
        return {**model, **copies}

    write(tmp_path / "base", often(base) if base_often else base, config)
    write(tmp_path / "tuned", tuned if base_often else often(tuned), config)
    report = submerge.merge(recipe(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM)
    out = read(report.out)
    assert set(out) == set(often(base) if base_often else base)
    assert not report.warnings
    if base_often:
        assert torch.equal(out["shared.weight"], out["encoder.embed_tokens.weight"])
        assert torch.equal(out["shared.weight"], out["decoder.embed_tokens.weight"])
    assert not torch.equal(out["shared.weight"], out[HEAD])


def test_pickled_copies_are_compared_too(tmp_path: Path) -> None:
    for name, model in (("base", once()), ("tuned", perturbed(once(), 1))):
        write(tmp_path / name, model, TIED)
        (tmp_path / name / "model.safetensors").unlink()
        torch.save({**model, HEAD: model[EMBEDDING]}, tmp_path / name / "pytorch_model.bin")
    settings = Settings(max_memory=ROOM.max_memory, allow_pickle=True)
    report = submerge.merge(
        recipe(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=settings
    )
    out = read(report.out)
    assert torch.equal(out[HEAD], out[EMBEDDING])
    assert not report.warnings


def test_a_bank_holds_one_parameter_once(tmp_path: Path) -> None:
    write(tmp_path / "base", both(once()), TIED)
    tuned = [write(tmp_path / f"t{i}", perturbed(once(), i), TIED) for i in range(2)]
    made = {"merge_method": "mass", "base_model": str(tmp_path / "base"),
            "models": [{"model": str(t)} for t in tuned]}  # fmt: skip
    out = submerge.merge(made, tmp_path / "out", settings=ROOM).out
    bank = load_file(out / "bank.safetensors")
    assert [name for name in bank if EMBEDDING in name]
    assert not [name for name in bank if HEAD in name]
    merged = read(out)
    assert torch.equal(merged[HEAD], merged[EMBEDDING])
