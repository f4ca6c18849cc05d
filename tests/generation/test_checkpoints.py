"""An interrupted training ends where an undisturbed one ends; a foreign state is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel

from sgdm_utils.decoding.training import cosine_schedule
from sgdm_utils.generation.checkpoints import StateIgnored, TrainingState
from sgdm_utils.workflow import digest_file

N_STEPS = 12


class Interruption(Exception):
    """Stands for a killed process."""


def train(path, identity, stop_before=None, every=5):
    """Fit a tiny network to noise; returns its weights, the averaged weights and the losses."""
    torch.manual_seed(3)
    layers = torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = cosine_schedule(optimizer, N_STEPS, warmup=3)
    ema = EMAModel(model.parameters(), decay=0.9)
    generator, rng = torch.Generator().manual_seed(5), np.random.default_rng(7)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    state = TrainingState(path, identity, noise=generator, order=rng, **parts)
    start, history = state.resume()
    for step in range(start, N_STEPS):
        if step == stop_before:
            raise Interruption
        x = torch.randn(16, 4, generator=generator)
        loss = (model(x[rng.permutation(16)[:8]]) - x[:8, :2]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        ema.step(model.parameters())
        history.append({"step": step, "loss": loss.item()})
        state.save_every(every, step + 1, history)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    averaged = torch.cat([p.flatten() for p in ema.shadow_params])
    return weights, averaged, history, start


def test_resumed_training_ends_with_the_same_weights(tmp_path):
    expected = train(tmp_path / "undisturbed.pt", {"lr": 0.01})
    path = tmp_path / "run.pt"
    with pytest.raises(Interruption):
        train(path, {"lr": 0.01}, stop_before=8)  # last saved after step 5
    weights, averaged, history, start = train(path, {"lr": 0.01})
    assert start == 5
    assert torch.equal(weights, expected[0])
    assert torch.equal(averaged, expected[1])
    assert history == expected[2]


@pytest.mark.parametrize("forgotten", ["optimizer", "ema", "noise", "order", "generators of torch"])
def test_the_comparison_notices_a_part_that_is_not_restored(tmp_path, monkeypatch, forgotten):
    expected = train(tmp_path / "undisturbed.pt", {})
    path = tmp_path / "run.pt"
    with pytest.raises(Interruption):
        train(path, {}, stop_before=8)
    stored = torch.load(path, weights_only=True)
    original = TrainingState.resume

    def resume_without(self):
        kept = self.parts
        self.parts = {k: v for k, v in kept.items() if k != forgotten}
        result = original(self)
        self.parts = kept
        return result

    stored["parts"].pop(forgotten)
    torch.save(stored, path)
    digest = digest_file(path).encode()
    path.write_bytes(path.read_bytes() + digest)
    monkeypatch.setattr(TrainingState, "resume", resume_without)
    weights, averaged, *_ = train(path, {})
    assert not (torch.equal(weights, expected[0]) and torch.equal(averaged, expected[1]))


def test_a_killed_process_leaves_a_whole_state(tmp_path):
    """SIGKILL while saving without pause: what is under the name can always be read."""
    path = tmp_path / "run.pt"
    program = textwrap.dedent(
        """
        import sys, torch
        from sgdm_utils.generation.checkpoints import TrainingState
        model = torch.nn.Linear(600, 600)
        state = TrainingState(sys.argv[1], {}, model=model)
        step = 0
        while True:
            step += 1
            torch.nn.init.constant_(model.weight, step)
            state.save(step, [])
            print(step, flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(4):
            assert process.stdout.readline(), "the program ended by itself"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    model = torch.nn.Linear(600, 600)
    step, _ = TrainingState(path, {}, model=model).resume()
    assert step >= 4
    assert torch.equal(model.weight, torch.full_like(model.weight, step))


def test_a_state_of_another_configuration_is_ignored_and_the_difference_named(tmp_path):
    path = tmp_path / "run.pt"
    train(path, {"lr": 0.01, "width": 8, "data": "abc"})
    with pytest.warns(StateIgnored, match="different: data, lr"):
        *_, start = train(path, {"lr": 0.02, "width": 8, "data": "xyz"})
    assert start == 0


@pytest.mark.parametrize("keep", [0, 10, 700])
def test_a_damaged_state_is_ignored(tmp_path, keep):
    path = tmp_path / "run.pt"
    train(path, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(StateIgnored, match="cannot be read"):
        *_, start = train(path, {})
    assert start == 0


def test_zeroed_blocks_are_never_taken_for_weights(tmp_path):
    path = tmp_path / "run.pt"
    train(path, {})
    whole = path.read_bytes()
    for start in range(0, len(whole), 512):
        block = whole[start : start + 512]
        if not block.strip(b"\0"):
            continue  # padding
        path.write_bytes(whole[:start] + bytes(len(block)) + whole[start + 512 :])
        with pytest.warns(StateIgnored, match="cannot be read"):
            assert TrainingState(path, {}, noise=torch.Generator()).resume() == (0, [])


def test_a_state_that_no_longer_fits_the_network_changes_nothing(tmp_path):
    path = tmp_path / "run.pt"
    old = {"first": torch.nn.Linear(3, 3), "second": torch.nn.Linear(3, 3)}
    TrainingState(path, {}, **old).save(4, [])
    new = {"first": torch.nn.Linear(3, 3), "second": torch.nn.Linear(5, 5)}
    before = new["first"].weight.clone()
    with pytest.warns(StateIgnored, match="does not fit what is trained"):
        assert TrainingState(path, {}, **new).resume() == (0, [])
    assert torch.equal(new["first"].weight, before)


def test_without_a_state_training_starts_silently_and_remove_forgets(tmp_path):
    path = tmp_path / "folder" / "run.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("error", StateIgnored)
        *_, start = train(path, {})
        assert start == 0 and path.is_file()
        *_, start = train(path, {})
        assert start == 10  # taken up, not repeated
    state = TrainingState(path, {}, model=torch.nn.Linear(1, 1))
    state.remove()
    state.remove()
    assert state.resume() == (0, []) and not path.exists()


def test_saving_is_only_due_at_multiples(tmp_path):
    state = TrainingState(tmp_path / "run.pt", {}, model=torch.nn.Linear(1, 1))
    assert [s for s in range(1, 9) if state.save_every(4, s, [])] == [4, 8]
    assert not state.save_every(0, 8, [])


def test_parts_that_cannot_be_saved_are_refused(tmp_path):
    with pytest.raises(TypeError, match="rng is a object"):
        TrainingState(tmp_path / "run.pt", {}, rng=object())
    with pytest.raises(ValueError, match="nothing to save"):
        TrainingState(tmp_path / "run.pt", {})
