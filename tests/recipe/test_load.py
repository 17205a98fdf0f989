from pathlib import Path

import pytest
import yaml

from submerge.errors import RequestError
from submerge.methods import METHODS
from submerge.recipe import OutputForm, Rules, load_recipe

GOOD = """\
merge_method: updates
base_model: org/base
models:
  - model: org/base
  - model: a
    parameters:
      weight: 0.5
  - model: b
parameters:
  weight: 1
"""


def test_reads_a_file_text_and_a_mapping_alike(tmp_path, toys):
    file = tmp_path / "r.yaml"
    file.write_text(GOOD)
    mapping = {
        "merge_method": "updates",
        "base_model": "org/base",
        "models": (
            {"model": "org/base"},
            {"model": Path("a"), "parameters": {"weight": 0.5}},
            {"model": "b"},
        ),
        "parameters": {"weight": 1},
    }
    recipes = [load_recipe(source, methods=toys) for source in (file, str(file), GOOD, mapping)]
    assert all(recipe.resolved() == recipes[0].resolved() for recipe in recipes)
    assert [recipe.path for recipe in recipes] == [file, file, None, None]
    assert recipes[0].text == GOOD
    assert load_recipe(recipes[3].text, methods=toys).resolved() == recipes[0].resolved()
    assert recipes[0].models[1].where == "r.yaml:5"
    assert recipes[3].models[1].where == "models[1]"


def test_defaults(toys):
    recipe = load_recipe(GOOD, methods=toys)
    assert (recipe.dtype, recipe.out_dtype, recipe.tokenizer_source) == (None, None, None)
    assert recipe.rules == Rules("refuse", "refuse", "refuse")
    assert recipe.seed == 0
    assert recipe.root == Path.cwd()


def test_methods_default_to_all_that_are_installed():
    assert load_recipe("merge_method: karcher\nmodels: [{model: a}]\n").method is METHODS["karcher"]


def test_utf16_and_byte_order_marks_are_read(tmp_path, toys):
    for encoding in ("utf-8-sig", "utf-16"):
        file = tmp_path / encoding
        file.write_text(GOOD, encoding=encoding)
        assert load_recipe(file, methods=toys).base == "org/base"


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"a: \xff\n", "r.yaml:1: this is not UTF-8"), (b"x" * (2 << 20), "larger than")],
)
def test_files_that_are_no_recipes(tmp_path, problems, raw, words):
    file = tmp_path / "r.yaml"
    file.write_bytes(raw)
    assert words in problems(file)[0]


def test_paths_that_are_no_files(tmp_path, problems):
    assert "no such file" in problems(tmp_path / "none.yaml")[0]
    assert "this is a folder" in problems(tmp_path)[0]
    assert "cannot be read" in problems("a\0b")[0]
    assert "line ends" in problems("merge_method: linear")[0]
    assert "no such file" in problems("")[0]
    assert "not 3" in problems(3)[0]


def test_everything_else_is_read(toys):
    recipe = load_recipe(
        GOOD
        + "dtype: torch.bfloat16\nout_dtype: FP16\ntokenizer: {source: a/, tokens: {}}\nchat_template:\n"
        + "rules: {missing: base, vocabulary: by-position}\nseed: 42\nslices:\n",
        methods=toys,
    )
    assert (recipe.dtype, recipe.out_dtype, recipe.tokenizer_source) == ("bfloat16", "float16", "a")
    assert recipe.rules == Rules(missing="base", vocabulary="by-position")
    assert recipe.seed == 42


def test_a_tokenizer_is_read_and_written_back(toys):
    tokens = {
        "<|a|>": {"source": "a", "force": True},
        "<|b|>": {"source": {"kind": "model_token", "model": "b", "token_id": 3}},
        "<|c|>": {"source": {"kind": "model_token", "model": "b", "token": "x"}, "force": True},
        "<|d|>": {"source": {"kind": "zero"}},
        "<|e|>": {},
    }
    section = {"source": "elsewhere/model", "tokens": tokens, "pad_to_multiple_of": 8}
    given = yaml.safe_load(GOOD) | {"tokenizer": section, "chat_template": "chatml"}
    recipe = load_recipe(given, methods=toys)
    assert recipe.tokenizer_source == "elsewhere/model"
    assert recipe.resolved()["tokenizer"] == section
    assert recipe.resolved()["chat_template"] == "chatml"
    assert load_recipe(recipe.resolved(), methods=toys).resolved() == recipe.resolved()
    assert load_recipe(GOOD + "tokenizer: {}\n", methods=toys).tokenizer_source == "union"


