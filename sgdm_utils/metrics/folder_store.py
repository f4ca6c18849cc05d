"""Results of metrics in a file, with what they were computed from, so that a run can be resumed.

The file is JSON: digests of the pictures, and for each finished metric the digest of its weights, the
precision, the value, and the score of every picture in the order of the sorted stems.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sgdm_utils.datasets.bids import DatasetError
from sgdm_utils.metrics.classes import Result
from sgdm_utils.workflow.atomic import atomic_file


class Finished:
    """Results that are kept in a file, with what they were computed from."""

    def __init__(self, path: Path | None, inputs: dict[str, str]) -> None:
        self._path, self._content = path, {"inputs": inputs, "metrics": {}}
        if path is None or not path.is_file():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["inputs"] == inputs and isinstance(stored["metrics"], dict):
                self._content = stored
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{path} holds no finished metrics ({type(error).__name__}): remove it, or give "
                "another name"
            ) from error

    def get(self, name: str, key: dict[str, object]) -> Result | str | None:
        """The stored result of a metric, if it was computed from the very same things."""
        entry = self._content["metrics"].get(name)
        if not entry or entry["made_with"] != key:
            return None
        if "note" in entry:
            return entry["note"]
        result = entry["result"]
        return Result(**result | {"chance": math.nan if (c := result["chance"]) is None else c})

    def add(self, results: Mapping[str, Result | str], keys: Mapping[str, dict]) -> None:
        """Keep more results; a reader of the file sees all of them or none."""
        for name, result in results.items():
            entry: dict[str, object] = {"made_with": keys[name]}
            if isinstance(result, str):
                entry["note"] = result
            else:
                chance = None if math.isnan(result.chance) else result.chance
                entry["result"] = asdict(result) | {"chance": chance}
            self._content["metrics"][name] = entry
        if self._path is not None:
            with atomic_file(self._path) as part:
                part.write_text(json.dumps(self._content) + "\n", encoding="utf-8")
