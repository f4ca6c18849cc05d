"""Every reader refuses damaged files by name: no foreign error, no hang, no memory beyond a gigabyte.

`make test` damages some files of the readers that take milliseconds; the long run, `TOTAL` inputs over
all readers, is `make test-all`'s. An input that fails is made again by
``python tests/helpers/fuzz.py FOLDER --case NAME --first INPUT --count 1``.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
import yaml
from fuzz_cases import CASES, CHEAP
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm_utils.datasets import pickles
from sgdm_utils.datasets.kilogram import pictures as kilogram_pictures
from sgdm_utils.datasets.kilogram import recordings as kilogram_recordings
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli.files import leading_out
from sgdm_utils.workflow import paths, schemas

TOTAL = 100_000
LONGEST_S = 300  # seconds without progress, on a machine that does other things too
FEW = settings(max_examples=60, deadline=None, derandomize=True)


def damage(folder: Path, names: list[str], count: int) -> list[dict]:
    """Run the fuzzer in a process of its own and watch it; returns one dict for each case."""
    command = [sys.executable, fuzz.__file__, str(folder), "--count", str(count), "--case", *names]
    environment = os.environ | {"PYTHONPATH": str(paths.project_root()), "OMP_NUM_THREADS": "1"}
    out, err = folder / "out.txt", folder / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        last, since = "", time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            now = "".join(f"{p.name} {p.read_text()}" for p in sorted(folder.glob("*.now")))
            if now != last or not now:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > LONGEST_S:
                process.kill()
                pytest.fail(f"a reader hangs at {now}")
    assert process.returncode == 0, (
        f"ended with {process.returncode} at {last}: {err.read_text()[-2000:]}"
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def judge(results: list[dict]) -> None:
    found = [f for result in results for f in result["found"]]
    assert not found, f"{len(found)} inputs, first {json.dumps(found[:5], indent=1)}"


def test_damaged_files_of_the_quick_readers(tmp_path):
    results = damage(tmp_path, list(CHEAP), 40)
    assert sum(r["count"] for r in results) >= 400
    judge(results)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", list(CASES))
def test_damaged_files_of_every_reader(tmp_path, name):
    judge(damage(tmp_path, [name], math.ceil(TOTAL / sum(case.share for case in CASES.values()))))


def test_the_fuzzer_sees_what_it_is_for(tmp_path):
    def read(folder: Path) -> None:
        json.loads((folder / "a.json").read_text(encoding="utf-8"))

    def make(folder: Path) -> None:
        (folder / "a.json").write_text('{"a": [1, 2, 3], "b": "text"}')

    def guarded(folder: Path) -> None:
        with reading(folder / "a.json", "JSON"):
            read(folder)

    found = fuzz.run(fuzz.Case("bare", make, read), tmp_path / "bare", 0, 60)
    assert len(found) > 10 and {"JSONDecodeError"} <= {f["error"].split(":")[0] for f in found}
    assert fuzz.run(fuzz.Case("bare", make, guarded), tmp_path / "guarded", 0, 60) == []
    assert found == fuzz.run(fuzz.Case("bare", make, read), tmp_path / "again", 0, 60)
    content, rng = b"a\tb\t1\nc\td\t2\n" * 9, np.random.default_rng(0)
    assert len({fuzz.mutate(content, rng) for _ in range(50)} - {content}) > 45


# ------------------------------------------------------------------ hypothesis

NAMES = st.text(st.sampled_from("ab./\\~: C\0$"), max_size=12) | st.text(max_size=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda x: st.lists(x) | st.tuples(x, x) | st.dictionaries(st.text(), x) | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=3)
    | st.dictionaries(st.sampled_from(["train", "heldout", "whole", "piece", "annotations", "1"]) | st.text(), x, max_size=3),
    max_leaves=10,
)  # fmt: skip


@FEW
@given(NAMES)
def test_a_name_that_passes_lies_in_the_data_set(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "names"
    (root / "stimuli").mkdir(parents=True, exist_ok=True)
    if not leading_out(root / "stimuli", [name], root):
        assert (root / "stimuli" / name).resolve().is_relative_to(root.resolve())


@FEW
@given(PLAIN, st.integers(0, 5))
def test_plain_data_come_back_from_a_pickle(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.npy"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert pickles.load(path) == value


@FEW
@given(JSON)
def test_json_of_any_form_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    for reader in (kilogram_recordings.read_partition, kilogram_pictures.read_annotations):
        try:
            reader(path)
        except DatasetError as error:
            assert path.name in str(error)


@FEW
@given(st.text(st.sampled_from("ab:1?-&*!{}[]<>\n \t\"'#|%@`,0_.~"), max_size=40))
def test_yaml_of_any_form_is_plain_or_refused(text):
    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or isinstance(value, str | int | float | bool)

    try:
        assert plain(schemas.load_yaml(text))
    except yaml.YAMLError as error:
        assert str(error)
