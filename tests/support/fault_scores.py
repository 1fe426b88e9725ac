"""Planted faults of scores, verdicts and what comes in, for ``test_planted_faults.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import TokenClassifierOutput
from typer.testing import CliRunner

import stlm_kd.pipeline.distill
from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.cli.main import app
from stlm_kd.comparison.compare import compare
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.comparison.score_notes import warning_notes
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.labelled.question_answering import Question
from stlm_kd.data.labelled.token_labels import Sentences
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import ends_inside
from stlm_kd.errors import StlmKdError
from stlm_kd.eval import SUITES
from stlm_kd.eval.agreement.suite import agreement
from stlm_kd.eval.attribution.explain import classifier_outputs
from stlm_kd.eval.fine_tuning.conll2003 import TAGS, Conll2003
from stlm_kd.eval.fine_tuning.squad import Squad
from stlm_kd.eval.harness.adapter import DocumentLM
from stlm_kd.eval.interchange import metrics as interchange
from stlm_kd.eval.language_modeling import token_losses
from stlm_kd.eval.language_modeling.perplexity import perplexity
from stlm_kd.models.load import check_attention, load_language_model, save_model
from stlm_kd.pipeline.run import Run
from stlm_kd.pipeline.summary import weak_teachers
from tests.integration import test_eval_interchange as exchanged
from tests.integration import test_eval_masked as masked
from tests.integration.test_cli_sweep import RECIPE
from tests.integration.test_verdicts import scored
from tests.slow.test_run_parts import row
from tests.support.compared import run_folder, score_file, seeds_of
from tests.support.fault_table import CASES, Place, case
from tests.support.pico import pico_model
from tests.support.planted import Planted, planted
from tests.support.tokenizer_kinds import END, TEXTS, byte_level, end_in_template, llama, word_piece

__all__ = ["CASES"]

# Models that distinguish nothing


class OfTokens(Planted):
    """Logits of each token: 0 of the first outputs, and the token's number of the last ones."""

    outputs: tuple[int, int] = (0, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        own_BT1 = self.embedding(input_ids)[..., 1:]
        zeros, repeats = self.outputs
        logits = torch.cat(
            [torch.zeros_like(own_BT1).expand(-1, -1, zeros), own_BT1.expand(-1, -1, repeats)], -1
        )
        return TokenClassifierOutput(logits=logits)


def of_tokens(parts: dict[str, float], zeros: int, repeats: int) -> tuple[OfTokens, PreTrainedTokenizerFast]:
    model, tokenizer = planted(parts)
    model.__class__ = OfTokens
    assert isinstance(model, OfTokens)
    model.outputs = zeros, repeats
    return model, tokenizer


WORDS = ("saw", "Ann", "Bob", "met", "him")
PASSAGES = ("saw Ann met him", "met him saw Bob", "Bob met him", "him met saw Ann saw")


def answered(parts: dict[str, float]) -> SuiteResult:
    model, tokenizer = of_tokens({word: parts.get(word, 0.0) for word in WORDS}, 0, 2)
    questions = [
        Question(str(place), "saw him", text, ((name, text.index(name)),))
        for place, text in enumerate(PASSAGES)
        for name in ("Ann", "Bob")
        if name in text
    ]
    (job,) = SUITES["squad"](seeds=1, stride=4)
    return Squad(job, None).score(model, tokenizer, tuple(questions), part="squad_v1.1", context=24)


@case("squad: the same span of all passages", "predicts the same span of tokens for all 4 questions")
def _same_span(is_planted: bool, place: Place) -> object:
    return answered({} if is_planted else {"Ann": 5.0, "Bob": 5.0})


@case("squad: the same answer to all questions", "predicts the same answer for all 4 questions")
def _same_answer(is_planted: bool, place: Place) -> object:
    return answered({"met": 5.0} if is_planted else {"Ann": 5.0, "Bob": 5.0})


@case("ner: no entity in any sentence", "finds no entity in all 4 sentences")
def _no_entity(is_planted: bool, place: Place) -> object:
    return entities({} if is_planted else {"Ann": 5.0, "Bob": 5.0}, PASSAGES)


def entities(names: Mapping[str, float], passages: Sequence[str]) -> SuiteResult:
    """What ner says of a model that finds these names."""
    model, tokenizer = of_tokens({word: names.get(word, -1.0) for word in WORDS}, 1, 1)
    words = tuple(tuple(text.split()) for text in passages)
    tags = tuple(tuple(int(word in ("Ann", "Bob")) for word in sentence) for sentence in words)
    sentences = Sentences(words, tags, tuple("abcd"[: len(words)]), TAGS[:2])
    (job,) = SUITES["ner"](seeds=1)
    return Conll2003(job, None).score(model, tokenizer, sentences, part="conll2003", context=24)


@case("agreement: one class for all examples", "predicts a single class for all 40 examples")
def _one_class_beside(is_planted: bool, place: Place) -> object:
    held = labelled([1, 0] * 20)
    teacher, tokenizer = planted({"good": 1.0, "bad": -1.0})
    model, _ = planted({"good": 2.0, "bad": 1.0 if is_planted else -2.0})

    def answers(reading: Any, explaining: Any) -> Any:
        return classifier_outputs("t", teacher, tokenizer, held, reading, explaining)

    return agreement(model, tokenizer, held, {"t": answers}, context=8)


for _family, _words in (
    ("llama", "predicts a single token at all"),
    ("bert", "predicts a single token at all"),
):

    @case(f"interchange: a {_family} model with one prediction", _words)
    def _one_prediction(is_planted: bool, place: Place, family: str = _family) -> object:
        student = pico_model(family, seed=1)
        if is_planted:
            head = student.get_output_embeddings()
            assert isinstance(head, torch.nn.Linear)
            head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
        asked = exchanged.exchanges("other-example", causal=family == "llama")
        return interchange.measure(
            pico_model(family, seed=2), student, asked, alignment={0: (0,)}, vocabulary=exchanged.VOCABULARY
        )


for _suite in ("pseudo-perplexity", "masked-loss"):
    for _kind, _bias, _words in (
        ("uniform", torch.zeros(masked.VOCABULARY), "gives every token the same probability"),
        ("constant", torch.linspace(0, 9, masked.VOCABULARY), "predicts a single token at"),
        ("one token's", torch.eye(masked.VOCABULARY)[7] * 9, "predicts a single token at"),
    ):

        @case(f"{_suite}: a {_kind} head", _words)
        def _constant_head(
            is_planted: bool, place: Place, suite: str = _suite, bias: Tensor = _bias
        ) -> object:
            model = masked.pico("bert")
            if is_planted:
                head = model.get_output_embeddings()
                assert isinstance(head, torch.nn.Linear)
                head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
                with torch.no_grad():
                    head.bias.copy_(bias)
            result = SUITES[suite](model, masked.BYTES, masked.TEXTS)
            assert isinstance(result, SuiteResult)
            return result


# Chance and weak teachers


def labelled(labels: Sequence[int]) -> Examples:
    texts = tuple((word,) for word in ("good", "bad") * (len(labels) // 2))
    ids = tuple(map(str, range(len(labels))))
    return Examples(texts, np.array(labels), ids, ("negative", "positive"))


@case("shuffled labels", "examples accuracy: not better than chance (0.500) within the 95% interval")
def _shuffled(is_planted: bool, place: Place) -> object:
    labels = [1, 0] * 100
    if is_planted:
        labels = np.random.default_rng(0).permutation(labels).tolist()
    model, tokenizer = planted({"good": 2.0, "bad": -2.0})
    result = SUITES["classification"](model, tokenizer, labelled(labels), context=8)
    assert isinstance(result, SuiteResult)
    return "".join(warning_notes(result.scores))


@case("labels in the other order of classes", "accuracy: not better than chance (0.500)")
def _swapped_labels(is_planted: bool, place: Place) -> object:
    model, tokenizer = planted({"good": 2.0, "bad": -2.0})
    held = labelled([0, 1] * 20 if is_planted else [1, 0] * 20)
    result = SUITES["classification"](model, tokenizer, held, context=8)
    assert isinstance(result, SuiteResult)
    return "".join(warning_notes(result.scores))


@case("a teacher that is no better than the control", "is not better than no-teacher")
def _weak_teacher(is_planted: bool, place: Place) -> object:
    rows: list[Row] = [
        row("teacher t", "teacher", [1.5 if is_planted else 1.2], teaches=True),
        row("no-teacher", "control", [1.40, 1.41, 1.42]),
    ]
    return "".join(weak_teachers(ResultsTable(rows)))


# Log-likelihoods


def one_token_answers(
    model: Any, tokenizer: PreTrainedTokenizerFast, kind: type[HFLM], **options: Any
) -> list[float]:
    """Of the words that may follow a prompt."""
    adapter = (
        DocumentLM(model, tokenizer, batch_size=4, **options)
        if kind is DocumentLM
        else HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4, max_length=64)
    )
    asked = [
        SimpleNamespace(args=("the cat", f" {word}")) for word in ("sat", "ran", "on", "and", "dog", "mat")
    ]
    return [value for value, _ in adapter.loglikelihood(asked, disable_tqdm=True)]


@case("bf16: log-softmax in the body's precision", "log-likelihoods in steps of bf16")
def _bf16(is_planted: bool, place: Place) -> object:
    if is_planted:
        place.patch.setattr(token_losses, "at_least_float32", lambda tensor: tensor)
    tokenizer = byte_level()
    values = torch.tensor(one_token_answers(llama(len(tokenizer)), tokenizer, DocumentLM, precision="bf16"))
    in_steps = values.bfloat16().float() == values
    return "log-likelihoods in steps of bf16" if in_steps.float().mean() > 0.5 else None


def misread(kind: type[HFLM], tokenizer: PreTrainedTokenizerFast) -> str | None:
    """How log-likelihoods differ from the losses of the same documents in perplexity."""
    model = llama(len(tokenizer))
    options = {"precision": "fp32"} if kind is DocumentLM else {}
    found = one_token_answers(model, tokenizer, kind, **options)
    whole, before = (
        perplexity(model, tokenizer, [text]).report["nats"] for text in ("the cat sat", "the cat")
    )
    gap = abs(whole - before + found[0])
    ties = ", and all answers tie" if len(set(found)) == 1 else ""
    return f"{gap:.3f} nats from perplexity{ties}" if gap > 1e-4 else None


@case("lm-eval's own prompts: no start token", "nats from perplexity")
def _no_start(is_planted: bool, place: Place) -> object:
    return misread(HFLM if is_planted else DocumentLM, byte_level())


@case("lm-eval's own prompts: a template's end token", "nats from perplexity")
def _end_token(is_planted: bool, place: Place) -> object:
    return misread(HFLM if is_planted else DocumentLM, end_in_template())


# Verdicts


@case("one seed", "not known (one seed of a training)")
def _one_seed(is_planted: bool, place: Place) -> object:
    count = 1 if is_planted else 3
    rows = {
        "student": ("student", seeds_of(0.97, 10, count)),
        "no-teacher": ("control", seeds_of(0.5, 20, count)),
    }
    return unless_better(run_folder(place.folder / "run", rows))


def unless_better(run: str) -> str:
    found = {one.words for one in compare([run]).differences}
    return "; ".join(sorted(found - {"better"}))


@case("identical differences over seeds", "within noise")
def _identical(is_planted: bool, place: Place) -> object:
    size = 10 if is_planted else 400
    base = np.tile(np.arange(size) % 10 < 7, (3, 1)).astype(float)
    better = base.copy()
    better[:, np.arange(size) % 10 == 7] = 1
    if not is_planted:
        better[1, :3], better[2, :5] = 0, 0
    rows = {
        "no-teacher": ("control", scored(base.mean(1).tolist(), base)),
        "student": ("student", scored(better.mean(1).tolist(), better)),
    }
    return unless_better(run_folder(place.folder / "run", rows))


@case("bits per byte of a tokenizer that folds case", "--allow-lossy")
def _lossy_pair(is_planted: bool, place: Place) -> object:
    documents = [text.capitalize() for text in TEXTS[:30]]
    models = {}
    for name, tokenizer in (("a", byte_level()), ("b", word_piece() if is_planted else end_in_template())):
        result = SUITES["perplexity"](llama(len(tokenizer)), tokenizer, documents)
        assert isinstance(result, SuiteResult)
        models[name] = [result]
    compare([score_file(place.folder / "s.json", models)])
    return None


# What comes in


def saved(place: Place) -> Path:
    tokenizer = byte_level()
    save_model(llama(len(tokenizer)), tokenizer, place.folder / "m")
    return place.folder / "m"


@case("an attention implementation from the Hub", "asked for someone/kernel, loaded with sdpa")
def _hub_attention(is_planted: bool, place: Place) -> object:
    folder = saved(place)
    config = json.loads((folder / "config.json").read_text())
    asked = "someone/kernel" if is_planted else "sdpa"
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": asked}))
    found = load_language_model(str(folder), "clm").config._attn_implementation
    return None if found == asked else f"asked for {asked}, loaded with {found}"


@case("attention of another library", "remove attn_implementation from its config.json")
def _other_attention(is_planted: bool, place: Place) -> object:
    model = llama(300)
    if is_planted:
        model.config._attn_implementation_internal = "someone/kernel"
    check_attention(model, name="m")
    return None


@case("a pickle named by an index", "only safetensors weights are read, never pickled ones")
def _pickle_in_index(is_planted: bool, place: Place) -> object:
    folder = saved(place)
    weights = load_file(folder / "model.safetensors")
    name = "pytorch_model.bin" if is_planted else "model-1.safetensors"
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_language_model(str(folder), "clm")
    return None


@case("end tokens inside documents", f"2 tokens {END} found within its 2 documents")
def _ends_inside(is_planted: bool, place: Place) -> object:
    tokenizer = byte_level()
    texts = [f"the cat{END}sat", f"a dog{END}ran"] if is_planted else ["the cat", "sat"]
    return "".join(ends_inside(build_store(texts, tokenizer, place.folder / "s"), tokenizer, place="a.txt"))


@case("two sweeps of one key", "train.steps: given twice")
def _two_sweeps(is_planted: bool, place: Place) -> object:
    place.patch.chdir(place.folder)
    Path("mine.yaml").write_text(RECIPE)
    runs: list[str] = []

    def distill(recipe: object, *, name: str, output_dir: Path, **_: object) -> Run:
        runs.append(name)
        rows = {"distilled student": ("student", seeds_of(0.5, len(runs)))}
        return Run(Path(run_folder(output_dir / name, rows)))

    place.patch.setattr(stlm_kd.pipeline.distill, "distill", distill)
    Path("runs").mkdir()
    second = "train.steps" if is_planted else "seeds"
    values = "[5, 6]" if is_planted else "[[1], [2]]"
    words = ["--sweep", "train.steps=[3, 4]", "--sweep", f"{second}={values}"]
    found = CliRunner().invoke(app, ["distill", "-r", "mine.yaml", *words])
    if found.exit_code:
        raise StlmKdError(found.stderr)
    return None if len(runs) == 4 else f"{len(runs)} runs"
