"""Pictures that were drawn once and are not drawn again: an evaluation that can be repeated.

A set of pictures is kept under the digest of everything it was made from. Scoring them anew, after a
metric changed or a run was interrupted, then draws nothing; and nothing that was made from other
weights, conditions or noise can be taken for them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sgdm_utils.workflow import atomic
from sgdm_utils.workflow.formats import read_npy


class PictureStore:
    """Sets of pictures in a folder, by what they were made from.

    Parameters
    ----------
    folder : Path, made when the first set is kept
    identity : mapping of str to what JSON can hold, equal for all sets: digest of the generator,
        number of steps, seed
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.identity = json.dumps(dict(identity), sort_keys=True)
        self.used: set[str] = set()

    def key(self, *parts: Any) -> str:
        """Digest of the identity and of arrays, numbers, texts, mappings and None."""
        digest = hashlib.sha256(self.identity.encode())
        for part in parts:
            _add(digest, part)
        return digest.hexdigest()[:32]

    def get(self, key: str) -> np.ndarray | None:
        """The uint8 pictures kept under a key, or None where there are none that are whole."""
        self.used.add(key)
        path = self.folder / f"{key}.npy"
        if not path.is_file():
            return None
        try:
            pictures = read_npy(path)
            if pictures.dtype != np.uint8 or pictures.ndim != 4:
                raise ValueError(f"{pictures.dtype} of shape {pictures.shape}")
            return pictures
        except ValueError as error:
            warnings.warn(f"{path.name} is damaged and drawn again ({error})", stacklevel=2)
            return None

    def put(self, key: str, pictures: np.ndarray) -> np.ndarray:
        """Keep uint8 pictures (n, height, width, 3) under a key and return them.

        Raises
        ------
        ValueError
            For anything but 8 bit pictures: what is kept must be what is scored.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise ValueError(
                f"pictures to keep must be uint8 (n, height, width, 3), got {pictures.dtype} "
                f"{pictures.shape}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_file(self.folder / f"{key}.npy") as part:
            with open(part, "wb") as file:
                np.save(file, pictures)
        self.used.add(key)
        return pictures

    def prune(self) -> int:
        """Remove the sets that nobody asked for since this object was made; return their number."""
        unused = [path for path in self.folder.glob("*.npy") if path.stem not in self.used]
        for path in unused:
            path.unlink()
        return len(unused)


def _add(digest: Any, part: Any) -> None:
    """Feed an array, a mapping of names to such, or what JSON can hold to a digest."""
    if isinstance(part, np.ndarray):
        head = f"array {part.dtype} {part.shape}"
        digest.update(head.encode() + np.ascontiguousarray(part).tobytes())
    elif isinstance(part, Mapping):
        for name in sorted(part):
            digest.update(f"name {name}".encode())
            _add(digest, part[name])
    else:
        digest.update(json.dumps(part, sort_keys=True).encode())
