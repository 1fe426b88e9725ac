"""Pseudo-perplexity and masked loss against one full forward per token and transformers' own loss."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.tokenizers import END_OF_TEXT, PAD, load_tokenizer
from stlm_kd.errors import DataError, ModelError
from stlm_kd.eval import SUITES
from stlm_kd.eval.language_modeling.masked_loss import corrupted_rows, masked_loss
from stlm_kd.eval.language_modeling.masked_windows import TextWindow, split_document, windowed_text
from stlm_kd.eval.language_modeling.pseudo_perplexity import draw_windows, pseudo_perplexity
from stlm_kd.eval.runner import MASKED_WINDOW
from stlm_kd.losses import chunked
from stlm_kd.models.load import save_model
from stlm_kd.models.positions import num_positions
from tests.support.pico import pico_model

TEXTS = [
    "The dog barks.",
    "",
    "No cats ever bark near the old barn, and none of them naps.",
    "Größe.",
    "a",
    "They thank themselves today.",
]
START, END, PADDING, MASK, UNKNOWN = range(5)
SPECIAL = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}
VOCABULARY = 261
POSITIONS = 24
WIDTH = 16
FAMILIES = ("bert", "distilbert", "roberta")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after the special ones."""
    pieces = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, no accents, pieces of words, start and end unless asked not to, and unknowns."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters), ".", ",", "dog", "the"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    made = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", END), ("[CLS]", START))
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


BYTES, WORDS = byte_tokenizer(), word_tokenizer()


