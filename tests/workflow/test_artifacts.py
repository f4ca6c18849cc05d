"""Artifacts: whole or not there, and refused when what they were made from has changed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import nbformat
import numpy as np
import pytest

from sgdm_utils.workflow import artifacts, atomic, digests, locks, notebook, paths, raw

STUDY = "trial"


@pytest.fixture
def study(tmp_study, monkeypatch):
    """A temporary study whose notebooks are one line each."""
    folder = tmp_study / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "notebook_dir", lambda: folder)
    for stage in paths.STAGES.values():
        write_notebook(stage.notebook, "x = 1")
    return tmp_study


def write_notebook(name: str, source: str, parameters: str = "a: int = 1") -> None:
    new = nbformat.v4
    cells = [
        new.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new.new_code_cell(source),
    ]
    nbformat.write(new.new_notebook(cells=cells), paths.notebook_path(name))


def write(stage, who="joint", seed=None, *, inputs=(), value=0, notes=None, **parameters):
    with artifacts.write_artifact(
        STUDY,
        who,
        stage,
        seed,
        notebook=paths.STAGES[stage].notebook,
        parameters=parameters,
        inputs=inputs,
        notes=notes,
    ) as out:
        np.save(out / "x.npy", np.full(100, value))
        (out / "deep").mkdir()
        (out / "deep" / "y.txt").write_text("text")
    return artifacts.read_artifact(STUDY, who, stage, seed)


def read(stage, who="joint", seed=None, **options):
    return artifacts.read_artifact(STUDY, who, stage, seed, **options)


def leftovers(folder):
    return [p.name for p in folder.parent.iterdir() if p.suffix in (".part", ".old")]


def test_what_was_written_is_read_with_all_it_says_about_itself(study):
    data = write("data", size=np.int64(3), scale=(0.5, 1.0), notes={"subjects": ["sub-01"]})
    assert np.load(data / "x.npy").shape == (100,)
    assert data.parameters == {"size": 3, "scale": [0.5, 1.0]}
    assert data.notes["subjects"] == ["sub-01"]
    assert set(data.manifest["files"]) == {"x.npy", "deep/y.txt"}
    assert data.identity["code"]["modules"] == {}
    about = data.manifest["provenance"]
    assert about["versions"]["numpy"] == np.__version__
    assert about["wall_s"] > 0 and about["peak_rss_mb"] > 1
    assert str(study) not in (data.path / "manifest.json").read_text()
    with pytest.raises(FileNotFoundError, match=r"holds no 'z.npy'; it holds: deep/y.txt, x.npy"):
        data / "z.npy"


def test_notes_may_be_filled_while_writing(study):
    notes = {}
    with artifacts.write_artifact(
        STUDY, "joint", "data", notebook="00_data", parameters={}, notes=notes
    ) as out:
        (out / "x").write_text("x")
        notes["n"] = 7
    assert read("data").notes == {"n": 7}


def test_a_missing_artifact_names_the_notebook_and_the_command(study):
    with pytest.raises(artifacts.MissingArtifactError) as caught:
        read("encoder", seed=2)
    command = "python -m sgdm_utils run 03_contrastive_alignment --study trial --seed 2"
    assert command in str(caught.value)
    with pytest.raises(artifacts.MissingArtifactError, match="01_preprocessing.*--subject sub-01"):
        read("preprocessing", "sub-01")


def test_parameters_travel_downstream(study):
    data = write("data", study=STUDY, size=3)
    parts = [
        write("preprocessing", s, inputs=[data], subject=s, low=0.1) for s in ("sub-01", "sub-02")
    ]
    first = write("encoder", seed=0, inputs=[data, *parts], seed_=1, rate=0.5, size=9)
    assert dict(first.upstream_parameters) == {"low": 0.1, "rate": 0.5, "seed_": 1, "size": 9}
    assert first.upstream_parameters.by_stage["data"] == {"size": 3}
    with pytest.raises(KeyError, match="no notebook upstream declares 'lwo'; there are: low"):
        first.upstream_parameters["lwo"]


def test_a_parameter_that_two_stages_declare_has_to_be_asked_for_by_stage(study):
    data = write("data", size=3)
    one = write("encoder", seed=0, inputs=[data], rate=0.5)
    two = write("structure", seed=0, inputs=[data], rate=0.25)
    last = write("pipeline", seed=0, inputs=[one, two])
    assert last.upstream_parameters["size"] == 3
    with pytest.raises(artifacts.ParameterConflictError, match="0.5 in encoder, 0.25 in struct"):
        last.upstream_parameters["rate"]
    assert last.upstream_parameters.by_stage["structure"]["rate"] == 0.25


def test_results_of_a_second_study_have_settings_of_their_own(study, monkeypatch):
    one = write("data", size=3)
    monkeypatch.setitem(globals(), "STUDY", "other")
    two = write("preprocessing", "sub-01", inputs=[write("data", size=4)], low=0.1)
    monkeypatch.setitem(globals(), "STUDY", "trial")
    both = write("encoder", seed=0, inputs=[two, one])
    by_stage = both.identity["upstream"]
    assert by_stage["data"] == {"size": 3} and by_stage["other/data"] == {"size": 4}
    assert by_stage["other/preprocessing"] == {"low": 0.1}


def test_subjects_prepared_with_different_settings_are_not_mixed(study):
    data = write("data")
    one = write("preprocessing", "sub-01", inputs=[data], subject="sub-01", low=0.1)
    two = write("preprocessing", "sub-02", inputs=[data], subject="sub-02", low=1.0)
    with pytest.raises(artifacts.ParameterConflictError, match="low = 0.1 and 1.0"):
        write("encoder", seed=0, inputs=[one, two])
    with pytest.raises(artifacts.MissingArtifactError):
        read("encoder", seed=0)


def test_a_changed_input_is_noticed_however_far_back(study):
    data = write("data")
    prepared = write("preprocessing", "sub-01", inputs=[data])
    encoder = write("encoder", seed=0, inputs=[prepared])
    write("pipeline", seed=0, inputs=[encoder])
    read("pipeline", seed=0)
    write("data", value=1)
    for stage, who, seed in (("preprocessing", "sub-01", None), ("pipeline", "joint", 0)):
        with pytest.raises(artifacts.StaleArtifactError) as caught:
            read(stage, who, seed)
        text = str(caught.value)
        assert "'preprocessing' of sub-01" in text and "earlier version of 'data'" in text
        assert "01_preprocessing --study trial --subject sub-01" in text


def test_a_changed_parameter_of_an_input_counts_although_its_files_are_equal(study):
    prepared = write("preprocessing", "sub-01", inputs=[write("data", window=1)])
    write("data", window=2)
    with pytest.raises(artifacts.StaleArtifactError):
        read("preprocessing", "sub-01")
    write("data", window=1)  # as it was: the content decides, not the date
    assert read("preprocessing", "sub-01").content_digest == prepared.content_digest


def test_an_input_that_was_removed_is_named(study):
    import shutil

    data = write("data")
    write("preprocessing", "sub-01", inputs=[data])
    shutil.rmtree(data.path)
    with pytest.raises(artifacts.MissingArtifactError, match="from which 'preprocessing' of sub-"):
        read("preprocessing", "sub-01")


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "edit", "rename"])
def test_a_damaged_artifact_is_refused(study, damage):
    data = write("data")
    manifest = data.path / "manifest.json"
    expected = {
        "truncate": "has 50 bytes where 928 were written",
        "remove": "lacks its file deep/y.txt",
        "manifest": "cannot be read",
        "edit": "contradicts itself",
        "rename": "copied or renamed by hand",
    }[damage]
    if damage == "truncate":
        os.truncate(data / "x.npy", 50)
    elif damage == "remove":
        (data / "deep/y.txt").unlink()
    elif damage == "manifest":
        os.truncate(manifest, 50)
    elif damage == "edit":
        manifest.write_text(
            manifest.read_text().replace('"parameters": {}', '"parameters": {"a":1}')
        )
    if damage == "rename":
        data.path.rename(paths.stage_dir(STUDY, "joint", "own-idea"))
        arguments = ("own-idea",)
    else:
        arguments = ("data",)
    with pytest.raises(artifacts.IncompleteArtifactError, match=expected):
        read(*arguments)


def test_other_bytes_of_the_same_length_are_found_when_asked_for(study):
    data = write("data")
    (data / "deep/y.txt").write_text("TEXT")
    read("data")
    with pytest.raises(artifacts.IncompleteArtifactError, match="SHA-256 differs"):
        read("data", verify=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"'a.b\[1\]' is nan"),
        ({"a": object()}, "'a' is a object, which a manifest cannot hold"),
    ],
)
def test_what_a_manifest_cannot_hold_is_named(study, values, message):
    with pytest.raises(artifacts.ArtifactError, match=message):
        write("data", **values)


def test_an_error_while_writing_leaves_the_old_artifact(study):
    old = write("data", value=1)
    with pytest.raises(ZeroDivisionError):
        with artifacts.write_artifact(
            STUDY, "joint", "data", notebook="00_data", parameters={}
        ) as out:
            (out / "half").write_text("half")
            raise ZeroDivisionError
    assert read("data", verify=True).content_digest == old.content_digest
    assert leftovers(old.path) == []


def test_nothing_written_is_an_error(study):
    with pytest.raises(artifacts.ArtifactError, match="no file was written"):
        with artifacts.write_artifact(STUDY, "joint", "data", notebook="00_data", parameters={}):
            pass


def test_a_link_is_refused(study):
    with pytest.raises(ValueError, match="is a link"):
        with artifacts.write_artifact(
            STUDY, "joint", "data", notebook="00_data", parameters={}
        ) as out:
            (out / "real").write_text("x")
            (out / "link").symlink_to(out / "real")


def test_a_full_disk_says_so_and_leaves_the_old_artifact(study, monkeypatch):
    old = write("data", value=1)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch, pytest.raises(atomic.DiskFull) as caught:
        patch.setattr(atomic, "_fsync", full)
        write("data", value=2)
    for part in (
        str(old.path.parent),
        "data needs at least 0.0 MB",
        "Free some space, or set SGDM_DATA",
    ):
        assert part in str(caught.value)
    assert np.load(read("data", verify=True) / "x.npy")[0] == 1
    assert leftovers(old.path) == []


KILLED = """
import sys, time
from pathlib import Path
from sgdm_utils.workflow import atomic
with atomic.atomic_directory(Path(sys.argv[1])) as out:
    (out / "half.bin").write_bytes(b"0" * 1000)
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(target):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=paths.project_root(),
    )
    assert child.stdout.readline() == "writing\n"
    return child