def test_all_problems_come_together_in_the_order_of_lines(problems):
    found = problems(
        "merge_method: updates\nmodels:\n  - model: a\n    parameters: {desnity: 1, lambda: 2}\n"
        "  - model: b+c+d\nparameters:\n  normalise: true\ndtype: int3\nseed: -1\n"
    )
    assert found == [
        "recipe:1: updates needs a base_model — add 'base_model: …' "
        "(adapters need none for output: {as: adapter})",
        "recipe:4: updates has no parameter 'desnity' — did you mean 'density'?",
        "recipe:4: 'lambda' is one value for all models — move it to the recipe's top-level 'parameters'",
        "recipe:5: more than one adapter on a model: 'b+c+d' — merge one of them first, or both by "
        "merge_method: cat, which adds their updates; a folder with a '+' in its name must be renamed",
        "recipe:7: updates has no parameter 'normalise' — did you mean 'normalize'?",
        "recipe:8: unknown dtype 'int3' — one of 'bfloat16', 'float16', 'float32', 'float64'",
        f"recipe:9: seed is a whole number from 0 to {2**63 - 1}, not -1",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dtpye: float16", "recipe:11: unknown key 'dtpye' — did you mean 'dtype'?"),
        ("zzz: 1", "recipe:11: unknown key 'zzz' — valid here: 'base_model',"),
        ("random_seed: 1", "did you mean 'seed'?"),
        ("slices: [{}]", "both 'models' and 'slices' say what is merged — keep one of them"),
        ("modules: {default: {}}", "both 'models' and 'modules' say what is merged — keep one of them"),
        ("layer_range: [0, 2]", "'layer_range' is not supported — it belongs to a source of one of the"),
        ("experts: []", "'experts' is not supported"),
        ("gate_mode: hidden", "'gate_mode' is not supported"),
        ("experts_per_token: 2", "'experts_per_token' is not supported"),
        ("chat_template: chatmi", "unknown chat template 'chatmi' — did you mean 'chatml'?"),
        ("chat_template: own", "unknown chat template 'own' — one of auto, alpaca, chatml,"),
        (
            "chat_template: '{% for x %}'",
            "the chat template is no Jinja (expected token 'in', got 'end of statement block', in its",
        ),
        ("tokenizer: {tokens: {'': {source: {kind: zero}}}}", "a token has no text"),
        ("chat_template: {auto: 1}", "unknown chat template a mapping"),
        ("tokenizer_source: 3", "a model is a folder or a Hub name, not 3"),
        ("tokenizer: {tokens: [x]}", "'tokens' is a mapping, not a list"),
        ("tokenizer: {tokens: {x: base}}", "the rule for a token is a mapping, not 'base'"),
        ("tokenizer: {tokens: {x: {sauce: a}}}", "did you mean 'source'?"),
        ("tokenizer: {tokens: {x: {force: 2}}}", "force is true or false, not 2"),
        (
            "tokenizer: {tokens: {x: {force: true}}}",
            "recipe:11: a row is forced, and",
        ),
        ("tokenizer: {tokens: {x: {source: c}}}", "'c' is no model of this recipe"),
        (
            "tokenizer: {tokens: {x: {source: {kind: one}}}}",
            "of a row is 'one' — one of 'model_token', 'zero'",
        ),
        ("tokenizer: {tokens: {x: {source: {kind: zero, model: a}}}}", "unknown key 'model'"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}", "give one of the two"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: y, token_id: 1}}}}",
            "give one of the two",
        ),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, token: y}}}}", "not nothing"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}}",
            "a token's id is a whole number from 0, not -1",
        ),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: 7}}}}", "put it in quotes"),
        ("tokenizer: {pad_to_multiple_of: 0}", "pad_to_multiple_of is a positive whole number, not 0"),
        ("tokenizer: {pad_to_multiple_of: true}", "pad_to_multiple_of is a positive whole number, not true"),
        ("tokenizer: {sauce: base}", "did you mean 'source'?"),
        (
            "tokenizer_source: union\nrules: {vocabulary: by-position}",
            "rows are merged by tokens and by their position",
        ),
        ("tokenizer: base", "'tokenizer' is a mapping"),
        ("tokenizer: {source: base}\ntokenizer_source: base", "keep one"),
        ("dtype: 16", "unknown dtype 16"),
        ("rules: refuse", "'rules' is a mapping"),
        ("rules: {mising: base}", "did you mean 'missing'?"),
        ("rules: {missing: skip}", "missing is 'skip' — one of 'base', 'refuse'"),
        ("rules: {shape: [base]}", "shape is a list"),
        ("seed: true", "not true"),
        ("seed: 1.5", "not 1.5"),
        ("seed: 0x" + "f" * 30, "whole number"),
    ],
)
def test_keys(problems, line, message):
    assert message in "\n".join(problems(GOOD + line + "\n"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "updatse",
            "recipe:1: unknown method 'updatse' — did you mean 'updates'? `submerge methods` lists all",
        ),
        ("Updates", "did you mean 'updates'?"),
        ("qqq", "recipe:1: unknown method 'qqq' — `submerge methods` lists all"),
        ("[updates]", "merge_method is a name, not a list"),
        ("", "names no merge_method"),
    ],
)
def test_methods(problems, name, message):
    (found,) = problems(GOOD.replace("updates", name, 1))
    assert message in found


