"""The suite as torchmetrics classes: against the functions, against loops, and fed in any batches.

That the functions themselves are right is in test_pixels.py.
"""

from __future__ import annotations

import lpips
import numpy as np
import pytest
import torch
from metric_pictures import (
    draw_pictures,
    quick_trunk,
    resize_as_agreed,
    save_alexnet,
    trunk_of_lpips,
    two_way_by_loops,
)
from safetensors.torch import save_file
from scipy.spatial.distance import correlation
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from sgdm_utils.errors import WeightsNotAvailable
from sgdm_utils.metrics import networks, pixels, suite, tables
from sgdm_utils.metrics.classes import LPIPS, MSE, SSIM, PixCorr
from sgdm_utils.metrics.features import (
    FID,
    KID,
    CLIPText,
    CorrelationDistance,
    NWayTopK,
    TwoWay,
    correlation_matrix,
)
from sgdm_utils.metrics.protocol import TooFewPictures
from sgdm_utils.metrics.retrieval import n_way_accuracy, retrieval_ranks

N, N_SAMPLES = 9, 3


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstructions (n, n_samples, 3, side, side) and targets, which they resemble."""
    target = torch.from_numpy(draw_pictures(N, 40))
    other = torch.from_numpy(draw_pictures(N * N_SAMPLES, 40, seed=1)).unflatten(0, (N, -1))
    return 0.5 * target[:, None] + 0.5 * other, target


def fed(metric, pred, target, sizes=(N,)):
    start = 0
    for size in sizes:
        metric.update(pred[start : start + size], target[start : start + size])
        start += size
    return metric


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "function"),
    [(PixCorr, "pixcorr"), (SSIM, "ssim"), (MSE, "mse")],
)
def test_picture_metrics_average_over_samples_then_pictures(make, function, pictures):
    pred, target = pictures
    by_sample = [getattr(pixels, function)(target, pred[:, s]) for s in range(N_SAMPLES)]
    expected = np.mean(by_sample, axis=0)
    metric = fed(make(), pred, target, (4, 1, 4))
    result = metric.result()
    np.testing.assert_allclose(result.items, expected, rtol=1e-10)
    assert result.n == N and result.value == pytest.approx(expected.mean())
    assert metric.compute().item() == pytest.approx(expected.mean()) and np.isnan(result.chance)
    one = fed(make(), pred[:, 0], target)
    np.testing.assert_allclose(one.result().items, by_sample[0])
    metric.reset()
    with pytest.raises(ValueError, match="call update first"):
        metric.result()


# the package calls torchvision with an argument of old; sgdm_utils silences it, `direct` does not
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
@pytest.mark.parametrize(("net", "suffix"), [("alex", ".pth"), ("vgg", ".safetensors")])
def test_lpips_equals_the_package_with_the_same_trunk(net, suffix, pictures, tmp_path):
    state = trunk_of_lpips(net)
    path = tmp_path / f"trunk{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    direct = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, value in direct.net.named_parameters():
            value.copy_(state[f"features.{name.split('.', 1)[1]}"])
        pred, target = (x[:2] for x in pictures)
        target = resize_as_agreed(target.numpy(), 256) * 2 - 1
        expected = [
            direct(target, resize_as_agreed(pred[:, s].numpy(), 256) * 2 - 1).flatten().numpy()
            for s in range(N_SAMPLES)
        ]
    random_state = torch.get_rng_state()
    metric = fed(LPIPS(net, path), *(x[:2] for x in pictures), (1, 1))
    result = metric.result()
    np.testing.assert_allclose(result.items, np.mean(expected, axis=0), rtol=1e-5)
    metric.reset()
    same = fed(metric, pictures[1][:1], pictures[1][:1], (1,)).result()
    assert same.value == 0 and result.value > 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_lpips_refuses_weights_that_are_missing_damaged_or_foreign(no_cache):
    with pytest.raises(WeightsNotAvailable, match="alexnet-owt-7be5be79.pth"):
        LPIPS()
    with pytest.raises(FileNotFoundError, match="typo.pth"):
        LPIPS(trunk_weights=no_cache / "typo.pth")
    with pytest.raises(ValueError, match="'resnet' is unknown"):
        LPIPS("resnet")
    cached = no_cache / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="is damaged"):
        LPIPS()
    torch.save({"conv1.weight": torch.zeros(1)}, no_cache / "foreign.pth")
    with pytest.raises(ValueError, match="not a torchvision alex"):
        LPIPS(trunk_weights=no_cache / "foreign.pth")


# --- features -----------------------------------------------------------------------------------


def test_feature_metrics_equal_loops_over_each_sample(pictures):
    pred, target = pictures
    trunk = quick_trunk()
    real = trunk(target).double().numpy()
    recon = [trunk(pred[:, s]).double().numpy() for s in range(N_SAMPLES)]
    two_way = fed(TwoWay(trunk), pred, target, (2, 7)).result()
    expected = np.mean([two_way_by_loops(real, r) for r in recon], axis=0)
    np.testing.assert_allclose(two_way.items, expected)
    assert two_way.chance == 0.5 and 0.5 < two_way.value < 1
    distance = fed(CorrelationDistance(trunk), pred, target).result()
    by_scipy = [[correlation(a, b) for a, b in zip(real, r, strict=True)] for r in recon]
    np.testing.assert_allclose(distance.items, np.mean(by_scipy, axis=0))
    # two of two is the same question as two-way identification
    pair = fed(NWayTopK(trunk, n_way=2), pred, target).result()
    np.testing.assert_allclose(pair.items, two_way.items)
    top = fed(NWayTopK(trunk, n_way=5, k=2), pred, target).result()
    ranks = retrieval_ranks(np.corrcoef(recon[0], real)[:N, N:])
    first = fed(NWayTopK(trunk, n_way=5, k=2), pred[:, 0], target).result()
    np.testing.assert_allclose(first.items, n_way_accuracy(ranks, N, 5, 2))
    assert top.chance == pytest.approx(0.4)


def test_identical_pictures_are_perfect_and_permuted_ones_at_chance(pictures):
    target = pictures[1]
    trunk = quick_trunk()
    makes = {
        PixCorr: 1, SSIM: 1, MSE: 0,
        lambda: TwoWay(trunk): 1,
        lambda: CorrelationDistance(trunk): 0,
        lambda: NWayTopK(trunk, 5): 1,
        lambda: FID(trunk): 0,
    }  # fmt: skip
    for make, perfect in makes.items():
        assert fed(make(), target, target).compute().item() == pytest.approx(perfect, abs=1e-6)
    # over the cyclic shifts each picture meets each target once: the mean is the analytic chance
    for make in list(makes)[3:6]:
        shifted = [fed(make(), target.roll(k, 0), target).result() for k in range(N)]
        mean = np.mean([result.value for result in shifted])
        assert mean == pytest.approx(shifted[0].chance, abs=1e-9)
    assert shifted[0].chance == 1 / 5


def test_ties_fail():
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.standard_normal((6, 40)))
    target[3] = target[0]
    result = fed(TwoWay(), target, target, (6,)).result()
    assert result.items == [pytest.approx(x) for x in (0.8, 1, 1, 0.8, 1, 1)]
    one_answer = target.mean(0).expand(6, -1)
    assert fed(TwoWay(), one_answer, target, (6,)).result().value < 0.5
    assert fed(NWayTopK(n_way=6), target, target, (6,)).result().value < 0.7


def test_correlation_in_pieces_equals_corrcoef(monkeypatch):
    rng = np.random.default_rng(0)
    # far from zero, where one-pass formulas lose all digits
    pred, target = 1e4 + rng.standard_normal((7, 501)), -1e4 + rng.standard_normal((5, 501))
    expected = np.corrcoef(pred, target)[:7, 7:]
    monkeypatch.setattr("sgdm_utils.metrics.features.COLUMNS_AT_ONCE", 64)
    found = correlation_matrix(torch.from_numpy(pred), torch.from_numpy(target))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    pred[2] = 3
    with pytest.raises(ValueError, match=r"pred: items \[2\] have constant features"):
        correlation_matrix(torch.from_numpy(pred), torch.from_numpy(target))


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
@pytest.mark.parametrize("n_features", [6, 80])  # fewer and more features than pictures
def test_fid_and_kid_equal_torchmetrics(n_features):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(30, n_features, generator=generator, dtype=torch.float64)
    pred = 1.3 * torch.randn(30, 2, n_features, generator=generator, dtype=torch.float64) + 0.2

    class Given(torch.nn.Module):
        num_features = n_features

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    fid = FrechetInceptionDistance(Given())
    fid.update(target, real=True)
    fid.update(pred.flatten(0, 1), real=False)
    result = fed(FID(), pred, target, (10, 20)).result()
    assert result.value == pytest.approx(fid.compute().item(), rel=1e-5)
    assert result.n == 60 and result.items == []
    values = []
    for s in range(2):
        kid = KernelInceptionDistance(Given(), subsets=1, subset_size=30)
        kid.update(target, real=True)
        kid.update(pred[:, s], real=False)
        with torch.random.fork_rng():
            values.append(kid.compute()[0].item())
    assert fed(KID(), pred, target, (10, 20)).result().value == pytest.approx(
        np.mean(values), rel=1e-9
    )


def test_kid_is_unbiased():
    """Over draws from one distribution its mean is 0, where a biased one is above."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(300):
        a, b = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64)
        values.append(fed(KID(), a, b, (12,)).result().value)
    values = np.array(values)
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(300)
    assert (values < 0).any()


