"""Images in a file that is mapped into memory: the system reads what is used, and may drop it again."""

from collections.abc import Iterator
from typing import Any, Self

import numpy
import torch
from torch import Tensor


class MappedImages(Tensor):
    """Some of the uint8 images (N, C, H, W) in a mapped file, for a device: `index_select` selects, `[...]` reads."""

    file: numpy.ndarray
    rows: Tensor

    def __new__(cls, file: numpy.ndarray, rows: Tensor, device: Any = "cpu") -> Self:
        some: Self = Tensor._make_wrapper_subclass(cls, (len(rows), *file.shape[1:]), dtype=torch.uint8, device=device)
        some.file, some.rows = file, rows
        return some

    def to(self, device: Any) -> "MappedImages":  # type: ignore[override]
        return MappedImages(self.file, self.rows, device)

    def __getitem__(self, index: Any) -> Tensor:
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        images = torch.from_numpy(self.file.take(rows, axis=0))
        # Pinned, so that a GPU copies them while it computes; not tested on one.
        return images.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else images

    def index_select(self, dim: Any, index: Tensor) -> "MappedImages":
        return MappedImages(self.file, self.rows[index.cpu()], self.device)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, *_: Any) -> Any:
        raise TypeError(f"{operation} would read all images of a mapped file")


def blocks(images: Tensor) -> Iterator[Tensor]:
    """Yield images in parts of about 4 MB, so that those of a mapped file are never all in memory."""
    count = max(1, (4 << 20) // max(1, images[:1].nbytes))
    return (images[start : start + count] for start in range(0, len(images), count))
