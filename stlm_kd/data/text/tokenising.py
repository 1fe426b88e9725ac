"""Texts as documents of ids, made by this process or by several, in the order of the texts.

Other processes are plain interpreters that receive the tokenizer and then texts: nothing of this process is
forked, its libraries may have threads, and its main program is not run again.
"""

from __future__ import annotations

import os
import signal
import subprocess  # nosec B404  # Python itself
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stlm_kd.data.overlap import text_hash
from stlm_kd.data.text.marked import MarkedText, Text, num_bytes_of, text_of
from stlm_kd.errors import MissingResourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Portable: TypeAlias = tuple[str, tuple[int, int], str, bool]
Ids = npt.NDArray[np.unsignedinteger[Any]]

MOST_WORKERS = 16
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 2048
ALONE_CHARACTERS = 1 << 24
"""The length of text before other processes are started, which takes as long as tokenising some of it."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents as ids, one after the other; of each its number of ids, its text's UTF-8 bytes and hash.

    ``spans``, (S, 2), are the begins and ends among the ids of what is to be predicted of ``MarkedText``s, in
    order; the bytes are then those of the spans.
    """

    ids: Ids
    lengths: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    spans: npt.NDArray[np.int64]

    def select(self, first: int, last: int) -> Documents:
        """Those from ``first`` to before ``last``."""
        ends = np.append(0, np.cumsum(self.lengths))
        own = slice(first, last)
        ids = self.ids[ends[first] : ends[last]]
        spans = self.spans[slice(*np.searchsorted(self.spans[:, 0], ends[[first, last]]))] - ends[first]
        return Documents(ids, self.lengths[own], self.num_bytes[own], self.hashes[own], spans)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns texts into documents: the ids of the text alone, between the start and the end of ``ends``."""

    backend: Tokenizer
    ends: tuple[int, int]
    dtype: np.dtype[np.unsignedinteger[Any]]
    splits_special: bool

    def portable(self) -> Portable:
        """What another process makes the same encoder of; an exception of ``tokenizers`` if it cannot."""
        return self.backend.to_str(), self.ends, self.dtype.str, self.splits_special

    @classmethod
    def of(cls, portable: Portable) -> Encoder:
        """The encoder of which this is the portable form."""
        from tokenizers import Tokenizer

        steps, ends, dtype, splits_special = portable
        return cls(Tokenizer.from_str(steps), ends, np.dtype(dtype), splits_special)

    def __call__(self, texts: Sequence[Text]) -> Documents:
        """Call the ``tokenizers`` library directly, which is faster because it skips the tokens' offsets."""
        plain = [text_of(text) for text in texts]
        is_marked = bool(texts) and isinstance(texts[0], MarkedText)
        backend = self._prepared()
        encode = backend.encode_batch if is_marked else backend.encode_batch_fast
        encodings = encode(plain, add_special_tokens=False)
        lengths = np.array([len(encoding) + 2 for encoding in encodings], np.int64)
        ends = np.cumsum(lengths)
        ids = np.empty(int(ends[-1]), self.dtype)
        ids[ends - lengths], ids[ends - 1] = self.ends
        for encoding, begin, end in zip(encodings, (ends - lengths).tolist(), ends.tolist(), strict=True):
            ids[begin + 1 : end - 1] = encoding.ids
        sizes = np.array([num_bytes_of(text) for text in texts], np.int64)
        hashes = np.array([text_hash(text) for text in plain], np.uint64)
        spans = [
            (begin + first, begin + last)
            for text, encoding, begin in zip(texts, encodings, (ends - lengths).tolist(), strict=True)
            if isinstance(text, MarkedText)
            for first, last in _token_spans(text, encoding.offsets)
        ]
        return Documents(ids, lengths, sizes, hashes, np.array(spans, np.int64).reshape(-1, 2))

    def beginning(self, text: Text, tokens: int) -> Text:
        """The beginning of a text that its first tokens stand for."""
        encoding = self._prepared().encode(text_of(text), add_special_tokens=False)
        end = encoding.offsets[tokens - 1][1] if tokens > 0 else 0
        return text.beginning(end) if isinstance(text, MarkedText) else text[:end]

    def inside(self, documents: Documents) -> int:
        """The number of start and end tokens that are not a document's first or last one."""
        found = sum(int(np.count_nonzero(documents.ids == end)) for end in {*self.ends})
        return found - int(np.minimum(documents.lengths, 2).sum())

    def _prepared(self) -> Tokenizer:
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = self.splits_special
        return self.backend


