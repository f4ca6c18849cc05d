"""Small BIDS studies in every format that EEG may have there, written in milliseconds.

pybv and edfio write the signals; an EEGLAB file is a MATLAB structure. The sidecars are text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import edfio
import mne
import numpy as np
import pandas as pd
import pybv
import scipy.io

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE

CAP = ["Fp1", "Fp2", "F3", "Fz", "F4", "C3", "Cz", "C4", "P3", "Pz", "P4", "O1", "Oz", "O2"]
#: digitised head: the template of the 10-05 system in MNE's head frame, metres
_MONTAGE = mne.channels.make_standard_montage(STANDARD_MONTAGE)
_INFO = mne.create_info(CAP, 1.0, "eeg").set_montage(_MONTAGE)
HEAD = {name: ch["loc"][:3].copy() for name, ch in zip(CAP, _INFO["chs"], strict=True)}
MNI = {name: _MONTAGE.get_positions()["ch_pos"][name] for name in CAP}


def write_signal(
    path: Path,
    volts: np.ndarray,
    names: list[str],
    sfreq: float,
    unit: str = "uV",
    annotations: list[tuple[float, float, str]] = (),
    chanlocs: dict | None = None,
) -> None:
    """Write the data file; `annotations` are (onset, duration, text) of the file itself.

    `unit` is the physical dimension that an EDF or BDF header states, of values in that unit ("" and
    "nV": microvolts and nanovolts, which MNE takes for volts).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".vhdr":
        marks = [{"onset": round(t * sfreq), "duration": 1, "type": "Comment", "description": text}
                 for t, _, text in annotations]  # fmt: skip
        pybv.write_brainvision(
            data=volts, sfreq=sfreq, ch_names=names, fname_base=path.stem, folder_out=path.parent,
            events=marks or None, overwrite=True,
        )  # fmt: skip
    elif path.suffix in (".edf", ".bdf"):
        values = volts * {"uV": 1e6, "": 1e6, "nV": 1e9, "mV": 1e3}[unit]
        kind, signal, digital = {
            ".edf": (edfio.Edf, edfio.EdfSignal, (-32768, 32767)),
            ".bdf": (edfio.Bdf, edfio.BdfSignal, (-8388608, 8388607)),
        }[path.suffix]
        top = 1.01 * np.abs(values).max()
        top = float(f"{top:.3g}") * 1.01
        signals = [
            signal(row, sfreq, label=name, physical_dimension=unit, digital_range=digital,
                   physical_range=(-round(top, 1), round(top, 1)))
            for name, row in zip(names, values, strict=True)
        ]  # fmt: skip
        marks = [edfio.EdfAnnotation(*mark) for mark in annotations]
        kind(signals, annotations=marks, data_record_duration=1.0).write(path)
    else:
        locations = np.zeros(len(names), dtype=[(k, object) for k in ("labels", "X", "Y", "Z")])
        for i, name in enumerate(names):
            locations[i] = (name, *(chanlocs[name] if chanlocs else [np.zeros(0)] * 3))
        events = np.zeros(len(annotations), [(k, object) for k in ("type", "latency", "duration")])
        for i, (onset, duration, text) in enumerate(annotations):
            events[i] = (text, onset * sfreq + 1, duration * sfreq)
        scipy.io.savemat(
            path,
            {"EEG": {
                "setname": path.stem, "data": (volts * 1e6).astype(np.float32), "srate": sfreq,
                "nbchan": len(names), "pnts": volts.shape[1], "trials": 1, "xmin": 0.0,
                "xmax": (volts.shape[1] - 1) / sfreq, "chanlocs": locations, "event": events,
                "icawinv": [], "icasphere": [], "icaweights": [], "icaact": [], "ref": "common",
            }},
        )  # fmt: skip


def pause(path: Path, after_record: int, seconds: int) -> None:
    """Turn an EDF+C or BDF+C file into EDF+D: records of one second, a pause after some of them."""
    content = bytearray(path.read_bytes())
    at = content.find(b"EDF+C") if path.suffix == ".edf" else content.find(b"BDF+C")
    content[at : at + 5] = content[at : at + 4] + b"D"
    header = int(content[184:192])

    def later(match: re.Match) -> bytes:
        record = int(match[1])
        text = b"+%d\x14\x14" % (record + (seconds if record >= after_record else 0))
        return text.ljust(len(match[0]), b"\x00")[: max(len(match[0]), len(text))]

    body = re.sub(rb"\+(\d+)\x14\x14\x00+", later, bytes(content[header:]))
    path.write_bytes(bytes(content[:header]) + body)


def write_tsv(path: Path, table: pd.DataFrame) -> None:
    """Write a BIDS table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")


def write_positions(
    folder: Path, stem: str, positions: dict, frame: str, unit: str = "m", space: str = "", **system
) -> None:
    """Write electrodes.tsv and coordsystem.json; `positions` are numbers in `unit`."""
    middle = f"{stem}_" + (f"space-{space}_" if space else "")
    table = pd.DataFrame([(n, *xyz) for n, xyz in positions.items()], columns=["name", *"xyz"])
    write_tsv(folder / f"{middle}electrodes.tsv", table)
    system |= {"EEGCoordinateSystem": frame, "EEGCoordinateUnits": unit}
    (folder / f"{middle}coordsystem.json").write_text(json.dumps(system))


def write_recording(
    root: Path,
    name: str,
    volts: np.ndarray,
    onsets: list[float],
    pictures: list[str],
    names: list[str] = CAP,
    sfreq: float = 100.0,
    extension: str = ".vhdr",
    folder: str = "sub-01/eeg",
    stimuli: list[str] | None = None,
    **options,
) -> Path:
    """Write one recording with channels.tsv, events.tsv and eeg.json; returns the data file.

    `name` holds the entities ("sub-01_task-see_run-01"), `pictures` is what events.tsv says, `stimuli`
    the files there are (default: those); `options` go to `write_signal`.
    """
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "small", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    path = root / folder / f"{name}_eeg{extension}"
    write_signal(path, volts, names, sfreq, **options)
    table = pd.DataFrame({"name": names, "type": "EEG", "units": "µV", "status": "good"})
    write_tsv(path.with_name(f"{name}_channels.tsv"), table)
    events = {"onset": onsets, "duration": 0.1, "trial_type": "image", "stim_file": pictures}
    write_tsv(path.with_name(f"{name}_events.tsv"), pd.DataFrame(events))
    facts = {"TaskName": "see", "SamplingFrequency": sfreq, "EEGReference": "n/a",
             "PowerLineFrequency": 50, "RecordingDuration": volts.shape[1] / sfreq,
             "RecordingType": "continuous"}  # fmt: skip
    path.with_name(f"{name}_eeg.json").write_text(json.dumps(facts))
    write_pictures(root, pictures if stimuli is None else stimuli)
    return path


def write_pictures(root: Path, pictures: list[str]) -> None:
    """Put empty files where the pictures of a study are."""
    for picture in pictures:
        file = root / "stimuli" / picture
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
