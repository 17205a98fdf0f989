"""What is written for a model: a path that is there wins, then a Hub id, and the rest is refused."""

from pathlib import Path

import pytest

from submerge.errors import RequestError
from submerge.store.folder import HubId, locate, sibling_hint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("chat", "org/name", "a@b", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file.safetensors").touch()
    return tmp_path


@pytest.mark.parametrize("spec", ["chat", "./chat", "org/name", "a@b", "file.safetensors", "org/../chat"])
def test_a_path_that_is_there_wins(root: Path, spec: str) -> None:
    assert locate(spec, root) == root / spec
    assert locate(str(root / spec), Path("/")) == root / spec


@pytest.mark.parametrize(
    ("spec", "hub"),
    [
        ("org/other", HubId("org/other")),
        ("org/other@main", HubId("org/other", "main")),
        ("org/other@refs/pr/3", HubId("org/other", "refs/pr/3")),
        ("Org-1/a.b_c@v1.0+x", HubId("Org-1/a.b_c", "v1.0+x")),
    ],
)
def test_hub_ids(root: Path, spec: str, hub: HubId) -> None:
    assert locate(spec, root) == hub


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("chat@main", "a local path has no revisions"),
        ("org/other@../x", "is not a revision"),
        ("org/other@", "is not a revision"),
        ("chta", "did you mean 'chat'?"),
        ("deep/in/nothing", "a model on the Hub is written org/name"),
        ("https://huggingface.co/org/model/tree/main", "write org/model"),
        ("  ", "the model's name is empty"),
        ("", "the model's name is empty"),
        ("a\0b", "there is no such file or folder"),
        ("x" * 5000, "there is no such file or folder"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_neither(root: Path, spec: str, text: str) -> None:
    with pytest.raises(RequestError) as error:
        locate(spec, root)
    assert text in str(error.value)


def test_hints_do_not_name_hidden_folders(root: Path) -> None:
    assert sibling_hint("hidden", root) == ""
    assert sibling_hint("nowhere/chat", root) == ""
