"""Problems of many tensors."""

from engine.plan.helpers_plan import entry, inputs_of, model, recipe_of
from submerge.engine.plan.tensors._findings import Finding, Findings


def test_one_problem_of_many_tensors_is_one_line() -> None:
    findings = Findings()
    for i in range(300):
        findings.add(Finding("is odd", "one", "mend it", f"layer.{i}"))
    findings.add(Finding("is odd", "two", "mend it", "layer.0"))
    findings.add_missing(2, "w")
    models = [model(label, entry("w"), entry("x")) for label in ("base", "one")]
    inputs = inputs_of(recipe_of(), *models, model("two", entry("x")))
    missing, of_one, of_two = map(str, findings.problems(inputs))
    assert missing.startswith("two: tensors are missing: w")
    assert of_one == "one: is odd: layer.0, layer.1, layer.2 and 297 more — mend it"
    assert of_two == "two: is odd: layer.0 — mend it"
