"""Progress on standard error, for a person who waits: nothing when it is not a terminal, nothing when it is quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mreg.cli import screen, text

if TYPE_CHECKING:
    from mreg.registry.transform import Progress

_PATIENCE = 0.4
"""Seconds before anything is shown."""


@contextmanager
def of_bytes(label: str) -> Iterator[Callable[[int, int], None]]:
    """A report of bytes done and in all."""
    with _bar(label, amounts=text.size) as show:
        yield show


@contextmanager
def of_items(label: str) -> Iterator[Callable[[int, int], None]]:
    """A report of items done and in all."""
    with _bar(label, amounts=text.amount) as show:
        yield show


@contextmanager
def of_run(label: str, *, at_once: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A report of a run's progress. It is shown from the start, since starting takes its time, where one is sure."""
    with _bar(label, amounts=text.amount, at_once=at_once) as show:
        yield lambda progress: show(progress.done, progress.total, progress.note)


@contextmanager
def _bar(label: str, *, amounts: Callable[[int], str], at_once: bool = False) -> Iterator[Callable[..., None]]:
    if not screen.is_terminal(sys.stderr):
        yield lambda done, total, note="": None
        return
    bar = _Bar(label, amounts)
    if at_once:
        bar.start()
    try:
        yield bar.show
    finally:
        bar.stop()


class _Bar:
    def __init__(self, label: str, amounts: Callable[[int], str]) -> None:
        self._label = text.clean(label)
        self._amounts = amounts
        self._began = time.monotonic()
        self._rich: Any = None

    def start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._rich = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=Console(stderr=True, markup=False, highlight=False, emoji=False),
            transient=True,
            refresh_per_second=5,
        )
        self._task = self._rich.add_task(self._label, total=None, amount="", note="starting")
        self._rich.start()

    def show(self, done: int, total: int, note: str = "") -> None:
        if self._rich is None:
            if time.monotonic() - self._began < _PATIENCE or done >= total:
                return
            self.start()
        amount = f"{self._amounts(done)} of {self._amounts(total)}" if total else ""
        self._rich.update(self._task, completed=done, total=total or None, amount=amount, note=text.clean(note))

    def stop(self) -> None:
        if self._rich is not None:
            self._rich.stop()
