"""A distillation step of causal models against a plain loop over transformers, side by side in one run.

Both sides take the same optimizer steps on the same documents (cut at the context) with the same models,
AdamW and loss: forward KL from one live teacher at temperature 2, and the labels. Ours reads packed rows and
projects chunk by chunk. The plain loop gets the documents of those rows as right-padded batches of at most
as many rows, each padded to its longest document, with ``attention_mask`` and dense logits, and accumulates
over as many batches as the documents fill. A token counts when it is not padding. The sides take turns; the
median ratio of the turns counts, since load on the machine falls on both alike. The ratio by processor time
hardly feels the load.

    python benchmarks/training/clm_step.py                        # $STLM_KD_DATA/lm/wikitext-2/train.txt.gz
    python benchmarks/training/clm_step.py --text corpus.txt --documents article --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from allocator import peak_bytes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.batches import BatchStream, PackedRows
from stlm_kd.data.corpus import prepare, texts
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.optimizer import make_optimizer

TARGET = 1.2
TEMPERATURE = 2.0
LABELS_WEIGHT, KL_WEIGHT = 0.3, 0.7
LEARNING_RATE = 1e-4


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        part = packed_rows(options, Path(folder))
        stream = BatchStream([part], effective_batch=options.rows, micro_batch=options.rows, seed=0)
        steps = [documents_of(stream.step(index)) for index in range(options.steps)]
        describe(options, part, stream, steps)
        ours, plain = Ours(options, stream), Plain(options, steps)
        compare_losses(ours, plain)
        compare_costs(ours, plain)
        compare_times(ours, plain, sum(len(document.ids) for step in steps for document in step), options)


def arguments() -> argparse.Namespace:
    data = os.environ.get("STLM_KD_DATA")
    text = Path(data, "lm/wikitext-2/train.txt.gz") if data else None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default=text, required=text is None, help="a text file")
    parser.add_argument(
        "--documents", choices=["line", "article"], default="line", help="how it is cut (line)"
    )
    parser.add_argument("--context", type=int, default=256, help="positions of a row (256)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch (8)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens, learnt on the text (8192)")
    parser.add_argument("--fraction", type=float, default=0.2, help="share of the text (0.2)")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn (2)")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side (9)")
    parser.add_argument("--threads", type=int, help="of PyTorch (its default)")
    return parser.parse_args()


def packed_rows(options: argparse.Namespace, folder: Path) -> PackedRows:
    source = Source(path=str(options.text), documents=options.documents)
    tokenizer = train_tokenizer(texts([source], fraction=options.fraction), size=options.vocabulary)
    (prepared,) = prepare([source], tokenizer, folder, fraction=options.fraction)
    return PackedRows(prepared.store, options.context)


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, and what each position has to predict, both (T,)."""

    ids: Tensor
    labels: Tensor


def documents_of(batches: Sequence[Batch]) -> list[Document]:
    """The documents in an optimizer step's packed rows, cut at the context as there, in a random order."""
    documents = [
        Document(ids[own == number], labels[own == number])
        for batch in batches
        for ids, labels, own in zip(batch.input_ids, batch.labels, batch.document_ids, strict=True)
        for number in range(1, int(own.max()) + 1)
    ]
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(len(documents)))
    return [documents[index] for index in order]


def teacher_model(options: argparse.Namespace) -> PreTrainedModel:
    """GPT-2 of 6 layers and width 384."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=options.vocabulary,
        n_embd=384,
        n_layer=6,
        n_head=6,
        n_positions=1024,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.05,
    )
    model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def student_model(options: argparse.Namespace) -> PreTrainedModel:
    """Llama of 4 layers and width 256."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.05,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").train()


class Ours:
    """The library's step on packed rows."""

    def __init__(self, options: argparse.Namespace, stream: BatchStream) -> None:
        self.stream, self.steps = stream, options.steps
        teacher = LiveTeacher(teacher_model(options), options.vocabulary)
        softened = {"temperature": TEMPERATURE}
        terms = [
            Term("labels", "labels", weight=LABELS_WEIGHT),
            Term("forward_kl", "forward_kl", weight=KL_WEIGHT, teacher=COMBINED, options=softened),
        ]
        self.model = student_model(options)
        self.module = DistillationStep(self.model, terms, teachers={"teacher": teacher})
        self.optimizer = make_optimizer(self.module, TrainingConfig(learning_rate=LEARNING_RATE))

    def gradients(self, index: int) -> float:
        """Of one optimizer step; returns its loss."""
        batches = self.stream.step(index)
        counts = [self.module.count(batch) for batch in batches]
        denominators = {name: float(sum(count[name] for count in counts)) for name in counts[0]}
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss = self.module(batch, denominators).loss
            loss.backward()
            total += loss.item()
        return total

    def turn(self) -> None:
        """Take every step once."""
        for index in range(self.steps):
            self.gradients(index)
            self.optimizer.step()