def test_text_score_is_the_cosine_with_the_own_caption(pictures):
    pred, target = pictures
    rng = np.random.default_rng(0)
    book = {f"picture {i}": torch.from_numpy(rng.standard_normal(48)).float() for i in range(N)}
    trunk = quick_trunk(text=lambda network, captions: torch.stack([book[c] for c in captions]))
    metric = CLIPText(trunk)
    metric.update(pred[:4], captions=list(book)[:4])
    metric.update(pred[4:], target[4:], captions=list(book)[4:])
    result = metric.result()
    images = torch.stack([trunk(pred[:, s]) for s in range(N_SAMPLES)], 1)
    texts = torch.stack(list(book.values()))
    cosine = torch.nn.functional.cosine_similarity(images[:, :, None], texts[None, None], dim=-1)
    own = cosine[torch.arange(N), :, torch.arange(N)].mean(1)
    np.testing.assert_allclose(result.items, own, rtol=1e-5)
    assert result.chance == pytest.approx(cosine.mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="needs the captions"):
        metric.update(pred)
    with pytest.raises(ValueError, match=r"captions \[1\] are empty"):
        metric.update(pred[:2], captions=["picture 1", " "])
    with pytest.raises(ValueError, match="9 reconstructions but 1 captions"):
        metric.update(pred, captions=["picture 1"])


