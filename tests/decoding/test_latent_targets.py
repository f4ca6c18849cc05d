"""Latents as targets: against principal components done by hand, and tiny autoencoders saved here."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from sklearn.decomposition import PCA

from sgdm_utils.decoding import encoders, features, latent_targets
from sgdm_utils.decoding.clip import weights_digest
from sgdm_utils.decoding.training import embed
from sgdm_utils.generation.pretrained import parts
from sgdm_utils.workflow.downloads import catalogue

TRAIN = np.arange(40)


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures, uint8 (50, 16, 16, 3); the last ten are no training pictures."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((16, 16))) for c in coarse])


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
            sample_size=16,
        ).eval()  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny autoencoder, and the autoencoder."""
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae-of-mine")
    return tmp_path / "vae-of-mine", vae


# ------------------------------------------------------------------ principal components


def test_targets_are_the_leading_directions_of_training_latents_in_their_own_units():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    deviation = np.array([8.0, 5.0, 3.0] + [0.1] * 9)
    latents = (rng.normal(size=(60, 12)) * deviation) @ axes.T + 7
    latents[40:] += 100  # what is not trained on must not count
    made = latent_targets.principal_targets(latents.reshape(60, 3, 2, 2), TRAIN, 3)
    centered = latents[TRAIN] - latents[TRAIN].mean(0)
    u, s, vt = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs((made.basis * vt[:3]).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(made.spread, s[:3] / np.sqrt(39), rtol=1e-4)
    np.testing.assert_allclose(made.center, latents[TRAIN].mean(0), rtol=1e-5)
    assert made.explained == pytest.approx((s[:3] ** 2).sum() / (s**2).sum(), rel=1e-5)
    np.testing.assert_allclose(made.values[TRAIN].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(made.values[TRAIN].std(0, ddof=1), 1, rtol=1e-4)
    by_hand = (latents - made.center) @ made.basis.T / made.spread
    np.testing.assert_allclose(made.values, by_hand, atol=2e-3)
    assert made.values.dtype == np.float32 and made.values.shape == (60, 3)


def test_scale_leads_back_to_latents():
    latents = np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32)
    made = latent_targets.principal_targets(latents, TRAIN, 6)
    scale = made.scale
    back = (made.values * scale["spread"]) @ scale["basis"] + scale["center"]
    np.testing.assert_allclose(back, latents, atol=1e-4)


def test_long_latents_give_the_same_components_by_the_randomised_way(monkeypatch):
    rng = np.random.default_rng(2)
    latents = rng.normal(size=(60, 30)) * np.r_[9, 6, 4, np.full(27, 0.1)]
    exact = latent_targets.principal_targets(latents, TRAIN, 3)
    monkeypatch.setattr(latent_targets, "_EXACT", 10)
    again = latent_targets.principal_targets(latents, TRAIN, 3)
    np.testing.assert_allclose(np.abs(again.values), np.abs(exact.values), atol=1e-3)
    twice = latent_targets.principal_targets(latents, TRAIN, 3)
    np.testing.assert_array_equal(again.values, twice.values)


@pytest.mark.parametrize(
    ("change", "train", "n", "message"),
    [
        (None, TRAIN, 0, "latent_components is 0: 40 training latents of 6 numbers have 1 to 6"),
        (None, TRAIN, 7, "latent_components is 7"),
        (None, TRAIN[:3], 3, "3 training latents of 6 numbers have 1 to 2 components"),
        (None, TRAIN[:1], 1, "1 training pictures have no principal components"),
        ((41, 2, np.nan), TRAIN, 2, "latents of 1 pictures hold NaN or infinity, first in row 41"),
        ((slice(None), slice(2, 6), 0.0), TRAIN, 4, "vary in 2 directions"),
    ],
)
def test_what_has_no_such_components_is_refused(change, train, n, message):
    latents = np.random.default_rng(3).normal(size=(60, 6))
    if change:
        latents[change[0], change[1]] = change[2]
    with pytest.raises(ValueError, match=message):
        latent_targets.principal_targets(latents, train, n)


# ------------------------------------------------------------------ components of patches


def test_patch_latents_are_principal_components_of_training_patches(pictures):
    made = latent_targets.patch_latents(pictures, TRAIN, patch=8, latent_channels=5, batch=7)
    assert made.shape == (50, 5, 2, 2) and made.dtype == np.float32
    # cut by hand: rows and columns of patches, then (channel, y, x) within each
    x = pictures.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    patches = x.reshape(50, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5).reshape(50, 4, 192)
    pca = PCA(5, svd_solver="full").fit(patches[TRAIN].reshape(-1, 192))
    wanted = pca.transform(patches.reshape(-1, 192)) / np.sqrt(pca.explained_variance_)
    wanted = wanted.reshape(50, 2, 2, 5).transpose(0, 3, 1, 2)
    for k in range(5):  # signs are free
        assert abs(np.corrcoef(made[:, k].ravel(), wanted[:, k].ravel())[0, 1]) > 0.9999
        np.testing.assert_allclose(np.abs(made[:, k]), np.abs(wanted[:, k]), atol=0.02)


def test_patch_latents_do_not_know_other_pictures_and_draw_nothing(pictures):
    state = torch.get_rng_state()
    made = latent_targets.patch_latents(pictures, TRAIN, 8, 4)
    assert torch.equal(torch.get_rng_state(), state)
    changed = pictures.copy()
    changed[40:] = 255 - changed[40:]
    again = latent_targets.patch_latents(changed, TRAIN, 8, 4)
    np.testing.assert_array_equal(made[:40], again[:40])
    assert np.abs(made[40:] - again[40:]).max() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:, :8], r"uint8 of shape \(50, 8, 16, 3\), expected uint8 of shape \(n, size"),
        (lambda p: p / 255, "pictures are float64"),
        (lambda p: p[..., :1], r"shape \(50, 16, 16, 1\)"),
        (lambda p: p[:, :12, :12], "size 12 is not a multiple of patch 8"),
    ],
)
def test_pictures_of_another_form_are_refused(pictures, change, message):
    with pytest.raises(ValueError, match=message):
        latent_targets.patch_latents(change(pictures), TRAIN)


