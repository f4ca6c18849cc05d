"""What people are shown of the catalogue: the list, one entry, and how to get files by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sgdm_utils.workflow import paths
from sgdm_utils.workflow.downloads.catalogue import Entry, RemoteFile, readable


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
            f"missing:\n     python -m sgdm_utils.workflow.downloads.fetch fetch {entry.name}{accept}"
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