def _token_spans(text: MarkedText, offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans of a text in its document's ids: all tokens of which a part is in the span.

    One at the text's end includes the document's end.
    """
    begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    after = 0
    for begin, end in text.spans:
        inside = np.flatnonzero((ends > begin) & (begins < end))
        if len(inside) or end == len(text.text):
            first = max(int(inside[0]) if len(inside) else len(begins), after)
            after = len(begins) + 1 if end == len(text.text) else int(inside[-1]) + 1
            if first < after:  # a token of two spans counts once
                yield first + 1, after + 1  # after the start


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def encoded(
    texts: Iterable[Text],
    encoder: Encoder,
    encode: Callable[[Sequence[Text]], Documents],
    workers: int | None,
    *,
    place: str,
) -> Generator[tuple[list[Text], Documents]]:
    """The documents of texts in their order, in batches with their texts.

    ``workers`` processes make them by the encoder; with one, this process by ``encode``, the encoder with its
    errors as those of this package. None: one until the text turns out to be large, then as many as there are
    cores, at most ``MOST_WORKERS``. MissingResourceError, which begins with ``place``, if one of them dies.
    """
    batches = _batches(texts)
    if workers is None:
        workers, begun = min(usable_cores(), MOST_WORKERS), 0
        while begun < ALONE_CHARACTERS and (batch := next(batches, None)):
            begun += sum(len(text_of(text)) for text in batch)
            yield batch, encode(batch)
    further = next(batches, None)
    if further is None:
        return
    batches = chain([further], batches)
    try:
        sent = encoder.portable() if workers > 1 else None
    except Exception:  # parts of the tokenizer are Python objects, which cannot be sent
        sent = None
    if sent is None:
        yield from ((batch, encode(batch)) for batch in batches)
        return
    with closing(_Workers(sent, workers, place)) as others:
        for batch, documents in others.in_order(batches):
            # What another process cannot do fails here again, with the error that it has in one process.
            yield batch, encode(batch) if documents is None else documents


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text_of(text))
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Workers:
    """Processes that tokenise; for each, a thread of this process sends a batch and waits for the answer."""

    def __init__(self, encoder: Portable, number: int, place: str) -> None:
        self._place = place
        self._started: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._idle: SimpleQueue[tuple[subprocess.Popen[bytes], Connection]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(number, "tokenising")
        self._most_waiting = 2 * number
        try:
            for _ in range(number):
                self._started.append(_started())
                self._started[-1][1].send(encoder)
                self._idle.put(self._started[-1])
        except OSError as error:
            self.close()
            raise MissingResourceError(
                f"{place}: another process for tokenising cannot be started ({error.strerror or error}); "
                "free memory or raise the limit of processes, and repeat the command"
            ) from error

    def in_order(self, batches: Iterable[list[Text]]) -> Iterator[tuple[list[Text], Documents | None]]:
        """Each batch with its documents; None where the other process failed on them."""
        waiting: deque[tuple[list[Text], Future[Documents | None]]] = deque()
        for batch in batches:
            waiting.append((batch, self._threads.submit(self._ask, batch)))
            if len(waiting) > self._most_waiting:
                first, found = waiting.popleft()
                yield first, found.result()
        for first, found in waiting:
            yield first, found.result()

    def close(self) -> None:
        """End the processes; what they do is lost."""
        for process, _ in self._started:
            process.kill()
            process.wait()
        self._threads.shutdown(cancel_futures=True)  # the threads see that the processes have ended
        for _, connection in self._started:
            connection.close()

    def _ask(self, batch: list[Text]) -> Documents | None:
        process, connection = self._idle.get()
        try:
            connection.send(batch)
            answer: Documents | None = connection.recv()
        except (EOFError, OSError) as error:
            code = process.wait()
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise MissingResourceError(
                f"{self._place}: a process that tokenised it ended {how}, maybe for lack of memory; free "
                "some memory and repeat the command, which resumes from the finished files"
            ) from error
        finally:
            self._idle.put((process, connection))
        return answer


def _started() -> tuple[subprocess.Popen[bytes], Connection]:
    """Another process that serves at the other end of the connection, until this process ends."""
    ours, theirs = Pipe()
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; import {__name__}; {__name__}.serve({theirs.fileno()})"
    )
    with closing(theirs):
        process = subprocess.Popen(  # nosec B603
            [sys.executable, "-c", program],
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # an interrupt from the keyboard is the main process's
        )
    return process, ours


def serve(descriptor: int) -> None:
    """Receive an encoder, then batches of texts, and answer each with its documents, or None on an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as connection:
        try:
            encoder = Encoder.of(connection.recv())
            while True:
                texts = connection.recv()
                try:
                    answer: Documents | None = encoder(texts)
                except BaseException:  # a panic of the library is no Exception
                    answer = None
                connection.send(answer)
        except (EOFError, OSError):
            return
