"""From sources to packed rows: shares of the text, and stores that are built once."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.data import corpus, overlap
from stlm_kd.data.corpus import pack_sources, prepare, share, texts
from stlm_kd.data.overlap import found_in
from stlm_kd.data.sources.limits import first_words
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.text.row_index import RowIndex
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError

WORDS = ["the", "quiet", "otter", "saw", "a", "lantern", "near", "an", "old", "mill", "and", "slept", "again"]
Words = st.lists(st.sampled_from([*WORDS, "naïve", "日本"]), min_size=1, max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(WORDS, size=270)


def source_of(path: Path, documents: int = 20) -> Source:
    lines = [" ".join(WORDS[i % 7 :]) for i in range(documents)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return Source(path=str(path), documents="line")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that were built."""
    built: list[str] = []
    build = corpus.build_store

    def counted(
        texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any
    ) -> object:
        built.append(folder.name)
        return build(texts, tokenizer, folder, **options)

    monkeypatch.setattr(corpus, "build_store", counted)
    return built


def test_the_same_text_is_tokenised_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, builds: list[str]
) -> None:
    source = source_of(tmp_path / "a.txt")
    first = prepare([source], tokenizer, tmp_path / "stages")
    (tmp_path / "a.txt").rename(tmp_path / "moved.txt")
    moved = Source(path=str(tmp_path / "moved.txt"), documents="line", domain="news", weight=2.0)
    again = prepare([moved], train_tokenizer(WORDS, size=270), tmp_path / "stages")
    assert len(builds) == 1
    assert first[0].store.folder == again[0].store.folder
    assert (again[0].domain, again[0].weight) == ("news", 2.0)


def test_another_text_tokenizer_or_share_gets_another_store(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, builds: list[str]
) -> None:
    one, other = source_of(tmp_path / "a.txt"), source_of(tmp_path / "b.txt", documents=21)
    prepare([one, other], tokenizer, tmp_path / "stages")
    prepare([one], train_tokenizer(WORDS, size=271), tmp_path / "stages")
    prepare([one], tokenizer, tmp_path / "stages", fraction=0.5)
    assert len(set(builds)) == 4


def test_a_tokenizer_that_splits_special_tokens_gets_a_store_of_its_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.txt").write_text("an <|pad|> otter")
    splitting = train_tokenizer(WORDS, size=270)
    splitting.split_special_tokens = True
    source = Source(path=str(tmp_path / "a.txt"))
    stores = [prepare([source], t, tmp_path / "stages")[0].store for t in (tokenizer, splitting)]
    pad = tokenizer.pad_token_id
    assert [pad in store.tokens.tolist() for store in stores] == [True, False]


def test_a_half_written_store_is_never_used_and_goes_when_it_is_built_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "a.txt")
    # As after the power went: nothing is cleaned up, and the folder has not got its name.
    with monkeypatch.context() as patch:
        patch.setattr("stlm_kd.data.text.store_builder.shutil.rmtree", lambda *_, **__: None)
        patch.setattr("stlm_kd.data.text.store_builder._put_in_place", lambda *_: None)
        with pytest.raises(DataError, match="no token store"):
            prepare([source], tokenizer, tmp_path / "stages")
    (left,) = (tmp_path / "stages").glob("tokens-*.partial")
    assert prepare([source], tokenizer, tmp_path / "stages")[0].store.num_documents == 20
    assert not left.exists()


