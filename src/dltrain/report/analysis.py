"""Analysis of a network on a split, as plain data: confusion matrix, calibration, most confident mistakes, attention.

Knows tensors and images in memory; knows no files, no console, no config. A network that can show its attention has a
method `attention_map(images)`. It returns weights (B, h, w) for images (B, C, H, W), those of each image summing to 1,
for an h x w grid laid over the image; or None. It is called in evaluation mode, without gradients.
"""

import base64
import io
import logging
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import predict
from dltrain.report.class_maps import class_map, overlaid
from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import located, typed_line

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

BINS = 15  # Guo et al.: On calibration of modern neural networks. ICML 2017
MOST_MISTAKES, MOST_POINTS, MOST_IMAGES, MOST_MAPS = 24, 500, 12, 6
MOST_CLASSES = 1000  # of a confusion matrix, whose size is their square
LARGEST_SIDE = 128  # pixels of an image on the page


def analyze(
    model: nn.Module,
    examples: Examples,  # the split, whose images are shown
    batches: TensorLoader,  # the same examples as input of the network
    classes: Sequence[str],  # all of the network
    task_name: str,
    runtime: Runtime,
    *,
    split: str,
) -> dict[str, Any]:
    """Return the analysis of a network on a split as plain data for JSON; costs one pass over the examples.

    The keys are `task`, `split` and `examples`; for classification also `classes`, those of `classified`, `mistakes`
    (the most confident ones, with their `class_map` if the network is convolutional) and `attention`; for regression
    `points` (true, predicted); for reconstruction `pictures`. Images are PNG as data URLs.
    """
    analysis: dict[str, Any] = {"task": task_name, "split": split, "examples": len(examples.images)}
    was_training = model.training
    model.eval()
    if task_name == "classification":
        outputs = predict(model, batches, runtime)
        analysis |= {"classes": list(classes), **classified(outputs, examples.targets, classes)}
        analysis["mistakes"] = _mistakes(outputs, examples, classes)
        _add_maps(analysis["mistakes"], model, examples, batches, runtime)
        if maps := _attention(model, examples, batches, outputs, classes, runtime):
            analysis["attention"] = maps
    elif task_name == "regression":
        analysis["points"] = _points(examples.targets, predict(model, batches, runtime))
    elif task_name == "reconstruction":
        analysis["pictures"] = _reconstructions(model, examples, batches, runtime)
    model.train(was_training)
    return analysis


def classified(outputs: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of logits (N, K) on the CPU for the true classes (N,).

    The keys are `confusion` (rows are true classes, columns predicted ones; left out above 1,000 classes), `per_class`,
    `macro` and `calibration`. Precision, recall and F1 of a class without predictions or examples are 0 by convention;
    a class without both is left out of their means in `macro`.
    """
    K = len(classes)
    predicted = outputs.argmax(dim=1)
    correct = predicted == targets
    hits, true, claimed = (torch.bincount(it, minlength=K).double() for it in (targets[correct], targets, predicted))
    columns = {
        "precision": hits / claimed.clamp(min=1),
        "recall": hits / true.clamp(min=1),
        "f1": 2 * hits / (true + claimed).clamp(min=1),
        "examples": true.int(),
    }
    present = true + claimed > 0
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    pairs = torch.bincount(targets * K + predicted, minlength=K * K).view(K, K).tolist() if K <= MOST_CLASSES else None
    return {
        **({} if pairs is None else {"confusion": pairs}),
        "per_class": {name: dict(zip(columns, row, strict=True)) for name, row in zip(classes, rows, strict=True)},
        "macro": {name: float(columns[name][present].mean()) for name in ("precision", "recall", "f1")},
        "calibration": calibration(_confidence(outputs), correct),
    }


def calibration(confidence: Tensor, correct: Tensor) -> dict[str, Any]:
    """Return the expected calibration error of a confidence (N,) in predictions that are correct (N,) or not.

    It is the mean distance between confidence and accuracy in 15 bins, open below, closed above (Guo et al., 2017).
    """
    confidence = confidence.double()
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    counts = torch.bincount(bins, minlength=BINS).double()
    mean, accuracy = (torch.bincount(bins, it.double(), BINS) / counts.clamp(min=1) for it in (confidence, correct))
    rows = zip(counts.int().tolist(), mean.tolist(), accuracy.tolist(), strict=True)
    return {
        "error": float((counts * (mean - accuracy).abs()).sum() / counts.sum()),
        "bins": [
            {"from": index / BINS, "to": (index + 1) / BINS, "count": count, "confidence": confident, "accuracy": right}
            for index, (count, confident, right) in enumerate(rows)
        ],
    }


def mistaken_pictures(examples: Examples, analysis: dict[str, Any]) -> list[tuple[Tensor, str]]:
    """Return the images of the mistakes, uint8 (1 or 3, H, W), each with its title, for TensorBoard."""
    title = "{index}: {true} taken for {predicted} ({probability:.2f})"
    return [(to_uint8(examples.images[it["index"]]), title.format(**it)) for it in analysis.get("mistakes", [])]


def to_uint8(image: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Return an image (C, H, W) as uint8 (1 or 3, H, W), floats scaled from `low` to `high`, else their extremes."""
    if image.dtype != torch.uint8:
        low = float(image.min()) if low is None else low
        high = float(image.max()) if high is None else high
        image = ((image.float() - low) * (255 / max(high - low, 1e-12))).nan_to_num(0).clamp(0, 255).round().byte()
    return image if len(image) in (1, 3) else image.float().mean(dim=0, keepdim=True).round().byte()


def data_url(image: Tensor) -> str:
    """Return an image, uint8 (1 or 3, H, W), as a PNG in a URL, at most 128 pixels wide and high."""
    pixels = image.cpu()
    shown = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous()).numpy())
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _confidence(outputs: Tensor) -> Tensor:
    """Return the probability (N,) of the predicted class, 0 for outputs that are NaN."""
    return outputs.softmax(dim=1).gather(1, outputs.argmax(dim=1, keepdim=True)).flatten().nan_to_num(0)


