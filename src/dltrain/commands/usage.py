"""The subcommands: what each is for, three examples, its flags. The help and the completion are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from dltrain.runtime.errors import ConfigError


@dataclass(frozen=True)
class Usage:
    """One subcommand; `takes` is what may follow it besides its flags, each with its meaning."""

    summary: str
    examples: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]  # a command line, what it does
    takes: tuple[tuple[str, str], ...]
    flags: tuple[tuple[str, str], ...] = ()


CONFIG = (
    ("GROUP=OPTION", "choose an option of a group"),
    ("KEY=VALUE", "set a key"),
)
CONFIG_FLAGS = (
    ("--explain KEY", "say where the value of a key, or all of a group, comes from, and what it means"),
    ("-m", "run every combination of values such as a,b or range(3): a sweep"),
    ("--cfg job", "print the composed config and do nothing"),
    ("--config-dir FOLDER", "look for options in a folder of your own too"),
    ("--hydra-help", "tell of the other flags, all Hydra's"),
)
JSON = ("--json", "print one JSON document, and all else to stderr")
RUN = "outputs/DATE/TIME"
COMMANDS = {
    "train": Usage(
        "train a network",
        (
            ("train model=mlp data=mnist optim.lr=0.02", "choose options of groups and set keys"),
            ("train -m model=mlp,lenet 'seed=range(3)'", "a sweep: every combination, a ranked table"),
            (f"train resume={RUN} epochs=30", "continue a run, here for longer"),
        ),
        CONFIG,
        (
            (
                "--summary",
                "print the layers, shapes, parameters and FLOPs, with --json as JSON; train nothing",
            ),
            *CONFIG_FLAGS,
        ),
    ),
    "eval": Usage(
        "figures of a run's best checkpoint",
        (
            (f"eval ckpt={RUN}", "on the test set"),
            (f"eval ckpt={RUN} split=val tta=flip", "on the validation set, each picture also as its mirror image"),
            ("eval 'ckpt=[one.pt,two.pt]'", "several checkpoints, ranked"),
        ),
        CONFIG,
        (JSON, *CONFIG_FLAGS),
    ),
    "predict": Usage(
        "classes of pictures",
        (
            (f"predict ckpt={RUN} input=a.png", "of a picture"),
            (f"predict ckpt={RUN} input=photos top_k=5", "of a folder of pictures, five for each"),
            (
                f"predict ckpt={RUN} input='shots/*.png' invert=auto",
                "of all that match, drawings dark on light among them",
            ),
        ),
        CONFIG,
        (JSON, *CONFIG_FLAGS),
    ),
    "export": Usage(
        "a file of a network for other programs, verified",
        (
            (f"export ckpt={RUN} format=onnx", "takes pixels; its outputs are compared with the network's"),
            (f"export ckpt={RUN} format=safetensors", "the weights, with class names and config"),
            (f"export ckpt={RUN} format=state_dict output=a.pth", "the weights alone, as PyTorch keeps them"),
        ),
        CONFIG,
        CONFIG_FLAGS,
    ),
    "report": Usage(
        "runs and sweeps side by side, as a table and a page",
        (
            (f"report {RUN}", "the page of one run, anew"),
            ("report outputs/sweeps/DATE/TIME", "a sweep: its jobs, ranked, and means over seeds"),
            ("report outputs -o all.html", "all runs there are, side by side"),
        ),
        (("FOLDER …", "runs, sweeps, or folders of them"),),
        (("--json", "print JSON and write no page"), ("-o FILE", "write the page there")),
    ),
    "inspect": Usage(
        "what is inside a checkpoint, without running any of it",
        (
            (f"inspect {RUN}", "a run's best checkpoint"),
            (f"inspect {RUN}/checkpoints/last.pt", "a checkpoint file"),
            ("inspect model.pth", "bare weights"),
        ),
        (("FILE", "a checkpoint, a run folder (its best.pt is taken), or weights"),),
    ),
    "list": Usage(
        "every option of every group with one line",
        (
            ("list", "for a person"),
            ("list --json", "with keys, types and defaults, for a program"),
            ("list --schema > dltrain.schema.json", "a JSON schema, with which an editor completes and checks configs"),
        ),
        (),
        (("--json", "print JSON"), ("--schema", "print a JSON schema (draft 2020-12) of configs and experiments")),
    ),
}


def split_explain(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys that --explain names, and the other words. Raises ConfigError for the flag without a key."""
    keys: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, key = word.partition("=")
        if flag != "--explain":
            others.append(word)
            continue
        key = key if equals else next(words, "")
        if not key or key.startswith("-"):
            raise ConfigError("--explain: name a key or a group, such as --explain optim.lr or --explain optim")
        keys.append(key)
    return keys, others
