"""The runner and the graph, on a miniature project whose notebooks take a second each."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from fake_study import FakeProject

from sgdm_utils.workflow import config as study_config
from sgdm_utils.workflow import locks, paths

FOR_EACH_SEED = ["02", "02b", "03", "04", "04b", "05", "05b", "06", "07"]


@pytest.fixture
def project(tmp_path):
    return FakeProject.create(tmp_path / "project")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A miniature project after one complete run of the graph; copy it before you change it."""
    project = FakeProject.create(tmp_path_factory.mktemp("project"))
    done = project.snakemake("--quiet", "all")
    assert done.returncode == 0, done.stderr
    numbers = [name.split("_")[0] for name in ran(done)]
    assert sorted(numbers) == ["00", "01", "01", *FOR_EACH_SEED]
    return project


@pytest.fixture
def complete(finished, tmp_path):
    """A copy of the finished project that a test may change."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True, symlinks=True)
    return FakeProject(tmp_path)


def ran(done: subprocess.CompletedProcess) -> list[str]:
    """Return what ran to its end, in order."""
    return re.findall(r"^\[(.*)\] done in", done.stderr, re.MULTILINE)


def test_a_notebook_runs_and_leaves_an_executed_copy_without_absolute_paths(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = project.run("00_data", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert list(elsewhere.iterdir()) == []
    assert json.loads((project.artifact("joint", "data") / "manifest.json").read_text())
    executed = project.root / "reports/demo/executed/joint_00_data.ipynb"
    assert str(project.root) not in executed.read_text()
    book = nbformat.read(executed, as_version=4)
    assert [c.execution_count for c in book.cells if c.cell_type == "code"] == [1, 2, 3]
    assert [path.name for path in executed.parent.iterdir()] == [executed.name]


def test_the_time_and_the_memory_are_told_at_the_end(project):
    *bar, last = project.run("00_data").stderr.splitlines()
    assert "100%" in bar[-1] and bar[-1].startswith("00_data")
    assert re.fullmatch(r"\[00_data\] done in 0:\d\d, peak \d\.\d GB", last)


def records(project, stem: str) -> list[str]:
    """What the log of a step holds, without the times."""
    text = (project.root / f"reports/demo/logs/{stem}.log").read_text(encoding="utf-8")
    return [record.rstrip() for record in re.split(r"^\d{4}-\S+Z ", text, flags=re.M)[1:]]


def test_the_log_of_a_step_holds_every_attempt(project):
    project.run("00_data")
    project.edit_notebook("00_data", "values =", "import os; os._exit(9)\nvalues =")
    project.run("00_data")
    began, done, again, died = records(project, "joint_00_data")
    assert began.startswith("started on ") and again.startswith("started on ")
    assert re.fullmatch(r"done in 0:\d\d, peak \d\.\d GB", done)
    assert died.startswith("failed\n[00_data] the kernel died after")


def test_figures_are_kept_where_the_environment_asks_for_none(project, monkeypatch):
    """Clusters set MPLBACKEND=Agg: the executed copy would hold no figure, and nobody be told."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    drawing = "import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()\nvalues ="
    project.edit_notebook("00_data", "values =", drawing)
    done = project.run("00_data")
    assert done.returncode == 0, done.stderr
    book = nbformat.read(project.root / "reports/demo/executed/joint_00_data.ipynb", as_version=4)
    kinds = [kind for c in book.cells for o in c.get("outputs", ()) for kind in o.get("data", {})]
    assert "image/png" in kinds


