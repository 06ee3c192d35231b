"""How a remade version behaves beside the recorded one, where their bits differ: on rows, by what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.measures import scores
from mreg.registry.runs.applying import lay_out_job
from mreg.registry.runs.steps import Ready, Request, prepare
from mreg.registry.transform import Report
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

METRICS = ("kl", "agreement")
TOLD = ("value", "low", "high", "n", "unit", "unit_of_n")


@dataclass(frozen=True)
class Behaviour:
    """The question how far what came out in the place of `recorded` is from it on the rows of `dataset`.

    It is asked with the seed, threads and device of the step, `ready`, and of the same metrics as `mreg diff
    --behaviour`. Nothing of it becomes a score, since what came out is no version.
    """

    recorded: Version
    dataset: Digest
    ready: Ready

    def ask(self, registry: Registry, remade: Mapping[Digest, Path], folder: Path, report: Report) -> dict[str, Any]:
        """`dataset`, and each metric with its interval; or `refused`, why the two cannot be compared so."""
        from mreg.registry.measures.evaluating import EVALUATION

        told: dict[str, Any] = {"dataset": self.dataset}
        recorded = self.recorded
        base = registry.log.ask(lambda reader: scores.base_of(reader, recorded))
        bases = () if base is None else (("base", base), ("against_base", base))
        request = Request(
            EVALUATION,
            recorded,
            (("against", recorded), *bases),
            (self.dataset,),
            {"metrics": list(METRICS)},
            self.ready.seed,
            self.ready.threads,
            self.ready.device,
            self.ready.portable,
        )
        try:
            job = lay_out_job(registry, prepare(registry, request), "behaviour", folder)
        except MregError as error:
            return {**told, "refused": error.message}
        again = {"source": remade[recorded.digest], "base": remade.get(base.digest) if base is not None else None}
        inputs = tuple(one.model_copy(update={"path": again.get(one.role) or one.path}) for one in job.inputs)
        outcome = registry.engine.run(job.model_copy(update={"inputs": inputs}), report)
        if outcome.error is not None:
            return {**told, "refused": outcome.error}
        found = {one["metric"]: one for one in outcome.facts["scores"]}
        return told | {name: {key: found[name][key] for key in TOLD} for name in METRICS if name in found}
