"""The agreed suite as a whole: which metrics there are, and what each needs.

`full_suite` gives one object that is fed with batches and answers with a row for every metric of the
protocol. Where the weights of a metric are not on this machine, its row says so and holds no number;
a network of the study's own can stand in, under a name of its own (`two_way_clip_tiny`).

Examples
--------
>>> suite = full_suite({"alexnet_2": path, "alexnet_5": path}, device="cuda")
>>> for pred, target in batches:  # float RGB in [0, 1]
...     suite.update(pred, target)
>>> suite.compute()["ssim"], suite.compute()["two_way_clip_vit_l_14"]
(0.3481, 'weights not available')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sgdm_utils.errors import WeightsNotAvailable
from sgdm_utils.metrics import tables
from sgdm_utils.metrics.networks import Precision, Trunk, find_weights, load_trunk
from sgdm_utils.metrics.protocol import LPIPS_TRUNKS, TRUNKS, Result, TooFewPictures

if TYPE_CHECKING:
    from sgdm_utils.metrics.classes import SuiteMetric

NO_WEIGHTS = "weights not available"
NO_CAPTIONS = "no captions given"
N_WAY = 50

Weights = Mapping[str, str | Path] | str | Path | None


@dataclass(frozen=True)
class MetricSpec:
    """One row of the suite.

    Attributes
    ----------
    name : str, as in the tables
    group : str, what it is computed with: "pixels", "lpips_alex", "lpips_vgg", or the name of a trunk
    make : callable, what `load_group` returns for this group -> metric
    needs_captions : bool
    """

    name: str
    group: str
    make: Callable[..., SuiteMetric]
    needs_captions: bool = False


def _of_pixels(name: str) -> MetricSpec:
    def make(_: None) -> SuiteMetric:
        from sgdm_utils.metrics import classes

        return getattr(classes, name)()

    return MetricSpec(name.lower(), "pixels", make)


def _of_features(name: str, trunk: str, kind: str, *arguments: int, **more: bool) -> MetricSpec:
    """A metric whose class is imported when it is made: torchmetrics alone takes seconds."""

    def make(network: nn.Module | None) -> SuiteMetric:
        from sgdm_utils.metrics import features

        return getattr(features, kind)(network, *arguments)

    return MetricSpec(f"{name}_{trunk}", trunk, make, **more)


def _identification(trunk: str) -> list[MetricSpec]:
    return [
        _of_features("two_way", trunk, "TwoWay"),
        _of_features(f"top1_of_{N_WAY}", trunk, "NWayTopK", N_WAY, 1),
    ]


def _clip_text(trunk: str) -> MetricSpec:
    return _of_features("clip_text", trunk, "CLIPText", needs_captions=True)


#: Every metric of the protocol, in the order of the tables. FID and KID come with torchvision's
#: Inception, and their names say so: the values are not on the scale of the original FID.
METRICS: tuple[MetricSpec, ...] = (
    _of_pixels("PixCorr"),
    _of_pixels("SSIM"),
    _of_pixels("MSE"),
    MetricSpec("lpips_alex", "lpips_alex", lambda lpips: lpips),
    MetricSpec("lpips_vgg", "lpips_vgg", lambda lpips: lpips),
    _of_features("two_way", "alexnet_2", "TwoWay"),
    _of_features("two_way", "alexnet_5", "TwoWay"),
    _of_features("two_way", "inception_v3", "TwoWay"),
    _of_features("fid_torchvision", "inception_v3", "FID"),
    _of_features("kid_torchvision", "inception_v3", "KID"),
    *_identification("clip_vit_l_14"),
    _clip_text("clip_vit_l_14"),
    _of_features("correlation_distance", "efficientnet_b1", "CorrelationDistance"),
    _of_features("correlation_distance", "swav_resnet50", "CorrelationDistance"),
)


class Suite:
    """Metrics that are fed together; see `full_suite`.

    Attributes
    ----------
    metrics : MetricCollection, those that can be computed; an empty ModuleDict where none can
    missing : dict of str to str, why the others cannot be
    precisions : dict of str to str, "bfloat16" for the metrics whose network runs in it
    """

    def __init__(
        self,
        order: Sequence[str],
        collection: nn.ModuleDict,
        missing: Mapping[str, str],
        precisions: Mapping[str, Precision],
    ) -> None:
        self._order, self.metrics, self.missing = list(order), collection, dict(missing)
        self.precisions = dict(precisions)

    def update(
        self, pred: Tensor, target: Tensor, captions: Sequence[str] | None = None
    ) -> None:  # fmt: skip
        """Take in a batch; `captions` of the targets are needed for text scores only."""
        if len(self.metrics):
            self.metrics.update(pred, target, captions=captions)

    def results(self) -> dict[str, Result | str]:
        """For each metric its result, or the reason why there is none."""
        found = {}
        for name in self._order:
            try:
                found[name] = self.missing.get(name) or self.metrics[name].result()
            except TooFewPictures as error:
                found[name] = f"needs {error.needed} pictures"
        return found

    def compute(self) -> dict[str, float | str]:
        """For each metric its value, or the reason why there is none."""
        return {k: r if isinstance(r, str) else r.value for k, r in self.results().items()}

    def rows(self, **cells: object) -> list[dict[str, object]]:
        """Rows of the long table; `cells` as for `result_row`."""
        return [
            result_row(row_name(name, self.precisions.get(name)), result, **cells)
            for name, result in self.results().items()
        ]

    def reset(self) -> None:
        """Forget all pictures."""
        if len(self.metrics):
            self.metrics.reset()

    def to(self, device: str | torch.device) -> Suite:
        """Move networks and states."""
        self.metrics.to(device)
        return self


def full_suite(
    weights: Weights = None,
    device: str | torch.device = "cpu",
    substitutes: Mapping[str, Trunk] | None = None,
    names: Sequence[str] | None = None,
    captions: bool = False,
    precision: Precision = "float32",
) -> Suite:
    """All metrics of the protocol, with the weights that this machine has.

    Parameters
    ----------
    weights : mapping of trunk names ("lpips_alex" and "lpips_vgg" too) to paths, or a folder of the
        published files, optional. The caches of torch and open_clip are looked in as well.
    device : where the networks go; together they take about 2.5 GB
    substitutes : mapping of names to trunks, optional
        For each, identification, correlation distance and (for a CLIP) the text score are added
        under its name. The names of the published trunks are refused.
    names : sequence of str, optional, only these metrics
    captions : bool
        Captions will be given to `update`.
    precision : "float32" or "bfloat16"; see `networks.Trunk`

    Raises
    ------
    ValueError
        Unknown names; weights that are damaged or of another network.
    FileNotFoundError
        A path that does not exist.
    """
    specs = select_metrics(names, substitutes)
    made: dict[str, SuiteMetric] = {}
    missing: dict[str, str] = {}
    precisions: dict[str, Precision] = {}
    groups: dict[str, list[str]] = {}
    loaded: dict[str, object] = {}
    for spec in specs:
        if spec.needs_captions and not captions:
            missing[spec.name] = NO_CAPTIONS
            continue
        try:
            if spec.group not in loaded:
                given = (substitutes or {}).get(spec.group)
                loaded[spec.group] = given or load_group(
                    spec.group, weights, device, precision, captions
                )
        except WeightsNotAvailable:
            missing[spec.name] = NO_WEIGHTS
            continue
        made[spec.name] = spec.make(loaded[spec.group])
        precisions[spec.name] = getattr(loaded[spec.group], "precision", "float32")
        # metrics of one trunk share their states, so that pictures pass through it once
        shared = hasattr(made[spec.name], "pred_features")
        groups.setdefault(spec.group if shared else spec.name, []).append(spec.name)
    collection = nn.ModuleDict()
    if made:
        from torchmetrics import MetricCollection

        collection = MetricCollection(made, compute_groups=list(groups.values()))
    return Suite([s.name for s in specs], collection.to(device), missing, precisions)


def select_metrics(
    names: Sequence[str] | None = None, substitutes: Mapping[str, Trunk] | None = None
) -> list[MetricSpec]:
    """The metrics of these names (all by default), with those of the substitutes.

    Raises
    ------
    ValueError
        Names that are unknown, or a substitute that bears the name of a published trunk.
    """
    specs = list(METRICS)
    for name, trunk in (substitutes or {}).items():
        if name in {*TRUNKS, *LPIPS_TRUNKS, "pixels"}:
            raise ValueError(f"a substitute cannot be called {name}: that is a published network")
        specs += _identification(name)
        specs.append(_of_features("correlation_distance", name, "CorrelationDistance"))
        if trunk.has_text:
            specs.append(_clip_text(name))
    if names is None:
        return specs
    unknown = sorted(set(names) - {spec.name for spec in specs})
    if unknown:
        known = ", ".join(spec.name for spec in specs)
        raise ValueError(f"there is no metric {', '.join(unknown)}; there is: {known}")
    return [spec for spec in specs if spec.name in set(names)]


def weights_of(group: str, weights: Weights) -> str | Path | None:
    """Where the weights of a group are to be looked for first."""
    if isinstance(weights, Mapping):
        unknown = sorted(weights.keys() - TRUNKS.keys() - LPIPS_TRUNKS.keys())
        if unknown:
            known = ", ".join([*TRUNKS, *LPIPS_TRUNKS])
            raise ValueError(f"weights of {', '.join(unknown)}: there is no such trunk; {known}")
        return weights.get(group)
    if weights is not None and not Path(weights).is_dir():
        raise FileNotFoundError(f"weights: there is no folder {weights}")
    return weights


def load_group(
    group: str,
    weights: Weights = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    text: bool = False,
) -> nn.Module | None:
    """What the metrics of a group are made from: a trunk, an `LPIPS`, or None for pixels.

    Raises
    ------
    WeightsNotAvailable, FileNotFoundError, ValueError
    """
    path = weights_of(group, weights)
    if group == "pixels":
        return None
    if group in LPIPS_TRUNKS:
        find_weights(LPIPS_TRUNKS[group], path)  # what is missing is said before torchmetrics loads
        from sgdm_utils.metrics.classes import LPIPS

        return LPIPS(group.removeprefix("lpips_"), path, precision).to(device)
    return load_trunk(group, path, device, precision, text)


def row_name(name: str, precision: str | None) -> str:
    """Name of a metric in a table: 16 bits give other numbers, so they are named."""
    return f"{name}_bfloat16" if precision == "bfloat16" else name


def result_row(
    name: str, result: Result | str, resampling_seed: int = 0, **cells: object
) -> dict[str, object]:
    """Row of the long table, with a bootstrap interval over pictures where there are scores of them.

    Parameters
    ----------
    result : Result, or the reason why there is none
    resampling_seed : int, of the bootstrap
    **cells : study, subject, seed, model, condition, as for `tables.make_row`
    """
    if isinstance(result, str):
        return tables.make_row(metric=name, n=0, note=result, **cells)
    cells |= {"metric": name, "chance": result.chance}
    if len(result.items) < 2:
        return tables.make_row(value=result.value, n=result.n, **cells)
    rng = np.random.default_rng(resampling_seed)
    return tables.summarise(np.array(result.items), rng=rng, **cells)
