"""Damage small valid files byte by byte and say what a reader makes of them.

    python tests/helpers/fuzz.py FOLDER [--case NAME ...] [--first 0] [--count 100]

Every input is a function of the case's name and a number, so that one that fails can be made again.
A reader passes when it reads the file, or refuses it with an error of this package that names the
file. Each process writes which input it is at, so that the one that starts it can tell a hang and a
crash from an error.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import resource
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ODD = (b"nan", b"inf", b"-1", b"0", b"1e999", b"1e308", b"99999999999999999999", b"", b"n/a", b"$x^$",
       b"../../x", b"/x", b"\x00", b"\xff\xfe", b"[[[[", b"{}", b"null", b"true", b'"', b"\t", b"\n")  # fmt: skip
MOST_GB = 1.0  # beyond what the undamaged files took
_FIELD = re.compile(rb"[^\s,;:=\"'\[\]{}<>()]+")


@dataclass(frozen=True)
class Case:
    """A reader and valid files for it.

    Attributes
    ----------
    name : str
    make : writes the files into an empty folder
    read : reads what is in the folder
    files : globs of the files that are damaged
    share : how many inputs this reader gets beside the others
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: Sequence[str] = ("**/*",)
    share: float = 1.0


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert, zero, repeat, swap or replace something, once to three times."""
    for _ in range(int(rng.integers(1, 4))):
        out, n = bytearray(content), len(content)
        kind = int(rng.integers(8)) if n > 8 else 2
        at = int(rng.integers(n)) if n else 0
        length = int(min(n - at, 2 ** rng.integers(0, 10)))
        if rng.random() < 0.3:  # headers decide more than samples do
            at = int(rng.integers(min(n, 300))) if n else 0
        if kind == 0:
            for place in rng.integers(n, size=rng.integers(1, 9)):
                out[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out = out[:at]
        elif kind == 2:
            out[at:at] = rng.bytes(length or 4)
        elif kind == 3:
            out[at : at + length] = bytes(length)
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            del out[at : at + length]
        else:
            near = max(0, at - 2000)
            fields = list(_FIELD.finditer(content, near, near + 4000))
            if len(fields) > 1:
                i, j = sorted(rng.choice(len(fields), 2, replace=False))
                (a, b), (c, d) = fields[i].span(), fields[j].span()
                odd = ODD[int(rng.integers(len(ODD)))]
                out[c:d] = content[a:b] if kind == 6 else odd
                if kind == 6:
                    out[a:b] = content[c:d]
            else:
                out[at : at + 4] = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f")[int(rng.integers(2))]
        content = bytes(out)
    return content


def foreign(error: BaseException, folder: Path) -> bool:
    """Whether an error is none of this package, or names no file of the folder."""
    if not type(error).__module__.startswith("sgdm_utils"):
        return True
    names = {path.name for path in folder.rglob("*")} | {folder.name}
    return not any(name in str(error) for name in names)


def run(
    case: Case,
    folder: Path,
    first: int,
    count: int,
    progress: Callable[[int], None] = lambda i: None,
) -> list[dict]:
    """Read `count` damaged inputs of one case; returns what was foreign or slow.

    The files of the case are made in `folder` unless they are there.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        case.make(folder)
    case.read(folder)  # undamaged, it is read
    before = _peak_gb()
    files = sorted({p for glob in case.files for p in folder.glob(glob) if p.is_file()})
    files = [path for path in files if path.stat().st_size]
    found = []
    for i in range(first, first + count):
        rng = np.random.default_rng([zlib.crc32(case.name.encode()), i])
        path = files[int(rng.integers(len(files)))]
        whole = path.read_bytes()
        path.write_bytes(mutate(whole, rng))
        progress(i)
        start = time.process_time()  # a busy machine is no slow reader
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case.read(folder)
        except Exception as error:
            if foreign(error, folder):
                frames = traceback.extract_tb(error.__traceback__)
                own = [f for f in frames if "sgdm_utils" in f.filename]
                where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
                found.append({"case": case.name, "input": i, "file": path.name, "where": where,
                              "error": f"{type(error).__name__}: {str(error)[:300]}"})  # fmt: skip
        finally:
            path.write_bytes(whole)
        if (took := time.process_time() - start) > 10:
            found.append({"case": case.name, "input": i, "file": path.name, "where": "",
                          "error": f"slow: {took:.1f} s"})  # fmt: skip
    if (grown := _peak_gb() - before) > MOST_GB:
        found.append({"case": case.name, "input": first, "file": "", "where": "",
                      "error": f"memory: {grown:.1f} GB more, at one of {count} inputs"})  # fmt: skip
    return found


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cases in this process; prints one JSON object for each."""
    from fuzz_cases import CASES

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="inputs of a case whose share is 1")
    given = parser.parse_args(arguments)
    for name in given.case:
        case, start = CASES[name], time.monotonic()
        count = max(1, round(given.count * case.share))
        state = given.folder / f"{name}.now"
        given.folder.mkdir(parents=True, exist_ok=True)
        with state.open("w") as now:

            def progress(i: int, now=now) -> None:
                now.seek(0)
                now.write(f"{i:9d}")
                now.flush()

            found = run(case, given.folder / name, given.first, count, progress)
        print(json.dumps({"case": name, "first": given.first, "count": count, "peak_gb": round(_peak_gb(), 3),
                          "seconds": round(time.monotonic() - start, 1), "found": found}), flush=True)  # fmt: skip
        state.unlink()


def summary(lines: Sequence[str]) -> str:
    """What was found in the output of `main`, the commonest first."""
    found = [f for line in lines for f in json.loads(line)["found"]]
    kinds = collections.Counter((f["case"], f["where"], f["error"].split(":")[0]) for f in found)
    return "\n".join(f"{n:6d}  {' '.join(kind)}" for kind, n in kinds.most_common())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
