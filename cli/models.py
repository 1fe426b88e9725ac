"""Models: ``stlm-kd generate``, ``export`` for llama.cpp or ONNX Runtime, ``push`` to the Hub."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.options import AsJson, TrustRemoteCode

Private = Annotated[bool, typer.Option("--private", help="A repository that is made is private.")]
Tag = Annotated[str | None, typer.Option("--tag", metavar="NAME", help="A new tag for the commit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, and push nothing.")]


class Target(str, Enum):
    """Export format."""

    gguf = "gguf"
    onnx = "onnx"


class Dtype(str, Enum):
    """Dtype of exported weights."""

    f32 = "f32"
    f16 = "f16"


def generate(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, model folder or Hub id.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum new tokens.")] = 50,
    temperature: Annotated[float, typer.Option(min=0, help="0 for greedy decoding.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt."""
    import stlm_kd

    text = stlm_kd.generate(
        model,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json({"model": model, "prompt": prompt, "text": text})
    else:
        say(text)


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
        say(
            f"{report.path}: {report.num_bytes / 1e6:.1f} MB, {report.dtype}; logits differ by at most "
            f"{report.difference:.1e} of the largest (tolerance {report.tolerance:.0e})"
        )


def push(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder or model folder.")],
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://USER/NAME.")],
    private: Private = False,
    tag: Tag = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Push a model to the Hub: safetensors, configuration, tokenizer and card."""
    import stlm_kd

    found = stlm_kd.push_model(model, address, private=private, tag=tag, dry_run=dry_run)
    if as_json:
        print_json(asdict(found))
        return
    print_rows(("FILE", "BYTES"), [(name, f"{size:,}") for name, size in found.files.items()])
    say(f"\n{found.address}" + (": nothing was pushed (--dry-run)" if dry_run else ""))
