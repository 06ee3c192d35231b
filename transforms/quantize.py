"""Store the linear layers in 8 or 4 bits: compressed-tensors, which transformers and vLLM load, or GGUF."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _activation_aware, _check, _gguf
from mreg.transforms._activations import check_samples, read_samples
from mreg.transforms._architecture import Linears, linear_layers
from mreg.transforms._compressed import Format, store, told
from mreg.transforms._folder import ModelFolder, Slot, change_config, copy_rest
from mreg.transforms._linears import divides, known_linears
from pydantic import Field, model_validator

if TYPE_CHECKING:
    import torch
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

Method = Literal["int8", "int4", "gptq", "awq", "smoothquant", "fp8", "dynamic-int8", "gguf"]

NEAREST = {"group_size": 64, "symmetric": True}
SAMPLES = {"num_calibration_samples": 128, "max_seq_length": 512}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "int8": NEAREST,
    "int4": NEAREST,
    "gptq": {"bits": 4, **NEAREST, "damp_percent": 0.01, "act_order": True, **SAMPLES},
    "awq": {"bits": 4, "group_size": 64, "symmetric": False, "n_grid": 20, **SAMPLES},
    "smoothquant": {"smoothing_strength": 0.5, **SAMPLES},
    "fp8": {},
    "dynamic-int8": {},
    "gguf": {"gguf_type": "Q8_0"},
}
"""What each method may be told besides `ignore`, with its defaults."""

CALIBRATED = tuple(method for method, options in OPTIONS.items() if SAMPLES.items() <= options.items())
COUNTED = {"int8": 8, "int4": 4, "smoothquant": 8, "fp8": 8, "dynamic-int8": 8}


class QuantizeParams(Params):
    """The options of `quantize`. What a method does not read is None; naming it is an error."""

    method: Method = "int8"
    """How: int8, int4, fp8, dynamic-int8 and gguf round to the nearest; gptq, awq and smoothquant need data. The inputs
    of a layer are rounded too by smoothquant, fp8 and dynamic-int8."""

    bits: Literal[4, 8] | None = None
    """Bits a weight, for gptq and awq: 4 unless said; the other methods have theirs in their names."""

    group_size: int | None = Field(None, ge=-1)
    """How many weights of a row share one scale, unless said 64; -1 for the whole row. It must divide the columns of
    every matrix. For int8, int4, gptq and awq."""

    symmetric: bool | None = None
    """Centre the range of a group on zero; otherwise it has a zero point of its own. Unless said, awq has zero points
    and int8, int4 and gptq do not."""

    damp_percent: float | None = Field(None, gt=0, le=1)
    """For gptq: what is added to the diagonal of the Hessian, as a fraction of its mean; 0.01 unless said."""

    act_order: bool | None = None
    """For gptq, unless said: quantize first the columns through which most goes."""

    n_grid: int | None = Field(None, ge=3, le=100)
    """For awq: how many scales are tried for each norm, 20 unless said."""

    smoothing_strength: float | None = Field(None, ge=0, le=1)
    """For smoothquant: how much of the outliers of the inputs goes over to the weights (alpha), 0.5 unless said."""

    num_calibration_samples: int | None = Field(None, ge=1)
    """For gptq, awq and smoothquant: how many rows of the data are measured on, the first; 128 unless said."""

    max_seq_length: int | None = Field(None, ge=2)
    """Tokens at which such a row is cut, 512 unless said."""

    gguf_type: str | None = None
    """For gguf, the type of the matrices: F32, F16, BF16, Q8_0 (unless said), Q4_0, Q4_1, Q5_0 or Q5_1. Vectors get
    F32, and beside Q4 and Q5 embedding and output Q8_0."""

    ignore: tuple[str, ...] = ("lm_head",)
    """Linear layers to leave alone: module names, or `re:` and a regular expression."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        # The event records what was used, so defaults that hang on the method are filled in here.
        method = given.get("method", "int8")
        said = {name: value for name, value in given.items() if value is not None}
        if method not in OPTIONS:
            return said
        if "bits" in said and method in COUNTED and said["bits"] != COUNTED[method]:
            raise ValueError(f"{method} has {COUNTED[method]} bits, not {said['bits']}; gptq and awq have 4 or 8")
        for name in said.keys() & cls.model_fields.keys() - {"method", "ignore"}:
            if name not in OPTIONS[method]:
                has = ", ".join(f"--{option.replace('_', '-')}" for option in OPTIONS[method]) or "none but --ignore"
                raise ValueError(f"{method} has no option --{name.replace('_', '-')}; its options are {has}")
        return {**OPTIONS[method], **said}

    @property
    def stored(self) -> Format:
        """How the weights are stored, for all methods but gguf."""
        if self.method == "fp8":
            return Format("float-quantized")
        if self.method in ("smoothquant", "dynamic-int8"):
            return Format("int-quantized")
        assert self.group_size is not None, "every other method has one"
        return Format("pack-quantized", self.bits or COUNTED[self.method], self.group_size, bool(self.symmetric))


