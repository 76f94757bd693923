"""Handlers of a training run: guards, learning rate, seeds, and its files."""

import csv
import io
import json
import math
from types import SimpleNamespace

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from bundle_runs import bytes_of
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandFlipd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import build_stage2

import scripts.training.checkpoints
from scripts.files import release
from scripts.networks import read_card
from scripts.training import (
    AveragedWeights,
    EpochSeed,
    GradientGuard,
    LearningRateSchedule,
    LossCSV,
    TensorBoardLog,
    TrainingCheckpoint,
    checkpoints,
    claim_folder,
    require_epochs,
)

# handlers


def trainer_with_guard(items, max_bad_steps, fused=False):
    """MONAI's trainer on a linear layer, with the weights after each step; an item is the value of its batch."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    data = [{"image": torch.full((2, 3), float(item)), "label": torch.zeros(2, 1)} for item in items]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1, fused=fused),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[GradientGuard(network, max_bad_steps=max_bad_steps)],
        decollate=False,
    )
    weights = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: weights.append(network.weight.detach().clone()))
    return trainer, network, weights


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_finite_gradient_leaves_the_weights_alone(bad, fused):
    """Not even weight decay moves them, and the optimiser counts no step."""
    trainer, network, weights = trainer_with_guard([1, bad, bad, 1, bad, 1], max_bad_steps=3, fused=fused)
    trainer.run()
    assert [float(state["step"]) for state in trainer.optimizer.state.values()] == [3, 3]
    moved = [not torch.equal(a, b) for a, b in zip(weights, weights[1:])]
    assert moved == [False, False, True, False, True]
    assert torch.isfinite(network.weight).all()


def test_training_stops_after_bad_steps_in_a_row(one_line):
    items = [1, math.nan, 1, math.nan, math.nan, math.nan, 1]
    trainer, network, weights = trainer_with_guard(items, max_bad_steps=3)
    with pytest.raises(ValueError) as raised:
        trainer.run()
    one_line(raised, "3 steps in a row", "step 6")
    assert torch.isfinite(network.weight).all() and torch.equal(network.weight, weights[2])


def test_steps_that_the_optimiser_leaves_out_are_counted_at_the_end_of_an_epoch(one_line):
    """The host waits for no step of a fused optimiser."""
    trainer, network, weights = trainer_with_guard([math.nan, 1, math.nan, math.nan], max_bad_steps=3, fused=True)
    with pytest.raises(ValueError) as raised:
        trainer.run()
    one_line(raised, "2 steps in a row", "step 4")
    assert trainer.state.bad_steps == 2
    trainer, network, weights = trainer_with_guard([1, math.nan, math.nan, math.nan, math.nan], 3, fused=True)
    trainer.state.max_epochs = 2
    with pytest.raises(ValueError) as raised:
        trainer.run()
    one_line(raised, "4 steps in a row", "step 5")
    assert torch.equal(network.weight, weights[0])


def test_gradients_are_clipped_together():
    network = torch.nn.Linear(3, 1)
    for parameter, size in zip(network.parameters(), (30.0, 40.0)):
        parameter.grad = torch.full_like(parameter, size / math.sqrt(parameter.numel()))
    guard = GradientGuard(network, max_norm=5.0)
    guard(Engine(lambda *_: None))
    norms = [float(parameter.grad.norm()) for parameter in network.parameters()]
    assert norms == pytest.approx([3.0, 4.0], rel=1e-4)
    guard.max_norm = 10.0
    guard(Engine(lambda *_: None))
    assert [float(parameter.grad.norm()) for parameter in network.parameters()] == pytest.approx(norms, rel=1e-6)


def rates(schedule, **settings):
    """Learning rates of 10 steps in 2 epochs."""
    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD([{"params": [network.weight], "lr": 2.0}, {"params": [network.bias], "lr": 1.0}])
    handler, seen = LearningRateSchedule(optimizer, **settings), []
    engine = Engine(lambda *_: seen.append(tuple(group["lr"] for group in optimizer.param_groups)))
    handler.attach(engine)
    if schedule:  # a continued run
        engine.load_state_dict({"iteration": schedule, "max_epochs": 2, "epoch_length": 5})
    engine.run(range(5), max_epochs=2)
    assert all(first == pytest.approx(2 * second) for first, second in seen)
    return [second for _, second in seen]


def test_learning_rate_is_constant_as_in_the_paper():
    assert rates(0) == [1.0] * 10


def test_learning_rate_warms_up_and_decays():
    decay = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(1, 7)]
    expected = [0.25, 0.5, 0.75, 1.0, *decay]
    assert rates(0, warmup=0.4, decay_to=0.2) == pytest.approx(expected)
    assert rates(0, warmup=0.4, decay_to=0.2)[-1] == pytest.approx(0.2)
    assert rates(5, warmup=0.4, decay_to=0.2) == pytest.approx(expected[5:])


def averaged(decay, steps, start=0, average=None):
    """The average of a weight that is its step's number, after `steps` steps, `start` of them in a run before."""
    network = torch.nn.Linear(1, 1)
    ema = AveragedWeights(network, decay)
    engine = Engine(lambda engine, _: network.weight.data.fill_(engine.state.iteration))
    ema.attach(engine)
    if start:
        engine.load_state_dict({"iteration": start, "max_epochs": 1, "epoch_length": steps})
        ema.ema_model.weight.data.fill_(average)
    engine.run(range(steps), max_epochs=1)
    return float(ema.ema_model.weight)


