"""The calculated memory of sampling against the tensors that really live at one time."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from scripts.inferers import memory_plan, peak_gb
from scripts.networks import build_network, preset_settings
from scripts.networks.high_resolution import override_settings
from scripts.networks.residual_dit import Attention


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that live at one time; on the meta device, so that none is needed."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_iter(output):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return output

    def free(self, key, size):
        self.known.discard(key)
        self.now -= size


def live_gb(settings, grid, batch, chunk_tokens, dtype, guided=False):
    """Peak of one network call, with the weights, the sample and a solver's memory of the same size."""
    with torch.device("meta"):
        network = build_network(**override_settings(settings, {"chunk_tokens": chunk_tokens})).to(dtype).eval()
        x, time = torch.empty(batch, settings.get("in_channels", 1), *grid), torch.empty(1)
    with torch.no_grad():
        call = network.at_times(time, grid, [0.5] if guided else None)[0]
        with LiveBytes([*network.parameters(), x]) as live:
            call(x)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return (weights + live.peak + 2 * x.nbytes) / 1e9


@pytest.mark.parametrize(
    ("preset", "settings", "grid", "batch", "chunk_tokens"),
    [
        ("PRDiT-B/4", {"parametrization": "skip"}, 128, 1, 0),
        ("PRDiT-B/4", {"parametrization": "skip"}, 256, 1, 0),
        ("PRDiT-B/4", {}, 64, 8, 0),
        ("PRDiT-B/0", {"num_predictions": 1}, 128, 2, 0),
        ("PRDiT-XS/1", {"parametrization": "skip"}, 256, 1, 4096),
        ("PRDiT-XS/2", {"patch_size": 10, "local_patch_size": 6, "local_stride": 4}, 64, 4, 0),
        ("PRDiT-XL/12", {"parametrization": "skip"}, 128, 4, 0),
        (
            "PRDiT-XS/6",
            {"hidden_size": 288, "num_heads": 3, "patch_size": 10, "local_patch_size": 8, "local_stride": 4},
            64,
            32,
            256,
        ),
    ],
)
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("guided", [False, True])
def test_calculated_peak_is_that_of_the_tensors(preset, settings, grid, batch, chunk_tokens, bf16, guided, monkeypatch):
    if guided and preset.endswith("/0"):
        pytest.skip("no transformer")
    # attention in memory linear in the tokens, as the fused kernels have
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    monkeypatch.setattr(Attention, "SHORT", 0)
    settings, grid = preset_settings(preset, **settings), (grid, grid, grid)
    live = live_gb(settings, grid, batch, chunk_tokens, torch.bfloat16 if bf16 else torch.float32, guided)
    assert 0.97 * live < peak_gb(settings, grid, batch, chunk_tokens, bf16, guided=guided) < 1.3 * live


HIGH = {"backbone": preset_settings("PRDiT-B/4"), "chunk_tokens": 0}


@pytest.mark.parametrize(
    ("settings", "grid", "batch", "chunk_tokens"),
    [
        (HIGH, 256, 1, 0),
        (HIGH, 256, 1, 4096),
        ({**HIGH, "parametrization": "skip"}, 256, 1, 4096),
        ({**HIGH, "parametrization": "skip"}, 128, 4, 0),
        ({"backbone": HIGH, "parametrization": "skip", "chunk_tokens": 0}, 256, 1, 0),
        ({"backbone": preset_settings("PRDiT-XL/12"), "chunk_tokens": 0}, 128, 8, 256),
    ],
)
@pytest.mark.parametrize("bf16", [True, False])
def test_calculated_peak_of_high_resolution(settings, grid, batch, chunk_tokens, bf16, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    monkeypatch.setattr(Attention, "SHORT", 0)
    live = live_gb(settings, (grid, grid, grid), batch, chunk_tokens, torch.bfloat16 if bf16 else torch.float32)
    assert 0.97 * live < peak_gb(settings, [grid] * 3, batch, chunk_tokens, bf16) < 1.3 * live


def test_256_at_high_resolution_fits_8_gb():
    settings = {"network": HIGH, "data": {"grid": [256, 256, 256]}}
    for bf16 in (True, False):
        assert memory_plan(settings, memory_gb=8, bf16=bf16)["batch_size"] >= 1


def settings_of(preset, grid):
    return {"network": preset_settings(preset), "data": {"grid": [grid] * 3}}


@pytest.mark.parametrize("memory_gb", [8, 16, 24, 40, 80])
@pytest.mark.parametrize("grid", [64, 128, 256])
def test_every_card_samples_every_grid(grid, memory_gb):
    settings = settings_of("PRDiT-B/12", grid)
    for bf16 in (True, False):
        plan = memory_plan(settings, memory_gb=memory_gb, bf16=bf16)
        assert plan["batch_size"] >= 1 and plan["chunk_tokens"] == 0
        assert peak_gb(settings["network"], [grid] * 3, **plan, bf16=bf16) < 0.85 * memory_gb


def test_more_memory_makes_larger_batches():
    batches = [memory_plan(settings_of("PRDiT-B/4", 256), memory_gb=m, bf16=True)["batch_size"] for m in (8, 24, 80)]
    assert batches == sorted(set(batches))


def test_chunks_come_where_one_volume_does_not_fit():
    settings = {"network": preset_settings("PRDiT-S/2"), "data": {"grid": [256] * 3}}
    plan = memory_plan(settings, memory_gb=2, bf16=True)
    assert plan["batch_size"] == 1 and plan["chunk_tokens"] > 0
    assert peak_gb(settings["network"], [256] * 3, 1, 2 * plan["chunk_tokens"]) > 0.85 * 2 - 0.7


def test_what_the_user_gives_holds():
    settings = settings_of("PRDiT-B/4", 64)
    plan = memory_plan(settings, memory_gb=8, batch_size=3, chunk_tokens=99, bf16=True)
    assert (plan["batch_size"], plan["chunk_tokens"]) == (3, 99)
    assert memory_plan(settings) == {"batch_size": 1, "chunk_tokens": 0}
    assert memory_plan(settings, batch_size=5, chunk_tokens=7) == {"batch_size": 5, "chunk_tokens": 7}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memory_gb": 1}, ["[256, 256, 256]", "memory_gb is 1"]),
        ({"memory_gb": 8, "batch_size": 64}, ["memory_gb is 8", "batch_size"]),
        ({"memory_gb": -1}, ["memory_gb", -1]),
        ({"memory_gb": "8GB"}, ["memory_gb", "8GB"]),
        ({"batch_size": 0}, ["batch_size must be 1 or more"]),
        ({"chunk_tokens": -5}, ["chunk_tokens must be 0 or more"]),
    ],
)
def test_what_cannot_be_is_one_line(given, words, one_line):
    with pytest.raises(ValueError) as raised:
        memory_plan(settings_of("PRDiT-B/4", 256), bf16=True, **given)
    one_line(raised, *words)
