from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from scripts.interop import network_from_official, official_state_dict
from scripts.networks import build_prdit
from scripts.schedulers import CosineSineScheduler

VARIANTS = [("official_prdit_tiny.pt", "layer"), ("official_tf_tiny.pt", "rms")]


@pytest.fixture(params=VARIANTS, ids=["prdit", "tf"])
def official(request):
    """A tiny network of the authors' code with its recorded outputs, and its kind of norm."""
    name, norm = request.param
    return torch.load(Path(__file__).parent / "data" / name, weights_only=True), norm


@pytest.fixture
def weights():
    return torch.load(Path(__file__).parent / "data" / VARIANTS[0][0], weights_only=True)["state_dict"]


def assert_outputs(network, fixture):
    with torch.no_grad():
        output = network(fixture["input"], fixture["timesteps"])
        local, residual = network.forward_parts(fixture["input"], fixture["timesteps"])
    for ours, theirs in ((output, "output"), (local, "local_output"), (residual, "global_output")):
        torch.testing.assert_close(ours, fixture[theirs], rtol=0, atol=1e-5)
        assert fixture[theirs].std() > 1e-2


def test_outputs_are_the_published_ones(official):
    fixture, norm = official
    assert_outputs(network_from_official(fixture["state_dict"], num_heads=4, norm=norm), fixture)


def test_settings_are_read_off_the_shapes(official):
    fixture, norm = official
    settings = network_from_official(fixture["state_dict"], num_heads=4, norm=norm).settings
    expected = {name: fixture["config"][name] for name in ("hidden_size", "depth", "patch_size", "stride", "mlp_ratio")}
    assert {name: settings[name] for name in expected} == expected
    assert settings["norm"] == norm and settings["parametrization"] == "none"


