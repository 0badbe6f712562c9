"""A table of images: columns and splits as people write them, every row counted, only refusals raised."""

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dltrain.data.datasets.table import table
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError, UserError
from support.command import Command
from support.tiers import counts

KEYS = {"root": None, "path": None, "label": None, "split_column": None, "numbers": False}
FIXED: dict[str, Any] = {"size": [2, 2], "channels": 1, "fit": "resize", "range": None, "memory": None}
NO_FILE = "no such file in the folder of the images:"
COUNT = 20  # images; the level of image k is 10 k


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with p/0.png to p/19.png, whose pixels tell the number."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "p").mkdir()
    for index in range(COUNT):
        Image.new("L", (3, 2), 10 * index).save(folder / "p" / f"{index}.png")
    return folder


@pytest.fixture
def read(photos: Path, tmp_path: Path) -> Callable[..., Examples | None]:
    """Return a function that writes a table of these images and reads a split of it."""

    def run(text: str | bytes, split: str = "train", name: str = "labels.csv", **keys: Any) -> Examples | None:
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return table(split, file=str(file), **(KEYS | {"root": str(photos)} | keys | FIXED))

    return run


def numbers(examples: Examples | None) -> list[int]:
    """Which images a split has, told from their pixels."""
    assert examples is not None
    return [int(image.float().mean()) // 10 for image in examples.images]


def labelled(examples: Examples | None) -> dict[int, str]:
    assert examples is not None
    return dict(zip(numbers(examples), [examples.classes[label] for label in examples.targets], strict=True))


def rows(count: int = COUNT) -> list[str]:
    """Rows `path,label`: cats and dogs by turns."""
    return [f"p/{index}.png,{'cat' if index % 2 else 'dog'}" for index in range(count)]


def lines(head: str, *body: str, end: str = "\n") -> str:
    return end.join([head, *body, ""])


PLAIN = lines("path,label", *rows())


def whole(read: Callable[..., Examples | None], text: str | bytes, **keys: Any) -> dict[int, str]:
    """The labels of all images of the training and the test set."""
    return labelled(read(text, "train", **keys)) | labelled(read(text, "test", **keys))


EXPECTED = {index: "cat" if index % 2 else "dog" for index in range(COUNT)}
JSONL = lines(*[json.dumps(dict(zip(("path", "label"), row.split(","), strict=True))) for row in rows()])


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "comma": ("a.csv", PLAIN),
        "semicolon": ("a.csv", PLAIN.replace(",", ";")),
        "tab in csv": ("a.csv", PLAIN.replace(",", "\t")),
        "tsv": ("a.tsv", PLAIN.replace(",", "\t")),
        "jsonl": ("a.jsonl", JSONL),
        "upper case suffix": ("A.JSONL", JSONL),
        "byte order mark": ("a.csv", "\ufeff" + PLAIN),
        "CRLF": ("a.csv", PLAIN.replace("\n", "\r\n")),
        "CRLF in jsonl": ("a.jsonl", JSONL.replace("\n", "\r\n")),
        "old Mac": ("a.csv", PLAIN.replace("\n", "\r")),
        "blank lines": ("a.csv", PLAIN.replace("\np/3", "\n\np/3") + "\n\n"),
        "blank lines in jsonl": ("a.jsonl", "\n" + JSONL + "\n \n"),
        "quotes": ("a.csv", PLAIN.replace("cat", '"cat"')),
        "spaces": ("a.csv", PLAIN.replace(",", " , ")),
        "no end of line": ("a.csv", PLAIN.rstrip()),
        "an index": ("a.csv", lines(",path,label", *[f"{index},{row}" for index, row in enumerate(rows())])),
        "other names": ("a.csv", PLAIN.replace("path,label", "File Name,CLASS")),
        "image and class_name": ("a.csv", PLAIN.replace("path,label", "image,class_name")),
        "img_path and category": ("a.csv", PLAIN.replace("path,label", "img_path,Category")),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_is_read_as_people_write_it(
    read: Callable[..., Examples | None], name: str, text: tuple[str, str]
) -> None:
    assert whole(read, text[1], name=text[0]) == EXPECTED, name


def refusal(read: Callable[..., Examples | None], text: str | bytes, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(text, **keys)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert len(message) < 600
    return message


# --- splits


def test_without_a_split_column_a_fixed_fifth_of_each_class_is_the_test_set(
    read: Callable[..., Examples | None],
) -> None:
    train, test = labelled(read(PLAIN)), labelled(read(PLAIN, "test"))
    assert train | test == EXPECTED
    assert sorted(test.values()) == ["cat", "cat", "dog", "dog"]
    assert numbers(read(PLAIN, "test")) == list(test)
    assert read(PLAIN, "val") is None


def test_names_of_splits_are_understood_in_any_spelling(read: Callable[..., Examples | None]) -> None:
    splits = ["train", "Training", "TRAIN", " train", "val", "valid", "Validation", "dev", "test", "Testing"] * 2
    text = lines("path,label,set", *[f"{row},{split}" for row, split in zip(rows(), splits, strict=True)])
    found = {split: sorted(index % 10 for index in numbers(read(text, split))) for split in ("train", "val", "test")}
    assert found == {"train": [0, 0, 1, 1, 2, 2, 3, 3], "val": [4, 4, 5, 5, 6, 6, 7, 7], "test": [8, 8, 9, 9]}


def test_a_split_that_no_row_has_is_none(read: Callable[..., Examples | None]) -> None:
    text = lines("path,label,part", *[f"{row},train" for row in rows()])
    assert read(text, "test", split_column="part") is read(text, "val", split_column="part") is None
    assert len(numbers(read(text, split_column="part"))) == COUNT


# --- classes and numbers


def test_classes_are_sorted_and_numbers_by_their_value(read: Callable[..., Examples | None]) -> None:
    text = lines("path,label", *[f"p/{index}.png,{(10, 9, 100, 'b', 'a')[index % 5]}" for index in range(COUNT)])
    found = read(text)
    assert found is not None
    assert found.classes == ("9", "10", "100", "a", "b")


def test_numbers_in_jsonl_are_the_classes_that_they_are_in_csv(read: Callable[..., Examples | None]) -> None:
    rows = [json.dumps({"path": f"p/{index}.png", "label": index % 2, "note": None}) for index in range(COUNT)]
    assert set(whole(read, lines(*rows), name="a.jsonl").values()) == {"0", "1"}


@pytest.mark.parametrize("keys", [{"label": "x", "numbers": True}, {"label": ["x"]}], ids=str)
def test_a_column_of_numbers_is_predicted(read: Callable[..., Examples | None], keys: dict[str, Any]) -> None:
    found = read(lines("path,x", *[f"p/{index}.png,{index / 4}" for index in range(COUNT)]), **keys)
    assert found is not None
    assert (found.classes, found.targets.dtype, found.targets.shape) == ((), torch.float32, (16, 1))
    assert torch.equal(found.targets.flatten(), torch.tensor(numbers(found)) / 4)


def test_several_columns_are_predicted_in_their_order(read: Callable[..., Examples | None]) -> None:
    found = read(lines("y,path,x", *[f"-{index},p/{index}.png,1e{index}" for index in range(COUNT)]), label=["x", "y"])
    assert found is not None
    index = torch.tensor(numbers(found)).float()
    torch.testing.assert_close(found.targets, torch.stack([10**index, -index], dim=1))


# --- what is refused, and what is left out


def test_a_column_that_is_not_clear_is_asked_for_with_the_columns_that_there_are(
    read: Callable[..., Examples | None],
) -> None:
    assert "data.path" in refusal(read, PLAIN.replace("path", "where"))
    assert "data.label" in refusal(read, PLAIN.replace("label", "what"))
    assert refusal(read, PLAIN, label="lable") == "data.label=lable: no such column; the table has path, label"
    assert "data.label=kind: no such column" in refusal(read, PLAIN, label=["label", "kind"])
    assert refusal(read, "path,label\n").endswith(": has no rows")
    both = lines("path,label,class", *[f"{row},x" for row in rows()])
    assert "data.label" in refusal(read, both)
    assert whole(read, both, label="label") == EXPECTED


def test_a_table_without_names_of_columns_is_refused(read: Callable[..., Examples | None]) -> None:
    assert "p/0.png, dog" in refusal(read, lines(*rows()))


@pytest.mark.parametrize(
    ("row", "reason"),
    {
        "missing file": ("p/missing.png,cat", NO_FILE + " p/missing.png"),
        "folder": ("p,cat", NO_FILE + " p"),
        "no path": (",cat", NO_FILE),
        "empty label": ("p/19.png,", "no label"),
        "space as label": ("p/19.png,  ", "no label"),
        "too few cells": ("p/19.png", "another number of cells than columns"),
        "too many cells": ("p/19.png,a,b", "another number of cells than columns"),
        "another label": ("p/0.png,cat", "p/0.png was listed with another label"),
        "outside": ("../secret.png,cat", NO_FILE + " ../secret.png"),
        "absolute": ("/etc/passwd,cat", NO_FILE + " /etc/passwd"),
        "outside through a link": ("link/secret.png,cat", NO_FILE + " link/secret.png"),
        "link to a file outside": ("p/link.png,cat", NO_FILE + " p/link.png"),
        "formula": ("=HYPERLINK(0),cat", NO_FILE + " =HYPERLINK(0)"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_left_out_and_named_by_its_line(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str, reason: tuple[str, str]
) -> None:
    base = tmp_path / "base"
    (base / "p").mkdir(parents=True)
    for index in range(COUNT - 1):
        (base / "p" / f"{index}.png").write_bytes((photos / "p" / f"{index}.png").read_bytes())
    (base / "p" / "19.png").write_bytes((photos / "p" / "19.png").read_bytes())
    (tmp_path / "secret.png").write_bytes((photos / "p" / "19.png").read_bytes())
    (base / "link").symlink_to(tmp_path)
    (base / "p" / "link.png").symlink_to(tmp_path / "secret.png")
    file = base / "labels.csv"
    file.write_text(lines("path,label", *rows(COUNT - 1), reason[0]))
    with caplog.at_level(logging.INFO):
        found = [table(split, file=str(file), **KEYS, **FIXED) for split in ("train", "test")]
    assert sum(len(numbers(examples)) for examples in found) == COUNT - 1, row
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"1 of {COUNT} rows left out; line {COUNT + 1}: {reason[1]}" in told


def test_an_absolute_path_below_the_root_is_read(read: Callable[..., Examples | None], photos: Path) -> None:
    assert whole(read, PLAIN.replace("p/", f"{photos}/p/")) == EXPECTED


def test_what_was_understood_is_told_once(
    read: Callable[..., Examples | None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dltrain.data.datasets.table"):
        whole(read, PLAIN)
    (told,) = [record.getMessage() for record in caplog.records if record.name.endswith("table")]
    assert told == "labels.csv: columns path path, split none, label label; 2 classes; 0 of 20 rows left out"


def test_a_table_most_of_whose_rows_are_bad_is_refused(read: Callable[..., Examples | None]) -> None:
    message = refusal(read, PLAIN.replace("p/", "q/"))
    assert f"20 of 20 rows left out; line 2: {NO_FILE} q/0.png; line 3: {NO_FILE} q/1.png" in message
    assert "data.root" in message


@pytest.mark.parametrize("label", ["nan", "inf", "-1e39", "1e400", "", "many", "1,5"])
def test_a_label_that_is_no_finite_number_is_left_out(
    read: Callable[..., Examples | None], caplog: pytest.LogCaptureFixture, label: str
) -> None:
    found = read(lines("path;label", *[f"p/{index}.png;1" for index in range(19)], f"p/19.png;{label}"), numbers=True)
    assert found is not None
    assert "1 of 20 rows left out; line 21: " in caplog.text
    assert bool(found.targets.isfinite().all())


def test_one_class_and_as_many_classes_as_images_are_refused(read: Callable[..., Examples | None]) -> None:
    assert "1 classes in 20 examples" in refusal(read, PLAIN.replace("dog", "cat"))
    many = lines("path,label", *[f"p/{index}.png,{index / 3}" for index in range(COUNT)])
    assert "data.numbers=true" in refusal(read, many)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"path,label\n",
        b"\xff\xfe" + PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode().replace(b"cat", "Kätzchen".encode("latin-1")),
        PLAIN.encode().replace(b"path", b"p\0th"),
        PLAIN.encode().replace(b"p/", b"p\0"),
        b"PK\x03\x04" + bytes(100),
        lines("path,label", 'p/0.png,"cat').encode(),
        lines("path,label", *rows(), "p/0.png," + "a" * 10_000_000).encode(),
        b",".join([b"column"] * 1_000_000) + b"\n" + b"," * 999_999,
        b"\xef\xbb\xbf",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_file_that_is_no_table_is_refused(read: Callable[..., Examples | None], text: bytes) -> None:
    refusal(read, text)
    refusal(read, text, name="a.jsonl")


@pytest.mark.parametrize(
    "row", ["[" * 100_000, '{"a":' * 100_000, "[1]", "3", '"a"', "{", "{} {}", '{"path": 1e', "NaN", "null"], ids=str
)
def test_a_line_that_is_no_json_object_is_refused(read: Callable[..., Examples | None], row: str) -> None:
    refusal(read, JSONL + row[:200_000] + "\n", name="a.jsonl")


@pytest.mark.parametrize(
    "path", ['"\\ud800.png"', '"a\\u0000.png"', '["p/0.png"]', '{"a": 1}', "true", '"' + "a" * 5000 + '"']
)
def test_a_path_that_no_file_can_have_is_left_out(
    read: Callable[..., Examples | None], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    assert whole(read, JSONL + f'{{"path": {path}, "label": "cat"}}\n', name="a.jsonl") == EXPECTED
    assert "1 of 21 rows left out; line 21: " in caplog.text


@counts(60, 1000, 20000)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_mutated_bytes_are_read_or_refused(read: Callable[..., Examples | None], name: str, count: int) -> None:
    base = {"a.csv": PLAIN, "a.tsv": PLAIN.replace(",", "\t"), "a.jsonl": JSONL}[name].encode()
    rng = random.Random(0)
    for _ in range(count):
        data = bytearray(base if rng.random() < 0.9 else rng.randbytes(100))
        for _ in range(rng.choice((1, 1, 4, 40))):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice((0, 1, 9))] = rng.choice(
                (b"", b'"', b"\0", b"\n", b",", b"{", b"\\", rng.randbytes(2))
            )
        try:
            read(bytes(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))]), name=name)
        except UserError:
            continue


# --- from a table to a network

UNPRINTABLE = "c\0t"
QUICK = ("train", "epochs=3", "logger=none", "device=cpu", "model=mlp", "data=table", "data.size=[4,4]", "data.val=0.2")


def test_a_table_of_classes_trains_evaluates_and_predicts(dltrain: Command, photos: Path) -> None:
    Path("labels.csv").write_text(
        lines("file,animal", *[f"p/{i}.png,{'dark' if i < 10 else UNPRINTABLE}" for i in range(20)])
    )
    result = dltrain(*QUICK, "data.file=labels.csv", f"data.root={photos}", "data.label=animal")
    assert result.code == 0, result.err
    assert "columns path file, split none, label animal; 2 classes" in (result.folder / "train.log").read_text()
    evaluated = dltrain("eval", f"ckpt={result.folder}", "--json")
    assert (evaluated.code, set(json.loads(evaluated.out)) >= {"accuracy"}) == (0, True), evaluated.err + evaluated.out
    predicted = dltrain("predict", f"ckpt={result.folder}", f"input={photos}/p/0.png")
    assert predicted.code == 0, predicted.err


def test_a_table_of_numbers_trains_evaluates_and_is_reported(dltrain: Command, photos: Path) -> None:
    table = lines(
        "path,x,y,split", *[f"p/{i}.png,{i},{-i},{('train', 'train', 'dev', 'test')[i % 4]}" for i in range(20)]
    )
    Path("labels.csv").write_text(table)
    keys = ("data.file=labels.csv", f"data.root={photos}", "data.label=[x,y]", "task=regression", "optim.lr=0.001")
    result = dltrain(*QUICK, *keys)
    assert result.code == 0, result.err
    assert (result.folder / "report.html").is_file()
    evaluated = dltrain("eval", f"ckpt={result.folder}", "--json")
    assert (evaluated.code, set(json.loads(evaluated.out)) >= {"mae", "r2"}) == (0, True), evaluated.err + evaluated.out
    assert dltrain("report", str(result.folder)).code == 0


def test_classes_with_task_regression_are_refused_with_the_key_to_set(dltrain: Command, photos: Path) -> None:
    Path("labels.csv").write_text(PLAIN)
    result = dltrain(*QUICK, "data.file=labels.csv", f"data.root={photos}", "task=regression")
    assert result.code == 2
    assert "set task=classification or data.numbers=true" in result.err


def test_a_table_that_is_not_there_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: no such file$"):
        table("train", file=str(tmp_path / "none.csv"), **KEYS, **FIXED)