def test_a_young_average_has_forgotten_the_first_weights():
    """decay = step / (step + 9) makes the average of 1 to n 0.9 n, by induction; 0.9999 alone leaves it below 0.01 n."""
    assert averaged(0.9999, 100) == pytest.approx(90)
    assert averaged(0.9999, 100, start=60, average=averaged(0.9999, 60)) == pytest.approx(averaged(0.9999, 100))


def test_an_old_average_has_the_decay_that_was_asked_for():
    expected = 0.0
    for step in range(1, 201):
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * step
    assert averaged(0.9, 200) == pytest.approx(expected) == pytest.approx(200 - 9, rel=1e-3)


def draws(start_epoch, **settings):
    """What PyTorch and a random transform draw in epochs up to 3; start_epoch epochs are already done."""
    transform = Compose([RandFlipd("image", prob=0.5, spatial_axis=0)])
    image = {"image": torch.arange(4.0).reshape(1, 4, 1, 1)}
    seen = []
    engine = Engine(
        lambda e, _: seen.append((e.state.epoch, float(torch.rand(())), float(transform(image)["image"][0, 0, 0, 0])))
    )
    EpochSeed(transform=transform, **settings).attach(engine)
    if start_epoch:
        engine.load_state_dict({"iteration": 20 * start_epoch, "max_epochs": 3, "epoch_length": 20})
    engine.run(range(20), max_epochs=3)
    return seen


def test_continued_run_draws_what_an_unbroken_one_would():
    torch.manual_seed(5)
    unbroken = draws(0, seed=3)
    torch.manual_seed(6)
    assert draws(1, seed=3) == unbroken[20:] and draws(2, seed=3) == unbroken[40:]
    assert {flipped for _, _, flipped in unbroken} == {0.0, 3.0}


def test_epochs_seeds_and_ranks_draw_differently():
    runs = [draws(0, seed=3), draws(0, seed=4), draws(0, seed=3, rank=1)]
    numbers = [number for run in runs for _, number, _ in run]
    assert len(set(numbers)) == len(numbers) == 180


# files of a run


def run_with_checkpoints(folder, network, losses, keep=2):
    """A run whose epochs validate with the given losses and move every weight by 1."""
    optimizer, average = torch.optim.SGD(network.parameters(), lr=1.0), build_stage2(depth=0)
    evaluator = Engine(lambda *_: None)

    def step(*_):
        with torch.no_grad():
            for parameter, copy in zip(network.parameters(), average.parameters()):
                parameter += 1
                copy.copy_(parameter)
        return {"pred": {"noise": torch.tensor(1.0), "signal": torch.tensor(1.0)}}

    def validate(engine):
        evaluator.state.epoch, evaluator.state.metrics = engine.state.epoch, {
            "val_loss": losses[engine.state.epoch - 1]
        }

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    claim_folder(folder, "local")
    LossCSV(folder / "local_losses.csv", optimizer, evaluator, ("noise", "signal")).attach(trainer)
    TrainingCheckpoint(str(folder), "local", network, average, optimizer, evaluator, {"stage": "local"}, keep).attach(
        trainer
    )
    trainer.run(range(3), max_epochs=len(losses))
    return trainer


