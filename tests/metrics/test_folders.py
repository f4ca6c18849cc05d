"""Folders against folders: pairing by name, what is refused, resuming, and the command."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from metric_pictures import draw_pictures, quick_trunk, save_alexnet
from PIL import Image

from sgdm_utils.errors import DatasetError
from sgdm_utils.metrics import folders as metrics_folders
from sgdm_utils.metrics import pairs as metrics_pairs
from sgdm_utils.metrics import pixels, suite, tables
from sgdm_utils.metrics.command import main
from sgdm_utils.metrics.pairs import PictureFolderError, pair_folders
from sgdm_utils.workflow import paths

STEMS = ("aardvark_01b", "bench", "cat 2", "dog.v1", "egg", "fox")
N_SAMPLES = 3
PIXELS = ["pixcorr", "ssim", "mse"]


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Targets (n, side, side, 3) and reconstructions (n, n_samples, side, side, 3), 8 bits."""
    target = draw_pictures(len(STEMS), 32)
    other = draw_pictures(len(STEMS) * N_SAMPLES, 32, seed=1)
    mixed = 0.5 * target[:, None] + 0.5 * other.reshape(len(STEMS), N_SAMPLES, 3, 32, 32)
    return tuple(np.round(255 * np.moveaxis(x, -3, -1)).astype(np.uint8) for x in (target, mixed))


def write(folder, names, pictures):
    for name, picture in zip(names, pictures, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


@pytest.fixture
def folders(no_cache, tmp_path, arrays):
    """A folder of targets and three of reconstructions, one for each way to name samples."""
    target, pred = arrays
    samples = pred.reshape(-1, *pred.shape[2:])
    numbered = [f"{stem}_{s}.png" for stem in STEMS for s in range(N_SAMPLES)]
    nested = [f"{stem}/{s}.png" for stem in STEMS for s in range(N_SAMPLES)]
    write(tmp_path / "target", [f"{stem}.png" for stem in STEMS], target)
    write(tmp_path / "single", [f"{stem}.png" for stem in STEMS], pred[:, 0])
    write(tmp_path / "numbered", numbered, samples)
    write(tmp_path / "nested", nested, samples)
    return tmp_path


def as_float(pictures: np.ndarray) -> np.ndarray:
    return np.moveaxis(pictures, -1, -3).astype(np.float32) / 255


def score(folder, pred="numbered", **arguments):
    table = metrics_folders.score_folders(folder / pred, folder / "target", **arguments)
    return table.set_index("metric")


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["single", "numbered", "nested"])
def test_scores_equal_the_functions(layout, folders, arrays):
    target, pred = map(as_float, arrays)
    n_samples = 1 if layout == "single" else N_SAMPLES
    table = score(folders, layout, names=PIXELS)
    assert table.attrs["n_samples"] == n_samples and table.attrs["copies"] == 0
    for name in PIXELS:
        by_sample = [getattr(pixels, name)(target, pred[:, s]) for s in range(n_samples)]
        assert table.loc[name, "value"] == pytest.approx(np.mean(by_sample), rel=1e-6)
        assert table.loc[name, "n"] == len(STEMS)
        assert table.loc[name, "ci_low"] < table.loc[name, "value"] < table.loc[name, "ci_high"]
    assert set(table["study"]) == {"target"} and set(table["model"]) == {layout}


@pytest.mark.parametrize("block_bytes", [512e6, 1])
def test_features_in_blocks_equal_the_suite(block_bytes, folders, arrays, monkeypatch):
    """All samples at once or one at a time, it is the number that the classes give."""
    monkeypatch.setattr(metrics_folders, "BLOCK_BYTES", block_bytes)
    target, pred = (torch.from_numpy(as_float(x)) for x in arrays)
    text = torch.from_numpy(np.random.default_rng(0).standard_normal((len(STEMS), 48))).float()
    trunk = quick_trunk("clip_tiny", text=lambda network, captions: text)
    captions = {stem: f"a picture of {stem}" for stem in STEMS}
    arguments = dict(substitutes={"clip_tiny": trunk}, captions=captions)
    names = [f"{m}_clip_tiny" for m in ("two_way", "correlation_distance", "clip_text")]
    table = score(folders, names=names, **arguments)
    whole = suite.full_suite(names=names, substitutes={"clip_tiny": trunk}, captions=True)
    whole.update(pred, target, list(captions.values()))
    for name, result in whole.results().items():
        assert table.loc[name, "value"] == pytest.approx(result.value, rel=1e-5)
        assert table.loc[name, "chance"] == pytest.approx(result.chance, rel=1e-5)


