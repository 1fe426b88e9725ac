"""Large corpora: tokenised by several processes, packed into an index, started from; time and memory.

    python benchmarks/data/corpus.py tokenise read grow start simulate

- ``tokenise``: WikiText-2 repeated, with one process of one thread and with two, in turns; and the processor
  time of each, which does not depend on what else the machine does.
- ``read``: batches of random rows by the index on disk, and by chunks and rows in memory, in turns.
- ``grow``: the peak of the process's own memory (RssAnon) above that after the imports, while the rows of
  generated stores are packed: into an index, and in memory by the formula in ``tests/support``.
- ``start``: generated stores of ``--gigabytes`` of ids: from opening one to the first batch, with the look
  for held-out documents; the first time, in which every file is hashed, the second (targets: 5 s and 300 MiB
  for 10 GB), and eight processes at once. ``--record FILE`` appends the figures as JSON lines, which
  ``docs/images/draw_corpora.py`` draws.
- ``sample``: the generated sample by this version and by that in ``--against``, in turns, each in a process
  of its own: tokenised, packed, and 200 batches; not without ``--against``.
- ``simulate``: the index of 10^8 documents, whose store is computed; and of 10^9, counted and planned only.

Needs STLM_KD_DATA for the first two and the sample; writes at most a store and its index below ``--folder``,
and deletes them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.hashing import sealed
from stlm_kd.data.batch import IGNORED
from stlm_kd.data.batches import BatchStream, PackedRows
from stlm_kd.data.corpus import PreparedSource, pack_sources, prepare
from stlm_kd.data.overlap import found_in
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.data.text import store_builder
from stlm_kd.data.text.packing import plan
from stlm_kd.data.text.row_index import RowIndex, chunks_of
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.text.store_writer import StoreWriter
from stlm_kd.data.text.tokenising import Documents, Encoder
from stlm_kd.data.token_store import FORMAT_VERSION, Manifest, TokenStore
from stlm_kd.data.tokenizers import load_tokenizer
from tests.support.slow_packing import cut, pack

CONTEXT = 512
ENDS = (0, 1)
BEFORE_AT_MOST_GB = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"tokenise": tokenise, "read": read, "grow": grow, "start": start, "simulate": simulate}
    parser.add_argument("parts", nargs="*", choices=[*parts, "sample"], default=[*parts])
    parser.add_argument("--folder", type=Path, help="where the corpora are made (default: a temporary one)")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[4.0], help="in start (default: 4)")
    parser.add_argument("--record", type=Path, help="a file for the figures of start")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--against", type=Path, help="in sample: a folder with another version")
    options = parser.parse_args()
    parts["sample"] = sample
    torch.set_num_threads(1)
    for name in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            os.environ["STLM_KD_CACHE"] = f"{folder}/cache"
            print(f"\n{name}")
            parts[name](Path(folder), options)


def tokenise(folder: Path, options: argparse.Namespace) -> None:
    data = Path(os.environ["STLM_KD_DATA"])
    texts = [*documents(Source(path=str(data / "lm/wikitext-2/train.txt.gz")))] * 4
    tokenizer = load_tokenizer(str(data / "tokenizers/gpt2"))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    build_store(texts[:100], tokenizer, folder / "warm")

    used = {1: float("inf"), 2: float("inf")}

    def run(workers: int) -> None:
        before = processor_seconds()
        build_store(texts, tokenizer, folder / "store", workers=workers)
        used[workers] = min(used[workers], processor_seconds() - before)
        shutil.rmtree(folder / "store")

    one, two = fastest([lambda: run(1), lambda: run(2)], options.turns)
    print(f"{megabytes:.0f} MB: 1 process {megabytes / one:.2f} MB/s, 2 {megabytes / two:.2f} MB/s", end="")
    print(f", ratio {one / two:.2f} (target 1.8)")
    print(f"processor time: {used[1]:.1f} s, {used[2]:.1f} s; twice their ratio {2 * used[1] / used[2]:.2f}")


def processor_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def read(folder: Path, options: argparse.Namespace) -> None:
    data = Path(os.environ["STLM_KD_DATA"])
    source = Source(path=str(data / "lm/wikitext-2/train.txt.gz"))
    (prepared,) = prepare([source], load_tokenizer(str(data / "tokenizers/gpt2")), folder)
    (index,) = pack_sources([prepared], CONTEXT)
    memory = InMemory(prepared.store, CONTEXT)
    assert all(torch.equal(index.batch([row]).labels, memory.batch([row]).labels) for row in range(50))
    print(f"useful positions: {index.num_tokens / (len(index) * CONTEXT):.4f}")

    def run(part: PackedRows) -> None:
        stream = BatchStream([part], effective_batch=32, micro_batch=32, seed=0)
        for step in range(stream.steps_per_epoch):
            stream.step(step)

    ours, theirs = fastest([lambda: run(index), lambda: run(memory)], 4 * options.turns)
    print(f"rows/s: index {len(index) / ours:,.0f}, in memory {len(index) / theirs:,.0f}", end="")
    print(f", ratio {theirs / ours:.2f} (target 0.95)")


class InMemory(PackedRows):
    """Rows as they were before the index: arrays of chunks in the order of the text, and of rows."""

    def __init__(self, store: TokenStore, context: int) -> None:
        super().__init__(store, context)
        self._begins, self._lengths, goes_on = cut(store.offsets, context)
        self._labels_after = np.full(len(self._begins), IGNORED)
        self._labels_after[goes_on] = store.tokens.take((self._begins + self._lengths)[goes_on])
        self._rows = pack(self._lengths, context)

    def _segments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        first = self._rows.starts[rows]
        counts = self._rows.starts[rows + 1] - first
        ends = np.cumsum(counts + 1)
        number = np.arange(1, ends[-1] + 1) - np.repeat(ends - counts - 1, counts + 1)
        is_chunk = np.ones(len(number), np.bool_)
        is_chunk[ends - 1] = False
        chunks = self._rows.chunks[(number - 1 + np.repeat(first, counts + 1))[is_chunk]]
        begins, lengths, labels_after = np.zeros((3, len(number)), np.int64)
        begins[is_chunk] = self._begins[chunks]
        lengths[is_chunk] = self._lengths[chunks]
        labels_after[is_chunk] = self._labels_after[chunks]
        lengths[ends - 1] = self.context - np.add.reduceat(lengths, ends - counts - 1)
        return begins, lengths, labels_after, number * is_chunk


def grow(folder: Path, options: argparse.Namespace) -> None:
    print(f"{'documents':>12} {'index':>36} {'in memory':>36}")
    for number in (10**5, 10**6, 10**7):
        store = generated(folder / str(number), number, mean=60)
        index, memory = apart(packed, store), apart(packed_in_memory, store)
        print(f"{number:>12,} {index!s:>36} {memory!s:>36}", flush=True)
        shutil.rmtree(store)


def start(folder: Path, options: argparse.Namespace) -> None:
    for gigabytes in options.gigabytes:
        tokens = round(gigabytes * 1e9 / 2)
        store = generated(folder / "store", tokens // 500, mean=500)
        print(f"{gigabytes:g} GB of ids in {tokens // 500:,} documents")
        found = {"packed": apart(packed, store)}
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for name in ("first start", "second start"):
            found[name] = apart(started, store)
        found["8 at once, the slowest"] = max(eight_at_once(store), key=lambda one: one.seconds)
        if gigabytes <= BEFORE_AT_MOST_GB:
            found["packed in memory, as each process did before"] = apart(packed_in_memory, store)
        shutil.rmtree(store)
        for name, cost in found.items():
            print(f"  {name}: {cost}", flush=True)
        if options.record is not None:
            with options.record.open("a", encoding="utf-8") as file:
                for name, cost in found.items():
                    row = {"gigabytes": gigabytes, "documents": tokens // 500, "what": name}
                    file.write(json.dumps({**row, **cost._asdict()}) + "\n")


def eight_at_once(store: Path) -> list[Cost]:
    """A start in each of eight processes that have imported everything."""
    with get_context("spawn").Pool(8, initializer=time.sleep, initargs=(0,)) as pool:
        pool.map(time.sleep, [0.5] * 8, chunksize=1)  # all have imported
        return pool.map(measured_start, [store] * 8, chunksize=1)


def simulate(folder: Path, options: argparse.Namespace) -> None:
    cost = apart(simulated, folder / "rows", 10**8)
    size = sum(file.stat().st_size for file in (folder / "rows").iterdir()) / 1e9
    print(f"index of 10^8 documents, {size:.2f} GB: {cost}", flush=True)
    shutil.rmtree(folder / "rows")
    print(f"10^9 documents, counted and planned: {apart(counted, 10**9)}")


def packed(folder: Path) -> None:
    pack_sources([PreparedSource(TokenStore.open(folder), "default", 1.0)], CONTEXT)


def packed_in_memory(folder: Path) -> None:
    store = TokenStore.open(folder)
    begins, lengths, goes_on = cut(store.offsets, CONTEXT)
    labels_after = np.full(len(begins), IGNORED)
    labels_after[goes_on] = store.tokens.take((begins + lengths)[goes_on])
    pack(lengths, CONTEXT)


def started(folder: Path) -> None:
    """What a training does with its text before its first step."""
    parts = pack_sources([PreparedSource(TokenStore.open(folder), "default", 1.0)], CONTEXT)
    stream = BatchStream(parts, effective_batch=32, micro_batch=32, seed=0)
    stream.step(0)
    held = np.random.default_rng(1).integers(1 << 63, size=4000, dtype=np.uint64)
    found_in(held, [part.store.document_hashes for part in parts])


class Offsets:
    """Begins of documents with lengths that repeat, computed when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number
        lengths = np.random.default_rng(0).geometric(1 / 100, 1 << 16).clip(2)
        self._before = np.append(0, np.cumsum(lengths))

    def __len__(self) -> int:
        return self.number + 1

    def __getitem__(self, key: slice) -> np.ndarray:
        turns, places = np.divmod(np.arange(*key.indices(len(self))), len(self._before) - 1)
        return turns * self._before[-1] + self._before[places]


