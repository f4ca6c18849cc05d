"""What an EEG encoder refuses, in words: one function for each part of its input."""

from __future__ import annotations

import torch


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
