"""The order by keys is that of a stable sort of the whole, however it is cut into pieces, and can be undone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.store.ordering import order_of, sort, unsort


@given(
    st.lists(st.integers(0, 255) | st.sampled_from([3, 4, 5]), min_size=1, max_size=400),
    st.integers(1, 200),
)
def test_sorting_pieces_sorts_the_whole_and_can_be_undone(found: list[int], piece: int) -> None:
    keys = np.array(found, np.uint8)
    numbers, flags = np.arange(len(keys), dtype=np.uint32), keys % 2 == 1
    cuts = [slice(start, start + piece) for start in range(0, len(keys), piece)]

    order = order_of((keys[cut] for cut in cuts), len(keys))
    columns = [column.copy() for column in sort(order, ([numbers[cut], flags[cut]] for cut in cuts))]
    back = list(unsort(order, columns))

    whole = np.argsort(keys, kind="stable")
    assert [numbers[whole].tolist(), flags[whole].tolist()] == [column.tolist() for column in columns]
    assert [np.count_nonzero(keys <= key) for key in np.unique(keys)] == order.ends()
    assert [numbers.tolist(), flags.tolist()] == [np.concatenate(column).tolist() for column in zip(*back, strict=True)]
