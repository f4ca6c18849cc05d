"""A human test of reconstructions: two-alternative forced choice, blinded, kept, scored.

A reconstruction is shown with two pictures, the one that was seen and a foil; the rater picks one.
The list of trials is a deterministic function of seed and rater, every answer is on the disk before
the next trial appears, and what is scored is what the file says.

References
----------
Clopper & Pearson, Biometrika 26, 404 (1934): exact interval of a share. Wichmann & Hill, Perception &
Psychophysics 63, 1293 (2001): lapses, which a share of correct answers does not tell from blindness.
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
from filelock import FileLock
from PIL import Image
from scipy.stats import binomtest

from sgdm_utils import statistics
from sgdm_utils.atomic import atomic_file

CHANCE = 0.5
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
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            if self._on_disk() != self.rows:
                raise RatingsError(
                    f"{self.path.name} has changed since this session began: is the test open twice? "
                    "Close one, make the session anew in the other; it goes on where the file ends"
                )
            with atomic_file(self.path) as part, part.open("w", newline="", encoding="utf-8") as f:
                csv.writer(f, lineterminator="\n").writerows([COLUMNS, *self.rows, row])
        self.rows = [*self.rows, row]


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


def read_ratings(path: Path, design: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read the answers of one rater.

    Parameters
    ----------
    path : Path, `<rater>.csv`
    design : DataFrame of `make_design`, compared row by row when given

    Returns
    -------
    DataFrame with the columns `COLUMNS`; `trial` int, `correct` bool, `seconds` float

    Raises
    ------
    RatingsError
        Names file and line of what is damaged or belongs to another design.
    FileNotFoundError
    """
    planned = None if design is None else _planned_cells(design)
    rows = pd.DataFrame(_checked_lines(Path(path), planned), columns=list(COLUMNS))
    rows["correct"] = rows["correct"] == "True"
    return rows.astype({"trial": int, "seconds": float})


