"""The figures of the results: conditions with their intervals and chance, pictures beside controls.

Plot functions draw from tables and arrays that are given, compute no statistics and return nothing.
Wherever a score is drawn its chance level is drawn with it, or the band of shuffled EEG where
chance has no formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb

from sgdm_utils.figures.panels import COLOURS, draw_chance, draw_topography, plain

#: What a reader is told that a condition is, in the order of all figures and tables.
CONDITIONS = {
    "mean_image": "mean training picture",
    "shuffled_eeg": "shuffled EEG",
    "class_only": "true class only",
    "nearest_training": "nearest training picture",
    "no_semantics": "EEG without meaning",
    "shuffled_structure": "EEG with shuffled structure",
    "no_structure": "EEG without structure",
    "other_subject": "another person's EEG",
    "eeg_encoder": "EEG read by networks",
    "eeg": "EEG",
    "ideal_posterior": "EEG, ideal decoder",
    "oracle_structure": "EEG with true structure",
    "oracle_semantics": "EEG with true meaning",
    "oracle": "oracle: all from the picture",
    "seen": "the seen picture itself",
}

#: The same in a word or two, for narrow columns.
SHORT = {
    "mean_image": "mean picture",
    "shuffled_eeg": "shuffled EEG",
    "class_only": "class only",
    "nearest_training": "nearest training",
    "no_semantics": "no meaning",
    "shuffled_structure": "shuffled structure",
    "no_structure": "no structure",
    "other_subject": "other person",
    "eeg_encoder": "networks",
    "eeg": "EEG",
    "ideal_posterior": "ideal decoder",
    "oracle_structure": "true structure",
    "oracle_semantics": "true meaning",
    "oracle": "oracle",
}

METRICS = {
    "two_way_clip_tiny": "two-way (study's CLIP)",
    "pixcorr": "PixCorr",
    "ssim": "SSIM",
    "mse": "MSE (lower is better)",
    "category_accuracy": "category accuracy",
    "silhouette_iou": "silhouette IoU",
    "iou": "silhouette IoU",
    "part_iou": "part IoU",
    "boundary_f": "boundary F",
    "edge_f": "edge F",
    "relation_accuracy": "tan relations, accuracy",
    "top1": "retrieval, top-1",
    "top5": "retrieval, top-5",
    "lpips_alex": "LPIPS (AlexNet)",
}


def metric_label(metric: str) -> str:
    """What a reader is told that a metric is; unknown ones keep their name."""
    return METRICS.get(metric, metric.replace("_", " "))


def condition_dots(
    table: pd.DataFrame,
    metrics: Sequence[str],
    columns: int = 3,
    labels: Mapping[str, str] = CONDITIONS,
) -> None:
    """One panel for each metric, one line for each condition: mean, interval, subjects, chance.

    Parameters
    ----------
    table : DataFrame in the form of `sgdm_utils.metrics.tables`
    metrics : sequence of str, the panels
    columns : int, panels side by side
    labels : mapping of condition to label; its order is that of the lines, from below
    """
    conditions = [c for c in labels if (table["condition"] == c).any()]
    n_rows = -(-len(metrics) // columns)
    height = 0.27 * len(conditions) + 0.75
    fig, axes = plt.subplots(
        n_rows, columns, figsize=(10.5, height * n_rows + 0.3), squeeze=False, sharey=True
    )
    for ax in axes.flat[len(metrics) :]:
        ax.axis("off")
    for ax, metric in zip(axes.flat, metrics, strict=False):
        here = table[table["metric"] == metric]
        _condition_panel(ax, here, conditions)
        ax.set_title(metric_label(metric), loc="left", fontsize=9.5)
        ax.set_yticks(range(len(conditions)), [labels[c] for c in conditions])
        ax.set_ylim(-0.6, len(conditions) - 0.4)
        ax.tick_params(axis="y", length=0)
        ax.set_axisbelow(True)
        ax.grid(axis="x", color="#EEEEEE")
    _explain(fig, table[table["metric"].isin(metrics)])


def _condition_panel(ax: plt.Axes, here: pd.DataFrame, conditions: Sequence[str]) -> None:
    shuffled = here[(here["condition"] == "shuffled_eeg") & (here["subject"] == "all")]
    chance = here["chance"].dropna().unique()
    if len(shuffled) and np.isfinite(shuffled["ci_low"].iloc[0]):
        band = shuffled[["ci_low", "ci_high"]].iloc[0]
        ax.axvspan(*band, color=COLOURS["shuffled_eeg"], alpha=0.22, linewidth=0, zorder=-1)
    for level in chance:
        draw_chance(ax, level, vertical=True)
        ax.lines[-1].set_zorder(1)  # above the grid, which may have a line at the same place
    for y, condition in enumerate(conditions):
        rows = here[here["condition"] == condition]
        _dots(ax, rows, y, COLOURS.get(condition, COLOURS["seen"]))


def _dots(ax: plt.Axes, rows: pd.DataFrame, y: float, colour: str) -> None:
    """Interval and mean over all subjects, or over the only one; small marks are subjects."""
    single, overall = rows[rows["subject"] != "all"], rows[rows["subject"] == "all"]
    ax.plot(
        single["value"], np.full(len(single), y - 0.2), "|", color=colour, markersize=5, alpha=0.9
    )
    for row in overall.itertuples():
        ax.plot(
            [row.ci_low, row.ci_high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt"
        )
        ax.plot(row.value, y, "o", color=colour, markersize=5.5, markeredgecolor="white")


def _explain(fig: plt.Figure, table: pd.DataFrame) -> None:
    n = table.loc[(table["subject"] == "all") & (table["n"] > 0), "n"]
    people = table.loc[table["subject"] != "all", "subject"].nunique()
    span = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    fig.supxlabel(
        f"dot: mean, bar: 95 % bootstrap interval (n = {span} items); ticks: each of {people} "
        "subjects; dashed: chance; grey band: interval of shuffled EEG",
        fontsize=8, color="#555555",
    )  # fmt: skip


def subject_dots(
    table: pd.DataFrame,
    metrics: Sequence[str],
    series: Mapping[tuple[str, str], tuple[str, str]],
    columns: int = 3,
) -> None:
    """One panel for each metric, one group for each subject, one dot for each (model, condition).

    Parameters
    ----------
    table : DataFrame in the form of `sgdm_utils.metrics.tables`
    metrics : sequence of str
    series : mapping of (model, condition) to (label, colour)
    columns : int, panels side by side
    """
    subjects = sorted(s for s in table["subject"].unique() if s != "all") or ["all"]
    n_rows, columns = -(-len(metrics) // columns), min(columns, len(metrics))
    fig, axes = plt.subplots(n_rows, columns, figsize=(10.5, 2.6 * n_rows + 0.4), squeeze=False)
    for ax in axes.flat[len(metrics) :]:
        ax.axis("off")
    for ax, metric in zip(axes.flat, metrics, strict=False):
        here = table[table["metric"] == metric]
        for x, subject in enumerate(subjects):
            for level in here.loc[here["subject"] == subject, "chance"].dropna().unique():
                label = "chance" if x == 0 else None
                style = {"color": COLOURS["chance"], "linestyle": "--", "linewidth": 1}
                ax.hlines(level, x - 0.5, x + 0.5, label=label, zorder=1, **style)
        for k, ((model, condition), (label, colour)) in enumerate(series.items()):
            rows = here[(here["model"] == model) & (here["condition"] == condition)]
            if set(rows["subject"]) == {"all"} != set(subjects):  # the same for everybody
                ax.axhline(rows["value"].iloc[0], color=colour, linewidth=1.6, label=label)
                continue
            rows = rows[rows["subject"].isin(subjects)]
            offset = (k - (len(series) - 1) / 2) * 0.8 / len(series)
            x = rows["subject"].map(subjects.index) + offset
            ax.vlines(x, rows["ci_low"], rows["ci_high"], color=colour, linewidth=2.2)
            style = {"color": colour, "markersize": 5.5, "markeredgecolor": "white"}
            ax.plot(x, rows["value"], "o", label=label, **style)
        ax.set_xticks(range(len(subjects)), list(map(plain, subjects)))
        ax.set_xlim(-0.6, len(subjects) - 0.4)
        low, high = here["value"].min(), ax.get_ylim()[1]
        ax.set_ylim(min(0.0, low) - 0.03 * high, high)  # from zero, lest differences look larger
        ax.set_title(metric_label(metric), loc="left", fontsize=9.5)
        ax.set_axisbelow(True)
        ax.grid(axis="y", color="#EEEEEE")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside right upper", fontsize=8)
    n = table.loc[table["metric"].isin(metrics) & table["subject"].isin(subjects), "n"]
    items = f"{n.max()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    fig.supxlabel(
        f"dot: mean over n = {items} items of a subject, bar: 95 % bootstrap interval over items",
        fontsize=8, color="#555555",
    )  # fmt: skip


def mosaic(
    rows: Mapping[str, np.ndarray],
    titles: Sequence[str],
    notes: Mapping[str, str],
    colours: Mapping[str, str],
    note_title: str = "",
    gap_before: Sequence[str] = (),
) -> None:
    """The overview: labelled rows of pictures, with the score of each row beside it.

    Parameters
    ----------
    rows : mapping of label to uint8 array of shape (n, height, width, 3)
    titles : n strings above the columns
    notes : mapping of label to text at the right end of the row
    colours : mapping of label to colour of the label
    note_title : str, above the notes
    gap_before : labels that begin a new group
    """
    n, step, group, left, right, top = len(titles), 1.06, 0.28, 2.75, 2.2, 0.75
    height = len(rows) * step + group * len(gap_before) + top
    width, end = left + n * step + right, left + n * step + 0.12
    fig = plt.figure(figsize=(width * 0.6, height * 0.6), layout="constrained")
    fig.set_layout_engine("none")  # placed by hand, whatever the style says when it is saved
    ax = fig.add_axes((0, 0, 1, 1))
    small = {"fontsize": 8, "color": "#555555", "linespacing": 1.05}
    for i, title in enumerate(titles):
        ax.text(left + i * step + 0.5, top - 0.12, plain(title), ha="center", va="bottom", **small)
    ax.text(end, top - 0.12, note_title, va="bottom", **small)
    y = top
    for label, pictures in rows.items():
        y += group if label in gap_before else 0
        (name, _, detail), tint = label.partition("\n"), _ink(colours[label])
        for text, shift, style in (
            (name, -0.17 if detail else 0, {"fontsize": 11, "fontweight": "bold", "color": tint}),
            (detail, 0.17, small),
        ):
            ax.text(left - 0.18, y + 0.5 + shift, plain(text), ha="right", va="center", **style)
        note = {"va": "center", "fontsize": 9.5, "color": tint, "linespacing": 1.2}
        ax.text(end, y + 0.5, plain(notes.get(label, "")), **note)
        for i, picture in enumerate(pictures):
            x = left + i * step
            ax.imshow(picture, extent=(x, x + 1, y + 1, y), interpolation="nearest", aspect="auto")
        y += step
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")


def _ink(colour: str) -> tuple[float, ...]:
    """A colour dark enough for text on white."""
    rgb = np.array(to_rgb(colour))
    return tuple(rgb * min(1.0, 0.42 / rgb.mean()))


def nearest_training(distances: Mapping[str, np.ndarray]) -> None:
    """Share of pictures whose nearest training picture is at most so far away, per condition."""
    _, ax = plt.subplots(figsize=(6, 2.6))
    for condition, distance in distances.items():
        x = np.sort(distance)
        label = "seen test pictures" if condition == "seen" else CONDITIONS[condition]
        share = np.arange(1, len(x) + 1) / len(x)
        text = f"{label} (n = {len(x)})"
        ax.step(x, share, where="post", color=COLOURS[condition], label=text)
    ax.set(xlabel="mean squared distance to the nearest training picture")
    ax.set(ylabel="share of pictures", ylim=(0, 1), xlim=(0, None))
    ax.legend(fontsize=7.5)


def reliability_and_maps(
    ceilings: Mapping[str, np.ndarray],
    evoked_uv: np.ndarray,
    times: np.ndarray,
    info: mne.Info,
    moments_s: Sequence[float],
    title: str,
) -> None:
    """Noise ceiling of each subject over time, and the answer to one picture as scalp maps.

    Parameters
    ----------
    ceilings : mapping of subject to reliability, (n_channels, n_times)
    evoked_uv : array of shape (n_channels, n_times), microvolts, one averaged picture
    times : seconds
    info : channel positions
    moments_s : seconds, one map each
    title : str, what the maps show
    """
    with_maps = len(info["ch_names"]) >= 8
    n_maps = len(moments_s) if with_maps else 0
    fig, axes = plt.subplots(
        1, 2 + n_maps, figsize=(10.5, 2.5), width_ratios=[2.2, 2.2, *[1] * n_maps]
    )
    shades = np.linspace(0.45, 1.0, len(ceilings))
    for (subject, reliability), shade in zip(ceilings.items(), shades, strict=True):
        colour = 1 - shade * (1 - np.array(to_rgb(COLOURS["eeg"])))
        axes[0].plot(times * 1000, reliability.mean(0), color=colour, label=plain(subject))
    draw_chance(axes[0], 0.0, "_")
    axes[0].set(xlabel="time (ms)", ylabel="mean over channels", title="reliability")
    axes[0].legend(fontsize=7, loc="upper left", handlelength=1.0)  # nothing is high before onset
    note = {"transform": axes[0].transAxes, "ha": "right", "fontsize": 7}
    axes[0].text(0.99, 0.02, "dashed: nothing repeats", **note)
    axes[1].plot(times * 1000, evoked_uv.T, color=COLOURS["eeg"], alpha=0.35, linewidth=0.7)
    axes[1].set(xlabel="time (ms)", ylabel="µV", title=plain(title))
    limit = np.abs(evoked_uv).max()
    for ax, moment in zip(axes[2:], moments_s, strict=False):
        values = evoked_uv[:, np.abs(times - moment).argmin()]
        draw_topography(ax, values, info, limit, moment)
        axes[1].axvline(moment * 1000, color="#999999", linewidth=0.7, linestyle=":")
    for ax in axes[:2]:
        ax.axvline(0, color="#BBBBBB", linewidth=0.8)


def runtime_bars(table: pd.DataFrame) -> None:
    """Wall time and peak memory of each notebook; per-subject notebooks as stacked bars."""
    _, axes = plt.subplots(1, 2, figsize=(10.5, 0.28 * table["model"].nunique() + 0.9), sharey=True)
    notebooks = sorted(table["model"].unique(), reverse=True)
    for ax, metric, scale, label in zip(
        axes, ("wall_s", "peak_rss_mb"), (60, 1000), ("minutes", "peak memory, GB"), strict=True
    ):
        for y, notebook in enumerate(notebooks):
            rows = table[(table["model"] == notebook) & (table["metric"] == metric)]
            value = rows["value"].to_numpy() / scale
            if metric == "wall_s":
                start = np.concatenate([[0], np.cumsum(value)[:-1]])
                ax.barh(y, value, left=start, color=COLOURS["eeg"], edgecolor="white", height=0.62)
                text = value.sum()
            else:
                text = value.max()
                ax.barh(y, text, color=COLOURS["no_structure"], height=0.62)
            ax.text(text, y, f" {text:.1f}", va="center", fontsize=8)
        ax.set(xlabel=label, yticks=range(len(notebooks)), yticklabels=notebooks)
        ax.margins(x=0.12)
