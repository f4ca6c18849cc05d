"""The number of processes, an interruption and a restart change nothing about what is trained."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
import signal
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
import toy_task
from diffusers import DPMSolverMultistepScheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import nn

from sgdm_utils import conditioning, diffusion, diffusion_task, multiscale, paths
from sgdm_utils.checkpoints import StateIgnored
from sgdm_utils.distributed import TrainingFailed, launch
from sgdm_utils.jobs import Job, JobError, read_history
from sgdm_utils.structure import StructureVAE
from sgdm_utils.train import train

STEPS, BATCH = 24, 12
WORKERS = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}


def toy_job(output, **changes) -> Job:
    """The toy's job. No averages where processes are launched: diffusers takes long to import."""
    job = Job(
        "toy_task:toy", str(output), BATCH, STEPS, seed=4, ema_decay=0.9, save_every=5,
        eval_every=8, snapshots=(10,),
    )  # fmt: skip
    if {"steps", "ema_decay"} & changes.keys():
        changes = {"snapshots": ()} | changes
    return dataclasses.replace(job, **changes)


def plain_loop():
    """The toy trained without any of this: weights, averaged weights, losses."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        networks = toy_task.Toy()
    optimizer, schedule = toy_task.optimise(networks, STEPS)
    ema = EMAModel(networks.parameters(), decay=0.9)
    generator, losses = torch.Generator().manual_seed(4), []
    for _ in range(STEPS):
        loss = toy_task.losses(networks, toy_task.draw(BATCH, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(networks.parameters())
        losses.append(loss.item())
    return networks.state_dict(), ema.shadow_params, losses


def curve(trained):
    return np.array([entry["train"] for entry in trained.history])


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def _workers(monkeypatch):
    """Launched processes find the toy and use one thread each."""
    for name, value in WORKERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TOY_TROUBLE", raising=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The toy, trained in this process."""
    return train(toy_job(tmp_path_factory.mktemp("one")), cpu=True)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """The toy in two processes, of which the second fails in step 13; the error, a copy of it all."""
    folder = tmp_path_factory.mktemp("two")
    path = toy_job(folder / "out", ema_decay=None).write(folder / "job.json")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingFailed) as error:
        for name, value in {**WORKERS, "TOY_TROUBLE": "raise:1:13"}.items():
            patch.setenv(name, value)
        launch(path, 2, cpu=True)
    shutil.copytree(folder / "out", folder / "copy")
    return path, folder / "copy", str(error.value)


