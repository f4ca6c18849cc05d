"""Each feature network against a hook on torchvision's or open_clip's own model."""

from __future__ import annotations

import dataclasses

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.transforms.functional import InterpolationMode, normalize, resize

from sgdm_utils.decoding import clip as decoding_clip
from sgdm_utils.errors import WeightsNotAvailable
from sgdm_utils.metrics import networks, suite
from sgdm_utils.metrics.protocol import LPIPS_TRUNKS, TrunkSpec
from sgdm_utils.workflow.downloads import catalogue as downloads_catalogue

N_FEATURES = {
    "alexnet_2": 192 * 31 * 31,  # at 256 pixels
    "alexnet_5": 256 * 15 * 15,
    "inception_v3": 2048,
    "efficientnet_b1": 1280,
    "swav_resnet50": 2048,
}
SIZES = {"alexnet_2": 256, "alexnet_5": 256, "inception_v3": 342}
SIZES |= {"efficientnet_b1": 255, "swav_resnet50": 224}
LAYERS = {"alexnet_2": "features.4", "alexnet_5": "features.11"}
ALL = networks.TRUNKS | LPIPS_TRUNKS
TINY_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def random_network(name: str, **arguments: object) -> torch.nn.Module:
    """One of torchvision's classes with random weights."""
    build = {
        "alexnet_2": models.alexnet,
        "alexnet_5": models.alexnet,
        "inception_v3": models.inception_v3,
        "efficientnet_b1": models.efficientnet_b1,
        "swav_resnet50": models.resnet50,
    }[name]
    if name == "inception_v3":
        arguments = {"transform_input": True, "init_weights": False} | arguments
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build(weights=None, **arguments).eval()
        # one pass that sets the statistics of the norms; without it, what reaches the last layer of
        # a random network hardly depends on the picture, and any two features agree
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        with torch.no_grad():
            network(torch.randn(4, 3, 139, 139))
    return network.eval()


