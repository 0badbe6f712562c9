"""`dltrain export`: a checkpoint to a file for other programs: an ONNX graph, or the weights alone."""

import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from dltrain import __version__
from dltrain.commands import onnx_graph
from dltrain.config.resolution import Config
from dltrain.data import download
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.runtime import atomic_files
from dltrain.runtime.devices import memory_errors
from dltrain.runtime.errors import ConfigError, OutputError, UserError, first_line
from dltrain.runtime.folders import expand_user
from dltrain.training.restore import TrainedModel, load_examples, load_trained

log = logging.getLogger(__name__)

OUTPUTS = {"onnx": "model.onnx", "safetensors": "model.safetensors", "state_dict": "model.pth"}
MOST_EXAMPLES = 1000  # that an ONNX file is verified on
MOST_NUMBERS = 1 << 24  # in those examples: fewer of large pictures
SHOWN_CLASSES = 10


def export(config: Config) -> Path:
    """Write the network of a checkpoint to a file, whole or not at all, and say how its inputs must look; its path.

    Raises UserError, whose `exit_code` says of which kind.
    """
    values = config.values
    kind = values["format"]
    if kind == "onnx":
        onnx_graph.require_packages()
    elif "normalize" in config.typed:
        raise ConfigError(f"normalize: format={kind} holds weights and no graph to normalise in. Leave it out")
    path = expand_user(values["output"] or OUTPUTS[kind])
    loaded = load_trained(values["ckpt"], config)
    loaded.model.cpu().eval()  # what is exported knows no device, and float32 is computed to the end on a CPU
    with memory_errors("Set format=safetensors, which needs less"):
        if kind == "onnx":
            content, lines = _onnx(loaded, path, normalize=values["normalize"])
        elif kind == "safetensors":
            content, lines = _safetensors(loaded), _of_weights(loaded, path)
        else:
            content, lines = _state_dict(loaded), _of_weights(loaded, path)
    try:
        atomic_files.atomic_write(path, content)
    except ValueError as error:  # a zero byte in its name
        raise OutputError(f"output={path}: cannot be written ({error})") from error
    log.info("%-9s %s, %s bytes", "file", path, f"{len(content):,}")
    for line in lines:
        log.info(line)
    return path


def _onnx(loaded: TrainedModel, path: Path, *, normalize: bool) -> tuple[bytes, list[str]]:
    """A verified ONNX file, and lines for a person."""
    examples, named = _examples(loaded)
    batches = TensorLoader(
        examples, torch.device("cpu"), batch_size=onnx_graph.BATCHES[-1], statistics=loaded.statistics
    )
    is_bytes = examples.images.dtype == torch.uint8
    number = "a byte / 255" if is_bytes else "a number as in the data set"
    network, images, layout = loaded.model, batches.normalize(examples.images), _normalised(loaded, number)
    if normalize:
        scale, shift = batches.scale[:, :1, :1].clone(), batches.shift[:, :1, :1].clone()
        network, images = onnx_graph.Normalized(network, scale, shift), examples.images
        layout = "uint8, 0..255" if is_bytes else "float32, numbers as in the data set"
        layout += ", normalised inside"
    output = "logits" if _task(loaded) == "classification" else "outputs"
    with torch.no_grad():
        expected = torch.cat([loaded.model(inputs) for inputs, _ in batches.in_order()])
    layout = f"images (N, {_sides(images.shape[1:])}), {layout}"
    try:
        file = onnx_graph.build(network, images[:1], output=output, metadata=_facts(loaded) | {"input": layout})
    except onnx_graph.ExportError as error:
        name = loaded.values["model"]["name"]
        raise ConfigError(f"model={name} cannot be exported to ONNX: {error}\nSet format=safetensors") from error
    try:
        greatest = onnx_graph.difference(file, images, expected, threads=loaded.runtime.threads)
    except onnx_graph.ExportError as error:
        raise OutputError(f"{path}: not written, {error}\nSet format=safetensors") from error
    return file, [
        f"input     {layout}; any N",
        f"output    {output} (N, {_sides(expected.shape[1:])}){_classes(loaded)}",
        f"verified  {named}, batches of {', '.join(map(str, onnx_graph.BATCHES))}: "
        f"greatest difference from the network {greatest:.2g}",
    ]


def _examples(loaded: TrainedModel) -> tuple[Examples, str]:
    """What an export is verified on, and what that is: test examples where they are here, else random pixels."""
    shape = tuple(loaded.content["data"]["input_shape"])
    count = max(sum(onnx_graph.BATCHES[:2]) + 1, min(MOST_EXAMPLES, MOST_NUMBERS // math.prod(shape)))
    try:
        with download.forbidden("an export downloads nothing"):
            found = load_examples(loaded, "test")
        if found.images.shape[1:] == shape:
            images = found.images[:count]
            return Examples(images, torch.zeros(len(images)), ()), f"{len(images):,} examples of the test split"
        why = f"they are {tuple(found.images.shape[1:])}"
    except (UserError, OSError) as error:
        why = first_line(error)
    log.warning("no test examples to verify it on: %s", why)
    generator = torch.Generator().manual_seed(0)
    if (ends := loaded.content["data"].get("range")) is None:
        pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    else:
        low, high = ends if all(map(math.isfinite, ends)) else (0.0, 1.0)
        pixels = torch.rand(count, *shape, generator=generator) * (high - low) + low
    return Examples(pixels, torch.zeros(count), ()), f"{count:,} pictures of random pixels"


def _safetensors(loaded: TrainedModel) -> bytes:
    """The weights with what a stranger must know to use them, as texts: JSON but for safetensors' own `format`."""
    from safetensors.torch import save

    # Copies: it refuses weights that share memory, and views.
    weights = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in loaded.model.state_dict().items()
    }
    facts = {"format": "pt", "input": _layout(loaded), "config": json.dumps(loaded.content["config"])}
    try:
        return save(weights, _facts(loaded) | facts)
    except KeyError as error:
        raise ConfigError(f"format=safetensors has no {error}, which a weight is. Set format=state_dict") from error


def _state_dict(loaded: TrainedModel) -> bytes:
    buffer = io.BytesIO()
    torch.save(loaded.model.state_dict(), buffer)
    return buffer.getvalue()


def _facts(loaded: TrainedModel) -> dict[str, str]:
    """What goes with the weights into a file; lists are JSON."""
    mean, std = loaded.statistics
    return {
        "classes": json.dumps(loaded.content["data"]["classes"]),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "task": _task(loaded),
        "model": loaded.values["model"]["name"],
        "dltrain": __version__,
    }


def _of_weights(loaded: TrainedModel, path: Path) -> list[str]:
    """Lines for a person on a file of weights."""
    return [
        f"input     {_layout(loaded)}{_classes(loaded)}",
        f"use it    dltrain train init={path}",
    ]


def _layout(loaded: TrainedModel) -> str:
    """How an input of bare weights must look."""
    shape = _sides(loaded.content["data"]["input_shape"])
    return f"images (N, {shape}), {_normalised(loaded, 'a byte / 255, or the number itself')}"


def _normalised(loaded: TrainedModel, number: str) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in part) for part in loaded.statistics)
    return f"float32, (x - mean) / std of each channel with mean {mean}, std {std}; x is {number}"


def _sides(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _classes(loaded: TrainedModel) -> str:
    names = loaded.content["data"]["classes"]
    shown = ", ".join(names[:SHOWN_CLASSES]) + (", …" if len(names) > SHOWN_CLASSES else "")
    return f"; classes {shown}" if names else ""


def _task(loaded: TrainedModel) -> str:
    return str(loaded.values["task"]["name"])
