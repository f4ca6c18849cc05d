"""EEG encoders. Electrodes enter by position, so a montage is an input and not another model.

What an EEG encoder refuses, in words: one function for each part of its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sgdm_utils.datasets.electrodes import electrode_positions

OWN_HZ = 100.0  # rate of the temporal convolutions; the evoked answer lies well below half of it
GROUP_WIDTH = 16  # channels that a temporal convolution mixes


def resampling_matrix(n_times: int, sfreq: float, new_sfreq: float = OWN_HZ) -> torch.Tensor:
    """Bring epochs to another rate by `eeg @ matrix`.

    Each new sample is a weighted mean of the old ones around it, with weights that fall linearly to
    zero within one step of the slower rate: linear interpolation upwards; downwards a low-pass that
    halves the amplitude at 0.44 of the new rate. Whatever the old rate, the first sample stays where
    it is.

    Parameters
    ----------
    n_times, sfreq : samples of an epoch and their rate in Hz
    new_sfreq : float, Hz

    Returns
    -------
    float32 tensor of shape (n_times, ceil(n_times * new_sfreq / sfreq)), columns sum to one
    """
    if not np.isfinite(sfreq) or sfreq <= 0:
        raise ValueError(f"sfreq={sfreq!r} is no sampling rate: give it in Hz")
    n_new = int(np.ceil(n_times * new_sfreq / sfreq - 1e-9))
    old, new = np.arange(n_times) / sfreq, np.arange(n_new) / new_sfreq
    weights = 1 - np.abs(old[:, None] - new) * min(sfreq, new_sfreq)
    weights = np.clip(weights, 0.0, None)
    return torch.tensor(weights / weights.sum(0), dtype=torch.float32)


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


class CoarseDropout(nn.Module):
    """Dropout whose rate is a multiple of 1/256, so that a random byte decides about a value.

    On a processor, drawing a random number for each of many values takes longer than what is
    done with them; eight bytes of one number take an eighth. Kept values are divided by the share
    that is kept, as in any dropout. Other devices draw in parallel and use PyTorch's own.

    Parameters
    ----------
    p : float in [0, 1)
        Share of values that become 0, rounded to the nearest multiple of 1/256, at most 255/256.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}: the share of values to drop is at least 0 and below 1")
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        kept = max(1, round(256 * (1 - self.p)))
        if not self.training or kept == 256:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, 1 - kept / 256)
        numbers = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        mask = numbers.view(torch.uint8)[: x.numel()].view(x.shape) < kept
        return x * mask.to(x.dtype).mul_(256 / kept)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class TemporalBlock(nn.Module):
    """Residual temporal convolution, normalised over channels.

    Channels are convolved in groups of `GROUP_WIDTH`, and the pointwise map mixes the groups; a
    width that is no multiple of that is convolved in one group.
    """

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        groups = width // GROUP_WIDTH if width % GROUP_WIDTH == 0 else 1
        self.net = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation, groups=groups),
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
    convolutions run on `n_virtual` rows whatever the montage. Attention and subject layer are
    multiplied with each other before they meet the signal, which is then read once. Epochs at
    another rate than `OWN_HZ` are brought to it first, so that the convolutions mean the same
    durations: weights do not depend on the sampling rate, and what lies above 50 Hz is not used.

    Parameters
    ----------
    n_chans, n_outputs, n_times, chs_info, sfreq : braindecode's signature; `n_outputs` is the
        dimension of `z_eeg`, `chs_info` gives the default electrode positions, `sfreq` is in Hz
    n_subjects : int, subjects with a layer of their own; subject -1 uses their mean
    n_virtual, width : int, virtual sensors and feature channels (a multiple of 8)
    dropout : float, on features and before the projection
    bottleneck : int
        Dimensions between features and `z_eeg` where `n_outputs` is more: answers to pictures
        differ in fewer directions than the embeddings of the pictures do.
    positions : array of shape (n_chans, 3), unit vectors, in place of `chs_info`

    Attributes
    ----------
    n_features_times : int, steps of the features, one for 20 ms

    Notes
    -----
    `forward(eeg, subject, positions)` maps float32 (batch, n_chans, n_times) to `z_eeg` of shape
    (batch, n_outputs); `features` stops before the projection, `tokens` pools the features over
    stretches of time. All three take the arguments that `features` describes.
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
        width: int = 48,
        dropout: float = 0.3,
        positions: np.ndarray | None = None,
        bottleneck: int = 128,
    ) -> None:
        super().__init__()
        if positions is None:
            if chs_info is None:
                raise ValueError("give chs_info (MNE) or positions: electrodes enter by position")
            positions = electrode_positions(chs_info)
        if len(positions) != n_chans:
            raise ValueError(f"{len(positions)} electrode positions for n_chans={n_chans}")
        default = torch.as_tensor(np.asarray(positions), dtype=torch.float32)
        check_positions(default, n_chans)
        self.n_times, self.sfreq, self.n_subjects = n_times, sfreq, n_subjects
        self.register_buffer("default_positions", default)
        self.spatial = SpatialAttention(n_virtual)
        # one linear map per subject, starting at the identity: anatomy differs, timing hardly
        self.subject = nn.Parameter(torch.eye(n_virtual).repeat(n_subjects, 1, 1))
        resample = None if sfreq == OWN_HZ else resampling_matrix(n_times, sfreq)
        self.register_buffer("resample", resample, persistent=False)
        self.stem = nn.Conv1d(n_virtual, width, 7, stride=2, padding=3)
        self.blocks = nn.Sequential(
            TemporalBlock(width, 5, 1, dropout), TemporalBlock(width, 5, 2, dropout)
        )
        own_times = n_times if resample is None else resample.shape[1]
        self.n_features_times = (own_times + 1) // 2
        n_features = width * self.n_features_times
        self.norm = nn.LayerNorm(n_features)
        if bottleneck < 1:
            raise ValueError(f"bottleneck is {bottleneck}: at least one dimension has to be left")
        layers = [nn.Linear(n_features, n_outputs)]
        if bottleneck < n_outputs:
            layers = [
                nn.Linear(n_features, bottleneck, bias=False),
                nn.Linear(bottleneck, n_outputs),
            ]
        self.project = nn.Sequential(CoarseDropout(dropout), *layers)

    def mixing(
        self, subject: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Electrodes to virtual sensors, attention and subject layer in one matrix.

        Returns
        -------
        tensor of shape (batch, n_virtual, n_chans)
            A view of one matrix where all items have the same.
        """
        weights = self.spatial.weights(positions, mask)
        table = torch.cat([self.subject, self.subject.mean(0, keepdim=True)])
        row = subject.long() % len(table)  # -1 is the last row
        if weights.dim() == 3:
            return table.index_select(0, row) @ weights
        kinds, which = row.unique(return_inverse=True)
        mixed = table.index_select(0, kinds) @ weights
        if len(kinds) == 1:
            return mixed.expand(len(subject), -1, -1)
        return mixed.index_select(0, which)

    def features(
        self,
        eeg: torch.Tensor,
        subject: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        *,
        sfreq: float | None = None,
    ) -> torch.Tensor:
        """Feature maps before the projection.

        Parameters
        ----------
        eeg : tensor of shape (batch, n_chans, n_times)
        subject : long tensor of shape (batch,), -1 for somebody the model has not seen
        positions : tensor of shape (n_chans, 3) or (batch, n_chans, 3), unit vectors
        mask : bool tensor of shape (batch, n_chans) or (n_chans,), False for electrodes to leave
            out; what they hold does not matter, NaN neither
        sfreq : float, Hz, sampling rate of `eeg`, to be compared with the encoder's own

        Returns
        -------
        tensor of shape (batch, width, n_features_times)

        Raises
        ------
        ValueError
            Another number of samples or sampling rate than the encoder was built for, an unknown
            subject, positions or mask of another shape, no item, an item without electrode, NaN.
        """
        positions = self.default_positions if positions is None else positions
        check_rate(eeg, self.n_times, self.sfreq, sfreq)
        check_positions(positions, eeg.shape[1], len(eeg))
        check_subject(subject, len(eeg), self.n_subjects)
        check_mask(mask, *eeg.shape[:2])
        eeg = eeg.to(self.subject.dtype)
        mixing = self.mixing(subject, positions, mask)
        stem = self.stem(mixing @ self._own_rate(eeg))
        # NaN reaches every later number, so it can be looked for where there are fewest of them
        if not bool(stem.detach().sum(dtype=torch.float32).isfinite()):
            if mask is not None:
                eeg = eeg.masked_fill(~mask[..., None], 0.0)
            refuse_nan(eeg)
            stem = self.stem(mixing @ self._own_rate(eeg))
        return self.blocks(stem)

    def _own_rate(self, eeg: torch.Tensor, columns: int = 20) -> torch.Tensor:
        """Epochs at `OWN_HZ`; the matrix is a band, so a few of its columns need few samples."""
        if self.resample is None:
            return eeg
        parts = []
        for block in self.resample.split(columns, dim=1):
            used = block.any(1).nonzero()
            low, high = int(used[0]), int(used[-1]) + 1
            parts.append(eeg[..., low:high] @ block[low:high])
        return torch.cat(parts, dim=-1)

    def tokens(
        self,
        eeg: torch.Tensor,
        subject: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        *,
        n_tokens: int = 8,
        sfreq: float | None = None,
    ) -> torch.Tensor:
        """Feature maps averaged over `n_tokens` equal stretches of time, (batch, n_tokens, width).

        Raises
        ------
        ValueError
            More tokens than there are steps of time, and what `features` refuses.
        """
        if not 1 <= n_tokens <= self.n_features_times:
            raise ValueError(
                f"n_tokens={n_tokens}: the features have {self.n_features_times} steps of time, "
                "ask for 1 token at least and for that many at most"
            )
        maps = self.features(eeg, subject, positions, mask, sfreq=sfreq)
        return F.adaptive_avg_pool1d(maps, n_tokens).transpose(1, 2)

    def forward(
        self,
        eeg: torch.Tensor,
        subject: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        *,
        sfreq: float | None = None,
    ) -> torch.Tensor:
        """`z_eeg` of shape (batch, n_outputs)."""
        maps = self.features(eeg, subject, positions, mask, sfreq=sfreq)
        return self.project(self.norm(maps.flatten(1)))


def check_rate(eeg: torch.Tensor, n_times: int, own_sfreq: float, sfreq: float | None) -> None:
    """Refuse an empty batch, and epochs that are not the encoder's in shape, length or rate.

    Parameters
    ----------
    eeg : tensor, expected to have shape (batch, n_chans, n_times)
    n_times, own_sfreq : samples and Hz that the encoder was built for
    sfreq : float or None, Hz of `eeg` if the caller knows it

    Raises
    ------
    ValueError
    """
    if eeg.dim() != 3 or not eeg.is_floating_point():
        raise ValueError(
            f"eeg is {eeg.dtype} of shape {tuple(eeg.shape)}, expected floating point of shape "
            "(batch, n_chans, n_times)"
        )
    if sfreq is not None and not abs(sfreq - own_sfreq) <= 1e-3 * own_sfreq:
        raise ValueError(
            f"the encoder was built for {own_sfreq:g} Hz and the EEG has {sfreq:g} Hz: resample it, "
            "or train an encoder at that rate"
        )
    if eeg.shape[-1] != n_times:
        raise ValueError(
            f"the encoder was built for {n_times} samples at {own_sfreq:g} Hz, got {eeg.shape[-1]}: "
            "cut the same window at the same rate"
        )
    if not len(eeg):
        raise ValueError("the batch is empty: there is no item to encode")


def check_positions(positions: torch.Tensor, n_chans: int, n_items: int | None = None) -> None:
    """Refuse positions of another shape than (n_chans, 3) or (n_items, n_chans, 3), and NaN.

    Raises
    ------
    ValueError
        Names the channels without a direction.
    """
    allowed = [(n_chans, 3)] + [(n_items, n_chans, 3)] * (n_items is not None)
    if tuple(positions.shape) not in allowed:
        raise ValueError(
            f"{n_chans} channels but positions of shape {tuple(positions.shape)}, expected "
            + " or ".join(map(str, allowed))
        )
    lost = ~positions.isfinite().all(-1) | (positions == 0).all(-1)
    if bool(lost.any()):
        channels = lost.nonzero()[:, -1].unique()
        raise ValueError(
            f"no electrode position for channel {_some(channels)}: give each channel a direction "
            "(electrode_positions does) or leave it out of the EEG"
        )


def check_subject(subject: torch.Tensor, n_items: int, n_subjects: int) -> None:
    """Refuse anything but one integer from -1 to n_subjects - 1 for each item.

    Raises
    ------
    ValueError
    """
    whole = not (subject.is_floating_point() or subject.is_complex())
    if subject.shape != (n_items,) or not whole or subject.dtype == torch.bool:
        raise ValueError(
            f"subject is {subject.dtype} of shape {tuple(subject.shape)}, expected one integer for "
            f"each of the {n_items} items"
        )
    low, high = (int(s) for s in subject.aminmax())
    if high >= n_subjects or low < -1:
        raise ValueError(
            f"subject {high if high >= n_subjects else low} is unknown (0..{n_subjects - 1}); "
            "use -1 for somebody the encoder has not seen"
        )


def check_mask(mask: torch.Tensor | None, n_items: int, n_chans: int) -> None:
    """Refuse masks of another shape or type, and items of which no electrode is left.

    Raises
    ------
    ValueError
        Names the items without electrode.
    """
    if mask is None:
        return
    if mask.shape not in ((n_items, n_chans), (n_chans,)) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected bool of shape "
            f"({n_items}, {n_chans}) or ({n_chans},), True for electrodes to use"
        )
    empty = ~mask.any(-1)
    if bool(empty.any()):
        who = f" of item {_some(empty.nonzero()[:, 0])}" if mask.dim() == 2 else ""
        raise ValueError(f"every electrode{who} is masked: there is nothing left to encode")


def refuse_nan(eeg: torch.Tensor) -> None:
    """Refuse EEG with NaN or infinity, naming items and channels.

    Raises
    ------
    ValueError
    """
    bad = ~eeg.isfinite().all(-1)
    if bool(bad.any()):
        items, channels = bad.nonzero().unbind(1)
        raise ValueError(
            f"NaN or infinite EEG in item {_some(items.unique())}, channel "
            f"{_some(channels.unique())}: mask these electrodes or drop these epochs"
        )


def _some(numbers: torch.Tensor, most: int = 8) -> str:
    listed = ", ".join(str(int(n)) for n in numbers[:most])
    return listed + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
