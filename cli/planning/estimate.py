"""``stlm-kd estimate``: what a recipe will take."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import print_json, print_table, say
from stlm_kd.cli.invocation import begin_pins
from stlm_kd.errors import UsageError, one_line


def estimate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A file, folder, address, built-in name or run.")
    ],
    overrides: options.Overrides = None,
    gpus: Annotated[str, typer.Option(metavar="N,N", help="Numbers of devices.")] = "1,8,64",
    gpu: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="a100, h100, h200, 4090, t4, cpu (this machine's).")
    ] = "a100,h100,h200,4090,t4",
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of the training text, which is not read.")
    ] = None,
    efficiency: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Measured share of the devices' limits.")
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Estimate parameters, FLOPs, memory and time of one student of a recipe.

    Counted on models without weights: reads configurations and tokenizers, no weights and no text. For the
    folder of a run also: from which computation on its students were better than their controls.
    """
    import stlm_kd

    begin_pins()
    found = stlm_kd.estimate_recipe(
        recipe,
        overrides or (),
        gpus=_whole_numbers(gpus),
        gpu=[name for name in options.split(gpu) if name],
        tokens=tokens,
        efficiency=efficiency,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found.as_json())
        return
    for table in found.tables():
        print_table(table)
        say()


def _whole_numbers(text: str) -> list[int]:
    words = options.split(text)
    for word in words:
        if re.fullmatch("[0-9]{1,9}", word) is None:
            raise UsageError(
                f"--gpus: {one_line(word[:24])!r} found; "
                "expected whole numbers from 1 to 65,536, such as 1,8,64"
            )
    return [int(word) for word in words]