class Tokens:
    """Ids that are all the same."""

    def take(self, places: np.ndarray) -> np.ndarray:
        return np.full(len(places), 7, np.uint16)


def simulated(folder: Path, number: int) -> None:
    empty, some_ids, begins = np.zeros(0), Tokens(), Offsets(number)
    store = TokenStore(folder, some_ids, begins, empty, empty, 8, 1, 0, "simulated")
    RowIndex.write(folder, store, CONTEXT, wrapped=False)


def counted(number: int) -> None:
    counts, offsets = np.zeros(CONTEXT + 1, np.int64), Offsets(number)
    for _, lengths, _ in chunks_of(offsets, CONTEXT):
        counts += np.bincount(lengths, minlength=CONTEXT + 1)
    plan(counts)


def generated(folder: Path, number: int, *, mean: int) -> Path:
    """A store of random documents, of geometrically distributed lengths."""
    generator = np.random.default_rng(0)
    some = generator.integers(2, 50_000, 1 << 24, dtype=np.uint16)
    encoder = Encoder(None, ENDS, np.dtype("<u2"), False)
    options = {"shard_ids": store_builder.SHARD_IDS, "most_tokens": None, "made_of": {}, "place": "generated"}
    with StoreWriter(folder, encoder, **options) as writer:
        for begin in range(0, number, 20_000):
            lengths = generator.geometric(1 / mean, min(20_000, number - begin)).clip(2)
            ends = np.cumsum(lengths)
            ids = np.resize(some[int(generator.integers(1000)) :], ends[-1])
            ids[ends - lengths], ids[ends - 1] = ENDS
            hashes = generator.integers(1 << 63, size=len(lengths), dtype=np.uint64)
            writer.write([], Documents(ids, lengths, 4 * lengths, hashes, np.empty((0, 2), np.int64)))
        written = writer.finish()
    (folder / "progress.json").unlink(missing_ok=True)
    manifest = Manifest(FORMAT_VERSION, "<u2", 50_000, 1, **asdict(written))
    write_json(folder / "manifest.json", sealed(asdict(manifest)))
    return folder


