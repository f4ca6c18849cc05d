"""EEG encoders: any cap on the same weights, fused against literal, regions, refusals."""

from __future__ import annotations

import mne
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgdm_utils.datasets import electrodes
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE as STANDARD
from sgdm_utils.datasets.electrodes import electrode_positions
from sgdm_utils.decoding import encoders, training
from sgdm_utils.experiments import nice_encoder, regions
from sgdm_utils.simulation import brain

CAPS = {4: STANDARD, 17: STANDARD, 32: "biosemi32", 63: STANDARD, 128: "biosemi128"}
N_SUBJECTS = 3


def cap(montage_name, names=None) -> np.ndarray:
    """Directions of the electrodes of a montage, or of some of them."""
    montage = mne.channels.make_standard_montage(montage_name)
    names = montage.ch_names if names is None else names
    info = mne.create_info(list(names), 100.0, "eeg").set_montage(montage, on_missing="ignore")
    return electrode_positions(info["chs"])


@pytest.fixture(scope="module")
def positions():
    return torch.from_numpy(cap(STANDARD, brain.EEG_CHANNELS))


@pytest.fixture(scope="module")
def encoder(positions):
    torch.manual_seed(0)
    model = encoders.SGDMEncoder(
        63, 16, 80, n_subjects=N_SUBJECTS, n_virtual=24, width=16, positions=positions
    )
    with torch.no_grad():  # subjects differ, as after training
        model.subject += 0.2 * torch.randn_like(model.subject)
    return model.eval()


