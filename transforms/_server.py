"""The fork server: imports torch once, then forks a child for every job it reads from standard input.

A child dies with its server and a server with whoever started it: the end of standard input, which even a SIGKILL of
the parent causes, kills the running child. So nothing trains on unseen. Messages are JSON lines on standard output.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

Send = Callable[[dict[str, Any]], None]


def serve() -> int:
    """Read `{"job": PATH}` and `{"environment": …}` lines until standard input ends.

    `{"stop": SIGNAL}` sends a signal to the child that runs, if any.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # What an import prints must not look like a message.
    send = sender(out)
    try:
        import torch  # noqa: F401
        import transformers
        from mreg.transforms import _worker

        # Lazily loaded by transformers, needed by nearly every job.
        _ = transformers.AutoConfig, transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    except Exception as error:
        send({"broken": f"{type(error).__name__}: {error}"})
        return 1

    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    gc.freeze()  # Objects that are never collected again are pages that stay shared with the children.
    send({"ready": True})

    running: int | None = None
    held = -1
    buffer = b""
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            if signal.SIGTERM in os.read(awake, 512):
                break
            if running is not None and (ended := os.waitpid(running, os.WNOHANG))[0]:
                _kill(os.killpg, running)  # What the child itself had started and left behind.
                os.close(held)
                running = None
                send({"ended": os.waitstatus_to_exitcode(ended[1])})
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                break
            buffer += read
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                request = json.loads(line)
                if "stop" in request:
                    if running is not None:
                        _kill(os.kill, running, request["stop"])
                    continue
                assert running is None, "one job at a time"
                running, held = _fork(request, out, _worker.answer)
    if running is not None:
        _kill(os.killpg, running)
        _kill(os.kill, running)  # It may not have made its group yet.
        os.waitpid(running, 0)
    return 0


def sender(out: int) -> Send:
    """What writes messages to a file descriptor, a line each."""

    def send(message: dict[str, Any]) -> None:
        # The newline before ends whatever a killed child had half written.
        left = b"\n" + json.dumps(message, allow_nan=False).encode() + b"\n"
        while left:
            left = left[os.write(out, left) :]

    return send


def _fork(request: dict[str, Any], out: int, answer: Callable[[dict[str, Any], Send], None]) -> tuple[int, int]:
    # The child reads the lifeline; `held` stays open in the server alone, so its end is the end of the server.
    lifeline, held = os.pipe()
    child = os.fork()
    if child:
        os.close(lifeline)
        return child, held
    status = 1
    try:
        os.setsid()
        os.close(held)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        threading.Thread(target=die_with, args=[lifeline], daemon=True).start()
        answer(request, sender(out))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def die_with(lifeline: int) -> None:
    """Wait for the end of a pipe, then kill this process and its group."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _kill(how: Callable[[int, int], None], child: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        how(child, number)


if __name__ == "__main__":
    sys.exit(serve())
