"""The documentation is true: recipes load, commands and code run, tables agree with the code, links lead on.

A comment in front of a fenced block says what is done with it:

* `run` (or `run: exit N`, `run: plugin`): its commands or its code run, in a folder with the tiny models that
  `docs/quickstart.md` makes, page by page and block by block;
* `prints`: what the block before it printed, where … stands for anything;
* `part of: METHOD`: a piece of a recipe; `refused: TEXT`: a recipe that is refused with this text;
  `messages`: all that the refused recipes of the page say, in order.

A block with a title is written to a file of that name. All other YAML blocks are whole recipes.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import submerge
import submerge.algebra
import submerge.engine
import submerge.gating
import submerge.methods
import submerge.serving
from _structure import Source
from submerge.cli import main
from submerge.cli._app import app
from submerge.errors import RequestError
from submerge.methods import METHODS, REQUIRED, Method, Option
from submerge.recipe import load_documents, load_mixture, load_recipe
from submerge.recipe._schema import RECIPE_KEYS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<lang>\w+)(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its mark, language and title, and what is in it."""

    page: Path
    line: int
    mark: str
    lang: str
    title: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        line = text.count("\n", 0, match.start("lang")) + 1
        name = title[1] if title else ""
        found.append(Block(page, line, match["mark"] or "", match["lang"], name, match["body"]))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
RECIPES = [block for block in BLOCKS if block.lang == "yaml"]
RUNNING = [page for page in PAGES if any(block.mark.startswith("run") for block in blocks(page))]


# --- recipes ---------------------------------------------------------------------------------------------


def methods_of(page: Path) -> Mapping[str, Method]:
    """Return all methods, and the one that a page defines as an example."""
    found = dict(METHODS)
    for block in blocks(page):
        if block.lang == "python" and "METHOD = Method(" in block.body:
            space: dict[str, Any] = {}
            exec(compile(block.body, str(block), "exec"), space)
            found[space["METHOD"].name] = space["METHOD"]
    return found


def completed(part: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Return a whole recipe that holds a part of one."""
    data = {"merge_method": method.name, "base_model": "base", "models": [{"model": "base"}, {"model": "a"}]}
    data |= part
    required = {option.name: 1 for option in method.options if option.default is REQUIRED}
    if method.calibration is not None and "data" in str(part.get("models")):
        required = {}  # the weights are learned
    return data | {"parameters": required | dict(part.get("parameters", {}))}


def refusal(block: Block, folder: Path) -> list[str]:
    """Return what loading the block's recipe says."""
    path = folder / (block.title or "recipe.yaml")
    path.write_text(block.body, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        load_recipe(path)
    return [str(problem) for problem in caught.value.problems]


def provide(recipe: Any) -> None:
    """Write the files that a recipe names, and that must be there when it is loaded."""
    entries = recipe.get("models") if isinstance(recipe, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("data"), str):
            Path(entry["data"]).write_text("{}")
    if isinstance(recipe, dict) and "coefficients" in recipe:
        weights = {"module": {Path(entry["model"]).name: 0.5 for entry in recipe["models"]}}
        Path(recipe["coefficients"]).write_text(json.dumps({"coefficients": weights}))


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_recipes_load(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "data:" in block.body or "coefficients:" in block.body:
        provide(yaml.safe_load(block.body))
    if block.mark.startswith("refused: "):
        messages = refusal(block, tmp_path)
        assert any(block.mark.removeprefix("refused: ") in message for message in messages), messages
    elif block.mark.startswith("part of: "):
        method = METHODS[block.mark.removeprefix("part of: ")]
        load_recipe(completed(yaml.safe_load(block.body), method))
    elif re.search("^experts:", block.body, re.M):
        load_mixture(block.body)
    else:
        load_documents(block.body, methods=methods_of(block.page))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.mark == "messages"], ids=str)
def test_messages_are_those_of_the_refused_recipes(block: Block, tmp_path: Path) -> None:
    refused = [b for b in blocks(block.page) if b.mark.startswith("refused: ")]
    assert block.body.splitlines() == [line for b in refused for line in refusal(b, tmp_path)]


# --- commands and code ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quick start's models."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    script = next(b for b in blocks(DOCS / "quickstart.md") if b.title == "make_models.py")
    recipe = next(b for b in blocks(DOCS / "quickstart.md") if b.title == "recipe.yaml")
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(script.body, str(script), "exec"), {})
    finally:
        os.chdir(before)
    (folder / "recipe.yaml").write_text(recipe.body)
    return folder


