import math

import numpy as np
import pytest
import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

from scripts.networks import build_prdit, preset_settings
from scripts.networks.layers import pad_volume, patchify, position_code, unpatchify
from scripts.networks.residual_dit import Attention
from scripts.training import new_network

TIMES = torch.tensor([37.5, 912.0])


def gradients(network, x, timesteps):
    """Gradients of a fixed scalar of the output, by parameter name; the input's under 'x'."""
    x = x.clone().requires_grad_()
    output = network.train()(x, timesteps)
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    return {"x": x.grad, **{name: parameter.grad for name, parameter in network.named_parameters()}}


def assert_same_gradients(first, second):
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(second[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


# patches


def test_unpatchify_inverts_patchify(make_volume):
    x = make_volume(2, 1, 4, 6, 8)
    assert torch.equal(unpatchify(patchify(x, 2, 2), [2, 3, 4], 2), x)


def test_unpatchify_inverts_patchify_with_channels(make_volume):
    """A patch vector has the channel first, an output vector has it last."""
    x = make_volume(2, 3, 4, 6, 8)
    channel_last = patchify(x, 2, 2).unflatten(2, (3, 8)).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(channel_last, [2, 3, 4], 2), x)


def test_patches_are_windows_of_the_reflected_volume(make_volume):
    x = make_volume(1, 2, 4, 6, 8)
    tokens = patchify(pad_volume(x, 6, 2), 6, 2)[0]
    padded = np.pad(x[0].numpy(), [(0, 0)] + [(2, 2)] * 3, mode="reflect")
    corners = [(z, y, x) for z in range(0, 4, 2) for y in range(0, 6, 2) for x in range(0, 8, 2)]
    windows = [padded[:, z : z + 6, y : y + 6, x : x + 6].ravel() for z, y, x in corners]
    assert np.array_equal(tokens.numpy(), np.stack(windows))


# codes


@pytest.mark.parametrize("grid", [[2, 2, 2], [3, 1, 8], [16, 16, 16]])
def test_position_code_follows_its_definition(grid):
    def axis(index, length):
        """Sines then cosines of (i + 1/2) / g at 4 frequencies, log-spaced from 1 to 0.95 g / 2."""
        highest = 0.95 * length / 2
        angles = [2 * math.pi * highest ** (k / 3) * (index + 0.5) / length for k in range(4)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    depth, height, width = grid
    naive = [
        axis(x, width) + axis(y, height) + axis(z, depth)
        for z in range(depth)
        for y in range(height)
        for x in range(width)
    ]
    torch.testing.assert_close(position_code(grid, 24, torch.device("cpu")), torch.tensor(naive), rtol=0, atol=2e-5)


def test_position_code_is_separable_and_tells_tokens_apart():
    code = position_code([3, 4, 5], 24, torch.device("cpu")).reshape(3, 4, 5, 3, 8)
    for part, own in ((0, 2), (1, 1), (2, 0)):  # x, y, z
        others = [axis for axis in range(3) if axis != own]
        assert (code[..., part, :].amax(others) == code[..., part, :].amin(others)).all()
    rows = code.reshape(60, 24)
    assert (torch.cdist(rows, rows) + 9 * torch.eye(60)).min() > 0.1


def test_position_code_pads_sizes_that_six_does_not_divide():
    code = position_code([2, 3, 4], 28, torch.device("cpu"))
    assert torch.equal(code[:, :24], position_code([2, 3, 4], 24, torch.device("cpu")))
    assert not code[:, 24:].any()


def test_monais_time_embedding_has_cosines_first():
    times = torch.tensor([0.0, 1.0, 730.25])
    naive = [[wave(float(t) * 10000 ** (-k / 128)) for wave in (math.cos, math.sin) for k in range(128)] for t in times]
    torch.testing.assert_close(get_timestep_embedding(times, 256), torch.tensor(naive), rtol=0, atol=1e-4)


# the two branches


@pytest.mark.parametrize("parametrization", ["none", "skip"])
def test_new_stage_2_equals_stage_1_bit_for_bit(make_network, make_volume, parametrization):
    stage1 = make_network(depth=0, parametrization=parametrization)
    torch.manual_seed(5)
    stage2 = build_prdit(24, 4, 2, patch_size=4, stride=2, parametrization=parametrization)
    stage2.load_state_dict(stage1.state_dict(), strict=False)
    x = make_volume(2, 1, 8, 8, 8)
    assert torch.equal(stage2(x, TIMES), stage1(x, TIMES))
    assert stage1(x, TIMES).std() > 0.1


@pytest.mark.parametrize("parametrization", ["none", "skip"])
@pytest.mark.parametrize("depth", [0, 2])
def test_parts_add_up_to_the_prediction(make_network, make_volume, parametrization, depth):
    network, x = make_network(parametrization=parametrization, depth=depth), make_volume(2, 1, 8, 8, 8)
    local, residual = network.forward_parts(x, TIMES)
    torch.testing.assert_close(local + residual, network(x, TIMES), rtol=1e-5, atol=1e-5)
    assert local.any() and bool(residual.any()) == (depth > 0)


@pytest.mark.parametrize("parametrization", ["none", "skip"])
def test_padded_piece_equals_the_inside_of_the_volume(make_network, make_volume, parametrization):
    network = make_network(depth=0, patch_size=6, stride=2, parametrization=parametrization)
    x = make_volume(2, 1, 8, 6, 10)
    whole, padded = network(x, TIMES), pad_volume(x, 6, 2)
    torch.testing.assert_close(network.forward_local_padded(padded, TIMES), whole, rtol=0, atol=1e-5)
    piece = network.forward_local_padded(padded[:, :, 2:10, 0:6, 4:12], TIMES)
    torch.testing.assert_close(piece, whole[:, :, 2:6, 0:2, 4:8], rtol=0, atol=1e-5)


def test_local_denoiser_sees_its_patch_alone_and_the_residual_everything(make_network, make_volume):
    network, x = make_network(), make_volume(1, 1, 8, 8, 8)
    changed = x.clone()
    changed[..., 4, 4, 4] += 1.0  # in the patches whose outputs span voxels 2 to 5
    moved = [
        (a - b).abs().amax((0, 1))
        for a, b in zip(network.forward_parts(x, TIMES[:1]), network.forward_parts(changed, TIMES[:1]))
    ]
    reach = torch.zeros(8, 8, 8, dtype=torch.bool)
    reach[2:6, 2:6, 2:6] = True
    assert not moved[0][~reach].any() and moved[0][reach].all()
    assert (moved[1] > 0).float().mean() > 0.9


def test_local_denoiser_is_the_same_everywhere(make_network, make_volume):
    """Shifting the volume by one stride shifts the prediction; only tokens with reflected borders differ."""
    network, x = make_network(depth=0), make_volume(1, 1, 12, 8, 8)
    shifted = network(x.roll(2, dims=2), TIMES[:1])
    torch.testing.assert_close(shifted[:, :, 4:-2], network(x, TIMES[:1])[:, :, 2:-4], rtol=0, atol=1e-5)


def test_branches_may_have_patches_of_their_own(make_network, make_volume):
    network, x = make_network(patch_size=4, stride=4, local_patch_size=6, local_stride=2), make_volume(1, 1, 8, 4, 8)
    local, residual = network.forward_parts(x, TIMES[:1])
    alone = make_network(depth=0, patch_size=6, stride=2)
    alone.load_state_dict({name: value for name, value in network.state_dict().items() if "residual" not in name})
    assert torch.equal(local, alone(x, TIMES[:1]))
    torch.testing.assert_close(local + residual, network(x, TIMES[:1]))


@pytest.mark.parametrize("tokens", [1, 7, 64, 600])
@pytest.mark.parametrize("kernel", ["auto", "sdpa"])
def test_attention_follows_its_definition(kernel, tokens):
    """Softmax of q k / sqrt(F / heads) over the tokens, head by head, however the kernel computes it."""
    torch.manual_seed(0)
    layer, x = Attention(24, 4, kernel), torch.randn(2, tokens, 24)
    with torch.no_grad():
        q, k, v = layer.qkv(5 * x).split(24, dim=2)
        heads = [slice(6 * i, 6 * i + 6) for i in range(4)]
        weights = [(q[..., head] @ k[..., head].mT / math.sqrt(6)).softmax(-1) for head in heads]
        expected = layer.proj(torch.cat([w @ v[..., head] for w, head in zip(weights, heads)], dim=2))
        torch.testing.assert_close(layer(5 * x), expected, rtol=1e-4, atol=1e-5)


# memory savers change nothing


@pytest.mark.parametrize("chunk_tokens", [1, 50, 10**6])
def test_chunks_change_neither_output_nor_gradients(make_network, make_volume, chunk_tokens):
    x = make_volume(2, 1, 8, 6, 8)  # 2 x 48 tokens
    plain, chunked = make_network(depth=0), make_network(depth=0, chunk_tokens=chunk_tokens)
    with torch.no_grad():
        torch.testing.assert_close(chunked(x, TIMES), plain(x, TIMES), rtol=0, atol=1e-5)
    assert_same_gradients(gradients(plain, x, TIMES), gradients(chunked, x, TIMES))


@pytest.mark.parametrize(("chunk_tokens", "largest"), [(1, 2), (50, 50), (0, 96)])
def test_chunks_bound_the_patches_in_one_go(make_network, make_volume, monkeypatch, chunk_tokens, largest):
    """2 volumes of 48 patches; the same patch of both volumes goes together."""
    network, sizes = make_network(depth=0, chunk_tokens=chunk_tokens), []
    denoise = network.local._denoise
    monkeypatch.setattr(network.local, "_denoise", lambda p, m: sizes.append(p.shape[0] * p.shape[1]) or denoise(p, m))
    with torch.no_grad():
        network(make_volume(2, 1, 8, 6, 8), TIMES)
    assert sum(sizes) == 96 and max(sizes) == largest


def test_activation_checkpointing_changes_no_gradient(make_network, make_volume):
    x = make_volume(2, 1, 4, 4, 8)
    plain, checkpointed = make_network(), make_network(activation_checkpointing=True)
    assert_same_gradients(gradients(plain, x, TIMES), gradients(checkpointed, x, TIMES))


# inputs


def test_one_time_holds_for_the_whole_batch(make_network, make_volume):
    network, x = make_network(), make_volume(3, 1, 4, 4, 4)
    assert torch.equal(network(x, torch.tensor([250.5])), network(x, torch.full((3,), 250.5)))
    assert torch.equal(network(x, torch.tensor([250])), network(x, torch.tensor([250.0])))
    assert torch.equal(network(x), network(x, torch.zeros(3)))
    assert not torch.allclose(network(x), network(x, torch.tensor([250.5])), atol=1e-2)


def test_volumes_of_a_batch_do_not_mix(make_network, make_volume):
    network, x = make_network(parametrization="skip"), make_volume(2, 1, 4, 6, 8)
    alone = torch.cat([network(x[i : i + 1], TIMES[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, TIMES), alone, rtol=0, atol=1e-5)


def test_context_is_refused(make_network, make_volume):
    with pytest.raises(ValueError, match="no context"):
        make_network()(make_volume(1, 1, 4, 4, 4), TIMES[:1], make_volume(1, 1, 4))


def test_two_channels_give_noise_then_signal_of_each(make_network, make_volume):
    """With 'skip' and all outputs zero, noise is sin(theta) x and signal cos(theta) x, channel by channel."""
    network, x = make_network(in_channels=2, parametrization="skip"), make_volume(2, 2, 4, 6, 8)
    assert network(x, TIMES).shape == (2, 4, 4, 6, 8)
    for output in (network.local.output, network.residual.output):
        torch.nn.init.zeros_(output.weight), torch.nn.init.zeros_(output.bias)
    theta = (TIMES * math.pi / 2000).reshape(2, 1, 1, 1, 1)
    torch.testing.assert_close(network(x, TIMES), torch.cat([theta.sin() * x, theta.cos() * x], 1))


def test_low_precision_weights_keep_the_precision_of_the_volume(make_network, make_volume):
    network, x = make_network(parametrization="skip"), make_volume(2, 1, 4, 4, 4)
    exact = network(x, TIMES)
    rounded = network.bfloat16()(x, TIMES)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("shape", [(7, 8, 8), (8, 8, 9)])
def test_sides_must_be_multiples_of_the_stride(make_network, make_volume, shape):
    with pytest.raises(ValueError, match="multiple of the stride 2"):
        make_network()(make_volume(1, 1, *shape), TIMES[:1])


def test_skip_loss_is_the_weighted_velocity_loss(make_network, make_volume):
    """Design 2.6: the paper's loss is sin^2 |b - v|^2 + cos^2 |a - v|^2, with v = cos eps - sin x0, voxel by voxel."""
    signal, noise = make_volume(2, 1, 4, 4, 4), make_volume(2, 1, 4, 4, 4, seed=1)
    theta = (TIMES * math.pi / 2000).reshape(2, 1, 1, 1, 1)
    cos, sin = theta.cos(), theta.sin()
    noisy, velocity = cos * signal + sin * noise, cos * noise - sin * signal
    a, b = make_network()(noisy, TIMES).chunk(2, 1)
    predicted_noise, predicted_signal = make_network(parametrization="skip")(noisy, TIMES).chunk(2, 1)
    loss = (predicted_noise - noise) ** 2 + (predicted_signal - signal) ** 2
    torch.testing.assert_close(loss, sin**2 * (b - velocity) ** 2 + cos**2 * (a - velocity) ** 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth": 0, "chunk_tokens": 5},
        {"norm": "rms", "parametrization": "skip", "activation_checkpointing": True},
        {"local_denoiser": False},
    ],
    ids=["plain", "stage 1 in chunks", "rms skip", "no local denoiser"],
)
def test_torchscript_gives_the_same(make_network, make_volume, settings):
    network, x = make_network(**settings), make_volume(2, 1, 4, 4, 6)
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x, TIMES), network(x, TIMES), rtol=0, atol=1e-5)
    torch.testing.assert_close(scripted(x), network(x), rtol=0, atol=1e-5)


def test_without_a_local_denoiser_the_transformer_is_all(make_network, make_volume):
    """Its part is what it adds to a local denoiser of the same weights, by both ways to call it."""
    whole, alone = make_network(), make_network(local_denoiser=False)
    alone.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("local.")})
    x = make_volume(2, 1, 4, 4, 6)
    local, residual = whole.forward_parts(x, TIMES)
    torch.testing.assert_close(alone(x, TIMES), residual, rtol=0, atol=1e-6)
    (call,) = alone.at_times(TIMES[:1], [4, 4, 6])
    torch.testing.assert_close(call(x), whole.forward_parts(x, TIMES[:1])[1], rtol=0, atol=1e-6)
    assert local.abs().max() > 0.1 and not alone.forward_parts(x, TIMES)[0].any()


