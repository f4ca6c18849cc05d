"""Picture files: what was shown is read, by whatever door, or refused with what to do."""

from __future__ import annotations

import json
import re
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sgdm_utils.datasets.leakage.copies import assert_pictures
from sgdm_utils.metrics.folders import score_folders
from sgdm_utils.stimuli.files import PictureError, read_picture, read_rgb
from sgdm_utils.stimuli.pictures import from_files

SIDE, GREY = 32, (128, 128, 128)
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
COLOURS[0, 0] = 255
PICTURE = COLOURS.repeat(8, 0).repeat(8, 1).astype(np.uint8)
SHADES = PICTURE[..., :1].repeat(3, -1)
ALPHA = np.zeros((SIDE, SIDE), np.uint8)
ALPHA[8:24, 8:24] = 255
ALPHA[8:24, 16:24] = 51
CUT = np.round(
    PICTURE * (a := ALPHA[..., None] / 255) + np.array(GREY) * (1 - a)
)  # what is on a grey screen
ON_GREY = {"background": "#808080"}


def deep_png(path, pixels) -> None:
    """A PNG of 16 bits per channel, which Pillow does not write."""
    rows = pixels.astype(">u2").reshape(len(pixels), -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = {3: 2, 4: 6}[pixels.shape[-1]]
    header = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), 16, kind, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
            crc = struct.pack(">I", zlib.crc32(name + data))
            file.write(struct.pack(">I", len(data)) + name + data + crc)


def saved(convert=None, suffix="png", pixels=PICTURE, **options):
    """Pixels through Pillow, which may convert them first."""

    def write(path):
        file = path.with_suffix("." + suffix)
        picture = Image.fromarray(pixels)
        picture = convert(picture) if convert else picture
        picture.save(file, **options)
        return file

    return write


