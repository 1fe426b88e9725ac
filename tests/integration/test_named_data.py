"""Named data sets: file by file from a Hub on the loopback interface, and from mirrors here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.labelled.examples import LabelledSource, fingerprint
from stlm_kd.data.sources import sources
from stlm_kd.pipeline.locks import lock_of
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import drift
from stlm_kd.sharing.data_sets.named import mirror
from stlm_kd.sharing.names import HubName
from stlm_kd.sharing.pins import Pins, using
from tests.support.hub import Hub
from tests.support.hub_world import World
from tests.support.paths import ROOT

READ = """
import itertools, json, sys
from stlm_kd.data.sources.limits import Limit
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.errors import StlmKdError
found = []
for given in map(json.loads, sys.argv[1:]):
    most = given.pop("most", None)
    try:
        if "limit" in given:
            given["limit"] = Limit(**given["limit"])
        source = Source(**given)
        texts = documents(source)
        read = list(itertools.islice(texts, most))
        texts.close()
        made = source.entry.parts(source.value, **source.options)
        found.append([read, source.identity(), [part.name for part in made]])
    except StlmKdError as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from stlm_kd.cli.main import app
ended = [CliRunner().invoke(app, ["data", *line.split()]) for line in sys.argv[1:]]
print(json.dumps([[one.exit_code, one.output] for one in ended]))
"""
EXAMPLES = """
import json, os, sys
from dataclasses import asdict
from pathlib import Path
from stlm_kd.data.labelled.examples import LabelledSource, fingerprint, read_examples
from stlm_kd.data.sources import sources
from stlm_kd.eval.fine_tuning.benchmark_data import Wanted, locate
from stlm_kd.eval.language_modeling import wikitext
cola = LabelledSource(hub="nyu-mll/glue", name="cola", split="train")
found = read_examples(cola)
wiki = sources.Source(hub="Salesforce/wikitext", name="wikitext-2-v1", lines="article")
rows = sources.Source(hub="Salesforce/wikitext", name="wikitext-2-v1")
made = locate([Wanted("glue", "cola", ("nyu-mll/glue", "cola"), ("train",))], "auto")["cola"]
print(json.dumps({
    "examples": [found.texts, found.labels.tolist(), found.ids, found.label_names],
    "articles": [*sources.documents(wiki)], "rows": [*sources.documents(rows)],
    "prints": [fingerprint(cola), sources.fingerprint(wiki)], "identity": cola.identity(),
    "parts": [part.name for part in wiki.entry.parts(wiki.value, **wiki.options)],
    "suite": [made.files, made.hub], "scored": wikitext.articles(),
}))
"""
RECIPE = """
task: clm
student: {tokenizer: {train: bpe, size: 300}, preset: stlm-nano}
data: {train: [{hub: org/web, name: web}, more.txt], validation: {hub: org/lines, split: test}}
objectives: [{loss: labels}]
train: {steps: 2}
eval: [{suite: glue, tasks: [rte, cola]}]
"""
LIBRARY = """
import json, sys
from datasets import load_dataset
found = []
for name, configuration, split in map(json.loads, sys.argv[1:]):
    table = load_dataset(name, configuration, split=split)
    found.append([text for text in table["text"] if text.strip()])
print(json.dumps(found))
"""
AHEAD = """
import json, sys, threading
from itertools import islice
from stlm_kd.data.sources.sources import Source, documents
found = []
for given, most in (json.loads(line) for line in sys.argv[1:]):
    source = Source(**given)
    texts = documents(source)
    found.append([len([*islice(texts, most)]), source.expected_bytes()])
    for thread in threading.enumerate():
        if thread.name == "fetching":
            thread.join()