@pytest.fixture(scope="module")
def two(failed):
    """The toy, trained to its end in two processes after the failure."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WORKERS.items():
            patch.setenv(name, value)
        return launch(failed[0], 2, cpu=True)


# the same result


def test_one_process_is_the_plain_loop(one):
    weights, averaged, losses = plain_loop()
    assert np.allclose(curve(one), losses, rtol=1e-6, atol=0)
    assert [e["step"] for e in one.history] == list(range(1, STEPS + 1))
    assert largest_difference(one.weights(), weights) < 1e-6
    ours, names = one.averaged(), [n for n, _ in toy_task.Toy().named_parameters()]
    assert max((ours[n] - a).abs().max() for n, a in zip(names, averaged, strict=True)) < 1e-6
    assert ours["scale"] == 1.5, "buffers belong to a state dict, too"
    assert largest_difference(ours, one.weights()) > 1e-3
    assert largest_difference(one.averaged(10), ours) > 1e-3


def test_two_processes_give_the_curve_and_the_weights_of_one(one, two):
    assert np.allclose(curve(two), curve(one), rtol=1e-5, atol=0)
    assert largest_difference(two.weights(), one.weights()) < 1e-5
    assert [e.keys() for e in two.history] == [e.keys() for e in one.history]
    assert [e["step"] for e in two.history if "val" in e] == [8, 16, 24]


def test_what_it_ran_on_is_written_beside_the_weights(one, two):
    for trained, n, backend, spans in (
        (one, 1, None, [(1, STEPS)]),
        (two, 2, "gloo", [(1, 10), (11, STEPS)]),
    ):
        run = json.loads((trained.output / "run.json").read_text())
        assert [(s["first_step"], s["last_step"]) for s in run["sessions"]] == spans
        for session in run["sessions"]:
            assert session["num_processes"] == n and session["items_per_process"] == BATCH // n
            assert session["backend"] == backend and session["device"] == "cpu"
            assert session["mixed_precision"] == "no" and session["parameter_dtype"] == "float32"
            assert session["wall_s"] > 0
        assert run["job"]["global_batch"] == BATCH
        assert not list(trained.output.rglob("*.pkl"))


def test_the_comparison_notices_another_batch_and_another_seed(one, tmp_path):
    other = train(toy_job(tmp_path / "a", global_batch=BATCH // 2), cpu=True)
    assert not np.allclose(curve(other), curve(one), rtol=1e-3)
    other = train(toy_job(tmp_path / "b", seed=5), cpu=True)
    assert not np.allclose(curve(other), curve(one), rtol=1e-3)


def test_global_generators_are_left_alone(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(toy_job(tmp_path, steps=6), cpu=True)
    train(toy_job(tmp_path, steps=6), cpu=True)  # takes up its checkpoint
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_bfloat16_runs_and_keeps_float32_weights(one, tmp_path):
    half = train(toy_job(tmp_path, mixed_precision="bf16"), cpu=True)
    assert np.isfinite(curve(half)).all()
    assert np.allclose(curve(half), curve(one), rtol=0.1)
    assert np.abs(curve(half) / curve(one) - 1).max() > 1e-4, "nothing was computed in bfloat16"
    assert {v.dtype for v in half.weights().values()} == {torch.float32}
    (session,) = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert session["mixed_precision"] == "bf16"


# interruptions


def test_a_failing_process_is_quoted(failed):
    path, copy, message = failed
    assert "process 2 of 2: ValueError: these pictures are\nno good" in message
    assert "log.txt" in message and len(message.splitlines()) < 6
    assert not list(copy.glob("*.safetensors")), "there is no result yet"
    assert "these pictures" in (copy / "log.txt").read_text()


def test_one_process_goes_on_where_two_have_stopped(failed, one, tmp_path):
    shutil.copytree(failed[1], tmp_path / "out")
    alone = train(toy_job(tmp_path / "out", ema_decay=None), cpu=True)
    assert np.allclose(curve(alone), curve(one), rtol=1e-5, atol=0)
    assert largest_difference(alone.weights(), one.weights()) < 1e-5
    sessions = json.loads((alone.output / "run.json").read_text())["sessions"]
    assert [s["num_processes"] for s in sessions] == [2, 1]


def test_a_resumed_job_ends_with_the_same_weights(one, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_TROUBLE", "raise:0:18")
    with pytest.raises(ValueError, match="no good"):
        train(toy_job(tmp_path), cpu=True)
    assert [e["step"] for e in read_history(tmp_path)][-1] == 16, "one more than the checkpoint"
    monkeypatch.delenv("TOY_TROUBLE")
    resumed = train(toy_job(tmp_path), cpu=True)
    assert equal(resumed.weights(), one.weights()) and equal(resumed.averaged(), one.averaged())
    assert resumed.history == one.history


def test_a_killed_process_is_named_and_the_job_can_go_on(one, tmp_path, monkeypatch):
    path = toy_job(tmp_path / "out", ema_decay=None).write(tmp_path / "job.json")
    monkeypatch.setenv("TOY_TROUBLE", "kill:0:18")
    with pytest.raises(TrainingFailed, match="a process was killed, by hand or because memory"):
        launch(path, 1, cpu=True)
    monkeypatch.delenv("TOY_TROUBLE")
    resumed = train(path, cpu=True)
    assert equal(resumed.weights(), one.weights()) and resumed.history == one.history


def test_an_interruption_ends_all_processes(tmp_path, monkeypatch):
    path = toy_job(tmp_path / "out", ema_decay=None).write(tmp_path / "job.json")
    monkeypatch.setenv("TOY_TROUBLE", "sleep:1:2")

    def interrupt(number, frame):
        if (tmp_path / "out" / "asleep").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            launch(path, 2, cpu=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(path) in (p.info["cmdline"] or [])]
    assert not left, [p.info["cmdline"] for p in left]


def test_a_finished_job_is_not_trained_again(one, tmp_path, monkeypatch):
    shutil.copytree(one.output, tmp_path / "out")
    monkeypatch.setenv("TOY_TROUBLE", "raise:0:1")
    again = train(toy_job(tmp_path / "out"), cpu=True)
    assert again.history == one.history and equal(again.weights(), one.weights())


def test_a_line_that_a_crash_cut_off_is_left_out(one, tmp_path):
    shutil.copytree(one.output, tmp_path / "out")
    with open(tmp_path / "out" / "history.jsonl", "a") as stream:
        stream.write('{"step": 25, "tr')
    assert read_history(tmp_path / "out") == one.history
    assert train(toy_job(tmp_path / "out"), cpu=True).history == one.history


def test_a_checkpoint_of_another_job_is_not_taken_up(one, tmp_path):
    shutil.copytree(one.output, tmp_path / "out")
    changes = {"steps": 6, "options": {"pictures": "xyz"}}
    with pytest.warns(StateIgnored, match="different: inputs, options, steps"):
        other = train(toy_job(tmp_path / "out", **changes), cpu=True)
    assert [e["step"] for e in other.history] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("file", ["state.json", "weights.safetensors", "optimizer.bin"])
def test_a_damaged_checkpoint_is_refused(one, tmp_path, file):
    shutil.copytree(one.output, tmp_path / "out")
    damaged = tmp_path / "out" / "checkpoint" / file
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(JobError, match="checkpoint .* cannot be read .*: delete it to train"):
        train(toy_job(tmp_path / "out"), cpu=True)


# what is refused


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(tmp_path):
    path = toy_job(tmp_path / "out").write(tmp_path / "job.json")
    with pytest.raises(JobError, match="a global batch of 12 does not divide by 5 processes"):
        launch(path, 5, cpu=True)
    with pytest.raises(JobError, match="0 processes cannot train"):
        launch(path, 0, cpu=True)
    n = 12 * (torch.cuda.device_count() + 1)
    path = toy_job(tmp_path / "out", global_batch=n).write(path)
    with pytest.raises(JobError, match=f"{n} processes need as many GPUs"):
        launch(path, n)
    assert not (tmp_path / "out").exists()


def test_fewer_processes_than_asked_for_are_refused(tmp_path):
    with pytest.raises(JobError, match="2 processes were asked for, but 1 run"):
        train(toy_job(tmp_path), cpu=True, num_processes=2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"options": {"wrong": "mean"}}, JobError, r"losses of 12 items have shape \(\)"),
        ({"options": {"wrong": "rows"}}, JobError, r"draws must have 12 rows.*'level': \(1,\)"),
        ({"options": {"wrong": "nan"}}, FloatingPointError, "not finite from step 1 on"),
        ({"options": {"dropout": 0.1}}, JobError, "layers.2: dropout draws its masks in each"),
        ({"task": "toy_task:no_task"}, JobError, "returned a NoneType, expected a Task"),
        ({"task": "toy_task:nowhere"}, JobError, "cannot be imported: .*nowhere"),
        ({"task": "no_such_module:toy"}, JobError, "cannot be imported: No module named"),
    ],
)
def test_wrong_tasks_are_refused_and_leave_no_result(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(toy_job(tmp_path / "out", **changes), cpu=True)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "toy"}, "task is 'toy', expected 'module:function'"),
        ({"steps": 0}, "steps is 0, expected an integer of at least 1"),
        ({"global_batch": 2.0}, "global_batch is 2.0"),
        ({"seed": True}, "seed is True"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16', expected 'no' or 'bf16'"),
        ({"snapshots": (30,)}, r"snapshots \[30\] lie outside of steps 1 to 24"),
        ({"ema_decay": None, "snapshots": (3,)}, "snapshots are taken of the averaged weights"),
    ],
)
def test_wrong_jobs_are_refused(tmp_path, changes, message):
    with pytest.raises(JobError, match=message):
        toy_job(tmp_path, **changes)


def test_job_files_come_back_and_wrong_ones_are_named(tmp_path):
    job, path = toy_job(tmp_path, options={"a": [1, 2.5]}), tmp_path / "job.json"
    assert Job.read(job.write(path)) == job
    values = json.loads(path.read_text())
    for text, message in (
        (json.dumps(values | {"batch": 3}), r"job.json has unknown fields \['batch'\]"),
        (json.dumps({"task": "a:b"}), r"job.json lacks \['output', 'global_batch', 'steps'\]"),
        ("[1]", "holds a list, expected an object"),
        ("{", "job.json is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(JobError, match=message):
            Job.read(path)
    with pytest.raises(JobError, match="there is no job file .*nothing.json"):
        launch(tmp_path / "nothing.json", 2, cpu=True)


# the diffusion model

EMBED, CHANNELS, SIZE, GRID, CODES, CATEGORIES, N, N_TRAIN = 6, 4, 32, 4, 8, 3, 26, 20


@dataclasses.dataclass
class Inputs:
    """What notebook 05 has in memory before it trains, at a tiny size."""

    folder: Path
    networks: nn.ModuleDict
    arrays: dict
    structure: Path
    structure_vae: StructureVAE
    scale: dict


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder, g = tmp_path_factory.mktemp("diffusion"), torch.Generator().manual_seed(8)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = diffusion.make_unet(CHANNELS, GRID, EMBED, 32, (32, 32))
        controlnet = diffusion.make_controlnet(unet, SIZE)
        condition = conditioning.ConditionEmbedder(
            EMBED, CATEGORIES, multiscale.resolutions(unet), 2, 32, residual_std=0.3
        )
        vae = StructureVAE(SIZE, CODES, 8)
    networks = nn.ModuleDict({"unet": unet, "controlnet": controlnet, "condition": condition})
    networks.to(memory_format=torch.channels_last)
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    arrays = {
        "latents": torch.randn(N, CHANNELS, GRID, GRID, generator=g),
        "embeddings": torch.randn(N, EMBED, generator=g),
        "codes": torch.randn(N, CODES, generator=g),
        "maps": torch.rand(N, 2, SIZE, SIZE, generator=g),
        "category": torch.randint(-1, CATEGORIES, (N,), generator=g),
        "channel_weight": torch.tensor([0.5, 1.5, 0.8, 1.2]).view(1, -1, 1, 1),
        "alphas_bar": scheduler.alphas_cumprod,
    }
    structure = folder / "structure"
    structure.mkdir()
    (structure / "structure_vae.json").write_text(json.dumps(vae.config))
    save_file(vae.state_dict(), structure / "structure_vae.safetensors")
    scale = {"center": np.full(CODES, 0.1), "spread": np.full(CODES, 2.0)}
    np.savez(structure / "latent_scale.npz", **scale)
    diffusion_task.write_inputs(folder / "inputs", networks, arrays, N_TRAIN, structure)
    return Inputs(folder / "inputs", networks, arrays, structure, vae.eval(), scale)


def diffusion_job(prepared, output, **options) -> Job:
    return Job(
        "sgdm_utils.diffusion_task:build", str(output), global_batch=8, steps=6, seed=2,
        options={"inputs": str(prepared.folder), "lr": 2e-3, "warmup": 2, **options}, eval_every=3,
        snapshots=(4,),
    )  # fmt: skip


def notebook_05(names, loop_over):
    """Functions of notebook 05 by name, and the first statements of one of its loops, as code."""
    notebook = nbformat.read(paths.notebook_path("05_diffusion_training"), as_version=4)
    cells = [ast.parse(c.source) for c in notebook.cells if c.cell_type == "code"]
    nodes = [node for cell in cells for node in cell.body]
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name in names]
    assert {f.name for f in functions} == set(names)
    (loop,) = [n for n in nodes if isinstance(n, ast.For) and loop_over in ast.unparse(n.iter)]
    upto = next(i for i, n in enumerate(loop.body) if ast.unparse(n).startswith("loss ="))
    return (ast.unparse(ast.Module(part, [])) for part in (functions, loop.body[: upto + 1]))


@pytest.mark.parametrize("snr_gamma", [0.0, 5.0])
def test_the_loss_is_that_of_notebook_05(inputs, tmp_path, snr_gamma):
    """Two statements of one loss must not drift apart: run the notebook's own code beside ours."""
    defined = ("conditions", "beliefs", "random_levels", "random_evidence", "diffuse",
               "time_weight", "diffusion_loss", "validation_loss")  # fmt: skip
    functions, first_lines = notebook_05(defined, "diffusion_steps")
    a, scale = inputs.arrays, {k: torch.tensor(v).float() for k, v in inputs.scale.items()}
    names = {
        "np": np, "torch": torch, "conditioning": conditioning, "diffusion": diffusion,
        "structure_vae": inputs.structure_vae, "map_scale": scale, "grid": GRID, "seed": 2,
        "train": np.arange(N_TRAIN), "val": np.arange(N_TRAIN, N), "categories": range(CATEGORIES),
        "device": torch.device("cpu"), "fast": torch.autocast("cpu", enabled=False),
        "residual_std": 0.3, "snr_gamma": snr_gamma, "doubtful_share": 0.5,
        "drops": (0.12, 0.25, 0.5), "diffusion_batch": 8, **a, **inputs.networks,
    }  # fmt: skip
    exec(functions, names)
    names["doubts"] = tuple(names[n] for n in ("random_levels", "random_levels", "random_evidence"))
    names["generator"] = torch.Generator().manual_seed(7)
    job = diffusion_job(inputs, tmp_path, snr_gamma=snr_gamma, doubtful_share=0.5)
    task, generator = diffusion_task.build(job, torch.device("cpu")), torch.Generator()
    generator.manual_seed(7)
    for _ in range(3):  # the generators must be in step after a batch, too
        exec(first_lines, names)
        losses = task.losses(task.networks, task.draw(8, generator))
        assert losses.shape == (8,) and losses.std() > 0
        assert losses.mean().item() == pytest.approx(names["loss"].item(), rel=1e-5)
    with torch.no_grad():
        scores = task.evaluate(task.networks)
    assert scores["val"] == pytest.approx(names["validation_loss"](True), rel=1e-5)
    assert scores["val, no structure"] == pytest.approx(names["validation_loss"](False), rel=1e-5)
    assert scores["val"] != pytest.approx(scores["val, no structure"], rel=1e-3)


