"""Published EEG encoders, written anew from their descriptions, for the rows beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from sgdm_utils.decoding import encoders

# of the published kernels at 250 Hz: 25, 51 and 5 samples
KERNEL_S, POOL_S, STRIDE_S = 0.1, 0.204, 0.02


class FixedMontage(nn.Module):
    """An encoder that knows electrodes by their place in the array: what it refuses, and masks.

    Parameters
    ----------
    n_chans, n_times, sfreq : what the encoder is built for, Hz
    """

    def __init__(self, n_chans: int, n_times: int, sfreq: float) -> None:
        super().__init__()
        self.n_chans, self.n_times, self.sfreq = n_chans, n_times, sfreq

    def masked(self, eeg: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Epochs (batch, n_chans, n_times) with masked electrodes at zero.

        Raises
        ------
        ValueError
            Another number of channels or samples, or a mask of another shape.
        """
        encoders.check_rate(eeg, self.n_times, self.sfreq, None)
        if eeg.shape[1] != self.n_chans:
            raise ValueError(
                f"the encoder was built for {self.n_chans} channels, got {eeg.shape[1]}: it knows "
                "electrodes by their place in the array only"
            )
        encoders.check_mask(mask, *eeg.shape[:2])
        return eeg if mask is None else eeg * mask[..., None]


class NICEEncoder(FixedMontage):
    """Temporal convolution, average, spatial convolution over the cap, residual projection.

    The published sizes are in samples at 250 Hz: kernel 25, average over 51 with stride 5. At
    another rate they are scaled to the same durations (10, 20 and 2 samples at 100 Hz). Electrodes
    enter by their place in the array: another montage is another model, and there is no layer for
    subjects.

    Parameters
    ----------
    n_chans, n_outputs, n_times, chs_info, sfreq : braindecode's signature; `chs_info` is not used
    n_filters : int, filters of both convolutions and of the 1 x 1 convolution after them
    dropout : float
    merge_linear : bool
        Between temporal convolution and average lies nothing but a sum, so both are one convolution
        with a longer kernel and a stride. True computes it so: the same weights and numbers, several
        times faster, and not what the published code does.

    Notes
    -----
    `forward(eeg, subject, positions, mask)` has the call of `SGDMEncoder`; `subject` and `positions`
    are ignored, masked electrodes are set to zero.

    References
    ----------
    Song et al. (2024), Decoding natural images from EEG for object recognition, ICLR (NICE).
    """

    def __init__(
        self,
        n_chans: int,
        n_outputs: int,
        n_times: int,
        chs_info: Sequence[dict] | None = None,
        sfreq: float = 250.0,
        n_filters: int = 40,
        dropout: float = 0.5,
        merge_linear: bool = False,
    ) -> None:
        super().__init__(n_chans, n_times, sfreq)
        kernel, self.pool, self.stride = (
            max(1, round(seconds * sfreq)) for seconds in (KERNEL_S, POOL_S, STRIDE_S)
        )
        n_steps = (n_times - kernel + 1 - self.pool) // self.stride + 1
        if n_steps < 1:
            raise ValueError(
                f"{n_times} samples at {sfreq:g} Hz are shorter than a kernel of {kernel} and an "
                f"average over {self.pool}: this encoder needs {kernel + self.pool - 1} at least"
            )
        self.n_steps = n_steps
        self.merge_linear = merge_linear
        self.temporal = nn.Conv2d(1, n_filters, (1, kernel))
        self.after_time = nn.Sequential(nn.BatchNorm2d(n_filters), nn.ELU())
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_chans, 1))
        self.after_space = nn.Sequential(nn.BatchNorm2d(n_filters), nn.ELU(), nn.Dropout(dropout))
        self.pointwise = nn.Conv2d(n_filters, n_filters, 1)
        self.project = nn.Linear(n_filters * n_steps, n_outputs)
        self.residual = nn.Sequential(
            nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(n_outputs)

    def forward(
        self,
        eeg: torch.Tensor,
        subject: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`z_eeg` of shape (batch, n_outputs) for eeg (batch, n_chans, n_times).

        Raises
        ------
        ValueError
            Another number of channels or samples, or a mask of another shape.
        """
        z = self.project(self.features(self.masked(eeg, mask)).flatten(1))
        return self.norm(z + self.residual(z))

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        """What the convolutions make of epochs, (batch, n_filters, 1, n_steps)."""
        maps = self.after_time(self._filtered(eeg))
        return self.pointwise(self.after_space(self.spatial(maps)))

    def _filtered(self, eeg: torch.Tensor) -> torch.Tensor:
        """Temporal convolution and average, (batch, n_filters, n_chans, n_steps)."""
        if not self.merge_linear:
            return F.avg_pool2d(self.temporal(eeg[:, None]), (1, self.pool), (1, self.stride))
        window = torch.ones(1, 1, self.pool).to(eeg) / self.pool
        taps = F.conv1d(self.temporal.weight[:, :, 0], window, padding=self.pool - 1)[:, 0]
        frames = eeg.unfold(-1, taps.shape[1], self.stride)  # (batch, n_chans, n_steps, taps)
        return (frames @ taps.T + self.temporal.bias).permute(0, 3, 1, 2)
