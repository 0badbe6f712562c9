"""Heat maps of a convolutional network: which parts of an image speak for a class.

LayerCAM (Jiang, Zhang, Hou, Cheng, Wei: LayerCAM: Exploring Hierarchical Class Activation Maps. IEEE TIP 2021), at the
last layer whose output still has rows and columns. Knows tensors; changes nothing in the network.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dltrain.runtime.devices import Runtime

COLOUR = (255, 106, 0)  # that of attention weights on the page
OPACITY = 0.8  # of the colour where a map is 1


def class_map(model: nn.Module, image: Tensor, label: int, runtime: Runtime) -> Tensor | None:
    """Return weights (H, W) from 0 to 1, on the CPU, of what in an image (C, H, W) speaks for a class.

    None for a network without convolutions, or with a single pixel after them, and for transformers, whose patches
    lose their rows and columns at once. The network must be in evaluation mode.
    """
    modules = list(model.modules())
    has_convolutions, has_attention = (
        any(isinstance(module, kind) for module in modules) for kind in (nn.modules.conv._ConvNd, nn.MultiheadAttention)
    )
    if not has_convolutions or has_attention or hasattr(model, "attention_map"):
        return None
    layers: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1 and output.requires_grad:
            layers.append(output)

    with ExitStack() as hooks, torch.enable_grad():
        for module in modules:
            hooks.callback(module.register_forward_hook(keep).remove)
        # With gradients of the image, frozen layers pass them on too.
        with runtime.autocast():
            outputs = model(image.detach()[None].requires_grad_())
        if not layers:
            return None
        gradients = torch.autograd.grad(outputs[0, label].float(), layers, allow_unused=True)
    used = [pair for pair in zip(layers, gradients, strict=True) if pair[1] is not None]  # not a side branch
    activation, gradient = (part.detach().float().cpu() for part in used[-1])  # (1, C, h, w)
    weights = (gradient.relu() * activation).sum(dim=1, keepdim=True).relu()
    weights = F.interpolate(weights, image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    return (weights / weights.max().clamp(min=torch.finfo().tiny)).nan_to_num(0)


def overlaid(image: Tensor, weights: Tensor) -> Tensor:
    """Return an image, uint8 (1 or 3, H, W), in grey as uint8 (3, H, W), coloured by a map (H, W)."""
    opacity = OPACITY * weights
    grey = image.float().mean(dim=0)
    return (grey * (1 - opacity) + torch.tensor(COLOUR)[:, None, None] * opacity).round().byte()
