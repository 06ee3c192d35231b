"""What the tests of runs share: small models that need no torch to make, and an engine started once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.digests import of_bytes
from mreg.registry.transform import Engine

from tests.strategies import safetensors_raw, write_folder

OUTSIDE = '''
"""{summary}"""

import os
import time
from pathlib import Path

from mreg.registry.errors import Refused
from mreg.registry.transform import Input, Params, Progress, Transform
from mreg.transforms._folder import ModelFolder, copy_rest, rewrite


class P(Params):
    amount: float = 1.0
    """How much."""


def add(job, amount):
    with ModelFolder(job.path("source")) as source:
        copy_rest(source.path, job.output)

        def make(slot):
            yield source.tensor(slot.name) + amount

        rewrite(source, job.output, lambda slot: [slot], make, lambda progress: None)


def count():
    # Never the same twice in a row.
    path = Path(os.environ["HOME"], "counted")
    path.open("a").write(".")
    return path.stat().st_size


def run(job, params, report):
    print("working on", job.transform, flush=True)
{body}


TRANSFORM = Transform(
    params=P,
    inputs=(Input("source", "a model"),),
    determinism="same-machine",
    version=1,
    run=run,
    datasets="optional",
)
'''

BODIES = {
    "explode": '    add(job, 1)\n    raise ValueError("the loss is not a number")',
    "refuse": '    raise Refused("too large for float16", fix="use bfloat16")',
    "die": "    os._exit(3)",
    "scribble": '    (job.output / "README.md").write_text("nothing")\n    return {}',
    "corrupt": '    add(job, 1)\n    path = job.output / "model.safetensors"\n'
    "    path.write_bytes(path.read_bytes()[:-8])\n    return {}",
    "stall": "    report(Progress(1, 2))\n    time.sleep(60)",
    # Its bits depend on what mreg fixes for it, as those of a training do.
    "lean": "    import torch\n\n    add(job, torch.get_num_threads())\n    return {'flops': 1e20}",
    # Its bits depend on what nobody fixes.
    "wander": "    add(job, count() % 64)\n    return {}",
    "drift": "    add(job, (1 + count() % 7) * 2**-20)\n    return {}",
    "relabel": "    from safetensors.torch import load_file, save_file\n\n    add(job, 1)\n"
    '    path = job.output / "model.safetensors"\n'
    '    save_file(load_file(path), path, {"at": str(time.time_ns())})\n    return {}',
    # Its bits depend on what is installed.
    "versioned": "    from importlib.metadata import version\n\n"
    '    add(job, params.amount * int(version("compressed-tensors").partition(".")[0]))\n    return {}',
    "fragile": '    add(job, 2)\n    if Path(os.environ["HOME"], "fragile").exists():\n'
    '        raise ValueError("it broke")\n    return {}',
    # It stops where a test wants it to, and does not go on by itself.
    "pause": '    add(job, 3)\n    if Path(os.environ["HOME"], "pause").exists():\n        report(Progress(1, 2))\n'
    "        time.sleep(3600)\n    return {}",
    # Two datasets besides, the second never the same when the amount is negative.
    "sample": "    add(job, params.amount)\n    job.made.mkdir()\n"
    "    numbers = params.amount, count() * params.amount\n"
    "    for name, number in zip('ab', (numbers[0], min(numbers))):\n"
    '        (job.made / f\'{name}.jsonl\').write_text(\'{"n": %d}\\n{"by": "%s"}\\n\' % (number, name))\n'
    "    return {}",
    "read": "    add(job, sum(len(Path(one.path).read_text()) for one in job.datasets) / 64)\n    return {}",
    "grow": '    add(job, 1)\n    if Path(os.environ["HOME"], "grow").exists():\n'
    '        (job.output / "more.safetensors").write_bytes((job.output / "model.safetensors").read_bytes())\n'
    "    return {}",
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine of this machine, with transforms from outside that misbehave in every way."""
    from mreg.transforms._engine import LocalEngine

    site = tmp_path_factory.mktemp("site")
    for name, body in BODIES.items():
        (site / f"{name}.py").write_text(OUTSIDE.format(summary=f"To {name}.", body=body))
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mreg.transforms]\n{name} = {name}:TRANSFORM\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        with LocalEngine(state=tmp_path_factory.mktemp("state")) as engine:
            yield engine
    for name in BODIES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Registry:
    """A registry that runs transforms; its tests tell their versions apart by their models."""
    return Registry.init(tmp_path_factory.mktemp("shop"), engine=engine)


Import = Callable[..., str]


@pytest.fixture
def bring(shop: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Import:
    """`bring()` imports a model that no other test has and returns its name."""

    def bring(salt: int = 0, **more: str) -> str:
        folder = make_model(tmp_path / f"model-{salt}", seed=seed_of(f"{request.node.nodeid} {salt}"), **more)
        return shop.import_model(folder).version.name

    return bring


def seed_of(text: str) -> int:
    """A seed that other texts do not give."""
    return int(of_bytes(text.encode())[:12], 16)


def make_model(folder: Path, *, seed: int = 0, dtype: str = "BF16") -> Path:
    """A Llama as far as its files say, with a few hundred weights between -2 and 2."""
    import numpy as np

    chosen = np.random.default_rng(seed)
    names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("up", "down")]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in [*names, "lm_head.weight"]:
        bits = chosen.uniform(-2, 2, (8, 4)).astype(np.float32).view(np.uint32)
        raw = (bits >> 16).astype(np.uint16).tobytes() if dtype == "BF16" else bits.tobytes()
        header[name] = {"dtype": dtype, "shape": [8, 4], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    spelled = json.dumps(header, separators=(",", ":"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype],
        "model_type": "llama",
    }
    return write_folder(
        folder,
        {
            "config.json": json.dumps(config, indent=2).encode() + b"\n",
            # Padded as its writers do.
            "model.safetensors": safetensors_raw(spelled + " " * (-len(spelled) % 8), data),
        },
    )
