"""torchvision's classifiers with a last layer for the data's classes, optionally pretrained on ImageNet."""

import contextlib
import difflib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

SIDES = {"vit": "image_size", "maxvit": "input_size"}  # architectures that must know the image size
WITH_BRANCHES = ("googlenet", "inception_v3")  # trained with auxiliary classifiers, which are left out


def torchvision(
    *, input_shape: tuple[int, int, int], num_classes: int, arch: str, pretrained: bool, freeze: str | None
) -> nn.Module:
    """torchvision's ResNets, EfficientNets, vision transformers and all its other classifiers.

    Layers keep torchvision's names, so that `init=` accepts torchvision's weight files. Grey images are expanded to
    three channels.

    Args:
        arch: name of the classifier, such as resnet18, efficientnet_b0 or vit_b_16
        pretrained: start a new run from the best ImageNet weights, downloaded once, except for the last layer
        freeze: freeze the layers up to this one, such as layer3 or features.5; null for none

    Raises ValueError for an unknown `arch` or `freeze`, and for images of neither 1 nor 3 channels.
    """
    channels, *sides = input_shape
    known = models.list_models(module=models)
    if arch not in known:
        near = difflib.get_close_matches(arch, known, n=3, cutoff=0.5) or known[:3]
        raise ValueError(f"model.arch={arch}: torchvision has no such classifier; did you mean {', '.join(near)}?")
    if channels not in (1, 3):
        raise ValueError(f"torchvision classifiers take images of 1 or 3 channels, the data has {channels}")
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if arch in WITH_BRANCHES else {}
    if (key := SIDES.get(arch.partition("_")[0])) is not None:
        options[key] = sides[0] if key == "image_size" else tuple(sides)
    with _NumbersOnCpu() if arch.startswith("regnet") else contextlib.nullcontext():
        network = models.get_model(arch, weights=None, num_classes=num_classes, **options)
    if channels == 1:
        network.register_forward_pre_hook(_colour)
    if freeze is not None:
        _freeze(network, freeze)
    if pretrained:
        network.pretrained_weights = partial(_pretrained_weights, arch)
    return network


class _NumbersOnCpu(TorchFunctionMode):
    """Keeps helper tensors on the CPU: RegNets read their widths from one, which has no values on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func in (torch.arange, torch.tensor) else {}))


def _colour(network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].expand(-1, 3, -1, -1),)  # (B, 1, H, W) -> (B, 3, H, W)


def _freeze(network: nn.Module, name: str) -> None:
    """Freeze all parameters up to the last one of layer `name`, and the statistics of the batch norms among them."""
    names = [key for key, _ in network.named_parameters()]
    if not (positions := [index for index, key in enumerate(names) if key.startswith(f"{name}.")]):
        layers = [key for key, child in network.named_children() if any(True for _ in child.parameters())]
        raise ValueError(f"model.freeze={name}: no such layer with weights; choose one of {', '.join(layers)}")
    if positions[-1] + 1 == len(names):
        raise ValueError(f"model.freeze={name}: this is the last layer, nothing would be left to train")
    frozen = set(names[: positions[-1] + 1])
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key not in frozen)
    norms = [
        module
        for key, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{key}.weight" in frozen
    ]
    network.register_forward_pre_hook(partial(_keep_in_eval_mode, norms))


def _keep_in_eval_mode(norms: Sequence[nn.Module], network: nn.Module, inputs: tuple[Tensor]) -> None:
    for norm in norms:
        norm.eval()


def _pretrained_weights(arch: str) -> dict[str, Tensor]:
    """Load the best ImageNet weights; raises ValueError if they are damaged or cannot be downloaded."""
    weights = models.get_model_weights(arch).DEFAULT
    try:
        loaded = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # networks, servers and damaged files raise nearly anything
        raise ValueError(
            f"the weights of {arch} could not be downloaded or read: {str(error).partition(chr(10))[0][:160]}. "
            f"Put an intact {weights.url.rpartition('/')[2]} into {torch.hub.get_dir()}/checkpoints, or set "
            "model.pretrained=false and init= to a weight file"
        ) from error
    # The DenseNet files still have the old names of some layers.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value for key, value in loaded.items()}