SAMPLE = """
import os, sys, time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from stlm_kd.data.batches import BatchStream
from stlm_kd.data.corpus import pack_sources, prepare
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.tokenizers import load_tokenizer
tokenizer = load_tokenizer(os.environ["STLM_KD_DATA"] + "/tokenizers/gpt2")

def times():
    used = getrusage(RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime

warm = pack_sources(prepare([Source(sample="validation")], tokenizer, Path(sys.argv[1]) / "warm"), 256)
BatchStream(warm, effective_batch=2, micro_batch=2, seed=0).step(0)  # what is imported at the first use
marks = [times()]
prepared = prepare([Source(sample="train")], tokenizer, Path(sys.argv[1]))
marks.append(times())
parts = pack_sources(prepared, 256)
marks.append(times())
stream = BatchStream(parts, effective_batch=32, micro_batch=32, seed=0)
total = sum(int(batch.input_ids.sum()) for step in range(200) for batch in stream.step(step))
marks.append(times())
print(total, *(end - begin for a, b in zip(marks, marks[1:]) for begin, end in zip(a, b)))
"""


def sample(folder: Path, options: argparse.Namespace) -> None:
    if options.against is None:
        raise SystemExit("sample: give --against FOLDER, a checkout of another version")
    sides = {"before": options.against.resolve(), "now": Path(__file__).resolve().parents[2]}
    least: dict[str, np.ndarray] = {}
    sums = set()
    for turn in range(options.turns):
        for name, place in sides.items():
            own = [sys.executable, "-c", SAMPLE, str(folder / f"{name}{turn}")]
            done = subprocess.run(own, cwd=place, check=True, capture_output=True, text=True)
            total, *seconds = map(float, done.stdout.split())
            sums.add(total)
            taken = np.append(seconds, [sum(seconds[::2]), sum(seconds[1::2])]).reshape(-1, 2)
            least[name] = np.minimum(least.get(name, taken), taken)
    print(f"the same batches: {len(sums) == 1}")
    for row, part in enumerate(("tokenise", "pack", "200 batches", "together")):
        (wall, used), (wall_now, used_now) = (least[name][row] for name in sides)
        print(
            f"{part}: before {wall:.2f} s ({used:.2f} s of processor), now {wall_now:.2f} ({used_now:.2f})",
            end="",
        )
        print(f", ratio {wall_now / wall:.2f} ({used_now / used:.2f})")


