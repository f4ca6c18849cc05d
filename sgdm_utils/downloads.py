"""Moved to ``python -m sgdm_utils fetch``; this way is kept for one version."""

import sys

from sgdm_utils.__main__ import moved

if __name__ == "__main__":
    sys.exit(moved("sgdm_utils.downloads", "fetch"))
