"""The pictures of a study as `00_data` stored them: a table, and arrays in its order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli.maps import structure_map
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.formats import read_npy, read_parquet

_AGAIN = "It is damaged: run 00_data again"


class StoredStimuli:
    """Pictures of a study; row i of `table` and of every array is one picture.

    Arrays are opened when they are asked for.

    Parameters
    ----------
    folder : Path or Artifact
        The artifact ``data`` of `00_data`.

    Attributes
    ----------
    table : DataFrame
        ``image_id, concept, category, split, shown, caption, ...``
    """

    def __init__(self, folder: Path | Artifact) -> None:
        self._folder = folder
        self.table = read_parquet(folder / "stimuli.parquet", ["image_id"])

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def pictures(self) -> np.ndarray:
        """uint8 array of shape (n, height, width, 3), on the disk."""
        return self._array("pictures", 4, mmap=True)

    @cached_property
    def silhouettes(self) -> np.ndarray:
        """bool array of shape (n, height, width)."""
        return self._array("silhouettes", 3)

    @cached_property
    def edges(self) -> np.ndarray:
        """bool array of shape (n, height, width)."""
        return self._array("edges", 3)

    @cached_property
    def structure_maps(self) -> np.ndarray:
        """float32 array of shape (n, 2, height, width): silhouette and edges, in [0, 1]."""
        if self.silhouettes.shape != self.edges.shape:
            raise DatasetError(
                f"{self._folder / 'edges.npy'} has the shape {self.edges.shape}, "
                f"silhouettes.npy beside it {self.silhouettes.shape}. {_AGAIN}"
            )
        return structure_map(self.silhouettes, self.edges)

    @cached_property
    def pieces(self) -> np.ndarray:
        """uint8 array of shape (n, height, width): the tan at each pixel, 0 where there is none."""
        return self._array("pieces", 3)

    @cached_property
    def relations(self) -> np.ndarray:
        """int8 array of shape (n, 7, 7): relations of the seven tans, -1 where there are none."""
        return self._array("relations", 3)

    def _array(self, name: str, n_axes: int, mmap: bool = False) -> np.ndarray:
        array = read_npy(self._folder / f"{name}.npy", mmap)
        if array.ndim != n_axes or len(array) != len(self):
            raise DatasetError(
                f"{self._folder / name}.npy has the shape {array.shape}, expected {n_axes} axes and "
                f"a row for each of {len(self)} pictures. {_AGAIN}"
            )
        return array

    @cached_property
    def row_of(self) -> pd.Series:
        """Row number by image id."""
        return pd.Series(np.arange(len(self.table)), index=self.table["image_id"])

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, in the order of the table."""
        return np.flatnonzero(self.table["split"] == split)

    def rows_of(self, image_ids: Sequence[str]) -> np.ndarray:
        """Row numbers of image ids, in their order.

        Raises
        ------
        KeyError
            Names an id that the study does not have.
        """
        rows = self.row_of.reindex(list(image_ids))
        if rows.isna().any():
            raise KeyError(f"{rows.index[rows.isna()][0]!r} is no image of this study")
        return rows.to_numpy(dtype=np.int64, copy=True)


def open_stimuli(data: Path | Artifact) -> StoredStimuli:
    """Open the pictures that `00_data` stored.

    Raises
    ------
    DatasetError
        A study without pictures, where only labels of what was seen are known.
    """
    stored = StoredStimuli(data)
    if "category" not in stored.table:
        raise DatasetError(
            "this study has no pictures, only labels of what was seen, and this step needs them. Put "
            "the picture files into stimuli/ of the data set, name their column in 00_data "
            "(stimulus_column) and run 00_data and 01_preprocessing again; or end the study before "
            "this step, until: 01_preprocessing in config/<study>.yaml"
        )
    return stored