def test_defaults_are_not_injected_and_other_values_are(project):
    project.write_config("{00_data: {size: 9}}", seeds="[0, 5]")
    assert project.run("00_data").returncode == 0
    book = nbformat.read(project.root / "reports/demo/executed/joint_00_data.ipynb", as_version=4)
    injected = [c.source for c in book.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and "size = 9" in injected[0] and "study" not in injected[0]
    manifest = json.loads((project.artifact("joint", "data") / "manifest.json").read_text())
    assert manifest["identity"]["parameters"] == {"study": "demo", "size": 9, "seed": 7}


def test_a_failing_cell_gives_its_own_message_the_place_and_the_copy(project):
    done = project.run("03_contrastive_alignment", "--seed", "0")
    assert done.returncode == 1
    assert "failed in cell In [2] of section 'Reading'" in done.stderr
    assert "MissingArtifactError: 'data' of joint in study 'demo' is not there" in done.stderr
    assert "python -m sgdm_utils run 00_data --study demo" in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr and "\x1b" not in done.stderr
    copy = re.search(r"Executed copy: (\S+)", done.stderr).group(1)
    book = nbformat.read(project.root / copy, as_version=4)
    errors = [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert [error.ename for error in errors] == ["MissingArtifactError"]
    began, failed = records(project, "joint_seed-0_03_contrastive_alignment")
    assert began.endswith("run 03_contrastive_alignment --study demo --seed 0")
    assert failed == f"failed\n{done.stderr[done.stderr.index('[03_') :]}".rstrip()
    assert re.search(r"^After 0:\d\d, peak \d\.\d GB\.", failed, re.MULTILINE)


def test_a_kernel_that_dies_is_reported_with_its_memory(project):
    project.edit_notebook("00_data", "values =", "import os; os._exit(9)\nvalues =")
    done = project.run("00_data")
    assert done.returncode == 1
    assert "the kernel died after" in done.stderr and "ran out of memory" in done.stderr


def test_a_notebook_that_forgets_its_artifact_has_failed(complete):
    complete.edit_notebook("00_data", "values =", "import sys; raise SystemExit(0)\nvalues =")
    done = complete.run("00_data")
    assert done.returncode == 1
    assert "did not write data/derived/demo/joint/data" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("00_dta",), "there is no notebook '00_dta' in notebooks. Did you mean 00_data?"),
        (("00_data", "--study", "dmo"), "there is no study 'dmo': config/dmo.yaml does not exist"),
        (("01_preprocessing",), "--subject is needed; choose from: sub-01, sub-02"),
        (("00_data", "--seed", "0"), "takes no seed"),
    ],
)
def test_what_cannot_run_is_refused_before_it_runs(project, arguments, expected):
    done = project.run(*arguments)
    assert done.returncode == 1
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert not (project.root / "reports").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [("{sice: 3}", "Did you mean size or seed?"), ("{size: 1e3}", "write 1000")],
)
def test_a_parameter_that_does_not_fit_is_refused_by_runner_and_graph(project, values, expected):
    project.write_config(f"{{00_data: {values}}}")
    for done in (project.run("00_data"), project.snakemake("--quiet", "all")):
        assert done.returncode == 1
        assert expected in done.stderr + done.stdout
    assert not (project.root / "reports").exists()


def test_papermill_comes_without_the_grammar_of_addresses(project):
    """It would take a second before each notebook; jsonschema still loads it for who asks later."""
    code = (
        "import sys; from sgdm_utils.workflow import run; run._papermill(); "
        "assert 'jsonschema' in sys.modules and 'rfc3987_syntax' not in sys.modules; "
        "import rfc3987_syntax"
    )
    done = project.python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_plan_is_listed(project):
    project.write_config(seeds="[0, 1]")
    lines = project.run("--list").stdout.splitlines()
    assert len(lines) == 1 + 2 + 2 * 9
    assert lines[2] == "python -m sgdm_utils run 01_preprocessing --study demo --subject sub-02"


