"""The pretrained generators, on tiny pipelines of the real classes that these tests save and load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny_generators import EMBED_DIM, SIZE, write_parts

from sgdm_utils.generation.pretrained.generator import PretrainedGenerator, control_image
from sgdm_utils.generation.pretrained.parts import FAMILIES, _cross_attention
from sgdm_utils.stimuli.maps import _outline, structure_map
from sgdm_utils.workflow.downloads import catalogue
from sgdm_utils.workflow.downloads.transfers import DownloadError

BOTH = pytest.mark.parametrize("family", list(FAMILIES))


def load(parts: SimpleNamespace, family: str, **changes) -> PretrainedGenerator:
    options = vars(parts) | {"dtype": torch.float32} | changes
    made = PretrainedGenerator.from_pretrained(family, **options)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, SimpleNamespace]:
    return {name: write_parts(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture(scope="module")
def loaded(saved) -> dict[str, PretrainedGenerator]:
    return {name: load(parts, name) for name, parts in saved.items()}


@pytest.fixture
def copied(saved, tmp_path):
    """Return a function that copies the parts of a family, to be damaged."""

    def copy(family: str) -> SimpleNamespace:
        for name, path in vars(saved[family]).items():
            if path.is_dir():
                shutil.copytree(path, tmp_path / name)
            else:
                shutil.copy(path, tmp_path / path.name)
        return SimpleNamespace(**{k: tmp_path / p.name for k, p in vars(saved[family]).items()})

    return copy


def inputs(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings, and maps of a square that differs from picture to picture, 8 x 8."""
    generator = torch.Generator().manual_seed(0)
    silhouettes = np.zeros((n, 8, 8), dtype=bool)
    for i in range(n):
        silhouettes[i, 1 + i % 2 : 6, 2 : 5 + i % 3] = True
    edges = np.stack([_outline(s) for s in silhouettes])
    maps = torch.from_numpy(structure_map(silhouettes, edges))
    return torch.randn(n, EMBED_DIM, generator=generator), maps


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------ pictures


@BOTH
def test_pictures_of_the_published_classes(loaded, family):
    made = loaded[family]
    embedding, maps = inputs()
    pictures = made(embedding, maps, generator=seeds(0, 1), num_inference_steps=2)
    assert pictures.shape == (2, SIZE, SIZE, 3) and pictures.dtype == np.float32
    assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.std() > 0.02
    assert (made.embed_dim, made.size, made.device.type) == (EMBED_DIM, SIZE, "cpu")
    assert type(made.pipe).__name__ == FAMILIES[family].pipeline
    # used once, then released; no checker that would replace pictures by black ones
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "image_encoder", "safety_checker"):
        assert getattr(made.pipe, name, None) is None


@BOTH
@pytest.mark.parametrize("structure_scale", [0.0, 0.7])
def test_equals_diffusers_called_directly(saved, loaded, family, structure_scale):
    """The same pictures as of diffusers' loop, with its own prompt, noise and decoding.

    One by one: given several embeddings, its pipeline lets each picture attend to all of them.
    """
    parts, kind = saved[family], FAMILIES[family]
    controlnet = diffusers.ControlNetModel.from_pretrained(parts.controlnet)
    pipe = getattr(diffusers, kind.pipeline).from_pretrained(
        parts.model, controlnet=controlnet, **kind.options
    )
    pipe.load_ip_adapter(
        str(parts.ip_adapter.parent), subfolder="", weight_name=parts.ip_adapter.name,
        image_encoder_folder=None,
    )  # fmt: skip
    pipe.set_ip_adapter_scale(0.6)
    pipe.set_progress_bar_config(disable=True)
    scheduler = getattr(diffusers, kind.scheduler)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **kind.scheduler_options)
    embedding, maps = inputs()
    expected = []
    for i in range(2):
        image = embedding[i : i + 1, None]
        if family == "sd15":
            image = torch.cat([torch.zeros_like(image), image])
        drawn = pipe(
            "", image=control_image(maps[i : i + 1], SIZE), ip_adapter_image_embeds=[image],
            num_inference_steps=3, guidance_scale=5.0 if family == "sd15" else 0.0,
            controlnet_conditioning_scale=structure_scale, generator=seeds(3 + i)[0],
            output_type="np",
        ).images  # fmt: skip
        expected.append(drawn[0])
    guided = {"guidance_scale": 5.0} if family == "sd15" else {}
    pictures = loaded[family](
        embedding, maps, semantic_scale=0.6, structure_scale=structure_scale,
        num_inference_steps=3, generator=seeds(3, 4), **guided,
    )  # fmt: skip
    np.testing.assert_allclose(pictures, expected, atol=2e-5)


