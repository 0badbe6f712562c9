"""What Python calls instead of a command: `dltrain.train`, `dltrain.evaluate`, `dltrain.load`.

They leave the process as it was, and raise exceptions of `dltrain.runtime.errors` instead of printing them.
"""

import contextlib
import html
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dltrain.commands import prediction
from dltrain.commands.evaluation import evaluate_checkpoints
from dltrain.commands.run_names import find_checkpoint
from dltrain.config import composition, diagnostics
from dltrain.config.resolution import Config, plain, resolved
from dltrain.data import image_files
from dltrain.data.splits import Examples
from dltrain.report import console
from dltrain.report.html.run_page import NAME
from dltrain.runtime.errors import ConfigError, InputError, UserError, typed_line
from dltrain.runtime.process_state import preserved
from dltrain.training import build, run
from dltrain.training.restore import TrainedModel, load_trained

LOAD_SECONDS = 60.0  # a thread waits so long for one that may only load, too


class Result(dict[str, Any]):
    """A plain dict, which a notebook shows as the page in its `folder`."""

    def _repr_html_(self) -> str | None:
        page = Path(str(self.get("folder"))) / NAME
        if not page.is_file():
            return None
        content, style = html.escape(page.read_text(encoding="utf-8")), "width: 100%; height: 600px; border: 0"
        return f'<iframe srcdoc="{content}" sandbox="allow-scripts" style="{style}"></iframe>'


def train(config: Config | Mapping[str, Any] | Sequence[str], **options: Any) -> Result:
    """Train a model; return the content of summary.json and the `folder` of the run.

    `config` are overrides such as ["model=mlp", "epochs=3"], or a config as `dltrain.compose` returns it. `options` are
    `typed`, `folder`, `watch` and `load` of `dltrain.training.run.train`. Raises UserError.
    """
    with _call():
        if not isinstance(config, Config | Mapping):
            composed = _composed("train", config)
            config = resolved(composed.config, "train", composed.typed, composed.origin)
        try:
            return Result(run.train(config if isinstance(config, Config) else plain(config), **options))
        except SystemExit as error:  # of a user's code; it must not end the program
            raise UserError(typed_line(error)) from error


