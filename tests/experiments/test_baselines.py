"""Rivals under one budget: published encoders of the right size, painters that obey, a fair clock."""

from __future__ import annotations

import importlib.util
import shutil
import tomllib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgdm_utils.experiments import baselines, published_encoders
from sgdm_utils.generation.conditioning import guided_colours
from sgdm_utils.metrics import tables
from sgdm_utils.workflow import artifacts, config, paths, run

WITH = importlib.util.find_spec("braindecode") is not None
needs_braindecode = pytest.mark.skipif(not WITH, reason=published_encoders.INSTALL)
NAMES = [
    name if name in ("sgdm", "nice", "atm_s", "enigma", "ubp") else pytest.param(name, marks=needs_braindecode)
    for name in published_encoders.NAMES
]  # fmt: skip


def make(name, n_chans=8, n_outputs=12, n_times=80, sfreq=100.0, n_subjects=2, **sizes):
    torch.manual_seed(0)
    positions = F.normalize(torch.randn(n_chans, 3), dim=1).numpy()
    shape = {"n_chans": n_chans, "n_outputs": n_outputs, "n_times": n_times, "sfreq": sfreq}
    return published_encoders.build(
        name, **shape, n_subjects=n_subjects, positions=positions, **sizes
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_times, sfreq", [(80, 100.0), (250, 250.0)])
def test_every_encoder_has_the_call_of_ours(name, n_times, sfreq):
    encoder = make(name, n_times=n_times, sfreq=sfreq).eval()
    eeg, subject = torch.randn(3, 8, n_times), torch.tensor([0, 1, -1])
    mask = torch.arange(8) != 5
    z = encoder(eeg, subject, mask=mask)
    assert z.shape == (3, 12)
    louder = eeg * (1 + 3 * ~mask)[:, None]  # an electrode that is masked does not count
    torch.testing.assert_close(encoder(louder, subject, mask=mask), z)
    assert not torch.allclose(encoder(louder, subject), z, atol=1e-4)
    z.square().mean().backward()
    silent = [k for k, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    # constants before a softmax or a norm have no gradient by symmetry, everything else has
    assert len(silent) <= 0.15 * len(list(encoder.parameters())), silent
    with pytest.raises(ValueError, match="samples"):
        encoder(eeg[..., 1:], subject)


@pytest.mark.parametrize(
    "name, n_chans, published", [("atm_s", 63, 3.2e6), ("enigma", 63, 1.4e6), ("ubp", 17, 5.4e6)]
)
def test_what_is_written_anew_has_the_size_that_is_published(name, n_chans, published):
    encoder = make(name, n_chans=n_chans, n_outputs=1024, n_times=250, sfreq=250.0, n_subjects=1)
    assert baselines.count(encoder) == pytest.approx(published, rel=0.05)


def test_people_have_a_part_of_their_own_and_strangers_the_mean():
    encoder = make("enigma").eval()
    with torch.no_grad():
        encoder.align[1] *= 3
    eeg = torch.randn(1, 8, 80).repeat(3, 1, 1)
    first, second, stranger = encoder(eeg, torch.tensor([0, 1, -1]))
    assert not torch.allclose(first, second) and not torch.allclose(first, stranger)
    for name in ("atm_s", "enigma"):
        with pytest.raises(ValueError, match="-1 for nobody known"):
            make(name)(eeg)
        with pytest.raises(ValueError, match="subject 2 is unknown"):
            make(name)(eeg, torch.tensor([0, 1, 2]))


def test_without_braindecode_its_networks_are_left_out_with_the_way_to_get_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names, sentence = published_encoders.available()
    assert names == ("sgdm", "nice", "atm_s", "enigma", "ubp")
    assert "eegnet" in sentence and published_encoders.INSTALL in sentence
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        make("eegnet")
    project = tomllib.loads((paths.project_root() / "pyproject.toml").read_text())["project"]
    (extra,) = project["optional-dependencies"]["baselines"]
    assert f"'{extra}'" in published_encoders.INSTALL


@needs_braindecode
def test_an_epoch_too_short_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="shallow_fbcsp does not fit into 20 samples.*tmax"):
        make("shallow_fbcsp", n_times=20)
    with pytest.raises(ValueError, match="no encoder 'nise'"):
        make("nise")


def test_training_takes_the_time_it_is_given_and_averages_the_last_module():
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    y = x @ torch.arange(5.0)[:, None]
    network = torch.nn.Linear(5, 1)
    began = baselines.clock()
    training = baselines.train(
        [(network, lambda: F.mse_loss(network(x), y))], 1.0, lr=0.1, ema_decay=0.9
    )
    assert 1.0 <= training.seconds <= baselines.clock() - began + 1e-6
    assert training.n_parameters == 6 and training.n_steps > 20
    assert F.mse_loss(network(x), y) < 0.1
    quick = baselines.train([(network, lambda: network(x).mean())], 1e-9, lr=0.1)
    assert quick.n_steps == 3


def test_two_modules_move_along_their_own_losses_alone():
    """The critic's weights get no step from the painter's loss, though it passes through them."""
    critic, painter = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    losses = [
        (critic, lambda: sum((p * 0).sum() for p in critic.parameters())),
        (painter, lambda: critic(painter(torch.ones(4, 1))).mean()),
    ]
    start = painter.weight.clone()
    baselines.train(losses, 1e-9, lr=0.1, weight_decay=0.0)
    assert not torch.equal(painter.weight, start)
    for name, values in critic.state_dict().items():
        torch.testing.assert_close(values, before[name])


@pytest.mark.parametrize("seconds, message", [(0.0, "above 0"), (1.0, "lower learning rate")])
def test_a_training_that_cannot_be_is_refused(seconds, message):
    network = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        baselines.train([(network, lambda: network.weight.sum() * np.nan)], seconds, lr=0.1)


@pytest.fixture
def conditions():
    rng = np.random.default_rng(0)
    maps = np.zeros((4, 2, 32, 32), np.float32)
    maps[:, 0, 8:24, 8:24] = 1
    return {
        "embedding": rng.normal(size=(4, 6)).astype(np.float32),
        "category": np.eye(4, dtype=np.float32)[:, :3],
        "maps": maps,
        "colours": rng.random((4, 3, 8, 8)).astype(np.float32),
    }


def painter(**options):
    torch.manual_seed(0)
    return baselines.Painter(32, 6, 3, n_random=5, width=16, **options).eval()


@pytest.mark.parametrize("fold", [4, 8])
def test_a_painter_starts_from_the_picture_that_the_diffusion_model_starts_from(conditions, fold):
    colours, maps = (torch.from_numpy(conditions[k]) for k in ("colours", "maps"))
    start = guided_colours(colours, maps[:, 0]).clamp(0, 1).movedim(1, -1).numpy()
    drawn = baselines.paint(painter(fold=fold), conditions, seed=0) / 255
    assert np.abs(drawn - start).max() < 0.1 and drawn.shape == (4, 32, 32, 3)
    blank = baselines.paint(painter(fold=fold, guided=False), conditions, seed=0) / 255
    assert np.abs(blank - 0.5).max() < 0.1
    with pytest.raises(ValueError, match="a multiple of"):
        baselines.Painter(20, 6, 3, fold=4)


def test_painting_depends_on_each_condition_and_on_the_items_own_random_vector(conditions):
    network = painter()
    with torch.no_grad():
        network.outlet.weight.normal_(std=0.3)
    drawn = baselines.paint(network, conditions, seed=1)
    first_two = {k: x[:2] for k, x in conditions.items()}
    assert np.array_equal(baselines.paint(network, first_two, seed=1), drawn[:2])
    assert not np.array_equal(baselines.paint(network, conditions, seed=2), drawn)
    likeliest = [baselines.paint(network, conditions, seed=s, spread=0.0) for s in (1, 2)]
    assert np.array_equal(*likeliest)
    for name in conditions:
        other = conditions | {name: conditions[name][::-1] + (name == "maps") * 0.5}
        assert not np.array_equal(baselines.paint(network, other, 1, 0.0), likeliest[0]), name


def test_critic_and_code_see_picture_map_and_meaning(conditions):
    torch.manual_seed(0)
    batch = {k: torch.from_numpy(x) for k, x in conditions.items()}
    critic, code = baselines.Critic(6, 3, width=16).eval(), baselines.PictureCode(5, width=16)
    pictures = torch.rand(4, 3, 32, 32)
    score = critic(pictures, batch)
    assert score.shape == (4, 4, 4) and code(pictures, batch["maps"])[0].shape == (4, 5)
    assert not torch.allclose(critic(1 - pictures, batch), score)
    for name in batch:
        assert not torch.allclose(critic(pictures, batch | {name: 1 - batch[name]}), score), name


def test_the_penalty_of_the_ridge_is_chosen_on_validation():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(60, 100)), rng.normal(size=(100, 2))
    pairs = (x[:40], x[:40] @ weights), (x[40:], x[40:] @ weights)
    penalties = (1e-4, 10.0)
    unit = x[:40].var(axis=0).sum()
    assert baselines.ridge_by_validation(*pairs, penalties).alpha == pytest.approx(1e-4 * unit)
    noise = (x[:40], rng.normal(size=(40, 2))), (x[40:], rng.normal(size=(20, 2)))
    assert baselines.ridge_by_validation(*noise, penalties).alpha == pytest.approx(10.0 * unit)
    with pytest.raises(ValueError, match="at least one"):
        baselines.ridge_by_validation(*pairs, ())


