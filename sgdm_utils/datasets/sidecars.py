"""Which file of a BIDS data set says something about a recording: entities and inheritance.

References
----------
BIDS 1.10.0, common principles: file name entities, "The inheritance principle".
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.content import require_content


def entities(path: Path | str) -> dict[str, str]:
    """Return the entities of a file name: `sub-01_task-see_eeg.edf` is {"sub": "01", "task": "see"}.

    Parts without a hyphen (an addition by hand, e.g. `_old`) come back with the value "".
    """
    *parts, _ = Path(path).name.split("_")
    return {key: value for key, _, value in (part.partition("-") for part in parts)}


def find_sidecars(
    recording: Path, root: Path, ending: str, free: tuple[str, ...] = ()
) -> list[Path]:
    """List the files that apply to a recording, on the lowest level that has any.

    Parameters
    ----------
    recording : Path
    root : Path, of the data set, where the search ends
    ending : str, "events.tsv"
    free : entities that the recording need not have ("space")

    Returns
    -------
    list of Path, those with most entities first
    """
    known = entities(recording)
    for folder in recording.parents:
        fitting = []
        for path in sorted(folder.glob(f"*{ending}")):
            named = {k: v for k, v in entities(path).items() if k not in free}
            if path.name.rpartition("_")[2] == ending and named.items() <= known.items():
                fitting.append((-len(named), path))
        if fitting:
            return [path for _, path in sorted(fitting)]
        if folder == root:
            break
    return []


def find_sidecar(recording: Path, root: Path, ending: str) -> Path | None:
    """Return the table that holds for a recording, or None.

    The lowest level that has one decides, on it the name with most entities; tables of other
    levels are not added up.

    Parameters
    ----------
    recording, root, ending : see `find_sidecars`

    Raises
    ------
    DatasetError
        When two names say equally much.
    """
    found = find_sidecars(recording, root, ending)
    if len(found) > 1 and len(entities(found[0])) == len(entities(found[1])):
        own = recording.name.rpartition("_")[0]
        raise DatasetError(
            f"{found[0]} and {found[1].name} apply to {recording.name} alike. Copy the right one to "
            f"{recording.with_name(f'{own}_{ending}')}"
        )
    return found[0] if found else None


def read_tsv(path: Path) -> pd.DataFrame:
    """Read a BIDS table as text: byte order mark skipped, `n/a` and empty cells missing."""
    require_content(path)
    with reading(path, "a table of tab-separated UTF-8 text", "Correct it, or copy it again"):
        table = pd.read_csv(
            path, sep="\t", dtype=object, encoding="utf-8-sig", na_values=["n/a", ""],
            keep_default_na=False, quoting=3,
        )  # fmt: skip
        table = table.rename(columns=str.strip)
        if not isinstance(table.index, pd.RangeIndex):  # the first cells would be names of rows
            raise ValueError("its first line has fewer columns than the others")
        if double := sorted(table.columns[table.columns.duplicated()]):
            raise ValueError(f"two columns are called {double[0]!r}")
    return table
