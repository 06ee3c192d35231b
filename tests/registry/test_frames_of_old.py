"""Frames that were written once decode for ever: tests/golden/frames.json has one of every form.

`pytest --add-golden` writes those that are not there yet; what is there is never touched.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mreg.registry.store import deltas, planes

GOLDEN = Path(__file__).parents[1] / "golden" / "frames.json"

RAMP = np.arange(300, dtype="<u2")
WEIGHTS = (RAMP * 7919 % 1024 + 0x3A00 + RAMP % 2 * 0x8000).astype("<u2")
"""Like bf16 weights of eight exponents and both signs, in no order."""
NOISE = (RAMP.astype("<u4") ** 3 * 2654435761 >> 7).astype("<u2")


def solo_cases() -> dict[str, tuple[str, np.ndarray]]:
    return {
        "stored": ("U8", (np.arange(256) * 167 % 256).astype("u1")),
        "filled": ("F32", np.zeros(64, "<f4")),
        "bf16": ("BF16", WEIGHTS),
        "f32": ("F32", WEIGHTS.astype("<u4") << 16 | 5),
        "i64": ("I64", RAMP.astype("<i8") - 40),
    }


def delta_cases() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    f32 = WEIGHTS.astype("<u4") << 16 | 77
    small = (WEIGHTS >> 12) < 8
    return {
        "nothing": ("BF16", WEIGHTS, WEIGHTS),
        "all": ("BF16", WEIGHTS + RAMP % 5 - 1, WEIGHTS),
        "some": ("BF16", WEIGHTS + (RAMP % 4 == 1), WEIGHTS),
        "few": ("F32", f32 + (RAMP == 299) - (RAMP == 7), f32),
        "zeroed": ("BF16", np.where(small, 0, WEIGHTS), WEIGHTS),
        "zeroed, with their sign": ("BF16", np.where(RAMP % 3, WEIGHTS & 0x8000, WEIGHTS), WEIGHTS),
        "zeroed, and others changed": ("BF16", np.where(small, 0, WEIGHTS + RAMP % 3), WEIGHTS),
        "integers": ("I32", RAMP.astype("<i4") - 5 * (RAMP % 7), RAMP.astype("<i4") - 100),
        "alone": ("BF16", WEIGHTS, NOISE),
    }


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"solo": {}, "delta": {}}
    if request.config.getoption("--add-golden"):
        for name, (dtype, content) in solo_cases().items():
            found["solo"].setdefault(name, planes.encode(content.tobytes(), dtype).hex())
        for name, (dtype, content, predicted) in delta_cases().items():
            frame = deltas.encode(content.astype(predicted.dtype).tobytes(), predicted.tobytes(), dtype)
            found["delta"].setdefault(name, frame.hex())
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    return found


@pytest.mark.parametrize("name", solo_cases())
def test_a_solo_frame_of_old_decodes(name: str, golden: dict[str, dict[str, str]]) -> None:
    dtype, content = solo_cases()[name]

    decoded = planes.decode(bytes.fromhex(golden["solo"][name]), content.nbytes, dtype)

    assert content.tobytes() == decoded


@pytest.mark.parametrize("name", delta_cases())
def test_a_delta_frame_of_old_decodes(name: str, golden: dict[str, dict[str, str]]) -> None:
    dtype, content, predicted = delta_cases()[name]

    decoded = deltas.decode(bytes.fromhex(golden["delta"][name]), predicted.tobytes(), dtype)

    assert content.astype(predicted.dtype).tobytes() == decoded


def test_no_golden_frame_is_forgotten(golden: dict[str, dict[str, str]]) -> None:
    assert {"solo": set(solo_cases()), "delta": set(delta_cases())} == {
        codec: set(frames) for codec, frames in golden.items()
    }
