"""Changes of where pixels are, for whole batches of images: crop, flip, and one resampling for all others."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Standard deviation of the smoothing as a fraction of the image's side: 4 pixels of 28 (Simard et al., 2003).
SMOOTH = 1 / 7


def random_crop(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Cut windows out of images (B, C, H, W) padded with zeros; shifts (B, 2) are top and left, 0..2*padding."""
    B, _, H, W = images.shape
    windows = F.pad(images, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(B, device=images.device), :, shifts[:, 0], shifts[:, 1]]


def random_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror images (B, C, H, W) left to right where flips (B,) is true."""
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)


def rotations(angles: Tensor) -> Tensor:
    """Return affine maps (B, 3, 3) for `warp` that rotate by angles (B,) in radians, counterclockwise on screen."""
    maps = torch.eye(3).repeat(len(angles), 1, 1)
    maps[:, 0, 0] = maps[:, 1, 1] = angles.cos()
    maps[:, 0, 1], maps[:, 1, 0] = angles.sin(), -angles.sin()
    return maps


def zooms(windows: Tensor) -> Tensor:
    """Return affine maps (B, 3, 3) for `warp` that enlarge a window of each image to the whole of it.

    windows: (B, 4) height and width as fractions of the image; how far down and right the centre is, in pixels
    """
    maps = torch.eye(3).repeat(len(windows), 1, 1)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, 0, 2], maps[:, 1, 2] = windows.T
    return maps


def warp(images: Tensor, maps: Tensor, displacements: Tensor | None, *, repeats_edges: bool = False) -> Tensor:
    """Resample images (B, C, H, W), as floats: bilinear, and zero outside.

    Args:
        maps: (B, 3, 3) affine, from a pixel to where it samples the old image: (down, right, 1), from the image's centre
        displacements: (B, 2, H, W) down and to the right in pixels, added to that
        repeats_edges: up to half a pixel outside, the nearest pixel counts instead of zero: to enlarge without dark edges
    """
    H, W = images.shape[2:]
    down = (torch.arange(H, device=images.device) - (H - 1) / 2).view(1, H, 1)
    right = (torch.arange(W, device=images.device) - (W - 1) / 2).view(1, 1, W)
    (yy, yx, y), (xy, xx, x) = (row.view(-1, 3, 1, 1).unbind(1) for row in maps[:, :2].unbind(1))
    rows, columns = yy * down + y + yx * right, xx * right + x + xy * down
    if displacements is not None:
        rows, columns = rows + displacements[:, 0], columns + displacements[:, 1]
    if repeats_edges:
        rows, columns = _repeat_edge(rows, H), _repeat_edge(columns, W)
    grid = torch.stack([columns * (2 / W), rows * (2 / H)], dim=3)  # (B, H, W, 2), from -1 to 1
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _repeat_edge(positions: Tensor, side: int) -> Tensor:
    last = (side - 1) / 2
    return torch.where(positions.abs() <= side / 2, positions.clamp(-last, last), positions)


def smooth(noise: Tensor) -> Tensor:
    """Smooth noise (B, 2, H, W), uniform in -1..1, to a field with standard deviation 1 at its centre."""
    down, right = (_gaussian(side, noise.device) for side in noise.shape[2:])
    deviation = math.sqrt(1 / 3) * down[len(down) // 2].norm() * right[len(right) // 2].norm()
    return down @ noise @ right.T / deviation


def _gaussian(side: int, device: torch.device) -> Tensor:
    """Return a smoothing matrix (side, side): each row is a Gaussian about its pixel."""
    pixels = torch.arange(side, dtype=torch.float32, device=device)
    return torch.exp(-(((pixels.view(-1, 1) - pixels) / (SMOOTH * side)) ** 2) / 2)