@pytest.fixture
def workplace(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that folder, as the current one; the command's handler of signals is undone.

    Memory is counted as in a fresh process, for this one holds whatever other tests have loaded.
    """
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(sys.modules["submerge.engine.plan.tensors._memory"], "resident", lambda: 300_000_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def plugin(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that does what `pip install -e .` does: a folder's module and entry points are found."""

    def install(folder: Path) -> None:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(submerge.methods, "METHODS", type(METHODS)())

    yield install
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(workplace)):
            del sys.modules[name]


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command, `submerge` and `python FILE` in this process; return its exit code."""
    if words[0] == "python":
        runpy.run_path(words[1])
        return 0
    if words[0] != "submerge":
        return subprocess.run(words, check=False).returncode
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of a block; the last one ends with the code that its mark names."""
    expected = re.search(r"exit (\d+)", block.mark)
    lines = block.body.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if shlex.split(line, comments=True)]
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        code = subprocess.run(line, shell=True, check=False).returncode if "|" in line else None
        if code is None:
            code = command(shlex.split(line, comments=True), monkeypatch)
        assert code == (int(expected[1]) if expected and last else 0), f"{block}: {line}"


def assert_printed(block: Block, printed: str) -> None:
    pattern = re.escape(block.body.strip()).replace("…", ".*")
    text = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    assert re.fullmatch(pattern, text, re.S), f"{block} says\n{block.body}\nand there was\n{printed}"


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(
    page: Path,
    workplace: Path,
    plugin: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    space: dict[str, Any] = {}
    printed = ""
    for block in blocks(page):
        if block.title:
            (workplace / block.title).write_text(block.body, encoding="utf-8")
        if block.mark == "prints":
            assert_printed(block, printed)
        if not block.mark.startswith("run"):
            continue
        if block.mark == "run: plugin":
            plugin(workplace)
        capfd.readouterr()
        if block.lang == "python":
            exec(compile(block.body, str(block), "exec"), space)
        else:
            shell(block, monkeypatch)
        printed = capfd.readouterr().out


# --- docstrings -------------------------------------------------------------------------------------------

SURFACE = {
    "index.md": submerge,
    "methods.md": submerge.methods,
    "algebra.md": submerge.algebra,
    "gating.md": submerge.gating,
    "serving.md": submerge.serving,
}
"""The pages of docs/api, and the packages whose public names they show."""
OTHERS = tuple(
    importlib.import_module(f"submerge.{name}")
    for name in (
        "arguments", "calibrate", "continual", "engine", "errors", "kernels", "names", "recipe", "report",
        "routing", "store",
    )
)  # fmt: skip
"""The packages whose public names have no page."""


def public(name: str) -> Any:
    """Return the object of a dotted name of one of those packages."""
    package, _, attribute = name.rpartition(".")
    return getattr(sys.modules[package], attribute)


def names_of(packages: Iterable[Any]) -> list[str]:
    """Return the public names of packages but for modules, each with its package's name in front."""
    names = (f"{package.__name__}.{name}" for package in packages for name in package.__all__)
    return [name for name in names if not name.endswith("__") and not inspect.ismodule(public(name))]


def is_described(name: str) -> bool:
    return inspect.isfunction(public(name)) or inspect.isclass(public(name))


def has_example(name: str) -> bool:
    return is_described(name) and ">>>" in (public(name).__doc__ or "")


PUBLIC = names_of(SURFACE.values())
WITHOUT_EXAMPLE = {
    f"submerge.gating.{name}"
    for name in (
        "Assignment", "Branches", "CompetingHeads", "GatedEmbedding", "GatedLayerNorm", "GatedLinear",
        "GatedMap", "GatedModule", "GatedOther", "GatedRows", "GatedSum", "GatedTable", "GatedUpdate",
        "Heads", "MixedBranches", "ModuleInputs", "PrototypeAssignment", "PrototypeBranches",
        "ReplacedParameter",
        "SelectedBranches", "StopForward", "TokenModules", "UnsplitError", "branch_module",
        "replace_parameters", "restore_parameters", "token_modules",
    )
}  # fmt: skip
"""What gates are built of, behind the functions and classes that have one."""


@pytest.mark.parametrize("page", SURFACE)
def test_the_reference_has_all_public_names(page: str) -> None:
    package = SURFACE[page].__name__
    listed = re.findall(r"^::: (\S+)$", (DOCS / "api" / page).read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(name for name in PUBLIC if name.rpartition(".")[0] == package)


def test_all_public_names_have_docstrings() -> None:
    described = filter(is_described, [*PUBLIC, *names_of(OTHERS)])
    assert [name for name in described if not public(name).__doc__] == []


EXAMPLES = [name for name in PUBLIC if is_described(name) and name not in WITHOUT_EXAMPLE]
SHOWN = {id(public(name)) for name in EXAMPLES}
EXAMPLES += [n for n in names_of(OTHERS) if has_example(n) and id(public(n)) not in SHOWN]


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstrings_have_an_example_that_holds(
    name: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = inspect.getdoc(public(name)) or ""
    if "from peft" in text:
        pytest.importorskip("peft")
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert example.examples, f"the docstring of {name} has no example"
    found = doctest.DocTestRunner().run(example)
    assert found.failed == 0, capsys.readouterr().out


# --- tables -----------------------------------------------------------------------------------------------


def rows(page: Path) -> list[list[str]]:
    """Return the cells of every table row of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def page_of(method: str) -> Path:
    """Return the page that has a section about a method."""
    heading = f"\n## `{method}`\n"
    found = [page for page in METHOD_PAGES if heading in page.read_text(encoding="utf-8")]
    assert len(found) == 1, f"{method} has sections on {len(found)} pages of docs/methods"
    return found[0]


def written(value: Any) -> str:
    """Return a value as the documentation writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def kind(option: Option) -> str:
    """Return an option's type and range as the documentation writes them."""
    if option.kind is bool:
        return "true or false"
    if option.kind is str:
        return " or ".join(f"`{choice}`" for choice in option.choices) or "text"
    name = "whole number" if option.kind is int else "number"
    low, high = f"{option.low:g}", f"{option.high:g}"
    if (low, high) != ("-inf", "inf"):
        name = f"{name} ≥ {low}" if high == "inf" else f"{name} in [{low}, {high}]"
    return f"{name} or `{option.word}`" if option.word else name


def default_in(cell: str, method: str) -> str:
    """Return the default that a cell such as "`false`; `true` for `ties`" gives for a method."""
    found, *exceptions = cell.split("; ")
    for exception in exceptions:
        value, _, names = exception.partition(" for ")
        if f"`{method}`" in names:
            return value.strip("`")
    return found.strip("`")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_options_are_documented(method: Method) -> None:
    page = page_of(method.name)
    table = [row for row in rows(page) if len(row) == 5]
    for option in method.options:
        found = [row for row in table if row[0] == f"`{option.name}`"]
        assert len(found) == 1, f"{page}: {option.name} has {len(found)} rows"
        _, type_, default, scope, meaning = found[0]
        assert type_ == kind(option)
        expected = "required" if option.default is REQUIRED else written(option.default)
        assert default_in(default, method.name) == expected, f"{page}: {option.name}"
        assert scope == ("each model" if option.scope == "model" else "the merge")
        assert meaning


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.name)
def test_documented_options_exist(page: Path) -> None:
    names = re.findall(r"^## `(\w+)`$", page.read_text(encoding="utf-8"), re.M)
    options = {f"`{option.name}`" for name in names for option in METHODS[name].options}
    documented = {row[0] for row in rows(page) if len(row) == 5 and row[3] in ("each model", "the merge")}
    assert documented == options


def counted(method: Method) -> str:
    low, high = method.min_models, method.max_models
    return f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"


def index_rows() -> dict[str, list[str]]:
    return {
        match[1]: row
        for row in rows(DOCS / "methods" / "index.md")
        if len(row) == 5 and (match := re.match(r"\[`(\w+)`\]", row[0]))
    }


def test_the_index_lists_all_methods() -> None:
    listed = index_rows()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert list(listed) == list(METHODS)
    for method in METHODS.values():
        _, base, count, _, use = listed[method.name]
        assert base == ("required" if method.needs_base else "optional")
        assert count == counted(method)
        assert use
        assert f"[`{method.name}`](docs/methods/{page_of(method.name).name}" in readme


USUAL = {
    "weight": 0.5,
    "t": 0.5,
    "density": 0.5,
    "epsilon": 0.1,
    "select_topk": 0.5,
    "statistics": "identity",
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_passes_are_as_documented(method: Method, workplace: Path) -> None:
    names = [] if method.name in ("slerp", "arcee_fusion") or method.max_models == 1 else ["chat"]
    recipe: dict[str, Any] = {
        "merge_method": method.name,
        "models": [{"model": name} for name in [*names, "code"]],
        "parameters": {option.name: USUAL[option.name] for option in method.options if option.name in USUAL},
    }
    if method.needs_base:
        recipe["base_model"] = "base"
    plan = submerge.plan(recipe)
    report = submerge.merge(plan, workplace / "out")
    passes = int(index_rows()[method.name][3])
    if method.matrix is None:
        assert report.bytes_read == passes * plan.bytes_read
    else:  # the base is read for each update, and what is no matrix once
        assert (passes - 1) * plan.bytes_read < report.bytes_read < (passes + 1) * plan.bytes_read


def test_all_options_of_the_commands_are_documented() -> None:
    documented = {
        name: row[1] for row in rows(DOCS / "running.md") for name in re.findall(r"`(--?[\w-]+)`", row[0])
    }
    found: dict[str, list[str]] = {}
    commands = typer.main.get_command(app).commands
    commands = {name: one for name, one in commands.items() if not hasattr(one, "commands")}
    for name, one in commands.items():
        for parameter in one.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("-") and flag not in ("--help", "-h"):
                    found.setdefault(flag, []).append(name)
    assert documented.keys() == found.keys()
    for flag, names in found.items():
        everywhere = sorted(names) == sorted(commands)
        assert sorted(documented[flag].split(", ")) == (["all"] if everywhere else sorted(names)), flag


def test_all_options_of_many_are_documented() -> None:
    text = (DOCS / "continual.md").read_text(encoding="utf-8")
    for name, one in typer.main.get_command(app).commands["many"].commands.items():
        assert f"`{name} " in text or f"submerge many {name} " in text, name
        for parameter in one.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert not flag.startswith("--") or flag == "--help" or f"`{flag}`" in text, flag


def test_all_keys_of_a_recipe_are_documented() -> None:
    documented = {row[0].strip("`") for row in rows(DOCS / "recipes.md") if len(row) == 3}
    assert set(RECIPE_KEYS) <= documented


# --- architecture -----------------------------------------------------------------------------------------

SOURCE = Source(ROOT / "src" / "submerge")
NO_MODULES = {"submerge.json", "submerge.gates"}
"""A file, and a group of entry points."""
STRUCTURE = [DOCS / "architecture.md", DOCS / "add-a-method.md", DOCS / "add-a-gate.md"]


def quoted(page: Path) -> list[str]:
    """Return what stands between backticks in a page's text and tables."""
    return re.findall(r"`([^`\n]+)`", _BLOCK.sub("", page.read_text(encoding="utf-8")))


def exists(name: str) -> bool:
    """Return whether a dotted name is a module of Submerge, or an attribute of one."""
    if name in SOURCE.modules:
        return True
    outer, _, last = name.rpartition(".")
    return outer in SOURCE.modules and hasattr(importlib.import_module(outer), last)


@pytest.mark.parametrize("page", STRUCTURE, ids=lambda page: page.name)
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    dotted = {name for name in quoted(page) if re.fullmatch(r"submerge(\.\w+)+", name)} - NO_MODULES
    files = {name for name in quoted(page) if re.fullmatch(r"\w+(/\w+)+\.py", name)}
    assert not {name for name in dotted if not exists(name)}
    assert not {name for name in files if not (SOURCE.root / name).is_file() and not (ROOT / name).is_file()}


@pytest.mark.parametrize("page", STRUCTURE, ids=lambda page: page.name)
def test_classes_that_are_named_exist(page: Path) -> None:
    named = {name for text in quoted(page) for name in re.findall(r"\b[A-Z][a-z]+[A-Z]\w*", text)}
    nodes = [node for module in SOURCE.modules.values() for node in ast.walk(module.tree)]
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    assert named <= classes | set(submerge.methods.__all__)


def test_all_packages_have_a_row_with_files_of_theirs() -> None:
    packages = {module.path.parent for module in SOURCE.modules.values()} - {Path("submerge")}
    listed = {row[0].strip("`"): row[2] for row in rows(DOCS / "architecture.md") if len(row) == 3}
    for package in packages:
        folder = package.relative_to("submerge")
        files = re.findall(r"`(\w+\.py)`", listed[str(folder)])
        assert files, folder
        assert not [name for name in files if not (SOURCE.root / folder / name).is_file()], folder


def test_no_import_goes_up_in_the_picture_of_the_floors() -> None:
    picture = blocks(DOCS / "architecture.md")[0].body.splitlines()
    known = {name.rpartition(".")[2]: name for name in SOURCE.modules}
    places: dict[str, int] = {}
    for line, text in enumerate(picture):
        for cell in text.strip("│").split("│"):
            for word in re.split(r"\s{2,}", cell.strip())[0].split(", "):
                places.setdefault(known.get(word, ""), line)

    def place(module: str) -> int | None:
        """Return the line of the innermost package that a module is in; the top one has none."""
        while module not in places and "." in module:
            module = module.rpartition(".")[0]
        return places.get(module)

    assert {module for module in SOURCE.modules if place(module) is None} <= {
        name for name, module in SOURCE.modules.items() if module.package == "submerge"
    }
    lines = [(a, b, place(a), place(b)) for a, targets in SOURCE.graph.items() for b in targets]
    assert not [f"{a} → {b}" for a, b, above, below in lines if above and below and below < above]


def test_the_site_lists_all_pages() -> None:
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


# --- links and paths --------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name}: {target}"
        assert other.is_relative_to(DOCS) or not page.is_relative_to(DOCS), f"{target} is no page of the site"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_place_on_a_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|opt|work|mnt|Users)/\S*", text)