@BOTH
def test_the_same_seed_gives_the_same_picture(loaded, family):
    embedding, maps = inputs()
    first, again, other = (
        loaded[family](embedding, maps, generator=seeds(s)[0], num_inference_steps=2)
        for s in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    named = loaded[family].generate(embedding, maps, generator=seeds(7)[0], num_inference_steps=2)
    np.testing.assert_array_equal(first, named)
    assert np.abs(first - other).max() > 0.01


@BOTH
def test_a_picture_does_not_depend_on_its_batch(loaded, family):
    embedding, maps = inputs(3)
    together = loaded[family](embedding, maps, generator=seeds(0, 1, 2), num_inference_steps=3)
    for i in range(3):
        alone = loaded[family](
            embedding[i : i + 1], maps[i : i + 1], generator=seeds(i), num_inference_steps=3
        )
        np.testing.assert_allclose(alone[0], together[i], atol=1e-4)


@BOTH
def test_structure_switched_off(loaded, family):
    made = loaded[family]
    embedding, maps = inputs()
    asked = []
    handle = made.pipe.controlnet.register_forward_hook(lambda *_: asked.append(1))
    options = {"num_inference_steps": 2}
    none = made(embedding, None, generator=seeds(0, 1), **options)
    zero = made(embedding, maps, structure_scale=0, generator=seeds(0, 1), **options)
    assert not asked  # the ControlNet costs nothing
    some = made(embedding, maps, generator=seeds(0, 1), **options)
    mirrored = made(embedding, maps.flip(-1), generator=seeds(0, 1), **options)
    handle.remove()
    assert asked
    np.testing.assert_array_equal(none, zero)
    assert np.abs(some - none).max() > 0.01
    assert np.abs(some - mirrored).max() > 0.005


@BOTH
def test_the_embedding_decides_unless_switched_off(loaded, family):
    embedding, maps = inputs()

    def draw(z, scale):
        return loaded[family](
            z, maps, semantic_scale=scale, generator=seeds(0, 1), num_inference_steps=2
        )

    swapped = embedding.flip(0)
    assert np.abs(draw(embedding, 1.0) - draw(swapped, 1.0)).max() > 0.005
    np.testing.assert_array_equal(draw(embedding, 0.0), draw(swapped, 0.0))
    assert np.abs(draw(embedding, 1.0) - draw(embedding, 0.5)).max() > 0.001


@BOTH
def test_the_callback_sees_the_picture_emerge(loaded, family):
    made = loaded[family]
    embedding, maps = inputs()
    seen = []
    pictures = made(
        embedding, maps, generator=seeds(0, 1), num_inference_steps=4,
        callback=lambda step, estimate: seen.append((step, made.decode(estimate))),
    )  # fmt: skip
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert all(preview.shape == pictures.shape for _, preview in seen)
    # the last step leads to the last estimate: exactly for Euler, and for DPM-Solver++, whose last
    # step is of first order
    np.testing.assert_allclose(seen[-1][1], pictures, atol=2e-3)
    assert np.abs(seen[0][1] - pictures).max() > 0.01


def test_guidance_amplifies_only_above_one(loaded):
    embedding, maps = inputs()

    def draw(guidance):
        return loaded["sd15"](
            embedding, maps, generator=seeds(0, 1), num_inference_steps=2, guidance_scale=guidance
        )

    np.testing.assert_array_equal(draw(0.0), draw(1.0))
    assert np.abs(draw(3.0) - draw(1.0)).max() > 0.005
    np.testing.assert_array_equal(draw(None), draw(7.5))


def test_standardised_embeddings_are_brought_back(saved, loaded):
    embedding, maps = inputs()
    center, spread = torch.linspace(-1, 1, EMBED_DIM), torch.linspace(0.5, 2, EMBED_DIM)
    made = load(saved["sdxl_turbo"], "sdxl_turbo", center=center, spread=spread)
    standardised = made((embedding - center) / spread, maps, generator=seeds(0, 1))
    raw = loaded["sdxl_turbo"](embedding, maps, generator=seeds(0, 1))
    np.testing.assert_allclose(standardised, raw, atol=1e-4)
    with pytest.raises(ValueError, match=r"center has shape \(3,\), expected \(12,\)"):
        load(saved["sdxl_turbo"], "sdxl_turbo", center=torch.zeros(3))


def test_turbo_samples_at_the_ends_of_intervals(loaded):
    """The published schedule, whatever scheduler the folder came with."""
    scheduler = loaded["sdxl_turbo"].pipe.scheduler
    assert type(scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


# ------------------------------------------------------------------ the control image


def test_control_image_is_white_lines_in_three_channels():
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, 1, 2] = 0.6
    drawn = control_image(maps, 4)
    assert drawn.shape == (1, 3, 4, 4)
    expected = torch.zeros(4, 4)
    expected[1, 2] = 0.6  # a doubtful line stays grey
    for channel in drawn[0]:
        torch.testing.assert_close(channel, expected)
    larger = control_image(maps, 16)
    assert larger.shape == (1, 3, 16, 16) and larger.max() <= 0.6
    row, column = divmod(int(larger[0, 0].argmax()), 16)
    assert (row // 4, column // 4) == (1, 2)


def test_control_image_draws_the_outline_of_the_silhouette():
    rng = np.random.default_rng(0)
    silhouettes = rng.random((3, 9, 9)) > 0.4  # also at the border of the picture
    none = np.zeros_like(silhouettes)
    drawn = control_image(torch.from_numpy(structure_map(silhouettes, none)), 9)
    expected = np.stack([_outline(s) for s in silhouettes])
    np.testing.assert_array_equal(drawn[:, 0].numpy(), expected.astype(np.float32))
    sure = control_image(torch.from_numpy(structure_map(silhouettes, expected)), 9)
    np.testing.assert_array_equal(sure.numpy(), drawn.numpy())  # exact edges hold the outline


# ------------------------------------------------------------------ precision and devices


@BOTH
def test_the_vae_stays_in_float32(saved, loaded, family):
    made = load(saved[family], family, dtype=torch.bfloat16)
    assert made.pipe.unet.dtype == made.pipe.controlnet.dtype == torch.bfloat16
    assert made.pipe.vae.dtype == torch.float32
    embedding, maps = inputs()
    pictures, noises = [], []
    for one in (made, loaded[family]):
        handle = one.pipe.unet.register_forward_pre_hook(lambda _, x: noises.append(x[0].float()))
        pictures.append(one(embedding, maps, generator=seeds(0)[0], num_inference_steps=1))
        handle.remove()
    half, whole = pictures
    assert half.dtype == np.float32
    # drawn in float32 and rounded, not drawn in 16 bits
    torch.testing.assert_close(noises[0], noises[1].bfloat16().float())
    # the same noise, so the same picture: other noise moves it by ten times as much
    assert np.abs(half - whole).mean() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@BOTH
def test_devices_agree_about_a_picture(saved, loaded, family):
    made = load(saved[family], family, device="cuda")
    assert made.device.type == "cuda" and made.pipe.controlnet.device.type == "cuda"
    embedding, maps = inputs()
    there = made(embedding, maps, generator=seeds(0, 1), num_inference_steps=3)
    here = loaded[family](embedding, maps, generator=seeds(0, 1), num_inference_steps=3)
    assert np.abs(there - here).mean() < 0.01


def test_a_float16_request_does_not_reach_the_vae(saved):
    assert load(saved["sd15"], "sd15", dtype=torch.float16).pipe.vae.dtype == torch.float32
    with pytest.raises(ValueError, match="VAE cannot be used in torch.float16.*black"):
        load(saved["sd15"], "sd15", vae_dtype=torch.float16)
    made = load(saved["sd15"], "sd15", vae_dtype=torch.bfloat16)
    made.pipe.vae.to(torch.float16)
    with pytest.raises(ValueError, match="VAE cannot be used in torch.float16"):
        PretrainedGenerator(made.pipe, made.family)


def test_precision_follows_the_processor(saved, monkeypatch):
    monkeypatch.setattr(
        "sgdm_utils.generation.pretrained.generator.training_dtype",
        lambda device, large: torch.bfloat16 if large else torch.float32,
    )
    assert load(saved["sd15"], "sd15", dtype=None).pipe.unet.dtype == torch.bfloat16


def test_an_overflow_is_no_black_picture(saved):
    made = load(saved["sd15"], "sd15")
    with torch.no_grad():
        made.pipe.unet.conv_out.bias.fill_(float("inf"))
    embedding, maps = inputs()
    with pytest.raises(FloatingPointError, match="hold NaN: a network overflowed in torch.float32"):
        made(embedding, maps, generator=seeds(0, 1), num_inference_steps=2)


# ------------------------------------------------------------------ bad input


def nan_in_row_one(z):
    z = z.clone()
    z[1, 3] = torch.nan
    return z


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": lambda z: z[:, :7]}, r"shape \(2, 7\), expected \(batch, 12\).*CLIP"),
        ({"embedding": lambda z: z[0]}, r"shape \(12,\), expected \(batch, 12\)"),
        ({"embedding": lambda z: z[:0]}, "the batch is empty"),
        ({"embedding": nan_in_row_one}, r"NaN or infinity, first in rows \[1\]"),
        ({"maps": lambda m: m[:1]}, "1 structure maps for 2 embeddings"),
        ({"maps": lambda m: m[:, :1]}, r"maps have shape \(2, 1, 8, 8\)"),
        ({"maps": lambda m: m[..., :6]}, "pictures are square"),
        ({"maps": lambda m: m[:, 0]}, r"maps have shape \(2, 8, 8\)"),
        ({"maps": lambda m: 255 * m}, r"maps must lie in \[0, 1\]"),
        ({"maps": lambda m: m * torch.nan}, r"maps must lie in \[0, 1\]"),
        ({"semantic_scale": -0.1}, "semantic_scale is -0.1.*not negative"),
        ({"structure_scale": -1}, "structure_scale is -1.*not negative"),
        ({"structure_scale": float("nan")}, "structure_scale is nan.*finite"),
        ({"guidance_scale": -2.0}, "guidance_scale is -2.0.*not negative"),
        ({"guidance_scale": 7.5}, "SDXL-Turbo was distilled to be sampled without"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, SDXL-Turbo takes 1 to 4"),
        ({"num_inference_steps": 12}, "num_inference_steps is 12, SDXL-Turbo takes 1 to 4"),
        ({"num_inference_steps": 2.0}, "num_inference_steps is 2.0"),
        ({"generator": seeds(0)}, "1 generators for 2 pictures"),
        ({"generator": None}, "0 generators for 2 pictures"),
        (
            {"generator": [SimpleNamespace(device=torch.device("cuda"))] * 2},
            "lives on cuda: noise is drawn on the CPU",
        ),
    ],
)
def test_a_bad_call_is_refused(loaded, change, message):
    embedding, maps = inputs()
    arguments = {"embedding": embedding, "maps": maps, "generator": seeds(0, 1)}
    for name, value in change.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    with pytest.raises(ValueError, match=message):
        loaded["sdxl_turbo"](**arguments)


def test_seeds_are_explicit(loaded):
    with pytest.raises(TypeError, match="generator"):
        loaded["sd15"](*inputs())


def test_unknown_family(saved):
    with pytest.raises(ValueError, match="no family 'sd21', expected one of sdxl_turbo, sd15"):
        load(saved["sd15"], "sd21")


# ------------------------------------------------------------------ parts that are missing or do not fit


@BOTH
@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "text_encoder", "tokenizer"])
def test_a_missing_component_is_named(copied, family, part):
    parts = copied(family)
    shutil.rmtree(parts.model / part)
    with pytest.raises(FileNotFoundError, match=f"lacks its component {part}/.*huggingface.co"):
        load(parts, family)