def test_a_writer_killed_in_the_middle_leaves_the_old_artifact_and_is_tidied_up(study):
    old = write("data", value=1)
    child = start_writer(old.path)
    try:
        assert len(leftovers(old.path)) == 1
        write("data", value=2)  # a living writer's folder is not touched
        assert len(leftovers(old.path)) == 1
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert np.load(read("data", verify=True) / "x.npy")[0] == 2
    write("data", value=3)
    assert leftovers(old.path) == []
    assert np.load(read("data", verify=True) / "x.npy")[0] == 3


def test_a_first_writer_killed_in_the_middle_leaves_nothing_that_is_taken_for_an_artifact(study):
    target = paths.stage_dir(STUDY, "joint", "data")
    child = start_writer(target)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with pytest.raises(artifacts.MissingArtifactError):
        read("data")


def test_a_kill_between_the_two_renames_loses_nothing(study):
    data = write("data", value=1)
    retired = data.path.parent / f".data.{'0' * 12}.old"
    data.path.rename(retired)
    assert np.load(read("data", verify=True) / "x.npy")[0] == 1
    data.path.rename(retired)
    data.path.mkdir()  # a workflow engine makes folders for the outputs that it expects
    assert np.load(read("data", verify=True) / "x.npy")[0] == 1


def test_two_writers_at_once_both_end_and_one_whole_artifact_stays(study):
    target = study / "data" / "target"
    barrier = threading.Barrier(4)
    errors = []

    def work(value):
        try:
            for _ in range(10):
                barrier.wait(timeout=30)
                with atomic.atomic_directory(target) as out:
                    for name in ("a", "b", "c"):
                        (out / name).write_text(str(value))
                        time.sleep(0.001)
        except Exception as error:  # handed to the main thread
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({(target / name).read_text() for name in ("a", "b", "c")}) == 1
    assert sorted(p.name for p in target.parent.iterdir()) == [".target.lock", "target"]


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "tables" / "x.csv"
    with atomic.atomic_file(target) as part:
        part.write_text("one")
        assert part.suffix == ".csv" and not target.exists()
    with pytest.raises(ZeroDivisionError):
        with atomic.atomic_file(target) as part:
            part.write_text("half")
            raise ZeroDivisionError
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["x.csv"]


