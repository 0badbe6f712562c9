"""The file around a checkpoint: torch's archive, looked at before torch may read it, and the digest behind it.

torch.load allocates what a file claims, and calls what a file names out of a long list. So first the archive is gone
through here: entries stored as they are, plain values, plain tensors that lie within their entry, nothing else. It also
shows a checkpoint to a person without building anything. Knows files; imports no torch.
"""

import errno
import hashlib
import os
import re
import struct
import zipfile
from typing import Any, BinaryIO

from dltrain.checkpoints.pickle_reader import UnsafePickle, values

TRAILER = b"\ndltrain sha256 "  # then 64 hexadecimal digits and a line feed
TRAILER_SIZE = len(TRAILER) + 64 + 1
MOST_ENTRIES = 1 << 16
MOST_DIRECTORY = MOST_ENTRIES * 128  # bytes; an entry of torch's has 46 and its name, once in a while a few more
MOST_PICKLED = 1 << 24  # bytes of data.pkl: names and plain values, not tensors
BEGIN = b"PK\3\4"  # without it torch takes a file for one of its old formats, whatever follows
END = b"PK\5\6"  # of an archive's directory; torch writes no comment behind its 22 bytes
ENTRY = re.compile(r"[^/\0\\]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+|data/\d+)")


def trailer(archive: bytes | memoryview) -> bytes:
    """What is written behind an archive."""
    return TRAILER + hashlib.sha256(archive).hexdigest().encode() + b"\n"


def verified_size(file: BinaryIO) -> tuple[int, str | None]:
    """Size of the archive in a file, and the digest that it was saved with; None where it was saved without.

    Raises Refused where the bytes are not those that were saved.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TRAILER_SIZE))
    end = file.read()
    if len(end) < TRAILER_SIZE or not end.startswith(TRAILER) or not end.endswith(b"\n"):
        return size, None
    saved = end[len(TRAILER) : -1].decode(errors="replace")
    digest, rest = hashlib.sha256(), size - TRAILER_SIZE
    file.seek(0)
    while rest and (block := file.read(min(rest, 1 << 20))):
        digest.update(block)
        rest -= len(block)
    if (found := digest.hexdigest()) != saved:
        raise UnsafePickle(f"its SHA-256 is {found[:16]}…, it was saved with {saved[:16]}…")
    return size - TRAILER_SIZE, saved


def read(file: BinaryIO, size: int) -> Any:
    """The values in the first `size` bytes of a file, tensors as TensorInfo. Raises Refused."""
    try:
        _check_ends(file, size)
        with zipfile.ZipFile(file) as archive:
            sizes = _entries(archive.infolist(), size)
            (pickled,) = (name for name in sizes if name.endswith("/data.pkl"))
            data = archive.read(pickled)
    except (UnsafePickle, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's fault, not the file's
            raise
        raise UnsafePickle(f"no archive of torch ({str(error)[:80] or type(error).__name__})") from error
    prefix = pickled.removesuffix("data.pkl")
    storages = {name.removeprefix(f"{prefix}data/"): length for name, length in sizes.items()}
    return values(data, storages)


def _check_ends(file: BinaryIO, size: int) -> None:
    """Raise Refused unless the directory is where its three end records say: who reads another one sees another file.

    Python looks for it before the end, torch where the records point to.
    """
    file.seek(0)
    begin = file.read(4)
    file.seek(max(0, size - 98))
    tail = file.read(min(size, 98))
    if len(tail) < 22 or begin != BEGIN or tail[-22:].rfind(END) != 0:
        raise UnsafePickle("no archive of torch, or its end is missing")
    *disks, count, here, length, start, comment = struct.unpack("<4H2LH", tail[-18:])
    end, told = size - 22, (count, length, start)
    if tail[-42:-38] == b"PK\6\7":  # torch always writes the records of large archives as well
        large = struct.unpack("<4sQ2H2L4Q", tail[:56])
        disks += large[4:6]
        here, (count, length, start), end = large[6], large[7:], size - 98
        if large[:2] != (b"PK\6\6", 44) or struct.unpack("<LQL", tail[-38:-22]) != (0, end, 1):
            raise UnsafePickle("two ends that differ")
        if told != (min(count, 0xFFFF), min(length, 0xFFFFFFFF), min(start, 0xFFFFFFFF)):
            raise UnsafePickle("two ends that differ")
    if any(disks) or comment or here != count or start + length != end:
        raise UnsafePickle("a directory that is not where its end says")
    if count > MOST_ENTRIES or length > MOST_DIRECTORY:
        raise UnsafePickle(f"{count:,} entries in {length:,} bytes; at most {MOST_ENTRIES:,} are read")


def _entries(entries: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Length of each entry by name, of an archive as torch writes it."""
    names = [entry.orig_filename for entry in entries]
    if names != [entry.filename for entry in entries]:  # Python may take a name from an extra field, torch does not
        raise UnsafePickle("entries with two names")
    if any(not ENTRY.fullmatch(name) for name in names) or len({name.partition("/")[0] for name in names}) > 1:
        raise UnsafePickle("entries that torch does not write")
    if len({name.lower() for name in names}) < len(names):
        raise UnsafePickle("an entry that is there twice")
    if any(each.compress_type != zipfile.ZIP_STORED or each.compress_size != each.file_size for each in entries):
        raise UnsafePickle("packed entries; torch stores them as they are")
    if sum(entry.file_size for entry in entries) > size:
        raise UnsafePickle("entries that overlap")
    sizes = {entry.filename: entry.file_size for entry in entries}
    pickled = [length for name, length in sizes.items() if name.endswith("/data.pkl")]
    if len(pickled) != 1 or pickled[0] > MOST_PICKLED:
        raise UnsafePickle("must have one data.pkl of a sensible size")
    return sizes
