"""What a picture may excite: pooled colours, structure, oriented energy, an embedding.

All of it is computed from pixels alone and differentiable in them, so that a likelihood of EEG given
features has a gradient in the picture. Each family is reduced to principal components that are
fitted on training pictures and keep their *natural* scale: coarse structure has the variance that it
has in pictures. (Components of unit variance treat the faintest detail as as probable a cause as
the outline of the object, and a regression then spends its data on detail.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sgdm_utils.errors import reading
from sgdm_utils.workflow.formats import read_json

#: Principal components of each family that are kept at most.
COMPONENTS = {"pixels": 120, "structure": 200, "orientation": 150, "embedding": 64}
_CELLS = {"pixels": 8, "structure": 16, "orientation": 8}  # per side, after pooling
_ANGLES = (0.0, 45.0, 90.0, 135.0)  # degrees
_BORDER = 2  # pixels that count as background
_CONTRAST = (0.20, 0.05)  # colour distance at which a pixel is half figure; width of the transition
_BATCH = 256

Embedder = Callable[[torch.Tensor], torch.Tensor]


class PictureFeatures:
    """Families of picture features, their principal components and their weights.

    Parameters
    ----------
    components : mapping of family to number of components
        Of 'pixels', 'structure', 'orientation', 'embedding'; see `COMPONENTS`.
    weights : mapping of family to float, optional
        Share of the prior variance that each family gets; default equal shares.
    embedder : callable, optional
        Tensor (n, 3, size, size) in [0, 1] to (n, d), differentiable; needed by 'embedding'. It is
        not saved with the features.

    Attributes
    ----------
    slices : dict of str to slice, columns of each family in the result

    Notes
    -----
    Over training pictures the squared length of a feature vector is 1 on average, so that the
    variance of a response has one meaning whatever the families are.
    """

    def __init__(
        self,
        components: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.components = dict(components or {k: COMPONENTS[k] for k in _CELLS})
        unknown = set(self.components) - set(COMPONENTS)
        if unknown or not self.components:
            raise ValueError(
                f"families {sorted(unknown) or 'none'}: choose from {', '.join(COMPONENTS)}"
            )
        if "embedding" in self.components and embedder is None:
            raise ValueError(
                "the family 'embedding' needs an embedder: a function of pictures (n, 3, size, "
                "size) in [0, 1], e.g. the study's CLIP"
            )
        self.embedder = embedder
        self.size = 0
        self._fitted: dict[str, dict[str, torch.Tensor]] = {}
        self.weights = self._checked_weights(weights)

    def fit(self, pictures: np.ndarray) -> PictureFeatures:
        """Principal components of training pictures.

        Parameters
        ----------
        pictures : uint8 array of shape (n, size, size, 3), training pictures only

        Raises
        ------
        ValueError
            Pictures of another form, or fewer of them than components.
        """
        self.fit_transform(pictures, np.arange(len(pictures)))
        return self

    def fit_transform(
        self, pictures: np.ndarray, fit_rows: np.ndarray, embeddings: np.ndarray | None = None
    ) -> np.ndarray:
        """`fit` on some pictures and `transform` of all, computed from the pixels once.

        Parameters
        ----------
        pictures : uint8 array of shape (n, size, size, 3)
        fit_rows : int array, training pictures
        embeddings : float array of shape (n, embed_dim), optional
            What `embedder` says of these pictures, where that is known already: it takes half of
            the time. The first of them are compared with it.

        Returns
        -------
        float64 array of shape (n, n_features)

        Raises
        ------
        ValueError
            Pictures of another form, fewer of them than components, embeddings of other pictures.
        """
        self.size = _as_tensor(pictures[:1]).shape[-1]
        if self.size % 16:
            raise ValueError(
                f"pictures have {self.size} pixels per side: a multiple of 16 is needed"
            )
        if len(fit_rows) <= max(self.components.values()):
            raise ValueError(
                f"{len(fit_rows)} training pictures, but {max(self.components.values())} components "
                "of one family are asked for: give more pictures (those that nobody was shown "
                "count as well) or ask for fewer components"
            )
        raw = self._raw_in_batches(pictures, embeddings)
        for family, of_all in raw.items():
            values = of_all[torch.as_tensor(fit_rows)]
            mean = values.mean(0)
            covariance = (values - mean).T @ (values - mean) / len(values)
            power, vectors = torch.linalg.eigh(covariance)
            keep = min(self.components[family], int((power > 1e-9 * power[-1]).sum()))
            basis = vectors.flip(1)[:, :keep]
            # the sign of an eigenvector is arbitrary: its largest entry is made positive
            largest = basis.abs().argmax(0)
            basis = basis * basis[largest, torch.arange(keep)].sign()
            scale = power.flip(0)[:keep].sum().sqrt()
            self._fitted[family] = {"mean": mean, "basis": basis / scale}
        return self._reduced(raw).numpy()

    @property
    def slices(self) -> dict[str, slice]:
        start, found = 0, {}
        for family, parts in self._fitted.items():
            stop = start + parts["basis"].shape[1]
            found[family] = slice(start, stop)
            start = stop
        return found

    @property
    def n_features(self) -> int:
        return sum(parts["basis"].shape[1] for parts in self._fitted.values())

    def reweighted(self, weights: Mapping[str, float]) -> PictureFeatures:
        """The same components with other shares of the prior variance."""
        other = PictureFeatures(self.components, weights, self.embedder)
        other.size, other._fitted = self.size, self._fitted
        return other

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of pictures, differentiable.

        Parameters
        ----------
        pictures : float tensor of shape (n, 3, size, size) in [0, 1]

        Returns
        -------
        tensor of shape (n, n_features), type and device of `pictures`
        """
        if not self._fitted:
            raise ValueError("these picture features have no components yet: call fit first")
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, self.size, self.size):
            raise ValueError(
                f"pictures have shape {tuple(pictures.shape)}, the features were fitted on (n, 3, "
                f"{self.size}, {self.size})"
            )
        return self._reduced(self._raw(pictures))

    @torch.no_grad()
    def transform(self, pictures: np.ndarray) -> np.ndarray:
        """Features of pictures (n, size, size, 3), uint8 or float in [0, 1]: (n, n_features) float64."""
        blocks = (pictures[i : i + _BATCH] for i in range(0, len(pictures), _BATCH))
        found = [self(_as_tensor(block)).double() for block in blocks]
        if not found:
            return np.empty((0, self.n_features))
        return torch.cat(found).numpy()

    def save(self, folder: str | Path) -> None:
        """Write `features.safetensors` and `features.json` to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{f}.{k}": v.contiguous() for f, p in self._fitted.items() for k, v in p.items()
        }
        save_file(tensors, folder / "features.safetensors")
        told = {"components": self.components, "weights": self.weights, "size": self.size}
        (folder / "features.json").write_text(json.dumps(told, indent=1))

    @classmethod
    def load(cls, folder: str | Path, embedder: Embedder | None = None) -> PictureFeatures:
        """Read what `save` wrote; the embedder has to be given again."""
        folder = Path(folder)
        told = read_json(folder / "features.json")
        with reading(folder / "features.json", "families of features", "Fit them again"):
            features = cls(told["components"], told["weights"], embedder)
            features.size = int(told["size"])
        path = folder / "features.safetensors"
        with reading(path, "features of the families in features.json", "Fit them again"):
            tensors = load_file(path)
            features._fitted = {
                f: {k: tensors[f"{f}.{k}"] for k in ("mean", "basis")} for f in told["components"]
            }
        return features

    def _checked_weights(self, weights: Mapping[str, float] | None) -> dict[str, float]:
        weights = dict(weights or dict.fromkeys(self.components, 1.0))
        if set(weights) != set(self.components):
            raise ValueError(
                f"weights for {sorted(weights)}, families are {sorted(self.components)}: give one each"
            )
        if min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise ValueError(f"weights {weights}: none negative, and not all zero")
        total = sum(weights.values())
        return {family: weights[family] / total for family in self.components}

    def _reduced(self, raw: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Principal components with the weights of their families, (n, n_features)."""
        parts = []
        for family, values in raw.items():
            fitted = {k: v.to(values) for k, v in self._fitted[family].items()}
            share = self.weights[family] ** 0.5
            parts.append((values - fitted["mean"]) @ fitted["basis"] * share)
        return torch.cat(parts, dim=1)

    def _raw(
        self, pictures: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Features before the principal components, each (n, dimension)."""
        made = {}
        for family in self.components:
            if family == "embedding" and embeddings is not None:
                values = embeddings
            elif family == "embedding":
                values = self.embedder(pictures).to(pictures)
            elif family == "pixels":
                values = F.adaptive_avg_pool2d(pictures, _CELLS["pixels"])
            elif family == "structure":
                values = F.adaptive_avg_pool2d(self.soft_structure(pictures), _CELLS["structure"])
            else:
                values = F.adaptive_avg_pool2d(oriented_energy(pictures), _CELLS["orientation"])
            made[family] = values.flatten(1)
        return made

    @torch.no_grad()
    def _raw_in_batches(
        self, pictures: np.ndarray, embeddings: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        known = None
        if embeddings is not None and "embedding" in self.components:
            known = torch.as_tensor(embeddings, dtype=torch.float32)
            some = self.embedder(_as_tensor(pictures[:8])).float().cpu()
            scale = some.abs().max()
            # a card rounds convolutions to a part in a thousand; other pictures differ by far more
            if len(known) != len(pictures) or (some - known[:8]).abs().max() > 0.02 * scale:
                raise ValueError(
                    "the embeddings are not those of these pictures by this embedder: give the "
                    "embedder's own, in the order of the pictures, or none"
                )
        blocks = [
            self._raw(
                _as_tensor(pictures[i : i + _BATCH]),
                None if known is None else known[i : i + _BATCH],
            )
            for i in range(0, len(pictures), _BATCH)
        ]
        return {family: torch.cat([b[family] for b in blocks]).double() for family in blocks[0]}

    def soft_structure(self, pictures: torch.Tensor) -> torch.Tensor:
        """Soft silhouette and edges, estimated from pixels.

        The colours of the border, continued as planes over the picture, are the background; how far
        a pixel is from it says how much it is figure.

        Parameters
        ----------
        pictures : tensor of shape (n, 3, size, size) in [0, 1]

        Returns
        -------
        tensor of shape (n, 2, size, size) in [0, 1]
        """
        n, _, size, _ = pictures.shape
        border, plane = _background(size)
        flat = pictures.flatten(2)
        ground = flat[:, :, border.to(pictures.device)] @ plane.to(pictures).T
        distance = ((flat - ground) ** 2).sum(1).add(1e-8).sqrt()
        half, width = _CONTRAST
        figure = ((distance - half) / width).sigmoid().view(n, 1, size, size)
        right = F.pad(figure.diff(dim=3), (0, 1))
        down = F.pad(figure.diff(dim=2), (0, 0, 0, 1))
        edges = (right**2 + down**2).add(1e-6).sqrt()
        return torch.cat([figure, edges], dim=1)


def components_for(
    n_pictures: int, families: Iterable[str] = _CELLS, n_beside: int = 0
) -> dict[str, int]:
    """`COMPONENTS` of some families, all reduced alike until they are fewer than the pictures.

    Parameters
    ----------
    n_pictures : int, pictures that the forward model will be fitted on
    families : iterable of str
    n_beside : int, features of another kind that need a place, too (`with_category`)
    """
    wanted = {family: COMPONENTS[family] for family in families}
    room = min(0.9 * n_pictures, n_pictures - n_beside)
    share = min(1.0, max(room, 0) / sum(wanted.values()))
    return {family: max(1, int(share * k)) for family, k in wanted.items()}


def oriented_energy(pictures: torch.Tensor) -> torch.Tensor:
    """Strength of luminance gradients at 0, 45, 90 and 135 degrees, at half resolution.

    Parameters
    ----------
    pictures : tensor of shape (n, 3, size, size)

    Returns
    -------
    tensor of shape (n, 4, size / 2, size / 2)
    """
    light = F.avg_pool2d(pictures, 2).mean(1, keepdim=True)
    padded = F.pad(light, (1, 1, 1, 1), mode="replicate")
    gx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    gy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    angles = torch.deg2rad(torch.tensor(_ANGLES, dtype=pictures.dtype, device=pictures.device))
    along = angles.cos().view(-1, 1, 1) * gx + angles.sin().view(-1, 1, 1) * gy
    return (along**2 + 1e-6).sqrt()  # rounded at zero, where an absolute value has no derivative


def _background(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Border pixels (n_border,) and the matrix (size^2, n_border) of the plane fitted to them."""
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    border = (~inside).flatten().nonzero()[:, 0]
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) / size] * 2, indexing="ij")
    design = torch.stack([torch.ones_like(x), x, y], dim=-1).view(-1, 3)
    return border, design @ torch.linalg.pinv(design[border])


def _as_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Pictures (n, size, size, 3), uint8 or float in [0, 1], as (n, 3, size, size) float32."""
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.shape[1] != pictures.shape[2]:
        raise ValueError(f"pictures have shape {pictures.shape}, expected (n, size, size, 3)")
    scale = np.float32(255 if pictures.dtype == np.uint8 else 1)
    values = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / scale
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1:
        raise ValueError(
            "pictures hold values outside [0, 1] (as floats) or NaN: uint8 is 0 to 255"
        )
    return torch.from_numpy(values)