def test_edited_code_is_told_but_comments_and_parameters_are_not_code(study):
    write("data")
    write_notebook("00_data", "# a remark\n\nx = 1  # another", parameters="a: int = 2")
    read("data")
    write_notebook("00_data", "x = 2")
    with pytest.warns(artifacts.StaleCodeWarning, match="before the last edit of 00_data"):
        read("data")


def test_why_a_result_is_not_current(study):
    data = write("data", size=3)
    assert artifacts.why_not_current(data.path, {"size": 3, "study": STUDY}) is None
    assert artifacts.why_not_current(data.path, {"size": 4}) == "size is 4 and was 3"
    write_notebook("00_data", "x = 2")
    assert artifacts.why_not_current(data.path) == "00_data has been edited"
    (data / "deep/y.txt").write_text("TEXT")
    assert artifacts.why_not_current(data.path) == "00_data has been edited"
    assert "SHA-256 differs" in artifacts.why_not_current(data.path, verify=True)
    os.truncate(data / "x.npy", 50)
    assert "has 50 bytes where" in artifacts.why_not_current(data.path)
    nowhere = paths.stage_dir(STUDY, "joint", "own-idea")
    assert artifacts.why_not_current(nowhere) == "missing"


def keys(values, where=()):
    for name, value in values.items():
        yield (*where, name)
        if where + (name,) in ((("identity",), ("notes",), ("identity", "code"))):
            yield from keys(value, (*where, name))