print(json.dumps(found))
"""
PREPARE = """
import sys
from datasets import load_dataset
print([len(load_dataset(name, split="train")) for name in sys.argv[1:]])
"""
CARD = """---
configs:
- config_name: web
  data_files: [{split: train, path: [more/*.parquet, "data/train-*"]}, {split: validation, path: data/held*}]
- {config_name: other, data_files: [{split: train, path: "other/*"}]}
---
"""


def table(*texts: str, group: int = 2) -> bytes:
    """A Parquet file of the texts and another column, in groups of rows."""
    buffer = io.BytesIO()
    columns = {"text": [*texts], "length": [len(text) for text in texts]}
    parquet.write_table(pyarrow.table(columns), buffer, row_group_size=group)
    return buffer.getvalue()


def json_lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "at": "2026-01-01"}) + "\n" for text in texts).encode()


def texts_of(shard: str) -> list[str]:
    return [f"{shard} {number}" for number in range(5)]


SHARDS = {f"data/train-0000{number}-of-00004.parquet": texts_of(f"d{number}") for number in range(4)}
FILES: dict[str, Any] = {
    "README.md": CARD,
    **{name: table(*texts) for name, texts in SHARDS.items()},
    "more/a.parquet": table("m", " ", "n"),
    "data/held.parquet": table(*texts_of("h"), " "),
    "other/train.parquet": table("o"),
}
LINES: dict[str, Any] = {
    "train.jsonl": json_lines("a", " ", "b"),
    "test.jsonl.gz": gzip.compress(json_lines("c")),
}
ORDER = ["m", "n", *(text for texts in SHARDS.values() for text in texts)]


WEB = {"hub": "org/web", "name": "web"}
HELD = WEB | {"split": "validation"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Hub() as hub:
        yield World(hub, tmp_path)


def mirror_of(home: Path, folder: str, splits: Sequence[str], rows: Sequence[Any]) -> Path:
    """A mirror's folder with the same rows in each split."""
    place = home / "mirrors" / folder
    place.mkdir(parents=True)
    for split in splits:
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def read(world: World, *sources: dict[str, Any], **variables: str) -> list[Any]:
    found: list[Any] = world.python(READ, *map(json.dumps, sources), **variables)
    return found


def downloads(world: World) -> set[str]:
    """The large files that were sent."""
    sent = (line.split()[1] for line in world.requests if line.startswith("GET /_cdn/"))
    return {name.partition("?name=")[2] for name in sent}


def test_only_the_files_that_are_read_are_fetched_and_a_moved_main_changes_nothing(world: World) -> None:
    commit = world.hub.add("dataset", "org/web", FILES)
    (one,) = read(world, WEB | {"most": 4})
    assert not isinstance(one, str), one
    texts, identity, parts = one
    assert texts == ORDER[:4]
    assert identity == ["hub", "org/web", "web", "train", "text", commit]
    assert parts == ["more/a.parquet", *SHARDS]
    assert downloads(world) == {"data/train-00000-of-00004.parquet", "more/a.parquet"}

    world.hub.add("dataset", "org/web", {next(iter(SHARDS)): table("moved")})
    more = WEB | {"limit": {"unit": "documents", "number": 9}, "revision": commit}
    short = HELD | {"revision": commit, "where": {"length": 3}}
    again, held, message = read(world, more, short, HELD | {"split": "dev"})
    assert (again[0], held[0]) == (ORDER[:9], texts_of("h"))
    assert again[1][:-2] == identity and held[1][-2:] == [{"where": {"length": 3}}, commit]
    assert downloads(world) == {"data/train-00001-of-00004.parquet", "data/held.parquet"}
    assert message == "DataError: org/web: no split 'dev'; it has train, validation"


@pytest.mark.long
def test_the_rows_are_the_librarys_and_offline_those_that_were_fetched(world: World) -> None:
    commit = world.hub.add("dataset", "org/web", FILES)
    read(world, WEB | {"most": 9})
    pinned = WEB | {"revision": commit}
    cached, message = read(world, pinned | {"most": 9}, pinned, HF_HUB_OFFLINE="1")
    assert cached[0] == ORDER[:9] and not world.requests
    assert message.startswith(f"HubUnreachable: org/web@{commit}: not in the cache, and offline mode is on")

    world.hub.add("dataset", "org/web", {next(iter(SHARDS)): table("moved")})
    world.hub.add("dataset", "org/lines", LINES)
    world.hub.add("dataset", "org/table", {"train.csv": "text,at\none,1\ntwo,2\n", "README.md": "text"})
    lines: list[dict[str, Any]] = [{"hub": "org/lines", "split": split} for split in ("train", "test")]
    sources = [WEB, HELD, WEB | {"name": "other"}, *lines, {"hub": "org/table"}]
    ours = read(world, *sources)
    asked = ([one["hub"], one.get("name"), one.get("split", "train")] for one in sources)
    theirs = world.python(LIBRARY, *map(json.dumps, asked))
    assert [one[0] for one in ours] == theirs
    assert theirs[0] == ["m", "n", "moved", *ORDER[7:]]
    assert theirs[1:] == [texts_of("h"), ["o"], ["a", "b"], ["c"], ["one", "two"]]
    assert ours[-1][2] == ["train"], "only the library reads it"
    assert read(world, *sources) == ours, "prepared by the library meanwhile"


@pytest.mark.long
def test_once_half_of_a_file_is_read_the_next_one_is_fetched(world: World) -> None:
    shards = {
        f"train-{n}.parquet": table(*[f"{n} {'text ' * 40}{i * 7919}" for i in range(900)], group=90)
        for n in range(4)
    }
    world.hub.add("dataset", "org/big", shards)
    size = sum(len(f"{n} {'text ' * 40}{i * 7919}") for n in range(4) for i in range(900))
    one = {"hub": "org/big"}
    ((read, expected),) = world.python(AHEAD, json.dumps([one, 1]))
    assert len(downloads(world)) == 1 and read == 1
    assert expected == pytest.approx(size, rel=0.1)
    world.python(AHEAD, json.dumps([one, 899]), json.dumps([one, 899]))
    assert len(downloads(world)) == 1, "one ahead, once"
    world.python(AHEAD, json.dumps([one, 9999]))
    assert len(downloads(world)) == 2


def test_a_connection_that_breaks_is_taken_up_again_and_a_changed_file_is_refused(world: World) -> None:
    big = table(*(f"{number} {number * 7919}" for number in range(20_000)), group=1000)
    world.hub.add("dataset", "org/big", {"train-0.parquet": big, "train-1.parquet": table("b", "c")})
    world.hub.fault("GET /_cdn/.*train-0", cut=len(big) // 2, times=1)
    world.hub.fault("GET /_cdn/.*train-1", corrupt=True)
    found, message = read(world, {"hub": "org/big", "most": 20_000}, {"hub": "org/big"})
    assert not isinstance(found, str), found
    assert len(found[0]) == 20_000 and found[0][-1] == f"19999 {19999 * 7919}"
    assert (
        message.startswith("MissingResourceError: org/big@") and "train-1.parquet is not the file" in message
    )
    assert [line for line in world.requests if "train-0" in line and line.startswith("GET /_cdn")][1:]


def test_the_data_of_a_recipe_is_listed_and_fetched_ahead(world: World) -> None:
    card = CARD.replace("---", "---\nlicense: mit", 1)
    commit = world.hub.add("dataset", "org/web", FILES | {"README.md": card})
    world.hub.add("dataset", "org/lines", LINES)
    cola: dict[str, Any] = {"README.md": card.replace("web", "cola")}
    cola |= dict.fromkeys(("more/t.parquet", "data/train-0.parquet", "data/held.parquet"), table("x"))
    world.hub.add("dataset", "nyu-mll/glue", cola)
    (world.home / "mine.yaml").write_text(RECIPE)
    (world.home / "more.txt").write_text("more")
    row = {"sentence1": "a", "sentence2": "b", "label": 0}
    mirror_of(world.home, "glue/rte", ["train", "validation"], [row])
    here = {"STLM_KD_DATA": "mirrors"}
    odd = "---\ndataset_info: {splits: [{name: train, num_examples: many}]}\n---\n"
    world.hub.add("dataset", "org/odd", {"README.md": odd, "train.jsonl": json_lines("a")})
    world.hub.add("dataset", "org/card", {"README.md": "---\na: [\n---\n", "train.jsonl": json_lines("a")})
    asked = ("list mine.yaml --json", "get mine.yaml --json", "info org/web --name web")
    asked += ("info org/odd", "info org/card")

    def states(output: str) -> dict[str, tuple[str, int | None]]:
        rows = json.loads(output[output.index("[\n") : output.rindex("\n]") + 2])
        return {row["name"]: (row["state"], row["num_bytes"]) for row in rows}

    (code, listed), (_, now), (_, info), (_, strange), malformed = world.python(COMMANDS, *asked, **here)
    sizes = {name: len(content) for name, content in (FILES | LINES).items()}
    web = sum(size for name, size in sizes.items() if name.startswith(("data/train", "more")))
    assert code == 0, listed
    assert states(listed) == {
        "org/web (web)": ("on the Hub", web),
        "more.txt": ("here", 4),
        "org/lines": ("on the Hub", sizes["test.jsonl.gz"]),
        "nyu-mll/glue (rte)": ("mirror", ANY),
        "nyu-mll/glue (cola)": ("on the Hub", ANY),
    }
    assert {state for state, _ in states(now).values()} == {"cached", "here", "mirror"}
    assert f"org/web at {commit}\nlicence: mit" in info and "train       5" in info
    assert "org/web (web): fetched" in now and "train  1" in strange
    assert malformed[0] == 1 and "README.md has malformed metadata (while parsing" in malformed[1]


@pytest.mark.long
def test_a_fetch_goes_on_where_it_broke(world: World) -> None:
    commit = world.hub.add("dataset", "org/web", FILES)
    world.hub.add("dataset", "org/lines", LINES)
    (world.home / "mine.yaml").write_text(RECIPE.partition("eval:")[0])
    (world.home / "more.txt").write_text("more")
    world.hub.fault(f"GET /_cdn/.*{next(iter(SHARDS))}", status=503)
    ((failed, told),) = world.python(COMMANDS, "get mine.yaml")
    assert failed == 5 and f"data.train: org/web@{commit}: " in told and "has a fault of its own" in told
    world.hub.faults.clear()
    ((again, _),) = world.python(COMMANDS, "get mine.yaml")
    assert again == 0 and downloads(world) == {*SHARDS}
    ((code, listed),) = world.python(COMMANDS, "list mine.yaml", HF_HUB_OFFLINE="1")
    assert code == 0 and listed.count("cached") == 2 and not world.requests


MISSING = """
import json, sys
from stlm_kd.data.sources.sources import documents
from stlm_kd.pipeline.builders.sources import sources
from stlm_kd.pipeline.checks.requirements import missing_here
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import drift
found = []
for change in sys.argv[1:]:
    recipe = load("mine.yaml", [f"data.train={change}"])
    faults = [fault.message for fault in missing_here(recipe)]
    found.append(faults or [len(text) for text in documents(sources(recipe.data.train, recipe)[0])])
print(json.dumps(found))
"""
CHATS = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3


@pytest.mark.long
def test_what_was_fetched_ahead_is_enough_offline_and_what_is_not_is_said_at_the_start(world: World) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in CHATS)
    world.hub.add("dataset", "org/chats", {"train.jsonl": rows})
    shards = world.hub.add("dataset", "org/web", FILES)
    text = RECIPE.partition("eval:")[0].replace("more.txt", "{hub: org/chats, chat: chatml}")
    text = text.replace(", validation: {hub: org/lines, split: test}", "")
    (world.home / "mine.yaml").write_text(text)
    read(world, WEB | {"most": 3}, {"hub": "org/chats", "column": "messages", "most": 1})
    web, chats = "{hub: org/web, name: web}", "{hub: org/chats, chat: chatml}"
    limited = "{hub: org/web, name: web, limit: {documents: 3}}"
    part, files, enough = world.python(MISSING, web, chats, limited, HF_HUB_OFFLINE="1")
    assert part[0].startswith(f"org/web@{shards} (configuration web): not in the cache")
    assert files[0].startswith("org/chats@") and "not in the cache" in files[0]
    assert enough == [1, 1, 4]

    text = text.replace("{hub: org/web, name: web}", "{hub: org/web, name: web, split: dev}")
    (world.home / "mine.yaml").write_text(text)
    ((code, told),) = world.python(COMMANDS, "get mine.yaml")
    assert code == 1 and "1 data sets cannot be fetched" in told and "no split 'dev'" in told
    size = len(json.dumps(CHATS[0]["messages"]))
    assert world.python(MISSING, chats, HF_HUB_OFFLINE="1") == [[size, size, size]]


@pytest.mark.long
def test_json_lines_give_the_same_documents_whatever_is_prepared(world: World) -> None:
    rows = [{"text": "2024-01-0" + str(day), "n": 1, "at": "2026-01-01"} for day in range(1, 4)]
    world.hub.add("dataset", "org/dates", {"train.jsonl": "\n".join(map(json.dumps, rows))})
    mixed = [json.dumps({"text": text}) for text in ("a", 7, "b")]
    world.hub.add("dataset", "org/mixed", {f"train-{i}.jsonl": line for i, line in enumerate(mixed)})
    dates = {"hub": "org/dates", "where": {"at": "2026-01-01", "n": 1}}
    asked = [dates, {"hub": "org/mixed"}]
    before = read(world, *asked)
    assert before[0][0] == [row["text"] for row in rows]
    assert before[1].startswith("DataError") and "train-1.jsonl:1, column text: int found" in before[1]
    world.python(PREPARE, "org/dates", "org/mixed")
    assert read(world, *asked, HF_HUB_OFFLINE="1") == before


OF_COLA = """
task: clm
student: {tokenizer: {train: bpe, size: 300}, preset: stlm-nano}
data: {train: {hub: nyu-mll/glue, name: cola, split: train, column: sentence}}
objectives: [{loss: labels}]
train: {steps: 2, keep: last}
"""


BOTH = (("nyu-mll/glue", "cola"), ("Salesforce/wikitext", "wikitext-2-v1"))


def put_on_hub(world: World, rows: list[dict[str, Any]], lines: list[str]) -> list[str]:
    """Examples and the lines of a text as ``BOTH`` on the Hub; their commits."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    buffers = [io.BytesIO() for _ in range(2)]
    of_hub = [text if text.strip() else "" for text in lines]
    for buffer, content in zip(buffers, (columns, {"text": of_hub}), strict=True):
        parquet.write_table(pyarrow.table(content), buffer)
    commits = []
    for (dataset, name), buffer in zip(BOTH, buffers, strict=True):
        config = f"{{config_name: {name}, data_files: [{{split: train, path: t.parquet}}]}}"
        raw = "{config_name: wikitext-2-raw-v1, data_files: [{split: test, path: t.parquet}]}"
        files = {"README.md": f"---\nconfigs: [{config}, {raw}]\n---\n", "t.parquet": buffer.getvalue()}
        commits.append(world.hub.add("dataset", dataset, files))
    return commits


def test_a_mirror_gives_the_rows_of_the_hub_under_the_keys_of_its_files_or_of_the_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"sentence": f"a tale {number}", "label": number % 2, "idx": 7 * number} for number in range(9)]
    lines = [
        " \n",
        " = One = \n",
        " \n",
        " some text \n",
        " and more \n",
        " \n",
        " = Two = \n",
        " \n",
        " end \n",
    ]
    commits = put_on_hub(world, rows, lines)
    (world.home / "cola.yaml").write_text(OF_COLA)
    world.hub.add("dataset", "nyu-mll/glue", {"other": "moved on"})
    pinned = OF_COLA.replace("split: train", f"split: train, revision: {commits[0]}")
    of_the_hub = world.python(EXAMPLES)

    monkeypatch.chdir(world.home)
    monkeypatch.setenv("STLM_KD_DATA", "mirrors")

    def here() -> dict[str, Any]:
        printed = io.StringIO()
        with using(Pins()), redirect_stdout(printed):
            exec(compile(EXAMPLES, "examples", "exec"), {})
            locked = lock_of(load("cola.yaml")).data["train.0"]
        return json.loads(printed.getvalue()) | {"locked": [locked.hub, locked.commit, locked.sha256]}

    place = mirror_of(world.home, "glue/cola", ["train"], rows)
    text = mirror_of(world.home, "lm/wikitext-2", [], []) / "train.txt"
    text.write_text("".join(lines))
    (mirror_of(world.home, "lm/wikitext-2-raw", [], []) / "test.txt").write_text("".join(lines))
    mirrored = here()
    for what in ("examples", "articles", "rows", "parts", "scored"):
        assert mirrored[what] == of_the_hub[what], what
    labelled = LabelledSource(path=str(place / "train.jsonl"))
    assert mirrored["prints"] == [fingerprint(labelled), sources.fingerprint(sources.Source(path=str(text)))]
    assert mirrored["articles"] == [*sources.documents(sources.Source(path=str(text)))]
    assert mirrored["suite"] == [{"train": "mirrors/glue/cola/train.jsonl"}, ["nyu-mll/glue", "cola"]]
    assert mirrored["locked"][:2] == [None, None] and mirrored["locked"][2].startswith("sha256:")

    for folder, (dataset, _), commit in zip((place, text.parent), BOTH, commits, strict=True):
        (folder / "hub.json").write_text(json.dumps({"id": dataset, "commit": commit}))
    (world.home / "cola.yaml").write_text(pinned)
    named = here()
    assert named["examples"] == of_the_hub["examples"]
    assert named["identity"][:-2] == ["hub", "nyu-mll/glue", "cola", "train", commits[0]]
    assert named["identity"][-2] == "files", "its content too"
    content = place / "train.jsonl"
    digest = f"sha256:{hashlib.sha256(content.read_bytes()).hexdigest()}"
    assert named["locked"] == ["nyu-mll/glue", commits[0], digest]
    recipe, before = load("cola.yaml"), content.read_text()
    with using(Pins()):
        lock = lock_of(recipe)
        of_the_hub_alone = replace(lock, data={"train.0": replace(lock.data["train.0"], sha256=None)})
        content.write_text(before.replace("a tale 3", "a tail 3"))
        assert [one.place for one in drift(lock, lock_of(recipe))] == ["data.train.0.sha256"]
        assert not drift(of_the_hub_alone, lock_of(recipe))
    assert len({one["prints"][1] for one in (named, of_the_hub, mirrored)}) == 3
    assert mirror(HubName("dataset", "nyu-mll/glue", "v9"), "cola", ["train"]) is None, "another revision"


def test_the_commands_of_the_page_on_data_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("a text\n")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for line in page.splitlines() if line.startswith("stlm-kd data ")]
    ended = [CliRunner().invoke(app, line.split()[1:]) for line in lines]
    assert [one.exit_code for one in ended] == [0, 0, 0], [one.output for one in ended]
    assert "generated" in ended[0].output and "all    1      7 bytes" in ended[2].output
