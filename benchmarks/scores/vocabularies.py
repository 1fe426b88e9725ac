"""What a teacher keeps in five vocabularies, before and after training of its new rows, on real text.

    python benchmarks/scores/vocabularies.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output FOLDER
    python benchmarks/scores/vocabularies.py --output FOLDER --table

Every model is made and scored by ``stlm-kd adapt-teacher``, ``eval`` and ``compare``, with recipes and
texts that are written to the output folder. Each finished cell is a line of ``results.jsonl`` there. After a
stop at any moment the same command goes on: finished cells are skipped, and adaptations resume. Cheap and
telling cells come first: all vocabularies untrained, then trained on novels, their benchmarks, WikiText-2,
more tokens.
``$STLM_KD_DATA`` has lm/english_novels, lm/wikitext-2, lm/wikitext-2-raw and tokenizers/gpt2.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vocabulary_cells import (
    ARC,
    BLIMP,
    NOVELS,
    OWN,
    WHOLE,
    WIKITEXT,
    Cell,
    Model,
    Results,
    Settings,
    cells,
    quoted,
    read,
    write_whole,
)
from vocabulary_table import table
from vocabulary_texts import write_texts

SETTINGS = "settings.json"
METRICS = {NOVELS: "bits_per_byte", WIKITEXT: "bits_per_byte", BLIMP: "acc", ARC: "acc", WHOLE: "acc"}
CONTEXT, BATCH, VALIDATIONS = 256, 4, 5
"""Positions of a row, rows of a step, validations of an adaptation."""

_RECIPE = """
task: clm
student: {{tokenizer: {tokenizer}}}
teachers:
  - name: teacher
    model: {model}
    adapt: {{init: subword-mean, tokens: {tokens}, learning_rate: {rate}, old_rows_learning_rate: {old_rate}, effective_batch: {batch}, micro_batch: {batch}, validate_every: {every}, patience: null}}
{others}data:
  train: {{path: {train}.jsonl}}
  validation: {{path: {held_out}-valid.jsonl}}
  context: {context}
"""  # noqa: E501
_SECOND_TEACHER = "  - {name: other, recipe: other.yaml, adapt: {tokens: 0}}\n"
"""Its tokens alone matter here, so that only its tokenizer is made (``vocabulary_texts``)."""


class Driver:
    """Makes the cells of a folder, one after another.

    Args:
        settings: Of all cells.
        folder: Of recipes, runs, scores and results; commands run there.
        lock: A descriptor that commands inherit, so that it is open until the last of them ends.
    """

    def __init__(self, settings: Settings, folder: Path, lock: int) -> None:
        self._settings, self._folder, self._lock = settings, folder, lock
        self.results = Results(folder)

    def finish(self, cell: Cell) -> None:
        """Make a cell unless it is there.

        Raises:
            subprocess.CalledProcessError: A command failed, and has said why.
        """
        model, score = cell
        if self.results.find(model, score) is not None:
            return
        place, begun = self._place(model), time.time()
        output = self._evaluate(model, score, place)
        name = METRICS[score]
        (scored,) = (one for one in read(output)[place] if name in (s["metric"] for s in one["scores"]))
        found = next(one for one in scored["scores"] if one["metric"] == name and one["part_of"] is None)
        values = {name: found[name] for name in ("value", "stderr", "examples")}
        if model.vocabulary != OWN:
            values["difference"] = self._difference(output, score, place)
        self.results.add(model, score, {**values, "seconds": round(time.time() - begun)})

    def _place(self, model: Model) -> str:
        """The model's name for commands; it is adapted first."""
        if model.vocabulary == OWN:
            return self._settings.model
        line = self.results.find(model, "adapted") or self._adapt(model)
        return str(line["place"])

    def _adapt(self, model: Model) -> dict[str, Any]:
        recipe, begun = f"{model.file_name}.yaml", time.time()
        untrained = None if not model.tokens else self._place(Model(model.vocabulary))
        write_whole(self._folder / recipe, recipe_text(self._settings, model, untrained))
        done = json.loads(self._command("adapt-teacher", "teacher", "-r", recipe, "--json"))["results"]
        values = {
            "report": done["adaptations"]["teacher"],
            "place": done["models"]["teacher"],
            "seconds": round(time.time() - begun),
        }
        return self.results.add(model, "adapted", values)

    def _evaluate(self, model: Model, score: str, place: str) -> Path:
        limits = {BLIMP: self._settings.pairs, ARC: self._settings.questions}
        if METRICS[score] == "bits_per_byte":
            suite = ["perplexity", "--data", f"{score}-test.jsonl", "--set", f"window={CONTEXT}"]
        else:
            limit = ["--limit", str(limits[score])] if score in limits else []
            suite = ["lm-eval", "--tasks", score.partition(",")[0], *limit]
        output = self._scores(model, score)
        self._command("eval", place, "--suite", *suite, "--output", output.name)
        return output

    def _difference(self, output: Path, score: str, place: str) -> dict[str, float]:
        """The score less that of the teacher with its own vocabulary, paired, with its 95 % interval."""
        self.finish((Model(OWN), score))
        own = self._scores(Model(OWN), score).name
        said = self._command("compare", own, output.name, "--baseline", self._settings.model, "--json")
        metric = METRICS[score] if METRICS[score] != "acc" else f"{score.partition(',')[0]} acc"
        (found,) = (
            one for one in json.loads(said)["comparisons"] if (one["name"], one["metric"]) == (place, metric)
        )
        return {name: found["difference"][name] for name in ("mean", "low", "high")}

    def _scores(self, model: Model, score: str) -> Path:
        return self._folder / f"{model.file_name}-{re.sub(r'[^a-z0-9]+', '-', score)}.json"

    def _command(self, command: str, *arguments: str) -> str:
        """What a command prints; where it writes runs, these are below the folder."""
        runs = [] if command == "compare" else ["--output-dir", "runs"]
        words = [command, *arguments, *runs]
        print(time.strftime("%H:%M"), "stlm-kd", *words, file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "stlm_kd", *words],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            pass_fds=[self._lock],
        )
        return done.stdout