def test_an_unknown_method_does_not_hide_the_rest(problems):
    found = problems(GOOD.replace("updates", "updatse", 1) + "dtype: x\n")
    assert len(found) == 2


def test_a_parameter_of_another_method_is_told_so(problems):
    (found,) = problems(GOOD + "  t: 0.5\n")
    assert found.startswith(
        "recipe:11: updates has no parameter 't' — it belongs to must; updates has 'count',"
    )


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("[]", "'models' is empty"),
        ("", "'models' is empty"),
        ("a", "'models' is a list, not 'a'"),
        ("[3]", "an entry of 'models' is a mapping, not 3 — write '- model: …'"),
        ("[{}]", "names no model"),
        ("[{modle: a}]", "did you mean 'model'?"),
        ("[{model: a, layer_range: [0, 2]}]", "'layer_range' is not supported"),
        ("[{model: a, lora: b+c}]", "keep one; a folder with a '+' in its name must be renamed"),
        ("[{model: a+b, lora: c}]", "more than one adapter on a model"),
        ("[{model: a+}]", "cannot read the model 'a+'"),
        ("[{model: {path: a, lora: 3}}]", "a model is a folder or a Hub name, not 3"),
        ("[{model: {model: a, override_architecture: X}}]", "'override_architecture' is not supported"),
        ("[{model: {path: a, revison: b}}]", "did you mean 'revision'?"),
        ("[{model: {path: a, revision: 12}}]", "a revision is text, not 12"),
        ("[{model: {revision: a}}]", "needs a 'path'"),
        ("[{model: 12}]", "a folder or a Hub name, not 12 — put the name in quotes"),
        ("[{model: ' '}]", "a folder or a Hub name"),
        ("[{model: a@b@c}]", "write 'org/name@revision'"),
        ("[{model: a@}]", "write 'org/name@revision'"),
        ("[{model: a, parameters: 3}]", "'parameters' is a mapping, not 3"),
        ("[{model: a, parameters: [weight]}]", "'parameters' is a mapping, not a list"),
    ],
)
def test_models(problems, models, message):
    text = f"merge_method: bare\nmodels: {models}\n"
    assert message in "\n".join(problems(text))


def test_models_as_mappings_become_specs(toys):
    text = "merge_method: bare\nmodels: [{model: {path: a, revision: v1}}, {model: {model: {path: b}}}]\n"
    assert [entry.model for entry in load_recipe(text, methods=toys).models] == ["a@v1", "b"]


@pytest.mark.parametrize(
    "model",
    ["{model: a@v1+b}", "{model: a@v1, lora: b}", "{model: {path: a, revision: v1, lora: b}}",
     "{model: {model: {path: a, revision: v1}, lora: {path: b}}}"],
)  # fmt: skip
def test_an_adapter_is_joined_to_its_model(toys, model):
    text = f"merge_method: bare\nmodels: [{model}]\n"
    assert [entry.model for entry in load_recipe(text, methods=toys).models] == ["a@v1+b"]


