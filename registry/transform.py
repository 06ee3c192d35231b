"""What a transform is and what it is handed: the port between the registry and whatever runs the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from mreg.registry.chains.recipe import Step
from mreg.registry.errors import MregError
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction
    from peft import PeftModel
    from transformers import PreTrainedModel

Determinism = Literal["exact", "same-machine", "statistical"]
"""`exact`: the same bytes on any machine. `same-machine`: the same weights for the same threads, packages and CPU
capability. `statistical`: the same quality."""

Facts = dict[str, Any]
"""What a run measured about itself (JSON): losses, sizes, tokens, estimated FLOPs."""


LAUNCHERS = ("torchrun", "accelerate")
"""What starts the processes of a step that is shared by several; the first where none is named."""


class Params(BaseModel):
    """The typed options of a transform; subclass it, give every field a default or not, and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class FileText:
    """Marks a text field of params, as in `Annotated[str, FileText()]`, for which a command line takes a file.

    The params, and so the log, hold the text itself and no path.
    """


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Input:
    """One role that a model version plays in a transform.

    `derived` inputs are not asked for: they are the base version that the adapter in `source` fits, or what `trace`
    finds, given the params and the steps that led to `source`, its own the last; None where there is none to be.
    `named` is the param that says by its digest which version that is.
    `optional` ones may be left out. An adapter given where a `model` is taken is fused into its base first, in a step
    of its own.
    """

    role: str
    help: str
    many: bool = False
    takes: Literal["model", "adapter", "any"] = "model"
    derived: bool = False
    optional: bool = False
    trace: Callable[[Any, Sequence[Step]], str | None] | None = None
    named: str | None = None


class JobInput(BaseModel):
    """A version checked out for a job: a folder that the job may read and must not change."""

    model_config = ConfigDict(frozen=True)

    role: str
    digest: str
    path: Path
    adapter: bool = False


class JobDataset(BaseModel):
    """A dataset laid out for a job: a JSON Lines file, one row a line, in its recorded order."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    path: Path
    rows: int
    columns: tuple[str, ...]


class Checkpointing(BaseModel):
    """Where a run puts its checkpoints (`checkpoints.seal`), every how many steps, and the one that it goes on from.

    Without `save_steps` it writes one when it is told to stop. None of this changes what comes out.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    code: str
    save_steps: int | None = None
    resume: Path | None = None