def test_scores_in_16_bits_are_named_so(folders):
    trunk = quick_trunk("clip_tiny")
    trunk.precision = "bfloat16"
    names = ["ssim", "two_way_clip_tiny"]
    table = score(folders, names=names, substitutes={"clip_tiny": trunk})
    assert list(table.index) == ["ssim", "two_way_clip_tiny_bfloat16"]
    whole = suite.full_suite(names=names, substitutes={"clip_tiny": trunk})
    whole.update(torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16))
    rows = whole.rows(study="s", subject="all", seed=None, model="m", condition="c")
    assert [row["metric"] for row in rows] == list(table.index)


def test_the_order_of_files_cannot_matter(folders, arrays, monkeypatch):
    first = score(folders, names=PIXELS)
    listed = type(folders).iterdir
    monkeypatch.setattr(type(folders), "iterdir", lambda self: reversed(sorted(listed(self))))
    again = score(folders, names=PIXELS)
    assert again["value"].equals(first["value"])
    # files that were made in another order, under names that sort otherwise
    target, pred = arrays
    order = np.random.default_rng(0).permutation(len(STEMS))
    names = [f"{k}.png" for k in "fedcba"]
    write(folders / "other" / "t", names, target[order])
    write(folders / "other" / "p", names, pred[order, 0])
    other = metrics_folders.score_folders(
        folders / "other" / "p", folders / "other" / "t", names=PIXELS
    )
    single = score(folders, "single", names=PIXELS)
    np.testing.assert_allclose(other["value"], single["value"], rtol=1e-9)


def test_targets_against_themselves_are_perfect_and_are_counted(folders):
    table = metrics_folders.score_folders(folders / "target", folders / "target", names=PIXELS)
    np.testing.assert_allclose(table["value"], [1, 1, 0], atol=1e-9)
    assert table.attrs["copies"] == len(STEMS)


def test_a_table_of_all_metrics_names_what_is_missing(folders):
    save_alexnet(folders / "alexnet-owt-7be5be79.safetensors")
    table = score(folders, "single", weights=folders)
    found = {name for name in table.index if " (" not in name}
    assert found == {*PIXELS, "lpips_alex", "two_way_alexnet_2", "two_way_alexnet_5"}
    assert "two_way_clip_vit_l_14 (weights not available)" in table.index
    assert "clip_text_clip_vit_l_14 (no captions given)" in table.index
    assert len(table) == len(suite.METRICS)
    assert table.loc["two_way_alexnet_5", "chance"] == 0.5
    written = tables.write_table(
        folders / "t.csv", table.reset_index()[list(tables.COLUMNS)].to_dict("records")
    )
    assert len(tables.read_table(written)) == len(table)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(folders):
    save_alexnet(folders / "alexnet-owt-7be5be79.safetensors")
    names = ["ssim", "lpips_alex", "two_way_alexnet_5"]
    gpu = score(folders, names=names, weights=folders, device="cuda")
    cpu = score(folders, names=names, weights=folders)
    np.testing.assert_allclose(gpu["value"], cpu["value"], rtol=1e-3)


