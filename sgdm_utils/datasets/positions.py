"""Where the electrodes of a recording are: measured, from the file, or by name.

Coordinates mean something only in a frame: which way the axes point and where the origin lies.
Measured positions are brought into MNE's head frame (x to the right ear, y to the nose, z up,
metres) where the frame is known, and compared with what the electrodes are called.

References
----------
BIDS 1.10.0, appendix "Coordinate systems" (axes and origins of the frames).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions
from sgdm_utils.datasets.sidecars import entities, find_sidecars, read_tsv
from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow.content import require_content
from sgdm_utils.workflow.formats import read_json

HEAD = ("CapTrak", "ElektaNeuromag", "ChietiItab")  # x right, y nose, z up, origin between the ears
NOSE_LEFT_UP = ("EEGLAB", "EEGLAB-HJ", "CTF", "4DBti", "KitYokogawa")  # x nose, y left, z up
TEMPLATES = ("MNI", "ICBM", "IXI549", "fsaverage")  # brains in the space of the MNI, by prefix
AS_MEASURED = "electrodes.tsv (CapTrak)"  # the usual source, of which nothing needs to be said
LANDMARKS = ("NAS", "LPA", "RPA")
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
RADIUS_M = (0.04, 0.2)  # median distance from the origin: a factor of 5, units differ by 10
#: Degrees. Caps and heads differ from the 10-05 template by 2 to 9 in the median (13 at most), one
#: that is drawn on a sphere by 19, coordinates of the MNI that are taken for the head's or the other
#: way round by 16 to 32, turned ones by more.
LARGEST_MEDIAN, LARGEST = 12.0, 30.0


def place_electrodes(
    raw: mne.io.BaseRaw, in_file: mne.channels.DigMontage | None, recording: Path, root: Path
) -> str:
    """Give every EEG channel a position, in place: measured, of the data file, or by name.

    Parameters
    ----------
    raw : mne.io.BaseRaw
    in_file : DigMontage or None, what the data file itself says
    recording : Path
    root : Path, of the data set

    Returns
    -------
    str, where the positions are from, and why better ones were not used

    Raises
    ------
    DatasetError
        An electrode without a usable position whose name the 10-05 system does not know.
    """
    picks = mne.pick_types(raw.info, eeg=True, exclude=[])
    names = [raw.ch_names[i] for i in picks]
    reasons = []
    for label, montage, reason in _candidates(in_file, recording, root):
        if montage is not None:
            info = mne.create_info(names, 1.0, "eeg")
            info.set_montage(montage, on_missing="ignore", verbose="error")
            reason = _fault(info)
        if not reason:
            raw.set_montage(montage, on_missing="ignore", verbose="error")
            return "; ".join([label, *reasons])
        reasons.append(f"{label} not used: {reason}")
    standard, directions = _standard()
    unknown = [name for name in names if name.lower() not in directions]
    if unknown:
        raise DatasetError(
            f"{recording}: channel {unknown[0]!r} has no position in electrodes.tsv that can be "
            f"used ({'; '.join(reasons) or 'there is none'}), and no position of the standard 10-05 "
            "montage has that name. Add electrodes.tsv and coordsystem.json with the coordinates of "
            "all electrodes in CapTrak, rename the channel, or give it another type (e.g. MISC) in "
            "channels.tsv"
        )
    # all of them, so that measured and standard positions never mix; only EEG channels are touched
    raw.set_montage(standard, match_case=False, on_missing="ignore", verbose="error")
    return "; ".join(["10-05 system by name", *reasons])


def _candidates(
    in_file: mne.channels.DigMontage | None, recording: Path, root: Path
) -> Iterator[tuple[str, mne.channels.DigMontage | None, str]]:
    """Yield label, montage (None where it cannot be made) and why; the best frames first."""
    tables = find_sidecars(recording, root, "electrodes.tsv", free=("space",))
    read = [_read(table, recording, root) for table in tables]
    order = [*HEAD, *NOSE_LEFT_UP]
    for frame, label, montage, reason in sorted(
        read, key=lambda r: order.index(r[0]) if r[0] in order else len(order)
    ):
        yield f"{label} ({frame})", montage, reason
    if in_file is not None:
        yield "positions of the data file", in_file, ""


def _read(
    table: Path, recording: Path, root: Path
) -> tuple[str, str, mne.channels.DigMontage | None, str]:
    """Read one electrodes.tsv: frame, label, montage or None, and why not."""
    space = entities(table).get("space")
    systems = find_sidecars(recording, root, "coordsystem.json", free=("space",))
    systems = [s for s in systems if entities(s).get("space") == space]
    if not systems:
        return "no coordsystem.json", "electrodes.tsv", None, "nothing says what its axes mean"
    require_content(systems[0])
    system = read_json(systems[0])
    frame, unit = str(system.get("EEGCoordinateSystem")), system.get("EEGCoordinateUnits")
    rows = read_tsv(table)
    if missing := [c for c in ("name", "x", "y", "z") if c not in rows]:
        return frame, "electrodes.tsv", None, f"no column {', '.join(missing)}"
    xyz = rows[["x", "y", "z"]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    name, xyz = rows["name"].tolist(), xyz[:, :3]
    unit = unit if isinstance(unit, str) else None
    scale, label = _scale(xyz, unit), "electrodes.tsv"
    if scale is None:
        return frame, label, None, f"not a head in any unit (it says {unit!r})"
    if scale != UNITS.get(unit):
        label += f", unit {unit!r} read as {next(u for u, s in UNITS.items() if s == scale)}"
    # divided as MNE-BIDS does: times 0.001 would differ in the last digit
    positions = dict(zip(name, xyz / round(1 / scale), strict=True))
    if frame in HEAD:
        return frame, label, mne.channels.make_dig_montage(positions, coord_frame="head"), ""
    landmarks = _landmarks(system, frame, unit)
    if landmarks is None and frame in NOSE_LEFT_UP:
        turned = {n: np.array([-y, x, z]) for n, (x, y, z) in positions.items()}
        return frame, label, mne.channels.make_dig_montage(turned, coord_frame="head"), ""
    if landmarks is None and frame.startswith(TEMPLATES):
        found = _standard()[0].get_positions()  # drawn on a brain of the MNI
        landmarks = [found[k] for k in ("nasion", "lpa", "rpa")]
    if landmarks is None:
        return frame, label, None, "the frame is not known, and no NAS, LPA, RPA in it are given"
    nasion, lpa, rpa = landmarks
    montage = mne.channels.make_dig_montage(positions, nasion, lpa, rpa, coord_frame="unknown")
    return frame, label, montage, ""


def _scale(xyz: np.ndarray, unit: Any) -> float | None:
    """Return the unit in metres that makes these points a head: the stated one if it does."""
    radius = np.linalg.norm(xyz[np.isfinite(xyz).all(1)], axis=1)
    if not len(radius):
        return None
    stated = [UNITS[unit]] if unit in UNITS else []
    fitting = [
        s for s in (*stated, *UNITS.values()) if RADIUS_M[0] < np.median(radius) * s < RADIUS_M[1]
    ]
    return fitting[0] if fitting else None


def _landmarks(system: dict, frame: str, unit: Any) -> list[np.ndarray] | None:
    """Nasion and the points before the ears in metres, where they are given in the same frame."""
    points = system.get("AnatomicalLandmarkCoordinates") or {}
    other = system.get("AnatomicalLandmarkCoordinateUnits", unit)
    if system.get("AnatomicalLandmarkCoordinateSystem", frame) != frame:
        return None
    try:
        xyz = np.array([points[name] for name in LANDMARKS], float)
    except (KeyError, TypeError, ValueError):
        return None
    if xyz.shape != (3, 3) or not np.isfinite(xyz).all():
        return None
    scale = _scale(xyz, other if isinstance(other, str) else unit)
    return None if scale is None else list(xyz * scale)


def _fault(info: mne.Info) -> str:
    """Say what contradicts a head, or the names of the electrodes; "" where nothing does."""
    loc = np.array([ch["loc"][:3] for ch in info["chs"]])
    lost = ~np.isfinite(loc).all(1) | (loc == 0).all(1)
    if lost.any():
        return f"no coordinates for {', '.join(np.array(info['ch_names'])[lost])}"
    radius = np.median(np.linalg.norm(loc, axis=1))
    if not RADIUS_M[0] < radius < RADIUS_M[1]:
        return f"a head of {100 * radius:.3g} cm radius"
    directions = _standard()[1]
    named = [i for i, name in enumerate(info["ch_names"]) if name.lower() in directions]
    # BioSemi's A1, B1 ... share a few names with the 10-05 system and mean other places
    if 2 * len(named) < len(loc):
        return ""
    expected = np.array([directions[info["ch_names"][i].lower()] for i in named])
    cosine = (electrode_positions(info["chs"])[named] * expected).sum(1)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    worst = info["ch_names"][named[int(angle.argmax())]]
    if np.median(angle) > LARGEST_MEDIAN or angle.max() > LARGEST:
        return (
            f"electrodes lie {np.median(angle):.0f} degrees (median) from where their names say, "
            f"{worst} {angle.max():.0f}"
        )
    return ""


@cache
def _standard() -> tuple[mne.channels.DigMontage, dict[str, np.ndarray]]:
    """Return the 10-05 system and its directions from the centre of the head, by name in small letters."""
    montage = mne.channels.make_standard_montage(STANDARD_MONTAGE)
    info = mne.create_info(montage.ch_names, 1.0, "eeg").set_montage(montage)
    directions = electrode_positions(info["chs"])
    return montage, dict(zip(map(str.lower, montage.ch_names), directions, strict=True))
