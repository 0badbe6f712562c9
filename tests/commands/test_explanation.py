"""--explain: the value of a key, where it comes from, what it may be, what it means, what it was without a word."""

from pathlib import Path

import pytest

from support.command import Command

CONFIGS = Path(__file__).parents[2] / "configs"

EXPLAINED = {
    "train --explain optim.lr": f"""optim.lr=0.05
  means    learning rate
  is       a number > 0
  from     {CONFIGS}/optim/sgd.yaml
  default  0.05 ({CONFIGS}/optim/sgd.yaml)
""",
    "train optim.lr=0.3 --explain=optim.lr": f"""optim.lr=0.3
  means    learning rate
  is       a number > 0
  from     the command line
  default  0.05 ({CONFIGS}/optim/sgd.yaml)
""",
    "train --explain optim.lr experiment=textbook/lenet_mnist": f"""optim.lr=0.001
  means    learning rate
  is       a number > 0
  from     {CONFIGS}/experiment/textbook/lenet_mnist.yaml
  default  0.05 ({CONFIGS}/optim/sgd.yaml)
""",
    "train --explain epochs --explain device.threads": f"""epochs=20
  means    passes over the training set
  is       a whole number >= 1
  from     {CONFIGS}/train.yaml
  default  20 ({CONFIGS}/train.yaml)

device.threads=null
  means    CPU threads; null is a fixed rule: one for small steps, more for more work, at most one for each core
  is       a whole number >= 1, <= 1024 or null
  from     {CONFIGS}/device/auto.yaml
  default  null ({CONFIGS}/device/auto.yaml)
""",
    "eval --explain ckpt": """ckpt is required
  means    a run folder (its best.pt is taken) or a checkpoint file; several as [A,B] are ranked
  is       text or a list, each text (at least 1)
""",
    "eval ckpt=a --explain ckpt": """ckpt=a
  means    a run folder (its best.pt is taken) or a checkpoint file; several as [A,B] are ranked
  is       text or a list, each text (at least 1)
  from     the command line
""",
    "train --explain task": f"""task=classification
  means    Cross entropy and accuracy over classes.
  is       one of classification, custom, reconstruction, regression
  from     {CONFIGS}/train.yaml

task.label_smoothing=0.0
  means    fraction of the target spread over all classes (Szegedy et al., 2016)
  is       a number >= 0, < 1
  from     {CONFIGS}/task/classification.yaml
  default  0.0 ({CONFIGS}/task/classification.yaml)

task.class_weights=null
  means    factor of each class's loss, in the order of classes; `balanced` divides the mean size of a class in the \
training set by its size; null for none
  is       balanced or a list, each a number >= 0 or null
  from     {CONFIGS}/task/classification.yaml
  default  null ({CONFIGS}/task/classification.yaml)

task.focal=0.0
  means    exponent of the focal loss, such as 2, for which clear examples count less (Lin et al., 2017); 0 for none
  is       a number >= 0
  from     {CONFIGS}/task/classification.yaml
  default  0.0 ({CONFIGS}/task/classification.yaml)
""",
}


@pytest.mark.parametrize("line", EXPLAINED)
def test_a_key_is_explained(dltrain: Command, line: str) -> None:
    result = dltrain(*line.split())
    assert (result.code, result.err, result.out) == (0, "", EXPLAINED[line])
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ([], f"{CONFIGS}/train.yaml"),
        (["optim=adam"], "the command line"),
        (["experiment=textbook/adam_mnist"], f"{CONFIGS}/experiment/textbook/adam_mnist.yaml"),
    ],
    ids=str,
)
def test_explain_names_what_chose_an_option(dltrain: Command, words: list[str], place: str) -> None:
    out = dltrain("train", *words, "--explain", "optim").out
    assert f"\n  from     {place}\n\noptim.lr=" in out


def test_explain_of_a_resumed_run_says_that_its_stored_values_count(dltrain: Command) -> None:
    run = dltrain("train", "model=mlp", "data.limit=100", "epochs=1", "optim.lr=0.01").folder
    out = dltrain("train", f"resume={run}", "--explain", "optim.lr", "--explain", "model").out
    assert "  resume   keeps the value of the run, not this one\n" in out
    assert "model=mlp\n" in out
    assert "  from     the run to be resumed\n" in out
    out = dltrain("train", f"resume={run}", "optim.lr=0.3", "--explain", "optim.lr").out
    assert "  resume " not in out


MISTAKES = {
    "train --explain optim.lrr": "optim.lrr: no such key; did you mean optim.lr?",
    "train --explain lr": "lr: no such key; did you mean optim.lr?",
    "train --explain modle": "modle: no such key; did you mean model?",
    "train --explain": "--explain: name a key or a group, such as --explain optim.lr or --explain optim",
    "train --explain= epochs=3": "--explain: name a key or a group, such as --explain optim.lr or --explain optim",
    "train model=lennet --explain model": "model=lennet: no such option; did you mean lenet?",
    "eval --explain model": "model: no such key",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_misspelt_key_is_answered_with_the_nearest_name(dltrain: Command, line: str) -> None:
    result = dltrain(*line.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {MISTAKES[line]}")
    assert len(result.err.splitlines()) == 1


def test_a_group_that_is_typed_anew_is_not_that_of_the_run(dltrain: Command) -> None:
    run = dltrain("train", "model=mlp", "data.limit=100", "epochs=1", "optim=sgd").folder
    out = dltrain("train", f"resume={run}", "optim=adam", "--explain", "optim.lr").out
    assert "  resume " not in out
    assert "  resume " in dltrain("train", f"resume={run}", "optim=adam", "--explain", "seed").out


def test_the_experiment_is_explained_as_any_group(dltrain: Command) -> None:
    result = dltrain("train", "experiment=mnist_lenet", "--explain", "experiment")
    assert (result.code, result.out.splitlines()[0]) == (0, "experiment=mnist_lenet")
