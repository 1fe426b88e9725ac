"""The sample recipes with bf16 weights in two processes, by command, stopped once: the losses of fp32."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.trained import Point, curves

pytestmark = pytest.mark.long

SHORT = (
    "train: {{steps: 8, precision: {precision}, log_every: 1, validate_every: 4, "
    "gradient_checkpointing: {less}}}"
)
ADAPT = "adapt: {{tokens: 12k, precision: {precision}, effective_batch: 16, validate_every: 4}}"
TEXT = "data: {{train: {{sample: train, size: 150k}}, validation: {{sample: validation, size: 10k}}}}"
RECIPES = {
    "gpt2": f"extends: sample-teacher-gpt2\n{TEXT}\n{SHORT}\n",
    "llama": f"extends: sample-teacher-llama\n{TEXT}\n{SHORT}\n",
    "diito": f"""
extends: sample-diito
teachers:
  - {{{{name: gpt2, recipe: gpt2.yaml, placement: {{placement}}, {ADAPT}}}}}
  - {{{{name: llama, recipe: llama.yaml, {ADAPT}}}}}
{TEXT[:-2]}, fraction: 1.0}}}}
{SHORT}
""",
    "larger": f"extends: sample-teacher-sentiment\n{SHORT.replace('steps: 8', 'epochs: null, steps: 8')}\n",
    "sentiment": f"""
extends: sample-sentiment
teachers: [{{{{name: larger, recipe: larger.yaml, placement: {{placement}}}}}}]
{SHORT}
""",
}
ALIKE = (
    "train.micro_batch=8",
    "train.checkpoint_every=2",
    "controls=[]",
    "seeds=[1]",
    "eval=[]",
    "tracking=[]",
)


def write(folder: Path, **options: str) -> Path:
    folder.mkdir()
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe.format(**options))
    return folder


def begin(folder: Path, recipe: str, *words: str) -> subprocess.Popen[str]:
    command = ["-m", "stlm_kd", "distill", "-r", f"{recipe}.yaml", *ALIKE, *words, "--output-dir", recipe]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(command: subprocess.Popen[str]) -> str:
    """What a command that ended well said on stderr."""
    try:
        _, said = command.communicate(timeout=400)
    finally:
        command.kill()
    assert command.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both recipes by PyTorch alone in one process, whole teachers, nothing recomputed; by precision."""
    place = tmp_path_factory.mktemp("plain")
    folders = {
        precision: write(place / precision, precision=precision, placement="replicate", less="false")
        for precision in ("fp32", "bf16")
    }
    for folder in folders.values():
        for recipe in ("diito", "sentiment"):
            ended(begin(folder, recipe))
    return folders


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("recipe", ["diito", "sentiment"])
def test_it_goes_on_where_it_was_stopped_and_is_as_near_to_fp32_as_autocast_is(
    plain: dict[str, Path], tmp_path: Path, recipe: str, zero: int
) -> None:
    folder = write(tmp_path / "r", precision="bf16", placement="shard", less="true")
    engine = [f"engine.deepspeed.zero={zero}", "engine.deepspeed.weights=bf16", "--processes", "2"]
    command = begin(folder, recipe, *engine)
    saved = f"{recipe}/*/students/student/seed-1/checkpoints/step-00000002/checksums.json"
    deadline = time.monotonic() + 300
    while not [*folder.glob(saved)] and command.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command.send_signal(signal.SIGTERM)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 75, said
    assert "resumed after step" in ended(begin(folder, recipe, *engine))
    found = curves(folder / recipe)
    expected, cast = (curves(plain[precision] / recipe) for precision in ("fp32", "bf16"))
    losses = {at for at in expected if at[3] not in ("grad_norm", "learning_rate", "tokens")}
    assert found.keys() == expected.keys() == cast.keys()
    assert len({stage for stage, *_ in losses}) == (5 if recipe == "diito" else 2)

    def apart(one: dict[Point, float]) -> float:  # nats, and the units of hints and attention
        return max(abs(one[at] - expected[at]) for at in losses)

    # autocast rounds the operands of products; here embeddings, norms and gradients are rounded too
    print(apart(found), apart(cast))
    assert 0 < apart(found) < 3 * apart(cast), (apart(found), apart(cast))
