"""One style and one set of colours for all figures, and the plots that notebooks share.

Chance is always drawn, conditions keep their colour everywhere, maps are perceptually uniform. Plot
functions draw and return nothing; the notebook calls `plt.show()`.

MNE draws one good scalp map; for a page with hundreds of them there is `scalp_images`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from cycler import cycler

# Okabe-Ito based, distinguishable with colour-vision deficiency; the same meaning in every figure
COLOURS = {
    "seen": "#222222",
    "eeg": "#0072B2",
    "shuffled_eeg": "#9A9A9A",
    "mean_image": "#C9B18F",
    "class_only": "#CC79A7",
    "oracle": "#009E73",
    "no_structure": "#56B4E9",
    "shuffled_structure": "#E69F00",
    "oracle_structure": "#44AA66",
    "oracle_semantics": "#8CC665",
    "no_semantics": "#A6761D",
    "nearest_training": "#7B6FB0",
    "other_subject": "#5F8FA8",
    "eeg_encoder": "#4C72B0",
    "ideal_posterior": "#004D40",
    "chance": "#777777",
}
STAGE_COLOURS = {"early": "#D55E00", "shape": "#E69F00", "semantic": "#0072B2", "onset": "#777777"}


#: seaborn's theme "ticks" at 0.85 of its size, written out (a test compares): importing seaborn loads the
#: statistics of scipy, a third of what a notebook without torch takes to start.
_DEEP = "#4C72B0 #DD8452 #55A868 #C44E52 #8172B3 #937860 #DA8BC3 #8C8C8C #CCB974 #64B5CD".split()
_INK = [f"{part}.color" for part in ("text", "xtick", "ytick")] + [
    "axes.edgecolor",
    "axes.labelcolor",
]
_STYLE = (
    dict.fromkeys(_INK, ".15")
    | dict.fromkeys(
        ["font.size", "axes.labelsize", "axes.titlesize", "legend.title_fontsize"], 10.2
    )
    | dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 9.35)
    | {
        f"{axis}tick.{which}.{what}": value
        for axis in "xy"
        for which, sizes in (("major", (6, 1.25)), ("minor", (4, 1)))
        for what, value in zip(("size", "width"), sizes, strict=True)
    }
    | {
        "axes.axisbelow": True,
        "axes.linewidth": 1.25,
        "axes.prop_cycle": cycler(color=_DEEP),
        "font.family": ["sans-serif"],
        "font.sans-serif": [
            "Arial",
            "DejaVu Sans",
            "Liberation Sans",
            "Bitstream Vera Sans",
            "sans-serif",
        ],
        "grid.color": ".8",
        "grid.linewidth": 1,
        "lines.solid_capstyle": "round",
        "patch.edgecolor": "w",
        "patch.force_edgecolor": True,
        "figure.dpi": 80,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.cmap": "cividis",
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }
)


def use_style() -> None:
    """Apply the study's figure style. Call it once at the top of a notebook."""
    plt.rcParams.update(_STYLE)


def plain(text: object) -> str:
    """Text of the data as it is written: between two dollar signs matplotlib reads a formula."""
    return str(text).replace("$", r"\$")


def draw_chance(ax: plt.Axes, value: float, label: str = "chance", vertical: bool = False) -> None:
    """Dashed line at the chance level."""
    line = ax.axvline if vertical else ax.axhline
    line(value, color=COLOURS["chance"], linestyle="--", linewidth=1, label=label, zorder=0)


def show_picture(ax: plt.Axes, picture: np.ndarray, title: str = "", **kwargs) -> None:
    """One picture without axes; two-dimensional arrays in shades of grey."""
    if picture.ndim == 2:
        kwargs = {"cmap": "gray", "vmin": 0, "vmax": 1} | kwargs
    ax.imshow(picture, **kwargs)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(plain(title), fontsize=7, pad=2)


