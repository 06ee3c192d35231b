"""Tensors stored small: whatever way the store takes, every bit comes back, and every flipped one is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mreg.registry.digests import Digest
from mreg.registry.models.safetensors_header import BITS
from mreg.registry.store import choosing
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.objects import DamagedObject, ObjectStore
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import CHUNK, Held

DTYPES = sorted(BITS)
TENSOR = Envelope.of_tensor("BF16", (4096,))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def trained(count: int, seed: int = 0) -> bytes:
    """Numbers such as weights are, in bfloat16."""
    numbers = np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def tuned(data: bytes, seed: int = 1) -> bytes:
    """The same, some of them moved by a little."""
    moved = np.random.default_rng(seed).random(len(data) // 2) < 0.2
    return (np.frombuffer(data, np.uint16) + moved.astype(np.uint16)).tobytes()


def put(store: ObjectStore, data: bytes, *like: Digest, dtype: str = "BF16") -> Digest:
    """Store a tensor small, of one dimension, against these."""
    predictions = [Prediction("same", (digest,)) for digest in like]
    with store.batch() as batch:
        shape = (len(data) * 8 // BITS[dtype],)
        return batch.put_tensor(dtype, shape, Held(data), small=True, predictions=predictions)


def chain(store: ObjectStore, length: int) -> list[Digest]:
    """Tensors each of which was tuned from the one before."""
    data = trained(4096)
    found = [put(store, data)]
    for seed in range(1, length):
        data = tuned(data, seed)
        found.append(put(store, data, found[-1]))
    return found


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([choosing.SMALLEST, 8184, 3 * 8192, CHUNK - 24, CHUNK + 4104]),
    kind=st.sampled_from(["noise", "same", "few", "small", "zeroed"]),
)
def test_any_bits_come_back(tmp_path_factory: pytest.TempPathFactory, dtype: str, seed: int, size: int, kind: str):
    store = ObjectStore(tmp_path_factory.mktemp("store") / "objects")
    random = np.random.default_rng(seed)
    size -= size % 24
    before = random.integers(0, 256, size, np.uint8)
    after = before.copy()
    if kind == "noise":
        after = random.integers(0, 256, size, np.uint8)
    elif kind == "few":
        after[random.integers(0, size, 5)] ^= 1
    elif kind == "small":
        after[::4] ^= random.integers(0, 4, len(after[::4]), np.uint8)
    elif kind == "zeroed":
        after.view(np.uint32)[::2] = 0

    parent = put(store, before.tobytes(), dtype=dtype)
    child = put(store, after.tobytes(), parent, dtype=dtype)

    assert before.tobytes() == store.read_bytes(parent)
    assert after.tobytes() == bytes(store.open(child).payload)
    assert [None, None] == [store.verify(parent), store.check(child)]


def test_each_tensor_takes_the_way_that_pays(store: ObjectStore):
    data = trained(100_000)
    base = put(store, data)
    child = put(store, tuned(data), base)
    stranger = put(store, trained(100_000, seed=7), base)
    noise = put(store, np.random.default_rng(3).bytes(200_000), base)

    assert ["solo", "residual", "solo", "raw"] == [
        store.envelope(digest).encoding for digest in (base, child, stranger, noise)
    ]
    assert store.disk_size(base) < 0.75 * len(data)
    assert store.disk_size(child) < 0.25 * len(data)


def test_what_is_small_stays_as_it_is(store: ObjectStore):
    data = trained(100)
    base = put(store, data)

    assert "raw" == store.envelope(put(store, tuned(data), base)).encoding


def test_chains_stay_short(store: ObjectStore):
    made = chain(store, 6)

    assert [0, 1, 2, 2, 2, 2] == [store.depth(digest) for digest in made]
    assert {"residual"} == {store.envelope(digest).encoding for digest in made[1:]}
    assert [None] * 6 == [store.verify(digest) for digest in made]


def test_what_is_needed_to_read_is_known(store: ObjectStore):
    base, first, second = chain(store, 3)

    assert {base, first, second} == store.closure([second])
    assert {base} == store.closure([base])


def test_nothing_becomes_a_residual_of_itself(store: ObjectStore):
    data = trained(4096)
    base = put(store, data)
    child = put(store, tuned(data), base)

    with store.batch() as batch:
        again = [Prediction("same", (child,))]
        batch.put(TENSOR, Held(data), base, small=True, predictions=again, again=True)

    assert "solo" == store.envelope(base).encoding
    assert [None, None] == [store.verify(base), store.verify(child)]


def test_an_object_can_be_written_again_in_another_way(store: ObjectStore):
    data = trained(4096)
    base = put(store, data)
    child = put(store, tuned(data))
    before = store.disk_size(child)

    with store.batch() as batch:
        like = [Prediction("same", (base,))]
        batch.put(TENSOR, Held(tuned(data)), child, small=True, predictions=like, again=True)

    assert store.disk_size(child) < before
    assert tuned(data) == store.read_bytes(child)


@pytest.mark.parametrize("encoding", ["solo", "residual"])
def test_a_flipped_bit_anywhere_is_noticed_by_a_quick_look_and_by_a_thorough_one(store: ObjectStore, encoding: str):
    data = trained(2048)
    digest = put(store, data)
    if encoding == "residual":
        digest = put(store, tuned(data), digest)
    assert encoding == store.envelope(digest).encoding
    path = store.path(digest)
    sound = path.read_bytes()

    unnoticed = []
    for byte in range(0, len(sound), 1 if encoding == "residual" else 5):
        path.chmod(0o644)
        path.write_bytes(sound[:byte] + bytes([sound[byte] ^ 1 << byte % 8]) + sound[byte + 1 :])
        if store.check(digest) is None or (byte % 7 == 0 and store.verify(digest) is None):
            unnoticed.append(byte)

    assert [] == unnoticed


def test_a_flipped_bit_is_noticed_by_who_reads(store: ObjectStore):
    data = trained(2048)
    child = put(store, tuned(data), put(store, data))
    path = store.path(child)
    sound = path.read_bytes()

    wrong, noticed = [], 0
    for byte in range(0, len(sound), 5):
        path.chmod(0o644)
        path.write_bytes(sound[:byte] + bytes([sound[byte] ^ 1 << byte % 8]) + sound[byte + 1 :])
        try:
            # One in the checksum harms nobody who reads.
            if store.read_bytes(child) != tuned(data):
                wrong.append(byte)
        except DamagedObject:
            noticed += 1

    assert [] == wrong
    assert noticed > 0.9 * len(sound) // 5


def test_an_input_that_is_gone_is_named(store: ObjectStore):
    base, child = chain(store, 2)
    store.path(base).unlink()

    problem = store.verify(child)
    assert problem is not None
    assert child[:12] in problem
    assert f"a residual of {base[:12]}" in problem
    assert store.check(child) is not None


def test_an_input_that_is_damaged_is_named_and_nothing_new_rests_on_it(store: ObjectStore):
    base, child = chain(store, 2)
    path = store.path(base)
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))

    assert base[:12] in (store.check(child) or "")
    third = put(store, tuned(trained(4096), 9), child)
    assert "solo" == store.envelope(third).encoding


def test_a_residual_of_something_unknown_is_refused(store: ObjectStore):
    data = trained(4096)
    base = put(store, data)
    child = put(store, tuned(data), base)
    path = store.path(child)
    text = path.read_bytes().replace(b'"operation":"same"', b'"operation":"sane"')
    path.chmod(0o644)
    path.write_bytes(text)

    with pytest.raises(DamagedObject, match="something unknown"):
        store.read_bytes(child)


def test_a_batch_that_fails_leaves_nothing(store: ObjectStore):
    data = trained(4096)
    base = put(store, data)

    def fail() -> None:
        with store.batch() as batch:
            batch.put(TENSOR, Held(tuned(data)), small=True, predictions=[Prediction("same", (base,))])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert [base] == list(store.names())
    assert [] == list((store.root / "tmp").rglob("*"))