def test_two_processes_train_the_diffusion_model_like_one(inputs, tmp_path):
    one = train(diffusion_job(inputs, tmp_path / "one"), cpu=True)
    path = diffusion_job(inputs, tmp_path / "two").write(tmp_path / "job.json")
    two = launch(path, 2, cpu=True)
    assert np.allclose(curve(two), curve(one), rtol=1e-5, atol=0)
    for name in ("val", "val, no structure"):
        a, b = ([e[name] for e in t.history if name in e] for t in (one, two))
        assert len(a) == 2 and np.allclose(a, b, rtol=1e-5, atol=0)
    start = {f"{k}.{n}": v for k, m in inputs.networks.items() for n, v in m.state_dict().items()}
    moved = largest_difference(one.weights(), start)
    assert largest_difference(two.weights(), one.weights()) < 1e-2 * moved
    for step in (None, 4):
        assert largest_difference(two.averaged(step), one.averaged(step)) < 1e-2 * moved
    networks = nn.ModuleDict(inputs.networks)
    networks.load_state_dict(two.averaged())


def test_the_diffusion_model_runs_in_bfloat16(inputs, tmp_path):
    job = dataclasses.replace(diffusion_job(inputs, tmp_path), mixed_precision="bf16")
    trained = train(job, cpu=True)
    assert np.isfinite(curve(trained)).all() and np.isfinite(trained.history[-1]["val"])


