"""The generator: its networks, its guidance, its pipeline, and what the pipeline refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from sgdm_utils.decoding import training
from sgdm_utils.generation import conditioning, networks
from sgdm_utils.generation.autoencoder import PictureVAE
from sgdm_utils.generation.conditioning import ConditionEmbedder, Conditions
from sgdm_utils.generation.guide import LatentClassifier, category_direction, guided_velocity
from sgdm_utils.generation.networks import MultiScaleAttnProcessor, resolutions
from sgdm_utils.generation.pipeline import SGDMPipeline

SIZE, EMBED, CHANNELS, RESIDUAL, KINDS = 32, 6, 4, 0.7, 3


def make_pipeline(scheduler=None) -> SGDMPipeline:
    """A tiny pipeline with random weights."""
    torch.manual_seed(0)
    vae = PictureVAE(SIZE, patch=8, latent_channels=CHANNELS, width=16)
    vae.fit_patches(torch.rand(40, 3, SIZE, SIZE) * 2 - 1)
    vae.latent_std.fill_(4.0)  # latents move the picture visibly
    unet = networks.make_unet(CHANNELS, vae.grid, EMBED, 32, (32, 32))
    controlnet = networks.make_controlnet(unet, SIZE)
    for network in (unet, controlnet):  # zero weights would hide what the conditions do
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.08)
    condition = ConditionEmbedder(
        EMBED, KINDS, resolutions(unet), n_tokens=3, token_dim=32, residual_std=RESIDUAL
    )
    for null in (condition.null_meaning, condition.null_category):
        torch.nn.init.normal_(null)
    classifier = LatentClassifier(CHANNELS, KINDS, width=16)
    scheduler = scheduler or DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    parts = (vae, unet, controlnet, condition)
    pipe = SGDMPipeline(*(part.eval() for part in parts), scheduler, classifier.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(3, EMBED, generator=generator)
    return embedding, torch.rand(3, 2, SIZE, SIZE, generator=generator)


def draw(pipe, embedding, maps, seed=0, **options):
    options = {"num_inference_steps": 3} | options
    noise = torch.Generator().manual_seed(seed)
    return pipe.generate(embedding, maps, generator=noise, **options)


# the autoencoder


def test_patch_components_are_orthonormal_sorted_and_invertible(pipe):
    vae = pipe.vae
    n = 3 * 8**2
    assert torch.allclose(vae.patch_basis.T @ vae.patch_basis, torch.eye(n), atol=1e-5)
    pictures = torch.rand(5, 3, SIZE, SIZE) * 2 - 1
    components = vae.to_components(pictures)
    assert components.shape == (5, n, 4, 4)
    assert torch.allclose(vae.from_components(components), pictures, atol=1e-4)


def test_patch_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    pictures = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    pictures[:, :, :, 8:] *= 0.3
    vae = PictureVAE(16, patch=4, latent_channels=5, width=16)
    explained = vae.fit_patches(pictures)
    patches = torch.nn.functional.pixel_unshuffle(pictures, 4).movedim(1, -1).flatten(0, -2)
    pca = PCA().fit(patches.double().numpy())
    assert np.allclose(explained, pca.explained_variance_ratio_.cumsum(), atol=1e-5)
    ours = (patches - vae.patch_mean) @ vae.patch_basis[:, :5]
    assert np.allclose(
        ours.abs(), np.abs(pca.transform(patches.double().numpy())[:, :5]), atol=1e-3
    )


def test_an_untrained_autoencoder_is_the_linear_code(pipe):
    vae = PictureVAE(16, patch=8, latent_channels=192, width=16)  # all components: nothing is lost
    pictures = torch.rand(12, 3, 16, 16) * 2 - 1
    vae.fit_patches(pictures.repeat(8, 1, 1, 1) + 0.01 * torch.randn(96, 3, 16, 16))
    assert torch.allclose(vae.reconstruct(vae.posterior(pictures).mode()), pictures, atol=1e-3)


def test_encode_and_decode_use_the_standardisation():
    vae = PictureVAE(16, patch=8, latent_channels=192, width=16)
    pictures = torch.rand(12, 3, 16, 16) * 2 - 1
    vae.fit_patches(pictures)
    vae.latent_mean.fill_(0.7)
    vae.latent_std.fill_(3.0)
    latents = vae.encode(pictures)
    assert torch.allclose(latents * 3 + 0.7, vae.posterior(pictures).mode(), atol=1e-4)
    assert torch.allclose(vae.decode(latents), pictures / 2 + 0.5, atol=1e-3)
    assert vae.decode(latents * 50).max() <= 1


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        PictureVAE(60, patch=8)
    with pytest.raises(ValueError, match="193 latent channels"):
        PictureVAE(64, patch=8, latent_channels=193)


# the conditions


@pytest.mark.parametrize("s", [0.0, 0.5, 0.8, 1.0])
def test_shrink_gives_the_correlation_and_error_it_promises(s):
    generator = torch.Generator().manual_seed(4)
    target, error = torch.randn(2, 40000, 2, generator=generator).double()
    out = conditioning.shrink(target, error, torch.full((40000,), s).double())
    assert out.var().item() == pytest.approx(1 - s**2, abs=0.02)
    assert (out - target).pow(2).mean().sqrt().item() == pytest.approx(s, abs=0.02)
    if s == 0:
        assert torch.equal(out, target)
    if s < 1:
        r = np.corrcoef(out.flatten(), target.flatten())[0, 1]
        assert r == pytest.approx((1 - s**2) ** 0.5, abs=0.02)
        slope = (out * target).mean() / out.pow(2).mean()  # of the truth on the prediction
        assert slope.item() == pytest.approx(1, abs=0.03), "a best linear decoder is calibrated"


def test_unknown_embeddings_do_not_reach_the_tokens(pipe):
    z, noise = torch.randn(2, EMBED), torch.tensor([0.0, 0.5])
    hidden = torch.tensor([True, False])
    told, other = pipe.condition(z, noise, hidden), pipe.condition(z + 1, noise + 0.1, hidden)
    assert sorted(told.tokens) == [2, 4]
    for level in told.tokens:
        assert told.tokens[level].shape == (2, 3 + 1, 32)
        assert not torch.allclose(told.tokens[level][0], other.tokens[level][0])
        assert torch.equal(told.tokens[level][1], other.tokens[level][1])
    assert torch.equal(told.vector[1], other.vector[1])
    assert torch.equal(told.vector[0, :EMBED], z[0]) and told.vector[0, EMBED] == 0


def test_a_hidden_category_is_the_same_as_none_and_a_known_one_is_its_own_token(pipe):
    z, noise, yes = torch.randn(2, EMBED), torch.zeros(2), torch.ones(2, dtype=torch.bool)
    kinds = torch.eye(KINDS)[[0, 2]]
    told = pipe.condition(z, noise, yes, kinds, torch.tensor([True, False]))
    none = pipe.condition(z, noise, yes)
    for level in told.tokens:
        same = (told.tokens[level] == none.tokens[level]).all(-1)
        assert same[1].all() and same[0].tolist() == [True, True, True, False]


def test_resolutions_have_projections_of_their_own_unless_they_share_one():
    arguments = (EMBED, KINDS, (2, 4), 3, 32)
    own = ConditionEmbedder(*arguments)
    shared = ConditionEmbedder(*arguments, multi_scale=False)
    z, noise, yes = torch.randn(2, EMBED), torch.zeros(2), torch.ones(2, dtype=torch.bool)
    tokens = own(z, noise, yes).tokens
    assert not torch.allclose(tokens[2], tokens[4])
    tokens = shared(z, noise, yes).tokens
    assert torch.equal(tokens[2], tokens[4])


def test_every_block_attends_to_the_tokens_of_its_resolution_only(pipe, inputs):
    """Changing the tokens of one resolution changes what blocks of that resolution are told."""
    assert {p.resolution for p in pipe.unet.attn_processors.values()} == {2, 4}
    told = pipe.condition(inputs[0], torch.zeros(3), torch.ones(3, dtype=torch.bool))
    x, t = torch.randn(3, CHANNELS, 4, 4), torch.tensor([5, 500, 900])
    asked = {}

    def remember(module, arguments, output):
        asked["mid"] = output.detach().clone()

    handle = pipe.unet.mid_block.register_forward_hook(remember)
    plain = networks.predict(pipe.unet, pipe.controlnet, x, t, told)
    before = asked["mid"]
    fine = Conditions(told.tokens | {4: told.tokens[4] + 1}, told.vector)
    changed = networks.predict(pipe.unet, pipe.controlnet, x, t, fine)
    assert torch.equal(asked["mid"], before), "the coarse level listened to the fine tokens"
    assert not torch.allclose(plain, changed, atol=1e-4)
    coarse = Conditions(told.tokens | {2: told.tokens[2] + 1}, told.vector)
    networks.predict(pipe.unet, pipe.controlnet, x, t, coarse)
    assert not torch.allclose(asked["mid"], before, atol=1e-4)
    handle.remove()
    lost = Conditions({2: told.tokens[2]}, told.vector)
    with pytest.raises(KeyError, match="4 x 4 level"):
        networks.predict(pipe.unet, pipe.controlnet, x, t, lost)


def test_without_tokens_of_its_own_a_processor_is_the_librarys():
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    layer = Attention(query_dim=16, cross_attention_dim=8, heads=2, dim_head=8)
    x, told = torch.randn(2, 5, 16), torch.randn(2, 3, 8)
    expected = layer(x, told)
    layer.set_processor(MultiScaleAttnProcessor(4))
    assert torch.allclose(layer(x, told), expected)
    assert torch.allclose(layer(x, torch.zeros_like(told), scale_tokens={4: told}), expected)


def test_trust_is_the_correlation_and_the_slope():
    generator = torch.Generator().manual_seed(1)
    truth, error = torch.randn(2, 30_000, 2, generator=generator)
    answer = 3 * (0.6 * truth + 0.8 * error)
    factor, noise = conditioning.trust(answer, truth)
    assert factor == pytest.approx(0.2, abs=0.01) and noise == pytest.approx(0.8, abs=0.01)
    assert conditioning.trust(-answer, truth) == (0.0, 1.0)


# the guide to the category


def test_the_direction_is_the_gradient_of_the_log_probability(pipe):
    guide = pipe.classifier.double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, CHANNELS, 4, 4, generator=generator).double()
    t, wanted = torch.tensor([10, 400]), torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]).double()
    direction = category_direction(guide, x, t, wanted)
    step = 1e-5 * torch.randn(x.shape, generator=generator).double()
    with torch.no_grad():
        up, down = ((guide(x + s, t).log_softmax(1) * wanted).sum() for s in (step, -step))
    # log_softmax inside is float32, so the difference quotient is only about right
    assert (direction * step).sum().item() == pytest.approx((up - down).item() / 2, rel=2e-3)
    pipe.classifier.float()


def test_guidance_moves_the_clean_estimate_by_tweedies_formula():
    generator = torch.Generator().manual_seed(0)
    x, v, g = torch.randn(3, 1, CHANNELS, 4, 4, generator=generator).double()
    a = torch.tensor(0.3).double()
    before = a.sqrt() * x - (1 - a).sqrt() * v
    after = a.sqrt() * x - (1 - a).sqrt() * guided_velocity(v, g, a, 2.0)
    assert torch.allclose(after - before, 2 * (1 - a) / a.sqrt() * g)
    assert torch.equal(guided_velocity(v, g, torch.tensor(0.001), 2.0), v), "in almost pure noise"
    assert torch.equal(guided_velocity(v, g, a, 0.0), v)


def test_category_guidance_raises_the_probability_that_the_guide_gives(pipe, inputs):
    wanted, finals = torch.eye(KINDS)[[1, 1, 2]], {}
    for scale in (0.0, 2.0):
        way = []
        draw(pipe, *inputs, category=wanted, category_scale=scale, num_inference_steps=6,
             callback=lambda _, x, way=way: way.append(x))  # fmt: skip
        log_p = pipe.classifier(way[-1], torch.zeros(3)).log_softmax(1)
        finals[scale] = (log_p * wanted).sum(1)
    assert (finals[2.0] > finals[0.0]).all()


def test_fold_maps_keeps_every_pixel_in_its_cell():
    maps = torch.zeros(2, 2, SIZE, SIZE)
    maps[0, 1, 17, 9] = 1  # row 17 is in cell 2, column 9 in cell 1 of a 4 x 4 grid
    expected = torch.randn(2, CHANNELS, 4, 4)
    folded = conditioning.fold_maps(maps, 4, torch.tensor([0.0, 0.25]), expected)
    assert folded.shape == (2, 2 * 64 + 1 + CHANNELS, 4, 4)
    hit = (folded[0, : 2 * 64] == 1).nonzero()
    assert len(hit) == 1 and hit[0, 1:].tolist() == [2, 1]
    assert (folded[:, 2 * 64] == torch.tensor([0.0, 0.25]).view(2, 1, 1)).all()
    assert torch.equal(folded[:, 2 * 64 + 1 :], expected)
    assert not conditioning.fold_maps(maps, 4, n_latent=CHANNELS)[:, 2 * 64 :].any()


def test_colours_follow_the_lines_of_the_silhouette():
    """Two colours on either side of a line come back exactly, in pixels that the cells cut through."""
    silhouette = torch.zeros(1, SIZE, SIZE)
    silhouette[:, 5:20, 3:29] = 1
    figure, ground = torch.tensor([0.9, 0.1, 0.3]), torch.tensor([0.2, 0.5, 0.8])
    picture = torch.where(silhouette[:, None] > 0, figure.view(3, 1, 1), ground.view(3, 1, 1))
    layout = conditioning.colour_layout(picture, 4)
    assert torch.allclose(layout[0, :, 3, 3], ground, atol=1e-6), "no figure in the last cell"
    made = conditioning.guided_colours(layout, silhouette, epsilon=1e-9)
    near = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    near[3:22, 1:31] = True  # around the line; far from it a neighbourhood is of one colour
    assert (made - picture)[0, :, near].abs().max() < 0.02
    one_colour = conditioning.guided_colours(layout[:, :, 3:, 3:].expand(1, 3, 4, 4), silhouette)
    assert torch.allclose(one_colour, ground.view(3, 1, 1).expand(1, 3, SIZE, SIZE), atol=1e-5)


def test_the_decoder_sees_the_map_only_where_it_is_known():
    torch.manual_seed(0)
    vae = PictureVAE(SIZE, patch=8, latent_channels=CHANNELS, width=16, outline_width=8)
    latents, maps = torch.randn(2, CHANNELS, 4, 4), torch.rand(2, 2, SIZE, SIZE)
    with torch.no_grad():
        decoded, redrawn = vae.reconstruct(latents), vae.reconstruct(latents, maps)
        layout = conditioning.colour_layout(decoded, SIZE // 4)
        closed_form = conditioning.guided_colours(layout, maps[:, 0], epsilon=1e-2)
        assert torch.allclose(redrawn, closed_form, atol=1e-5), "the networks start silent"
        torch.nn.init.normal_(vae.outline.layers[-1].weight)
        half = vae.reconstruct(latents, maps, torch.tensor([1.0, 0.0]))
        assert torch.allclose(half[0], vae.reconstruct(latents, maps)[0], atol=1e-5)
        assert torch.allclose(half[1], vae.reconstruct(latents)[1], atol=1e-5)
        assert not torch.allclose(half[0], vae.reconstruct(latents)[0], atol=1e-2)


def test_a_window_of_the_decoder_is_that_of_the_whole_picture():
    """Where neither its own border nor the neighbourhoods of the closed form cross its edge."""
    torch.manual_seed(0)
    vae = PictureVAE(SIZE, patch=8, latent_channels=CHANNELS, width=16, outline_width=8)
    torch.nn.init.normal_(vae.outline.layers[-1].weight)
    latents, maps = torch.randn(2, CHANNELS, 4, 4), torch.rand(2, 2, SIZE, SIZE)
    with torch.no_grad():
        part = vae.reconstruct(latents, maps, window=(4, 0, 28))
        whole = vae.reconstruct(latents, maps)[..., 4:32, :28]
    assert part.shape == whole.shape == (2, 3, 28, 28)
    assert torch.allclose(part[..., 16:, :12], whole[..., 16:, :12], atol=1e-4)


def test_a_silenced_controlnet_is_as_if_there_were_none(pipe, inputs):
    embedding, maps = inputs
    told = pipe.condition(embedding, torch.zeros(3), torch.ones(3, dtype=torch.bool))
    x, t = torch.randn(3, CHANNELS, 4, 4), torch.tensor([5, 500, 900])
    folded = conditioning.fold_maps(maps, 4, n_latent=CHANNELS)
    gate = torch.tensor([0.0, 1.0, 0.0])
    arguments = (pipe.unet, pipe.controlnet, x, t, told)
    gated = networks.predict(*arguments, folded, gate)
    none, both = networks.predict(*arguments), networks.predict(*arguments, folded)
    assert torch.allclose(gated[[0, 2]], none[[0, 2]], atol=1e-6)
    assert torch.allclose(gated[1], both[1], atol=1e-6)
    assert not torch.allclose(none[1], both[1], atol=1e-3)


def test_gradients_reach_every_network(inputs):
    pipe = make_pipeline()
    embedding, maps = inputs
    known = torch.tensor([True, True, False])
    told = pipe.condition(embedding, torch.zeros(3), known, torch.eye(KINDS), known)
    out = networks.predict(
        pipe.unet, pipe.controlnet, torch.randn(3, CHANNELS, 4, 4), torch.tensor([1, 10, 100]),
        told, conditioning.fold_maps(maps, 4, n_latent=CHANNELS), torch.ones(3),
    )  # fmt: skip
    out.pow(2).mean().backward()
    for network in (pipe.unet, pipe.controlnet, pipe.condition):
        missing = [n for n, p in network.named_parameters() if p.grad is None]
        assert not missing, missing


@pytest.mark.parametrize("s", [0.05, 0.15, 1.0])
def test_velocity_belongs_to_the_preconditioned_estimate(s):
    """The clean latent that follows from the velocity is c_skip * noisy + c_out * output."""
    generator = torch.Generator().manual_seed(6)
    output, noisy = torch.randn(2, 5, 2, 3, 3, generator=generator).double()
    a = torch.tensor([1e-6, 0.1, 0.5, 0.9, 0.999]).double().view(-1, 1, 1, 1)
    v = networks.velocity(output, noisy, a, s)
    b = a * s**2 + 1 - a
    estimate = a.sqrt() * s**2 / b * noisy + s * ((1 - a) / b).sqrt() * output
    assert torch.allclose(a.sqrt() * noisy - (1 - a).sqrt() * v, estimate, atol=1e-9)
    if s == 1:
        assert torch.allclose(v, -output)
    expected = torch.randn(noisy.shape, generator=generator).double()
    v = networks.velocity(output, noisy, a, s, expected)
    rest = noisy - a.sqrt() * expected
    estimate = expected + a.sqrt() * s**2 / b * rest + s * ((1 - a) / b).sqrt() * output
    assert torch.allclose(a.sqrt() * noisy - (1 - a).sqrt() * v, estimate, atol=1e-9)


# the pipeline


def test_pictures_have_the_promised_form_and_follow_the_generator(pipe, inputs):
    a, b, c = draw(pipe, *inputs), draw(pipe, *inputs), draw(pipe, *inputs, seed=1)
    assert a.shape == (3, SIZE, SIZE, 3) and a.dtype == np.float32
    assert a.min() >= 0 and a.max() <= 1 and a.std() > 0
    assert np.array_equal(a, b)
    assert not np.allclose(a, c, atol=1e-2)


@pytest.mark.parametrize("with_colours", [False, True])
@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize(
    ("semantic", "structure"), [(2.0, 1.0), (1.0, 1.0), (0.0, 0.7), (1.3, 0.0), (1.5, 1.5)]
)
def test_guidance_is_the_equation(inputs, semantic, structure, scheduler, with_colours):
    """The branches that the pipeline leaves out are those whose weight is zero."""
    made = {
        "dpm": None,
        "ddim": DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
        ),
    }
    pipe = make_pipeline(made[scheduler])
    embedding, maps = inputs
    with torch.no_grad():
        zero, yes = torch.zeros(3), torch.ones(3, dtype=torch.bool)
        none, sem = pipe.condition(embedding, zero, ~yes), pipe.condition(embedding, zero, yes)
        colours, latents = (torch.rand(3, 3, 4, 4) if with_colours else None), torch.zeros(1)
        if with_colours:
            latents = pipe.vae.encode(
                2 * conditioning.guided_colours(colours, maps[:, 0]).clamp(0, 1) - 1
            )
        folded = conditioning.fold_maps(maps, 4, None, latents if with_colours else None, CHANNELS)
        x = torch.randn(3, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(0))
        pipe.scheduler.set_timesteps(3)
        for t in pipe.scheduler.timesteps:
            u, s, b = (
                networks.predict(pipe.unet, pipe.controlnet, x, t.expand(3), c, m)
                for c, m in ((none, None), (sem, None), (sem, folded))
            )
            a = pipe.scheduler.alphas_cumprod[t]
            b = networks.velocity(b, x, a, RESIDUAL, latents)
            u, s = (networks.velocity(f, x, a, RESIDUAL) for f in (u, s))
            v = u + semantic * (s - u) + structure * (b - s)
            x = pipe.scheduler.step(v, t, x).prev_sample
        expected = pipe.vae.decode(x).permute(0, 2, 3, 1).numpy()
    scales = {"semantic_scale": semantic, "structure_scale": structure}
    made = draw(pipe, embedding, maps, colours=colours, **scales)
    assert np.allclose(made, expected, atol=1e-3)


def test_without_maps_the_controlnet_is_not_asked(inputs, monkeypatch):
    pipe = make_pipeline()
    without = draw(pipe, inputs[0], None)
    assert np.allclose(without, draw(pipe, *inputs, structure_scale=0.0), atol=1e-4)
    assert not np.allclose(without, draw(pipe, *inputs), atol=1e-2)

    def refuse(*_, **__):
        raise AssertionError("the ControlNet was asked")

    monkeypatch.setattr(pipe.controlnet, "forward", refuse)
    draw(pipe, inputs[0], None)


def test_every_condition_changes_the_picture_of_its_item_only(pipe, inputs):
    embedding, maps = inputs
    before = draw(pipe, embedding, maps)
    changed_embedding, changed_maps = embedding.clone(), maps.clone()
    changed_embedding[0] += 2
    changed_maps[1] = 1 - changed_maps[1]
    third = torch.tensor([0.0, 0.0, 0.9])
    calls = {
        0: draw(pipe, changed_embedding, maps),
        1: draw(pipe, embedding, changed_maps),
        2: draw(pipe, embedding, maps, embedding_noise=third),
    }
    calls_structure = draw(pipe, embedding, maps, structure_noise=third)
    for item, after in [*calls.items(), (2, calls_structure)]:
        difference = np.abs(after - before).max(axis=(1, 2, 3))
        assert difference[item] > 1e-4, item
        assert np.delete(difference, item).max() < 1e-5, item


def test_a_generator_for_each_picture_frees_it_from_its_batch(pipe, inputs):
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    together = pipe.generate(*inputs, generator=generators, num_inference_steps=3)
    alone = pipe.generate(
        inputs[0][2:], inputs[1][2:], num_inference_steps=3,
        generator=[torch.Generator().manual_seed(2)],
    )  # fmt: skip
    assert np.allclose(together[2], alone[0], atol=1e-4)


def test_previews_end_where_the_picture_ends(pipe, inputs):
    seen = []
    picture = draw(pipe, *inputs, num_inference_steps=4, callback=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    # the last estimate is the result: the last step goes to noise level zero
    last = pipe.vae.decode(seen[-1][1]).detach().permute(0, 2, 3, 1).numpy()
    assert np.abs(last - picture).mean() < 0.05
    first = pipe.vae.decode(seen[0][1]).detach().permute(0, 2, 3, 1).numpy()
    assert np.abs(first - picture).mean() > np.abs(last - picture).mean()


def test_saved_and_loaded_it_draws_the_same_pictures_bit_by_bit(pipe, inputs, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = SGDMPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(loaded, *inputs), draw(pipe, *inputs))
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_half_precision_changes_little(pipe, inputs, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    types = {"default": torch.bfloat16, "vae": torch.float32, "classifier": torch.float32}
    half = SGDMPipeline.from_pretrained(tmp_path / "model", dtype=types)
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    made, exact = draw(half, *inputs), draw(pipe, *inputs)
    assert made.dtype == np.float32 and np.abs(made - exact).mean() < 0.05


def test_a_scheduler_of_another_prediction_type_is_refused():
    with pytest.raises(ValueError, match="v_prediction"):
        make_pipeline(DDIMScheduler(prediction_type="epsilon"))


def test_a_missing_folder_says_which_notebook_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="05b_pipeline"):
        SGDMPipeline.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": torch.zeros(0, EMBED), "maps": torch.zeros(0, 2, SIZE, SIZE)}, "empty"),
        ({"embedding": torch.zeros(3, EMBED + 1)}, r"expected \(batch, 6\)"),
        ({"embedding": torch.zeros(EMBED)}, r"expected \(batch, 6\)"),
        ({"embedding": torch.full((3, EMBED), float("nan"))}, "rows"),
        ({"maps": torch.zeros(2, 2, SIZE, SIZE)}, "2 structure maps for 3 embeddings"),
        ({"maps": torch.zeros(3, 2, 16, 16)}, r"expected \(batch, 2, 32, 32\)"),
        ({"maps": torch.full((3, 2, SIZE, SIZE), -3.0)}, "probabilities, not logits"),
        ({"maps": torch.full((3, 2, SIZE, SIZE), float("nan"))}, "NaN"),
        ({"semantic_scale": -1.0}, "'semantic_scale': -1.0"),
        ({"category_scale": -1.0}, "must not be negative"),
        ({"category_scale": 1.0}, "without a category"),
        ({"category": torch.ones(3, KINDS + 1) / 4}, r"expected \(3, 3\)"),
        ({"category": torch.ones(3, KINDS)}, "probabilities"),
        ({"category": torch.full((3, KINDS), float("nan"))}, "probabilities"),
        ({"structure_scale": float("nan")}, "must not be negative"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"embedding_noise": 1.2}, "embedding_noise"),
        ({"structure_noise": torch.zeros(2)}, r"structure_noise has shape \(2,\)"),
    ],
)
def test_bad_input_is_refused_and_named(pipe, inputs, change, message):
    arguments = {"embedding": inputs[0], "maps": inputs[1]} | change
    with pytest.raises(ValueError, match=message):
        pipe.generate(**arguments)


def test_training_dtype_is_one_that_the_processor_computes_in(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert training.training_dtype("cpu", large=True) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert training.training_dtype("cpu", large=True) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert training.training_dtype(torch.device("cpu"), large=True) == torch.bfloat16
    assert training.training_dtype("cpu") == torch.float32  # small networks gain nothing there


@pytest.mark.parametrize("variable", ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"])
def test_bfloat16_is_not_emulated_where_older_instructions_are_asked_for(monkeypatch, variable):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    aten = "AVX2" if variable == "ATEN_CPU_CAPABILITY" else "AVX512"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
    if variable == "ONEDNN_MAX_CPU_ISA":
        monkeypatch.setenv(variable, "avx2")
    assert training.training_dtype("cpu", large=True) == torch.float32