# --- batches, processes, devices ----------------------------------------------------------------


ALL = {
    "ssim": SSIM,
    "two_way": lambda: TwoWay(quick_trunk()),
    "distance": lambda: CorrelationDistance(quick_trunk()),
    "fid": lambda: FID(quick_trunk()),
    "kid": lambda: KID(quick_trunk()),
}


@pytest.mark.parametrize("name", list(ALL))
def test_batches_and_order_do_not_matter(name, pictures):
    pred, target = pictures
    whole = fed(ALL[name](), pred, target).result()
    parts = fed(ALL[name](), pred, target, (1, 5, 3)).result()
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(N))
    permuted = fed(ALL[name](), pred[order], target[order]).result()
    assert permuted.value == pytest.approx(whole.value, rel=1e-6)
    if whole.items:
        np.testing.assert_allclose(permuted.items, np.array(whole.items)[order], rtol=1e-6)


@pytest.mark.parametrize("name", list(ALL))
def test_two_processes_are_one(name, pictures, monkeypatch):
    """What torch.distributed would gather, handed over without it."""
    pred, target = pictures
    whole = fed(ALL[name](), pred, target).result()
    first = fed(ALL[name](), pred[:5], target[:5], (5,))
    second = fed(ALL[name](), pred[5:], target[5:], (4,))
    states = {s: torch.cat(getattr(second, s)) for s in second._defaults}
    queue = [states[s] for s in first._defaults]
    first.sync(
        dist_sync_fn=lambda mine, group=None: [mine, queue.pop(0)],
        distributed_available=lambda: True,
    )
    assert first._result().value == pytest.approx(whole.value, rel=1e-6)
    first.unsync()
    merged = fed(ALL[name](), pred[5:], target[5:], (4,))
    merged.merge_state(first)
    assert merged.result().value == pytest.approx(whole.value, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", list(ALL))
def test_on_a_gpu(name, pictures):
    metric = ALL[name]().to("cuda")
    found = fed(metric, *(x.cuda() for x in pictures), (4, 5)).compute()
    assert found.device.type == "cuda"
    expected = fed(ALL[name](), *pictures).compute().item()
    assert found.item() == pytest.approx(expected, rel=1e-3)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SSIM, lambda: TwoWay(quick_trunk())])
def test_bad_batches_are_refused(make, pictures):
    pred, target = pictures
    nan = pred.clone()
    nan[1, 0, 0, 3, 3] = float("nan")
    for bad, good, error, message in [
        ((pred * 255).byte(), target, TypeError, "divide 8-bit pictures by 255"),
        (pred * 255, target, ValueError, "pred: values .*divide by 255"),
        (pred, target * 255, ValueError, "target: values .*divide by 255"),
        (nan, target, ValueError, r"pred: NaN or infinite pixels in pictures \[3\]"),
        (pred[:4], target, ValueError, "4 reconstructions but 9 targets"),
        (pred[0, 0], target, ValueError, r"expected \(n, 3, height, width\) or"),
        (pred[:, :0], target, ValueError, "shape"),
    ]:
        with pytest.raises(error, match=message):
            make().update(bad, good)


def test_what_has_no_correlation_is_refused(pictures):
    pred, target = pictures
    flat = pred.clone()
    flat[2] = 0.5
    with pytest.raises(ValueError, match="constant"):
        PixCorr().update(flat, target)
    SSIM().update(flat, target)  # which is defined
    with pytest.raises(ValueError, match="constant features"):
        fed(TwoWay(lambda x: x.mean((2, 3)) * 0), pred, target).result()


