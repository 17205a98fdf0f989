"""`submerge export`: tasks as adapters that PEFT loads, and a router that chooses as ours does."""

from __future__ import annotations

import ast
import importlib.util
import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import submerge
from _cli import cli
from _images import FORMS, write_image
from _mass_tasks import image_inputs, text_inputs
from _models import ROOM, TEXT, VISION, quiet_transformers
from submerge.calibrate import open_image
from submerge.serving import _route_template, export_adapters

peft = pytest.importorskip("peft")
NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merge of three adapters of a small decoder."""
    root = tmp_path_factory.mktemp("export")
    t = quiet_transformers()
    torch.manual_seed(0)
    base = t.LlamaForCausalLM(t.LlamaConfig(**{**TEXT, "hidden_size": 32}, pad_token_id=0))
    base.save_pretrained(root / "base")
    for number, name in enumerate(NAMES):
        config = peft.LoraConfig(
            r=2 + number, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"
        )
        adapted = peft.get_peft_model(t.LlamaForCausalLM.from_pretrained(root / "base"), config)
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        adapted.save_pretrained(str(root / name))
    recipe = {
        "merge_method": "mass",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / name)} for name in NAMES],
    }
    cut = {**recipe, "parameters": {"rank": 3}}
    submerge.merge(cut, root / "cut", settings=ROOM)
    return submerge.merge(recipe, root / "served", settings=ROOM).out


def loaded(folder: Path, served: Path) -> Any:
    """Return the base with all exported adapters."""
    t = quiet_transformers()
    base = t.LlamaForCausalLM.from_pretrained(served.parent / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, str(folder / NAMES[0]), adapter_name=NAMES[0])
        for name in NAMES[1:]:
            model.load_adapter(str(folder / name), adapter_name=name)
    return model.eval()


def test_adapters_and_their_router(served: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    result = cli("export", served, "--to", "adapters", "-o", out)
    assert result.code == 0, result.err
    assert "rank 4; layers that route: all" in result.out
    assert "left out" not in result.out
    modules = " ".join(f"{name}={out / name}" for name in NAMES)
    serve = f"vllm serve {served.parent / 'base'} --enable-lora --max-lora-rank 8 --max-loras 3"
    assert f"serve them with vLLM: {serve} --lora-modules {modules}" in result.out
    model = loaded(out, served)
    ours = submerge.load(served)
    check_adapters(model, ours)
    check_router(out, model, ours, "leading")
    assert ours.router.rules.reference, "of noise"
    out = tmp_path / "cut"
    assert cli("export", served.parent / "cut", "-o", out).code == 0
    ours = submerge.load(served.parent / "cut")
    check_router(out, loaded(out, served), ours, "residual")


def check_adapters(model: Any, ours: Any) -> None:
    """Check that a task's adapter answers as the served model does where the task is named."""
    inputs = text_inputs(1, 5)
    mask = inputs["attention_mask"].bool()
    for name in NAMES:
        model.set_adapter(name)
        with torch.no_grad():
            found = model(**inputs).logits[mask]
        assert (found - ours(**inputs, task=name).logits[mask]).abs().max() < 1e-4


OPTIONS: tuple[dict[str, Any], ...] = (
    {"reference": "none"},
    {"score": "null_space", "group_mean": "residuals"},
    {"score": "gaussian", "pooling": "tokens"},
    {"score": "whitened", "routing_layers": "up_proj"},
    {"score": "residual", "norm": "l1", "reference": "noise", "routing_layers": "first:1"},
    {"routing_layers": "depth:0.5", "heads": "max", "max_tasks": 1},
)


