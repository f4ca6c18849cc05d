"""What the experiments say to the claims made for such models: a computed table for README.md.

Values are means over the rows that a claim names (people, or training seeds); where a table is not
there, the claim has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sgdm_utils.metrics import tables


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes
    ----------
    text : str, the claim as the field makes it
    notebook : str, stem of the experiment
    table : str, name of its table
    values : tuple of (label, model, condition, metric)
    by_person : bool, the value of each person instead of the mean
    digits : int, decimal places
    study : str, whose table it is; "" for the study of all others
    """

    text: str
    notebook: str
    table: str
    values: tuple[tuple[str, str, str, str], ...]
    by_person: bool = False
    digits: int = 2
    study: str = ""


CLAIMS = (
    Claim(
        "a single look is enough (top-1)", "15_repetitions", "repetitions",
        tuple(
            (f"{name}, {n} trial{'s' * (n > 1)}", model, f"repetitions_{n}", "top1")
            for name, model in (("forward model", "forward"), ("network", "sgdm"))
            for n in (1, 4, 20)
        ),
    ),
    Claim(
        "few electrodes are enough (top-1)", "13_low_density", "low_density",
        tuple(
            (f"{name}, {n}", model, f"{kind}_{n}", "top1")
            for name, model in (("forward model", "forward"), ("network", "sgdm"))
            for kind, n in (("all", 63), ("posterior", 17), ("posterior", 8), ("posterior", 4))
        ),
    ),
    Claim(
        "what kind of thing was seen is in the EEG (category named)", "24_forward_model", "forward",
        tuple(
            (text, f"forward_labels_{name}", "eeg", "category_named")
            for text, name in (
                ("labels of training pictures known", "own"), ("no labels", "none"), ("exchanged labels", "exchanged"),
            )
        ),
    ),
    Claim(
        "it works for people nobody trained on (eight people, top-1 of 100)", "14_cross_subject", "cross_subject",
        (
            ("no calibration", "forward", "0 min", "top1"),
            ("1 minute", "forward", "1 min", "top1"),
            ("10 minutes", "forward", "10 min", "top1"),
            ("10 minutes of another person", "wrong person", "10 min", "top1"),
            ("model of one's own", "own model", "all minutes", "top1"),
        ),
        study="people",
    ),
    Claim(
        "better pictures than GAN and VAE, equal time (PixCorr / IoU)", "11_baselines", "baselines",
        tuple(
            (f"{name}, {label}", model, "eeg", metric)
            for name, model in (
                ("SGDM", "sgdm_equal_time"), ("GAN", "cgan"), ("VAE", "cvae"),
                ("no network, colours on lines", "colours_on_lines"),
            )
            for label, metric in (("PixCorr", "pixcorr"), ("IoU", "silhouette_iou"))
        ),
        digits=3,
    ),
    Claim(
        "form comes early, meaning late (peak of unique variance, ms)", "16b_variance_partitioning", "partitioning",
        tuple((k, "linear", "eeg", f"{k}_peak_ms") for k in ("retinotopic", "structure", "meaning")),
        by_person=True, digits=0,
    ),
    Claim(
        "it decodes live, by causal filters (top-1 of single trials)", "22_live", "live",
        (
            ("from the stream", "live", "eeg", "top1_single_trial"),
            ("offline", "offline", "eeg", "top1_single_trial"),
        ),
    ),
    Claim(
        "form can be read from real brains (silhouettes from fMRI geometry, two-way)", "23_real_brains", "real_brains",
        tuple(
            (label, "structure_vae", condition, "two_way")
            for label, condition in (
                ("early visual cortex", "early visual"), ("inferior temporal cortex", "inferior temporal"),
                ("category only", "class_only"), ("shuffled pictures", "shuffled, early visual"),
            )
        ),
    ),
    Claim(
        "four dry electrodes tell faces from houses (real EEG, AUC on left-out runs)", "23_real_brains", "real_brains",
        tuple((c, "lda", c, "auc") for c in ("after the picture", "before the picture", "shuffled classes")),
    ),
)  # fmt: skip


def lines(folder: Path) -> list[str]:
    """Rows of the Markdown table, without its head.

    Parameters
    ----------
    folder : Path, of the tables of a study
    """
    found = []
    for claim in CLAIMS:
        place = folder.parent.parent / claim.study / "tables" if claim.study else folder
        path = place / f"{claim.table}.csv"
        if not path.is_file():
            continue
        table = tables.read_table(path)
        parts = [
            f"{label} {value}"
            for label, *key in claim.values
            if (value := _value(table, *key, by_person=claim.by_person, digits=claim.digits))
        ]
        if parts:
            link = f"[{claim.notebook}](notebooks/experiments/{claim.notebook}.ipynb)"
            found.append(
                f"| {claim.text} | {'; '.join(parts)} | {_chance(table, claim)} | {link} |"
            )
    return found


def _chance(table: pd.DataFrame, claim: Claim) -> str:
    """Chance levels of the rows of a claim; a dash where its measures have none."""
    metrics = {metric for *_, metric in claim.values}
    models = {model for _, model, *_ in claim.values}
    here = table[table["metric"].isin(metrics) & table["model"].isin(models)]
    levels = here["chance"].dropna()
    ends = dict.fromkeys(f"{v:.2g}" for v in (levels.min(), levels.max())) if len(levels) else ["-"]
    return " to ".join(ends)


def _value(
    table: pd.DataFrame, model: str, condition: str, metric: str, by_person: bool, digits: int
) -> str:
    """Mean over people and seeds, or the value of each person; "" where there is no row."""
    here = table[
        (table["model"] == model) & (table["condition"] == condition) & (table["metric"] == metric)
    ]
    people = here[here["subject"] != "all"]
    if by_person:
        return ", ".join(f"{v:.{digits}f}" for v in people.sort_values("subject")["value"])
    rows = people if len(people) else here
    return f"{rows['value'].mean():.{digits}f}" if len(rows) else ""
