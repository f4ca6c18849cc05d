"""Training that survives an interruption: the whole state in one file, or the old one.

A run that was killed and started again must end with the same weights as one that never stopped.
So the state holds everything the next step depends on: weights, optimiser, schedule, moving
averages, and the state of every random generator. It also holds what the run was: a state of
other parameters or other inputs is not taken up.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sgdm_utils.workflow import atomic


class StateIgnored(UserWarning):
    """A stored training state is not used: it belongs to another run, or it is damaged."""


class TrainingState:
    """Save and resume a training loop.

    Parameters
    ----------
    path : Path, the file; its folder is made if need be
    identity : mapping of str to what JSON can hold; parameters and digests of inputs that decide
        the result of the training
    parts : mapping of str to objects with `state_dict` and `load_state_dict` (modules, optimisers,
        schedules, moving averages) or torch.Generator

    Examples
    --------
    >>> state = TrainingState(path, identity, model=model, optimizer=optimizer, noise=generator)
    >>> start, history = state.resume()
    >>> for step in range(start, n_steps):
    ...     history.append(train_one_step())
    ...     state.save_every(200, step + 1, history)

    Notes
    -----
    The history is saved with the weights, so it must hold plain numbers, texts, lists and
    dictionaries. Tensors are read back to where the parts keep theirs.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], **parts: Any) -> None:
        if not parts:
            raise ValueError("nothing to save: name the model, the optimiser, the generators")
        for name, part in parts.items():
            known = isinstance(part, torch.Generator) or (
                hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
            )
            if not known:
                raise TypeError(
                    f"{name} is a {type(part).__name__}: a part of a training state is a "
                    "torch.Generator or has state_dict and load_state_dict"
                )
        self.path, self.parts = Path(path), parts
        # through JSON and back, so that what is compared is what can be stored
        self.identity = json.loads(json.dumps(dict(identity), sort_keys=True))

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def resume(self) -> tuple[int, list]:
        """Take up the stored state, if there is one of this very run.

        Returns
        -------
        step : int, number of steps already made; 0 for a fresh start
        history : list, as it was saved; empty for a fresh start

        Warns
        -----
        StateIgnored
            If a state is there but cannot be used; says which parameter or input differs.
        """
        if not self.path.is_file():
            return 0, []
        try:
            # only tensors and plain containers: a file from elsewhere must not run code
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
            step, history, parts = stored["step"], stored["history"], stored["parts"]
            theirs, digest = stored["identity"], stored["digest"]
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as e:
            self._ignore(f"it cannot be read ({type(e).__name__})")
            return 0, []
        if digest != self.digest:
            names = sorted(theirs.keys() | self.identity.keys())
            differ = [n for n in names if theirs.get(n) != self.identity.get(n)]
            self._ignore(f"it belongs to another configuration; different: {', '.join(differ)}")
            return 0, []
        if parts.keys() != self.parts.keys():
            self._ignore(f"it holds {sorted(parts)} where {sorted(self.parts)} are trained")
            return 0, []
        for name, part in self.parts.items():
            if isinstance(part, torch.Generator):
                part.set_state(parts[name])
            else:
                part.load_state_dict(parts[name])
        return step, history

    def save(self, step: int, history: list) -> None:
        """Write the state after `step` steps; a reader sees the old file or the whole new one."""
        parts = {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in self.parts.items()
        }
        content = {
            "identity": self.identity,
            "digest": self.digest,
            "step": step,
            "history": history,
            "parts": parts,
        }
        with atomic.atomic_file(self.path) as part_file:
            torch.save(content, part_file)

    def save_every(self, n: int, step: int, history: list) -> bool:
        """Save when `step` is a multiple of `n`; returns whether it did. 0 never saves."""
        due = n > 0 and step % n == 0
        if due:
            self.save(step, history)
        return due

    def remove(self) -> None:
        """Delete the file; call it when the result itself is stored."""
        self.path.unlink(missing_ok=True)

    def _ignore(self, reason: str) -> None:
        warnings.warn(
            f"The training state {self.path.name} is not used: {reason}. Training starts anew.",
            StateIgnored,
            stacklevel=3,
        )
