"""Masks of the seven tans: the head on the structure VAE, its loss and the part-wise IoU."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgdm_utils.decoding import structure
from sgdm_utils.generation.decoder import EEGDecoder
from sgdm_utils.stimuli import tangrams

GROUND = (200, 200, 200)
SMALL, LARGE, BOTH = [0, 1, 2, 4, 3, 5, 6, 7], [0, 1, 2, 3, 4, 5, 7, 6], [0, 1, 2, 4, 3, 5, 7, 6]
WRONG = [0, 2, 1, 3, 4, 5, 6, 7]  # square and parallelogram are not exchangeable


def figure(body: str, crown: str, rotation: float = 20.0) -> np.ndarray:
    placed = tangrams.place(tangrams.tangram_pieces(body, crown), 0.5, 0.5, 0.42, rotation)
    return tangrams.render_tangram(placed, 64, (200, 40, 40), GROUND)[1]


@pytest.fixture(scope="module")
def pieces() -> torch.Tensor:
    """Two tangrams and a picture without tans."""
    return torch.from_numpy(
        np.stack([figure("boat", "cat"), figure("runner", "swan"), np.zeros((64, 64), np.uint8)])
    )


def exchanged(pieces, order):
    return torch.tensor(order, dtype=torch.uint8)[pieces.long()]


def says(pieces, scale=30.0):
    """Logits of somebody who is sure of these pieces, at full resolution."""
    return F.one_hot(pieces.long(), 8).permute(0, 3, 1, 2).float() * scale


def test_the_namings_are_those_of_the_relation_matrix():
    assert tangrams.EXCHANGEABLE == ((2, 3), (5, 6))
    matrix = np.arange(49).reshape(7, 7)
    mine = [matrix[np.ix_(order, order)] for order in structure.NAMINGS]
    assert np.array_equal(mine, tangrams.equivalent_relations(matrix))
    assert [list(m) for m in structure.PART_NAMINGS] == [list(range(8)), SMALL, LARGE, BOTH]


# ------------------------------------------------------------------------------------------ head


def test_without_the_head_nothing_changes():
    """The VAE as it was before there were parts: same weights from one seed, same maps."""
    torch.manual_seed(3)
    plain = structure.StructureVAE(32, 8, 16)
    after = torch.rand(1)
    torch.manual_seed(3)
    headed = structure.StructureVAE(32, 8, 16, parts=True)
    assert after.item() != torch.rand(1).item()  # the head did draw its weights, after all others
    weights, more = plain.state_dict(), headed.state_dict()
    assert not [k for k in weights if k.startswith("parts")]
    assert set(more) - set(weights) == {"parts.0.weight", "parts.0.bias"}
    assert all(torch.equal(weights[k], more[k]) for k in weights)
    code = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    logits, parts = plain.decode_with_parts(code)
    assert parts is None and torch.equal(logits, plain.decode(code))
    assert torch.equal(logits, headed.decode_with_parts(code)[0])


def test_the_head_has_eight_classes_at_half_resolution_and_shares_the_decoder():
    torch.manual_seed(0)
    vae = structure.StructureVAE(32, 8, 16, parts=True)
    code = torch.randn(3, 8)
    logits, parts = vae.decode_with_parts(code)
    assert logits.shape == (3, 2, 32, 32) and parts.shape == (3, 8, 16, 16)
    assert torch.equal(parts, vae.part_logits(code))
    structure.part_loss(parts, torch.ones(3, 32, 32, dtype=torch.uint8)).sum().backward()
    trained = {name.split(".")[0] for name, p in vae.named_parameters() if p.grad is not None}
    assert trained == {"from_code", "context", "decoder", "parts"}
    assert vae.decoder[-2].weight.grad is None  # the last convolution of the maps is not theirs


def test_a_vae_without_the_head_says_so():
    with pytest.raises(ValueError, match="no part head.*part_weight above 0"):
        structure.StructureVAE(32, 8, 16).part_logits(torch.zeros(1, 8))


@pytest.mark.parametrize("stored", [{}, {"parts": False}, {"parts": True}])
def test_stored_configurations_load_old_and_new(stored, tmp_path):
    """`structure_vae.json` as written before there were parts, and since; also in the decoder."""
    config = {"size": 32, "latent_dim": 8, "width": 16, **stored}
    torch.manual_seed(1)
    vae = structure.StructureVAE(**config)
    assert vae.config == {**config, "parts": stored.get("parts", False)}
    again = structure.StructureVAE(**json.loads(json.dumps(vae.config)))
    again.load_state_dict(vae.state_dict())
    encoder = {"n_chans": 5, "n_outputs": 8, "n_times": 50, "sfreq": 100.0}
    decoder = EEGDecoder(encoder, encoder, config, list("abcde"), ["sub-01"], ["x", "y"], ["i"])
    decoder.structure_vae.load_state_dict(vae.state_dict())
    decoder.save_pretrained(tmp_path)
    loaded = EEGDecoder.from_pretrained(tmp_path).structure_vae
    code = torch.randn(2, 8)
    assert torch.equal(loaded.maps(code), vae.maps(code))
    if stored.get("parts"):
        assert torch.equal(loaded.part_logits(code), vae.part_logits(code))


# ------------------------------------------------------------------------------------------ loss


def literal_loss(logits, pieces):
    """Per-pixel cross-entropy at full resolution under each naming, the best of them."""
    full = logits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    losses = []
    for order in (list(range(8)), SMALL, LARGE, BOTH):
        each = F.cross_entropy(full, exchanged(pieces, order).long(), reduction="none")
        losses.append(each.mean((1, 2)))
    return torch.stack(losses).min(0).values


def test_part_loss_is_the_literal_cross_entropy_of_the_best_naming(pieces):
    logits = torch.randn(3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = structure.part_loss(logits, pieces)
    assert torch.allclose(loss[:2], literal_loss(logits, pieces)[:2], rtol=1e-5)
    assert loss[2] == 0


def test_part_loss_of_an_even_guess_is_log_eight(pieces):
    loss = structure.part_loss(torch.zeros(3, 8, 32, 32), pieces)
    assert loss.tolist() == pytest.approx([np.log(8), np.log(8), 0], rel=1e-4)


@pytest.mark.parametrize("order", [list(range(8)), SMALL, LARGE, BOTH])
def test_part_loss_forgives_exchanged_triangles(pieces, order):
    loss = structure.part_loss(says(exchanged(pieces, order)), pieces)
    assert loss.max() < 1e-6


def test_part_loss_does_not_forgive_other_exchanges_and_chooses_for_each_figure(pieces):
    assert structure.part_loss(says(exchanged(pieces, WRONG)), pieces)[:2].min() > 0.1
    mixed = torch.stack([exchanged(pieces, SMALL)[0], exchanged(pieces, LARGE)[1], pieces[2]])
    assert structure.part_loss(says(mixed), pieces).max() < 1e-6
    # a corner of one large triangle called by the other's name is wrong under every naming
    cut = pieces.clone()
    cut[0, :, 32:][cut[0, :, 32:] == 6] = 7
    changed = (cut != pieces)[0].float().mean() * 30  # nats for each pixel whose name is wrong
    assert changed > 0.05
    assert structure.part_loss(says(cut), pieces)[0].item() == pytest.approx(changed.item())


def test_pictures_without_tans_teach_nothing(pieces):
    logits = torch.randn(3, 8, 32, 32, requires_grad=True)
    structure.part_loss(logits, pieces).mean().backward()
    assert logits.grad[2].abs().max() == 0 and logits.grad[0].abs().max() > 0
    scenes = structure.part_loss(logits, torch.zeros_like(pieces))
    assert scenes.tolist() == [0, 0, 0]
    scenes.mean().backward()  # a batch without a single tangram can still be trained on


def test_part_loss_refuses_what_does_not_fit(pieces):
    with pytest.raises(ValueError, match="do not fit"):
        structure.part_loss(torch.zeros(3, 8, 30, 30), pieces)
    with pytest.raises(ValueError, match="do not fit"):
        structure.part_loss(torch.zeros(2, 8, 32, 32), pieces)
    with pytest.raises(ValueError, match="do not fit"):
        structure.part_loss(torch.zeros(3, 7, 32, 32), pieces)
    with pytest.raises(ValueError, match="outside 0 to 7"):
        structure.part_loss(torch.zeros(3, 8, 32, 32), pieces + 5)


def test_the_head_learns_figures_it_sees():
    """Six figures by heart: the loss reaches the decoder and part_map reads what was learned."""
    names = [(b, c) for b in tangrams.BODY_NAMES[:3] for c in tangrams.CROWN_NAMES[:2]]
    target = torch.from_numpy(np.stack([figure(*n) for n in names]))
    torch.manual_seed(0)
    vae = structure.StructureVAE(64, 8, 16, parts=True)
    code = torch.randn(len(names), 8)
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    for _ in range(80):
        loss = structure.part_loss(vae.part_logits(code), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    read = structure.part_map(vae.part_logits(code).detach(), 64).numpy()
    scores = structure.part_iou(read, target.numpy())
    others = structure.part_iou(np.roll(read, 3, 0), target.numpy())
    assert scores.mean() > 0.7 and scores.mean() > others.mean() + 0.3


# ------------------------------------------------------------------------------- map and IoU


def test_part_map_reads_the_likeliest_class_and_the_threshold_the_likeliest_tan():
    p = torch.full((1, 8, 2, 2), 1e-9)
    p[0, 0] = torch.tensor([[0.9, 0.6], [0.3, 0.1]])  # background
    p[0, 3] = torch.tensor([[0.04, 0.15], [0.2, 0.7]])
    p[0, 5] = torch.tensor([[0.06, 0.25], [0.5, 0.2]])
    assert structure.part_map(p.log(), 2).tolist() == [[[0, 0], [5, 3]]]
    assert structure.part_map(p.log(), 2, 0.35).tolist() == [[[0, 5], [5, 3]]]
    assert structure.part_map(p.log(), 2, 0.0).tolist() == [[[5, 5], [5, 3]]]
    large = structure.part_map(p.log(), 4)
    assert large.shape == (1, 4, 4) and large.dtype == torch.uint8
    assert large[0, 0, 0] == 0 and large[0, 3, 3] == 3


def test_part_iou_by_hand():
    target = np.zeros((1, 4, 8), np.uint8)
    target[0, 0, :7] = np.arange(1, 8)
    target[0, 1, :7] = np.arange(1, 8)  # each tan has two pixels
    predicted = target.copy()
    predicted[0, 1, 0] = 0  # square: 1 of 2
    predicted[0, 2, 1] = 2  # parallelogram: 2 of 3
    predicted[0, :2, 4] = 0  # medium triangle: not found
    expected = (1 / 2 + 2 / 3 + 4 * 1 + 0) / 7
    assert structure.part_iou(predicted, target) == pytest.approx([expected])
    assert structure.part_iou(exchanged(torch.from_numpy(predicted), BOTH).numpy(), target) == (
        pytest.approx([expected])
    )


def test_part_iou_forgives_the_four_namings_only(pieces):
    true = pieces[:2]
    for order in (list(range(8)), SMALL, LARGE, BOTH):
        assert structure.part_iou(exchanged(true, order), true).tolist() == [1, 1]
    assert structure.part_iou(exchanged(true, WRONG), true) == pytest.approx([5 / 7, 5 / 7])
    assert structure.part_iou(np.zeros_like(true), true).tolist() == [0, 0]


def test_part_iou_refuses_what_cannot_be_scored(pieces):
    true = pieces[:2].numpy()
    with pytest.raises(ValueError, match=r"target: maps \[2\] hold no tan"):
        structure.part_iou(pieces, pieces)
    with pytest.raises(ValueError, match="differ in shape"):
        structure.part_iou(true[:1], true)
    with pytest.raises(ValueError, match="predicted: expected integers"):
        structure.part_iou(true.astype(float), true)
    with pytest.raises(ValueError, match="target: labels outside 0 to 7"):
        structure.part_iou(true, true + 3)


def test_a_study_without_tangrams_has_no_part_scores():
    none = np.zeros((0, 8, 8), np.uint8)
    assert structure.part_iou(none, none).shape == (0,)
