"""Methods describe themselves whole, and refuse what they cannot do before any work."""

import math
from typing import Any

import pytest
import torch

from _support import Case, case_of, family
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError
from submerge.methods import METHODS, REQUIRED, Method, Option
from submerge.recipe import load_recipe

OPTIONS = [(name, option) for name, method in METHODS.items() for option in method.options]
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_option = pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{n}-{o.name}" for n, o in OPTIONS])


def refused(case: Case, **options: Any) -> str:
    """Return the message with which the merge of the case with these options is refused."""
    base, models = family(case.models, {"w": (4, 3), "b": (3,)})
    with pytest.raises(RequestError) as caught:
        case.merge(base, models, **options)
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 1, "one mistake, one problem"
    return str(caught.value)


FACTORS = [(name, o) for name, o in OPTIONS if o.name in ("lambda", "scale") and o.scope == "shared"]


@pytest.mark.parametrize(("name", "option"), FACTORS, ids=[f"{n}-{o.name}" for n, o in FACTORS])
def test_the_factor_has_two_names(name: str, option: Option) -> None:
    method, other = METHODS[name], {"lambda": "scale", "scale": "lambda"}[option.name]
    assert {method.option(written) for written in (option.name, other, "lambda_")} == {option}
    assert option.name == option.names[0]
    entries = [{"model": f"m{i}"} for i in range(method.min_models)]
    recipe: dict[str, Any] = {"merge_method": name, "base_model": "b", "models": entries}
    given: dict[str, Any] = {o.name: 0.5 for o in method.options if o.default is REQUIRED}
    given |= {"statistics": "identity"} if method.moments else {}
    found = [
        load_recipe(recipe | {"parameters": given | {written: 0.25}}).resolved()
        for written in (option.name, other, "lambda_")
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["parameters"][option.name] == 0.25
    with pytest.raises(RequestError, match=f"'{option.name}' and '{other}' are two names of one parameter"):
        load_recipe(recipe | {"parameters": given | {option.name: 0.25, other: 0.25}})


def test_a_factor_of_each_model_is_another_thing() -> None:
    assert METHODS["passthrough"].option("lambda") is None
    assert METHODS["linear"].option("scale") is None


# What methods say of themselves


@each_method
def test_a_method_describes_itself(method: Method) -> None:
    for text in (method.name, method.title, method.equation, method.source, method.use):
        assert text.strip() == text != ""
    assert "θ = " in method.equation
    assert method.use.endswith(".")
    assert 1 <= method.min_models <= (method.max_models or 99)


@each_method
def test_options_have_names_of_their_own(method: Method) -> None:
    names = [option.name for option in method.options]
    assert len(set(names)) == len(names)
    assert all(method.option(option.name) is option for option in method.options)
    assert method.option("no such option") is None


VARIANTS = {"wudi": ("swudi", "aswudi")}
"""Of methods whose paper has several; all others say by `variant` whose formula it is."""


@each_method
def test_what_a_variant_changes_is_told(method: Method) -> None:
    option = method.option("variant")
    if option is not None:
        assert method.differs
        assert option.choices == VARIANTS.get(method.name, ("mergekit", "paper"))
        assert option.default == option.choices[0]


@each_option
def test_a_default_passes_its_own_check(name: str, option: Option) -> None:
    if option.default is REQUIRED:
        assert repr(option.default) == "required"
    else:
        checked = option.check(option.default)
        assert checked == option.default
        assert type(checked) is type(option.default)
        assert type(checked) is option.kind or checked == option.word


@each_option
def test_an_option_says_what_it_is_for(name: str, option: Option) -> None:
    assert option.help.strip() == option.help != ""
    assert option.scope in ("shared", "model")
    assert not option.choices or option.kind is str


# Option.check

SHARE = Option("share", float, 0.5, "", low=0, high=1)
COUNT = Option("count", int, 1, "", low=0)
FLAG = Option("flag", bool, False, "")
AUTO = Option("auto", float, "auto", "", low=0, word="auto")
WORD = Option("word", str, "a", "", choices=("a", "b"))
ANY = Option("any", str, "", "")


@pytest.mark.parametrize(
    ("option", "value", "checked"),
    [
        (SHARE, 0, 0.0),
        (SHARE, 1, 1.0),
        (SHARE, "1e-5", 1e-5),
        (SHARE, 0.25, 0.25),
        (COUNT, 3, 3),
        (COUNT, 3.0, 3),
        (COUNT, "2", 2),
        (FLAG, True, True),
        (WORD, "b", "b"),
        (ANY, 3, "3"),
        (AUTO, 3, 3.0),
    ],
)
def test_a_value_comes_back_in_the_options_type(option: Option, value: Any, checked: Any) -> None:
    found = option.check(value)
    assert found == checked
    assert type(found) is option.kind


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (SHARE, 1.01, r"share must lie in \[0, 1\]; found 1.01"),
        (SHARE, -1e-9, r"share must lie in \[0, 1\]"),
        (SHARE, math.nan, "share must lie in"),
        (SHARE, "many", "share must be a number, not 'many'"),
        (SHARE, None, "share must be a number, not None"),
        (SHARE, [0.5], "share must be a number"),
        (SHARE, True, "share must be a number, not True"),
        (Option("w", float, 1.0, ""), math.inf, "w must be a finite number; found inf"),
        (COUNT, 2.5, "count must be a whole number, not 2.5"),
        (COUNT, math.inf, "count must be a whole number"),
        (COUNT, math.nan, "count must be a whole number"),
        (COUNT, -1, r"count must lie in \[0, inf\]"),
        (COUNT, False, "count must be a number"),
        (AUTO, -1, r"auto must lie in \[0, inf\]"),
        (AUTO, "car", "auto must be a number or auto, not 'car'"),
        (FLAG, 1, "flag must be true or false, not 1"),
        (FLAG, "true", "flag must be true or false"),
        (WORD, "c", "word must be one of a, b; found 'c'"),
        (WORD, None, "word must be one of"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(option: Option, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        option.check(value)


def test_a_word_may_stand_for_a_number() -> None:
    assert AUTO.check("auto") == "auto"


# A merge with wrong options


PATTERNS = {"hooks"}
"""Options that are regular expressions: what they match is known when there is a model."""


@each_option
def test_a_wrong_option_is_refused(name: str, option: Option) -> None:
    wrong: list[Any] = [math.nan, "nonsense"] if option.name not in PATTERNS else ["("]
    wrong += [] if option.high == math.inf else [option.high + 1]
    wrong += [] if option.low == -math.inf else [option.low - 1]
    case = case_of(name)
    for value in wrong:
        given = [value] * case.models if option.scope == "model" and value == wrong[-1] else value
        base, models = family(case.models, {"w": (4, 3)})
        with pytest.raises(RequestError, match=option.name) as caught:
            case.merge(base, models, **{option.name: given})
        assert all(option.name in str(problem) for problem in caught.value.problems)


@each_option
def test_what_is_required_must_be_given(name: str, option: Option) -> None:
    if option.default is not REQUIRED:
        return
    case = case_of(name)
    options = {k: v for k, v in case.options.items() if k != option.name}
    base, models = family(case.models, {"w": (4, 3)})
    with pytest.raises(RequestError, match=option.name):
        Case(name, name, options, case.models, case.base).merge(base, models)


@each_method
def test_an_unknown_option_is_refused(method: Method) -> None:
    assert "nonsense" in refused(case_of(method.name), nonsense=1)


@each_method
def test_a_number_of_values_that_is_not_that_of_models_is_refused(method: Method) -> None:
    own = [option.name for option in method.options if option.scope == "model"]
    for name in own:
        count = case_of(method.name).models + 1
        assert f"{count} values" in refused(case_of(method.name), **{name: [0.5] * count})


@each_method
def test_a_number_of_models_that_it_cannot_merge_is_refused(method: Method) -> None:
    case = case_of(method.name)
    own = {o.name for o in method.options if o.scope == "model"}
    options = {k: (v[0] if k in own and isinstance(v, list) else v) for k, v in case.options.items()}
    counts = [] if method.max_models is None else [method.max_models + 1]
    counts += [] if method.min_models == 1 else [method.min_models - 1]
    for count in counts:
        listed = count - 1 if case.base and method.base_is_model else count
        if listed < 1:
            continue
        base, models = family(listed, {"w": (4, 3)})
        with pytest.raises(RequestError, match=f"{method.name} merges .*; found {count}"):
            Case(case.name, case.method, options, listed, case.base).merge(base, models)


@each_method
def test_no_models_are_refused(method: Method) -> None:
    case = case_of(method.name)
    with pytest.raises(RequestError, match="models"):
        merge_state_dicts([], base=family(0)[0] if case.base else None, method=case.method)


@each_method
def test_a_base_that_is_needed_must_be_given(method: Method) -> None:
    case = case_of(method.name)
    assert method.needs_base == (method.origin == "base" or method.base_required)
    if method.needs_base:
        _, models = family(case.models, {"w": (4, 3)})
        with pytest.raises(RequestError, match="needs a base_model"):
            merge_state_dicts(models, method=case.method, **case.options)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(RequestError, match=r"unknown method 'tie'.*did you mean 'ties'"):
        merge_state_dicts([{"w": torch.ones(2)}], method="tie")


def test_weights_that_sum_to_zero_cannot_be_normalised() -> None:
    case = case_of("linear")
    assert "the weights sum to zero" in refused(case, weight=[1, -0.5, -0.5])
    base, models = family(3, {"w": (4, 3)})
    case.merge(base, models, weight=[1, -0.5, -0.5], normalize=False)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "della"])
def test_weights_of_updates_may_sum_to_zero(method: str) -> None:
    """As in mergekit, what cannot be divided is not."""
    base, models = family(2, {"w": (4, 3)})
    how = {"base": base, "method": method, "normalize": True}
    merged = merge_state_dicts(models, weight=[1, -1], **how)["w"]
    if method == "task_arithmetic":
        torch.testing.assert_close(merged, base["w"] + models[0]["w"] - models[1]["w"])
    assert merged.isfinite().all()
    assert torch.equal(merge_state_dicts(models, weight=0, **how)["w"], base["w"])


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.5), (0.1, 0.15), (0.75, 0.25), (0.25, 0.25)])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_refuses_probabilities_outside_of_0_and_1(method: str, density: float, epsilon: float) -> None:
    case = Case(method, method, {"weight": 1.0}, models=2)
    message = refused(case, density=density, epsilon=epsilon)
    assert f"density {density:g} ± epsilon {epsilon:g} leaves the range (0, 1): w, b" in message


@pytest.mark.parametrize("density", [0, 1])
def test_della_does_not_mind_epsilon_where_nothing_is_drawn(density: float) -> None:
    base, models = family(2, {"w": (4, 3)})
    Case("della", "della", {"weight": 1.0}).merge(base, models, density=density, epsilon=0.5)