# --- pairing ------------------------------------------------------------------------------------


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_pairs_are_made_by_name(tmp_path):
    target = make(tmp_path / "t", "b.png", "a_1.jpg", ".hidden.png", "notes.txt")
    pred = make(tmp_path / "p", "b_10.png", "b_2.png", "a_1_0.webp", "a_1_1.png", "Thumbs.db")
    pairs = pair_folders(pred, target)
    assert [p.stem for p in pairs] == ["a_1", "b"]
    assert [p.name for p in pairs[1].samples] == ["b_2.png", "b_10.png"]  # by number
    # a stem that looks like a numbered sample is a stem
    exact = make(tmp_path / "e", "b.png", "a_1.png")
    assert [p.samples[0].name for p in pair_folders(exact, target)] == ["a_1.png", "b.png"]
    other = make(tmp_path / "o", "b-s0.png", "a_1-s0.png")
    assert len(pair_folders(other, target, "-s")) == 2


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (["a.png"], ["a.png", "b.png"], "1 targets have no reconstruction: b"),
        (["a.png", "c.png", "b.png"], ["a.png", "b.png"], "1 reconstructions have no target: c"),
        (["a_0.png", "c_0.png"], ["a.png"], "1 reconstructions have no target: c"),
        (["a.png", "a.jpg"], ["a.png"], "a.jpg and a.png bear one name"),
        (["a.png"], ["a.png", "a.JPG"], "bear one name"),
        (["a_0.png", "a_1.png", "b_0.png"], ["a.png", "b.png"], "fewer than 2 samples: b has 1"),
        (["a.png", "b_0.png"], ["a.png", "b.png"], "a.png, named as a target, and b_0.png"),
        (["a_1.png", "a_01.png"], ["a.png"], "a_01.png and a_1.png are one sample"),
        (["a/0.png", "b.png"], ["a.png", "b.png"], "holds pictures .b.png. and folders .a."),
        (["a/0.png", "a/0.jpg"], ["a.png"], "bear one name"),
        (["a/b/0.png", "a/0.png"], ["a.png"], "a folder within the samples"),
        (["a.png"], ["a.png", "more/b.png"], "folder among the targets"),
        (["readme.txt"], ["a.png"], "holds no picture"),
    ],
)
def test_what_cannot_be_paired_is_refused(pred, target, message, tmp_path):
    make(tmp_path / "p", *pred), make(tmp_path / "t", *target)
    with pytest.raises(PictureFolderError, match=message):
        pair_folders(tmp_path / "p", tmp_path / "t")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PictureFolderError, match="nowhere is no folder"):
        pair_folders(tmp_path / "nowhere", make(tmp_path / "t", "a.png"))


# --- pictures that are refused ------------------------------------------------------------------