def test_no_training_picture_is_refused(pictures):
    with pytest.raises(ValueError, match="no training picture"):
        latent_targets.patch_latents(pictures, TRAIN[:0])


# ------------------------------------------------------------------ autoencoders of others


def test_a_vae_is_loaded_from_its_folder_and_from_a_model_that_has_one(saved, tmp_path):
    folder, vae = saved
    (tmp_path / "model").mkdir()
    shutil.copytree(folder, tmp_path / "model" / "vae")
    for source in (folder, tmp_path / "model"):
        made = latent_targets.load_vae(source)
        assert not made.training and not any(p.requires_grad for p in made.parameters())
        assert made.dtype == torch.float32
        assert weights_digest(made) == weights_digest(vae)


def test_weights_of_half_precision_are_computed_with_in_float32(tmp_path):
    tiny_vae().half().save_pretrained(tmp_path)
    assert latent_targets.load_vae(tmp_path).dtype == torch.float32


def test_what_is_no_vae_is_refused(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="latent_vae: there is no nowhere on this machine"):
        latent_targets.load_vae("nowhere")
    with pytest.raises(FileNotFoundError, match="no autoencoder in .*config.json is missing"):
        latent_targets.load_vae(tmp_path)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="holds a UNet2DModel, expected an AutoencoderKL"):
        latent_targets.load_vae(folder)
    (folder / "config.json").write_text(json.dumps(about))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no weights as .safetensors.*pickles"):
        latent_targets.load_vae(folder)


