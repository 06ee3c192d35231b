"""Ctrl-C and SIGTERM put off until what must be done whole is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def put_off() -> Iterator[Sequence[int]]:
    """Put off both; what came meanwhile is yielded, so that a long wait can give up, and raised at the end.

    They are not blocked: another thread would take them, and Python interrupts the main one all the same.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    ours = {which: handler for which, handler in before.items() if handler is not None}
    for which in ours:
        signal.signal(which, lambda number, _frame: came.append(number))
    try:
        yield came
    finally:
        for which, handler in ours.items():
            signal.signal(which, handler)
        for number in came[:1]:
            signal.raise_signal(number)


@contextmanager
def once(do: Callable[[], None]) -> Iterator[None]:
    """Answer the first of both with `do`, and raise it at the end; a second one is raised at once.

    `do` runs between any two instructions of the main thread, so it may not wait for anything.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    ours = {which: handler for which, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for which, handler in ours.items():
            signal.signal(which, handler)

    def answer(number: int, _frame: FrameType | None) -> None:
        if came:
            restore()
            signal.raise_signal(number)
        came.append(number)
        do()

    for which in ours:
        signal.signal(which, answer)
    try:
        yield
    finally:
        restore()
    for number in came[:1]:
        signal.raise_signal(number)