def test_termination_ends_the_kernel_too(project):
    project.edit_notebook(
        "00_data", "values =", "open('begun', 'w'); import time; time.sleep(60)\nvalues ="
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "sgdm_utils", "run", "00_data"],
        cwd=project.root,
        env=project.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (project.root / "notebooks" / "begun").exists():
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert records(project, "joint_00_data")[-1] == "stopped by KeyboardInterrupt"
    assert "interrupted" in process.stderr.read()
    process.stderr.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_the_graph_writes_every_artifact_and_then_has_nothing_to_do(complete):
    for stage in paths.STAGES.values():
        for who in ("sub-01", "sub-02") if stage.per_subject else ("joint",):
            folder = complete.artifact(who, stage.name, 0 if stage.per_seed else None)
            assert (folder / "manifest.json").is_file(), folder
    assert (complete.root / "reports/demo/index.html").is_file()
    done = complete.snakemake("--quiet", "all")
    assert (done.returncode, ran(done)) == (0, [])


def test_every_seed_gets_a_page_of_its_own(complete):
    complete.write_config(seeds="[0, 3]")
    done = complete.snakemake("--quiet", "all")
    assert done.returncode == 0, done.stderr
    assert sorted(name.split("_")[0] for name in ran(done)) == FOR_EACH_SEED
    assert (complete.root / "reports/demo/seed-3/index.html").is_file()
    assert not (complete.root / "reports/demo/seed-0").exists()


