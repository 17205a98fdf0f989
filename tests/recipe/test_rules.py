import pytest

from submerge.recipe import load_recipe

BASE = "merge_method: updates\nbase_model: base\nmodels: [{model: a}]\nparameters:\n  weight: 1\n"


@pytest.mark.parametrize(
    ("written", "rules"),
    [
        ("1", [(1.0, None)]),
        ("1e-1", [(0.1, None)]),
        ("[0, 0.5, '1']", [((0.0, 0.5, 1.0), None)]),
        ("{value: 0.5}", [(0.5, None)]),
        ("{value: 0.5, filter: mlp}", [(0.5, "mlp")]),
        ("{value: 0.5, filter: '*'}", [(0.5, None)]),
        ("{value: 0.5, filter: null}", [(0.5, None)]),
        ("[{filter: mlp, value: [0, 1]}, {value: 0.5}]", [((0.0, 1.0), "mlp"), (0.5, None)]),
    ],
)
def test_forms(toys, written, rules):
    setting = load_recipe(f"{BASE}  density: {written}\n", methods=toys).parameters["density"]
    assert [(rule.value, rule.filter) for rule in setting.rules] == rules
    assert setting.path == "parameters.density"
    assert all(rule.where == "recipe:6" for rule in setting.rules)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "density has no value"),
        ("[]", "density is an empty list"),
        ("{}", "this rule has no 'value'"),
        ("{filter: mlp}", "this rule has no 'value'"),
        ("{filter: mlp, vlaue: 1}", "did you mean 'value'?"),
        ("{filter: 3, value: 1}", "a filter is part of a tensor's name, not 3"),
        ("{filter: [mlp], value: 1}", "a filter is part of a tensor's name, not a list"),
        ("{value: }", "density has no value"),
        ("{value: []}", "density is an empty list"),
        ("{value: {value: 1}}", "a mapping cannot stand inside a rule"),
        ("{value: [{value: 1}]}", "a mapping cannot stand inside a list"),
        ("[{value: 1}, 0.5]", "a list of rules holds 0.5 — write '- value: …'"),
        ("[0.5, {value: 1}]", "a list of rules holds 0.5"),
        ("[[0.5]]", "a list cannot stand inside a list"),
        ("[0.5, null]", "density has no value"),
        ("true", "density must be a number, not True"),
        ("lots", "density must be a number, not 'lots'"),
        ("2", "density must lie in [0, 1]; found 2"),
        ("[0, 2]", "density must lie in [0, 1]; found 2"),
        (".nan", "density must lie in [0, 1]; found nan"),
        ("1" + "0" * 308 + "0", "density must"),
    ],
)
def test_forms_that_are_refused(problems, written, message):
    (found,) = problems(f"{BASE}  density: {written}\n")
    assert found.startswith("recipe:6: ")
    assert message in found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("layers: 2.5", "layers must be a whole number, not 2.5"),
        ("layers: .inf", "layers must be"),
        ("normalize: 2", "normalize must be true or false, not 2"),
        ("mode: medium", "mode must be one of fast, slow, 1e-3; found 'medium'"),
    ],
)
def test_scalars_are_checked_up_front(problems, line, message):
    assert message in problems(f"{BASE}  {line}\n")[0]


def test_every_problem_has_the_line_of_its_own_rule(problems):
    found = problems(
        f"{BASE}  density:\n    - filter: mlp\n      value: 2\n    - value:\n        - 0\n        - 3\n"
    )
    assert [message.split(": ")[0] for message in found] == ["recipe:8", "recipe:11"]
