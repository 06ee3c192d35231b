"""Datasets of the Hub, from a stand-in on loopback that has one dataset of two splits, and from one out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.models.hub import HubFailed
from mreg.registry.models.hub_datasets import fetch

COMMIT = "a" * 40
FILES = {"train.jsonl": b'{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n', "test.jsonl": b'{"text": "three"}\n'}
INFO = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES], "tags": [], "likes": 0}
TREE = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]


class Hub(BaseHTTPRequestHandler):
    """What the datasets library asks of a Hub."""

    def log_message(self, format: str, *given: object) -> None:
        """Nobody reads it."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if "/resolve/" in path:
            found = {"ETag": f'"{name}"'} if name in FILES else {"X-Error-Code": "EntryNotFound"}
            self._send(FILES.get(name), {"X-Repo-Commit": COMMIT, **found})
        elif path.startswith("/api/datasets/org/name"):
            self._send(json.dumps(TREE if "/tree/" in path else INFO).encode(), {"Content-Type": "application/json"})
        else:
            self._send(None, {})

    def _send(self, body: bytes | None, headers: dict[str, str]) -> None:
        self.send_response(404 if body is None else 200)
        for header, value in {**headers, "Content-Length": str(len(body or b""))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def add(registry: Registry, hub: str, named: str, *more: str) -> subprocess.CompletedProcess[str]:
    """`mreg data add`, in a process of its own: the address of the Hub is read when its library is imported."""
    return subprocess.run(
        [sys.executable, "-m", "mreg.cli.main", "--registry", str(registry.root.parent), "data", "add", named, *more],
        env={"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin:/bin", "HOME": str(registry.root.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_split_of_a_dataset_on_the_hub_is_recorded_by_its_commit(registry: Registry, hub: str):
    process = add(registry, hub, "hf:org/name@main:train", "--as", "rows")

    (dataset,) = registry.datasets()
    assert ("", 0) == (process.stderr, process.returncode)
    assert ("rows", 2, ("n", "text")) == (dataset.name, dataset.rows, dataset.columns)
    assert ("hf", f"hf:org/name@{COMMIT}:train") == (dataset.format, dataset.source)
    assert [] == list((registry.root / "tmp").iterdir())


def test_what_was_downloaded_does_not_stay_in_the_cache_of_the_user(registry: Registry, hub: str):
    home = registry.root.parent
    before = {path.relative_to(home) for path in home.rglob("*") if registry.root not in path.parents}

    assert 0 == add(registry, hub, "hf:org/name:train").returncode
    assert before == {path.relative_to(home) for path in home.rglob("*") if registry.root not in path.parents}


def test_a_dataset_of_several_splits_asks_for_one(registry: Registry, hub: str):
    process = add(registry, hub, "hf:org/name")

    assert 2 == process.returncode
    assert "mreg: hf:org/name has the splits train, test: choose one: hf:org/name:train\n" == process.stderr


def test_a_hub_that_is_out_of_reach_is_told_in_one_line_and_leaves_nothing(registry: Registry):
    process = add(registry, "http://127.0.0.1:9", "hf:org/name")

    assert (5, 1) == (process.returncode, process.stderr.count("\n"))
    assert process.stderr.startswith("mreg: the dataset hf:org/name could not be fetched (")
    assert [] == registry.datasets()


@pytest.mark.parametrize("named", ["hf:", "hf:a/b/c", "hf:org/name:", "hf:org/name@", "hf:../x y"])
def test_what_names_no_dataset_is_refused(tmp_path: Path, named: str):
    with pytest.raises(HubFailed, match="names no dataset on the Hub: write hf:org/name"):
        fetch(named, tmp_path)
