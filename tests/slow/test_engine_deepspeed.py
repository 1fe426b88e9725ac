"""DeepSpeed in two real processes, and in one, against plain PyTorch in one.

All of it is two launches of ``tests.support.engine_fleet`` and a few runs in this process.
"""

import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stlm_kd import distributed
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import MissingResourceError
from stlm_kd.tracking import read_metrics
from stlm_kd.training import TrainingConfig
from stlm_kd.training.backends import deepspeed_setup
from tests.support.engine_fleet import Run, Told, launch, train
from tests.support.engine_pico import PicoStep, pico_fit

Line = tuple[str, int, str]
BF16 = {"precision": "bf16", "clip": None}
BERT_ADAM = {"bias_correction": False}
OPTIMIZER = {"offload": "optimizer"}
PARAMETERS = {"offload": "parameters"}
SMALL = {  # every weight is partitioned, and fetched ahead by parts
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 40,
    "stage3_max_live_parameters": 60,
    "reduce_bucket_size": 50,
    "sub_group_size": 30,
    "overlap_comm": True,
}
STOP_BOTH = {"2": [signal.SIGTERM, 1]}
TWO = [
    Run("zero-2", zero=2),
    Run("ddp"),
    Run("zero-1", zero=1),
    Run("zero-0", zero=0),
    Run("free", zero=2, settings={"clip": None, "weight_decay": 0.5}),
    Run("bf16", zero=2, settings=BF16),
    Run("bf16-weights", zero=2, settings=BF16, deepspeed={"weights": "bf16"}),
    Run("sometimes-2", zero=2, step="sometimes"),
    Run("sometimes-0", zero=0, step="sometimes"),
    Run("tied", zero=2, step="tied"),
    Run("best", zero=2, step="rising", settings={"validate_every": 1, "keep": "best"}),
    Run("poisoned-2", zero=2, step="poisoned"),
    Run("poisoned-1", zero=1, step="poisoned"),
    Run("poisoned-0", zero=0, step="poisoned"),
    Run("stopped", zero=2, signals=STOP_BOTH),
    Run("as-zero-2", zero=2, begins_as="stopped"),
    Run("as-zero-1", zero=1, begins_as="stopped"),
    Run("as-zero-0", zero=0, begins_as="stopped"),
    Run("stopped-bert-adam", zero=2, settings=BERT_ADAM, signals=STOP_BOTH),
    Run("as-bert-adam", zero=2, settings=BERT_ADAM, begins_as="stopped-bert-adam"),
    Run("paced-ddp", pace=0.2),
    Run("paced-0", zero=0, pace=0.2),
    Run("stopped-paced", zero=2, pace=0.2, signals=STOP_BOTH),
    Run("as-paced", zero=1, pace=0.2, begins_as="stopped-paced"),
    Run("as-ddp", begins_as="stopped"),
    Run("stopped-ddp", signals=STOP_BOTH),
    Run("ddp-as-zero-2", zero=2, begins_as="stopped-ddp"),
    Run("llama", zero=2, step="llama"),
    Run("hidden", zero=2, step="hidden", micro_batch=6),
    Run("means", zero=2, step="means", micro_batch=6),
    Run("alone-ddp", step="alone"),
    Run("alone-0", zero=0, step="alone"),
    Run("zero-3", zero=3, deepspeed={"settings": {"zero_optimization": SMALL}}),
    Run("optimizer-1", zero=1, deepspeed=OPTIMIZER),
    Run("optimizer-2", zero=2, deepspeed=OPTIMIZER, pace=0.2, signals=STOP_BOTH),
    Run("optimizer-as-ddp", begins_as="optimizer-2", pace=0.2),
    Run("optimizer-as-2", zero=2, deepspeed=OPTIMIZER, begins_as="optimizer-2", pace=0.2),
    Run("optimizer-as-3", zero=3, begins_as="optimizer-2", pace=0.2),
    Run("parameters", zero=3, deepspeed=PARAMETERS, step="sometimes"),
    Run("ddp-as-parameters", zero=3, deepspeed=PARAMETERS, begins_as="stopped-ddp"),
    Run("stopped-parameters", zero=3, deepspeed=PARAMETERS, signals=STOP_BOTH),
    Run("parameters-as-optimizer", zero=3, deepspeed=OPTIMIZER, begins_as="stopped-parameters"),
    Run("poisoned-parameters", zero=3, deepspeed=PARAMETERS, step="poisoned"),
]


