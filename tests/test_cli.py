"""The command line: answers, exit codes, and every kind of mistake told at once with the nearest right name."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dltrain import __version__, cli
from dltrain.config.composition import compose
from dltrain.runtime.errors import ConfigError
from support import generated
from support.command import Command
from support.tiers import mostly_slow

NO_TORCH = """
import sys
from dltrain.cli import main
code = main(sys.argv[1:])
loaded = {"torch", "torchvision", "sklearn"} & set(sys.modules)
print("LOADED", loaded, file=sys.stderr)
sys.exit(code)
"""
EACH_NO_TORCH = """
import ast, sys
from dltrain.cli import main
for line in ast.literal_eval(sys.argv[1]):
    main(line)
    print("LOADED", {"torch", "torchvision", "sklearn"} & set(sys.modules), file=sys.stderr)
"""


def fresh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own that tells which heavy modules it imported."""
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


LIGHT = [
    ["--help"],
    ["list"],
    ["list", "--json"],
    ["list", "--schema"],
    ["train", "--help"],
    ["report", "--help"],
    ["train", "--explain", "optim.lr"],
    ["train", "--explain", "optim.lrr"],
    ["train", "--cfg", "job"],
    ["train", "optim.lrr=1"],
    ["train", "+optim.lrr=1"],
    ["train", "optim.lr=-1", "epochs=0"],
    ["train", "model.name=lennet"],
    ["train", "model=lennet"],
    ["trian"],
    ["train", "-m", "model=mlp,lennet"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
@pytest.mark.slow
def test_help_lists_and_mistakes_import_no_torch(arguments: list[str]) -> None:
    done = fresh(*arguments)
    assert "LOADED set()" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_and_mistakes_in_one_process_import_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EACH_NO_TORCH, repr(LIGHT)], capture_output=True, text=True, check=False
    )
    assert done.stderr.count("LOADED set()") == len(LIGHT)
    assert "Traceback" not in done.stderr


def test_completion_imports_no_torch() -> None:
    done = fresh("-sc", "query=bash", COMP_LINE="dltrain train model=l")
    assert done.stdout.split() == ["model=lenet", "model=linear", "model=lstm"]
    assert "LOADED set()" in done.stderr


def test_python_m_dltrain_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dltrain", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_help_names_every_command(dltrain: Command) -> None:
    out = dltrain("--help").out
    assert all(f"dltrain {command}" in out for command in cli.COMMANDS)


def test_no_arguments_show_the_help(dltrain: Command) -> None:
    assert dltrain() == dltrain("--help")


def test_list_shows_every_option_with_its_line(dltrain: Command) -> None:
    result = dltrain("list")
    configs = Path(__file__).parents[1] / "configs"
    for group in ("model", "data", "optim", "schedule", "task", "device", "logger", "experiment"):
        for path in (configs / group).rglob("*.yaml"):
            name = str(path.relative_to(configs / group).with_suffix(""))
            line = next(line for line in result.out.splitlines() if line.split()[:1] == [name])
            assert len(line.split()) > 2, f"{group}={name} has no description"


def test_help_of_a_subcommand_shows_groups_and_keys(dltrain: Command) -> None:
    result = dltrain("train", "--help")
    assert result.code == 0
    assert "model=attention " in result.out
    assert "checkpoint_every=30s " in result.out


def test_cfg_job_prints_the_composed_config(dltrain: Command) -> None:
    result = dltrain("train", "--cfg", "job", "model=mlp", "model.hidden=[7]")
    assert result.code == 0
    assert "name: mlp\n  hidden:\n  - 7\n" in result.out


def test_hydra_info_flag_works_behind_the_subcommand(dltrain: Command) -> None:
    assert "configs" in dltrain("train", "--info", "searchpath").out


def test_flags_may_stand_between_overrides(dltrain: Command) -> None:
    result = dltrain("train", "model=mlp", "--cfg", "job", "epochs=3")
    assert (result.code, "epochs: 3" in result.out) == (0, True)


def test_config_dir_adds_options(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "small.yaml").write_text("name: linear\n")
    assert "name: linear" in dltrain("train", "--config-dir", "mine", "--cfg", "job", "model=small").out
    result = dltrain("train", "--config-dir", "mine", "model=smal")
    assert (result.code, result.err) == (2, "error: model=smal: no such option; did you mean small?\n")