def picture_rows(
    rows: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str] | None = None,
    cell: float = 0.9,
) -> None:
    """A grid of pictures: one labelled row for each condition, one column for each item."""
    n = max(len(r) for r in rows.values())
    _, axes = plt.subplots(
        len(rows), n, figsize=(cell * n + 1.2, cell * 1.03 * len(rows) + 0.3), squeeze=False
    )
    for axis_row, (label, pictures) in zip(axes, rows.items(), strict=True):
        for ax in axis_row[len(pictures) :]:
            ax.axis("off")
        for ax, picture in zip(axis_row, pictures, strict=False):
            show_picture(ax, picture)
        axis_row[0].set_ylabel(plain(label), rotation=0, ha="right", va="center", fontsize=8)
    for ax, title in zip(axes[0], titles or [], strict=False):
        ax.set_title(plain(title), fontsize=6.5, pad=2)


def picture_grid(
    pictures: np.ndarray, table: pd.DataFrame, split: str, n: int = 24, columns: int = 12
) -> None:
    """The first scenes and tangrams of a split, half and half, with their captions' concept."""
    here = table[table["split"] == split]
    kinds = [g.index[: n // here["kind"].nunique()] for _, g in here.groupby("kind")]
    rows = np.concatenate(kinds)
    _, axes = plt.subplots(-(-len(rows) // columns), columns, figsize=(columns * 0.95, 2.2))
    for ax in axes.flat:
        ax.axis("off")
    for ax, row in zip(axes.flat, rows, strict=False):
        show_picture(ax, pictures[row], table["concept"].loc[row].replace(" tangram", ""))


def structure_grid(stimuli, split: str, n: int = 12) -> None:
    """Pictures, silhouettes, edges and pieces of a split, scenes first."""
    here = stimuli.table[stimuli.table["split"] == split]
    rows = np.concatenate([g.index[: n // 2] for _, g in here.groupby("kind")])
    pieces = plt.get_cmap("tab10")(stimuli.pieces[rows])[..., :3]
    pieces[stimuli.pieces[rows] == 0] = 1.0
    picture_rows(
        {
            "picture": stimuli.pictures[rows],
            "silhouette": stimuli.silhouettes[rows].astype(float),
            "edges": stimuli.edges[rows].astype(float),
            "pieces": pieces,
        }
    )


def brain_stages(brain, info: mne.Info) -> None:
    """Strength of each stage of a simulated brain over the scalp and over time."""
    eeg = mne.pick_info(info, mne.pick_types(info, eeg=True))
    stages = ["early", "shape", "semantic"]
    fig, axes = plt.subplots(1, 4, figsize=(10, 2.5), width_ratios=[1, 1, 1, 2.2])
    times = np.arange(brain.time_courses.shape[1]) / info["sfreq"] * 1000
    for ax, stage in zip(axes, stages, strict=False):
        rows = brain.stage == stage
        strength = np.sqrt((brain.topographies[:, rows] ** 2).sum(1)) * 1e6
        mne.viz.plot_topomap(strength, eeg, axes=ax, show=False, cmap="cividis", contours=4)
        ax.set_title(stage, color=STAGE_COLOURS[stage])
        course = np.sqrt((brain.time_courses[rows] ** 2).mean(0))
        axes[-1].plot(times, course / course.max(), color=STAGE_COLOURS[stage], label=stage)
    axes[-1].set(xlabel="time from onset (ms)", ylabel="strength (of its maximum)", xlim=(0, 500))
    axes[-1].legend()


def raw_excerpt(
    raw: mne.io.BaseRaw, events: pd.DataFrame, start_s: float, stop_s: float, n_channels: int = 9
) -> None:
    """A few channels of continuous EEG with picture onsets."""
    eeg = mne.pick_types(raw.info, eeg=True, eog=False, exclude=[])
    picks = eeg[np.linspace(0, len(eeg) - 1, min(n_channels, len(eeg))).astype(int)]
    picks = [*picks, *mne.pick_types(raw.info, eog=True)]
    stop_s = min(stop_s, raw.times[-1])
    data, times = raw[picks, raw.time_as_index(start_s)[0] : raw.time_as_index(stop_s)[0]]
    data = (data - np.median(data, axis=1, keepdims=True)) * 1e6
    _, ax = plt.subplots(figsize=(10, 3.6))
    step = 120.0
    for i, (pick, x) in enumerate(zip(picks, data, strict=True)):
        colour = "#D55E00" if raw.get_channel_types([pick])[0] == "eog" else COLOURS["seen"]
        ax.plot(times, np.clip(x, -200, 200) - i * step, linewidth=0.6, color=colour)
    for onset in events["onset_s"][events["onset_s"].between(start_s, stop_s)].unique():
        ax.axvline(onset, color="#CCCCCC", linewidth=0.6, zorder=0)
    ax.set_yticks([-i * step for i in range(len(picks))], [plain(raw.ch_names[p]) for p in picks])
    ax.set(xlabel="time (s)", xlim=(start_s, stop_s), title=f"channels {step:g} microvolt apart")


def spectra(raws: Mapping[str, mne.io.BaseRaw]) -> None:
    """Power spectral densities side by side, one line for each EEG channel."""
    _, axes = plt.subplots(1, len(raws), figsize=(10, 2.6), sharey=True, squeeze=False)
    for ax, (name, raw) in zip(axes[0], raws.items(), strict=True):
        fmax = min(80.0, raw.info["sfreq"] / 2)
        n_fft = 2048 if raw.n_times > 2048 else 512
        psd = raw.compute_psd(
            "welch", fmin=0.3, fmax=fmax, n_fft=n_fft, picks="eeg", verbose="error"
        )
        power = 10 * np.log10(psd.get_data() * 1e12 + 1e-6)
        ax.plot(psd.freqs, power.T, color=COLOURS["eeg"], alpha=0.25, linewidth=0.6)
        ax.plot(psd.freqs, np.median(power, axis=0), color=COLOURS["seen"], linewidth=1.2)
        ax.set(title=plain(name), xlabel="frequency (Hz)", ylim=(-45, 45))
    axes[0, 0].set_ylabel("power (dB, µV²/Hz)")


def ica_components(ica: mne.preprocessing.ICA, scores: np.ndarray, n: int = 6) -> None:
    """Scalp maps of the components that follow the EOG most; excluded ones in red."""
    strength = scores.max(0)
    order = np.argsort(-strength)[:n]
    maps = ica.get_components()
    _, axes = plt.subplots(1, len(order), figsize=(1.6 * len(order), 1.9))
    for ax, k in zip(np.atleast_1d(axes), order, strict=True):
        mne.viz.plot_topomap(maps[:, k], ica.info, axes=ax, show=False, cmap="RdBu_r", contours=0)
        out = k in ica.exclude
        ax.set_title(
            f"IC {k}, r = {strength[k]:.2f}" + ("\nexcluded" if out else "\nkept"),
            color="#B2182B" if out else COLOURS["seen"], fontsize=8,
        )  # fmt: skip


def evoked(
    average_uv: np.ndarray, n_trials: int, info: mne.Info, times: np.ndarray, unit: str = "µV"
) -> None:
    """Draw an average over trials with scalp maps at four moments after onset.

    Parameters
    ----------
    average_uv : array of shape (n_channels, n_times), microvolts (or whitened, see `unit`)
    n_trials : int, how many were averaged
    """
    average = mne.EvokedArray(average_uv * 1e-6, info, tmin=times[0], nave=n_trials)
    if len(info["ch_names"]) < 8:
        _, ax = plt.subplots(figsize=(8, 2.6))
        ax.plot(
            times * 1000, average.data.T * 1e6, label=[plain(name) for name in info["ch_names"]]
        )
        ax.legend(ncols=4)
    else:
        fig, axes = plt.subplots(1, 5, figsize=(10, 2.6), width_ratios=[2.6, 1, 1, 1, 1])
        ax = axes[0]
        ax.plot(times * 1000, average.data.T * 1e6, color=COLOURS["eeg"], alpha=0.35, linewidth=0.7)
        moments = np.array([0.10, 0.155, 0.23, 0.35])
        limit = np.abs(average.data).max() * 1e6
        for topo, t in zip(axes[1:], moments, strict=True):
            values = average.data[:, np.abs(times - t).argmin()] * 1e6
            draw_topography(topo, values, info, limit, t)
    ax.axvline(0, color="#BBBBBB", linewidth=0.8)
    ax.set(xlabel="time from onset (ms)", ylabel=unit, title=f"average of {n_trials} trials")


def draw_topography(
    ax: plt.Axes, values: np.ndarray, info: mne.Info, limit: float, time_s: float
) -> None:
    """A scalp map of one moment, the same colours for -limit to limit on all maps of a figure."""
    style = {"cmap": "RdBu_r", "vlim": (-limit, limit), "contours": 0}
    mne.viz.plot_topomap(values, info, axes=ax, show=False, **style)
    ax.set_title(f"{time_s * 1000:.0f} ms")


def ceiling_maps(
    ceilings: Mapping[str, np.ndarray], times: np.ndarray, ch_names: Sequence[str], chance: float
) -> None:
    """Reliability over channels and time, one panel for each stage of cleaning, and their means."""
    fig, axes = plt.subplots(
        1, len(ceilings) + 1, figsize=(11, 3.0), width_ratios=[*[1] * len(ceilings), 1.2]
    )
    top = max(c.max() for c in ceilings.values())
    extent = (times[0] * 1000, times[-1] * 1000, len(ch_names) - 0.5, -0.5)
    styles = [("#9A9A9A", "-"), (COLOURS["eeg"], "-"), (COLOURS["seen"], ":")]
    for ax, (name, c), (colour, line) in zip(axes, ceilings.items(), styles, strict=False):
        image = ax.imshow(c, aspect="auto", vmin=0, vmax=top, extent=extent)
        ax.set(title=plain(name), xlabel="time (ms)", ylabel="channel" if ax is axes[0] else "")
        axes[-1].plot(times * 1000, c.mean(0), color=colour, linestyle=line, label=plain(name))
    fig.colorbar(image, ax=axes[len(ceilings) - 1], label="reliability")
    draw_chance(axes[-1], chance, "no repetition")
    axes[-1].axvline(0, color="#BBBBBB", linewidth=0.8)
    axes[-1].set(xlabel="time (ms)", ylabel="mean over channels")
    axes[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def learning_curves(
    history: pd.DataFrame, columns: Mapping[str, str], ylabel: str, unit: str = "step"
) -> None:
    """Training curves: one line for each column of a history table with a `step` column, in `unit`."""
    _, ax = plt.subplots(figsize=(6, 2.6))
    for column, colour in columns.items():
        ax.plot(history["step"], history[column], color=colour, label=column)
    ax.set(xlabel=unit, ylabel=ylabel)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def similarity(matrix: np.ndarray, labels: Sequence[str], title: str) -> None:
    """A similarity matrix with one label for each row."""
    fig, ax = plt.subplots(figsize=(6.2, 5.2))
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    ax.set_yticks(range(len(labels)), list(map(plain, labels)), fontsize=5)
    ax.set_xticks([])
    ax.set_title(plain(title))
    fig.colorbar(image, ax=ax, label="cosine")


def retrieval_bars(table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Retrieval accuracy of each subject, model and condition, with intervals and chance."""
    colours = {
        ("sgdm", "eeg"): COLOURS["eeg"], ("sgdm", "shuffled_eeg"): COLOURS["shuffled_eeg"],
        ("ridge", "eeg"): COLOURS["shuffled_structure"], ("ideal", "eeg"): COLOURS["oracle"],
    }  # fmt: skip
    subjects = table["subject"].unique()
    _, axes = plt.subplots(1, len(metrics), figsize=(10, 3), sharey=True, squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        here = table[table["metric"] == metric]
        keys = [k for k in colours if ((here["model"] == k[0]) & (here["condition"] == k[1])).any()]
        for i, key in enumerate(keys):
            rows = here[(here["model"] == key[0]) & (here["condition"] == key[1])]
            x = np.arange(len(subjects)) + (i - (len(keys) - 1) / 2) * 0.2
            label = f"{key[0]}, {key[1].replace('_', ' ')}"
            style = {"color": colours[key], "ecolor": "#444444", "error_kw": {"linewidth": 1}}
            ax.bar(x, rows["value"], 0.19, yerr=_errors(rows), label=label, **style)
        draw_chance(ax, here["chance"].iloc[0])
        ax.set_xticks(range(len(subjects)), list(map(plain, subjects)))
        ax.set(title=f"{metric}, gallery of {int(here['n'].iloc[0])}", ylim=(0, 1.05))
    axes[0, 0].set_ylabel("accuracy")
    axes[0, -1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def paired_bars(table: pd.DataFrame, metric: str, conditions: Sequence[str]) -> None:
    """One metric by condition: each subject's value with its interval, joint conditions alone."""
    _, ax = plt.subplots(figsize=(7, 2.8))
    for i, condition in enumerate(conditions):
        rows = table[(table["metric"] == metric) & (table["condition"] == condition)]
        x = i + np.linspace(-0.25, 0.25, len(rows)) * (len(rows) > 1)
        colour = COLOURS.get(condition, COLOURS["seen"])
        ax.errorbar(x, rows["value"], yerr=_errors(rows), fmt="o", color=colour, capsize=2)
        ax.hlines(rows["value"].mean(), i - 0.35, i + 0.35, color=colour, linewidth=2, alpha=0.4)
    ax.set_xticks(range(len(conditions)), [c.replace("_", " ") for c in conditions])
    n = int(table.loc[table["metric"] == metric, "n"].iloc[0])
    ax.set(ylabel=metric, title=f"points: subjects, n = {n} pictures each, 95 % interval")
    ax.set_ylim(bottom=0)


def _errors(rows: pd.DataFrame) -> np.ndarray:
    """Distances of both ends of the intervals from the values, (2, n)."""
    return np.abs(rows[["ci_low", "ci_high"]].to_numpy() - rows[["value"]].to_numpy()).T


def scalp_images(
    values: np.ndarray, positions_m: np.ndarray, size: int = 72, colour_map: str = "RdBu_r"
) -> np.ndarray:
    """Small scalp maps as pictures, many at once; nose up.

    Positions are projected azimuthally from the centre of a fitted sphere, values interpolated with
    a thin plate spline; each map has its own symmetric range of colours.

    Parameters
    ----------
    values : array of shape (n, n_channels)
    positions_m : array of shape (n_channels, 3), metres, x to the right, y to the front, z up
    size : int, pixels per side
    colour_map : str, a diverging one

    Returns
    -------
    uint8 array of shape (n, size, size, 3), white outside the head
    """
    from scipy.interpolate import RBFInterpolator

    design = np.column_stack([2 * positions_m, np.ones(len(positions_m))])
    centre = np.linalg.lstsq(design, (positions_m**2).sum(1), rcond=None)[0][:3]
    unit = positions_m - centre
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    polar = np.arccos(np.clip(unit[:, 2], -1, 1)) / (np.pi / 2)
    planar = unit[:, :2] / np.maximum(np.linalg.norm(unit[:, :2], axis=1, keepdims=True), 1e-9)
    planar *= polar[:, None]
    radius = 1.02 * np.linalg.norm(planar, axis=1).max()
    axis = np.linspace(-radius, radius, size)
    grid = np.stack(np.meshgrid(axis, axis[::-1]), axis=-1).reshape(-1, 2)
    inside = np.linalg.norm(grid, axis=1) <= radius
    # interpolation is linear in the values: one operator serves all maps
    operator = RBFInterpolator(planar, np.eye(len(planar)), smoothing=1e-3)(grid[inside])
    maps = np.asarray(values) @ operator.T
    maps /= np.maximum(np.abs(maps).max(axis=1, keepdims=True), 1e-12)
    pictures = np.full((len(maps), size * size, 3), 255, np.uint8)
    colours = plt.get_cmap(colour_map)(maps / 2 + 0.5)[..., :3]
    pictures[:, inside] = np.round(colours * 255).astype(np.uint8)
    return pictures.reshape(-1, size, size, 3)
