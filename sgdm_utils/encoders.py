"""EEG encoders. Electrodes enter by position, so a montage is an input and not another model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


def electrode_positions(chs_info: Sequence[dict]) -> np.ndarray:
    """Directions of the electrodes from the centre of the head.

    Parameters
    ----------
    chs_info : sequence of MNE channel dictionaries (`info["chs"]`), `loc[:3]` in metres

    Returns
    -------
    float32 array of shape (n_chans, 3), unit vectors

    Raises
    ------
    ValueError
        Names the channels without a position.
    """
    loc = np.array([ch["loc"][:3] for ch in chs_info], dtype=np.float64)
    lost = ~np.isfinite(loc).all(1) | (np.abs(loc).sum(1) == 0)
    if lost.any():
        names = [ch["ch_name"] for ch, out in zip(chs_info, lost, strict=True) if out]
        raise ValueError(
            f"no electrode position for {', '.join(names)}: set a montage "
            "(raw.set_montage('standard_1005')) or drop these channels"
        )
    centred = loc - np.array([0.0, 0.016, 0.045])  # centre of the sphere of the standard positions
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


class SpatialAttention(nn.Module):
    """Attention of learned virtual sensors over electrodes, by position alone.

    Every virtual sensor is a weighted mean of the electrodes; the weights are a softmax over a
    smooth function of the electrode's direction. The weights do not depend on the signal, so the
    layer is linear in the EEG and works for any number of electrodes.

    Parameters
    ----------
    n_virtual : int, number of virtual sensors
    n_frequencies : int, Fourier frequencies per axis of the position code

    References
    ----------
    Défossez et al. (2023), Nature Machine Intelligence 5:1097 (spatial attention over sensors).
    """

    def __init__(self, n_virtual: int, n_frequencies: int = 4) -> None:
        super().__init__()
        frequencies = torch.arange(1, n_frequencies + 1).float() * torch.pi / 2
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.query = nn.Linear(3 + 6 * n_frequencies, n_virtual, bias=False)
        centres = nn.functional.normalize(torch.randn(n_virtual, 3), dim=1)
        self.centre = nn.Parameter(centres)  # where a virtual sensor starts out on the scalp
        self.log_sharpness = nn.Parameter(torch.full((n_virtual, 1), 2.7))
        nn.init.normal_(self.query.weight, std=0.02)

    def weights(self, positions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attention weights of shape (..., n_virtual, n_chans) for positions (..., n_chans, 3)."""
        phase = positions[..., None] * self.frequencies
        code = torch.cat([positions, phase.sin().flatten(-2), phase.cos().flatten(-2)], dim=-1)
        near = positions @ nn.functional.normalize(self.centre, dim=1).T
        score = (near * self.log_sharpness.exp().T + self.query(code)).transpose(-1, -2)
        if mask is not None:
            score = score.masked_fill(~mask[..., None, :], float("-inf"))
        return score.softmax(dim=-1)

    def forward(
        self, eeg: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, n_chans, n_times) -> (batch, n_virtual, n_times)."""
        return self.weights(positions, mask) @ eeg


class TemporalBlock(nn.Module):
    """Residual temporal convolution, normalised over channels."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.net = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation),
            nn.GELU(),
            nn.Dropout1d(dropout),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)


class SGDMEncoder(nn.Module):
    """Spatial attention, subject layer, temporal convolutions, projection.

    The paper convolves in time first and attends over electrodes second. The attention here is
    linear in the signal, so both orders can express the same maps, and attending first makes the
    convolutions run on `n_virtual` rows whatever the montage.

    Parameters
    ----------
    n_chans, n_outputs, n_times, chs_info, sfreq : braindecode's signature; `n_outputs` is the
        dimension of `z_eeg`, `chs_info` gives the default electrode positions
    n_subjects : int, subjects with a layer of their own; subject -1 uses their mean
    n_virtual, width : int, virtual sensors and feature channels
    dropout : float, on features and before the projection

    Notes
    -----
    `forward(eeg, subject, positions)` maps float32 (batch, n_chans, n_times) to `z_eeg` of shape
    (batch, n_outputs); `features` stops before the projection, (batch, width, n_times // 2).
    """

    def __init__(
        self,
        n_chans: int,
        n_outputs: int,
        n_times: int,
        chs_info: Sequence[dict] | None = None,
        sfreq: float = 100.0,
        n_subjects: int = 1,
        n_virtual: int = 64,
        width: int = 64,
        dropout: float = 0.3,
        positions: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if positions is None:
            if chs_info is None:
                raise ValueError("give chs_info (MNE) or positions: electrodes enter by position")
            positions = electrode_positions(chs_info)
        if len(positions) != n_chans:
            raise ValueError(f"{len(positions)} electrode positions for n_chans={n_chans}")
        self.n_times, self.sfreq, self.n_subjects = n_times, sfreq, n_subjects
        default = torch.as_tensor(np.asarray(positions), dtype=torch.float32)
        self.register_buffer("default_positions", default)
        self.spatial = SpatialAttention(n_virtual)
        # one linear map per subject, starting at the identity: anatomy differs, timing hardly
        self.subject = nn.Parameter(torch.eye(n_virtual).repeat(n_subjects, 1, 1))
        self.stem = nn.Conv1d(n_virtual, width, 7, stride=2, padding=3)
        self.blocks = nn.Sequential(
            TemporalBlock(width, 5, 1, dropout), TemporalBlock(width, 5, 2, dropout)
        )
        n_features = width * ((n_times + 1) // 2)
        self.norm = nn.LayerNorm(n_features)
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(n_features, n_outputs))

    def features(
        self,
        eeg: torch.Tensor,
        subject: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feature maps before the projection.

        Parameters
        ----------
        eeg : tensor of shape (batch, n_chans, n_times)
        subject : long tensor of shape (batch,), -1 for somebody the model has not seen
        positions : tensor of shape (n_chans, 3) or (batch, n_chans, 3), unit vectors
        mask : bool tensor of shape (batch, n_chans), False for electrodes to leave out

        Returns
        -------
        tensor of shape (batch, width, ceil(n_times / 2))
        """
        if eeg.shape[-1] != self.n_times:
            raise ValueError(
                f"the encoder was built for {self.n_times} samples at {self.sfreq:g} Hz, "
                f"got {eeg.shape[-1]}"
            )
        positions = self.default_positions if positions is None else positions
        if positions.shape[-2] != eeg.shape[-2]:
            raise ValueError(f"{eeg.shape[-2]} channels but {positions.shape[-2]} positions")
        if int(subject.max()) >= self.n_subjects:
            raise ValueError(
                f"subject {int(subject.max())} is unknown (0..{self.n_subjects - 1}); use -1"
            )
        table = torch.cat([self.subject, self.subject.mean(0, keepdim=True)])
        virtual = table[subject] @ self.spatial(eeg, positions, mask)
        return self.blocks(self.stem(virtual))

    def forward(
        self,
        eeg: torch.Tensor,
        subject: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`z_eeg` of shape (batch, n_outputs)."""
        return self.project(self.norm(self.features(eeg, subject, positions, mask).flatten(1)))