def test_an_adapter_as_output_needs_no_base(toys):
    models = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 1}}]
    source = {"merge_method": "updates", "models": models, "output": {"as": "adapter", "rank": 4}}
    recipe = load_recipe(source, methods=toys)
    assert (recipe.output.form, recipe.output.rank) == ("adapter", 4)
    assert recipe.resolved()["output"] == {"as": "adapter", "rank": 4}
    assert load_recipe(source, methods=toys, output={"rank": 8}).output.rank == 8


def test_a_rank_asks_for_an_adapter(toys):
    source = {"merge_method": "updates", "base_model": "b", "models": [{"model": "a"}]}
    source["parameters"] = {"weight": 1}
    assert load_recipe(source, methods=toys).output.form == "checkpoint"
    assert load_recipe(source, methods=toys, output={"energy": 0.5}).output.form == "adapter"
    given = source | {"output": {"rank": 4}}
    assert load_recipe(given, methods=toys).output == OutputForm("adapter", 4)
    assert load_recipe(given, methods=toys, output={"as": "checkpoint"}).output == OutputForm()
    with pytest.raises(RequestError, match="'rank' is given for a checkpoint"):
        load_recipe(given, methods=toys, output={"as": "checkpoint", "rank": 4})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("adapter", "'output' is a mapping, not 'adapter'"),
        ("{as: lora}", "the output's form is 'lora'"),
        ("{as: adapter, rank: 0}", "rank is a positive whole number, not 0"),
        ("{as: checkpoint, rank: 4}", "'rank' is given for a checkpoint"),
        ("{from: a}", "unknown key 'from'"),
    ],
)
def test_outputs(problems, output, message):
    text = f"merge_method: bare\nmodels: [{{model: a}}]\noutput: {output}\n"
    assert message in "\n".join(problems(text))


def participants(method, models, methods, base=None, parameters=None):
    source = {
        "merge_method": method,
        "models": [
            {"model": name, "parameters": {"weight": 1} if weighted else {}} for name, weighted in models
        ],
        "base_model": base,
        "parameters": parameters or {},
    }
    return [entry.model for entry in load_recipe(source, methods=methods).participants]


def test_updates_are_taken_of_every_model_but_the_base(toys):
    models = [("a", True), ("base/", False), ("b", True), ("a", True)]
    assert participants("updates", models, toys, "base") == ["a", "b", "a"]


def test_either_takes_the_base_as_origin_where_it_is_named(toys):
    models = [("a", False), ("base", False), ("b", False)]
    assert participants("either", models, toys, "base//") == ["a", "b"]
    assert participants("either", models, toys) == ["a", "base", "b"]


def test_zero_merges_what_is_listed(toys):
    assert participants("zero", [("a", True), ("b", True)], toys, "base") == ["a", "b"]
    assert participants("zero", [("a", True), ("base", True)], toys, "base") == ["a", "base"]


def test_a_base_that_is_a_model_comes_first(toys):
    assert participants("zero_base", [("a", True), ("base", True)], toys, "base") == ["base", "a"]
    assert participants("bare", [("a", False)], toys, "base") == ["base", "a"]
    assert participants("must", [("a", False)], toys, "base", {"t": 0.5}) == ["base", "a"]


def test_an_unlisted_base_without_its_required_options_only_donates(toys):
    assert participants("zero_base", [("a", True)], toys, "base") == ["a"]
    assert participants("zero_base", [("a", False)], toys, "base", {"weight": 1}) == ["base", "a"]


@pytest.mark.parametrize(
    ("method", "count", "message"),
    [
        ("must", 3, "must merges exactly 2 models; found 4 — the base is one of them, though"),
        ("bare", 5, "bare merges at most 4 models; found 6"),
        ("either", 1, "either merges at least 2 models; found 1"),
    ],
)
def test_the_number_of_participants(problems, method, count, message):
    source = {"merge_method": method, "models": [{"model": f"m{i}"} for i in range(count)]}
    source |= {"base_model": "base"} | ({"parameters": {"t": 0}} if method == "must" else {})
    assert message in problems(source)[0]


def test_only_the_base_is_listed(problems):
    assert problems("merge_method: updates\nbase_model: a\nmodels: [{model: a}]\n") == [
        "recipe:3: updates merges at least 1 model besides the base; found 0 — "
        "a base that is listed under 'models' does not count"
    ]