def turned(suffix, **options):
    """Lying on its side, with the tag (6) that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    side = np.ascontiguousarray(np.rot90(PICTURE))
    return saved(suffix=suffix, pixels=side, exif=exif, **options)


def deep(pixels):
    def write(path):
        deep_png(file := path.with_suffix(".png"), pixels)
        return file

    return write


def imsave(path):
    import matplotlib.pyplot as plt

    plt.imsave(file := path.with_suffix(".png"), PICTURE)
    return file


def tiff(pixels, **options):
    def write(path):
        import tifffile

        tifffile.imwrite(file := path.with_suffix(".tif"), pixels, **options)
        return file

    return write


def palette(picture):
    return picture.convert("P", palette=Image.Palette.ADAPTIVE)


def with_alpha(picture):
    picture = picture.convert("RGB")
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


FIRST = tuple(int(v) for v in COLOURS[1, 1])
HOLED = np.where((PICTURE == FIRST).all(-1, keepdims=True), GREY, PICTURE)
WIDE = np.concatenate([PICTURE[:, :8] ^ 255, PICTURE, PICTURE[:, :8] ^ 255], 1)
BARS = np.full((48, 48, 3), GREY)
BARS[8:40] = WIDE
RGB16 = PICTURE.astype(np.uint16) * 257
FORMS = {  # writer, what was shown, the statement that it needs, largest difference
    "RGB": (saved(), PICTURE, {}, 0),
    "RGBA, opaque": (imsave, PICTURE, {}, 0),
    "RGBA": (saved(with_alpha), CUT, ON_GREY, 1),
    "LA": (saved(lambda p: with_alpha(p.convert("L")).convert("LA"), pixels=SHADES),
           np.round(SHADES * a + 128 * (1 - a)), ON_GREY, 1),
    "palette": (saved(palette), PICTURE, {}, 0),
    "palette, tRNS": (saved(lambda p: with_alpha(p).quantize(32)), CUT, ON_GREY, 8),
    "RGB, tRNS": (saved(transparency=FIRST), HOLED, ON_GREY, 0),
    "RGB, tRNS of no pixel": (saved(transparency=(1, 2, 3)), PICTURE, {}, 0),
    "grey": (saved(pixels=SHADES[..., 0]), SHADES, {}, 0),
    "black and white": (saved(lambda p: p.convert("L").point(lambda v: 255 * (v > 99), "1"),
                              pixels=SHADES), 255 * (SHADES > 99), {}, 0),
    "16 bits, grey": (saved(pixels=SHADES[..., 0].astype(np.uint16) * 257), SHADES, {}, 0),
    "16 bits, RGB": (deep(RGB16), PICTURE, {}, 0),
    "16 bits, RGB, between": (deep((RGB16 // 257) * 256 + 200), PICTURE, {}, 0),
    "16 bits, RGBA": (deep(np.concatenate([RGB16, ALPHA[..., None].astype(int) * 257], -1)),
                      CUT, ON_GREY, 1),
    "16 bits, TIFF": (tiff(RGB16, photometric="rgb"), PICTURE, {}, 0),
    "16 bits, grey TIFF": (tiff(SHADES[..., 0].astype(np.uint16) * 257), SHADES, {}, 0),
    "16 bits, white is 0": (tiff(65535 - SHADES[..., 0].astype(np.uint16) * 257,
                                 photometric="miniswhite"), SHADES, {}, 0),
    "white is 0": (tiff(255 - SHADES[..., 0], photometric="miniswhite"), SHADES, {}, 0),
    "turned PNG": (turned("png"), PICTURE, {}, 0),
    "turned TIFF": (turned("tif"), PICTURE, {}, 0),
    "turned WebP": (turned("webp", lossless=True), PICTURE, {}, 0),
    "turned JPEG": (turned("jpg", quality=100, subsampling=0), PICTURE, {}, 6),
    "wide, cropped": (saved(pixels=WIDE), PICTURE, {"not_square": "crop"}, 0),
    "wide, padded": (saved(pixels=WIDE), BARS, {"not_square": "pad"} | ON_GREY, 0),
    "high, padded": (saved(pixels=np.rot90(WIDE).copy()), np.rot90(BARS),
                     {"not_square": "pad", "background": [128, 128, 128]}, 0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_was_shown_is_read_by_every_door(form, tmp_path):
    """Without the statement that a form needs it is refused, and what the refusal asks for helps."""
    write, shown, statement, most = FORMS[form]
    for side in ("stimuli", "other"):
        (tmp_path / side / "deeper").mkdir(parents=True)
    file = write(tmp_path / "stimuli" / "deeper" / "cat")
    images = pd.DataFrame({"image_id": ["cat"], "concept": "cat", "split": "train",
                           "stim_file": f"deeper/{file.name}"})  # fmt: skip
    doors = {
        "reader": lambda: read_rgb(file),
        "stimuli": lambda: from_files(tmp_path / "stimuli", images, shown.shape[0]).pictures[0],
        "features": lambda: read_picture(file, shown.shape[0]),
        "copies": lambda: assert_pictures(images, [file]),
        "scores": lambda: score_folders(file.parent, file.parent, names=["mse"]),
    }
    for _ in statement:
        for door in doors.values():
            with pytest.raises(PictureError, match=re.escape(str(file))) as refused:
                door()
        asked = re.search(r'{"(\w+)"', str(refused.value))[1]
        place = tmp_path / "stimuli" / "stimuli.json"
        said = json.loads(place.read_text()) if place.is_file() else {}
        place.write_text(json.dumps(said | {asked: statement[asked]}))
    for name, door in doors.items():
        seen = door()
        if name in ("reader", "stimuli", "features"):
            assert seen.shape == shown.shape and seen.dtype == np.uint8, name
            assert np.abs(seen.astype(int) - shown).max() <= most, name
        elif name == "scores":
            assert seen["value"].item() == 0 and seen.attrs["copies"] == 1
    if statement:  # as arguments, they come before the file
        place.write_text('{"background": "red", "not_square": "crop"}')
        assert np.abs(read_rgb(file, **statement).astype(int) - shown).max() <= most


def frames(path, suffix):
    pictures = [Image.fromarray(PICTURE), Image.fromarray(PICTURE ^ 255)]
    file = path.with_suffix(suffix)
    pictures[0].save(file, save_all=True, append_images=pictures[1:])
    return file


def content(data):
    def write(path):
        (file := path.with_suffix(".png")).write_bytes(data)
        return file

    return write


REFUSED = {
    "animated GIF": (lambda p: frames(p, ".gif"), "holds 2 pictures"),
    "animated PNG": (lambda p: frames(p, ".png"), "holds 2 pictures"),
    "pages": (lambda p: frames(p, ".tif"), "holds 2 pictures"),
    "floating point": (tiff(SHADES[..., 0].astype(np.float32) / 255), "of mode F"),
    "32 bits": (saved(suffix="tif", pixels=SHADES[..., 0].astype(np.int32)), "of mode I:"),
    "CMYK": (saved(lambda p: p.convert("CMYK"), suffix="jpg"), "of mode CMYK"),
    "12 of 16 bits": (tiff(SHADES[..., 0].astype(np.uint16) * 16), "uses the lower 12"),
    "8 of 16 bits": (deep(PICTURE.astype(np.uint16)), "uses the lower 12"),
    "16 bits and tRNS": (
        saved(pixels=SHADES[..., 0].astype(np.uint16) * 257, transparency=65535),
        "16 bits and a transparent colour",
    ),
    "no picture": (content(b"<html>not found</html>"), "cannot be read as a picture"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_leaves_open_what_was_shown_is_refused(form, tmp_path):
    write, message = REFUSED[form]
    with pytest.raises(PictureError, match=message):
        read_rgb(write(tmp_path / "cat"), "white", "crop")


def test_a_statement_that_cannot_be_read_is_refused(tmp_path):
    file = saved(with_alpha)(tmp_path / "cat")
    for text, message in {
        "{": "stimuli.json cannot be read as JSON", "[]": "it holds a list", '{"background": "gray-ish"}':
        "'gray-ish' of .*cat.png is no colour", '{"background": [0, 0, 256]}': "is no colour",
        '{"background": 7}': "is no colour",
    }.items():  # fmt: skip
        (tmp_path / "stimuli.json").write_text(text)
        with pytest.raises(PictureError, match=message):
            read_rgb(file)
