"""Whatever a recipe holds, it is read or refused: nothing else comes out."""

import copy
import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from submerge.errors import RequestError
from submerge.recipe import Recipe, load_recipe, resolve, to_mergekit

from .conftest import TOYS
from .examples import EXAMPLES

SEEDS = [yaml.safe_load(text) for text in EXAMPLES.values()] + [
    {
        "merge_method": name,
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": [0, 1]}},
            {"model": {"path": "b", "revision": "x"}},
        ],
        "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 2}], "t": 0.2, "mode": "slow"},
        "tokenizer": {"source": "base"},
        "rules": {"missing": "base"},
        "seed": 3,
    }
    for name in TOYS
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["base", "a", "b+c", "a@b", "union", "ties", "updates", "1e-5", 10**400, float("inf")])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "filter", "model", "weight", "path", "revision", "lora", "source"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def outcome(source, methods=None):
    """Read a recipe, and use it where it was read."""
    try:
        recipe = load_recipe(source, methods=methods)
    except RequestError as error:
        return error
    json.dumps(recipe.resolved())
    to_mergekit(recipe)
    for depth in (0.0, 0.4):
        try:
            resolve(recipe, "model.mlp", depth)
        except RequestError as error:
            return error
    return recipe


@st.composite
def mutated(draw):
    """Draw a good recipe with some of its parts replaced, removed, repeated or renamed."""
    data = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 2))):
        place = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and draw(st.integers(0, 3)):
                place = place[key]
                continue
            action = draw(st.integers(0, 3))
            if action == 0:
                place[key] = draw(JUNK)
            elif action == 1:
                del place[key]
            elif isinstance(place, list):
                place.append(copy.deepcopy(place[key]))
            elif action == 2:
                place[draw(st.text(max_size=4))] = place.pop(key)
            else:
                place[key[1:] + key[:1]] = place.pop(key)
            break
    return data


def usable(outcome):
    return isinstance(outcome, (Recipe, RequestError))


@given(mutated(), st.sampled_from([TOYS, None]))
@settings(max_examples=200, deadline=None)
def test_mutated_recipes(data, methods):
    first = outcome(data, methods)
    assert usable(first)
    text = yaml.safe_dump(data, sort_keys=False)
    second = outcome(text, methods)
    assert type(first) is type(second)
    if isinstance(first, Recipe):
        assert first.resolved() == second.resolved()
        assert load_recipe(first.resolved(), methods=methods).resolved() == first.resolved()


KEYS = st.sampled_from(["merge_method", "models", "parameters", "base_model"]) | st.text(max_size=4)


@given(st.dictionaries(KEYS, JUNK))
@settings(deadline=None)
def test_junk_mappings(data):
    assert usable(outcome(data, TOYS))


@given(st.sampled_from(list(EXAMPLES.values())), st.data())
@settings(max_examples=100, deadline=None)
def test_text_with_wounds(text, data):
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 5))
        text = (
            text[:at]
            + data.draw(st.text(alphabet="\n\t -:[]{}&*!#'\"<a1.\x00é", max_size=3))
            + text[at + cut :]
        )
    assert usable(outcome(text + "\n"))


@given(st.text(max_size=80).map(lambda text: text + "\n"))
@settings(deadline=None)
def test_any_text(text):
    assert usable(outcome(text, TOYS))


@given(raw=st.binary(max_size=80))
@settings(deadline=None)
def test_any_bytes(raw, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(raw)
    assert usable(outcome(file, TOYS))


@given(st.text(max_size=30).filter(lambda text: "\n" not in text))
@settings(deadline=None)
def test_any_path(name):
    assert usable(outcome(name, TOYS))
