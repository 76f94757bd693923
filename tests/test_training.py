import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.networks import build_prdit, save_weights
from scripts.networks.layers import pad_volume
from scripts.schedulers import CosineSineScheduler
from scripts.spaces import HUWindow
from scripts.training import (
    Denoising,
    HeldOut,
    LocalDenoising,
    LossMetric,
    ObjectiveBatch,
    finetuned_network,
    global_stage,
    local_denoising,
    new_local_denoiser,
    numbers_of,
    parameters_to_train,
    require_same_volumes,
    start_from,
    sum_of_terms,
    validation_share,
)


class Tied(CosineSineScheduler):
    """Noise that is a function of the voxel, so that a window of the volume has a known window of the noise."""

    times = torch.tensor([120.0, 870.0])

    def sample_noise(self, images, generator=None):
        return torch.sin(37 * images)

    def sample_timesteps(self, count, device="cpu"):
        return self.times


def in_hu(volumes):
    return {"image": 1000 * volumes, "index": torch.arange(len(volumes))}


def seen_by(objective, batch):
    """What an objective gives the network and what it compares with: (noisy, times, prediction, target)."""
    seen = []
    denoise, named = objective.denoise, objective.named

    def spy_denoise(noisy, times):
        seen[:] = [noisy, times, denoise(noisy, times)]
        return seen[2]

    def spy_named(prediction, target):
        seen.append(target)
        return named(prediction, target)

    objective.denoise, objective.named = spy_denoise, spy_named
    with torch.no_grad():
        objective(batch)
    return seen


# objectives


def test_what_is_trained_is_asked_of_the_process(make_volume):
    """The network sees the noisy volume at the process's times, and is compared with noise and signal."""
    torch.manual_seed(0)
    process, images = CosineSineScheduler(noise_std=0.5), make_volume(64, 1, 4, 4, 4).clamp(-1, 1)
    network = torch.nn.Module()
    network.forward = lambda x, times: torch.cat([x, x], 1)
    batch, nothing = ObjectiveBatch()(in_hu(MetaTensor(images)))
    assert nothing is None
    noisy, times, prediction, target = seen_by(Denoising(network, process, HUWindow()), batch)
    noise, signal = target.chunk(2, 1)
    torch.testing.assert_close(signal, images)
    assert type(noisy) is torch.Tensor and torch.equal(noisy, process.add_noise(signal, noise, times))
    assert float(noise.std()) == pytest.approx(0.5, abs=0.02)
    assert times.shape == (64,) and 0 < times.min() < times.max() <= 1000


@pytest.mark.parametrize("settings", [{}, {"patch_size": 6, "parametrization": "skip"}, {"patch_size": 2}])
def test_window_has_the_predictions_and_targets_of_the_whole_volume(make_network, settings):
    """Wherever the window lies, borders included: the same noisy patches, so the same loss for each of them."""
    torch.manual_seed(0)
    network, process = make_network(depth=0, **settings), Tied()
    images = torch.linspace(-1, 1, 2 * 8 * 10 * 12).reshape(2, 1, 8, 10, 12)  # every voxel has a value of its own
    _, _, whole, targets = seen_by(Denoising(network, process, HUWindow()), in_hu(images))
    objective, corners = LocalDenoising(network, process, HUWindow(), 2), set()
    for _ in range(60):
        _, _, prediction, target = seen_by(objective, in_hu(images))[-4:]
        assert prediction.shape == target.shape == (2, 2, 4, 4, 4)
        for i in range(2):
            z, y, x = (int(k) for k in (targets[i, 1] == target[i, 1, 0, 0, 0]).nonzero()[0])
            window = (i, slice(None), slice(z, z + 4), slice(y, y + 4), slice(x, x + 4))
            assert torch.equal(target[i], targets[window])
            torch.testing.assert_close(prediction[i], whole[window], rtol=0, atol=1e-5)
            corners.add((z, y, x))
    assert {z for z, _, _ in corners} == {0, 2, 4}
    assert {y for _, y, _ in corners} == {0, 2, 4, 6}
    assert {x for _, _, x in corners} == {0, 2, 4, 6, 8}