PACED = ["paced-ddp", "paced-0", "as-paced", "optimizer-as-2", "optimizer-as-3", "optimizer-as-ddp"]
ENGINES = ["zero-3", "optimizer-1", "zero-2", "zero-1", "zero-0", "ddp", "one/zero-2", "one/zero-3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def two(folder: Path) -> Told:
    """Steps of 6, 6 and 4 rows, dealt to two processes, in micro-batches of 2: 2 + 1 rows, then 2."""
    return launch(folder, 2, TWO)


@pytest.fixture(scope="module")
def one(two: Told, folder: Path) -> Path:
    """In this process and in one micro-batch, by plain PyTorch where the name does not say otherwise."""
    runs = [
        Run("plain"),
        Run("zero-2", zero=2),
        Run("zero-3", zero=3),
        Run("again"),
        Run("as-plain", begins_as="../stopped"),
        Run("as-zero-2", zero=2, begins_as="../stopped"),
        Run("free", settings={"clip": None, "weight_decay": 0.5}),
        Run("bf16", settings=BF16),
        Run("bert-adam", settings=BERT_ADAM),
        Run("paced", pace=0.2),
        Run("sometimes", step="sometimes"),
        Run("tied", step="tied"),
        Run("llama", step="llama"),
        Run("hidden", step="hidden"),
        Run("means", step="means"),
    ]
    for run in runs:
        told = train(folder / "one", Run(**{**asdict(run), "micro_batch": 6}))
        assert told["error"] is None and told["remains"] == [] and told["freed"] == [True, True]
    return folder / "one"


def lines(folder: Path) -> dict[Line, float]:
    """Losses, gradient norms, learning rates and tokens by step and name."""
    return {
        (line["kind"], line["step"], name): value
        for line in read_metrics(folder / "metrics.jsonl")
        if line["kind"] != "note"
        for name, value in {**line, **line["losses"]}.items()
        if name in ("loss", "labels", "size", "grad_norm", "learning_rate", "tokens")
    }


def agree(found: Mapping[Line, float], expected: Mapping[Line, float]) -> bool:
    """What all comparisons of this file rest on; the controls below show that it can fail."""
    assert found.keys() == expected.keys()
    return found == pytest.approx(dict(expected), rel=1e-5)


def saved(folder: Path, name: str, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def largest_difference(found: Path, expected: Path) -> float:
    """Between the weights and optimizer states that two runs saved last, relative to a tensor's largest."""
    differences = []
    for name in ("model", "optimizer"):
        ours, theirs = saved(found, name), saved(expected, name)
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {"forwards"}:  # it counts micro-batches
            tensor = theirs[key]
            scale = tensor.double().abs().max().clamp(min=1e-12)
            differences.append(float((ours[key].double() - tensor.double()).abs().max() / scale))
    return max(differences)


@pytest.mark.parametrize("name", ENGINES)
def test_any_engine_reports_the_losses_norms_and_rates_of_plain_pytorch(
    one: Path, folder: Path, name: str
) -> None:
    expected = lines(one / "plain")
    assert agree(lines(folder / name), expected)
    assert len({value for (*_, name), value in expected.items() if name == "learning_rate"}) == 6
    assert sum(value > 0.3 for (*_, name), value in expected.items() if name == "grad_norm") >= 3


@pytest.mark.parametrize("name", ENGINES)
def test_any_engine_saves_the_weights_and_optimizer_state_of_plain_pytorch(
    one: Path, folder: Path, name: str
) -> None:
    assert largest_difference(folder / name, one / "plain") < 1e-5
    state = saved(folder / name, "optimizer")
    assert {value.item() for key, value in state.items() if key.endswith("/step")} == {6}
    assert not any(key.startswith(("idle", "frozen")) for key in state)


def test_without_clipping_and_with_more_decay_they_agree_as_well(one: Path, folder: Path) -> None:
    assert agree(lines(folder / "free"), lines(one / "free"))
    assert largest_difference(folder / "free", one / "free") < 1e-5
    assert not agree(lines(folder / "free"), lines(one / "plain"))


@pytest.mark.parametrize("name", ["bf16", "bf16-weights"])
def test_bf16_is_autocast_inside_the_engine(one: Path, folder: Path, name: str) -> None:
    found, plain = lines(folder / name), lines(one / "bf16")
    losses = [key for key in plain if key[2] == "loss"]
    assert [found[key] for key in losses] == pytest.approx([plain[key] for key in losses], rel=5e-3)
    assert found["step", 1, "loss"] != pytest.approx(lines(one / "plain")["step", 1, "loss"], rel=1e-6)
    assert {tensor.dtype for tensor in saved(folder / name, "optimizer").values()} == {torch.float32}
    head = saved(folder / name, "model")["head.weight"]
    assert head.dtype == torch.float32 and not torch.equal(head, head.bfloat16().float())


@pytest.mark.parametrize("name", ["sometimes-2", "sometimes-0", "parameters"])
def test_a_parameter_without_gradient_stays_as_it_is(one: Path, folder: Path, name: str) -> None:
    assert largest_difference(folder / name, one / "sometimes") < 1e-5
    early, late = (saved(folder / name, kind, step) for kind, step in (("model", 4), ("model", 6)))
    assert torch.equal(early["idle.weight"], late["idle.weight"])
    assert not torch.equal(early["head.weight"], late["head.weight"])
    early, late = (saved(folder / name, "optimizer", step) for step in (4, 6))
    assert torch.equal(early["idle.weight/exp_avg"], late["idle.weight/exp_avg"])
    assert (late["idle.weight/step"], late["head.weight/step"]) == (2, 6)


def test_tied_weights_stay_tied(one: Path, folder: Path) -> None:
    assert "head.weight" not in saved(folder / "tied", "model")
    assert largest_difference(folder / "tied", one / "tied") < 1e-5


def test_both_processes_end_with_the_same_weights_in_a_module_free_of_the_engine(two: Told) -> None:
    for run in TWO:
        told = [rank[run.name] for rank in two]
        if run.step not in ("hidden", "alone"):
            assert told[0]["digest"] == told[1]["digest"], run.name
        assert [rank["remains"] for rank in told] == [[], []], run.name
        assert [rank["freed"] for rank in told] == [[True, True]] * 2, run.name


def test_an_interrupted_run_of_zero_2_ends_bit_for_bit_like_an_uninterrupted_one(
    two: Told, folder: Path
) -> None:
    for rank in two:
        name, code, text = rank["stopped"]["error"]
        assert (name, code) == ("Preempted", 75) and "after step 3" in text
        assert rank["as-zero-2"]["digest"] == rank["zero-2"]["digest"]
    assert largest_difference(folder / "as-zero-2", folder / "zero-2") == 0


@pytest.mark.parametrize(
    "name",
    [
        "as-zero-1",
        "as-zero-0",
        "as-ddp",
        "ddp-as-zero-2",
        "ddp-as-parameters",
        "parameters-as-optimizer",
        "one/as-plain",
        "one/as-zero-2",
    ],
)
def test_a_checkpoint_of_any_engine_and_any_number_of_processes_goes_on_under_any_other(
    one: Path, folder: Path, name: str
) -> None:
    assert largest_difference(folder / name, one / "plain") < 1e-5
    found, expected = lines(folder / name), lines(one / "plain")
    later = [key for key in expected if key[1] > 3]
    assert agree({key: found[key] for key in later}, {key: expected[key] for key in later})


def test_bert_adam_goes_on_under_zero_2_as_plain_pytorch_without_a_stop(one: Path, folder: Path) -> None:
    assert largest_difference(folder / "as-bert-adam", one / "bert-adam") < 1e-5
    assert not agree(lines(one / "bert-adam"), lines(one / "plain"))


@pytest.mark.parametrize("name", PACED)
def test_rows_of_another_pace_move_alike_under_any_engine(one: Path, folder: Path, name: str) -> None:
    assert largest_difference(folder / name, one / "paced") < 1e-5
    assert largest_difference(one / "plain", one / "paced") > 1e-3


@pytest.mark.parametrize("engine", ["parameters", 2, 1, 0])
def test_what_is_not_finite_in_one_process_stops_all_before_the_weights_change(
    two: Told, engine: str | int
) -> None:
    for rank in two:
        name, code, text = rank[f"poisoned-{engine}"]["error"]
        assert (name, code) == ("NonFiniteError", 1)
        assert "step 2: gradient norm not finite" in text and "gradients not finite: head.bias)" in text
    if engine != "parameters":  # which leaves no weights in a module that did not finish
        last = two[1][f"poisoned-{engine}"]
        assert last["digest"] == last["before"]


def test_the_best_weights_are_in_the_module_at_the_end(two: Told, folder: Path) -> None:
    result = two[0]["best"]["result"]
    best = saved(folder / "best", "model", result["best_step"])
    assert (result["steps"], result["stopped"]) == (6, "done") and result["best_step"] < 6
    assert two[0]["best"]["weights"] == {name: float(best[name].double().sum()) for name in best}


def test_a_trained_model_is_saved_by_its_own_library(one: Path, folder: Path) -> None:
    assert agree(lines(folder / "llama"), lines(one / "llama"))
    found, expected = (AutoModelForCausalLM.from_pretrained(at / "llama" / "model") for at in (folder, one))
    assert found.lm_head.weight is found.model.embed_tokens.weight
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("control", ["hidden", "means"])
def test_the_comparison_notices_what_the_engine_cannot_see_and_a_mean_of_means(
    one: Path, folder: Path, control: str
) -> None:
    found, expected = lines(folder / control), lines(one / control)
    assert found["step", 1, "labels"] == pytest.approx(expected["step", 1, "labels"], rel=1e-6)
    assert not agree(found, expected)


@pytest.mark.parametrize("name", ["alone-ddp", "alone-0"])
def test_processes_whose_weights_differ_are_told_which(two: Told, name: str) -> None:
    for rank in two:
        kind, _, text = rank[name]["error"]
        assert kind == "DivergedError" and "1 of 7" in text and ": head.bias;" in text


def test_the_first_process_works_for_all_and_fails_for_all(two: Told) -> None:
    assert [rank["ranks"] for rank in two] == [[0, 0], [0, 1]]
    assert [rank["failed"] for rank in two] == [["DataError", 1], ["RemoteProcessError", 1]]


def test_a_training_that_the_first_process_begins_alone_is_refused_and_no_one_waits(
    two: Told, folder: Path
) -> None:
    (kind, code, text), elsewhere = (rank["alone"] for rank in two)
    assert (kind, code, elsewhere[:2]) == ("StlmKdError", 1, ["RemoteProcessError", 1])
    assert text.startswith("fit: called in the main process alone, while the other 1 wait")
    assert not (folder / "alone").exists()


def test_a_run_of_other_kinds_between_changes_nothing(one: Path) -> None:
    assert largest_difference(one / "again", one / "plain") == 0


def test_processes_that_cannot_meet_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):  # older releases of accelerate set them
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        MissingResourceError, match=r"2 processes .* RANK, LOCAL_RANK, MASTER_ADDR are not set"
    ):
        on_main_process(lambda: 1)


