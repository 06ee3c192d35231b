"""What a process knows of the others when several share a training, each of them a rank as torch.distributed counts.

The trainer splits the rows between the ranks and brings their gradients together. Settled here is what it leaves open:
that sums over rows are sums over the rows of all, and that the first rank alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mreg.registry.transform import Job


class Released(BaseException):
    """Ends the part of a rank that is not the first: nothing of the work is left but to write the result."""


def rank() -> int:
    """The number of this process, from 0; a process that shares nothing is the first."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own(job: Job) -> Job:
    """The job with an output folder of this rank's own, that of the first being the job's."""
    if rank() == 0:
        return job
    return job.model_copy(update={"output": job.output.with_name(f"{job.output.name}-{rank()}")})


def summed(*numbers: float) -> list[float]:
    """The sum of each number over all ranks, the same in every one; integers stay whole below 2^53."""
    if count() == 1:
        return list(numbers)
    import torch
    import torch.distributed as distributed

    # NCCL adds only what lies on a device.
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    held = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.all_reduce(held)
    sums: list[float] = held.tolist()
    return sums


def held_out_batches(trainer: Any, rows: Any) -> Iterator[Any]:
    """This rank's batches of rows to measure: every row in one batch of one rank, whatever their number.

    The trainer's own loader gives rows twice where they do not divide evenly, which would count them twice.
    """
    loader = trainer.get_eval_dataloader(rows)
    if count() == 1:
        yield from loader
        return
    from torch.utils.data import DataLoader

    plain: Any = DataLoader(loader.dataset, batch_size=trainer.args.eval_batch_size, collate_fn=loader.collate_fn)
    for batch in islice(plain, rank(), None, count()):
        yield trainer._prepare_inputs(batch)


def leave_to_first() -> None:
    """End this rank unless it is the first. What the ranks have to say to each other must have been said."""
    if rank() > 0:
        raise Released