def _mistakes(outputs: Tensor, examples: Examples, classes: Sequence[str]) -> Rows:
    predicted, confidence = outputs.argmax(dim=1), _confidence(outputs)
    wrong = (predicted != examples.targets).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MOST_MISTAKES].tolist()
    return [_row(index, examples, predicted, classes) | {"probability": float(confidence[index])} for index in worst]


def _add_maps(mistakes: Rows, model: nn.Module, examples: Examples, batches: TensorLoader, runtime: Runtime) -> None:
    """Add to each mistake of a convolutional network its image with the map of the predicted class over it."""
    try:
        for mistake in mistakes:  # one by one: gradients of all would need more memory than a small training batch
            index = torch.tensor([mistake["index"]], device=batches.images.device)
            if (weights := class_map(model, batches.normalize(batches.images[index]), runtime)) is not None:
                mistake["class_map"] = data_url(overlaid(to_uint8(examples.images[mistake["index"]]), weights))
    except Exception as error:  # code of a user; a run does not fail for a missing image
        log.warning("class maps of the model are left out: %s: %s", type(error).__name__, error)


def _row(index: int, examples: Examples, predicted: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "index": index,
        "true": classes[int(examples.targets[index])],
        "predicted": classes[int(predicted[index])],
        "image": data_url(to_uint8(examples.images[index])),
    }


def _spread(count: int, most: int) -> Tensor:
    """Return at most `most` of `count` indices, evenly spaced because a data set may be sorted by class."""
    kept = min(count, most)
    return torch.arange(kept) * count // max(kept, 1)


def _attention(
    model: nn.Module, examples: Examples, batches: TensorLoader, outputs: Tensor, names: Sequence[str], runtime: Runtime
) -> Rows:
    attention_map = getattr(model, "attention_map", None)
    if not callable(attention_map):
        return []
    chosen = _spread(len(examples.images), MOST_MAPS)
    try:
        with torch.no_grad(), runtime.autocast():
            maps = attention_map(batches.normalize(batches.images[chosen.to(batches.images.device)]))
    except Exception as error:  # code of a user; a run does not fail for a missing chart
        log.warning("attention_map of the model failed and is left out: %s", located(typed_line(error), error))
        return []
    if maps is None:
        return []
    if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != len(chosen):
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        log.warning("attention_map of the model must return weights (%d, h, w); got %s, left out", len(chosen), shape)
        return []
    predicted = outputs.argmax(dim=1)
    pairs = zip(chosen.tolist(), maps.float().nan_to_num(0).cpu().tolist(), strict=True)
    return [_row(index, examples, predicted, names) | {"weights": weights} for index, weights in pairs]


def _points(targets: Tensor, outputs: Tensor) -> list[list[float]]:
    """Return pairs of true and predicted numbers that are finite, as JSON requires."""
    pairs = torch.stack([targets.flatten().double(), outputs.flatten().double()], dim=1)
    pairs = pairs[_spread(len(pairs), MOST_POINTS)]
    return pairs[pairs.isfinite().all(dim=1)].tolist()


@torch.no_grad()
def _reconstructions(model: nn.Module, examples: Examples, batches: TensorLoader, runtime: Runtime) -> Rows:
    chosen = _spread(len(examples.images), MOST_IMAGES)
    with runtime.autocast():
        outputs = model(batches.normalize(batches.images[chosen.to(batches.images.device)]))
    images = ((outputs.float() - batches.shift) / batches.scale).cpu()  # back in the units of the examples
    rows = []
    for index, output in zip(chosen.tolist(), images, strict=True):
        image = examples.images[index]
        low, high = (0.0, 255.0) if image.dtype == torch.uint8 else (float(image.min()), float(image.max()))
        output_url = data_url(to_uint8(output, low, high))
        rows.append({"index": index, "image": data_url(to_uint8(image)), "output": output_url})
    return rows
