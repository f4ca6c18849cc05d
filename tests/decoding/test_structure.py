"""Encoders, the structure VAE, CLIP folders and samplers: shapes, invariances, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from sgdm_utils.datasets.electrodes import electrode_positions
from sgdm_utils.decoding import clip, encoders, structure
from sgdm_utils.decoding.features import FeatureOrderError, load_features, save_features
from sgdm_utils.signals import load
from sgdm_utils.simulation.brain import make_info
from sgdm_utils.stimuli import tangrams


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    info = make_info(100.0)
    return encoders.SGDMEncoder(
        63, 16, 80, chs_info=info["chs"][:63], n_subjects=2, width=16
    ).eval()


def test_electrodes_enter_by_position_and_not_by_order(encoder):
    eeg, subject = torch.randn(3, 63, 80), torch.tensor([0, 1, 0])
    order = torch.randperm(63, generator=torch.Generator().manual_seed(1))
    moved = encoder(eeg[:, order], subject, positions=encoder.default_positions[order])
    assert torch.allclose(encoder(eeg, subject), moved, atol=1e-5)


def test_a_masked_electrode_has_no_influence_and_fewer_electrodes_are_an_input(encoder):
    eeg, subject = torch.randn(2, 63, 80), torch.tensor([0, 0])
    mask = torch.ones(2, 63, dtype=torch.bool)
    mask[:, 5] = False
    changed = eeg.clone()
    changed[:, 5] = 1e3
    assert torch.allclose(encoder(eeg, subject, mask=mask), encoder(changed, subject, mask=mask))
    keep = [i for i in range(63) if i != 5]
    few = encoder(eeg[:, keep], subject, positions=encoder.default_positions[keep])
    assert torch.allclose(encoder(eeg, subject, mask=mask), few, atol=1e-5)


def test_an_unseen_subject_uses_the_mean_layer(encoder):
    eeg = torch.randn(1, 63, 80)
    assert encoder(eeg, torch.tensor([-1])).shape == (1, 16)
    with pytest.raises(ValueError, match="unknown"):
        encoder(eeg, torch.tensor([2]))


def test_another_epoch_length_or_lost_positions_are_refused(encoder):
    with pytest.raises(ValueError, match="80 samples"):
        encoder(torch.randn(1, 63, 79), torch.tensor([0]))
    with pytest.raises(ValueError, match="positions"):
        encoder(torch.randn(1, 60, 80), torch.tensor([0]))
    with pytest.raises(ValueError, match="X9"):
        electrode_positions([{"ch_name": "X9", "loc": np.full(12, np.nan)}])


def test_relation_targets_are_the_four_symmetries_of_the_tangram_module():
    matrix = tangrams.relation_matrix(tangrams.tangram_pieces("boat", "cat"))
    mine = structure.relation_targets(torch.from_numpy(matrix)[None].long())[0]
    row, column = torch.triu_indices(7, 7, 1)
    theirs = tangrams.equivalent_relations(matrix)[:, row, column]
    assert {tuple(t.tolist()) for t in mine} == {tuple(t.tolist()) for t in theirs}


def test_relation_loss_forgives_exchanged_triangles_and_ignores_scenes():
    matrix = torch.from_numpy(tangrams.relation_matrix(tangrams.tangram_pieces("boat", "cat")))
    for order in ([0, 1, 3, 2, 4, 6, 5], [1, 0, 2, 3, 4, 5, 6]):
        swapped = matrix[order][:, order].long()
        row, column = torch.triu_indices(7, 7, 1)
        logits = torch.nn.functional.one_hot(swapped[row, column], 6).float()[None] * 30
        loss = structure.relation_loss(logits, matrix[None].long())
        same = torch.equal(structure.relation_matrix(logits)[0].long().fill_diagonal_(5), swapped)
        assert same
        allowed = order[0] == 0
        assert (loss.item() < 1e-6) == allowed
    scenes = torch.full((1, 7, 7), -1)
    assert structure.relation_loss(torch.randn(1, 21, 6), scenes).item() == 0


def test_structure_vae_learns_a_map_and_has_a_relation_head():
    torch.manual_seed(0)
    vae = structure.StructureVAE(32, 8, 16)
    maps = (torch.rand(4, 2, 8, 8) > 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            vae.decode(vae.encode(maps)[0]), maps
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((vae.maps(vae.encode(maps)[0]) > 0.5) == (maps > 0.5)).float().mean() > 0.9
    assert vae.relation_logits(torch.zeros(3, 8)).shape == (3, 21, 6)
    with pytest.raises(ValueError, match="16"):
        structure.StructureVAE(40)
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4"):
        structure.StructureVAE(32, 8, 6)


def test_structure_vae_starts_as_the_principal_components_of_the_maps():
    """Maps of five dimensions: a code of eight holds them, unit variance, and draws them again."""
    rng = torch.Generator().manual_seed(0)
    blocks = (torch.rand(40, 5, generator=rng) > 0.5).float() @ torch.eye(8)[:5]
    maps = blocks.view(40, 2, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    torch.manual_seed(0)
    vae = structure.StructureVAE(32, 8, 16)
    assert vae.fit_linear(maps) == pytest.approx(1, abs=1e-4)
    code, log_variance = vae.encode(maps)
    kept = code[:, :5]
    assert torch.allclose(kept.mean(0), torch.zeros(5), atol=1e-3)
    assert torch.allclose(torch.cov(kept.T), torch.eye(5), atol=1e-2)
    assert (log_variance == -3).all()
    inner = torch.arange(32) % 16 % 15 > 0  # interpolation blurs the borders of the blocks
    logits = vae.decode(code)[..., inner, :][..., inner]
    assert torch.allclose(logits, 6 * (maps[..., inner, :][..., inner] - 0.5), atol=0.05)


def test_linear_start_refuses_what_holds_no_component():
    vae = structure.StructureVAE(32, 8, 16)
    with pytest.raises(ValueError, match="two or more"):
        vae.fit_linear(torch.rand(1, 2, 32, 32))
    with pytest.raises(ValueError, match="two or more"):
        vae.fit_linear(torch.rand(5, 2, 64, 64))
    with pytest.raises(ValueError, match="all the same"):
        vae.fit_linear(torch.ones(5, 2, 32, 32))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    clip_config = clip.tiny_clip_config(16, 64)
    model = clip.create_clip(clip_config).eval()
    clip.save_clip(model, clip_config, folder)
    return folder, model, clip_config


def test_a_saved_clip_loads_through_open_clip_with_the_same_features(clip_folder):
    folder, model, clip_config = clip_folder
    loaded, tokenizer = clip.load_clip(f"local-dir:{folder}")
    pictures = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    first, second = (clip.image_features(m, pictures, batch=2) for m in (model, loaded))
    assert np.array_equal(first, second)
    captions = ["a red star", "a blue boat"]
    own = clip.text_features(model, clip.tokenizer_for(clip_config), captions)
    assert np.allclose(own, clip.text_features(loaded, tokenizer, captions), atol=1e-5)


def test_clip_refuses_missing_weights_and_wrong_pictures(clip_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="open_clip_config"):
        clip.load_clip(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="laion2b"):
        clip.load_clip("ViT-H-14")
    with pytest.raises(ValueError, match="uint8"):
        clip.image_features(clip_folder[1], np.zeros((2, 64, 64, 3), np.float32))


def test_features_refuse_another_order(tmp_path):
    save_features(tmp_path / "f.npy", np.eye(3), ["a", "b", "c"])
    assert load_features(tmp_path / "f.npy", ["a", "b", "c"]).shape == (3, 3)
    with pytest.raises(FeatureOrderError, match="row 1"):
        load_features(tmp_path / "f.npy", ["a", "c", "b"])
    with pytest.raises(FeatureOrderError, match="row 2"):
        load_features(tmp_path / "f.npy", ["a", "b"])


def test_the_sampler_visits_every_pair_once_and_averages_its_own_trials():
    ids = np.repeat([f"p{i}" for i in range(10)], 4)
    frame = pd.DataFrame({"subject": "s", "subject_index": 0, "image_id": ids, "split": "train"})
    frame.loc[frame["image_id"] == "p9", "split"] = "test"
    values = frame["image_id"].str[1:].astype(np.float32).to_numpy()
    eeg = np.broadcast_to(values[:, None, None], (40, 2, 3)).astype(np.float32)
    trials = load.TrialSet(eeg, frame, np.zeros((2, 3)), np.arange(3), 1.0, [])
    sampler = load.AveragingSampler(trials, "train", 4, np.random.default_rng(0))
    seen = []
    for batch, subject, image_id in sampler:
        assert torch.allclose(batch[:, 0, 0], torch.tensor([float(i[1:]) for i in image_id]))
        assert (subject == 0).all()
        seen += list(image_id)
    assert sorted(seen) == [f"p{i}" for i in range(9)]
    assert len(sampler) == 3