def evaluate(ckpt: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> Any:
    """Return the metrics of a run or a checkpoint, of a list those of each; `last` is the newest run in outputs/."""
    paths = str(find_checkpoint(ckpt)) if isinstance(ckpt, str | Path) else [str(find_checkpoint(it)) for it in ckpt]
    with _call(LOAD_SECONDS):
        composed = _composed("eval", ["ckpt=x", *overrides])
        config = resolved(composed.config | {"ckpt": paths}, "eval", composed.typed, composed.origin)
        return evaluate_checkpoints(config)[0]


def load(name: str | Path, *, device: str = "auto", trust: Sequence[str] = ()) -> "TrainedNetwork":
    """Return the trained network of a run or a checkpoint; `last` is the newest run or best job in outputs/.

    `trust` names packages of your own code that the checkpoint may run.
    """
    path = str(find_checkpoint(name))
    with _call(LOAD_SECONDS):
        config = _composed("eval", ["ckpt=x", f"device={device}"]).config | {"ckpt": path, "trust": plain(trust)}
        # As if they were typed: predictions use the threads of the caller, not those of the training.
        return TrainedNetwork(load_trained(path, resolved(config, "eval", ["device.threads"])))


class TrainedNetwork:
    """A network in `model`, in evaluation mode, with its `classes`, the `shape` of its images and its `config`."""

    def __init__(self, loaded: TrainedModel) -> None:
        prediction.require_predictable(loaded)
        self._loaded, self.model, self.path, self.config = loaded, loaded.model.eval(), loaded.path, loaded.values
        self.shape, self.classes = tuple(loaded.content["data"]["input_shape"]), list(loaded.content["data"]["classes"])
        one = Examples(torch.zeros(1, *self.shape), torch.zeros(1), ())
        self._loader = build.evaluation_batches(one, loaded.runtime, loaded.statistics, batch_size=1)

    def transform(self, image: Any) -> Tensor:
        """Return an image as the network takes it, resized and normalised: (C, H, W), on its device.

        An image is a path, a PIL image, or an array or tensor: bytes (H, W) or (H, W, 3), or as in the training.
        """
        return self._loader.normalize(self._fractions(image)[None].to(self._loaded.runtime.device))[0]

    @torch.no_grad()
    def predict(self, images: Any, batch_size: int = 256) -> Any:
        """Return a dict for an image, or a list of them for a list or a batch (N, C, H, W). Threads may call this.

        A classifier's has `label`, `probability` and `probabilities` by class, that of a regression `values`.
        """
        if not isinstance(images, list | tuple) and getattr(images, "ndim", 0) != 4:
            return self.predict([images])[0]
        results: list[dict[str, Any]] = []
        for first in range(0, len(images), batch_size):
            batch = torch.stack([self.transform(image) for image in images[first : first + batch_size]])
            with self._loaded.runtime.autocast():
                results += map(self._result, self.model(batch).float().cpu())
        return results

    def _result(self, outputs: Tensor) -> dict[str, Any]:
        if not self.classes:
            return {"values": outputs.tolist()}
        by_class = dict(zip(self.classes, outputs.softmax(dim=0).tolist(), strict=True))
        label = max(by_class, key=by_class.__getitem__)
        return {"label": label, "probability": by_class[label], "probabilities": by_class}

    def _fractions(self, image: Any) -> Tensor:
        """Return an image (C, H, W) as floats, bytes as fractions of 255. Raises InputError."""
        channels, height, width = self.shape
        data, is_path = self._loaded.content["data"], isinstance(image, str | os.PathLike)
        try:
            if not is_path and not isinstance(image, Image.Image):
                array = image.detach().cpu().numpy() if isinstance(image, Tensor) else numpy.asarray(image)
                if array.shape == self.shape or (channels == 1 and array.shape == (height, width)):
                    numbers = torch.from_numpy(array.copy()).reshape(self.shape)
                    if numbers.dtype != torch.uint8 and data.get("range") is None and (top := numbers.max()) > 2:
                        raise ValueError(f"{array.dtype} up to {top:.4g}; give bytes as uint8, or divide by 255")
                    return numbers.float() / 255 if numbers.dtype == torch.uint8 else numbers.float()
                if array.dtype != numpy.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
                    raise ValueError(f"{array.dtype} {array.shape}; give {self.shape}, or uint8 (H, W) or (H, W, 3)")
                image = Image.fromarray(array)
            prediction.require_bytes(self._loaded)
            if is_path:
                opened = image_files.open_image(image, channels=channels, levels=data["levels"])
            else:
                opened = image_files.flatten(ImageOps.exif_transpose(image), channels, data["levels"])
        except ValueError as error:
            raise InputError(f"{image if is_path else 'image'}: {error}") from error
        fit = self.config["data"].get("fit", "resize")
        return image_files.resized(opened, size=(height, width), fit=fit).float() / 255


def _composed(command: str, overrides: Sequence[str]) -> composition.Composed:
    """Compose overrides as the command line does, --config-dir included. Raises ConfigError with all mistakes."""
    argv = [overrides] if isinstance(overrides, str) else list(map(str, overrides))
    try:
        with composition.LOCK:
            composed = composition.run(command, argv)
    except composition.COMPOSE_ERRORS as error:
        raise diagnostics.explain(command, argv, error) from error
    if isinstance(composed, int):
        raise ConfigError(f"{' '.join(argv)}: a flag that only prints something. Use it on the command line")
    return composed


@contextlib.contextmanager
def _call(wait_seconds: float = 0) -> Iterator[None]:
    """Leave the process as it was; show the progress on standard output unless the program logs it itself."""
    with preserved(wait_seconds):
        logger = logging.getLogger("dltrain")
        if not logger.hasHandlers() or any(handler.name == console.CONSOLE for handler in logger.handlers):
            console.start_logging()  # an earlier one may write to a stream that is closed
        yield