# building


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 5, "stride": 2}, ["patch_size", "5", "2"]),
        ({"patch_size": 2, "stride": 4}, ["patch_size", "2", "4"]),
        ({"stride": 0}, ["stride", "0"]),
        ({"local_patch_size": 7, "local_stride": 4}, ["patch_size", "7", "4"]),
        ({"num_heads": 5}, ["hidden_size 24", "num_heads 5"]),
        ({"depth": -1}, ["depth", "-1"]),
        ({"depth": 0, "local_denoiser": False}, ["local denoiser", "depth of 1 or more"]),
        ({"parametrization": "velocity"}, ["parametrization", "velocity"]),
        ({"norm": "batch"}, ["norm", "batch"]),
        ({"attention": "flash"}, ["attention", "flash"]),
    ],
)
def test_wrong_settings_are_named(settings, words, one_line):
    with pytest.raises(ValueError) as raised:
        build_prdit(**{"hidden_size": 24, "num_heads": 4, "depth": 1, "patch_size": 4, "stride": 2, **settings})
    one_line(raised, *words)


@pytest.mark.parametrize("name", ["PRDiT-M/4", "PRDiT-B", "PRDiT-B/", "PRDiT-B/-1", "PRDiT-B/four", "", "UNet"])
def test_unknown_presets_are_refused(name, one_line):
    with pytest.raises(ValueError) as raised:
        preset_settings(name)
    one_line(raised, "preset", repr(name))


