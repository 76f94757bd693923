"""Settings of the wrong kind, handed to functions from Python; the command line's are in test_settings_checks.py."""

import pytest
import torch

from scripts.inferers import grid_of, inference_network, memory_plan, seed_list
from scripts.inferers.items import LARGEST_SEED
from scripts.inferers.network import compiling_pays
from scripts.networks import Card
from scripts.schedulers import CosineSineScheduler, build_scheduler
from scripts.settings import usable_device, whole_number

CPU = torch.device("cpu")


def test_devices_are_given_as_words_too(make_network):
    assert usable_device("cpu") == CPU
    network = make_network()
    assert inference_network(network, "cpu", bf16=False) is network


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: usable_device("nonsense"), ["device", "nonsense"]),
        (lambda: usable_device("cuda:99"), ["device", "cuda:99"]),
        (lambda: usable_device(1.5), ["device", 1.5]),
        (lambda: whole_number("x", True, 0), ["x must be 0 or more, a whole number", True]),
        (lambda: whole_number("x", 5, 1, 4), ["x must be 1 to 4", 5]),
        (lambda: seed_list("abc", 0), ["num_samples must be 1 or more", "abc"]),
        (lambda: seed_list(1.5, 0), ["num_samples", 1.5]),
        (lambda: seed_list(1, "abc"), ["seed must be 0 to", "abc"]),
        (lambda: seed_list(2, LARGEST_SEED), ["seed", LARGEST_SEED]),
        (lambda: grid_of("abc", [8, 8, 8], None), ["grid", "abc"]),
        (lambda: grid_of(64.0, [8, 8, 8], None), ["grid", 64.0]),
        (lambda: grid_of([8, 8], [8, 8, 8], None), ["grid must be one or three", "[8, 8]"]),
        (lambda: memory_plan(Card(sha256="", network={}), batch_size=True), ["batch_size", True]),
        (
            lambda: memory_plan(Card(sha256="", network={}), memory_gb=8, num_inference_steps="ten"),
            ["num_inference_steps", "ten"],
        ),
        (lambda: CosineSineScheduler().set_timesteps(True), ["num_inference_steps must be 1 to 1000", True]),
        (lambda: CosineSineScheduler(predictor_ratio=float("inf")), ["predictor_ratio must be at least 1", "inf"]),
        (lambda: build_scheduler({"name": "cosine_sine", "beta": 1}), ["process cosine_sine", "beta"]),
    ],
)
def test_what_is_of_the_wrong_kind_is_one_line(call, words, one_line):
    with pytest.raises(ValueError) as raised:
        call()
    one_line(raised, *words)


def test_the_largest_seed_is_a_seed():
    assert seed_list(1, LARGEST_SEED) == [{"seed": LARGEST_SEED}]
    torch.Generator().manual_seed(int(torch.tensor(LARGEST_SEED)))


@pytest.mark.parametrize(("amx", "calls", "pays"), [(True, 1000, True), (True, 999, False), (False, 10**6, False)])
def test_compiling_is_on_where_it_was_measured_to_pay(amx, calls, pays, monkeypatch, make_network):
    """Long bf16 runs on a CPU with AMX."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": amx})
    assert compiling_pays(CPU, calls) is pays
    assert not compiling_pays(torch.device("cuda"), calls)
    for bf16 in (True, False):
        network = inference_network(make_network(), CPU, bf16=bf16, compile=None, num_calls=calls)
        assert ("predict" in vars(network)) is (pays and bf16)
