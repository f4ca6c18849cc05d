"""A human test of reconstructions: two-alternative forced choice, blinded, kept.

A reconstruction is shown with two pictures, the one that was seen and a foil; the rater picks one.
The list of trials is a deterministic function of seed and rater, every answer is on the disk before
the next trial appears, and what is scored (`scores`) is what the file says. The page, with two
candidates and two buttons, is `RatingWidget`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
from PIL import Image

from sgdm_utils.workflow import locks
from sgdm_utils.workflow.atomic import atomic_file

COLUMNS = (
    *("study", "rater", "trial", "condition", "subject", "image_id", "foil_id", "left"),
    *("answer", "correct", "seconds", "timestamp"),
)
PLANNED = COLUMNS[:8]  # what the design fixes; the rest is the rater's
SIDES = ("left", "right")
_RATER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


class RatingsError(ValueError):
    """A design that cannot be made, or a file of ratings that cannot be used as it stands."""


def make_design(
    study: str,
    rater: str,
    image_ids: Sequence[str],
    sets: Sequence[tuple[str, str]],
    conditions: Sequence[str],
    n_items: int,
    n_catch: int = 6,
    catch: str = "oracle",
    seed: int = 0,
) -> pd.DataFrame:
    """List the trials of one rater.

    Parameters
    ----------
    study : str
    rater : str, a pseudonym; also the name of the file of answers
    image_ids : sequence of str, all test pictures
    sets : sequence of (condition, subject), the reconstructions that there are; subject "all" where
        they do not depend on one
    conditions : sequence of str, conditions under test
    n_items : int, pictures of this rater; each is shown once in every condition
    n_catch : int, trials of the condition `catch`, which an attentive rater hardly misses
    catch : str, condition of the catch trials, none of `conditions`
    seed : int, with the name of the rater it fixes everything

    Returns
    -------
    DataFrame with the columns `PLANNED`, one row per trial in the order of showing; `left` says which
    of the two pictures lies left, "image" (the seen one) or "foil"

    Raises
    ------
    RatingsError
        A condition without reconstructions, a rater's name that is no file name, too few pictures.

    Notes
    -----
    Pictures go through the conditions in a Latin square: round k shows picture j in condition
    (j + k) mod C, so that conditions are spread evenly over the session and fatigue meets all alike.
    In every condition the foils are the rater's own pictures, each once: a picture is right as often
    as it is wrong, and remembering pictures does not help. Subject and picture are tied, so that two
    conditions of one picture differ by the condition alone.
    """
    _check_rater(rater)
    subjects: dict[str, list[str]] = {}
    for condition, subject in sets:
        subjects.setdefault(condition, []).append(subject)
    named = [*conditions, *([catch] if n_catch else [])]
    for condition in named:
        if condition not in subjects:
            raise RatingsError(
                f"no reconstructions of the condition {condition!r}; there are: "
                f"{', '.join(sorted(subjects))}"
            )
    if not conditions or len(set(named)) < len(named):
        raise RatingsError(
            f"conditions {list(conditions)}, catch trials {catch!r}: name each condition once, and "
            "catch trials by another one, or a rater meets a picture twice in one condition"
        )
    if len(set(image_ids)) < len(image_ids):
        raise RatingsError("a picture is twice among image_ids: give each once")
    for what, count, least in (("n_items", n_items, 2), ("n_catch", n_catch, 0)):
        if not least <= count <= len(image_ids) or count == 1:
            raise RatingsError(
                f"{what}={count} with {len(image_ids)} pictures: take between {least} and all of "
                "them, and not 1, because the foils are the other pictures"
            )
    name = hashlib.sha256(rater.encode()).digest()[:8]
    rng = np.random.default_rng([seed, *name])
    order = rng.permutation(np.asarray(image_ids, dtype=str))
    items, caught = order[:n_items], order[::-1][:n_catch]  # disjoint where there are enough
    pairs = [_pairs(c, items, subjects[c], rng, k) for k, c in enumerate(conditions)]
    trials: list[dict] = []
    for k in range(len(conditions)):
        picked = [pairs[(j + k) % len(conditions)][j] for j in rng.permutation(n_items)]
        if trials and trials[-1]["image_id"] == picked[0]["image_id"]:
            picked = picked[1:] + picked[:1]  # not the same picture twice in a row
        trials += picked
    for row in _pairs(catch, caught, subjects[catch], rng, 0) if n_catch else ():
        trials.insert(int(rng.integers(1, len(trials) + 1)), row)
    design = pd.DataFrame(trials).assign(study=study, rater=rater, trial=range(1, len(trials) + 1))
    return design[list(PLANNED)]


class Session:
    """Answers of one rater to one design, each on the disk before the next trial.

    Parameters
    ----------
    design : DataFrame of `make_design`
    folder : Path, where `<rater>.csv` lies or will lie; a session that was interrupted goes on there

    Raises
    ------
    RatingsError
        When the file holds answers to another design, or is damaged.

    Notes
    -----
    The file is small, so it is written anew for every answer and takes the old one's place in one
    rename: it is never half there. A second session of the same rater is noticed, not overwritten.
    """

    def __init__(self, design: pd.DataFrame, folder: Path) -> None:
        self.design, self._planned = design, _planned_cells(design)
        self.path = Path(folder) / f"{design['rater'].iloc[0]}.csv"
        self.rows = self._on_disk()

    def _on_disk(self) -> list[list[str]]:
        return _checked_lines(self.path, self._planned) if self.path.is_file() else []

    @property
    def finished(self) -> bool:
        """True when every trial has its answer."""
        return len(self.rows) == len(self.design)

    @property
    def current(self) -> pd.Series:
        """The trial that waits for an answer."""
        return self.design.iloc[len(self.rows)]

    def answer(self, side: str, seconds: float) -> None:
        """Write one answer; the session moves on when it is on the disk and not before.

        Parameters
        ----------
        side : 'left' or 'right'
        seconds : float, from showing to answer
        """
        if side not in SIDES or self.finished or not (math.isfinite(seconds) and seconds >= 0):
            raise RatingsError(
                f"answer {side!r} after {seconds} s to trial {len(self.rows) + 1} of "
                f"{len(self.design)}: expected left or right, a time, and a trial that is left"
            )
        correct = (side == "left") == (self.current["left"] == "image")
        when = datetime.now(UTC).isoformat(timespec="seconds")  # provenance; no score reads it
        row = [*self._planned[len(self.rows)], side, str(correct), f"{seconds:.3f}", when]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locks.shared_lock(self.path.with_name(f".{self.path.name}.lock")):
            if self._on_disk() != self.rows:
                raise RatingsError(
                    f"{self.path.name} has changed since this session began: is the test open twice? "
                    "Close one, make the session anew in the other; it goes on where the file ends"
                )
            with atomic_file(self.path) as part, part.open("w", newline="", encoding="utf-8") as f:
                csv.writer(f, lineterminator="\n").writerows([COLUMNS, *self.rows, row])
        self.rows = [*self.rows, row]


def read_ratings(path: Path, design: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read the answers in `<rater>.csv`, with the columns `COLUMNS`.

    Raises
    ------
    RatingsError, FileNotFoundError
        Names file and line of what is damaged or, where a design of `make_design` is given, does
        not belong to it.
    """
    planned = None if design is None else _planned_cells(design)
    rows = pd.DataFrame(_checked_lines(Path(path), planned), columns=list(COLUMNS))
    rows["correct"] = rows["correct"] == "True"
    return rows.astype({"trial": int, "seconds": float})


