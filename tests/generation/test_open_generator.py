"""A pretrained generator as a study's own: what notebook 05 writes about it and 06 draws with."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_generators import EMBED_DIM, SIZE, write_parts
from torch.nn import functional as F

from sgdm_utils import generation
from sgdm_utils.decoding.trained import Targets
from sgdm_utils.generation import pipeline
from sgdm_utils.generation.decoder import EEGDecoder
from sgdm_utils.generation.pretrained import stored
from sgdm_utils.generation.pretrained.parts import FAMILIES
from sgdm_utils.workflow.downloads import catalogue

BOTH = pytest.mark.parametrize("family", list(FAMILIES))
STUDY_SIZE = 8  # pixels; the generators draw 16
CENTER, SPREAD = np.linspace(-1, 1, EMBED_DIM), np.linspace(0.5, 2, EMBED_DIM)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, SimpleNamespace]:
    return {name: write_parts(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture(scope="module")
def decoder() -> EEGDecoder:
    torch.manual_seed(0)
    encoder = dict(n_chans=3, n_times=40, sfreq=100.0, n_subjects=1, n_virtual=8, width=8)
    made = EEGDecoder(
        meaning_encoder=encoder | {"n_outputs": EMBED_DIM},
        structure_encoder=encoder | {"n_outputs": 8},
        structure_maps={"size": 16, "latent_dim": 8, "width": 8},
        channels=["Oz", "O1", "O2"],
        subjects=["sub-01"],
        categories=["ring", "star"],
        gallery_ids=["pic-a", "pic-b"],
    )
    made.factor.copy_(torch.tensor([0.4, 0.3]))
    made.meaning_noise.copy_(torch.tensor([0.8, 0.9]))
    return made


def find(parts: SimpleNamespace, family: str, **changes) -> generation.PretrainedParts:
    given = {"family": family, "embed_dim": EMBED_DIM, "clip": "tiny"}
    given |= {name: str(place) for name, place in vars(parts).items()}
    return generation.find_parts(**given | changes)


def write(folder, parts: generation.PretrainedParts, decoder: EEGDecoder):
    folder.mkdir(exist_ok=True)
    targets = Targets(np.zeros((1, EMBED_DIM), np.float32), CENTER, SPREAD)
    generation.save_generator(folder, parts, decoder, targets, STUDY_SIZE)
    return folder


@pytest.fixture(scope="module")
def opened(saved, decoder, tmp_path_factory) -> dict[str, generation.PretrainedPipeline]:
    made = {}
    for family, parts in saved.items():
        folder = write(tmp_path_factory.mktemp("artifact"), find(parts, family), decoder)
        made[family] = generation.open_generator(folder, dtype=torch.float32)
    return made


def inputs(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised embeddings, and maps of a square, 8 x 8."""
    maps = torch.zeros(n, 2, STUDY_SIZE, STUDY_SIZE)
    maps[:, 0, 2:6, 1:5] = 1
    return torch.randn(n, EMBED_DIM, generator=torch.Generator().manual_seed(0)), maps


