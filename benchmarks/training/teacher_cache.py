"""What a teacher's cache costs and what it is worth: bytes, steps, reading, bias and variance.

The teacher is a language model of pairs of tokens with GPT-2's vocabulary, counted on a text, and sharpened
to the mean entropy that a model of perplexity 27 has if it is calibrated (``--entropy 0`` leaves it as it
is). Its cache is of other rows of the text, in the default format (top-16 tokens and 8 tail samples).
Measured: how many bytes a token takes; a training step that reads it, against a step on labels alone; how
fast batches are read, against the same content in a data set of the ``datasets`` library (as lists, its
default, and in its NumPy format); and of gradients of forward KL by the student's logits, whether the mean
over many draws is right, and their variance against as many plain draws as take the same bytes. Ends with 1
where a bound is missed.

    python benchmarks/training/teacher_cache.py \\
        $STLM_KD_DATA/lm/wikitext-2/train.txt.gz $STLM_KD_DATA/tokenizers/gpt2
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import datasets
import numpy as np
import torch
from scipy.sparse import coo_matrix
from transformers import LlamaConfig, LlamaForCausalLM

from stlm_kd.data.batches import PackedRows, numbered_batch
from stlm_kd.data.corpus import pack_sources, prepare
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.losses.sampled import TopKTail
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.models.presets import PRESETS
from stlm_kd.teachers.cache.format import Layout
from stlm_kd.teachers.cache.reader import Found, TeacherCache, distribution
from stlm_kd.teachers.cache.sampling import head_and_tail
from stlm_kd.teachers.cache.writer import Work, complete, write
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.teachers.protocol import Teacher, TeacherOutput
from stlm_kd.teachers.targets import Logits

MOST_BYTES, MOST_STEP, LEAST_READING = 88, 1.15, 10
MOST_BIAS = 1.05
"""Of the squared error of the mean over the draws, relative to what chance alone gives."""
ID_BYTES = 2
"""Of a plain draw, which needs no more than its id."""


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(options.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare([Source(path=options.text)], tokenizer, Path(folder) / "tokens")
        (part,) = pack_sources(prepared, options.context)
        vocabulary = part.store.vocab_size
        layout = Layout(vocabulary, 16, 8)
        others = part.batch(range(options.rows, len(part)))
        teacher = Pairs(others.input_ids[others.attention_mask].numpy(), vocabulary)
        if options.entropy:
            teacher = sharpened(teacher, part.batch([0]), options.entropy)
        cache = written(Path(folder) / "cache", part, layout, teacher, options.rows)
        met = [
            bytes_of(cache),
            reading(cache, part, Path(folder) / "datasets", options),
            steps(cache, part, vocabulary, options),
            gradients(teacher, part, layout, options),
        ]
    if not all(met):
        raise SystemExit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="a text file or folder")
    parser.add_argument("tokenizer", help="a tokenizer's folder")
    parser.add_argument("--context", type=int, default=256, help="positions of a row (default: 256)")
    parser.add_argument("--rows", type=int, default=16, help="rows that are cached (default: 16)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a batch (default: 4)")
    parser.add_argument("--entropy", type=float, default=3.3, help="of the teacher, in nats (default: 3.3)")
    parser.add_argument("--student", default="stlm-47m", help="a Llama's preset (default: stlm-47m)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (default: 5)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens whose gradients are drawn")
    parser.add_argument("--draws", type=int, default=24, help="draws of each token's gradient")
    return parser.parse_args()


class Pairs:
    """Says of each token what followed it elsewhere in a text, mixed with what is frequent in it.

    Args:
        tokens: The text.
        vocabulary: Its ids are below it.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        ones = np.ones(len(tokens) - 1, np.float32)
        pairs = (tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64))
        self.counts = coo_matrix((ones, pairs), shape=(vocabulary, vocabulary)).tocsr()
        frequent = np.bincount(tokens, minlength=vocabulary).astype(np.float32) + 0.1
        self.frequent = torch.from_numpy(frequent / frequent.sum())
        self.sharpness = 1.0

    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        """See ``Teacher``."""
        followed = torch.from_numpy(self.counts[batch.input_ids.flatten().numpy()].toarray())
        seen = followed.sum(-1, keepdim=True)
        trust = seen / (seen + 1)
        probs = trust * followed / seen.clamp(min=1) + (1 - trust) * self.frequent
        probs = 0.9 * probs + 0.1 * self.frequent
        logits = self.sharpness * probs.log().view(*batch.input_ids.shape, -1)
        return TeacherOutput(Logits(logits), ModelOutputs())


