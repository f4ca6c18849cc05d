"""A notebook that ends before its last cell: the rest says so and is not run."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell

from sgdm_utils.workflow.notebook import Run

PARAMETERS = {"study": "demo", "seed": 0}


def test_cells_below_say_that_they_are_not_run(monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shell.user_ns["run"] = Run("05_diffusion_training", PARAMETERS)
    first = shell.run_cell("run.finish('nothing is trained')\nafterwards = 1")
    assert first.success and shell.user_ns["afterwards"] == 1  # its own cell runs to the end
    capsys.readouterr()
    for cell in ("afterwards = 2", "raise ValueError", "%matplotlib inline\n1 / 0"):
        assert shell.run_cell(cell).success
        assert capsys.readouterr().out == "not run: nothing is trained\n"
    assert shell.user_ns["afterwards"] == 1


def test_outside_of_a_notebook_it_cannot_leave_cells_out(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    with pytest.raises(RuntimeError, match=r"05_diffusion_training ends here \(why\)"):
        Run("05_diffusion_training", PARAMETERS).finish("why")
