"""The order by keys is that of a stable sort, can be undone, and is the same compiled and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.store import ordering
from mreg.registry.store.ordering import order_of

from tests.kernels import either_way as either_way

WIDTHS = [1, 2, 4, 8]


@given(
    width=st.sampled_from(WIDTHS),
    keys=st.lists(st.integers(0, 255) | st.sampled_from([3, 4, 5]), max_size=400),
    shift=st.integers(0, 7),
    mask=st.sampled_from([1, 15, 31, 255]),
    piece=st.integers(1, 200),
)
def test_sorting_is_stable_and_can_be_undone(width: int, keys: list[int], shift: int, mask: int, piece: int) -> None:
    elements = (np.array(keys, np.uint64) << (8 * width - 8)).astype(f"<u{width}")
    shift += 8 * width - 8
    numbers, flags = np.arange(len(keys), dtype=np.uint64).astype(elements.dtype), np.arange(len(keys)) % 3 == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "PIECE", piece)
        order = order_of(elements, shift, mask)
        columns = [column.copy() for column in order.sort([numbers, flags])]
        back = [column.copy() for column in order.unsort(columns)]

    keys_there = elements >> np.uint64(shift).astype(elements.dtype) & np.array(mask, elements.dtype)
    whole = np.argsort(keys_there, kind="stable")
    assert [numbers[whole].tolist(), flags[whole].tolist()] == [column.tolist() for column in columns]
    assert [np.count_nonzero(keys_there <= key) for key in np.unique(keys_there)] == order.ends()
    assert [numbers.tolist(), flags.tolist()] == [column.tolist() for column in back]
