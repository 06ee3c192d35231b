"""Checkpoints of a training: written when asked for or when told to stop, and gone on from to the same bytes.

The trainer of transformers keeps optimizer, schedule, random states and the place in the data. It would save a model or
an adapter as others are to read it, which is not always all that is trained, so what is trained is saved here.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import MregError
from mreg.registry.runs import checkpoints
from mreg.registry.transform import Checkpointing, Job
from mreg.transforms import _environment

if TYPE_CHECKING:
    from mreg.transforms._training import Meter

WEIGHTS = "model.safetensors"
"""The name that the trainer looks for."""

BESIDES = "besides.safetensors"


class Stopped(MregError):
    """Somebody stopped the training, and it wrote a checkpoint first."""

    exit_code = 130


def train(
    trainer: Any,
    job: Job,
    *,
    meters: Sequence[Meter] = (),
    besides: Any = None,
    period: int = 1,
    stage: str = "",
) -> None:
    """Run a trainer to its end, from its beginning or from where the job says. Raises Stopped.

    `besides` is a module that is trained and no part of the trainer's model. Every `period` steps nothing is under way
    that a checkpoint would not hold. A transform with several trainings in a row names each by its `stage`; those
    before the one of the checkpoint are done again.
    """
    chosen = job.checkpoints
    start = None if chosen is None or chosen.resume is None else checkpoints.read(chosen.resume)
    if chosen is None or (start is not None and start.more["stage"] != stage):
        trainer.train()
        return
    keeper = _keeper(trainer, job, chosen, start, meters=meters, besides=besides, period=period, stage=stage)
    # All processes of a run write into one folder, on the file system of the registry.
    trainer.args.output_dir = str(job.output.with_name("checkpoints"))
    trainer.save_model = lambda folder, _internal_call: _save(trainer, folder, besides)
    trainer.create_model_card = lambda **_: None
    trainer.add_callback(keeper)
    if trainer.args.world_size > 1:
        _take_numbered_processors()
    with _told_to_stop(keeper.stop if trainer.args.world_size == 1 else None):
        trainer.train(resume_from_checkpoint=None if start is None else str(start.path))


def _keeper(
    trainer: Any,
    job: Job,
    chosen: Checkpointing,
    start: checkpoints.Checkpoint | None,
    *,
    meters: Sequence[Meter],
    besides: Any,
    period: int,
    stage: str,
) -> Any:
    """What decides when a checkpoint is written, and seals it."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def __init__(self) -> None:
            self.is_stopping = self.is_due = False

        def stop(self) -> None:
            self.is_stopping = self.is_due = True

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del control
            if start is None:
                return
            assert state.global_step == start.step, "the trainer did not go on from the checkpoint"
            _catch_up(kwargs["train_dataloader"], int(state.epoch))
            counted = json.loads((start.path / _meters(args)).read_bytes())
            for meter, (learnt, read) in zip(meters, counted, strict=True):
                meter.learnt, meter.read = learnt, read
            if besides is not None:
                from safetensors.torch import load_file

                besides.load_state_dict(load_file(start.path / BESIDES))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, kwargs
            self.is_due |= chosen.save_steps is not None and state.global_step % chosen.save_steps == 0
            # After the last step there is nothing to go on with.
            if self.is_due and state.global_step % period == 0 and state.global_step < state.max_steps:
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del control, kwargs
            self.is_due = False
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            counted = [[meter.learnt, meter.read] for meter in meters]
            (folder / _meters(args)).write_text(json.dumps(counted), encoding="utf-8")
            trainer.accelerator.wait_for_everyone()
            if trainer.is_world_process_zero():
                checkpoints.seal(
                    folder,
                    chosen.folder,
                    run=job.id,
                    step=state.global_step,
                    steps=state.max_steps,
                    code=chosen.code,
                    environment=_environment.describe(threads=job.threads, device=job.device),
                    more={"stage": stage},
                )
            trainer.accelerator.wait_for_everyone()
            if self.is_stopping:
                raise Stopped(f"stopped at step {state.global_step} of {state.max_steps}", fix="go on with --resume")

    return Keeper()


def _meters(args: Any) -> str:
    """The file with what the meters of this process have counted."""
    return f"meters-{args.process_index}.json"


def _save(trainer: Any, folder: str, besides: Any) -> None:
    """Write all that training changes, by the names that the modules have here."""
    from safetensors.torch import save_file

    if not trainer.args.should_save:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = trainer.model.state_dict()
    frozen = {name for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad}
    own = {name for kind in (trainer.model.named_parameters(), trainer.model.named_buffers()) for name, _ in kind}
    changed = {name: state[name] for name in own - frozen if name in state}
    save_file({name: tensor.contiguous() for name, tensor in sorted(changed.items())}, Path(folder) / WEIGHTS)
    if besides is not None:
        save_file(besides.state_dict(), Path(folder) / BESIDES)


def _catch_up(loader: Any, epochs: int) -> None:
    """Bring TRL's sampler, which draws one order of the rows after the other, to the order after so many epochs.

    That of transformers draws by the number of the epoch.
    """
    from accelerate.data_loader import get_sampler  # type: ignore[import-untyped]  # it says nothing of its types
    from trl.trainer.utils import RepeatSampler

    sampler = get_sampler(loader)
    for _ in range(epochs if isinstance(sampler, RepeatSampler) else 0):
        next(iter(sampler))


def _take_numbered_processors() -> None:
    """Let `torch.load` put tensors on `cpu:0`, as the trainer asks it to where several processes share a processor."""
    from torch.serialization import register_package

    def here(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    register_package(15, lambda _storage: None, here)


@contextmanager
def _told_to_stop(stop: Callable[[], None] | None) -> Iterator[None]:
    """Take SIGTERM as the wish to `stop`, where there is a process of one's own to hear it."""
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