def test_window_as_large_as_the_volume_has_its_loss_and_gradients(make_network, make_volume):
    network, images, results = make_network(depth=0), make_volume(2, 1, 6, 8, 8).clamp(-1, 1), []
    for window in (0, 99):
        network.zero_grad()
        value = sum_of_terms(local_denoising(network, Tied(), HUWindow(), window)(in_hu(images)))
        value.backward()
        results.append([value.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    for whole, window in zip(*results):
        torch.testing.assert_close(window, whole, rtol=1e-4, atol=1e-6)


def test_noise_of_a_window_is_mirrored_at_the_border(make_network, make_volume):
    """The noise in the halo is the reflection of the noise inside, as in a padded noisy volume, and unit Gaussian."""
    torch.manual_seed(0)
    network = make_network(depth=0, patch_size=8, stride=4)
    hu = 1000 * make_volume(4, 1, 8, 12, 16)
    images = HUWindow().encode(hu)
    objective = LocalDenoising(network, CosineSineScheduler(), HUWindow(), 99)
    volumes, noise = (torch.stack(part) for part in zip(*(objective.piece(volume) for volume in hu)))
    assert torch.equal(volumes, pad_volume(images, 8, 4))
    inner = noise[:, :, 2:-2, 2:-2, 2:-2]
    assert torch.equal(noise, pad_volume(inner, 8, 4))
    assert float(inner.std()) == pytest.approx(1, abs=0.03)
    assert abs(float((inner[0] * inner[1]).mean())) < 0.1


def test_stage_1_trains_on_windows(make_network):
    process, space = CosineSineScheduler(), HUWindow()
    assert local_denoising(make_network(depth=0), process, space, 3).window == 3
    assert type(local_denoising(make_network(depth=0), process, space)) is Denoising


@pytest.mark.parametrize(("depth", "window", "words"), [(0, -1, ["1 or more"]), (1, 4, ["set it to 0"])])
def test_windows_that_cannot_be_are_refused(make_network, depth, window, words, one_line):
    with pytest.raises(ValueError) as raised:
        local_denoising(make_network(depth=depth), CosineSineScheduler(), HUWindow(), window)
    one_line(raised, "local_window", *words)


def test_validation_is_the_same_in_every_run_and_batch(make_network, make_volume):
    """Each volume at the same times with the same noise, whatever else is in the batch and what was drawn before."""
    images = make_volume(3, 1, 4, 4, 4).clamp(-1, 1)
    process = CosineSineScheduler(600)

    def by_volume(*indices):
        """Per volume: time -> (image, noise)."""
        objective = Denoising(make_network(), process, HUWindow())
        seen = []
        objective.errors = lambda *parts: seen.extend(parts) or {}
        HeldOut(objective, 3)({"image": 1000 * images[list(indices)], "index": torch.tensor(indices)})
        found = {index: {} for index in indices}
        for k, (image, noise, time) in enumerate(zip(*seen)):
            found[indices[k % len(indices)]][float(time)] = (image, noise)
        return found

    torch.manual_seed(1)
    together = by_volume(0, 1, 2)
    torch.manual_seed(2)
    for index in range(3):
        alone = by_volume(index)[index]
        assert sorted(alone) == sorted(together[index]) == [100, 300, 500]
        for time, (image, noise) in alone.items():
            torch.testing.assert_close(image, images[index])
            assert torch.equal(image, together[index][time][0]) and torch.equal(noise, together[index][time][1])
    assert not torch.equal(together[0][100.0][1], together[1][100.0][1])


def test_validation_leaves_the_global_random_state_alone(make_network, make_volume):
    objective = HeldOut(Denoising(make_network(), CosineSineScheduler(), HUWindow()))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    objective(in_hu(make_volume(1, 1, 4, 4, 4)))
    assert torch.equal(torch.rand(3), expected)


def test_processes_share_the_validation_volumes(one_line):
    shares = [validation_share(range(7), rank, 3) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    with pytest.raises(ValueError) as raised:
        validation_share(range(2), 0, 3)
    one_line(raised, "2 validation volumes", "3 processes")


# loss


def test_errors_of_noise_and_signal(make_network, make_volume):
    target = make_volume(2, 4, 3, 3, 3)
    prediction = target + torch.tensor([1.0, 3.0, 2.0, 0.0]).reshape(1, 4, 1, 1, 1)
    terms = Denoising(make_network(), CosineSineScheduler(), HUWindow()).named(prediction, target)
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(
        {"noise": 5.0, "signal": 2.0}, rel=1e-5
    )
    assert float(sum_of_terms(terms)) == pytest.approx(7.0, rel=1e-5)
    output = {"pred": terms}
    expected = {"loss": pytest.approx(7.0, rel=1e-5), "noise": pytest.approx(5.0), "signal": pytest.approx(2.0)}
    assert numbers_of(output) == numbers_of([output]) == expected
    output["pred"] = None
    assert numbers_of(output) == expected, "each logger waited for the terms of a step again"


def test_errors_are_computed_in_float32(make_network):
    target = torch.full((1, 2, 8, 8, 8), 100.0)
    terms = Denoising(make_network(), CosineSineScheduler(), HUWindow()).named(
        (target + 1).bfloat16(), target.bfloat16()
    )
    assert terms["noise"].dtype == torch.float32 and float(terms["noise"]) == float(terms["signal"]) == 1.0


def test_loss_metric_is_the_mean_over_batches():
    metrics = {term: LossMetric(term) for term in ("loss", "noise", "signal")}
    engine = Engine(lambda _, k: {"pred": {"noise": torch.tensor(k**2), "signal": torch.tensor(4 * k**2)}})
    for name, metric in metrics.items():
        metric.attach(engine, name)
    assert engine.run([1.0, 3.0]).metrics == pytest.approx({"loss": 25.0, "noise": 5.0, "signal": 20.0})


@pytest.mark.parametrize("low, high", [(-1000, 1000), (-200, 600)])
def test_a_window_of_hu_and_back(low, high):
    space, hu = HUWindow(low, high), torch.linspace(low, high, 11)
    torch.testing.assert_close(space.encode(hu), torch.linspace(-1, 1, 11))
    torch.testing.assert_close(space.decode(space.encode(hu)), hu, rtol=0, atol=1e-3)
    assert float(space.encode(torch.tensor(high + 50.0))) == 1 and float(space.decode(torch.tensor(-1.1))) == low


# stages

SMALL = {"hidden_size": 24, "num_heads": 4, "patch_size": 4, "stride": 2, "parametrization": "skip"}
DATA = {"grid": [8, 8, 8], "field_of_view_mm": 160.0, "hu_window": [-1000.0, 1000.0]}
PROCESS = {"name": "cosine_sine", "num_train_timesteps": 1000, "noise_std": 1.0}


def build_stage2(**settings):
    torch.manual_seed(1)
    return build_prdit(**{**SMALL, "depth": 2, **settings})


def saved(network, path, **facts):
    """The network, and the card of its weights."""
    save_weights(network, path, {"stage": "x", "process": PROCESS, "data": DATA, **facts})
    return network, start_from(path, "local_ckpt")


@pytest.fixture
def stage1(tmp_path, make_network):
    return saved(make_network(**SMALL | {"depth": 0}), tmp_path / "local.pt")


@pytest.fixture
def both_stages(tmp_path, make_network):
    return saved(make_network(**SMALL | {"depth": 2}), tmp_path / "model.pt")


def learn(network, x, times):
    optimizer = torch.optim.AdamW(parameters_to_train(network), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(x, times).square().mean().backward()
        optimizer.step()


def test_stage_2_starts_as_stage_1_and_leaves_it_alone(stage1, make_volume):
    """All sizes are those of stage 1's card; only the depth is chosen."""
    local, card = stage1
    network = global_stage(card, 2)
    assert network.settings == {**card.network, "depth": 2}
    x, times = make_volume(2, 1, 4, 6, 4), torch.tensor([50.0, 950.0])
    before = local(x, times)
    assert torch.equal(network(x, times), before)

    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == set(local.state_dict()) == {n for n in network.state_dict() if n.startswith(("time.", "local."))}
    assert {id(p) for p in parameters_to_train(network)} == {id(p) for p in network.residual.parameters()}
    learn(network, x, times)
    assert torch.equal(network.forward_parts(x, times)[0], before)
    assert not torch.allclose(network(x, times), before, atol=1e-3)


def test_the_transformer_has_the_patches_and_heads_that_stage_1_was_told(tmp_path, make_network, make_volume):
    sizes = {"patch_size": 6, "stride": 6, "num_heads": 2, "local_patch_size": 4, "local_stride": 2}
    local, card = saved(make_network(**{**SMALL, "depth": 0, **sizes}), tmp_path / "local.pt")
    network, x = global_stage(card, 1, activation_checkpointing=True), make_volume(1, 1, 6, 6, 6)
    assert torch.equal(network(x), local(x)) and network.residual.activation_checkpointing
    assert (network.residual.patch_size, network.residual.blocks[0].attention.num_heads) == (6, 2)


def test_the_process_of_the_weights_is_that_of_the_next_stage(tmp_path):
    """T is told once: a network of another stage counts with it, too."""
    process = {**PROCESS, "num_train_timesteps": 500}
    _, card = saved(build_stage2(depth=0, num_train_timesteps=500), tmp_path / "local.pt", process=process)
    assert "num_train_timesteps" not in card.network
    assert global_stage(card, 1).num_train_timesteps == card.build().num_train_timesteps == 500
    with pytest.raises(ValueError, match="num_train_timesteps 500, this run has 1000"):
        start_from(card.path, "local_ckpt", PROCESS)


def test_stage_2_needs_a_transformer_and_stage_1(stage1, both_stages, tmp_path, one_line):
    with pytest.raises(ValueError) as raised:
        global_stage(stage1[1], 0)
    one_line(raised, "depth")
    with pytest.raises(ValueError) as raised:
        start_from(tmp_path / "none.pt", "local_ckpt")
    one_line(raised, tmp_path / "none.pt", "train stage 1")
    with pytest.raises(ValueError) as raised:
        global_stage(both_stages[1], 2)
    one_line(raised, both_stages[1].path, "residual")


def test_a_new_local_denoiser_starts_beside_the_transformer_and_leaves_it_alone(both_stages, make_volume):
    trained, card = both_stages
    network = new_local_denoiser(card, local_patch_size=6, local_stride=4)
    assert network.settings == {**card.network, "local_patch_size": 6, "local_stride": 4}
    x, times = make_volume(2, 1, 8, 8, 8), torch.tensor([50.0, 950.0])
    local, residual = network.forward_parts(x, times)
    theirs = trained.forward_parts(x, times)[1]
    assert torch.equal(residual, theirs)
    assert torch.equal(local, network._skip(x, times, torch.zeros_like(local), 1.0))  # a local part of nothing

    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in network.state_dict() if not name.startswith("local.")}
    learn(network, x, times)
    after = network.forward_parts(x, times)
    assert torch.equal(after[1], theirs) and not torch.allclose(after[0], local, atol=1e-3)


def test_a_new_local_denoiser_needs_weights_of_both_stages(stage1, one_line):
    with pytest.raises(ValueError) as raised:
        new_local_denoiser(stage1[1])
    one_line(raised, stage1[1].path, "no transformer")


def test_fine_tuning_builds_what_the_card_describes(both_stages, make_volume):
    trained, card = both_stages
    network, x = finetuned_network(card, chunk_tokens=5, activation_checkpointing=True), make_volume(1, 1, 8, 8, 8)
    torch.testing.assert_close(network(x, torch.tensor([9.0])), trained(x, torch.tensor([9.0])))
    assert len(parameters_to_train(network)) == len(list(network.parameters()))
    assert network.local.chunk_tokens == 5 and network.residual.activation_checkpointing


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hu_window": [-500, 500]}, ["hu_window [-1000.0, 1000.0] there, [-500.0, 500.0] here"]),
        ({"intensity": "paper_compat"}, ["intensity HU there, paper_compat here"]),
        ({"grid": [16, 8, 8]}, ["voxels (mm) [20.0, 20.0, 20.0] there, [10.0, 20.0, 20.0] here"]),
        ({"field_of_view_mm": 80.0}, ["voxels"]),
    ],
)
def test_weights_are_trained_on_volumes_as_they_know_them(stage1, changed, words, one_line):
    card = stage1[1]
    require_same_volumes(card, {**DATA, "field_of_view_mm": [320, 160, 160], "grid": [16, 8, 8]})
    require_same_volumes(None, {})
    with pytest.raises(ValueError) as raised:
        require_same_volumes(card, {**DATA, **changed})
    one_line(raised, card.path, *words)
    if set(changed) <= {"grid", "field_of_view_mm"}:
        require_same_volumes(card, {**DATA, **changed}, voxels=False)
