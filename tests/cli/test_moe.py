"""`submerge moe`: what it prints and writes, its exit codes, and the flags of mergekit-moe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from _cli import ROOM, cli
from _mixtures import dense_folder
from _models import contents, read
from submerge.recipe import load_mixture

RECIPE = """\
base_model: base
gate_mode: random
experts:
  - source_model: a
  - source_model: b
    positive_prompts: [code]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        dense_folder(tmp_path / name, seed)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_it_makes_a_folder(recipe: Path) -> None:
    made = cli("moe", recipe, "mixture", *ROOM)
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[0] == str(Path("mixture").resolve())
    assert "15 taken from the base, 14 of experts and gates" in made.out
    assert cli("verify", "mixture", "--no-load").code == 0
    quiet = cli("moe", recipe, "--out", "again", "--quiet", *ROOM)
    assert quiet.out == f"{Path('again').resolve()}\n"
    assert contents(Path("again"))["model.safetensors"] == contents(Path("mixture"))["model.safetensors"]


def test_a_missing_folder_is_named_by_its_own_command(recipe: Path) -> None:
    none = cli("moe", recipe)
    assert (none.code, "submerge moe recipe.yaml merged/" in none.err) == (2, True)


def test_a_plan_writes_nothing(recipe: Path) -> None:
    before = contents(recipe.parent)
    planned = cli("moe", recipe, "--plan", *ROOM)
    assert (planned.code, planned.err) == (0, "")
    for line in (
        "mixture     MixtralForCausalLM: 2 layers",
        "  expert 0      a",
        "  expert 1      b, 1 prompts",
        "  gates         at random, from a normal distribution; 2 of 2 experts for a token",
        "  parameters    ",
    ):
        assert line in planned.out
    assert cli("moe", recipe, "--dry-run", "--json", *ROOM).json["mixture"]["experts_per_token"] == 2
    assert contents(recipe.parent) == before


def test_the_report_as_json(recipe: Path) -> None:
    report = cli("moe", recipe, "mixture", "--json", *ROOM).json
    assert report["tensors"] == {"base": 15, "mixture": 14}


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("experts_per_token: 3\n", 2, "recipe.yaml:7: experts_per_token is 3, and there are 2 experts"),
        ("dtype: int8\n", 2, "recipe.yaml:7: unknown dtype 'int8'"),
        ("name: mine\n", 2, "mergekit ignores these — with --mergekit they are ignored"),
    ],
)
def test_requests_that_are_wrong(text: str, code: int, expected: str, recipe: Path) -> None:
    recipe.write_text(RECIPE + text)
    made = cli("moe", recipe, "mixture", *ROOM)
    assert made.code == code
    assert expected in made.err
    assert not Path("mixture").exists()


def test_what_mergekit_ignores(recipe: Path) -> None:
    recipe.write_text(f"{RECIPE}name: mine\n")
    made = cli("moe", recipe, "mixture", "--mergekit", *ROOM)
    assert made.code == 0
    assert made.err == "warning: recipe.yaml:7: unknown key 'name'; it is ignored, as by mergekit\n"


def test_flags_of_mergekit_moe(recipe: Path) -> None:
    """Those of all its commands are translated; its own are answered."""
    useless = "--i-understand-this-is-not-useful-without-training"
    made = cli("moe", recipe, "mixture", "--copy-tokenizer", "--out-shard-size", "2B", useless, *ROOM)
    assert made.code == 0
    refused = cli("moe", recipe, "other", "--load-in-4bit", *ROOM)
    assert refused.code == 2
    assert "prompts run through the base in its own number format" in refused.err


def test_merges_say_where_mixtures_are_made(recipe: Path) -> None:
    refused = cli("merge", recipe, "merged", *ROOM)
    assert refused.code == 2
    assert refused.err == (
        "error: recipe.yaml:3: this recipe is for a mixture of experts, and not for a merge — "
        "submerge moe RECIPE OUT makes one\n"
    )


def test_plan_takes_mixtures_too(recipe: Path) -> None:
    planned, made = (cli(*words, *ROOM).out for words in (("plan", recipe), ("moe", recipe, "--plan")))
    assert planned.partition("reads ")[0] == made.partition("reads ")[0] != ""
    recipe.write_text(f"{RECIPE}name: mine\n")
    assert "unknown key 'name'" in cli("plan", recipe, *ROOM).err
    assert cli("plan", recipe, "--mergekit", "--json", *ROOM).json["mixture"]["layers"] == 2
    refused = cli("plan", recipe, "--mergekit", "--as", "adapter", "--rank", 8, *ROOM)
    assert (refused.code, "--as, --rank: a mixture of experts is no adapter" in refused.err) == (2, True)


