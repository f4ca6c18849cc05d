"""A simulated subject: where features of a picture live in the head, when they answer, how strongly.

Three stages follow one another in time and place, as in the ventral visual stream. Each feature
drives one dipole with a time course of its own, and a spherical head carries the dipoles to the
electrodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import mne
import numpy as np

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.workflow.machine import side_by_side

# The cap of THINGS-EEG2 (Gifford et al. 2022), in recording order.
EEG_CHANNELS = (
    "Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 "
    "FC6 FC2 F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 "
    "P2 CPz CP4 TP8 C6 C2 FC4 FT8 F6 F2 AF4 AF8"
).split()
EOG_CHANNELS = ["VEOG", "HEOG"]
HEAD_RADIUS_M = 0.095
HEAD_CENTRE_M = (0.0, 0.016, 0.045)  # centre of the sphere that the standard positions lie on
_BLOCK_PIXELS = 1 << 20  # of pictures that are computed at once
RESPONSE_S = 0.6  # the response to one picture lasts this long


@dataclass(frozen=True)
class Brain:
    """One simulated subject: where each feature lives, when it answers, how strongly.

    Attributes
    ----------
    topographies : array of shape (n_channels, n_components), float32, volts per unit of feature
    time_courses : array of shape (n_components, n_times), float32, dimensionless
    stage : array of shape (n_components,), str, 'early' | 'shape' | 'semantic' | 'onset'
    noise_patterns : dict of str to array of shape (n_channels, k), volts per unit
    """

    topographies: np.ndarray
    time_courses: np.ndarray
    stage: np.ndarray
    noise_patterns: dict[str, np.ndarray]

    def evoked(self, features: np.ndarray) -> np.ndarray:
        """Noise-free response to each picture.

        Parameters
        ----------
        features : array of shape (n_pictures, n_components)

        Returns
        -------
        array of shape (n_pictures, n_channels, n_times), float32, volts
        """
        weighted = features[:, None, :] * self.topographies[None]
        return (weighted @ self.time_courses).astype(np.float32)


def make_info(sfreq: float) -> mne.Info:
    """Measurement info of the simulated cap: 63 EEG (standard 10-05 positions) and 2 EOG channels."""
    types = ["eeg"] * len(EEG_CHANNELS) + ["eog"] * len(EOG_CHANNELS)
    info = mne.create_info(EEG_CHANNELS + EOG_CHANNELS, sfreq, types)
    info.set_montage(STANDARD_MONTAGE, on_missing="ignore")
    info["line_freq"] = 50.0
    return info


def retinotopic_features(pictures: np.ndarray, grid: int = 4) -> np.ndarray:
    """Local luminance, two colour opponents and orientation energy on a grid of the visual field.

    Parameters
    ----------
    pictures : uint8 array of shape (n, size, size, 3)
    grid : int, cells per side of the visual field

    Returns
    -------
    float32 array of shape (n, 7, grid, grid): luminance, red-green, blue-yellow, then the energy of
    gradients at 0, 45, 90 and 135 degrees
    """
    n, size = pictures.shape[:2]
    if size % (2 * grid):
        raise ValueError(f"picture size {size} is not a multiple of {2 * grid}")
    block = max(1, _BLOCK_PIXELS // size**2)
    if n > block:  # ten float copies of all pictures would take gigabytes
        blocks = (pictures[i : i + block] for i in range(0, n, block))
        return np.concatenate(side_by_side(partial(retinotopic_features, grid=grid), blocks))
    rgb = pictures.astype(np.float32) / 255.0
    rgb = rgb.reshape(n, size // 2, 2, size // 2, 2, 3).mean((2, 4))
    r, g, b = np.moveaxis(rgb, -1, 0)
    luminance = (r + g + b) / 3
    gy, gx = np.gradient(luminance, axis=(1, 2))
    angles = np.deg2rad([0, 45, 90, 135])
    energy = [np.abs(np.cos(a) * gx + np.sin(a) * gy) for a in angles]
    maps = np.stack([luminance, r - g, b - (r + g) / 2, *energy], axis=1)
    cell = size // 2 // grid
    return maps.reshape(n, 7, grid, cell, grid, cell).mean((3, 5))


def principal_components(values: np.ndarray, fit_rows: np.ndarray, k: int) -> np.ndarray:
    """The first `k` principal components, half whitened (power = sqrt of the eigenvalue).

    Half whitening keeps coarse structure stronger than fine structure, as in cortex, without
    drowning the fine components altogether.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    centred = flat - flat[fit_rows].mean(0)
    _, s, vt = np.linalg.svd(centred[fit_rows], full_matrices=False)
    k = min(k, int((s > 1e-8 * s[0]).sum()))
    scores = centred @ vt[:k].T / np.sqrt(s[:k])
    return (scores / scores[fit_rows].std()).astype(np.float32)