@pytest.mark.parametrize(
    ("people", "seeds", "extra", "steps"),
    [
        ("[sub-01]", "[0]", "", 2 + 9),
        ("[sub-01, sub-02]", "[0, 1, 2]", "", 3 + 3 * 9),
        ("[sub-01, sub-02, sub-A3]", "[4]", "extra_seeds: [1, 2]", 4 + 9 + 2 * 8),
        ("[sub-01]", "[5, 6]", "until: 04_structure_decoding", 2 + 2 * 4),
    ],
)
def test_the_graph_plans_every_shape_of_a_study(project, people, seeds, extra, steps):
    project.write_config(seeds=seeds, extra=extra, people=people)
    done = project.snakemake("--dry-run", "--config", "study=demo", "extra_seeds=true")
    assert done.returncode == 0, done.stderr
    planned = re.findall(r"^total +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    assert int(planned[0]) == steps + 1  # "all" is a job, too


@pytest.mark.parametrize("study", study_config.studies())
def test_the_graph_plans_every_committed_study(study, tmp_path):
    environment = os.environ | {
        "SGDM_DATA": str(tmp_path / "d"),
        "SGDM_REPORTS": str(tmp_path / "r"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--nolock",
         "--config", f"study={study}"],
        cwd=paths.project_root(), env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    n_steps = len(study_config.plan(study_config.load_study(study)))
    planned = re.findall(r"^total +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    assert int(planned[0]) == n_steps + 1  # "all" is a job, too


@pytest.mark.parametrize(("settings", "card"), [([], "gpu=1"), (["card=shard:1"], "gres=shard:1")])
def test_a_cluster_is_asked_for_cards_memory_and_time(project, settings, card):
    done = project.snakemake("--dry-run", "--config", "study=demo", *settings)
    found = dict(re.findall(r"^rule ([\w-]+):.*?^    resources: (.*?)$", done.stdout, re.M | re.S))
    wants = {name.split("_")[0] for name, text in found.items() if card in text.split(", ")}
    assert wants == {"02", "02b", "03", "04", "05", "06"}, done.stderr
    assert all("tasks=1" in found[name] for name in found if name.split("_")[0] in wants)
    assert "mem_mb=32000" in found["05_diffusion_training_seed0"]
    steps = {name: text for name, text in found.items() if name != "all"}
    assert len(steps) == 12
    assert all("mem_mb=" in text and "runtime=" in text for text in steps.values())


@pytest.mark.parametrize("threads", ["3", None])
def test_the_graph_leaves_the_number_of_threads_alone(project, monkeypatch, threads):
    """Snakemake would let every notebook compute with one thread."""
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("MKL_NUM_THREADS", threads)
    project.write_helper("__import__('os').environ.get('MKL_NUM_THREADS')")
    done = project.snakemake("--quiet", "all", "--until", "00_data")
    assert done.returncode == 0, done.stderr
    found = (project.artifact("joint", "data") / "numbers.txt").read_text(encoding="utf-8")
    assert found == str(threads)


def test_the_graph_follows_what_can_change_a_number_and_nothing_else(complete):
    complete.write_helper("len(values)", comment="an edit of a comment")
    book = complete.root / "notebooks/03_contrastive_alignment.ipynb"
    book.write_text(book.read_text().replace('"execution_count": null', '"execution_count": 4'))
    done = complete.snakemake("--quiet", "all")
    assert (done.returncode, ran(done)) == (0, [])
    complete.write_config("{06_evaluation: {rate: 0.25}}")
    done = complete.snakemake("--quiet", "all")
    later = ["06_evaluation seed 0", "07_figures seed 0"]
    assert (done.returncode, ran(done)) == (0, later), done.stderr
    # the structure does not read the alignment, so another alignment leaves it alone
    complete.write_config("{03_contrastive_alignment: {rate: 0.25}, 06_evaluation: {rate: 0.25}}")
    done = complete.snakemake("--quiet", "all")
    later = [
        f"{name} seed 0"
        for name in ("03_contrastive_alignment", "04b_forward_model", "05b_pipeline")
    ] + later
    assert (done.returncode, ran(done)) == (0, later), done.stderr
    complete.write_helper("len(values) + 1")
    done = complete.snakemake("--quiet", "all", "--until", "01_preprocessing_sub-02")
    assert (done.returncode, ran(done)) == (0, ["00_data", "01_preprocessing sub-02"])


@pytest.mark.parametrize("threads, together", [("", True), ("1", True), ("2", False)])
def test_trainings_that_leave_a_core_free_run_side_by_side(
    complete, monkeypatch, threads, together
):
    """What smoke saves its time with: alignment and structure do not read one another."""
    meet = """
import time
from pathlib import Path
here, other = (Path("..") / name for name in ({here!r}, {other!r}))
here.touch()
end = time.monotonic() + {patience}
while not (met := other.exists()) and time.monotonic() < end:
    time.sleep(0.05)
if not met: here.unlink()
assert met == {together}
values ="""
    names = ["03_contrastive_alignment", "04_structure_decoding"]
    for here, other in (names, names[::-1]):
        cell = meet.format(
            here=here, other=other, together=together, patience=60 if together else 3
        )
        complete.edit_notebook(here, "values =", cell.strip())
    environment = complete.environment() | {"OMP_NUM_THREADS": threads}
    monkeypatch.setattr(FakeProject, "environment", lambda self: environment)
    wanted = ["--until", *(f"{name}_seed0" for name in names)]
    done = complete.snakemake("--quiet", "all", "--cores", "2", "--resources", "gpu=2", *wanted)
    assert done.returncode == 0, done.stderr
    assert sorted(ran(done)) == [f"{name} seed 0" for name in names]


def test_a_failing_notebook_stops_the_graph_keeps_the_old_result_and_runs_again(complete):
    old = (complete.artifact("joint", "structure", 0) / "manifest.json").read_text()
    complete.edit_notebook("04_structure_decoding", "values =", 'assert 0, "no lines"\nvalues =')
    done = complete.snakemake("--quiet", "all")
    assert done.returncode == 1
    assert ran(done) == []
    words = "[04_structure_decoding seed 0] failed in cell In [3] of section 'Writing the result'\n"
    last = done.stderr[done.stderr.rindex(words) :].splitlines()
    assert last[1] == "AssertionError: no lines" and last[2].startswith("After ") and len(last) == 3
    assert (complete.artifact("joint", "structure", 0) / "manifest.json").read_text() == old
    copy = complete.root / "reports/demo/executed/joint_seed-0_04_structure_decoding.ipynb"
    assert "no lines" in copy.read_text()
    complete.edit_notebook("04_structure_decoding", 'assert 0, "no lines"\n', "")
    done = complete.snakemake("--quiet", "all", "--until", "04_structure_decoding_seed0")
    assert (done.returncode, ran(done)) == (0, ["04_structure_decoding seed 0"]), done.stderr
    words = [text.split()[0] for text in records(complete, "joint_seed-0_04_structure_decoding")]
    assert words == ["started", "done", "started", "failed", "started", "done"]


def everything(root):
    """Every file below a folder, by name, with its content."""
    files = (p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_a_plan_says_why_and_changes_nothing_on_the_disk(complete):
    before = everything(complete.root)
    complete.write_config("{06_evaluation: {rate: 0.25}}")
    done = complete.snakemake("--dry-run")
    assert "06_evaluation_seed0: rate is 0.25 and was 0.5" in done.stdout
    assert "07_figures_seed0: reads 06_evaluation_seed0" in done.stdout
    assert "2 steps to run, about 0 min one after the other and 0 MB of disk" in done.stdout
    complete.write_config()
    assert everything(complete.root) == before
    done = complete.snakemake("--quiet", "all")
    assert (done.returncode, ran(done)) == (0, [])


def test_a_copy_without_dates_in_a_folder_with_any_name_is_complete(complete, tmp_path):
    copy = FakeProject(tmp_path / "it's a [copy]")
    shutil.copytree(
        complete.root, copy.root, ignore=shutil.ignore_patterns(".snakemake", copy.root.name)
    )
    for n, path in enumerate(sorted(copy.root.rglob("*"), reverse=True)):
        os.utime(path, (n, n))
    done = copy.snakemake("--quiet", "all")
    assert (done.returncode, ran(done)) == (0, []), done.stderr
    copy.write_config("{07_figures: {rate: 0.25}}")
    done = copy.snakemake("--quiet", "all")
    assert (done.returncode, ran(done)) == (0, ["07_figures seed 0"]), done.stderr


def test_the_engine_notices_a_correction_of_the_recording(complete):
    channels = complete.root / "data/raw/recorded/sub-01/channels.tsv"
    channels.parent.mkdir(parents=True)
    channels.write_text("O1 good")
    book = "01_preprocessing"
    remember = "recording=raw.describe('recorded', [subject], True), notes=notes"
    complete.edit_notebook(book, "notes=notes", remember)
    complete.edit_notebook(
        book, "import helper", "import helper\nfrom sgdm_utils.workflow import raw"
    )
    complete.edit_notebook(
        book, "import raw, workflow", "import raw\nfrom sgdm_utils import workflow"
    )
    only = ("--quiet", "all", "--until", "01_preprocessing_sub-01", "01_preprocessing_sub-02")
    assert complete.snakemake(*only).returncode == 0
    assert ran(complete.snakemake(*only)) == []
    channels.write_text("O1 bad!")
    assert ran(complete.snakemake(*only)) == ["01_preprocessing sub-01"]


def test_a_second_engine_and_a_run_beside_it_are_told_who_computes(project):
    study = project.root / "data/derived/demo"
    code = (
        "import time; from sgdm_utils.workflow import locks, run\n"
        "locks.hold_until_exit(run.engine_lock('demo'), 'study')\n"
        "print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=project.root, env=project.environment(),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        for done in (project.snakemake("--quiet", "all"), project.run("00_data")):
            assert done.returncode == 1 and ran(done) == []
            assert f"study 'demo' is being computed by process {holder.pid} of" in done.stderr
            assert "Traceback" not in done.stderr
        assert project.snakemake("--dry-run").returncode == 0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert project.run("00_data").returncode == 0  # the lock died with its process
    assert study.is_dir()


def test_the_same_step_is_not_computed_twice_at_once(project):
    step = project.artifact("joint", "data").parent / ".data.running.lock"
    with locks.held(step, "00_data"):
        code = "from sgdm_utils.workflow import run; run._PATIENCE_S = 0; run.main(['00_data'])"
        done = project.python("-c", code)
    assert "[00_data] is being computed by process" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("closed", ["data", "reports", "project"])
def test_folders_that_cannot_be_written_end_in_one_sentence_or_do_not_matter(
    project, tmp_path, closed
):
    """For root, who may write everywhere, folders are mounted read-only."""
    places = {name: tmp_path / "elsewhere" / name for name in ("data", "reports", "home")}
    for folder in places.values():
        folder.mkdir(parents=True)
    places["project"] = project.root
    shut = [places[name] for name in {closed, "project", "home"}]
    environment = project.environment() | {
        "SGDM_DATA": str(places["data"]),
        "SGDM_REPORTS": str(places["reports"]),
        "HOME": str(places["home"]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),  # as the Makefile has it
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "study=demo"]
    command += ["--quiet", "all", "--until", "00_data"]
    if os.getuid() == 0:
        mount = "".join(f"mount --bind {f} {f} && mount -o remount,ro,bind {f} && " for f in shut)
        command = ["unshare", "--mount", "sh", "-c", f"{mount} cd . && exec {shlex.join(command)}"]
        if subprocess.run([*command[:4], mount + "true"], capture_output=True).returncode:
            pytest.skip("root may not mount folders read-only on this machine")
    else:
        for folder in (path for top in shut for path in (top, *top.rglob("*")) if path.is_dir()):
            folder.chmod(0o555)
    done = subprocess.run(
        command, cwd=project.root, env=environment, capture_output=True, text=True, timeout=300
    )
    for folder in (path for top in shut for path in (top, *top.rglob("*")) if path.is_dir()):
        folder.chmod(0o755)
    if closed == "project":
        assert done.returncode == 0, done.stderr
        assert ran(done) == ["00_data"]
    else:
        assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
        assert str(places[closed]) in done.stderr and "cannot be written" in done.stderr
        assert f"SGDM_{closed.upper()}" in done.stderr


def test_status_names_what_is_fresh_stale_and_missing(complete):
    damaged = complete.artifact("joint", "structure", 0) / "numbers.txt"
    text = damaged.read_text()
    damaged.write_text("X" * len(text))
    shutil.rmtree(complete.artifact("joint", "reconstructions", 0))
    done = complete.python("-m", "sgdm_utils", "status")
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.split()[1:]}
    assert lines["00_data"].startswith("fresh") and lines["06_evaluation_seed0"].startswith(
        "missing"
    )
    assert lines["04_structure_decoding_seed0"].startswith("fresh")
    assert (
        "'reconstructions' of joint, seed 0 in study 'demo', from which"
        in lines["07_figures_seed0"]
    )
    done = complete.python("-m", "sgdm_utils", "status", "--verify")
    assert done.returncode == 1
    assert "SHA-256 differs" in done.stdout
    assert "stale   06" not in done.stdout and "5 " not in done.stdout.splitlines()[0]


def test_a_result_made_by_hand_with_other_parameters_is_not_taken_for_the_study(complete):
    complete.write_config("{02_encoder_pretraining: {rate: 0.25}}")
    assert complete.run("02_encoder_pretraining", "--seed", "0").returncode == 0
    complete.write_config()
    done = complete.snakemake("--quiet", "all", "--until", "02_encoder_pretraining_seed0")
    assert ran(done) == ["02_encoder_pretraining seed 0"], done.stderr


def test_a_damaged_result_is_made_anew(complete):
    os.truncate(complete.artifact("sub-02", "preprocessing") / "numbers.txt", 0)
    done = complete.snakemake("--quiet", "all", "--until", "01_preprocessing_sub-02")
    assert ran(done) == ["01_preprocessing sub-02"], done.stderr


def test_a_killed_run_of_the_graph_goes_on_where_it_was(complete):
    complete.write_config("{06_evaluation: {rate: 0.25}}")
    complete.edit_notebook("06_evaluation", "values =", "import time; time.sleep(60)\nvalues =")
    profile = str(complete.root / "config/profiles/local")
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--profile", profile, "--config", "study=demo"],
        cwd=complete.root,
        env=complete.environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    executed = complete.root / "reports/demo/executed"
    while not list(executed.glob("*06_evaluation*.running.ipynb")):
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(5)  # now it sleeps in its last cell
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # the kernel notices that its parent is gone
    complete.edit_notebook("06_evaluation", "import time; time.sleep(60)\n", "")
    done = complete.python("-m", "snakemake", "--profile", profile, "--config", "study=demo")
    assert done.returncode == 0, done.stderr
    assert ran(done) == ["06_evaluation seed 0", "07_figures seed 0"]
    assert not list(executed.glob("*.running.ipynb"))


def test_what_killed_processes_left_of_complete_steps_is_put_away(complete):
    """Nothing runs a complete step again, so nothing but the next start can tidy up behind it."""
    reports, seed = complete.root / "reports/demo", complete.artifact("joint", "pipeline", 0).parent
    executed = {
        n: reports / f"executed/joint_seed-0_{n}.ipynb" for n in ("05b_pipeline", "06_evaluation")
    }
    copies = {name: path.with_suffix(".4711.running.ipynb") for name, path in executed.items()}
    for name, path in executed.items():
        shutil.copy(path, copies[name])
    executed["06_evaluation"].unlink()  # killed before its copy had its name
    token = "0" * 12
    parts = [reports / "figures" / f".a.png.{token}.part", seed.parent / f".b.{token}.part"]
    states = {stage: seed / f"{stage}_training" for stage in ("pipeline", "encoder")}
    for folder in (*parts, *states.values()):
        folder.mkdir(parents=True)
        (folder / "state.pt").touch()
    os.utime(states["pipeline"] / "state.pt", (0, 0))  # older than the result; the other is younger
    left = [*copies.values(), *parts, *states.values()]
    done = complete.snakemake("--quiet", "all", "--dry-run")
    assert done.returncode == 0 and all(path.exists() for path in left), done.stderr
    with locks.held(seed / ".pipeline.running.lock", "another process"):
        assert complete.snakemake("--quiet", "all").returncode == 0
    held = {copies["05b_pipeline"], states["pipeline"]}
    assert {path for path in left if path.exists()} == held
    assert executed["06_evaluation"].is_file()
    done = complete.snakemake("--quiet", "all")
    assert (done.returncode, ran(done)) == (0, []), done.stderr
    assert not [path for path in left if path.exists()]
    complete.write_config("{03_contrastive_alignment: {rate: 0.25}}")
    states["encoder"].mkdir()  # of a result that is not there yet: it goes on from here
    (states["encoder"] / "state.pt").touch()
    done = complete.snakemake("--quiet", "all", "--until", "02_encoder_pretraining_seed0")
    assert done.returncode == 0 and states["encoder"].is_dir(), done.stderr


def test_a_step_whose_engine_ended_while_it_waited_is_not_run(complete):
    before = (complete.artifact("joint", "encoder_pretrained", 0) / "manifest.json").read_text()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    arguments = ["-m", "sgdm_utils", "run", "02_encoder_pretraining", "--seed", "0"]
    for process, code in ((ended.pid, 1), (os.getpid(), 0)):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=complete.root, capture_output=True, text=True,
            env=complete.environment() | {locks.ENGINE: f"{platform.node()}:{process}"},
        )  # fmt: skip
        after = (complete.artifact("joint", "encoder_pretrained", 0) / "manifest.json").read_text()
        assert (done.returncode, after == before) == (code, code == 1), done.stderr
        if code:
            assert "the engine that asked for it has ended" in done.stderr
