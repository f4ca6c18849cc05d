"""Feature files: the right rows for the right images, or an error; interrupted runs go on.

The model of most tests takes the mean over the batch off: one picture more or less in a batch, or a
batch that begins elsewhere, changes its numbers.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sgdm_utils.decoding import clip as decoding_clip
from sgdm_utils.decoding import features
from sgdm_utils.decoding.clip import (
    CLIP_MEAN,
    CLIP_STD,
    clip_features,
    clip_pixels,
    weights_digest,
)
from sgdm_utils.decoding.features import (
    FeatureError,
    FeatureOrderError,
    load_features,
    save_features,
)
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli import pictures as stimuli_pictures
from sgdm_utils.stimuli.files import PictureError
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.atomic import atomic_file

IDS = [f"i{k:02d}" for k in range(23)]
IDENTITY = {"model": "toy", "weights_sha256": "0" * 64}


def load(some: list[str]) -> np.ndarray:
    """The "picture" of an image is a vector that its number seeds."""
    return np.stack([np.random.default_rng(int(i[1:])).normal(size=7) for i in some])


def model(pictures: np.ndarray) -> np.ndarray:
    return np.tanh(pictures - pictures.mean(0))


class Stop(Exception):
    """What stops a run in a test."""


class Stopping:
    """The model, until it has been called `n` times."""

    def __init__(self, n: int) -> None:
        self.left, self.called = n, 0

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        if self.called == self.left:
            raise Stop
        self.called += 1
        return model(pictures)


def compute(path, model_fn=model, ids=IDS, **changed):
    settings = {"batch": 5, "progress": False, "identity": IDENTITY} | changed
    return features.compute_features(model_fn, ids, load, path, **settings)


@pytest.fixture
def undisturbed(tmp_path) -> bytes:
    (tmp_path / "whole").mkdir()
    compute(tmp_path / "whole" / "f.npy")
    return (tmp_path / "whole" / "f.npy").read_bytes()


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.endswith(".lock"))


# ------------------------------------------------------------------------- the file as such


def test_features_are_those_of_the_model_in_order(tmp_path):
    rows = compute(tmp_path / "new" / "f.npy")
    expected = np.concatenate([model(load(IDS[i : i + 5])) for i in range(0, 23, 5)])
    assert isinstance(rows, np.memmap) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected.astype(np.float32))
    assert names(tmp_path / "new") == ["f.ids.json", "f.npy"]
    np.save(tmp_path / "plain.npy", expected.astype(np.float32))
    assert (tmp_path / "new" / "f.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


def test_beside_it_lie_ids_checksum_and_identity(tmp_path):
    path = tmp_path / "f.npy"
    compute(path)
    listed = json.loads((tmp_path / "f.ids.json").read_text())
    assert listed["ids"] == IDS and listed["identity"] == IDENTITY
    assert listed["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert features.read_identity(path) == IDENTITY


def test_a_second_call_computes_nothing(tmp_path):
    first = np.array(compute(tmp_path / "f.npy"))
    np.testing.assert_array_equal(compute(tmp_path / "f.npy", Stopping(0)), first)


def test_features_of_any_shape(tmp_path):
    rows = compute(tmp_path / "f.npy", lambda p: torch.ones(len(p), 4, 2, dtype=torch.float64))
    assert rows.shape == (23, 4, 2) and rows.dtype == np.float32


# ---------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("calls", [0, 1, 3, 4])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, undisturbed, calls):
    path = tmp_path / "f.npy"
    with pytest.raises(Stop):
        compute(path, Stopping(calls))
    assert not path.exists() and not (tmp_path / "f.ids.json").exists()
    rest = Stopping(99)
    compute(path, rest)
    assert rest.called == 5 - calls
    assert path.read_bytes() == undisturbed and names(tmp_path) == ["f.ids.json", "f.npy"]


def test_rows_that_were_not_counted_yet_are_computed_again(tmp_path, undisturbed, monkeypatch):
    path, written = tmp_path / "f.npy", []

    def failing(target):
        written.append(target)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return atomic_file(target)

    with monkeypatch.context() as patch:
        patch.setattr(features, "atomic_file", failing)
        with pytest.raises(OSError, match="No space left"):
            compute(path)
    assert json.loads((tmp_path / "f.part.json").read_text())["done"] == 10
    assert np.load(tmp_path / "f.part.npy")[10:15].any(axis=1).all()
    compute(path)
    assert path.read_bytes() == undisturbed


def test_a_killed_process_loses_one_batch_at_most(tmp_path, undisturbed):
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sgdm_utils.decoding import features
LOAD
MODEL
calls = []
def dying(pictures):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return model(pictures)
features.compute_features(dying, IDS, load, Path(sys.argv[1]), 5, False, IDENTITY)
"""
    code = code.replace("LOAD", inspect.getsource(load)).replace("MODEL", inspect.getsource(model))
    code = code.replace("IDS", repr(IDS)).replace("IDENTITY", repr(IDENTITY))
    path = tmp_path / "f.npy"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=paths.project_root(),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(tmp_path) == ["f.part.json", "f.part.npy"]
    with pytest.raises(FeatureError, match=r"f\.npy is missing"):
        features.load_features(path, IDS)
    rest = Stopping(99)
    compute(path, rest)
    assert rest.called == 2 and path.read_bytes() == undisturbed


