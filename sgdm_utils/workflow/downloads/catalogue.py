"""What may be fetched, from where, under which licence: the catalogue `data/licences.yaml`.

The catalogue is data, not code: one entry for each data set and each set of pretrained weights that
the study can name. Everything in it that nobody of this project has seen at its source carries
`verified: false`; a checksum that is not known is null and never made up.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import paths, schemas

if TYPE_CHECKING:
    import jsonschema


class CatalogueError(DatasetError):
    """The catalogue is wrong, or holds no entry of this name: all findings are listed."""


class LicenceError(DatasetError):
    """The licence of an entry has to be accepted by its name, and was not."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of an entry.

    Attributes
    ----------
    path : str, below the folder of the data set, with forward slashes
    url : str
    size : int or None, bytes, exact
    sha256, md5 : str or None
    sha256_prefix : str or None
        Beginning of the SHA-256 where no more was published (torchvision names its files so).
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    sha256_prefix: str | None = None

    @property
    def known_hash(self) -> str | None:
        """The published checksum as pooch writes it, `<algorithm>:<digits>`."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"md5:{self.md5}" if self.md5 else None


@dataclass(frozen=True)
class Entry:
    """One data set or set of weights; the keys of the catalogue, see its head for their meaning."""

    name: str
    kind: str
    title: str
    about: str
    holder: str
    homepage: str
    licence: str
    must_accept: bool
    redistribution: str
    size: int | None
    verified: bool
    citation: str
    must_not: tuple[str, ...]
    forms: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    manual: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    licence_text: str = ""
    size_note: str = ""
    after: tuple[str, ...] = ()
    folder: str = ""

    @property
    def raw_dir(self) -> Path:
        """Where the files go by default, `data/raw/<folder>`; forms of one set share a folder."""
        return paths.raw_dir(self.folder or self.name)


def load_catalogue(path: Path | None = None) -> dict[str, Entry]:
    """Read and check the catalogue.

    Parameters
    ----------
    path : Path, optional, `data/licences.yaml` of the checkout by default

    Returns
    -------
    dict of str to Entry, in the order of the file

    Raises
    ------
    CatalogueError
        No such file, no YAML, a key twice, or entries that break the rules; all are listed.
    """
    # not paths.data_dir(): SGDM_DATA moves recordings elsewhere, the catalogue stays with the code
    own = paths.project_root() / "data" / "licences.yaml"
    path = Path(path) if path else own
    shown = paths.relative(path)
    try:
        content = schemas.load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogueError(f"{shown} cannot be read ({error}). Restore it from git") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{shown} is no valid YAML: {error}") from error
    schema = json.loads((own.parent / "licences.schema.json").read_text(encoding="utf-8"))
    problems = [_problem(error) for error in schemas.violations(schema, content)]
    if not problems:
        problems = [p for name, entry in content.items() for p in _contradictions(name, entry)]
        problems += _collisions(content)
    if problems:
        raise CatalogueError(f"{shown} cannot be used:\n  " + "\n  ".join(sorted(problems)))
    return {name: _entry(name, entry) for name, entry in content.items()}


def find_entry(name: str, catalogue: Mapping[str, Entry] | Path | None = None) -> Entry:
    """Return one entry; a `CatalogueError` tells which names there are."""
    if not isinstance(catalogue, Mapping):
        catalogue = load_catalogue(catalogue)
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise CatalogueError(
            f"there is no data set {name!r} in the catalogue. {hint}There is: "
            f"{', '.join(catalogue)}"
        )
    return catalogue[name]


def require_licence(entry: Entry, accepted: str) -> None:
    """Refuse an entry whose licence must be accepted and was not, or not under its right name.

    Raises
    ------
    LicenceError
        Says which licence, who holds the rights, where to read it, and what to pass.
    """
    if not entry.must_accept or accepted == entry.licence:
        return
    found = f"{accepted!r} is not its licence" if accepted else "it was not"
    limits = "".join(f"\n  - {text}" for text in entry.must_not)
    raise LicenceError(
        f"{entry.name}: the licence must be accepted, and {found}.\n"
        f"  licence: {entry.licence}{f' ({entry.licence_text})' if entry.licence_text else ''}\n"
        f"  holder:  {entry.holder}\n"
        f"  address: {entry.homepage}\n"
        f"What must not be done:{limits}\n"
        f'When you have read it and agree: accept_licence="{entry.licence}" in Python, '
        f"--accept {entry.licence} on the command line"
    )


def readable(size: int | None) -> str:
    """A number of bytes as people read it, decimal units: `1.5 MB`; `size unknown` for None."""
    if size is None:
        return "size unknown"
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}"


def _entry(name: str, content: dict[str, Any]) -> Entry:
    rest = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    rest["must_accept"] = rest.pop("accept") == "required"
    rest["files"] = tuple(RemoteFile(**file) for file in content["files"])
    return Entry(name=name, **rest)


def _problem(error: jsonschema.ValidationError) -> str:
    """One finding in one line: where, what, and what to write instead."""
    where = schemas.place(error)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
        return f"{where}: unknown key {unknown[0]!r}; {hint}"
    hint = error.schema.get("description")
    return f"{where}: {error.message}" + (f". {hint}" if hint else "")


def _contradictions(name: str, entry: dict[str, Any]) -> Iterable[str]:
    """What a schema cannot say: keys that do not fit each other."""
    files = entry["files"]
    if not files and not entry["manual"]:
        yield f"{name}: neither files nor manual steps: nobody could obtain it"
    seen = [file["path"] for file in files]
    for path in sorted({path for path in seen if seen.count(path) > 1}):
        yield f"{name}.files: {path} stands there twice"
    limited = "-NC" in entry["licence"] or entry["licence"].startswith("LicenseRef-")
    if limited and entry["accept"] != "required":
        yield (
            f"{name}.accept: licence {entry['licence']} is not a plain open licence, so it must be "
            "required"
        )
    for index, file in enumerate(files):
        prefix = file.get("sha256_prefix")
        if prefix and file["sha256"] and not file["sha256"].startswith(prefix):
            yield f"{name}.files[{index}]: sha256 does not begin with sha256_prefix"


def _collisions(content: dict[str, Any]) -> Iterable[str]:
    """Find files of two entries that would overwrite each other in a folder that they share."""
    owner: dict[tuple[str, str], str] = {}
    for name, entry in content.items():
        for path in {file["path"] for file in entry["files"]}:
            first = owner.setdefault((entry.get("folder", name), path), name)
            if first != name:
                yield f"{name}.files: {path} is the same file in the same folder as of {first}"


def manual_route(entry: Entry, folder: Path, files: Iterable[RemoteFile]) -> str:
    """Tell how to get files by hand: which address, to which path, which command continues."""
    files, steps = list(files), list(entry.manual)
    shown = paths.relative(folder)
    if files:
        listing = "".join(
            f"\n     {file.url}\n       -> {shown}/{file.path} "
            f"({readable(file.size)}{_checksum_note(file)})"
            for file in files
        )
        steps += [f"On any machine with a network, open and save, then copy to:{listing}"]
        accept = f" --accept {entry.licence}" if entry.must_accept else ""
        if Path(folder).resolve() != entry.raw_dir.resolve():
            accept += f" --destination {shown}"
        steps += [
            "Continue with this command, which checks what is there and fetches only what is "
            f"missing:\n     python -m sgdm_utils fetch {entry.name}{accept}"
        ]
    else:
        steps += [f"Put the files below {shown}/; nothing else has to be told about them"]
    steps += entry.after
    lines = [f"By hand ({entry.homepage}):"]
    lines += [f"  {number}. {text.strip()}" for number, text in enumerate(steps, start=1)]
    return "\n".join(lines)


def describe(entry: Entry) -> str:
    """Everything the catalogue says about one entry, as text of several lines."""
    accept = f"  (must be accepted: --accept {entry.licence})" if entry.must_accept else ""
    size = readable(entry.size) + (f"; {entry.size_note}" if entry.size_note else "")
    seen = "seen at its source" if entry.verified else "SECOND-HAND: check it before relying on it"
    lines = [
        f"{entry.name}: {entry.title}",
        f"  what            {entry.about.strip()}",
        f"  licence         {entry.licence}{accept}",
        *([f"                  {entry.licence_text.strip()}"] if entry.licence_text else []),
        f"  holder          {entry.holder}",
        f"  redistribution  {entry.redistribution}",
        f"  size            {size}",
        f"  homepage        {entry.homepage}",
        *(f"                  {address}" for address in entry.addresses),
        f"  this entry      {seen}",
        f"  cite            {entry.citation.strip()}",
        *(f"  must not        {text.strip()}" for text in entry.must_not),
        *(f"  file            {f.path} ({readable(f.size)}{_checksum_note(f)})\n"
          f"                  {f.url}" for f in entry.files),
    ]  # fmt: skip
    return "\n".join([*lines, manual_route(entry, entry.raw_dir, entry.files)])


def listing(catalogue: Mapping[str, Entry]) -> str:
    """One line for each entry: name, size, licence, how it is obtained, title."""
    rows = [
        (e.name, readable(e.size), e.licence + ("*" if e.must_accept else ""),
         f"{len(e.files)} files" if e.files else "by hand", e.title)
        for e in catalogue.values()
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]])
        for row in rows
    ]
    return "\n".join([*lines, "* must be accepted by name: --accept LICENCE"])


def _checksum_note(file: RemoteFile) -> str:
    known = file.known_hash or (file.sha256_prefix and f"sha256 begins with {file.sha256_prefix}")
    return f", {known}" if known else ", no published checksum"