def test_zero_3_leaves_pytorchs_linear_as_it_was(tmp_path: Path) -> None:
    """DeepSpeed's own rounds otherwise, so that later trainings of the process would not be repeatable."""
    pico_fit(PicoStep(), tmp_path, TrainingConfig(steps=1, learning_rate=1e-2, zero=3))
    assert torch.nn.functional.linear is torch._C._nn.linear


def test_without_deepspeed_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        MissingResourceError, match=r"zero: DeepSpeed cannot be imported .* install deepspeed"
    ):
        pico_fit(PicoStep(), tmp_path, TrainingConfig(steps=1, learning_rate=1e-2, zero=1))
    assert pico_fit(PicoStep(), tmp_path, TrainingConfig(steps=1, learning_rate=1e-2)).steps == 1


def test_what_the_environment_asks_of_deepspeed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = TrainingConfig(steps=2, learning_rate=1e-2, eps=1e-3, clip=None)
    expected, divided, plain = PicoStep(), PicoStep(), PicoStep()
    pico_fit(expected, tmp_path / "a", plan)
    for name, value in {
        "USE_DEEPSPEED": "true",
        "DEEPSPEED_ZERO_STAGE": "3",
        "GRADIENT_ACCUMULATION_STEPS": "7",
        "GRADIENT_CLIPPING": "0.001",
        "MIXED_PRECISION": "bf16",
    }.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    pico_fit(plain, tmp_path / "b", plan)
    pico_fit(divided, tmp_path / "c", replace(plan, zero=2))
    assert torch.equal(plain.head.weight, expected.head.weight)
    torch.testing.assert_close(divided.head.weight, expected.head.weight)


def test_a_deepspeed_that_trains_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_setup.metadata, "version", lambda name: "0.18.2")
    with pytest.raises(MissingResourceError, match=r"deepspeed 0\.18\.2 found, expected 0\.19\.8 or newer"):
        deepspeed_setup.import_deepspeed(torch.device("cpu"))


def test_a_process_without_a_gpu_of_its_own_is_refused() -> None:
    with pytest.raises(MissingResourceError, match="process 1 of this node has no GPU, of which there are 1"):
        distributed.take_device(1, 1)