def sharpened(teacher: Pairs, batch: AnyBatch, entropy: float) -> Pairs:
    """The same teacher with this mean entropy on a batch, by bisection of its exponent."""
    said = teacher(batch, OutputSpec(head_input=True)).distribution
    assert isinstance(said, Logits)
    low, high = 1.0, 8.0
    for _ in range(12):
        teacher.sharpness = (low + high) / 2
        probs = (teacher.sharpness * said.values).softmax(-1)
        found = float(torch.special.entr(probs).sum(-1).mean())
        low, high = (teacher.sharpness, high) if found > entropy else (low, teacher.sharpness)
    return teacher


def written(folder: Path, part: PackedRows, layout: Layout, teacher: Teacher, rows: int) -> TeacherCache:
    def batch(numbers: Sequence[int], variants: Sequence[int]) -> AnyBatch:
        return numbered_batch([part], numbers, variants, None)

    work = Work(layout, rows, 1, items_per_shard=16, seed=1, micro_batch=1, batch=batch)
    folder.mkdir()
    begin = time.perf_counter()
    write(folder, work, teacher, range(work.num_shards), done=lambda tokens: None)
    complete(folder, work, made_of={}, source={}, flops=None)
    cache = TeacherCache.open(folder)
    taken = time.perf_counter() - begin
    print(
        f"written: {cache.manifest.tokens:,} tokens at {cache.manifest.tokens / taken:,.0f} tokens/s; the "
        f"head covers {cache.manifest.covered:.2f}, mean entropy {cache.manifest.entropy:.2f} nats"
    )
    return cache


def bytes_of(cache: TeacherCache) -> bool:
    files = sum(path.stat().st_size for path in cache.folder.iterdir())
    each = files / cache.manifest.tokens
    print(f"bytes a token, index and headers included: {each:.1f} (at most {MOST_BYTES})")
    return each <= MOST_BYTES


def reading(cache: TeacherCache, part: PackedRows, folder: Path, options: argparse.Namespace) -> bool:
    """Batches in order, as targets of a loss on our side, as arrays on the library's."""
    batches = [
        part.batch(range(begin, begin + options.batch))
        for begin in range(0, cache.manifest.rows, options.batch)
    ]
    library = library_rows(cache, folder)
    numpy_rows = library.with_format("numpy")

    def ours() -> None:
        for batch in batches:
            distribution(cache.find(batch), cache.layout)

    def as_lists() -> None:
        for rows in library.iter(batch_size=options.batch):
            _ = [np.concatenate([np.asarray(row) for row in rows[name]]) for name in cache.layout.columns()]

    def as_numpy() -> None:
        for rows in numpy_rows.iter(batch_size=options.batch):
            _ = [np.concatenate([*map(np.stack, rows[name])]) for name in cache.layout.columns()]

    sides = {"ours": ours, "datasets, lists": as_lists, "datasets, NumPy": as_numpy}
    taken = {name: [seconds(run) for _ in range(options.turns)] for name, run in sides.items()}
    base = min(taken["ours"])
    for name, found in taken.items():
        speed = cache.manifest.tokens / min(found) / 1e6
        print(f"reading, {name:<16} {speed:6.2f} M tokens/s   ours / this {min(found) / base:6.1f}")
    ratio = min(taken["datasets, lists"]) / base
    print(f"reading: {ratio:.0f} times the library's lists (at least {LEAST_READING})")
    return ratio >= LEAST_READING


