"""The command that scores a folder of reconstructions against a folder of targets.

    python -m sgdm_utils score RECONSTRUCTIONS TARGETS --out scores.csv --weights FOLDER

Exit codes: 0 the table is whole (rows without weights say so), 1 the input was refused, 2 the command
was misspelt, 3 with --strict when a row holds no number.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.metrics import tables
from sgdm_utils.metrics.folders import score_folders
from sgdm_utils.metrics.networks import Precision, Trunk, clip_trunk


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (see the head of this module)."""
    given = _parser().parse_args(arguments)
    out = Path(given.out) if given.out else None
    try:
        table = score_folders(
            given.pred,
            given.target,
            weights=given.weights,
            names=given.metrics,
            substitutes=_substitutes(given.substitute, given.device, given.precision),
            captions=_read_captions(given.captions) if given.captions else None,
            samples_separator=given.separator,
            device=given.device,
            precision=given.precision,
            finished=out.with_suffix(".items.json") if out else None,
            keep_targets=given.keep_targets,
            progress=not given.quiet,
            background=given.background,
            not_square=given.not_square,
            **{k: v for k in ("study", "model", "condition") if (v := getattr(given, k))},
        )
        if out:
            tables.write_table(out, table.astype({"seed": object}).to_dict("records"))
    except (DatasetError, ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_table(table))
    if table.attrs["copies"]:
        print(
            f"note: {table.attrs['copies']} reconstructions are their targets, pixel for pixel",
            file=sys.stderr,
        )
    return 3 if given.strict and table["value"].isna().any() else 0


def format_table(table: pd.DataFrame) -> str:
    """The table as people read it: value, interval and chance, or why there is no number."""
    facts = table.attrs
    lines = [
        f"{facts['n_pictures']} pictures x {facts['n_samples']} samples, 95 % bootstrap intervals "
        "over pictures"
    ]
    width = max(len(name.partition(" (")[0]) for name in table["metric"])
    lines.append(f"{'metric':{width}}  {'value':>9}  {'interval':^21}  {'chance':>8}  {'n':>6}")
    for row in table.itertuples():
        name, _, note = row.metric.partition(" (")
        if math.isnan(row.value):
            lines.append(f"{name:{width}}  {note.rstrip(')')}")
            continue
        interval = "" if math.isnan(row.ci_low) else f"[{row.ci_low:.4f}, {row.ci_high:.4f}]"
        chance = "" if math.isnan(row.chance) else f"{row.chance:.4f}"
        lines.append(
            f"{name:{width}}  {row.value:>9.4f}  {interval:^21}  {chance:>8}  {row.n:>6}".rstrip()
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sgdm_utils score",
        description="Score a folder of reconstructions against a folder of targets.",
        epilog="Pictures belong together by name: TARGETS/cat.png and PRED/cat.png, or PRED/cat_0.png,"
        " PRED/cat_1.png, ... or PRED/cat/*.png for several samples. Nothing is downloaded.",
    )
    add = parser.add_argument
    add("pred", help="folder of reconstructions")
    add("target", help="folder of targets")
    add("--out", help="CSV to write; finished metrics are kept beside it, so a run can be resumed")
    add(
        "--keep-targets",
        metavar="FOLDER",
        help="keep the targets' features there for the next scoring",
    )
    add("--weights", help="folder with files of pretrained weights under their published names")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    add("--precision", default="float32", choices=("float32", "bfloat16"), help="of the networks")
    add("--metrics", nargs="+", metavar="NAME", help="only these metrics")
    add("--separator", default="_", help="between name and number of a sample, _ by default")
    add("--captions", help="CSV with the columns stem and caption, for text scores")
    add("--background", metavar="COLOUR", help="what transparent pictures were shown on")
    add("--not-square", choices=("crop", "pad"), help="what became of pictures that are not square")
    add("--substitute", action="append", default=[], metavar="NAME=FOLDER",
        help="add metrics of a CLIP in open_clip's folder layout, under a name of its own")  # fmt: skip
    for name in ("study", "model", "condition"):
        add(f"--{name}", help=f"content of the column {name}")
    add("--strict", action="store_true", help="exit code 3 when a row holds no number")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


def _substitutes(given: list[str], device: str, precision: Precision) -> dict[str, Trunk]:
    found = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--substitute {text}: expected NAME=FOLDER")
        from sgdm_utils.decoding.clip import load_clip

        model, _ = load_clip(f"local-dir:{folder}")
        found[name] = clip_trunk(model, name, precision).to(device)
    return found


def _read_captions(path: str) -> dict[str, str]:
    with reading(path, "captions", "Write it as CSV with the columns stem and caption"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    lacking = {"stem", "caption"} - set(table.columns)
    if lacking:
        raise DatasetError(f"{path} lacks the column {sorted(lacking)[0]}: it needs stem, caption")
    twice = table["stem"][table["stem"].duplicated()]
    if len(twice):
        raise DatasetError(f"{path} names the stem {twice.iloc[0]} twice")
    return dict(zip(table["stem"], table["caption"], strict=True))
