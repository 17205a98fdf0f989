"""A Hub in small: serves folders over HTTP as the real one does, and remembers what was asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _cli import Result
from _victim import CONTEXT, start

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by id, each a folder; `asked` lists (method, path, range) of every request."""

    repos: dict[str, Path]
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def whole(self, name: str) -> int:
        """Return how often a file was fetched whole."""
        return sum(
            1 for method, path, span in self.asked if method == "GET" and path.endswith(name) and not span
        )


def environment(url: str, cache: Path) -> dict[str, str]:
    """Return what makes the Hub's library ask a server of ours; it looks at that when it is imported."""
    settings = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return settings | {"NO_PROXY": "*", "no_proxy": "*"}


def run(hub: Hub, folder: Path, *argv: str, **more: str) -> Result:
    """Run `submerge ARGV` in a folder, in a process whose Hub this is."""
    settings = environment(hub.url, folder / "cache") | more
    victim = start(argv, folder / "logs", folder=folder, environment=settings)
    code = victim.wait(120)
    return Result(code, victim.stdout.read_text(), victim.stderr.read_text())


Runner = Callable[..., Result]


@contextmanager
def importing(hub: Hub, folder: Path, *modules: str) -> Iterator[Runner]:
    """Yield what runs `submerge ARGV` like `run`, in forks of one process that has imported some modules.

    transformers, which takes seconds to import, asks for the Hub when it is imported: so the fork server that
    all tests share cannot have it.
    """
    ours, theirs = CONTEXT.Pipe()
    settings = environment(hub.url, folder / "cache")
    process = CONTEXT.Process(target=_run_in_forks, args=(theirs, folder, settings, modules))
    process.start()
    theirs.close()

    def run(*argv: str) -> Result:
        ours.send(argv)
        return ours.recv()

    try:
        yield run
    finally:
        ours.close()
        process.join()


def _run_in_forks(connection: Any, folder: Path, settings: dict[str, str], modules: Sequence[str]) -> None:
    os.environ.update(settings)
    for module in modules:
        import_module(module)
    with suppress(EOFError):
        while True:
            victim = start(connection.recv(), folder / "logs", folder=folder, context=get_context("fork"))
            code = victim.wait(120)
            connection.send(Result(code, victim.stdout.read_text(), victim.stderr.read_text()))


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[Hub]:
    """Serve the repositories on a free port of this machine until the block ends."""
    hub = Hub(repos)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            span = self.headers.get("range", "")
            hub.asked.append((self.command, path, span))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self.info(match[1])
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                self.tree(match[1])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self.file(match[1], match[2], span, body)
            else:
                self.send([], b"{}", 404)

        def info(self, repo: str) -> None:
            if repo not in hub.repos:
                return self.send([("X-Error-Code", "RepoNotFound")], b"{}", 404)
            folder = hub.repos[repo]
            names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            found = {"_id": "0", "id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.send([("Content-Type", "application/json")], json.dumps(found).encode())

        def tree(self, repo: str) -> None:
            folder = hub.repos[repo]
            found = [
                {"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": "0"}
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            ]
            self.send([("Content-Type", "application/json")], json.dumps(found).encode())

        def file(self, repo: str, name: str, span: str, body: bool) -> None:
            path = hub.repos.get(repo, Path("/nowhere")) / name
            if not path.is_file():
                return self.send([("X-Error-Code", "EntryNotFound")], b"", 404)
            data = path.read_bytes()
            headers = [("ETag", f'"{hashlib.sha1(data).hexdigest()}"'), ("X-Repo-Commit", COMMIT)]
            status = 200
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
                start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
                headers.append(("Content-Range", f"bytes {start}-{end}/{len(data)}"))
                data, status = data[start : end + 1], 206
            return self.send(headers, data, status, body)

        def send(
            self, headers: list[tuple[str, str]], data: bytes, status: int = 200, body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