def _pairs(
    condition: str, items: np.ndarray, subjects: Sequence[str], rng: np.random.Generator, odd: int
) -> list[dict]:
    """One trial per picture of a condition: every picture is a foil once, sides are balanced."""
    cycle = rng.permutation(len(items))
    foil = np.empty_like(cycle)
    foil[cycle] = np.roll(cycle, 1)  # one cycle through all pictures: nobody is their own foil
    sides = np.array(["image", "foil"])[(np.arange(len(items)) + odd) % 2]
    columns = zip(items, items[foil], rng.permutation(sides), strict=True)
    return [
        {"condition": condition, "subject": subjects[j % len(subjects)], "image_id": str(image)}
        | {"foil_id": str(other), "left": str(left)}
        for j, (image, other, left) in enumerate(columns)
    ]


def _planned_cells(design: pd.DataFrame) -> list[list[str]]:
    return design[list(PLANNED)].astype(str).to_numpy().tolist()


def _checked_lines(path: Path, planned: list[list[str]] | None) -> list[list[str]]:
    """Cells of a file of ratings, as text, after all checks."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            header, *lines = list(csv.reader(stream, strict=True)) or [[]]
    except (csv.Error, UnicodeDecodeError, OverflowError) as error:
        raise RatingsError(f"{path.name} is no CSV file of ratings: {error}") from error
    if tuple(header) != COLUMNS:
        raise RatingsError(f"{path.name}: the header is {header}, expected {', '.join(COLUMNS)}")
    for number, cells in enumerate(lines, start=1):
        where = f"{path.name}, line {number + 1}"
        if problem := _line_problem(cells, number, path.stem):
            raise RatingsError(
                f"{where} is damaged: {problem}. Repair the line, or remove it and all after it; "
                "these trials are shown again"
            )
        if planned is not None and (number > len(planned) or cells[:8] != planned[number - 1]):
            raise RatingsError(
                f"{where} is no answer to trial {number} of this design: the file was made with "
                "another study, seed or other conditions. Go on with those, or move the file away"
            )
    return lines


def _line_problem(cells: list[str], number: int, rater: str) -> str | None:
    if len(cells) != len(COLUMNS):
        return f"{len(cells)} cells instead of {len(COLUMNS)}"
    row = dict(zip(COLUMNS, cells, strict=True))
    if row["rater"] != rater:
        return f"rater {row['rater']!r} in the file of {rater!r}"
    if row["trial"] != str(number):
        return f"trial {row['trial']!r} where {number} has to follow"
    if row["left"] not in ("image", "foil") or row["answer"] not in SIDES:
        return f"left is {row['left']!r}, answer is {row['answer']!r}"
    if row["correct"] != str((row["answer"] == "left") == (row["left"] == "image")):
        return f"correct is {row['correct']!r}, which answer and left contradict"
    try:
        fine = math.isfinite(float(row["seconds"])) and float(row["seconds"]) >= 0
    except ValueError:
        fine = False
    return None if fine else f"seconds is {row['seconds']!r}"


def _check_rater(rater: str) -> None:
    if not isinstance(rater, str) or not _RATER.fullmatch(rater) or rater == "all":
        raise RatingsError(
            f"{rater!r} cannot be the name of a rater, because it names a file: up to 40 letters, "
            "digits, '_' and '-', beginning with a letter or a digit, and not 'all'"
        )


class RatingWidget:
    """Buttons and pictures for a `Session`; nothing on the page tells the condition.

    Parameters
    ----------
    session : Session
    pictures : mapping of image_id to uint8 array (height, width, 3), the candidates
    made : mapping of (condition, subject) to mapping of image_id to uint8 array, reconstructions
    size : int, pixels on the screen
    pause_s : float, a click sooner than this after a trial appeared is the second half of a double
        click and is left out

    Attributes
    ----------
    box : ipywidgets.VBox, to be displayed
    left, right : ipywidgets.Button
    message : ipywidgets.Label
    """

    def __init__(
        self,
        session: Session,
        pictures: Mapping[str, np.ndarray],
        made: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
        size: int = 192,
        pause_s: float = 0.25,
    ) -> None:
        self.session, self.pictures, self.made = session, pictures, made
        self.size, self.pause_s = size, pause_s
        self._views = {n: ipywidgets.Image(format="png") for n in ("made", *SIDES)}
        self.left, self.right = (ipywidgets.Button(description=f"the {s} one") for s in SIDES)
        self.message = ipywidgets.Label()
        for side in SIDES:
            getattr(self, side).on_click(lambda _, side=side: self._clicked(side))
        columns = [ipywidgets.VBox([self._views[s], getattr(self, s)]) for s in SIDES]
        question = ipywidgets.Label("Which of the two pictures below was meant by this one?")
        choice = ipywidgets.HBox(columns)
        self.box = ipywidgets.VBox([question, self._views["made"], choice, self.message])
        self._show()

    def _show(self) -> None:
        done, total = len(self.session.rows), len(self.session.design)
        self.message.value = f"{done} of {total} answered"
        if self.session.finished:
            self._stop(f"All {total} trials are answered and kept. Thank you.")
            return
        trial = self.session.current
        ids = [trial["image_id"], trial["foil_id"]]
        ids = ids if trial["left"] == "image" else ids[::-1]
        made = self.made[trial["condition"], trial["subject"]][trial["image_id"]]
        for name, p in zip(self._views, (made, *(self.pictures[i] for i in ids)), strict=True):
            self._views[name].value = _png(p, self.size)
        self._since = time.monotonic()

    def _clicked(self, side: str) -> None:
        seconds = time.monotonic() - self._since
        if self.left.disabled or seconds < self.pause_s:
            return
        try:
            self.session.answer(side, seconds)
        except (RatingsError, OSError) as error:  # the dispatcher of events would swallow it
            self._stop(f"Not kept, and the test stops here: {error}")
            return
        self._show()

    def _stop(self, message: str) -> None:
        self.message.value = message
        for button in (self.left, self.right):
            button.disabled = True


def _png(picture: np.ndarray, size: int) -> bytes:
    enlarged = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    enlarged.save(stream, "PNG")
    return stream.getvalue()
