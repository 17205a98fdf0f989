"""What mergekit ignores: a problem by default, a warning where recipes are read as mergekit does."""

from pathlib import Path

import pytest
import yaml

from submerge.errors import RequestError
from submerge.recipe import load_recipe

TIES = """\
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {weight: 0.5, density: 0.5}
  - model: b
    parameters: {weight: 0.3}
"""
SLERP = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: a}]\nparameters: {t: 0.5}\n"
SLICES = """\
merge_method: slerp
base_model: base
parameters: {t: 0.5}
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - model: a
        layer_range: [0, 2]
"""
IGNORED = {
    "a key that is unknown": (TIES + "description: best of both\n", 9, "unknown key 'description'"),
    "a key of Submerge, misspelt": (TIES + "random_seed: 7\n", 9, "unknown key 'random_seed'"),
    "a key of mergekit-moe": (TIES + "gate_mode: hidden\n", 9, "'gate_mode' is not supported"),
    "a parameter of another method": (TIES + "parameters: {t: 0.5}\n", 9, "ties has no parameter 't'"),
    "a parameter that is unknown": (
        TIES + "parameters: {embed_slerp: true}\n",
        9,
        "ties has no parameter 'embed_slerp'",
    ),
    "a parameter for all in an entry": (
        TIES.replace("weight: 0.3", "weight: 0.3, normalize: false"),
        8,
        "'normalize' is one value for all models",
    ),
    "a key of an entry": (TIES + "    weight: 3\n", 9, "unknown key 'weight'"),
    "a layer range of an entire model": (TIES + "    layer_range: [0, 2]\n", 9, "'layer_range' is not"),
    "a name of an entry": (TIES + "    name: second\n", 9, "'name' says something about a task"),
    "a key of a rule": (
        SLERP.replace("t: 0.5", "t: [{filter: mlp, value: 1, note: high}, {value: 0.5}]"),
        4,
        "unknown key 'note'",
    ),
    "a key of a model's mapping": (
        TIES.replace("model: b\n", "model: {model: {path: b, sha: 1}}\n"),
        7,
        "unknown key 'sha'",
    ),
    "an architecture": (
        TIES.replace("model: b\n", "model: {model: {path: b}, override_architecture: X}\n"),
        7,
        "'override_architecture' is not supported",
    ),
    "a key of a slice": (
        SLICES.replace("  - sources", "  - residual_weight: 0.5\n    sources"),
        5,
        "'residual_weight'",
    ),
    "a key of a source": (SLICES + "        name: second\n", 9, "'name' has no place in a slice"),
    "a key of a source that is unknown": (SLICES + "        weight: 1\n", 9, "unknown key 'weight'"),
    "a parameter for all in a source": (
        SLICES + "        parameters: {t: 0.3}\n",
        9,
        "'t' is one value for all models",
    ),
    "a base's tokenizer without a base": (
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\ntokenizer_source: base\n",
        3,
        "the tokenizer is the base's, and there is no base_model",
    ),
    "a setting without values": (TIES + "parameters: {lambda: []}\n", 9, "lambda is an empty list"),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_what_mergekit_ignores_is_a_warning_where_it_is_asked_for(kind: str) -> None:
    text, line, what = IGNORED[kind]
    with pytest.raises(RequestError) as caught:
        load_recipe(text)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"recipe:{line}: {what}")

    (warning,) = load_recipe(text, mergekit=True).warnings
    assert warning.startswith(f"recipe:{line}: {what}")
    assert warning.endswith("; it is ignored, as by mergekit")


@pytest.mark.parametrize("kind", IGNORED)
def test_what_is_ignored_means_nothing(kind: str) -> None:
    """The recipe without it, as mergekit reads it, is the same."""
    pytest.importorskip("mergekit.config")
    import mergekit.config as theirs

    text, *_ = IGNORED[kind]
    read = theirs.MergeConfiguration.model_validate(yaml.safe_load(text))
    recipe = load_recipe(text, mergekit=True)
    assert recipe.warnings
    assert load_recipe(recipe.resolved()).resolved() == recipe.resolved()
    assert {entry.model for entry in recipe.models} == {
        str(model.model) for model in read.referenced_models()
    }


