"""What `00_data` reads of a BIDS study: order of runs, events near the ends, channels by their names."""

from __future__ import annotations

import re
from types import SimpleNamespace

import mne
import numpy as np
import pandas as pd
import papermill
import pytest
from small_bids import CHANNELS, ONSETS, PICTURES, add_recording, channels_tsv, edit

from sgdm_utils.datasets import bids, bids_recordings, natural_order, readers
from sgdm_utils.datasets.bids import EventMapping
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.tables import EpochedSignal
from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import artifacts, paths


def test_runs_come_in_the_order_of_their_numbers(tmp_path):
    for seed, run in enumerate(("1", "2", "10", "11")):
        add_recording(tmp_path, run=run, seed=seed)
    recordings, events = bids.read_study(tmp_path, EventMapping())
    assert recordings["run"].tolist() == ["1", "2", "10", "11"]
    first = events[events["image_id"] == events["image_id"][0]]
    assert first[["run", "repetition"]].values.tolist() == [
        ["1", 0],
        ["2", 1],
        ["10", 2],
        ["11", 3],
    ]
    names = pd.Series(["b10", "b9", "a", "", "b9c2", "b9c12"])
    assert names.sort_values(key=natural_order).tolist() == ["", "a", "b9", "b9c2", "b9c12", "b10"]


def test_events_beyond_the_ends_are_refused_or_left_out(tmp_path):
    sidecar = add_recording(tmp_path)
    edit(sidecar, 0, "onset", "-0.5")
    edit(sidecar, 9, "onset", "25.0")
    with pytest.raises(DatasetError, match=r"events\.tsv, line 2 \(of 2 such") as refused:
        bids.read_study(tmp_path, EventMapping())
    margin = float(re.search(r"margin_s of 00_data \(e\.g\. ([\d.]+)\)", str(refused.value))[1])
    study = readers.open_study("bids", tmp_path, ["sub-01"], EventMapping(margin_s=margin))
    np.testing.assert_allclose(study.events["onset_s"], ONSETS[1:-1])
    assert study.notes["events left out near the ends (margin_s)"] == "2"
    for row, onset in enumerate(ONSETS):  # milliseconds are no events near the end
        edit(sidecar, row, "onset", f"{1000 * onset:g}")
    with pytest.raises(DatasetError, match="are these milliseconds"):
        bids.read_study(tmp_path, EventMapping(margin_s=margin))


def test_sessions_and_channels_that_are_asked_for_are_heeded(tmp_path):
    add_recording(tmp_path)
    given = ("bids", tmp_path, ["sub-01"], EventMapping())
    assert len(readers.open_study(*given, n_channels=5).events) == 10
    with pytest.raises(DatasetError, match=r"has 5 EEG channels, 63 are configured"):
        readers.open_study(*given, n_channels=63)
    with pytest.raises(DatasetError, match="sub-01 has no session 2"):
        readers.open_study(*given, sessions=[2])


@pytest.mark.parametrize("dataset", [d for d in readers.FORMS if d != "kilogram"])
@pytest.mark.parametrize(
    ("name", "asked"),
    [("keep", {"mapping": EventMapping(keep={"trial_type": ["image"]})}),
     ("margin_s", {"mapping": EventMapping(margin_s=1.0)}), ("task", {"task": "see"})],
)  # fmt: skip
def test_what_a_reader_does_not_heed_is_refused(tmp_path, dataset, name, asked):
    with pytest.raises(DatasetError, match=f"^{name} is not read for dataset='{dataset}'"):
        readers.open_study(dataset, tmp_path, ["sub-01"], **asked)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("EOG1", "eog"), ("HEOG", "eog"), ("veog-l", "eog"), ("EKG", "ecg"), ("EMG_neck", "emg"),
     ("Status", "misc"), ("TRIG", "misc"), ("Photo1", "misc"), ("ACC X", "misc")],
)  # fmt: skip
def test_a_channel_that_is_no_electrode_does_not_enter_the_reference(name, kind):
    info = mne.create_info(["Oz", name, "Cz"], 100.0, "eeg")
    raw = mne.io.RawArray(np.ones((3, 10)), info, verbose="error")
    assert bids_recordings._types_by_name(raw) == {name: kind}


def test_every_electrode_of_the_system_stays_one():
    names = mne.channels.make_standard_montage(STANDARD_MONTAGE).ch_names
    raw = mne.io.RawArray(np.ones((len(names), 2)), mne.create_info(names, 1.0, "eeg"), verbose=40)
    assert bids_recordings._types_by_name(raw) == {}


