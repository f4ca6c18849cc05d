"""From EEG to pictures in one call: decoder, pipeline, its refusals and its card."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import mne
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from schedulers import GOOD, every_scheduler, made_from, refuses

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions
from sgdm_utils.generation import networks
from sgdm_utils.generation import pipeline as generation_pipeline
from sgdm_utils.generation.autoencoder import PictureVAE
from sgdm_utils.generation.conditioning import ConditionEmbedder
from sgdm_utils.generation.decoder import EEGDecoder
from sgdm_utils.generation.guide import LatentClassifier
from sgdm_utils.generation.model_card import write_model_card
from sgdm_utils.generation.networks import resolutions
from sgdm_utils.generation.pipeline import SGDMPipeline
from sgdm_utils.workflow import paths

SIZE, EMBED, CHANNELS, N_TIMES, SFREQ = 32, 6, 4, 40, 100.0
NAMES = ["Oz", "O1", "O2", "Pz", "Cz"]
KINDS = ["cross", "ring", "star"]


def standard_positions(names) -> np.ndarray:
    found = mne.channels.make_standard_montage(STANDARD_MONTAGE).get_positions()["ch_pos"]
    return electrode_positions([{"ch_name": n, "loc": found[n]} for n in names])


def make_pipeline(n_latent=CHANNELS, size=SIZE, kinds=KINDS, embed=EMBED) -> SGDMPipeline:
    torch.manual_seed(0)
    vae = PictureVAE(size, patch=8, latent_channels=n_latent, width=16)
    vae.fit_patches(torch.rand(40, 3, size, size) * 2 - 1)
    vae.latent_std.fill_(4.0)
    unet = networks.make_unet(n_latent, vae.grid, embed, 32, (32, 32))
    controlnet = networks.make_controlnet(unet, size)
    for network in (unet, controlnet):
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.08)
    condition = ConditionEmbedder(embed, len(kinds), resolutions(unet), 3, 32)
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
        timestep_spacing="trailing",
    )  # fmt: skip
    encoder = dict(n_chans=5, n_times=N_TIMES, sfreq=SFREQ, n_subjects=2, n_virtual=8, width=8)
    decoder = EEGDecoder(
        encoder | {"n_outputs": embed}, encoder | {"n_outputs": 8},
        {"size": size, "latent_dim": 8, "width": 8}, NAMES, ["sub-01", "sub-02"], kinds,
        ["pic-a", "pic-b", "pic-c"], vae.grid,
    )  # fmt: skip
    for part in (decoder.meaning, decoder.structure):
        part.default_positions.copy_(torch.from_numpy(standard_positions(NAMES)))
        with torch.no_grad():
            part.subject += 0.1 * torch.randn(part.subject.shape)
    decoder.gallery.copy_(torch.randn(3, embed))
    decoder.factor.copy_(torch.tensor([0.5, 1.0, 0.75]))
    decoder.meaning_noise.copy_(torch.tensor([0.8, 0.6, 0.7]))
    decoder.structure_noise.copy_(torch.tensor([0.9, 0.7, 0.8]))
    parts = [vae, unet, controlnet, condition]
    classifier = LatentClassifier(n_latent, len(kinds), width=16)
    pipe = SGDMPipeline(*(p.eval() for p in parts), scheduler, classifier.eval(), decoder.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture
def eeg():
    return np.random.default_rng(0).standard_normal((3, 5, N_TIMES)).astype(np.float32)


def draw(pipe, eeg, **options):
    options = {"num_inference_steps": 3, "subject": "sub-01"} | options
    options.setdefault("generator", torch.Generator().manual_seed(0))
    return pipe(eeg, **options)


# the decoder


def test_the_decoder_is_the_encoders_with_their_scales(pipe, eeg):
    d = pipe.decoder
    told = d(eeg, NAMES, ["sub-01", "sub-02", None])
    person = torch.tensor([0, 1, -1])
    with torch.no_grad():
        z = d.meaning(torch.from_numpy(eeg), person)
        code = d.structure(torch.from_numpy(eeg), person) * d.code_spread + d.code_center
        maps = d.structure_vae.maps(code)
    assert torch.allclose(told.embedding, torch.tensor([0.5, 1.0, 0.75])[:, None] * z, atol=1e-5)
    assert told.embedding_noise.tolist() == pytest.approx([0.8, 0.6, 0.7])
    assert told.structure_noise.tolist() == pytest.approx([0.9, 0.7, 0.8])
    assert torch.allclose(told.maps, maps, atol=1e-5)
    assert torch.allclose(told.category.sum(1), torch.ones(3), atol=1e-5)


def test_colours_of_figure_and_ground_are_regressed_on_the_embedding():
    decoder = make_pipeline().decoder
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, EMBED, generator=generator)
    mixing = 0.03 * torch.randn(EMBED, 6, generator=generator)
    both = 0.5 + z @ mixing  # figure, ground
    silhouettes = torch.zeros(200, SIZE, SIZE)
    silhouettes[:, :, : SIZE // 2] = 1
    pictures = torch.where(
        silhouettes[:, None] > 0, both[:, :3, None, None], both[:, 3:, None, None]
    )
    decoder.fit_colours(z, pictures, silhouettes, alpha=1e-6)
    maps = torch.stack([silhouettes, silhouettes], dim=1)
    layout = decoder.colours(z, maps)
    assert layout.shape == (200, 3, 4, 4)
    expected = torch.nn.functional.adaptive_avg_pool2d(pictures, 4)
    assert torch.allclose(layout, expected, atol=1e-3)


def test_a_higher_temperature_makes_the_category_less_sure(eeg):
    decoder = make_pipeline().decoder
    sure = decoder(eeg).category.amax(1)
    decoder.temperature.fill_(10.0)
    assert (decoder(eeg).category.amax(1) < sure).all()


def test_electrodes_may_be_names_positions_fewer_or_others(pipe, eeg):
    d = pipe.decoder
    plain = d(eeg).embedding
    assert torch.allclose(plain, d(eeg, NAMES).embedding, atol=1e-5)
    assert torch.allclose(plain, d(eeg, standard_positions(NAMES)).embedding, atol=1e-4)
    order = [3, 0, 4, 1, 2]
    shuffled = d(eeg[:, order], [NAMES[i] for i in order]).embedding
    assert torch.allclose(plain, shuffled, atol=1e-4), "the order of channels must not matter"
    assert d(eeg[:, :2], ["Oz", "O1"]).embedding.shape == (3, EMBED)
    assert d(eeg[:, :2], ["PO7", "T8"]).maps.shape == (3, 2, SIZE, SIZE)  # not in training


def test_neighbours_are_the_nearest_of_the_gallery(pipe):
    gallery = pipe.decoder.gallery
    found = pipe.decoder.neighbours(3 * gallery[[2, 0]] + 0.01, 2)
    assert [row[0] for row in found] == ["pic-c", "pic-a"] and len(found[0]) == 2


# the pipeline


def test_one_call_gives_pictures_maps_neighbours_and_categories(pipe, eeg):
    out = draw(pipe, eeg, electrodes=NAMES, n_neighbours=2)
    assert out.images.shape == (3, SIZE, SIZE, 3) and out.images.dtype == np.float32
    assert 0 <= out.images.min() and out.images.max() <= 1
    assert out.maps.shape == (3, 2, SIZE, SIZE)
    assert [len(row) for row in out.neighbours] == [2, 2, 2]
    assert out.category.shape == (3, 3) and out.previews == {}


def test_it_is_the_generator_on_what_the_decoder_says(pipe, eeg):
    told = pipe.decoder(eeg, subject="sub-02")
    expected = pipe.generate(
        told.embedding, told.maps, 1.3, 0.8, 3, torch.Generator().manual_seed(4),
        told.embedding_noise, told.structure_noise, told.category, 0.5, None, told.colours,
    )  # fmt: skip
    made = draw(
        pipe, eeg, subject="sub-02", semantic_scale=1.3, structure_scale=0.8, category_scale=0.5,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    assert np.array_equal(made.images, expected)


def test_a_cpu_generator_fixes_the_pictures_and_batches_do_not_matter(pipe, eeg):
    assert np.array_equal(draw(pipe, eeg).images, draw(pipe, eeg).images)
    each = [[torch.Generator().manual_seed(i) for i in range(3)] for _ in range(2)]
    together, apart = (
        draw(pipe, eeg, generator=g, batch_size=b).images for g, b in zip(each, (3, 1), strict=True)
    )
    assert np.allclose(together, apart, atol=1e-4)


def test_previews_grow_with_what_is_settled(pipe, eeg):
    out = draw(pipe, eeg, previews=True, num_inference_steps=6)
    shapes = {k: p.shape[1] for k, p in out.previews.items()}
    assert shapes == {"low": SIZE // 4, "middle": SIZE // 2, "full": SIZE}
    # the last belief is the picture, up to the sampler's last half step
    assert np.abs(out.previews["full"] - out.images).mean() < 0.05


def test_saved_and_loaded_it_gives_the_same_and_has_a_card(pipe, eeg, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    card = write_model_card(
        tmp_path / "model", pipe, {"seed": 0}, "Not for real brains."
    ).read_text()
    loaded = SGDMPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    mine, theirs = draw(pipe, eeg, electrodes=NAMES), draw(loaded, eeg, electrodes=NAMES)
    assert np.array_equal(mine.images, theirs.images)
    assert mine.neighbours == theirs.neighbours
    assert "'Oz', 'O1', 'O2'" in card and "sub-01" in card and "Not for real brains." in card
    n = sum(p.numel() for p in pipe.unet.parameters())
    assert f"| unet | UNet2DConditionModel | {n:,} |" in card


def test_what_is_saved_again_elsewhere_has_the_same_bytes_and_no_name_of_this_machine(
    pipe, tmp_path
):
    pipe.save_pretrained(tmp_path / "here")
    loaded = SGDMPipeline.from_pretrained(tmp_path / "here")
    loaded.save_pretrained(tmp_path / "there")
    files = {
        where: {
            str(path.relative_to(tmp_path / where)): path.read_bytes()
            for path in (tmp_path / where).rglob("*")
            if path.is_file()
        }
        for where in ("here", "there")
    }
    assert files["here"] == files["there"]
    assert not [name for name, data in files["there"].items() if str(tmp_path).encode() in data]


def test_a_fresh_interpreter_loads_it_with_one_import(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    code = "from sgdm_utils.generation.pipeline import SGDMPipeline as P; print(P.from_pretrained('model').decoder.config.subjects)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(paths.project_root())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "['sub-01', 'sub-02']" in done.stdout


def test_a_missing_component_is_named(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "controlnet")
    with pytest.raises(FileNotFoundError, match="controlnet is missing"):
        SGDMPipeline.from_pretrained(tmp_path / "model")


def test_components_of_other_configurations_are_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    others = {
        "latent channels of vae and unet": {"vae": make_pipeline(n_latent=8).vae},
        "latent grid": {"vae": PictureVAE(64, patch=8, latent_channels=CHANNELS, width=16)},
        "categories of classifier": {"classifier": LatentClassifier(CHANNELS, 5, width=16)},
        "embedding dimension of decoder": {"decoder": make_pipeline(embed=7).decoder},
        "resolutions": {"condition": ConditionEmbedder(EMBED, 3, (4,), 3, 32)},
    }
    for message, part in others.items():
        with pytest.raises(ValueError, match=message):
            SGDMPipeline.from_pretrained(tmp_path / "model", **part)


def test_without_decoder_or_classifier_it_says_so(pipe, eeg):
    parts = {k: getattr(pipe, k) for k in ("vae", "unet", "controlnet", "condition", "scheduler")}
    bare = SGDMPipeline(**parts)
    with pytest.raises(ValueError, match="no EEG decoder"):
        bare(eeg)
    with pytest.raises(ValueError, match="no classifier"):
        bare.generate(
            torch.zeros(1, EMBED), None, category=torch.tensor([[1.0, 0, 0]]), category_scale=1.0
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eeg": np.zeros((0, 5, N_TIMES))}, "not empty"),
        ({"eeg": np.zeros((5, N_TIMES))}, "expected \\(batch"),
        ({"eeg": np.full((2, 5, N_TIMES), np.nan)}, r"NaN or infinity, first in epochs \[0, 1\]"),
        ({"eeg": np.zeros((2, 5, N_TIMES + 1))}, f"built for {N_TIMES} samples"),
        ({"sfreq": 250.0}, "trained at 100 Hz"),
        ({"eeg": np.zeros((2, 4, N_TIMES))}, "4 channels but positions"),
        ({"electrodes": ["Oz", "O1", "O2", "Pz", "E77"]}, "no electrode position for E77"),
        ({"electrodes": np.zeros((5, 3))}, "electrode 0 is not a unit vector"),
        ({"electrodes": np.zeros((5, 2))}, "unit vectors of shape"),
        ({"subject": "sub-09"}, "unknown subject 'sub-09'"),
        ({"subject": ["sub-01"]}, "1 subjects for 3 epochs"),
        ({"semantic_scale": -0.5}, "must not be negative"),
        ({"structure_scale": -0.5}, "must not be negative"),
        ({"num_inference_steps": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused_and_named(pipe, eeg, change, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, **({"eeg": eeg} | change))


def test_conditions_and_colours_that_cannot_be_are_refused(pipe, eeg):
    for conditions in ("posterior", "forward"):
        with pytest.raises(ValueError, match=f"conditions is '{conditions}': .* knows 'encoder'"):
            draw(pipe, eeg, conditions=conditions)
    embedding, maps = torch.zeros(1, EMBED), torch.zeros(1, 2, SIZE, SIZE)
    with pytest.raises(
        ValueError, match=r"colours have shape \(1, 3, 8, 8\), expected \(1, 3, 4, 4\)"
    ):
        pipe.generate(embedding, maps, colours=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="colours must lie in"):
        pipe.generate(embedding, maps, colours=torch.full((1, 3, 4, 4), torch.nan))


def test_guidance_by_the_likelihood_makes_the_evidence_likelier(pipe):
    """Evidence that the picture is red: guided towards it, it is redder, the more the stronger."""
    torch.manual_seed(0)
    embedding, maps = torch.randn(2, EMBED), torch.rand(2, 2, SIZE, SIZE)

    def log_density(pictures):
        return -((pictures[:, 0].mean((1, 2)) - 1) ** 2) / 0.01

    def red(scale):
        options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
        drawn = pipe.generate(
            embedding, maps, log_density=log_density, likelihood_scale=scale, **options
        )
        return drawn[..., 0].mean()

    plain, weak, strong = (red(scale) for scale in (0.0, 20.0, 100.0))
    assert plain < weak < strong
    with pytest.raises(ValueError, match="likelihood_scale=1.0 without a log_density"):
        pipe.generate(embedding, maps, likelihood_scale=1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        pipe.generate(embedding, maps, log_density=log_density, likelihood_scale=-1.0)


# schedulers


@pytest.fixture
def silent(monkeypatch):
    """A pipeline whose networks say 0: latents are normal with the deviation `residual_std`."""
    pipe = make_pipeline()
    zeros = lambda unet, controlnet, latents, *rest: torch.zeros_like(latents)  # noqa: E731
    monkeypatch.setattr(generation_pipeline, "predict", zeros)
    monkeypatch.setattr(pipe, "_pictures", lambda latents, maps: latents)
    return pipe


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize(("name", "options"), every_scheduler())
def test_every_scheduler_draws_the_analytic_answer_or_is_refused(
    silent, monkeypatch, name, options
):
    guided, estimates = [], []
    monkeypatch.setattr(
        generation_pipeline, "category_direction",
        lambda classifier, x, t, category: guided.append(x.std().item()) or torch.zeros_like(x),
    )  # fmt: skip
    silent.scheduler = made_from(silent.scheduler.config, name, options)
    if silent.scheduler is None:
        return
    n = 200

    def generate():
        return silent.generate(
            torch.zeros(n, 6), None, num_inference_steps=200, category=torch.ones(n, 3) / 3,
            generator=torch.Generator().manual_seed(0), category_scale=1.0,
            callback=lambda step, x: estimates.append(x.std().item()),
        )  # fmt: skip

    if name not in GOOD:
        return refuses(generate)
    s = silent.condition.config.residual_std
    assert generate().std().item() == pytest.approx(s, rel=0.06)
    # x has the variance b = a s^2 + 1 - a, its estimate a s^4 / b: the one tells the other
    x, z = np.array(guided), np.array(estimates)
    a = np.clip((1 - x**2) / (1 - s**2), 0, 1)
    late = a > 0.3
    assert late.sum() > 20 and x.max() < 1.1
    np.testing.assert_allclose(z[late], (np.sqrt(a) * s**2 / x)[late], rtol=0.1)


def test_a_scheduler_of_another_rate_is_refused_however_it_comes(eeg, tmp_path):
    pipe = make_pipeline()
    other = EulerDiscreteScheduler(prediction_type="v_prediction", beta_schedule="linear")
    same = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    for scheduler in (other, same):
        loaded = SGDMPipeline.from_pretrained(tmp_path, scheduler=scheduler)
        loaded.set_progress_bar_config(disable=True)
        if scheduler is other:
            with pytest.raises(ValueError, match="another rate"):
                draw(loaded, eeg)
        else:
            assert np.isfinite(draw(loaded, eeg).images).all()


def test_a_scheduler_that_fails_is_told(silent, monkeypatch):
    monkeypatch.setattr(generation_pipeline, "velocity", lambda output, *rest: output / 0)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler gave NaN"):
        silent.generate(torch.zeros(1, EMBED), None)


# attention, types, generators


@pytest.mark.parametrize("undo", [False, True])
def test_replaced_attention_processors_are_refused_and_the_advice_helps(eeg, undo):
    pipe = make_pipeline()
    before = draw(pipe, eeg).images
    pipe.enable_attention_slicing()
    if undo:
        pipe.disable_attention_slicing()
    with pytest.raises(ValueError, match="the tokens of each resolution") as refused:
        draw(pipe, eeg)
    assert ("Sliced" in str(refused.value)) is not undo
    for network in (pipe.unet, pipe.controlnet):
        networks.listen_by_resolution(network, pipe.unet.config.sample_size)
    assert np.array_equal(draw(pipe, eeg).images, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["dtype", "torch_dtype", "to"])
def test_low_precision_is_that_of_the_networks_alone(eeg, tmp_path, dtype, how):
    pipe = make_pipeline()
    exact = draw(pipe, eeg)
    pipe.save_pretrained(tmp_path)
    pipe = SGDMPipeline.from_pretrained(tmp_path, **({} if how == "to" else {how: dtype}))
    if how == "to":
        pipe.to("cpu", dtype)
    pipe.set_progress_bar_config(disable=True)
    kept = (pipe.vae, pipe.decoder, pipe.classifier)
    for part in (*kept, pipe.unet, pipe.controlnet, pipe.condition):
        types = {v.dtype for v in part.state_dict().values() if v.is_floating_point()}
        assert types == {torch.float32 if part in kept else dtype}
    made = draw(pipe, eeg, category_scale=0.5)
    assert np.array_equal(made.maps, exact.maps) and np.isfinite(made.images).all()
    assert np.abs(draw(pipe, eeg).images - exact.images).mean() < 0.02


def test_generators_are_one_or_one_for_each_picture(pipe, eeg):
    def seeds(n):
        return [torch.Generator().manual_seed(i) for i in range(n)]

    made = draw(pipe, eeg, generator=seeds(3), batch_size=2).images
    assert np.array_equal(draw(pipe, eeg, generator=tuple(seeds(3)), batch_size=2).images, made)
    assert np.allclose(draw(pipe, eeg[1:2], generator=(seeds(2)[1],)).images, made[1:2], atol=1e-4)
    for n in (0, 2, 4):
        for call in (
            lambda g: draw(pipe, eeg, generator=g, batch_size=2),
            lambda g: pipe.generate(torch.zeros(3, EMBED), None, generator=g),
        ):
            with pytest.raises(ValueError, match=f"{n} generators for 3 pictures"):
                call(seeds(n))