def test_duplicate_keys_hold_as_in_mergekit() -> None:
    text = TIES + "parameters: {density: 0.1}\nparameters: {density: 0.9}\n"
    with pytest.raises(RequestError, match="given twice, on lines 9 and 10"):
        load_recipe(text)
    recipe = load_recipe(text, mergekit=True)
    assert recipe.parameters["density"].written() == 0.9
    assert recipe.parameters["density"].rules[0].where == "recipe:10"
    assert recipe.warnings == (
        "recipe:10: key 'parameters' is given twice, on lines 9 and 10; the last one holds, as in mergekit",
    )


@pytest.mark.parametrize(
    "text",
    [
        TIES.replace("ties", "tise"),
        TIES.replace("0.3", "much"),
        TIES + "rules: {mising: base}\n",
        TIES + "output: {kind: adapter}\n",
        TIES + "dtype: int3\n",
        TIES.replace("{weight: 0.3}", "{density: 0.3}"),
    ],
)
def test_what_mergekit_reads_and_what_is_our_own_is_checked_all_the_same(text: str) -> None:
    with pytest.raises(RequestError):
        load_recipe(text, mergekit=True)


UNDERSTOOD = {
    "name: my-merge": {},
    "dtype: ''": {"dtype": None},
    "dtype: float16": {"dtype": "float16"},
    "dtype: torch.bfloat16": {"dtype": "bfloat16"},
    "out_dtype: float32": {"out_dtype": "float32"},
    "slices: null": {},
    "modules: null": {},
    "parameters: null": {},
    "tokenizer_source: null": {"tokenizer_source": None},
    "tokenizer_source: base": {"tokenizer_source": "base"},
    "tokenizer: {source: a}": {"tokenizer_source": "a"},
    "chat_template: null": {},
}


@pytest.mark.parametrize("line", UNDERSTOOD)
def test_keys_that_are_always_understood(line: str) -> None:
    resolved = load_recipe(f"{TIES}{line}\n").resolved()
    assert {key: resolved.get(key) for key in UNDERSTOOD[line]} == UNDERSTOOD[line]


VALUES = [
    ("normalize: 1.0", "normalize", True),
    ("normalize: 0", "normalize", False),
    ('normalize: "true"', "normalize", True),
    ("normalize: 'off'", "normalize", False),
    ("int8_mask: 1.0", "int8_mask", True),
    ("int8_mask: [{filter: mlp, value: 1}, {value: 0.0}]", "int8_mask", [True, False]),
    ("density: '0.5'", "density", 0.5),
    ("density: '5e-1'", "density", 0.5),
    ("density: 1e-1", "density", 0.1),
    ("density: [1, '0.5']", "density", [1.0, 0.5]),
    ("density: {value: 0.5}", "density", 0.5),
    ("density: {filter: '*', value: 0.5}", "density", 0.5),
    ("density: {filter: null, value: [0, 1]}", "density", [0.0, 1.0]),
]


@pytest.mark.parametrize(("line", "name", "value"), VALUES)
def test_values_that_are_always_understood(line: str, name: str, value: object) -> None:
    (*rules,) = load_recipe(f"{TIES}parameters: {{{line}}}\n").parameters[name].rules
    assert [rule.written() for rule in rules] == (value if len(rules) > 1 else [value])


def test_a_parameter_goes_by_one_name_in_mergekit() -> None:
    text = TIES + "parameters: {scale: 0.7}\n"
    assert load_recipe(text).parameters["lambda"].written() == 0.7
    recipe = load_recipe(text, mergekit=True)
    assert "lambda" not in recipe.parameters
    assert recipe.warnings[0].startswith("recipe:9: ties has no parameter 'scale'")


