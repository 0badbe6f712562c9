"""Finds the image files below a folder: by name, else by their first bytes. Others get a reason."""

import heapq
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dltrain.data.splits import rules
from dltrain.runtime.errors import InputError

# Files with these names are images, damaged or not; any other file is opened.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
RAW = (".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw")  # Pillow reads only their thumbnails
JUNK = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"}
HEIF = re.compile(rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)
OTHERS = rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II[*+]\0|MM\0[*+]|BM.{4}\0{4}|RIFF.{4}WEBP|P[1-6]\s|.{4}ftypavi[fs]|"
IMAGE = re.compile(OTHERS + HEIF.pattern, re.DOTALL)
NO_FILE = "not a regular file"


def find_images(folder: str | Path) -> tuple[list[str], dict[str, str]]:
    """Return the image files below a folder, sorted by the parts of their paths, and why other files are none.

    Hidden and system files are skipped; Paths would take ten times as long. Raises InputError for unreadable folders.
    """
    files = dict(_walk(folder))
    images = sorted((path for path, why in files.items() if not why), key=lambda path: path.split(os.sep))  # noqa: PTH206
    return images, {path: why for path, why in files.items() if why}


def folders_with_images(base: Path) -> list[str]:
    """Return the sorted names of the sub-folders with an image at any depth; by the older rules of all."""
    return [name for name in folders(base) if rules.get() == 1 or not all(why for _, why in _walk(base / name))]


def folders(base: Path) -> list[str]:
    """Return the sorted names of the sub-folders."""
    return sorted(entry.name for entry in _entries(base) if _is_folder(entry))


def images_in(base: Path) -> list[str]:
    """Return the paths of the images directly in a folder."""
    return [entry.path for entry in _entries(base) if not _is_folder(entry) and not _why_no_image(entry)]


def _walk(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Yield each file with why it is no image, empty for an image. Links are followed, each folder is read once."""
    waiting = [(False, str(folder))]  # links come last
    seen = set(map(str, Path(folder).resolve().parents))  # a link to one of them would bring in other classes
    while waiting:
        is_linked, place = heapq.heappop(waiting)
        if (identity := os.path.realpath(place)) in seen:
            yield place, "link to a folder that is read already"
            continue
        seen.add(identity)
        for entry in _entries(place):
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file(follow_symlinks=False):
                yield entry.path, ""
            elif not _is_folder(entry):
                yield entry.path, _why_no_image(entry)
            elif rules.get() > 1 or not entry.is_symlink():
                heapq.heappush(waiting, (is_linked or entry.is_symlink(), entry.path))


def _entries(folder: str | Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] != "." and (entry.name not in JUNK or rules.get() == 1):
                    yield entry
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    # An entry's own is_dir() raises for a circular link.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112


def _why_no_image(entry: "os.DirEntry[str]") -> str:
    """Return why a file is no image, empty if it is one; damage is seen only when it is decoded."""
    path = Path(entry.path)
    suffix = path.suffix.lower()
    if not os.path.isfile(path):  # noqa: PTH113  (it does not raise)
        return NO_FILE if os.path.exists(path) else "link to nowhere"  # noqa: PTH110
    try:
        with path.open("rb") as file:
            is_known = suffix not in RAW and rules.get() > 1 and IMAGE.match(file.read(32))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if is_known or suffix in EXTENSIONS else f"{suffix or 'no extension'}: not a format that is read"