class Job(BaseModel):
    """Everything that one run needs, self-contained: the same file is handed to a launcher or to a cluster.

    More than one of `processes` share the work; `launcher` starts them, on one machine: `torchrun` or `accelerate`.
    `place` is where: here unless said, or on a cluster such as `ray://host:port`. The bits depend on `processes` alone.

    `cache` is a folder, which may not be there yet, for what a later run would compute again to the same bits.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    transform: str
    params: dict[str, Any]
    inputs: tuple[JobInput, ...]
    datasets: tuple[JobDataset, ...] = ()
    output: Path
    seed: int
    threads: int
    device: str
    portable: bool
    processes: int = 1
    launcher: str | None = None
    place: str | None = None
    checkpoints: Checkpointing | None = None
    cache: Path | None = None

    def path(self, role: str) -> Path:
        """The folder of the one input with this role."""
        (only,) = self.paths(role)
        return only

    @property
    def made(self) -> Path:
        """A folder, to be created, for datasets that the run makes besides its model: each `NAME.jsonl` is recorded."""
        return self.output.parent / "made"

    def paths(self, role: str) -> list[Path]:
        """The folders of all inputs with this role, in the order that the user gave."""
        return [given.path for given in self.inputs if given.role == role]


@dataclass(frozen=True)
class Progress:
    """How far a run is. `note` is short and for people: `loss 2.31`."""

    done: int
    total: int
    note: str = ""


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Material:
    """What can be known of an input before any work starts, without reading weights: for `Transform.check`.

    `config` is the parsed config.json (or adapter_config.json), empty when there is none; `tensors` maps names to
    `(dtype, shape)`; `files` are the relative paths, and `read` gives the bytes of one that holds no weights.
    """

    role: str
    name: str
    adapter: bool
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    files: tuple[str, ...]
    read: Callable[[str], bytes]


@dataclass(frozen=True)
class Rows:
    """What can be known of a dataset before any work starts. Iterating gives the rows, as often as asked."""

    name: str
    columns: tuple[str, ...]
    count: int
    read: Callable[[], Iterator[dict[str, Any]]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.read()


@dataclass(frozen=True)
class Asked:
    """A step as a file of another tool describes it: params, and revs for the inputs, all but the source by role."""

    params: Mapping[str, Any]
    source: str
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Transform(Generic[P]):
    """A named, versioned operation: models (and data) in, one model out.

    The name is that of the module which defines `run`, the summary that module's first line. `version` is raised when
    the same inputs would give other bytes. `check` raises a MregError for what can be known to fail before work starts.
    `fits` is the role of the input that an adapter which comes out fits. `surroundings` tells what a run depends on
    besides its job, for the recorded environment. `promise` tells the class of particular params where some are more
    deterministic than `determinism`, which all of them are. `distributed` ones may be run by several processes at once,
    between which the trainer of transformers splits the rows. One that `resumes` writes the checkpoints that
    `Job.checkpoints` asks for, on SIGTERM too, and goes on from one to the same bytes and facts as without it. `adopt`
    reads the configuration of another tool as a step, and gives None where it is none.

    `restore` puts what a run depended on besides its job back for a replay, into a folder that is not there yet, and
    gives the params to run with and a word for people. Without a folder it only looks whether that can be done. It
    raises a MregError for what cannot be had any more.

    `predict` says element by element how tensors of the output follow from stored ones, by the name that they have
    there, the best guess first where there are several: it is what they are stored against. It needs no more than the
    params and the inputs, but may look into the output to find a number, such as a threshold, that stands nowhere else.
    A guess that is wrong costs room and nothing else. It is called in the registry's own process, where nobody waits
    for torch to load.
    """

    params: type[P]
    inputs: tuple[Input, ...]
    determinism: Determinism
    version: int
    run: Callable[[Job, P, Report], Facts]
    datasets: Literal["none", "optional", "required"] = "none"
    check: Callable[[P, tuple[Material, ...], tuple[Rows, ...]], None] | None = None
    fits: str = "source"
    surroundings: Callable[[P], dict[str, Any]] | None = None
    promise: Callable[[P], Determinism] | None = None
    distributed: bool = False
    resumes: bool = False
    adopt: Callable[[Mapping[str, Any]], Asked | None] | None = None
    restore: Callable[[P, Path | None], tuple[P, str]] | None = None
    predict: Callable[[P, Made], Iterable[tuple[str, Prediction]]] | None = None

    @property
    def name(self) -> str:
        """The command: the file's name."""
        return self.run.__module__.rpartition(".")[2]

    def promised(self, params: Mapping[str, Any]) -> Determinism:
        """The determinism class of a run with these complete params."""
        return self.determinism if self.promise is None else self.promise(self.params.model_validate(dict(params)))

    @property
    def summary(self) -> str:
        """One line for people: the first of the module's docstring."""
        return (sys.modules[self.run.__module__].__doc__ or self.name).strip().splitlines()[0]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `error` is None when the output folder is complete; `log` is what it printed, for people."""

    facts: Facts
    environment: dict[str, Any]
    wall_s: float
    error: str | None = None
    log: Path | None = None


class UnknownTransform(MregError):
    """No transform has this name."""

    exit_code = 4


class BadParams(MregError):
    """An option of a transform is unknown, missing or out of range."""

    exit_code = 2


class Engine(Protocol):
    """What finds transforms and runs jobs. Found through the entry-point group `mreg.engines`."""

    def names(self) -> list[str]:
        """Every transform there is, sorted."""

    def find(self, name: str) -> Transform[Any]:
        """The transform called `name`. Raises UnknownTransform, with the nearest names."""

    def broken(self) -> dict[str, str]:
        """The names of transforms from outside packages that cannot be used, and why."""

    def code(self, name: str) -> str:
        """The digest of the source that `name` runs."""

    def run(self, job: Job, report: Report) -> Outcome:
        """Do the work in a child process. Raises KeyboardInterrupt after having ended the child."""

    def interrupt(self) -> None:
        """End the jobs that other threads run, as far as one process does each: they fail, and `run` comes back."""

    def close(self) -> None:
        """End what was started. The engine may be used again afterwards."""

    def load(self, base: Path, adapter: Path, **options: Any) -> PreTrainedModel | PeftModel:
        """The model in the folder `base` with the adapter in the other on it, whatever its kind, in evaluation mode.

        `options` go to `from_pretrained` of the base; a `state_dict` among them holds its weights in place of files.
        It is loaded into this process.
        """

    def environment(self, *, threads: int, portable: bool, device: str) -> dict[str, Any]:
        """What a job would run under here and now, in the same terms as `Outcome.environment`."""

    def check_place(self, place: str) -> None:
        """Refuse a place that no job can be sent to: one of an unknown kind, or one that needs a missing package."""
