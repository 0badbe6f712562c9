"""The subcommands: their purpose, three examples each, and their flags. Help and completion use them."""

from collections.abc import Sequence

from dltrain.runtime.errors import ConfigError

Terms = tuple[tuple[str, str], ...]
CONFIG = (("GROUP=OPTION", "choose an option of a group"), ("KEY=VALUE", "set a key"))


class Usage:
    """One subcommand: command lines with what they do, and its other arguments and its flags with their meanings."""

    def __init__(self, summary: str, *examples: tuple[str, str], takes: Terms = CONFIG, flags: Terms = ()) -> None:
        self.summary, self.examples, self.takes, self.flags = summary, examples, takes, flags


CONFIG_FLAGS = (
    ("--explain KEY", "show the value of a key, or of all keys of a group, where it comes from and what it means"),
    ("-m", "run a sweep: every combination of values such as a,b or range(3)"),
    ("--cfg job", "print the composed config and do nothing else"),
    ("--config-dir FOLDER", "also search this folder for options"),
    ("--hydra-help", "list Hydra's other flags"),
)
JSON = ("--json", "print one JSON document; everything else goes to stderr")
WITH_RUNS = ("train", "eval", "predict", "export", "resume", "inspect", "report")  # commands that take names of runs
RUN = "outputs/DATE/TIME"
RUNS = "a run or sweep: a folder, a part of its name, or last; by default the newest"
TAKES = (("RUN", "a run folder, a part of its name, last, or a checkpoint file; as ckpt="), *CONFIG)
COMMANDS = {
    "train": Usage(
        "train a network",
        ("train model=mlp data=mnist optim.lr=0.02", "choose options of groups, set keys"),
        ("train -m model=mlp,lenet 'seed=range(3)'", "run a sweep: every combination, ranked in a table"),
        ("train data=folder data.root=photos model=resnet", "your own images, a folder for each class"),
        flags=(
            ("--json", "print the summary as one JSON document; everything else goes to stderr"),
            ("--json=lines", "print each record as a line of JSON when it is there, and the summary as the last line"),
            ("--summary", "print the layers, shapes, parameters and FLOPs, with --json as JSON; train nothing"),
            ("--show-batch", "write batch.html, a page of the first batch with its augmentation; train nothing"),
            *CONFIG_FLAGS,
        ),
    ),
    "resume": Usage(
        "continue a run or a sweep that was stopped",
        ("resume", "the newest"),
        (f"resume {RUN} epochs=30", "a run, for more epochs"),
        ("resume 10-32 device=cpu", "the one with 10-32 in its name, on another device"),
        takes=(("[RUN]", RUNS), ("KEY=VALUE", "change a key, such as epochs or device")),
    ),
    "runs": Usage(
        "list runs, newest first, and delete some",
        ("runs", "all in outputs/"),
        ("runs model=mlp 'accuracy>0.97' tags=baseline", "those that meet all conditions"),
        ("runs status=interrupted --delete", "delete them, after asking"),
        takes=(
            ("FOLDER or NAME", "where to look, or a part of the runs' names"),
            (
                "KEY=VALUE",
                "a condition, also with != > >= < <=: a key, a metric, model, data, date, status, seconds or tags",
            ),
        ),
        flags=(
            ("--delete", "delete the runs and whole sweeps, after asking; running ones are kept"),
            ("--yes", "do not ask"),
        ),
    ),
    "eval": Usage(
        "evaluate a run's best checkpoint",
        ("eval last", "the newest run, on the test set"),
        (f"eval {RUN} split=val tta=flip", "on the validation set, with mirror images (test-time augmentation)"),
        ("eval one.pt two.pt", "rank several checkpoints"),
        takes=TAKES,
        flags=(JSON, *CONFIG_FLAGS),
    ),
    "predict": Usage(
        "predict the classes of images, or numbers",
        (f"predict {RUN} a.png", "one image"),
        ("predict last photos top_k=5", "a folder of images, the five likeliest classes of each"),
        ("predict last 'shots/*.png' invert=auto", "all files that match; dark drawings on light paper are inverted"),
        takes=(*TAKES[:1], ("IMAGES", "an image, a folder or a pattern; as input="), *TAKES[1:]),
        flags=(JSON, *CONFIG_FLAGS),
    ),
    "export": Usage(
        "export a network for other programs, and verify the file",
        (f"export {RUN} format=onnx", "a graph that takes pixels; its outputs are compared with the network's"),
        ("export last format=safetensors", "the weights, with class names and config"),
        ("export last format=state_dict output=a.pth", "only the weights, as torch.save writes them"),
        takes=TAKES,
        flags=CONFIG_FLAGS,
    ),
    "report": Usage(
        "compare runs and sweeps in a table and an HTML page",
        (f"report {RUN}", "write the page of one run again"),
        ("report outputs/sweeps/DATE/TIME", "rank the jobs of a sweep, with means over seeds"),
        ("report outputs -o all.html", "compare all runs, by data set"),
        takes=(("FOLDER …", "runs, sweeps, or folders of them"),),
        flags=(
            ("--columns=NAME,…", "columns to show besides run and metric; all for every one"),
            ("--json", "print JSON, write no page"),
            ("-o FILE", "write the page to FILE"),
        ),
    ),
    "inspect": Usage(
        "show what is inside a checkpoint, without running any of it",
        (f"inspect {RUN}", "a run's best checkpoint"),
        (f"inspect {RUN}/checkpoints/last.pt", "a checkpoint file"),
        ("inspect model.pth", "bare weights"),
        takes=(("FILE", "a checkpoint, a run folder (its best.pt is taken), or weights"),),
    ),
    "doctor": Usage(
        "check hardware, data sets and extras",
        ("doctor", "as text"),
        ("doctor --json", "as JSON"),
        ("doctor > machine.txt", "for a report of a problem"),
        takes=(),
        flags=(JSON,),
    ),
    "list": Usage(
        "list every option of every group",
        ("list", "with a line for each option"),
        ("list --json", "with keys, types and defaults, as JSON"),
        ("list --schema > dltrain.schema.json", "a JSON schema, with which an editor completes and checks configs"),
        takes=(),
        flags=(
            ("--json", "print JSON"),
            ("--schema", "print a JSON schema (draft 2020-12) of configs and experiments"),
        ),
    ),
}


def split_explain(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off the keys that --explain names. Raises ConfigError if the flag has none."""
    keys, others = list[str](), list[str]()
    remaining = iter(argv)
    for argument in remaining:
        flag, equals, key = argument.partition("=")
        if flag != "--explain":
            others.append(argument)
            continue
        key = key if equals else next(remaining, "")
        if not key or key.startswith("-"):
            raise ConfigError("--explain: name a key or a group, such as --explain optim.lr or --explain optim")
        keys.append(key)
    return keys, others
