"""Pictures: every format and mode to the same bytes, upright, on white, brought to size; what is damaged is refused."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image, PngImagePlugin

from dltrain.data import image_files

H, W = 12, 16


def decode(path: Path, *, channels: int = 3, size: tuple[int, int] = (H, W), fit: str = "resize") -> numpy.ndarray:
    """A picture as (C, H, W), of signed numbers that can be subtracted."""
    return image_files.decode(path, channels=channels, size=size, fit=fit).numpy().astype(int)


def gradient() -> Image.Image:
    """A smooth colour picture, that lossy formats keep nearly as it is."""
    rows, columns = numpy.mgrid[0:H, 0:W]
    planes = [60 + 5 * columns, 60 + 7 * rows, 180 - 4 * columns - 2 * rows]
    return Image.fromarray(numpy.stack(planes, axis=2).astype(numpy.uint8))


def pixels(picture: Image.Image, channels: int) -> numpy.ndarray:
    """A picture as (C, H, W), by Pillow alone."""
    found = numpy.asarray(picture.convert("RGB" if channels == 3 else "L")).astype(int)
    return found[None] if channels == 1 else found.transpose(2, 0, 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def colour_png(width: int, height: int, depth: int, rows: list[bytes]) -> bytes:
    """A PNG file by hand: of a depth, or of a size, that Pillow does not write."""
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = chunk(b"IHDR", sides + bytes([depth, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


# --- modes and formats

# Mode of the picture, its format, and by how much a level may be missed. No format stores HSV.
STORED = [
    *(("1", ending, 0) for ending in ("png", "bmp", "gif", "tiff", "pbm")),
    *(("L", ending, 0) for ending in ("png", "bmp", "gif", "tiff", "pgm")),
    *(("LA", ending, 0) for ending in ("png", "tiff")),
    *(("P", ending, 0) for ending in ("png", "bmp", "gif", "tiff")),
    ("PA", "tiff", 0),
    *(("RGB", ending, 0) for ending in ("png", "bmp", "tiff", "ppm")),
    *(("RGBA", ending, 0) for ending in ("png", "bmp", "tiff")),
    ("CMYK", "tiff", 0),
    ("I", "tiff", 0),
    ("F", "tiff", 0),
    ("YCbCr", "tiff", 3),
    *((mode, "webp", 25) for mode in ("L", "RGB", "RGBA")),
    *((mode, "jpg", 20) for mode in ("L", "RGB", "CMYK", "YCbCr")),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("mode", "ending", "tolerance"), STORED)
def test_an_image_of_any_mode_is_read_as_it_looks(
    mode: str, ending: str, tolerance: int, channels: int, tmp_path: Path
) -> None:
    picture = gradient().convert("RGBA").convert("P").convert("PA") if mode == "PA" else gradient().convert(mode)
    path = tmp_path / f"picture.{ending}"
    picture.save(path)
    looks = gradient().convert("L") if mode in ("I", "F") else picture.convert("RGB")
    found = decode(path, channels=channels)
    assert found.shape == (channels, H, W)
    # A colour's grey level may be rounded the other way.
    assert abs(found - pixels(looks, channels)).max() <= max(tolerance, 2 - channels)


def test_images_are_contiguous_bytes(tmp_path: Path) -> None:
    gradient().save(tmp_path / "picture.png")
    for channels in (1, 3):
        found = image_files.decode(tmp_path / "picture.png", channels=channels, size=(5, 7), fit="resize")
        assert (found.dtype, found.shape) == (torch.uint8, (channels, 5, 7))
        assert found.is_contiguous()


def test_the_channels_are_red_green_blue(tmp_path: Path) -> None:
    Image.new("RGB", (W, H), (10, 20, 30)).save(tmp_path / "picture.png")
    assert [numpy.unique(channel).tolist() for channel in decode(tmp_path / "picture.png")] == [[10], [20], [30]]


LEVELS = numpy.arange(256).reshape(16, 16)


def read_levels(path: Path) -> list[int]:
    return decode(path, channels=1, size=(16, 16)).flatten().tolist()


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_16_bit_levels_are_scaled_to_bytes(ending: str, tmp_path: Path) -> None:
    Image.fromarray((LEVELS * 257).astype(numpy.uint16)).save(tmp_path / f"picture.{ending}")
    assert read_levels(tmp_path / f"picture.{ending}") == list(range(256))


def test_16_bit_levels_in_32_bits_are_scaled_to_bytes(tmp_path: Path) -> None:
    Image.fromarray((LEVELS * 257).astype(numpy.int32)).save(tmp_path / "picture.tiff")
    assert read_levels(tmp_path / "picture.tiff") == list(range(256))


def test_16_bit_levels_with_the_high_byte_first_are_scaled_to_bytes(tmp_path: Path) -> None:
    levels = (LEVELS * 257).astype(">u2")
    Image.frombytes("I;16B", (16, 16), levels.tobytes()).save(tmp_path / "picture.tiff")
    assert read_levels(tmp_path / "picture.tiff") == list(range(256))


def test_16_bit_colours_are_scaled_to_bytes(tmp_path: Path) -> None:
    colours = numpy.stack([LEVELS, LEVELS[::-1], LEVELS.T], axis=2)
    rows = [(row * 257).astype(">u2").tobytes() for row in colours]
    (tmp_path / "picture.png").write_bytes(colour_png(16, 16, 16, rows))
    assert numpy.array_equal(decode(tmp_path / "picture.png", size=(16, 16)), colours.transpose(2, 0, 1))


def test_floats_from_0_to_1_are_scaled_to_bytes(tmp_path: Path) -> None:
    Image.fromarray((LEVELS / 255).astype(numpy.float32)).save(tmp_path / "picture.tiff")
    assert read_levels(tmp_path / "picture.tiff") == list(range(256))


@pytest.mark.parametrize("kind", [numpy.int32, numpy.float32])
def test_levels_of_bytes_in_wider_numbers_stay_as_they_are(kind: type, tmp_path: Path) -> None:
    Image.fromarray(LEVELS.astype(kind)).save(tmp_path / "picture.tiff")
    assert read_levels(tmp_path / "picture.tiff") == list(range(256))


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first_is_read(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    first, *others = (Image.new("RGB", (W, H), (level, level, level)) for level in (60, 120, 180))
    first.save(path, save_all=True, append_images=others, **({"lossless": True} if ending == "webp" else {}))
    with Image.open(path) as opened:
        assert opened.n_frames == 3
    assert numpy.unique(decode(path)).tolist() == [60]


# --- upright

UPRIGHT = numpy.arange(H * W, dtype=numpy.uint8).reshape(H, W)
# How a camera stores what must be seen as UPRIGHT, for each value of EXIF's orientation.
AS_STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: numpy.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: numpy.rot90(UPRIGHT, -1),
}


def save_turned(path: Path, stored: numpy.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"compression": "tiff_lzw"} if path.suffix == ".tiff" else {}
    Image.fromarray(numpy.ascontiguousarray(stored)).save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", AS_STORED)
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_a_turned_image_is_set_upright(ending: str, orientation: int, tmp_path: Path) -> None:
    save_turned(tmp_path / f"picture.{ending}", AS_STORED[orientation], orientation)
    assert numpy.array_equal(decode(tmp_path / f"picture.{ending}", channels=1)[0], UPRIGHT)


def test_a_photograph_taken_on_its_side_is_set_upright(tmp_path: Path) -> None:
    picture = pixels(gradient(), 1)[0].astype(numpy.uint8)
    save_turned(tmp_path / "picture.jpg", numpy.rot90(picture, 1), 6)
    assert abs(decode(tmp_path / "picture.jpg", channels=1)[0] - picture).max() <= 20


# --- transparency


def half_transparent(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """A dark picture whose upper half is transparent, and what `save` needs to keep that."""
    upper_half = (0, 0, W, H // 2)
    if mode in ("LA", "RGBA"):
        picture = Image.new("RGBA", (W, H), (10, 10, 10, 255))
        picture.paste((200, 30, 90, 0), upper_half)
        return picture.convert(mode), {}
    if mode in ("P", "PA"):
        picture = Image.new("P", (W, H), 1)
        picture.putpalette([200, 30, 90, 10, 10, 10])
        picture.paste(0, upper_half)
        if mode == "P":
            return picture, {"transparency": 0}
        picture = picture.convert("PA")
        picture.putalpha(half_transparent("LA")[0].getchannel("A"))
        return picture, {}
    dark: Any = (10, 10, 10) if mode == "RGB" else 10
    hidden: Any = (200, 30, 90) if mode == "RGB" else 77
    picture = Image.new(mode, (W, H), dark)
    picture.paste(hidden, upper_half)
    return picture, {"transparency": hidden}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *((mode, "png") for mode in ("L", "LA", "P", "RGB", "RGBA")),
        *((mode, "tiff") for mode in ("LA", "PA", "RGBA")),
        ("P", "gif"),
    ],
)
def test_transparent_pixels_become_white(mode: str, ending: str, channels: int, tmp_path: Path) -> None:
    picture, options = half_transparent(mode)
    picture.save(tmp_path / f"picture.{ending}", **options)
    found = decode(tmp_path / f"picture.{ending}", channels=channels)
    assert numpy.unique(found[:, : H // 2]).tolist() == [255]
    assert numpy.unique(found[:, H // 2 :]).tolist() == [10]


def test_black_that_is_transparent_becomes_white_in_an_image_of_one_bit(tmp_path: Path) -> None:
    Image.new("1", (W, H), 0).save(tmp_path / "picture.png", transparency=0)
    assert numpy.unique(decode(tmp_path / "picture.png")).tolist() == [255]


def test_a_palette_with_degrees_of_transparency_is_mixed_with_white(tmp_path: Path) -> None:
    picture = Image.fromarray(numpy.array([[0, 1, 2]], dtype=numpy.uint8)).convert("P")
    picture.putpalette([0, 0, 0] * 3)
    picture.save(tmp_path / "picture.png", transparency=bytes([0, 128, 255]))
    assert decode(tmp_path / "picture.png", channels=1, size=(1, 3)).flatten().tolist() == [255, 127, 0]


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (W, H), (0, 100, 255, 128)).save(tmp_path / "picture.png")
    assert decode(tmp_path / "picture.png")[:, 0, 0].tolist() == pytest.approx([127, 177, 255], abs=1)


def test_the_colour_of_transparent_pixels_does_not_bleed_when_resized(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 32), (255, 255, 255, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 16, 32))
    picture.save(tmp_path / "picture.png")
    assert numpy.unique(decode(tmp_path / "picture.png", size=(5, 5))).tolist() == [255]


# --- size


def stripes(path: Path, width: int, height: int, *, stacked: bool) -> Path:
    """Three stripes of the same width, black, white, black, side by side or stacked."""
    picture = Image.new("L", (width, height), 0)
    white = (0, height // 3, width, height * 2 // 3) if stacked else (width // 3, 0, width * 2 // 3, height)
    picture.paste(255, white)
    picture.save(path)
    return path


def test_an_image_of_the_size_stays_as_it_is(tmp_path: Path) -> None:
    gradient().save(tmp_path / "picture.png")
    for fit in ("resize", "crop"):
        assert numpy.array_equal(decode(tmp_path / "picture.png", fit=fit), pixels(gradient(), 3))


@pytest.mark.parametrize("fit", ["resize", "crop"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 400), (400, 1), (50, 3), (3, 50)])
def test_any_image_is_brought_to_height_and_width(sides: tuple[int, int], fit: str, tmp_path: Path) -> None:
    Image.new("RGB", sides, (10, 20, 30)).save(tmp_path / "picture.png")
    found = decode(tmp_path / "picture.png", size=(4, 9), fit=fit)
    assert found.shape == (3, 4, 9)
    assert [numpy.unique(channel).tolist() for channel in found] == [[10], [20], [30]]


@pytest.mark.parametrize("stacked", [False, True])
def test_resize_squeezes_the_whole_image(stacked: bool, tmp_path: Path) -> None:
    width, height = (30, 90) if stacked else (90, 30)
    found = decode(stripes(tmp_path / "p.png", width, height, stacked=stacked), channels=1, size=(30, 30))[0]
    across = found[:, 15] if stacked else found[15]
    assert (across[:9] == 0).all() and (across[11:19] == 255).all() and (across[21:] == 0).all()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("scale", [1, 4])
def test_crop_keeps_the_middle_of_the_image(scale: int, stacked: bool, tmp_path: Path) -> None:
    width, height = (20 * scale, 60 * scale) if stacked else (60 * scale, 20 * scale)
    path = stripes(tmp_path / "p.png", width, height, stacked=stacked)
    found = decode(path, channels=1, size=(20, 20), fit="crop")[0]
    assert numpy.unique(found[1:-1, 1:-1]).tolist() == [255]
    assert found.min() > 127  # a scaled edge is mixed with what lies beside it


def test_crop_keeps_the_proportions(tmp_path: Path) -> None:
    picture = Image.new("L", (120, 60), 0)
    picture.paste(255, (45, 15, 75, 45))  # a square
    picture.save(tmp_path / "picture.png")
    found = decode(tmp_path / "picture.png", channels=1, size=(20, 20), fit="crop")[0]
    assert (found > 127).any(0).sum() == (found > 127).any(1).sum() == 10


def test_crop_scales_to_cover_so_that_nothing_is_added(tmp_path: Path) -> None:
    Image.new("L", (5, 3), 200).save(tmp_path / "picture.png")
    assert numpy.unique(decode(tmp_path / "picture.png", channels=1, size=(40, 40), fit="crop")).tolist() == [200]


# --- what cannot be read


def noise(ending: str) -> bytes:
    """A picture file in which no byte can be spared."""
    picture = numpy.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format={"jpg": "JPEG"}.get(ending, ending.upper()))
    return file.getvalue()


def with_altered_data(content: bytes) -> bytes:
    place = content.index(b"IDAT") + 40
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


FORMATS = ["png", "jpg", "webp", "bmp", "gif", "tiff", "ppm"]
UNREADABLE: dict[str, bytes] = {
    **{f"half.{ending}": noise(ending)[: len(noise(ending)) // 2] for ending in FORMATS},
    **{f"beginning.{ending}": noise(ending)[:12] for ending in FORMATS},
    **{f"empty.{ending}": b"" for ending in FORMATS},
    **{f"text.{ending}": b"not a picture\nbut two lines\n" for ending in FORMATS},
    "altered.png": with_altered_data(noise("png")),
    "noise.jpg": numpy.random.default_rng(1).bytes(5000),
    "page.png": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "bomb.png": colour_png(50_000, 50_000, 8, [b""]),
}


def reason(path: Path) -> str:
    """Why a file is refused."""
    with pytest.raises(ValueError) as caught:
        image_files.decode(path, channels=3, size=(8, 8), fit="resize")
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")  # a warning turned into an error must not be what refuses the file
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_incomplete_image_is_refused_in_one_short_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(UNREADABLE[name])
    message = reason(tmp_path / name)
    assert 0 < len(message.strip()) <= 120
    assert len(message.splitlines()) == 1
    assert str(tmp_path) not in message  # the caller names the file


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_images_are_read_when_they_are_whole(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"picture.{ending}").write_bytes(noise(ending))
    assert decode(tmp_path / f"picture.{ending}", size=(8, 8)).shape == (3, 8, 8)


def test_an_image_of_far_too_many_pixels_is_refused_as_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(colour_png(50_000, 50_000, 8, [b""]))
    assert "decompression bomb" in reason(tmp_path / "bomb.png")


def tiff_of(bands: int, bits: int, kind: int) -> bytes:
    """A TIFF of one white pixel, by hand: of bands and numbers that Pillow does not write."""
    tags = {256: 1, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: bands, 278: 1, 279: 99, 339: kind}
    packed = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + 99) + bytes(99) + struct.pack("<H", len(tags)) + packed + bytes(4)


@pytest.mark.parametrize(
    ("bands", "bits", "kind", "what"),
    [(3, 32, 3, "3-band TIFF of float32"), (4, 32, 3, "4-band TIFF of float32"), (4, 16, 1, "4-band TIFF of int16")],
)
def test_a_tiff_that_pillow_cannot_read_is_refused_with_the_reason(
    bands: int, bits: int, kind: int, what: str, tmp_path: Path
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_of(bands, bits, kind))
    assert reason(tmp_path / "a.tif") == f"a {what}: Pillow cannot read it; convert it to grey or RGB of 8 bits"


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_tiff_of_many_bands_is_read_or_refused(tmp_path: Path) -> None:
    whole, random = tiff_of(4, 32, 3), numpy.random.default_rng(0)
    for number in range(300):
        content = bytearray(whole[: random.integers(len(whole))] if number % 2 else whole)
        for place in random.integers(0, len(content), 4) if content else []:
            content[place] = random.integers(256)
        (tmp_path / "a.tif").write_bytes(content)
        with contextlib.suppress(ValueError):  # and never another exception
            decode(tmp_path / "a.tif")
        image_files.deep_spread(tmp_path / "a.tif")


def test_an_image_in_lab_is_read_in_grey_too(tmp_path: Path) -> None:
    Image.new("LAB", (W, H), (200, 128, 128)).save(tmp_path / "a.tiff")
    grey, colour = decode(tmp_path / "a.tiff", channels=1), decode(tmp_path / "a.tiff")
    assert abs(grey - colour).max() <= 3


def test_an_image_with_large_texts_and_profiles_is_read(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("notes", "x" * 3_000_000, zip=True)
    gradient().save(tmp_path / "a.png", pnginfo=info, icc_profile=b"y" * 3_000_000)
    assert numpy.array_equal(decode(tmp_path / "a.png"), pixels(gradient(), 3))


def test_an_image_of_too_many_pixels_is_refused_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(colour_png(9_000, 10_000, 8, [b""]))
    with image_files.without_pillow_warnings():
        assert reason(tmp_path / "a.png") == "9000x10000 pixels, at most 89,478,485 are read: shrink it first"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in reason(tmp_path / "missing.png")
    assert "Is a directory" in reason(tmp_path)


def test_formats_that_start_other_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="not an image, or damaged at its beginning"):
        decode(tmp_path / "a.png")


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((8, 8), 255, dtype=numpy.uint16)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", channels=1).max() == 1