@pytest.mark.parametrize("step", ["before the list", "before the file", "before tidying up"])
def test_the_last_moments_of_a_run(tmp_path, undisturbed, monkeypatch, step):
    path = tmp_path / "f.npy"

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        if step == "before the list":
            patch.setattr(features, "write_ids", stop)
        else:
            patch.setattr(features.os, "replace", stop_for(path, os.replace))
        with pytest.raises(Stop):
            compute(path)
    if step == "before tidying up":
        os.replace(tmp_path / "f.part.npy", path)
    again = Stopping(0)  # everything is computed
    compute(path, again)
    assert path.read_bytes() == undisturbed and names(tmp_path) == ["f.ids.json", "f.npy"]


def stop_for(target, replace):
    def stopping(source, destination):
        if destination == target:
            raise Stop
        replace(source, destination)

    return stopping


@pytest.mark.parametrize("damage", ["altered", "truncated", "gone", "state"])
def test_a_damaged_part_is_computed_anew(tmp_path, undisturbed, damage):
    path, part = tmp_path / "f.npy", tmp_path / "f.part.npy"
    with pytest.raises(Stop):
        compute(path, Stopping(3))
    content = bytearray(part.read_bytes())
    if damage == "altered":
        content[200] ^= 1
        part.write_bytes(content)
    elif damage == "truncated":
        part.write_bytes(content[:300])
    elif damage == "gone":
        part.unlink()
    else:
        (tmp_path / "f.part.json").write_text("{}")
    with pytest.warns(features.PartialFeaturesIgnored, match="computed from the beginning"):
        compute(path)
    assert path.read_bytes() == undisturbed


