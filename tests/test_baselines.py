"""The comparison with the rivals: equal budgets, the best rate by validation, nothing done twice, what a failed volume is."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import baselines  # noqa: E402
import baselines_table  # noqa: E402
import overhead  # noqa: E402
from baselines import SYSTEMS, Work  # noqa: E402
from baselines_table import FIELD_OF_VIEW_MM, GRID, PHANTOMS, failures, write_phantoms  # noqa: E402

from scripts.schedulers import build_scheduler  # noqa: E402


class Recorded(Work):
    """A comparison whose trainings are not run: each tells what it was asked for."""

    validations = {6.0e-4: 0.5, 2.0e-3: float("nan"), 6.0e-3: 0.4, 1.0e-3: 0.3, 3.0e-3: 0.1, 1.0e-2: 0.2}

    def __init__(self, folder, asked):
        super().__init__(folder, "PRDiT", 0.4, 0.1)
        self.asked = asked

    def cost_of_step(self, stage, start):
        pass

    def _train(self, folder, stage, rate, budget, start):
        self.asked.append((stage.name, rate, budget, start and Path(start).parent.relative_to(self.folder).as_posix()))
        return {"rate": rate, "weights": str(folder / "w.pt"), "validation": self.validations[rate]}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_stages_share_one_budget(name):
    assert sum(stage.share for stage in SYSTEMS[name].stages) == pytest.approx(1)


def test_the_rate_that_validates_best_is_trained_and_nothing_twice(tmp_path):
    asked = []
    found = Recorded(tmp_path, asked).train()
    searched = [("local", rate, 0.04, None) for rate in (6.0e-4, 2.0e-3, 6.0e-3)]
    searched += [("model", rate, 0.04, "search/local at 0.006") for rate in (1.0e-3, 3.0e-3, 1.0e-2)]
    searched[:] = [(name, rate, pytest.approx(budget), start) for name, rate, budget, start in searched]
    searched.insert(3, ("local", 6.0e-3, 0.4, None))  # before the next search
    assert asked == searched + [("model", 3.0e-3, 0.4, "final/local at 0.006")]
    assert Recorded(tmp_path, asked).train() == found and len(asked) == 8
    assert json.loads((tmp_path / "0.4" / "PRDiT" / "state.json").read_text())["final/model at 0.003"] == found[-1]


def test_late_discriminators_count_for_their_share_of_the_steps(monkeypatch):
    def counted(start):
        return {"tflop": 1.0 if start else 5.0, "core_seconds": 2.0 if start else 6.0}

    probe = SimpleNamespace(batch=lambda size: None, batch_size=1)
    monkeypatch.setattr(
        baselines, "parsed", lambda stack, settings: SimpleNamespace(get_parsed_content=lambda name: probe)
    )
    starts = iter([True, False])
    monkeypatch.setattr(baselines, "counted", lambda run: counted(next(starts)))
    assert baselines.cost_of_step(["train"], {}, 0.75) == {"tflop": 2.0, "core_seconds": 3.0}


def test_noise_and_still_air_have_failed_and_phantoms_have_not(tmp_path):
    write_phantoms(tmp_path / "a", 5_000_000, 8)
    write_phantoms(tmp_path / "b", 6_000_000, 8)
    folders = {PHANTOMS: tmp_path / "a", "others": tmp_path / "b", "broken": tmp_path / "c"}
    folders["broken"].mkdir()
    volumes = [np.random.default_rng(0).uniform(-1000, 1000, GRID), np.full(GRID, -1000.0)]
    for index, volume in enumerate(volumes):
        image = baselines_table.nib.Nifti1Image(
            volume.astype(np.float32), np.diag([FIELD_OF_VIEW_MM / GRID[0]] * 3 + [1])
        )
        baselines_table.nib.save(image, folders["broken"] / f"seed_{index:06d}.nii.gz")
    assert failures(folders) == {PHANTOMS: [], "others": [], "broken": [0, 1]}


def test_data_of_other_numbers_are_refused(tmp_path):
    baselines.write_data(tmp_path, 2, 1)
    before = (tmp_path / "dataset.json").read_text()
    baselines.write_data(tmp_path, 2, 1)
    with pytest.raises(SystemExit, match="choose another --work"):
        baselines.write_data(tmp_path, 3, 1)
    assert (tmp_path / "dataset.json").read_text() == before


def test_a_rate_whose_volumes_are_no_ct_is_lost(tmp_path, monkeypatch):
    """A report that fails for another reason still ends the search."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"validation": [{"image": "a"}]}')
    work, stage = baselines.Work(tmp_path, "HA-GAN", 1.0, 0.1), baselines.SYSTEMS["HA-GAN"].stages[0]
    values = [-1000.0, 300.0]

    def draws(weights, folder, count, seed):
        folder.mkdir(exist_ok=True)
        volume = np.linspace(*values, 64, dtype=np.float32).reshape(4, 4, 4)
        baselines_table.nib.save(baselines_table.nib.Nifti1Image(volume, np.eye(4)), folder / f"seed_{seed}.nii.gz")

    def fails(*words, **settings):
        raise RuntimeError("a full disk")

    monkeypatch.setattr(work, "_sample", draws)
    monkeypatch.setattr(baselines, "bundle", fails)
    with pytest.raises(RuntimeError, match="a full disk"):
        work._validated(tmp_path / "gan.pt", stage)
    values[1] = -20.0
    assert work._validated(tmp_path / "gan.pt", stage) == float("inf")


@pytest.mark.parametrize(("name", "times"), [("cosine_sine", 1000), ("ddpm_linear", 1000), ("ddpm_cosine", 300)])
def test_the_plain_loop_noises_volumes_as_the_bundle_does(name, times):
    path = build_scheduler({"name": name, "num_train_timesteps": times}).path
    expected = path.weights(path.position(torch.arange(times, dtype=torch.float64)))[0].float()
    torch.testing.assert_close(overhead.alphas(name, times), expected, rtol=0, atol=2e-3)


def test_steps_of_the_trainer_and_of_the_plain_loop_take_turns(monkeypatch):
    """Both are timed as often, and neither counts the other."""
    clock = [0]
    monkeypatch.setattr(overhead.time, "process_time", lambda: clock[0])

    def takes(seconds):
        clock[0] += seconds

    turns = overhead.Turns(lambda volumes: takes(10), None)
    trainer = Engine(lambda engine, batch: takes(3))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: takes(1))  # of the trainer
    turns.attach(trainer)
    trainer.run([0] * 5)
    assert turns.seconds == {"bundle": [4] * 5, "plain": [10] * 5}