def test_the_script_has_the_options_of_the_router(served: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "adapters", submerge.load(served).route(**text_inputs(1, 5)).scores
    model = None
    for options in OPTIONS:
        given = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
        assert cli("export", served, "-o", out, "--overwrite", *given).code == 0
        model = model or loaded(out, served)
        ours = submerge.load(served, **options)
        check_router(out, model, ours, options.get("score", "leading"))
        scores = ours.route(**text_inputs(1, 5)).scores
        assert (scores - plain).abs().max() > 1e-2, "each of them changes the scores"
    by_layer = (out / "router.safetensors").read_bytes()
    assert cli("export", served, "-o", out, "--overwrite", "--depth", "0.5").code == 0
    assert (out / "router.safetensors").read_bytes() == by_layer


def test_an_update_is_exported_as_it_runs_alone(served: Path, tmp_path: Path) -> None:
    out = export_adapters(served, tmp_path / "adapters", aggregate="iso_c").out
    check_adapters(loaded(out, served), submerge.load(served, aggregate="iso_c"))


def test_a_calibration_is_exported_and_used(served: Path, tmp_path: Path) -> None:
    """Of inputs that nobody sorted, and of those of each task; with a depth of its own it is refused."""
    folder, out = shutil.copytree(served, tmp_path / "served"), tmp_path / "adapters"
    together = [text_inputs(task, 8) for task in range(3)]
    plain = submerge.load(folder).route(**text_inputs(1, 5)).scores
    for data in (together, {name: [batch] for name, batch in zip(NAMES, together, strict=True)}):
        submerge.calibrate_router(folder, data)
        assert cli("export", folder, "-o", out, "--overwrite").code == 0
        ours = submerge.load(folder)
        assert (ours.route(**text_inputs(1, 5)).scores - plain).abs().max() > 1e-2
        check_router(out, loaded(out, served), ours, "leading")
    refused = cli("export", folder, "-o", out, "--overwrite", "--depth", "0.5")
    assert refused.code == 2
    assert "other settings of the first pass: layers" in refused.err
    given = ("--depth", "0.5", "--set", "calibration=none")
    assert cli("export", folder, "-o", out, "--overwrite", *given).code == 0
    assert not (out / "calibration.safetensors").exists()
    ours = submerge.load(folder, calibration="none", routing_layers="depth:0.5")
    check_router(out, loaded(out, served), ours, "leading")


def example(out: Path) -> Any:
    """Return the script beside the adapters, as a module, which needs no Submerge."""
    tree = ast.parse((out / "route.py").read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    assert not [name for name in imported if name.partition(".")[0] == "submerge"]
    spec = importlib.util.spec_from_file_location("route_example", out / "route.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses want it
    spec.loader.exec_module(module)
    return module


def check_router(out: Path, model: Any, ours: Any, score: str) -> None:
    """Check that the example beside the adapters chooses as the served model does."""
    inputs = text_inputs(1, 5)
    router = example(out).AdapterRouter(out)
    assert example(out).Router.__name__ == "AdapterRouter"  # the earlier name stays
    assert router.score == ours.router.settings["score"] == score
    found, wanted = router.route(model, **inputs), ours.route(**inputs)
    assert found.tasks == wanted.tasks
    assert (router.scores(model, **inputs) - wanted.scores).abs().max() < 1e-3
    assert router(model, **inputs) == ours.route(**inputs, group="batch").tasks[0]


LABELS = (2, 5, 1)
HEADED: dict[str, tuple[str, str, str, str]] = {
    "bert": ("BertModel", "BertForSequenceClassification", "BertConfig", "bert"),
    "roberta": ("RobertaForMaskedLM", "RobertaForSequenceClassification", "RobertaConfig", ""),
    "vit": ("ViTModel", "ViTForImageClassification", "ViTConfig", "vit"),
    "distilbert": (
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        "distilbert",
    ),
}
"""The base, the tasks' architecture, their configuration, and the part of their model that is the base."""
MOVED = ("query", "q_proj", "q_lin", "value", "v_proj", "v_lin")


def headed(kind: str, root: Path) -> Path:
    """Return the merge of three tasks with heads of three widths, whose attention was moved."""
    t = quiet_transformers()
    torch.manual_seed(0)
    base, tuned, config, _ = HEADED[kind]
    options: dict[str, Any] = {**VISION, "hidden_size": 32} if kind == "vit" else {**TEXT, "hidden_size": 32}
    if kind == "distilbert":
        options = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    options |= {"pad_token_id": 1} if kind == "roberta" else {}
    whole = getattr(t, base)(getattr(t, config)(**options))
    whole.save_pretrained(root / "base")
    for number, (name, count) in enumerate(zip(NAMES, LABELS, strict=True)):
        labels = {c: f"{name}-{c}" for c in range(count)}
        model = getattr(t, tuned)(getattr(t, config)(**options, num_labels=count, id2label=labels))
        getattr(model, model.base_model_prefix).load_state_dict(whole.base_model.state_dict(), strict=False)
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, values in model.state_dict().items():
                if values.ndim == 2 and any(part in key for part in MOVED):
                    left, right = (torch.randn(32, 3, generator=draw) for _ in range(2))
                    values.add_(0.1 * left @ right.T)
        model.eval().save_pretrained(root / name)
    recipe: dict[str, Any] = {
        "merge_method": "mass",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / name)} for name in NAMES],
    }
    recipe["models"][1]["parameters"] = {"form": "pair"}
    return submerge.merge(recipe, root / "served", settings=ROOM).out


@pytest.mark.parametrize("kind", HEADED)
def test_tasks_with_heads(kind: str, tmp_path: Path) -> None:
    """Adapters of the base alone, one beside the other, and heads of their own widths."""
    served, out = headed(kind, tmp_path), tmp_path / "adapters"
    result = cli("export", served, "-o", out)
    assert result.code == 0, result.err
    assert "heads lie in head.safetensors" in result.out
    assert "vLLM" not in result.out
    for name in NAMES:
        config = json.loads((out / name / "adapter_config.json").read_text())
        assert config["modules_to_save"] is None
        assert config["task_type"] is None
    t = quiet_transformers()
    plain = getattr(t, HEADED[kind][0]).from_pretrained(tmp_path / "base")
    loaded_base = peft.PeftModel.from_pretrained(plain, str(out / "first"), adapter_name="first")
    outcome = loaded_base.load_adapter(str(out / "second"), adapter_name="second")
    assert not outcome.unexpected_keys
    tasks, ours = example(out).Tasks(out), submerge.load(served)
    assert tasks.router.settings["part"] == HEADED[kind][3]
    inputs = image_inputs(1, 5) if kind == "vit" else text_inputs(1, 5)
    for name, count in zip(NAMES, LABELS, strict=True):
        tasks.use(name)
        with torch.no_grad():
            found = tasks.model(**inputs).logits
        assert found.shape == (5, count)
        assert (found - ours(**inputs, task=name).logits[:, :count]).abs().max() < 1e-4
    check_tasks(tasks, ours, inputs)