def check(params: QuantizeParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse an adapter, a quantized model, groups that do not fit, data that is missing or of no use."""
    (source,) = materials
    _check.complete_model(source, "quantized")
    if params.group_size == 0:
        raise BadParams("a group of 0 weights has no scale", fix="use -1 for one scale a row")
    calibrated = params.method in CALIBRATED
    if rows and not calibrated:
        raise BadParams(f"{params.method} reads no data", fix=f"leave --data out, or use {', '.join(CALIBRATED)}")
    if calibrated and not rows:
        raise BadParams(f"{params.method} needs data to calibrate on", fix="name a file or a dataset with --data")
    if params.method == "gguf":
        assert params.gguf_type is not None, "a default of the method"
        _gguf.check(source, params.gguf_type, params.ignore)
        _check.needs("gguf", "gguf", "GGUF")
        return
    divides(known_linears(source, params.ignore), params.group_size or -1)
    if calibrated:
        assert params.num_calibration_samples is not None, "a default of the method"
        _check.causal_model(source)
        if params.method != "gptq":
            _activation_aware.check_smoothed(source, params.method)
        check_samples(source, rows, params.num_calibration_samples)
        _check.needs("llmcompressor", "compress", params.method)


def run(job: Job, params: QuantizeParams, report: Report) -> Facts:
    """Choose scales, round, and store weights and scales in the dtype of the weight; other tensors stay as they are.

    Round-to-nearest, `q = round(w / scale)`, is done tensor by tensor. GPTQ, AWQ and SmoothQuant are llmcompressor's;
    the last two also change the norms, into which the scales of the inputs are folded. dynamic-int8 is written as
    compressed-tensors, which plain transformers loads, and not by torchao, whose files differ from run to run.
    """
    with ModelFolder(job.path("source")) as source:
        left_out = copy_rest(source.path, job.output)
        before = sum(slot.size for slot in source.slots.values())
        more: Facts = {}
        if params.method == "gguf":
            assert params.gguf_type is not None, "a default of the method"
            path = job.output / f"model-{params.gguf_type}.gguf"
            written = _gguf.write(source, path, params.gguf_type, params.ignore, report)
            errors, after = written.errors, written.size
        else:
            linears = linear_layers(source, params.ignore)
            divides({name: source.slots[name].shape for name in linears.weights}, params.group_size or -1)
            if params.method in CALIBRATED:
                errors, more = _calibrate(job, params, source, linears, report)
            else:
                nearest = params.stored.nearest
                errors = store(
                    source,
                    job.output,
                    params.stored,
                    linears.weights,
                    lambda slot: nearest(source.tensor(slot.name)),
                    report,
                )
            change_config(source.path, job.output, quantization_config=params.stored.described(linears))
            with ModelFolder(job.output) as output:
                after = sum(slot.size for slot in output.slots.values())
    return {
        "matrices": len(errors),
        "bytes_before": before,
        "bytes_after": after,
        **told(errors, "relative"),
        **more,
        "left_out": left_out,
    }


def _calibrate(
    job: Job, params: QuantizeParams, source: ModelFolder, linears: Linears, report: Report
) -> tuple[dict[str, float], Facts]:
    assert params.num_calibration_samples is not None, "a default of the method"
    assert params.max_seq_length is not None, "a default of the method"
    config = source.config
    samples = read_samples(job, params.num_calibration_samples, params.max_seq_length, config)
    names = _activation_aware.Settings.__dataclass_fields__
    settings = _activation_aware.Settings(**params.model_dump(include=set(names), exclude_none=True))
    dtype = source.tensor(min(linears.weights)).dtype
    found = _activation_aware.calibrate(job, config, linears, params.stored, dtype, samples, report, settings)

    def exact(name: str) -> torch.Tensor:
        # GPTQ leaves rounded weights behind, the others weights that are scaled and not yet rounded.
        return source.tensor(name) if params.method == "gptq" else found.tensors[name]

    def other(slot: Slot) -> torch.Tensor:
        import torch

        tensor = source.tensor(slot.name)
        scaled = found.tensors.get(slot.name)
        return tensor if scaled is None or torch.equal(scaled, tensor.float()) else scaled.to(tensor.dtype)

    outputs = _activation_aware.output_errors(found, linears, exact, samples, report)
    errors = store(
        source,
        job.output,
        params.stored,
        linears.weights,
        lambda slot: found.state(slot.name, source.tensor(slot.name).dtype),
        report,
        other=other,
        exact=exact,
    )
    facts: Facts = {
        **told(outputs, "output"),
        "calibration_samples": len(samples),
        "calibration_tokens": sum(map(len, samples)),
    }
    if found.unsolved:
        facts["rounded_to_nearest"] = list(found.unsolved)
    return errors, facts


def predict(params: QuantizeParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """Round-to-nearest as it is stored by compressed-tensors; what data decided on cannot be told."""
    from mreg.transforms._predict_quantize import predictions

    return () if params.method in (*CALIBRATED, "gguf") else predictions(made)


TRANSFORM = Transform(
    params=QuantizeParams,
    inputs=(Input("source", "the model to quantize"),),
    datasets="optional",
    determinism="same-machine",
    promise=lambda params: "same-machine" if params.method in CALIBRATED else "exact",
    version=1,
    run=run,
    check=check,
    predict=predict,
)
