"""Image metrics in the feature space of a network, as torchmetrics classes.

Use them through `sgdm_utils.metrics.suite`. The features of both sides are kept, the pictures are not.

References
----------
Two-way identification: see `sgdm_utils.metrics.retrieval`. Heusel et al., NeurIPS (2017): FID.
Binkowski et al., ICLR (2018): KID. Hessel et al., EMNLP (2021): CLIPScore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torchmetrics.image.kid import poly_mmd

from sgdm_utils.metrics.classes import SuiteMetric, check_batch, gathered
from sgdm_utils.metrics.protocol import Result, TooFewPictures
from sgdm_utils.metrics.retrieval import cosine_similarity, n_way_accuracy, retrieval_ranks

FORWARD_BATCH = 16  # pictures that go through a network at once
COLUMNS_AT_ONCE = 16_384  # features in float64 at once; bounds the memory of a correlation


class FeatureMetric(SuiteMetric):
    """A comparison in the feature space of a network.

    Parameters
    ----------
    trunk : `networks.Trunk` or callable, pictures (n, 3, height, width) -> features (n, ...), optional
        Without it `update` takes features: (n, d) of the targets, and (n, d) or (n, n_samples, d) of
        the reconstructions.
    """

    pred_features: list[Tensor]
    target_features: list[Tensor]

    def __init__(self, trunk: Callable[[Tensor], Tensor] | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.trunk = trunk
        self.add_state("pred_features", [], dist_reduce_fx="cat")
        self.add_state("target_features", [], dist_reduce_fx="cat")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Take in a batch of pictures, or of features where there is no trunk.

        Raises
        ------
        TypeError, ValueError
            See `check_batch`; features that are not finite; another number of samples than before.
        """
        if self.trunk is not None:
            pred, target = check_batch(pred, target)
            features = extract(self.trunk, pred.flatten(0, 1))
            pred = features.reshape(*pred.shape[:2], -1)
            target = extract(self.trunk, target)
        pred, target = _check_features(pred, target)
        before = self.pred_features[0].shape[1:] if len(self.pred_features) else pred.shape[1:]
        if pred.shape[1:] != before:
            raise ValueError(
                f"this batch has (n_samples, n_features) = {tuple(pred.shape[1:])}, earlier ones "
                f"{tuple(before)}: every picture needs the same number of samples"
            )
        self.pred_features.append(pred.to(self.device))
        self.target_features.append(target.to(self.device))

    def _pairs(self, needed: int = 1) -> tuple[list[Tensor], Tensor]:
        """Reconstructions in blocks of shape (n, n_samples, d), which need not be copied together."""
        targets = gathered(self.target_features)
        if len(targets) < needed:
            raise TooFewPictures(type(self).__name__, needed, len(targets))
        blocks = [self.pred_features] if torch.is_tensor(self.pred_features) else self.pred_features
        return blocks, targets

    def _similarity(self, needed: int = 1) -> tuple[np.ndarray, np.ndarray, int]:
        """Correlation of samples with targets, (n * n_samples, n), their own targets, n_samples."""
        blocks, targets = self._pairs(needed)
        rows = [correlation_matrix(block.flatten(0, 1), targets) for block in blocks]
        n_samples = blocks[0].shape[1]
        return np.concatenate(rows), np.repeat(np.arange(len(targets)), n_samples), n_samples


class TwoWay(FeatureMetric):
    """Two-way identification as `retrieval.two_way_identification`: ties fail, chance is 1/2."""

    higher_is_better = True

    def _result(self) -> Result:
        similarity, own, n_samples = self._similarity(2)
        n = similarity.shape[1]
        return _summary((n - retrieval_ranks(similarity, own)) / (n - 1), n_samples, 0.5)


class NWayTopK(FeatureMetric):
    """Is the target among the k most similar of itself and n_way - 1 random other targets?

    The exact expectation over all draws, `retrieval.n_way_accuracy`. It identifies by correlation
    of features, as the two-way score does, not by the classes that a classifier sees.
    """

    higher_is_better = True

    def __init__(
        self,
        trunk: Callable[[Tensor], Tensor] | None = None,
        n_way: int = 50,
        k: int = 1,
        **kwargs: object,
    ) -> None:
        if not 1 <= k <= n_way:
            raise ValueError(f"need 1 <= k <= n_way, got k = {k}, n_way = {n_way}")
        super().__init__(trunk, **kwargs)
        self.n_way, self.k = n_way, k

    def _result(self) -> Result:
        similarity, own, n_samples = self._similarity(self.n_way)
        ranks = retrieval_ranks(similarity, own)
        scores = n_way_accuracy(ranks, similarity.shape[1], self.n_way, self.k)
        return _summary(scores, n_samples, self.k / self.n_way)


class CorrelationDistance(FeatureMetric):
    """1 - Pearson correlation of the features of a pair; chance is the mean over all pairs."""

    higher_is_better = False

    def _result(self) -> Result:
        similarity, own, n_samples = self._similarity()
        scores = 1 - similarity[np.arange(len(own)), own]
        return _summary(scores, n_samples, float(1 - similarity.mean()))


class FID(FeatureMetric):
    """Frechet distance of the features of all reconstructions and all targets.

    With fewer pictures than features it is biased upwards, the more the fewer: compare only values
    of the same n, and of the same network. torchvision's Inception is not the one of the original
    FID, whose values lie on another scale.

    Notes
    -----
    The trace of the root of the product of two covariances is the sum of the singular values of the
    product of the centred features, so that nothing of the size of the covariances is needed.
    torchmetrics takes the eigenvalues of the product; the tests compare with it.
    """

    higher_is_better = False
    needs_all_samples = True

    def _result(self) -> Result:
        blocks, real = self._pairs(2)
        fake = torch.cat([block.flatten(0, 1) for block in blocks]).double()
        real = real.double()
        means = (real.mean(0), fake.mean(0))
        a = (real - means[0]) / math.sqrt(len(real) - 1)
        b = (fake - means[1]) / math.sqrt(len(fake) - 1)
        # with more pictures than features, their triangular factors have the same product
        roots = [torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x for x in (a, b)]
        shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
        spread = a.square().sum() + b.square().sum() - 2 * shared
        return Result(float((means[0] - means[1]).square().sum() + spread), len(fake))


