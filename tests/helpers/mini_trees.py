"""Write the miniature data sets of `config/*_mini.yaml`, in the exact form of the published files.

python tests/helpers/mini_trees.py things_eeg2_mini      writes data/raw/things_eeg2_mini
python tests/helpers/mini_trees.py kilogram_mini         writes data/raw/kilogram_mini
"""

from __future__ import annotations

import sys
from pathlib import Path

import kilogram_files
import things_eeg2_files

from sgdm_utils.workflow import atomic, paths

THINGS = things_eeg2_files.Design(n_train_concepts=30, n_test=12, test_repetitions=4, snr=1.5)


def write_things_eeg2_mini(root: Path) -> None:
    """Two people, four sessions, 60 training and 12 test pictures as raw arrays."""
    with atomic.atomic_directory(root) as part:
        things_eeg2_files.write_tree(part, "things_eeg2_raw", design=THINGS)


def write_kilogram_mini(root: Path) -> None:
    """Two people, two sessions, 36 figures of the project's own as BIDS with SVG stimuli."""
    with atomic.atomic_directory(root) as part:
        kilogram_files.write_tree(part, n_tangrams=36, snr=1.0)


WRITERS = {
    "things_eeg2_mini": write_things_eeg2_mini,
    "kilogram_mini": write_kilogram_mini,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in WRITERS:
        sys.exit(f"usage: python tests/helpers/mini_trees.py {'|'.join(WRITERS)}")
    target = paths.raw_dir(sys.argv[1])
    WRITERS[sys.argv[1]](target)
    print("written:", paths.relative(target))