def test_a_damaged_store_is_built_again_with_a_note(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path / "a.txt")
    store = prepare([source], tokenizer, tmp_path / "stages")[0].store
    before, file = store.tokens.tolist(), store.folder / "tokens-00000.bin"
    file.write_bytes(bytes(file.stat().st_size))
    assert prepare([source], tokenizer, tmp_path / "stages")[0].store.tokens.tolist() == before
    assert (
        f"{store.folder}: tokens-00000.bin: changed since the text was tokenised; the text is" in caplog.text
    )


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of rows that were packed."""
    packed: list[Path] = []
    write = RowIndex.write

    def counted(folder: Path, *args: Any, **options: Any) -> None:
        packed.append(folder)
        write(folder, *args, **options)

    monkeypatch.setattr(RowIndex, "write", counted)
    return packed


def test_rows_are_packed_once_for_each_context(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, packings: list[Path]
) -> None:
    prepared = prepare([source_of(tmp_path / "a.txt")], tokenizer, tmp_path / "stages")
    first, again = (pack_sources(prepared, 16)[0] for _ in range(2))
    assert len(packings) == 1 and len(first) == len(again)
    assert torch.equal(first.batch(range(len(first))).labels, again.batch(range(len(again))).labels)
    for options in ({"context": 17}, {"context": 16, "wrapped": True}):
        pack_sources(prepared, **options)
    assert len({*packings}) == 3 and all(
        folder.is_relative_to(prepared[0].store.folder) for folder in packings
    )


@pytest.mark.parametrize("name", ["begins.bin", "lengths.bin", "labels.bin", "starts.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["zeros", "shorter", "gone"])
def test_damaged_rows_are_packed_again_with_a_note(
    name: str,
    damage: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    packings: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepared = prepare([source_of(tmp_path / "a.txt")], tokenizer, tmp_path / "stages")
    (part,) = pack_sources(prepared, 16)
    expected, file = part.batch(range(len(part))), packings[0] / name
    content = file.read_bytes()
    file.unlink()  # a file may be mapped
    if damage != "gone":
        file.write_bytes(bytes(len(content)) if damage == "zeros" else content[:20])
    (again,) = pack_sources(prepared, 16)
    assert torch.equal(again.batch(range(len(again))).labels, expected.labels)
    assert str(packings[0]) in caplog.text and "; the rows are packed again" in caplog.text
    assert [path.name for path in packings[0].parent.glob("*rows-*")] == [packings[0].name]


def test_packed_sources_keep_domain_and_weight(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = source_of(tmp_path / "a.txt").value
    prepared = prepare([Source(path=path, domain="tales", weight=0.5)], tokenizer, tmp_path / "stages")
    (part,) = pack_sources(prepared, 64)
    assert (part.domain, part.weight, part.context) == ("tales", 0.5, 64)
    assert part.num_tokens == prepared[0].store.num_tokens


def test_sources_packed_for_masked_models_wrap_every_chunk(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(WORDS, size=270, masked=True)
    prepared = prepare([source_of(tmp_path / "a.txt", documents=2)], tokenizer, tmp_path / "stages")
    (part,) = pack_sources(prepared, 8, wrapped=True)
    batch = part.batch(range(len(part)))
    chunks = int(batch.document_ids.amax(1).sum())
    assert chunks > prepared[0].store.num_documents
    for end in (tokenizer.cls_token_id, tokenizer.sep_token_id):
        assert int((batch.input_ids == end)[batch.attention_mask].sum()) == chunks


def test_text_shorter_than_one_context_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = prepare([source_of(tmp_path / "a.txt", documents=1)], tokenizer, tmp_path / "stages")
    tokens = prepared[0].store.num_tokens
    with pytest.raises(DataError, match=rf"only {tokens} tokens, but one row of data\.context has 4096"):
        pack_sources(prepared, 4096)


@settings(deadline=None, max_examples=100)
@given(st.lists(Words, min_size=1, max_size=12), st.floats(0.01, 1))
def test_a_share_is_that_part_of_the_bytes_up_to_a_word(documents: list[str], fraction: float) -> None:
    taken = list(share(lambda: iter(documents), fraction))
    total = sum(len(text.encode()) for text in documents)
    bytes_taken = sum(len(text.encode()) for text in taken)
    longest = max(len(word.encode()) for word in [*WORDS, "naïve", "日本"])
    assert bytes_taken <= round(fraction * total)
    assert bytes_taken >= round(fraction * total) - longest - 1


@settings(deadline=None, max_examples=100)
@given(st.lists(Words, min_size=1, max_size=12), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_is_part_of_a_greater(documents: list[str], a: float, b: float) -> None:
    smaller, greater = (list(share(lambda: iter(documents), f)) for f in sorted((a, b)))
    rest = iter(greater)
    assert all(any(text.startswith(part) for text in rest) for part in smaller)


@settings(deadline=None, max_examples=60)
@given(st.lists(Words, max_size=40), st.floats(0.01, 0.99), st.booleans(), st.integers(1, 9))
def test_a_share_is_drawn_by_a_permutation_of_all_documents(
    documents: list[str], fraction: float, whole: bool, block: int
) -> None:
    lengths = [len(text.encode()) for text in documents]
    left, kept = round(fraction * sum(lengths)), {}
    for number in np.random.default_rng(0).permutation(len(documents)).tolist():
        kept[number] = min(lengths[number], left)
        left -= kept[number]
    expected = [
        text if kept[number] == lengths[number] else "" if whole else first_words(text, kept[number])
        for number, text in enumerate(documents)
    ]
    with mock.patch.object(corpus, "_BLOCK", block):
        found = list(share(lambda: iter(documents), fraction, whole=whole))
    assert found == [text for text in expected if text]


def test_the_whole_share_is_the_text_as_it_is() -> None:
    assert list(share(lambda: iter(["a  b", " c "]), 1.0)) == ["a  b", " c "]


def test_texts_are_those_that_are_tokenised(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    sources = [source_of(tmp_path / "a.txt"), source_of(tmp_path / "b.txt", documents=5)]
    streamed = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts(sources, fraction=0.3)
    ]
    stores = [p.store for p in prepare(sources, tokenizer, tmp_path / "stages", fraction=0.3)]
    stored = [store.document(i).tolist()[1:-1] for store in stores for i in range(store.num_documents)]
    assert streamed == stored


def test_wikitext_packs_into_rows_that_are_nearly_full(
    shared_data: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = Source(path=str(shared_data / "lm" / "wikitext-2" / "valid.txt.gz"))
    (part,) = pack_sources(prepare([source], tokenizer, tmp_path / "stages"), 512)
    assert part.num_tokens >= 0.99 * len(part) * 512


@settings(max_examples=60)
@given(st.lists(st.integers(0, 12), max_size=20), st.lists(st.lists(st.integers(0, 12), max_size=20)))
def test_held_out_documents_are_found_in_blocks_as_in_a_set(
    held: list[int], training: list[list[int]]
) -> None:
    spread = 0x1234_5678_9ABC_DEF1  # hashes differ in all bits
    hashes = [np.array(own, np.uint64) * np.uint64(spread) for own in (held, *training)]
    with mock.patch.object(overlap, "_BLOCK", 3):
        found = found_in(hashes[0], hashes[1:]) if held else np.zeros(0)
    assert found.tolist() == [one in {*chain(*training)} for one in held]


def test_a_text_that_changes_between_the_two_readings_of_a_fraction_is_refused() -> None:
    readings = iter((["a cat", "a dog"], ["a cat"], ["a cat", "a dog"], ["a cat", "dogs!!"]))
    for _ in range(2):
        with pytest.raises(DataError, match="x: changed while it was read"):
            list(share(lambda: iter(next(readings)), 0.9, place="x"))


def test_a_text_that_grows_while_it_is_read_is_not_kept_as_what_it_was(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    source = Source(path=str(tmp_path / "a.txt"), documents="line")

    def grows(*given: object) -> Iterator[str]:
        with (tmp_path / "a.txt").open("a") as file:
            file.write("three\n")
        yield from ("one", "two", "three")

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_text", grows)
        with pytest.raises(DataError, match=r"a\.txt: changed while it was read; repeat the command$"):
            prepare([source], tokenizer, tmp_path / "stores")
    assert not [*(tmp_path / "stores").glob("tokens-*")]
    (again,) = prepare([source], tokenizer, tmp_path / "stores")
    assert again.store.num_documents == 3
