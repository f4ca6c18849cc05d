#!/usr/bin/env bash
# A picture that was shown is stored as TIFF whose grey values count from white (PhotometricInterpretation 0, "WhiteIsZero", TIFF 6.0,
# section 3), as scanners and some stimulus programs write it. Pillow turns 8-bit files of this kind into the usual sense (0 is black).
# One would guess that it does so for 16 bits, too.
#
# It does not: the values come as they are stored, so the picture is a negative, with no warning, while scikit-image and tifffile hand
# out stored values for both depths. A study that reads its stimuli with Pillow gets negatives for the 16-bit ones alone.
#
# Remedy: look at tag 262 of a 16-bit TIFF, and turn the values.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6 2>/dev/null
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__, "tifffile", tifffile.__version__)
turned = {}
for dtype in (np.uint8, np.uint16):
    largest = np.iinfo(dtype).max
    stored = np.linspace(0, largest, 16).astype(dtype).reshape(4, 4)  # 0 means white
    tifffile.imwrite("a.tif", stored, photometric="miniswhite")
    seen = np.asarray(Image.open("a.tif")).astype(int)
    turned[dtype.__name__] = bool((seen == largest - stored.astype(int)).all())
    as_stored = bool((seen == stored).all())
    print(f"{dtype.__name__}: white (stored 0) is read as {seen[0, 0]} of {largest}; as stored: {as_stored}")
assert turned == {"uint8": True, "uint16": False}, f"changed: {turned}"
print("as described")
PY
"$folder/env/bin/python" show.py