def fastest(sides: list[Callable[[], None]], turns: int) -> list[float]:
    """Seconds of each side's fastest turn."""
    taken = [float("inf")] * len(sides)
    for _ in range(turns):
        for place, run in enumerate(sides):
            began = time.perf_counter()
            run()
            taken[place] = min(taken[place], time.perf_counter() - began)
    return taken


class Cost(NamedTuple):
    """The peak of RssAnon in MiB above that after the imports; seconds, and those of the processor."""

    mib: float
    seconds: float
    processor: float

    def __str__(self) -> str:
        return f"{self.mib:,.0f} MiB, {self.seconds:.2f} s ({self.processor:.2f} s of processor)"


def apart(run: Callable[..., None], *arguments: object) -> Cost:
    """What a function takes in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (run, *arguments))


def measured_start(folder: Path) -> Cost:
    return measured(started, folder)


def measured(run: Callable[..., None], *arguments: object) -> Cost:
    ended = threading.Event()
    before = peak = rss_anon()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, rss_anon())

    watching = threading.Thread(target=watch)
    watching.start()
    began, used = time.perf_counter(), processor_seconds()
    run(*arguments)
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    ended.set()
    watching.join()
    return Cost(max(peak, rss_anon()) - before, seconds, used)


def rss_anon() -> float:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


if __name__ == "__main__":
    main()