def test_missing_files_are_named(copied):
    parts = copied("sdxl_turbo")
    weights = parts.model / "text_encoder_2" / "model.safetensors"
    half = weights.rename(weights.with_name("model.fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match="there is model.fp16.safetensors: name its `var"):
        load(parts, "sdxl_turbo")
    half.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(FileNotFoundError, match="text_encoder_2 holds no weights.*pickles"):
        load(parts, "sdxl_turbo")
    with pytest.raises(FileNotFoundError, match="unet holds no weights of the variant fp16"):
        load(parts, "sdxl_turbo", variant="fp16")
    (parts.model / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no model of diffusers in .*model_index.json"):
        load(parts, "sdxl_turbo")
    with pytest.raises(FileNotFoundError, match="model: there is no nowhere on this machine"):
        load(parts, "sdxl_turbo", model="nowhere")


def test_a_variant_is_loaded_in_the_precision_asked_for(copied):
    parts = copied("sd15")
    for weights in list(parts.model.rglob("*.safetensors")):
        state = {name: value.half() for name, value in load_file(weights).items()}
        save_file(state, weights.with_name(f"{weights.stem}.fp16.safetensors"), {"format": "pt"})
        weights.unlink()
    made = load(parts, "sd15", variant="fp16")
    assert made.pipe.unet.dtype == made.pipe.vae.dtype == torch.float32
    assert made(*inputs(), generator=seeds(0, 1), num_inference_steps=1).std() > 0.02


def test_a_model_of_the_other_family(saved):
    with pytest.raises(
        ValueError, match="holds a StableDiffusionPipeline, which is not SDXL-Turbo"
    ):
        load(saved["sd15"], "sdxl_turbo")


def test_a_model_that_predicts_something_else(copied):
    parts = copied("sd15")
    edit(parts.model / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(
        ValueError, match="predicts v_prediction, Stable Diffusion 1.5 predicts the"
    ):
        load(parts, "sd15")


def test_a_damaged_configuration(copied):
    parts = copied("sd15")
    (parts.model / "unet" / "config.json").write_text('{"cross')
    with pytest.raises(ValueError, match=r"unet/config.json cannot be read as JSON.*is damaged"):
        load(parts, "sd15")
    (parts.model / "model_index.json").write_text("[]")
    with pytest.raises(
        ValueError, match="model_index.json cannot be read as JSON .*it holds a list"
    ):
        load(parts, "sd15")


def test_a_controlnet_of_the_other_family(saved):
    with pytest.raises(
        ValueError, match="cross_attention_dim is 16, the UNet's is 24. ControlNets"
    ):
        load(saved["sdxl_turbo"], "sdxl_turbo", controlnet=saved["sd15"].controlnet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"block_out_channels": [8, 8]},
            r"block_out_channels is \[8, 8\], the UNet's is \[8, 16\]",
        ),
        ({"layers_per_block": 2}, "layers_per_block is 2, the UNet's is 1"),
        ({"conditioning_channels": 1}, "wants 1 channels, expected the 3"),
        ({"_class_name": "ControlNetUnionModel"}, "holds a ControlNetUnionModel, expected a Contr"),
    ],
)
def test_a_controlnet_that_does_not_fit(copied, change, message):
    parts = copied("sd15")
    edit(parts.controlnet / "config.json", **change)
    with pytest.raises(ValueError, match=message):
        load(parts, "sd15")


def test_no_controlnet(copied):
    parts = copied("sd15")
    (parts.controlnet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="controlnet holds no weights as .safetensors"):
        load(parts, "sd15")
    (parts.controlnet / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no ControlNet in .*config.json is missing"):
        load(parts, "sd15")


def test_an_adapter_of_the_other_family(saved):
    with pytest.raises(ValueError, match="tokens have 24 dimensions, the UNet's cross_.* is 16"):
        load(saved["sd15"], "sd15", ip_adapter=saved["sdxl_turbo"].ip_adapter)


def plus(weights):
    return {"image_proj.latents": torch.zeros(1, 16, 8)} | {
        k: v for k, v in weights.items() if not k.startswith("image_proj")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (plus, "does not take one embedding for each picture .`plus`"),
        (
            lambda w: w | {"ip_adapter.3.to_v_ip.weight": torch.zeros(5, 16)},
            r"3.to_v_ip.*\(5, 16\)",
        ),
        (
            lambda w: {k: v for k, v in w.items() if "ip_adapter.5." not in k},
            r"5.to_k_ip.weight is missing, expected \(16, 16\)",
        ),
        (
            lambda w: w | {f"ip_adapter.99.to_{x}_ip.weight": torch.zeros(16, 16) for x in "kv"},
            r"serves \d+ attention layers, the UNet has \d",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(copied, change, message):
    parts = copied("sd15")
    save_file(change(load_file(parts.ip_adapter)), parts.ip_adapter)
    with pytest.raises(ValueError, match=message):
        load(parts, "sd15")


def test_the_published_sizes_of_adapters():
    """16 layers of SD 1.5 and 70 of SDXL, from the configurations of their UNets."""
    sd15 = {"cross_attention_dim": 768, "block_out_channels": [320, 640, 1280, 1280]}
    found = _cross_attention(sd15)
    assert len(found) == 16 and found[0] == (320, 768) and found[-1] == (1280, 768)
    sdxl = {
        "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    found = _cross_attention(sdxl)
    assert len(found) == 70 and found[0] == (640, 2048) and found[-1] == (1280, 2048)


def test_an_adapter_that_cannot_be_read(copied):
    parts = copied("sd15")
    parts.ip_adapter.write_bytes(parts.ip_adapter.read_bytes()[:300])
    with pytest.raises(
        ValueError, match="adapter.safetensors cannot be read .*is damaged: fetch it again"
    ):
        load(parts, "sd15")
    pickled = parts.ip_adapter.with_suffix(".bin")
    pickled.write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="adapter.bin is not a .safetensors file.*pickles"):
        load(parts, "sd15", ip_adapter=pickled)


# ------------------------------------------------------------------ names, licences, the network


def entry(name: str, repository: str, licence: str, **changes) -> catalogue.Entry:
    content = {
        "kind": "weights", "title": name, "about": "weights", "holder": "A. Holder",
        "homepage": f"https://huggingface.co/{repository}", "licence": licence,
        "must_accept": licence.startswith("LicenseRef-"), "redistribution": "not stated",
        "size": None, "verified": False, "citation": "-", "must_not": ("Sell it.",), "forms": (),
        "files": (), "manual": ("Read the page.",),
    }  # fmt: skip
    return catalogue.Entry(name=name, **(content | changes))


CATALOGUE = {
    "turbo": entry("turbo", FAMILIES["sdxl_turbo"].model, "LicenseRef-turbo"),
    "scribble": entry("scribble", FAMILIES["sdxl_turbo"].controlnet, "Apache-2.0"),
    "adapter": entry("adapter", "h94/IP-Adapter", "Apache-2.0"),
}


@pytest.fixture
def hub(monkeypatch, saved, tmp_path):
    """A hub that hands out the tiny parts, and a diary of what was shown and asked for."""
    diary = []
    kind, parts = FAMILIES["sdxl_turbo"], saved["sdxl_turbo"]
    adapter = tmp_path / "adapter" / kind.ip_adapter.removeprefix("h94/IP-Adapter/")
    adapter.parent.mkdir(parents=True)
    shutil.copy(parts.ip_adapter, adapter)
    folders = {kind.model: parts.model, kind.controlnet: parts.controlnet}
    folders["h94/IP-Adapter"] = tmp_path / "adapter"

    def download(repository, **options):
        diary.append(("fetched", repository, options))
        return str(folders[repository])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return diary


def from_hub(diary: list, **options) -> PretrainedGenerator:
    return PretrainedGenerator.from_pretrained(
        dtype=torch.float32, catalogue=CATALOGUE, show=lambda text: diary.append(("shown", text)),
        **options,
    )  # fmt: skip


def test_licences_are_shown_before_anything_is_fetched(hub):
    made = from_hub(hub, accept_licence="LicenseRef-turbo")
    assert [line[0] for line in hub] == ["shown"] * 3 + ["fetched"] * 3
    shown = "\n".join(line[1] for line in hub[:3])
    assert "stabilityai/sdxl-turbo: licence LicenseRef-turbo (accepted)" in shown
    assert "h94/IP-Adapter: licence Apache-2.0 (needs no acceptance)" in shown
    assert "Sell it." in shown
    made.set_progress_bar_config(disable=True)
    assert made(*inputs(), generator=seeds(0, 1)).shape == (2, SIZE, SIZE, 3)


@pytest.mark.parametrize("accepted", ["", (), "Apache-2.0", ["LicenseRef-other"]])
def test_nothing_is_fetched_under_a_licence_that_was_not_accepted(hub, accepted):
    with pytest.raises(catalogue.LicenceError, match='accept_licence="LicenseRef-turbo"') as caught:
        from_hub(hub, accept_licence=accepted)
    assert "Sell it." in str(caught.value) and not hub


def test_a_name_whose_licence_is_not_known(hub):
    with pytest.raises(
        catalogue.LicenceError, match="somebody/else is not on this machine.*licence"
    ):
        from_hub(hub, controlnet="somebody/else", accept_licence="LicenseRef-turbo")
    assert not hub


def test_only_the_files_that_are_needed_are_asked_for(hub):
    from_hub(hub, accept_licence=["LicenseRef-turbo"], model="stabilityai/sdxl-turbo@f4b0486")
    model, controlnet, adapter = (line for line in hub if line[0] == "fetched")
    assert model[2]["revision"] == "f4b0486"
    there = """model_index.json scheduler/scheduler_config.json tokenizer/merges.txt
        tokenizer_2/vocab.json text_encoder/config.json text_encoder_2/model.safetensors
        unet/diffusion_pytorch_model.safetensors unet/model.onnx vae/diffusion_pytorch_model.bin
        unet/diffusion_pytorch_model.fp16.safetensors text_encoder_2/model.fp16.safetensors
        unet/diffusion_pytorch_model.non_ema.safetensors vae_decoder/config.json
        vae/diffusion_pytorch_model.safetensors sd_xl_turbo_1.0.safetensors README.md""".split()

    def kept(options):
        return set(
            filter_repo_objects(
                there,
                allow_patterns=options["allow_patterns"],
                ignore_patterns=options["ignore_patterns"],
            )
        )

    always = {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"}
    always |= {"tokenizer_2/vocab.json", "text_encoder/config.json"}
    assert kept(model[2]) == always | {
        "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert controlnet[2]["allow_patterns"] == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert adapter[2]["allow_patterns"] == ["sdxl_models/ip-adapter_sdxl_vit-h.safetensors"]
    hub.clear()
    with pytest.raises(FileNotFoundError, match="no weights of the variant fp16"):
        from_hub(hub, accept_licence="LicenseRef-turbo", variant="fp16")
    (model, *_) = (line for line in hub if line[0] == "fetched")
    assert kept(model[2]) == always | {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
    }


def test_paths_need_neither_network_nor_licence(saved, hub):
    shown = []
    made = load(saved["sdxl_turbo"], "sdxl_turbo", catalogue={}, show=shown.append)
    assert made.size == SIZE and not hub and not shown


def test_paths_are_found_from_a_notebook(saved, hub, tmp_path, monkeypatch):
    """As the manual route names them, relative to the checkout, whatever the working folder is."""
    parts = saved["sdxl_turbo"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sgdm_utils.workflow.paths.project_root", lambda: parts.model.parent)
    names = {"model": "model/", "controlnet": "controlnet", "ip_adapter": "adapter.safetensors"}
    assert load(parts, "sdxl_turbo", **names).size == SIZE and not hub


@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_a_network_the_manual_route_is_told(
    saved, tmp_study, monkeypatch, tmp_path, offline
):
    """With the variable of the hub, and with a network that is not there (see conftest)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    parts = vars(saved["sdxl_turbo"])
    with pytest.raises(DownloadError, match="controlnet: xinsir.* could not be fetched") as caught:
        from_hub([], **{k: v for k, v in parts.items() if k != "controlnet"})
    told = str(caught.value)
    assert "open https://huggingface.co/xinsir/controlnet-scribble-sdxl-1.0" in told
    assert "Download config.json and diffusion_pytorch_model.safetensors." in told
    assert "Apache-2.0" in told and 'controlnet="' in told and "raw/scribble/" in told
    with pytest.raises(DownloadError) as caught:
        from_hub([], **{k: v for k, v in parts.items() if k != "ip_adapter"})
    file = "raw/adapter/sdxl_models/ip-adapter_sdxl_vit-h.safetensors"
    assert f'{file}"' in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "name", "form"),
    [
        ("model", "stabilityai", "owner/name"),
        ("model", "stabilityai/sdxl-turbo/unet", "owner/name"),
        ("controlnet", "/nowhere/controlnet", "owner/name"),
        ("ip_adapter", "h94/IP-Adapter", "owner/name/path/to/file.safetensors"),
    ],
)
def test_what_is_neither_path_nor_name(saved, argument, name, form):
    with pytest.raises(FileNotFoundError, match=f"{argument}: there is no {name} .* form {form}$"):
        load(saved["sdxl_turbo"], "sdxl_turbo", **{argument: name})


@BOTH
def test_the_catalogue_knows_every_default(family):
    known = {e.homepage: e for e in catalogue.load_catalogue().values() if e.kind == "weights"}
    kind = FAMILIES[family]
    for source in (kind.model, kind.controlnet, "/".join(kind.ip_adapter.split("/")[:2])):
        found = known[f"https://huggingface.co/{source}"]
        assert found.must_accept == (found.licence != "Apache-2.0")
