"""Each metric against an independent computation, by hand, by loop or by another package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metric_pictures import draw_pictures, resize_as_agreed, two_way_by_loops
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from sgdm_utils.metrics import pixels
from sgdm_utils.metrics.retrieval import (
    cosine_similarity,
    hubness_skewness,
    identification_matrix,
    k_occurrence,
    n_way_accuracy,
    rank_matrix,
    retrieval_ranks,
    two_way_identification,
)
from sgdm_utils.metrics.structure import boundary_f, iou, relation_accuracy


def ssim_by_skimage(real: torch.Tensor, recon: torch.Tensor) -> np.ndarray:
    pairs = zip(real.permute(0, 2, 3, 1).double(), recon.permute(0, 2, 3, 1).double(), strict=True)
    agreed = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array(
        [
            structural_similarity(
                rgb2gray(a.numpy()), rgb2gray(b.numpy()), data_range=1.0, **agreed
            )
            for a, b in pairs
        ]
    )


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    real, other = draw_pictures(12), draw_pictures(12, seed=1)
    mix = np.linspace(0, 1, 12, dtype=np.float32).reshape(-1, 1, 1, 1)
    return real, (1 - mix) * real + mix * other


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 300, 512])
def test_ssim_equals_skimage_under_the_protocol(size):
    real, recon = draw_pictures(4, size), draw_pictures(4, size, seed=1)
    recon[1] = 0.5 * real[1] + 0.5 * recon[1]
    recon[2] = 0.3  # a constant picture has an SSIM
    agreed = ssim_by_skimage(*(resize_as_agreed(x, 256, 425) for x in (real, recon)))
    np.testing.assert_allclose(pixels.ssim(real, recon), agreed, atol=1e-6, rtol=0)
    # the test can tell the protocol from the usual slips
    without_256 = ssim_by_skimage(*(resize_as_agreed(x, 425) for x in (real, recon)))
    at_512 = ssim_by_skimage(*(resize_as_agreed(x, 256, 512) for x in (real, recon)))
    assert np.abs(without_256 - agreed).max() > 1e-4
    assert np.abs(at_512 - agreed).max() > 1e-3


def test_rounding_beyond_one_is_clipped():
    """Resizing in float32 leaves 1.0000001, which is no wrong range."""
    real, recon = draw_pictures(2), draw_pictures(2, seed=1)
    recon[:, :, :9, :9] = 1
    beyond = recon + np.float32(1e-6)
    np.testing.assert_allclose(pixels.ssim(real, beyond), pixels.ssim(real, recon), atol=1e-4)
    with pytest.raises(ValueError, match="clip or rescale"):
        pixels.ssim(real, recon + np.float32(1e-3))


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (512, 512)])
def test_pixcorr_and_mse_equal_those_of_pictures_that_are_really_resized(shape):
    """The module computes them without making the large pictures."""
    rng = np.random.default_rng(5)
    real = rng.random((4, 3, *shape))
    recon = np.clip(
        real + rng.normal(0, [[[[0.05]]], [[[0.2]]], [[[0.5]]], [[[2.0]]]], real.shape), 0, 1
    )
    large, agreed, direct = (
        [resize_as_agreed(x, *sizes).flatten(1).numpy() for x in (real, recon)]
        for sizes in ((256, 425), (256,), (425,))
    )
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(*large, strict=True)]
    np.testing.assert_allclose(pixels.pixcorr(real, recon), expected, atol=1e-11, rtol=0)
    assert expected[0] - expected[-1] > 0.2
    square = ((agreed[0] - agreed[1]) ** 2).mean(1)
    np.testing.assert_allclose(pixels.mse(real, recon), square, atol=1e-13, rtol=0)
    # the test can tell the protocol from leaving out one of its steps
    without_256 = [np.corrcoef(x, y)[0, 1] for x, y in zip(*direct, strict=True)]
    assert np.abs(np.subtract(without_256, expected)).max() > 1e-6


def test_pixcorr_of_nearly_constant_pictures_keeps_its_digits():
    base = np.full((1, 3, 64, 64), 0.7)
    spot = base.copy()
    spot[0, 0, 20, 20] += 1e-5
    moved = base.copy()
    moved[0, 0, 20, 22] += 1e-5
    expected = np.corrcoef(*(resize_as_agreed(x, 256, 425).ravel() for x in (spot, moved)))[0, 1]
    np.testing.assert_allclose(pixels.pixcorr(spot, moved), expected, atol=1e-7)


@pytest.mark.parametrize(("name", "best"), [("pixcorr", 1), ("ssim", 1), ("mse", 0)])
def test_identical_pictures_score_perfectly_and_order_matters_by_item(name, best, pair):
    score = getattr(pixels, name)
    np.testing.assert_allclose(score(pair[0], pair[0]), best, atol=1e-12)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(score(pair[0][order], pair[1][order]), score(*pair)[order])
    np.testing.assert_allclose(score(*map(torch.from_numpy, pair)), score(*pair))


def bad_pictures() -> list:
    good = draw_pictures(3)
    nan, negative = good.copy(), good.copy()
    nan[1, 0, 5, 5] = np.nan
    negative[0] = 2 * negative[0] - 1
    return [
        ((good * 255).astype(np.uint8), TypeError, "divide 8-bit pictures by 255"),
        (good * 255, ValueError, "divide by 255"),
        (negative, ValueError, "values from -"),
        (nan, ValueError, r"pictures \[1\]"),
        (good[:2], ValueError, "3 real pictures but 2"),
        (good[:0], ValueError, "shape"),
        (good[:, :1], ValueError, r"expected \(n, 3, height, width\)"),
        (good.transpose(0, 2, 3, 1), ValueError, r"expected \(n, 3, height, width\)"),
    ]


@pytest.mark.parametrize("name", ["pixcorr", "ssim", "mse"])
@pytest.mark.parametrize(("recon", "error", "message"), bad_pictures())
def test_bad_pictures_are_refused(name, recon, error, message):
    with pytest.raises(error, match=message):
        getattr(pixels, name)(draw_pictures(3), recon)


def test_pixcorr_refuses_constant_pictures(pair):
    recon = pair[1].copy()
    recon[3] = 0.25
    with pytest.raises(ValueError, match=r"recon: pictures \[3\] are constant"):
        pixels.pixcorr(pair[0], recon)


def test_a_constant_reconstruction_counts_as_what_it_is_said_to(pair):
    """A sampler with one step may draw a black picture; the scores of the others stay as they are."""
    real, recon = pair[0], pair[1].copy()
    recon[3], others = 0.25, np.arange(len(real)) != 3
    scores = pixels.pixcorr(real, recon, of_constant=0.0)
    assert scores[3] == 0
    np.testing.assert_array_equal(scores[others], pixels.pixcorr(real[others], recon[others]))
    assert (pixels.pixcorr(real, np.full_like(real, 0.5), of_constant=-1.0) == -1).all()
    with pytest.raises(ValueError, match=r"real: pictures \[3\] are constant"):
        pixels.pixcorr(recon, real, of_constant=0.0)


# --- identification and retrieval ---------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_two_way_equals_a_double_loop_with_ties(noise):
    rng = np.random.default_rng(3)
    real = rng.standard_normal((31, 40))
    real[5] = real[6] = real[20]  # ties must fail
    recon = real + noise * rng.standard_normal(real.shape)
    expected = two_way_by_loops(real, recon)
    np.testing.assert_allclose(two_way_identification(real, recon), expected)
    if noise == 0:
        assert expected[5] == pytest.approx(28 / 30) and expected[0] == 1


def test_two_way_of_permuted_items_is_at_its_analytic_chance():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 3, 5))
    matrix = identification_matrix(features, features)
    assert (np.diagonal(matrix) == 1).all()
    # over all assignments of targets each reconstruction scores 0, 1/39, ..., 1 once: mean 1/2
    np.testing.assert_allclose(matrix.mean(1), 0.5)
    order = rng.permutation(40)
    shuffled = two_way_identification(features[order], features)
    np.testing.assert_allclose(shuffled, matrix[np.arange(40), order])


def test_two_way_of_one_answer_for_all_is_chance():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((25, 10))
    collapsed = np.tile(real.mean(0), (25, 1))
    assert two_way_identification(real, collapsed).mean() == pytest.approx(0.5)


def test_bad_features_are_refused():
    good = np.random.default_rng(0).standard_normal((4, 6))
    bad = good.copy()
    bad[2] = 1e6  # constant
    with pytest.raises(ValueError, match=r"recon_features: items \[2\] have constant"):
        two_way_identification(good, bad)
    bad[2] = 0
    with pytest.raises(ValueError, match=r"gallery: items \[2\] are zero"):
        cosine_similarity(good, bad)
    bad[1, 0] = np.inf
    with pytest.raises(ValueError, match=r"items \[1\]"):
        two_way_identification(bad, good)
    with pytest.raises(ValueError, match="differ"):
        two_way_identification(good[:3], good)
    with pytest.raises(ValueError, match="at least 2"):
        two_way_identification(good[:1], good[:1])


def test_retrieval_equals_brute_force():
    rng = np.random.default_rng(1)
    gallery = rng.standard_normal((15, 8))
    targets = np.repeat(np.arange(15), 2)
    queries = gallery[targets] + 2 * rng.standard_normal((30, 8))
    similarity = cosine_similarity(queries, gallery)
    ranks = retrieval_ranks(similarity, targets)
    for query, target, rank in zip(queries, targets, ranks, strict=True):
        cosines = [q @ query / np.linalg.norm(q) / np.linalg.norm(query) for q in gallery]
        assert rank == 1 + sum(c > cosines[target] for c in cosines)
    assert (rank_matrix(similarity)[np.arange(30), targets] == ranks).all()
    assert (retrieval_ranks(cosine_similarity(gallery, gallery)) == 1).all()


def test_retrieval_ties_take_the_worst_rank_and_bad_targets_are_refused():
    assert rank_matrix(np.array([[3.0, 1.0, 3.0, 0.0]])).tolist() == [[2, 3, 2, 4]]
    flat = np.ones((5, 5))
    assert (retrieval_ranks(flat) == 5).all()
    with pytest.raises(ValueError, match="give targets"):
        retrieval_ranks(flat[:3])
    with pytest.raises(ValueError, match="from 0 to 5"):
        retrieval_ranks(flat, [0, 1, 2, 3, 5])
    with pytest.raises(ValueError, match="5 integers"):
        retrieval_ranks(flat, [0.0, 1, 2, 3, 4])


def test_n_way_equals_sampling_and_chance():
    rng = np.random.default_rng(0)
    exact = n_way_accuracy([1, 8, 20], n_gallery=20, n_way=5, k=2)
    others = np.array([rng.permutation(np.arange(1, 20))[:4] for _ in range(20_000)])
    # among 19 others the better ones carry the numbers below the rank
    sampled = [((others < rank).sum(1) < 2).mean() for rank in (1, 8, 20)]
    np.testing.assert_allclose(exact, sampled, atol=0.012)
    assert n_way_accuracy(np.arange(1, 21), 20, 5, 2).mean() == pytest.approx(2 / 5)
    whole = n_way_accuracy(np.arange(1, 21), 20, 20, 3)
    np.testing.assert_allclose(whole, np.arange(1, 21) <= 3)
    with pytest.raises(ValueError, match="n_way <= n_gallery"):
        n_way_accuracy([1], 20, 21)


def test_hubness_finds_a_planted_hub():
    rng = np.random.default_rng(0)
    gallery, queries = rng.standard_normal((2, 100, 16))
    even = cosine_similarity(gallery, gallery)
    assert hubness_skewness(even) == 0
    plain = hubness_skewness(cosine_similarity(queries, gallery), k=5)
    gallery[17] = queries.mean(0)
    similarity = cosine_similarity(queries + 5 * queries.mean(0), gallery)
    counts = k_occurrence(similarity, k=5)
    assert counts.sum() == 500 and counts.argmax() == 17
    assert hubness_skewness(similarity, k=5) > plain + 1


# --- structure ----------------------------------------------------------------------------------


def test_iou_by_hand():
    a = np.zeros((4, 4, 4))
    b = np.zeros((4, 4, 4))
    a[0, :2], b[0, 1:3] = 1, 1  # 8 and 8 pixels, 4 shared
    a[1], b[1] = 0.5, 1  # exactly at the threshold belongs to the mask
    a[2, 0, 0] = 0.49  # below it; both empty
    b[3, 0, 0] = 1  # one empty
    np.testing.assert_allclose(iou(a, b), [4 / 12, 1, 1, 0])
    np.testing.assert_allclose(iou(a, b, threshold=0.4), [4 / 12, 1, 0, 0])
    np.testing.assert_allclose(iou(torch.from_numpy(a), b > 0.5), [4 / 12, 1, 1, 0])


def test_boundary_f_by_hand():
    square = np.zeros((1, 12, 12), dtype=bool)
    square[0, 3:8, 3:8] = True  # boundary: 16 pixels
    shifted = np.roll(square, 2, axis=2)
    empty, full = np.zeros_like(square), np.ones_like(square)
    assert boundary_f(square, square, 0)[0] == 1
    assert boundary_f(square, np.roll(square, 1, axis=2), 1)[0] == 1
    # Squares at columns 3-7 and 5-9: of 16 boundary pixels, the 3 shared ones of the top and of
    # the bottom row coincide, and no others.
    assert boundary_f(square, shifted, 0)[0] == pytest.approx(6 / 16)
    assert boundary_f(square, shifted, 2)[0] == 1
    assert boundary_f(empty, empty)[0] == 1
    assert boundary_f(square, empty)[0] == 0
    assert boundary_f(full, empty)[0] == 1  # the frame of the picture is no boundary
    line, longer = empty.copy(), empty.copy()
    line[0, 5, 2:6], longer[0, 5, 2:10] = True, True
    # precision 4/4, recall 4/8
    assert boundary_f(line, longer, 0, kind="edges")[0] == pytest.approx(2 / 3)
    assert boundary_f(line, longer, 1, kind="edges")[0] == pytest.approx(2 * 0.625 / 1.625)


def test_bad_masks_are_refused():
    mask = np.zeros((2, 4, 4))
    for bad, message in [
        (mask.astype(np.uint8), "expected bool or float"),
        (mask + 255, "expected bool or float"),
        (np.full_like(mask, np.nan), "expected bool or float"),
        (mask[:1], "differ in shape"),
        (mask[0], "expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            iou(mask, bad)
    with pytest.raises(ValueError, match="kind 'line'"):
        boundary_f(mask, mask, kind="line")


def test_relation_accuracy_up_to_the_four_symmetries():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.integers(0, 6, (50, 7, 7)), k=1)
    target = (upper + upper.transpose(0, 2, 1)).astype(np.int8)
    small, large = [0, 1, 3, 2, 4, 5, 6], [0, 1, 2, 3, 4, 6, 5]
    for order in ([*range(7)], small, large, np.array(small)[large]):
        relabelled = target[:, order][:, :, order]
        assert (relation_accuracy(relabelled, target) == 1).all()
    other = [1, 0, 2, 3, 4, 5, 6]  # square and parallelogram are not alike
    assert relation_accuracy(target[:, other][:, :, other], target).mean() < 0.9
    wrong = target.copy()
    wrong[:, 0, 1] = wrong[:, 1, 0] = (target[:, 0, 1] + 1) % 6  # a pair no symmetry moves
    np.testing.assert_allclose(relation_accuracy(wrong, target), 20 / 21)


def test_bad_relation_matrices_are_refused():
    target = np.zeros((2, 7, 7), dtype=np.int8)
    with pytest.raises(ValueError, match="expected integers"):
        relation_accuracy(target.astype(float), target)
    with pytest.raises(ValueError, match="1 predicted and 2"):
        relation_accuracy(target[:1], target)
    lopsided = target.copy()
    lopsided[1, 0, 3] = 2
    with pytest.raises(ValueError, match=r"\[1\] are not symmetric"):
        relation_accuracy(target, lopsided)