def own_files(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = folder.joinpath("mine", *name.split("__")).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_user_config_file_with_the_name_of_a_built_in_one_is_refused(dltrain: Command, tmp_path: Path) -> None:
    own_files(tmp_path, model__mlp="name: mlp\nhidden: [3]\n")
    result = dltrain("train", "--config-dir", "mine", "model=mlp")
    assert (result.code, "mlp.yaml: dltrain has a file of this name" in result.err) == (2, True)


def test_a_key_missing_in_a_user_config_file_can_be_added(dltrain: Command, tmp_path: Path) -> None:
    own_files(tmp_path, model__short="name: mlp\nhidden: [4]\nactivation: relu\nbatch_norm: false\n")
    result = dltrain("train", "--config-dir", "mine", "model=short", "model.dropout=0.5")
    assert (result.code, "model.dropout: no such key; to add it write +model.dropout=" in result.err) == (2, True)
    assert dltrain("train", "--config-dir", "mine", "model=short", "+model.dropout=0.5", "--cfg", "job").code == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("epochs: 1\n", 'experiment: its YAML must begin with "# @package _global_"'),
        ("defaults:\n  - override /model: mlp\n", 'experiment: its YAML must begin with "# @package _global_"'),
        (
            "# @package _global_\ndefaults:\n  - override /model: mlpp\n",
            "model=mlpp: no such option; did you mean mlp?",
        ),
        ("# @package _global_\ndefaults:\n  - override /modell: mlp\n", "modell: no such group; did you mean model?"),
    ],
)
def test_a_mistake_in_an_experiment_is_reported_as_one_of_the_experiment(
    dltrain: Command, tmp_path: Path, content: str, told: str
) -> None:
    own_files(tmp_path, experiment__mine=content)
    result = dltrain("train", "--config-dir", "mine", "experiment=mine")
    assert (result.code, told in result.err, len(result.err.splitlines())) == (2, True, 1), result.err