class KID(FeatureMetric):
    """Squared kernel distance (cubic polynomial), unbiased: also of few pictures, also below 0.

    torchmetrics' `poly_mmd` on all targets against one sample of each, averaged over the samples,
    instead of the class's random subsets.
    """

    higher_is_better = False
    needs_all_samples = True

    def _result(self) -> Result:
        blocks, real = self._pairs(2)
        fake, real = torch.cat(blocks).double(), real.double()
        values = [float(poly_mmd(real, fake[:, s])) for s in range(fake.shape[1])]
        return Result(float(np.mean(values)), fake.shape[0] * fake.shape[1])


class CLIPText(SuiteMetric):
    """Cosine of a reconstruction's CLIP embedding with that of the target's caption.

    Chance is the mean over all pairs of a reconstruction and a caption.

    Parameters
    ----------
    trunk : `networks.Trunk` of a CLIP
        Optional when `update` is given embeddings in place of pictures and captions.
    """

    higher_is_better = True
    image_features: list[Tensor]
    text_features: list[Tensor]

    def __init__(self, trunk: nn.Module | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.trunk = trunk
        self.add_state("image_features", [], dist_reduce_fx="cat")
        self.add_state("text_features", [], dist_reduce_fx="cat")

    def update(
        self,
        pred: Tensor,
        target: Tensor | None = None,
        captions: Sequence[str] | Tensor | None = None,
    ) -> None:
        """Take in a batch; `target` is not looked at, it is there for a common signature."""
        if captions is None:
            raise ValueError("a text score needs the captions of the targets")
        if self.trunk is not None:
            blank = [i for i, text in enumerate(captions) if not str(text).strip()]
            if blank:
                raise ValueError(f"captions {blank[:8]} are empty")
            pred, _ = check_batch(pred)
            features = extract(self.trunk, pred.flatten(0, 1))
            pred = features.reshape(*pred.shape[:2], -1)
            captions = self.trunk.encode_text(list(captions))
        pred, texts = _check_features(pred, captions, "captions")
        self.image_features.append(pred.to(self.device))
        self.text_features.append(texts.to(self.device))

    def _result(self) -> Result:
        texts = gathered(self.text_features)
        images = gathered(self.image_features)
        cosine = cosine_similarity(images.flatten(0, 1), texts)
        own = np.repeat(np.arange(len(texts)), images.shape[1])
        scores = cosine[np.arange(len(cosine)), own]
        return _summary(scores, images.shape[1], float(cosine.mean()))


def extract(trunk: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Features of pictures, (n, d), a few pictures at a time."""
    parts = [trunk(part).flatten(1) for part in pictures.split(FORWARD_BATCH)]
    return torch.cat(parts).detach()


def correlation_matrix(pred: Tensor, target: Tensor) -> np.ndarray:
    """Pearson correlation of each row of `pred` with each row of `target`, float64.

    Computed in float64 from a few columns at a time: the first layers of a network have features
    by the hundred thousand.

    Raises
    ------
    ValueError
        A row is constant, so that its correlation is undefined.
    """
    sides = {"pred": pred, "target": target}
    means, squares = {}, {}
    for name, x in sides.items():
        constant = torch.nonzero(x.amax(1) == x.amin(1))[:8, 0].tolist()
        if constant:
            raise ValueError(f"{name}: items {constant} have constant features, no correlation")
        means[name] = x.mean(1, keepdim=True, dtype=torch.float64)
        squares[name] = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    products = torch.zeros(len(pred), len(target), dtype=torch.float64, device=pred.device)
    for start in range(0, pred.shape[1], COLUMNS_AT_ONCE):
        columns = slice(start, start + COLUMNS_AT_ONCE)
        a, b = (x[:, columns].double() - means[name] for name, x in sides.items())
        squares["pred"] += a.square().sum(1)
        squares["target"] += b.square().sum(1)
        products += a @ b.T
    norms = squares["pred"].sqrt()[:, None] * squares["target"].sqrt()[None]
    return (products / norms).cpu().numpy()


def _check_features(pred: ArrayLike, other: ArrayLike, name: str = "target") -> tuple:
    pred, other = torch.as_tensor(pred).detach(), torch.as_tensor(other).detach()
    if pred.ndim == 2:
        pred = pred[:, None]
    if pred.ndim != 3 or other.ndim != 2 or pred.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"features of shape {tuple(pred.shape)} and {tuple(other.shape)}, expected "
            f"(n, n_samples, d) and (n, d)"
        )
    if len(pred) != len(other):
        raise ValueError(f"{len(pred)} reconstructions but {len(other)} {name}: pair them")
    for side, x in (("pred", pred), (name, other)):
        bad = torch.nonzero(~torch.isfinite(x).flatten(1).all(1))[:8, 0].tolist()
        if bad:
            raise ValueError(f"{side}: NaN or infinite features in items {bad}")
    return pred, other


def _summary(scores: np.ndarray, n_samples: int, chance: float) -> Result:
    items = np.asarray(scores, dtype=np.float64).reshape(-1, n_samples).mean(1)
    return Result(float(items.mean()), len(items), items.tolist(), chance)