def test_a_manifest_that_lacks_a_key_or_was_edited_is_an_incomplete_artifact(study):
    data = write("data", notes={"subjects": ["sub-01"]})
    file = data.path / artifacts.MANIFEST
    whole = json.loads(file.read_text())
    for way in keys(whole):
        for edit in ("remove", "replace"):
            broken = json.loads(json.dumps(whole))
            place = broken
            for name in way[:-1]:
                place = place[name]
            if edit == "remove":
                del place[way[-1]]
            else:
                place[way[-1]] = ["sub-02"]
            file.write_text(json.dumps(broken))
            with pytest.raises(artifacts.IncompleteArtifactError, match="Make it anew"):
                read("data")
    for text in ("[]", "3", '"x"', "null", "{}"):
        file.write_text(text)
        with pytest.raises(artifacts.IncompleteArtifactError, match="Make it anew"):
            read("data")


@pytest.fixture
def recording(study):
    """A small data set with two people, a picture and a signal larger than what is small."""
    root = paths.raw_dir("recorded")
    for name, content in {
        "participants.tsv": "a",
        "sub-01/eeg/sub-01_channels.tsv": "O1 good",
        "sub-01/eeg/sub-01_eeg.fif": "0" * (raw.SMALL + 1),
        "sub-02/eeg/sub-02_channels.tsv": "O1 good",
        "stimuli/cat.png": "cat",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize("signals", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "concerned"),
    [
        ("sub-01/eeg/sub-01_channels.tsv", "O1  bad", (True, True)),
        ("sub-01/eeg/sub-01_eeg.fif", "1" * (raw.SMALL + 1), (False, True)),  # the same size
        ("sub-01/eeg/sub-01_eeg.fif", "1", (True, True)),
        ("sub-01/eeg/sub-01_events.tsv", "new", (True, True)),
        ("sub-02/eeg/sub-02_channels.tsv", "O1  bad", (False, False)),
        ("stimuli/cat.png", "dog", (True, False)),
        (".downloads.lock", "", (False, False)),
    ],
)
def test_a_correction_of_the_recording_makes_what_was_read_from_it_stale(
    study, recording, signals, name, content, concerned
):
    described = raw.describe("recorded", ["sub-01"], signals)
    with artifacts.write_artifact(
        STUDY, "joint", "data", notebook="00_data", parameters={}, recording=described
    ) as out:
        (out / "x").write_text("x")
    for path in recording.rglob("*.*"):  # a copy without dates
        os.utime(path, (1, 1))
    read("data", verify=True)
    (recording / name).write_text(content)
    if concerned[signals]:
        with pytest.raises(
            artifacts.StaleArtifactError, match=f"a change of the recording.*{name}"
        ):
            read("data")
    else:
        read("data")
    shutil.rmtree(recording)
    read("data")  # what was read from a data set that has been removed holds


def test_a_run_remembers_the_recording_of_its_person(study, recording):
    data = write("data", notes={"subjects": ["sub-01", "sub-02"], "raw_root": "recorded"})
    step = notebook.Run("01_preprocessing", {"study": STUDY, "subject": "sub-01"})
    step.use(data)
    assert step.raw_dir(data) == recording
    with step.write() as out:
        (out / "x").write_text("x")
    (recording / "sub-02/eeg/sub-02_channels.tsv").write_text("O1  bad")
    read("preprocessing", "sub-01")
    (recording / "sub-01/eeg/sub-01_channels.tsv").write_text("O1  bad")
    with pytest.raises(artifacts.StaleArtifactError, match="sub-01_channels.tsv .edited."):
        read("preprocessing", "sub-01")