def recipe_text(settings: Settings, model: Model, untrained: str | None) -> str:
    """The recipe of an adaptation: all text chooses the tokens, one text trains, its held-out part selects.

    Args:
        settings: Of all cells.
        model: The model to make.
        untrained: The folder of the untrained model, whose tokenizer it has; None to make it.
    """
    tokenizer = settings.tokenizers[model.vocabulary] if untrained is None else quoted(untrained)
    steps = -(-model.tokens // (BATCH * CONTEXT))
    return _RECIPE.format(
        tokenizer=tokenizer,
        model=quoted(settings.model),
        tokens=model.tokens,
        rate=settings.learning_rate,
        old_rate=settings.learning_rate / 10,
        batch=BATCH,
        every=max(1, -(-steps // VALIDATIONS)),
        others=_SECOND_TEACHER if "prefer:" in tokenizer else "",
        train=f"{model.text}-train" if model.tokens else "broad",
        held_out=model.text or NOVELS,
        context=CONTEXT,
    )


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """The folder's lock. A killed driver's last command holds it until it ends, so its work is awaited."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def settings_of(options: argparse.Namespace) -> Settings:
    """The options' settings; those of the folder if it has some.

    Raises:
        SystemExit: They differ from the folder's.
    """
    names = {name: value for name, value in vars(options).items() if name not in ("output", "table")}
    folder: Path = options.output
    if Path(names["model"]).expanduser().is_dir():
        names["model"] = str(Path(names["model"]).expanduser().resolve())
    given = Settings(**{**names, "tokens": tuple(names["tokens"])})
    if not (folder / SETTINGS).exists():
        return given
    kept = read(folder / SETTINGS)
    kept_settings = Settings(**{**kept, "tokens": tuple(kept["tokens"])})
    if not options.table and kept_settings != given:
        raise SystemExit(f"{folder / SETTINGS}: {kept}; expected the same options; name another --output")
    return kept_settings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of all files; goes on where it was"
    )
    parser.add_argument("--table", action="store_true", help="print the finished cells as Markdown, run none")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="the teacher")
    parser.add_argument("--data", default=os.environ.get("STLM_KD_DATA", ""), help="($STLM_KD_DATA)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 500_000], help="of trainings")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of new rows; a tenth for copies")
    parser.add_argument("--pairs", type=int, default=100, help="of each of BLiMP's 67 paradigms")
    parser.add_argument("--questions", type=int, default=1000, help="of ARC-Easy")
    parser.add_argument("--pieces", type=int, default=24, help="of held-out text to score")
    parser.add_argument("--large", type=int, default=16384, help="tokens of the larger trimmed vocabulary")
    parser.add_argument("--small", type=int, default=8192, help="tokens of the small vocabularies")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    settings = settings_of(options)
    if options.table:
        print(table(settings, Results(options.output)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    with locked(options.output) as lock:
        if not (options.output / SETTINGS).exists():
            write_texts(settings, options.output)
            write_whole(options.output / SETTINGS, json.dumps(asdict(settings)))
        failed = run(Driver(settings, options.output, lock), cells(settings))
    sys.exit(1 if failed else 0)


def run(driver: Driver, all_cells: Iterable[Cell]) -> list[Cell]:
    """Finish all cells; those that fail are returned, and tried again by the next run."""
    failed = []
    for cell in all_cells:
        try:
            driver.finish(cell)
        except subprocess.CalledProcessError as error:
            print(
                f"{cell[0].vocabulary}, {cell[1]}: exit code {error.returncode}", file=sys.stderr, flush=True
            )
            failed.append(cell)
    return failed


if __name__ == "__main__":
    main()
