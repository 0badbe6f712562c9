"""`dltrain doctor`: versions, devices, memory, data sets and extras, with advice."""

import shutil
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from dltrain.commands import help_pages
from dltrain.data.idx import data_root
from dltrain.report import run_files
from dltrain.runtime import devices, memory, system_info
from dltrain.runtime import threads as thread_rule
from dltrain.runtime.errors import ConfigError

EXTRAS = {  # of pyproject.toml: a module that each installs, and what it brings
    "search": ("optuna", "sweep.search and pruning"),
    "ray": ("ray", "sweep.executor=ray"),
    "export": ("onnx", "export format=onnx"),
    "mlflow": ("mlflow", "logger=mlflow"),
    "wandb": ("wandb", "logger=wandb"),
    "heic": ("pillow_heif", "HEIC images"),
}
DATA = {  # what in data.root belongs to a data set
    "mnist": [f"{at}{name}" for at in ("MNIST/raw/", "MNIST/", "raw/", "") for name in ("train-im*", "mnist.npz")],
    "fashion_mnist": ["FashionMNIST/**/train-im*"],
    "kmnist": ["KMNIST/**/train-im*"],
    "cifar10": ["cifar-10-batches-py", "cifar-10-batches-bin", "data_batch_1.bin"],
    "cifar100": ["cifar-100-python"],
    "svhn": ["train_32x32.mat"],
}


def text(arguments: list[str]) -> str:
    """Return what `dltrain doctor` prints with these arguments. Raises ConfigError for unknown ones."""
    if arguments not in ([], ["--json"]):
        raise ConfigError(f"doctor takes no arguments but --json. Received {' '.join(arguments)}")
    if arguments:
        return run_files.as_json(examine())
    found = examine()
    found["help"] = dict.fromkeys(found["help"] or ["nothing is missing"], "")
    nones = {"data": "not there; downloaded when a run needs it", "extras": "installed"}
    sections = [
        (name.capitalize(), [(key, str(nones[name] if value is None else value)) for key, value in part.items()])
        for name, part in found.items()
    ]
    return help_pages.layout("dltrain doctor: hardware, data sets and extras", sections)


def examine() -> dict[str, Any]:
    """Return the versions, devices, memory, data and extras of this machine, and as `help` what would improve them."""
    cores, threads, root = system_info.usable_cores(), thread_rule.available(), data_root(None)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    runtime = devices.Runtime(torch.device("cuda" if gpus else "cpu"), "auto", threads)
    auto = devices.resolve_precision(runtime, torch.nn.Conv2d(32, 128, 3), 256, "classification")
    free = {"memory_gib": memory.free_memory() / 2**30, "disk_gib": shutil.disk_usage(".").free / 2**30}
    extras = {
        name: None if find_spec(module) else f"{brings}: pip install -e '.[{name}]' in dltrain's checkout"
        for name, (module, brings) in EXTRAS.items()
    }
    why = "its driver does not suit this PyTorch" if torch.version.cuda else "this PyTorch was built without CUDA"
    advice = {
        f"nvidia-smi is here, but no GPU can be used: {why}. See pytorch.org": shutil.which("nvidia-smi") and not gpus,
        f"{root} does not exist. Set DLTRAIN_DATA to the folder of your data sets": not root.is_dir(),
        "less than 1 GiB of memory or disk is free": min(free.values()) < 1,
    }
    return {
        "versions": system_info.versions() | {name: metadata.version(name) for name in ("torchvision", "hydra-core")},
        "devices": {"cpu": system_info.cpu_name(), "cores": cores, "threads": threads, "gpus": gpus}
        | {"auto": f"{auto.precision} ({auto.reason})"},
        "free": {name: round(amount, 1) for name, amount in free.items()},
        "data": {"root": str(root)}
        | {name: next((str(path) for it in forms for path in root.glob(it)), None) for name, forms in DATA.items()},
        "extras": extras,
        "help": [line for line, helps in advice.items() if helps],
    }
