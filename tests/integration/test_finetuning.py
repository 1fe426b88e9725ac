"""Fine-tuned suites: the one loop, found again, deterministic, resumed; scores as libraries compute them."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig, PreTrainedTokenizerFast

from stlm_kd.artifacts.results import Row, Score, SuiteResult
from stlm_kd.comparison.compare import compare
from stlm_kd.comparison.entries import scored_model
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.data.labelled.batches import ExampleBatch, ExampleStream
from stlm_kd.data.labelled.examples import LabelledSource, read_examples
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError, MissingResourceError, ModelError, Preempted, UsageError
from stlm_kd.eval import SUITES
from stlm_kd.eval.fine_tuning import glue
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.models.heads.classifiers import classifier_from_fields, head_place
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.scoring.evaluate import evaluate
from stlm_kd.pipeline.stages import fine_tune
from stlm_kd.pipeline.stages.fine_tune import tuned_scores
from stlm_kd.pipeline.stages.score import kept_scores
from stlm_kd.recipe import load
from stlm_kd.reporting.tables.results import result_table

BERT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
QUICK = {"steps": 6, "effective_batch": 8, "learning_rate": 1e-2, "context": 24, "source": "local"}
PAIRS = ("mrpc", "rte", "wnli", "stsb", "mnli", "qnli", "qqp")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's folders with generated sentences, and two models: an encoder's body and a decoder."""
    folder = tmp_path_factory.mktemp("glue-world")
    texts = [text for (text,) in read_examples(LabelledSource(sample="sentiment", size=160)).texts]
    for name in glue.OFFICIAL:
        write_task(folder / "data" / "glue" / name, name, texts)
    tokenizer = train_tokenizer(texts, size=300, masked=True)
    torch.manual_seed(0)
    body = AutoModel.from_config(BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **BERT))
    save_model(body, tokenizer, folder / "bert")
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **BERT)
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder / "llama")
    return folder


def write_task(folder: Path, name: str, texts: Sequence[str]) -> None:
    """Forty training examples and twelve of each part that is scored; the first text determines the class."""
    folder.mkdir(parents=True)
    task = glue.TASKS[name]
    for split, begin, end in [("train", 0, 40), *((s, 40, 52) for s in glue.scored_parts(name).values())]:
        rows = []
        for idx, place in enumerate(range(begin, end)):
            label: float = place % len(task.labels) if task.labels else min(len(texts[place]) / 12, 5.0)
            row = dict(zip(task.text, (texts[place], texts[place + 60]), strict=False))
            rows.append({"idx": idx, "label": label, **row})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture(autouse=True)
def _at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STLM_KD_DATA", str(world / "data"))


def scored(world: Path, output_dir: Path, model: str = "bert", **options: Any) -> list[SuiteResult]:
    return tuned_scores("glue", {**QUICK, **options}, str(world / model), RunContext(output_dir))


def predictions(results: Sequence[SuiteResult]) -> list[Any]:
    return [result.report.get("predictions") for result in results]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SuiteResult]:
    """All tasks of GLUE with one seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STLM_KD_DATA", str(world / "data"))
        return scored(world, tmp_path_factory.mktemp("whole"), tasks=glue.OFFICIAL, seeds=1, steps=3)


def by_library(task: str, labels: list[float], found: list[float]) -> dict[str, float]:
    """GLUE's metrics of a task by scikit-learn and scipy."""
    if task == "stsb":
        return {"pearson": pearsonr(labels, found)[0], "spearman": spearmanr(labels, found)[0]}
    if task == "cola":
        return {"matthews": matthews_corrcoef(labels, found)}
    own = {"accuracy": accuracy_score(labels, found)}
    return {**own, "f1": f1_score(labels, found)} if task in ("mrpc", "qqp") else own


