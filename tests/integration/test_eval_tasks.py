"""Local task files keep the prompts, choices, targets and metrics of lm-eval's own tasks."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from huggingface_hub import constants
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag.utils import preprocess

from stlm_kd.errors import DataError, MissingResourceError, UsageError
from stlm_kd.eval.harness import local_rows, task_data

BUILTIN = Path(lm_eval.tasks.__file__).parent

# Of our own making, in the layout of the Hub: a caption cut within a sentence, and an article with its marks.
HELLASWAG_HUB = [
    {
        "ind": 1,
        "activity_label": "Baking bread",
        "ctx_a": "A baker stands at a table. She weighs the flour.",
        "ctx_b": "the baker then",
        "endings": ["kneads the dough.", "rides off.", "paints a wall.", "sings to a cat."],
        "label": "0",
    },
    {
        "ind": 2,
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to water a fern [title] Use rain water. [step] Ferns dislike lime.",
        "ctx_b": "",
        "endings": ["[substeps] Collect it in a barrel.", "Boil it.", "Sell it.", "[step] Drink it."],
        "label": "3",
    },
]


@pytest.fixture
def data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    task_data._build.cache_clear()  # a run sets the shots of its tasks
    monkeypatch.setenv("STLM_KD_DATA", str(shared_data))
    return shared_data / "lm_eval"


def lines(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt") as opened:
        return [json.loads(line) for line in opened]


def builtin(monkeypatch: pytest.MonkeyPatch, name: str, splits: Mapping[str, Dataset]) -> dict[str, Task]:
    """lm-eval's own tasks, over rows that stand in for a download from the Hub."""

    def load_dataset(path: str, name: str | None = None, **options: object) -> DatasetDict:
        column = {"nyu-mll/blimp": "UID", "cais/mmlu": "subject"}.get(path)
        chosen = {
            split: rows if column is None else rows.filter(lambda row: row[column] == name)
            for split, rows in splits.items()
        }
        return DatasetDict(chosen)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    folder = BUILTIN / task_data.LOCAL[name].folder
    tasks: dict[str, Task] = TaskManager(include_defaults=False, include_path=folder).load([name])["tasks"]
    return tasks


def local(name: str) -> dict[str, Task]:
    item = task_data.build([name], source="local", num_fewshot=None)[0].item
    return {task.task_name: task for task in (item.get_all_tasks() if isinstance(item, Group) else [item])}


def compared(ours: Mapping[str, Task], theirs: Mapping[str, Task], shots: int = 0) -> int:
    """How many examples were compared; each must be asked in the same way, and scored in the same."""
    assert list(ours) == list(theirs)
    examples = 0
    for name, task in theirs.items():
        own = ours[name]
        assert own.config.metric_list == task.config.metric_list
        assert list(own.aggregation()) == list(task.aggregation())
        assert own.config.output_type == task.config.output_type
        assert own.config.num_fewshot == task.config.num_fewshot
        assert own.config.description == task.config.description
        for own_doc, doc in list(zip(own.eval_docs, task.eval_docs, strict=True))[:25]:
            assert own.doc_to_text(own_doc) == task.doc_to_text(doc)
            assert own.doc_to_choice(own_doc) == task.doc_to_choice(doc)
            assert own.doc_to_target(own_doc) == task.doc_to_target(doc)
            contexts = [
                one.fewshot_context(one_doc, num_fewshot=shots)
                for one, one_doc in ((own, own_doc), (task, doc))
            ]
            assert contexts[0] == contexts[1]
            own_requests, requests = (
                one.construct_requests(one_doc, contexts[0], doc_id=0, metadata=(name, 0, 1))
                for one, one_doc in ((own, own_doc), (task, doc))
            )
            assert [request.args for request in own_requests] == [request.args for request in requests]
            examples += 1
    return examples


