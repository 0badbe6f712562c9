"""`dltrain eval`: computes the metrics of checkpoints on a split."""

import heapq
import itertools
import logging
import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from dltrain.commands import tta
from dltrain.config import saved_config
from dltrain.config.resolution import Config
from dltrain.data import download
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import evaluate
from dltrain.optim.metrics import WithMetric
from dltrain.optim.step import OutputTask, Task
from dltrain.report import analysis, console, run_files
from dltrain.runtime import devices, system_info
from dltrain.runtime.errors import ConfigError, InputError, OutputError, PartialFailure, UserError, printable
from dltrain.training import build, checks
from dltrain.training.restore import TrainedModel, load_examples, load_trained, require_root

log = logging.getLogger(__name__)

SHOWN_CLASSES = 50
MOST_COLUMNS = MOST_ROWS = 20
SHORT = 4  # letters of a class name as column header; with longer names columns are numbered


@dataclass(frozen=True)
class Evaluated:
    """The result of a checkpoint on a split, and what a ranking and an ensemble need of it."""

    path: Path
    kind: str  # data and task
    chosen: dict[str, Any]  # what a training or validation set was chosen by
    digest: str | None  # of its examples in training
    task: Task
    classes: list[str]
    targets: Tensor
    outputs: Tensor  # (N, ...) on the CPU; empty unless they are analyzed or averaged
    result: dict[str, Any]

    def score(self, *, usual: bool) -> list[float]:
        values = [self.result.get("accuracy", -self.result["loss"])] if usual else self.task.score(self.result)
        return [value if math.isfinite(value) else -math.inf for value in values]


def evaluate_checkpoints(config: Config) -> tuple[Any, dict[str, Any]]:
    """Evaluate checkpoints on a split; print their metrics and write them beside each checkpoint.

    Returns a JSON-able document and the result of the best checkpoint. The document is that result, for an ensemble
    with those of its `members`; for a list it has the result of each, and a table ranks them. One that cannot be
    evaluated, or has other test examples, has `checkpoint` and `error`, and PartialFailure is raised at the end.
    """
    ckpt, is_ensemble = config.values["ckpt"], config.values["ensemble"]
    if is_ensemble and (isinstance(ckpt, str) or len(ckpt) < 2):
        raise ConfigError("ensemble=true: needs several checkpoints, as in 'ckpt=[A,B]'")
    if isinstance(ckpt, str):
        result = _evaluate(ckpt, config).result
        _show(result)
        return result, result
    document: list[dict[str, Any]] = []
    ranked: list[Evaluated] = []
    errors: list[UserError] = []
    for path in ckpt:
        try:
            ranked.append(_evaluate(path, config, first=ranked[0] if ranked else None))
            document.append(ranked[-1].result)
        except UserError as error:
            errors.append(error)
            document.append({"checkpoint": path, "error": str(error)})
            log.error("%s is left out: %s", path, error)
    if is_mixed := len({(type(getattr(it.task, "task", it.task)), it.result.get("metric")) for it in ranked}) > 1:
        log.warning("trained with different tasks or metrics: ranked by accuracy, or else by loss")
    best_first = sorted(ranked, key=lambda each: each.score(usual=is_mixed), reverse=True)
    if ranked:
        rows = {each.result["checkpoint"]: _metrics(each.result) for each in best_first}
        console.show_metrics(f"{config.values['split']}, best first", rows)
    if errors:
        message = f"{len(errors)} of {len(document)} checkpoints could not be evaluated; the first: {errors[0]}"
        raise PartialFailure(message, errors[0].exit_code, document) from errors[0]
    if is_ensemble:
        result = _ensemble(ranked, config)
        _show(result)
        return result | {"members": document}, result
    return document, best_first[0].result


