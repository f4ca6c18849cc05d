"""Concepts of the drawn pictures: combinations of attributes, their split, their words.

A scene concept is "colour shape" (80 of them, category: the shape), a tangram concept is
"crown-on-body tangram" (36, category: "body tangram"). A test concept is a combination that no
training or validation picture has, while each of its two attributes occurs in training.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sgdm_utils.stimuli import scenes, tangrams

TANGRAM_SHARE = 0.4  # of the training and validation pictures
TEST_CONCEPTS = (26, 14)  # scenes, tangrams
VAL_CONCEPTS = (12, 4)
MIN_TRAIN_CONCEPTS = 3  # per shape, colour, body and crown
SCALES = {"scene": (0.19, 0.36), "tangram": (0.33, 0.46)}  # radius in fractions of the frame
ROTATION = {"scene": 15.0, "tangram": 8.0}  # largest jitter, degrees
_MARGIN = 0.03  # between object and frame


def split_concepts(
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    n_test: int,
    n_val: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Assign every combination of two attributes to train, val or test, as evenly as possible.

    A walk along the diagonals of the table of combinations visits all rows and all columns evenly;
    its first cells are test, the next val. Random exchanges of the corners of rectangles then mix
    the assignment and keep how often each row and column occurs in each split.

    Returns
    -------
    DataFrame
        Columns row, column, split; one line per combination, in the order of `rows` x `columns`.

    Raises
    ------
    ValueError
        If an attribute would be left with fewer than `MIN_TRAIN_CONCEPTS` training concepts.
    """
    n_rows, n_columns = len(rows), len(columns)
    if min(n_test, n_val) < 0 or n_test + n_val > n_rows * n_columns:
        raise ValueError(
            f"{n_test} test and {n_val} val concepts do not fit into {n_rows} x {n_columns} = "
            f"{n_rows * n_columns} combinations"
        )
    step = np.arange(n_rows * n_columns)
    i, j = step % n_rows, (step + step // np.lcm(n_rows, n_columns)) % n_columns
    assigned = np.zeros((n_rows, n_columns), dtype=int)
    assigned[i[:n_test], j[:n_test]] = 2
    assigned[i[n_test : n_test + n_val], j[n_test : n_test + n_val]] = 1
    assigned = assigned[rng.permutation(n_rows)][:, rng.permutation(n_columns)]
    n_tries = 50 * n_rows * n_columns
    corner_rows = rng.integers(n_rows, size=(n_tries, 2)).tolist()
    corner_columns = rng.integers(n_columns, size=(n_tries, 2)).tolist()
    for (a, c), (b, d) in zip(corner_rows, corner_columns, strict=True):
        if assigned[a, b] == assigned[c, d] and assigned[a, d] == assigned[c, b]:
            swap = assigned[a, b], assigned[a, d]
            assigned[a, b] = assigned[c, d] = swap[1]
            assigned[a, d] = assigned[c, b] = swap[0]
    for axis, names in ((1, rows), (0, columns)):
        left = (assigned == 0).sum(axis=axis)
        if left.min() < MIN_TRAIN_CONCEPTS:
            raise ValueError(
                f"with {n_test} test and {n_val} val of {n_rows * n_columns} concepts "
                f"{names[left.argmin()]!r} keeps {left.min()} training concepts, "
                f"{MIN_TRAIN_CONCEPTS} are needed; ask for fewer test or val concepts"
            )
    split = np.array(["train", "val", "test"])[assigned.ravel()]
    return pd.DataFrame(
        {"row": np.repeat(rows, n_columns), "column": np.tile(columns, n_rows), "split": split}
    )


def concept_counts(n_pictures: int, wanted: tuple[int, int]) -> tuple[int, int]:
    """Scale the number of (scene, tangram) concepts down where there are fewer pictures."""
    total = sum(wanted)
    if n_pictures >= total:
        return wanted
    n_tangrams = round(n_pictures * wanted[1] / total)
    return n_pictures - n_tangrams, n_tangrams


def spread(concepts: pd.DataFrame, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw `n` rows of `concepts`, each equally often (within one), categories first."""
    shuffled = concepts.iloc[rng.permutation(len(concepts))]
    turn = shuffled.groupby("category").cumcount().to_numpy()
    ordered = shuffled.iloc[np.argsort(turn, kind="stable")]
    return ordered.iloc[np.arange(n) % len(ordered)] if n else ordered.iloc[:0]


def concept_table(n_val: int, n_test: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return all 116 concepts with kind, category, their two attributes and their split."""
    if n_test < 2 or n_val < 2:
        raise ValueError(f"n_test and n_val must be 2 or more, got {n_test} and {n_val}")
    test, val = concept_counts(n_test, TEST_CONCEPTS), concept_counts(n_val, VAL_CONCEPTS)
    scene = split_concepts(tuple(scenes.SHAPES), tuple(scenes.COLOURS), test[0], val[0], rng)
    scene = scene.rename(columns={"row": "shape", "column": "colour"}).assign(kind="scene")
    scene["concept"] = scene["colour"] + " " + scene["shape"]
    scene["category"] = scene["shape"]
    figure = split_concepts(tangrams.BODY_NAMES, tangrams.CROWN_NAMES, test[1], val[1], rng)
    figure = figure.rename(columns={"row": "body", "column": "crown"}).assign(kind="tangram")
    figure["concept"] = figure["crown"] + "-on-" + figure["body"] + " tangram"
    figure["category"] = figure["body"] + " tangram"
    return pd.concat([scene, figure], ignore_index=True).fillna("")


def pictured(table: pd.DataFrame, split: str, n: int, rng: np.random.Generator) -> list[dict]:
    """Return the concepts of the `n` pictures of a split in random order.

    Training and validation pictures are tangrams to `TANGRAM_SHARE`, provided every scene concept
    of validation gets a picture; test pictures are spread over all test concepts alike.
    """
    here = table[table["split"] == split]
    scene, figure = (here[here["kind"] == kind] for kind in ("scene", "tangram"))
    if split == "test":
        n_tangrams = round(n * len(figure) / len(here))
    else:
        n_tangrams = round(n * TANGRAM_SHARE)
        if split == "val":
            n_tangrams = max(min(n_tangrams, n - len(scene)), len(figure))
    drawn = pd.concat([spread(scene, n - n_tangrams, rng), spread(figure, n_tangrams, rng)])
    return drawn.iloc[rng.permutation(n)].to_dict("records")


def draw_attributes(concept: dict, rng: np.random.Generator) -> dict:
    """Draw what the concept leaves open: colour, texture, background, size, place, rotation."""
    kind = concept["kind"]
    low, high = SCALES[kind]
    scale = rng.uniform(low, high)
    rotation = rng.uniform(-ROTATION[kind], ROTATION[kind])
    drawn = dict(concept)
    drawn["colour"] = concept["colour"] or str(rng.choice(list(scenes.COLOURS)))
    drawn["texture"] = str(rng.choice(scenes.TEXTURES)) if kind == "scene" else ""
    drawn["background"] = str(rng.choice(list(scenes.BACKGROUNDS)))
    if kind == "scene":
        outline = scenes.place_shape(drawn["shape"], 0, 0, scale, rotation)[0]
    else:
        figure = tangrams.tangram_pieces(drawn["body"], drawn["crown"])
        outline = np.concatenate(tangrams.place(figure, 0, 0, scale, rotation))
    room = np.maximum(0.5 - outline.max(axis=0) - _MARGIN, 0)
    x, y = 0.5 + rng.uniform(-room, room)
    return drawn | {"x": x, "y": y, "scale": scale, "rotation": rotation}


def position_words(x: float, y: float) -> str:
    """Return the place on a 3 x 3 grid with borders at 0.43 and 0.57, e.g. "at the upper left"."""
    column, row = (int(v > 0.43) + int(v > 0.57) for v in (x, y))
    if column == row == 1:
        return "in the centre"
    if column == 1:
        return "at the top" if row == 0 else "at the bottom"
    side = "left" if column == 0 else "right"
    return "at the " + ("upper ", "", "lower ")[row] + side


def size_word(kind: str, scale: float) -> str:
    """Return small, medium-sized or large: thirds of the range of this kind of picture."""
    low, high = SCALES[kind]
    third = int(np.clip((scale - low) / (high - low) * 3, 0, 2))
    return ("small", "medium-sized", "large")[third]


def caption_of(row: dict, style: int = 0) -> str:
    """Return one of three ways (`style` 0, 1, 2) to say what is in the picture."""
    if row["kind"] == "scene":
        thing = f"{row['colour']} {row['texture']} {row['shape']}"
    else:
        thing = f"{row['colour']} tangram of a {row['body']} body with a {row['crown']} crown"
    size, where = size_word(row["kind"], row["scale"]), position_words(row["x"], row["y"])
    ground = f"{row['background']} background"
    if style == 0:
        return f"a {size} {thing} {where} on a {ground}"
    if style == 1:
        return f"on a {ground}, a {size} {thing} {where}"
    return f"{where} of a {ground} there is a {size} {thing}"