def test_true_is_one_where_mergekit_takes_it_for_a_number() -> None:
    text = TIES + "parameters: {lambda: true}\n"
    with pytest.raises(RequestError, match="lambda must be a number"):
        load_recipe(text)
    assert load_recipe(text, mergekit=True).parameters["lambda"].written() == 1.0


def test_a_model_may_be_a_word() -> None:
    recipe = load_recipe("merge_method: karcher\nmodels: [a, org/b@v1, c+adapter]\n")
    assert [entry.model for entry in recipe.models] == ["a", "org/b@v1", "c+adapter"]


def test_ranges_without_layers_are_those_of_mergekit() -> None:
    """They add no layer; the first and the last slice still have what is beside the layers."""
    text = SLICES + "  - sources: [{model: base, layer_range: [2, 2]}, {model: a, layer_range: [4, 3]}]\n"
    with pytest.raises(RequestError, match=r"recipe:9: layer_range \[2, 2\] has no layer"):
        load_recipe(text)
    recipe = load_recipe(text, mergekit=True)
    last = recipe.stack[0].slices[-1]
    assert [(source.start, source.stop) for source in last.sources] == [(2, 2), (4, 4)]
    assert recipe.warnings == (
        "recipe:9: layer_range [2, 2] has no layer; it is ignored, as by mergekit",
        "recipe:9: layer_range [4, 3] has no layer; it is ignored, as by mergekit",
    )
    with pytest.raises(RequestError, match="counts from 0 on"):
        load_recipe(text.replace("[4, 3]", "[-1, 3]"), mergekit=True)


def test_numbers_of_layers_may_be_in_quotes_or_have_a_point() -> None:
    first = load_recipe(SLICES.replace("[0, 2]", '["0", 2.0]')).stack[0].slices[0].sources[0]
    assert (first.start, first.stop) == (0, 2)
    for wrong in ("[0, 2.5]", "[0, true]", "[0, two]", "[0, 2, 4]", "0-2"):
        with pytest.raises(RequestError, match="layer_range is a list of two whole numbers"):
            load_recipe(SLICES.replace("[0, 2]", wrong))


ALONE = "merge_method: ties\nbase_model: base+adapter\nmodels: [{model: base+adapter}]\n"


def test_a_base_alone_is_copied() -> None:
    """So people make a model of an adapter."""
    with pytest.raises(RequestError, match="ties merges at least 1 model besides the base; found 0"):
        load_recipe(ALONE)
    recipe = load_recipe(ALONE, mergekit=True)
    assert [entry.model for entry in recipe.participants] == ["base+adapter"]
    assert recipe.warnings == (
        "recipe:1: ties merges no model besides the base, and the result is a copy of it",
    )
    with pytest.raises(RequestError, match="nearswap merges exactly 1 model"):
        load_recipe(ALONE.replace("ties", "nearswap") + "parameters: {t: 1}\n", mergekit=True)


def test_what_has_no_effect_may_stand_anywhere() -> None:
    own = SLERP.replace("{model: a}", "{model: a, parameters: {int8_mask: true}}")
    recipe = load_recipe(own.replace("t: 0.5", "t: 0.5, int8_mask: 1.0"))
    assert set(recipe.parameters) == {"t"}
    assert not recipe.warnings


def test_revisions_of_local_paths_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b@c"):
        (tmp_path / folder).mkdir()
    text = "merge_method: karcher\nmodels: [a@v1, {model: {path: a, revision: v2}}, b@c, org/d@v1, e+a@v3]\n"
    recipe = load_recipe(text, mergekit=True)
    assert [entry.model for entry in recipe.models] == ["a", "a", "b@c", "org/d@v1", "e+a"]
    assert len(recipe.warnings) == 3
    told = "recipe:2: a is a local path, which has no revision 'v1'; it is ignored, as by mergekit"
    assert recipe.warnings[0] == told
    assert load_recipe(text).models[0].model == "a@v1"
