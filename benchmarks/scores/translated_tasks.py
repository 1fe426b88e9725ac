"""BLiMP and ARC-Easy of a teacher with its own tokens, translated to a student's, and in its rows alone.

    python benchmarks/scores/translated_tasks.py --model FOLDER --tokenizer FOLDER --pairs 25 --questions 300

The text that is the most probable is the answer: of two sentences, or of a question with each of its choices.
All ways read the same texts, and their differences are paired by item. ``$STLM_KD_DATA`` has lm_eval/blimp
and lm_eval/arc_easy.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from translated_teacher import Scorer

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.vocabulary.translation import Translation


@dataclass(frozen=True, slots=True)
class Item:
    """Texts of which the one with number ``right`` should be the most probable."""

    texts: tuple[str, ...]
    right: int


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a compressed file of JSON lines."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def blimp(folder: Path, pairs: int) -> Iterator[Item]:
    """The first pairs of each paradigm."""
    found = sorted(lines_of(folder / "blimp/blimp_all.jsonl.gz"), key=lambda line: str(line["UID"]))
    for _, lines in groupby(found, key=lambda line: line["UID"]):
        for line in islice(lines, pairs):
            yield Item((line["sentence_good"], line["sentence_bad"]), 0)


def arc_easy(folder: Path, questions: int) -> Iterator[Item]:
    """The first questions of the test set, as lm-evaluation-harness words them."""
    for line in islice(lines_of(folder / "arc_easy/test.jsonl.gz"), questions):
        choices, labels = line["choices"]["text"], line["choices"]["label"]
        texts = tuple(f"Question: {line['question']}\nAnswer: {choice}" for choice in choices)
        yield Item(texts, labels.index(line["answerKey"]))


def answers(scorer: Scorer, item: Item, ids_of: Any) -> dict[str, bool]:
    """Whether each way of reading finds the right text the most probable."""
    scores = [scorer.score(ids_of(text)) for text in item.texts]
    ways = [way for way in scores[0] if way != "bytes"]
    return {
        way: min(range(len(scores)), key=lambda number: scores[number][way]) == item.right for way in ways
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the student's, cut from the teacher's")
    parser.add_argument("--pairs", type=int, default=25, help="pairs of each of BLiMP's paradigms")
    parser.add_argument("--questions", type=int, default=300, help="questions of ARC-Easy")
    asked = parser.parse_args()
    own, student = (load_tokenizer(str(one)) for one in (asked.model, asked.tokenizer))
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16).eval()
    scorer = Scorer(model, own, student, Translation(own, student))
    folder = Path(os.environ["STLM_KD_DATA"]) / "lm_eval"
    tasks = {"BLiMP": blimp(folder, asked.pairs), "ARC-Easy": arc_easy(folder, asked.questions)}
    for task, items in tasks.items():
        found = [
            answers(scorer, item, lambda text: student(text, add_special_tokens=False)["input_ids"])
            for item in items
        ]
        for way in found[0]:
            differences = [one[way] - one["own"] for one in found]
            error = stdev(differences) / math.sqrt(len(differences))
            accuracy, more = fmean(one[way] for one in found), fmean(differences)
            print(
                f"{task}, {way}: {accuracy:.4f}, own {more:+.4f} ± {error:.4f} ({len(found):,} items)",
                flush=True,
            )


if __name__ == "__main__":
    main()
