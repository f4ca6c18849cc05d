"""A study whose pictures a pretrained generator draws: 05 trains nothing, 05b puts it behind the EEG decoder."""

from __future__ import annotations

import dataclasses
import shutil

import nbformat
import pytest
import torch
from tiny_generators import write_parts

from sgdm_utils import generation
from sgdm_utils.workflow import artifacts, config, run


def printed(executed):
    """What each code cell of an executed notebook printed."""
    return [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in nbformat.read(executed, as_version=4).cells
        if cell.cell_type == "code"
    ]


def test_notebook_05_leaves_drawing_to_a_pretrained_generator(smoke_study, tmp_path, monkeypatch):
    shutil.copytree(smoke_study.data / "derived" / "smoke", tmp_path / "data" / "derived" / "smoke")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    parts = write_parts(tmp_path / "parts", "sdxl_turbo", embed_dim=64)
    chosen = {
        "generator": "pretrained",
        "pretrained_model": str(parts.model),
        "pretrained_controlnet": str(parts.controlnet),
        "pretrained_adapter": str(parts.ip_adapter),
    }
    notebooks = smoke_study.config.notebooks | {"05_diffusion_training": chosen}
    study = dataclasses.replace(smoke_study.config, notebooks=notebooks)
    for notebook, rest in (("05_diffusion_training", 30), ("05b_pipeline", 8)):
        text = printed(run.execute(study, config.step(study, notebook, None, 0)))
        last_run = next(i for i, line in enumerate(text) if "the cells below are not run" in line)
        assert last_run < len(text) - rest
        assert set(text[last_run + 1 :]) == {"not run: a pretrained generator draws\n"}

    drawing = artifacts.read_artifact("smoke", "joint", "generator", 0)
    with pytest.raises(ValueError, match="draws with a pretrained generator"):
        generation.open_pipeline(drawing)
    assert generation.open_parts(drawing).embed_dim == 64
    artifact = artifacts.read_artifact("smoke", "joint", "pipeline", 0)
    assert not any(name.startswith("model/") for name in artifact.manifest["files"])
    pipe = generation.open_generator(artifact, "cpu", torch.float32, verify=True)
    assert isinstance(pipe, generation.PretrainedPipeline) and pipe.networks.embed_dim == 64
    assert list(pipe.decoder.config.subjects) == list(study.subjects)
    pictures = pipe.generate(
        torch.zeros(1, 64),
        torch.zeros(1, 2, 64, 64),
        category=torch.full((1, 16), 1 / 16),
        num_inference_steps=1,
        generator=[torch.Generator().manual_seed(0)],
        embedding_noise=float(pipe.decoder.meaning_noise[0]),
    )
    assert pictures.shape == (1, 64, 64, 3)
