from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from store.helpers_store import messages, write_sharded, write_single
from submerge.errors import RequestError, WorkError
from submerge.store import fetch, open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network: whatever reaches for it fails the test."""
    path = tmp_path / "cache"
    path.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))

    def network(*_: object, **__: object) -> None:
        pytest.fail("the network was used")

    monkeypatch.setattr("socket.create_connection", network)
    monkeypatch.setattr("socket.getaddrinfo", network)
    return path


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cache


def put(cache: Path, source: Path, repo: str = "org/name") -> Path:
    """Store a folder in the cache as the library would: blobs, and links to them in a snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    snapshot = home / "snapshots" / COMMIT
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        content = file.read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * len(link.relative_to(home).parent.parts)) / "blobs" / blob.name)
    return snapshot


def refused(spec: str, root: Path) -> str:
    with pytest.raises(RequestError) as caught:
        open_checkpoint(spec, root=root)
    return messages(caught.value)


@pytest.mark.parametrize("spec", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_a_cached_repository_opens_offline(offline: Path, tmp_path: Path, spec: str) -> None:
    write_sharded(tmp_path / "m")
    (tmp_path / "m" / "1_Pooling").mkdir()
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "m" / "LICENSE").write_text("free")
    snapshot = put(offline, tmp_path / "m")
    found = open_checkpoint(spec, root=tmp_path)
    assert found.revision == COMMIT
    assert found.path == snapshot
    assert found.label == spec
    assert [str(path) for path in found.side_files] == ["1_Pooling/config.json", "LICENSE", "config.json"]
    assert len(found.tensors) == 5


def test_transformers_offline_counts_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "yes")
    write_single(tmp_path / "m")
    put(cache, tmp_path / "m")
    assert fetch("org/name").commit == COMMIT


def test_what_is_not_cached_is_said(offline: Path, tmp_path: Path) -> None:
    text = refused("org/name", tmp_path)
    assert "org/name: revision main" in text
    assert "hf download org/name" in text
    assert str(offline) in text
    write_single(tmp_path / "m")
    put(offline, tmp_path / "m")
    text = refused("org/name@v2", tmp_path)
    assert "revision v2" in text
    assert "hf download org/name --revision v2" in text
    assert "not a Hub id" in refused("a--b/c..d", tmp_path)


def test_a_missing_shard_of_a_cached_repository_is_named(offline: Path, tmp_path: Path) -> None:
    write_sharded(tmp_path / "m")
    snapshot = put(offline, tmp_path / "m")
    (snapshot / "model-00002-of-00002.safetensors").resolve().unlink()
    text = refused("org/name", tmp_path)
    assert "model-00002-of-00002.safetensors" in text
    assert "hf download org/name" in text


def test_a_local_folder_wins_and_a_near_one_is_hinted(offline: Path, tmp_path: Path) -> None:
    write_single(tmp_path / "models" / "tuned")
    assert open_checkpoint("models/tuned", root=tmp_path).revision is None
    assert "did you mean 'tuned'?" in refused("models/tund", tmp_path)


def test_links_out_of_the_cache_are_refused(offline: Path, tmp_path: Path) -> None:
    write_single(tmp_path / "m")
    snapshot = put(offline, tmp_path / "m")
    (tmp_path / "secret").write_text("private")
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret")
    (problem,) = open_checkpoint("org/name", root=tmp_path).links.values()
    assert "notes.txt: is a link to" in str(problem)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused("org/name", tmp_path)


class Repository:
    """A stand-in for the Hub that serves a folder and notes what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, source: Path) -> None:
        self.asked: list[list[str]] = []
        self.revisions: list[str | None] = []
        self.files = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
        self.snapshot = put(cache, source)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(repo_info=self.info))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def info(self, repo_id: str, revision: str | None = None) -> Any:
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        self.asked.append(allow_patterns)
        self.revisions.append(revision)
        return str(self.snapshot)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_sharded(tmp_path / "m")
    for name in ("consolidated.safetensors", "model.gguf", "README.md", "LICENSE", "photo.png", "merges.txt"):
        (tmp_path / "m" / name).touch()
    return tmp_path / "m"


def test_small_files_come_first_and_only_what_is_needed(
    cache: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(monkeypatch, cache, source)
    found = fetch("org/name", "v1")
    folder, commit = found.folder, found.commit
    assert (folder, commit) == (repository.snapshot, COMMIT)
    small, weights = repository.asked
    assert sorted(small) == ["LICENSE", "config.json", "merges.txt", "model.safetensors.index.json"]
    assert weights == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert repository.revisions == ["v1", COMMIT]


def test_refusals_come_before_the_download(
    cache: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    repository = Repository(monkeypatch, cache, source)
    assert "quantised (awq)" in refused("org/name", tmp_path)
    assert len(repository.asked) == 1
    for files, text in (
        (["pytorch_model.bin"], "--allow-pickle"),
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter"),
        (["x.gguf"], "GGUF"),
        (["unet/model.safetensors"], "subfolders"),
    ):
        repository.files = files
        assert text in refused("org/name", tmp_path)
    assert len(repository.asked) == 1


def respond(code: int) -> Any:
    try:
        import httpx2 as httpx
    except ImportError:  # older versions of the library
        import httpx  # type: ignore[no-redef]
    return httpx.Response(code, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("GatedRepoError", 403, "gated"),
        ("RepositoryNotFoundError", 404, "no such repository"),
        ("RevisionNotFoundError", 404, "no branch, tag or commit 'v1'"),
    ],
)
def test_the_hub_says_no(
    cache: Path,
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    text: str,
) -> None:
    repository = Repository(monkeypatch, cache, source)

    def info(*_: object, **__: object) -> None:
        raise getattr(huggingface_hub.errors, name)("no", response=respond(code))

    monkeypatch.setattr(repository, "info", info)
    assert text in refused("org/name@v1", tmp_path)
    assert not repository.asked


def test_a_broken_network(cache: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = huggingface_hub.snapshot_download
    repository = Repository(monkeypatch, cache, source)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(repository, "info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", real)
    assert fetch("org/name").commit == COMMIT  # from the cache
    assert "cannot be reached (ConnectionError: no route)" in refused("org/other", tmp_path)
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    repository = Repository(monkeypatch, tmp_path / "other", source)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(WorkError, match="the download failed"):
        fetch("org/name")