def test_a_name_is_fetched_after_its_licence_was_settled(saved, monkeypatch):
    folder, vae = saved
    entry = catalogue.load_catalogue()["weights_sdxl_turbo"]
    asked, said = [], []

    def fetch(repository, **options):
        asked.append((repository, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(parts.huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(catalogue.LicenceError, match="somebody/vae is not on this machine"):
        latent_targets.load_vae("somebody/vae")
    with pytest.raises(catalogue.LicenceError, match="the licence must be accepted"):
        latent_targets.load_vae("stabilityai/sdxl-turbo")
    assert asked == []
    made = latent_targets.load_vae(
        "stabilityai/sdxl-turbo", accept_licence=entry.licence, show=said.append
    )
    assert weights_digest(made) == weights_digest(vae)
    inside = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert asked == [("stabilityai/sdxl-turbo", inside)]  # not the gigabytes of the rest
    assert len(said) == 1 and entry.licence in said[0]


def test_latents_are_the_means_of_the_posterior_whatever_the_batch(pictures, tmp_path):
    vae = tiny_vae()
    ids = [f"i{k}" for k in range(6)]
    arguments = (vae, ids, pictures[:6], tmp_path)
    made = latent_targets.vae_latents(*arguments, "a/b", batch=4, progress=False)
    x = torch.from_numpy(pictures[:6].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean, _ = vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)
    np.testing.assert_allclose(made, mean.numpy(), atol=1e-5)
    assert made.shape == (6, 4, 8, 8) and (tmp_path / "vae-a-b.npy").is_file()
    # what is there is taken, and refused for another autoencoder or other pictures
    again = latent_targets.vae_latents(*arguments, "a/b", batch=4, progress=False)
    np.testing.assert_array_equal(again, made)
    with pytest.raises(features.FeatureError, match="weights_sha256 is"):
        latent_targets.vae_latents(tiny_vae(1), *arguments[1:], "a/b", batch=4, progress=False)
    with pytest.raises(features.FeatureError, match="pictures_sha256 is"):
        latent_targets.vae_latents(vae, ids, pictures[6:12], tmp_path, "a/b", 16, 4, False)


def test_files_are_brought_to_size_and_named_when_they_cannot_be_read(pictures, tmp_path):
    vae, files = tiny_vae(), []
    for k in range(3):
        files.append(tmp_path / f"{k}.png")
        Image.fromarray(pictures[k]).save(files[-1])
    made = latent_targets.vae_latents(vae, list("abc"), files, tmp_path, "x", 16, 2, False)
    same = latent_targets.vae_latents(vae, list("abc"), pictures[:3], tmp_path, "y", 16, 2, False)
    np.testing.assert_array_equal(made, same)
    larger = latent_targets.vae_latents(vae, list("abc"), files, tmp_path, "z", 32, 2, False)
    assert larger.shape == (3, 4, 16, 16)
    files[1].write_text("no picture")
    with pytest.raises(features.FeatureError, match="1.png cannot be read as a picture"):
        latent_targets.vae_latents(vae, list("abc"), files, tmp_path, "w", 16, 2, False)
    assert not (tmp_path / "vae-w.npy").exists()


def test_sizes_and_numbers_that_do_not_fit_are_refused(pictures, tmp_path):
    vae = tiny_vae()
    with pytest.raises(ValueError, match="3 pictures for 2 images"):
        latent_targets.vae_latents(vae, list("ab"), pictures[:3], tmp_path, "x")
    with pytest.raises(ValueError, match="15 x 16 pixels.*halves them 1 times.*multiples of 2"):
        latent_targets.vae_latents(vae, list("abc"), pictures[:3, :15], tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ the head


def test_the_head_is_linear_in_tokens_and_draws_from_its_own_generator():
    generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    head = latent_targets.LatentHead(6, 5, n_tokens=4, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    again = latent_targets.LatentHead(6, 5, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(head.linear.weight, again.linear.weight)
    assert 0 < head.linear.weight.abs().max() <= 1 / np.sqrt(24)
    maps = torch.randn(2, 6, 12, generator=generator)
    tokens = maps.reshape(2, 6, 4, 3).mean(-1).flatten(1)
    wanted = tokens @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(maps), wanted)


def test_the_reader_gives_what_the_head_makes_of_the_encoders_features():
    positions = np.eye(3, dtype=np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = encoders.SGDMEncoder(3, 4, 60, n_subjects=2, positions=positions, width=16)
    generator = torch.Generator().manual_seed(0)
    head = latent_targets.LatentHead(16, 5, generator=generator)
    eeg, subject = torch.randn(7, 3, 60, generator=generator).numpy(), np.arange(7) % 2
    reader = latent_targets.LatentReader(encoder.train(), head)
    made = embed(reader, eeg, subject, batch=3)  # without dropout, then as it was
    assert encoder.training
    with torch.no_grad():
        features_of = encoder.eval().features(torch.from_numpy(eeg), torch.from_numpy(subject))
        torch.testing.assert_close(made, head(features_of))
    # the notebook goes from these features to the embedding as the encoder does
    with torch.no_grad():
        z = encoder.project(encoder.norm(features_of.flatten(1)))
        assert torch.equal(z, encoder(torch.from_numpy(eeg), torch.from_numpy(subject)))