def score_conditions(ratings: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Share of correct answers per condition, for all raters together and for each.

    Parameters
    ----------
    ratings : DataFrame with `rater`, `condition`, `correct`
    level : float, of the exact interval

    Returns
    -------
    DataFrame with `rater` ("all" first), `condition`, `n`, `value`, `ci_low`, `ci_high`, `chance`,
    `p_value` (exact binomial, one-sided against chance)

    Notes
    -----
    Interval and test take answers for independent. Several raters who judge the same pictures are
    not: their pooled interval is too narrow for a statement about other pictures.
    """
    rows = []
    everybody = [("all", ratings), *ratings.groupby("rater", sort=True)]
    for rater, own in everybody:
        for condition, part in own.groupby("condition", sort=True):
            k, n = int(part["correct"].sum()), len(part)
            low, high = binomtest(k, n).proportion_ci(level, method="exact")
            p = binomtest(k, n, CHANCE, alternative="greater").pvalue
            rows.append((rater, condition, n, k / n, low, high, CHANCE, p))
    columns = ["rater", "condition", "n", "value", "ci_low", "ci_high", "chance", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def catch_trials(
    ratings: pd.DataFrame, catch: str = "oracle", minimum: float = 0.8
) -> pd.DataFrame:
    """Who was awake: share correct and lapse rate on the catch trials of each rater.

    Returns
    -------
    DataFrame with `rater`, `n`, `share`, `lapse_rate`, `kept` (share at least `minimum`). A lapse is
    a guess, and half of the guesses are right: lapse_rate = 2 (1 - share).
    """
    rows = []
    for rater, own in ratings.groupby("rater", sort=True):
        answers = own.loc[own["condition"] == catch, "correct"]
        if answers.empty:
            raise RatingsError(
                f"{rater} has answered no trial of {catch!r}: no catch trial to judge by"
            )
        share = float(answers.mean())
        rows.append((rater, len(answers), share, min(1.0, 2 * (1 - share)), share >= minimum))
    return pd.DataFrame(rows, columns=["rater", "n", "share", "lapse_rate", "kept"])


def compare_conditions(
    ratings: pd.DataFrame,
    comparisons: Sequence[str],
    rng: np.random.Generator,
    n_draws: int = statistics.N_RESAMPLES,
) -> pd.DataFrame:
    """Paired permutation test of "a > b" over pictures, nested in raters.

    Within a rater, a picture's answer in `a` is paired with that in `b`; every rater counts alike.
    Signs are flipped by picture, for all its raters together, since they judged the same thing.

    Parameters
    ----------
    ratings : DataFrame with `rater`, `condition`, `image_id`, `correct`
    comparisons : sequence of str, such as "eeg > shuffled_eeg"
    n_draws : int, draws of the null distribution and resamples of the interval over pictures

    Returns
    -------
    DataFrame with `comparison`, `difference`, `ci_low`, `ci_high`, `n_raters`, `n_items`, `p_value`
    """
    table = ratings.pivot(index=["rater", "image_id"], columns="condition", values="correct")
    rows = []
    for comparison in comparisons:
        a, separator, b = (part.strip() for part in comparison.partition(">"))
        if not separator or {a, b} - set(table):
            raise RatingsError(
                f"comparison {comparison!r}: write 'a > b' with conditions that were rated: "
                f"{', '.join(table)}"
            )
        both = table[[a, b]].dropna().astype(float)
        difference = both[a] - both[b]
        if difference.index.get_level_values("image_id").nunique() < 2:
            raise RatingsError(f"{comparison}: fewer than two pictures were answered in both")
        per_rater = difference.groupby("rater").transform("size")
        n_raters = difference.index.get_level_values("rater").nunique()
        weighted = (difference / (per_rater * n_raters)).groupby("image_id").sum()
        values = weighted.to_numpy() * len(weighted)  # their mean is the mean of the raters' means
        test = statistics.paired_permutation_test(values, np.zeros(len(values)), rng, n_draws)
        low, high = statistics.bootstrap_interval(values, rng, n_draws)
        rows.append((comparison, test.statistic, low, high, n_raters, len(values), test.p_value))
    columns = ["comparison", "difference", "ci_low", "ci_high", "n_raters", "n_items", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def family(scores: pd.DataFrame, comparisons: pd.DataFrame, claimed: Sequence[str]) -> pd.DataFrame:
    """Holm over one declared family: `claimed` conditions against chance, and the comparisons.

    Returns
    -------
    DataFrame with `test`, `p_value`, `p_holm`
    """
    overall = scores[scores["rater"] == "all"].set_index("condition")["p_value"]
    tests = {f"{condition} > {CHANCE:g}": float(overall.loc[condition]) for condition in claimed}
    tests |= dict(zip(comparisons["comparison"], comparisons["p_value"], strict=True))
    table = pd.DataFrame({"test": list(tests), "p_value": list(tests.values())})
    return table.assign(p_holm=statistics.holm(table["p_value"]))


def simulated_rater(
    design: pd.DataFrame,
    pictures: Mapping[str, np.ndarray],
    made: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    rng: np.random.Generator,
    noise: float = 0.3,
    lapse: float = 0.0,
) -> list[str]:
    """Answers of a machine that compares pixels: for trying the test out, no evidence of seeing.

    It picks the candidate whose pixels correlate more with the reconstruction, after Gaussian noise
    of standard deviation `noise` on the difference; with probability `lapse` it guesses.

    Returns
    -------
    list of 'left' or 'right', one for each trial of the design
    """
    answers = []
    for trial in design.to_dict("records"):
        shown = made[trial["condition"], trial["subject"]][trial["image_id"]]
        image, foil = (_likeness(shown, pictures[trial[k]]) for k in ("image_id", "foil_id"))
        picks_image = image - foil + noise * rng.standard_normal() > 0
        picks_left = picks_image == (trial["left"] == "image")
        if rng.random() < lapse:
            picks_left = rng.random() < 0.5
        answers.append("left" if picks_left else "right")
    return answers


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
    except (csv.Error, UnicodeDecodeError) as error:
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


def _png(picture: np.ndarray, size: int) -> bytes:
    enlarged = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    enlarged.save(stream, "PNG")
    return stream.getvalue()


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of all pixels; 0 where a picture is constant and none is defined."""
    a, b = (x.astype(float).ravel() - x.mean() for x in (a, b))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else 0.0
