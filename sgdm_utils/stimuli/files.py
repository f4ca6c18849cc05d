"""The one reader of picture files: stimuli, features, the search for copies, folders that are scored.

Some files leave open what a person saw: what lay behind a transparent picture, what became of one
that is not square. `stimuli.json` in the folder of the pictures, or above it, says so::

    {"background": "#808080", "not_square": "crop"}

`background` is a colour (a name, #rrggbb, or three numbers from 0 to 255), `not_square` is `crop`
(the central square was shown) or `pad` (the whole, on the background). Without it they are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image, ImageColor, ImageOps

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.formats import read_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
STATEMENT = "stimuli.json"
_LEVELS = 4  # folders that a statement may stand above a picture
LARGEST = (
    40_000_000  # pixels of a picture, after padding to a square; cameras have 12 to 30 million
)
Colour = str | tuple[int, int, int]


class PictureError(DatasetError):
    """A picture file does not say what was seen: the message names it and what to do."""


def read_rgb(
    path: str | Path, background: Colour | None = None, not_square: str | None = None
) -> np.ndarray:
    """Read a picture as it was shown: 8 bits of red, green and blue, square.

    Palettes and grey become RGB; a picture with 16 bits loses its lower ones [1]_; one that EXIF
    turns is turned; what is transparent is laid onto the background. Colour profiles are not applied.

    Parameters
    ----------
    path : path
    background : colour behind transparent pixels; None takes that of `stimuli.json`
    not_square : 'crop' or 'pad'; None takes that of `stimuli.json`

    Returns
    -------
    uint8 array of shape (side, side, 3)

    Raises
    ------
    PictureError
        Unreadable, cut short, more than `LARGEST` pixels, several pictures in one file,
        floating-point or 32-bit values, 16 bits of which the upper ones are unused, CMYK and the
        like; transparent or not square with nothing said of it.

    References
    ----------
    .. [1] W3C, Portable Network Graphics (third edition), section 13.12, at most one of 255 levels.
    """
    path = Path(path)
    with reading(path, "a picture", "Write it again as PNG", PictureError):
        return _read(path, background, not_square)


def _read(path: Path, background: Colour | None, not_square: str | None) -> np.ndarray:
    with Image.open(path) as file:
        _require_size(path, *file.size)
        if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":  # a camera's preview
            raise PictureError(
                f"{path} holds {file.n_frames} pictures: write the one that was shown"
            )
        deep = any(re.search(r"(?<!BGR);16", str(tile[3])) for tile in file.tile)
        white_is_zero = file.format == "TIFF" and file.tag_v2.get(262) == 0
        file.load()
        file = ImageOps.exif_transpose(file)
    see_through = file.has_transparency_data
    if deep and "transparency" in file.info:
        raise PictureError(f"{path} has 16 bits and a transparent colour: export it as 8-bit RGBA")
    if file.mode.startswith("I;16"):
        file = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
        if white_is_zero:  # Pillow 12 turns these values round in 8 bits only
            file = ImageOps.invert(file)
    if file.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise PictureError(
            f"{path} is of mode {file.mode}: export it as 8-bit RGB, as it was shown"
        )
    if deep and np.asarray(file.convert("RGB")).max() < 16:
        raise PictureError(
            f"{path} has 16 bits and uses the lower 12 at most, which is black: export it as 8-bit "
            "RGB, scaled as it was shown"
        )
    if see_through:
        file = file.convert("RGBA")
        if file.getextrema()[3][0] < 255:
            canvas = Image.new("RGB", file.size, _background(path, background, "is transparent"))
            canvas.paste(file, mask=file.getchannel("A"))
            file = canvas
    file = file.convert("RGB")
    width, height = file.size
    if width != height:
        how = not_square or stated(path).get("not_square")
        if how not in ("crop", "pad"):
            raise PictureError(
                f"{path} is {width} x {height} pixels, and pictures are square here: say what was "
                'shown, as {"not_square": "crop"} (the central square) or "pad" (all of it, on '
                f"`background`) in {path.parent / STATEMENT} or a folder above, or by --not-square"
            )
        side = (min if how == "crop" else max)(width, height)
        _require_size(path, side, side)
        colour = _background(path, background, "is to be padded") if how == "pad" else None
        canvas = Image.new("RGB", (side, side), colour or (0, 0, 0))
        canvas.paste(file, ((side - width) // 2, (side - height) // 2))
        file = canvas
    return np.array(file)


def read_picture(path: str | Path, size: int | tuple[int, int]) -> np.ndarray:
    """Read a picture (`read_rgb`) and bring it to `size`, or (height, width), pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    picture = Image.fromarray(read_rgb(path))
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def stated(path: str | Path) -> dict[str, object]:
    """What the nearest `stimuli.json` says of a picture; empty without one.

    Raises
    ------
    PictureError
        For a file that is no JSON mapping.
    """
    for folder in list(Path(path).parents)[:_LEVELS]:
        file = folder / STATEMENT
        if not file.is_file():
            continue
        content = read_json(file, remedy="Correct it, as {...}", error=PictureError)
        return {k: content[k] for k in ("background", "not_square") if k in content}
    return {}