def test_inputs_that_do_not_fit_are_refused_and_leave_nothing(inputs, tmp_path):
    def write(n_train=N_TRAIN, networks=inputs.networks, **changes):
        arrays = {k: v for k, v in (inputs.arrays | changes).items() if v is not None}
        diffusion_task.write_inputs(tmp_path / "x", networks, arrays, n_train, inputs.structure)

    with pytest.raises(ValueError, match=r"needs \['codes', 'controlnet'\] as well"):
        write(codes=None, networks={k: inputs.networks[k] for k in ("unet", "condition")})
    with pytest.raises(ValueError, match="differ in length: .*'maps': 25"):
        write(maps=inputs.arrays["maps"][1:])
    with pytest.raises(ValueError, match="n_train is 27, there are 26 rows"):
        write(n_train=27)
    with pytest.raises(ValueError, match="embeddings holds NaN"):
        write(embeddings=inputs.arrays["embeddings"] * torch.nan)
    assert not list(tmp_path.iterdir())


def test_options_and_inputs_that_are_not_there_are_refused(inputs, tmp_path):
    job = diffusion_job(inputs, tmp_path, drop_sound=0.1)
    with pytest.raises(JobError, match=r"hold unknown \['drop_sound'\]"):
        train(job, cpu=True)
    with pytest.raises(JobError, match="lack 'inputs'"):
        train(dataclasses.replace(job, options={}), cpu=True)
    with pytest.raises(JobError, match="no inputs in .*nowhere"):
        train(diffusion_job(inputs, tmp_path, inputs=str(tmp_path / "nowhere")), cpu=True)


def test_the_identity_follows_the_inputs(inputs, tmp_path):
    def identity(folder, arrays):
        diffusion_task.write_inputs(folder, inputs.networks, arrays, N_TRAIN, inputs.structure)
        job = diffusion_job(inputs, tmp_path, inputs=str(folder))
        return diffusion_task.build(job, torch.device("cpu")).identity

    same = identity(tmp_path / "a", inputs.arrays)
    assert same == identity(tmp_path / "b", inputs.arrays)
    other = inputs.arrays | {"latents": inputs.arrays["latents"] + 1e-6}
    assert same != identity(tmp_path / "b", other)
