"""The diffusion prior: what it is before training, what it learns, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from schedulers import GOOD, every_scheduler, made_from, refuses

from sgdm_utils.experiments.prior import DiffusionPrior, best_of
from sgdm_utils.generation.conditioning import trust

DIM = 3
# these take no clean samples
NO_SAMPLE = {"EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "PNDM"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def targets():
    """Correlated normal embeddings, (4000, 3)."""
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 0.3]])
    return torch.randn(4000, DIM, generator=seeded(3)) @ mix


@pytest.fixture(scope="module")
def fresh(targets):
    """An untrained prior that knows the covariance."""
    torch.manual_seed(0)
    prior = DiffusionPrior(DIM, width=16, n_blocks=1)
    prior.fit_covariance(targets)
    return prior


@pytest.fixture(scope="module")
def restless():
    """A prior whose network says something at once."""
    torch.manual_seed(0)
    prior = DiffusionPrior(DIM, width=16, n_blocks=1)
    torch.nn.init.normal_(prior.out[1].weight, std=0.3)
    return prior


def test_the_covariance_is_that_of_the_targets(fresh, targets):
    found = fresh.basis * fresh.variance @ fresh.basis.T
    assert torch.allclose(found, torch.cov(targets.T), atol=1e-4)


def test_answers_have_the_quality_that_was_asked_for(fresh, targets):
    """`trust`, which measures answers of real decoders, finds the level and no need to shrink."""
    for level in (0.3, 0.8):
        answer = fresh.answers(targets, torch.full((len(targets),), level), seeded())
        factor, noise = trust(answer, targets)
        assert factor == pytest.approx(1, abs=0.03)
        assert noise == pytest.approx(level, abs=0.02)


def test_the_normal_estimate_is_that_of_a_conditioned_joint_normal(fresh, targets):
    """Against E[z | answer, x_t] from the joint covariance of all three, without a basis."""
    c, s = torch.cov(targets.T).double(), 0.7
    t = torch.tensor([400])
    a = fresh.noise_scheduler.alphas_cumprod[400].double()
    r2 = 1 - s**2
    zy, yy = r2 * c, r2**2 * c + r2 * s**2 * c
    joint = torch.cat([
        torch.cat([yy, a.sqrt() * zy], dim=1),
        torch.cat([a.sqrt() * zy, a * c + (1 - a) * torch.eye(DIM)], dim=1),
    ])  # fmt: skip
    cross = torch.cat([zy, a.sqrt() * c], dim=1)
    y, x = torch.tensor([[0.4, -0.2, 0.1]]), torch.tensor([[1.0, 0.5, -0.3]])
    wanted = cross @ torch.linalg.solve(joint, torch.cat([y, x], dim=1).double().T)
    found = fresh(x, t, y, torch.tensor([s]))
    assert torch.allclose(found.double(), wanted.T, atol=1e-3)
    left = c - cross @ torch.linalg.solve(joint, cross.T)
    deviation = fresh._gaussian(x, t, y, torch.tensor([s]))[1]
    assert (deviation**2).sum().item() == pytest.approx(left.trace().item(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize(("name", "options"), [(None, {}), *every_scheduler()])
def test_an_untrained_prior_draws_around_the_regression(fresh, targets, name, options):
    scheduler = None
    if name is not None:
        scheduler = made_from(fresh.noise_scheduler.config, name, options)
        if scheduler is None:
            return
    y = torch.tensor([[0.5, -0.2, 0.1]])

    def draw():
        steps = 60 if name is None else 200
        return fresh.sample(y, 0.6, 4000, 1.0, steps, scheduler, seeded(1))[0]

    if name not in {None, *GOOD} - NO_SAMPLE:
        return refuses(draw)
    drawn = draw()
    wanted = 0.6**2 * torch.cov(targets.T)
    assert torch.allclose(drawn.mean(0), y[0], atol=0.08)
    assert torch.allclose(torch.cov(drawn.T), wanted, atol=0.08 * wanted.max().item())


def test_an_exact_answer_comes_back_and_no_guidance_ignores_the_answer(restless):
    y = torch.randn(4, DIM, generator=seeded())
    assert torch.allclose(restless.sample(y, 0.0, 2, generator=seeded()), y[:, None], atol=1e-4)
    level = torch.full((4,), 0.7)
    free = restless.sample(y, level, guidance_scale=0.0, generator=seeded())
    unknown = restless.sample(0 * y, torch.ones(4), generator=seeded())
    assert torch.allclose(free, unknown, atol=1e-5)
    assert not torch.allclose(free, restless.sample(y, level, generator=seeded()), atol=1e-2)


def test_a_loss_of_one_is_what_the_normal_estimate_leaves(fresh, targets):
    level = torch.full((len(targets),), 0.7)
    generator = seeded()
    loss = fresh.loss(targets, fresh.answers(targets, level, generator), level, generator)
    assert loss.item() == pytest.approx(1, abs=0.05)


def test_it_learns_that_embeddings_are_one_of_two():
    """The posterior of z = +1 or -1 is known: P(+1 | answer) = sigmoid(2 answer / s^2)."""
    torch.manual_seed(0)
    prior, generator = DiffusionPrior(1, width=32, n_blocks=1), seeded()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=5e-3)
    for _ in range(400):
        z = torch.randint(2, (256, 1), generator=generator) * 2.0 - 1
        level = 0.5 + 0.5 * torch.rand(256, generator=generator)
        loss = prior.loss(z, prior.answers(z, level, generator), level, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = prior.sample(torch.tensor([[0.3]]), 0.8, 2000, generator=seeded(1)).flatten()
    assert (drawn.abs() - 1).abs().median() < 0.15
    # answer = r^2 z + r s e has variance (r s)^2 around r^2 z, so the log odds are 2 answer / s^2
    wanted = torch.sigmoid(torch.tensor(2 * 0.3 / 0.8**2)).item()
    assert (drawn > 0).float().mean().item() == pytest.approx(wanted, abs=0.07)


def test_the_same_generator_draws_the_same_and_items_do_not_depend_on_their_batch(restless):
    y, level = torch.randn(3, DIM, generator=seeded()), torch.tensor([0.5, 0.7, 0.9])
    ddpm = restless.noise_scheduler
    for scheduler in (None, ddpm):
        one, two = (restless.sample(y, level, 2, 1.5, 5, scheduler, seeded(7)) for _ in range(2))
        assert torch.equal(one, two)
        own = [seeded(i) for i in range(3)]
        together = restless.sample(y, level, 2, 1.5, 5, scheduler, own)
        alone = restless.sample(y[1:2], level[1:2], 2, 1.5, 5, scheduler, [seeded(1)])
        assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_dropped_conditions_train_the_unconditional_answer(restless):
    """With everything dropped (nearly) the answers of the regression do not matter."""
    restless.register_to_config(drop_condition=0.999999)
    z, level = torch.randn(8, DIM, generator=seeded()), torch.full((8,), 0.5)
    first = restless.loss(z, z, level, seeded())
    second = restless.loss(z, -z, level, seeded())
    restless.register_to_config(drop_condition=0.0)
    third = restless.loss(z, -z, level, seeded())
    restless.register_to_config(drop_condition=0.1)
    assert torch.equal(first, second) and not torch.isclose(first, third)


def test_the_best_of_some_is_nearest_in_direction_of_the_answer():
    samples = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 1.0], [0.0, 3.0]]])
    best = best_of(samples, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(best, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))


def test_it_is_saved_and_loaded_with_its_covariance(restless, targets, tmp_path):
    restless.fit_covariance(targets)
    restless.save_pretrained(tmp_path / "prior")
    loaded = DiffusionPrior.from_pretrained(tmp_path / "prior")
    assert loaded.config.width == 16 and loaded.config.embed_dim == DIM
    y = torch.randn(2, DIM, generator=seeded())
    first, second = (p.sample(y, 0.6, 3, 2.0, 4, generator=seeded()) for p in (restless, loaded))
    assert torch.equal(first, second)
    with pytest.raises(OSError, match="no_such_prior"):
        DiffusionPrior.from_pretrained(tmp_path / "no_such_prior")
    other = tmp_path / "prior" / "config.json"
    other.write_text(other.read_text().replace('"width": 16', '"width": 24'))
    with pytest.raises((RuntimeError, ValueError), match="shape"):
        DiffusionPrior.from_pretrained(tmp_path / "prior")


def test_what_cannot_be_denoised_is_refused(fresh):
    y, nan = torch.zeros(2, DIM), torch.tensor([[0.0, 1.0, 2.0], [0.0, float("nan"), 0.0]])
    bad = {
        r"z_eeg has shape \(2, 4\), expected \(batch, 3\)": dict(z_eeg=torch.zeros(2, 4)),
        r"z_eeg has shape \(0, 3\).*not empty": dict(z_eeg=torch.zeros(0, DIM)),
        r"z_eeg holds NaN or infinity, first in rows \[1\]": dict(z_eeg=nan),
        r"embedding_noise has shape \(3,\), expected \(2,\)": dict(noise=torch.ones(3)),
        r"embedding_noise must lie in \[0, 1\]": dict(noise=1.2),
        "n_samples is 0": dict(n_samples=0),
        "num_inference_steps is 0": dict(num_inference_steps=0),
        "guidance_scale is -1": dict(guidance_scale=-1.0),
        "guidance_scale is nan": dict(guidance_scale=float("nan")),
        "expects 'epsilon', the networks give prediction_type='sample'": dict(
            scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2")
        ),
        "3 generators for 2 pictures": dict(generator=(seeded(), seeded(), seeded())),
        "another rate": dict(scheduler=DDIMScheduler(prediction_type="sample")),
    }
    for message, options in bad.items():
        with pytest.raises(ValueError, match=message):
            fresh.sample(**{"z_eeg": y, "noise": 0.5} | options)


def test_what_cannot_be_trained_on_is_refused(fresh):
    y, half = torch.zeros(2, DIM), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="3 embeddings for 2 answers"):
        fresh.loss(torch.zeros(3, DIM), y, half)
    with pytest.raises(ValueError, match="nothing to learn"):
        fresh.loss(y, y, torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match=r"z has shape \(2,\)"):
        fresh.loss(torch.zeros(2), y, half)
    with pytest.raises(ValueError, match="at least 2"):
        fresh.fit_covariance(y[:1])
    with pytest.raises(ValueError, match="targets holds NaN"):
        fresh.fit_covariance(y / 0)
    with pytest.raises(ValueError, match=r"drop_condition is 1.0, a share in \[0, 1\)"):
        DiffusionPrior(DIM, drop_condition=1.0)
