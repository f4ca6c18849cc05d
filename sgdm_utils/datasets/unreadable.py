"""Why a recording cannot be read: each cause in its own words, with what to do.

MNE and MNE-BIDS raise whatever a file leads them to, often the `KeyError` of a table that has nothing
to do with the recording. The files are looked at here, one after another, and "damaged" is said of
none that is whole.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import mne
import mne_bids

from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow.content import absent_content

#: Columns of a BIDS table without which MNE-BIDS stops, and which of them are numbers.
_TABLES = {
    "events": (("onset", "duration"), ("onset", "duration")),
    "channels": (("name", "type"), ()),
    "electrodes": (("name", "x", "y", "z"), ("x", "y", "z")),
}
#: Columns of events.tsv that MNE 1.13 keeps for itself: MNE-BIDS 0.20 hands all columns on to it.
_RESERVED = ("description", "ch_names", "hed_string")
_NAMED = re.compile(r"^(DataFile|MarkerFile)\s*=(.*)$", re.MULTILINE)
_HDF5 = b"MATLAB 7.3 MAT-file"


def explain(path: Path | mne_bids.BIDSPath, error: Exception) -> str:
    """Say why a recording cannot be read.

    Parameters
    ----------
    path : Path, or BIDSPath where the tables beside the recording were read too
    error : what the reader raised

    Returns
    -------
    str, the file, what is wrong in it and what to do
    """
    file = Path(path.fpath if isinstance(path, mne_bids.BIDSPath) else path)
    causes = [_recording(file, error)]
    if isinstance(path, mne_bids.BIDSPath):
        causes = [*_sidecars(path), *causes]
    found = next((cause for cause in causes if cause), "")
    if found:
        return found
    what = f"{file} cannot be read ({type(error).__name__}: {error})"
    if isinstance(path, mne_bids.BIDSPath) and not _opening_fails(file):
        return (
            f"{what}. The recording itself opens: it is one of the tables or JSON files that belong "
            "to it. The BIDS validator (bids-validator) says which"
        )
    return (
        f"{what}. Its header is not understood. Compare its size and checksum with the source's: "
        "where they differ copy it again, where they agree export the recording again"
    )


def require_beside(file: Path) -> None:
    """Refuse a BrainVision header that takes its samples or markers from another folder.

    MNE follows an absolute path and `..`: any file of this machine would be read as EEG.

    Raises
    ------
    DatasetError
    """
    if file.suffix != ".vhdr" or not file.is_file():
        return
    for field, name in _NAMED.findall(file.read_bytes()[:10_000].decode("latin-1")):
        if re.search(r"[/\\:]|^\.\.$", name.strip()):
            raise DatasetError(
                f"{file}: {field} is {name.strip()!r}, and the files of a recording lie side by side. Put "
                f"it beside the header and write its name alone"
            )


def _opening_fails(file: Path) -> bool:
    try:
        mne.io.read_raw(file, verbose="error")
    except Exception:  # whatever a header leads a reader to
        return True
    return False


def _recording(file: Path, error: Exception) -> str:
    """What is wrong with the recording itself, "" where that is not known."""
    if isinstance(error, PermissionError):
        return f"{error.filename or file} may not be read by you: chmod u+r {file.name}"
    if file.is_file() and not file.stat().st_size:
        return f"{file} is empty (0 bytes): the copy broke off. Copy it again"
    if isinstance(error, FileNotFoundError):
        gone = Path(error.filename) if error.filename else file
        if absent_content(gone):
            return absent_content(gone)
        if gone.name == file.name:
            return f"{gone} is not there: copy it again"
        return (
            f"{file} cannot be read without {gone.name}, which it names and which is not beside it. "
            f"Put it there; if it was renamed, correct its name in {file.name}"
        )
    if "number of trials" in str(error):
        return (
            f"{file} holds epochs, and a continuous recording is needed: export the data as they "
            "were before they were cut into epochs"
        )
    if file.suffix == ".set" and file.is_file() and file.open("rb").read(19) == _HDF5:
        lacking = importlib.util.find_spec("pymatreader") is None
        remedy = "pip install pymatreader, or save" if lacking else "Save"
        return (
            f"{file} was saved as MATLAB 7.3 (HDF5) and cannot be read: {error}. {remedy} it again "
            "in EEGLAB, pop_saveset(EEG, ..., 'version', '6')"
        )
    return ""


def _sidecars(path: mne_bids.BIDSPath) -> Iterator[str]:
    """What is wrong with the files that MNE-BIDS reads beside the recording, "" where nothing is."""
    for suffix in ("eeg", "events", "coordsystem"):
        sidecar = path.find_matching_sidecar(suffix, ".json", on_error="ignore")
        if sidecar is not None:
            yield json_problem(Path(sidecar))
    for suffix, (columns, numbers) in _TABLES.items():
        sidecar = path.find_matching_sidecar(suffix, ".tsv", on_error="ignore")
        if sidecar is not None:
            yield _table(Path(sidecar), columns, numbers)
    root, person = Path(path.root), f"sub-{path.subject}"
    yield _table(root / "participants.tsv", ("participant_id",))
    name = f"{person}_ses-{path.session}_scans.tsv" if path.session else f"{person}_scans.tsv"
    folder = root / person / (f"ses-{path.session}" if path.session else "")
    yield _table(folder / name, ("filename",))


def json_problem(file: Path) -> str:
    """Say why a JSON file of BIDS stops its reader, or describes what is no recording; "" where not."""
    if absent_content(file):
        return absent_content(file)
    content = file.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        return (
            f"{file} begins with a byte order mark, which MNE-BIDS does not skip: save it as UTF-8 "
            "without one (its first three bytes are EF BB BF)"
        )
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"{file} is no JSON in UTF-8 ({error}). Correct it there"
    if not isinstance(fields, dict):
        return f"{file} holds a {type(fields).__name__}; a BIDS sidecar is an object {{...}}"
    if fields.get("RecordingType") == "epoched":
        return (
            f"{file} says RecordingType epoched, and a continuous recording is needed. If the file "
            "is continuous after all, correct RecordingType; if not, export the data as they were "
            "before they were cut"
        )
    power = fields.get("PowerLineFrequency", "n/a")
    if power != "n/a" and not isinstance(power, int | float):
        return f'{file}: PowerLineFrequency is {power!r}; give a number, e.g. 50, or "n/a"'
    return ""


def _table(file: Path, columns: tuple[str, ...], numbers: tuple[str, ...] = ()) -> str:
    if not file.is_symlink() and not file.is_file():
        return ""
    if absent_content(file):
        return absent_content(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        return f"{file} is no UTF-8 text ({error}). Save it as UTF-8"
    rows = [line.rstrip("\r").split("\t") for line in lines]
    while rows and rows[-1] == [""]:
        rows.pop()
    header = rows[0] if rows else []
    missing = [c for c in columns if c not in header]
    if missing:
        close = [h for h in header if h.strip() == missing[0]]
        blank = f" (it is written {close[0]!r}, with blanks)" if close else ""
        return (
            f"{file}: no column {missing[0]!r}{blank}; there is {', '.join(header) or 'nothing'}. "
            "BIDS requires it: add it or correct its name"
        )
    reserved = [c for c in _RESERVED if c in header] if file.name.endswith("_events.tsv") else []
    if reserved:
        return (
            f"{file}: a column is called {reserved[0]!r}, a name that MNE keeps for itself. Rename "
            f"the column in the first line, e.g. to {reserved[0] + '_'!r}"
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            return (
                f"{file}, line {number}: {len(row)} cells under {len(header)} columns. Fill the "
                "line up with n/a, or take out what is too much"
            )
        for column in numbers:
            cell = row[header.index(column)].strip()
            if not _is_number(cell):
                other = "" if column == "onset" else ", or write n/a"
                return f"{file}, line {number}: {column} {cell!r} is no number. Correct it{other}"
    return ""


def _is_number(cell: str) -> bool:
    if cell in ("n/a", ""):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
