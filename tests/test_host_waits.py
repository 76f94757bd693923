"""A training step asks nothing of a GPU that the host would have to wait for.

PyTorch's meta device stands for the GPU: its tensors have no numbers, so whatever asks for one is refused.
"""

from contextlib import nullcontext

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.networks import build_prdit
from scripts.schedulers import build_scheduler
from scripts.spaces import HUWindow
from scripts.training import (
    AveragedWeights,
    GradientGuard,
    LearningRateSchedule,
    LossCSV,
    ObjectiveBatch,
    TensorBoardLog,
    local_denoising,
    objectives,
    sum_of_terms,
)

GPU = torch.device("meta")
STEPS = 3


class FusedAdamW(torch.optim.AdamW):
    """Takes what GradScaler gives one with `fused=True`, which PyTorch has for real devices alone."""

    _step_supports_amp_scaling = True

    def step(self, closure=None):
        assert self.found_inf.device == GPU
        del self.found_inf
        return super().step(closure)


class Copies(TorchDispatchMode):
    """Refuses copies to the GPU that the host waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device and args[0].numel() > 1:
            assert kwargs.get("non_blocking"), "a copy to the GPU that the host waits for"
        return result


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Of which the meta device knows nothing."""
    monkeypatch.setattr(objectives, "autocast", lambda *_: nullcontext())


def steps(folder, window, optimizer_class):
    """MONAI's trainer of stage 1 with the handlers of train.yaml, on two volumes a step; the steps that are done."""
    network = build_prdit(24, 4, 0, local_patch_size=4, local_stride=2, patch_size=4, stride=2).to(GPU)
    objective = local_denoising(network, build_scheduler({"name": "cosine_sine"}), HUWindow(), window, bf16=False)
    optimizer = optimizer_class(network.parameters())
    evaluator = SupervisedEvaluator(device=GPU, val_data_loader=[], network=network)
    batch = {"image": torch.zeros(2, 1, 12, 12, 12), "index": torch.arange(2)}
    engine = SupervisedTrainer(
        device=GPU,
        max_epochs=1,
        train_data_loader=[batch] * (STEPS + 1),
        network=objective,
        optimizer=optimizer,
        loss_function=sum_of_terms,
        prepare_batch=ObjectiveBatch(),
        non_blocking=True,
        inferer=SimpleInferer(),
        decollate=False,
        optim_set_to_none=True,
        train_handlers=[
            LearningRateSchedule(optimizer, warmup=0.5),
            GradientGuard(network),
            LossCSV(folder / "losses.csv", optimizer, evaluator, objective.terms),
            TensorBoardLog(str(folder / "logs"), evaluator, optimizer),
        ],
    )
    AveragedWeights(network, 0.99).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=STEPS), engine.terminate)  # the epoch's end may wait
    with Copies():
        engine.run()
    return engine.state.iteration


@pytest.mark.parametrize("window", [0, 2])
def test_no_step_of_stage_1_waits_for_the_gpu(tmp_path, window):
    assert steps(tmp_path, window, FusedAdamW) == STEPS


def test_the_meta_device_notices_who_waits(tmp_path):
    """An optimiser that cannot leave a step out by itself is told by the host."""
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        steps(tmp_path, 2, torch.optim.AdamW)
