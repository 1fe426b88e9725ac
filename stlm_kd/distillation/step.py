"""The training step on one micro-batch: all trained modules behind a single ``forward``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.entries import Entry, batch_of, objective_terms
from stlm_kd.distillation.finiteness import outputs_not_finite, weights_not_finite
from stlm_kd.distillation.hidden_terms import Projections
from stlm_kd.distillation.metrics import (
    intervention_metric_names,
    intervention_metrics,
    teacher_metric_names,
    teacher_metrics,
)
from stlm_kd.distillation.objective import ForwardOutputs, InterventionOutputs, reduce_terms, term_mask
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan, SourceInputs, draw_plan
from stlm_kd.interventions.equal_passes import equal_passes
from stlm_kd.interventions.rerun import InterventionPass
from stlm_kd.losses import LABELS, LOSSES, MAP_LOSSES, STATE_LOSSES
from stlm_kd.models.attention_maps import install_maps
from stlm_kd.models.forward import inputs_of, task_of, vocabulary_head
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import OutputSpec, forward_with_outputs
from stlm_kd.schedules import is_ever_above_zero
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import Domains, TeacherMixture, active_teachers, routing_draws
from stlm_kd.teachers.combination.gate import GATE, Gate
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import Teacher
from stlm_kd.teachers.targets import Dense
from stlm_kd.teachers.translated_targets import Translated
from stlm_kd.training.protocols import MeanMetric, StepOutput


class DistillationStep(nn.Module):
    """The student, its objective, projections and gate: the module that engines wrap and train.

    ``labels`` is measured in every step, with weight 0 if the objective does not include it: runs are
    compared by it, and it costs one pass over existing logits. In evaluation mode it is the only term, and no
    teacher runs. Other terms of weight 0 are skipped, with the outputs that only they need.

    Args:
        student: A language model or classifier of transformers; trained in place.
        objective: Mappings as in a recipe, such as ``{"loss": "forward_kl", "weight": 0.5, "temperature":
            2.0}`` with the loss's options, ``teacher`` (default: the mixture of all), ``on`` (``labels`` or
            ``attended``), and for hidden states and attention maps ``sites`` and ``projection``; or terms.
            Numbers may be schedules (``stlm_kd.schedules``). Interventions need terms.
        teachers: By name; over the student's vocabulary.
        combination: How several teachers are combined; default: their mean.
        projections: Those of terms on hidden states; mappings get their own.
        vocabulary_loss: ``chunked`` never holds all logits; ``dense`` projects all tokens at once.
        supplies: Source data of interventions.
        domains: Domains of the rows, for combiners that need them.
        gate: Trained weights of the teachers, for the combiner ``learned``.

    Raises:
        RecipeError: Unknown losses, options or teachers in a mapping, or values out of bounds: all of them.
        ModelError: A model's logits are not those of its head, or its layers cannot be read.

    Both the loss and its gradient are means over tokens, in nats for distributions:

    >>> import stlm_kd, torch, transformers
    >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = transformers.LlamaConfig(vocab_size=50, **sizes)
    >>> student, teacher = (transformers.LlamaForCausalLM(config) for _ in range(2))
    >>> objective = [{"loss": "labels", "weight": 0.5}, {"loss": "forward_kl", "temperature": 2.0}]
    >>> step = stlm_kd.DistillationStep(student, objective, teachers={"a": stlm_kd.LiveTeacher(teacher)})
    >>> optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3)
    >>> output = step({"input_ids": torch.randint(0, 50, (4, 12))})  # or a tokenizer's output for four texts
    >>> output.loss.backward()
    >>> optimizer.step()
    >>> sorted(output.sums), step.count({"input_ids": torch.zeros(4, 12, dtype=torch.int64)})["labels"]
    (['forward_kl', 'labels'], 44)
    """

    trained: ClassVar[str] = "the student"
    """The name of the trained model in messages."""

    partitioned: bool = False
    """Whether an engine has divided the weights over the processes, which must then run all passes alike."""

    def __init__(
        self,
        student: PreTrainedModel,
        objective: Sequence[Entry],
        *,
        teachers: Mapping[str, Teacher] | None = None,
        combination: Combination | None = None,
        projections: Projections | None = None,
        vocabulary_loss: Literal["chunked", "dense"] = "chunked",
        supplies: SourceInputs | None = None,
        domains: Domains | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.gate = gate
        self.combination = combination or Combination()
        self.teachers: dict[str, Teacher] = dict(teachers or {})
        terms, own = objective_terms(objective, student, self.teachers, seed=self.combination.seed)
        self.projections = own if projections is None else projections
        self.all_terms = [term for term in terms if term.name == LABELS or is_ever_above_zero(term.weight)]
        if not any(term.name == LABELS for term in terms):
            self.all_terms.append(Term(LABELS, LABELS, weight=0.0))
        self._index, self._steps, self._is_logged = 0, 1, False
        self._supplies = supplies or SourceInputs()
        self._domains = domains
        self.vocabulary_loss = vocabulary_loss
        # For all terms from the start: enabling a term later would change rounding in a resumed run.
        install_maps(student, student_needs(self.all_terms, classes=vocabulary_head(student) is None).maps)

    def begin(self, index: int, steps: int, *, is_logged: bool = False) -> None:
        """Set optimizer step ``index`` (from 0) of ``steps`` as the next: schedules follow it.

        Logged steps also measure metrics other than the terms.
        """
        self._index, self._steps, self._is_logged = index, steps, is_logged

    def direct_parameters(self) -> list[nn.Parameter]:
        """Those of the head, which losses multiply in parts, and of what a resting term does not call."""
        head = self.student.get_output_embeddings()
        used = (part for part in (head, self.projections, self.gate) if isinstance(part, nn.Module))
        return [weight for part in used for weight in part.parameters()]

    @property
    def measures(self) -> list[str]:
        """Names of the metrics that this step may measure besides its terms; a micro-batch may omit some."""
        if not self._measures:
            return []
        terms = self.terms
        return [
            *intervention_metric_names(terms, seed=self._supplies.seed, index=self._index, steps=self._steps),
            *teacher_metric_names(terms, self._compared_teachers),
        ]

    @property
    def _compared_teachers(self) -> tuple[str, ...]:
        """The teachers of the mixture; empty if the step has at most one teacher."""
        return self.mixed if len(self.teachers) > 1 else ()

    @property
    def _measures(self) -> bool:
        return self.training and self._is_logged

    @property
    def _progress(self) -> float:
        return self._index / self._steps

    @property
    def terms(self) -> list[Term]:
        """The terms of the next forward pass, with schedules resolved."""
        if not self.training:
            return [Term(LABELS, LABELS)]
        now = (term.at(self._progress) for term in self.all_terms)
        terms = [term for term in now if term.factor > 0 or term.name == LABELS]
        mixed = [term for term in terms if term.teacher == COMBINED]
        return [*terms, self._gate_term(mixed[0])] if self.gate is not None and mixed else terms

    def count(self, batch: AnyBatch | Mapping[str, Tensor]) -> dict[str, int]:
        """By term, the number of tokens that it counts in a batch on the CPU."""
        batch = batch_of(batch, self.student)
        return {term.name: int(term_mask(term, batch).sum()) for term in self.terms}

    def forward(
        self,
        batch: AnyBatch | Mapping[str, Tensor],
        denominators: Mapping[str, float] | None = None,
        plans: Mapping[str, Plan] | None = None,
    ) -> StepOutput:
        """Run teachers and student on the batch.

        Args:
            batch: B rows of T positions; or the mapping that a transformers tokenizer or collator returns,
                with ``input_ids``, ``attention_mask`` and ``labels`` as for transformers' models, not
                shifted.
            denominators: By term, the number of tokens that it counts in the whole optimizer step; default:
                in this batch. Add up ``count`` over the micro-batches of a step that has several.
            plans: By intervention, its plan; None draws it from the seed, the step and the batch.
        """
        batch, terms = batch_of(batch, self.student), self.terms
        denominators = self.count(batch) if denominators is None else denominators
        plans = self.drawn(batch) if plans is None else plans
        outputs = self.ask(batch, plans)
        measures: dict[str, MeanMetric] = {}
        with self._whole_heads(outputs):
            if self._measures:
                layers = {name: plan.student_layer for name, plan in plans.items()}
                measures = intervention_metrics(terms, outputs, layers)
                if self._compared_teachers:
                    measures |= teacher_metrics(terms, outputs)
            loss, sums = reduce_terms(terms, outputs, denominators, method=self.vocabulary_loss)
        return StepOutput(loss + self._idle(terms), sums, measures)

    @torch.no_grad()
    def not_finite(self, batch: AnyBatch) -> list[str]:
        """Whose weights, or else outputs on a batch, are NaN or infinite, after the loss of a step was."""
        models: dict[str, Iterable[tuple[str, Tensor]]] = {
            f"teacher {name}": teacher.named_weights()
            for name, teacher in self.teachers.items()
            if isinstance(teacher, LiveTeacher)
        }
        models[self.trained] = self.student.named_parameters()
        first = {whose: weights_not_finite(named) for whose, named in models.items()}
        weights = [f"{whose} (its weights {name})" for whose, name in first.items() if name is not None]
        if weights:
            return weights
        outputs = self.ask(batch, self.drawn(batch))
        with self._whole_heads(outputs):
            return [f"{whose} (its outputs)" for whose in outputs_not_finite(outputs, self.trained)]

    def drawn(self, batch: AnyBatch) -> dict[str, Plan]:
        """The step's intervention plans for the batch, by intervention."""
        interventions = {
            t.intervention.name: t.intervention for t in self.terms if t.intervention is not None
        }
        causal = task_of(self.student) == "clm"
        return {
            name: draw_plan(
                intervention, batch, self._supplies, index=self._index, steps=self._steps, causal=causal
            )
            for name, intervention in interventions.items()
        }

    def ask(self, batch: AnyBatch, plans: Mapping[str, Plan]) -> ForwardOutputs:
        """Outputs of student and teachers on the batch, without and after each intervention of the terms."""
        if self.partitioned or any(map(_is_sharded, self.teachers.values())):
            plans = equal_passes(plans, batch)
        terms, mixing = self.terms, self._mixing(batch)
        head, mixed = vocabulary_head(self.student), mixing.teachers
        classes = head is None
        own = {
            name: InterventionPass(
                self.student, (plan.student_layer,), plan, fresh_dropout=plan.exact_dropout
            )
            for name, plan in plans.items()
        }
        theirs = {
            name: {
                teacher: (self._live(teacher).part(plan, plan.teacher_layers[teacher]), wanted)
                for teacher, wanted in teacher_needs(terms, mixed, classes=classes, after=name).items()
            }
            for name, plan in plans.items()
        }
        needs = student_needs(terms, classes=classes)
        causal = task_of(self.student) == "clm"
        base, weighs = causal or self._measures, mixing.weighs_distributions
        requested = teacher_needs(terms, mixed, classes=classes, base=base, weighs=weighs)
        for name in plans:
            needs |= own[name].needs()
            for teacher, (part, _) in theirs[name].items():
                requested[teacher] |= part.needs()
        student = forward_with_outputs(self.student, inputs_of(batch, self.student), needs)
        teachers = {name: self.teachers[name](batch, needs) for name, needs in requested.items()}
        after = {
            name: InterventionOutputs(
                student=own[name].after(batch, student, student_needs(terms, classes=classes, after=name)),
                teachers={
                    teacher: self._live(teacher).after(batch, teachers[teacher], part, wanted)
                    for teacher, (part, wanted) in theirs[name].items()
                },
                touched=plan.touched,
            )
            for name, plan in plans.items()
        }
        return ForwardOutputs(batch, mixing, student, head, teachers, self.projections, after, self.gate)

    @contextmanager
    def _whole_heads(self, outputs: ForwardOutputs) -> Iterator[None]:
        """Keep the heads whole that project the teachers' outputs."""
        passes = [outputs.teachers, *(changed.teachers for changed in outputs.after.values())]
        projecting = {
            name
            for found in passes
            for name, output in found.items()
            if isinstance(output.distribution, (Dense, Translated))
        }
        with ExitStack() as stack:
            for name in sorted(projecting):
                teacher = self.teachers[name]
                assert isinstance(teacher, (LiveTeacher, PrecomputedTeacher))
                stack.enter_context(teacher.whole_head())
            yield

    @property
    def mixed(self) -> tuple[str, ...]:
        """The teachers in the mixture of the next forward pass."""
        if not self.teachers:
            return ()
        return active_teachers(
            self.combination, list(self.teachers), index=self._index, progress=self._progress
        )

    def _mixing(self, batch: AnyBatch) -> TeacherMixture:
        """The teachers' mixture, with the domains and routing draws of the batch's rows."""
        return TeacherMixture(
            self.combination,
            self.mixed,
            progress=self._progress,
            domains=() if self._domains is None else self._domains.names,
            domain=None if self._domains is None else self._domains.of(batch.example_ids),
            drawn=routing_draws(self.combination, batch.example_ids, index=self._index),
        )

    def _live(self, name: str) -> LiveTeacher:
        teacher = self.teachers[name]
        assert isinstance(teacher, LiveTeacher), "interventions need live teachers"
        return teacher

    def _gate_term(self, mixed: Term) -> Term:
        """The gate's training term, at the temperature of the given term on the mixture."""
        weight = self.combination.options.get("weight", 1.0)
        assert isinstance(weight, (int, float))
        temperature = {"temperature": mixed.temperature}
        return Term(GATE, GATE, weight=float(weight), teacher=COMBINED, options=temperature)

    def _idle(self, terms: Sequence[Term]) -> Tensor | float:
        """A zero that depends on the parameters of inactive terms: every process must reach all weights."""
        if not self.training:
            return 0.0
        running = {term.name for term in terms}
        gate = 0.0 if self.gate is None or GATE in running else self.gate.nothing()
        idle = [term.name for term in self.all_terms if term.name not in running]
        return gate + self.projections.nothing(idle)


