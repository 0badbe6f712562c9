"""Heat maps of a convolutional network: what in an image speaks for the predicted class.

LayerCAM (Jiang et al., IEEE TIP 2021) at the last layer with rows and columns. Changes nothing in the network.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from dltrain.runtime.devices import Runtime

COLOUR = (255, 106, 0)  # that of attention weights on the page


def class_map(model: nn.Module, image: Tensor, runtime: Runtime) -> Tensor | None:
    """Return weights (H, W) from 0 to 1, on the CPU, for an image (1, C, H, W); the network must be in evaluation mode.

    None without a convolution that leaves more than one pixel, and for transformers, which have only patches of pixels.
    """

    def has(kind: type[nn.Module]) -> bool:
        return any(isinstance(module, kind) for module in model.modules())

    if not has(nn.modules.conv._ConvNd) or has(nn.MultiheadAttention) or hasattr(model, "attention_map"):
        return None
    layers: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1 and output.requires_grad:
            layers.append(output)

    with register_module_forward_hook(keep), torch.enable_grad():
        with runtime.autocast():
            outputs = model(image.detach().requires_grad_())  # so that frozen layers have gradients too
        gradients = torch.autograd.grad(outputs.max(), layers, allow_unused=True) if layers else ()
    used = [pair for pair in zip(layers, gradients, strict=True) if pair[1] is not None]  # not those of side branches
    if not used:
        return None
    activation, gradient = (part.detach().float().cpu() for part in used[-1])  # (1, K, h, w)
    weights = (gradient.relu() * activation).sum(dim=1, keepdim=True).relu()
    weights = F.interpolate(weights, image.shape[2:], mode="bilinear")[0, 0]
    return (weights / weights.max().clamp(min=1e-30)).nan_to_num(0)


def overlaid(image: Tensor, weights: Tensor) -> Tensor:
    """Return an image, uint8 (1 or 3, H, W), in grey as uint8 (3, H, W), coloured by weights (H, W)."""
    grey, colour = image.float().mean(dim=0), torch.tensor(COLOUR)[:, None, None]
    return grey.lerp(colour.float(), 0.8 * weights).round().byte()
