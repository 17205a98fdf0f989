"""Tables that PEFT saved beside factors of them, where an adapter comes out."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import submerge
from _models import ROOM
from submerge.engine import describe, merge_documents, plan_documents
from submerge.recipe import load_documents

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, of embeddings that it saves

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KEPT = f"base_model.model.{EMBEDDING.replace('.weight', '.base_layer.weight')}"
IDS = torch.arange(8)[None]
TABLES: dict[str, tuple[int, dict[str, Any]]] = {
    "same": (0, {"target_modules": ["q_proj", "embed_tokens"]}),
    "same too": (0, {"target_modules": ["q_proj", "embed_tokens"]}),
    "other": (7, {"target_modules": ["q_proj", "embed_tokens"]}),
    "other too": (7, {"target_modules": ["q_proj", "embed_tokens"]}),
    "third": (8, {"target_modules": ["q_proj", "embed_tokens"]}),
    "none": (0, {"target_modules": ["q_proj"]}),
    "whole": (0, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "as one": (
        0,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "rows": (0, {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3]}),
    "rows too": (0, {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [7, 9]}}),
    "factors as one": (0, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
}
"""What adapters were trained on: the number of the values in the embedding (0: the base's), and of what."""


def language_model(*, tied: bool, table: int = 0) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied)
    )
    if table:
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(table))
    return model


class Family:
    """A base, and adapters of it."""

    def __init__(self, root: Path, *, tied: bool) -> None:
        self.base = root / "base"
        language_model(tied=tied).save_pretrained(self.base)
        self.adapters = {}
        for seed, (kind, (table, options)) in enumerate(TABLES.items()):
            if "ensure_weight_tying" in options and not tied:
                continue
            wrapped = get_peft_model(language_model(tied=tied, table=table), LoraConfig(r=2, **options))
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in wrapped.parameters():
                    if parameter.requires_grad:
                        parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
            wrapped.save_pretrained(root / kind)
            self.adapters[kind] = root / kind

    def recipe(self, *kinds: str, base: bool, method: str = "task_arithmetic") -> dict[str, Any]:
        models = [
            {"model": str(self.adapters[kind]), "parameters": {"weight": 1 / len(kinds)}} for kind in kinds
        ]
        return {"merge_method": method, "models": models, **({"base_model": str(self.base)} if base else {})}

    def adapter(self, out: Path, *kinds: str, base: bool, method: str = "task_arithmetic") -> Any:
        recipe = self.recipe(*kinds, base=base, method=method) | {"output": {"as": "adapter"}}
        return submerge.merge(recipe, out, settings=ROOM)

    def loaded(self, adapter: Path) -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base), str(adapter)).eval()

    def checkpoint(self, out: Path, *kinds: str, method: str = "task_arithmetic") -> Any:
        report = submerge.merge(self.recipe(*kinds, base=True, method=method), out, settings=ROOM)
        return AutoModelForCausalLM.from_pretrained(report.out).eval()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Family]:
    made: dict[bool, Family] = {}

    def family(tied: bool) -> Family:
        if tied not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[tied] = Family(tmp_path_factory.mktemp("family"), tied=tied)
        return made[tied]

    return family


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


OTHER = [("other",), ("other", "third"), ("other", "none"), ("other", "same")]


