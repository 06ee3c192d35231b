"""The object store: what it keeps, what it notices, and what a failure leaves behind."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.files import StorageFailed
from mreg.registry.store import envelope, objects
from mreg.registry.store.batch import Batch, SourceChanged
from mreg.registry.store.envelope import BadEnvelope, Envelope
from mreg.registry.store.objects import DamagedObject, MissingObject, ObjectStore
from mreg.registry.store.spans import CHUNK, Held

from tests.strategies import MadeTensor, made_tensors


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def put(store: ObjectStore, data: bytes) -> Digest:
    with store.batch() as batch:
        return batch.put_bytes(data)


def put_tensor(store: ObjectStore, dtype: str, shape: tuple[int, ...], data: bytes) -> Digest:
    with store.batch() as batch:
        return batch.put_tensor(dtype, shape, Held(data))


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def leftovers(store: ObjectStore) -> list[Path]:
    return list((store.root / "tmp").rglob("*"))


@given(made_tensors(st.just("w")))
def test_an_envelope_is_read_back_as_it_was(tensor: MadeTensor):
    written = Envelope.of_tensor(tensor.dtype, tensor.shape)

    raw = written.to_bytes()
    assert written == envelope.parse(raw)
    assert len(raw) == envelope.PREFIX + envelope.header_length(raw[:8])
    assert 0 == len(raw) % 64


@given(st.binary(max_size=80))
def test_garbage_is_no_envelope(garbage: bytes):
    with pytest.raises(BadEnvelope):
        envelope.parse(garbage)


def test_what_is_put_is_read_back(store: ObjectStore):
    file = put(store, b"hello")
    tensor = put_tensor(store, "BF16", (1, 2), b"abcd")

    assert digests.of_bytes(b"hello") == file
    assert b"hello" == store.read_bytes(file)
    assert b"abcd" == bytes(store.open(tensor).payload)
    assert Envelope("tensor", 4, "BF16", (1, 2)) == store.open(tensor).envelope
    assert [4, 5] == sorted(map(store.size, store.names()))
    assert sorted([file, tensor]) == list(store.names())


def test_a_payload_starts_at_a_multiple_of_64_and_the_file_is_read_only(store: ObjectStore):
    path = store.path(put_tensor(store, "BF16", (1, 2), b"abcd"))

    assert 4 == path.stat().st_size % 64
    assert 0o444 == path.stat().st_mode & 0o777


def test_dtype_and_shape_are_part_of_a_tensors_name(store: ObjectStore):
    names = {put_tensor(store, *kind, b"abcd") for kind in [("BF16", (2,)), ("F16", (2,)), ("BF16", (1, 2))]}

    assert 3 == len(names)


def test_an_empty_object_is_an_object(store: ObjectStore):
    digest = put_tensor(store, "F32", (0, 3), b"")

    assert b"" == bytes(store.open(digest).payload)
    assert store.verify(digest) is None


def test_objects_of_several_chunks_are_whole(store: ObjectStore):
    data = os.urandom(2 * CHUNK + 1)

    digest = put(store, data)

    assert data == store.read_bytes(digest)


def test_a_chunk_that_is_kept_outlives_its_content_and_all_that_are_read_later(store: ObjectStore):
    named = [put_tensor(store, "U8", (CHUNK,), bytes([number]) * CHUNK) for number in range(4)]

    kept = []
    for digest in named:
        content = store.content(digest)
        kept.append(memoryview(content.chunk(0)))
        content.close()

    assert [bytes([number]) * CHUNK for number in range(4)] == [bytes(chunk) for chunk in kept]


@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_a_flipped_bit_anywhere_is_noticed(store: ObjectStore, kind: str):
    digest = put(store, b"payload") if kind == "file" else put_tensor(store, "BF16", (2, 2), b"abcdefgh")
    path = store.path(digest)
    sound = path.read_bytes()

    unnoticed = []
    for byte in range(len(sound)):
        for bit in range(8):
            overwrite(path, sound[:byte] + bytes([sound[byte] ^ 1 << bit]) + sound[byte + 1 :])
            if store.verify(digest) is None:
                unnoticed.append((byte, bit))

    assert [] == unnoticed


def test_an_object_cut_short_or_grown_is_noticed(store: ObjectStore):
    digest = put(store, b"payload")
    sound = store.path(digest).read_bytes()

    unnoticed = []
    for damaged in [*(sound[:length] for length in range(len(sound))), sound + b"\0"]:
        overwrite(store.path(digest), damaged)
        if store.verify(digest) is None:
            unnoticed.append(len(damaged))

    assert [] == unnoticed


def test_a_damaged_object_is_named_when_read(store: ObjectStore):
    digest = put(store, b"payload")
    overwrite(store.path(digest), store.path(digest).read_bytes()[:-1] + b"X")

    with pytest.raises(DamagedObject) as damage:
        store.read_bytes(digest)

    assert digest[:12] in damage.value.message
    assert str(store.path(digest)) in damage.value.message
    assert 7 == damage.value.exit_code


def test_a_missing_object_is_named_when_read(store: ObjectStore):
    digest = digests.of_bytes(b"never put")

    with pytest.raises(MissingObject) as missing:
        store.open(digest)

    assert digest[:12] in missing.value.message
    assert not store.has(digest)


def test_only_a_digest_becomes_a_path(store: ObjectStore):
    with pytest.raises(MissingObject):
        store.path(Digest("../../etc/passwd"))


def test_a_damaged_object_is_replaced_when_it_is_put_again(store: ObjectStore):
    digest = put(store, b"payload")
    overwrite(store.path(digest), b"damaged")

    put(store, b"payload")

    assert store.verify(digest) is None


def test_an_object_that_is_written_to_after_it_was_checked_is_checked_again(store: ObjectStore):
    digest = put(store, b"payload")
    path = store.path(digest)
    assert store.check(digest) is None
    status = path.stat()

    overwrite(path, path.read_bytes()[:-1] + b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert "damaged" in str(store.check(digest))


def test_what_was_checked_is_forgotten_where_anything_is_found_damaged(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    digest = put(store, b"payload")
    assert store.check(digest) is None
    # A disk that loses bits tells nobody.
    monkeypatch.setattr(objects, "_state", lambda status: (0, 0, 0, 0, 0))
    overwrite(store.path(digest), store.path(digest).read_bytes()[:-1] + b"X")

    with pytest.raises(DamagedObject):
        store.read_bytes(digest)
    put(store, b"payload")

    assert b"payload" == store.read_bytes(digest)


def test_what_is_remembered_of_objects_stays_little(store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objects, "_MOST_KNOWN", 3)
    digests_put = [put(store, bytes([number])) for number in range(8)]

    assert [None] * 8 == [store.check(digest) for digest in digests_put]
    assert len(store._known) <= 3


def test_a_sound_object_is_not_written_again(store: ObjectStore):
    digest = put(store, b"payload")
    before = store.path(digest).stat().st_ino

    with store.batch() as batch:
        batch.put_bytes(b"payload")

    assert (before, 0, 0) == (store.path(digest).stat().st_ino, batch.objects_added, batch.bytes_added)


def test_the_same_object_twice_in_a_batch_is_written_once(store: ObjectStore):
    with store.batch() as batch:
        digest = batch.put_bytes(b"payload")
        batch.put_bytes(b"payload")

    assert (1, store.disk_size(digest)) == (batch.objects_added, batch.bytes_added)


def test_links_in_the_store_are_not_followed(store: ObjectStore, tmp_path: Path):
    digest = put(store, b"payload")
    path = store.path(digest)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(DamagedObject):
        store.read_bytes(digest)


def test_a_folder_that_is_a_link_is_neither_read_nor_written(store: ObjectStore, tmp_path: Path):
    digest = put(store, b"payload")
    path = store.path(digest)
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(DamagedObject):
        store.read_bytes(digest)
    with pytest.raises(StorageFailed):
        put(store, b"payload")


def test_an_exception_leaves_nothing_behind(store: ObjectStore):
    def fail(batch: Batch) -> None:
        batch.put_bytes(b"payload")
        raise KeyError

    with pytest.raises(KeyError), store.batch() as batch:
        fail(batch)

    assert [] == list(store.names())
    assert [] == leftovers(store)


def test_nothing_is_in_the_store_before_the_batch_ends(store: ObjectStore):
    with store.batch() as batch:
        digest = batch.put_bytes(b"payload")
        there_before = store.has(digest)

    assert (False, True) == (there_before, store.has(digest))


def test_a_commit_leaves_no_temporary_files(store: ObjectStore):
    put(store, b"payload")

    assert [] == leftovers(store)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A limit on the size of any file: what a write past it gets is EFBIG, as on a disk that can hold no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_said_and_leaves_nothing_behind(store: ObjectStore):
    with pytest.raises(StorageFailed) as failure:
        put(store, bytes(200_000))

    assert 9 == failure.value.exit_code
    assert failure.value.fix
    assert [] == list(store.names())
    assert [] == leftovers(store)


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "objects").write_bytes(b"a file where the folder should be")

    with pytest.raises(StorageFailed):
        put(ObjectStore(tmp_path / "objects"), b"payload")


class Unsteady:
    """Bytes that are different every time they are gone through."""

    may_change = True

    size = 8

    def __init__(self) -> None:
        self.times = 0

    def chunks(self) -> Iterator[memoryview]:
        self.times += 1
        yield memoryview(self.times.to_bytes(8, "little"))


def test_bytes_that_change_between_hashing_and_writing_are_refused(store: ObjectStore):
    with pytest.raises(SourceChanged), store.batch() as batch:
        batch.put_file(Unsteady())

    assert [] == list(store.names())


def test_many_writers_of_the_same_objects_all_succeed(store: ObjectStore):
    contents = [bytes([number]) * 1000 for number in range(40)]
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with store.batch() as batch:
                for content in contents:
                    batch.put_bytes(content)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert [] == failures
    assert sorted(map(digests.of_bytes, contents)) == list(store.names())
    assert [None] * 40 == [store.verify(digest) for digest in store.names()]


def test_strays_are_what_is_no_object(store: ObjectStore):
    digest = put(store, b"payload")
    (store.root / "notes.txt").write_bytes(b"")
    (store.path(digest).parent / "x").write_bytes(b"")

    assert sorted([store.root / "notes.txt", store.path(digest).parent / "x"]) == list(store.strays())


def test_sweeping_takes_what_dead_batches_left_and_no_living_one(store: ObjectStore):
    abandoned = store.root / "tmp" / "abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "x").write_bytes(b"half")
    future = abandoned.stat().st_mtime + 60

    with store.batch() as batch:
        digest = batch.put_bytes(b"payload")
        too_young = store.sweep(before=0)
        swept = store.sweep(before=future)

    assert (0, 1) == (too_young, swept)
    assert store.has(digest)
    assert not abandoned.exists()


def test_a_batch_is_gone_after_discard_only_when_nobody_holds_it(tmp_path: Path):
    (tmp_path / "dead").mkdir()

    assert Batch.discard(tmp_path / "dead")
    assert not (tmp_path / "dead").exists()
