"""Steps of a graph, done in order or side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from mreg.registry.replay.branches import Branches, Tell

Work = Callable[[Tell[str]], str]

DIAMOND = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}


@dataclass
class Record:
    """What was begun, heard and done, in that order; `works` has what is special about a step."""

    works: dict[str, Work | None] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)
    interrupted: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: int, graph: dict[str, tuple[str, ...]] = DIAMOND) -> None:
        branches: Branches[str, str, str] = Branches(
            begin=self._begin,
            done=lambda node, result: self.said.append(f"{node} gave {result}"),
            heard=lambda node, words: self.said.append(f"{node}: {words}"),
            is_alone=lambda node: node in self.alone,
            interrupt=self.interrupted.set,
        )
        branches.run([*graph], graph.__getitem__, jobs=jobs)

    def _begin(self, node: str) -> Work | None:
        self.said.append(f"{node} began")
        return self.works.get(node, lambda tell: node.upper())


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_a_step_begins_when_all_that_it_comes_after_is_done(jobs: int):
    record = Record()

    record.run(jobs)

    for node, before in DIAMOND.items():
        for one in before:
            assert record.said.index(f"{one} gave {one.upper()}") < record.said.index(f"{node} began")


def test_one_job_keeps_the_order_of_the_steps_and_the_thread():
    threads = []

    def noted(_tell: Tell[str]) -> str:
        threads.append(threading.current_thread())
        return "it"

    record = Record(dict.fromkeys(DIAMOND, noted))

    record.run(1)

    assert [line for node in "abcd" for line in (f"{node} began", f"{node} gave it")] == record.said
    assert {threading.main_thread()} == set(threads)


def test_two_jobs_run_side_by_side():
    meeting = threading.Barrier(2, timeout=30)

    def meet(_tell: Tell[str]) -> str:
        meeting.wait()
        return "it"

    record = Record({"b": meet, "c": meet})

    record.run(2)

    assert "d gave D" == record.said[-1]


def test_what_is_said_elsewhere_is_heard_here_before_the_step_is_done():
    heard = []

    def tell_it(tell: Tell[str]) -> str:
        tell("half way")
        return "it"

    record = Record({"b": tell_it, "c": tell_it})

    record.run(2)

    heard = [line for line in record.said if line.startswith("b")]
    assert ["b began", "b: half way", "b gave it"] == heard


def test_a_step_with_nothing_to_do_is_done_at_once():
    record = Record({"b": None, "c": None})

    record.run(2)

    assert ["a began", "a gave A", "b began", "c began", "d began", "d gave D"] == record.said


def test_a_step_that_must_be_alone_waits_until_nothing_else_runs_and_is_done_in_our_thread():
    seen = []

    def look(_tell: Tell[str]) -> str:
        seen.append(threading.current_thread())
        return "it"

    record = Record({"c": look}, alone=("c",))

    record.run(2, {"a": (), "b": (), "c": ()})

    assert [threading.main_thread()] == seen
    assert {"a gave A", "b gave B"} < {*record.said[: record.said.index("c began")]}


def test_what_goes_wrong_in_one_interrupts_the_others_and_is_raised():
    record = Record()

    def wait(_tell: Tell[str]) -> str:
        assert record.interrupted.wait(30)
        return "too late"

    def fail(_tell: Tell[str]) -> str:
        raise ValueError("no")

    record.works = {"b": wait, "c": fail}

    with pytest.raises(ValueError, match="no"):
        record.run(2)

    assert record.interrupted.is_set()
    assert "b gave too late" not in record.said
    assert "d began" not in record.said


def test_ctrl_c_interrupts_what_runs_elsewhere():
    record = Record()

    def wait(tell: Tell[str]) -> str:
        tell("stop")
        assert record.interrupted.wait(30)
        return "too late"

    def stop(_node: str, _words: str) -> None:
        raise KeyboardInterrupt

    branches: Branches[str, str, str] = Branches(
        begin=lambda node: wait,
        done=lambda node, result: None,
        heard=stop,
        is_alone=lambda node: False,
        interrupt=record.interrupted.set,
    )

    with pytest.raises(KeyboardInterrupt):
        branches.run(["a", "b"], lambda node: (), jobs=2)

    assert record.interrupted.is_set()