def published_form(name: str, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights as the file of its publisher has them."""
    state = network.state_dict()
    if name == "swav_resnet50":  # trained in parallel, without a classifier, with heads of its own
        state = {f"module.{k}": v for k, v in state.items() if not k.startswith("fc.")}
        state["module.projection_head.0.weight"] = torch.zeros(3, 3)
        state["module.prototypes.weight"] = torch.zeros(5, 3)
    if name == "inception_v3":  # an old file, from before batch norms counted
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return dict(state)


def features_by_hook(network: torch.nn.Module, name: str, pictures: torch.Tensor) -> torch.Tensor:
    x = pictures
    for side in (256, SIZES[name]):
        x = resize(x, [side, side], InterpolationMode.BILINEAR, antialias=True)
    x = normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    kept = []
    layer = network.get_submodule(LAYERS.get(name, "avgpool"))
    # a copy, because the layers that follow may write into it
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o.detach().clone()))
    with torch.no_grad():
        network(x)
    handle.remove()
    return kept[0].flatten(1)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((2, 3, 12, 12), dtype=np.float32))
    return resize(coarse, [300, 300], InterpolationMode.BILINEAR)


# --- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(N_FEATURES))
def test_features_equal_those_of_a_hook(name, no_cache, pictures):
    network = random_network(name)
    path = no_cache / networks.TRUNKS[name].file
    torch.save(published_form(name, network), path)
    random_state = torch.get_rng_state()
    trunk = networks.load_trunk(name, path)
    assert torch.equal(torch.get_rng_state(), random_state)
    found = trunk(pictures)
    assert found.shape == (2, N_FEATURES[name]) and found.dtype == torch.float32
    assert relative_difference(found, features_by_hook(network, name, pictures)) < 1e-5
    assert relative_difference(found[:1], found[1:]) > 0.02, "the features tell nothing apart"
    # one picture at a time gives the same, so nothing depends on the company
    assert relative_difference(trunk(pictures[1:]), found[1:]) < 1e-4
    assert not any(p.is_meta or p.requires_grad for p in trunk.parameters())
    trunk.train()
    assert not trunk.training and not any(m.training for m in trunk.modules())


def test_inception_undoes_the_imagenet_normalisation(no_cache, pictures):
    """The published weights want that, and torchvision forgets it when it does not load them."""
    path = no_cache / "inception.pth"
    torch.save(published_form("inception_v3", random_network("inception_v3")), path)
    found = networks.load_trunk("inception_v3", path)(pictures)
    naive = random_network("inception_v3", transform_input=False)
    assert relative_difference(found, features_by_hook(naive, "inception_v3", pictures)) > 1e-3


def test_bfloat16_is_near(no_cache, pictures):
    path = no_cache / "alexnet.safetensors"
    save_file(published_form("alexnet_5", random_network("alexnet_5")), path)
    exact = networks.load_trunk("alexnet_5", path)(pictures)
    fast = networks.load_trunk("alexnet_5", path, precision="bfloat16")(pictures)
    assert fast.dtype == torch.float32
    assert 1e-5 < relative_difference(fast, exact) < 0.03
    with pytest.raises(ValueError, match="'float16' is unknown"):
        networks.load_trunk("alexnet_5", path, precision="float16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_a_gpu(no_cache, pictures):
    path = no_cache / "alexnet.safetensors"
    save_file(published_form("alexnet_5", random_network("alexnet_5")), path)
    found = networks.load_trunk("alexnet_5", path, "cuda")(pictures)
    assert found.device.type == "cuda"
    assert relative_difference(found.cpu(), networks.load_trunk("alexnet_5", path)(pictures)) < 1e-3


# --- CLIP ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(**TINY_CLIP).eval()


def tiny_spec(**changes: object) -> TrunkSpec:
    changes = {"size": 32, "build": lambda: open_clip.CLIP(**TINY_CLIP)} | changes
    return dataclasses.replace(networks.TRUNKS["clip_vit_l_14"], **changes)


def test_clip_equals_open_clip(no_cache, pictures, tiny_clip):
    path = no_cache / "clip.safetensors"
    half = {name: value.half() for name, value in tiny_clip.state_dict().items()}
    save_file(half, path)  # the published file holds 16-bit numbers
    trunk = networks.load_trunk(tiny_spec(), path, text=True)
    alone = networks.load_trunk(tiny_spec(), path)
    assert torch.equal(alone(pictures), trunk(pictures)) and not alone.has_text
    assert not any(name.startswith("network.token") for name in alone.state_dict())
    assert not any(p.is_meta for p in alone.parameters())
    model = open_clip.CLIP(**TINY_CLIP).eval()
    model.load_state_dict({name: value.float() for name, value in half.items()})
    x = resize(resize(pictures, [256, 256], antialias=True), [32, 32], antialias=True)
    x = normalize(x, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    captions = ["a red square", "two small triangles on the left"]
    tokens = open_clip.SimpleTokenizer(context_length=20)(captions)
    with torch.no_grad():
        assert relative_difference(trunk(pictures), model.encode_image(x)) < 1e-5
        assert relative_difference(trunk.encode_text(captions), model.encode_text(tokens)) < 1e-5
    # the exact GELU is another network
    exact = tiny_spec(build=lambda: open_clip.CLIP(**TINY_CLIP | {"quick_gelu": False}))
    other = networks.load_trunk(exact, path)(pictures)
    assert relative_difference(other, trunk(pictures)) > 1e-4


def test_clip_in_16_bits_holds_its_weights_so(no_cache, pictures, tiny_clip):
    """Turned anew by autocast, torch's attention copies them for every row."""
    path = no_cache / "clip.safetensors"
    save_file(tiny_clip.state_dict(), path)
    before = tiny_clip.visual.proj.detach().clone()
    captions = ["a red square", "two small triangles on the left"]
    exact = networks.load_trunk(tiny_spec(), path, text=True)
    loaded = networks.load_trunk(tiny_spec(), path, precision="bfloat16", text=True)
    own = networks.clip_trunk(tiny_clip, "clip_tiny", precision="bfloat16")
    for fast in (loaded, own):
        attention = fast.network.model.visual.transformer.resblocks[0].attn
        assert attention.in_proj_weight.dtype == torch.bfloat16
        assert attention.out_proj.weight.dtype == torch.bfloat16
        assert fast.network.model.visual.ln_post.weight.dtype == torch.float32
        for found, wanted in (
            (fast(pictures), exact(pictures)),
            (fast.encode_text(captions), exact.encode_text(captions)),
        ):
            assert found.dtype == torch.float32
            assert 1e-5 < relative_difference(found, wanted) < 0.03
    # the caller's own model stays as it was
    assert {p.dtype for p in tiny_clip.parameters()} == {torch.float32}
    assert torch.equal(tiny_clip.visual.proj, before)


def test_the_named_clip_is_openais_vit_l_14():
    with torch.device("meta"):
        model = networks.TRUNKS["clip_vit_l_14"].build()
    assert sum(p.numel() for p in model.parameters()) == 427_616_513
    assert sum(p.numel() for p in model.visual.parameters()) == 303_966_208
    assert any(type(m).__name__ == "QuickGELU" for m in model.visual.modules())
    assert networks.CLIP_MEAN == decoding_clip.CLIP_MEAN == open_clip.OPENAI_DATASET_MEAN
    assert networks.CLIP_STD == decoding_clip.CLIP_STD == open_clip.OPENAI_DATASET_STD


def test_a_clip_of_our_own_stands_in_under_its_own_name(tiny_clip, pictures):
    trunk = networks.clip_trunk(tiny_clip, "clip_tiny")
    assert trunk(pictures).shape == (2, 16) and trunk.size == 32 and trunk.has_text
    with pytest.raises(ValueError, match="name of a pretrained trunk"):
        networks.clip_trunk(tiny_clip, "clip_vit_l_14")
    blind = networks.Trunk("blind", torch.nn.Flatten(), 8)
    with pytest.raises(ValueError, match="sees pictures only"):
        blind.encode_text(["a cat"])


# --- weights ------------------------------------------------------------------------------------


def test_names_and_addresses_are_those_of_the_publishers():
    enumerations = {
        "alexnet_2": "AlexNet_Weights.IMAGENET1K_V1",
        "alexnet_5": "AlexNet_Weights.IMAGENET1K_V1",
        "inception_v3": "Inception_V3_Weights.IMAGENET1K_V1",
        "efficientnet_b1": "EfficientNet_B1_Weights.DEFAULT",
    }
    for name, weights in enumerations.items():
        assert networks.TRUNKS[name].url == models.get_weight(weights).url
    clip = networks.TRUNKS["clip_vit_l_14"]
    assert clip.url == open_clip.pretrained.get_pretrained_url("ViT-L-14", "openai")
    hub = open_clip.pretrained.get_pretrained_cfg("ViT-L-14", "openai")["hf_hub"]
    assert clip.hub == hub.strip("/")
    for spec in networks.TRUNKS.values():
        assert spec.url.endswith(f"/{spec.file}")
        assert spec.sha256 in spec.url


@pytest.mark.parametrize("name", list(ALL))
def test_every_trunk_has_one_entry_in_the_catalogue_that_says_the_same(name):
    spec, catalogue = ALL[name], downloads_catalogue.load_catalogue()
    (found,) = [(e, f) for e in catalogue.values() for f in e.files if f.path == spec.file]
    entry, file = found
    assert entry.kind == "weights" and file.url == spec.url
    known = file.sha256 or file.sha256_prefix or ""
    assert known == spec.sha256, "both as far as the publisher has told it"
    if "download.pytorch.org" in spec.url:  # trained on ImageNet, whose terms torchvision points at
        assert entry.licence == "BSD-3-Clause" and "ImageNet" in entry.licence_text


def test_every_group_of_metrics_has_its_weights_in_the_catalogue():
    groups = {spec.group for spec in suite.METRICS} - {"pixels"}
    assert groups == set(ALL), "a group of metrics whose weights the test above does not know"


def test_what_is_not_free_must_be_accepted():
    catalogue = downloads_catalogue.load_catalogue()
    swav = catalogue["weights_swav_resnet50"]
    assert swav.licence == "CC-BY-NC-4.0" and swav.must_accept
    with pytest.raises(
        downloads_catalogue.LicenceError, match="CC-BY-NC-4.0(.|\n)*Use commercially"
    ):
        downloads_catalogue.require_licence(swav, "")
    downloads_catalogue.require_licence(swav, "CC-BY-NC-4.0")
    for name in ("inception_v3", "efficientnet_b1", "openai_clip_vit_l_14", "lpips_vgg16"):
        downloads_catalogue.require_licence(catalogue[f"weights_{name}"], "")


def test_the_message_about_missing_weights_names_the_entry(no_cache):
    with pytest.raises(WeightsNotAvailable, match="weights_swav_resnet50 in data/lic"):
        networks.find_weights(networks.TRUNKS["swav_resnet50"])


@pytest.mark.parametrize("name", list(ALL))
def test_missing_weights_say_what_where_and_whence(name, no_cache, monkeypatch):
    spec = ALL[name]
    (no_cache / "mine").mkdir()
    with pytest.raises(WeightsNotAvailable) as caught:
        networks.find_weights(spec, no_cache / "mine")
    said = str(caught.value)
    for part in (spec.file, str(no_cache / "mine"), str(no_cache / "torch"), spec.url, "licences"):
        assert part in said
    file = downloads_catalogue.RemoteFile(spec.file, spec.url)
    entry = next(iter(downloads_catalogue.load_catalogue().values()))
    entry = dataclasses.replace(entry, name="weights_here", files=(file,))
    monkeypatch.setattr(downloads_catalogue, "load_catalogue", lambda: {"weights_here": entry})
    with pytest.raises(WeightsNotAvailable, match="weights_here in data/licences.yaml"):
        networks.find_weights(spec)


def test_weights_are_found_in_a_folder_and_in_the_cache(no_cache):
    spec = networks.TRUNKS["swav_resnet50"]
    cache = no_cache / "torch" / "hub" / "checkpoints"
    mine = no_cache / "mine"
    for folder in (cache, mine):
        folder.mkdir(parents=True)
    (cache / spec.file).write_bytes(b"")
    assert networks.find_weights(spec) == cache / spec.file
    assert networks.find_weights(spec, mine) == cache / spec.file
    (mine / "swav_800ep_pretrain.safetensors").write_bytes(b"")
    assert networks.find_weights(spec, mine) == mine / "swav_800ep_pretrain.safetensors"


def test_damaged_and_foreign_weights_are_refused(no_cache):
    load = networks.load_trunk
    with pytest.raises(FileNotFoundError, match=r"weights of alexnet_2: there is no .*typo.pth"):
        load("alexnet_2", no_cache / "typo.pth")
    with pytest.raises(ValueError, match="no trunk 'alexnet'"):
        load("alexnet")
    half = no_cache / networks.TRUNKS["alexnet_2"].file
    half.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="is damaged .*published 7be5be79"):
        load("alexnet_2", no_cache)
    for suffix in (".pth", ".safetensors"):
        rubbish = (no_cache / "rubbish").with_suffix(suffix)
        rubbish.write_bytes(b"half a download")
        with pytest.raises(ValueError, match="cannot be read as weights of alexnet_2"):
            load("alexnet_2", rubbish)
    state = published_form("alexnet_2", random_network("alexnet_2"))
    del state["features.8.weight"]
    torch.save(state, no_cache / "cut.pth")
    with pytest.raises(ValueError, match=r"lacks 1 of 10 tensors, the first is features.8.weight"):
        load("alexnet_2", no_cache / "cut.pth")
    state["features.8.weight"] = torch.zeros(2, 2)
    torch.save(state, no_cache / "other.pth")
    with pytest.raises(ValueError, match=r"features.8.weight has shape \(2, 2\)"):
        load("alexnet_2", no_cache / "other.pth")
    torch.save([1, 2], no_cache / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load("alexnet_2", no_cache / "list.pth")


def test_programs_are_not_run(no_cache):
    """OpenAI's file is a TorchScript archive; any other file of that kind could do anything."""
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(program, no_cache / "clip.pt")
    with pytest.raises(ValueError, match="TorchScript program of unknown origin"):
        networks.load_trunk(tiny_spec(), no_cache / "clip.pt")