def test_best_weights_and_last_checkpoints_are_kept(tmp_path):
    torch.manual_seed(0)
    network = build_stage2(depth=0)
    start = network.time.bias.detach().clone()
    run_with_checkpoints(tmp_path, network, [3.0, 1.0, 2.0])
    best = torch.load(tmp_path / "local.pt", weights_only=True)
    torch.testing.assert_close(best["time.bias"], start + 6)  # after the second epoch of three steps
    names = {path.name for path in tmp_path.glob("*.pt")}
    assert names == {"local.pt", "local_checkpoint_epoch=2.pt", "local_checkpoint_epoch=3.pt"}


def test_a_new_run_continues_the_broken_one(tmp_path):
    first = build_stage2(depth=0)
    start = first.time.bias.detach().clone()
    run_with_checkpoints(tmp_path, first, [3.0, 1.0])
    second = build_stage2(depth=0)
    trainer = run_with_checkpoints(tmp_path, second, [3.0, 1.0, 2.0, 0.5])
    assert trainer.state.epoch == 4 and trainer.state.iteration == 12
    torch.testing.assert_close(second.time.bias.detach(), start + 12)
    torch.testing.assert_close(torch.load(tmp_path / "local.pt", weights_only=True)["time.bias"], start + 12)
    names = {path.name for path in tmp_path.glob("*epoch*.pt")}
    assert names == {"local_checkpoint_epoch=3.pt", "local_checkpoint_epoch=4.pt"}
    with open(tmp_path / "local_losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert [float(row["val_loss"]) for row in rows] == [3.0, 1.0, 2.0, 0.5]
    assert {(float(row["train_loss"]), float(row["train_noise"])) for row in rows} == {(2.0, 1.0)}


def test_hours_of_all_parts_of_a_run_are_with_the_weights(tmp_path, monkeypatch):
    """Also after its best weights, and with those of the weights below; two devices count twice."""
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(scripts.training.checkpoints, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    hours = []
    for number_of_losses in (2, 4):
        run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0, 2.0, 3.0, 4.0][:number_of_losses])
        hours.append(json.loads((tmp_path / "local.json").read_text())["training"]["device_hours"])
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0, 2.0, 3.0, 4.0, 5.0])
    hours.append(json.loads((tmp_path / "local.json").read_text())["training"]["device_hours"])
    first, second, third = np.diff([0, *hours])
    assert first >= 1 and second >= 1 and third >= 2 and third % 2 == 0
    card = read_card(tmp_path / "local.pt")
    assert card.device_hours == hours[-1]
    checkpoint = TrainingCheckpoint("x", "y", None, None, None, None, {}, start=card)
    assert checkpoint.hours_before == {"device_hours_before": hours[-1]}


def test_a_continued_run_keeps_better_weights_of_the_one_before(tmp_path):
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [3.0, 1.0])
    best = (tmp_path / "local.pt").read_bytes()
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [3.0, 1.0, 2.0])
    assert (tmp_path / "local.pt").read_bytes() == best


