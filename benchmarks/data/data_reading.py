"""How fast packed rows are read, side by side with the ``datasets`` library, and how full the rows are.

Both sides hold the same tokens on disk, in rows of the same length, and give int64 tensors of ids and labels.
Ours are batches of a training run: rows in random order, with document and position ids. The library's are
rows in the order in which they lie, its fastest: as lists, its default, made into tensors; and in its NumPy
format. The sides take turns, and the fastest turn of each counts.

    python benchmarks/data/data_reading.py \\
        $STLM_KD_DATA/lm/wikitext-2/train.txt.gz $STLM_KD_DATA/tokenizers/gpt2
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import datasets
import numpy as np
import torch

from stlm_kd.data.batches import BatchStream, PackedRows
from stlm_kd.data.corpus import pack_sources, prepare
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.tokenizers import load_tokenizer


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        prepared = prepare([Source(path=options.text)], tokenizer, Path(folder) / "stages")
        tokenised = time.perf_counter()
        (part,) = pack_sources(prepared, options.context)
        packed = time.perf_counter()
        store = part.store
        print(
            f"{options.text}: {store.num_bytes / 1e6:.1f} MB, {store.num_documents} documents, "
            f"{store.num_tokens:,} tokens; read and tokenised in {tokenised - begin:.1f} s, "
            f"packed in {1000 * (packed - tokenised):.1f} ms"
        )
        useful = part.num_tokens / (len(part) * part.context)
        print(
            f"useful positions: packed {useful:.4f}, padded to the context {padded(part):.4f} "
            f"(ratio {useful / padded(part):.2f}), target >= 0.99"
        )
        report(part, library_rows(part, Path(folder) / "datasets"), options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="a text file or folder")
    parser.add_argument("tokenizer", help="a tokenizer's folder")
    parser.add_argument("--context", type=int, default=512, help="positions of a row (default: 512)")
    parser.add_argument("--batch", type=int, default=32, help="rows of a batch (default: 32)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (default: 5)")
    return parser.parse_args()


def padded(part: PackedRows) -> float:
    """The useful fraction where each document, cut at the context, gets rows of its own."""
    lengths = np.diff(part.store.offsets)
    return float(lengths.sum() / (-(-lengths // part.context) * part.context).sum())


def library_rows(part: PackedRows, folder: Path) -> datasets.Dataset:
    """The same rows' ids and labels as a memory-mapped data set of lists, as tokenising with it gives."""
    batch = part.batch(range(len(part)))
    columns = {"input_ids": batch.input_ids.int().tolist(), "labels": batch.labels.int().tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


def report(part: PackedRows, library: datasets.Dataset, options: argparse.Namespace) -> None:
    stream = BatchStream([part], effective_batch=options.batch, micro_batch=options.batch, seed=0)
    numpy_rows = library.with_format("numpy")

    def ours() -> None:
        for index in range(stream.steps_per_epoch):
            stream.step(index)

    def as_lists() -> None:
        for rows in library.iter(batch_size=options.batch):
            _ = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])

    def as_numpy() -> None:
        for rows in numpy_rows.iter(batch_size=options.batch):
            _ = torch.from_numpy(rows["input_ids"]), torch.from_numpy(rows["labels"])

    sides = {"batches from the memory map": ours, "datasets, lists": as_lists, "datasets, NumPy": as_numpy}
    seconds = fastest(sides, options.turns)
    base = seconds["batches from the memory map"]
    for name, taken in seconds.items():
        speed = part.num_tokens / taken / 1e6
        print(f"{name:<28} {speed:8.1f} M tokens/s   ours / this {taken / base:6.2f}")
    print("target: at least 5 times the lists")


def fastest(sides: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Seconds of each side's fastest turn."""
    taken: dict[str, float] = {name: float("inf") for name in sides}
    for _ in range(turns):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            taken[name] = min(taken[name], time.perf_counter() - begin)
    return taken


if __name__ == "__main__":
    main()