def test_every_task_is_scored_in_its_own_metrics_as_libraries_compute_them(whole: list[SuiteResult]) -> None:
    *results, average = whole
    assert [result.scores[0].task for result in results] == [
        *glue.OFFICIAL[:6],
        "mnli-mm",
        *glue.OFFICIAL[6:],
    ]
    means: dict[str, list[float]] = {}
    for result in results:
        task = result.scores[0].task
        labels, found = result.report["labels"], result.report["predictions"]
        assert isinstance(labels, Mapping) and isinstance(found, Mapping)
        expected = by_library(task, list(labels.values()), [found[name] for name in labels])
        assert {score.metric: score.value for score in result.scores} == pytest.approx(expected)
        assert [row.id for row in result.examples] == [str(place) for place in range(12)]
        means.setdefault(task.removesuffix("-mm"), []).append(sum(expected.values()) / len(expected))
    by_hand = sum(sum(values) / len(values) for values in means.values()) / 9
    assert average.score("glue", "average").value == pytest.approx(by_hand)


def test_a_seed_gives_the_same_fine_tuning_and_another_seed_another(world: Path, tmp_path: Path) -> None:
    one, two = (scored(world, tmp_path / name, tasks=["stsb"], seeds=2) for name in ("a", "b"))
    assert predictions(one) == predictions(two)
    assert predictions(one)[0] != predictions(one)[1]


