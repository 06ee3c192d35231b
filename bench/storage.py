"""`python -m bench.storage`: what a family of versions takes in the store, and how long, beside what else keeps them.

By default the small family of `chain.py`, whose sizes and memory have targets; with `--full` its large one, where times
have them too; `--large` adds peak memory on a model of more than 2 GB. One run, in which everything that is compared
takes turns. Files are in the system's cache when they are added, and are not when they are checked out. mreg and git
have what they added on the disk when they are done; `cp` leaves that to the system.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mreg.registry import Registry

from bench import chain, codecs, models, others
from bench.chain import BASE, FAMILY
from bench.measure import MREG, Line, call, command, in_turns, out_folder, told
from bench.others import Keeper, run, size_of

ROUNDS = 3
PLAIN, RECIPES, COMMANDS = "mreg", "mreg, recipes", "mreg, commands"
COMPARED = ("DVC", "DVC, hard links", "git-lfs")
"""What whole commands are held against."""
FINE_TUNES = ("sft-1e-5", "sft-5e-5", "sft-4e-4")
QUICK = ("frozen", "edit", "rollback")
CHECKED_OUT = {BASE: "a version stored by itself", "sft-5e-5": "a fine-tune", "merged": "a merge"}
PEAK_MB = 300


class Mreg:
    """Versions in a registry. Without `recipes` they are recorded as made by something that mreg does not have."""

    def __init__(self, root: Path, *, recipes: bool) -> None:
        self.name = RECIPES if recipes else PLAIN
        self.registry = Registry.init(root)
        self._recipes = recipes
        self._digests: dict[str, str] = {}

    def lay(self, version: str, folder: Path) -> None:
        """See `Keeper`."""

    def add(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        member = next(member for member in FAMILY if member.name == version)
        if not member.transform:
            self._digests[version] = self.registry.import_model(folder).version.digest
            return
        done = self.registry.record_version(
            folder,
            transform=member.transform if self._recipes else "elsewhere",
            source=self._digests[member.source],
            others=[(role, self._digests[name]) for role, name in member.others],
            params=member.params if self._recipes else {},
        )
        self._digests[version] = done.version.digest

    def check_out(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        self.registry.check_out(self._digests[version], folder)

    def stored(self) -> int:
        """See `Keeper`."""
        return size_of(self.registry.store.root)


class Commands:
    """The same without recipes, each time as a command of its own, which imports what it needs anew."""

    name = COMMANDS

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = Registry.init(root)
        self._names: dict[str, str] = {}

    def lay(self, version: str, folder: Path) -> None:
        """See `Keeper`."""

    def add(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        member = next(member for member in FAMILY if member.name == version)
        if not member.transform:
            run([MREG, "import", folder], self.root)
            self._names.setdefault(version, "v1")
            return
        others = [word for role, name in member.others for word in ("--with", f"{role}={self._names[name]}")]
        words = ["--from", self._names[member.source], *others, "--transform", "elsewhere"]
        run([MREG, "record", *words, "--output", folder], self.root)
        self._names[version] = f"v{len(self._names) + 1}"

    def check_out(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run([MREG, "checkout", self._names[version], folder], self.root)

    def stored(self) -> int:
        """See `Keeper`."""
        return size_of(self.registry.store.root)


@dataclass(frozen=True, slots=True)
class Added:
    """What a version took."""

    bytes: int
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.storage", description="What versions take in the store.")
    parser.add_argument("--full", action="store_true", help="163 million parameters; made once, in some 15 minutes")
    parser.add_argument("--large", action="store_true", help="also peak memory on a model of more than 2 GB")
    asked = parser.parse_args(arguments)
    lines = [*family(full=asked.full), *loading(full=asked.full)]
    of_codecs(full=asked.full)
    if asked.large:
        lines += peaks()
    return told(lines)


def family(*, full: bool) -> Iterator[Line]:
    """Add every version of a family to everything that keeps versions, check some out, and print what it took."""
    paths = chain.made(full=full)
    logical = sum(size_of(path) for name, path in paths.items() if name != "rollback")
    with out_folder("storage") as here:
        _warm_up(paths, here / "warm")
        keepers = [
            *others.installed(here),
            Mreg(here / "plain", recipes=False),
            Mreg(here / "recipes", recipes=True),
            Commands(here / "commands"),
        ]
        copies = keepers[0].name
        added = _add(keepers, paths)
        _print_added(added, paths)
        checked = _check_out(keepers, here)
        _print_checked(checked)
    for name, few, many in ((PLAIN, 0.26, 0.18), (RECIPES, 0.18, 0.12)):
        total = sum(one.bytes for one in added[name].values())
        yield f"bytes of all versions, {name} / their files", total / logical, many if full else few, "x"
    if not full:
        # What it costs to record anything is most of the time that a small model takes.
        return
    tuned = {name: sum(added[name][version].seconds for version in FINE_TUNES) for name in (PLAIN, copies)}
    yield "add a full fine-tune / cp + sha256sum", tuned[PLAIN] / tuned[copies], 1.0, "x"
    for version in QUICK:
        ratio = added[PLAIN][version].seconds / added[copies][version].seconds
        yield f"add: {title(version)} / cp + sha256sum", ratio, 0.15, "x"
    for version, target in ((BASE, 2.0), ("sft-5e-5", 6.0)):
        ratio = checked[PLAIN][version] / checked[copies][version]
        yield f"check out {CHECKED_OUT[version]}, cold / cp", ratio, target, "x"
    for other in COMPARED:
        if other not in added:
            continue
        tuned[other], tuned[COMMANDS] = (
            sum(added[name][version].seconds for version in FINE_TUNES) for name in (other, COMMANDS)
        )
        yield f"command that adds a full fine-tune / {other}", tuned[COMMANDS] / tuned[other], 1.0, "x"
        ratio = added[COMMANDS]["rollback"].seconds / added[other]["rollback"].seconds
        yield f"command that adds a rollback / {other}", ratio, 1.0, "x"
        for version, what in CHECKED_OUT.items():
            ratio = checked[COMMANDS][version] / checked[other][version]
            yield f"command that checks out {what}, cold / {other}", ratio, 1.0, "x"


def title(version: str) -> str:
    """What to call a version of the family."""
    return next(member.title for member in FAMILY if member.name == version)


def _warm_up(paths: Mapping[str, Path], here: Path) -> None:
    """Import what is imported on first use, as any program that keeps versions has done before the second one."""
    with Registry.init(here) as registry:
        base = registry.import_model(paths[BASE]).version
        for transform in ("elsewhere", "merge", "quantize", "fuse", "prune"):
            registry.record_version(paths["adapter"], transform=transform, source=base)
    shutil.rmtree(here)


def _add(keepers: Sequence[Keeper], paths: Mapping[str, Path]) -> dict[str, dict[str, Added]]:
    """Every version to every keeper, in turns."""
    added: dict[str, dict[str, Added]] = {keeper.name: {} for keeper in keepers}
    for version, path in paths.items():
        for file in path.iterdir():
            file.read_bytes()
        for keeper in keepers:
            keeper.lay(version, path)
            before = keeper.stored()
            # What others wrote is on the disk by now, and keeps nobody waiting.
            os.sync()
            seconds = call(partial(keeper.add, version, path))
            added[keeper.name][version] = Added(keeper.stored() - before, seconds)
    return added


def _check_out(keepers: Sequence[Keeper], here: Path) -> dict[str, dict[str, float]]:
    """The median seconds in which each keeper brings versions back that lie on the disk alone."""

    def cold(keeper: Keeper, version: str) -> Callable[[int], float]:
        def work(_: int) -> float:
            forget(here)
            seconds = call(lambda: keeper.check_out(version, here / "out"))
            shutil.rmtree(here / "out")
            return seconds

        return work

    checked: dict[str, dict[str, float]] = {keeper.name: {} for keeper in keepers}
    for version in CHECKED_OUT:
        works = {keeper.name: cold(keeper, version) for keeper in keepers}
        for name, seconds in in_turns(ROUNDS, works).items():
            checked[name][version] = seconds
    return checked


def forget(folder: Path) -> None:
    """Have the system drop what it keeps of a folder's files in memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _print_added(added: Mapping[str, Mapping[str, Added]], paths: Mapping[str, Path]) -> None:
    width = max(len(member.title) for member in FAMILY)
    print(f"\n{'MB, and seconds to add':{width}}    files  " + "".join(f"{name:>22}" for name in added))
    for version, path in paths.items():
        cells = "".join(f"{one[version].bytes / 1e6:13.2f} {one[version].seconds:6.2f} s" for one in added.values())
        print(f"{title(version):{width}}  {size_of(path) / 1e6:7.1f}  {cells}")
    logical = sum(size_of(path) for name, path in paths.items() if name != "rollback")
    totals = [
        (sum(version.bytes for version in one.values()), sum(version.seconds for version in one.values()))
        for one in added.values()
    ]
    print(
        f"{'all':{width}}  {logical / 1e6:7.1f}  "
        + "".join(f"{size / 1e6:13.2f} {took:6.2f} s" for size, took in totals)
    )


