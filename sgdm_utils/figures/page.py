"""The report: one HTML file that holds everything it shows and asks nothing of any network.

Sections are made of figures, tables and picture cells; all pictures of one condition share one
sprite (a column of cells), so a picture that is shown in the gallery and in the explorer is stored
once. Without JavaScript everything but the explorer is there. A content security policy forbids the
page to load anything from elsewhere.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from sgdm_utils.workflow.atomic import atomic_file

ASSETS = Path(__file__).parent / "assets"
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
MIME = {"png": "image/png", "jpeg": "image/jpeg"}


class ReportError(ValueError):
    """Something cannot be put into the page, or the page would be too large."""


@dataclass(frozen=True)
class Sprite:
    """Pictures of one kind, one below the other in one image.

    Attributes
    ----------
    name : str
        Class of the cells in the page, letters, digits, '-' and '_' only.
    uri : str
        The image as a data address.
    n : int
        How many pictures it holds.
    """

    name: str
    uri: str
    n: int

    @property
    def css(self) -> str:
        """The rule that gives cells of this class their image."""
        return f".{self.name}{{background-image:url({self.uri});background-size:100% {self.n}00%}}"


def data_uri(content: bytes, kind: Literal["png", "jpeg"] = "png") -> str:
    """An image as an address that holds the image itself."""
    return f"data:{MIME[kind]};base64,{base64.b64encode(content).decode()}"


def sprite(
    name: str,
    pictures: np.ndarray,
    kind: Literal["png", "jpeg"] = "png",
    quality: int = 90,
    colours: int | None = None,
) -> Sprite:
    """Stack pictures into a sprite.

    Parameters
    ----------
    name : str
    pictures : uint8 array of shape (n, height, width, 3) or (n, height, width)
    kind : 'png' (exact) or 'jpeg' (smaller; colours at full resolution)
    quality : int, of a jpeg
    colours : int or None, reduce a png to a palette of so many colours

    Raises
    ------
    ReportError
        For a name that is no class name, or arrays of another type or shape.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or name[0].isdigit():
        raise ReportError(f"{name!r} cannot be the class of a sprite: letters, digits, '-', '_'")
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or not len(pictures):
        raise ReportError(
            f"sprite {name}: {pictures.dtype} {pictures.shape}, expected uint8 (n, height, width) "
            "or (n, height, width, 3)"
        )
    image = Image.fromarray(pictures.reshape(-1, *pictures.shape[2:]))
    if colours:
        image = image.quantize(colours, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if kind == "jpeg" else {"optimize": True}
    image.save(stream, format=kind, **options)
    return Sprite(name, data_uri(stream.getvalue(), kind), len(pictures))


def cell(of: Sprite, index: int, label: str) -> str:
    """One picture of a sprite; the label is what a screen reader says."""
    if not 0 <= index < of.n:
        raise ReportError(f"sprite {of.name} holds {of.n} pictures, there is no number {index}")
    place = 100 * index / max(1, of.n - 1)
    return (
        f'<span class="pic {of.name}" role="img" aria-label="{html.escape(label, quote=True)}" '
        f'style="background-position:0 {place:.4f}%"></span>'
    )


def figure(png: bytes, alt: str, caption: str) -> str:
    """A figure with its caption; `alt` says in words what is to be seen."""
    width, height = Image.open(io.BytesIO(png)).size
    return (
        f'<figure><img src="{data_uri(png)}" width="{width}" height="{height}" '
        f'alt="{html.escape(alt, quote=True)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def number(value: object, digits: int = 3) -> str:
    """A number as people read it; an empty string for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating):
        return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def p_text(p: float) -> str:
    """A p-value, never as zero."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(frame: pd.DataFrame, caption: str, rows_are: Sequence[str] = ()) -> str:
    """A data frame as an HTML table; numbers are aligned, `rows_are` are headings of their rows."""
    heads = "".join(f'<th scope="col">{html.escape(str(c))}</th>' for c in frame.columns)
    body = []
    for row in frame.to_dict("records"):
        cells = []
        for name, value in row.items():
            text = html.escape(value if isinstance(value, str) else number(value))
            kind = ' class="num"' if _is_numeric(value) else ""
            cells.append(
                f'<th scope="row">{text}</th>' if name in rows_are else f"<td{kind}>{text}</td>"
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"{_region('scroll', caption)}<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Content that is folded away until somebody asks for it."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def gallery(
    items: Sequence[Mapping[str, str]],
    columns: Iterable[tuple[str, str, Sprite]],
    caption: str,
) -> str:
    """A table of all reconstructions: one row for each item, one column for each sprite.

    Parameters
    ----------
    items : sequence of mappings with `id` and `concept`
    columns : (group, label, sprite); neighbours with one group share a heading
    caption : str
    """
    columns = list(columns)
    groups: list[list] = []
    for group, _, _ in columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    begins = [k > 0 and columns[k][0] != columns[k - 1][0] for k in range(len(columns))]
    first = [' class="first"' if begin else "" for begin in begins]
    top = "".join(
        f'<th scope="colgroup" colspan="{n}"{mark}>{html.escape(g)}</th>'
        for (g, n), mark in zip(groups, [""] + [' class="first"'] * len(groups), strict=False)
    )
    heads = "".join(
        f'<th scope="col"{mark}>{html.escape(label)}</th>'
        for (_, label, _), mark in zip(columns, first, strict=True)
    )
    body = []
    for i, item in enumerate(items):
        concept = item["concept"]
        cells = "".join(
            f"<td{mark}>{cell(of, i, f'{group} {label}: {concept}'.strip())}</td>"
            for (group, label, of), mark in zip(columns, first, strict=True)
        )
        name = f"{html.escape(concept)}<small>{html.escape(item['id'])}</small>"
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        f"{_region('scroll gallery', caption)}<table><caption>{html.escape(caption)}</caption>"
        f'<thead><tr><th rowspan="2" scope="col">test picture</th>{top}</tr>'
        f"<tr>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def pack_int8(values: np.ndarray) -> dict[str, object]:
    """Numbers for the page at 8 bits: ``{"scale": per first axis, "data": base64}``.

    Parameters
    ----------
    values : float array of shape (n, ...); row i is stored as int8 times scale[i]
    """
    values = np.asarray(values, dtype=np.float64)
    scale = np.abs(values.reshape(len(values), -1)).max(axis=1) / 127
    scale = np.where(scale > 0, scale, 1.0)
    packed = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    return {"scale": scale.round(6).tolist(), "data": base64.b64encode(packed.tobytes()).decode()}


def explorer(data: Mapping[str, object]) -> str:
    """The explorer's place in the page and its data; the script fills it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<noscript><p>The explorer needs JavaScript. Everything else on this page does not: all "
        "reconstructions are in the table below.</p></noscript>"
        '<div id="explorer" hidden></div>'
        f'<script type="application/json" id="explorer-data">{text}</script>'
    )


def write_page(
    path: Path,
    title: str,
    headline: str,
    facts: Sequence[str],
    sections: Sequence[tuple[str, str, str]],
    sprites: Iterable[Sprite],
    footer: str,
    limit_mb: float = 6.0,
) -> float:
    """Write the page, whole or not at all.

    Parameters
    ----------
    path : Path
    title, headline : str
    facts : short sentences below the headline
    sections : (id, heading, html)
    sprites : every sprite that a cell uses
    footer : str
    limit_mb : float, refuse a page above that size

    Returns
    -------
    float
        Size in units of 1e6 bytes.

    Raises
    ------
    ReportError
        When the page would be larger than `limit_mb`, or two sprites share a name.
    """
    sprites = list(sprites)
    names = [s.name for s in sprites]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ReportError(f"two sprites are called {', '.join(twice)}")
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h">'
        f'<h2 id="{key}-h">{html.escape(name)}</h2>{content}</section>'
        for key, name, content in sections
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title>"
        f"<style>{style}{''.join(s.css for s in sprites)}</style></head>"
        '<body><a class="skip" href="#main">Skip to the content</a>'
        f'<header><p class="kicker">{html.escape(title)}</p>'
        f"<h1>{html.escape(headline)}</h1>{''.join(f'<p>{html.escape(f)}</p>' for f in facts)}"
        f'<nav aria-label="Sections">{links}</nav></header><main id="main">{body}</main>'
        f"<footer>{html.escape(footer)}</footer><script>{script}</script></body></html>\n"
    )
    content = page.encode("utf-8")
    size = len(content) / 1e6
    if size > limit_mb:
        raise ReportError(
            f"the page would be {size:.1f} MB, more than {limit_mb:g}: show fewer items in the "
            "explorer, lower the quality of its pictures, or raise the limit"
        )
    with atomic_file(Path(path)) as part:
        part.write_bytes(content)
    return size


def _region(css: str, label: str) -> str:
    """Opens a box that scrolls by itself, and can be reached by keyboard to do so."""
    label = html.escape(label, quote=True)
    return f'<div class="{css}" tabindex="0" role="region" aria-label="{label}">'


def _is_numeric(value: object) -> bool:
    if isinstance(value, str):
        return bool(value) and value.lstrip("<+-= ")[:1].isdigit()
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
