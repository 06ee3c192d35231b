"""PEFT adapters: reading, loading and merging any kind, and writing them without a trace of this machine."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mreg.registry.models.loading import from_folder
from mreg.registry.transform import Job, Progress, Report
from mreg.transforms._architecture import SAFE, model_class
from mreg.transforms._bottleneck import CONFIG as CONFIG
from mreg.transforms._bottleneck import KIND, load_bottlenecks
from mreg.transforms._bottleneck import WEIGHTS as WEIGHTS
from mreg.transforms._folder import CONFIG as MODEL_CONFIG
from mreg.transforms._folder import ModelFolder, change_config, write_trained

HEADS = frozenset({"SEQ_CLS", "TOKEN_CLS"})
"""Tasks of which the adapter brings the head of the model."""

LISTS = frozenset({"target_modules", "feedforward_modules", "exclude_modules", "modules_to_save"})
"""Names in an adapter's config, in an order that hangs on the process."""

HEAD = re.compile(r"base_model\.model\.(?:score|classifier|classifier\.out_proj)\.weight")


def adapter_config(folder: Path) -> dict[str, Any]:
    """The parsed adapter_config.json."""
    parsed: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return parsed


def save_adapter(model: Any, output: Path) -> None:
    """Save a `PeftModel` so that the same weights give the same files, and so that it fits the base as it was.

    The path of its base is left out, since it is a folder of one job, and lists stand in order. Where the adapter
    brings the head of a classifier, the config of that model goes with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        begun: dict[str, Any] = {}
        if str(getattr(model.peft_config["default"], "init_lora_weights", "")).startswith("pissa"):
            begun["path_initial_model_for_weight_conversion"] = str(_beginning(model, Path(folder)))
        model.save_pretrained(folder, save_embedding_layers=False, **begun)
        shutil.copyfile(Path(folder) / WEIGHTS, output / WEIGHTS)
        config = adapter_config(Path(folder))
    write_config({**config, "base_model_name_or_path": None}, output)
    if config["task_type"] in HEADS:
        save_head_config(model.get_base_model(), output)


def write_config(config: Mapping[str, Any], output: Path) -> None:
    """Write an adapter_config.json whose keys and lists of names stand in order."""
    ordered = {key: sorted(value) if key in LISTS and value else value for key, value in sorted(config.items())}
    (output / CONFIG).write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def save_head_config(model: Any, output: Path) -> None:
    """Write the config of a classifier beside the adapter that brings its head: its labels stand nowhere else."""
    config = model.config.to_diff_dict()
    config = {name: value for name, value in config.items() if name not in ("dtype", "_name_or_path")}
    config |= {"architectures": [type(model).__name__], **labels_of(model.config)}
    (output / MODEL_CONFIG).write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", encoding="utf-8")


def labels_of(config: Any) -> dict[str, Any]:
    """The labels of a classifier as a config.json holds them."""
    named = {str(number): name for number, name in sorted(config.id2label.items())}
    return {"id2label": named, "label2id": {name: int(number) for number, name in named.items()}}


def _beginning(model: Any, folder: Path) -> Path:
    """The adapter that PiSSA began with: it was taken out of the base, so only the difference to it fits the base.

    Made once more, from the base's folder: the same weights have the same singular vectors.
    """
    from peft import get_peft_model

    base = model.get_base_model()
    config = copy.deepcopy(model.peft_config["default"])
    fresh = type(base).from_pretrained(base.name_or_path, config=base.config, dtype=base.dtype, **SAFE)
    begun: Any = get_peft_model(fresh, config)
    begun.peft_config["default"].init_lora_weights = True
    begun.save_pretrained(folder / "pissa-beginning")
    return folder / "pissa-beginning"


def load_adapted(base: Path, adapter: Path, **options: Any) -> Any:
    """A base with an adapter of any kind on it, and with the head that the adapter brings; for reading, not training.

    `options` go to `from_pretrained` of the base; with a `state_dict` among them its folder need not hold its weights.
    """
    from peft import PeftModel
    from transformers import AutoConfig

    about = adapter_config(adapter)
    if (adapter / MODEL_CONFIG).exists():
        options["config"] = AutoConfig.from_pretrained(adapter / MODEL_CONFIG, trust_remote_code=False)
    elif about.get("task_type") in HEADS:
        with ModelFolder(adapter) as held:
            sizes = [slot.shape[0] for name, slot in held.slots.items() if HEAD.fullmatch(name)]
        options |= {"num_labels": sizes[0]} if sizes else {}
    told = adapter if (adapter / MODEL_CONFIG).exists() else base
    config = json.loads((told / MODEL_CONFIG).read_text(encoding="utf-8"))
    model = from_folder(model_class(config, about.get("task_type")), base, **{**SAFE, **options})
    if about.get("peft_type") == KIND:
        return load_bottlenecks(model, adapter)
    return PeftModel.from_pretrained(model, adapter).eval()


def merge_with_peft(job: Job, base: ModelFolder, report: Report) -> list[str]:
    """Write `base` with its adapter merged in float32 by PEFT; return the names of the tensors that changed."""
    import torch

    report(Progress(0, len(base.slots), "merging"))
    model: Any = load_adapted(base.path, job.path("source"), dtype=torch.float32)
    merged: Any = model.merge_and_unload(safe_merge=True)
    architecture, config = type(merged).__name__, merged.config
    brings_head = adapter_config(job.path("source")).get("task_type") in HEADS
    with tempfile.TemporaryDirectory() as folder:
        # Saving gives the tensors the names that they have in files, which may not be those of the modules.
        merged.save_pretrained(folder)
        del model, merged
        with ModelFolder(Path(folder)) as after:
            changed = write_trained(base, after, job.output, report, keep_rest=not brings_head)
    told: dict[str, Any] = {}
    if base.config.get("architectures") != [architecture]:
        told["architectures"] = [architecture]
    if brings_head:
        told |= {"pad_token_id": config.get_text_config().pad_token_id, **labels_of(config)}
    if told:
        change_config(base.path, job.output, **told)
    return changed