@pytest.mark.parametrize(
    ("tied", "kinds"),
    [(False, ("other", "whole")), *((tied, kinds) for tied in (False, True) for kinds in OTHER)],
)
def test_a_table_that_is_not_the_bases_is_merged_into_the_adapter(
    tied: bool, kinds: tuple[str, ...], families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(tied)
    report = family.adapter(tmp_path / "adapter", *kinds, base=True)
    assert submerge.verify(report.out).sound
    found = logits(family.loaded(report.out))
    wanted = logits(family.checkpoint(tmp_path / "checkpoint", *kinds))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (found - logits(language_model(tied=tied))).abs().max() > 0.01 * wanted.abs().max()


@pytest.mark.parametrize("method", ["cat", "ties", "linear", "tsv_m", "knots_ties", "nsc"])
def test_every_method_merges_the_table(
    method: str, families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(False)
    recipe = family.recipe("other", "third", base=True, method=method)
    if method == "ties":
        recipe["parameters"] = {"density": 1.0}
    made = {
        form: submerge.merge(recipe | {"output": {"as": form}}, tmp_path / form, settings=ROOM).out
        for form in ("adapter", "checkpoint")
    }
    saved = load_file(made["adapter"] / "adapter_model.safetensors")[f"base_model.model.{EMBEDDING}"]
    wanted = load_file(made["checkpoint"] / "model.safetensors")[EMBEDDING]
    torch.testing.assert_close(saved, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_the_bases_own_table_is_not_in_the_adapter(
    tied: bool, families: Callable[[bool], Family], tmp_path: Path
) -> None:
    report = families(tied).adapter(tmp_path / "out", "same", "same too", base=True)
    assert report.warnings == ()
    written = load_file(report.out / "adapter_model.safetensors")
    assert not [name for name in written if "lora_" not in name]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kinds", [("other",), ("other", "other too"), ("same", "same too")])
def test_without_a_base_the_table_goes_along(
    kinds: tuple[str, ...], tied: bool, families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(tied)
    report = family.adapter(tmp_path / "out", *kinds, base=False)
    assert report.warnings == ()
    assert submerge.verify(report.out).sound
    written = load_file(report.out / "adapter_model.safetensors")
    given = load_file(family.adapters[kinds[0]] / "adapter_model.safetensors")
    assert torch.equal(written[KEPT], given[KEPT])
    assert "factors and the values without them" in {
        group["writes"]
        for group in describe(
            submerge.plan(family.recipe(*kinds, base=False) | {"output": {"as": "adapter"}}, ROOM)
        )["groups"]
    }
    if len(kinds) == 1:
        torch.testing.assert_close(
            logits(family.loaded(report.out)), logits(family.loaded(family.adapters[kinds[0]]))
        )
    else:  # half of each update, on the values that both were trained on
        merged = family.checkpoint(tmp_path / "checkpoint", *kinds).state_dict()
        found = family.loaded(report.out).merge_and_unload().state_dict()
        torch.testing.assert_close(found[EMBEDDING], merged[EMBEDDING], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear", "dare_ties"])
@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_stay_rows(
    families: Callable[[bool], Family], tied: bool, method: str, tmp_path: Path
) -> None:
    """Those of all adapters, and with them a head that is tied to the table."""
    family = families(tied)
    kinds = ("rows", "rows too", "none")
    report = family.adapter(tmp_path / "adapter", *kinds, base=True, method=method)
    assert not report.warnings
    config = json.loads((report.out / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": [3, 7, 9]}
    assert not config["modules_to_save"]
    assert report.serve is None
    whole = family.checkpoint(tmp_path / "whole", *kinds, method=method)
    if method in ("task_arithmetic", "linear"):  # the others mix factors into matrices of full rank
        torch.testing.assert_close(logits(family.loaded(report.out)), logits(whole))
    again = {"merge_method": "task_arithmetic", "base_model": str(family.base), "models": [str(report.out)]}
    submerge.merge(again | {"parameters": {"weight": 1}}, tmp_path / "again", settings=ROOM)
    for model in (
        family.loaded(report.out).merge_and_unload(),
        AutoModelForCausalLM.from_pretrained(tmp_path / "again"),
    ):
        for name in (EMBEDDING, HEAD):
            torch.testing.assert_close(model.state_dict()[name], whole.state_dict()[name])


def test_rows_of_a_base_that_stores_its_tied_head(families: Callable[[bool], Family], tmp_path: Path) -> None:
    family = families(True)
    base = load_file(family.base / "model.safetensors")
    both = shutil.copytree(family.base, tmp_path / "base")
    save_file(base | {HEAD: base[EMBEDDING].clone()}, both / "model.safetensors", {"format": "pt"})
    recipe = family.recipe("rows", "rows too", base=True) | {"base_model": str(both)}
    report = submerge.merge(recipe | {"output": {"as": "adapter"}}, tmp_path / "out", settings=ROOM)
    assert not report.warnings
    expected = logits(family.checkpoint(tmp_path / "whole", "rows", "rows too"))
    torch.testing.assert_close(logits(family.loaded(report.out)), expected)


def test_rows_beside_factors_or_a_table_become_these(
    families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(False)
    for kind in ("same", "whole"):
        out = family.adapter(tmp_path / kind, "rows", kind, base=True).out
        assert "trainable_token_indices" not in json.loads((out / "adapter_config.json").read_text())
        expected = logits(family.checkpoint(tmp_path / f"{kind} whole", "rows", kind))
        torch.testing.assert_close(logits(family.loaded(out)), expected, atol=1e-5, rtol=1e-4)


def test_rows_that_a_whole_model_changes_all_of_are_left_out(
    families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(False)
    recipe = family.recipe("rows", base=True) | {"output": {"as": "adapter"}}
    tuned = tmp_path / "tuned"
    language_model(tied=False, table=3).save_pretrained(tuned)
    recipe["models"].append({"model": str(tuned), "parameters": {"weight": 1}})
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert any(EMBEDDING in warning and "no place in an adapter" in warning for warning in report.warnings)


def test_tables_that_differ_need_the_base(families: Callable[[bool], Family], tmp_path: Path) -> None:
    family = families(False)
    with pytest.raises(submerge.RequestError, match="both saved them — name the base as base_model") as error:
        family.adapter(tmp_path / "out", "other", "third", base=False)
    assert EMBEDDING in str(error.value)
    assert not (tmp_path / "out.incomplete").exists()


def test_adapters_without_a_table_are_told(families: Callable[[bool], Family], tmp_path: Path) -> None:
    family = families(False)
    report = family.adapter(tmp_path / "out", "other", "none", base=False)
    (warning,) = report.warnings
    assert warning.startswith(f"{EMBEDDING}: the adapter has the values that others were trained on")
    assert str(family.adapters["none"]) in warning
    assert str(family.adapters["other"]) not in warning


@pytest.mark.parametrize(
    ("base", "kinds"),
    [
        (True, ("as one",)),
        (True, ("as one", "none")),
        (True, ("factors as one",)),
        (False, ("factors as one",)),
    ],
)
def test_a_head_that_was_trained_with_the_embedding_stays_tied_to_it(
    base: bool, kinds: tuple[str, ...], families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(True)
    report = family.adapter(tmp_path / "out", *kinds, base=base)
    wanted = logits(family.checkpoint(tmp_path / "checkpoint", *kinds))
    assert (logits(family.loaded(report.out)) - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_values_that_are_no_numbers_are_not_kept(families: Callable[[bool], Family], tmp_path: Path) -> None:
    family, folder = families(False), tmp_path / "broken"
    shutil.copytree(family.adapters["other"], folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[KEPT][3, 2] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    recipe = {"merge_method": "cat", "models": [{"model": str(folder)}], "output": {"as": "adapter"}}
    with pytest.raises(submerge.WorkError, match=r"embed_tokens\.base_layer\.weight holds NaN or Inf"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert not (tmp_path / "out").exists()


def test_one_that_unties_the_head_meets_one_with_a_table(
    families: Callable[[bool], Family], tmp_path: Path
) -> None:
    """The table is computed when it is read, under the head's name, too."""
    model = families(True).checkpoint(tmp_path / "out", "other", "whole")
    state = model.state_dict()
    assert not torch.equal(state[HEAD], state[EMBEDDING])


@pytest.mark.parametrize("form", ["checkpoint", "adapter"])
def test_a_base_that_is_merged_as_it_is_read(
    form: str, families: Callable[[bool], Family], tmp_path: Path
) -> None:
    family = families(False)
    inner = {"merge_method": "passthrough", "models": [{"model": str(family.base)}], "name": "inner"}
    outer = family.recipe("other", "none", base=True) | {"base_model": "inner", "output": {"as": form}}
    text = "---\n".join(yaml.safe_dump(recipe, sort_keys=False) for recipe in (inner, outer))
    documents = load_documents(text)
    assert plan_documents(documents, ROOM)["inner"].virtual_reads
    made = {
        kept: merge_documents(documents, tmp_path / str(kept), settings=ROOM, keep_parts=kept)[""].out
        for kept in (True, False)
    }
    name = "model" if form == "checkpoint" else "adapter_model"
    with_folder, without = (load_file(made[kept] / f"{name}.safetensors") for kept in (True, False))
    assert with_folder.keys() == without.keys()
    assert all(torch.equal(with_folder[key], without[key]) for key in with_folder)
    own = load_file(family.base / "model.safetensors")[EMBEDDING]
    table = without[EMBEDDING if form == "checkpoint" else f"base_model.model.{EMBEDDING}"]
    assert (table - own).abs().max() > 0.1