def test_the_ruler_of_categories_is_the_one_that_names_validation_pictures_better():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 60, (40, 16, 16, 3), dtype=np.uint8)
    category = np.array(["dark", "light"] * 20)
    pictures[category == "light"] += 150  # told by brightness, not by outlines

    def brightness(p):
        return p.reshape(len(p), -1).mean(1, keepdims=True) / 255 * 20

    parts = pictures[:30], category[:30], pictures[30:], category[30:]
    named = baselines.category_ruler(*parts, brightness)
    assert (named(pictures) == category).all()


def test_seeds_that_were_not_trained_are_no_error(tmp_study):
    assert baselines.of_other_seeds("smoke", "reconstructions", [1, 2]) == {}


@pytest.mark.slow
@needs_braindecode
def test_notebook_11_on_the_small_study(smoke_study, tmp_path, monkeypatch):
    shutil.copytree(smoke_study.data, tmp_path / "data")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    study = smoke_study.config
    step = config.step(study, "experiments/11_baselines", None, study.seeds[0])
    run.execute(study, step)
    rows = tables.read_table(paths.report_dir("smoke") / "tables" / "baselines.csv")
    values = config.resolve(study, step)
    seeds = set(range(study.seeds[0], study.seeds[0] + values["n_seeds"]))
    for model in ("sgdm_equal_time", "cvae", "cgan", *published_encoders.NAMES[1:]):
        of_model = rows[(rows["model"] == model) & (rows["condition"] == "eeg")]
        assert set(of_model["seed"]) == seeds, model
        assert set(of_model["subject"]) == {"all", *study.subjects}
    mean = rows[(rows["model"] == "mean_image") & rows["metric"].str.startswith("two_way")]
    assert mean["value"].to_numpy() == pytest.approx(0.5, abs=1e-6)
    seconds = rows[(rows["metric"] == "training_s") & rows["model"].isin(["cvae", "cgan"])]
    assert (seconds["value"] >= values["generator_seconds"]).all()
    artifact = artifacts.read_artifact("smoke", "joint", "11_baselines", study.seeds[0])
    read = {place.rsplit("/", 1)[1] for place in artifact.identity["inputs"]}
    stages = (
        "data clip encoder_pretrained encoder structure forward generator pipeline reconstructions"
    )
    assert read == {*stages.split(), "preprocessing"}
