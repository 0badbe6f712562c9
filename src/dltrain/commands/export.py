"""`dltrain export`: writes a checkpoint as a graph, of ONNX or torch, or as bare weights, for other programs."""

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

SUFFIXES = {"onnx": "onnx", "torch_export": "pt2", "safetensors": "safetensors", "state_dict": "pth"}
MOST_EXAMPLES = 1000  # to verify a graph with
MOST_VALUES = 1 << 24  # in those examples: fewer if images are large
SHOWN_CLASSES = 10


def export(config: Config) -> Path:
    """Write the network of a checkpoint to a file atomically; log the format of its inputs. Raises UserError."""
    values = config.values
    kind = values["format"]
    if kind == "onnx":
        onnx_graph.require_packages()
    elif kind != "torch_export" and "normalize" in config.typed:
        raise ConfigError(f"normalize: format={kind} holds weights only, no graph that could normalise. Leave it out")
    path = expand_user(values["output"] or f"model.{SUFFIXES[kind]}")
    atomic_files.require_folder(path)
    loaded = load_trained(values["ckpt"], config)
    loaded.model.cpu().eval()  # the export has no device, and a CPU computes float32 in full precision
    with memory_errors("Set format=safetensors, which needs less memory"):
        if kind in ("onnx", "torch_export"):
            content, lines = _graph(kind, loaded, path, normalize=values["normalize"])
        else:
            content = _safetensors(loaded) if kind == "safetensors" else _state_dict(loaded)
            lines = [f"input     {_layout(loaded)}{_classes(loaded)}", f"use it    dltrain train init={path}"]
    try:
        atomic_files.atomic_write(path, content)
    except ValueError as error:  # a NUL byte in its name
        raise OutputError(f"output={path}: cannot be written ({error})") from error
    log.info("%-9s %s, %s bytes", "file", path, f"{len(content):,}")
    for line in lines:
        log.info(line)
    return path


def _graph(kind: str, loaded: TrainedModel, path: Path, *, normalize: bool) -> tuple[bytes, list[str]]:
    """Return a verified file with a graph, and the log lines that describe it."""
    examples, description = _examples(loaded)
    cpu = torch.device("cpu")
    batches = TensorLoader(examples, cpu, batch_size=onnx_graph.BATCHES[-1], statistics=loaded.statistics)
    is_bytes = examples.images.dtype == torch.uint8
    value = "uint8 / 255" if is_bytes else "the value as in the data set"
    network, images, layout = loaded.model, batches.normalize(examples.images), _normalised(loaded, value)
    if normalize:
        scale, shift = batches.scale[:, :1, :1].clone(), batches.shift[:, :1, :1].clone()
        network, images = onnx_graph.Normalized(network, scale, shift), examples.images
        layout = "uint8, 0..255" if is_bytes else "float32, values as in the data set"
        layout += ", normalised inside"
    output = "logits" if loaded.task == "classification" else "outputs"
    with torch.no_grad():
        expected = torch.cat([loaded.model(inputs) for inputs, _ in batches.in_order()])
    layout = f"images (N, {_sides(images.shape[1:])}), {layout}"
    try:
        file = onnx_graph.build(kind, network, images[:1], output, _metadata(loaded) | {"input": layout})
    except onnx_graph.ExportError as error:
        name = loaded.values["model"]["name"]
        raise ConfigError(f"model={name} cannot be exported to {kind}: {error}\nSet format=safetensors") from error
    try:
        largest = onnx_graph.difference(kind, file, images, expected, threads=loaded.runtime.threads)
    except onnx_graph.ExportError as error:
        raise OutputError(f"{path}: not written, {error}\nSet format=safetensors") from error
    return file, [
        f"input     {layout}; any N",
        f"output    {output} (N, {_sides(expected.shape[1:])}){_classes(loaded)}",
        f"verified  {description}, batches of {', '.join(map(str, onnx_graph.BATCHES))}: "
        f"largest difference from the network {largest:.2g}",
    ]


def _examples(loaded: TrainedModel) -> tuple[Examples, str]:
    """Return examples to verify an export with, and what they are: test examples if available, else random pixels."""
    shape = tuple(loaded.content["data"]["input_shape"])
    count = max(sum(onnx_graph.BATCHES[:2]) + 1, min(MOST_EXAMPLES, MOST_VALUES // math.prod(shape)))
    try:
        with download.forbidden("export does not download data"):
            examples = load_examples(loaded, "test")
        if examples.images.shape[1:] == shape:
            images = examples.images[:count]
            return Examples(images, torch.zeros(len(images)), ()), f"{len(images):,} examples of the test split"
        reason = f"their shape is {tuple(examples.images.shape[1:])}"
    except (UserError, OSError) as error:
        reason = first_line(error)
    log.warning("no test examples to verify the file with: %s", reason)
    generator = torch.Generator().manual_seed(0)
    if (ends := loaded.content["data"].get("range")) is None:
        pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    else:
        low, high = ends if all(map(math.isfinite, ends)) else (0.0, 1.0)
        pixels = torch.rand(count, *shape, generator=generator) * (high - low) + low
    return Examples(pixels, torch.zeros(count), ()), f"{count:,} images of random pixels"


def _safetensors(loaded: TrainedModel) -> bytes:
    """Return the weights as safetensors; the metadata has what their use needs, lists and the config as JSON."""
    from safetensors.torch import save

    # Copies, because safetensors refuses views and weights that share memory.
    weights = {key: it.clone(memory_format=torch.contiguous_format) for key, it in loaded.model.state_dict().items()}
    metadata = {"format": "pt", "input": _layout(loaded), "config": json.dumps(loaded.content["config"])}
    try:
        return save(weights, _metadata(loaded) | metadata)
    except KeyError as error:
        raise ConfigError(f"format=safetensors: cannot store weights of type {error}. Set format=state_dict") from error


def _state_dict(loaded: TrainedModel) -> bytes:
    buffer = io.BytesIO()
    torch.save(loaded.model.state_dict(), buffer)
    return buffer.getvalue()


def _metadata(loaded: TrainedModel) -> dict[str, str]:
    """Return the metadata of a file of weights; lists are JSON."""
    mean, std = loaded.statistics
    return {
        "classes": json.dumps(loaded.content["data"]["classes"]),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "task": loaded.task,
        "model": loaded.values["model"]["name"],
        "dltrain": __version__,
    }


def _layout(loaded: TrainedModel) -> str:
    """Return the format of the inputs for bare weights."""
    shape = _sides(loaded.content["data"]["input_shape"])
    return f"images (N, {shape}), {_normalised(loaded, 'uint8 / 255, or the float value itself')}"


def _normalised(loaded: TrainedModel, value: str) -> str:
    mean, std = (", ".join(f"{number:.6g}" for number in part) for part in loaded.statistics)
    return f"float32, (x - mean) / std of each channel with mean {mean}, std {std}; x is {value}"


def _sides(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _classes(loaded: TrainedModel) -> str:
    names = loaded.content["data"]["classes"]
    shown = ", ".join(names[:SHOWN_CLASSES]) + (", …" if len(names) > SHOWN_CLASSES else "")
    return f"; classes {shown}" if names else ""
