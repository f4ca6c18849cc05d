"""The figures' style."""

from __future__ import annotations

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib import rc_context
from matplotlib.colors import to_rgba

from sgdm_utils import figures


def settings() -> dict:
    found = dict(plt.rcParams)
    cycle = found.pop("axes.prop_cycle").by_key()["color"]
    return found | {"colours": [to_rgba(c) for c in cycle]}


def test_the_style_is_the_theme_of_seaborn_that_it_names():
    with rc_context():
        plt.rcdefaults()
        figures.use_style()
        ours = settings()
        plt.rcdefaults()
        sns.set_theme(context="notebook", style="ticks", font_scale=0.85)
        plt.rcParams.update(
            {k: ours[k] for k in ("figure.dpi", "figure.constrained_layout.use", "image.cmap")}
            | {k: ours[k] for k in ("axes.spines.top", "axes.spines.right", "legend.frameon")}
            | {"image.interpolation": "nearest"}
        )
        theirs = settings()
    assert {k for k in theirs if theirs[k] != ours[k]} == set()
