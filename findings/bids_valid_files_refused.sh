#!/usr/bin/env bash
# MNE-BIDS reads what BIDS allows, one would guess: BIDS lets events.tsv have any further columns, and JSON parsers may
# skip a byte order mark (RFC 8259, section 8.1), which editors of Windows write.
#
# 1. A column called `description`, `ch_names` or `hed_string` in events.tsv: every column is handed on to MNE's
#    annotations as "extras", which keep these names for themselves. read_raw_bids raises
#    "Key 'description' is reserved and cannot be used in extras."; nothing names events.tsv.
# 2. eeg.json with a byte order mark: JSONDecodeError "Unexpected UTF-8 BOM"; events.tsv with one is read.
#
# Remedy: rename the column; save the JSON file without the mark.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mne==1.13.2 mne-bids==0.20.0 pybv==0.8.1 2>/dev/null
cd "$folder"
cat > show.py <<'PY'
import warnings
from pathlib import Path

import mne
import mne_bids
import numpy as np

warnings.simplefilter("ignore")
print("mne", mne.__version__, "mne_bids", mne_bids.__version__)
raw = mne.io.RawArray(np.random.default_rng(0).normal(size=(2, 500)) * 1e-5, mne.create_info(["Oz", "Cz"], 100.0, "eeg"))
raw.set_annotations(mne.Annotations([1.0, 2.0], 0.1, ["image", "image"]))
path = mne_bids.BIDSPath(root="study", subject="01", task="see", datatype="eeg")
mne_bids.write_raw_bids(raw, path, format="BrainVision", allow_preload=True, verbose="error")
folder = Path("study/sub-01/eeg")
events, sidecar = folder / "sub-01_task-see_events.tsv", folder / "sub-01_task-see_eeg.json"


def read():
    try:
        mne_bids.read_raw_bids(path, verbose="error")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "read"


assert read() == "read"
plain = events.read_bytes()
first, *rows = plain.decode("utf-8-sig").splitlines()
for name in ("colour", "description", "ch_names", "hed_string"):
    events.write_text("\n".join([f"{first}\t{name}", *(f"{row}\tred" for row in rows)]) + "\n")
    print(f"1. a column {name}:", read())
    assert (read() == "read") == (name == "colour")
events.write_bytes(b"\xef\xbb\xbf" + plain.removeprefix(b"\xef\xbb\xbf"))
print("2. events.tsv with a byte order mark:", read())
assert read() == "read"
sidecar.write_bytes(b"\xef\xbb\xbf" + sidecar.read_bytes())
print("   eeg.json with a byte order mark:", read())
assert "BOM" in read()
PY
env -u PYTHONPATH "$folder/env/bin/python" show.py