def test_a_training_is_another_with_other_parameters_inputs_or_code_and_its_states_go_in_the_end(
    study,
):
    def begin(rate: float, value: int) -> notebook.Run:
        step = notebook.Run("02_encoder_pretraining", {"study": STUDY, "seed": 0, "rate": rate})
        step.use(write("data", value=value))
        return step

    found = [begin(0.5, 1).identity, begin(0.25, 1).identity, begin(0.5, 2).identity]
    write_notebook("02_encoder_pretraining", "x = 2")
    found.append(begin(0.5, 1).identity)
    assert all(a != b for a, b in itertools.combinations(found, 2))
    write_notebook("02_encoder_pretraining", "x = 1  # a comment")
    step = begin(0.5, 1)
    assert step.identity == found[0] and json.loads(json.dumps(found)) == found
    state = step.state_file("pretraining")
    state.parent.mkdir(parents=True)
    state.write_text("weights")
    with pytest.raises(ValueError), step.write() as out:
        raise ValueError
    assert state.is_file()
    with step.write() as out:
        (out / "x").write_text("x")
    assert not state.parent.exists()


def test_the_tables_of_a_data_set_that_was_read_are_remembered_and_simulated_ones_made_anew(
    study, recording
):
    for dataset, remembered in (("bids", True), ("simulated", False)):
        step = notebook.Run("00_data", {"study": STUDY})
        notes = {"subjects": ["sub-01"], "raw_root": "recorded", "dataset": dataset}
        with step.write(notes) as out:
            (out / "x").write_text("x")
        assert bool(read("data").manifest["raw"]) == remembered


WRITERS = {
    "file": "stack.enter_context(atomic.atomic_file(folder / 'table.csv')).write_text('half')",
    "scratch": "(Run('01_preprocessing', {'study': 'trial', 'subject': 'sub-01'}).scratch() / 'x.csv').write_text('4 GB')",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_process_leaves_is_no_table_and_goes_at_the_next_start(study, kind):
    folder = paths.study_dir(STUDY)
    code = (
        "import contextlib, sys, time; from pathlib import Path\n"
        "from sgdm_utils.workflow import atomic; from sgdm_utils.workflow.notebook import Run\n"
        "stack, folder = contextlib.ExitStack(), Path(sys.argv[1])\n"
        f"{WRITERS[kind]}\nprint('writing', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=paths.project_root(),
    )
    try:
        assert child.stdout.readline() == "writing\n"
        atomic.sweep(folder)
        assert len(leftovers(folder / "x")) == 1  # its process is alive
        assert not list(folder.glob("*.csv"))
    finally:
        child.kill()
        child.wait()
    atomic.sweep(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError("64 requested and 32 written"), RuntimeError("file write failed")]
)
def test_a_full_disk_is_seen_behind_the_words_of_numpy_and_torch(tmp_path, monkeypatch, error):
    def usage(path):
        return shutil._ntuple_diskusage(100, 100, 0)

    with pytest.raises(type(error), match=str(error)):
        with atomic.atomic_file(tmp_path / "x.npy"):
            raise error
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(atomic.DiskFull, match="is full: 0.0 MB are free and x.npy needs"):
        with atomic.atomic_file(tmp_path / "x.npy"):
            raise error