def _print_checked(checked: Mapping[str, Mapping[str, float]]) -> None:
    width = max(map(len, CHECKED_OUT.values()))
    print(f"\n{'seconds to check out, cold':{width}}" + "".join(f"{name:>18}" for name in checked))
    for version, name in CHECKED_OUT.items():
        print(f"{name:{width}}" + "".join(f"{one[version]:16.2f} s" for one in checked.values()))


_LOAD = """
import sys
from mreg.registry import Registry
Registry.open(sys.argv[1]).load(sys.argv[2])
"""
_FROM_FOLDER = """
import sys
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained(sys.argv[1])
for parameter in model.parameters():
    parameter.sum()
"""


def loading(*, full: bool) -> Iterator[Line]:
    """Whole commands on a fine-tune: in, out, and into memory as a model."""
    paths = chain.made(full=full)
    base, tuned = paths[BASE], paths["sft-5e-5"]
    with out_folder("loading") as here:
        registry = Registry.init(here)
        imported = command([MREG, "import", base], cwd=here)
        recorded = command([MREG, "record", "--from", "v1", "--output", tuned, "--transform", "my-sft"], cwd=here)
        forget(registry.store.root)
        out = command([MREG, "checkout", "v2", "out"], cwd=here)
        stored = command([sys.executable, "-c", _LOAD, here, "v2"])
        folder = command([sys.executable, "-c", _FROM_FOLDER, here / "out"])
    for what, ran in (
        ("mreg import of the base", imported),
        ("mreg record of a fine-tune", recorded),
        ("mreg checkout of it, cold", out),
        ("Registry.load of it", stored),
        ("from_pretrained of its checkout", folder),
    ):
        print(f"{what:32} {ran.seconds:6.2f} s  peak {ran.peak_mb:6.0f} MB")
    yield "peak of import", imported.peak_mb, PEAK_MB, " MB"
    yield "peak of record, a delta", recorded.peak_mb, PEAK_MB, " MB"
    yield "peak of checkout, a delta", out.peak_mb, PEAK_MB, " MB"
    yield "peak of load / from_pretrained of the checkout", stored.peak_mb / folder.peak_mb, 1.1, "x"