def test_preset_overrides():
    settings = preset_settings("PRDiT-S/8", depth=None, num_heads=12, stride=4)
    assert settings == {"hidden_size": 384, "num_heads": 12, "depth": 8, "stride": 4}


def count(*modules):
    """Millions of parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


def test_published_numbers_of_parameters():
    """Design 2.2; the local denoiser is counted without its head on the shared time features."""
    with torch.device("meta"):
        network = build_prdit(**preset_settings("PRDiT-B/4"))
    assert count(network) == pytest.approx(93.2, abs=0.05)
    assert count(network.local) - count(network.local.time_head) == pytest.approx(37.6, abs=0.05)


@pytest.mark.parametrize(("size", "hidden_size"), [("XS", 192), ("S", 384), ("B", 768), ("L", 1024), ("XL", 1152)])
def test_depth_is_the_number_in_the_name(size, hidden_size):
    """A block has 18 h^2 + 15 h parameters: 4 h^2 of attention, 8 h^2 of MLP, 6 h^2 of adaLN, and their biases."""
    with torch.device("meta"):
        small, large = (build_prdit(**preset_settings(f"PRDiT-{size}/{depth}")) for depth in (1, 3))
        assert build_prdit(**preset_settings(f"PRDiT-{size}/0")).residual is None
    assert len(large.residual.blocks) == 3
    assert count(large) - count(small) == pytest.approx(2 * (18 * hidden_size**2 + 15 * hidden_size) / 1e6)


def test_sizes_beyond_the_memory_are_refused_before_any_is_taken(one_line):
    with pytest.raises(ValueError) as raised:
        new_network(hidden_size=60_000, num_heads=1, depth=200)
    one_line(raised, "GB, but this machine has", "lower hidden_size, depth")


def test_looking_whether_a_network_fits_draws_no_number():
    networks = []
    for build in (new_network, build_prdit):
        torch.manual_seed(0)
        networks.append(build(**preset_settings("PRDiT-XS/1")).state_dict())
    assert all(torch.equal(networks[1][name], value) for name, value in networks[0].items())
