"""Export a model to a format of another program, and check what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path

from stlm_kd.artifacts.atomic import storage_as_error, writing, written_whole
from stlm_kd.artifacts.run_dir import model_of
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError, UsageError, did_you_mean, listed
from stlm_kd.models.heads.classifiers import kind_of, load_classifier
from stlm_kd.models.load import load_config, load_language_model
from stlm_kd.publishing.export.gguf import check_gguf, write_gguf
from stlm_kd.publishing.export.job import ExportJob
from stlm_kd.publishing.export.onnx import check_onnx, write_onnx


@dataclass(frozen=True, slots=True)
class Format:
    """An export format.

    Attributes:
        packages: Required packages, all in the extra ``export``.
        tolerances: Largest accepted ``ExportJob.largest_difference`` by dtype of weights.
        write: Writes a file or folder.
        check: Reads it by another program and returns the largest difference of logits.
    """

    packages: tuple[str, ...]
    tolerances: Mapping[str, float]
    write: Callable[[Path, ExportJob], None]
    check: Callable[[Path, ExportJob], float]


FORMATS = {
    "gguf": Format(("gguf",), {"f32": 1e-4, "f16": 1e-2}, write_gguf, check_gguf),
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), {"f32": 1e-4}, write_onnx, check_onnx),
}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: the file (gguf) or folder (onnx), its size, and how it was checked.

    ``difference`` is as ``ExportJob.largest_difference``, and at most ``tolerance``.
    """

    model: str
    format: str
    dtype: str
    path: Path
    num_bytes: int
    tolerance: float
    difference: float


def export(
    model: str | PathLike[str],
    *,
    to: str,
    output: str | PathLike[str],
    dtype: str = "f32",
    trust_remote_code: bool = False,
) -> ExportReport:
    """Write a model in another format, read it back, and compare logits and token ids.

    Args:
        model: A run (its first student), a model folder or a Hub id.
        to: A name in ``FORMATS``.
        output: The new file (gguf) or folder (onnx).
        dtype: Dtype of the weights, one of the format's ``tolerances``.
        trust_remote_code: Whether to run code shipped with the model.

    Raises:
        UsageError: Unknown format or dtype, or ``output`` exists.
        MissingResourceError: A package is missing, the model is missing, or ``output`` cannot be written.
        ModelError: The format has no equal model or tokenizer, or what was written differs from the model;
            nothing is left of it.
    """
    if to not in FORMATS:
        raise UsageError(f"--to: no format {to!r}{did_you_mean(to, FORMATS)}")
    format, name, output = FORMATS[to], fspath(model), Path(output)
    if dtype not in format.tolerances:
        raise UsageError(f"--dtype: {dtype!r} found; {to} is written as {listed(format.tolerances)}")
    if output.exists():
        raise UsageError(f"--output {output}: exists already; choose another name, or remove it first")
    missing = [package for package in format.packages if find_spec(package) is None]
    if missing:
        raise MissingResourceError(
            f"--to {to}: {listed(missing)} not installed; pip install 'stlm-kd[export]'"
        )
    job = _load(model_of(name), dtype, trust_remote_code=trust_remote_code)
    with writing(output, "--output"), storage_as_error(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(output.resolve()) as unfinished:
            format.write(unfinished, job)
            difference = format.check(unfinished, job)
            tolerance = format.tolerances[dtype]
            if not difference <= tolerance:
                raise ModelError(
                    f"{job.name}: the logits of its {to} export differ from the model's by {difference:.1e} "
                    f"of the largest (tolerance {tolerance:.0e}); nothing is written; try another --dtype "
                    "or format"
                )
    files = [output] if output.is_file() else [file for file in output.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return ExportReport(name, to, dtype, output, size, tolerance, difference)


def _load(name: str, dtype: str, *, trust_remote_code: bool) -> ExportJob:
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    if kind_of(load_config(name, trust_remote_code=trust_remote_code)) is None:
        model = load_language_model(name, None, trust_remote_code=trust_remote_code)
    else:
        model = load_classifier(name, None, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
    return ExportJob(name, model, tokenizer, dtype)
