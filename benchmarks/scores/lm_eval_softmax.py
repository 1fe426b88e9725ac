"""lm-eval's log-likelihoods with float32 log-softmax and sums against lm-eval's own in bf16, in one run.

Both sides score the same minimal pairs with the same model, whose body runs in bf16 under autocast, in the
same batches. ``HFLM`` is lm-eval's model class with its defaults: log-softmax of all positions in bf16. The
other side is ``DocumentLM``: logits of the scored positions alone, raised to float32. A third side is
``HFLM`` with ``softmax_dtype=float32``. The sides take turns; the median ratio of the turns counts, by
processor time too, which hardly feels the load of the machine.

    python benchmarks/scores/lm_eval_softmax.py --threads 1
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM

from stlm_kd.data.synthetic import PHENOMENA, minimal_pairs, sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.eval.harness.adapter import DocumentLM


def main() -> None:
    """Print the ratios of each turn's times, and their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192, help="of the model's head")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer = train_tokenizer(sample_documents("train", size=100_000), size=600)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=arguments.width,
            intermediate_size=4 * arguments.width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
        )
    ).eval()
    pairs = [pair for name in PHENOMENA for pair in minimal_pairs(arguments.pairs, phenomena=(name,))]
    requests = [SimpleNamespace(args=("", text)) for pair in pairs for text in (pair.good, pair.bad)]
    half: dict[str, Any] = {
        "pretrained": model,
        "backend": "causal",
        "tokenizer": tokenizer,
        "batch_size": 16,
        "max_length": 256,
        "mixed_precision_dtype": torch.bfloat16,
    }
    sides = {
        "bf16": HFLM(**half),
        "float32": DocumentLM(model, tokenizer, batch_size=16, precision="bf16"),
        "lm-eval's float32": HFLM(**half, softmax_dtype=torch.float32),
    }
    found = {name: _scored(side, requests) for name, side in sides.items()}
    apart = max(abs(a - b) for a, b in zip(*(found[name] for name in list(sides)[1:]), strict=True))
    assert apart < 1e-2, apart
    times = [
        {name: _timed(partial(_scored, side, requests)) for name, side in sides.items()}
        for _ in range(arguments.turns)
    ]
    for name in list(sides)[1:]:
        for kind, what in enumerate(("time", "processor time")):
            ratios = [turn[name][kind] / turn["bf16"][kind] for turn in times]
            shown = " ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
            print(f"{name} / bf16, {what}: {statistics.median(ratios):.3f} ({shown})")


def _scored(side: Any, requests: list[Any]) -> list[float]:
    return [value for value, _ in side.loglikelihood(requests, disable_tqdm=True)]


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    begin, begin_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - begin_cpu


if __name__ == "__main__":
    main()