@pytest.mark.parametrize("key", [None, "model", "ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapped_checkpoints(official, key, prefix):
    fixture, norm = official
    state = {prefix + name: value for name, value in fixture["state_dict"].items()}
    checkpoint = state if key is None else {"epoch": 3, key: state}
    assert_outputs(network_from_official(checkpoint, num_heads=4, norm=norm), fixture)


def test_averaged_weights_are_preferred(weights):
    doubled = {name: 2 * value for name, value in weights.items()}
    network = network_from_official({"model": doubled, "ema": weights}, num_heads=4, norm="layer")
    assert torch.equal(network.time.weight, weights["t_embedder.mlp.0.weight"])


def test_stored_position_codes_are_left_out(weights):
    network = network_from_official({**weights, "fine.pos_embed": torch.zeros(1, 64, 24)}, num_heads=4, norm="layer")
    assert torch.equal(network.time.weight, weights["t_embedder.mlp.0.weight"])


def test_export_is_the_original_bit_for_bit(official):
    fixture, norm = official
    exported = official_state_dict(network_from_official(fixture["state_dict"], num_heads=4, norm=norm))
    assert exported.keys() == fixture["state_dict"].keys()
    assert all(torch.equal(exported[name], value) for name, value in fixture["state_dict"].items())


def test_stage_1_alone(weights):
    """A checkpoint without the transformer gives stage 1."""
    state = {name: value for name, value in weights.items() if not name.startswith(("fine.", "t_embedder.fine_head"))}
    network = network_from_official(state, num_heads=4, norm="layer")
    assert network.residual is None
    assert official_state_dict(network).keys() == state.keys()


def test_unknown_number_of_heads_is_asked_for(weights, one_line):
    with pytest.raises(ValueError) as raised:
        network_from_official(weights)
    one_line(raised, "num_heads", "24")


@pytest.mark.parametrize(
    "name",
    [
        "t_embedder.mlp.0.weight",
        "t_embedder.coarse_head.bias",
        "coarse.mlp_denoise.linear_final.weight",
        "fine.blocks.1.attn.qkv.weight",
    ],
)
def test_missing_weights_are_named(weights, name, one_line):
    with pytest.raises(ValueError) as raised:
        network_from_official({key: value for key, value in weights.items() if key != name}, num_heads=4)
    one_line(raised, name)


def test_unknown_weights_are_named(weights, one_line):
    with pytest.raises(ValueError) as raised:
        network_from_official({**weights, "fine.register": torch.zeros(3)}, num_heads=4)
    one_line(raised, "fine.register")


def test_weights_of_another_shape_are_named(weights, one_line):
    with pytest.raises(ValueError) as raised:
        network_from_official({**weights, "fine.patch_embedder.fc2.bias": torch.zeros(23)}, num_heads=4)
    one_line(raised, "fine.patch_embedder.fc2.bias")


@pytest.mark.parametrize("change", [torch.Tensor.int, torch.Tensor.cfloat, torch.Tensor.to_sparse])
def test_weights_that_are_no_real_numbers_are_refused(weights, change, one_line):
    name = "fine.patch_embedder.fc2.bias"
    with pytest.raises(ValueError) as raised:
        network_from_official({**weights, name: change(weights[name])}, num_heads=4)
    one_line(raised, name, "not plain real numbers")


@pytest.mark.parametrize("checkpoint", [{}, {"model": {}}, {"epoch": 3}, {"conv.weight": torch.zeros(3)}])
def test_foreign_checkpoints_are_refused(checkpoint, one_line):
    with pytest.raises(ValueError) as raised:
        network_from_official(checkpoint, num_heads=4)
    one_line(raised, "authors' code")


# stage 3: high resolution


@pytest.fixture
def stage_3(weights):
    """Weights under the names of the authors' stage 3: `base` is the recorded network, and so is the refiner."""
    state = {f"base.{name}": value for name, value in weights.items()}
    state |= {name.replace("coarse.", "sr."): value for name, value in weights.items() if name.startswith("coarse.")}
    time = ("t_embedder.mlp.0.", "t_embedder.coarse_head.")
    state |= {name.replace("t_embedder.", "t_embedder_sr."): weights[name] for name in weights if name.startswith(time)}
    return state


def test_stage_3_is_the_published_parts_put_together(stage_3):
    """The refiner adds the recorded output of the authors' local denoiser to the base's, upsampled as they do."""
    fixture = torch.load(Path(__file__).parent / "data" / VARIANTS[0][0], weights_only=True)
    network = network_from_official({"ema": stage_3}, num_heads=4, norm="layer")
    low = F.interpolate(fixture["input"], scale_factor=0.5, mode="nearest")
    with torch.no_grad():
        noise, signal = network_from_official(fixture["state_dict"], 4, "layer")(low, fixture["timesteps"]).chunk(2, 1)
        upsampled = [
            F.interpolate(noise, scale_factor=2, mode="nearest"),
            F.interpolate(signal, scale_factor=2, mode="trilinear", align_corners=False),
        ]
        output = network(fixture["input"], fixture["timesteps"])
    torch.testing.assert_close(output, torch.cat(upsampled, 1) + fixture["local_output"], rtol=0, atol=1e-5)


def test_stage_3_is_exported_bit_for_bit(stage_3):
    network = network_from_official(stage_3, num_heads=4, norm="layer", factor=3)
    exported = official_state_dict(network)
    assert network.settings["factor"] == 3 and exported.keys() == stage_3.keys()
    assert all(torch.equal(exported[name], value) for name, value in stage_3.items())


@pytest.mark.parametrize(
    "name", ["base.fine.blocks.1.attn.qkv.weight", "sr.mlp_denoise.mlp1.fc1_x.bias", "t_embedder_sr.mlp.0.weight"]
)
def test_stage_3_is_loaded_strictly(stage_3, name, one_line):
    with pytest.raises(ValueError) as raised:
        network_from_official({key: value for key, value in stage_3.items() if key != name}, num_heads=4, norm="layer")
    one_line(raised, name)
    with pytest.raises(ValueError) as raised:
        network_from_official({**stage_3, "sr.register": torch.zeros(3)}, num_heads=4, norm="layer")
    one_line(raised, "sr.register")


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_norm_of_trained_weights_is_found_out(norm):
    """Both kinds have the same parameters; only weights that were trained with one of them remove noise with it."""
    torch.manual_seed(0)
    network = build_prdit(24, 4, 1, patch_size=4, stride=2, norm=norm)
    scheduler, optimizer = CosineSineScheduler(), torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(200):
        signal = F.interpolate(2 * torch.rand(8, 1, 3, 3, 3) - 1, size=(8, 8, 8), mode="trilinear", align_corners=True)
        noise, times = torch.randn_like(signal), 200 * torch.rand(8)
        loss = F.mse_loss(network(scheduler.add_noise(signal, noise, times), times), torch.cat([noise, signal], dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = network_from_official(official_state_dict(network), num_heads=4)
    assert found.settings["norm"] == norm
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("number", [5, 99_999_999])
def test_a_missing_block_is_told_at_once(weights, number):
    extra = {f"fine.blocks.{number}.mlp.fc1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=f"the last one is {number}"):
        network_from_official({**weights, **extra}, num_heads=4, norm="layer")