MISTAKES = {
    "trian": "trian: no such command; did you mean train?",
    "train data.crop=1000000000000000000": "data.crop=1000000000000000000: must be a whole number >= 0, <= 8192",
    "list all": "list takes no arguments but --json or --schema. Received all",
    "train optim.lrr=1": "optim.lrr: no such key; did you mean optim.lr? (from the command line)",
    "train +epoch=3": "epoch: no such key; did you mean epochs? (from the command line)",
    "train epoch=3": "epoch: no such key; did you mean epochs? (from the command line)",
    "train modle=mlp": "modle: no such key; did you mean model? (from the command line)",
    "train model=lennet": "model=lennet: no such option; did you mean lenet?",
    "train data=minst": "data=minst: no such option; did you mean mnist?",
    "train optim=sdg": "optim=sdg: no such option; did you mean sgd?",
    "train schedule=cosin": "schedule=cosin: no such option; did you mean cosine?",
    "train device=gpu": "device=gpu: no such option; there are cpu, cuda (a GPU), and auto",
    "train task=clasification": "task=clasification: no such option; did you mean classification?",
    "train experiment=lenet_mnst": "experiment=lenet_mnst: no such option; did you mean textbook/lenet_mnist?",
    "train experiment=lenet_mnist": "experiment=lenet_mnist: no such option; did you mean textbook/lenet_mnist?",
    "train optim.lr=-5": "optim.lr=-5: must be a number > 0 (from the command line)",
    "train optim.lr=fast": "optim.lr=fast: must be a number > 0 (from the command line)",
    "train optim.lr=inf": "optim.lr=inf: must be a number > 0 (from the command line)",
    "train optim.momentum=1.5": "optim.momentum=1.5: must be a number >= 0, < 1 (from the command line)",
    "train epochs=0": "epochs=0: must be a whole number >= 1 (from the command line)",
    "train epochs=1.5": "epochs=1.5: must be a whole number >= 1 (from the command line)",
    "train epochs=true": "epochs=true: must be a whole number >= 1 (from the command line)",
    "train epochs=null": "epochs=null: must be a whole number >= 1 (from the command line)",
    "train seed=-1": "seed=-1: must be a whole number >= 0, < 18446744073709551616 (from the command line)",
    "train data.flip=maybe": "data.flip=maybe: must be true or false or alternate (from the command line)",
    "train model=mlp model.hidden=5": "model.hidden=5: must be a list, each a whole number >= 1, <= 1000000",
    "train model=mlp model.activation=rleu": "model.activation=rleu: must be one of relu, gelu, silu, tanh, sigmoid",
    "train checkpoint_every=soon": "checkpoint_every=soon: must be a whole number >= 1 or a time such as 30s",
    "train model.name=lennet": "model.name=lennet: no such model; did you mean lenet? (from the command line)",
    "train device.name=gpu": "device.name=gpu: must be one of auto, cpu, cuda (from the command line)",
    "train model=custom": "model.name is required: set it to module:name, your own code, or to an option's name",
    "train model=custom model.name=nowhere:Net": "model.name=nowhere:Net: cannot import nowhere",
    "train data=folder": "data.root is required: folder with a sub-folder for each class",
    "eval": "ckpt is required: a run folder (its best.pt is taken) or a checkpoint file",
    "eval ckpt=x sweep.search=${nowhere}": "error: Interpolation key 'nowhere' not found",
    "export ckpt=x format=onx": "format=onx: must be one of onnx, torch_export, safetensors, state_dict (from",
    "predict ckpt=x": "input is required: an image, a folder of images, or a pattern such as",
    "eval ckpt=x split=tset": "split=tset: must be one of train, val, test (from the command line)",
    "eval ckpt=x model=mlp": "model: no such key",
    "train optim.lr=${nowhere}": "Interpolation key 'nowhere' not found",
    "train optim.lr=[1": "optim.lr=[1: must be a number > 0 (from the command line)",
    "train mlp": "mlp: cannot be read as KEY=VALUE",
    "train model=attention model.patch=5": "model.patch must divide 28x28. Received 5",
    "train model=cnn model.widths=[4,4,4,4,4]": "cnn: 28x28 is too small for 5 pools; set fewer model.widths",
    "train data=line": "lenet needs images of at least 12x12 pixels, the data has 1x1",
    "train model=autoencoder": "this model returns images; set task=reconstruction",
    "train task=reconstruction": "this one returns (10,); set model=autoencoder",
    "train task=regression": "this data has classes; set task=classification",
    "train data=line model=linear": "task=classification needs data with classes; set task=regression",
    "train optim.nesterov=true optim.momentum=0": "optim=sgd: Nesterov momentum requires a momentum and zero dampening",
    "train patience=3 data.val=0": "patience needs a validation set: set data.val, such as data.val=0.1",
    "train schedule=plateau data.val=0": "schedule=plateau needs a validation set: set data.val, such as data.val=0.1",
    "train schedule=plateau schedule.scores=[1]": "schedule.scores: no such key",
    "train schedule=plateau schedule.patience=0": "schedule.patience=0: must be a whole number >= 1",
    "train schedule=restarts schedule.growth=0.5": "schedule.growth=0.5: must be a number >= 1, <= 10",
    "train data.mean=[1,2,3]": "data.mean=[1, 2, 3]: must have 1 number",
    "train data.root=pictures": "data.root: no such key; there is data.root with data=cifar10, cifar100, fashion",
    "train model.hidden=[9]": "no such key; there is model.hidden with model=autoencoder, cnn, lstm, mlp (from",
    "train optim.betas=1": "optim.betas: no such key (from the command line)",
    "train model=linear model.foo=1": "model.foo: no such key (from the command line)",
    "train optim.lr='0.1'": 'optim.lr="0.1": must be a number > 0, not text (from the command line)',
    "train epochs=08": 'epochs="08": must be a whole number >= 1, not text (from the command line)',
    "train +experiment.foo=3": "experiment: no such key",
    "eval data.crop=4": "data.crop: no such key; only train has it, here the checkpoint fixes it",
    "train -m optim.lrr=1 name=choice(c,'a,\"b')": "optim.lrr: no such key; did you mean optim.lr?",
    "train name=5": "name=5: must be text or null; as text: 'name=\"5\"' (from the command line)",
    "train experiment=nope": "experiment=nope: no such option; dltrain list shows all",
    "train model=null": "model=null: no such option",
    "train ~nothing": "~nothing: no such key",
    "train ~patience": "~patience: is null already",
    "train optim.lr=${oc.env:DLTRAIN_NOPE}": "optim.lr: the environment variable DLTRAIN_NOPE is not set",
    "train -m model=mlp,lenettt optim.lr=0.1,abc": "optim.lr=abc: must be a number > 0 (from the command line)",
    "train -m seed=range(3": "seed=range(3: a bracket is not closed",
    "train --cfg job -p nope": "package 'nope' not found in config",
    "train --cfg nope": "argument --cfg/-c: invalid choice: 'nope'",
    "train --config-dir": "argument --config-dir/-cd: expected one argument",
    "train --config-name eval ckpt=x": "error: --config-name=eval: is the config of another command. Leave it out\n",
    "train --config-dir nowhere epochs=1": "error: --config-dir=nowhere: no such folder\n",
    "train resume=": "resume=: must be the folder of a run",
    "train data.limit=100000": "data.limit=100000 is more than the 1438 training examples",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_with_code_2_and_a_short_answer(dltrain: Command, line: str) -> None:
    result = dltrain(*line.split(" "))
    assert result.code == 2
    assert MISTAKES[line] in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 3
    assert not Path("outputs").exists(), "a mistake must leave nothing behind"


def test_a_mistake_in_a_python_call_is_a_dltrain_error() -> None:
    with pytest.raises(ConfigError, match="modle"):
        compose("train", ["modle=mlp"])


def test_all_problems_are_reported_together(dltrain: Command) -> None:
    result = dltrain("train", "optim.lrr=1", "model=lennet", "epochs=0", "optim.lr=-5", "optim.momentum=1.5", "+sed=1")
    assert result.code == 2
    for key in ("optim.lrr", "model=lennet", "epochs=0", "optim.lr=-5", "optim.momentum=1.5", "sed"):
        assert f"{key}:" in result.err


def test_a_problem_in_a_file_names_the_file(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "optim").mkdir(parents=True)
    (tmp_path / "mine" / "optim" / "mine.yaml").write_text("name: adam\nlr: -1\nbeta1: 0.9\nbeta2: 0.9\n")
    result = dltrain("train", "--config-dir", "mine", "optim=mine")
    assert result.code == 2
    assert "optim.lr=-1: must be a number > 0 (from " in result.err
    assert str(Path("optim") / "mine.yaml") in result.err
    assert "optim.weight_decay is required: pull of the weights towards zero" in result.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_one_line_and_code_69(dltrain: Command) -> None:
    result = dltrain("train", "device=cuda")
    assert result.code == 69
    assert len(result.err.splitlines()) == 1
    assert "set device=cpu" in result.err.replace("Set", "set")


def test_missing_data_is_code_66_and_says_where_to_put_it(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # a port where nothing listens
    result = dltrain("train", "data=mnist", "data.root=nowhere")
    assert result.code == 66
    assert "MNIST is not in nowhere/MNIST/raw and could not be downloaded" in result.err
    assert "set data.root (or DLTRAIN_DATA)" in result.err


def test_a_folder_that_cannot_be_written_is_code_74(dltrain: Command) -> None:
    Path("outputs").write_text("a file where the folder should be")
    result = dltrain("train", "epochs=1")
    assert result.code == 74
    assert "cannot create a folder" in result.err


def test_traceback_is_shown_on_request(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_TRACEBACK", "1")
    assert "Traceback" in dltrain("eval", "ckpt=nowhere").err


COMPLETIONS = {
    "dltrain ": ["doctor", "eval", "export", "inspect", "list", "predict", "report", "resume", "runs", "train"],
    "dltrain eval la": ["last"],
    "dltrain tr": ["train"],
    "dltrain train mod": ["model.", "model="],
    "dltrain train model=l": ["model=lenet", "model=linear", "model=lstm"],
    "dltrain train model=lstm model.cell=": ["model.cell=gru", "model.cell=lstm", "model.cell=rnn"],
    "dltrain train data.fl": ["data.flip="],
    "dltrain train data.flip=": ["data.flip=alternate", "data.flip=false", "data.flip=true"],
    "dltrain train expe": ["experiment="],
    "dltrain train experiment=mnist_ml": ["experiment=mnist_mlp", "experiment=mnist_mlp_augmented"],
    "dltrain train experiment=textbook/le": ["experiment=textbook/lenet_cifar10", "experiment=textbook/lenet_mnist"],
    "dltrain train +experiment=textbook/lenet_m": ["+experiment=textbook/lenet_mnist"],
    "dltrain eval expe": [],
    "dltrain eval mod": [],
    "dltrain eval dev": ["device.", "device="],
    "dltrain eval split=t": ["split=test", "split=train"],
    "dltrain nonsense ": [],
}


@pytest.mark.parametrize("shell", mostly_slow(["bash", "zsh", "fish"], fast=["bash"]))
@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion_offers_possible_continuations(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, line: str, shell: str
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert sorted(dltrain("-sc", f"query={shell}").out.split()) == COMPLETIONS[line]


def test_completion_knows_the_options_of_a_config_dir(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "zebra.yaml").write_text("name: linear\n")
    monkeypatch.setenv("COMP_LINE", "dltrain train --config-dir mine model=z")
    assert dltrain("-sc", "query=bash").out.split() == ["model=zebra"]


def test_bash_loads_the_completion_and_completes(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent  # where the console script is
    script = (
        'eval "$(dltrain -sc install=bash)"; COMP_LINE="dltrain train model=le"; COMP_WORDS=(dltrain train model=le); '
        'COMP_CWORD=2; COMP_POINT=22; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["model=lenet"]


def test_truncated_data_is_code_66_with_file_sizes_and_advice(dltrain: Command, tmp_path: Path) -> None:
    generated.write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    result = dltrain("train", "data=mnist", f"data.root={tmp_path}")
    assert result.code == 66
    assert f"{path}: expected 156816 bytes (its header says 200x28x28), found 156716. Delete" in result.err
    assert not Path("outputs").exists()


def test_altered_data_is_code_66_with_file_and_checksums(
    dltrain: Command, tmp_path: Path, cifar10_sums: dict[str, str]
) -> None:
    generated.write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = dltrain("train", "data=cifar10", f"data.root={tmp_path}")
    assert result.code == 66
    assert f"{path}: expected MD5 {cifar10_sums['data_batch_3']}, found " in result.err
    assert len(result.err.splitlines()) <= 3


def test_a_run_with_a_closed_output_pipe_finishes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dltrain", "train", "model=mlp", "data.limit=200", "device.threads=1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (0, "")
    (log,) = tmp_path.glob("outputs/*/*/train.log")
    assert "epoch 20/20" in log.read_text()
    assert (log.parent / "summary.json").is_file()


def test_a_problem_given_twice_is_reported_once(dltrain: Command) -> None:
    result = dltrain("train", "schedule.strat=1", "schedule.strat=1", "mlp")
    assert (result.code, result.err.count("schedule.strat")) == (2, 1), result.err


@pytest.mark.parametrize("encoding", mostly_slow(["ascii", "latin-1"], fast=["ascii"]))
def test_an_encoding_without_the_letters_of_a_table_costs_nothing(tmp_path: Path, encoding: str) -> None:
    words = ["train", "-m", "seed=1", "model=mlp", "epochs=1", "limit_steps=1", "device.threads=1"]
    found = subprocess.run(
        [sys.executable, "-m", "dltrain", *words],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert "\njob 0 " in found.stdout.decode(encoding)


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        pytest.param(["train", "epochs=1", "limit_steps=2", "device.threads=1"], marks=pytest.mark.slow),
        pytest.param(
            ["train", "-m", "seed=1,2", "epochs=1", "limit_steps=2", "device.threads=1"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_closed_standard_output_is_no_reason_to_fail(tmp_path: Path, words: list[str]) -> None:
    command = f"{shlex.join([sys.executable, '-m', 'dltrain', *words])} >&-"
    found = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("word", ["--epochs", "--epochs=5", "-x"])
def test_an_unknown_flag_is_reported_in_one_line_with_the_syntax_of_keys(dltrain: Command, word: str) -> None:
    result = dltrain("train", word, "5")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"error: {word}: no such flag; keys have no dashes: {word.strip('-').partition('=')[0]}=5. " in result.err


def test_a_deleted_current_folder_is_reported(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")  # the fixture goes back
    (tmp_path / "gone").rmdir()
    result = dltrain("train", "epochs=1")
    assert (result.code, result.err) == (66, "error: the current folder no longer exists; cd to one that does\n")
