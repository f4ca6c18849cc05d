"""Figures draw the text of the data as it stands there."""

from __future__ import annotations

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.text import Text

from sgdm_utils.figures import panels, results

HOSTILE = ["a$x^2$b", "$\\bad{$", "$$", "_hidden <b>&amp;", "cost: 5$"]


def test_text_of_the_data_is_written_as_it_is():
    """Between two dollar signs matplotlib reads a formula, and stops at one that is none."""
    pictures = np.zeros((5, 8, 8, 3), np.uint8)
    panels.picture_rows({text: pictures for text in HOSTILE}, HOSTILE)
    panels.similarity(np.eye(5), HOSTILE, HOSTILE[0])
    raw = mne.io.RawArray(np.random.default_rng(0).normal(0, 1e-5, (5, 900)),
                          mne.create_info(HOSTILE, 100.0, "eeg"), verbose="error")  # fmt: skip
    panels.raw_excerpt(raw, pd.DataFrame({"onset_s": [1.0]}), 0, 5)
    panels.spectra({HOSTILE[1]: raw})
    panels.evoked(np.ones((5, 9)), 3, raw.info, np.arange(9) / 10)
    rows = [{"subject": s, "metric": "top1", "model": "sgdm", "condition": "eeg", "value": 0.5,
             "ci_low": 0.4, "ci_high": 0.6, "chance": 0.1, "n": 9} for s in HOSTILE]  # fmt: skip
    panels.retrieval_bars(pd.DataFrame(rows), ["top1"])
    results.subject_dots(pd.DataFrame(rows), ["top1"], {("sgdm", "eeg"): ("EEG", "#444444")})
    results.mosaic({t: pictures for t in HOSTILE}, HOSTILE, dict.fromkeys(HOSTILE, HOSTILE[1]),
                   dict.fromkeys(HOSTILE, "#444444"))  # fmt: skip
    drawn = set()
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()  # a formula that is none would raise here
        for text in figure.findobj(Text):
            shown, is_math = text._preprocess_math(text.get_text())
            assert not is_math, text.get_text()
            drawn.add(shown)
    plt.close("all")
    assert {*HOSTILE} <= drawn