def test_bad_features_and_too_few_pictures_are_refused():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 6)))
    bad = x.clone()
    bad[1, 2] = float("inf")
    with pytest.raises(ValueError, match=r"target: NaN or infinite features in items \[1\]"):
        TwoWay().update(x, bad)
    with pytest.raises(ValueError, match="features of shape"):
        TwoWay().update(x, x[:, :3])
    metric = fed(TwoWay(), x, x, (4,))
    with pytest.raises(ValueError, match="same number of samples"):
        metric.update(x[:, None].expand(-1, 2, -1), x)
    with pytest.raises(TooFewPictures, match="TwoWay needs at least 2 pictures, there are 1"):
        fed(TwoWay(), x[:1], x[:1], (1,)).result()
    with pytest.raises(TooFewPictures, match="50 pictures"):
        fed(NWayTopK(), x, x, (4,)).compute()
    with pytest.raises(ValueError, match="k <= n_way"):
        NWayTopK(n_way=3, k=4)


# --- the whole suite ----------------------------------------------------------------------------


def test_full_suite_has_a_row_for_everything(no_cache, pictures):
    """With one file of weights: its metrics have numbers, the others say why they have none."""
    pred, target = pictures
    path = save_alexnet(no_cache / "alexnet.safetensors")
    given = {"alexnet_2": path, "alexnet_5": path}
    whole = suite.full_suite(given, substitutes={"clip_tiny": quick_trunk("clip_tiny")})
    for i in range(0, N, 4):
        whole.update(pred[i : i + 4], target[i : i + 4])
    values = whole.compute()
    assert [*values][: len(suite.METRICS)] == [spec.name for spec in suite.METRICS]
    missing = {name for name, value in values.items() if value == "weights not available"}
    assert missing == {
        "lpips_alex", "lpips_vgg", "two_way_inception_v3", "fid_torchvision_inception_v3",
        "kid_torchvision_inception_v3", "two_way_clip_vit_l_14", "top1_of_50_clip_vit_l_14",
        "correlation_distance_efficientnet_b1", "correlation_distance_swav_resnet50",
    }  # fmt: skip
    assert values["clip_text_clip_vit_l_14"] == "no captions given"
    assert values["top1_of_50_clip_tiny"] == "needs 50 pictures"
    assert values["ssim"] == pytest.approx(fed(SSIM(), pred, target).compute().item())
    for name, trunk in [
        ("two_way_alexnet_5", networks.load_trunk("alexnet_5", path)),
        ("two_way_clip_tiny", quick_trunk()),
    ]:
        alone = fed(TwoWay(trunk), pred, target).compute().item()
        assert values[name] == pytest.approx(alone)
    cells = dict(study="s", subject="all", seed=None, model="m", condition="c")
    rows = {row["metric"]: row for row in whole.rows(**cells)}
    tables.write_table(no_cache / "t.csv", rows.values())
    assert rows["lpips_vgg (weights not available)"]["n"] == 0
    row = rows["two_way_clip_tiny"]
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert (row["n"], row["chance"]) == (N, 0.5)
    whole.reset()
    assert whole.metrics["ssim"].scores == []


def test_pictures_pass_once_through_a_trunk_that_several_metrics_use(pictures):
    pred, target = pictures
    seen = []
    trunk = quick_trunk("clip_tiny")
    trunk.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    names = ["two_way_clip_tiny", "top1_of_50_clip_tiny", "correlation_distance_clip_tiny"]
    whole = suite.full_suite(substitutes={"clip_tiny": trunk}, names=names)
    whole.update(pred, target)
    assert sum(seen) == N * (N_SAMPLES + 1)
    found = whole.compute()
    alone = fed(CorrelationDistance(quick_trunk()), pred, target).compute().item()
    assert found["correlation_distance_clip_tiny"] == pytest.approx(alone)


def test_slips_in_names_are_refused(no_cache):
    with pytest.raises(ValueError, match="no metric two_way_clp; there is: pixcorr, ssim"):
        suite.full_suite(names=["ssim", "two_way_clp"])
    with pytest.raises(ValueError, match="cannot be called clip_vit_l_14"):
        suite.full_suite(substitutes={"clip_vit_l_14": quick_trunk()})
    with pytest.raises(ValueError, match="weights of clip: there is no such trunk"):
        suite.full_suite({"clip": no_cache})
    with pytest.raises(FileNotFoundError, match="no folder .*typo"):
        suite.full_suite(no_cache / "typo")
    with pytest.raises(FileNotFoundError, match="typo.pth"):
        suite.full_suite({"swav_resnet50": no_cache / "typo.pth"})