def test_blimp_has_the_67_paradigms_of_lm_eval(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = local("blimp")
    assert len(ours) == 67
    assert {len(task.eval_docs) for task in ours.values()} == {1000}
    everything = Dataset.from_list(lines(data / "blimp" / "blimp_all.jsonl.gz"))
    theirs_group = TaskManager(include_defaults=False, include_path=BUILTIN / "blimp").task_index["blimp"]
    assert theirs_group.cfg is not None and set(theirs_group.cfg["task"]) == set(ours)
    few = everything.select(range(3000))
    chosen = {f"blimp_{uid}": ours[f"blimp_{uid}"] for uid in dict.fromkeys(few["UID"])}
    assert len(chosen) == 3

    def load_dataset(path: str, name: str, **options: object) -> DatasetDict:
        assert path == "nyu-mll/blimp"
        return DatasetDict({"train": few.filter(lambda row: row["UID"] == name)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    manager = TaskManager(include_defaults=False, include_path=BUILTIN / "blimp")
    assert compared(chosen, manager.load(list(chosen))["tasks"]) == 3 * 25


def test_arc_easy_agrees_with_lm_eval(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        split: Dataset.from_list(lines(data / "arc_easy" / f"{split}.jsonl.gz"))
        for split in ("train", "validation", "test")
    }
    assert compared(local("arc_easy"), builtin(monkeypatch, "arc_easy", splits)) == 25


def test_winogrande_agrees_with_lm_eval(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_columns = ["sentence", "option1", "option2", "answer"]
    rows_of_hub = Dataset.from_list(lines(data / "winogrande" / "validation.jsonl.gz")).select_columns(
        hub_columns
    )
    theirs = builtin(monkeypatch, "winogrande", {"validation": rows_of_hub, "train": rows_of_hub})
    assert compared(local("winogrande"), theirs) == 25


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu_agrees_with_lm_eval(data: Path, monkeypatch: pytest.MonkeyPatch, shots: int) -> None:
    letters = ClassLabel(names=["A", "B", "C", "D"])
    subjects = {"anatomy", "world_religions"}
    splits = {
        split: Dataset.from_list(
            [row for row in lines(data / "mmlu" / f"{split}.jsonl.gz") if row["subject"] in subjects]
        ).cast_column("answer", letters)
        for split in ("test", "validation", "dev")
    }
    ours = local("mmlu")
    assert len(ours) == 57
    assert sum(len(task.eval_docs) for task in ours.values()) == 14_042

    def load_dataset(path: str, name: str, **options: object) -> DatasetDict:
        return DatasetDict(
            {key: rows.filter(lambda row: row["subject"] == name) for key, rows in splits.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    manager = TaskManager(include_defaults=False, include_path=BUILTIN / "mmlu" / "default")
    chosen = [f"mmlu_{subject}" for subject in sorted(subjects)]
    theirs = manager.load(chosen)["tasks"]
    assert compared({name: ours[name] for name in chosen}, theirs, shots) == 2 * 25


def test_hellaswag_in_the_layout_of_the_hub_agrees_with_lm_eval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "lm_eval" / "hellaswag"
    folder.mkdir(parents=True)
    with gzip.open(folder / "validation.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in HELLASWAG_HUB)
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    hub = Dataset.from_list(HELLASWAG_HUB)
    theirs = builtin(monkeypatch, "hellaswag", {"validation": hub, "train": hub})
    assert compared(local("hellaswag"), theirs) == len(HELLASWAG_HUB)


def test_hellaswag_in_the_local_layout_gives_the_same_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "lm_eval" / "hellaswag"
    folder.mkdir(parents=True)
    with gzip.open(folder / "validation.jsonl.gz", "wt") as file:
        for row in HELLASWAG_HUB:
            cleaned = {
                "ind": row["ind"],
                "activity_label": row["activity_label"],
                "ctx": preprocess(f"{row['ctx_a']} {row['ctx_b']}").strip(),
                "endings": [preprocess(str(ending)) for ending in row["endings"]],  # type: ignore[attr-defined]  # JSON
                "label": int(str(row["label"])),
            }
            file.write(json.dumps(cleaned) + "\n")
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    hub = Dataset.from_list(HELLASWAG_HUB)
    theirs = builtin(monkeypatch, "hellaswag", {"validation": hub, "train": hub})
    assert compared(local("hellaswag"), theirs) == len(HELLASWAG_HUB)


def test_the_local_hellaswag_is_whole_and_without_marks(data: Path) -> None:
    docs = local("hellaswag")["hellaswag"].eval_docs
    assert len(docs) == 10_042
    prompts = docs["query"]
    assert not [prompt for prompt in prompts if "[" in prompt]
    assert prompts[0].endswith(" He")
    assert all(len(choices) == 4 for choices in docs["choices"])


def test_rows_are_built_once_for_several_models(data: Path) -> None:
    first, second = (task_data.build(["arc_easy"], source="local", num_fewshot=None)[0] for _ in range(2))
    assert first.item is second.item
    assert task_data.build(["arc_easy"], source="local", num_fewshot=2)[0].item is not first.item


def test_offline_the_local_files_are_taken_and_online_the_hub(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert task_data.find_origin("mmlu", "auto") == "local"
    monkeypatch.setattr(task_data.hub_data, "is_available", lambda name, configuration: True)
    assert task_data.find_origin("mmlu", "auto") == "builtin"
    assert task_data.find_origin("mmlu", "local") == "local"
    assert task_data.find_origin("sample_minimal_pairs", "auto") == "generated"


def test_what_is_nowhere_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.delenv("STLM_KD_DATA", raising=False)
    with pytest.raises(MissingResourceError, match="STLM_KD_DATA is not set; go online once, or set"):
        task_data.build(["blimp"], source="auto", num_fewshot=None)
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    with pytest.raises(MissingResourceError, match="has no lm_eval/blimp"):
        task_data.build(["blimp"], source="local", num_fewshot=None)


def test_the_builtin_task_offline_and_not_cached_is_a_missing_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(MissingResourceError, match="allenai/ai2_arc: not in the cache"):
        task_data.build(["arc_easy"], source="builtin", num_fewshot=None)


def test_the_builtin_task_reads_the_cache_of_the_hub(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cache as a download leaves it: rows, and the description of the data set beside them."""
    splits = {
        split: Dataset.from_list(lines(data / "arc_easy" / f"{split}.jsonl.gz")[:7])
        for split in ("train", "validation", "test")
    }
    loaded = builtin(monkeypatch, "arc_easy", splits)["arc_easy"]
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "allenai___ai2_arc" / "ARC-Easy" / "0.0.0" / commit
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = tmp_path / "hub" / "datasets--allenai--ai2_arc" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)
    for split, one in splits.items():
        one.to_parquet(tmp_path / f"{split}.parquet")
    builder = datasets.load_dataset_builder(
        "parquet", data_files={split: str(tmp_path / f"{split}.parquet") for split in splits}
    )
    builder.dataset_name, builder.config.name = "ai2_arc", "ARC-Easy"
    builder.info.dataset_name, builder.info.config_name = "ai2_arc", "ARC-Easy"
    builder.download_and_prepare(str(cache))
    assert task_data.find_origin("arc_easy", "auto") == "builtin"
    cached = {"arc_easy": task_data._load_builtin("arc_easy")}
    assert compared(cached, {"arc_easy": loaded}) == 7  # type: ignore[arg-type]  # tasks by another type


def test_few_shot_examples_that_the_local_files_lack_are_refused(data: Path) -> None:
    with pytest.raises(
        MissingResourceError, match="winogrande: its few-shot examples come from the training split"
    ):
        task_data.build(["winogrande"], source="local", num_fewshot=5)


def test_an_unknown_task_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    few = TaskManager(include_defaults=False, include_path=BUILTIN / "arc")
    monkeypatch.setattr(task_data, "_builtin_tasks", lambda whole: few)
    with pytest.raises(UsageError, match=r"arc_esy is not a known task \(did you mean arc_easy\?\)"):
        task_data.build(["arc_esy"], source="auto", num_fewshot=None)


def test_a_broken_local_file_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not a line of JSON"):
        local_rows.from_files(splits={"test": str(file)})


@pytest.mark.parametrize(
    ("name", "tasks"), [("blimp_wh_island", 1), ("mmlu_abstract_algebra", 1), ("mmlu_stem", 19)]
)
def test_a_part_is_found_in_the_local_files_of_the_whole(data: Path, name: str, tasks: int) -> None:
    (built,) = task_data.build([name], source="local", num_fewshot=None)
    (whole,) = task_data.build([task_data.whole_of(name) or ""], source="local", num_fewshot=None)
    of_whole = {task.task_name: task for task in task_data.leaves(whole.item)}
    found = task_data.leaves(built.item)
    assert (built.origin, len(found)) == ("local", tasks)
    for task in found:
        assert task.eval_docs[3] == of_whole[task.task_name].eval_docs[3]
    assert task_data.local_version(name) == task_data.local_version(name.partition("_")[0])


def test_what_a_part_lacks_is_said_of_the_whole_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from stlm_kd.pipeline.scoring import evaluate
    from tests.support.tokenizer_kinds import byte_level, llama

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    monkeypatch.setattr(evaluate, "score", lambda *_, **__: pytest.fail("a model was scored"))
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path / "model")
    llama(len(tokenizer)).save_pretrained(tmp_path / "model")

    def scored() -> None:
        suite = {"suite": "lm-eval", "tasks": ("blimp_wh_island",), "source": "auto", "num_fewshot": None}
        evaluate.evaluate(
            [str(tmp_path / "model")],
            suites=[suite],
            data=(),
            text=None,
            label=None,
            trust_remote_code=False,
        )

    with pytest.raises(
        MissingResourceError, match=r"blimp_wh_island: .* has no lm_eval/blimp; go online once"
    ):
        scored()
    (tmp_path / "lm_eval" / "blimp").mkdir(parents=True)
    (tmp_path / "lm_eval" / "blimp" / "blimp_all.jsonl.gz").write_bytes(gzip.compress(b'{"UID": "other"}\n'))
    with pytest.raises(DataError, match="no rows whose UID is wh_island"):
        scored()


def test_a_name_that_only_begins_like_a_benchmark_is_no_part_of_it() -> None:
    assert [task_data.whole_of(name) for name in ("blimp_nl", "mmlu_pro", "arc_easy_x", "hellaswag_de")] == [
        None
    ] * 4
