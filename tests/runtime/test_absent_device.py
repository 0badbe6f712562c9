"""What a GPU would compute and wait for, on a device that is not there: see support/absent_device.py."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "absent_device.py"
# Of 2 epochs of 5 steps, 6 records with 3 sums and the faults, 2 validations with 3 sums, a check before a checkpoint,
# and predictions. A GPU copies the sums at once; here each number counts.
PLAIN = {
    "copy to gpu epoch": 2,  # the order
    "read interval_metrics": 24,
    "read evaluate": 6,
    "read require_finite": 2,  # the faults, and whether all weights are finite
    "copy to cpu predict": 5,
}
EVERYTHING = "clip_norm=1", "accumulate=2", "ema=0.9", "on_nonfinite=skip", "optim.decay_biases=false"
AUGMENTED = {"copy to gpu _unmixed": 2, "copy to gpu _of": 2}
LINEAR = "model=linear", "optim=adam"
CASES: dict[str, tuple[list[str], dict[str, int]]] = {
    "mlp": (["model=mlp", "optim=sgd"], {}),
    "lenet": (["model=lenet", "optim=adam"], {}),
    "cnn": (["model=cnn", "model.batch_norm=true", "optim=adamw", *EVERYTHING], {"read require_finite": 1}),
    "lstm": (["model=lstm", "model.pool=attention", "optim=adam"], {}),
    "attention": (["model=attention", "model.dropout=0.1", "optim=sgd", "optim.nesterov=true"], {}),
    "autoencoder": (["model=autoencoder", "task=reconstruction"], {"read interval_metrics": 18, "read evaluate": 4}),
    "resnet": (["model=resnet", "model.widths=[4]", "optim=muon", *EVERYTHING], {"read require_finite": 1}),
    "fastnet": (["model=fastnet", "model.widths=[8,8,8]", "optim=muon"], {}),
    "rmsprop": (["model=linear", "optim=rmsprop"], {"read update_weights": 10}),  # each step
    "focal loss": ([*LINEAR, "task.focal=2.0", "task.label_smoothing=0.1"], {}),
    # Of each epoch, whose batches are prepared at once: places of the examples, and what is sampled on the CPU.
    "crop": ([*LINEAR, "data.crop=2", "data.flip=true"], AUGMENTED | {"copy to gpu _of": 4}),
    "mixup": ([*LINEAR, "data.mixup=1", "data.cutmix=1"], {"copy to gpu _unmixed": 4, "copy to gpu _of": 12}),
    "rotate": ([*LINEAR, "data.rotate=9"], AUGMENTED | {"copy to gpu warp": 16}),
    "elastic": ([*LINEAR, "data.elastic=1"], AUGMENTED | {"copy to gpu warp": 2, "copy to gpu _displacements": 2}),
    "strong": (
        [*LINEAR, "data.augment=strong"],
        AUGMENTED | {"copy to gpu _of": 6, "copy to gpu warp": 16, "copy to gpu recolour": 24},
    ),
}
BROKEN = {
    "reads": (["model=linear", "task=custom", "task.name=absent_device:Reading", "+task.label_smoothing=0"]),
    "misplaced": (["model=linear", "task=custom", "task.name=absent_device:Misplaced", "+task.label_smoothing=0"]),
}


@functools.cache
def found() -> dict[str, dict[str, int]]:
    """What each case has waited for, from one process for all."""
    cases = {name: overrides for name, (overrides, _) in CASES.items()} | BROKEN
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, input=json.dumps(cases), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_device_is_waited_for_where_the_table_says_and_in_no_step(case: str) -> None:
    assert found()[case] == PLAIN | CASES[case][1]


@pytest.mark.slow
def test_a_loss_that_reads_a_number_is_noticed() -> None:
    assert found()["reads"]["read loss"] == 20  # of training and validation


@pytest.mark.slow
def test_a_tensor_on_the_cpu_is_noticed() -> None:
    assert "device" in "".join(found()["misplaced"])
