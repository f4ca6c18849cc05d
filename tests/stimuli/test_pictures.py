"""Drawn pictures: concepts and their split, captions, maps, storage."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_dilation
from skimage.color import deltaE_ciede2000, rgb2lab

from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli import concepts, pictures, scenes, tangrams
from sgdm_utils.stimuli.maps import structure_from_picture, structure_map
from sgdm_utils.stimuli.pictures import StimulusSet, attribute_matrix, make_stimuli, picture_digest
from sgdm_utils.stimuli.stored import open_stimuli


@pytest.fixture(scope="module")
def drawn():
    return make_stimuli(200, 60, 32, 40, rng=np.random.default_rng(5))


def test_counts_shapes_and_types(drawn):
    table = drawn.table
    assert len(drawn) == 332 and table["image_id"].is_unique
    assert table["split"].value_counts().to_dict() == {"train": 260, "test": 40, "val": 32}
    assert table["shown"].sum() == 272 and table.loc[~table["shown"], "split"].eq("train").all()
    assert drawn.pictures.shape == (332, 64, 64, 3) and drawn.pictures.dtype == np.uint8
    assert drawn.silhouettes.dtype == bool and drawn.edges.dtype == bool
    assert drawn.pieces.dtype == np.uint8 and drawn.relations.dtype == np.int8
    train = table[table["split"] == "train"]
    assert (train["kind"] == "tangram").mean() == pytest.approx(0.4, abs=0.01)
    assert not table.isna().any(axis=None)


def test_pictures_are_all_different(drawn):
    assert drawn.table["digest"].is_unique
    assert picture_digest(drawn.pictures[3]) == drawn.table["digest"][3]


def test_splits_share_no_concept_and_hold_every_attribute(drawn):
    table = drawn.table
    by_split = {s: set(table.loc[table["split"] == s, "concept"]) for s in ("train", "val", "test")}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & by_split["test"]
    assert not by_split["train"] & by_split["val"]
    assert len(by_split["test"]) == 40 and len(by_split["val"]) == 16
    shown = table[(table["split"] == "train") & table["shown"]]
    assert set(shown["category"]) == set(table["category"])
    assert shown["category"].nunique() == 16
    test = table[table["split"] == "test"]
    assert test["concept"].value_counts().max() == 1
    assert test["category"].nunique() == 16


@pytest.mark.parametrize("seed", range(8))
def test_every_attribute_keeps_three_training_concepts(seed):
    table = concepts.concept_table(60, 40, np.random.default_rng(seed))
    assert len(table) == 116 and table["concept"].is_unique
    train, test = (table[table["split"] == s] for s in ("train", "test"))
    for kind, names in (("scene", ("shape", "colour")), ("tangram", ("body", "crown"))):
        for name in names:
            known = table.loc[table["kind"] == kind, name].unique()
            counts = train.loc[train["kind"] == kind, name].value_counts()
            assert set(counts.index) == set(known) and counts.min() >= 3
            in_test = test.loc[test["kind"] == kind, name].value_counts().reindex(known)
            assert in_test.max() - in_test.min() <= 1  # as even as possible; nan would fail


def test_split_does_not_tie_shapes_to_colours():
    """Over seeds every combination is a test concept about equally often."""
    rows, columns = tuple("abcdefghij"), tuple("stuvwxyz")
    n = 120
    rng = np.random.default_rng(0)
    hits = sum(
        (concepts.split_concepts(rows, columns, 26, 12, rng)["split"] == "test").to_numpy(int)
        for _ in range(n)
    )
    assert abs(hits / n - 26 / 80).max() < 5 * np.sqrt(26 / 80 * 54 / 80 / n)
    # and within one split, the colours that shapes a and b meet in training are not two closed sets
    one = concepts.split_concepts(rows, columns, 26, 12, np.random.default_rng(1))
    train = (one["split"] == "train").to_numpy().reshape(10, 8)
    assert len({tuple(r) for r in train}) > 5


def test_shown_pictures_are_balanced_over_concepts(drawn):
    shown = drawn.table[(drawn.table["split"] == "train") & drawn.table["shown"]]
    for _, group in shown.groupby("kind"):
        counts = group["concept"].value_counts()
        assert counts.max() - counts.min() <= 1
    val = drawn.table[drawn.table["split"] == "val"]
    for _, group in val.groupby("kind"):
        counts = group["concept"].value_counts()
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("shown", "unshown", "n_val", "n_test"), [(80, 300, 12, 20), (17, 0, 2, 2), (60, 0, 16, 93)]
)
def test_other_sizes_of_study(shown, unshown, n_val, n_test):
    made = make_stimuli(shown, unshown, n_val, n_test, 32, np.random.default_rng(1))
    split = made.table["split"].value_counts()
    assert (split["train"], split["val"], split["test"]) == (shown + unshown, n_val, n_test)
    test = made.table[made.table["split"] == "test"]
    assert test["concept"].nunique() == min(n_test, 40)
    assert made.table.loc[made.table["split"] == "val", "concept"].nunique() == min(n_val, 16)
    train = made.table[(made.table["split"] == "train") & made.table["shown"]]
    assert train["category"].nunique() == 16


def test_impossible_counts_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="n_train_shown=12 makes .* ask for 17"):
        make_stimuli(12, 0, 4, 4, rng=rng)
    with pytest.raises(ValueError, match="n_train_unshown is -1"):
        make_stimuli(80, -1, 4, 4, rng=rng)
    with pytest.raises(ValueError, match="n_test and n_val"):
        make_stimuli(80, 0, 4, 0, rng=rng)
    with pytest.raises(ValueError, match="size is 8"):
        make_stimuli(80, 0, 4, 4, 8, rng)
    with pytest.raises(ValueError, match="needs rng"):
        make_stimuli(80, 0, 4, 4)
    with pytest.raises(ValueError, match="do not fit into 6 x 6 = 36"):
        concepts.split_concepts(tuple("abcdef"), tuple("uvwxyz"), 30, 8, rng)
    with pytest.raises(ValueError, match="keeps . training concepts, 3 are needed"):
        concepts.split_concepts(tuple("abcdef"), tuple("uvwxyz"), 20, 4, rng)


def test_seed_decides_everything_and_test_pictures_ignore_the_training_counts():
    a = make_stimuli(40, 10, 4, 20, rng=np.random.default_rng(3))
    b = make_stimuli(40, 10, 4, 20, rng=np.random.default_rng(3))
    c = make_stimuli(40, 10, 4, 20, rng=np.random.default_rng(4))
    more = make_stimuli(50, 20, 4, 20, rng=np.random.default_rng(3))
    pd.testing.assert_frame_equal(a.table, b.table)
    np.testing.assert_array_equal(a.pictures, b.pictures)
    assert set(a.table["digest"]).isdisjoint(c.table["digest"])
    digests = [s.table.loc[s.table["split"] == "test", "digest"].tolist() for s in (a, more)]
    assert digests[0] == digests[1]


def test_the_number_of_processes_that_draw_changes_nothing(drawn, monkeypatch):
    monkeypatch.setattr(pictures, "_FEWEST_FOR_A_PROCESS", 100)
    monkeypatch.setattr(pictures, "_BLOCK", 50)  # the last block is smaller
    monkeypatch.setattr(pictures.joblib, "cpu_count", lambda: 2)
    started = []
    parallel = pictures.joblib.Parallel
    monkeypatch.setattr(
        pictures.joblib, "Parallel", lambda n, **kw: started.append(n) or parallel(n, **kw)
    )
    again = make_stimuli(200, 60, 32, 40, rng=np.random.default_rng(5))
    assert started == [2]
    pd.testing.assert_frame_equal(again.table, drawn.table)
    for name in ("pictures", "silhouettes", "edges", "pieces", "relations"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))


def test_captions_say_what_the_row_says(drawn):
    vocabulary = {
        "shape": scenes.SHAPES,
        "colour": scenes.COLOURS,
        "texture": scenes.TEXTURES,
        "background": scenes.BACKGROUNDS,
        "body": tangrams.BODY_NAMES,
        "crown": tangrams.CROWN_NAMES,
    }
    for row in drawn.table.to_dict("records"):
        words = row["caption"].replace(",", "").split()
        for attribute, known in vocabulary.items():
            said = [w for w in words if w in known]
            assert said == ([row[attribute]] if row[attribute] else []), (attribute, row["caption"])
        assert ("left" in words) == (row["x"] <= 0.43)
        assert ("right" in words) == (row["x"] > 0.57)
        assert bool({"upper", "top"} & set(words)) == (row["y"] <= 0.43)
        assert bool({"lower", "bottom"} & set(words)) == (row["y"] > 0.57)
        sizes = [w for w in words if w in ("small", "medium-sized", "large")]
        assert sizes == [concepts.size_word(row["kind"], row["scale"])]
    # three styles of sentence: "a ...", "on a ...", "at/in the ..."
    assert {c.split()[0] for c in drawn.table["caption"]} == {"a", "on", "at", "in"}


def test_no_word_names_two_things():
    words = [*scenes.SHAPES, *scenes.COLOURS, *scenes.TEXTURES, *scenes.BACKGROUNDS]
    words += [*tangrams.BODY_NAMES, *tangrams.CROWN_NAMES]
    assert len(words) == len(set(words))


def test_size_words_follow_the_scale():
    low, high = concepts.SCALES["scene"]
    words = [concepts.size_word("scene", s) for s in (low, (low + high) / 2, high)]
    assert words == ["small", "medium-sized", "large"]


def test_maps_agree_with_pictures(drawn):
    for i, row in drawn.table.iterrows():
        silhouette, edges = drawn.silhouettes[i], drawn.edges[i]
        frame = np.concatenate([silhouette[0], silhouette[-1], silhouette[:, 0], silhouette[:, -1]])
        assert not frame.any(), f"{row['image_id']} touches the frame"
        assert not (edges & ~silhouette).any() and edges.sum() > 20
        # far from the object the picture is the background, and the object is not
        ground = np.asarray(scenes.background_image(row["background"], 64).reduce(4), dtype=int)
        differs = np.abs(drawn.pictures[i].astype(int) - ground).max(axis=-1) > 12
        outside = ~binary_dilation(silhouette, np.ones((5, 5)))  # sharp tips fade over two pixels
        assert not differs[outside].any()
        assert differs[silhouette].mean() > 0.97
        rows, columns = np.nonzero(silhouette)
        assert (columns.min() + columns.max() + 1) / 128 == pytest.approx(row["x"], abs=0.03)
        assert (rows.min() + rows.max() + 1) / 128 == pytest.approx(row["y"], abs=0.03)


def test_pieces_and_relations_belong_to_tangrams(drawn):
    scene = (drawn.table["kind"] == "scene").to_numpy()
    assert not drawn.pieces[scene].any() and (drawn.relations[scene] == -1).all()
    for i in np.flatnonzero(~scene):
        assert set(np.unique(drawn.pieces[i])) == set(range(8))
        np.testing.assert_array_equal(drawn.pieces[i] > 0, drawn.silhouettes[i])
        row = drawn.table.iloc[i]
        figure = tangrams.tangram_pieces(row["body"], row["crown"])
        np.testing.assert_array_equal(drawn.relations[i], tangrams.relation_matrix(figure))


def test_edges_follow_holes_and_seams(drawn):
    ring = drawn.table.index[drawn.table["shape"] == "ring"][0]
    x, y = (int(drawn.table[c][ring] * 64) for c in ("x", "y"))
    assert not drawn.silhouettes[ring][y, x]  # the hole
    line = drawn.edges[ring][y]
    runs = (np.diff(line.astype(int)) == 1).sum()
    assert runs == 4  # outer, inner, inner, outer
    tangram = np.flatnonzero(drawn.table["kind"] == "tangram")
    seams = [drawn.edges[i] & ~_outline(drawn.silhouettes[i]) for i in tangram]
    assert min(s.sum() for s in seams) > 8


def _outline(silhouette):
    from scipy.ndimage import binary_erosion

    return silhouette & ~binary_erosion(silhouette)


def test_every_colour_stands_out_from_every_background():
    def lab(rgb):
        return rgb2lab(np.array(rgb, dtype=float)[None, None] / 255)[0, 0]

    for colour in scenes.COLOURS:
        for name, ends in scenes.BACKGROUNDS.items():
            for end in ends:
                contrast = deltaE_ciede2000(lab(scenes.COLOURS[colour]), lab(end))
                assert contrast > 17, (colour, name, contrast)
        others = [c for c in scenes.COLOURS if c != colour]
        nearest = min(
            deltaE_ciede2000(lab(scenes.COLOURS[colour]), lab(scenes.COLOURS[c])) for c in others
        )
        assert nearest > 20, (colour, nearest)


def test_shapes_stay_different_when_blurred():
    from scipy.ndimage import gaussian_filter

    blurred = {}
    for shape in scenes.SHAPES:
        contours = scenes.place_shape(shape, 0.5, 0.5, 0.3)
        mask = scenes.draw_scene(contours, 64, "red", "plain", "white")[1]
        blurred[shape] = gaussian_filter(mask.astype(float), 2)
    names = list(blurred)
    for i, a in enumerate(names):
        for b in names[:i]:
            overlap = np.minimum(blurred[a], blurred[b]).sum()
            iou = overlap / np.maximum(blurred[a], blurred[b]).sum()
            assert iou < 0.78, (a, b, iou)


def test_attribute_matrix(drawn):
    features, names = attribute_matrix(drawn.table)
    assert features.shape == (len(drawn), len(names)) and features.dtype == np.float32
    assert len(set(names)) == len(names) == 2 + 10 + 6 + 6 + 8 + 3 + 4 + 3
    row = drawn.table.index[drawn.table["shape"] == "star"][0]
    on = {n for n, v in zip(names, features[row], strict=True) if v == 1 and "=" in n}
    colour, texture, ground = (drawn.table[c][row] for c in ("colour", "texture", "background"))
    expected = {"kind=scene", "shape=star", f"colour={colour}"}
    assert on == expected | {f"texture={texture}", f"background={ground}"}
    assert features[row, names.index("x")] == pytest.approx(drawn.table["x"][row])
    with pytest.raises(ValueError, match="column colour holds .'mauve'."):
        attribute_matrix(drawn.table.assign(colour="mauve"))


def test_structure_map(drawn):
    maps = structure_map(drawn.silhouettes[:5], drawn.edges[:5])
    assert maps.shape == (5, 2, 64, 64) and maps.dtype == np.float32
    np.testing.assert_array_equal(maps[:, 0] > 0, drawn.silhouettes[:5])
    np.testing.assert_array_equal(maps[:, 1] > 0, drawn.edges[:5])
    with pytest.raises(ValueError, match="must both be"):
        structure_map(drawn.silhouettes[:5], drawn.edges[:4])


def test_structure_from_picture_finds_plain_objects(drawn):
    plain = np.flatnonzero((drawn.table["texture"] == "plain").to_numpy())
    for i in plain:
        silhouette, edges = structure_from_picture(drawn.pictures[i])
        true = drawn.silhouettes[i]
        iou = (silhouette & true).sum() / (silhouette | true).sum()
        assert iou > 0.9, (drawn.table["caption"][i], iou)
        near = binary_dilation(edges, iterations=1)
        assert near[drawn.edges[i]].mean() > 0.95


def test_structure_from_picture_of_nothing_and_of_nonsense():
    empty = np.asarray(scenes.background_image("sand", 64).reduce(4))
    silhouette, edges = structure_from_picture(empty)
    assert not silhouette.any() and not edges.any()
    with pytest.raises(ValueError, match="uint8"):
        structure_from_picture(np.zeros((8, 8, 3)))


def test_larger_pictures_show_the_same(drawn):
    small = make_stimuli(17, 0, 2, 4, 64, np.random.default_rng(9))
    large = make_stimuli(17, 0, 2, 4, 128, np.random.default_rng(9))
    assert large.table["caption"].tolist() == small.table["caption"].tolist()
    shrunk = large.pictures.reshape(-1, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small.pictures).mean() < 1.0


def test_save_and_load(drawn, tmp_path):
    drawn.save(tmp_path)
    again = StimulusSet.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, drawn.table, check_dtype=False)
    for name in ("pictures", "silhouettes", "edges", "pieces", "relations"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))
    files = {f.stem for f in (tmp_path / "stimuli").glob("*.png")}
    assert files == set(drawn.table.loc[drawn.table["shown"], "image_id"])
    from PIL import Image

    first = np.asarray(Image.open(tmp_path / "stimuli" / f"{drawn.table['image_id'][0]}.png"))
    np.testing.assert_array_equal(first, drawn.pictures[0])


def test_load_refuses_what_does_not_belong_together(drawn, tmp_path):
    drawn.save(tmp_path)
    swapped = drawn.pictures.copy()
    swapped[[4, 5]] = swapped[[5, 4]]
    np.save(tmp_path / "pictures.npy", swapped)
    with pytest.raises(ValueError, match="row of 'train-00004' is not the one in stimuli.tsv"):
        StimulusSet.load(tmp_path)
    np.save(tmp_path / "pictures.npy", drawn.pictures[:-1])
    with pytest.raises(ValueError, match="pictures has 331 rows, the table has 332"):
        StimulusSet.load(tmp_path)
    np.save(tmp_path / "pictures.npy", drawn.pictures)
    np.save(tmp_path / "edges.npy", drawn.edges[..., :-1])
    with pytest.raises(ValueError, match=r"edges has the shape \(332, 64, 63\), the pictures have"):
        StimulusSet.load(tmp_path)
    (tmp_path / "edges.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"edges.npy is missing"):
        StimulusSet.load(tmp_path)
    twice = drawn.table.assign(image_id="train-00000")
    with pytest.raises(ValueError, match="more than once"):
        StimulusSet(twice, *(getattr(drawn, n) for n in _FIELDS))


def test_stored_arrays_belong_to_their_table(drawn, tmp_path):
    drawn.save_arrays(tmp_path)
    drawn.table.to_parquet(tmp_path / "stimuli.parquet")
    assert open_stimuli(tmp_path).structure_maps.shape == (332, 2, 64, 64)
    np.save(tmp_path / "edges.npy", drawn.edges[..., :-1])
    with pytest.raises(
        DatasetError, match=r"edges.npy has the shape \(332, 64, 63\), silh.*00_data"
    ):
        _ = open_stimuli(tmp_path).structure_maps
    for name in _FIELDS:
        np.save(tmp_path / f"{name}.npy", getattr(drawn, name)[:-1])
        with pytest.raises(DatasetError, match=rf"{name}.npy has the shape \(331.* each of 332"):
            _ = getattr(open_stimuli(tmp_path), name)


_FIELDS = ("pictures", "silhouettes", "edges", "pieces", "relations")
