"""The set-up of several processes on a large text, against that of one: processor time of all together.

    python benchmarks/training/setup.py --megabytes 100 --processes 8

In turns, one process and several set up the same recipe in a new folder, up to the first batch: the recipe's
checks, hashing and tokenising the text, packing its rows, loading and checking the student and a teacher.
What is imported is left out: each process first sets up the same recipe on a short text. Counted is the
processor time of each process and of those that it starts, which does not depend on what else the machine
does; waiting costs none. The first process's share and that of all others are printed as well.

The text is WikiText-2 repeated, each document with a number, so that no two are the same. Needs STLM_KD_DATA;
writes the text and its tokens below ``--folder``, and deletes them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

RECIPE = """
task: clm
student:
  tokenizer: {tokenizer}
  architecture: {{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
    num_attention_heads: 2}}
teachers: [{{name: t, model: {teacher}}}]
data: {{train: {{path: {text}, documents: line}}, context: 256}}
objectives: [{{loss: labels}}, {{loss: forward_kl}}]
train: {{steps: 10, effective_batch: 16, micro_batch: 2}}
tracking: []
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=100.0, help="of text (default: 100)")
    parser.add_argument("--processes", type=int, default=8, help="against one (default: 8)")
    parser.add_argument("--turns", type=int, default=1, help="turns of each side (default: 1)")
    parser.add_argument("--folder", type=Path, help="where the text is written (default: a temporary one)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    write_inputs(folder, options.megabytes)
    used: dict[int, list[list[float]]] = {1: [], options.processes: []}
    for turn in range(options.turns):
        for processes, found in used.items():
            place = folder / f"turn-{turn}-{processes}"
            found.append(run(folder, place, processes))
            first, *others = found[-1]
            parts = f"{first:.1f} s in the first one, {sum(others):.2f} s in the others"
            print(f"processes: {processes}; processor time {sum(found[-1]):.1f} s: {parts}", flush=True)
    one, several = (statistics.median(map(sum, found)) for found in used.values())
    print(
        f"{options.megabytes:g} MB, {options.processes} processes: {several / one:.3f} x one's (target 1.2)"
    )


def write_inputs(folder: Path, megabytes: float) -> None:
    """The text, a short one, a teacher, and the recipes of both texts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from stlm_kd.data.sources.sources import Source, documents
    from stlm_kd.data.tokenizers import load_tokenizer

    data = Path(os.environ["STLM_KD_DATA"])
    tokenizer = data / "tokenizers/gpt2"
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2))
    model.save_pretrained(folder / "teacher")
    load_tokenizer(str(tokenizer)).save_pretrained(folder / "teacher")
    texts = [*documents(Source(path=str(data / "lm/wikitext-2/train.txt.gz")))]
    for name, size in (("short", 2e5), ("long", megabytes * 1e6)):
        with (folder / f"{name}.txt").open("w") as file:
            for number in count():
                if file.tell() >= size:
                    break
                file.write(f"{number} {' '.join(texts[number % len(texts)].split())}\n")
        recipe = RECIPE.format(tokenizer=tokenizer, teacher=folder / "teacher", text=folder / f"{name}.txt")
        (folder / f"{name}.yaml").write_text(recipe)


def run(folder: Path, place: Path, processes: int) -> list[float]:
    """The processor time of the set-up, in seconds, by process."""
    place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "STLM_KD_CACHE": str(place / "cache")}
    if processes > 1:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), **meeting}
    command = [sys.executable, __file__, "--folder", str(folder), "--work", str(place)]
    begun = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    codes = [process.wait() for process in begun]
    if any(codes):
        raise SystemExit("a process failed; its message says why")
    return [json.loads((place / f"used-{rank}.json").read_text()) for rank in range(processes)]


def work(place: Path) -> None:
    """One process: a short text first, for the imports; then the long one, which is timed."""
    from stlm_kd.distributed import end_processes, process_rank, wait_for_all

    try:
        set_up("short", place)
        wait_for_all()
        before = processor_seconds()
        set_up("long", place)
        used = processor_seconds() - before
    finally:
        end_processes()
    (place / f"used-{process_rank()}.json").write_text(json.dumps(used))


def set_up(name: str, place: Path) -> None:
    """All that a training does before its first step."""
    from stlm_kd.distributed import on_main_process
    from stlm_kd.pipeline.builders.data import batch_sizes
    from stlm_kd.pipeline.checks.validate import check_recipe
    from stlm_kd.pipeline.context import context_for
    from stlm_kd.pipeline.recording import recorded_once
    from stlm_kd.pipeline.stages.student import initial_student, step_of
    from stlm_kd.pipeline.stages.student_job import StudentJob
    from stlm_kd.pipeline.stages.tokenizer import setup_of
    from stlm_kd.recipe import load

    recipe = load(str(place.parent / f"{name}.yaml"))
    with recorded_once(recipe, name=name, output_dir=place / "runs", command="") as run:
        context = context_for(recipe, place / "runs", resume=True, trust_remote_code=False, run_name=run.name)
        setup = setup_of(recipe, context)
        on_main_process(lambda: check_recipe(setup, origin=name))
        job = StudentJob.of(setup, "student", 1, {"t": str(place.parent / "teacher")})
        student, data = initial_student(job), job.training_data(1.0)
        step_of(job, student, data, epochs=1.0)
        data.stream(batch_sizes(recipe.train.config), seed=1).step(0)


def processor_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