def test_a_lock_says_who_holds_it_and_others_may_take_it(tmp_path):
    file = tmp_path / ".engine.lock"
    with locks.held(file, "study 'demo'"):
        assert file.stat().st_mode & 0o777 == 0o666
        with pytest.raises(locks.BusyError, match=rf"study 'demo' .*process {os.getpid()} of "):
            with locks.held(file, "study 'demo'"):
                pass
    with locks.held(file, "study 'demo'"):
        pass


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with two rooms and faces, and a notebook folder; digests look there."""
    root = tmp_path / "sgdm_utils"
    for name, source in {
        "helper": "x = 1",
        "metrics/__init__": "import lazy_loader",
        "metrics/pixels": "from sgdm_utils.metrics import parts\nfrom sgdm_utils.signals.files import f",
        "metrics/parts": "import sgdm_utils.helper",
        "metrics/audits": "x = 1",
        "metrics/page": 'HERE = Path(__file__).parent / "assets"',
        "signals/__init__": "",
        "signals/files": "from sgdm_utils.workflow.paths import project_root",
        "workflow/__init__": "",
        "workflow/digests": "",
        "workflow/paths": "x = 1",
        "workflow/downloads/__init__": "",
        "workflow/downloads/fetch": "x = 1",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(source)
    (root / "metrics/__init__.pyi").write_text(
        "from . import page\nfrom .audits import enforce\nfrom .pixels import pixcorr, ssim\n"
    )
    (root / "workflow/__init__.pyi").write_text(
        "from .paths import STAGES\nfrom .downloads.fetch import fetch\n"
    )
    (root / "metrics/assets").mkdir()
    (root / "metrics/assets/page.css").write_text("a{}")
    monkeypatch.setattr(digests, "__file__", str(root / "workflow/digests.py"))
    digests._face.cache_clear()
    return root


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline\nfrom sgdm_utils import metrics, workflow\nmetrics.pixcorr(workflow.STAGES)",
        "from sgdm_utils import metrics as m\nm.ssim(1)",
        "from sgdm_utils.metrics import pixcorr",
        "from sgdm_utils.metrics import pixels",
        "from sgdm_utils.metrics.pixels import pixcorr",
        "import sgdm_utils.metrics.pixels",
    ],
)
def test_the_modules_behind_a_notebook_are_found_in_every_spelling(package, source):
    found = digests.module_digests([source])
    assert list(found) == ["helper", "metrics.parts", "metrics.pixels", "signals.files"]
    (package / "helper.py").write_text('"""Now with a docstring."""\n\nx = 1  # and a comment\n')
    assert digests.module_digests([source]) == found
    (package / "helper.py").write_text("x = 2")
    assert digests.module_digests([source]) != found


def test_an_edit_concerns_those_who_use_the_name_and_not_the_whole_room(package):
    """Editing the audits makes the evaluation stale and leaves the training of the encoder alone."""
    audit, score = (
        "from sgdm_utils import metrics\nmetrics.enforce()",
        "from sgdm_utils import metrics",
    )
    sources = {"06": [audit], "02": [score, "metrics.pixcorr(a)"]}
    before = {name: digests.module_digests(cells) for name, cells in sources.items()}
    (package / "metrics/audits.py").write_text("x = 2")
    after = {name: digests.module_digests(cells) for name, cells in sources.items()}
    assert before["06"] != after["06"] and before["02"] == after["02"]


def test_what_is_used_whole_counts_whole_and_downloads_count(package):
    whole = digests.module_digests(["from sgdm_utils import metrics\nshow(metrics)"])
    assert {"metrics.audits", "metrics.page", "metrics.pixels"} <= set(whole)
    fetched = digests.module_digests(["from sgdm_utils import workflow\nworkflow.fetch('x')"])
    assert list(fetched) == ["workflow.downloads.fetch"]


def test_style_sheets_and_modules_beside_the_notebook_count(package, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    source = "import mine\nfrom sgdm_utils.metrics import page"
    found = digests.module_digests([source], tmp_path)
    assert list(found) == ["./mine", "metrics.page"]
    (package / "metrics/assets/page.css").write_text("a{color:red}")
    (tmp_path / "mine.py").write_text("x = 2")
    again = digests.module_digests([source], tmp_path)
    assert all(again[name] != found[name] for name in found)


def test_an_empty_cell_or_a_comment_costs_nothing(study):
    before = digests.notebook_code_digest("00_data")
    book = nbformat.read(paths.notebook_path("00_data"), as_version=4)
    book.cells += [nbformat.v4.new_code_cell(""), nbformat.v4.new_code_cell("# a thought")]
    nbformat.write(book, paths.notebook_path("00_data"))
    assert digests.notebook_code_digest("00_data") == before


def test_text_that_looks_like_a_comment_or_a_docstring_stays_code():
    assert digests.essence('x = "# no comment"') == 'x = "# no comment"'
    assert digests.essence('x = """no\ndocstring"""') == 'x = """no\ndocstring"""'
    assert digests.essence('def f():\n    """Doc."""\n    return 1') == "def f():\n    return 1"


def test_the_manifest_is_stable_where_nothing_changed(study):
    one = write("data", size=3).manifest
    two = write("data", size=3).manifest
    assert one["identity"] == two["identity"]
    assert one["content_digest"] == two["content_digest"]
    assert json.loads(json.dumps(one)) == one
