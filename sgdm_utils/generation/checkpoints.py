"""Training that survives an interruption: the whole state in one file, or the old one.

A run that was killed and started again must end with the same weights as one that never stopped.
So the state holds everything the next step depends on: weights, optimiser, schedule, moving
averages, and the state of every random generator. It also holds what the run was: a state of
other parameters or other inputs is not taken up.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
        schedules, moving averages), torch.Generator or numpy.random.Generator. The generators that
        torch keeps for everybody, from which dropout draws, are always among them.

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
            known = isinstance(part, torch.Generator | np.random.Generator) or (
                hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
            )
            if not known:
                raise TypeError(
                    f"{name} is a {type(part).__name__}: a part of a training state is a generator "
                    "of torch or numpy or has state_dict and load_state_dict"
                )
        self.path, self.parts = Path(path), parts | {"generators of torch": _CommonGenerators()}
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
            _check_digest(self.path)
            # only tensors and plain containers: a file from elsewhere must not run code
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
            step, history, parts = stored["step"], stored["history"], stored["parts"]
            theirs, digest = stored["identity"], stored["digest"]
        except Exception as error:  # whatever is wrong with the file, the training can start anew
            self._ignore(f"it cannot be read ({type(error).__name__}: {error})")
            return 0, []
        if digest != self.digest:
            names = sorted(theirs.keys() | self.identity.keys())
            differ = [n for n in names if theirs.get(n) != self.identity.get(n)]
            self._ignore(f"it belongs to another configuration; different: {', '.join(differ)}")
            return 0, []
        if parts.keys() != self.parts.keys():
            self._ignore(f"it holds {sorted(parts)} where {sorted(self.parts)} are trained")
            return 0, []
        before = copy.deepcopy(self._states())
        try:
            self._load(parts)
        except Exception as error:  # code has been edited: a network has another form
            self._load(before)
            self._ignore(f"it does not fit what is trained ({type(error).__name__}: {error})")
            return 0, []
        return step, history

    def save(self, step: int, history: list) -> None:
        """Write the state after `step` steps; a reader sees the old file or the whole new one."""
        content = {
            "identity": self.identity,
            "digest": self.digest,
            "step": step,
            "history": history,
            "parts": self._states(),
        }
        with atomic.atomic_file(self.path) as part_file:
            torch.save(content, part_file)
            digest = atomic.digest_file(part_file)
            with part_file.open(
                "ab"
            ) as file:  # behind the state, so that both are replaced at once
                file.write(digest.encode())

    def save_every(self, n: int, step: int, history: list) -> bool:
        """Save when `step` is a multiple of `n`; returns whether it did. 0 never saves."""
        due = n > 0 and step % n == 0
        if due:
            self.save(step, history)
        return due

    def remove(self) -> None:
        """Delete the file; call it when the result itself is stored."""
        self.path.unlink(missing_ok=True)

    def _states(self) -> dict[str, Any]:
        return {name: _get_state(part) for name, part in self.parts.items()}

    def _load(self, states: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            if isinstance(part, torch.Generator):
                part.set_state(states[name])
            elif isinstance(part, np.random.Generator):
                part.bit_generator.state = states[name]
            else:
                part.load_state_dict(states[name])

    def _ignore(self, reason: str) -> None:
        warnings.warn(
            f"The training state {self.path.name} is not used: {reason}. Training starts anew.",
            StateIgnored,
            stacklevel=3,
        )


class _CommonGenerators:
    """The generators that torch keeps for everybody: of the processor and of the present card."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        return states

    def load_state_dict(self, states: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def _get_state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.state_dict()


def _check_digest(path: Path) -> None:
    """Compare a state with the SHA-256 behind it: torch reads damaged weights without a word."""
    digest = hashlib.sha256()
    left = path.stat().st_size - 2 * digest.digest_size
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        if file.read() != digest.hexdigest().encode():
            raise ValueError("its digest is another one: the file is damaged")
