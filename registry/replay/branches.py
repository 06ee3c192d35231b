"""Steps of a graph done as soon as what they come after is done, several at once where they may be.

All decisions are taken in the thread that asks; only the work itself goes elsewhere, so what is shared is touched by
one thread alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Node = TypeVar("Node")
Result = TypeVar("Result")
Said = TypeVar("Said")

Tell = Callable[[Said], None]


@dataclass(frozen=True)
class Branches(Generic[Node, Result, Said]):
    """How steps are done. `begin` gives the work of a step, or None where there is nothing to do; `done` takes its end.

    `work` may run in any thread and may tell how far it is, which is heard, by `heard`, in ours. `is_alone` says of a
    step that it runs in our thread and nothing beside it. `interrupt` makes what runs elsewhere come back soon.
    """

    begin: Callable[[Node], Callable[[Tell[Said]], Result] | None]
    done: Callable[[Node, Result], None]
    heard: Callable[[Node, Said], None]
    is_alone: Callable[[Node], bool]
    interrupt: Callable[[], None]

    def run(self, nodes: Sequence[Node], after: Callable[[Node], Sequence[Node]], *, jobs: int) -> None:
        """Do all of them, those that come first in `nodes` first. What any of the work raises ends the rest."""
        left = list(nodes)
        running: dict[Any, threading.Thread] = {}
        said: queue.Queue[tuple[str, Node, Any]] = queue.Queue()
        try:
            while left or running:
                self._start(left, running, after, jobs, said)
                if not running:
                    continue
                what, node, value = said.get()
                if what == "said":
                    self.heard(node, value)
                    continue
                running.pop(node).join()
                if what == "failed":
                    raise value
                self.done(node, value)
        except BaseException:
            # Over and over: a thread may just be about to start what is to be interrupted.
            while any(thread.is_alive() for thread in running.values()):
                self.interrupt()
                for thread in running.values():
                    thread.join(timeout=0.1)
            raise

    def _start(
        self,
        left: list[Node],
        running: dict[Any, threading.Thread],
        after: Callable[[Node], Sequence[Node]],
        jobs: int,
        said: queue.Queue[tuple[str, Node, Any]],
    ) -> None:
        """Start what can be started."""
        for node in list(left):
            if len(running) >= jobs:
                return
            waits = any(before in left or before in running for before in after(node))
            alone = jobs == 1 or self.is_alone(node)
            if waits or (alone and running):
                continue
            left.remove(node)
            work = self.begin(node)
            if work is None:
                continue
            if alone:
                self.done(node, work(partial(self.heard, node)))
                continue
            running[node] = threading.Thread(target=_work, args=[node, work, said], daemon=True)
            running[node].start()


def _work(node: Node, work: Callable[[Tell[Said]], Result], said: queue.Queue[tuple[str, Node, Any]]) -> None:
    try:
        result = work(lambda words: said.put(("said", node, words)))
    except BaseException as error:
        said.put(("failed", node, error))
    else:
        said.put(("done", node, result))
