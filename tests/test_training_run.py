"""What a user meets in a training run: its length in steps, the time left, lines without a terminal, and pictures."""

import numpy as np
import pytest
import torch
from bundle_runs import losses, train
from ignite.engine import Engine, Events
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.training import TrainingProgress, monitoring, require_memory, run_length


@pytest.mark.parametrize("batches", [1, 2, 23, 62, 919, 5000])
def test_few_and_many_volumes_train_equally_long(batches):
    """The steps asked for, to the end of the epoch; validated eight times or each epoch; a bounded number of checkpoints."""
    length = run_length(max_steps=920, batches=batches)
    steps = length["max_epochs"] * length["epoch_length"]
    assert length["epoch_length"] == batches and 920 <= steps < 920 + batches
    assert len(range(length["val_interval"], length["max_epochs"] + 1, length["val_interval"])) in range(1, 9)
    assert length["val_interval"] == 1 or length["max_epochs"] / length["val_interval"] > 7
    assert length["max_epochs"] / length["checkpoint_interval"] <= 100
    assert length["checkpoint_interval"] == 1 or length["max_epochs"] / length["checkpoint_interval"] >= 50


def test_epochs_and_intervals_count_as_given():
    given = {"max_epochs": 3, "epoch_length": 7, "val_interval": 2, "checkpoint_interval": 5}
    assert run_length(max_steps=920, batches=23, **given) == given
    assert run_length(max_steps=920, batches=23, max_epochs=3)["max_epochs"] == 3
    assert run_length(max_steps=920, batches=23, epoch_length=10)["max_epochs"] == 92


class Clock:
    """A step takes a second, a validation ten."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(monitoring.time, "monotonic", lambda: self.now)

    def work(self, seconds, output):
        self.now += seconds
        return output


def watched_run(monkeypatch, epochs, val_interval):
    clock = Clock(monkeypatch)
    trainer = Engine(lambda *_: clock.work(1, {"loss": torch.tensor(0.5)}))
    evaluator = Engine(lambda *_: clock.work(10, None))
    evaluator.add_event_handler(
        Events.COMPLETED, lambda: evaluator.state.metrics.update(val_loss=trainer.state.epoch / 8)
    )

    def validate():
        evaluator.state.max_epochs = None
        evaluator.run([0], max_epochs=1)
        evaluator.state.epoch = trainer.state.epoch

    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=val_interval), validate)
    progress, left = TrainingProgress(evaluator, val_interval), {}
    progress.attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: left.update({trainer.state.epoch: progress.bar.seconds_left})
    )
    trainer.run(range(5), max_epochs=epochs)
    return left


def test_the_time_left_counts_validations(monkeypatch):
    left = watched_run(monkeypatch, epochs=6, val_interval=2)
    assert left[2] == pytest.approx(4 * 5 * 1 + 2 * 10)
    assert left[3] == pytest.approx(3 * 5 * 1 + 2 * 10)
    assert left[6] == 0


def test_without_a_terminal_there_are_lines_with_the_last_validation(monkeypatch, capsys):
    watched_run(monkeypatch, epochs=6, val_interval=2)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    told = [line for line in lines if "val_loss" in line]
    assert [line.split(":")[0] for line in told] == [f"epoch {n}/6, step {5 * n}/30" for n in (2, 4, 6)]
    assert [line.split("val_loss ")[1][:6] for line in told] == ["0.2500", "0.5000", "0.7500"]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """Both stages with pictures, and stage 1 without."""
    folder = tmp_path_factory.mktemp("pictured")
    given = {"max_epochs": 2, "batch_size": 4, "bf16": False}
    train(1, folder / "without", **given)
    train(1, folder, num_pictures=1, **given)
    train(2, folder, num_pictures=2, **given)
    return folder


def test_pictures_change_no_number_of_a_training(pictured):
    names = ("local.pt", "local_losses.csv", "local_checkpoint_epoch=2.pt")
    for name in names:
        assert (pictured / "ckpt" / name).read_bytes() == (pictured / "without" / "ckpt" / name).read_bytes()
    assert not (pictured / "without" / "ckpt" / "pictures").exists()


def test_each_validation_leaves_a_picture_with_samples_and_the_curves(pictured):
    found = sorted(path.name for path in (pictured / "ckpt").rglob("*.png"))
    of_epochs = [f"{stage}_epoch_000{epoch}.png" for stage in ("local", "model") for epoch in (1, 2)]
    assert found == sorted([*of_epochs, "local_progress.png", "model_progress.png"])
    sizes = {
        stage: Image.open(pictured / "ckpt" / "pictures" / f"{stage}_epoch_0002.png").size
        for stage in ("local", "model")
    }
    assert sizes["model"][1] > sizes["local"][1]  # the row of samples, which stage 1 has not
    first, second = (np.asarray(Image.open(pictured / "ckpt" / "pictures" / f"model_epoch_000{n}.png")) for n in (1, 2))
    assert first.shape == second.shape and (first != second).any()


def test_tensorboard_shows_pictures_and_learning_rate_beside_the_losses(pictured):
    board = EventAccumulator(str(pictured / "ckpt" / "logs" / "model"))
    board.Reload()
    tags = board.Tags()
    assert tags["images"] == ["denoised and sampled"]
    assert {"loss", "noise", "signal", "lr", "val_loss"} <= set(tags["scalars"])
    last_step = int(losses(pictured, "model")[-1]["step"])
    for name in ("loss", "lr", "val_loss"):
        assert board.Scalars(name)[-1].step == last_step
    assert [one.step for one in board.Images("denoised and sampled")] == [
        int(row["step"]) for row in losses(pictured, "model")
    ]


def test_what_the_memory_cannot_hold_is_refused_before_it_is_taken(one_line):
    with torch.device("meta"):
        network = torch.nn.Linear(10**5, 10**6)  # 400 GB
    with pytest.raises(ValueError) as raised:
        require_memory(network, "cpu")
    one_line(raised, "takes 1,600 GB", "optimiser", "lower hidden_size")
    require_memory(torch.nn.Linear(2, 2), "cpu")
