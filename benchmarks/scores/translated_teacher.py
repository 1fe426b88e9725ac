"""Bits per byte of a teacher with its own tokens, translated to a student's, and in the student's rows alone.

    python benchmarks/scores/translated_teacher.py --model FOLDER --tokenizer FOLDER --text FILE --data FILE

All read the same rows of the student's tokens, each after the token that begins a text. The shares of tokens
that are not exact are counted in ``--text``. The rows alone, if the teacher has all of the student's tokens:
its embedding and head cut to them, as ``adapt: {tokens: 0}`` does.
"""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distillation.entries import batch_of
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers.translated import TranslatedTeacher
from stlm_kd.teachers.translated_targets import Translated
from stlm_kd.vocabulary.readings import ByteReader
from stlm_kd.vocabulary.special_tokens import roles_of
from stlm_kd.vocabulary.token_bytes import read_vocabulary
from stlm_kd.vocabulary.translation import Row, Translation


def texts_of(file: Path) -> Iterator[str]:
    """The texts of a file of JSON lines."""
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def rows_of(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[list[int]]:
    """A text in rows of so many tokens, without its special tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    yield from (ids[begin : begin + length] for begin in range(0, len(ids), length))


def sample(file: Path, tokenizer: PreTrainedTokenizerFast, tokens: int) -> Iterator[Row]:
    """The first tokens of a file's texts."""
    rows = (row for text in texts_of(file) for row in rows_of(text, tokenizer, 256))
    for row in islice(rows, tokens // 256):
        yield row, [1] * len(row)


def nats(logits: Tensor, ids: list[int]) -> float:
    """Of tokens, each predicted one place before it."""
    log_probs = logits[: len(ids)].float().log_softmax(-1)
    return -float(log_probs.gather(1, torch.tensor(ids)[:, None]).sum())


class Scorer:
    """The three ways to read rows of a student's tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        own: PreTrainedTokenizerFast,
        student: PreTrainedTokenizerFast,
        translation: Translation,
    ) -> None:
        self.model = model
        self.teacher = TranslatedTeacher(model, len(own), translation)
        self.reader = ByteReader(read_vocabulary(own))
        self.surfaces = read_vocabulary(student).surfaces
        self.begins = (roles_of(own).start, roles_of(student).start)
        ids, names = own.get_vocab(), student.convert_ids_to_tokens([*range(len(student))])
        known = [ids[name] for name in names if name in ids]
        self.rows = torch.tensor(known) if len(known) == len(names) else None

    @torch.no_grad()
    def score(self, row: list[int]) -> dict[str, float]:
        """Nats of a row in each way, its bytes, and the tokens that each reads."""
        text = b"".join(self.surfaces[i] or b"" for i in row)
        own = self.reader.tokens(text)
        begin, student_begin = self.begins
        assert begin is not None and student_begin is not None
        batch = batch_of({"input_ids": torch.tensor([[student_begin, *row]])}, self.model)
        said = self.teacher(batch, OutputSpec(head_input=True)).distribution
        assert isinstance(said, Translated)
        translated = said.rows(batch.attention_mask).logits(slice(0, len(row)), len(self.surfaces))
        found = {
            "bytes": len(text),
            "own": nats(self.model(torch.tensor([[begin, *own]])).logits[0], own),
            "translated": nats(translated, row),
        }
        if self.rows is not None:
            found["rows alone"] = nats(self._cut([student_begin, *row]), row)
        return found

    def _cut(self, ids: list[int]) -> Tensor:
        """Logits of the model whose embedding and head have the student's rows."""
        embedding, head = (
            layer.state_dict()["weight"][self.rows]
            for layer in (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        )
        vectors = functional.embedding(torch.tensor([ids]), embedding)
        hidden = self.model.base_model(inputs_embeds=vectors, use_cache=False).last_hidden_state[0]
        return functional.linear(hidden, head)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the student's folder")
    parser.add_argument("--text", type=Path, required=True, help="training text, JSON lines")
    parser.add_argument("--data", type=Path, required=True, help="scored text, JSON lines")
    parser.add_argument("--pieces", type=int, default=24, help="lines that are scored")
    parser.add_argument("--length", type=int, default=255, help="tokens of a row")
    asked = parser.parse_args()
    own, student = (load_tokenizer(str(one)) for one in (asked.model, asked.tokenizer))
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16).eval()
    translation = Translation(own, student, sample(asked.text, student, 500_000))
    scorer = Scorer(model, own, student, translation)
    pieces = []
    for text in islice(texts_of(asked.data), asked.pieces):
        total: dict[str, float] = defaultdict(float)
        for row in rows_of(text, student, asked.length):
            for name, value in scorer.score(row).items():
                total[name] += value
        pieces.append({name: total[name] / total["bytes"] / math.log(2) for name in total if name != "bytes"})
    print(
        f"exact for {translation.exact_share:.1%} of the training tokens; "
        f"{translation.nodes_per_token:.3f} positions for each"
    )
    for name in pieces[0]:
        differences = [piece[name] - piece["own"] for piece in pieces]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        mean = fmean(piece[name] for piece in pieces)
        print(f"{name:12} {mean:.4f} bits per byte, own + {fmean(differences):.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
