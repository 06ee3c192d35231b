"""Making a smaller model: parts are scored, the lowest are cut out of its folder, and what went is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mreg.registry.transform import Facts, Job, Report
from mreg.transforms._folder import ModelFolder
from mreg.transforms._importance import by_samples, by_weights
from mreg.transforms._layers import drop_layers
from mreg.transforms._structured import cut_out, plan_of

if TYPE_CHECKING:
    from mreg.transforms.prune import PruneParams


def shrink(job: Job, params: PruneParams, source: ModelFolder, report: Report) -> Facts:
    """Write the source without its least important parts: as many of every layer, or whole layers."""
    assert params.structure is not None, "validated"
    shapes = {name: slot.shape for name, slot in source.slots.items()}
    plan = plan_of("the model", source.config, shapes, params.structure, params.fraction)
    facts: Facts = {"structure": plan.structure, "parts_before": plan.parts, "parts": plan.stay}
    if params.reads_data:
        scores, tokens = by_samples(
            job, source, plan, report, count=params.num_calibration_samples, longest=params.max_seq_length
        )
        facts |= {"calibration_samples": params.num_calibration_samples, "calibration_tokens": tokens}
    else:
        scores = by_weights(source, plan)
    if plan.structure == "layers":
        ranked = sorted(scores, key=lambda number: (float(scores[number]), number))
        keep = sorted(ranked[plan.parts - plan.stay :])
        left_out = drop_layers(source, keep, job.output, report)
        facts["removed"] = sorted({*scores} - {*keep})
    else:
        left_out, gone = cut_out(source, plan, scores, job.output, report)
        if plan.structure == "heads":
            facts["removed"] = [gone[number] for number in sorted(gone)]
    with ModelFolder(job.output) as output:
        sizes = [sum(slot.elements for slot in folder.slots.values()) for folder in (source, output)]
    return {
        "sparsity": 1 - plan.stay / plan.parts,
        **facts,
        "parameters_before": sizes[0],
        "parameters": sizes[1],
        "left_out": left_out,
    }
