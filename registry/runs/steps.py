"""A step made ready: a request checked against the transform, every input resolved, nothing run yet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import digests, revs
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.models import datasets
from mreg.registry.models.datasets import Dataset
from mreg.registry.transform import LAUNCHERS, BadParams, Input, Material, Rows, Transform
from mreg.registry.versions import Version
from pydantic import ValidationError

if TYPE_CHECKING:
    from mreg.registry.models.manifest import Manifest
    from mreg.registry.registry import Registry

Other = "str | Version | tuple[str, str | Version]"

FUSE = "fuse"
"""The transform that makes a whole model of an adapter and its base."""


@dataclass(frozen=True)
class Request:
    """A step as it was asked for. `others` fill the roles after `source` in order, or by `(role, rev)`."""

    transform: str
    source: str | Version
    others: tuple[str | Version | tuple[str, str | Version], ...] = ()
    data: tuple[str | Path, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    portable: bool = False
    processes: int = 1
    launcher: str | None = None
    place: str | None = None
    save_steps: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class Ready:
    """A step whose every part is known. `params` are complete, with defaults; `key` is equal for equal steps.

    `fuse_first` are the steps to do before it: each makes a whole model of an adapter among the inputs that stands
    where a whole model is taken. `on` puts what came of them in its place.
    """

    transform: Transform[Any]
    code: Digest
    params: dict[str, Any]
    inputs: tuple[tuple[str, Version], ...]
    datasets: tuple[Dataset, ...]
    seed: int
    threads: int
    device: str
    portable: bool
    processes: int = 1
    launcher: str | None = None
    place: str | None = None
    save_steps: int | None = None
    resume: bool = False
    fuse_first: tuple[Ready, ...] = ()

    def on(self, fused: Mapping[Digest, Version]) -> Ready:
        """The same step on whole models: `fused` has them by the digest of the adapter."""
        whole = {step.source.digest for step in self.fuse_first}
        inputs = tuple(
            (role, fused[version.digest] if version.digest in whole else version) for role, version in self.inputs
        )
        return replace(self, inputs=inputs, fuse_first=())

    @property
    def key(self) -> Digest:
        """What a step is asked for twice by. The code is left out: a change of bytes raises the version instead.

        So are `launcher`, `place`, `save_steps` and `resume`, on which no bit depends.
        """
        return digests.of_json(
            digests.STEP,
            {
                "transform": self.transform.name,
                "version": self.transform.version,
                "params": self.params,
                "inputs": [[role, version.digest] for role, version in self.inputs],
                "datasets": [dataset.digest for dataset in self.datasets],
                "seed": self.seed,
                "threads": self.threads,
                "device": self.device,
                "portable": self.portable,
                # Left out where there is one, so that steps from before there could be more keep their keys.
                **({"processes": self.processes} if self.processes > 1 else {}),
            },
        )

    @property
    def base(self) -> Digest:
        """What an adapter that comes out would fit; one made from an adapter fits the same base."""
        version = next(version for role, version in self.inputs if role == self.transform.fits)
        return version.base or version.digest

    @property
    def source(self) -> Version:
        """The version that was worked on."""
        return next(version for role, version in self.inputs if role == "source")


def prepare(registry: Registry, request: Request) -> Ready:
    """Check a request as far as can be done without running it. Raises what is wrong with it."""
    transform = registry.engine.find(request.transform)
    params = validate(transform, request.params)
    launcher = _launcher(registry, transform, request)
    _check_going_on(transform, request)
    inputs = assign(registry, transform, request)
    # Before they are found, which adds them.
    if transform.datasets == "required" and not request.data:
        raise BadParams(f"{transform.name} needs data", fix="name a file or a dataset with --data")
    if transform.datasets == "none" and request.data:
        raise BadParams(f"{transform.name} takes no data", fix="leave --data out")
    found = tuple(datasets.find(registry, item) for item in request.data)
    fuse_first = _to_fuse(registry, request, transform, inputs)
    if transform.check is not None:
        apart = {step.source.digest for step in fuse_first}
        materials = tuple(material(registry, role, version, fused=version.digest in apart) for role, version in inputs)
        transform.check(params, materials, rows_of(registry, found))
    return Ready(
        transform=transform,
        code=Digest(registry.engine.code(transform.name)),
        params=params.model_dump(mode="json"),
        inputs=inputs,
        datasets=found,
        seed=request.seed,
        threads=request.threads or max(1, (os.cpu_count() or 1) // request.processes),
        device=request.device,
        portable=request.portable,
        processes=request.processes,
        launcher=launcher,
        place=request.place,
        save_steps=request.save_steps,
        resume=request.resume,
        fuse_first=fuse_first,
    )


def _launcher(registry: Registry, transform: Transform[Any], request: Request) -> str | None:
    """What starts the processes of a step, None for a single one. Raises what is wrong with where it is to run."""
    if request.place is not None:
        registry.engine.check_place(request.place)
    if request.launcher is not None and request.launcher not in LAUNCHERS:
        raise BadParams(f"no launcher is called {request.launcher!r}", fix=f"there are: {', '.join(LAUNCHERS)}")
    if request.processes == 1 and request.launcher is not None:
        raise BadParams(f"{request.launcher} starts several processes", fix="say how many with --processes")
    if request.processes == 1:
        return None
    if not transform.distributed:
        can = [name for name in registry.engine.names() if registry.engine.find(name).distributed]
        raise Refused(
            f"{transform.name} runs in one process",
            fix=f"leave --processes and --launcher out; {', '.join(can) or 'no transform'} can be shared",
        )
    if ":" in request.device:
        raise BadParams(
            f"{request.processes} processes do not share the one device {request.device}",
            fix=f"--device {request.device.partition(':')[0]} gives one to each",
        )
    return request.launcher or LAUNCHERS[0]


def _check_going_on(transform: Transform[Any], request: Request) -> None:
    for option, asked in (("--save-steps", request.save_steps is not None), ("--resume", request.resume)):
        if asked and not transform.resumes:
            raise BadParams(f"{transform.name} writes no checkpoints", fix=f"leave {option} out")
    if request.save_steps is not None and request.save_steps < 1:
        raise BadParams("--save-steps must be 1 or more", fix="leave it out for no checkpoints on the way")


def _to_fuse(
    registry: Registry, request: Request, transform: Transform[Any], inputs: Sequence[tuple[str, Version]]
) -> tuple[Ready, ...]:
    """The fusing of every adapter that stands where a whole model is taken. Raises Refused for one that cannot be."""
    models = {given.role for given in transform.inputs if given.takes == "model"}
    adapters = {version.digest: (role, version) for role, version in inputs if role in models and version.adapter}
    steps = []
    for role, adapter in adapters.values():
        # Seed and data are left out: fusing draws nothing at random, and is the same step whatever comes after it.
        alone = Request(
            FUSE,
            adapter,
            threads=request.threads,
            device=request.device,
            portable=request.portable,
            place=request.place,
        )
        try:
            steps.append(prepare(registry, alone))
        except MregError as error:
            raise Refused(
                f"{adapter} is an adapter, {transform.name} takes a whole model as {role}, and it cannot be fused: "
                f"{error.message}",
                fix=error.fix,
            ) from error
    return tuple(steps)


def validate(transform: Transform[Any], given: Mapping[str, Any]) -> Any:
    """The typed params, with defaults. Raises BadParams naming the first that is wrong."""
    try:
        return transform.params.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or transform.name
        option = f"--{name.replace('_', '-')}"
        help_ = f"`mreg transforms {transform.name}` lists its options"
        if first["type"] == "extra_forbidden":
            names = list(transform.params.model_fields)
            raise BadParams(f"{transform.name} has no option {option}", fix=revs.suggest(name, names, help_)) from error
        said = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise BadParams(f"{transform.name}: {said}", fix=help_) from error
        shown = "" if first["type"] == "missing" else f" (it was {first['input']!r})"
        raise BadParams(f"{option}: {said[0].lower()}{said[1:]}{shown}", fix=help_) from error


def said(transform: Transform[Any], complete: Mapping[str, Any]) -> dict[str, Any]:
    """Of complete params, those that have to be said for the others to follow from defaults. Raises BadParams."""

    def completed(given: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return dict(validate(transform, given).model_dump(mode="json"))
        except BadParams:
            return None

    wanted = validate(transform, complete).model_dump(mode="json")
    kept = dict(complete)
    for name in complete:
        fewer = {other: value for other, value in kept.items() if other != name}
        if completed(fewer) == wanted:
            kept = fewer
    return kept


def assign(registry: Registry, transform: Transform[Any], request: Request) -> tuple[tuple[str, Version], ...]:
    """Which version plays which role, in the order that the transform declares. Raises Refused and BadParams."""
    source = registry.version(request.source)
    asked = [given for given in transform.inputs if not given.derived]
    taken: dict[str, list[Version]] = {asked[0].role: [source]}
    for other in request.others:
        role, rev = other if isinstance(other, tuple) else (_next_role(transform, asked, taken), other)
        place = next((given for given in asked if given.role == role), None)
        if place is None:
            roles = ", ".join(given.role for given in asked[1:]) or "none besides source"
            raise BadParams(f"{transform.name} has no input called {role!r}", fix=f"its inputs are: {roles}")
        if role in taken and not place.many:
            raise BadParams(f"{transform.name} takes one {role}", fix="name it once")
        taken.setdefault(role, []).append(registry.version(rev))
    inputs: list[tuple[str, Version]] = []
    for given in transform.inputs:
        versions = taken.get(given.role, [])
        if given.trace is not None:
            params = validate(transform, request.params)
            versions = _traced(registry, given.trace(params, registry.recipe(source)))
        elif given.derived and not (given.optional and not source.adapter):
            versions = [_base_of(registry, source)]
        if not versions and not given.optional:
            raise BadParams(f"{transform.name} needs {given.role}: {given.help}", fix="name it with --with REV")
        for version in versions:
            _fits(transform, given, version)
            inputs.append((given.role, version))
    return tuple(inputs)


def _traced(registry: Registry, digest: str | None) -> list[Version]:
    return [] if digest is None else [registry.log.ask(lambda reader: queries.version(reader, Digest(digest)))]


def _next_role(transform: Transform[Any], asked: Sequence[Input], taken: Mapping[str, list[Version]]) -> str:
    for given in asked[1:]:
        if given.many or given.role not in taken:
            return given.role
    raise BadParams(f"{transform.name} takes {len(asked)} input{'s' * (len(asked) > 1)}", fix="give fewer --with")


def _base_of(registry: Registry, adapter: Version) -> Version:
    digest = adapter.base
    if digest is None:
        raise Refused(f"{adapter} is no adapter, it fits no base", fix="give an adapter version with --from")
    return registry.log.ask(lambda reader: queries.version(reader, digest))


def _fits(transform: Transform[Any], given: Input, version: Version) -> None:
    if given.takes == "adapter" and not version.adapter:
        raise Refused(
            f"{version} is a whole model, and {transform.name} takes an adapter as {given.role}", fix="give an adapter"
        )


def rows_of(registry: Registry, found: Iterable[Dataset]) -> tuple[Rows, ...]:
    """What is known of datasets."""
    return tuple(
        Rows(name=d.name, columns=d.columns, count=d.rows, read=partial(datasets.rows, registry, d.digest))
        for d in found
    )


def material(registry: Registry, role: str, version: Version, *, fused: bool = False) -> Material:
    """What is known of an input. An adapter that will be `fused` has the tensors, config and files of its base."""
    manifest = registry.manifest(_base_of(registry, version) if fused else version)

    def read(path: str) -> bytes:
        entry = manifest.file(path)
        assert entry is not None, path
        return registry.store.read_bytes(entry.digest)

    return material_of(role, version.name, manifest, read, adapter=version.adapter and not fused)


def material_of(role: str, name: str, manifest: Manifest, read: Callable[[str], bytes], *, adapter: bool) -> Material:
    """What a manifest tells of an input; `read` gives the bytes of a file in it."""
    config: Any = {}
    file = manifest.file("adapter_config.json") or manifest.file("config.json")
    if file is not None:
        config = json.loads(read(file.path))
    return Material(
        role=role,
        name=name,
        adapter=adapter,
        config=config if isinstance(config, dict) else {},
        tensors={tensor.name: (tensor.dtype, tensor.shape) for tensor in manifest.tensors()},
        files=tuple(entry.path for entry in manifest.files),
        read=read,
    )