def test_missing_options_are_told_once_a_model(problems):
    text = "merge_method: updates\nbase_model: x\nmodels:\n  - model: x\n  - model: a\n  - model: b\n"
    found = problems(text)
    assert [message.split(" — ")[0] for message in found] == [
        "recipe:5: a lacks the parameter 'weight'",
        "recipe:6: b lacks the parameter 'weight'",
    ]


def test_a_bad_value_is_not_also_missing(problems):
    text = "merge_method: updates\nbase_model: x\nmodels:\n  - model: a\n    parameters: {weight: big}\n"
    assert problems(text) == ["recipe:5: weight must be a number, not 'big'"]
    text = "merge_method: updates\nbase_model: x\nmodels: [{model: a}]\nparameters: {weight: }\n"
    assert problems(text) == ["recipe:4: weight has no value — give one, or remove the key"]


def test_the_tokenizer_of_a_base_that_is_not_named(problems):
    text = "merge_method: bare\nmodels: [{model: a}]\ntokenizer_source: base\n"
    assert problems(text) == [
        "recipe:3: the tokenizer is the base's, and there is no base_model — add 'base_model: …'"
    ]


def test_missing_shared_options(problems):
    text = "merge_method: must\nbase_model: x\nmodels: [{model: a}]\n"
    assert problems(text)[0].startswith("recipe:1: must needs the parameter 't'")
    assert problems(text.replace("base_model: x\n", ""))[0].startswith("recipe:1: must needs")


def test_mappings_that_yaml_could_not_hold(problems):
    loop = []
    loop.append(loop)
    assert "nested deeper" in problems({"models": loop})[0]
    assert "keys are text; found 1" in problems({"models": {1: 2}})[0]
    assert "not an object of type object" in problems({"seed": object()})[0]
    assert "too long" in problems({"seed": 10**5000})[0]


def test_a_mapping_may_hold_numpy_numbers(toys):
    numpy = pytest.importorskip("numpy")
    source = {
        "merge_method": "zero",
        "models": [{"model": "a"}],
        "parameters": {"weight": numpy.float32(0.5)},
    }
    assert load_recipe(source, methods=toys).resolved()["parameters"]["weight"] == 0.5


def test_resolved_holds_all_that_counts_and_is_read_back(toys):
    import json

    recipe = load_recipe(
        GOOD + "  density:\n    - {filter: mlp, value: [0, 1e-1]}\n    - value: 1\ntokenizer_source: base\n",
        methods=toys,
    )
    plain = json.loads(json.dumps(recipe.resolved()))
    assert plain["parameters"]["density"] == [{"filter": "mlp", "value": [0.0, 0.1]}, {"value": 1.0}]
    assert plain["parameters"]["normalize"] is False
    assert plain["rules"] == {"missing": "refuse", "shape": "refuse", "vocabulary": "refuse"}
    assert load_recipe(plain, methods=toys).resolved() == plain


def test_problems_carry_their_parts(toys):
    with pytest.raises(RequestError) as caught:
        load_recipe(GOOD + "dtpye: x\n", methods=toys)
    (problem,) = caught.value.problems
    assert (problem.what, problem.where, problem.hint) == (
        "unknown key 'dtpye'", "recipe:11", "did you mean 'dtype'?",
    )  # fmt: skip


def test_what_reads_as_a_value_for_each_model_is_told():
    """A list is a gradient, and a number beside a model's name is no entry."""
    text = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: [0.7, 0.3]}\n"
    (warning,) = load_recipe(text).warnings
    assert warning.startswith("recipe:3: 'weight' is a gradient over the layers, the same for every model")
    for plain in ("[0.5, 0.5]", "[0.7, 0.3, 0.1]", "0.7"):
        assert not load_recipe(text.replace("[0.7, 0.3]", plain)).warnings
    with pytest.raises(RequestError, match=r"{model: a, parameters: {weight: 0.7}}"):
        load_recipe("merge_method: linear\nmodels: [a: 0.7, b: 0.3]\n")
    with pytest.raises(RequestError) as error:
        load_recipe("merge_method: ties\nbase_model: x\nmodels: [{model: a, weight: 1}]\ndensity: 0.5\n")
    assert str(error.value).count("write it under 'parameters'") == 2
    with pytest.raises(RequestError, match="did you mean 'ties'"):
        load_recipe("merge_method: TIES-merging\nbase_model: x\nmodels: [a]\n")
