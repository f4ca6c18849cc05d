"""Published EEG decoders under one call: written anew from their descriptions, or braindecode's.

`build` gives any of `NAMES` with the call of `SGDMEncoder`, so that one recipe trains all of them.
Networks of braindecode need the extra ``baselines``; without it `available` leaves them out.

References
----------
Li et al. (2024), NeurIPS, arXiv:2403.07721 (ATM-S). Kneeland et al. (2026), arXiv:2602.10361
(ENIGMA). Wu et al. (2025), CVPR, arXiv:2503.04207 (UBP). Lawhern et al. (2018), J. Neural Eng. 15
(EEGNet). Schirrmeister et al. (2017), Hum. Brain Mapp. 38 (ShallowFBCSP, Deep4). Song et al. (2023),
IEEE TNSRE 31 (EEGConformer). Altaheri et al. (2023), IEEE TII 19 (ATCNet).
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from sgdm_utils.decoding.encoders import SGDMEncoder, check_subject
from sgdm_utils.experiments.nice_encoder import FixedMontage, NICEEncoder

#: How the networks of `NAMES` that need it are installed.
INSTALL = "python -m pip install 'braindecode>=1.0'"
#: braindecode's class, the rate (Hz) that its kernels are published at, and their lengths in samples.
_BRAINDECODE: dict[str, tuple[str, float, dict[str, int]]] = {
    "eegnet": (
        "EEGNet",
        128.0,
        {"kernel_length": 64, "depthwise_kernel_length": 16, "pool1_kernel_size": 4, "pool2_kernel_size": 8},
    ),
    "shallow_fbcsp": (
        "ShallowFBCSPNet",
        250.0,
        {"filter_time_length": 25, "pool_time_length": 75, "pool_time_stride": 15},
    ),
    "deep4": (
        "Deep4Net",
        250.0,
        {"filter_time_length": 10, "filter_length_2": 10, "filter_length_3": 10, "filter_length_4": 10},
    ),
    "eeg_conformer": (
        "EEGConformer",
        250.0,
        {"filter_time_length": 25, "pool_time_length": 75, "pool_time_stride": 15},
    ),
    "atcnet": (
        "ATCNet",
        250.0,
        {
            "conv_block_kernel_length_1": 64, "conv_block_kernel_length_2": 16,
            "conv_block_pool_size_1": 8, "conv_block_pool_size_2": 7,
        },
    ),
}  # fmt: skip
NAMES = ("sgdm", "nice", "atm_s", "enigma", "ubp", *_BRAINDECODE)


class ATMEncoder(NICEEncoder):
    """ATM-S: electrodes attend to each other, then the convolutions and the projection of NICE.

    Every electrode is a token, its time course the features; a token of the person is among them.
    Four heads where the number of samples can be divided by four (published: 250 samples).

    Parameters
    ----------
    n_subjects : int, people with a token of their own; subject -1 gets the mean of all
    others : see `NICEEncoder`
    """

    def __init__(self, n_chans, n_outputs, n_times, n_subjects=1, sfreq=250.0, **kwargs) -> None:
        super().__init__(n_chans, n_outputs, n_times, sfreq=sfreq, **kwargs)
        heads = next(h for h in (4, 2, 1) if n_times % h == 0)
        self.embed = nn.Linear(n_times, n_times)
        self.place = nn.Parameter(0.02 * torch.randn(n_chans, n_times))
        self.person = nn.Parameter(0.02 * torch.randn(n_subjects, n_times))
        self.attend = nn.TransformerEncoderLayer(
            n_times, heads, dim_feedforward=256, dropout=0.25, activation="gelu", batch_first=True
        )

    def forward(self, eeg, subject=None, positions=None, mask=None) -> torch.Tensor:
        """As `NICEEncoder.forward`; `subject` is needed."""
        tokens = self.embed(self.masked(eeg, mask)) + self.place
        person = _of_subject(self.person, subject, len(eeg))[:, None]
        attended = self.attend(torch.cat([tokens, person], 1))[:, : self.n_chans]
        z = self.project(self.features(attended).flatten(1))
        return self.norm(z + self.residual(z))


class ENIGMAEncoder(NICEEncoder):
    """ENIGMA: a small convolutional code, a linear layer for each person, a projector.

    The description names a spatio-temporal backbone with a code of 184 numbers, alignment layers of
    that size for each person, and an MLP. The convolutions are NICE's and end in as many filters as
    come nearest to that length; what else the description leaves open is chosen.

    Parameters
    ----------
    n_subjects : int, people with a layer of their own; subject -1 gets the mean of all
    n_latent : int, length of the code that is aimed at
    others : see `NICEEncoder`
    """

    def __init__(
        self, n_chans, n_outputs, n_times, n_subjects=1, sfreq=250.0, n_latent=184, **kwargs
    ) -> None:
        super().__init__(n_chans, n_outputs, n_times, sfreq=sfreq, **kwargs)
        filters = max(1, round(n_latent / self.n_steps))
        length = filters * self.n_steps
        self.pointwise = nn.Conv2d(self.spatial.out_channels, filters, 1)
        self.align = nn.Parameter(torch.eye(length).repeat(n_subjects, 1, 1))
        self.project = nn.Linear(length, n_outputs)

    def forward(self, eeg, subject=None, positions=None, mask=None) -> torch.Tensor:
        """As `NICEEncoder.forward`; `subject` is needed."""
        code = self.features(self.masked(eeg, mask)).flatten(1)
        layers = _of_subject(self.align, subject, len(eeg))
        z = self.project((layers @ code[..., None])[..., 0])
        return self.norm(z + self.residual(z))


class UBPEncoder(FixedMontage):
    """The brain side of UBP: one linear layer on the flattened epoch, a residual MLP, a norm.

    Its blur of the pictures that serve as targets is no part of the encoder and is left out; so is its
    choice of 17 electrodes.
    """

    def __init__(self, n_chans, n_outputs, n_times, sfreq=250.0, dropout=0.3) -> None:
        super().__init__(n_chans, n_times, sfreq)
        self.project = nn.Linear(n_chans * n_times, n_outputs)
        self.residual = nn.Sequential(
            nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(n_outputs)

    def forward(self, eeg, subject=None, positions=None, mask=None) -> torch.Tensor:
        """`z_eeg` of shape (batch, n_outputs) for eeg (batch, n_chans, n_times)."""
        z = self.project(self.masked(eeg, mask).flatten(1))
        return self.norm(z + self.residual(z))


class BraindecodeEncoder(FixedMontage):
    """A network of braindecode with the call of `SGDMEncoder`; its outputs are the embedding.

    Kernels and pools keep their published duration at the recording's rate. Epochs of pictures are
    shorter than the published ones: where a stack of convolutions would outgrow the epoch, its
    kernels are shortened, and then its pools.

    Raises
    ------
    ModuleNotFoundError
        Without braindecode; the message says how to install it.
    ValueError
        For an epoch that no such network fits into.
    """

    def __init__(self, name: str, n_chans: int, n_outputs: int, n_times: int, sfreq: float) -> None:
        super().__init__(n_chans, n_times, sfreq)
        if importlib.util.find_spec("braindecode") is None:
            raise ModuleNotFoundError(f"{name} is a network of braindecode: {INSTALL}")
        with warnings.catch_warnings():  # of montages that are not used here
            warnings.simplefilter("ignore", FutureWarning)
            from braindecode import models
        kind, published_hz, lengths = _BRAINDECODE[name]
        scaled = {k: max(1, round(n * sfreq / published_hz)) for k, n in lengths.items()}
        shape = {"n_chans": n_chans, "n_outputs": n_outputs, "n_times": n_times, "sfreq": sfreq}
        if name == "deep4":
            scaled = _deep4_lengths(scaled, n_times)
        try:
            self.network = getattr(models, kind)(**shape, **scaled)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} does not fit into {n_times} samples at {sfreq:g} Hz ({error}): leave it out, or "
                "cut longer epochs in 01_preprocessing (tmax)"
            ) from error

    def forward(self, eeg, subject=None, positions=None, mask=None) -> torch.Tensor:
        """`z_eeg` of shape (batch, n_outputs) for eeg (batch, n_chans, n_times)."""
        return self.network(self.masked(eeg, mask)).flatten(1)


def available() -> tuple[tuple[str, ...], str]:
    """Names that can be built on this machine, and one sentence about those that cannot ("" for none)."""
    if importlib.util.find_spec("braindecode"):
        return NAMES, ""
    there = tuple(name for name in NAMES if name not in _BRAINDECODE)
    return there, f"Without braindecode {', '.join(_BRAINDECODE)} are left out: {INSTALL}"


def build(
    name: str,
    *,
    n_chans: int,
    n_outputs: int,
    n_times: int,
    sfreq: float,
    n_subjects: int,
    positions: np.ndarray,
    **sizes: Any,
) -> nn.Module:
    """A fresh encoder, called as ``encoder(eeg, subject, positions, mask)``.

    Parameters
    ----------
    name : one of `NAMES`
    n_chans, n_outputs, n_times, sfreq : as for `SGDMEncoder`, Hz
    n_subjects : int, for those that have a part for each person
    positions : array of shape (n_chans, 3), for ``sgdm``
    sizes : further arguments of `SGDMEncoder`, used for ``sgdm`` alone

    Raises
    ------
    ValueError
        For an unknown name, or an epoch that the network does not fit into.
    """
    shape = {"n_chans": n_chans, "n_outputs": n_outputs, "n_times": n_times, "sfreq": sfreq}
    if name == "sgdm":
        return SGDMEncoder(**shape, **sizes, n_subjects=n_subjects, positions=positions)
    if name == "nice":
        return NICEEncoder(**shape, merge_linear=True)
    if name in ("atm_s", "enigma"):
        kind = ATMEncoder if name == "atm_s" else ENIGMAEncoder
        return kind(**shape, n_subjects=n_subjects, merge_linear=True)
    if name == "ubp":
        return UBPEncoder(**shape)
    if name in _BRAINDECODE:
        return BraindecodeEncoder(name, **shape)
    raise ValueError(f"no encoder {name!r}: there are {', '.join(NAMES)}")


def _of_subject(table: nn.Parameter, subject: torch.Tensor | None, n_items: int) -> torch.Tensor:
    """Each item's row of a table of people; -1 is the mean of all."""
    if subject is None:
        raise ValueError(
            "this encoder has a part for each person: give subject, -1 for nobody known"
        )
    check_subject(subject, n_items, len(table))
    return torch.cat([table, table.mean(0, keepdim=True)])[subject.long()]


def _deep4_lengths(lengths: dict[str, int], n_times: int) -> dict[str, int]:
    """Kernels and pools of four blocks that leave at least one sample of the epoch."""
    for pool in (3, 2):
        for longest in range(max(lengths.values()), 1, -1):
            n = n_times
            for _ in lengths:
                n = (n - longest + 1 - pool) // pool + 1
            if n >= 1:
                shortened = {k: min(v, longest) for k, v in lengths.items()}
                return shortened | {"pool_time_length": pool, "pool_time_stride": pool}
    return lengths