def test_eog_that_is_typed_eeg_is_said_and_left_out_of_the_eeg(tmp_path):
    names = [*CHANNELS, "EOG1", "EOG2"]
    sidecar = add_recording(tmp_path, names=names, positions=False)
    assert set(pd.read_csv(channels_tsv(sidecar), sep="\t")["type"]) == {"EEG"}
    study = readers.open_study("bids", tmp_path, ["sub-01"], EventMapping(), n_channels=5)
    raw = readers.read_raw("bids", study.recordings.iloc[0], tmp_path)
    assert raw.copy().pick("eeg").ch_names == CHANNELS
    assert raw.copy().pick("eog").ch_names == ["EOG1", "EOG2"]
    assert study.notes["channels that are no EEG"] == "EOG1 (eog), EOG2 (eog)"


# ------------------------------------------------------------------- through the notebooks


def execute(folder, notebook: str, **parameters) -> None:
    papermill.execute_notebook(
        paths.notebook_path(notebook), folder / f"{notebook}.ipynb", {"study": "edges"} | parameters,
        kernel_name="python3", cwd=str(folder), progress_bar=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_notebooks_at_the_edges(tmp_path, tmp_study):
    """A picture at onset 0, 100 Hz, no picture twice, a run without a trial, no picture files."""
    root = tmp_path / "data" / "raw" / "edges"
    edit(add_recording(root, run="1", seed=1), 0, "onset", "0.0")

    def loud(data):
        data[:] *= 100

    sidecar = add_recording(root, run="2", seed=2, change=loud)
    for row, picture in enumerate(PICTURES):
        edit(sidecar, row, "stim_file", picture.replace("picture", "other") if row < 6 else "n/a")
    data = {"dataset": "bids", "raw_name": "edges", "subjects": ["sub-01"], "stimulus_column": "",
            "label_column": "stim_file"}  # fmt: skip
    execute(tmp_path, "00_data", **data)
    events = pd.read_parquet(artifacts.read_artifact("edges", "joint", "data") / "events.parquet")
    assert events["onset_s"].min() == 0
    cleaning = {"subject": "sub-01", "use_ica": False, "tmin": -0.2, "tmax": 0.6,
                "reject_uv": 500.0, "bad_threshold": 0.0}  # fmt: skip
    with pytest.raises(papermill.PapermillExecutionError, match="too close to an end") as refused:
        execute(tmp_path, "01_preprocessing", **cleaning)
    margin = float(re.search(r"margin_s of 00_data, ([\d.]+) here", str(refused.value))[1])
    execute(tmp_path, "00_data", **data, margin_s=margin)
    execute(tmp_path, "01_preprocessing", **cleaning)
    written = artifacts.read_artifact("edges", "sub-01", "preprocessing")
    quality = pd.read_csv(written / "quality.csv")
    assert quality[["run", "kept", "dropped"]].values.tolist() == [[1, 9, 0], [2, 0, 6]]
    executed = (tmp_path / "01_preprocessing.ipynb").read_text()
    assert "no trial is left of session '', run '2'" in executed
    assert "no noise ceiling: 0 " in executed and written.notes["ceiling"] == {}
    assert np.isnan(np.load(written / "ceiling.npy")).all()
    with pytest.raises(
        papermill.PapermillExecutionError, match="no pictures, only labels"
    ) as ended:
        execute(tmp_path, "02_encoder_pretraining")
    assert ended.value.exec_count <= 4  # before anything is trained


@pytest.mark.parametrize(
    ("unit", "scale", "message"),
    [("volts", 1e-5, ""), ("whitened", 1.0, ""), ("volts", 10.0, r"10\^6 times too large"),
     ("whitened", 1e-5, r"whitened EEG some 3 to 10.*10\^6 times too small"), ("whitened", 1e4, r"10\^3 times too large")],
)  # fmt: skip
def test_published_epochs_have_the_size_of_their_unit(monkeypatch, unit, scale, message):
    data = scale * np.random.default_rng(0).normal(size=(40, 3, 100))
    signal = EpochedSignal(data, ["O1", "Oz", "O2"], np.arange(100) / 100, unit)
    module = SimpleNamespace(read_epochs=lambda recording, root: signal)
    monkeypatch.setitem(readers.FORMS, "mine", readers.Form(module, "epochs", "stimuli", "mine"))
    if message:
        with pytest.raises(DatasetError, match=message):
            readers.read_epochs("mine", {"path": "x.npy"}, ".")
    else:
        assert readers.read_epochs("mine", {"path": "x.npy"}, ".") is signal
