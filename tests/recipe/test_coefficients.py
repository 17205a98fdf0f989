"""Weights from a file: read and checked, in a recipe, and resolved for each tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.recipe import Recipe, load_recipe, read_coefficients, resolve, to_mergekit

MODULES = {"x.0.q": {"a": 0.25, "b": -1}, "x.0.up.weight": {"a": 0.5}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(content: Any = None, name: str = "c.json") -> str:
    text = content if isinstance(content, str) else json.dumps(content or {"coefficients": MODULES})
    Path(name).write_text(text)
    return name


def recipe(method: str = "cat", **more: Any) -> Recipe:
    data = {"merge_method": method, "base_model": "base", "models": [{"model": "m/a"}, {"model": "base+b@1"}]}
    return load_recipe(data | {"coefficients": "c.json"} | more)


def refused(**more: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        recipe(**more)
    assert all(problem.hint for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def weights(one: Recipe, tensor: str) -> list[Any]:
    found: list[Any] = resolve(one, tensor, 0.0).values()["weight"]
    return found


# --- the file ---------------------------------------------------------------------------------------------


def test_a_file_is_read_with_modules_as_tensors_are_called() -> None:
    found = read_coefficients(written())
    assert found.weights == {"x.0.q": {"a": 0.25, "b": -1.0}, "x.0.up": {"a": 0.5}}
    assert found.adapters == ("a", "b")
    assert found.initial is None
    assert not found.by_unit
    assert found.of("x.0.q.weight") == found.of("x.0.q.bias") == {"a": 0.25, "b": -1.0}
    assert found.of("x.0.q_norm.weight") == found.of("x.0.weight") == {}


def test_numbers_by_unit() -> None:
    found = read_coefficients(written({"coefficients": {"q": {"a": [0.5, 1]}}}))
    assert found.weights["q"]["a"] == (0.5, 1.0)
    assert found.by_unit
    assert found.of("q.weight") == found.of("q") == found.weights["q"]
    assert found.of("q.bias") == {"a": 0.75}, "which has no units"


def test_digests_of_adapters_are_those_of_a_calibration() -> None:
    inputs = {"a": {"adapter": "12ab", "data": "cd"}, "b": {"data": "cd"}, "c": 1}
    assert read_coefficients(written({"coefficients": MODULES, "inputs": inputs})).digests == {"a": "12ab"}
    for other in ({}, {"inputs": ["a"]}):
        assert read_coefficients(written({"coefficients": MODULES} | other)).digests == {}


def test_scales_and_the_base_are_those_of_a_calibration() -> None:
    inputs = {"a": {"scales": 2}, "b": {"scales": {"q": 0.5, "k": "x"}}, "c": {"scales": "2"}}
    found = read_coefficients(written({"coefficients": MODULES, "inputs": inputs, "base": "12ab"}))
    assert (found.scales, found.base) == ({"a": 2.0, "b": {"q": 0.5}}, "12ab")
    for other in ({}, {"inputs": ["a"], "base": 3}):
        found = read_coefficients(written({"coefficients": MODULES} | other))
        assert (found.scales, found.base) == ({}, None)


def test_the_digest_is_that_of_the_numbers_alone() -> None:
    plain = read_coefficients(written()).digest
    assert read_coefficients(written({"loss": [1], "coefficients": MODULES, "version": 1})).digest == plain
    assert read_coefficients(written({"coefficients": MODULES, "initial": 0.4})).digest != plain
    other = MODULES | {"x.0.q": {"a": 0.25, "b": -1.0000001}}
    assert read_coefficients(written({"coefficients": other})).digest != plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"coefficients": {"q": {"a": NaN}}}', "NaN is not JSON"),
        ('{"coefficients": {"q": {"a": 1e999}}}', "q, a: a coefficient is a finite number, not Infinity"),
        ({"coefficients": {"q": {"a": None}}}, "q, a: a coefficient is a finite number, not null"),
        ({"coefficients": {"q": {"a": True}}}, "q, a: a coefficient is a finite number, not true"),
        ({"coefficients": {"q": {"a": [1, "x"]}}}, 'q, a: a coefficient is a finite number, not "x"'),
        ({"coefficients": {"q": {"a": []}}}, "q, a: a coefficient is a finite number, not []"),
        ({"coefficients": {"q": {"a": 10**400}}}, "q, a: a coefficient is a finite number, not 1000"),
        ({"coefficients": {"q": 0.4}}, "q: the coefficients of a module are numbers by adapter"),
        ({"coefficients": {}}, "there is no key 'coefficients'"),
        ({"weights": {}}, "there is no key 'coefficients'"),
        ([1], "there is no key 'coefficients'"),
        ({"coefficients": {"q": {"a": 1}}, "version": 2}, "is of version 2"),
        (
            {"coefficients": {"q": {"a": 1}, "q.weight": {"a": 2}}},
            "q is there twice, with and without .weight",
        ),
        ({"coefficients": {"q": {"a": 1}}, "initial": "x"}, "initial: a coefficient is a finite number"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_the_recipes_line(content: Any, message: str) -> None:
    written(content)
    text = "merge_method: cat\nbase_model: base\nmodels: [{model: a}]\ncoefficients: c.json\n"
    with pytest.raises(RequestError) as caught:
        load_recipe(text)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith("recipe:4: c.json: ")
    assert message in str(caught.value)
    assert " — " in str(caught.value)


def test_of_many_wrong_numbers_some_are_told() -> None:
    written({"coefficients": {f"q{i}": {"a": None} for i in range(40)}})
    messages = refused()
    assert len(messages) == 6
    assert "35 more" in messages[-1]


def test_a_file_that_is_not_there() -> None:
    (message,) = refused(coefficients="no.json")
    assert message.startswith("coefficients: no.json: the coefficients cannot be read")
    for method in ("task_arithmetic", "nsc"):  # of which each model needs a weight
        (message,) = refused(coefficients="no.json", merge_method=method)
        assert "no.json" in message


# --- the key ----------------------------------------------------------------------------------------------


def test_weights_come_from_the_file_and_elsewhere_from_the_default() -> None:
    written()
    one = recipe()
    assert weights(one, "x.0.q.weight") == [0.25, -1.0]
    assert weights(one, "x.0.up.weight") == [0.5, 1.0]
    assert weights(one, "norm.weight") == [1.0, 1.0]
    assert weights(one, "x.0.q.weight") == [0.25, -1.0], (
        "what is remembered of other tensors has no part in it"
    )
    found = resolve(one, "x.0.up.weight", 0.5)["weight"]
    assert isinstance(found, list)
    assert [value.why for value in found] == ["c.json", "default"]


def test_the_files_initial_weight_comes_before_the_default() -> None:
    written({"coefficients": MODULES, "initial": 0.4})
    one = recipe()
    assert weights(one, "norm.weight") == [0.4, 0.4]
    found = resolve(one, "norm.weight", 0.5)["weight"]
    assert isinstance(found, list)
    assert found[0].why == "c.json, initial"


def test_a_method_without_a_default_needs_a_weight_for_each_tensor() -> None:
    written()
    one = recipe("ties", parameters={"density": [{"filter": "q", "value": 0.5}, {"value": [0, 1]}]})
    assert weights(one, "x.0.q.weight") == [0.25, -1.0]
    assert resolve(one, "x.0.q.weight", 0.5).values()["density"] == [0.5, 0.5]
    with pytest.raises(RequestError, match=r"no value of 'weight' for tensor norm.*'initial'"):
        weights(one, "norm")
    written({"coefficients": MODULES, "initial": 0.0})
    assert weights(recipe("ties"), "norm") == [0.0, 0.0]


def test_other_options_keep_their_rules() -> None:
    written({"coefficients": MODULES, "initial": 1})
    one = recipe("task_arithmetic", parameters={"lambda": [{"filter": "q", "value": 0.5}, {"value": [0, 1]}]})
    values = {t: resolve(one, t, 0.5).values() for t in ("x.0.q.weight", "x.0.up.weight")}
    assert values["x.0.q.weight"]["lambda"] == values["x.0.up.weight"]["lambda"] == 0.5
    assert values["x.0.up.weight"]["weight"] == [0.5, 1.0]


def test_names_of_entries_come_before_the_last_part_of_their_paths() -> None:
    written()
    one = recipe(models=[{"model": "m/first", "name": "b"}, {"model": "base+m/a/"}])
    assert weights(one, "x.0.q.weight") == [-1.0, 0.25]


def test_a_resolved_recipe_can_be_loaded_again() -> None:
    written()
    one = recipe("ties", models=[{"model": "m/a", "name": "a"}, {"model": "b"}])
    assert one.resolved()["coefficients"] == "c.json"
    assert "weight" not in one.resolved()["parameters"]
    assert load_recipe(one.resolved()).resolved() == one.resolved()
    assert "weight" not in recipe().resolved()["parameters"], "nor the default of a method that has one"


def test_mergekit_has_no_such_weights() -> None:
    written({"coefficients": MODULES, "initial": 1})
    assert to_mergekit(recipe("ties")) is None


@pytest.mark.parametrize("where", ["parameters", "models"])
def test_a_weight_besides_is_refused(where: str) -> None:
    written()
    own = {"parameters": {"weight": 1}}
    models = [{"model": "a", **(own if where == "models" else {})}, {"model": "b"}]
    (message,) = refused(models=models, **(own if where == "parameters" else {}))
    assert "'weight' is given, and so is a file of coefficients" in message
    assert message.startswith("parameters.weight" if where == "parameters" else "models[0].parameters.weight")


def test_models_that_the_file_does_not_name_are_refused_with_those_that_it_has() -> None:
    written()
    (message,) = refused(models=[{"model": "a"}, {"model": "c"}])
    assert message.startswith("models[1]: c.json has no coefficients of 'c' — it has 'a', 'b'")
    (message,) = refused(models=[{"model": "x/a"}, {"model": "y/a"}])
    assert "several models would be called a" in message


@pytest.mark.parametrize("method", ["mass", "slerp", "karcher", "passthrough"])
def test_methods_without_weights_have_no_coefficients(method: str) -> None:
    written()
    models = [{"model": "a"}]
    given = {"t": 0.5} if method == "slerp" else {}
    (message,) = refused(method=method, models=models, parameters=given)
    assert f"{method} has no weight of each model" in message


def test_numbers_by_unit_are_for_nsc() -> None:
    written({"coefficients": {"q": {"a": [0.5], "b": 1}}})
    assert weights(recipe("nsc"), "q.weight") == [(0.5,), 1.0]
    (message,) = refused(method="cat")
    assert "c.json has numbers for rank-one units, and cat has one weight for an update" in message


def test_a_key_that_names_no_file_is_refused() -> None:
    (message,) = refused(coefficients={"q": 1})
    assert "coefficients are in a file, and not a mapping" in message


# --- data -------------------------------------------------------------------------------------------------


def data_recipe(*sources: Any, **more: Any) -> Recipe:
    models = [{"model": f"m{i}", **({} if s is None else {"data": s})} for i, s in enumerate(sources)]
    return load_recipe({"merge_method": "nsc", "base_model": "base", "models": models} | more)


def data_refused(*sources: Any, **more: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        data_recipe(*sources, **more)
    assert all(problem.hint for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_a_recipe_with_data_calibrates_from_its_initial_weights() -> None:
    Path("in.jsonl").write_text("{}")
    source = {"path": "in.jsonl", "split": "validation", "columns": {"text": "question"}, "limit": 8}
    one = data_recipe("in.jsonl", source, parameters={"initial": 0.3, "steps": 7}, seed=5)
    assert one.calibrates
    assert [entry.data for entry in one.models] == ["in.jsonl", source]
    assert weights(one, "anything") == [0.3, 0.3]
    assert one.weights_from == "learned before the merge, from data of 2 tasks in 7 steps"
    assert one.resolved()["models"][1]["data"] == source
    assert load_recipe(one.resolved()).resolved() == one.resolved()
    assert load_recipe(one.resolved()).calibrates


def test_a_name_that_is_no_path_may_be_that_of_a_data_set() -> None:
    assert data_recipe("org/questions").calibrates


@pytest.mark.parametrize(
    "name", ["no.jsonl", "./inputs", "no/", "/no/such", "no.csv", "no.txt", "no.parquet", "no.jsonl.gz"]
)
def test_a_path_that_is_not_there(name: str) -> None:
    (message,) = data_refused(name)
    assert message.startswith("models[0].data: there is no such file or folder")
    (message,) = data_refused({"path": name})
    assert message.startswith("models[0].data.path: there is no such file or folder")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "models[0].data: data is a path or a mapping, not 5"),
        (["a"], "models[0].data: data is a path or a mapping, not a list"),
        ("", "models[0].data: there is no such file or folder: ''"),
        ({"split": "x"}, "models[0].data: there is no path — path: inputs.jsonl"),
        ({"path": ""}, "models[0].data.path: path is '', not a path"),
        ({"path": "x", "splitt": "x"}, "models[0].data.splitt: unknown key 'splitt'"),
        ({"path": "x", "split": 3}, "models[0].data.split: split is 3, not the name of a split"),
        ({"path": "x", "limit": 0}, "models[0].data.limit: limit is 0, not a number of rows"),
        ({"path": "x", "limit": True}, "models[0].data.limit: limit is True, not a number of rows"),
        (
            {"path": "x", "columns": ["q"]},
            "models[0].data.columns: columns is ['q'], not names for some of text",
        ),
        ({"path": "x", "columns": {"q": "text"}}, "models[0].data.columns: columns is {'q': 'text'}, not"),
    ],
)
def test_a_source_that_cannot_be_read(source: Any, message: str) -> None:
    (found,) = data_refused(source)
    assert found.startswith(message)


def test_missing_data_is_told_with_both_ways_out() -> None:
    messages = data_refused("x", None)
    assert len(messages) == 1
    assert messages[0].startswith("models[1]: m1 has no data to learn its weights from")
    assert "'data: …'" in messages[0]
    assert "'coefficients: file.json'" in messages[0]


def test_data_and_weights_exclude_each_other() -> None:
    (message,) = data_refused("x", None, parameters={"weight": 1})
    assert message.startswith("models[0].data: 'data' is given, and so is 'weight'")
    assert not data_recipe(None, parameters={"weight": 1}).calibrates


def test_a_file_of_coefficients_makes_data_needless() -> None:
    written({"coefficients": {"q": {"m0": 1, "m1": 2}}})
    one = data_recipe(None, None, coefficients="c.json")
    assert not one.calibrates
    assert weights(one, "q.weight") == [1.0, 2.0]


def test_data_and_a_file_of_coefficients_exclude_each_other() -> None:
    written({"coefficients": {"q": {"m0": 1, "m1": 2}}})
    (message,) = data_refused(None, "x", coefficients="c.json")
    assert message.startswith("models[1].data: 'data' is given, and so is a file of coefficients")


def test_a_base_is_needed_to_run_data_through() -> None:
    (message,) = data_refused("x", base_model=None, output={"as": "adapter"})
    assert "nsc needs a base_model, through which the data runs" in message
    messages = data_refused("x", base_model=None)
    assert any(message.endswith("nsc needs a base_model — add 'base_model: …'") for message in messages)


def test_data_is_for_methods_that_learn() -> None:
    models = [{"model": "a", "data": "x"}]
    with pytest.raises(RequestError) as caught:
        load_recipe({"merge_method": "cat", "base_model": "base", "models": models})
    assert "cat learns nothing from data — calibrate a recipe with 'merge_method: nsc'" in str(caught.value)


def test_names_are_for_methods_that_learn_and_for_coefficients() -> None:
    assert data_recipe("x").participants[0].adapter_name == "m0"
    with pytest.raises(RequestError, match="'name' says something about a task"):
        load_recipe({"merge_method": "cat", "base_model": "b", "models": [{"model": "a", "name": "x"}]})


def test_settings_that_cannot_be() -> None:
    (message,) = data_refused("x", parameters={"low": 0.5})
    assert message.startswith("parameters: initial is 0.4, which is not between low (0.5) and high (none)")
    (message,) = data_refused("x", parameters={"hooks": "last_quarter: ("})
    assert "is no regular expression" in message


def test_the_arguments_that_options_mean() -> None:
    found = data_recipe("x", parameters={"high": 1, "compute_dtype": "bfloat16"}).calibration_settings()
    assert found["bounds"] == (-3e38, 1.0)
    assert found["dtype"] == "bfloat16"
    assert data_recipe("x").calibration_settings()["bounds"] is None
    paper = data_recipe("x", parameters={"preset": "paper", "steps": 3})
    assert paper.calibration_settings()["learning_rate"] == 3e-4
    assert paper.calibration_settings(vision=True)["learning_rate"] == 1e-3
    assert paper.calibration_settings(vision=True)["steps"] == 3
    assert paper.calibration_settings()["where_rising"] == "learn"
