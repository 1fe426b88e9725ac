"""``stlm-kd push``: push a model to the Hub."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows
from stlm_kd.cli.options import AsJson

Private = Annotated[bool, typer.Option("--private", help="A repository that is made is private.")]
Tag = Annotated[str | None, typer.Option("--tag", metavar="NAME", help="A new tag for the commit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, and push nothing.")]


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
    typer.echo(f"\n{found.address}" + (": nothing was pushed (--dry-run)" if dry_run else ""))