def seeds(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def draw(pipe, rows=slice(None), **options) -> np.ndarray:
    embedding, maps = inputs()
    options = {"maps": maps[rows], "num_inference_steps": 2} | options
    return pipe.generate(embedding[rows], generator=seeds(3)[rows], **options)


# ------------------------------------------------------------------ written and opened


@BOTH
def test_it_draws_what_the_networks_draw_at_the_studys_size(saved, opened, family):
    networks = generation.PretrainedGenerator.from_pretrained(
        family, *vars(saved[family]).values(), dtype=torch.float32
    )
    embedding, maps = inputs()
    raw = embedding * torch.from_numpy(SPREAD) + torch.from_numpy(CENTER)
    whole = networks(raw.float(), maps, 0.7, 0.5, 2, generator=seeds(3))
    expected = F.interpolate(
        torch.from_numpy(whole).movedim(-1, 1), STUDY_SIZE, mode="bilinear", antialias=True
    ).movedim(1, -1)
    pictures = draw(opened[family], semantic_scale=0.7, structure_scale=0.5)
    assert pictures.shape == (3, STUDY_SIZE, STUDY_SIZE, 3) and pictures.dtype == np.float32
    assert whole.shape[1] == SIZE and pictures.std() > 0.02
    np.testing.assert_allclose(pictures, expected, atol=1e-4)


def test_the_decoder_comes_with_its_trust_levels(opened, decoder):
    for pipe in opened.values():
        states = pipe.decoder.state_dict(), decoder.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        told = pipe.decoder(np.ones((2, 3, 40), np.float32), subject="sub-01")
        assert told.embedding.shape == (2, EMBED_DIM)
        assert pipe.classifier is None and pipe.unet.dtype == torch.float32


def test_evaluation_calls_both_kinds_of_generator_alike(opened):
    """The very call of notebook 06, with everything that it says of the conditions."""
    pictures = draw(
        opened["sdxl_turbo"], category=torch.full((3, 2), 0.5), category_scale=0.0,
        embedding_noise=0.8, structure_noise=0.6, semantic_scale=1.0, structure_scale=1.0,
    )  # fmt: skip
    np.testing.assert_array_equal(pictures, draw(opened["sdxl_turbo"]))  # doubt has no input


def test_what_notebook_05_trained_is_opened_by_the_same_call(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "open_pipeline", lambda *given: given)
    assert generation.open_generator(tmp_path, "cpu") == (tmp_path, "cpu", None)


def test_experiments_on_the_trained_generator_refuse_a_pretrained_one(saved, decoder, tmp_path):
    folder = write(tmp_path / "pipeline", find(saved["sd15"], "sd15"), decoder)
    with pytest.raises(ValueError, match="generation.open_generator, or set `generator: latent`"):
        generation.open_pipeline(folder)


# ------------------------------------------------------------------ nothing known


@BOTH
def test_a_level_of_one_stands_for_nothing_known(opened, family):
    pipe = opened[family]
    plain = draw(pipe)
    without = {
        "embedding_noise": draw(pipe, semantic_scale=0.0),
        "structure_noise": draw(pipe, maps=None),
    }
    for name, expected in without.items():
        np.testing.assert_array_equal(draw(pipe, **{name: 1.0}), expected)
        assert np.abs(plain - expected).max() > 0.005
        levels = torch.tensor([1.0, 0.3, 1.0])  # each picture for itself
        mixed = draw(pipe, **{name: levels})
        np.testing.assert_allclose(mixed[[0, 2]], expected[[0, 2]], atol=1e-4)
        np.testing.assert_allclose(mixed[1], plain[1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category_scale": 1.0}, r"no category guide: set `category_scales: \[0.0\]`"),
        ({"embedding_noise": 1.2}, r"noise levels must lie in \[0, 1\]"),
        ({"structure_noise": torch.zeros(2)}, r"shape \(2,\), expected \(3,\)"),
        ({"num_inference_steps": 12}, "SDXL-Turbo takes 1 to 4"),
    ],
)
def test_a_bad_call_is_refused(opened, options, message):
    with pytest.raises(ValueError, match=message):
        draw(opened["sdxl_turbo"], **options)


def test_other_bad_calls(opened):
    pipe, (embedding, maps) = opened["sd15"], inputs()
    with pytest.raises(ValueError, match="batch is empty"):
        pipe.generate(embedding[:0], maps[:0], generator=[])
    with pytest.raises(ValueError, match="one torch.Generator for each"):
        pipe.generate(
            embedding, maps, generator=seeds(1)[0], embedding_noise=torch.tensor([1.0, 0, 0])
        )


# ------------------------------------------------------------------ embeddings of another CLIP


def test_embeddings_of_another_size_are_refused_before_anything_is_fetched(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    advice = "takes 1024.*clip_model: ViT-H-14.*embed_dim: 1024.*generator: latent"
    with pytest.raises(ValueError, match=f"64 numbers and come from the CLIP 'tiny'.*{advice}"):
        generation.find_parts("sdxl_turbo", 64, "tiny")
    with pytest.raises(ValueError, match="takes 12.*pretrained_adapter"):
        find(saved["sd15"], "sd15", embed_dim=64)


def test_the_size_alone_does_not_make_a_clip_the_right_one(monkeypatch):
    monkeypatch.setattr(stored, "locate", lambda *_: pytest.fail("looked for the parts"))
    with pytest.raises(ValueError, match="1024 numbers and come from the CLIP 'rn50'"):
        generation.find_parts("sd15", 1024, "rn50")


def test_an_unknown_family():
    with pytest.raises(ValueError, match="no family 'sd21'"):
        generation.find_parts("sd21", 1024, "vit_h_14")


# ------------------------------------------------------------------ the parts are the same later


@pytest.fixture
def moved(saved, decoder, tmp_path) -> SimpleNamespace:
    """Parts that may be damaged, and the artifact that was made with them."""
    parts = saved["sd15"]
    shutil.copytree(parts.model, tmp_path / "model")
    shutil.copy(parts.ip_adapter, tmp_path / "adapter.safetensors")
    own = SimpleNamespace(model=tmp_path / "model", controlnet=parts.controlnet)
    own.ip_adapter = tmp_path / "adapter.safetensors"
    (own.model / "notes.ckpt").write_text("not read, not described")
    own.artifact = write(
        tmp_path / "pipeline",
        find(SimpleNamespace(**vars(own)), "sd15"),
        decoder,
    )
    return own


def test_local_parts_are_described_by_their_files(moved):
    description = json.loads((moved.artifact / "generator.json").read_text())
    files = description["files"]
    assert set(files) == {"model", "controlnet", "ip_adapter"}
    assert set(files["controlnet"]) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert list(files["ip_adapter"]) == ["adapter.safetensors"]
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= set(files["model"])
    assert "notes.ckpt" not in files["model"]
    assert all(len(about["sha256"]) == 64 for part in files.values() for about in part.values())
    assert (description["embed_dim"], description["size"]) == (EMBED_DIM, STUDY_SIZE)


def test_a_part_of_another_size_is_noticed(moved):
    with open(moved.model / "unet" / "config.json", "a") as file:
        file.write("\n")
    with pytest.raises(stored.PartsChanged, match="model: .*unet/config.json is not the file"):
        generation.open_generator(moved.artifact)


def test_another_content_of_the_same_size_is_noticed_when_asked(moved):
    weights = bytearray(moved.ip_adapter.read_bytes())
    weights[-1] ^= 1
    moved.ip_adapter.write_bytes(weights)
    generation.open_generator(moved.artifact)
    with pytest.raises(stored.PartsChanged, match="ip_adapter: .*adapter.safetensors is not the"):
        generation.open_generator(moved.artifact, verify=True)


def test_a_part_that_is_gone_is_noticed(moved):
    shutil.rmtree(moved.model)
    with pytest.raises(stored.PartsChanged, match="model: .*not on this machine any more"):
        generation.open_generator(moved.artifact)


# ------------------------------------------------------------------ names on the hub


@pytest.fixture
def hub(monkeypatch, saved, tmp_path):
    """The hub's cache with the tiny parts in it, and what was asked for; licences as they are."""
    asked = []
    parts, kind = saved["sdxl_turbo"], FAMILIES["sdxl_turbo"]

    def download(repository, revision=None, **options):
        asked.append((repository, revision))
        cached = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "c0ffee"
        if not cached.exists():
            place = {kind.model: parts.model, kind.controlnet: parts.controlnet}.get(repository)
            if place:
                shutil.copytree(place, cached)
            else:
                file = cached / kind.ip_adapter.removeprefix("h94/IP-Adapter/")
                file.parent.mkdir(parents=True)
                shutil.copy(parts.ip_adapter, file)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_names_are_pinned_to_the_revision_that_was_fetched(hub, decoder, tmp_path):
    own = {"ip_adapter": FAMILIES["sdxl_turbo"].ip_adapter}  # named: any CLIP may be its own
    with pytest.raises(catalogue.LicenceError):
        generation.find_parts("sdxl_turbo", EMBED_DIM, "tiny", **own)
    own["accept_licence"] = ["LicenseRef-sai-nc-community"]
    parts = generation.find_parts("sdxl_turbo", EMBED_DIM, "tiny", **own)
    assert parts.model == "stabilityai/sdxl-turbo@c0ffee"
    assert parts.ip_adapter.startswith("h94/IP-Adapter@c0ffee/sdxl_models/") and not parts.files
    hub.clear()
    pipe = generation.open_generator(write(tmp_path / "pipeline", parts, decoder))
    assert {revision for _, revision in hub} == {"c0ffee"} and len(hub) == 3
    assert draw(pipe).shape == (3, STUDY_SIZE, STUDY_SIZE, 3)
