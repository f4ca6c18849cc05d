"""Trainings that are killed inside the notebooks 02 to 05 go on there and end with the same bytes."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from sgdm_utils.workflow import config, paths, run

pytestmark = pytest.mark.slow

#: Lets every process die by SIGKILL right after the first time that it saves the state of a training.
DIE = """
import os, signal, sys
if any("ipykernel" in word for word in sys.orig_argv):
    from sgdm_utils.generation.checkpoints import TrainingState

    save = TrainingState.save

    def save_and_die(self, step, history):
        save(self, step, history)
        mark = os.path.join({folder!r}, self.path.name)
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingState.save = save_and_die
"""


@pytest.mark.parametrize(
    ("notebook", "trainings"),
    [
        ("02_encoder_pretraining", ["pretraining"]),
        ("02b_clip", ["clip"]),
        ("03_contrastive_alignment", ["alignment"]),
        ("04_structure_decoding", ["structure", "vae"]),
        ("05_diffusion_training", ["diffusion", "vae"]),
    ],
)
def test_a_training_that_was_killed_ends_with_the_same_bytes(
    smoke_run, tmp_path, monkeypatch, notebook, trainings
):
    study, data = smoke_run.config, tmp_path / "data"
    shutil.copytree(smoke_run.data, data)
    monkeypatch.setenv("SGDM_DATA", str(data))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "sitecustomize.py").write_text(DIE.format(folder=str(marks)))
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", search)

    step = config.step(study, notebook, None, study.seeds[0])
    wanted = json.loads((step.artifact / "manifest.json").read_text())["files"]
    shutil.rmtree(step.artifact)
    states = step.artifact.parent / f"{step.stage}_training"
    for n in range(len(trainings)):
        with pytest.raises(run.NotebookFailed, match="kernel died"):
            run.execute(study, step)
        assert len(list(marks.iterdir())) == len(list(states.glob("*.pt"))) == n + 1
    run.execute(study, step)
    assert sorted(p.stem for p in marks.iterdir()) == trainings
    assert json.loads((step.artifact / "manifest.json").read_text())["files"] == wanted
    assert not states.exists()
    log = paths.report_dir("smoke") / "logs" / f"{step.executed.stem}.log"
    assert log.read_text().count("kernel died") == len(trainings)
