"""The keys of each command outside the groups: their types, ranges and meanings. Their defaults are in configs/."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len

from dltrain.config.hints import Matches

Positive = Annotated[int, Interval(ge=1)]
Duration = Annotated[str, Matches(r"\d+(\.\d+)?[smh]", "a time such as 30s, 5m or 1h")]


@dataclass(frozen=True)
class Train:
    """Keys of a training run outside the groups.

    Args:
        seed: fixes initial weights, order, augmentation, dropout and the validation set
        epochs: passes over the training set
        batch_size: examples in a batch
        accumulate: batches per step (gradient accumulation); a step sees batch_size * accumulate examples
        clip_norm: largest norm of the gradient; null for no limit
        ema: fraction that an average of the weights keeps at each step, such as 0.99; null for no average
        hardest: fraction of each batch to train on: the examples on which a proxy has the highest loss; null for all
        proxy: keys of the model that the proxy, a smaller network, sets differently, such as {widths: [16]}
        log_every: steps between two training records
        checkpoint_every: steps, or a time such as 30s (short at first), between two checkpoints
        keep: how many of the latest checkpoints to keep: last.pt and those before it
        report: write report.html, a page with curves, confusion matrix and mistakes
        on_nonfinite: what to do if the loss is NaN or infinite: `stop`, or `skip` that step's update
        metric: what chooses the best weights and rules patience and sweeps, such as f1_macro; null for accuracy or loss
        patience: stop after this many epochs without a better validation metric; null for never
        max_seconds: stop after this many seconds; null for no limit
        limit_steps: stop after this many steps in all; null for no limit
        hooks: functions of your own that are called after each record and may end the run, such as my_hooks:on_epoch
        resume: folder of a run to continue in, from its last checkpoint
        init: checkpoint or state dict with the weights to start from
        init_partial: start even if the file of `init` holds less than half of the model's numbers
        trust: packages of your own code that a resumed checkpoint may name
        name: added to the name of the run's folder
        tags: labels by which dltrain runs finds the run, such as [baseline]
        note: a text that the run's page and dltrain runs show
        profile: how many steps to trace, after the first few, for profile.json and profile.txt; 0 for none
    """

    seed: Annotated[int, Interval(ge=0, lt=18446744073709551616)]
    epochs: Positive
    batch_size: Positive
    accumulate: Positive
    clip_norm: Annotated[float, Interval(gt=0)] | None
    ema: Annotated[float, Interval(gt=0, lt=1)] | None
    hardest: Annotated[float, Interval(gt=0, lt=1)] | None
    proxy: dict[str, Any] | None
    log_every: Positive
    checkpoint_every: Positive | Duration
    keep: Positive
    report: bool
    on_nonfinite: Literal["stop", "skip"]
    metric: str | None
    patience: Positive | None
    max_seconds: Annotated[float, Interval(gt=0)] | None
    limit_steps: Positive | None
    hooks: list[Annotated[str, Matches(r"[\w.]+:\w+", "module:function, your own code")]]
    resume: str | None
    init: str | None
    init_partial: bool
    trust: str | list[str]
    name: str | None
    tags: list[str]
    note: str | None
    profile: Annotated[int, Interval(ge=0, le=1000)]


@dataclass(frozen=True)
class Eval:
    """Keys of an evaluation outside the groups.

    Args:
        ckpt: a run folder (its best.pt is taken) or a checkpoint file; several as [A,B] are ranked
        split: which examples to evaluate
        tta: test-time augmentation: mean probabilities over mirror images, shifts by one pixel, or both
        ensemble: also evaluate the mean of all checkpoints' probabilities, or of the numbers that they predict
        batch_size: examples at a time; null for the training's
        trust: packages of your own code that the checkpoint may name
    """

    ckpt: str | Annotated[list[str], Len(1)]
    split: Literal["train", "val", "test"]
    tta: Literal["none", "flip", "shift", "flip_shift"]
    ensemble: bool
    batch_size: Positive | None
    trust: str | list[str]


@dataclass(frozen=True)
class EvalData:
    """Keys of the data that may differ from those of the training.

    Args:
        root: folder of the data; null for the one that the checkpoint names
    """

    root: str | None


@dataclass(frozen=True)
class Predict:
    """Keys of a prediction outside the groups.

    Args:
        ckpt: a run folder (its best.pt is taken) or a checkpoint file
        input: an image, a folder of images, or a pattern such as 'shots/*.png'; several as [A,B]
        invert: take the negative, for dark on light where the network expects light on dark; `auto` looks at the edge
        center: scale and center a drawing like MNIST's digits; null for inverted images only
        top_k: how many classes to show for each image
        batch_size: images at a time
        output: CSV file to write
        trust: packages of your own code that the checkpoint may name
    """

    ckpt: str
    input: str | Annotated[list[str], Len(1)]
    invert: bool | Literal["auto"]
    center: bool | None
    top_k: Positive
    batch_size: Positive
    output: str
    trust: str | list[str]


@dataclass(frozen=True)
class Export:
    """Keys of an export outside the groups.

    Args:
        ckpt: a run folder (its best.pt is taken) or a checkpoint file
        format: a graph, `onnx` or `torch_export`, or the weights for init= and torch, `safetensors` or `state_dict`
        output: file to write; null for model.onnx, model.pt2, model.safetensors or model.pth
        normalize: the graph takes uint8 images and normalises them itself
        trust: packages of your own code that the checkpoint may name
    """

    ckpt: str
    format: Literal["onnx", "torch_export", "safetensors", "state_dict"]
    output: str | None
    normalize: bool
    trust: str | list[str]


@dataclass(frozen=True)
class Sweep:
    """Keys of a sweep.

    Args:
        search: `grid` runs every combination, `random` and `tpe` (Optuna) sample them
        trials: number of jobs that a search runs
        metric: what ranks the jobs and what a search improves, such as val_loss; null for `metric` of the jobs
        direction: whether a smaller or a larger metric is better; null to infer it from the name
        pruner: stops bad jobs of a search early: `median`, or `halving` (asynchronous successive halving)
        seed: fixes what a search samples
        workers: jobs at a time; null for as many as there are GPUs, or CPU cores
        job_timeout: kill a job that runs longer than this, such as 600 (seconds) or 10m; null for no limit
        retries: how often a job that failed is tried again, from its last checkpoint
        stop_on_failure: start no further job after one has failed, and stop the others after saving
        resume: folder of a sweep to continue, or `last`
        retry_failed: with `resume`, also run failed jobs again
        dry: show the jobs and run none
        executor: where jobs run: `local` processes, a `ray` cluster, or `slurm`
        options: for the executor, such as {address: auto} for Ray or {partition: gpu} for Slurm
        requeue: submit a job again that was stopped by its time limit or a preemption; if it could not save
            before, this uses up one of `retries`
    """

    search: Literal["grid", "random", "tpe"]
    trials: Positive
    metric: str | None
    direction: Literal["minimize", "maximize"] | None
    pruner: Literal["median", "halving"] | None
    seed: Annotated[int, Interval(ge=0, lt=4294967296)]
    workers: Annotated[int, Interval(ge=1, le=4096)] | None
    job_timeout: Annotated[float, Interval(gt=0)] | Duration | None
    retries: Annotated[int, Interval(ge=0)]
    stop_on_failure: bool
    resume: str | None
    retry_failed: bool
    dry: bool
    executor: Literal["local", "ray", "slurm"]
    options: dict[str, Any] | None
    requeue: bool