def of_codecs(*, full: bool) -> None:
    """Print what the codecs do on a fine-tune's tensors, beside the base and alone, without the store around them."""
    paths = chain.made(full=full)
    print()
    arguments = [*(str(paths[name] / "model.safetensors") for name in (BASE, "sft-5e-5")), "--every=8", "--rounds=3"]
    codecs.main(arguments)
    codecs.main([*arguments, "--numpy"])


def peaks() -> Iterator[Line]:
    """Peak memory of whole commands on a sharded model of more than 2 GB and on a variant of it."""
    with out_folder("large") as here:
        model = models.make(here / "model", megabytes=2304, shard_mb=512, tensor_mb=32)
        Registry.init(here)
        yield "peak of import, 2.4 GB", command([MREG, "import", model], cwd=here).peak_mb, PEAK_MB, " MB"
        yield "peak of checkout, 2.4 GB", _peak_of_checkout("v1", here), PEAK_MB, " MB"
        other = models.vary(model, here / "other", changed=1.0, seed=1)
        shutil.rmtree(model)
        recorded = command([MREG, "record", "--from", "v1", "--output", other, "--transform", "my-sft"], cwd=here)
        yield "peak of record, a delta of 2.4 GB", recorded.peak_mb, PEAK_MB, " MB"
        shutil.rmtree(other)
        yield "peak of checkout, a delta of 2.4 GB", _peak_of_checkout("v2", here), PEAK_MB, " MB"


def _peak_of_checkout(rev: str, here: Path) -> float:
    ran = command([MREG, "checkout", rev, "out"], cwd=here)
    shutil.rmtree(here / "out")
    return ran.peak_mb


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