def broken(content):
    """The same file, damaged in several ways."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    others = [[1, 2], {}, {**state, "network": [1]}, {**state, "optimizer": {}}, {**state, "best": {"best_loss": "x"}},
              {**state, "trainer": 3}, {**state, "ema": {"time.bias": "x"}}]  # fmt: skip
    files = []
    for other in others:
        file = io.BytesIO()
        torch.save(other, file)
        files.append(file.getvalue())
    return [b"", content[: len(content) // 2], b"not a checkpoint", *files]


@pytest.mark.parametrize("way", range(10))
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_continued(tmp_path, way, capsys):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for folder in (whole, damaged):
        folder.mkdir()
        torch.manual_seed(0)
        run_with_checkpoints(folder, build_stage2(depth=0), [3.0, 1.0])
    newest = damaged / "local_checkpoint_epoch=2.pt"
    content = broken(newest.read_bytes())[way]
    newest.write_bytes(content)
    for folder in (whole, damaged):
        run_with_checkpoints(folder, build_stage2(depth=0), [3.0, 1.0, 2.0])
    said = capsys.readouterr().out
    assert f"{newest} is damaged and set aside" in said and "epoch=1.pt is continued" in said
    aside = damaged / "local_checkpoint_epoch=2.pt.damaged"
    assert aside.read_bytes() == content
    aside.unlink()
    (whole / newest.name).unlink(), newest.unlink()  # the first run stored that it would end with epoch 2
    left, expected = ({path.name: bytes_of(path) for path in folder.iterdir()} for folder in (damaged, whole))
    assert left == expected and "local_checkpoint_epoch=3.pt" in left


def test_without_a_whole_checkpoint_nothing_is_overwritten(tmp_path, one_line):
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0])
    best, checkpoint = tmp_path / "local.pt", tmp_path / "local_checkpoint_epoch=1.pt"
    before = best.read_bytes()
    checkpoint.write_bytes(b"half")
    with pytest.raises(ValueError) as raised:
        run_with_checkpoints(tmp_path, build_stage2(depth=0), [0.5])
    one_line(raised, f"{checkpoint} is damaged", "remove it to start anew")
    release(tmp_path, "local")
    checkpoint.unlink()
    pictures = ("local_progress.png", "pictures/local_epoch_0001.png")
    (tmp_path / "pictures").mkdir()
    for name in pictures:
        (tmp_path / name).write_bytes(b"somebody's")
    for name in ("local.pt", "local.json", "local_losses.csv", *pictures):
        with pytest.raises(ValueError) as raised:
            run_with_checkpoints(tmp_path, build_stage2(depth=0), [0.5])
        one_line(raised, f"{tmp_path / name} is of a training", "choose another ckpt_dir")
        assert best.read_bytes() == before if best.exists() else name != "local.pt"
        (tmp_path / name).unlink()
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [0.5])


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path):
    claim_folder(tmp_path, "local")
    (tmp_path / "local.pt").write_bytes(b"of its first epoch")
    release(tmp_path, "local")  # as when its process dies
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0])
    assert not list(tmp_path.glob(".*"))


def test_the_log_begins_with_the_first_step_or_with_a_validation_that_was_left(tmp_path):
    """A run that is refused has no file; a continued one may have nothing to do but its last validation."""
    evaluator, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    log = TensorBoardLog(str(tmp_path), evaluator, dict)
    log.attach(trainer)
    assert list(tmp_path.iterdir()) == []
    trainer.state.iteration, trainer.state.epoch, evaluator.state.epoch = 6, 2, 2
    evaluator.state.metrics = {"val_loss": 0.5}
    trainer.fire_event(Events.COMPLETED)
    log._writer.flush()
    (logged,) = EventAccumulator(str(tmp_path)).Reload().Scalars("val_loss")
    assert (logged.step, logged.value) == (6, 0.5)


def test_a_new_run_that_came_to_nothing_leaves_no_mark(tmp_path):
    for file, kept in ((None, []), ("local.pt", [".local.begun", "local.pt"])):
        claim_folder(tmp_path, "local")
        release(tmp_path, "local")
        if file:
            (tmp_path / file).touch()
        checkpoints._unclaim(tmp_path, "local")  # at the end of its process
        assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_shorter_run_is_refused_before_it_loads_anything(tmp_path, one_line):
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0, 1.0])
    with pytest.raises(ValueError) as raised:
        require_epochs(tmp_path, "local", 1)
    one_line(raised, "max_epochs is 1", "trained to epoch 2", "more than 2")
    with pytest.raises(ValueError) as raised:  # asked for in steps
        require_epochs(tmp_path, "local", 1, 40)
    one_line(raised, "max_steps is 40, which are 1 epochs", "trained to epoch 2", "set max_steps to more than 80")
    require_epochs(tmp_path, "local", 2)
    (tmp_path / "local_checkpoint_epoch=9.pt").write_bytes(b"half")  # it will be set aside
    require_epochs(tmp_path, "local", 2)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"a,b\n1,2\n", b"epoch,step\nx,3\n", b"epoch\n\0\n", b"epoch,patient\n1,7\n"]
)
def test_a_damaged_table_of_losses_is_named_at_the_start(tmp_path, content, one_line):
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0])
    table = tmp_path / "local_losses.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0, 1.0])
    one_line(raised, f"{table} is damaged", "move it away")
    assert table.read_bytes() == content
    release(tmp_path, "local")


def test_checkpoint_of_another_network_is_refused(tmp_path, one_line):
    run_with_checkpoints(tmp_path, build_stage2(depth=0), [1.0])
    with pytest.raises(ValueError) as raised:
        run_with_checkpoints(tmp_path, build_stage2(depth=0, hidden_size=48), [1.0])
    one_line(raised, "local_checkpoint_epoch=1.pt", "ckpt_dir")
