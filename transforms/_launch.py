"""A job in a fresh process: `python -m mreg.transforms._launch JOB`, which is what launchers and clusters start.

Messages are JSON lines on standard output, as from the fork server. Each of several processes does the same job on its
share of the rows; the first writes the output and tells how it goes, the others tell only why they fail. A process dies
when its standard input ends, which even a SIGKILL of whoever wanted the work causes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any

from mreg.transforms._server import die_with, sender


def main(path: str) -> int:
    """Do the job; 0 when it was done. What is wrong is told, and ends the process at once: the others wait for it."""
    # A group of its own, so that what the job starts and leaves behind ends with it.
    if os.getpgrp() != os.getpid():
        os.setsid()
    lifeline = os.dup(0)
    threading.Thread(target=die_with, args=[lifeline], daemon=True).start()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    send = sender(os.dup(1))
    os.dup2(2, 1)  # What an import prints must not look like a message.
    from mreg.transforms import _ranks, _worker

    told: list[str] = []

    def tell(message: dict[str, Any]) -> None:
        told.extend(message)
        if _ranks.rank() == 0 or "failed" in message:
            send(message)

    with contextlib.suppress(_ranks.Released):
        _worker.answer({"job": path}, tell)
    return int("failed" in told)


if __name__ == "__main__":
    status = 1
    try:
        status = main(sys.argv[1])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Leaving in the ordinary way may wait for a rank that is gone.
        os._exit(status)
