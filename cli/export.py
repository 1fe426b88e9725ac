"""``stlm-kd export``: write a model for llama.cpp or ONNX Runtime."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json
from stlm_kd.cli.options import AsJson, TrustRemoteCode


class Target(str, Enum):
    """Export format."""

    gguf = "gguf"
    onnx = "onnx"


class Dtype(str, Enum):
    """Dtype of exported weights."""

    f32 = "f32"
    f16 = "f16"


def export(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, model folder or Hub id.")],
    to: Annotated[Target, typer.Option(help="gguf: a file for llama.cpp; onnx: a folder for ONNX Runtime.")],
    output: Annotated[Path, typer.Option(help="The new file (gguf) or folder (onnx).")],
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights; f16 in gguf only.")] = Dtype.f32,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write a model for llama.cpp or ONNX Runtime, and compare its logits and token ids."""
    import stlm_kd

    report = stlm_kd.export(
        model, to=to.value, output=output, dtype=dtype.value, trust_remote_code=trust_remote_code
    )
    if as_json:
        print_json({**asdict(report), "path": str(report.path)})
    else:
        typer.echo(
            f"{report.path}: {report.num_bytes / 1e6:.1f} MB, {report.dtype}; logits differ by at most "
            f"{report.difference:.1e} of the largest (tolerance {report.tolerance:.0e})"
        )
