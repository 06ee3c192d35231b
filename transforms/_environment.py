"""What the bits of a run depend on: fixed before the first import of torch, recorded beside every run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mreg.registry.digests import of_bytes

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "tokenizers",
    "safetensors",
    "numpy",
    "accelerate",
    "datasets",
    "compressed-tensors",
)

# Nothing else of the user's environment reaches a run: a stray OMP_ or HF_ variable would change bits unseen.
KEPT = {"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "LANG", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "ATEN_")

# The same kernels on every CPU with AVX2, and products that do not depend on the number of threads: that MKL promises
# in its strict mode alone; its COMPATIBLE branch gave other bits with two threads than with one.
PORTABLE = {"MKL_CBWR": "AVX2,STRICT", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def variables(outer: Mapping[str, str], *, state: Path, threads: int, portable: bool) -> dict[str, str]:
    """The environment of a child process: a few names from `outer`, the rest fixed; caches go into `state`."""
    kept = {name: value for name, value in outer.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    fixed = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        # Threads that wait sleep: spinning made a run several times slower whenever something else wanted a core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "XDG_CACHE_HOME": str(state / "cache"),
        "HF_HOME": str(state / "cache" / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    return {**kept, **fixed, **(PORTABLE if portable else {})}


def resolve(device: str) -> str:
    """The device that `auto` means here; any other name is itself."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(*, threads: int, device: str) -> dict[str, Any]:
    """What this process would compute with, as flat JSON. `device` is resolved, not `auto`."""
    import torch

    described: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {''.join(platform.libc_ver())}".strip(),
        **{package: _version(package) for package in PACKAGES},
        "torch_build": of_bytes("\n".join(_build()).encode()),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
        "hash_seed": os.environ.get("PYTHONHASHSEED", ""),
        "device": device,
    }
    if device.startswith("cuda"):
        described["device_name"] = torch.cuda.get_device_name(device)
    return described


def _build() -> Iterator[str]:
    """How torch was built; what it says there of this processor is recorded by itself."""
    import torch

    yield from (line for line in torch.__config__.show().splitlines() if "CPU capability" not in line)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()