def test_a_finished_fine_tuning_is_not_done_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(world, tmp_path, tasks=["rte"], seeds=1)
    monkeypatch.setattr(fine_tune, "fit", None)
    assert scored(world, tmp_path, tasks=["rte"], seeds=1) == first
    with pytest.raises(TypeError):
        scored(world, tmp_path, tasks=["rte"], seeds=2)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_killed_fine_tuning_goes_on_to_the_same_scores(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = scored(world, tmp_path / "a", tasks=["stsb"], seeds=1)
    plain, begun = ExampleStream.step, []

    def killed(stream: ExampleStream, index: int) -> list[ExampleBatch]:
        begun.append(index)
        if index == 3 and len(begun) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(stream, index)

    monkeypatch.setattr(ExampleStream, "step", killed)
    with pytest.raises(Preempted):
        scored(world, tmp_path / "b", tasks=["stsb"], seeds=1)
    again = scored(world, tmp_path / "b", tasks=["stsb"], seeds=1)
    assert begun == [0, 1, 2, 3, 4, 5]
    assert predictions(again) == predictions(undisturbed)


def test_a_fraction_is_of_each_class_the_same_and_follows_the_seed(world: Path) -> None:
    subjects = SUITES["glue"].fine_tune_tasks({**QUICK, "tasks": ["rte"], "seeds": 2, "fraction": 0.2})
    drawn = [subject.drawn() for subject in subjects]
    assert [examples.counts() for examples in drawn] == [{"entailment": 4, "not_entailment": 4}] * 2
    assert drawn[0].ids != drawn[1].ids


@pytest.mark.parametrize(("model", "place"), [("bert", "first"), ("gpt2", "last"), ("llama", "last")])
def test_where_the_head_reads_is_seen(world: Path, model: str, place: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world / "bert")
    fields = {"model_type": model, **BERT} if model != "gpt2" else {"model_type": "gpt2", "n_embd": 16,
              "n_layer": 2, "n_head": 2, "n_positions": 32}  # fmt: skip
    built = classifier_from_fields(fields, tokenizer, labels=("a", "b"), context=16, seed=0)
    assert head_place(built) == place


def test_a_decoder_gets_a_head_on_its_last_token_and_says_so(world: Path, tmp_path: Path) -> None:
    (result,) = scored(world, tmp_path, "llama", tasks=["sst2"], seeds=1)
    assert "glue: fine-tuned with a fresh head on the last token (llama)" in result.notes
    facts = result.report["fine_tuning"]
    assert isinstance(facts, Mapping) and (facts["steps"], facts["training_rows"]) == (6, 40)


def test_the_studies_settings() -> None:
    def settings(**options: Any) -> dict[str, FineTuneJob]:
        found = SUITES["glue"](**options)
        return {one.task: one for one in found if isinstance(one, FineTuneJob)}

    study = settings()
    assert {task: one.settings.epochs for task, one in study.items()} == {
        **dict.fromkeys(glue.OFFICIAL, 3), "rte": 25, "cola": 25,
    }  # fmt: skip
    assert {one.fraction for one in study.values()} == {1.0}
    few = settings(preset="few-shot", tasks=("sst2", "mrpc", "cola", "qnli"))
    assert {task: one.settings.epochs for task, one in few.items()} == {
        "sst2": 50, "mrpc": 150, "cola": 30, "qnli": 30,
    }  # fmt: skip
    table = {(s.effective_batch, s.learning_rate, s.weight_decay) for s in (o.settings for o in few.values())}
    assert not any(one.settings.bias_correction for one in few.values())
    assert table == {(16, 2e-5, 0.01)} and {one.fraction for one in few.values()} == {0.1}
    with pytest.raises(UsageError, match=r"few-shot study has epochs for .*; give epochs"):
        settings(preset="few-shot", tasks=("rte",))
    assert settings(preset="few-shot", tasks=("rte",), epochs=7)["rte"].settings.epochs == 7


def test_fine_tunings_are_averaged_with_the_noise_of_examples_and_seeds() -> None:
    def result(value: float) -> SuiteResult:
        return SuiteResult("glue", (Score("rte", "accuracy", value, 0.03, 10),), notes=("same",))

    (mean,) = ResultsTable([scored_model("m", [[*map(result, (0.5, 0.6, 0.7))]])]).suites
    assert mean.scores[0].value == pytest.approx(0.6)
    assert mean.scores[0].stderr == pytest.approx(math.sqrt(0.03**2 + 0.01 / 3))
    assert mean.notes[0] == "same" and "3 fine-tunings" in mean.notes[1]
    (alone,) = ResultsTable([scored_model("m", [[result(0.5)]])]).suites
    assert (alone.scores, alone.notes) == (result(0.5).scores, ("same",))


def test_fine_tunings_are_compared_within_the_model_that_they_are_of(world: Path, tmp_path: Path) -> None:
    """Two models with two fine-tunings each: the values are means over these, joined by example."""
    suite = {"suite": "glue", **QUICK, "steps": 2, "tasks": ["stsb", "rte"], "seeds": 2}
    names = [str(world / "bert"), str(world / "llama")]
    found = evaluate(
        names, suites=[suite], data=(), text=None, label=None,
        trust_remote_code=False, output_dir=tmp_path / "runs",
    )  # fmt: skip
    plain = {name: [result.to_json() for result in results] for name, results in found.items()}
    (tmp_path / "scores.json").write_text(json.dumps(plain))
    comparison = compare([str(tmp_path / "scores.json")])
    metrics = {(one.metric.task, one.metric.metric): one.evidence for one in comparison.differences}
    assert metrics.keys() == {
        ("stsb", "pearson"),
        ("stsb", "spearman"),
        ("rte", "accuracy"),
        ("glue", "average"),
    }
    first, second = (
        [result.score("stsb", "pearson").value for result in found[name] if result.scores[0].task == "stsb"]
        for name in names
    )
    assert metrics["stsb", "pearson"].mean == pytest.approx(sum(second) / 2 - sum(first) / 2)
    assert metrics["rte", "accuracy"].num_examples == 12
    assert {one.noise for one in metrics.values()} == {"fine-tunings, examples"}


def test_what_is_missing_is_told_of_all_tasks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Path
) -> None:
    data = tmp_path / "glue"
    data.mkdir()
    for name in ("cola", "qqp"):
        (data / name).symlink_to(world / "data" / "glue" / name)
    (data / "qnli").mkdir()
    for split, name in (("train", "train_subset"), ("validation", "validation")):
        (data / "qnli" / f"{name}.jsonl").symlink_to(world / "data" / "glue" / "qnli" / f"{split}.jsonl")
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    with pytest.raises(MissingResourceError) as fault:
        SUITES["glue"].check({"tasks": ["cola", "qqp", "mnli", "qnli"], "source": "local"})
    first, second = str(fault.value).splitlines()
    assert first == "glue: data of 1 of 4 tasks is missing; without them: tasks: [cola, qqp, qnli]"
    assert second.startswith(
        "  mnli: no train.jsonl[.gz], validation_matched.jsonl[.gz], validation_mismatched"
    )
    (found,) = SUITES["glue"].fine_tune_tasks({"tasks": ["qnli"], "source": "local", "seeds": 1})
    assert "a part of its examples" in found.notes[0]


