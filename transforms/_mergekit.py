"""Configurations of mergekit: read, checked before any work starts, and handed to it.

A configuration names models; a step has inputs with roles. So `adopt` takes the names out and leaves the roles in:
`source`, `base` and `others[0]`, `others[1]` …. What is recorded then says nothing of names, which may move.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mreg.registry.errors import Refused
from mreg.registry.transform import Asked, BadParams, Facts, Job, Material, Progress, Report
from mreg.transforms import _check
from mreg.transforms._folder import ModelFolder
from mreg.transforms._mergekit_models import Config, names_of, renamed


class Method(NamedTuple):
    """What a method of mergekit takes. `own` must be set for each model that is not the base, `shared` for all."""

    base: bool = False
    least: int = 1
    most: int | None = None
    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


_TASKS = Method(base=True, own=("weight",))
METHODS: Mapping[str, Method] = {
    "arcee_fusion": Method(base=True, least=2, most=2),
    "breadcrumbs": _TASKS,
    "breadcrumbs_ties": _TASKS,
    "dare_linear": _TASKS,
    "dare_ties": _TASKS,
    "della": _TASKS,
    "della_linear": _TASKS,
    "karcher": Method(),
    "linear": Method(own=("weight",)),
    "model_stock": Method(base=True, least=3),
    "multislerp": Method(own=("weight",)),
    "nearswap": Method(base=True, least=2, most=2, shared=("t",)),
    "nuslerp": Method(own=("weight",)),
    "passthrough": Method(most=1),
    "ram": Method(base=True),
    "ramplus_tl": Method(base=True),
    "sce": Method(base=True),
    "slerp": Method(base=True, least=2, most=2, shared=("t",)),
    "task_arithmetic": _TASKS,
    "ties": _TASKS,
}

KEYS = (
    "base_model",
    "chat_template",
    "dtype",
    "merge_method",
    "models",
    "modules",
    "out_dtype",
    "parameters",
    "slices",
    "tokenizer",
    "tokenizer_source",
)
OUTPUTS = ("models", "slices", "modules")


def adopt(config: Config) -> Asked | None:
    """The step that a file given with `--config` asks for, if it is a configuration of mergekit. Raises BadParams."""
    if "merge_method" not in config:
        return None
    roles: dict[str, str] = {}
    base = config.get("base_model")
    names = [name for name in dict.fromkeys(names_of(config)) if name != base]
    if not names and not base:
        raise BadParams("the configuration names no model", fix="write versions of this registry as its models")
    roles |= {name: "source" if place == 0 else f"others[{place - 1}]" for place, name in enumerate(names)}
    others = [("others", name) for name in names[1:]]
    if base is not None:
        roles[base] = "base" if names else "source"
        others += [("base", base)] if names else []
    params = {"method": "mergekit", "mergekit": renamed(config, roles.__getitem__)}
    return Asked(params, names[0] if names else str(base), tuple(others))


def check_config(config: Config, materials: Sequence[Material]) -> None:
    """Refuse what mergekit would stumble over once it works: unknown methods, parameters that are missing, layers."""
    _check.needs("mergekit", "merge", "a configuration of mergekit")
    for key in config:
        if key not in KEYS:
            raise BadParams(f"a configuration of mergekit has no {key!r}", fix=f"it has {', '.join(KEYS)}")
    name = config.get("merge_method")
    method = METHODS.get(str(name))
    if method is None:
        raise BadParams(f"mergekit has no method {name!r}", fix=f"it has {', '.join(METHODS)}")
    given = [key for key in OUTPUTS if config.get(key)]
    if len(given) != 1:
        said = " and ".join(given) or "neither models nor slices nor modules"
        raise BadParams(f"the configuration has {said}", fix="say what to merge by one of models, slices and modules")
    held = by_role(materials)
    for role in names_of(config):
        if role not in held:
            raise BadParams(f"the configuration names {role}, which is no input", fix=f"there are {', '.join(held)}")
    if method.base and config.get("base_model") is None:
        raise BadParams(f"{name} needs a base_model", fix="write the version that the models were tuned from")
    for place, (sources, scopes) in enumerate(_groups(config), start=1):
        _check_group(str(name), method, config, sources, scopes, held, place)
    _check_models(config, list(held.values()))


def by_role(materials: Sequence[Material]) -> dict[str, Material]:
    """The inputs by the names that a recorded configuration has for them."""
    others = [one for one in materials if one.role == "others"]
    named = {f"others[{place}]": one for place, one in enumerate(others)}
    return {one.role: one for one in materials if one.role != "others"} | named


def run_config(job: Job, config: Config, report: Report) -> Facts:
    """Let mergekit merge. Its draws are seeded; what it writes does not depend on where the models lie."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from pydantic import create_model

    report(Progress(0, 1, str(config["merge_method"])))
    others = {f"others[{place}]": path for place, path in enumerate(job.paths("others"))}
    paths = {one.role: one.path for one in job.inputs if one.role != "others"} | others
    with tempfile.TemporaryDirectory() as folder:
        # It sorts by path and by hashes of paths, so these are the same wherever the job runs.
        for place, (role, path) in enumerate(paths.items()):
            (Path(folder) / f"{place}").symlink_to(path)
            paths[role] = Path(f"{place}")
        # A plain path would be searched for `@` and `+`.
        located = renamed(config, lambda role: {"model": {"path": str(paths[role])}})
        ordered: Any = create_model("Ordered", __base__=MergeConfiguration)
        ordered.referenced_models = _in_order
        options = MergeOptions(random_seed=job.seed, write_model_card=False, quiet=True)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        with contextlib.chdir(folder):
            run_merge(ordered.model_validate(located), str(job.output), options)
    report(Progress(1, 1, str(config["merge_method"])))
    with ModelFolder(job.output) as merged:
        return {"method": config["merge_method"], "tensors": len(merged.slots)}


