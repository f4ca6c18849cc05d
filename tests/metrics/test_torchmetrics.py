"""How far torchmetrics' numbers are from the study's, as README says; another version may move them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics
from metric_pictures import draw_pictures, quick_trunk
from torchmetrics import retrieval as their
from torchmetrics.functional.image import structural_similarity_index_measure

from sgdm_utils.metrics import pixels, suite
from sgdm_utils.metrics.retrieval import retrieval_ranks

as_published = pytest.mark.skipif(
    torchmetrics.__version__ != "1.9.0", reason="README tells the numbers of torchmetrics 1.9.0"
)


@pytest.fixture
def similarity() -> np.ndarray:
    """Six queries; the first four find their item first, the last two second."""
    scores = np.random.default_rng(0).uniform(0.1, 0.5, (6, 6))
    np.fill_diagonal(scores, 0.8)
    scores[4, 0] = scores[5, 0] = 0.9
    return scores


@pytest.mark.parametrize("shift", [0.0, -2.0, -1e3])
def test_ranks_do_not_depend_on_the_sign_of_scores(similarity, shift):
    """Cosines, distances with a minus and log-likelihoods rank as any numbers do."""
    assert retrieval_ranks(similarity + shift).tolist() == [1, 1, 1, 1, 2, 2]


@as_published
@pytest.mark.parametrize(
    ("name", "options", "right", "below_zero"),
    [
        ("RetrievalRecall", {"top_k": 1}, 4 / 6, 0),
        ("RetrievalPrecision", {"top_k": 1}, 4 / 6, 0),
        ("RetrievalMRR", {}, 5 / 6, 0),
        ("RetrievalMAP", {}, 5 / 6, 0),
        ("RetrievalHitRate", {"top_k": 1}, 4 / 6, 4 / 6),
    ],
)
def test_retrieval_of_torchmetrics_loses_hits_below_zero(
    similarity, name, options, right, below_zero
):
    belongs = torch.eye(6, dtype=torch.bool).flatten()
    query = torch.arange(6).repeat_interleave(6)
    for shift, expected in ((0, right), (-2, below_zero)):
        metric = getattr(their, name)(**options)
        scores = torch.from_numpy(similarity + shift).float().flatten()
        assert metric(scores, belongs, indexes=query).item() == pytest.approx(expected, abs=1e-6)


def test_metrics_of_a_suite_stay_apart_when_the_first_batch_has_no_hit():
    """A MetricCollection merges metrics whose first states agree; the suite says which share."""
    target = torch.from_numpy(draw_pictures(60, 24))
    trunk = quick_trunk("t")
    names = ["two_way_t", "top1_of_50_t", "mse", "ssim"]
    whole = suite.full_suite(substitutes={"t": trunk}, names=names)
    alone = [suite.full_suite(substitutes={"t": trunk}, names=[name]) for name in names]
    for made in (whole, *alone):
        made.update(target[:4].flip(0), target[:4])  # every answer is wrong
        made.update(target[4:], target[4:])
    assert whole.compute() == {k: v for one in alone for k, v in one.compute().items()}
    assert 1 > whole.compute()["two_way_t"] > whole.compute()["top1_of_50_t"] > 0.9


@as_published
def test_ssim_of_torchmetrics_averages_over_a_mirrored_border():
    """A black frame, a sixteenth of the side wide: the study compares at 425 pixels whatever the file has."""
    for side, ours, other in ((32, 0.80, 0.67), (256, 0.80, 0.76)):
        real = np.kron(np.random.default_rng(0).random((1, 1, 4, 4)), np.ones((side // 4,) * 2))
        real = real.repeat(3, 1).astype(np.float32)
        framed, width = real.copy(), side // 16
        for rows in (slice(None, width), slice(-width, None)):
            framed[:, :, rows] = framed[..., rows] = 0
        assert pixels.ssim(real, framed).item() == pytest.approx(ours, abs=0.01)
        found = structural_similarity_index_measure(
            *(torch.from_numpy(x) for x in (real, framed)), data_range=1.0
        )
        assert found.item() == pytest.approx(other, abs=0.01)