def test_pictures_that_cannot_be_used_are_refused(folders, arrays):
    path = folders / "numbered" / "egg_1.png"
    whole = path.read_bytes()
    picture = Image.open(path).convert("RGB")

    def refuses(message, names=PIXELS):
        with pytest.raises(DatasetError, match=message) as caught:
            score(folders, names=names)
        assert "egg_1" in str(caught.value)

    path.write_bytes(whole[: len(whole) // 2])
    refuses("cannot be read as a picture")
    path.write_bytes(b"<html>not found</html>")
    refuses("cannot be read as a picture")
    picture.crop((0, 0, 32, 20)).save(path)
    refuses("is 32 x 20 pixels")
    picture.resize((16, 16)).save(path)
    refuses(r"has 16 pixels a side, .*aardvark_01b_0.png has 32")
    Image.new("RGB", (32, 32)).save(path)  # what overflow in 16 bits leaves
    refuses("of one colour all over .*overflow")
    assert score(folders, names=["ssim"]).loc["ssim", "value"] < 1
    path.unlink()
    picture.save(path.with_suffix(".tif"), save_all=True, append_images=[picture.rotate(90)])
    refuses("holds 2 pictures")


def test_the_command_lays_transparent_pictures_on_the_colour_it_is_given(folders, capsys):
    path = folders / "single" / "egg.png"
    picture = Image.open(path).convert("RGB")
    picture.putalpha(128)
    picture.save(path)
    given = [str(folders / f) for f in ("single", "target")] + ["--metrics", "mse", "--quiet"]
    assert main(given) == 1 and "egg.png is transparent" in capsys.readouterr().err
    values = []
    for colour in ("black", "white", "#000000"):
        out = folders / f"{len(values)}.csv"
        assert main([*given, "--background", colour, "--out", str(out)]) == 0
        values.append(tables.read_table(out)["value"].item())
    assert values[0] == values[2] != values[1]


# --- resuming -----------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The groups that are computed, as they are."""
    done = []
    for name in ("_score_pictures", "_score_features"):
        function = getattr(metrics_folders, name)

        def counting(network, specs, *rest, function=function):
            done.extend(spec.name for spec in specs)
            return function(network, specs, *rest)

        monkeypatch.setattr(metrics_folders, name, counting)
    return done


def test_finished_metrics_are_not_computed_again(folders, counted):
    substitutes = {"clip_tiny": quick_trunk("clip_tiny")}
    names = [*PIXELS, "two_way_clip_tiny", "top1_of_50_clip_tiny"]
    arguments = dict(substitutes=substitutes, finished=folders / "f.json")
    score(folders, names=["ssim"], **arguments)
    first = score(folders, names=names, **arguments)
    assert counted == ["ssim", "pixcorr", "mse", "two_way_clip_tiny", "top1_of_50_clip_tiny"]
    counted.clear()
    again = score(folders, names=names, **arguments)
    assert counted == [] and again.equals(first)
    assert "top1_of_50_clip_tiny (needs 50 pictures)" in again.index
    stored = json.loads((folders / "f.json").read_text())
    assert len(stored["metrics"]["ssim"]["result"]["items"]) == len(STEMS)
    # another network under the same name
    other = quick_trunk("clip_tiny")
    other.network.register_buffer("weight", torch.ones(1))
    score(folders, names=names, **arguments | {"substitutes": {"clip_tiny": other}})
    assert counted == ["two_way_clip_tiny", "top1_of_50_clip_tiny"]


def test_kept_features_of_targets_are_used_for_the_same_targets_and_network(folders, monkeypatch):
    seen = []
    trunk = quick_trunk("clip_tiny")
    forward = trunk.forward
    monkeypatch.setattr(trunk, "forward", lambda x: [seen.append(len(x)), forward(x)][1])
    names = ["two_way_clip_tiny", "correlation_distance_clip_tiny"]
    arguments = dict(names=names, substitutes={"clip_tiny": trunk}, keep_targets=folders / "kept")
    n = len(STEMS)
    plain = score(folders, **arguments | {"keep_targets": None})
    first = score(folders, **arguments)
    assert sum(seen) == 2 * n * (N_SAMPLES + 1)
    seen.clear()
    again = score(folders, **arguments)
    other = score(folders, "single", **arguments)
    assert sum(seen) == n * (N_SAMPLES + 1)  # reconstructions only
    assert plain.equals(first) and plain.equals(again)
    assert other.equals(score(folders, "single", **arguments | {"keep_targets": None}))
    (kept,) = (folders / "kept").iterdir()
    trunk.network.register_buffer("weight", torch.ones(1))  # another network under this name
    score(folders, **arguments)
    Image.open(folders / "target" / "egg.png").rotate(90).save(folders / "target" / "egg.png")
    score(folders, **arguments)
    assert len(list((folders / "kept").iterdir())) == 3
    for path in (folders / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(
        DatasetError, match="clip_tiny-.* cannot be read as features of targets .*Remove it"
    ):
        score(folders, **arguments)


def test_other_pictures_are_computed_anew(folders, counted):
    arguments = dict(names=["mse"], finished=folders / "f.json")
    first = score(folders, **arguments)
    shutil.copy(folders / "numbered" / "fox_0.png", folders / "numbered" / "egg_0.png")
    second = score(folders, **arguments)
    assert counted == ["mse", "mse"]
    assert second.loc["mse", "value"] != first.loc["mse", "value"]
    (folders / "f.json").write_text("{}")
    with pytest.raises(ValueError, match=r"f.json cannot be read as finished metrics \(KeyError"):
        score(folders, **arguments)


def test_an_interrupted_run_keeps_what_was_finished(folders, counted, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    trunk = quick_trunk("clip_tiny")
    names = ["ssim", "two_way_clip_tiny"]
    arguments = dict(names=names, finished=folders / "f.json", substitutes={"clip_tiny": trunk})
    with monkeypatch.context() as patch:
        patch.setattr(trunk, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            score(folders, **arguments)
    counted.clear()
    score(folders, **arguments)
    assert counted == ["two_way_clip_tiny"]


def test_weights_that_come_later_are_used(folders, counted):
    arguments = dict(names=["ssim", "two_way_alexnet_5"], finished=folders / "f.json")
    missing = "two_way_alexnet_5 (weights not available)"
    assert missing in score(folders, weights=folders, **arguments).index
    save_alexnet(folders / "alexnet-owt-7be5be79.safetensors")
    assert score(folders, weights=folders, **arguments).loc["two_way_alexnet_5", "value"] > 0
    assert counted == ["ssim", "two_way_alexnet_5"]


# --- the command --------------------------------------------------------------------------------


def test_the_command(folders):
    done = subprocess.run(
        [sys.executable, "-m", "sgdm_utils", "score", folders / "numbered", folders / "target",
         "--out", folders / "out" / "scores.csv", "--metrics", "ssim", "mse", "lpips_alex",
         "--model", "theirs"],
        cwd=paths.project_root(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 pictures x 3 samples")
    assert "chance" in lines[1] and "weights not available" in lines[-1]
    table = tables.read_table(folders / "out" / "scores.csv")
    assert set(table["model"]) == {"theirs"}
    expected = score(folders, names=["ssim"]).loc["ssim", "value"]
    row = table.set_index("metric").loc["ssim"]
    assert row["value"] == pytest.approx(expected, rel=1e-5)
    assert f"{expected:.4f}" in done.stdout
    assert (folders / "out" / "scores.items.json").is_file()


def test_exit_codes(folders, capsys):
    pred, target = str(folders / "single"), str(folders / "target")
    quick = ["--quiet", "--metrics", "mse"]
    assert main([pred, target, *quick]) == 0
    assert main([pred, target, *quick, "lpips_vgg"]) == 0
    assert main([pred, target, *quick, "lpips_vgg", "--strict"]) == 3
    capsys.readouterr()
    assert main([target, target, *quick]) == 0
    assert "6 reconstructions are their targets, pixel for pixel" in capsys.readouterr().err
    for arguments, message in [
        ([pred, str(folders / "nowhere"), *quick], "nowhere is no folder"),
        ([pred, target, "--quiet", "--metrics", "ssmi"], "no metric ssmi"),
        ([pred, target, *quick, "--device", "gpu"], "device 'gpu' is unknown"),
        ([pred, target, *quick, "--weights", str(folders / "typo")], "no folder"),
        ([pred, target, *quick, "--substitute", "clip"], "expected NAME=FOLDER"),
        ([pred, target, *quick, "--captions", str(folders / "c.csv")], "c.csv"),
    ]:
        out = folders / "refused.csv"
        assert main([*arguments, "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()
    with pytest.raises(SystemExit) as caught:
        main([pred])
    assert caught.value.code == 2


def test_captions_and_a_clip_of_our_own(folders, capsys):
    from sgdm_utils.decoding import clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    model = clip.create_clip(config)
    clip.save_clip(model, config, folders / "clip")
    names = ["two_way_clip_tiny", "clip_text_clip_tiny"]
    book = folders / "captions.csv"
    book.write_text(
        "\ufeffstem,caption\n" + "".join(f'{stem},"a {stem}, drawn"\n' for stem in STEMS),
        encoding="utf-8",
    )
    command = [str(folders / "single"), str(folders / "target"), "--quiet",
               "--substitute", f"clip_tiny={folders / 'clip'}", "--captions", str(book),
               "--out", str(folders / "s.csv"), "--metrics", *names]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    table = tables.read_table(folders / "s.csv").set_index("metric")
    assert set(table.index) == set(names) and table["value"].notna().all()
    for content, message in [
        ("stem,text\nfox,a fox\n", "lacks the column caption"),
        ("stem,caption\nfox,a fox\nfox,a fox\n", "names the stem fox twice"),
        ("stem,caption\nfox,a fox\n", "5 of 6 targets have no caption"),
    ]:
        book.write_text(content, encoding="utf-8")
        capsys.readouterr()
        assert main(command) == 1
        assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(folders):
    with pytest.raises(ValueError, match="no CUDA device here, use cpu"):
        score(folders, names=["mse"], device="cuda")


def test_pairs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics_pairs.Pair("a", None, ()).stem = "b"
