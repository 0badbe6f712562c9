"""Folders of images as people have them. `python tests/support/corpus.py FOLDER` writes all of them, to look at."""

import io
import os
import sys
from pathlib import Path

from PIL import Image

CLASSES = ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")


def below(*places: str) -> tuple[str, ...]:
    """Return the names of two classes of images in each of these folders."""
    return tuple(f"{place}/{name}" for place in places for name in CLASSES)


# Names that end with / are empty folders.
UNDERSTOOD = {
    "Train, Test": below("Train", "Test"),
    "training, testing": below("training", "testing"),
    "seg_train, seg_test": below("seg_train", "seg_test"),
    "TRAIN_SET, test-images": below("TRAIN_SET", "test-images"),
    "train, test, valid": below("train", "test", "valid"),
    "train, test, validation": below("train", "test", "validation"),
    "train, test, dev": below("train", "test", "dev"),
    "junk beside splits": (*below("train", "test"), "__MACOSX/train/cat/1.png", "@eaDir/1.png", "README.md"),
    "junk beside classes": (*CLASSES, "__MACOSX/cat/1.png", "@eaDir/1.png", "$RECYCLE.BIN/1.png", "lost+found/"),
    "junk in a class": (*CLASSES, "cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store", "cat/@eaDir/1.png"),
    "an empty folder": (*CLASSES, "empty/", "notes/a.txt"),
    "a class called train": (*CLASSES, "train/1.png", "train/2.png"),
    "a class called test": (*CLASSES, "test/1.png", "test/2.png"),
    "unlabelled test": (*below("train"), "test/1.png", "test/2.png"),
    "a folder beside the splits": (*below("train", "test"), "extra/1.png"),
    "deep classes": ("cat/a/b/1.png", "cat/2.png", "dog/c/3.png", "dog/4.png"),
}
REFUSED = {
    "one level too high": below("flowers"),
    "one level too high with splits": below("flowers/train", "flowers/test"),
    "one level too high in train": below("train/flowers", "test/flowers"),
    "images and a table": ("images/1.png", "images/2.png", "labels.csv"),
    "flat train": ("train/cat.0.png", "train/dog.0.png", "test/1.png"),
    "flat": ("cat.0.png", "dog.0.png"),
    "test without train": below("test", "val"),
    "classes beside test": (*CLASSES, *below("test")),
    "train beside others": (*below("train"), "extra/1.png"),
    "empty": (),
}


def picture(kind: str, grey: int = 100) -> bytes:
    """Return a small image file of one of Pillow's formats."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, kind)
    return buffer.getvalue()


def odd_files() -> dict[str, bytes]:
    """Return image files whose names do not tell what they are."""
    jpeg, png = picture("JPEG"), picture("PNG")
    named = {f"a{suffix}": jpeg for suffix in (".jfif", ".jpe", ".JPG", ".jpg_large", ".image")}
    others = {"b.apng": png, "c.pnm": picture("PPM"), "d.dib": picture("BMP"), "e": png, "f.txt": jpeg}
    return named | others | {"g.tmp": picture("GIF"), "h.1": picture("TIFF"), "i.x": picture("WEBP")}


NO_IMAGES = {
    "notes.txt": b"P is for picture\n",
    "table.csv": b"BMI,age\n22,40\n",
    "raw.nef": b"II*\0" + bytes(60),
    "o": b"",
}


def write(root: Path, names: tuple[str, ...]) -> Path:
    """Write a layout; return root."""
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(picture("PNG", number) if name.endswith(".png") else b"text\n")
    return root


def write_odd_files(folder: Path) -> Path:
    """Write two classes: a `cat` with all odd files and links, and a plain `dog`; return the folder."""
    write(folder, CLASSES)
    for name, content in (odd_files() | NO_IMAGES).items():
        (folder / "cat" / name).write_bytes(content)
    write(folder.with_name("elsewhere"), ("5.png", "more/6.png"))
    (folder / "cat" / "linked").symlink_to("../../elsewhere")
    (folder / "cat" / "again").symlink_to("../../elsewhere")
    (folder / "cat" / "circle").symlink_to("..")
    (folder / "cat" / "link.png").symlink_to("../dog/3.png")
    (folder / "cat" / "nowhere.png").symlink_to("away.png")
    (folder / "cat" / "nowhere").symlink_to("away")
    (folder / "cat" / "itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "cat" / "pipe")
    return folder


if __name__ == "__main__":
    for layout, files in (UNDERSTOOD | REFUSED).items():
        write(Path(sys.argv[1]) / layout, files)
    write_odd_files(Path(sys.argv[1]) / "odd files")
