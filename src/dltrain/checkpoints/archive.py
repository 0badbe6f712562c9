"""Verify the archive of a checkpoint and its digest before torch may load it, and read its values without torch.

torch.load allocates whatever size a file claims, and calls any function on its allow-list that a file names. So the
archive is checked here first: uncompressed entries, plain values, tensors that lie within their entry, nothing else.
`dltrain inspect` reads checkpoints in the same way. Knows files; imports no torch.
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
MOST_DIRECTORY = MOST_ENTRIES * 128  # bytes; torch's entries take 46 and their name, rarely a few more
MOST_PICKLED = 1 << 24  # bytes of data.pkl: names and plain values, not tensors
BEGIN = b"PK\3\4"  # without it torch takes a file for one of its old formats, whatever follows
END = b"PK\5\6"  # begins the end record of 22 bytes; torch writes no comment after it
ENTRY = re.compile(r"[^/\0\\]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+|data/\d+)")


def trailer(archive: bytes | memoryview) -> bytes:
    """Return the line with the SHA-256 of an archive, which is written after it."""
    return TRAILER + hashlib.sha256(archive).hexdigest().encode() + b"\n"


def verified_size(file: BinaryIO) -> tuple[int, str | None]:
    """Return the size of the archive in a file and its saved digest, None without one. Raises UnsafePickle."""
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
    if (actual := digest.hexdigest()) != saved:
        raise UnsafePickle(f"its SHA-256 is {actual[:16]}…, it was saved with {saved[:16]}…")
    return size - TRAILER_SIZE, saved


def read(file: BinaryIO, size: int) -> Any:
    """Return the values in the first `size` bytes of a file, tensors as TensorInfo. Raises UnsafePickle."""
    try:
        check_ends(file, size)
        with zipfile.ZipFile(file) as archive:
            sizes = _entries(archive.infolist(), size)
            (pickled,) = (name for name in sizes if name.endswith("/data.pkl"))
            data = archive.read(pickled)
    except (UnsafePickle, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's fault, not the file's
            raise
        raise UnsafePickle(f"not an archive of torch ({str(error)[:80] or type(error).__name__})") from error
    prefix = f"{pickled.removesuffix('.pkl')}/"  # of the entries that hold tensors
    return values(data, {name.removeprefix(prefix): length for name, length in sizes.items()})


def check_ends(file: BinaryIO, size: int) -> None:
    """Raise UnsafePickle unless the three end records agree on where the directory is.

    Python takes the directory before them, torch the one they point to: verified and loaded content could differ.
    """
    file.seek(0)
    begin = file.read(4)
    file.seek(max(0, size - 98))
    tail = file.read(min(size, 98))
    if len(tail) < 22 or begin != BEGIN or tail[-22:].rfind(END) != 0:
        raise UnsafePickle("not an archive of torch, or its end is missing")
    *disks, count, here, length, start, comment = struct.unpack("<4H2LH", tail[-18:])
    end, short = size - 22, (count, length, start)
    if tail[-42:-38] == b"PK\6\7":  # torch always writes the records of large archives as well
        large = struct.unpack("<4sQ2H2L4Q", tail[:56])
        disks += large[4:6]
        here, (count, length, start), end = large[6], large[7:], size - 98
        is_whole = large[:2] == (b"PK\6\6", 44) and struct.unpack("<LQL", tail[-38:-22]) == (0, end, 1)
        if not is_whole or short != (min(count, 0xFFFF), min(length, 0xFFFFFFFF), min(start, 0xFFFFFFFF)):
            raise UnsafePickle("its end records differ")
    if any(disks) or comment or here != count or start + length != end:
        raise UnsafePickle("its directory is not where its end record says")
    if count > MOST_ENTRIES or length > MOST_DIRECTORY:
        raise UnsafePickle(f"it has {count:,} entries, {length:,} bytes of names; at most {MOST_ENTRIES:,} are read")


def _entries(entries: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Return the length of each entry by name. Raises UnsafePickle for entries that torch does not write."""
    names = [entry.orig_filename for entry in entries]
    if names != [entry.filename for entry in entries]:  # Python may take a name from an extra field, torch does not
        raise UnsafePickle("it has entries with two names")
    if any(not ENTRY.fullmatch(name) for name in names) or len({name.partition("/")[0] for name in names}) > 1:
        raise UnsafePickle("it has entries that torch does not write")
    if any(each.external_attr & 0x10 for each in entries):  # torch would read nothing, and take what memory held
        raise UnsafePickle("it has an entry that is a folder")
    if len({name.lower() for name in names}) < len(names):
        raise UnsafePickle("it has an entry twice")
    if any(each.compress_type != zipfile.ZIP_STORED or each.compress_size != each.file_size for each in entries):
        raise UnsafePickle("it has compressed entries; torch writes none")
    if sum(entry.file_size for entry in entries) > size:
        raise UnsafePickle("its entries overlap")
    sizes = {entry.filename: entry.file_size for entry in entries}
    pickled = [length for name, length in sizes.items() if name.endswith("/data.pkl")]
    if len(pickled) != 1 or pickled[0] > MOST_PICKLED:
        raise UnsafePickle(f"it must have one data.pkl of at most {MOST_PICKLED:,} bytes")
    return sizes
