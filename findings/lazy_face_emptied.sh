#!/usr/bin/env bash
# A lazily loaded package (lazy_loader, as in MNE, scikit-image and SciPy's kin) keeps the names that it hands on in
# `__init__.pyi`. Two surprises meet there.
#
# 1. One would guess that a linter's *safe* fix changes no behaviour. ruff takes the imports of the stub for unused
#    (F401) and `--fix` removes them. For a type stub that is right; but lazy_loader reads the stub at run time, so the
#    package loses its names: importing it still works, and the first use of a name fails.
# 2. One would guess that `from .maths import add as plus` in the stub makes `plus`. Type checkers see `plus`;
#    lazy_loader makes `add`.
#
# Why it matters: imports are lazy so that a package is quick to import, and for the same reason nothing fails where
# the damage is done. Remedy for 1: exempt `*.pyi` from F401, or write `from .maths import add as add`, which ruff
# keeps and lazy_loader understands. Remedy for 2: rename the function itself.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet lazy-loader==0.6 ruff==0.17.6 2>/dev/null
cd "$folder"
mkdir room
cat > room/__init__.py <<'PY'
"""A package that loads what is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
PY
printf 'def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return 2 * a\n' > room/maths.py
python="$folder/env/bin/python"
"$python" -c "import lazy_loader, sys; print('lazy_loader', lazy_loader.__version__, 'python', sys.version.split()[0])"
"$folder/env/bin/ruff" --version

names() { "$python" -c "import room; print(sorted(room.__all__))"; }

echo "1. plain names, before the fix:"
echo 'from .maths import add, double' > room/__init__.pyi
before="$(names)"; echo "$before"
"$folder/env/bin/ruff" check --isolated --select F401 --fix --quiet room || true
echo "   after ruff check --select F401 --fix:"
after="$(names)"; echo "$after"
"$python" -c "import room" && echo "   importing the package works all the same"
test "$before" = "['add', 'double']" && test "$after" = "[]"

echo "   with redundant aliases:"
echo 'from .maths import add as add, double as double' > room/__init__.pyi
"$folder/env/bin/ruff" check --isolated --select F401 --fix --quiet room
kept="$(names)"; echo "$kept"
test "$kept" = "['add', 'double']"

echo "2. from .maths import add as plus:"
echo 'from .maths import add as plus' > room/__init__.pyi
renamed="$(names)"; echo "$renamed"
test "$renamed" = "['add']"
"$python" -c "
import room
try:
    room.plus
except AttributeError as error:
    print('room.plus:', error)
else:
    raise SystemExit('room.plus is there now: this finding is out of date')"
echo "as seen on 2026-11-29"
