"""Does the generator give back training pictures?

A small distance to the nearest training picture is no proof of a copy: smooth pictures are near to
everything. A copy is near to *one* training picture and not to the next ones. So the audit looks at
the ratio of the distance to the nearest training picture to the mean distance to the neighbours
after it, and compares it with the same ratio of pictures that are honest by construction: training
pictures against the other training pictures, and the seen test pictures. In pixels the distance
is the smallest over small shifts and the (unshifted) mirror image, so that a moved copy is found, and the honest
pictures are also blurred and drawn to the mean picture, because reconstructions are smoother than
pictures; in a feature space it is the distance of unit vectors.

References
----------
Carlini et al., USENIX Security (2023), arXiv:2301.13188, sec. 5: distance relative to that of the
50 nearest training pictures. Meehan et al., AISTATS (2020): a test for data copying compares
generated and held-out pictures by their distance to the training set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch.nn.functional import adaptive_avg_pool2d

from sgdm_utils.metrics.audits import CLEAN, VIOLATED, AuditFinding, judge
from sgdm_utils.workflow.machine import side_by_side

N_NEIGHBOURS = 50
SIDE = 32  # pixels to which pictures are averaged before they are compared
BLURS = (3.0,)  # standard deviation in pixels of the reduced picture
CONTRASTS = (0.3,)  # of the difference from the mean training picture
QUANTILE = 0.01  # of the honest ratios; below it a picture is suspicious
_CHUNK = 1 << 25  # distances held at once by a thread, 128 MB
_AT_ONCE = 50  # pictures whose distances a thread computes at once


@dataclass(frozen=True)
class Nearness:
    """How near pictures are to training pictures, relative to their further neighbours.

    Attributes
    ----------
    space : str, in what the distance is measured
    reconstructions : DataFrame with `item`, `nearest` (training picture), `distance`, `ratio`
    seen : float array of shape (n_smoothings, n_seen), ratio of each seen test picture
    train : float array of shape (n_smoothings, n_reference)
        Ratio of drawn training pictures to the other training pictures.
    """

    space: str
    reconstructions: pd.DataFrame
    seen: np.ndarray
    train: np.ndarray

    def of(self, rows: ArrayLike) -> Nearness:
        """The same for some of the reconstructions, e.g. those of one condition."""
        chosen = self.reconstructions[np.asarray(rows)].reset_index(drop=True)
        return dataclasses.replace(self, reconstructions=chosen)


def pixel_nearness(
    reconstructions: np.ndarray,
    seen: np.ndarray,
    train: np.ndarray,
    ids: Sequence[str],
    train_ids: Sequence[str],
    rng: np.random.Generator,
    shift: int = 1,
    n_reference: int = 100,
    n_neighbours: int = N_NEIGHBOURS,
) -> Nearness:
    """Nearness in pixels, blind to small shifts and to mirroring (one or the other).

    Parameters
    ----------
    reconstructions, seen, train : uint8 arrays of shape (n, height, width, 3)
    ids, train_ids : strings, for the messages
    rng : numpy.random.Generator, draws the training pictures of the reference
    shift : int
        Largest shift in each direction in pixels of the reduced picture: one is 2 pixels of a
        picture of 64 and 8 of one of 256.
    n_reference : int, training pictures that are compared with all others
    n_neighbours : int, neighbours after the nearest; fewer where there are few training pictures

    Returns
    -------
    Nearness
    """
    sets = [_reduce(p, n) for p, n in
            ((reconstructions, "reconstructions"), (seen, "seen"), (train, "train"))]  # fmt: skip
    if len({s.shape[1:] for s in sets}) > 1 or not 0 <= shift < sets[0].shape[2] // 4:
        raise ValueError(
            f"pictures reduced to {[s.shape[1:] for s in sets]} and a shift of {shift}: pictures "
            "must be of one size, the shift below a quarter of it"
        )
    inner = slice(shift, sets[2].shape[2] - shift)
    known = sets[2][:, :, inner, inner].flatten(1)
    squares = (known**2).sum(1)

    def distances(queries: torch.Tensor) -> np.ndarray:
        some = queries.split(max(1, min(_AT_ONCE, _CHUNK // len(known))))
        return np.concatenate(side_by_side(lambda q: _shifted(q, known, squares, shift), some))

    name = f"pixels at {sets[0].shape[2]}, shifts to {shift}, or mirrored"
    mean = sets[2].mean(0)

    def smoothed(x: torch.Tensor) -> list[torch.Tensor]:
        filtered = (gaussian_filter(x.numpy(), (0, 0, b, b), mode="nearest") for b in BLURS)
        return [x, *map(torch.from_numpy, filtered), *(mean + c * (x - mean) for c in CONTRASTS)]

    return _nearness(
        name, distances, smoothed, sets, ids, train_ids, rng, n_reference, n_neighbours
    )


def feature_nearness(
    reconstructions: ArrayLike,
    seen: ArrayLike,
    train: ArrayLike,
    ids: Sequence[str],
    train_ids: Sequence[str],
    rng: np.random.Generator,
    space: str,
    n_reference: int = 100,
    n_neighbours: int = N_NEIGHBOURS,
) -> Nearness:
    """Nearness in a feature space, e.g. that of CLIP: distance of the vectors scaled to length 1.

    Parameters
    ----------
    reconstructions, seen, train : arrays of shape (n, n_features)
    space : str, name of the features
    ids, train_ids, rng, n_reference, n_neighbours : see `pixel_nearness`
    """
    sets = []
    for values, name in ((reconstructions, "reconstructions"), (seen, "seen"), (train, "train")):
        x = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        norm = x.norm(dim=-1, keepdim=True)
        if x.ndim != 2 or not (torch.isfinite(x).all() and (norm > 0).all()):
            raise ValueError(f"{name}: expected finite features (n, n_features), no zero vector")
        sets.append(x / norm)

    def distances(queries: torch.Tensor) -> np.ndarray:
        return (2 - 2 * queries @ sets[2].T).clamp(min=0).sqrt().numpy()

    return _nearness(
        space, distances, lambda x: [x], sets, ids, train_ids, rng, n_reference, n_neighbours
    )


def audit_memorisation(
    nearness: Nearness, quantile: float = QUANTILE, strict: bool = True
) -> AuditFinding:
    """Are reconstructions nearer to a single training picture than honest pictures are?

    The limit of the ratio is the low quantile of honest pictures, for the smoothness at which it is
    lowest: the larger one of that of the seen test pictures and that of the training pictures left
    out (duplicates among training pictures make the latter small). Violated where a reconstruction
    lies below the limit of more *different* training pictures than 999 of 1000 honest sets of
    independent pictures do (many a reconstruction near one grey training picture is no evidence of
    many copies), or where a single one lies below half of the limit: that is no chance neighbour.

    Parameters
    ----------
    nearness : from `pixel_nearness` or `feature_nearness`
    quantile : float
    strict : bool, raise when violated

    Returns
    -------
    AuditFinding
        The statistic is the number of such training pictures per reconstruction. Items:
        reconstruction, training picture, ratio.
    """
    table = nearness.reconstructions
    limits = [
        float(np.quantile(r, quantile, axis=1).min()) for r in (nearness.train, nearness.seen)
    ]
    limit = max(limits)
    below = table[table["ratio"] < limit].sort_values("ratio", kind="stable")
    n, originals = len(table), below["nearest"].nunique()
    allowed = int(stats.binom.ppf(0.999, n, quantile))
    certain = (below["ratio"] < limit / 2).any()
    finding = AuditFinding(
        f"memorisation in {nearness.space}",
        f"training pictures with a reconstruction below ratio {limit:.2f}, per reconstruction",
        originals / n, allowed / n,
        f"{100 * quantile:g} % quantile of {nearness.train.shape[1]} training pictures left out "
        f"({limits[0]:.2f}) and of {nearness.seen.shape[1]} seen ones ({limits[1]:.2f}), share of "
        "999 in 1000 honest sets; or one ratio below half of it", n,
        VIOLATED if certain or originals > allowed else CLEAN,
        tuple(f"{r.item} ~ {r.nearest} ({r.ratio:.2f})" for r in below.itertuples()),
    )  # fmt: skip
    return judge(finding, strict)


def neighbour_ratio(distances: np.ndarray, n_neighbours: int) -> np.ndarray:
    """Distance to the nearest over the mean distance to the `n_neighbours` after it.

    Parameters
    ----------
    distances : array of shape (n, n_train); infinite entries are left out
    """
    nearest = np.sort(np.partition(distances, n_neighbours, axis=1)[:, : n_neighbours + 1], axis=1)
    further = nearest[:, 1:].mean(1)
    if not (np.isfinite(further).all() and (further > 0).all()):
        raise ValueError(
            f"{n_neighbours} neighbours are too many, or as many training pictures are the same"
        )
    return nearest[:, 0] / further


def _nearness(
    space, distances, smoothed, sets, ids, train_ids, rng, n_reference, n_neighbours
) -> Nearness:
    made, seen, train = sets
    if len(ids) != len(made) or len(train_ids) != len(train) or not len(made) or not len(seen):
        raise ValueError(
            f"{len(made)} reconstructions with {len(ids)} ids, {len(seen)} seen pictures, "
            f"{len(train)} training pictures with {len(train_ids)} ids: they must correspond"
        )
    if len(train) < 8:
        raise ValueError(f"{len(train)} training pictures: at least 8 are needed for neighbours")
    k = min(n_neighbours, len(train) // 4)
    drawn = np.sort(rng.choice(len(train), size=min(n_reference, len(train)), replace=False))
    to_made = distances(made)
    nearest = to_made.argmin(1)
    of_seen = [neighbour_ratio(distances(x), k) for x in smoothed(seen)]
    of_train = []
    for x in smoothed(train[torch.from_numpy(drawn)]):
        to_drawn = distances(x)
        to_drawn[np.arange(len(drawn)), drawn] = np.inf  # itself
        of_train.append(neighbour_ratio(to_drawn, k))
    table = pd.DataFrame(
        {
            "item": list(map(str, ids)),
            "nearest": [str(train_ids[j]) for j in nearest],
            "distance": to_made.min(1),
            "ratio": neighbour_ratio(to_made, k),
        }
    )
    return Nearness(space, table, np.stack(of_seen), np.stack(of_train))


def _reduce(pictures: np.ndarray, name: str) -> torch.Tensor:
    """Pictures in [0, 1] averaged to `SIDE` pixels, (n, 3, side, side) float32."""
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise ValueError(
            f"{name}: {pictures.dtype} of shape {pictures.shape}, expected uint8 of shape (n, "
            "height, width, 3)"
        )
    side = min(SIDE, *pictures.shape[1:3])
    parts = []
    for start in range(0, len(pictures), 256):  # the rest of a large set stays on the disk
        part = torch.from_numpy(np.array(pictures[start : start + 256]))
        parts.append(adaptive_avg_pool2d(part.permute(0, 3, 1, 2).float() / 255, side))
    return torch.cat(parts) if parts else torch.empty(0, 3, side, side)


def _shifted(
    queries: torch.Tensor, known: torch.Tensor, squares: torch.Tensor, shift: int
) -> np.ndarray:
    """Root mean squared distance of each query to each training picture, smallest over the moves."""
    size = queries.shape[2] - 2 * shift
    offsets = [(y, x) for y in range(2 * shift + 1) for x in range(2 * shift + 1)]
    moves = [(queries[:, :, y : y + size, x : x + size]).flatten(1) for y, x in offsets]
    mirrored = queries.flip(3)[:, :, shift : shift + size, shift : shift + size]
    moves.append(mirrored.flatten(1))
    best = torch.full((len(queries), len(known)), torch.inf)
    for moved in moves:
        distance = torch.addmm(squares, moved, known.T, alpha=-2)
        distance += (moved**2).sum(1)[:, None]
        torch.minimum(best, distance, out=best)
    return (best.clamp(min=0) / known.shape[1]).sqrt().numpy()
