"""Layers that are stacked: every tensor from its own source, whatever the order of the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import submerge
from _adapters import FIRST, SECOND, Tuned, make_tuned, same_state
from _models import ROOM, contents, perturbed, read, state, write
from submerge.engine import describe, explain
from submerge.engine.output import _run
from submerge.engine.work import RangeRecord
from submerge.errors import RequestError
from submerge.names import layer_of, with_layer

LAYERS = 5
CONFIG = {
    "model_type": "toy",
    "num_hidden_layers": LAYERS,
    "layer_types": ["full", "window", "window", "full", "full"],
    "eos_token_id": [1, 2, 3, 4, 5],
    "mlp_only_layers": [1, 4],
}


TOWER = {f"vision.blocks.{i}.fc.weight": (8, 8) for i in range(3)}


def shapes(layers: int = LAYERS, width: int = 8) -> dict[str, tuple[int, ...]]:
    """Return a model's tensors: in the file's order, as safetensors sorts them."""
    of_layer = {"mlp.up.weight": (3 * width, width), "norm.weight": (width,), "attn.q.weight": (width, width)}
    return {
        "lm_head.weight": (20, width),
        "model.embed_tokens.weight": (20, width),
        **{f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in of_layer.items()},
        "model.norm.weight": (width,),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks")
    base = state(shapes())
    write(folder / "base", base, CONFIG)
    for number, name in enumerate("abc"):
        write(folder / name, perturbed(base, number), CONFIG | {"layer_types": [name] * LAYERS})
    return folder


@pytest.fixture(autouse=True)
def _here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def source(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    own = {"parameters": parameters} if parameters else {}
    return {"model": model, "layer_range": [start, stop], **own}


def stacked(*slices: list[dict[str, Any]], method: str = "passthrough", **more: Any) -> dict[str, Any]:
    return {"merge_method": method, "slices": [{"sources": sources} for sources in slices], **more}


runs = st.tuples(st.sampled_from("abc"), st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).map(
    lambda run: (run[0], run[1], min(LAYERS, run[1] + run[2]))
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(runs, min_size=1, max_size=4))
def test_every_layer_is_the_one_that_its_slice_names(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, int, int]]
) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    submerge.merge(stacked(*([source(*run)] for run in found)), out, settings=ROOM)
    layers = [(model, number) for model, start, stop in found for number in range(start, stop)]
    models = {name: read(Path(name)) for name in "abc"}
    expected = {
        with_layer(name, "model.layers", new): tensor
        for new, (model, number) in enumerate(layers)
        for name, tensor in models[model].items()
        if layer_of(name) == ("model.layers", number)
    }
    expected["model.embed_tokens.weight"] = models[layers[0][0]]["model.embed_tokens.weight"]
    for name in ("lm_head.weight", "model.norm.weight"):
        expected[name] = models[layers[-1][0]][name]
    merged = read(out)
    assert set(merged) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == len(layers)
    assert config["layer_types"] == [model for model, _ in layers]
    assert config["mlp_only_layers"] == [new for new, (_, number) in enumerate(layers) if number in (1, 4)]
    assert config["eos_token_id"] == CONFIG["eos_token_id"]
    assert submerge.verify(out, load=False).sound


def test_slices_of_single_layers_are_one_run(tmp_path: Path) -> None:
    apart = stacked(*([source("a", i, i + 1)] for i in range(LAYERS)), [source("b", 0, 2)])
    together = stacked([source("a", 0, LAYERS)], [source("b", 0, 2)])
    one, other = (
        submerge.merge(recipe, tmp_path / name, settings=ROOM).out
        for recipe, name in ((apart, "apart"), (together, "together"))
    )
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    stack = describe(submerge.plan(apart, ROOM))["stack"]
    assert stack == describe(submerge.plan(together, ROOM))["stack"]
    assert [run["layers"] for run in stack[0]["runs"]] == ["0–4", "5–6"]
    assert stack[0]["runs"][1]["sources"] == [{"model": "b", "layers": "0–1", "bar": "██···"}]
    assert (stack[0]["before"], stack[0]["behind"], stack[0]["unread"]) == (["a"], ["b"], {"b": "2–4"})


def ties(**more: Any) -> dict[str, Any]:
    first = [source("base", 0, 3), source("a", 0, 3, weight=0.5), source("b", 2, 5, weight=[0.2, 1])]
    second = [source("base", 1, 4), source("c", 2, 5, weight=1.0)]
    return stacked(first, second, method="ties", base_model="base", parameters={"density": 0.4}, **more)


def test_threads_change_no_byte(tmp_path: Path) -> None:
    one, two = (
        contents(
            submerge.merge(
                ties(), tmp_path / f"{n}", settings=submerge.Settings(threads=n, max_memory=64 * 10**9)
            ).out
        )
        for n in (1, 2)
    )
    assert one["model.safetensors"] == two["model.safetensors"]
    assert one["submerge.json"] == two["submerge.json"]


class Stop(Exception):  # noqa: N818
    pass


def test_an_interrupted_merge_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = submerge.Settings(threads=1, max_memory=64 * 10**9)
    submerge.merge(ties(), tmp_path / "all" / "out", settings=one)
    finished, count = _run.Run._finished, iter(range(100))

    def counted(self: Any, record: RangeRecord) -> None:
        finished(self, record)
        if next(count) == 6:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", counted)
        with pytest.raises(Stop):
            submerge.merge(ties(), tmp_path / "part" / "out", settings=one)
    assert submerge.merge(ties(), tmp_path / "part" / "out", settings=one, resume=True).resumed == 7
    assert contents(tmp_path / "part" / "out") == contents(tmp_path / "all" / "out")


def test_the_recipe_in_the_record_makes_the_same_model(tmp_path: Path) -> None:
    out = submerge.merge(ties(), tmp_path / "out", settings=ROOM).out
    recipe = json.loads((out / "submerge.json").read_text())["recipe"]
    again = submerge.merge(recipe, tmp_path / "again", settings=ROOM).out
    for file in ("model.safetensors", "submerge.json", "config.json"):
        assert (out / file).read_bytes() == (again / file).read_bytes(), file


def test_a_base_that_is_not_listed_has_the_layers_of_the_sources(tmp_path: Path) -> None:
    without = stacked(
        [source("a", 1, 4, weight=0.5), source("b", 1, 4, weight=0.5)], method="task_arithmetic"
    )
    listed = stacked(
        [source("base", 1, 4), *without["slices"][0]["sources"]], method="task_arithmetic", base_model="base"
    )
    one, other = (
        submerge.merge(recipe | {"base_model": "base"}, tmp_path / name, settings=ROOM).out
        for recipe, name in ((without, "without"), (listed, "listed"))
    )
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert not (one / "mergekit_config.yml").exists()  # mergekit would refuse it
    assert (other / "mergekit_config.yml").exists()


def test_settings_of_a_source_come_before_those_of_slice_module_and_recipe(tmp_path: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "modules": {
            "default": {
                "slices": [
                    {
                        "sources": [
                            source("a", 0, 3, weight=[{"filter": "layers.1", "value": 5}]),
                            source("b", 2, 5),
                        ],
                        "parameters": {"weight": [{"filter": "attn", "value": 4}]},
                    }
                ],
                "parameters": {"weight": [{"filter": "mlp", "value": 3}]},
            }
        },
        "parameters": {"weight": 2},
    }  # fmt: skip
    plan = submerge.plan(recipe, ROOM)
    weights = {t.name: t.values["weight"] for t in plan.tensors}
    assert weights["model.layers.1.attn.q.weight"] == [5, 4]
    assert weights["model.layers.0.mlp.up.weight"] == [3, 3]
    assert weights["model.norm.weight"] == [2, 2]
    (told,) = explain(plan, "layers.1.attn")
    assert [read["tensor"] for read in told["reads"]] == [
        "model.layers.1.attn.q.weight",
        "model.layers.3.attn.q.weight",
    ]
    (own, of_slice) = told["options"]["weight"]
    assert own["why"].startswith("modules.default.slices[0].sources[0].parameters.weight")
    assert of_slice["why"].startswith("modules.default.slices[0].parameters.weight")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    made = make_tuned(tmp_path_factory.mktemp("two"), "llama", FIRST, SECOND)
    (made.base / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    return made


def test_layers_of_adapters_are_those_of_their_merged_models(two: Tuned, tmp_path: Path) -> None:
    full = [
        write(two.base.parent / f"full{i}", merged, {"model_type": "llama", "num_hidden_layers": 2})
        for i, merged in enumerate(two.merged)
    ]
    adapted = [f"{two.base}+{adapter}" for adapter in two.adapters]
    outs = []
    for name, (one, other) in {"full": full, "adapted": adapted}.items():
        base, first = source(str(two.base), 0, 2), source(str(one), 0, 2, weight=0.5)
        shifted = [source(str(two.base), 0, 1), source(str(other), 1, 2, weight=0.7)]
        recipe = stacked(
            [base, first],
            [base, first, source(str(other), 0, 2, weight=0.7)],
            shifted,
            method="task_arithmetic",
            base_model=str(two.base),
        )
        plan = submerge.plan(recipe, ROOM)
        outs.append(read(submerge.merge(plan, tmp_path / name).out))
        if name == "adapted":
            layers = {t.name: t for t in plan.tensors}
            # on the base's own layer an adapter is its update; on another one its model's values count
            assert all(i.relative for i in layers["model.layers.1.self_attn.q_proj.weight"].inputs)
            assert not any(i.relative for i in layers["model.layers.4.self_attn.q_proj.weight"].inputs)
    same_state(*outs, 1e-5)


def test_a_head_that_is_stored_and_tied_stays_with_the_embeddings(root: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        tensors = state(shapes(), seed=number)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        write(root / f"tied{number}", tensors, CONFIG | {"tie_word_embeddings": True})
    recipe = stacked([source("tied1", 0, 3)], [source("tied2", 0, 3)])
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    merged, one, two = read(out), read(root / "tied1"), read(root / "tied2")
    assert torch.equal(merged["lm_head.weight"], one["model.embed_tokens.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    assert torch.equal(merged["model.norm.weight"], two["model.norm.weight"])
    assert submerge.verify(out, load=False).sound


def test_a_plan_says_what_is_stacked() -> None:
    plan = submerge.plan(ties(), ROOM)
    assert "stack" in repr(plan)
    assert "model.layers: 6 layers, in 2 runs" in repr(plan)
    assert "model.layers: 6 layers, in 2 runs" in plan._repr_html_()


def test_an_overlap_is_one_of_whole_models() -> None:
    with pytest.raises(RequestError, match="layers are stacked"):
        submerge.inspect_updates(ties())


def test_layers_that_predict_further_tokens_are_no_layers_of_a_range(root: Path, tmp_path: Path) -> None:
    """Files of DeepSeek V3 have one more layer than its configuration says."""
    for number in (1, 2):
        write(root / f"mtp{number}", state(shapes(), seed=number), {"num_hidden_layers": LAYERS - 1})
    models = [source(f"mtp{number}", 0, LAYERS - 1) for number in (1, 2)]
    out = submerge.merge(stacked(models, method="karcher"), tmp_path / "out", settings=ROOM).out
    assert set(read(out)) == set(shapes())
    assert "models" in json.loads((out / "submerge.json").read_text())["recipe"]


def test_models_may_be_of_any_depth_and_have_other_prefixes(root: Path, tmp_path: Path) -> None:
    write(
        root / "small", state(shapes(3), seed=1), CONFIG | {"num_hidden_layers": 3, "layer_types": ["s"] * 3}
    )
    deep = state(shapes(7), seed=2)
    write(root / "deep", deep, CONFIG | {"num_hidden_layers": 7, "layer_types": list("abcdefg")})
    bare = {name.removeprefix("model."): tensor for name, tensor in deep.items()}
    write(root / "bare", bare, CONFIG | {"num_hidden_layers": 7, "layer_types": list("abcdefg")})
    outs = [
        submerge.merge(
            stacked([source("small", 0, 3)], [source(model, 4, 7)]), tmp_path / model, settings=ROOM
        ).out
        for model in ("deep", "bare")
    ]
    one, other = (read(out) for out in outs)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert torch.equal(one["model.layers.5.norm.weight"], deep["model.layers.6.norm.weight"])
    assert json.loads((outs[1] / "config.json").read_text())["layer_types"] == ["s", "s", "s", "e", "f", "g"]


A, B = source("a", 0, 2), source("b", 1, 3)
TOWERS = {"merge_method": "passthrough", "modules": {"vision": {"models": [{"model": "towers"}]}}}
REFUSED = (
    (stacked([source("a", 3, 6)]), "layer_range [3, 6] is outside of a — it has 5 layers: 0 to 4"),
    (stacked([source("a", 2, 2)]), "layer_range [2, 2] has no layer"),
    (stacked([source("a", 4, 2)]), "layer_range [4, 2] has no layer"),
    (stacked([source("a", -1, 2)]), "layer_range [-1, 2] counts from 0 on"),
    (stacked([A, B]), "passthrough merges exactly 1 model; found 2"),
    (stacked([A, source("b", 0, 3)], method="karcher"), "unlike numbers of layers: 2, 3"),
    (stacked([A, source("a", 1, 3)], method="karcher"), "a slice names a more than once"),
    (stacked([A], models=[{"model": "a"}]), "both 'models' and 'slices' say what is merged"),
    (stacked([A], output={"as": "adapter"}), "an adapter is asked for"),
    (stacked([A], coefficients="a.json"), "'coefficients' does not go with layers"),
    (stacked([A], method="mass", base_model="base"), "mass goes by inputs of whole models"),
    (stacked([A], [source("wide", 0, 2)]), "wide: tensors have other shapes than those of a"),
    (stacked([source("towers", 0, 2)]), "several stacks of layers (model.layers, vision.blocks)"),
    (stacked([source("mute", 0, 2)]), "mute/config.json: it does not say that model.layers has 5 layers"),
    (TOWERS, "no module has the tensors lm_head.weight"),
    (
        stacked([source("a", 3, 5, weight=1)], method="ties", base_model="short"),
        "layer_range [3, 5] is outside of short — it has 3 layers: 0 to 2",
    ),
    (stacked([A, B], method="ties", base_model="base"), "the base base is not among the sources"),
)


@pytest.mark.parametrize(("recipe", "words"), REFUSED)
def test_what_cannot_be_stacked_is_refused(recipe: dict[str, Any], words: str, root: Path) -> None:
    if not (root / "wide").exists():
        write(root / "wide", state(shapes(width=16)), CONFIG)
        write(root / "short", state(shapes(3)), CONFIG | {"num_hidden_layers": 3})
        write(root / "mute", state(shapes()), {"model_type": "toy"})
        write(root / "towers", state(shapes() | TOWER), CONFIG)
    with pytest.raises(RequestError) as caught:
        submerge.plan(recipe, ROOM)
    assert words in str(caught.value)


def test_modules_are_stacked_apart(root: Path, tmp_path: Path) -> None:
    config = CONFIG | {"vision_config": {"depth": 3}}
    for number in (1, 2):
        write(root / f"eyes{number}", state(shapes() | TOWER, seed=number), config)
    text = {"slices": [{"sources": [source("eyes1", 0, 2)]}, {"sources": [source("eyes2", 1, 2)]}]}
    vision = {"slices": [{"sources": [source("eyes2", 0, 3)]}, {"sources": [source("eyes2", 2, 3)]}]}
    recipe = {"merge_method": "passthrough", "modules": {"text_decoder": text, "vision": vision}}
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    merged, two = read(out), read(root / "eyes2")
    assert torch.equal(merged["vision.blocks.3.fc.weight"], two["vision.blocks.2.fc.weight"])
    assert torch.equal(merged["model.layers.2.norm.weight"], two["model.layers.1.norm.weight"])
    written = json.loads((out / "config.json").read_text())
    assert (written["num_hidden_layers"], written["vision_config"]) == (3, {"depth": 4})
    described = describe(submerge.plan(recipe, ROOM))["stack"]
    assert [(stack["module"], stack["layers"]) for stack in described] == [
        ("model.layers", 3),
        ("vision.blocks", 4),
    ]


def test_layers_that_predict_further_tokens_are_in_no_stack(tmp_path: Path) -> None:
    """They lie behind the layers that the configuration counts, and are left out when those move."""
    config = {"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1}
    write(tmp_path / "m", state(shapes(LAYERS + 1)), config)
    ranges = [[0, 3], [2, 5]]
    slices = [{"sources": [{"model": str(tmp_path / "m"), "layer_range": layers}]} for layers in ranges]
    recipe = {"merge_method": "passthrough", "slices": slices}
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    given, stacked = read(tmp_path / "m"), read(out)
    assert json.loads((out / "config.json").read_text()) == config | {
        "num_hidden_layers": 6,
        "num_nextn_predict_layers": 0,
    }
    for new, old in enumerate([0, 1, 2, 2, 3, 4]):
        name = f"model.layers.{new}.norm.weight"
        assert torch.equal(stacked[name], given[with_layer(name, "model.layers", old)])

    slices[1]["sources"][0]["layer_range"] = [3, 6]
    with pytest.raises(RequestError, match=r"layer_range \[3, 6\] is outside of"):
        submerge.merge(recipe, tmp_path / "more", settings=ROOM)


def test_modules_that_predict_further_tokens_are_no_stack(tmp_path: Path) -> None:
    """Qwen3-Next and Qwen3.5 have them beside the model, as `mtp`; a stack of all layers keeps them."""
    config = {"num_hidden_layers": LAYERS, "mtp_num_hidden_layers": 1}
    further = {"mtp.fc.weight": (8, 16), "mtp.layers.0.attn.q.weight": (8, 8), "mtp.norm.weight": (8,)}
    write(tmp_path / "m", state(shapes() | further), config)

    def merged(*ranges: list[int]) -> tuple[set[str], dict[str, int]]:
        slices = [{"sources": [{"model": str(tmp_path / "m"), "layer_range": layers}]} for layers in ranges]
        recipe = {"merge_method": "passthrough", "slices": slices}
        out = submerge.merge(recipe, tmp_path / f"out{len(ranges)}", settings=ROOM).out
        return set(read(out)), json.loads((out / "config.json").read_text())

    names, written = merged([0, 3], [2, 5])
    assert names == set(shapes(6))
    assert written == {"num_hidden_layers": 6, "mtp_num_hidden_layers": 0}
    names, written = merged([0, LAYERS])
    assert (names, written) == (set(shapes() | further), config)


def test_a_list_with_embeddings_and_head_is_no_stack(tmp_path: Path) -> None:
    """Phi-1 was so at first: its layers 0 and n + 1 are none, and n_layer does not count them."""
    block = {"ln.weight": (8,), "mixer.Wqkv.weight": (24, 8), "mlp.fc1.weight": (16, 8)}
    tensors: dict[str, tuple[int, ...]] = {"layers.0.wte.weight": (10, 8)}
    tensors |= {f"layers.{i}.{name}": shape for i in (1, 2, 3) for name, shape in block.items()}
    tensors |= {"layers.4.ln.weight": (8,), "layers.4.linear.weight": (10, 8)}
    config = {"model_type": "mixformer-sequential", "n_layer": 3}
    folder = write(tmp_path / "phi", state(tensors), config)

    def recipe(*ranges: list[int]) -> dict[str, Any]:
        sources = [{"sources": [{"model": str(folder), "layer_range": own}]} for own in ranges]
        return {"merge_method": "passthrough", "slices": sources}

    for ranges in ([[0, 2], [1, 3]], [[0, 2]]):
        with pytest.raises(RequestError, match=r"layers\.0\.wte\.weight as layer 0, which has nothing of"):
            submerge.plan(recipe(*ranges), ROOM)
    whole = submerge.merge(recipe([0, 3]), tmp_path / "out", settings=ROOM)
    assert read(whole.out).keys() == tensors.keys()
