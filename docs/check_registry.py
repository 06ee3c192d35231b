"""An auditor's checker: what docs/format.md says, as a program that has nothing of mreg in it.

`python docs/check_registry.py .mreg` needs Python 3.11 and the package blake3. It reads everything, changes nothing,
prints what is wrong and exits with 1 if anything is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

# An event without its hash is the line without that member: keys are sorted, so it is always the third.
HASHED = re.compile(rb'(\{"actor":"(?:[^"\\]|\\.)*","at":"[^"]*"),"hash":"([0-9a-f]{64})"(,.*\})\n', re.DOTALL)

DAMAGE = (ValueError, KeyError, TypeError)
"""What reading something that is not as it should be raises."""


def derived(kind: str, data: bytes) -> str:
    """The digest of a kind of thing: a hash function of its own."""
    return blake3(data, derive_key_context=f"mreg 2026 {kind} v1").hexdigest()


def compact(value: Any) -> bytes:
    """Canonical JSON of what has only text and whole numbers in it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check_log(root: Path, events: list[dict[str, Any]]) -> Iterator[str]:
    """The chain from the first event to HEAD; fills `events` with what holds."""
    raw = (root / "HEAD").read_bytes()
    try:
        head = json.loads(raw)
        claimed = {name: head[name] for name in ("hash", "seq", "size")}
    except DAMAGE:
        head = claimed = {}
    if raw != compact({**claimed, "check": derived("head", compact(claimed))}) + b"\n":
        yield "HEAD is not as it was written"
        return
    journal = (root / "log" / "journal.jsonl").read_bytes()
    before = "0" * 64
    for number, line in enumerate(journal[: head["size"]].splitlines(keepends=True), start=1):
        match = HASHED.fullmatch(line)
        if match is None or derived("event", match[1] + match[3]) != match[2].decode():
            yield f"event {number} is not as it was written"
            return
        event = json.loads(line)
        if (event["seq"], event["prev"]) != (number, before):
            yield f"event {number} does not follow the one before it"
            return
        events.append(event)
        before = event["hash"]
    if (head["seq"], head["hash"]) != (len(events), before) or head["size"] > len(journal):
        yield "HEAD and the journal do not end with the same event"


def content(root: Path, digest: str) -> bytes:
    """What an object holds. Raises ValueError when it is not what its name says, OSError when it is not there."""
    data = (root / "objects" / digest[:2] / digest[2:]).read_bytes()
    end = 8 + int.from_bytes(data[5:8], "little")
    said, body = json.loads(data[8:end]), data[end:]
    header = {"encoding": "raw", "kind": said["kind"], "size": len(body)}
    if said["kind"] == "tensor":
        header |= {"dtype": said["dtype"], "shape": said["shape"]}
        shape = ",".join(map(str, said["shape"]))
        found = derived("tensor", f"{said['dtype']}[{shape}]\0".encode() + body)
    elif said["kind"] == "file":
        found = blake3(body).hexdigest()
    else:
        raise ValueError("it is neither a file nor a tensor")
    spelled = compact(header)
    spelled = spelled.ljust(-(-(8 + len(spelled)) // 64) * 64 - 8)
    if data[:end] != b"MREG\1" + len(spelled).to_bytes(3, "little") + spelled:
        raise ValueError("its envelope is not as it was written")
    if found != digest:
        raise ValueError("its content does not hash to its name")
    return body


def check_version(root: Path, claimed: dict[str, Any]) -> Iterator[str]:
    """One version: its manifest, its digests, and every file put together again."""
    raw = content(root, claimed["manifest"])
    tensors = []
    for file in json.loads(raw)["files"]:
        held = file.get("tensors", [])
        tensors += [[one["name"], one["dtype"], one["shape"], one["digest"]] for one in held]
        if "header" in file:
            header = file["header"].encode()
            data = len(header).to_bytes(8, "little") + header + b"".join(content(root, one["digest"]) for one in held)
        else:
            data = content(root, file["digest"])
        if file["path"].endswith(".gguf"):
            tensors.append([file["path"], "GGUF", [file["size"]], file["digest"]])
        if (blake3(data).hexdigest(), len(data)) != (file["digest"], file["size"]):
            yield f"{file['path']} does not come out as it went in"
    if (
        derived("version", raw) != claimed["digest"]
        or derived("weights", compact(sorted(tensors))) != claimed["weights"]
    ):
        yield "its manifest is that of another version"


def check(root: Path) -> Iterator[str]:
    """Everything that is wrong with a registry."""
    events: list[dict[str, Any]] = []
    yield from check_log(root, events)
    for path in sorted((root / "objects").glob("??/*")):
        try:
            content(root, path.parent.name + path.name)
        except DAMAGE as error:
            yield f"object {path.parent.name + path.name}: {error or type(error).__name__}"
    for event in events:
        payload = event["payload"]
        claimed = payload.get("content")
        try:
            if claimed is not None:
                yield from (f"version {claimed['digest'][:12]}: {problem}" for problem in check_version(root, claimed))
            for digest in filter(None, [payload.get("log"), *payload.get("datasets", []), *payload.get("made", [])]):
                content(root, digest)
        except (OSError, *DAMAGE) as error:
            yield f"event {event['seq']}: {error}"


if __name__ == "__main__":
    problems = list(check(Path(sys.argv[1])))
    print("\n".join(problems) or "everything is as it was written")
    sys.exit(1 if problems else 0)
