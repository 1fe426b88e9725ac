"""Token stores made by several processes: the same bytes, kills, and what cannot be sent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import NormalizedString, PreTokenizedString, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.text import store_builder, tokenising
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError

TEXTS = [f"{number} otters slept ; naïve 日本 herons " * (number % 7) + "." for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, size=300)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_builder, "SHARD_IDS", 1000)
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


KILLED = """
import itertools, os, sys, time
from pathlib import Path
from stlm_kd.data.text import store_builder, tokenising
from tests.slow.test_tokenising import TEXTS
from stlm_kd.data.tokenizers import load_tokenizer
store_builder.SHARD_IDS, tokenising.BATCH_DOCUMENTS, real = 1000, 3, tokenising._started

def noted():
    started = real()
    print(started[0].pid, flush=True)
    return started

def slow():
    for number, text in enumerate(TEXTS):
        time.sleep(0.02 * (number > 120))
        yield text

tokenising._started = noted
folder = Path(sys.argv[1])
tokenizer = load_tokenizer(str(folder / "tokenizer"))
store_builder.build_store(slow(), tokenizer, folder / "store", partial=folder / "store.partial", workers=2)
"""


def test_a_killed_build_leaves_no_process_and_is_gone_on_with(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    build_store(TEXTS, tokenizer, tmp_path / "expected", workers=1)
    words = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        others = [int(process.stdout.readline()) for _ in range(2)]
        wait_until((tmp_path / "store.partial" / "progress.json").exists)
        process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in others))
    first = (tmp_path / "store.partial" / "tokens-00000.bin").stat().st_ino
    build_store(TEXTS, tokenizer, tmp_path / "store", partial=tmp_path / "store.partial", workers=2)
    assert (tmp_path / "store" / "tokens-00000.bin").stat().st_ino == first and not caplog.text
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "expected")


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended may wait for its parent to ask."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