def _evaluate(ckpt: str, config: Config, first: Evaluated | None = None) -> Evaluated:
    """Evaluate one checkpoint; raise ConfigError if it is compared with a `first` one that has other examples."""
    began = time.perf_counter()
    split, views, is_ensemble = (config.values[key] for key in ("split", "tta", "ensemble"))
    loaded = load_trained(ckpt, config)
    is_classification = loaded.task == "classification"
    if views != "none" and not is_classification:
        raise ConfigError(f"tta={views}: needs a classifier, {loaded.path} was trained with another task")
    if is_ensemble and loaded.task not in ("classification", "regression"):
        raise ConfigError(f"ensemble=true: needs classification or regression, {loaded.path} has another task")
    task, examples, batches = _ready(loaded, config)
    classes, targets = loaded.content["data"]["classes"], examples.targets
    kind = f"data={loaded.values['data']['name']} task={loaded.task}"
    keys = {"seed": loaded.values["seed"], **loaded.values["data"]}
    chosen = {} if split == "test" else {key: keys.get(key) for key in ("seed", "val", "limit", "folds", "fold")}
    digest = loaded.content.get("digests", {}).get("data", {}).get(split)
    if first is not None and (is_ensemble or split == "test"):
        same = first.kind == kind and first.classes == classes and torch.equal(first.targets, targets)
        # Of other seeds or folds the labels may be the same although the images are not, as in a sorted folder.
        if not same or (first.chosen != chosen and (digest is None or digest != first.digest)):
            problem = f"its {split} examples or task ({kind}) are not those of {first.path} ({first.kind})"
            raise ConfigError(f"{loaded.path}: {problem}. Evaluate it by itself")
    model = loaded.model if views == "none" else tta.AveragedViews(loaded.model, views)
    parts: list[Tensor] = []  # of the outputs, collected during `evaluate`, so that one pass suffices
    if is_classification or is_ensemble:
        model.register_forward_hook(lambda module, inputs, output: parts.append(output.float().cpu()))
    with devices.memory_errors("Lower batch_size"):
        metrics = evaluate(model, batches, task, loaded.runtime)
    outputs = torch.cat(parts) if parts else torch.empty(0)
    of_classes = classes if is_classification else None
    result = {"checkpoint": str(loaded.path), **_result(metrics, task, outputs, targets, of_classes, config)}
    result |= {"seconds": round(time.perf_counter() - began, 3), "device": loaded.runtime.describe()}
    result |= system_info.environment(loaded.runtime.device.type)
    _write(loaded.path.parent / file_name(loaded.path, split, views), result)
    return Evaluated(loaded.path, kind, chosen, digest, task, classes, targets, outputs, result)


def _ensemble(members: Sequence[Evaluated], config: Config) -> dict[str, Any]:
    """Return the result of the mean probabilities, or of the mean outputs of a regression, of several checkpoints."""
    first, outputs = members[0], [each.outputs for each in members]
    is_classification = "classes" in first.result
    mean = tta.mean_log_probabilities(outputs) if is_classification else torch.stack(outputs).mean(dim=0)
    loss = first.task.loss(mean, mean, first.targets)
    metrics = first.task.metrics(first.task.sums(loss[None], mean[None], first.targets[None])[0].tolist())
    if isinstance(first.task, OutputTask) and first.task.needs_outputs:
        metrics |= first.task.output_metrics(mean, first.targets)
    classes = first.classes if is_classification else None
    result = first.result | _result(metrics, first.task, mean, first.targets, classes, config)
    seconds = round(sum(each.result["seconds"] for each in members), 3)
    result |= {"checkpoint": f"ensemble of {len(members)}", "seconds": seconds}
    name = file_name(first.path, config.values["split"], config.values["tta"])
    _write(first.path.parent / f"ensemble-{name}", result)
    return result


def _result(
    metrics: dict[str, float], task: Task, outputs: Tensor, targets: Tensor, classes: list[str] | None, config: Config
) -> dict[str, Any]:
    """Return metrics and, with `classes`, the analysis of a classifier's outputs."""
    result = {"split": config.values["split"], "tta": config.values["tta"], "examples": len(targets), **metrics}
    result |= {"metric": task.name} if isinstance(task, WithMetric) else {}
    if classes is not None:
        analyzed = analysis.classified(outputs, targets, classes)
        result |= {"classes": analyzed.pop("per_class"), **analyzed}
    return result


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        run_files.write_json(path, result)
        log.info("metrics %s", path)
    except OutputError as error:  # the folder of the run may be read-only: still print the result
        log.warning("%s", error)


def analyze_checkpoint(config: Config) -> dict[str, Any]:
    """Analyze a checkpoint on a split, for the page of a run. Raises UserError."""
    loaded = load_trained(config.values["ckpt"], config)
    _, examples, batches = _ready(loaded, config)
    classes, task, split = loaded.content["data"]["classes"], loaded.task, config.values["split"]
    with devices.memory_errors("Lower batch_size"):
        return analysis.analyze(loaded.model, examples, batches, classes, task, loaded.runtime, split=split)


