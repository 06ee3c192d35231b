"""The callback that records a transformers Trainer: its arguments, its curves, its totals, and its model."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mreg.registry.runs.work import Work
    from transformers import TrainerCallback

_OWN = ("learning_rate", "grad_norm", "epoch", "total_flos", "num_input_tokens_seen", "train_loss")
_TIMES = ("_runtime", "_per_second", "_tokens_per_second_per_gpu")


def recording(work: Work) -> TrainerCallback:
    """A callback that writes into `work`; of several processes only the main one does."""
    from transformers import TrainerCallback

    class Recording(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del control, kwargs
            if state.is_world_process_zero:
                work.log(arguments=_chosen(args))

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control
            if not state.is_world_process_zero:
                return
            numbers = {name: value for name, value in kwargs["logs"].items() if _is_number(value)}
            work.log_points(state.global_step, {name: it for name, it in numbers.items() if not _is_own(name)})
            if "train_loss" in numbers:
                # The totals of the whole training, as its last word.
                work.log(train_loss=round(numbers["train_loss"], 6))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control
            if not state.is_world_process_zero:
                return
            totals = {"tokens": int(state.num_input_tokens_seen), "flops": float(state.total_flos)}
            work.log(None, steps=state.global_step, **{name: total for name, total in totals.items() if total})
            kwargs["model"].save_pretrained(work.output)
            if kwargs.get("processing_class") is not None:
                kwargs["processing_class"].save_pretrained(work.output)
            _forget_paths(work.output / "adapter_config.json")

    return Recording()


def _chosen(args: Any) -> dict[str, Any]:
    """The arguments that are not the default, as JSON; without the folders, which are of this machine."""
    told = args.to_dict()
    found = {}
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in told and getattr(args, field.name) != default and not field.name.endswith("_dir"):
            found[field.name] = told[field.name]
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str), parse_constant=str)
    return {name: value for name, value in plain.items() if not isinstance(value, dict) and value != []}


def _is_own(name: str) -> bool:
    """Whether a trainer says this of its own work, not of the model."""
    return name in _OWN or name.endswith(_TIMES)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _forget_paths(config: Path) -> None:
    """An adapter fits the version that the log says, not the folder that its base was laid out in."""
    if config.exists():
        parsed = json.loads(config.read_text(encoding="utf-8"))
        text = json.dumps({**parsed, "base_model_name_or_path": None}, indent=2, sort_keys=True)
        config.write_text(text + "\n", encoding="utf-8")
