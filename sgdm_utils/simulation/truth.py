"""The truth of the simulated recording: stored beside the data, read only to say what was recoverable.

No notebook learns from it. It serves two questions: how close do cleaned, averaged trials come to the
noise-free answer, and how well would a decoder do that knew the generative model exactly?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdm_utils.errors import reading
from sgdm_utils.simulation.brain import Brain
from sgdm_utils.workflow.formats import read_npz


@dataclass(frozen=True)
class Truth:
    """Noise-free answers of one simulated subject.

    Attributes
    ----------
    brain : Brain
    features : float32 array of shape (n_pictures, n_components), scaled to the study's `snr`; of
        all pictures, shown or not, so that any of them can be asked what it would have evoked
    image_ids : list of str, one for each row of `features`
    sfreq : float, Hz, of the time courses
    """

    brain: Brain
    features: np.ndarray
    image_ids: list[str]
    sfreq: float

    def rows_of(self, image_ids: Sequence[str]) -> list[int]:
        """Rows of `features` of the given pictures."""
        row = {name: i for i, name in enumerate(self.image_ids)}
        lost = [i for i in image_ids if i not in row]
        if lost:
            raise KeyError(f"no truth for {lost[0]!r}: it is no picture of this simulated study")
        return [row[i] for i in image_ids]

    def evoked(self, image_ids: Sequence[str], times: np.ndarray) -> np.ndarray:
        """Noise-free response to the given pictures, interpolated to other time points.

        Parameters
        ----------
        image_ids : sequence of str
        times : array of shape (n_times,), seconds from onset

        Returns
        -------
        float32 array of shape (n_images, n_channels, n_times), microvolts, average reference
        """
        grid = np.arange(self.brain.time_courses.shape[1]) / self.sfreq
        waves = np.stack(
            [np.interp(times, grid, w, left=0.0, right=0.0) for w in self.brain.time_courses]
        )
        weighted = self.features[self.rows_of(image_ids), None] * self.brain.topographies
        return ((weighted @ waves) * 1e6).astype(np.float32)


def save_truth(
    path: Path, brain: Brain, features: np.ndarray, image_ids: Sequence[str], sfreq: float
) -> None:
    """Write the truth of one subject as a plain `.npz` (no pickles inside)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, topographies=brain.topographies, time_courses=brain.time_courses,
        stage=brain.stage.astype("U8"), features=features.astype(np.float32),
        image_ids=np.array(list(image_ids), dtype="U64"), sfreq=sfreq,
    )  # fmt: skip


def load_truth(path: Path) -> Truth:
    """Read what `save_truth` wrote."""
    with reading(path, "the truth of a simulated person", "Run 00_data again"):
        f = read_npz(path)
        brain = Brain(f["topographies"], f["time_courses"], f["stage"], {})
        return Truth(brain, f["features"], f["image_ids"].tolist(), float(f["sfreq"]))


def pattern_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation over pictures and sensors of two sets of responses, each picture mean removed.

    Parameters
    ----------
    a, b : arrays of shape (n_pictures, n_channels, n_times)

    Returns
    -------
    float
    """
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def template_retrieval(average: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Log-likelihood scores of a decoder that knows every noise-free answer.

    With white Gaussian noise the most likely picture minimises the squared distance between the
    whitened average and the whitened template. No decoder can do better on these trials, except by
    knowing the noise better than its covariance.

    Parameters
    ----------
    average : array of shape (n_pictures, n_channels, n_times), whitened averages
    templates : array of shape (n_gallery, n_channels, n_times), whitened noise-free answers

    Returns
    -------
    float array of shape (n_pictures, n_gallery), higher is more likely
    """
    # what all pictures share (onset response, neighbours in the stream) is no evidence
    a = (average - average.mean(0)).reshape(len(average), -1).astype(np.float64)
    t = (templates - templates.mean(0)).reshape(len(templates), -1).astype(np.float64)
    return a @ t.T - 0.5 * (t**2).sum(1)


def open_truth(raw_root: Path, subject: str) -> Truth | None:
    """Open the truth of a simulated person; None for recordings of real people.

    Parameters
    ----------
    raw_root : Path, folder of the recordings
    subject : str, "sub-01"
    """
    path = Path(raw_root) / "derivatives" / "truth" / f"{subject}.npz"
    return load_truth(path) if path.is_file() else None
