"""The page of the human test: a reconstruction, two candidates, two buttons (ipywidgets)."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping

import ipywidgets
import numpy as np
from PIL import Image

from sgdm_utils.experiments.human_test.design import SIDES, RatingsError, Session


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
