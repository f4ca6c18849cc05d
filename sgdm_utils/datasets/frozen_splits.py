"""A split as a file: written once with its digest and its facts, refused when it was edited since.

Who is in which split is decided in `splits`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sgdm_utils.datasets.splits import REQUIRED, SPLITS, SplitError, assert_split_integrity
from sgdm_utils.workflow.atomic import atomic_file, digest_file

_COUNTED = ("sha256", "images", "concepts")  # what the JSON file says by itself


def write_split(
    path: Path,
    table: pd.DataFrame,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Freeze a split: the table as TSV; its digest, counts and facts in a JSON file beside it.

    Parameters
    ----------
    path : Path, e.g. `split.tsv`
    table : DataFrame with `image_id`, `concept`, `split` and any further columns, one row per image
    overwrite : bool, replace a frozen split that differs
    facts : mapping of what JSON can hold, how the split came about: `scheme`, `seed`, `subjects`,
        `left_out`. Left out, the facts of the same split, frozen earlier, stay.

    Returns
    -------
    Path, `path`

    Raises
    ------
    SplitError
        When the split leaks, an image is listed twice, or another split (or the same one with
        other facts) was frozen there.
    """
    path = Path(path)
    assert_split_integrity(table)
    facts = None if facts is None else json.loads(json.dumps(dict(facts)))
    reserved = sorted(set(facts or {}) & set(_COUNTED))
    if reserved:
        raise SplitError(f"the fact {reserved[0]!r} is counted from the table: use another name")
    double = table["image_id"][table["image_id"].duplicated()]
    if len(double):
        raise SplitError(
            f"image {double.iloc[0]!r} is listed twice in the split: one row per image"
        )
    with atomic_file(path) as part:
        table.to_csv(part, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        digest = digest_file(part)
        if path.is_file() and not overwrite and digest_file(path) != digest:
            raise SplitError(
                f"{path} holds another split, which earlier results stand on. Read that one "
                "(read_split), or remove it and everything derived from it"
            )
        if facts is None or not overwrite:
            facts = _agreed_facts(path, digest, facts)
    by_split = {s: table[table["split"] == s] for s in SPLITS}
    counted = {
        "sha256": digest,
        "images": {s: len(rows) for s, rows in by_split.items()},
        "concepts": {s: int(rows["concept"].nunique()) for s, rows in by_split.items()},
    }
    with atomic_file(path.with_suffix(".json")) as part:
        part.write_text(json.dumps(counted | facts, indent=2) + "\n", encoding="utf-8")
    return path


def _agreed_facts(path: Path, digest: str, facts: dict | None) -> dict:
    """Return `facts`, or those frozen earlier with the same table; refuse when they differ."""
    known = read_facts(path) if path.with_suffix(".json").is_file() else {}
    if known.get("sha256") != digest:
        return facts or {}
    earlier = {k: v for k, v in known.items() if k not in _COUNTED}
    facts = earlier if facts is None else facts
    differ = sorted(k for k in earlier if earlier[k] != facts.get(k))
    if differ:
        raise SplitError(
            f"{path.with_suffix('.json')} says of the same split that {differ[0]} is "
            f"{earlier[differ[0]]!r}, not {facts.get(differ[0])!r}. Correct what is wrong, or "
            "freeze it anew on purpose (overwrite=True)"
        )
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was frozen with a split: digest, counts, and how it came about.

    Parameters
    ----------
    path : Path of the table, as for `read_split`, which checks the digest

    Raises
    ------
    SplitError
        When the JSON file beside it is missing or no JSON.
    """
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        raise SplitError(f"{sidecar} is missing: run notebook 00_data, which freezes the split")
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SplitError(
            f"{sidecar} is no JSON ({error}): restore it, or freeze the split again"
        ) from error


def read_split(path: Path) -> pd.DataFrame:
    """Read a frozen split and refuse it when it was edited or leaks.

    Raises
    ------
    SplitError
        A missing file, a table that does not have the digest it was frozen with, or a leak.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    if not path.is_file():
        raise SplitError(f"{path} is missing: run notebook 00_data, which freezes the split")
    if digest_file(path) != read_facts(path).get("sha256"):
        raise SplitError(
            f"{path} was changed after it was frozen (its digest is not the one in "
            f"{sidecar.name}). Restore it, or freeze the new split on purpose with "
            "write_split(..., overwrite=True)"
        )
    table = pd.read_csv(
        path, sep="\t", dtype=dict.fromkeys(REQUIRED, str), na_values=["n/a"], keep_default_na=False
    )
    assert_split_integrity(table)
    return table