def leading_out(folder: Path, names: Iterable[str], root: Path | None = None) -> dict[str, str]:
    """Tell which names of pictures lead out of a data set.

    A name that stands in somebody's table may mean any file of this machine, and what is read as a
    picture may end up in a report. So a picture lies below the folder of the pictures or the root of the
    data set, *after* links were followed. That folder, and folders above it, may themselves be links:
    nothing in the data chose them, the user did. Pictures that git-annex keeps in its store are where
    they should be.

    Parameters
    ----------
    folder : Path, of the pictures
    names : str, relative to it, as the data have them
    root : Path, of the data set

    Returns
    -------
    dict of name to what is wrong with it, empty where nothing is
    """
    real = folder.resolve()
    allowed = [real, *([root.resolve()] if root else [])]
    allowed += [(top / ".git").resolve() / "annex/objects" for top in (real, *real.parents)]
    links: dict[Path, set[str] | str] = {}  # of each folder, or why it is none of the data set

    def leads_out(path: Path) -> str:
        try:
            target = path.resolve()
        except (OSError, RuntimeError):
            return "is a link that leads back to itself"
        inside = any(target.is_relative_to(place) for place in allowed)
        return "" if inside else f"leads to {target}, out of the data set"

    found = {}
    for name in dict.fromkeys(map(str, names)):
        if "\0" in name or not name.strip():
            found[name] = "is no name of a file"
        elif name.startswith(("/", "\\", "~")) or PureWindowsPath(name).drive:
            found[name] = "is an absolute path"
        elif ".." in re.split(r"[/\\]", name):
            found[name] = "leads upwards (..)"
        if name in found:
            continue
        path = folder / name
        if path.parent not in links:
            links[path.parent] = leads_out(path.parent) or _links_in(path.parent)
        beside = links[path.parent]
        if why := beside if isinstance(beside, str) else path.name in beside and leads_out(path):
            found[name] = why
    return found


def require_inside(
    folder: Path, names: Iterable[str], root: Path | None, where: Callable[[str], str]
) -> None:
    """Refuse names of pictures that lead out of a data set, see `leading_out`.

    Parameters
    ----------
    where : function of a name to the file and line that it is from

    Raises
    ------
    PictureError
    """
    for name, why in leading_out(folder, names, root).items():
        raise PictureError(
            f"{where(name)}: the picture {name!r} {why}. A table must not reach other files of this "
            f"machine: copy the picture into {folder} and correct its name. If all pictures are kept "
            f"elsewhere, let {folder} itself be a link to their folder"
        )


def _links_in(folder: Path) -> set[str]:
    """Names of the links in a folder, by one listing: single look-ups are slow on a network disk."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()


def _require_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= LARGEST:
        raise PictureError(
            f"{path} has {width} x {height} pixels, {LARGEST} are the most: write it again, smaller"
        )


def _background(path: Path, given: Colour | None, why: str) -> tuple[int, int, int]:
    colour = given if given is not None else stated(path).get("background")
    if colour is None:
        raise PictureError(
            f"{path} {why}: say on which colour it was shown, as "
            f'{{"background": "#808080"}} in {path.parent / STATEMENT} or a folder above, or by '
            "--background"
        )
    try:
        red, green, blue = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
        if all(value in range(256) for value in (red, green, blue)):
            return red, green, blue
    except (ValueError, TypeError):
        pass
    raise PictureError(
        f"the background {colour!r} of {path} is no colour: give a name, #rrggbb, or three numbers "
        "from 0 to 255"
    )