def _ready(loaded: TrainedModel, config: Config) -> tuple[Task, Examples, TensorLoader]:
    """Return the task of a checkpoint, and the examples of a split and their loader, checked to fit the network."""
    known = loaded.content["data"]
    task = build.task(loaded.values, known["outputs"], known.get("class_counts"))
    split = config.values["split"]
    require_root(loaded, config)
    with download.forbidden(saved_config.read_only_reason(loaded.values, config.typed)):
        examples = load_examples(loaded, split)
    # A user's code may return other examples each time; with data.root on the command line they are meant to differ.
    may_differ = ":" in loaded.values["data"]["name"] or "data.root" in config.typed
    digest = loaded.content.get("digests", {}).get("data", {}).get(split)  # older checkpoints have none
    if not may_differ and digest not in (None, build.digest(examples)):
        # Adding images to a folder changes which ones are held out.
        log.warning("%s: not the examples of the training run; the model may have been trained on some of them", split)
    if (actual := tuple(examples.images.shape[1:])) != (expected := tuple(known["input_shape"])):
        raise InputError(f"data: has images of {actual}, the model was trained on {expected}")
    checks.check_classes(known["classes"], examples, split)
    checks.check_fit(loaded.model, loaded.values["model"], task, examples.targets, expected, known["outputs"])
    batch_size = config.values["batch_size"] or loaded.values["batch_size"]
    return task, examples, build.evaluation_batches(examples, loaded.runtime, loaded.statistics, batch_size)


def file_name(checkpoint: Path, split: str, views: str) -> str:
    """Return the result file's name: eval.json for best.pt on the test set, else such as last-eval-val-flip.json."""
    prefix = "" if checkpoint.stem == "best" else f"{checkpoint.stem}-"
    augmented = "" if views == "none" else f"-{views}"
    return f"{prefix}eval{f'-{split}' if split != 'test' or augmented else ''}{augmented}.json"


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a result, which are the columns of a table."""
    metrics = {k: v for k, v in result.items() if isinstance(v, int | float) and k not in ("examples", "seconds")}
    return metrics | ({"calibration_error": result["calibration"]["error"]} if "calibration" in result else {})


def _show(result: dict[str, Any]) -> None:
    views = "" if result["tta"] == "none" else f", tta={result['tta']}"
    console.show_metrics(f"{result['checkpoint']}{views}", {result["split"]: _metrics(result)})
    if "classes" not in result:
        return
    title, classes = "per class", result["classes"]
    if "confusion" in result:
        console.show_table(table(list(classes), result["confusion"]))
    if len(classes) > SHOWN_CLASSES:
        title += f", the {SHOWN_CLASSES} with the lowest f1"
        classes = dict(sorted(classes.items(), key=lambda item: item[1]["f1"])[:SHOWN_CLASSES])
    console.show_metrics(title, classes | {"macro average": result["macro"]})


def table(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    """Return a confusion matrix, true classes as rows, as a table; if it is too wide, a table of the largest errors."""
    if len(classes) > MOST_COLUMNS:
        return _worst(classes, counts)
    matrix, console = _matrix(classes, counts), Console()
    unlimited = console.options.update(max_width=10_000)  # else the squeezed table is measured
    too_wide = console.is_terminal and console.measure(matrix, options=unlimited).maximum > console.width
    return _worst(classes, counts) if too_wide else matrix


def _matrix(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    short = all(len(name) <= SHORT for name in classes)
    heads = (Column(printable(name) if short else str(number), justify="right") for number, name in enumerate(classes))
    shown = Table("", *heads, title="confusion (rows: true, columns: predicted)", title_justify="left")
    shown.box, shown.padding, shown.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
    for number, (name, row) in enumerate(zip(classes, counts, strict=True)):
        label = printable(name if short else f"{number} {name}")
        shown.add_row(label, *(str(count) if count else "·" for count in row))
    return shown


def _worst(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    numbers = [Column(name, justify="right") for name in ("examples", "fraction of true")]
    shown = Table("true", "predicted", *numbers, title="most frequent confusions", title_justify="left")
    cells = ((counts[true][other], true, other) for true, other in itertools.permutations(range(len(classes)), 2))
    for count, true, predicted in heapq.nlargest(MOST_ROWS, cells, key=operator.itemgetter(0)):
        if count:
            names = (printable(classes[true]), printable(classes[predicted]))
            shown.add_row(*names, str(count), f"{count / sum(counts[true]):.4f}")
    return shown