def test_two_at_once_do_the_work_once(tmp_path, undisturbed):
    path, calls = tmp_path / "f.npy", []

    def counting(pictures):
        calls.append(len(pictures))
        return model(pictures)

    workers = [threading.Thread(target=compute, args=(path, counting)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(calls) == 23 and path.read_bytes() == undisturbed


# --------------------------------------------------------------------------- refused to go on

OTHER = [
    ({"identity": IDENTITY | {"weights_sha256": "1" * 64}}, FeatureError,
     "weights_sha256 is '0+' there, '1+' was asked for"),
    ({"identity": IDENTITY | {"size": 224}}, FeatureError, "size is None there, 224 was asked for"),
    ({"ids": IDS[::-1]}, FeatureOrderError, r"another order \(23 images, 23 asked for\)"),
    ({"ids": IDS[:-1]}, FeatureError, r"another list of images \(23 images, 22 asked for\)"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "kind", "message"), OTHER)
@pytest.mark.parametrize("calls", [3, 99])
def test_what_is_there_is_of_something_else(tmp_path, undisturbed, changed, kind, message, calls):
    path = tmp_path / "f.npy"
    if calls == 99:
        compute(path)
    else:
        with pytest.raises(Stop):
            compute(path, Stopping(calls))
    before = {n: (tmp_path / n).read_bytes() for n in names(tmp_path)}
    with pytest.raises(kind, match=message + ".*Remove"):
        compute(path, **changed)
    assert {n: (tmp_path / n).read_bytes() for n in names(tmp_path)} == before
    compute(path)
    assert path.read_bytes() == undisturbed


def test_another_batch_size_does_not_continue_but_may_read(tmp_path):
    path = tmp_path / "f.npy"
    with pytest.raises(Stop):
        compute(path, Stopping(2))
    with pytest.raises(FeatureError, match="batch is 5 there, 6 was asked for"):
        compute(path, batch=6)
    compute(path)
    compute(path, Stopping(0), batch=6)


@pytest.mark.parametrize(
    ("model_fn", "message"),
    [
        (lambda p: model(p)[:-1], r"the model returned \(4, 7\) for 5 pictures"),
        (lambda p: model(p)[:, 0], r"the model returned \(5,\) for 5 pictures"),
        (lambda p: np.where(np.arange(len(p))[:, None] == 2, np.nan, p), "image 'i02' are no finite"),
        (lambda p: np.ones((len(p), len(p))), r"shape \(3,\) after \(5,\), from image 'i20' on"),
    ],
)  # fmt: skip
def test_a_model_that_returns_something_else(tmp_path, model_fn, message):
    with pytest.raises(FeatureError, match=message):
        compute(tmp_path / "f.npy", model_fn)
    assert not (tmp_path / "f.npy").exists()


def test_arguments_that_cannot_be_meant(tmp_path):
    with pytest.raises(FeatureOrderError, match="image 'i00' is asked for twice"):
        compute(tmp_path / "f.npy", ids=[*IDS, "i00"])
    with pytest.raises(FeatureError, match="ends in .npy"):
        compute(tmp_path / "f")
    with pytest.raises(FeatureError, match="0 images in batches of 5"):
        compute(tmp_path / "f.npy", ids=[])
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- reading


def test_another_order_is_refused(tmp_path):
    path = tmp_path / "f.npy"
    compute(path)
    with pytest.raises(FeatureOrderError, match="f.npy holds 23 images in an order of its own, 23 were asked for; they differ first at row 21"):  # fmt: skip
        features.load_features(path, IDS[:21] + IDS[:20:-1])
    with pytest.raises(FeatureOrderError, match="differ first at row 22"):
        features.load_features(path, IDS[:-1])


@pytest.mark.parametrize("read", [features.load_features, features.select_features])
def test_a_changed_file_is_refused(tmp_path, read):
    path = tmp_path / "f.npy"
    compute(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeatureError, match=r"f\.npy is not the file that was written"):
        read(path, IDS)


def test_rows_are_selected_by_id_in_the_order_asked_for(tmp_path):
    path = tmp_path / "f.npy"
    rows = compute(path)
    some = ["i21", "i03", "i03", "i00"]
    np.testing.assert_array_equal(features.select_features(path, some), rows[[21, 3, 3, 0]])
    with pytest.raises(FeatureOrderError, match="no features of 2 of 3 images, the first is 'x'"):
        features.select_features(path, ["x", "i01", "y"])


def test_files_of_the_older_format(tmp_path):
    path = tmp_path / "f.npy"
    np.save(path, np.eye(3))
    path.with_suffix(".ids.json").write_text(json.dumps(["a", "b", "c"]))
    np.testing.assert_array_equal(features.load_features(path, ["a", "b", "c"]), np.eye(3))
    np.testing.assert_array_equal(features.select_features(path, ["c"]), np.eye(3)[[2]])
    assert features.read_identity(path) == {}
    np.save(path, np.eye(3)[:2])  # no checksum there, but a count
    with pytest.raises(FeatureError, match=r"f\.npy has 2 rows for the 3 images"):
        features.load_features(path, ["a", "b", "c"])
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(FeatureError, match=r"f\.npy has no header"):
        features.load_features(path, ["a", "b", "c"])


def test_what_save_features_writes(tmp_path):
    path = tmp_path / "f.npy"
    save_features(path, np.eye(3, dtype=np.float32), ["a", "b", "c"])
    assert load_features(path, ["a", "b", "c"]).dtype == np.float32
    assert isinstance(features.load_features(path, ["a", "b", "c"], mmap=True), np.memmap)
    assert names(tmp_path) == ["f.ids.json", "f.npy"]
    with pytest.raises(FeatureOrderError, match="3 features for 2 images"):
        save_features(path, np.eye(3), ["a", "b"])
    with pytest.raises(TypeError):
        features.save_features(path, np.ones((1, 2)), ["z"], {"model": object()})
    load_features(path, ["a", "b", "c"])  # what was there is whole
    save_features(path, np.eye(2), ["a", "a"])
    with pytest.raises(FeatureOrderError, match="holds image 'a' more than once"):
        features.select_features(path, ["a"])


@pytest.mark.parametrize("text", ["{", "{}", '{"ids": []}', "3"])
def test_a_list_that_is_none(tmp_path, text):
    path = tmp_path / "f.npy"
    np.save(path, np.eye(3))
    with pytest.raises(FeatureError, match=r"f\.ids\.json is missing"):
        features.load_features(path, ["a"])
    path.with_suffix(".ids.json").write_text(text)
    with pytest.raises(
        FeatureError, match=r"f\.ids\.json cannot be read as (JSON|a list of image ids)"
    ):
        features.load_features(path, ["a"])


def test_errors_are_those_of_data_sets():
    assert FeatureOrderError is FeatureOrderError
    assert issubclass(FeatureOrderError, DatasetError) and issubclass(DatasetError, ValueError)


# ----------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return (
        decoding_clip.create_clip(decoding_clip.tiny_clip_config(16, 64))
        .eval()
        .requires_grad_(False)
    )


@pytest.fixture
def files(tmp_path):
    """Nine picture files of several sizes, modes and formats, in a folder of their own."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    made = []
    for k in range(9):
        mode, shape, suffix = [
            ("RGB", (90, 90, 3), "png"), ("L", (64, 64), "png"), ("RGB", (80, 80, 3), "jpg"),
        ][k % 3]  # fmt: skip
        file = tmp_path / "pictures" / f"{k}.{suffix}"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(file)
        made.append(file)
    return made


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_clip_features_of_files_are_those_of_the_study(clip, files, tmp_path, monkeypatch):
    import pandas as pd

    ids = [f.stem for f in files]
    table = pd.DataFrame(
        {"image_id": ids, "concept": ids, "split": "train", "stim_file": [f.name for f in files]}
    )
    pictures = stimuli_pictures.from_files(files[0].parent, table, 64).pictures
    expected = decoding_clip.image_features(clip, pictures, batch=4)
    opened = []
    read = decoding_clip.read_picture
    monkeypatch.setattr(decoding_clip, "read_picture", lambda f, s: opened.append(f) or read(f, s))
    inside = []
    encode = decoding_clip.image_features

    def watched(model, some, batch):
        inside.append((len(opened), some.shape))
        return encode(model, some, batch)

    monkeypatch.setattr(decoding_clip, "image_features", watched)
    rows = clip_features(clip, ids, files, tmp_path / "f.npy", "tiny", 4, False)
    np.testing.assert_array_equal(rows, expected)
    # pictures are opened when their turn comes
    assert inside == [(4, (4, 64, 64, 3)), (8, (4, 64, 64, 3)), (9, (1, 64, 64, 3))]
    identity = features.read_identity(tmp_path / "f.npy")
    assert identity["model"] == "tiny" and identity["picture_size"] == 64


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_clip_features_of_an_interrupted_run(clip, files, tmp_path):
    ids, path = [f.stem for f in files], tmp_path / "f.npy"
    whole = clip_features(clip, ids, files, tmp_path / "whole.npy", "tiny", 2, False)
    good = files[6].read_bytes()
    files[6].write_bytes(good[:100])  # as a download that broke off
    with pytest.raises(PictureError, match=r"6\.png cannot be read as a picture"):
        clip_features(clip, ids, files, path, "tiny", 2, False)
    assert json.loads((tmp_path / "f.part.json").read_text())["done"] == 6
    files[6].write_bytes(good)
    with pytest.raises(FeatureError, match="pictures_sha256 is"):  # the pictures are other ones now
        clip_features(clip, ids, files, path, "tiny", 2, False)
    for left in (tmp_path / "f.part.json", tmp_path / "f.part.npy"):
        left.unlink()
    np.testing.assert_array_equal(clip_features(clip, ids, files, path, "tiny", 2, False), whole)


def test_clip_features_of_an_array(clip, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8)
    ids, path = [str(k) for k in range(6)], tmp_path / "f.npy"
    rows = clip_features(clip, ids, pictures, path, batch=4, progress=False)
    np.testing.assert_array_equal(rows, decoding_clip.image_features(clip, pictures, 4))
    other = pictures.copy()
    other[5, 0, 0, 0] ^= 1
    with pytest.raises(FeatureError, match="pictures_sha256 is"):
        clip_features(clip, ids, other, path, batch=4, progress=False)
    with pytest.raises(FeatureOrderError, match="5 pictures for 6 images"):
        clip_features(clip, ids, pictures[:5], path)
    with pytest.raises(
        FeatureError, match=r"6 of 6 picture files are missing, the first is 0\.png"
    ):
        clip_features(clip, ids, [f"{k}.png" for k in range(6)], path)


def test_pixels_are_normalised_as_the_model_was_trained(clip, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    monkeypatch.setattr(clip.visual, "image_size", (8, 8))
    unit = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    for name, mean, std in (("clip", CLIP_MEAN, CLIP_STD), ("siglip", (0.5,) * 3, (0.5,) * 3)):
        if name == "siglip":  # what open_clip sets from its preprocess_cfg
            monkeypatch.setattr(clip.visual, "image_mean", mean, raising=False)
            monkeypatch.setattr(clip.visual, "image_std", std, raising=False)
        expected = (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(clip_pixels(pictures, clip), expected)


def test_only_the_tokens_in_use_are_trained():
    config = decoding_clip.tiny_clip_config(16, 64)
    model = decoding_clip.create_clip(config).eval()
    tokens = decoding_clip.tokenizer_for(config)(["a red star", "a blue kite at the left"])
    before = model.token_embedding.weight.detach().clone()
    said = model.encode_text(tokens).detach()
    with decoding_clip.used_tokens(model, tokens) as numbered:
        assert len(model.token_embedding.weight) == len(tokens.unique())
        torch.testing.assert_close(model.encode_text(numbered), said)
        with torch.no_grad():
            model.token_embedding.weight += 1
    after, used = model.token_embedding.weight.detach(), tokens.unique()
    assert torch.equal(after[used], before[used] + 1)
    after[used] -= 1
    torch.testing.assert_close(after, before)


def test_a_text_tower_reads_no_further_than_the_longest_text():
    config = decoding_clip.tiny_clip_config(16, 64)
    model = decoding_clip.create_clip(config).eval()
    tokenizer = decoding_clip.tokenizer_for(config)
    captions = ["a blue kite at the left", "a red star", "a blue kite at the left"]
    tokens = tokenizer(captions)
    with torch.no_grad():
        said = model.encode_text(tokens)
    before = model.positional_embedding.detach().clone()
    with decoding_clip.used_positions(model, tokens) as shortened:
        assert shortened.shape == (3, 8)  # six words between start and end
        torch.testing.assert_close(model.encode_text(shortened).detach(), said)
        with torch.no_grad():
            model.positional_embedding += 1
    assert model.attn_mask.shape == (32, 32)
    after = model.positional_embedding.detach()
    assert torch.equal(after[:8], before[:8] + 1) and torch.equal(after[8:], before[8:])
    after[:8] = before[:8]
    features = decoding_clip.text_features(model, tokenizer, captions)
    np.testing.assert_allclose(features, said.numpy(), atol=1e-6)
    model.text_pool_type = "last"  # the end is somewhere else: nothing is left out
    with decoding_clip.used_positions(model, tokens) as all_positions:
        assert all_positions is tokens


def test_the_digest_of_weights_sees_every_weight(clip):
    digest = weights_digest(clip)
    assert weights_digest(clip) == digest and len(digest) == 64
    state = {k: v.clone() for k, v in clip.state_dict().items()}
    other = decoding_clip.create_clip(decoding_clip.tiny_clip_config(16, 64))
    other.load_state_dict(state)
    assert weights_digest(other) == digest
    with torch.no_grad():
        other.visual.conv1.weight[0, 0, 0, 0] += 1e-6
    assert weights_digest(other) != digest
    assert weights_digest(clip.to(torch.bfloat16)) != digest
    clip.to(torch.float32).load_state_dict(state)


def test_progress_is_shown_when_it_is_wanted(tmp_path, capsys):
    compute(tmp_path / "f.npy", progress=True)
    assert "23/23" in capsys.readouterr().err
    compute(tmp_path / "g.npy")
    assert not capsys.readouterr().err


def test_stored_features_are_read_without_loading_open_clip():
    """It takes more than a second, in each of the notebooks that know embeddings from files only."""
    code = "import sys, sgdm_utils.decoding.trained; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