def _in_order(config: Any) -> list[Any]:
    """The models in the order in which they are named; mergekit's own comes from a set."""
    found = [config.base_model] if config.base_model else []
    modules = [*(config.modules or {}).values(), config]
    for one in modules:
        found += [given.model for given in one.models or ()]
        found += [source.model for slice_ in one.slices or () for source in slice_.sources]
    return list(dict.fromkeys(found))


def _groups(config: Config) -> Iterator[tuple[list[dict[str, Any]], list[Config]]]:
    """What is merged with each other, and where its shared parameters may stand."""
    for part in (config.get("modules") or {"": config}).values():
        above = [part, config] if part is not config else [config]
        if part.get("models"):
            yield part["models"], above
        for slice_ in part.get("slices") or ():
            yield slice_["sources"], [slice_, *above]


def _check_group(
    name: str,
    method: Method,
    config: Config,
    sources: Sequence[Config],
    scopes: Sequence[Config],
    held: Mapping[str, Material],
    place: int,
) -> None:
    base = scopes[0].get("base_model", config.get("base_model"))
    models = [source["model"] for source in sources]
    count = len({*models, *([base] if method.base else [])})
    if count < method.least or (method.most is not None and count > method.most):
        most = "or more" if method.most is None else f"to {method.most}"
        wanted = str(method.least) if method.least == method.most else f"{method.least} {most}"
        raise BadParams(f"{name} merges {wanted} models, not {count}", fix="name as many, the base_model included")
    for parameter in method.shared:
        if not any(parameter in (scope.get("parameters") or {}) for scope in scopes):
            raise BadParams(f"{name} needs {parameter}", fix=f"set {parameter} under parameters")
    for source in sources:
        for parameter in method.own:
            inherited = any(parameter in (scope.get("parameters") or {}) for scope in (source, *scopes))
            if not inherited and (source["model"] != base or not method.base):
                told = held[source["model"]].name
                raise BadParams(f"{name} needs a {parameter} for {told}", fix=f"set {parameter} under its parameters")
    if "sources" not in scopes[0]:
        return
    lengths = set()
    for source in sources:
        stood, span = held[source["model"]], source.get("layer_range")
        if not isinstance(span, list) or len(span) != 2 or not all(isinstance(one, int) for one in span):
            raise BadParams(f"slice {place} has a source without layer_range", fix="write layer_range: [0, 12]")
        layers = stood.config.get("num_hidden_layers", stood.config.get("n_layer"))
        if not 0 <= span[0] < span[1] or (isinstance(layers, int) and span[1] > layers):
            raise BadParams(f"slice {place} takes layers {span} of {stood.name}", fix=f"it has {layers} layers")
        lengths.add(span[1] - span[0])
    if len(lengths) > 1:
        raise BadParams(f"slice {place} merges unequal numbers of layers", fix="give its sources ranges of one length")


def _check_models(config: Config, materials: Sequence[Material]) -> None:
    first = materials[0]
    for one in materials:
        _check.complete_model(one, "merged")
    for other in materials[1:]:
        here, there = first.config.get("architectures"), other.config.get("architectures")
        if here != there:
            raise Refused(f"{first.name} is {here}, {other.name} is {there}", fix="merge models of one architecture")
        if config.get("tokenizer") is None and config.get("tokenizer_source") is None:
            _check.same_vocabulary(first, other, fix="merge models that share one tokenizer, or set tokenizer_source")
            if config.get("models"):
                fix = "merge models whose tensors have the same names and shapes"
                _check.same_tensors(first, other, fix=fix)
