"""Recipes read by Submerge and by mergekit: the same parameters come out for every tensor."""

import math
import warnings

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from submerge.methods import METHODS, Option
from submerge.recipe import load_recipe, resolve, to_mergekit
from submerge.recipe._mergekit import _PARAMETERS, _REQUIRED

from .conftest import TOYS, make_method
from .examples import EXAMPLES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    config = pytest.importorskip("mergekit.config")
    base = pytest.importorskip("mergekit.merge_methods.base")
    registry = pytest.importorskip("mergekit.merge_methods.registry")
    resolver = pytest.importorskip("mergekit.parameter_resolver")

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.3.mlp.up_proj.weight",
    "model.norm.weight",
)


def theirs(text, tensor, depth):
    """Return what mergekit resolves for a recipe: shared parameters, and those of each model."""
    read = config.MergeConfiguration.model_validate(yaml.safe_load(text))
    spec = registry.get(read.merge_method).spec if hasattr(registry, "get") else None
    listed = {item.model: item.parameters for item in read.models}
    if read.base_model is not None:
        listed.setdefault(read.base_model, None)
    return resolver.resolve_parameters(
        spec,
        tensor_name=tensor,
        inputs=dict.fromkeys(listed, tensor),
        sources=lambda model: (listed.get(model), read.parameters),
        base_model=read.base_model,
        t=depth,
    )


def alike(ours, other):
    if isinstance(ours, float):
        return math.isclose(ours, 1.0 if other is None else other, rel_tol=1e-12, abs_tol=1e-15)
    return ours == other


def assert_alike(recipe, text, tensor, depth):
    """Compare every parameter that mergekit has."""
    shared, per_model = theirs(text, tensor, depth)
    values = resolve(recipe, tensor, depth).values()
    for name, other in shared.items():
        assert alike(values[name], other), name
    by_name = {str(model): found for model, found in per_model.items()}
    for i, entry in enumerate(recipe.participants):
        for name, other in by_name[entry.model].items():
            assert alike(values[name][i], other), (name, entry.model)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_resolve_as_in_mergekit(name):
    text = EXAMPLES[name]
    recipe = load_recipe(text)
    for tensor in NAMES:
        for depth in (0.0, 0.3, 1.0):
            assert_alike(recipe, text, tensor, depth)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_written_back_for_mergekit(name):
    recipe = load_recipe(EXAMPLES[name])
    text = to_mergekit(recipe)
    again = load_recipe(text)
    assert to_mergekit(again) == text
    assert again.resolved() == recipe.resolved()
    for tensor in NAMES:
        for depth in (0.0, 0.3, 1.0):
            assert_alike(recipe, text, tensor, depth)


def test_the_table_of_mergekits_parameters_is_mergekits():
    for name, parameters in _PARAMETERS.items():
        spec = registry.get(name).spec
        found = {
            p.name: _REQUIRED if p.required else (1.0 if p.name == "scale" else p.default)
            for p in spec.parameters
        }
        assert found == dict(parameters), name
        assert set(parameters) <= {option.name for option in METHODS[name].options}, name


def test_what_mergekit_lacks_is_dropped_or_refused():
    ties = EXAMPLES["ties"]
    plain = to_mergekit(load_recipe(ties))
    extra = ties + "seed: 3\nrules: {missing: base}\n"
    assert to_mergekit(load_recipe(extra)) == plain
    option = "parameters:\n  variant: "
    assert (
        to_mergekit(load_recipe(ties.replace("parameters:\n  normalize", option + "mergekit\n  normalize")))
        == plain
    )
    assert (
        to_mergekit(load_recipe(ties.replace("parameters:\n  normalize", option + "paper\n  normalize")))
        is None
    )
    assert to_mergekit(load_recipe(EXAMPLES["linear"].replace("org/b", "org/a"))) is None
    assert to_mergekit(load_recipe(EXAMPLES["linear"] + "base_model: org/c\n")) is None
    assert (
        to_mergekit(load_recipe({"merge_method": "bare", "models": [{"model": "a"}]}, methods=TOYS)) is None
    )


