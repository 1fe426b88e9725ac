"""Vocabularies chosen by a text: seconds and memory to trim a tokenizer, by part of the work.

    python benchmarks/data/trimming.py $STLM_KD_DATA/lm/wikitext-2/train.txt.gz $STLM_KD_DATA/tokenizers/gpt2

With ``--prefer`` a tokenizer is trained that prefers the tokens of the named one. The text is repeated up to
``--megabytes``, with a number in each line of a repetition, so that its pre-tokens do not only recur. Target:
60 s for 100 MB on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Iterator
from functools import partial
from resource import RUSAGE_SELF, getrusage

from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.vocabulary.prefer import preferred_merges
from stlm_kd.vocabulary.pretokens import count_pretokens, count_tokens
from stlm_kd.vocabulary.token_bytes import read_vocabulary
from stlm_kd.vocabulary.trim import trim_tokenizer


def repeated(lines: list[str], size: int) -> Iterator[str]:
    """At least ``size`` bytes of text."""
    left, turn = size, 0
    while left > 0:
        for place, line in enumerate(lines):
            text = f"{line} v{turn * len(lines) + place}"
            left -= len(text.encode())
            yield text
            if left <= 0:
                return
        turn += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text")
    parser.add_argument("tokenizer")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--prefer", action="store_true")
    arguments = parser.parse_args()
    with gzip.open(arguments.text, "rt", encoding="utf-8") as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    tokenizer, size = load_tokenizer(arguments.tokenizer), arguments.megabytes * 10**6
    vocabulary = read_vocabulary(tokenizer)
    if arguments.prefer:
        begun = time.perf_counter()
        learn = partial(preferred_merges, teachers=[tokenizer])
        train_tokenizer(repeated(lines, size), size=arguments.size, learn=learn)
        print(f"training with a preference: {time.perf_counter() - begun:.1f} s (target: 60)")
        print(f"peak memory of the process: {getrusage(RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
        return
    begun = time.perf_counter()
    pretokens = count_pretokens(vocabulary, repeated(lines, size))
    counted = time.perf_counter()
    count_tokens(vocabulary, pretokens)
    print(f"counting {len(pretokens):,} unique pre-tokens: {counted - begun:.1f} s")
    print(f"splitting them: {time.perf_counter() - counted:.1f} s")
    begun = time.perf_counter()
    trim_tokenizer(tokenizer, repeated(lines, size), arguments.size)
    print(f"trimming, all of it: {time.perf_counter() - begun:.1f} s (target: 60)")
    print(f"peak memory of the process: {getrusage(RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
