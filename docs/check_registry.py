"""An auditor's checker: what docs/format.md says, as a program that has nothing of mreg in it.

`python docs/check_registry.py .mreg` needs Python 3.11 and blake3, numpy and zstandard. It changes nothing,
prints what is wrong and exits with 1 if anything is. Of predictions it computes `same`; of an object that rests on
another operation it checks that it is as it was written and that its inputs are there, and says so.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3

CHUNK = 1 << 20

NOT_COMPUTED = "not computed:"
"""What begins a line that tells of no problem, but of something that was not looked into."""

MANTISSA = {"F64": 52, "F32": 23, "C64": 23, "F16": 10, "BF16": 7}
MANTISSA |= {"F8_E4M3": 3, "F8_E4M3FNUZ": 3, "F8_E5M2": 2, "F8_E5M2FNUZ": 2}

WIDTH = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "C64": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}

# An event without its hash is the line without that member: keys are sorted, so it is always the third.
HASHED = re.compile(rb'(\{"actor":"(?:[^"\\]|\\.)*","at":"[^"]*"),"hash":"([0-9a-f]{64})"(,.*\})\n', re.DOTALL)

DAMAGE = (ValueError, KeyError, TypeError, IndexError, zstandard.ZstdError)
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


class NotComputedError(Exception):
    """An object rests on an operation that this program does not compute."""


class Frame:
    """A frame, read from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.at += count
        if self.at > len(self.data):
            raise ValueError("a frame is cut short")
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """Seven bits a byte, the lowest first."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def plane(self, size: int) -> np.ndarray:
        """A plane of so many bytes."""
        if size == 0:
            return np.zeros(0, np.uint8)
        kind = self.take(1)[0]
        if kind == 0:
            plane = self.take(size)
        elif kind == 1:
            plane = self.take(1) * size
        else:
            plane = zstandard.ZstdDecompressor().decompress(self.take(self.number()), max_output_size=size)
        if kind > 2 or len(plane) != size:
            raise ValueError("a plane is not as it should be")
        return np.frombuffer(plane, np.uint8)

    def elements(self, count: int, width: int) -> np.ndarray:
        """So many elements, plane by plane, as naturals."""
        planes = np.stack([self.plane(count) for _ in range(width)], axis=1)
        return np.ascontiguousarray(planes).view(f"<u{width}").reshape(-1)

    def flags(self, count: int) -> np.ndarray:
        """A flag for each element."""
        return np.unpackbits(self.plane(-(-count // 8)), count=count).astype(bool)


def from_solo(data: bytes, size: int, dtype: str) -> bytes:
    """The content of a frame of `solo`."""
    frame, width = Frame(data), WIDTH.get(dtype, 1)
    if frame.take(1) == b"\0":
        return frame.take(size)
    elements = frame.elements(size // width, width)
    if dtype in MANTISSA and width > 1:
        elements = elements >> 1 | elements << (8 * width - 1)
    return elements.astype(f"<u{width}").tobytes()


def from_residual(data: bytes, predicted: bytes, dtype: str) -> bytes:
    """The content of a frame of `residual`."""
    if not data:
        return predicted
    frame, width = Frame(data), WIDTH.get(dtype, 1)
    if frame.take(1) == b"\0":
        return from_solo(data[1:], len(predicted), dtype)
    parents = np.frombuffer(predicted, f"<u{width}")
    how = frame.take(1)[0]
    order = np.arange(len(parents))
    if how & 1:
        bits = 8 * width - 1 - MANTISSA[dtype]
        exponents = parents >> MANTISSA[dtype] & (1 << min(bits, 8)) - 1
        order = np.argsort(exponents, kind="stable")
    zeros = frame.flags(len(parents)) if how & 6 else np.zeros(len(parents), bool)
    found, left = [], len(parents) - int(zeros.sum())
    while left:
        form, count = frame.take(1)[0], frame.number()
        run = np.zeros(count, parents.dtype)
        if form == 1:
            run = frame.elements(count, width)
        elif form == 2:
            flags = frame.flags(count)
            run[flags] = frame.elements(int(flags.sum()), width) + np.array(1, run.dtype)
        elif form == 3:
            changed = frame.number()
            gaps = frame.plane(frame.number()).astype(np.int64)
            places = (np.cumsum(gaps + (gaps < 255)) - 1)[gaps < 255]
            run[places] = frame.elements(changed, width) + np.array(1, run.dtype)
        elif form or not count:
            raise ValueError("a run is not as it should be")
        found.append(run)
        left -= count
    differences = np.zeros(len(parents), parents.dtype)
    if found:
        differences[~zeros] = np.concatenate(found)
    ordered = parents[order]
    one = np.array(1, parents.dtype)
    sums = ordered + (differences >> one ^ -(differences & one))
    sums[zeros] = ordered[zeros] & np.array(1 << 8 * width - 1, parents.dtype) if how & 4 else 0
    out = np.empty_like(parents)
    out[order] = sums
    return out.tobytes()


def decoded(root: Path, data: bytes, end: int, said: dict[str, Any]) -> bytes:
    """The content of an encoded object, of which the envelope ends at `end`."""
    size, dtype = said["size"], said.get("dtype", "U8")
    count = -(-size // CHUNK)
    if blake3(data[:-32]).digest() != data[-32:]:
        raise ValueError("its checksum is another")
    lengths = np.frombuffer(data[len(data) - 32 - 4 * count : -32], "<u4").tolist()
    if end + sum(lengths) + 4 * count + 32 != len(data):
        raise ValueError("its frames are not as long as it says")
    predicted = None
    if said["encoding"] == "residual":
        inputs = said["prediction"]["inputs"]
        held = [content(root, digest) for digest in inputs]
        if said["prediction"]["operation"] != "same":
            raise NotComputedError
        (predicted,) = held
    out = b""
    for number, length in enumerate(lengths):
        at = number * CHUNK
        if predicted is None:
            out += from_solo(data[end : end + length], min(CHUNK, size - at), dtype)
        else:
            out += from_residual(data[end : end + length], predicted[at : at + CHUNK], dtype)
        end += length
    return out


def content(root: Path, digest: str) -> bytes:
    """What an object holds. Raises ValueError when it is not what its name says, OSError when it is not there.

    Raises NotComputedError where all but the content itself is right.
    """
    data = (root / "objects" / digest[:2] / digest[2:]).read_bytes()
    end = 8 + int.from_bytes(data[5:8], "little")
    said = json.loads(data[8:end])
    # A prediction may have numbers in it that are spelled otherwise here; the checksum covers them.
    spelled = data[8:end].rstrip(b" ") if "prediction" in said else compact(said)
    spelled = spelled.ljust(-(-(8 + len(spelled)) // 64) * 64 - 8)
    expected = {"encoding", "kind", "size"} | ({"dtype", "shape"} if said["kind"] == "tensor" else set())
    expected |= {"prediction"} if said["encoding"] == "residual" else set()
    if data[:end] != b"MREG\1" + len(spelled).to_bytes(3, "little") + spelled or set(said) != expected:
        raise ValueError("its envelope is not as it was written")
    if said["encoding"] not in ("raw", "solo", "residual"):
        raise ValueError("it is encoded in an unknown way")
    body = data[end:] if said["encoding"] == "raw" else decoded(root, data, end, said)
    if said["kind"] == "tensor":
        shape = ",".join(map(str, said["shape"]))
        found = derived("tensor", f"{said['dtype']}[{shape}]\0".encode() + body)
    elif said["kind"] == "file":
        found = blake3(body).hexdigest()
    else:
        raise ValueError("it is neither a file nor a tensor")
    if len(body) != said["size"]:
        raise ValueError("it is not as long as it says")
    if found != digest:
        raise ValueError("its content does not hash to its name")
    return body


def check_version(root: Path, claimed: dict[str, Any], is_evicted: bool) -> Iterator[str]:
    """One version: its manifest, its digests, and every file put together again, if it has to be there."""
    raw = content(root, claimed["manifest"])
    tensors = []
    for file in json.loads(raw)["files"]:
        held = file.get("tensors", [])
        tensors += [[one["name"], one["dtype"], one["shape"], one["digest"]] for one in held]
        if file["path"].endswith(".gguf"):
            tensors.append([file["path"], "GGUF", [file["size"]], file["digest"]])
        if is_evicted and ("header" in file or file["path"].endswith(".gguf")):
            continue
        if "header" in file:
            header = file["header"].encode()
            data = len(header).to_bytes(8, "little") + header + b"".join(content(root, one["digest"]) for one in held)
        else:
            data = content(root, file["digest"])
        if (blake3(data).hexdigest(), len(data)) != (file["digest"], file["size"]):
            yield f"{file['path']} does not come out as it went in"
    if (
        derived("version", raw) != claimed["digest"]
        or derived("weights", compact(sorted(tensors))) != claimed["weights"]
    ):
        yield "its manifest is that of another version"


def evicted(events: list[dict[str, Any]]) -> set[str]:
    """The versions whose weights were taken out of the store and not put back."""
    gone: set[str] = set()
    for event in events:
        payload = event["payload"]
        if event["kind"] == "version-evicted/1":
            gone.add(payload["version"])
        elif event["kind"] == "version-restored/1":
            gone.discard(payload["version"])
        elif payload.get("content"):
            gone.discard(payload["content"]["digest"])
    return gone


def check(root: Path) -> Iterator[str]:
    """Everything that is wrong with a registry."""
    yield from (problem for problem in found(root) if not problem.startswith(NOT_COMPUTED))


def found(root: Path) -> Iterator[str]:
    """Everything that is wrong with a registry, and what could not be computed."""
    events: list[dict[str, Any]] = []
    yield from check_log(root, events)
    for path in sorted((root / "objects").glob("??/*")):
        try:
            content(root, path.parent.name + path.name)
        except NotComputedError:
            yield f"{NOT_COMPUTED} object {path.parent.name + path.name}"
        except (OSError, *DAMAGE) as error:
            yield f"object {path.parent.name + path.name}: {error or type(error).__name__}"
    gone = evicted(events)
    for event in events:
        payload = event["payload"]
        claimed = payload.get("content")
        try:
            if claimed is not None:
                wrong = check_version(root, claimed, claimed["digest"] in gone)
                yield from (f"version {claimed['digest'][:12]}: {problem}" for problem in wrong)
            for digest in filter(None, [payload.get("log"), *payload.get("datasets", []), *payload.get("made", [])]):
                content(root, digest)
        except NotComputedError:
            yield f"{NOT_COMPUTED} event {event['seq']}: a version"
        except (OSError, *DAMAGE) as error:
            yield f"event {event['seq']}: {error}"


if __name__ == "__main__":
    said = list(found(Path(sys.argv[1])))
    problems = [problem for problem in said if not problem.startswith(NOT_COMPUTED)]
    print("\n".join(said) or "everything is as it was written")
    sys.exit(1 if problems else 0)