def test_specs_of_one_model_are_written_alike():
    text = "merge_method: ties\nbase_model: x\nmodels: [{model: x/}, {model: a/, parameters: {weight: 1}}]\n"
    found = yaml.safe_load(to_mergekit(load_recipe(text + "tokenizer_source: a\n")))
    assert [entry["model"] for entry in found["models"]] == ["x", "a/"]
    assert found["tokenizer_source"] == "a/"
    section = "tokenizer: {tokens: {x: {source: a}}, pad_to_multiple_of: 8}\nchat_template: chatml\n"
    found = yaml.safe_load(to_mergekit(load_recipe(text + section)))
    tokens = {"x": {"source": "a/"}}
    assert found["tokenizer"] == {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}
    assert found["chat_template"] == "chatml"


@pytest.mark.parametrize(("source", "theirs"), [("m+a", "a"), ("a", "a"), ("m", "m"), ("base", "base")])
def test_the_tokenizer_of_an_adapter_is_named_by_the_adapter(source: str, theirs: str) -> None:
    text = "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: m+a, parameters: {weight: 1}}]\n"
    found = to_mergekit(load_recipe(f"{text}tokenizer_source: {source}\n"))
    assert found is not None
    assert yaml.safe_load(found)["tokenizer_source"] == theirs


def test_defaults_that_differ_are_written_out():
    own = make_method(
        "karcher", Option("max_iter", int, 99, ""), Option("tol", float, 1e-5, ""), origin="zero"
    )
    source = {"merge_method": "karcher", "models": [{"model": "a"}]}
    for given_, written in (
        ({}, 99),
        ({"max_iter": 5}, 5),
        ({"max_iter": {"filter": "q", "value": 1}}, [{"filter": "q", "value": 1}, {"value": 99}]),
    ):
        text = to_mergekit(load_recipe(source | {"parameters": given_}, methods={"karcher": own}))
        assert yaml.safe_load(text)["parameters"] == {"max_iter": written}


NUMBERS = st.integers(-3, 3) | st.floats(-5, 5) | st.sampled_from(["1e-3", "0.5", "-2e1"])
WORDS = st.sampled_from(["fast", "slow", "1e-3"])


def written(scalars):
    """Return a strategy of settings of all forms."""
    plain = scalars | st.lists(scalars, min_size=1, max_size=5)
    rule = st.fixed_dictionaries(
        {"value": plain},
        optional={"filter": st.none() | st.sampled_from(["mlp", "q_proj", "*", "x", "norm", ""])},
    )
    return plain | rule | st.lists(rule, min_size=1, max_size=3)


def parity(kind, setting, tensor, depth):
    recipe = load_recipe(
        {"merge_method": "m", "models": [{"model": "a"}], "parameters": {"p": setting}},
        methods={
            "m": make_method("m", Option("p", kind, "none" if kind is str else kind(0), ""), origin="zero")
        },
    )
    spec = base.ParameterSpec(
        "p", kind, base.ParameterScope.SHARED, default="none" if kind is str else kind(0)
    )
    read = config.MergeConfiguration.model_validate(
        {"merge_method": "m", "models": [{"model": "a"}], "parameters": {"p": setting}}
    )
    other = resolver.resolve_parameter(spec, [read.parameters], tensor_name=tensor, t=depth)
    return resolve(recipe, tensor, depth).values()["p"], other


DEPTHS = st.floats(0, 1) | st.integers(0, 31).map(lambda layer: layer / 31)


@given(written(NUMBERS), st.sampled_from(NAMES), DEPTHS)
@settings(deadline=None)
def test_numbers_resolve_as_in_mergekit(setting, tensor, depth):
    ours, other = parity(float, setting, tensor, depth)
    assert alike(ours, other)


@given(written(st.booleans()), st.sampled_from(NAMES), DEPTHS)
@settings(deadline=None)
def test_flags_resolve_as_in_mergekit(setting, tensor, depth):
    ours, other = parity(bool, setting, tensor, depth)
    assert ours is other


@given(written(WORDS), st.sampled_from(NAMES), DEPTHS)
@settings(deadline=None)
def test_words_resolve_as_in_mergekit(setting, tensor, depth):
    ours, other = parity(str, setting, tensor, depth)
    assert ours == other


@given(
    written(st.integers(-4, 4).map(lambda n: 4 * n)),
    st.sampled_from(NAMES),
    st.sampled_from([0, 0.25, 0.5, 1]),
)
@settings(deadline=None)
def test_whole_numbers_resolve_as_in_mergekit(setting, tensor, depth):
    ours, other = parity(int, setting, tensor, depth)
    assert ours == other
    assert type(ours) is int