def library_rows(cache: TeacherCache, folder: Path) -> datasets.Dataset:
    """The same content, a row of the text in each row."""
    items = cache.items(range(cache.manifest.items))
    bounds = np.concatenate([[0], np.cumsum(items.lengths)])
    columns = {
        name: [
            column[begin:end].astype(np.float32 if column.dtype.kind == "f" else np.int32).tolist()
            for begin, end in pairwise(bounds.tolist())
        ]
        for name, column in items.columns.items()
    }
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


def steps(cache: TeacherCache, part: PackedRows, vocabulary: int, options: argparse.Namespace) -> bool:
    """A step on labels alone, and one on labels and the cached teacher, of the same student and batches."""
    student = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **PRESETS[options.student]))
    needs = OutputSpec(head_input=True)
    labels = Term("labels", "labels")
    taught = Term("forward_kl", "forward_kl", teacher="t", weight=0.5)
    alone = DistillationStep(student, [labels])
    both = DistillationStep(student, [labels, taught], teachers={"t": CachedTeacher(cache, needs)})
    batches = [part.batch(rows) for rows in cached_rows(cache, options)]

    def turn(step: DistillationStep, index: int) -> Callable[[], None]:
        def run() -> None:
            batch = batches[index % len(batches)]
            counts: dict[str, float] = {name: float(count) for name, count in step.count(batch).items()}
            step(batch, counts).loss.backward()
            student.zero_grad()

        return run

    for step in (alone, both):
        turn(step, 0)()
    ratios = [processor(turn(both, index)) / processor(turn(alone, index)) for index in range(options.turns)]
    found = statistics.median(ratios)
    print(
        f"cached step / step on labels alone, processor time: {found:.3f}, median of {options.turns} turns "
        f"({min(ratios):.3f} to {max(ratios):.3f}); at most {MOST_STEP}"
    )
    return found <= MOST_STEP


def cached_rows(cache: TeacherCache, options: argparse.Namespace) -> list[np.ndarray]:
    order = np.random.default_rng(0).permutation(cache.manifest.rows)
    return [order[begin : begin + options.batch] for begin in range(0, len(order), options.batch)]


@torch.no_grad()
def gradients(teacher: Teacher, part: PackedRows, layout: Layout, options: argparse.Namespace) -> bool:
    """Of forward KL by the student's logits: q less p, so that the error is that of p alone."""
    batch = part.batch([0])
    said = teacher(batch, OutputSpec(head_input=True)).distribution
    assert isinstance(said, Logits)
    logits_nV = said.rows(batch.attention_mask).logits(slice(0, options.tokens), layout.vocabulary)
    p_nV = logits_nV.double().softmax(-1)
    label_n = torch.full((len(logits_nV),), -1)
    sums_nV, squares_n = torch.zeros_like(p_nV), torch.zeros(len(p_nV), dtype=torch.float64)
    for _ in range(options.draws):
        numbers = torch.rand(len(logits_nV), layout.draws, dtype=torch.float64)
        made = head_and_tail(logits_nV, label_n, numbers, head=layout.head, temperature=1.0)
        columns = {name: made[name].numpy().astype(dtype) for name, (dtype, _) in layout.columns().items()}
        target = distribution(Found(torch.ones(len(label_n), dtype=torch.bool), columns), layout)
        assert isinstance(target, TopKTail)
        error_nV = torch.zeros_like(p_nV).scatter_add_(-1, target.ids, target.masses().double()) - p_nV
        sums_nV += error_nV
        squares_n += error_nV.square().sum(-1)
    draws = options.draws
    of_mean = float((sums_nV / draws).square().sum())
    variance = float(squares_n.sum() / draws - of_mean) * draws / (draws - 1)
    bias = of_mean / (variance / draws)
    plain = int(layout.token_bytes / ID_BYTES)
    of_plain = float(((p_nV * (1 - p_nV)).sum(-1) / plain).sum())
    print(
        f"gradient: squared error of the mean over {draws} draws is {bias:.3f} of what chance gives (at "
        f"most {MOST_BIAS}); variance {variance / of_plain:.3f} of that of {plain} plain draws (below 1)"
    )
    return bias <= MOST_BIAS and variance < of_plain


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def processor(run: Callable[[], None]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