def check_tasks(tasks: Any, ours: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Check that tasks are found as the served model finds them, by the heads and by what is said, too."""
    prior = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    requests: tuple[dict[str, Any], ...] = ({}, {"form": "single"}, {"prior": 9 * prior}, {"task": "third"})
    for said in requests:
        found, wanted = tasks.route(**inputs, **said), ours.route(**inputs, **said)
        assert (found.scores - wanted.scores).abs().max() < 1e-3
        assert found.tasks == wanted.tasks
    heard = ours.router.first_pass.evidence(ours, inputs, 5).heads is not None
    assert heard == (tasks.heads.widths is not None) == (tasks.model.config.model_type != "distilbert")
    assert "second" not in tasks.route(**inputs, form="single").tasks
    for said in ({}, {"form": "pair"}, {"task": "third"}):
        chosen, answer = tasks(**inputs, **said)
        assert chosen == ours.route(**inputs, group="batch", **said).tasks[0]
        assert answer.logits.shape[1] == LABELS[NAMES.index(chosen)]
    with pytest.raises(Exception, match="the inputs are of several tasks: first, third"):
        tasks(**inputs, task=["first", *4 * ["third"]])


def test_the_script_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served, out = headed("bert", tmp_path), tmp_path / "adapters"
    t = quiet_transformers()
    vocabulary = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *(f"w{i}" for i in range(5, 64))]
    tokenizer = t.BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(tmp_path / "base")
    assert cli("export", served, "-o", out).code == 0
    texts = ["w7 w8 w9", "w30 w31", "w50 w51 w52 w53", "w20 w61"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(out / "route.py"), *texts])
    runpy.run_path(sys.argv[0], run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    ours = submerge.load(served)
    for line, text in zip(lines, texts, strict=True):
        answer = ours(**tokenizer(text, return_tensors="pt"))
        (task,) = answer.tasks
        logits = answer.logits[0, : LABELS[NAMES.index(task)]]
        shown = f"{task}-{int(logits.argmax())}" if len(logits) > 1 else f"{float(logits[0]):.4g}"
        assert line == f"{task}\t{shown}\t{text}"


@pytest.mark.parametrize("form", FORMS)
def test_the_script_reads_images_as_calibration_does(form: str, tmp_path: Path) -> None:
    """The two have no code in common, because the script runs without Submerge."""
    t, image = quiet_transformers(), write_image(tmp_path, form)
    for options in ({}, {"image_mean": [0.5], "image_std": [0.5]}, {"do_convert_rgb": True}):
        processor = t.ViTImageProcessor(**options)
        ours = open_image(image, processor, "")
        found = _route_template.open_image(str(image), processor)
        assert found.mode == ours.mode
        assert found.tobytes() == ours.tobytes()


def test_the_script_names_an_image_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, out = headed("vit", tmp_path), tmp_path / "adapters"
    quiet_transformers().ViTImageProcessor().save_pretrained(tmp_path / "base")
    assert cli("export", served, "-o", out).code == 0
    Image.fromarray(np.ones((9, 12), np.float32)).save(tmp_path / "one.tif")
    monkeypatch.setattr(sys, "argv", [str(out / "route.py"), str(tmp_path / "one.tif")])
    with pytest.raises(SystemExit, match=r"error: .*one.tif: its values have neither 8 nor 16 bits"):
        runpy.run_path(sys.argv[0], run_name="__main__")


def test_what_is_refused(served: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    assert cli("export", served, "-o", out, "--json").json["rank"] == 4
    again = cli("export", served, "-o", out)
    assert again.code == 2
    assert "allow --overwrite" in again.err
    assert cli("export", served, "-o", out, "--overwrite").code == 0
    assert cli("export", served, "-o", tmp_path / "other", "--to", "onnx").code == 2
    assert cli("export", served.parent / "base", "-o", tmp_path / "other").code == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for name in ("mine", "mine/letter.txt"):
        refused = cli("export", served, "-o", tmp_path / name, "--overwrite")
        assert (refused.code, "Traceback" in refused.err) == (2, False)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    asked = {
        "passes=one": "passes is one: the first pass is the merge's",
        "preset=paper": "select is threshold: several tasks may run at once",
        "score=best": "score must be one of",
        "routing_layers=nowhere": "names has a map that tasks change",
        "score": "'score' is no NAME=VALUE",
        "sed=1": "export: there is no setting 'sed' of the gate",
    }
    for given, told in asked.items():
        refused = cli("export", served, "-o", tmp_path / "other", "--set", given)
        assert refused.code == 2
        assert told in refused.err
    both = cli("export", served, "-o", tmp_path / "other", "--depth", "0.5", "--set", "routing_layers=all")
    assert "both depth and routing_layers" in both.err
    assert not (tmp_path / "other").exists()
