"""du, gc, evict, restore and repack: what they do and what they say of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.log.events import VersionEvicted

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")


def litter(here: Path) -> None:
    with Registry.open(here).store.batch() as batch:
        batch.put_bytes(b"needed by nothing")


def evicted(here: Path, rev: str) -> None:
    """As if a replay had proved the version, and it was evicted."""
    registry = Registry.open(here)
    version = registry.version(rev)
    event = VersionEvicted(version=version.digest, replay="r", verdict="bytes", objects=1, bytes=1)
    registry.log.append(event)
    registry.gc(now=True)


def test_du_says_what_each_version_takes(ok: Run, run: Run) -> None:
    found = ok("du")
    (one,) = ok("du", "prod")["versions"]

    assert {"versions", "objects", "bytes", "logical", "ratio", "quarantined"} <= found.keys()
    assert ["v1", "v2", "v3", "v4"] == [cost["version"] for cost in found["versions"]]
    assert "v2" == one["version"]
    assert {"bytes", "own", "shared", "shared_with", "encodings", "evicted"} <= one.keys()
    assert found["bytes"] > sum(cost["own"]["bytes"] for cost in found["versions"])
    said = run("du").out
    assert "objects" in said
    assert "v4" in said


def test_gc_finds_nothing_where_all_is_needed(ok: Run, run: Run) -> None:
    assert (0, 0) == ((done := ok("gc", "--now"))["objects"], done["bytes"])
    assert "no object is needless" in run("gc").out


def test_gc_says_what_goes_and_undo_brings_it_back(ok: Run, run: Run, here: Path) -> None:
    litter(here)
    young = run("gc").out
    planned = ok("gc", "--grace", "0s", "--dry-run")
    said = run("gc", "--grace", "0s").out

    assert "too young: --grace 0s takes them" in young
    assert (1, True) == (planned["objects"], planned["dry_run"])
    assert "1 file, 81 B, needed by nothing: moved into quarantine" in said
    assert "1 object put back" in run("gc", "--undo").out
    gone = ok("gc", "--now")
    assert (1, {"objects": 1, "bytes": 81}) == (gone["objects"], gone["kinds"]["file"])
    assert 0 == gone["quarantined"]["objects"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--grace", "soon"], "'soon' is no time; write 90s, 15m, 12h, 1d or 2w"),
        (["--keep", "-1d"], "no time"),
        (["--grace", "infd"], "no time"),
        (["--undo", "--now"], "--undo stands alone"),
    ],
)
def test_a_wrong_option_of_gc_is_said(run: Run, wrong: list[str], said: str) -> None:
    refused = run("gc", *wrong)

    assert 2 == refused.code
    assert said in refused.err


def test_what_no_replay_has_proved_is_not_evicted(run: Run) -> None:
    imported, recorded = run("evict", "v1"), run("evict", "v2", "--dry-run")

    assert (11, 11) == (imported.code, recorded.code)
    assert "v1 was imported, and nothing here can make it again" in imported.err
    assert "v2 could not be made again: made elsewhere: nothing here can run it" in recorded.err


def test_an_evicted_version_is_marked_and_what_needs_it_refused(ok: Run, run: Run, here: Path) -> None:
    evicted(here, "v3")

    assert [False, False, True, False] == [row["evicted"] is not None for row in ok("list")]
    assert ", evicted" in run("list").out
    assert "mreg restore v3 makes the weights again" in run("show", "v3").out
    for command in (["checkout", "v3", "out"], ["verify", "v3"], ["diff", "v1", "v3", "--weights"]):
        refused = run(*command)
        assert (7, 1) == (refused.code, len(refused.err.splitlines()))
        assert "mreg: v3 was evicted on 2" in refused.err
    assert "evicted, " in run("du", "v3").out
    assert ok("fsck")["ok"]
    refused = run("restore", "v3")
    assert 11 == refused.code
    assert "v3 cannot be made again: made elsewhere" in refused.err


def test_restore_of_what_is_there_does_nothing(ok: Run, run: Run) -> None:
    assert {"version": "v2", "objects": 0, "event": None}.items() <= ok("restore", "v2").items()
    assert "is there, nothing was done" in run("restore", "v2").out
    assert [] == ok("restore", "v2", "--dry-run")["steps"]


def test_repack_says_what_it_would_store_otherwise(ok: Run, run: Run) -> None:
    planned, done = ok("repack", "--dry-run"), ok("repack")

    assert {"objects", "changes", "left", "before", "after", "dry_run"} <= done.keys()
    assert (planned["objects"], planned["before"], None) == (done["objects"], done["before"], planned["after"])
    assert "stored as " in run("repack").out
    assert ok("fsck")["ok"]


@pytest.mark.parametrize("arguments", [["gc", "--dry-run"], ["gc"], ["gc", "--undo"]], ids=" ".join)
def test_gc_loads_nothing_to_compute_with(arguments: list[str]) -> None:
    told = (
        "import sys\nfrom mreg.cli.main import main\ncode = main(sys.argv[1:])\n"
        "print(code, *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )

    process = subprocess.run([sys.executable, "-c", told, *arguments], capture_output=True, text=True, check=True)

    code, *imported = process.stderr.split()
    assert ("0", set()) == (code, {"numpy", "torch", "transformers"} & set(imported))
