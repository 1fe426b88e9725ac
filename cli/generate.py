"""``stlm-kd generate``: continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, say
from stlm_kd.cli.options import AsJson, TrustRemoteCode


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