def test_explain_takes_mixtures_too(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("source_model: b", "source_model: b\n    residual_scale: 0.5"))
    explained = cli("explain", recipe, "-t", "experts.1.w")
    assert (explained.code, explained.err) == (0, "")
    w1, w3, w2 = explained.out.split("model.layers.0.block_sparse_moe")[1:4]
    assert w2.startswith(".experts.1.w2.weight")
    assert "reads  b model.layers.0.mlp.down_proj.weight (F32)" in explained.out
    assert "residual_scale = 0.5   (recipe.yaml:5)" in w2
    assert "residual_scale = 1.0   the expert's is for its down-projection" in w1
    assert "noise_scale = 0.0   default" in w3
    recipe.write_text(
        RECIPE.replace("random", "cheap_embed").replace(
            "source_model: a", "source_model: a\n    positive_prompts: [law]"
        )
    )
    (gate, _) = cli("explain", recipe, "-t", "gate.weight", "--json").json
    assert [line["value"] for line in gate["options"]["positive_prompts"]] == [["law"], ["code"]]
    assert [line["model"] for line in gate["options"]["positive_prompts"]] == ["a", "b"]
    assert gate["options"]["gate_mode"][0]["value"] == "cheap_embed"
    (norm,) = cli("explain", recipe, "-t", "model.norm", "--json").json
    assert (norm["treatment"], norm["why"]) == ("base", "of base")
    assert "options" not in norm


MERGE = "name: ab\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"


@pytest.mark.parametrize("first", [True, False])
def test_experts_may_be_results_of_other_documents(recipe: Path, first: bool) -> None:
    mixture = RECIPE.replace("source_model: b", "source_model: ab")
    recipe.write_text("---\n".join([mixture, MERGE] if first else [MERGE, mixture]))
    planned = cli("plan", recipe, *ROOM)
    assert (planned.code, planned.err) == (0, "")
    assert "document of the result, from ab" in planned.out
    assert "  expert 1      ab, 1 prompts" in planned.out
    explained = cli("explain", recipe, "-t", "experts.1.w2")
    assert (explained.code, explained.err) == (0, "")
    assert "reads  ab model.layers.0.mlp.down_proj.weight (F32)" in explained.out
    made = cli("merge", recipe, "out", *ROOM)
    assert (made.code, made.err) == (0, "document ab: merging\ndocument of the result: merging\n")
    assert cli("verify", "out", "--no-load").code == 0
    assert not Path("out/mergekit_moe_config.yml").exists()

    Path("one.yaml").write_text(MERGE.replace("name: ab\n", ""))
    assert cli("merge", "one.yaml", "alone", *ROOM).code == 0
    recipe.write_text(RECIPE.replace("source_model: b", "source_model: alone"))
    assert cli("moe", recipe, "apart", *ROOM).code == 0
    weights = "model.safetensors"
    assert contents(Path("out"))[weights] == contents(Path("apart"))[weights]


def test_a_mixture_may_have_a_name(recipe: Path) -> None:
    result = "merge_method: passthrough\nmodels: [{model: mix}]\ndtype: bfloat16\n"
    recipe.write_text(f"name: mix\n{RECIPE}---\n{result}")
    made = cli("merge", recipe, "out", "--keep-parts", *ROOM)
    assert (made.code, made.out.count("document")) == (0, 2)
    written, mixture = read(Path("out")), read(Path("out.parts/mix"))
    assert all(torch.equal(written[name], tensor.bfloat16()) for name, tensor in mixture.items())


def test_mixtures_where_they_cannot_be(recipe: Path) -> None:
    recipe.write_text(f"{MERGE}---\n{RECIPE}")
    for words, expected in (
        (("moe", recipe, "out", *ROOM), "a second document starts here — a recipe is one"),
        (("merge", recipe, "out", "--as", "adapter", *ROOM), "a mixture of experts is no adapter — leave"),
        (("inspect", recipe), "it makes a mixture of experts, and merges nothing — choose a --document"),
        (("explain", recipe, "-t", "nothing"), "no tensor matches 'nothing'"),
    ):
        refused = cli(*words)
        assert refused.code == 2, words
        assert expected in refused.err


def test_mergekit_gets_its_recipe(recipe: Path) -> None:
    """Where it makes the same: it asks for prompts, but where gates are drawn at random."""
    assert cli("moe", recipe, "mixture", *ROOM).code == 0
    written = Path("mixture/mergekit_moe_config.yml")
    assert load_mixture(written).resolved() == load_mixture(recipe).resolved()
    assert not Path("mixture/mergekit_config.yml").exists()
    recipe.write_text(RECIPE.replace("gate_mode: random", "gate_mode: uniform_random"))
    assert cli("moe", recipe, "other", *ROOM).code == 0
    assert not Path("other/mergekit_moe_config.yml").exists()