@pytest.mark.parametrize(
    ("task", "factor", "message"),
    [
        ("sst2", 1, r"glue sst2: .*label 2 is not one of the classes.*negative, positive"),
        ("stsb", 3, r"glue stsb: 1 of 3 labels are outside 0 to 5 \(the first: 6, of example 2\)"),
        ("stsb", -1, r"glue stsb: 2 of 3 labels are outside 0 to 5 \(the first: -1, of example 1\)"),
    ],
)
def test_labels_outside_the_task_are_refused(
    task: str, factor: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "glue" / task
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        texts = dict.fromkeys(("sentence", "sentence1", "sentence2"), "so it is")
        rows = [{"idx": place, **texts, "label": factor * place} for place in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    with pytest.raises(DataError, match=message):
        SUITES["glue"].check({"tasks": [task], "source": "local"})


def test_a_share_that_leaves_a_class_empty_is_refused() -> None:
    with pytest.raises(DataError, match=r"glue rte: 0\.02 of 40 examples leaves none of .* class entailment"):
        SUITES["glue"].check({"tasks": ["rte"], "source": "local", "fraction": 0.02})


def test_a_model_with_a_head_is_refused(world: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world / "bert")
    model = classifier_from_fields(
        {"model_type": "bert", **BERT}, tokenizer, labels=("a", "b"), context=16, seed=0
    )
    save_model(model, tokenizer, tmp_path / "classes")
    with pytest.raises(ModelError, match=r"a head for classification already; glue gives .* a fresh one"):
        evaluate(
            [str(tmp_path / "classes")], suites=[{"suite": "glue"}], data=(), text=None, label=None,
            trust_remote_code=False,
        )  # fmt: skip


def test_a_context_is_as_long_as_the_model_allows(world: Path, tmp_path: Path) -> None:
    """The model has 32 positions, GLUE's own length is 128."""
    (result,) = scored(world, tmp_path, tasks=["sst2"], seeds=1, context=None)
    facts = result.report["fine_tuning"]
    assert isinstance(facts, Mapping) and facts["context"] == 32
    with pytest.raises(ModelError, match="reads at most 32 tokens"):
        scored(world, tmp_path, tasks=["sst2"], seeds=1, context=64)


def test_a_recipes_models_are_fine_tuned_and_its_table_shows_the_means(world: Path, tmp_path: Path) -> None:
    recipe = f"""
task: clm
student: {{tokenizer: {world / "llama"}, model: {world / "llama"}}}
data: {{train: {{sample: train, size: 2k}}, context: 16}}
objectives: [{{loss: labels}}]
train: {{steps: 1}}
eval: [{{suite: glue, tasks: [rte, cola], seeds: 2, steps: 2, context: 24, source: local}}]
tracking: []
"""
    (tmp_path / "own.yaml").write_text(recipe, encoding="utf-8")
    loaded = load(str(tmp_path / "own.yaml"))
    results = kept_scores(loaded, str(world / "llama"), RunContext(tmp_path))
    row = Row("own", "student", 1, 1, 1, (1,), (tuple(results),))
    table = ResultsTable([row])
    for metric in table.metrics:
        found = [
            s.value for r in results for s in r.scores if (s.task, s.metric) == (metric.task, metric.metric)
        ]
        assert len(found) == 2 and table.values(row, metric) == [pytest.approx(sum(found) / 2)]
    console = Console(width=160)
    with console.capture() as capture:
        console.print(result_table(table, "own"))
    assert "means over 2 fine-tunings" in capture.get()