def source_features(
    pictures: np.ndarray,
    structure: np.ndarray,
    attributes: np.ndarray,
    fit_rows: np.ndarray,
    n_shape: int = 32,
    n_semantic: int = 40,
) -> dict[str, np.ndarray]:
    """What each picture excites in each stage of the simulated visual system.

    Parameters
    ----------
    pictures : uint8 array of shape (n, size, size, 3)
    structure : float array of shape (n, 2, size, size), silhouette and edges
    attributes : float array of shape (n, n_attributes), drawn attributes (one-hot and continuous)
    fit_rows : int array, pictures that define the normalisation
    n_shape, n_semantic : int, number of components of the later two stages

    Returns
    -------
    dict with 'early' (n, 112), 'shape' (n, n_shape), 'semantic' (n, n_semantic), each with unit
    variance on average over `fit_rows`
    """
    early = retinotopic_features(pictures)
    centred = early - early[fit_rows].mean(0)
    # one gain per kind of feature: local differences of strength are part of the picture
    early = centred / centred[fit_rows].std((0, 2, 3), keepdims=True)
    n, size = len(structure), structure.shape[-1]
    coarse = structure.reshape(n, 2, 16, size // 16, 16, size // 16).mean((3, 5))
    centred = attributes - attributes[fit_rows].mean(0)
    z = centred / np.maximum(centred[fit_rows].std(0), 1e-3)
    return {
        "early": early.reshape(n, -1).astype(np.float32),
        "shape": principal_components(coarse, fit_rows, n_shape),
        "semantic": principal_components(z, fit_rows, n_semantic),
    }


def _dipole_topographies(info: mne.Info, position_m: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Potentials of unit dipoles in a four-shell sphere, average reference.

    Parameters
    ----------
    position_m : array of shape (n_dipoles, 3), metres from the centre of the sphere
    moment : array of shape (n_dipoles, 3), unit vectors

    Returns
    -------
    array of shape (n_channels, n_dipoles), volts per 10 nAm
    """
    eeg = mne.pick_info(info, mne.pick_types(info, eeg=True))
    sphere = mne.make_sphere_model(
        r0=HEAD_CENTRE_M, head_radius=HEAD_RADIUS_M, info=eeg, verbose="error"
    )
    pos = dict(rr=position_m + np.array(HEAD_CENTRE_M), nn=moment)
    src = mne.setup_volume_source_space(pos=pos, sphere=sphere, mindist=0.0, verbose="error")
    fwd = mne.make_forward_solution(
        eeg, trans=None, src=src, bem=sphere, meg=False, eeg=True, mindist=0.0, verbose="error"
    )
    gain = fwd["sol"]["data"].reshape(len(eeg["ch_names"]), -1, 3)
    if gain.shape[1] != len(position_m):
        raise ValueError("a dipole lies outside the brain sphere: move it inwards")
    leadfield = np.einsum("cdk,dk->cd", gain, moment) * 1e-8  # columns are x, y, z of the head
    return leadfield - leadfield.mean(0)


def _direction(azimuth_deg: np.ndarray, elevation_deg: np.ndarray) -> np.ndarray:
    """Unit vectors; azimuth 0 is straight back, positive to the right; elevation from horizontal."""
    az, el = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    return np.stack([np.sin(az) * np.cos(el), -np.cos(az) * np.cos(el), np.sin(el)], axis=-1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _wavelets(rng, n, times, latency_ms, width_ms, freq_hz, shift_ms) -> np.ndarray:
    """Gabor-like time courses with latencies drawn from a range, silent before 50 ms."""
    centre = (rng.uniform(*latency_ms, n) + shift_ms)[:, None] / 1000
    width = rng.uniform(*width_ms, n)[:, None] / 1000
    freq, phase = rng.uniform(*freq_hz, n)[:, None], rng.uniform(-1.2, 1.2, n)[:, None]
    wave = np.exp(-0.5 * ((times - centre) / width) ** 2)
    wave = wave * np.cos(2 * np.pi * freq * (times - centre) + phase)
    return wave / (1 + np.exp(-(times - 0.055) / 0.006))


def make_brain(
    info: mne.Info,
    n_components: Mapping[str, int],
    rng: np.random.Generator,
    subject_rng: np.random.Generator,
    grid: int = 4,
) -> Brain:
    """Draw one subject: anatomy, gains and latencies vary around a common plan.

    Parameters
    ----------
    info : mne.Info of `make_info`
    n_components : mapping of stage ('early', 'shape', 'semantic') to its number of features
    rng : generator of what all people share (pass an equally seeded one for every subject)
    subject_rng : generator of what is this subject's own
    grid : int, cells per side of the retinotopic grid

    Returns
    -------
    Brain, its components ordered early, shape, semantic, onset
    """
    times = np.arange(int(RESPONSE_S * info["sfreq"])) / info["sfreq"]
    cell = (np.arange(grid) + 0.5) / grid * 2 - 1
    down, right = np.meshgrid(cell, cell, indexing="ij")  # the row of a picture runs downwards
    # crossed and inverted map of the visual field: left field to the right hemisphere, up to below
    azimuth = np.tile(np.where(right > 0, -1, 1) * (8 + 26 * np.abs(right)), (7, 1, 1)).ravel()
    elevation = np.tile(2 + 22 * down, (7, 1, 1)).ravel()
    plan = {
        "early": (azimuth, elevation, (4.0, 0.80)),
        "shape": (rng.choice([-1, 1], n_components["shape"]) * 48.0, -2.0, (14.0, 0.74)),
        "semantic": (rng.choice([-1, 1], n_components["semantic"]) * 82.0, -14.0, (20.0, 0.70)),
    }
    timing = {
        "early": ((82, 130), (11, 20), (7, 14)),
        "shape": ((120, 200), (18, 32), (5, 9)),
        "semantic": ((160, 340), (30, 60), (2, 5)),
    }
    gain = {"early": 0.55, "shape": 1.0, "semantic": 1.0}
    shift_ms = subject_rng.normal(0, 6)
    maps, waves, stage = [], [], []
    for name, (az, el, (spread, depth)) in plan.items():
        k = n_components[name]
        az = az + rng.normal(0, spread, k) + subject_rng.normal(0, 5, k)
        el = el + rng.normal(0, spread, k) + subject_rng.normal(0, 5, k)
        where = _direction(az, el) * (depth + rng.uniform(-0.08, 0.03, (k, 1))) * HEAD_RADIUS_M
        # folded cortex: any orientation; people differ less than cells of the map do
        moment = _unit(rng.normal(size=(k, 3)) + 0.35 * subject_rng.normal(size=(k, 3)))
        strength = gain[name] * np.exp(subject_rng.normal(0, 0.2)) * rng.uniform(0.7, 1.3, k)
        maps.append(_dipole_topographies(info, where, moment) * strength)
        waves.append(_wavelets(rng, k, times, *timing[name], shift_ms))
        stage += [name] * k
    # the answer to "something appeared", the same for every picture (P1-N1-P2)
    where = _direction(np.array([-20.0, 20.0, 0.0]), np.array([0.0, 0.0, 25.0])) * 0.075
    common = _dipole_topographies(info, where, _unit(where)) * 2
    peaks = ((0.100, 0.014, 1.0), (0.155, 0.020, -1.4), (0.230, 0.035, 0.8))
    wave = sum(a * np.exp(-0.5 * ((times - m - shift_ms / 1e3) / s) ** 2) for m, s, a in peaks)
    maps.append(common.sum(1, keepdims=True))
    waves.append(wave[None])
    stage.append("onset")
    return Brain(
        topographies=np.concatenate(maps, axis=1).astype(np.float32),
        time_courses=np.concatenate(waves).astype(np.float32),
        stage=np.array(stage),
        noise_patterns=_noise_patterns(info, subject_rng),
    )


def _noise_patterns(info: mne.Info, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Topographies of the background: many cortical dipoles, alpha, eyes, mains."""
    anywhere = _unit(rng.normal(size=(90, 3)) * np.array([1, 1, 0.8]) + np.array([0, 0, 0.25]))
    cortex = _dipole_topographies(
        info,
        anywhere * rng.uniform(0.5, 0.85, (90, 1)) * HEAD_RADIUS_M,
        _unit(rng.normal(size=(90, 3))),
    )
    back = _direction(rng.uniform(-35, 35, 6), rng.uniform(5, 45, 6)) * 0.8 * HEAD_RADIUS_M
    alpha = _dipole_topographies(info, back, _unit(back + 0.02 * rng.normal(size=(6, 3))))
    eyes = np.array([[0.030, 0.068, -0.030], [-0.030, 0.068, -0.030]])  # as far forward as it goes
    blink = _dipole_topographies(info, eyes, np.tile([0.0, 0.75, 0.66], (2, 1))).sum(1)
    saccade = _dipole_topographies(info, eyes, np.tile([1.0, 0.0, 0.0], (2, 1))).sum(1)
    mains = rng.normal(1.0, 0.4, len(blink))
    scale = {"cortex": cortex / cortex.std(), "alpha": alpha / alpha.std()}
    one = {"blink": blink, "saccade": saccade, "mains": mains}
    return scale | {k: (v / np.abs(v).max())[:, None] for k, v in one.items()}


def unit_snr_gain(brain: Brain, features: np.ndarray, sfreq: float) -> float:
    """Factor on the features at which signal and background have equal root mean square.

    The background's share at 1-30 Hz is computed from its two neural parts (pink and alpha); the
    artefacts that cleaning removes do not count.
    """
    window = slice(int(0.08 * sfreq), int(0.35 * sfreq))
    stimulus = brain.evoked(features * (brain.stage != "onset"))
    signal = np.sqrt(((stimulus - stimulus.mean(0))[..., window] ** 2).mean())
    cortex, alpha = brain.noise_patterns["cortex"], brain.noise_patterns["alpha"]
    pink = np.sqrt((cortex**2).sum(1).mean()) * 0.75e-6 * 0.85
    # |gaussian| envelope times cosine has mean square 1/2
    rhythm = np.sqrt((alpha**2).sum(1).mean() / 2) * 1.5e-6
    return float(np.hypot(pink, rhythm) / signal)


def scaled_features(
    brain: Brain,
    features: np.ndarray,
    snr: float,
    sfreq: float,
    presented: np.ndarray | slice = slice(None),
) -> np.ndarray:
    """Features with the gain that gives a signal-to-noise ratio.

    Parameters
    ----------
    brain : Brain
    features : float array of shape (n_pictures, n_components), the constant onset column last; that
        column is left as it is
    snr : float, single-trial ratio of picture-driven to background root mean square at 1-30 Hz,
        over all channels, 80-350 ms. 0 leaves the constant onset response but nothing that tells
        one picture from another.
    sfreq : float, Hz
    presented : rows of the pictures that were shown, over which the ratio is meant; default all

    Returns
    -------
    float array of shape (n_pictures, n_components)
    """
    scaled = features.copy()
    scaled[:, :-1] *= snr * unit_snr_gain(brain, features[presented], sfreq)
    return scaled
