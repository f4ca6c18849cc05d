"""The table of results in README.md, computed from the tables of the last demo; `publish` writes it.

Numbers in a text that is edited by hand drift from the results. What stands between the two markers is
computed; a test compares it with the tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sgdm_utils.figures import claims
from sgdm_utils.metrics import tables
from sgdm_utils.workflow import config, paths

BEGIN, END = (
    "<!-- results: begin (computed by: python -m sgdm_utils publish) -->",
    "<!-- results: end -->",
)
ROWS = {
    "oracle": "true meaning and true structure (limit of the generator)",
    "ideal_posterior": "the same EEG, read by a decoder that knows every noise-free answer",
    "eeg": "**EEG** (test concepts never trained on)",
    "eeg_encoder": "the same EEG, read by the networks instead of the forward model",
    "shuffled_eeg": "EEG of another picture",
    "other_subject": "another person's EEG, read as this person's",
    "oracle_semantics": "true meaning, EEG structure",
    "oracle_structure": "EEG meaning, true structure",
    "no_structure": "EEG meaning, no structure",
    "shuffled_structure": "EEG meaning, another picture's structure",
    "no_semantics": "no meaning, EEG structure",
    "nearest_training": "the training picture nearest to what the EEG says",
    "class_only": "true category only",
    "mean_image": "mean training picture",
}
METRICS = {
    "two_way_clip_tiny": "two-way CLIP",
    "pixcorr": "PixCorr",
    "ssim": "SSIM",
    "silhouette_iou": "silhouette IoU",
    "category_accuracy": "category named",
}


def cell(row: pd.DataFrame) -> str:
    """Value with its interval, or a dash."""
    if row.empty:
        return "-"
    r = row.iloc[0]
    if r["ci_low"] != r["ci_low"] or r["ci_low"] == r["ci_high"]:
        return f"{r['value']:.2f}"
    return f"{r['value']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]"


def results(study: str = "demo") -> str:
    """The Markdown between the markers: the study's first seed, like its page."""
    folder = paths.report_dir(study) / "tables"
    seed = config.load_study(study).seeds[0]

    def table(name: str) -> pd.DataFrame:
        return tables.of_seed(tables.read_table(folder / f"{name}.csv"), seed)

    made = table("reconstruction")
    made = made[made["subject"] == "all"]
    n = int(made["n"].max())
    lines = [
        f"| pictures from | {' | '.join(METRICS.values())} |",
        "|---|" + "---|" * len(METRICS),
    ]
    for condition, label in ROWS.items():
        here = made[made["condition"] == condition]
        cells = [cell(here[here["metric"] == m]) for m in METRICS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    chances = [made.loc[made["metric"] == m, "chance"].dropna().iloc[:1].tolist() for m in METRICS]
    shown = " | ".join(f"{c[0]:.2f}" if c else "-" for c in chances)
    lines.append(f"| *chance* | {shown} |")
    found = table("retrieval")
    top = found[(found["metric"] == "top1") & (found["condition"] == "eeg")]
    models = {
        "forward": "forward model", "sgdm": "EEG encoder (network)", "ridge": "ridge regression",
        "ideal_full_noise": "ideal decoder that knows every noise-free answer",
    }  # fmt: skip
    chance = top["chance"].iloc[0]
    gallery = int(top["n"].iloc[0])
    lines += [
        "",
        f"Simulated recording, {top['subject'].nunique()} subjects, n = {n} (subject, picture) pairs at "
        f"most, seed {seed}, 95 % bootstrap intervals. Finding the seen "
        f"picture among {gallery} (top-1 for each subject, chance {chance:.3f}): "
        f"{_by_person(top, models)}.",
    ]
    mean = made.set_index(["condition", "metric"])["value"]
    if "ideal_posterior" in mean.index.get_level_values(0):
        reached = ", ".join(
            f"{label} {mean['eeg', metric] / mean['ideal_posterior', metric]:.0%}"
            for metric, label in METRICS.items()
        )
        lines += [
            "",
            f"Of what the ideal decoder's posterior tells the same generator, the EEG row reaches: {reached}.",
        ]
    every = tables.read_table(folder / "reconstruction.csv")
    every = every[(every["subject"] == "all") & (every["condition"] == "eeg")]
    if every["seed"].nunique() > 1:
        own = every.sort_values("seed").groupby("metric")["value"]
        told = [
            f"{label} {', '.join(f'{v:.2f}' for v in own.get_group(metric))}"
            for metric, label in METRICS.items()
        ]
        listing = ", ".join(str(int(s)) for s in sorted(every["seed"].unique()))
        lines += [
            "",
            f"The EEG row with the training seeds {listing}: {'; '.join(told)} (`20_seeds`).",
        ]
    audits = pd.read_csv(folder / "audits.csv")
    lines += [
        f"**An audit finds a violation with training seed {r.seed}**: {r.audit}, {r.value:.3f} of {r.n} pictures, limit "
        f"{float(r.reference):.2f} (`reports/demo/tables/audits.csv`)."
        for r in audits[audits["verdict"] == "VIOLATED"].itertuples()
    ]
    if of_claims := claims.lines(folder):
        lines += [
            "",
            "What the experiments say to claims of the field (the simulated recording unless real ones are named, means over people; each notebook has intervals, controls and tests):",
            "",
            "| claim | numbers | chance | notebook |",
            "|---|---|---|---|",
            *of_claims,
        ]
    cost = table("runtime")
    wall = cost.loc[cost["metric"] == "wall_s", "value"].sum() / 60
    peak = cost.loc[cost["metric"] == "peak_rss_mb", "value"].max() / 1000
    lines += [
        "",
        f"The notebooks 00 to 06 behind these numbers took {wall:.0f} minutes in sum, some of them side by side, and at most "
        f"{peak:.1f} GB, on two cores (`reports/demo/tables/runtime.csv`).",
    ]
    return "\n".join(lines)


def _by_person(rows: pd.DataFrame, models: Mapping[str, str]) -> str:
    """Each model's value for each person."""
    parts = []
    for model, label in models.items():
        values = rows[rows["model"] == model].sort_values("subject")["value"]
        if len(values):
            parts.append(f"{label} {', '.join(f'{v:.2f}' for v in values)}")
    return "; ".join(parts)


def fill(text: str, table: str) -> str:
    """README text with the table put between the markers."""
    head, _, rest = text.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"README.md lacks the markers {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"
