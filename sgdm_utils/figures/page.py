"""The report: one HTML file that holds everything it shows and asks nothing of any network.

Sections are made of figures, tables and picture cells; all pictures of one condition share one
sprite (a column of cells), so a picture that is shown in the gallery and in the explorer is stored
once. Without JavaScript everything but the explorer is there. A content security policy forbids the
page to load anything from elsewhere. The markup is in two templates, ``assets/page.html`` and
``assets/parts.html``, which escape whatever they did not make themselves.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from sgdm_utils.figures.numbers import number
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.atomic import atomic_file
from sgdm_utils.workflow.downloads.catalogue import load_catalogue

ASSETS = Path(__file__).parent / "assets"
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
    def css(self) -> Markup:
        """The rule that gives cells of this class their image."""
        rule = f"background-image:url({self.uri});background-size:100% {self.n}00%"
        return Markup(f".{self.name}{{{rule}}}")


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


def cell(of: Sprite, index: int, label: str) -> Markup:
    """One picture of a sprite; the label is what a screen reader says."""
    if not 0 <= index < of.n:
        raise ReportError(f"sprite {of.name} holds {of.n} pictures, there is no number {index}")
    return _parts().cell(of, index, 100 * index / max(1, of.n - 1), label)


def figure(png: bytes, alt: str, caption: str) -> Markup:
    """A figure with its caption; `alt` says in words what is to be seen."""
    return _parts().figure(data_uri(png), Image.open(io.BytesIO(png)).size, alt, caption)


def table(frame: pd.DataFrame, caption: str, rows_are: Sequence[str] = ()) -> Markup:
    """A data frame as an HTML table; numbers are aligned, `rows_are` are headings of their rows."""
    rows = [
        [
            (name, value if isinstance(value, str) else number(value), _is_numeric(value))
            for name, value in row.items()
        ]
        for row in frame.to_dict("records")
    ]
    return _parts().table(list(frame.columns), rows, rows_are, caption)


def details(summary: str, content: str) -> Markup:
    """Content that is folded away until somebody asks for it; text that is no markup is escaped."""
    return _parts().details(summary, content)


def gallery(
    items: Sequence[Mapping[str, str]],
    columns: Iterable[tuple[str, str, Sprite]],
    caption: str,
) -> Markup:
    """A table of all reconstructions: one row for each item, one column for each sprite.

    Parameters
    ----------
    items : sequence of mappings with `id` and `concept`
    columns : (group, label, sprite); neighbours with one group share a heading
    caption : str
    """
    groups = []
    for group, members in itertools.groupby(columns, key=lambda column: column[0]):
        cells = []
        for _, label, of in members:
            names = [f"{group} {label}: {item['concept']}".strip() for item in items]
            pictures = [cell(of, i, name) for i, name in enumerate(names)]
            cells.append({"label": label, "cells": pictures})
        groups.append((group, cells))
    return _parts().gallery(items, groups, caption)


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


def explorer(data: Mapping[str, object]) -> Markup:
    """The explorer's place in the page and its data; the script fills it.

    Raises
    ------
    ValueError
        For NaN and infinity, which JSON does not have.
    """
    return _parts().explorer(data)


class Page:
    """The page while a notebook fills it: figures, then sections, then the sentences at its head.

    Parameters
    ----------
    folder : Path, gets ``index.html`` and ``figures/<name>.png``
    title : str
    dpi : int, dots per inch of the figures
    limit_mb : float, refuse to write a page above that size

    Attributes
    ----------
    sections : list of (id, heading, content); content that is no markup is escaped

    Examples
    --------
    >>> page = figures.Page(folder, "SGDM study: demo")
    >>> page.keep("retrieval", "Retrieval of the seen picture. Dashed: chance.")
    >>> page.add("figures", "Figures", page.figure("retrieval"))
    >>> page.write("Nothing was shown.", [], "seed 0")
    """

    table, details, gallery, explorer = map(staticmethod, (table, details, gallery, explorer))

    def __init__(self, folder: Path, title: str, *, dpi: int = 160, limit_mb: float = 6.0) -> None:
        self.folder, self.title = Path(folder), title
        self.sections: list[tuple[str, str, Markup]] = []
        self._dpi, self._limit_mb = dpi, limit_mb
        self._captions: dict[str, str] = {}

    @property
    def path(self) -> Path:
        """Where the page is written."""
        return self.folder / "index.html"

    @property
    def figure_names(self) -> list[str]:
        """Names of the figures that were kept, in their order."""
        return list(self._captions)

    @property
    def files(self) -> list[Path]:
        """The page and the figures as files."""
        return [self.path, *map(self._png, self._captions)]

    def keep(self, name: str, caption: str) -> None:
        """Save pyplot's current figure as ``figures/<name>.png``, for the page; then show it."""
        self._png(name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._png(name)) as part:
            plt.savefig(part, format="png", dpi=self._dpi)
        self._captions[name] = caption
        plt.show()

    def figure(self, name: str) -> Markup:
        """A figure that was kept; the first sentence of its caption stands for it in words."""
        caption = self._captions[name]
        return figure(self._png(name).read_bytes(), caption.split(". ")[0], caption)

    def add(self, key: str, heading: str, *parts: str) -> None:
        """Add a section of tables, figures and what else the methods of this class return."""
        self.sections.append((key, heading, Markup("").join(parts)))

    def made_from(self, result: Artifact, data: Artifact) -> Markup:
        """What the numbers were made from: code, packages, data, licence, parameters of all steps.

        Parameters
        ----------
        result : Artifact
            The reconstructions.
        data : Artifact
            The data set that they go back to.
        """
        git = result.manifest["provenance"].get("git") or {}
        tree = {True: "with changes", False: "as committed"}.get(git.get("dirty"), "not known")
        entries = load_catalogue()
        roots = {entry.raw_dir.name: entry for entry in entries.values()}
        chosen = entries.get(str(data.parameters.get("catalogue") or ""))
        entry = chosen or roots.get(str(data.notes.get("raw_root")))
        licence = (
            f"{entry.title}: {entry.licence}"
            if entry
            else "of the data set: not in data/licences.yaml"
        )
        if data.notes.get("dataset") == "simulated":
            licence = "simulated by this project: MIT"
        facts = {
            "commit": git.get("commit") or "not known",
            "working tree": tree,
            "requirements.lock": result.identity["lock"] or "not there",
            "data set": data.content_digest,
            "recording": data.identity["raw"] or "made by 00_data",
            "licence": licence,
            result.identity["stage"]: result.content_digest,
        }
        steps = {**result.identity["upstream"], result.identity["stage"]: result.parameters}
        values = [
            {"step": stage, "parameter": name, "value": json.dumps(value)}
            for stage, parameters in steps.items()
            for name, value in parameters.items()
        ]
        rows = pd.DataFrame({"what": facts.keys(), "which": facts.values()})
        return details("code, packages, data, licence", table(rows, "", ["what"])) + details(
            "all parameters", table(pd.DataFrame(values), "", ["step", "parameter"])
        )

    def write(
        self, headline: str, facts: Sequence[str], footer: str, sprites: Iterable[Sprite] = ()
    ) -> float:
        """Write the page, whole or not at all.

        Parameters
        ----------
        headline : str
        facts : short sentences below the headline
        footer : str
        sprites : every sprite that a cell uses

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
        text = _templates().get_template("page.html").render(
            title=self.title, headline=headline, facts=facts, sections=self.sections,
            sprites=sprites, footer=footer,
            style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
            script=Markup((ASSETS / "report.js").read_text(encoding="utf-8")),
        )  # fmt: skip
        content = text.encode("utf-8")
        size = len(content) / 1e6
        if size > self._limit_mb:
            raise ReportError(
                f"the page would be {size:.1f} MB, more than {self._limit_mb:g}: show fewer items "
                "in the explorer, lower the quality of its pictures, or raise the limit"
            )
        with atomic_file(self.path) as part:
            part.write_bytes(content)
        return size

    def _png(self, name: str) -> Path:
        return self.folder / "figures" / f"{name}.png"


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    compact = {"allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = compact
    return environment


@functools.cache
def _parts() -> jinja2.environment.TemplateModule:
    return _templates().get_template("parts.html").module


def _is_numeric(value: object) -> bool:
    if isinstance(value, str):
        return bool(value) and value.lstrip("<+-= ")[:1].isdigit()
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
