"""Changes of where pixels are, for whole batches of images: crop, flip, and one resampling for all others."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Standard deviation of the smoothing as a fraction of the image's side: 4 pixels of 28 (Simard et al., 2003).
SMOOTH = 1 / 7
# Largest changes of a policy, those of AutoAugment's search space; shifts are fractions of the side.
ROTATION, SHEAR, SHIFT = math.radians(30), 0.3, 0.3


def random_crop(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Cut windows out of images (B, C, H, W) padded with zeros; shifts (B, 2) are top and left, 0..2*padding."""
    B, _, H, W = images.shape
    windows = F.pad(images, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(B, device=images.device), :, shifts[:, 0], shifts[:, 1]]


def random_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror images (B, C, H, W) left to right where flips (B,) is true."""
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)


def affine_maps(angles: Tensor, strengths: Tensor, H: int, W: int) -> Tensor:
    """Return maps (B, 2, 3) for `warp`: angles (B,) in radians; strengths (B, 4) of shears and shifts, x and y."""
    cos, sin, (shear_x, shear_y, x, y) = angles.cos(), angles.sin(), strengths.unbind(1)
    rows = [cos, sin + SHEAR * shear_y, SHIFT * H * y, SHEAR * shear_x - sin, cos, SHIFT * W * x]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(images: Tensor, maps: Tensor, displacements: Tensor | None = None, *, repeats_edges: bool = False) -> Tensor:
    """Resample images (B, C, H, W), as floats; bilinear, and zero outside, beyond half a pixel if it `repeats_edges`.

    A pixel samples the image where its map (B, 2, 3), on the CPU, takes it, plus its displacement (B, 2, H, W), all in
    pixels down and right of the centre.
    """
    H, W = images.shape[2:]
    moved = (maps != torch.eye(2, 3)).flatten(1).any(1).nonzero().flatten()
    if displacements is None and len(moved) < len(images):  # a policy leaves most images where they are
        at = moved.to(images.device, non_blocking=True)
        return images.float().index_copy(0, at, warp(images[at], maps[moved], repeats_edges=repeats_edges))
    down = (torch.arange(H, device=images.device) - (H - 1) / 2).view(1, H, 1)
    right = (torch.arange(W, device=images.device) - (W - 1) / 2).view(1, 1, W)
    yy, yx, y, xy, xx, x = maps.to(images.device, non_blocking=True).view(-1, 6, 1, 1).unbind(1)
    rows, columns = yy * down + y + yx * right, xx * right + x + xy * down
    if displacements is not None:
        rows, columns = rows + displacements[:, 0], columns + displacements[:, 1]
    for places, side in ((rows, H), (columns, W)) if repeats_edges else ():
        places.copy_(torch.where(places.abs() <= side / 2, places.clamp((1 - side) / 2, (side - 1) / 2), places))
    grid = torch.stack([columns * (2 / W), rows * (2 / H)], dim=3)  # (B, H, W, 2), from -1 to 1
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def smooth(noise: Tensor) -> Tensor:
    """Smooth noise (B, 2, H, W), uniform in -1..1, to a field with standard deviation 1 at its centre."""
    down, right = (_gaussian(side, noise.device) for side in noise.shape[2:])
    deviation = math.sqrt(1 / 3) * down[len(down) // 2].norm() * right[len(right) // 2].norm()
    return down @ noise @ right.T / deviation


def _gaussian(side: int, device: torch.device) -> Tensor:
    """Return a smoothing matrix (side, side): each row is a Gaussian about its pixel."""
    pixels = torch.arange(side, dtype=torch.float32, device=device)
    return torch.exp(-(((pixels.view(-1, 1) - pixels) / (SMOOTH * side)) ** 2) / 2)
