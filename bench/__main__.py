"""`make bench`: the speed targets, each as a ratio to what a user would pick instead, in one run."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterator

from mreg.registry import Registry
from mreg.registry.digests import Digest, of_bytes
from mreg.registry.log.events import Content, InputUsed, RefMoved, RunFinished, RunStarted, VersionImported, record
from mreg.registry.log.journal import EMPTY, Journal
from mreg.registry.log.recorded import Recorded

from bench import models, storage
from bench.measure import MREG, Line, call, command, in_turns, out_folder, told

ROUNDS = 5


def main() -> int:
    """Measure everything and print one line for each target; 1 when one was missed."""
    return told([*imports(), *memory(), *reading(), *storage.family(full=False), *storage.loading(full=False)])


def imports() -> Iterator[Line]:
    """Import of a 300 MB model, again, and of one with 95 % of its tensors unchanged, against cp + sha256sum."""
    with out_folder("import") as here:
        model = models.make(here / "model", megabytes=300)
        almost = models.vary(model, here / "almost", changed=0.05, seed=1)

        def copy(place: int) -> float:
            to = here / f"copy-{place}"
            seconds = (
                command(["cp", "-r", model, to]).seconds + command(["sha256sum", *sorted(model.iterdir())]).seconds
            )
            shutil.rmtree(to)
            return seconds

        def whole(place: int) -> float:
            Registry.init(here / f"whole-{place}")
            return command([MREG, "--registry", here / f"whole-{place}", "import", model]).seconds

        def whole_again(place: int) -> float:
            return command([MREG, "--registry", here / f"whole-{place}", "import", model]).seconds

        def fresh(place: int) -> float:
            registry = Registry.init(here / f"in-{place}")
            return call(lambda: registry.import_model(model))

        def again(place: int) -> float:
            registry = Registry.open(here / f"in-{place}")
            return call(lambda: registry.import_model(model))

        def mostly_known(place: int) -> float:
            registry = Registry.open(here / f"in-{place}")
            return call(lambda: registry.import_model(almost))

        def tidy(place: int) -> float:
            for name in ("whole", "in"):
                shutil.rmtree(here / f"{name}-{place}")
            return 0.0

        works = {"copy": copy, "whole": whole, "whole again": whole_again, "in": fresh, "again": again}
        median = in_turns(ROUNDS, {**works, "95 %": mostly_known, "tidy": tidy})
    print(
        "import of 300 MB, median seconds: " + ", ".join(f"{name} {took:.2f}" for name, took in median.items() if took)
    )
    base = median["copy"]
    yield "import, whole command / cp + sha256sum", median["whole"] / base, 1.5, "x"
    yield "import, in process / cp + sha256sum", median["in"] / base, 1.5, "x"
    yield "import again, whole command / cp + sha256sum", median["whole again"] / base, 0.25, "x"
    yield "import again, in process / cp + sha256sum", median["again"] / base, 0.25, "x"
    yield "import of 95 % known tensors, in process / cp + sha256sum", median["95 %"] / base, 0.25, "x"


def memory() -> Iterator[Line]:
    """Peak memory of whole commands on a model of more than 2 GB, one of whose tensors is 256 MB."""
    with out_folder("memory") as here:
        model = models.make(here / "model", megabytes=2304, tensor_mb=256)
        Registry.init(here)
        yield "peak of import, 2.3 GB", command([MREG, "import", model], cwd=here).peak_mb, 300, " MB"
        yield "peak of checkout, 2.3 GB", command([MREG, "checkout", "v1", "out"], cwd=here).peak_mb, 300, " MB"


def reading() -> Iterator[Line]:
    """Reading commands on 10,000 events against the import of sqlmodel alone."""
    with out_folder("reading") as here:
        registry = Registry.init(here)
        Journal(registry.root).rewrite(list(history(10_000)))
        registry.log.path.unlink()  # It holds the one event that the journal no longer has.
        registry.rebuild()
        commands = {
            "log": ["log"],
            "log of a version": ["log", "v2400"],
            "show": ["show", "v2400"],
            "lineage": ["lineage", "v2400"],
            "ref list": ["ref", "list"],
        }
        works = {
            name: (lambda place, words=words: command([MREG, *words], cwd=here).seconds)
            for name, words in commands.items()
        }
        sqlmodel = {"import sqlmodel": lambda place: command([sys.executable, "-c", "import sqlmodel"]).seconds}
        median = in_turns(2 * ROUNDS + 1, {**sqlmodel, **works})
    print("reading, median seconds: " + ", ".join(f"{name} {took:.3f}" for name, took in median.items()))
    for name in commands:
        yield f"mreg {name}, 10,000 events / import sqlmodel", median[name] / median["import sqlmodel"], 0.6, "x"


def history(count: int) -> Iterator[Recorded]:
    """A plausible log: an import, then chains of runs with a merge now and then, and a ref that follows."""
    last = EMPTY.hash
    seq = 0

    def put(event: VersionImported | RunStarted | RunFinished | RefMoved) -> Recorded:
        nonlocal last, seq
        seq += 1
        at = f"2026-01-01T{seq // 3600 % 24:02}:{seq // 60 % 60:02}:{seq % 60:02}.000Z"
        recorded = record(event, seq=seq, id=str(uuid.UUID(int=seq)), at=at, actor="bench@host", prev=last)
        last = recorded.hash
        return recorded

    made = [_content(0)]
    yield put(VersionImported(content=made[0], source="/models/base"))
    while seq < count - 3:
        number = len(made)
        inputs = [InputUsed(role="source", digest=made[-1].digest if number % 10 else made[number // 2].digest)]
        if number % 7 == 0:
            inputs.append(InputUsed(role="others", digest=made[number // 2].digest))
        run = str(uuid.UUID(int=10**9 + number))
        content = _content(number)
        yield put(
            RunStarted(
                run=run,
                key=_digest(f"key {number}"),
                transform="merge" if len(inputs) > 1 else "prune",
                transform_version=1,
                code=_digest("code"),
                determinism="exact",
                params={"method": "magnitude", "sparsity": 0.3, "ignore": ["lm_head"]},
                inputs=tuple(inputs),
                seed=0,
                threads=2,
                device="cpu",
                portable=False,
            )
        )
        facts = {"matrices": 210, "sparsity": 0.3}
        environment = {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "threads": 2}
        yield put(RunFinished(run=run, content=content, facts=facts, environment=environment, wall_s=3.2))
        if number % 2 == 0:
            yield put(RefMoved(ref=f"team/model-{number % 50}", old=None, new=content.digest, reason="apply"))
            yield put(RefMoved(ref="prod", old=None if number == 2 else made[-2].digest, new=content.digest))
        made.append(content)


def _content(number: int) -> Content:
    return Content(
        digest=_digest(f"version {number}"),
        manifest=_digest(f"manifest {number}"),
        weights=_digest(f"weights {number}"),
        files=6,
        tensors=272,
        parameters=134_515_008,
        bytes=272_585_323,
        adapter=False,
        architecture="LlamaForCausalLM",
    )


def _digest(text: str) -> Digest:
    return of_bytes(text.encode())


if __name__ == "__main__":
    sys.exit(main())
