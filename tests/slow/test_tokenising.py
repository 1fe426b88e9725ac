"""Token stores made by several processes: the same bytes, kills, and what cannot be sent."""

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import NormalizedString, PreTokenizedString, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stlm_kd.data import token_store
from stlm_kd.data.text import tokenising
from stlm_kd.data.token_store import build_store
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError

TEXTS = [f"{number} otters slept ; naïve 日本 herons " * (number % 7) + "." for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, size=300)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "SHARD_IDS", 1000)
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(tokenising, "ALONE_CHARACTERS", 999)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("most_tokens", [None, 2345])
def test_any_number_of_processes_makes_the_same_bytes(
    most_tokens: int | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for workers in (1, 2, 4, None):
        folder = tmp_path / str(workers)
        build_store(TEXTS, tokenizer, folder, workers=workers, most_tokens=most_tokens)
    first, *others = (bytes_of(tmp_path / str(workers)) for workers in (1, 2, 4, None))
    assert len(first) > 6 and all(other == first for other in others)


def test_a_process_that_dies_is_one_message_and_the_next_build_goes_on(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_store(TEXTS, tokenizer, tmp_path / "expected", workers=1)
    started, real = [], tokenising._started

    def noted() -> object:
        started.append(real())
        return started[-1]

    def deadly() -> Iterator[str]:
        yield from TEXTS[:150]
        os.kill(started[0][0].pid, signal.SIGKILL)
        yield from TEXTS[150:]

    monkeypatch.setattr(tokenising, "_started", noted)
    options = {"place": "a.txt", "partial": tmp_path / "store.partial", "workers": 2}
    with pytest.raises(MissingResourceError, match=r"a\.txt: a process that tokenised it ended by signal 9"):
        build_store(deadly(), tokenizer, tmp_path / "store", **options)
    assert all(process.poll() is not None for process, _ in started)
    assert (tmp_path / "store.partial" / "progress.json").exists()
    build_store(TEXTS, tokenizer, tmp_path / "store", **options)
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "expected")


def test_an_interrupt_ends_the_other_processes(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, real = [], tokenising._started
    monkeypatch.setattr(tokenising, "_started", lambda: started.append(real()) or started[-1])

    def interrupted() -> Iterator[str]:
        yield from islice(TEXTS, 100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(interrupted(), tokenizer, tmp_path / "store", workers=2)
    assert len(started) == 2 and all(process.poll() is not None for process, _ in started)
    assert not [*tmp_path.iterdir()]


class Upwards:
    """A step in Python, which no other process can have; it cannot read every text."""

    def split(self, number: int, text: NormalizedString) -> list[NormalizedString]:
        if "herons" in str(text):
            raise ValueError("no herons")
        return [text]

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(self.split)


def test_what_cannot_be_sent_is_tokenised_here_with_the_same_errors(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, size=300)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Upwards())
    found = build_store(["an otter"] * 20, tokenizer, tmp_path / "store", workers=2)
    assert found.num_documents == 20
    with pytest.raises(ModelError, match="its tokenizer fails on a text"):
        build_store(TEXTS, tokenizer, tmp_path / "other", workers=2)