def pico(family: str, *, seed: int = 0, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A masked language model with weights wide enough that mistakes show."""
    torch.manual_seed(seed)
    if family == "distilbert":
        sizes = {"dim": WIDTH, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
        config = DistilBertConfig(
            vocab_size=vocabulary, max_position_embeddings=POSITIONS, pad_token_id=PADDING,
            initializer_range=0.5, **sizes,
        )  # fmt: skip
        return _with_bias(DistilBertForMaskedLM(config))
    config_of, kind, unused = {
        "bert": (BertConfig, BertForMaskedLM, 0),
        "roberta": (RobertaConfig, RobertaForMaskedLM, PADDING + 1),
    }[family]
    config = config_of(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=POSITIONS + unused, pad_token_id=PADDING,
        initializer_range=0.5,
    )  # fmt: skip
    return _with_bias(kind(config))


def _with_bias(model: PreTrainedModel) -> PreTrainedModel:
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return pico("bert")


def uniform_model() -> PreTrainedModel:
    made = pico("bert")
    head = made.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return made


def pieces_of(tokenizer: PreTrainedTokenizerFast, window: int) -> list[list[int]]:
    """The tokens of each window, cut by a plain loop."""
    pieces = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces += [ids[start : start + window - 2] for start in range(0, len(ids), window - 2)]
    return pieces


def slow_nats(model: PreTrainedModel, piece: list[int]) -> float:
    """One forward pass per token, alone in its batch, with all logits."""
    total = 0.0
    for place, target in enumerate(piece, start=1):
        ids = [START, *piece, END]
        ids[place] = MASK
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([ids])).logits[0, place]
        total -= float(logits_V.double().log_softmax(-1)[target])
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("window", "batch_size"), [(24, 7), (9, 64), (3, 1)])
def test_each_window_costs_what_masking_one_token_after_the_other_says(
    family: str, window: int, batch_size: int
) -> None:
    model = pico(family).eval()
    result = pseudo_perplexity(model, BYTES, TEXTS, window=window, tokens=None, batch_size=batch_size)
    expected = [slow_nats(model, piece) for piece in pieces_of(BYTES, window)]
    blocks: Any = result.report["blocks"]
    assert [nats for own in blocks["nats"] for nats in own] == pytest.approx(expected, rel=1e-5)
    text = "".join(TEXTS)
    mean = sum(expected) / len(text.encode())  # a token is a byte
    assert result.score("text", "pseudo_perplexity").value == pytest.approx(math.exp(mean), rel=1e-5)
    assert result.score("text", "pseudo_bits_per_byte").value == pytest.approx(mean / math.log(2), rel=1e-5)


def test_half_of_a_text_scored_costs_what_that_half_does(model: PreTrainedModel) -> None:
    whole = pseudo_perplexity(model, BYTES, TEXTS, window=9, tokens=None)
    half = pseudo_perplexity(model, BYTES, TEXTS, window=9, tokens=60)
    for found in (whole, half):
        report = found.report
        blocks: Any = report["blocks"]
        assert math.fsum(map(math.fsum, blocks["nats"])) == pytest.approx(report["nats"])
        assert sum(map(sum, blocks["bytes"])) == report["scored_bytes"]
    sizes = [len(text.encode()) for text in TEXTS if text]
    assert [sum(one) for one in whole.report["blocks"]["bytes"]] == sizes  # type: ignore[index]  # JSON
    assert 1 < half.report["scored_windows"] < whole.report["scored_windows"]  # type: ignore[operator]  # JSON
    rows = {row.id: row.value for row in whole.examples}
    for row in half.examples:
        assert row.value == pytest.approx(rows[row.id], rel=1e-5)


@pytest.mark.parametrize("suite", ["pseudo-perplexity", "masked-loss"])
def test_scores_do_not_depend_on_the_batches(model: PreTrainedModel, suite: str) -> None:
    one, some, all_at_once = (
        [score.value for score in SUITES[suite](model, BYTES, TEXTS, window=9, batch_size=size).scores]
        for size in (1, 5, 1000)
    )
    assert some == pytest.approx(one, rel=1e-5)
    assert all_at_once == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("tokens", [None, 30])
def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary(tokens: int | None) -> None:
    uniform = uniform_model()
    result = SUITES["pseudo-perplexity"](uniform, BYTES, TEXTS, tokens=tokens, window=8)
    bits = result.score("text", "pseudo_bits_per_byte")
    if tokens is None:  # one token is one byte; a window may cut a character of two
        assert bits.value == pytest.approx(math.log2(VOCABULARY))
    perplexity = result.score("text", "pseudo_perplexity")
    assert perplexity.value == pytest.approx(VOCABULARY, rel=1e-5)
    assert perplexity.stderr == pytest.approx(0, abs=1e-3)
    assert not bits.higher_is_better and not perplexity.higher_is_better
    loss = SUITES["masked-loss"](uniform, BYTES, TEXTS).score("text", "masked_loss")
    assert loss.value == pytest.approx(math.log(VOCABULARY))
    assert not loss.higher_is_better


@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40) | st.text("dog .ß́", min_size=1),
    window=st.integers(3, 20),
    tokenizer=st.sampled_from([BYTES, WORDS]),
)
@settings(max_examples=200, deadline=None)
def test_every_token_and_every_byte_is_in_one_window(
    text: str, window: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    windows = list(split_document(text, tokenizer, ends=(START, END), window=window))
    assert all((piece.ids[0], piece.ids[-1]) == (START, END) for piece in windows)
    assert [i for piece in windows for i in piece.ids[1:-1]] == (
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    assert all(len(piece.ids) == window for piece in windows[:-1])
    assert len(windows[-1].ids) <= window
    assert sum(piece.bytes for piece in windows) == len(text.encode())
    assert all(piece.bytes >= 0 for piece in windows)
    if tokenizer is BYTES and text.isascii():
        assert all(piece.bytes == piece.tokens for piece in windows)


def test_a_window_has_the_bytes_from_its_first_token_to_that_of_the_next() -> None:
    pieces = split_document("  The dog. Á, b ", WORDS, ends=(START, END), window=4)
    assert [(piece.tokens, piece.bytes) for piece in pieces] == [
        (2, len(b"  The dog")),
        (2, len(". Á".encode())),
        (2, len(b", b ")),
    ]


WINDOWS = st.lists(
    st.builds(
        lambda tokens, size: TextWindow((START, *[9] * tokens, END), size),
        st.integers(0, 9),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=30,
).filter(lambda windows: any(window.tokens and window.bytes for window in windows))


@given(windows=WINDOWS, tokens=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_windows_are_drawn_until_there_are_enough_tokens(
    windows: list[TextWindow], tokens: int, seed: int
) -> None:
    drawn = draw_windows(windows, tokens=tokens, seed=seed)
    assert all(a < b for a, b in pairwise(drawn))
    found = sum(windows[index].tokens for index in drawn)
    assert found >= tokens or len(drawn) == len(windows)
    assert found > 0 and any(windows[index].bytes for index in drawn)
    if all(window.bytes for window in windows):
        assert found < tokens + 9
    assert set(drawn) <= set(draw_windows(windows, tokens=tokens + 7, seed=seed))
    assert draw_windows(windows, tokens=None, seed=seed) == tuple(range(len(windows)))


def test_long_windows_are_drawn_as_often_as_short_ones() -> None:
    """Wald: over many draws, tokens per window are those of the text, if the last window is kept."""
    windows = [TextWindow((START, *[9] * (1 if index % 2 else 40), END), 1) for index in range(1000)]
    excess = []
    for seed in range(1500):
        drawn = draw_windows(windows, tokens=100, seed=seed)
        excess.append(sum(windows[index].tokens for index in drawn) - 20.5 * len(drawn))
    assert abs(np.mean(excess)) < 4 * np.std(excess) / math.sqrt(len(excess))


def test_models_of_one_tokenizer_are_scored_on_the_same_tokens() -> None:
    texts = [f"{TEXTS[2]} {number}" for number in range(20)]
    measured = [pseudo_perplexity(pico(family), BYTES, texts, window=12, tokens=100) for family in FAMILIES]
    drawn = [[row.id for row in one.examples] for one in measured]
    other = pseudo_perplexity(pico("bert"), BYTES, texts, window=12, tokens=100, seed=1)
    assert drawn[0] == drawn[1] == drawn[2] != [row.id for row in other.examples]
    report = measured[0].report
    assert report["tokens"] == report["bytes"] == sum(map(len, texts))
    assert 100 <= report["scored_tokens"] < 110
    note, windows = measured[0].notes
    assert windows.startswith("pseudo-perplexity: windows of ")
    assert f"{report['scored_tokens']} of {report['tokens']} tokens" in note
    losses = [masked_loss(pico(family), BYTES, texts, window=12) for family in FAMILIES]
    masked = [[row.id for row in one.examples] for one in losses]
    other = masked_loss(pico("bert"), BYTES, texts, window=12, seed=1)
    assert masked[0] == masked[1] == masked[2] != [row.id for row in other.examples]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_masked_loss_is_that_of_transformers_on_the_same_corrupted_ids(family: str) -> None:
    model = pico(family).eval()
    result = SUITES["masked-loss"](model, BYTES, TEXTS, share=0.4, window=9, seed=3, batch_size=4)
    text = windowed_text(model, BYTES, TEXTS, window=9, suite="test")
    rows, candidates = corrupted_rows(text, BYTES, share=0.4, seed=3)
    nats, right, count = 0.0, 0, 0
    for window, row in zip(text.windows, rows, strict=True):
        if row.places:
            labels = torch.full((1, len(row.ids)), -100)
            labels[0, row.places] = torch.tensor([window.ids[place] for place in row.places])
            with torch.no_grad():
                output = model(input_ids=torch.tensor([row.ids]), labels=labels)
            nats += float(output.loss) * len(row.places)
            right += int((output.logits.argmax(-1) == labels).sum())
            count += len(row.places)
    assert count == math.ceil(0.4 * candidates) == result.report["masked_tokens"]
    assert result.score("text", "masked_loss").value == pytest.approx(nats / count, rel=1e-5)
    accuracy = result.score("text", "masked_accuracy")
    assert accuracy.value == right / count
    assert accuracy.higher_is_better


@pytest.fixture(scope="module")
def corruption() -> Iterator[tuple[list[int], list[int], list[bool]]]:
    """Ids of a long text, what is seen of them, and which were drawn."""
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("aaaaaa!b"), 400)) + "[UNK][SEP]" for _ in range(40)]
    text = windowed_text(pico("bert"), BYTES, texts, window=20, suite="test")
    rows, _ = corrupted_rows(text, BYTES, share=0.15, seed=0)
    true = [i for window in text.windows for i in window.ids]
    drawn = [place in row.places for row in rows for place in range(len(row.ids))]
    return true, [i for row in rows for i in row.ids], drawn


def test_of_the_drawn_tokens_eight_tenths_are_masked_and_one_tenth_each_replaced_and_kept(
    corruption: tuple[list[int], list[int], list[bool]],
) -> None:
    true, seen, drawn = corruption
    assert all(t == s for t, s, was in zip(true, seen, drawn, strict=True) if not was)
    pairs = [(t, s) for t, s, was in zip(true, seen, drawn, strict=True) if was]
    spread = 4 / math.sqrt(len(pairs))
    assert len(pairs) == math.ceil(0.15 * 40 * 400)
    assert sum(s == MASK for _, s in pairs) / len(pairs) == pytest.approx(0.8, abs=0.4 * spread)
    assert sum(s == t for t, s in pairs) / len(pairs) == pytest.approx(0.1, abs=0.3 * spread)
    assert len({s for t, s in pairs if s not in (MASK, t)}) > 100


def test_every_token_but_special_ones_is_drawn_alike(
    corruption: tuple[list[int], list[int], list[bool]],
) -> None:
    true, _, drawn = corruption
    for special in (START, END, UNKNOWN):
        assert special in true
        assert not any(was for t, was in zip(true, drawn, strict=True) if t == special)
    for letter in "ab!":  # one is six times as frequent as the others, and one has a low id
        own = [was for t, was in zip(true, drawn, strict=True) if [t] == BYTES(letter)["input_ids"]]
        assert np.mean(own) == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / len(own)))


class _Widest(TorchDispatchMode):
    """Looks for the most rows of logits that are alive in one tensor."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.ndim > 1 and output.shape[-1] == VOCABULARY:
            self.rows = max(self.rows, output.numel() // VOCABULARY)
        return output


def test_only_masked_positions_meet_the_vocabulary(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = [TEXTS[2] * 5]
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 24 * VOCABULARY)
    with _Widest() as widest:
        pseudo_perplexity(model, BYTES, text, batch_size=20)
    assert widest.rows == 20  # of 20 * 24 positions
    whole = masked_loss(model, BYTES, text, share=0.9)
    with _Widest() as widest:
        masked_loss(model, BYTES, text, share=0.9)
    assert widest.rows == 24  # a chunk of some 200 masked positions
    monkeypatch.undo()
    at_once = masked_loss(model, BYTES, text, share=0.9)
    assert [row.value for row in whole.examples] == pytest.approx(
        [row.value for row in at_once.examples], rel=1e-5
    )


@pytest.mark.parametrize("suite", ["pseudo-perplexity", "masked-loss"])
def test_dropout_is_off_during_and_as_before_afterwards_and_bf16_is_close(suite: str) -> None:
    model = pico("bert").train()
    first, second = (SUITES[suite](model, BYTES, TEXTS) for _ in range(2))
    assert first == second
    assert model.training
    assert "forward" not in vars(model.get_output_embeddings())
    rounded = SUITES[suite](model, BYTES, TEXTS, precision="bf16")
    assert rounded.scores[0].value != first.scores[0].value
    bits = ("pseudo_bits_per_byte", "masked_loss")
    for exact, near in zip(first.scores, rounded.scores, strict=True):
        if exact.metric in bits:
            assert near.value == pytest.approx(exact.value, rel=0.03)


def test_the_standard_error_is_that_of_leaving_windows_out(model: PreTrainedModel) -> None:
    texts = [
        f"The {name} {verb} near {n} dogs." for name in "abcd" for verb in ("is", "naps") for n in "1234"
    ]
    measured = masked_loss(model, BYTES, texts, share=0.5)
    text = windowed_text(model, BYTES, texts, window=None, suite="test")
    counts = [len(row.places) for row in corrupted_rows(text, BYTES, share=0.5, seed=0)[0]]
    rows = [(row.value * counts[int(row.id)], counts[int(row.id)]) for row in measured.examples]
    nats, size = sum(n for n, _ in rows), sum(c for _, c in rows)
    without = [(nats - n) / (size - c) for n, c in rows]
    jackknife = math.sqrt((len(rows) - 1) * float(np.var(without)))
    assert measured.score("text", "masked_loss").stderr == pytest.approx(jackknife, rel=0.1)


def test_unknown_tokens_are_told_of(model: PreTrainedModel) -> None:
    texts = ["the dog & cat", "5 dog"]
    pseudo = SUITES["pseudo-perplexity"](model, WORDS, texts)
    assert pseudo.report["unknown_tokens"] == 2
    assert pseudo.notes[0].startswith("2 of 8 tokens are unknown")
    loss = SUITES["masked-loss"](model, WORDS, texts, share=1.0)
    assert (loss.report["unknown_tokens"], loss.report["masked_tokens"]) == (2, 6)
    assert loss.notes[0].startswith("2 tokens of the text are unknown")


def test_text_without_a_token_is_part_of_what_is_scored(model: PreTrainedModel) -> None:
    result = SUITES["pseudo-perplexity"](model, WORDS, ["dog", "   "])
    assert (result.report["scored_tokens"], result.report["bytes"]) == (1, 6)
    with pytest.raises(DataError, match="no token"):
        SUITES["pseudo-perplexity"](model, WORDS, ["   "])
    with pytest.raises(DataError, match="only special tokens"):
        SUITES["masked-loss"](model, WORDS, ["5 & 5"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_window_is_what_the_position_embeddings_can_hold(family: str) -> None:
    model = pico(family)
    assert num_positions(model.config) == POSITIONS
    text = ["a" * 60]
    assert pseudo_perplexity(model, BYTES, text).report["window"] == POSITIONS
    with pytest.raises(ModelError, match="use window: 24 or less"):
        pseudo_perplexity(model, BYTES, text, window=POSITIONS + 1)


def test_no_default_window_is_longer_than_another_models() -> None:
    long = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, max_position_embeddings=512,
        )
    )  # fmt: skip
    assert masked_loss(long, BYTES, ["a" * 600]).report["window"] == MASKED_WINDOW == 128


@pytest.mark.parametrize("suite", ["lm-eval", "masked-loss", "perplexity", "pseudo-perplexity"])
def test_a_suite_refuses_models_of_the_other_task(model: PreTrainedModel, suite: str) -> None:
    causal = suite in ("lm-eval", "perplexity")
    wrong = model if causal else pico_model("gpt2", vocabulary=VOCABULARY)
    with pytest.raises(
        ModelError, match="use pseudo-perplexity or masked-loss" if causal else "use perplexity"
    ):
        SUITES[suite](wrong, BYTES, TEXTS)


@pytest.mark.parametrize("suite", ["pseudo-perplexity", "masked-loss"])
def test_faults_say_what_to_do(model: PreTrainedModel, suite: str) -> None:
    with pytest.raises(DataError, match=r"data\.validation"):
        SUITES[suite](model, BYTES, [""])
    causal = PreTrainedTokenizerFast(
        tokenizer_object=BYTES.backend_tokenizer, eos_token=END_OF_TEXT, pad_token=PAD
    )
    with pytest.raises(ModelError, match=r"no mask token.*set mask_token"):
        SUITES[suite](model, causal, TEXTS)
    with pytest.raises(ModelError, match="ids up to 260, but the model has a vocabulary of 200"):
        SUITES[suite](pico("bert", vocabulary=200), BYTES, TEXTS)


def test_the_suites_that_read_text_are_all_but_lm_eval_and_those_that_fine_tune() -> None:
    reading = {name for name in SUITES if SUITES[name].reads_held_out({})}
    assert set(SUITES) - reading == {"lm-eval", "glue", "ner", "squad"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_scored_from_the_command_line(family: str, tmp_path: Path) -> None:
    model = pico(family)
    save_model(model, BYTES, tmp_path / "model")
    texts = [text for text in TEXTS if text]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["eval", str(tmp_path / "model"), "--data", str(tmp_path / "text.jsonl"), "--json"]
    words += ["--suite", "{suite: pseudo-perplexity, tokens: null}", "--suite", "masked-loss"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout).values()
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    for result, (suite, options) in zip(
        found, [("pseudo-perplexity", {"tokens": None}), ("masked-loss", {})], strict=True
    ):
        expected = SUITES[suite](model, tokenizer, texts, **options)
        assert [s["value"] for s in result["scores"]] == pytest.approx([s.value for s in expected.scores])


def test_pseudo_perplexity_prefers_the_model_that_knows_the_text() -> None:
    """Trained to fill in one sentence, a model finds it likelier than it did before."""
    model = pico("bert")
    before = pseudo_perplexity(model, BYTES, TEXTS[:1]).scores[1].value
    (window,) = split_document(TEXTS[0], BYTES, ends=(START, END), window=POSITIONS)
    true_T = torch.tensor(window.ids)
    places = torch.arange(1, len(window.ids) - 1)
    rows_BT = true_T.repeat(len(places), 1)
    rows_BT[torch.arange(len(places)), places] = MASK
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        logits_BTV = model(input_ids=rows_BT).logits
        cross_entropy(logits_BTV[torch.arange(len(places)), places], true_T[places]).backward()
        optimizer.step()
    after = pseudo_perplexity(model, BYTES, TEXTS[:1]).scores[1].value
    assert after < before / 10