def _is_sharded(teacher: Teacher) -> bool:
    return isinstance(teacher, LiveTeacher) and teacher.is_sharded


def student_needs(terms: Sequence[Term], *, classes: bool, after: str | None = None) -> OutputSpec:
    """The student's outputs that the terms need after an intervention, or without one (None).

    Its predictions are always included. ``classes``: whether it predicts classes of an example, not tokens.
    """
    needs = OutputSpec(head_input=not classes, logits=classes)
    for term in terms:
        if _intervention(term) == after:
            needs |= _needs(term, [student for student, _ in term.pairs], classes=classes)
    return needs


def teacher_needs(
    terms: Sequence[Term],
    teachers: Sequence[str],
    *,
    classes: bool,
    after: str | None = None,
    base: bool = False,
    weighs: bool = False,
) -> dict[str, OutputSpec]:
    """The outputs that the terms need from each teacher; teachers that no term uses are omitted.

    As ``student_needs``, but without ``after`` the teachers of terms with an intervention are listed too.
    ``base``: whether these terms also need the predictions without it, such as for positions that it leaves
    untouched; ``weighs``: the same only for the combined ``teachers``, which are weighted by these.
    """
    found: dict[str, OutputSpec] = {}
    for term in terms:
        if term.teacher is None or after not in (None, _intervention(term)):
            continue
        needs = OutputSpec()
        if term.loss in LOSSES and (base or (weighs and term.teacher == COMBINED)):
            needs = OutputSpec(head_input=not classes, logits=classes)
        if _intervention(term) == after:
            needs = _needs(term, [teacher for _, teacher in term.pairs], classes=classes)
        for name in teachers if term.teacher == COMBINED else [term.teacher]:
            found[name] = found.get(name, OutputSpec()) | needs
    return found


def _intervention(term: Term) -> str | None:
    return None if term.intervention is None else term.intervention.name


def _needs(term: Term, sites: Sequence[Site], *, classes: bool) -> OutputSpec:
    if term.loss in STATE_LOSSES:
        return OutputSpec(sites=frozenset(sites))
    if term.loss in MAP_LOSSES:
        return OutputSpec(maps=frozenset(site for site in sites if isinstance(site, int)))
    return OutputSpec(head_input=not classes, logits=classes) if term.teacher is not None else OutputSpec()