@pytest.fixture
def eeg():
    return torch.randn(5, 63, 80, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def subject():
    return torch.tensor([0, 2, 1, 0, -1])


def literal(model, eeg, subject, positions, mask=None):
    """The encoder one step after the other, in float64 NumPy up to the convolutions."""
    w = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
    centre = w["spatial.centre"] / np.linalg.norm(w["spatial.centre"], axis=1, keepdims=True)
    layers = [*w["subject"], w["subject"].mean(0)]
    virtual = []
    for i, signal in enumerate(eeg.double().numpy()):
        place = (positions if positions.dim() == 2 else positions[i]).double().numpy()
        rows = []
        for v in range(len(centre)):
            score = []
            for p in place:
                phase = np.outer(p, np.arange(1, 5) * np.pi / 2).ravel()
                code = np.concatenate([p, np.sin(phase), np.cos(phase)])
                near = np.exp(w["spatial.log_sharpness"][v, 0]) * (p @ centre[v])
                score.append(near + w["spatial.query.weight"][v] @ code)
            keep = np.ones(len(place), bool) if mask is None else mask[i].numpy()
            weight = np.where(keep, np.exp(score), 0)
            rows.append(weight / weight.sum() @ signal)
        virtual.append(layers[int(subject[i])] @ np.array(rows))
    maps = model.blocks(model.stem(torch.tensor(np.array(virtual), dtype=torch.float32)))
    return model.project(model.norm(maps.flatten(1)))


@pytest.mark.parametrize("per_item", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_matrices_compute_the_literal_encoder(
    encoder, positions, eeg, subject, per_item, masked
):
    mask = torch.rand(5, 63, generator=torch.Generator().manual_seed(2)) > 0.3 if masked else None
    where = positions
    if per_item:  # each item has a cap of its own
        where = torch.stack([positions.roll(i, 0) for i in range(5)])
    ours = encoder(eeg, subject, where, mask)
    assert torch.allclose(ours, literal(encoder, eeg, subject, where, mask), atol=1e-5)


def test_it_is_the_encoder_that_the_demo_trained(positions):
    """Names, shapes and sizes that artifacts on people's disks hold."""
    model = encoders.SGDMEncoder(63, 64, 80, n_subjects=3, dropout=0.25, positions=positions)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    block = {
        "0.weight": (48,), "0.bias": (48,), "1.weight": (48, 16, 5), "1.bias": (48,),
        "4.weight": (48, 48, 1), "4.bias": (48,),
    }  # fmt: skip
    assert shapes == {
        "subject": (3, 64, 64), "default_positions": (63, 3), "spatial.centre": (64, 3),
        "spatial.log_sharpness": (64, 1), "spatial.query.weight": (64, 27),
        "stem.weight": (48, 64, 7), "stem.bias": (48,), "norm.weight": (1920,),
        "norm.bias": (1920,), "project.1.weight": (64, 1920), "project.1.bias": (64,),
        **{f"blocks.{b}.net.{k}": v for b in (0, 1) for k, v in block.items()},
    }  # fmt: skip
    assert model.n_features_times == 40 and model.resample is None
    assert sum(p.numel() for p in model.parameters()) == 175_280  # as notebook 02 prints


def test_many_outputs_pass_a_bottleneck(positions, eeg, subject):
    torch.manual_seed(0)
    options = {"n_subjects": N_SUBJECTS, "width": 16, "positions": positions, "bottleneck": 3}
    model = encoders.SGDMEncoder(63, 40, 80, **options).eval()
    z = model(eeg, subject).detach()
    assert z.shape == (5, 40)
    assert torch.linalg.matrix_rank(z - z.mean(0), rtol=1e-4) == 3
    with pytest.raises(ValueError, match="bottleneck is 0"):
        encoders.SGDMEncoder(63, 40, 80, **options | {"bottleneck": 0})
    few = encoders.SGDMEncoder(63, 3, 80, **options)  # as many outputs need none
    assert len(few.project) == 2 and few.project[1].out_features == 3


@pytest.mark.parametrize("p", [0.0, 0.25, 0.3, 0.5, 0.999])
def test_a_random_byte_drops_the_share_that_is_asked_for(p):
    layer = encoders.CoarseDropout(p)
    x = torch.full((1001, 333), 2.0, requires_grad=True)  # no multiple of eight
    torch.manual_seed(0)
    y = layer(x)
    share = (y == 0).double().mean().item()
    kept = max(1, round(256 * (1 - p))) / 256
    assert abs(share - (1 - kept)) < 4 * (kept * (1 - kept) / x.numel()) ** 0.5 + 1e-9
    assert abs(kept - (1 - p)) <= 1 / 256
    assert torch.allclose(y[y != 0], torch.tensor(2 / kept))  # the mean stays
    y.sum().backward()
    assert torch.equal(x.grad, y.detach() / 2)  # the same values pass
    bytes_ = (y == 0).double().flatten()[: x.numel() // 8 * 8].view(-1, 8)
    error = (kept * (1 - kept) / len(bytes_)) ** 0.5  # each of the eight is as likely to drop
    assert ((bytes_.mean(0) - (1 - kept)).abs() < 4.5 * error + 1e-9).all()
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    assert layer.eval()(x) is x


def test_dropout_refuses_a_share_that_keeps_nothing():
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share of values to drop"):
            encoders.CoarseDropout(p)


def smooth_epochs(times: np.ndarray) -> torch.Tensor:
    """Sums of oscillations below 20 Hz in 5 epochs, 63 channels, at any moments in seconds."""
    rng = np.random.default_rng(3)
    phase = rng.uniform(0, 2 * np.pi, (5, 63, 4, 1))
    waves = np.sin(2 * np.pi * rng.uniform(1, 20, (5, 63, 4, 1)) * times + phase)
    return torch.tensor(waves.sum(2), dtype=torch.float32)


@pytest.mark.parametrize("sfreq", [128, 200, 250, 500, 1000])
def test_the_same_weights_serve_every_sampling_rate(encoder, positions, subject, sfreq):
    n_times = round(0.8 * sfreq)
    other = encoders.SGDMEncoder(
        63, 16, n_times, sfreq=float(sfreq), n_subjects=3, n_virtual=24, width=16,
        positions=positions,
    ).eval()  # fmt: skip
    if sfreq == 128:  # 102 samples last a little less than 80 at 100 Hz: the same number of steps
        assert n_times == 102
    other.load_state_dict(encoder.state_dict())
    maps = other.features(smooth_epochs(np.arange(n_times) / sfreq), subject)
    reference = encoder.features(smooth_epochs(np.arange(80) / 100), subject)
    assert maps.shape == reference.shape == (5, 16, 40)  # 50 Hz
    correlation = np.corrcoef(maps.detach().ravel(), reference.detach().ravel())[0, 1]
    assert correlation > 0.97


def test_resampling_is_interpolation_up_and_a_mean_of_neighbours_down():
    up = encoders.resampling_matrix(4, 50.0)  # 20 ms steps to 10 ms
    assert up.shape == (4, 8)
    assert torch.equal(up[:, :3], torch.tensor([[1, 0.5, 0], [0, 0.5, 1], [0, 0, 0], [0, 0, 0]]))
    down = encoders.resampling_matrix(250, 250.0)
    assert down.shape == (250, 100)
    # around 20 ms lie the samples 3 to 7, 8 ms and 4 ms away: 0.2 0.6 1 0.6 0.2
    assert torch.allclose(down[3:8, 2], torch.tensor([0.2, 0.6, 1, 0.6, 0.2]) / 2.6)
    # around 10 ms the samples 0 to 5, at 2, 6 (and 10) ms: 0.4 0.8 0.8 0.4
    assert torch.allclose(down[1:5, 1], torch.tensor([0.4, 0.8, 0.8, 0.4]) / 2.4)
    assert torch.allclose(encoders.resampling_matrix(80, 100.0), torch.eye(80), atol=1e-6)
    for n_times, sfreq in ((250, 250.0), (103, 128.0), (77, 60.0), (1000, 1000.0), (1, 250.0)):
        matrix = encoders.resampling_matrix(n_times, sfreq)
        assert torch.allclose(matrix.sum(0), torch.ones(matrix.shape[1])) and (matrix >= 0).all()


@pytest.mark.parametrize(
    ("sfreq", "n_times", "steps"), [(100, 80, 40), (128, 103, 41), (250, 250, 50), (60, 48, 40)]
)
def test_features_have_a_step_every_20_ms(positions, sfreq, n_times, steps):
    model = encoders.SGDMEncoder(
        63, 8, n_times, sfreq=float(sfreq), n_virtual=8, width=8, positions=positions
    )
    maps = model.features(torch.randn(2, 63, n_times), torch.tensor([0, 0]))
    assert maps.shape == (2, 8, steps) and model.n_features_times == steps


def test_the_fused_path_is_literal_at_250_hz_too(positions):
    torch.manual_seed(1)
    model = encoders.SGDMEncoder(
        63, 16, 250, sfreq=250.0, n_subjects=3, n_virtual=24, width=16, positions=positions
    ).eval()
    x, subject = torch.randn(3, 63, 250), torch.tensor([2, 0, 2])
    at_100_hz = x @ encoders.resampling_matrix(250, 250.0)
    assert torch.allclose(
        model(x, subject), literal(model, at_100_hz, subject, positions), atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "most"), [({"width": 64, "bottleneck": 1024}, 4_000_000), ({}, 600_000)]
)
def test_the_full_things_eeg2_setting_stays_small(positions, options, most):
    """On a graphics card as config/things_eeg2.yaml has it, and as a processor trains it."""
    model = encoders.SGDMEncoder(
        63, 1024, 250, sfreq=250.0, n_subjects=10, positions=positions, **options
    ).eval()
    assert 0.8 * most < sum(p.numel() for p in model.parameters()) <= most
    with torch.no_grad():
        assert model(torch.randn(2, 63, 250), torch.tensor([9, -1])).shape == (2, 1024)


@pytest.mark.parametrize("n_chans", CAPS)
def test_any_cap_is_an_input_to_the_same_weights(encoder, n_chans):
    where = torch.from_numpy(cap(CAPS[n_chans]) if n_chans in (32, 128) else cap(
        STANDARD, brain.EEG_CHANNELS[:: 63 // n_chans][:n_chans]
    ))  # fmt: skip
    assert len(where) == n_chans
    generator = torch.Generator().manual_seed(n_chans)
    x, subject = torch.randn(3, n_chans, 80, generator=generator), torch.tensor([0, 1, 2])
    z = encoder(x, subject, where)
    assert z.shape == (3, 16) and z.isfinite().all()
    order = torch.randperm(n_chans, generator=generator)
    assert torch.allclose(encoder(x[:, order], subject, where[order]), z, atol=1e-5)
    # virtual sensors are weighted means: a cap with every electrode twice says the same
    twice = encoder(x.repeat(1, 2, 1), subject, where.repeat(2, 1))
    assert torch.allclose(twice, z, atol=1e-5)


def test_the_centre_of_the_head_is_fitted_to_exact_spheres_only():
    def centre(loc):
        return electrodes._head_centre(np.asarray(loc, dtype=float))

    rng, standard = np.random.default_rng(0), [0.0, 0.016, 0.045]
    ball = rng.standard_normal((20, 3))
    ball = 0.09 * ball / np.linalg.norm(ball, axis=1, keepdims=True) + [0.01, 0.0, 0.04]
    assert np.allclose(centre(ball), [0.01, 0.0, 0.04], atol=1e-9)
    assert np.allclose(centre(ball + rng.normal(0, 0.002, ball.shape)), standard)
    assert np.allclose(centre(ball[:4]), standard)  # four points lie on some sphere always
    ring = ball * [1, 1, 0]  # no sphere is determined
    ring /= np.linalg.norm(ring, axis=1, keepdims=True) / 0.09
    assert np.allclose(centre(ring), standard)
    montage = mne.channels.make_standard_montage(STANDARD)
    info = mne.create_info(montage.ch_names, 100.0, "eeg").set_montage(montage)
    assert np.allclose(centre([ch["loc"][:3] for ch in info["chs"]]), standard)


def test_a_masked_electrode_is_an_absent_one_whatever_it_holds(encoder, positions, eeg, subject):
    keep = torch.ones(63, dtype=torch.bool)
    keep[[3, 40, 62]] = False
    few = encoder(eeg[:, keep], subject, positions[keep])
    for junk in (1e4, float("nan"), float("inf")):
        changed = eeg.clone()
        changed[:, ~keep] = junk
        for mask in (keep, keep.expand(5, -1)):
            assert torch.allclose(encoder(changed, subject, mask=mask), few, atol=1e-5)


def test_an_unseen_subject_has_the_mean_layer(encoder, eeg):
    unseen = encoder(eeg, torch.full((5,), -1))
    mean = encoders.SGDMEncoder(
        63, 16, 80, n_virtual=24, width=16, positions=encoder.default_positions
    ).eval()
    state = encoder.state_dict()
    mean.load_state_dict(state | {"subject": state["subject"].mean(0, keepdim=True)})
    assert torch.allclose(unseen, mean(eeg, torch.zeros(5, dtype=torch.long)), atol=1e-5)
    assert not torch.allclose(unseen, encoder(eeg, torch.zeros(5, dtype=torch.long)), atol=1e-3)


def test_the_gradient_reaches_every_parameter_and_only_the_subjects_of_the_batch(positions, eeg):
    torch.manual_seed(0)
    for mask in (None, training.keep_electrodes(5, 63, 0.3, torch.Generator().manual_seed(0))):
        model = encoders.SGDMEncoder(
            63, 16, 80, n_subjects=3, n_virtual=24, width=16, positions=positions
        )
        model(eeg, torch.tensor([0, 2, 2, 0, 0]), mask=mask).square().sum().backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == []
        assert model.subject.grad[[0, 2]].flatten(1).any(1).all()
        assert not model.subject.grad[1].any()


def test_tokens_are_means_over_stretches_of_time(encoder, eeg, subject):
    maps = encoder.features(eeg, subject)
    tokens = encoder.tokens(eeg, subject, n_tokens=8)
    assert tokens.shape == (5, 8, 16)
    assert torch.allclose(tokens, maps.unflatten(2, (8, 5)).mean(3).transpose(1, 2), atol=1e-6)
    with pytest.raises(ValueError, match="n_tokens=41: the features have 40 steps"):
        encoder.tokens(eeg, subject, n_tokens=41)


def test_channel_dropout_hides_the_share_and_never_everything():
    generator = torch.Generator().manual_seed(0)
    assert training.keep_electrodes(400, 50, 0.3, generator).float().mean() == pytest.approx(
        0.7, abs=0.01
    )
    assert training.keep_electrodes(2000, 2, 0.99, generator).any(1).all()
    assert training.keep_electrodes(3, 5, 0.0, generator).all()
    with pytest.raises(ValueError, match="0 <= share < 1"):
        training.keep_electrodes(3, 5, 1.0, generator)


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eeg=torch.randn(5, 63, 79)), "80 samples at 100 Hz, got 79"),
        (dict(sfreq=250.0), "built for 100 Hz and the EEG has 250 Hz"),
        (dict(sfreq=float("nan")), "the EEG has nan Hz"),
        (dict(eeg=torch.randn(0, 63, 80), subject=torch.zeros(0).long()), "batch is empty"),
        (dict(eeg=torch.randn(63, 80)), r"shape \(63, 80\), expected floating point of shape"),
        (dict(eeg=torch.ones(5, 63, 80, dtype=torch.int16)), "torch.int16"),
        (dict(subject=torch.tensor([0, 1, 3, 0, 0])), r"subject 3 is unknown \(0..2\); use -1"),
        (dict(subject=torch.tensor([0, 1, -2, 0, 0])), "subject -2 is unknown"),
        (dict(subject=torch.tensor([0, 1])), "one integer for each of the 5 items"),
        (dict(subject=torch.zeros(5)), "subject is torch.float32"),
        (dict(positions=torch.ones(62, 3)), r"63 channels but positions of shape \(62, 3\)"),
        (dict(positions=torch.ones(4, 63, 3)), r"expected \(63, 3\) or \(5, 63, 3\)"),
        (dict(mask=torch.ones(5, 62, dtype=torch.bool)), r"shape \(5, 62\), expected bool"),
        (dict(mask=torch.ones(5, 63)), "mask is torch.float32"),
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(encoder, eeg, subject, change, message):
    with pytest.raises(ValueError, match=message):
        encoder(**(dict(eeg=eeg, subject=subject) | change))


def test_electrodes_without_position_are_refused(encoder, positions, eeg, subject):
    for lost in (float("nan"), 0.0):
        broken = positions.clone()
        broken[[7, 9]] = lost
        with pytest.raises(ValueError, match="no electrode position for channel 7, 9"):
            encoder(eeg, subject, broken)
        with pytest.raises(ValueError, match="no electrode position for channel 7, 9"):
            encoders.SGDMEncoder(63, 16, 80, positions=broken)
    with pytest.raises(ValueError, match="no electrode position for Q1"):
        electrode_positions([{"ch_name": "Q1", "loc": np.zeros(12)}])
    with pytest.raises(ValueError, match="62 electrode positions for n_chans=63"):
        encoders.SGDMEncoder(63, 16, 80, positions=positions[:62])
    with pytest.raises(ValueError, match="electrodes enter by position"):
        encoders.SGDMEncoder(63, 16, 80)
    with pytest.raises(ValueError, match="sfreq=0.0 is no sampling rate"):
        encoders.SGDMEncoder(63, 16, 80, sfreq=0.0, positions=positions)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sample", [0, 39, 79])
def test_one_bad_sample_is_found(encoder, eeg, subject, value, sample):
    eeg[3, 17, sample] = value
    with pytest.raises(ValueError, match="NaN or infinite EEG in item 3, channel 17: mask"):
        encoder(eeg, subject)


def test_an_item_without_electrode_is_refused(encoder, eeg, subject):
    mask = torch.ones(5, 63, dtype=torch.bool)
    mask[[1, 4]] = False
    with pytest.raises(ValueError, match="every electrode of item 1, 4 is masked"):
        encoder(eeg, subject, mask=mask)
    with pytest.raises(ValueError, match="every electrode is masked"):
        encoder(eeg, subject, mask=torch.zeros(63, dtype=torch.bool))


def test_long_lists_are_cut_short():
    with pytest.raises(ValueError, match="item 0, 1, 2, 3, 4, 5, 6, 7 and 12 more is masked"):
        encoders.check_mask(torch.zeros(20, 3, dtype=torch.bool), 20, 3)


def test_float64_eeg_is_taken(encoder, eeg, subject):
    assert torch.equal(encoder(eeg.double(), subject), encoder(eeg, subject))


# ------------------------------------------------------------------------------ regions


def test_regions_of_the_things_cap_are_those_of_the_names(positions):
    by_letter = dict(O="occipital", PO="parieto_occipital", P="parietal", T="temporal",
                     TP="temporal", FT="temporal", C="central", CP="central", FC="central",
                     F="frontal", AF="frontal", Fp="frontal")  # fmt: skip
    masks = regions.region_masks(positions)
    assert list(masks) == list(regions.REGIONS)
    for i, name in enumerate(brain.EEG_CHANNELS):
        found = [region for region, mask in masks.items() if mask[i]]
        assert found == [by_letter[name.rstrip("z0123456789")]], name


@pytest.mark.parametrize("montage", ["biosemi64", "easycap-M1", "biosemi128"])
def test_template_caps_on_a_sphere_have_the_regions_of_their_names(montage):
    """Their centre is not that of a real head: with the wrong one, Pz passes for POz."""
    makers = dict(A1="Cz", A19="Pz", B26="T8", D23="T7", C21="Fz", C17="Fpz", A15="O1", A28="O2")
    names = mne.channels.make_standard_montage(montage).ch_names
    index = regions.electrode_regions(cap(montage))
    _, of_reference, reference = regions.reference_electrodes()
    known = 0
    for name, region in zip(names, index, strict=True):
        place = makers.get(name) if montage == "biosemi128" else name
        if place in reference:
            assert region == of_reference[reference.index(place)], name
            known += 1
    assert known >= 8


def test_face_and_neck_are_in_no_region():
    down = np.array([[0, 0, -1.0], [0, 0.6, -0.8], [0, -0.6, -0.8]])  # and nose, and neck
    assert regions.electrode_regions(down).tolist() == [-1, -1, -1]
    assert not any(mask.any() for mask in regions.region_masks(down).values())


def test_regions_refuse_metres_and_other_shapes(positions):
    with pytest.raises(ValueError, match="no unit vectors .a length is 0.095"):
        regions.electrode_regions(0.095 * positions)
    with pytest.raises(ValueError, match="no unit vectors .a length is nan"):
        regions.electrode_regions(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match=r"shape \(63,\), expected"):
        regions.electrode_regions(positions[:, 0])


# ------------------------------------------------------------------------------ NICE


def test_nice_has_the_size_that_is_published():
    model = nice_encoder.NICEEncoder(63, 1024, 250, sfreq=250.0)
    # 40 filters of 25; 40 of 40 x 63; 1 x 1; 36 steps x 40 to 1024; 1024 to 1024; norms
    by_hand = 40 * 26 + 80 + 40 * (40 * 63 + 1) + 80 + 40 * 41
    by_hand += 36 * 40 * 1024 + 1024 + 1024 * 1025 + 2 * 1024
    assert sum(p.numel() for p in model.parameters()) == by_hand == 2_630_912


@pytest.mark.parametrize(("sfreq", "n_times"), [(250.0, 250), (100.0, 80)])
def test_nice_merged_gives_the_numbers_and_gradients_of_the_layers(sfreq, n_times):
    torch.manual_seed(0)
    models = [
        nice_encoder.NICEEncoder(9, 12, n_times, sfreq=sfreq, dropout=0.0, merge_linear=m)
        for m in (False, True)
    ]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(4, 9, n_times)
    z = [model(x) for model in models]
    assert z[0].shape == (4, 12)
    assert torch.allclose(*z, atol=1e-4)
    target = torch.randn(4, 12)
    gradients = []
    for model, said in zip(models, z, strict=True):
        F.mse_loss(said, target).backward()
        gradients.append(model.temporal.weight.grad)
    assert torch.allclose(*gradients, atol=1e-4)
    assert gradients[0].abs().max() > 1e-3


def test_nice_at_100_hz_has_the_same_durations():
    model = nice_encoder.NICEEncoder(63, 64, 80, sfreq=100.0)
    assert (model.temporal.kernel_size, model.pool, model.stride) == ((1, 10), 20, 2)
    model = nice_encoder.NICEEncoder(63, 64, 250, sfreq=250.0)
    assert (model.temporal.kernel_size, model.pool, model.stride) == ((1, 25), 51, 5)


def test_nice_refuses_another_cap_and_windows_that_are_too_short():
    with pytest.raises(ValueError, match="this encoder needs 29 at least"):
        nice_encoder.NICEEncoder(63, 64, 28, sfreq=100.0)
    model = nice_encoder.NICEEncoder(6, 8, 80, sfreq=100.0).eval()
    with pytest.raises(ValueError, match="built for 6 channels, got 5"):
        model(torch.randn(2, 5, 80))
    with pytest.raises(ValueError, match="80 samples"):
        model(torch.randn(2, 6, 81))
    x, mask = torch.randn(2, 6, 80), torch.ones(2, 6, dtype=torch.bool)
    mask[:, 2] = False
    z = model(x, mask=mask)
    x[:, 2] = 0
    assert torch.equal(z, model(x, mask=mask))