class Plain:
    """The loop that one writes over transformers: padded batches, dense logits."""

    def __init__(self, options: argparse.Namespace, steps: Sequence[Sequence[Document]]) -> None:
        self.documents, self.rows, self.steps = steps, options.rows, options.steps
        self.teacher = teacher_model(options)
        self.model = student_model(options)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
        )

    def gradients(self, index: int) -> float:
        """Of one optimizer step; returns its loss."""
        documents = self.documents[index]
        labelled = sum(int((document.labels != IGNORED).sum()) for document in documents)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for own in padded_batches(documents, self.rows):
            ids_BT, mask_BT, labels_BT = collate(own)
            with torch.no_grad():
                teacher_BTV = self.teacher(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            student_BTV = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            loss = dense_loss(student_BTV, teacher_BTV, labels_BT) / labelled
            loss.backward()
            total += loss.item()
        return total

    def turn(self) -> None:
        """Take every step once."""
        for index in range(self.steps):
            self.gradients(index)
            self.optimizer.step()


def collate(documents: Sequence[Document]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, padded on the right to the longest document."""
    ids = [document.ids for document in documents]
    pad = nn.utils.rnn.pad_sequence
    mask_BT = pad([torch.ones_like(own) for own in ids], batch_first=True)
    labels_BT = pad([document.labels for document in documents], batch_first=True, padding_value=IGNORED)
    return pad(ids, batch_first=True), mask_BT, labels_BT


def dense_loss(student_BTV: Tensor, teacher_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """The weighted sum over the labelled positions."""
    labels_loss = functional.cross_entropy(
        student_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    student_log_BTV = functional.log_softmax(student_BTV / TEMPERATURE, dim=-1)
    teacher_BTV = functional.softmax(teacher_BTV / TEMPERATURE, dim=-1)
    kl_BT = functional.kl_div(student_log_BTV, teacher_BTV, reduction="none").sum(-1) * TEMPERATURE**2
    return LABELS_WEIGHT * labels_loss + KL_WEIGHT * kl_BT[labels_BT != IGNORED].sum()


def padded_batches(documents: Sequence[Document], rows: int) -> list[Sequence[Document]]:
    """Documents in their order as batches of at most so many rows, as even as can be."""
    number = -(-len(documents) // rows)
    edges = [len(documents) * index // number for index in range(number + 1)]
    return [documents[begin:end] for begin, end in pairwise(edges)]


def describe(
    options: argparse.Namespace, part: PackedRows, stream: BatchStream, steps: Sequence[Sequence[Document]]
) -> None:
    lengths = [len(document.ids) for step in steps for document in step]
    batches = [batch for step in steps for batch in padded_batches(step, options.rows)]
    padded = sum(len(batch) * max(len(document.ids) for document in batch) for batch in batches)
    packed = sum(batch.input_ids.numel() for index in range(len(steps)) for batch in stream.step(index))
    print(
        f"{options.text}, one document per {options.documents}: {part.store.num_documents} documents, "
        f"{part.store.num_tokens} tokens; context {options.context}, {options.rows} rows a batch, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"a turn: {len(steps)} optimizer steps, {len(lengths)} documents of {statistics.mean(lengths):.0f} "
        "tokens on average; useful positions: "
        f"packed {sum(lengths) / packed:.3f} in {len(steps)} batches, "
        f"padded {sum(lengths) / padded:.3f} in {len(batches)}"
    )


def compare_losses(ours: Ours, plain: Plain) -> None:
    """Stop unless loss and gradient are the same on the same documents."""
    losses = ours.gradients(0), plain.gradients(0)
    slopes = [
        torch.cat([weight.grad.flatten() for weight in side.model.parameters() if weight.grad is not None])
        for side in (ours, plain)
    ]
    apart = float((slopes[0] - slopes[1]).norm() / slopes[1].norm())
    print(f"loss: ours {losses[0]:.6f}, plain {losses[1]:.6f}; gradients apart by {apart:.1e} of their norm")
    if abs(losses[0] - losses[1]) > 1e-5 * losses[1] or apart > 1e-4:
        raise SystemExit("the two sides do not compute the same loss")


def compare_costs(ours: Ours, plain: Plain) -> None:
    """Floating-point operations and peak memory of a turn, which are the same in every run."""
    for side in (ours, plain):
        side.turn()  # the optimizer's state is there from now on
    flops = [flops_of(side.turn) / 1e9 for side in (ours, plain)]
    print(f"GFLOP: ours {flops[0]:.1f}, plain {flops[1]:.1f}; ours / plain {flops[0] / flops[1]:.3f}")
    peaks = [peak_bytes(side.turn) / 2**20 for side in (ours, plain)]
    print(
        f"peak memory beyond weights and optimizer: ours {peaks[0]:.1f} MiB, plain {peaks[1]:.1f} MiB; "
        f"ours / plain {peaks[0] / peaks[1]:.3f}"
    )


def flops_of(run: Callable[[], object]) -> int:
    """Of matrix products and attention (PyTorch's counter does not know the CPU's attention by itself)."""

    def forward(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        slope: list[int], query: list[int], key: list[int], value: list[int], *_: object, **__: object
    ) -> int:
        return sdpa_backward_flop_count(slope, query, key, value)

    def added(_sum: object, left: list[int], right: list[int], *_: object, **__: object) -> int:
        return 2 * left[0] * left[1] * right[1]

    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        aten.addmm_: added,  # in place, which the counter does not know either
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        run()
    return counter.get_total_flops()


def compare_times(ours: Ours, plain: Plain, tokens: int, options: argparse.Namespace) -> None:
    taken = []
    for _ in range(options.turns):
        own, theirs = seconds(ours.turn), seconds(plain.turn)
        taken.append((own, theirs))
        print(
            f"  ours {tokens / own[0]:8.0f} tokens/s   plain {tokens / theirs[0]:8.0f}   "
            f"{theirs[0] / own[0]:.2f} x   processor {theirs[1] / own[1]:.2f} x"
        )
    for index, name in enumerate(("elapsed", "processor")):
        ratios = sorted(theirs[index] / own[index] for own, theirs in taken)
        print(
            f"tokens/s by {name} time, ours / plain: {statistics.median(ratios):.2f} x, median of "
            f"{options.turns} turns ({ratios[0]:.2f} to {ratios[-1]:.2f}); target: at least {TARGET:g}"
        )


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Elapsed, and of the processor over all threads."""
    begin, begin_processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - begin, time.process_time() - begin_processor


if __name__ == "__main__":
    main()
