"""Limits, drawn orders and filters, compared with a slow count over the whole list."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data.chats import ChatFormat
from stlm_kd.data.corpus import prepare
from stlm_kd.data.overlap import text_hash
from stlm_kd.data.sources.filters import Filters, HashSet, Subsample, hashes_of
from stlm_kd.data.sources.limits import Limit
from stlm_kd.data.sources.sources import (
    Part,
    Source,
    documents,
    drawn_order,
    fingerprint,
    register_data_source,
)
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError
from tests.support.registries import unchanged_registries

SHAPES = st.sampled_from(
    [
        "",
        " ",
        "\n\n",
        "a",
        "a ",
        " a\n",
        "cat",
        "a cat",
        "a  cat",
        "a\tcat\n",
        "naïve 日本",
        "<|end|>",
        "x" * 50,
        "\x00",
    ]
)
TEXTS = st.lists(SHAPES, max_size=30)


def normalised(text: str) -> str:
    return " ".join(text.split())


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(0, 8), st.booleans(), st.none() | TEXTS)
def test_filters_leave_what_a_list_would(
    texts: list[str], shortest: int, once: bool, held: list[str] | None
) -> None:
    kept: list[str] = []
    taken: Counter[str] = Counter()
    out = {normalised(text) for text in held or ()}
    for i, text in enumerate(texts):
        before = [normalised(one) for one in texts[:i] if one.strip() and len(one) >= shortest]
        if not text.strip():
            continue
        if len(text) < shortest:
            taken["min_characters"] += 1
        elif once and normalised(text) in before:
            taken["deduplicate"] += 1
        elif normalised(text) in out:
            taken["remove_overlap"] += 1
        else:
            kept.append(text)
    filters = Filters(None, None, shortest, once, None if held is None else HashSet(hashes_of(held)))
    assert list(filters.kept(texts)) == kept
    assert (filters.taken, filters.num_kept) == (taken, len(kept))


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.sampled_from(["documents", "bytes"]), st.integers(1, 60))
def test_a_limit_is_an_exact_beginning(texts: list[str], unit: str, number: int) -> None:
    texts = [text for text in texts if text.strip()]
    limit = Limit(unit, number)  # type: ignore[arg-type]
    if unit == "documents":
        assert list(limit.first_of(iter(texts), "here")) == texts[:number]
        return
    sizes = [len(text.encode()) for text in texts]
    whole = sum(1 for i in range(len(texts)) if sum(sizes[: i + 1]) <= number)
    room = number - sum(sizes[:whole])
    fitting = (
        [cut for cut in beginnings(texts[whole]) if len(cut.encode()) <= room] if whole < len(texts) else []
    )
    expected = [*texts[:whole], *fitting[-1:]]
    if texts and not expected:
        with pytest.raises(DataError, match="ends within the first word; raise it"):
            list(limit.first_of(iter(texts), "here"))
    else:
        assert list(limit.first_of(iter(texts), "here")) == expected


def beginnings(text: str) -> list[str]:
    """The beginnings of a text that end with a word, the shortest first."""
    ends = [i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()]
    return [text[:end] for end in ends if text[:end].strip()]


def test_a_hash_set_is_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 2**64, 30_000, np.uint64)
    drawn = [*numbers[generator.integers(0, len(numbers), 60_000)].tolist(), 0, 2**64 - 1, 0]
    ours: HashSet = HashSet()
    theirs: set[int] = set()
    for number in drawn:
        assert ours.add(number) is (number not in theirs)
        theirs.add(number)
    assert len(ours) == len(theirs)
    assert ours._sorted.nbytes == 8 * len(ours._sorted) > 0
    assert all(number in ours for number in numbers[:1000].tolist()) == {*numbers[:1000].tolist()}.issubset(
        theirs
    )


def shards(folder: Path, number: int = 5) -> str:
    folder.mkdir()
    for i in range(number):
        rows = [{"text": f"Document {j} of {i} .", "language": "en" if j % 2 else "de"} for j in range(4)]
        (folder / f"{i}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def test_a_drawn_order_takes_whole_files_and_depends_on_the_seed(tmp_path: Path) -> None:
    path = shards(tmp_path / "a")
    own = list(documents(Source(path=path)))
    orders = {tuple(documents(Source(path=path, shuffle=seed))) for seed in range(8)}
    assert len(orders) > 4
    files = [own[i : i + 4] for i in range(0, 20, 4)]
    for order in orders:
        assert sorted(order[i : i + 4] for i in range(0, 20, 4)) == sorted(map(tuple, files))
    parts = [Part(str(i), lambda: iter([])) for i in range(5)]
    assert [part.name for part in drawn_order(parts, 3)] == ["1", "4", "0", "2", "3"]


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 1), st.floats(0.02, 1), st.integers(0, 2**32 - 1))
def test_a_subsample_is_a_random_part_and_a_smaller_one_is_part_of_it(a: float, b: float, seed: int) -> None:
    texts = [str(i) for i in range(400)]
    small, great = ([*Filters(subsample=Subsample(rate, seed)).kept(texts)] for rate in sorted((a, b)))
    assert set(small) <= set(great) and great == sorted(great, key=int)
    for found, rate in ((small, min(a, b)), (great, max(a, b))):
        assert abs(len(found) - rate * 400) <= 6 * math.sqrt(rate * (1 - rate) * 400) + 1e-9  # 6 sigma
        middle = sum(int(text) for text in found) / len(found) if len(found) > 99 else 200
        assert 140 < middle < 260


def test_a_subsample_depends_on_its_seed_and_on_nothing_but_the_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shards(tmp_path / "a")
    every = [*documents(Source(path=path))]
    drawn = Subsample(0.5, seed=3)
    with caplog.at_level("WARNING", "stlm_kd"):
        found = [*documents(Source(path=path, subsample=drawn, min_characters=3))]
    kept = [not drawn.takes(number) for number in range(1, 21)]
    assert found == [*compress(every, kept)] and sum(kept) not in (0, 20)
    counts = f"filters kept {sum(kept)} of 20 documents: subsample took {20 - sum(kept)}"
    assert caplog.messages == [f"{path}: {counts}"]
    (tmp_path / "one.txt").write_text("\n".join(every))
    one = Source(path=str(tmp_path / "one.txt"), documents="line", subsample=drawn)
    assert [*documents(one)] == found == [*documents(one)]
    assert [*documents(Source(path=path, subsample=drawn, limit=Limit("documents", 4)))] == found[:4]
    seeds = {tuple(documents(Source(path=path, subsample=Subsample(0.5, seed)))) for seed in range(8)}
    assert len(seeds) > 6
    assert [Subsample(0.3, 7).takes(i) for i in range(1, 9)] == [
        False,
        False,
        True,
        True,
        True,
        True,
        False,
        True,
    ]


def test_what_is_read_is_part_of_the_fingerprint_only_where_it_is_given(tmp_path: Path) -> None:
    path = shards(tmp_path / "a")
    plain = Source(path=path)
    assert fingerprint(plain) == fingerprint(Source(path=path, deduplicate=False, weight=2.0))
    assert plain.identity()[0] == "files" and len(plain.identity()) == 4
    others = [
        Source(path=path, limit=Limit("documents", 3)),
        Source(path=path, limit=Limit("bytes", 3)),
        Source(path=path, shuffle=0),
        Source(path=path, subsample=Subsample(0.5)),
        Source(path=path, subsample=Subsample(0.5, seed=1)),
        Source(path=path, min_characters=3),
        Source(path=path, deduplicate=True),
        Source(path=path, where={"language": "en"}),
        Source(path=path, held_out=(plain,)),
    ]
    assert len({fingerprint(source) for source in (plain, *others)}) == 10


def test_counts_of_all_filters_are_one_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shards(tmp_path / "a")
    with (tmp_path / "a" / "4.jsonl").open("a") as file:
        file.writelines(
            f"\n{json.dumps({'text': text, 'language': 'en'})}" for text in ("A cat .", "Document  1 of 0 .")
        )
    (tmp_path / "held.txt").write_text("Document 3 of 2 .")
    given = {"min_characters": 10, "deduplicate": True, "where": {"language": ["en", "fr"]}}
    with caplog.at_level("WARNING", "stlm_kd"):
        found = list(
            documents(Source(path=path, held_out=(Source(path=str(tmp_path / "held.txt")),), **given))
        )
    assert len(found) == 9
    counts = "where took 10, min_characters took 1, deduplicate took 1, remove_overlap took 1"
    assert caplog.messages == [f"{path}: filters kept 9 of 22 documents: {counts}"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"where": {"language": "fr"}},
            r"where took 20 \(where language: 'fr'; found language: 'de', language: 'en'\)",
        ),
        ({"min_characters": 100}, "no document is left: min_characters took 20; change the filters"),
        ({"where": {"lang": "en"}}, r"0\.jsonl:1: no column lang; found: language, text"),
        ({"limit": Limit("bytes", 3)}, "limit 3 bytes"),
        ({"subsample": Subsample(1e-9)}, "no document is left: subsample took 20; change the filters"),
    ],
)
def test_an_empty_result_is_refused(given: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list(documents(Source(path=shards(tmp_path / "a"), **given)))


def test_a_number_is_no_text_and_no_truth_value(tmp_path: Path) -> None:
    rows = [{"text": f"{value!r}", "x": value} for value in (1, "1", True, 1.0, None)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for wanted, kept in ((1, ["1", "1.0"]), ("1", ["'1'"]), (True, ["True"])):
        assert list(documents(Source(path=str(tmp_path / "a.jsonl"), where={"x": wanted}))) == kept


def test_bad_options_are_refused(tmp_path: Path) -> None:
    for unit, number in (("tokens", 0), ("bytes", -1), ("words", 3)):
        with pytest.raises(DataError, match=f"limit: {number} {unit} found; expected 1 or more of tokens"):
            Limit(unit, number)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shuffle found, but the source has no parts"):
        Source(sample="train", shuffle=1)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: plain text has no columns, but where names some"):
        list(documents(Source(path=str(tmp_path / "a.txt"), where={"language": "en"})))


def test_a_limit_above_the_set_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shards(tmp_path / "a")
    with caplog.at_level("WARNING", "stlm_kd"):
        assert len(list(documents(Source(path=path, limit=Limit("documents", 20))))) == 20
        assert not caplog.messages
        assert len(list(documents(Source(path=path, limit=Limit("documents", 21))))) == 20
    assert caplog.messages == [f"{path}: limit 21 documents found, but the set has only 20; all are read"]


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_a_limit_in_tokens_is_exact(
    fraction: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shards(tmp_path / "a")
    tokenizer = train_tokenizer(list(documents(Source(path=path))), size=270)
    folder = tmp_path / "stores"
    (whole,) = prepare([Source(path=path)], tokenizer, folder)
    for number in (31, 57, 100):
        source = Source(path=path, limit=Limit("tokens", number))
        (made,) = prepare([source], tokenizer, folder, fraction=fraction)
        expected = round(fraction * number)
        assert made.store.num_tokens == expected
        assert (made.store.tokens[:-1] == whole.store.tokens[: expected - 1]).all()
        assert made.store.tokens[-1] == made.store.eos_id
    with caplog.at_level("WARNING", "stlm_kd"):
        prepare([Source(path=path, limit=Limit("tokens", 10**9))], tokenizer, folder)
    assert (
        f"limit 1,000,000,000 tokens found, but the set has only {whole.store.num_tokens:,};" in caplog.text
    )


def test_hashes_are_those_of_the_overlap() -> None:
    assert text_hash("a  cat") in hashes_of(["a cat"])


def test_keys_of_columns_and_of_filters_are_not_taken_for_each_other(tmp_path: Path) -> None:
    rows = [{"text": "x y", "deduplicate": True}, {"text": "x y", "deduplicate": True}, {"text": "z"}]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"deduplicate": False, **row}) for row in rows))
    by_column = Source(path=str(file), where={"deduplicate": True})
    by_key = Source(path=str(file), deduplicate=True)
    assert [*documents(by_column)] == ["x y", "x y"] and [*documents(by_key)] == ["x y", "z"]
    assert fingerprint(by_column) != fingerprint(by_key)


def test_a_held_out_document_that_a_limit_cuts_is_left_out_whole(tmp_path: Path) -> None:
    texts = ["first held", "second held is long", "kept"]
    (tmp_path / "held.txt").write_text("\n".join(texts[:2]))
    (tmp_path / "train.txt").write_text("\n".join(texts))
    held = Source(path=str(tmp_path / "held.txt"), documents="line", limit=Limit("bytes", 17))
    assert [*documents(held)] == ["first held", "second"]
    own = Source(path=str(tmp_path / "train.txt"), documents="line", held_out=(held,))
    assert [*documents(own)] == ["kept"]


def test_a_users_source_may_have_an_option_that_is_called_where() -> None:
    with unchanged_registries():

        @register_data_source("places", identity=lambda value, **options: [value, options])
        def places(value: str, /, *, where: str = "here") -> Iterator[str]:
            yield f"{value} {where}"

        assert [*documents(Source(places="is", where="there"))] == ["is there"]


@pytest.mark.parametrize(("wanted", "text"), [(2024, "2024"), ([2023, "2024"], "2023"), (True, "True")])
def test_a_number_that_a_table_has_as_text_is_to_be_quoted(wanted: object, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,year\na,2023\nb,2024\nc,True\n")
    with pytest.raises(
        DataError, match=rf'the column has only texts, such as \'{text}\'; quote it: "{text}"$'
    ):
        list(documents(Source(path=str(tmp_path / "a.csv"), where={"year": wanted})))


def test_a_later_file_without_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "1.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(DataError, match=r"1\.jsonl:1: no column text; .* add or rename text here"):
        list(documents(Source(path=str(tmp_path))))


def test_chats_are_compared_and_counted_by_what_is_said(tmp_path: Path) -> None:
    said = ["one two", "one\ntwo", "one two ", "one two three"]
    chats = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}] for content in said
    ]
    lines = [json.dumps({"messages": chat}) + "\n" for chat in chats]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    (tmp_path / "b.jsonl").write_text(lines[1])
    held = Source(path=str(tmp_path / "b.jsonl"), chat=ChatFormat("chatml"))

    def left(**options: Any) -> list[str]:
        source = Source(path=str(tmp_path / "a.jsonl"), chat=ChatFormat("chatml"), **options)
        return [json.loads(text)[1]["content"] for text in documents(source)]

    assert left(deduplicate=True) == [said[0], said[3]]
    assert left(held_out=(held,)) == [said[3]]
    assert left(min_characters=len("Hi one two three")) == [said[3]]
    assert left(limit=Limit("bytes", 2 * len("Hi one two"))) == said[:2]
