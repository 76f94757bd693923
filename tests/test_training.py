import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.inferers import DiffusionInferer

from scripts.networks import build_prdit, save_weights
from scripts.networks.layers import pad_volume
from scripts.schedulers import CosineSineScheduler
from scripts.training import (
    LocalWindowPrepareBatch,
    LossMetric,
    PaddedLocal,
    PredictionLoss,
    SchedulerPrepareBatch,
    ValidationPrepareBatch,
    loss_terms,
    parameters_to_train,
    prediction_errors,
    trained_module,
    training_batches,
    validation_share,
    with_frozen_local,
    with_frozen_residual,
)


def tie_noise_to_image(prepare, times):
    """Makes the noise a function of the voxel, so that a window of the volume has a known window of the noise."""
    prepare.get_noise = lambda images: torch.sin(37 * images)
    prepare.get_timesteps = lambda images: times
    return prepare


# batches


def test_batch_asks_the_scheduler(make_volume):
    torch.manual_seed(0)
    images = make_volume(64, 1, 4, 4, 4)
    prepare = SchedulerPrepareBatch(CosineSineScheduler(noise_std=0.5))
    inputs, target, args, infer = prepare({"image": MetaTensor(images), "index": torch.arange(64)})
    assert torch.equal(inputs, images) and type(inputs) is torch.Tensor and args == ()
    assert torch.equal(target, torch.cat([infer["noise"], images], 1))
    assert float(infer["noise"].std()) == pytest.approx(0.5, abs=0.02)
    assert infer["timesteps"].shape == (64,) and 0 < infer["timesteps"].min() < infer["timesteps"].max() <= 1000


@pytest.mark.parametrize("settings", [{}, {"patch_size": 6, "parametrization": "skip"}, {"patch_size": 2}])
def test_window_has_the_predictions_and_targets_of_the_whole_volume(make_network, settings):
    """Wherever the window lies, borders included: the same noisy patches, so the same loss for each of them."""
    torch.manual_seed(0)
    network, scheduler = make_network(depth=0, **settings), CosineSineScheduler()
    images = torch.linspace(-1, 1, 2 * 8 * 10 * 12).reshape(2, 1, 8, 10, 12)  # every voxel has a value of its own
    times = torch.tensor([120.0, 870.0])
    prepare = tie_noise_to_image(LocalWindowPrepareBatch(scheduler, network, 2), times)
    volume_batch = tie_noise_to_image(SchedulerPrepareBatch(scheduler), times)({"image": images})
    inferer, corners = DiffusionInferer(scheduler), set()
    with torch.no_grad():
        whole = inferer(volume_batch[0], network, **volume_batch[3])
        for _ in range(60):
            inputs, target, _, infer = prepare({"image": images})
            prediction = inferer(inputs, PaddedLocal(network), **infer)
            assert prediction.shape == target.shape == (2, 2, 4, 4, 4)
            for i in range(2):
                z, y, x = (int(k) for k in (images[i, 0] == target[i, 1, 0, 0, 0]).nonzero()[0])
                window = (i, slice(None), slice(z, z + 4), slice(y, y + 4), slice(x, x + 4))
                assert torch.equal(target[i], volume_batch[1][window])
                torch.testing.assert_close(prediction[i], whole[window], rtol=0, atol=1e-5)
                corners.add((z, y, x))
    assert {z for z, _, _ in corners} == {0, 2, 4}
    assert {y for _, y, _ in corners} == {0, 2, 4, 6}
    assert {x for _, _, x in corners} == {0, 2, 4, 6, 8}


def test_window_as_large_as_the_volume_has_its_loss_and_gradients(make_network, make_volume):
    network, scheduler = make_network(depth=0), CosineSineScheduler()
    images, times, loss = make_volume(2, 1, 6, 8, 8), torch.tensor([120.0, 870.0]), PredictionLoss()
    inferer, results = DiffusionInferer(scheduler), []
    for prepare, module in (
        (SchedulerPrepareBatch(scheduler), network),
        (LocalWindowPrepareBatch(scheduler, network, 99), PaddedLocal(network)),
    ):
        network.zero_grad()
        inputs, target, _, infer = tie_noise_to_image(prepare, times)({"image": images})
        value = loss(inferer(inputs, module, **infer), target)
        value.backward()
        results.append([value.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    for whole, window in zip(*results):
        torch.testing.assert_close(window, whole, rtol=1e-4, atol=1e-6)


def test_noise_of_a_window_is_mirrored_at_the_border(make_network, make_volume):
    """The noise in the halo is the reflection of the noise inside, as in a padded noisy volume, and unit Gaussian."""
    torch.manual_seed(0)
    network = make_network(depth=0, patch_size=8, stride=4)
    prepare = LocalWindowPrepareBatch(CosineSineScheduler(), network, 99)
    images = make_volume(4, 1, 8, 12, 16)
    inputs, target, _, infer = prepare({"image": images})
    noise, signal = target.chunk(2, 1)
    assert torch.equal(signal, images) and torch.equal(inputs, pad_volume(images, 8, 4))
    assert torch.equal(infer["noise"], pad_volume(noise, 8, 4))
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.1


def test_stage_1_trains_on_windows(make_network):
    network, scheduler = make_network(depth=0), CosineSineScheduler()
    assert training_batches(scheduler, network, 3).tokens_per_side == 3
    assert type(training_batches(scheduler, network)) is SchedulerPrepareBatch


def test_window_of_no_patches_is_refused(make_network):
    with pytest.raises(ValueError, match="local_window must be 1 or more"):
        LocalWindowPrepareBatch(CosineSineScheduler(), make_network(depth=0), 0)


def test_validation_is_the_same_in_every_run_and_batch(make_volume):
    images = make_volume(3, 1, 4, 4, 4)
    prepare = ValidationPrepareBatch(CosineSineScheduler(600), num_times=3)

    def by_volume(*indices):
        """Per volume: time -> (image, noise)."""
        batch = {"image": MetaTensor(images[list(indices)]), "index": torch.tensor(indices)}
        inputs, target, args, infer = prepare(batch)
        assert torch.equal(target, torch.cat([infer["noise"], inputs], 1)) and args == ()
        rows = zip(infer["timesteps"].tolist(), inputs, infer["noise"])
        found = {index: {} for index in indices}
        for k, (time, image, noise) in enumerate(rows):
            found[indices[k % len(indices)]][time] = (image, noise)
        return found

    torch.manual_seed(1)
    together = by_volume(0, 1, 2)
    torch.manual_seed(2)
    for index in range(3):
        alone = by_volume(index)[index]
        assert sorted(alone) == sorted(together[index]) == [100, 300, 500]
        for time, (image, noise) in alone.items():
            assert torch.equal(image, images[index]) and torch.equal(image, together[index][time][0])
            assert torch.equal(noise, together[index][time][1])
    assert not torch.equal(together[0][100.0][1], together[1][100.0][1])


def test_validation_leaves_the_global_random_state_alone(make_volume):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ValidationPrepareBatch(CosineSineScheduler())({"image": make_volume(1, 1, 4, 4, 4), "index": torch.tensor([0])})
    assert torch.equal(torch.rand(3), expected)


def test_processes_share_the_validation_volumes(one_line):
    shares = [validation_share(range(7), rank, 3) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    with pytest.raises(ValueError) as raised:
        validation_share(range(2), 0, 3)
    one_line(raised, "2 validation volumes", "3 processes")


# loss


def test_errors_of_noise_and_signal(make_volume):
    target = make_volume(2, 4, 3, 3, 3)
    prediction = target + torch.tensor([1.0, 3.0, 2.0, 0.0]).reshape(1, 4, 1, 1, 1)
    noise, signal = prediction_errors(prediction, target).values()
    assert (float(noise), float(signal)) == pytest.approx((5.0, 2.0), rel=1e-5)
    assert float(PredictionLoss()(prediction, target)) == pytest.approx(7.0, rel=1e-5)
    output = {"pred": prediction.requires_grad_(), "label": target}
    expected = {"loss": pytest.approx(7.0, rel=1e-5), "noise": pytest.approx(5.0), "signal": pytest.approx(2.0)}
    assert loss_terms(output) == loss_terms([output]) == expected
    output["pred"] = None
    assert loss_terms(output) == expected, "each logger computed the terms of a step again"


def test_errors_are_computed_in_float32():
    target = torch.full((1, 2, 8, 8, 8), 100.0)
    noise, signal = prediction_errors((target + 1).bfloat16(), target.bfloat16()).values()
    assert noise.dtype == torch.float32 and float(noise) == 1.0 and float(signal) == 1.0


def test_loss_metric_is_the_mean_over_batches():
    metrics = {term: LossMetric(term) for term in ("loss", "noise", "signal")}
    engine = Engine(
        lambda _, k: {
            "pred": torch.tensor([[1.0, 2.0]]).reshape(1, 2, 1, 1, 1) * k,
            "label": torch.zeros(1, 2, 1, 1, 1),
        }
    )
    for name, metric in metrics.items():
        metric.attach(engine, name)
    assert engine.run([1.0, 3.0]).metrics == pytest.approx({"loss": 25.0, "noise": 5.0, "signal": 20.0})


# stages


@pytest.fixture
def stage1(tmp_path, make_network):
    """Trained weights of stage 1, as a network and as a file."""
    network = make_network(depth=0, parametrization="skip")
    save_weights(network, tmp_path / "local.pt", {"stage": "local"})
    return network, tmp_path / "local.pt"


def build_stage2(**settings):
    torch.manual_seed(1)
    base = {"hidden_size": 24, "num_heads": 4, "depth": 2, "patch_size": 4, "stride": 2, "parametrization": "skip"}
    return build_prdit(**{**base, **settings})


def test_stage_2_starts_as_stage_1_and_leaves_it_alone(stage1, make_volume):
    local, path = stage1
    network = with_frozen_local(build_stage2(), path)
    x, times = make_volume(2, 1, 4, 6, 4), torch.tensor([50.0, 950.0])
    before = local(x, times)
    assert torch.equal(network(x, times), before)

    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == set(local.state_dict()) == {n for n in network.state_dict() if n.startswith(("time.", "local."))}
    trained = parameters_to_train(network)
    assert {id(p) for p in trained} == {id(p) for p in network.residual.parameters()}

    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(x, times).square().mean().backward()
        optimizer.step()
    assert torch.equal(network.forward_parts(x, times)[0], before)
    assert not torch.allclose(network(x, times), before, atol=1e-3)


def test_the_transformer_may_have_patches_of_its_own(stage1, make_volume):
    local, path = stage1
    network = with_frozen_local(build_stage2(patch_size=6, stride=6, local_patch_size=4, local_stride=2), path)
    x = make_volume(1, 1, 6, 6, 6)
    assert torch.equal(network(x), local(x))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 48}, ["hidden_size 24 there, 48 here"]),
        ({"parametrization": "none"}, ["parametrization skip there, none here"]),
        ({"norm": "rms"}, ["norm layer there, rms here"]),
        ({"in_channels": 2}, ["in_channels 1 there, 2 here"]),
        ({"patch_size": 6}, ["(4, 2) there, (6, 2) here"]),
        ({"hidden_size": 48, "local_stride": 4}, ["hidden_size", "(4, 2) there, (4, 4) here"]),
    ],
)
def test_stage_1_that_does_not_fit_is_refused(stage1, settings, words, one_line):
    _, path = stage1
    with pytest.raises(ValueError) as raised:
        with_frozen_local(build_stage2(**settings), path)
    one_line(raised, path, *words)


def test_stage_2_needs_a_transformer_and_stage_1(stage1, tmp_path, one_line):
    _, path = stage1
    with pytest.raises(ValueError) as raised:
        with_frozen_local(build_stage2(depth=0), path)
    one_line(raised, "depth")
    with pytest.raises(ValueError) as raised:
        with_frozen_local(build_stage2(), tmp_path / "none.pt")
    one_line(raised, tmp_path / "none.pt", "train stage 1")
    save_weights(build_stage2(), tmp_path / "model.pt", {"stage": "model"})
    with pytest.raises(ValueError) as raised:
        with_frozen_local(build_stage2(), tmp_path / "model.pt")
    one_line(raised, tmp_path / "model.pt", "residual")


# a new local denoiser beside a trained transformer


@pytest.fixture
def both_stages(tmp_path, make_network):
    """Trained weights of both stages, as a network and as a file."""
    network = make_network(parametrization="skip")
    save_weights(network, tmp_path / "model.pt", {"stage": "model"})
    return network, tmp_path / "model.pt"


def test_a_new_local_denoiser_starts_beside_the_transformer_and_leaves_it_alone(both_stages, make_volume):
    trained, path = both_stages
    network = with_frozen_residual(build_stage2(local_patch_size=6, local_stride=4), path)
    x, times = make_volume(2, 1, 8, 8, 8), torch.tensor([50.0, 950.0])
    local, residual = network.forward_parts(x, times)
    theirs = trained.forward_parts(x, times)[1]
    assert torch.equal(residual, theirs)
    assert torch.equal(local, network._skip(x, times, torch.zeros_like(local), 1.0))  # a local part of nothing

    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in network.state_dict() if not name.startswith("local.")}
    assert {id(p) for p in parameters_to_train(network)} == {id(p) for p in network.local.parameters()}

    optimizer = torch.optim.AdamW(parameters_to_train(network), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(x, times).square().mean().backward()
        optimizer.step()
    after = network.forward_parts(x, times)
    assert torch.equal(after[1], theirs) and not torch.allclose(after[0], local, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 0}, ["needs a transformer", "depth"]),
        ({"depth": 1}, ["depth 2 there, 1 here"]),
        ({"hidden_size": 48}, ["hidden_size 24 there, 48 here"]),
        ({"stride": 4, "patch_size": 4}, ["stride 2 there, 4 here"]),
    ],
)
def test_a_transformer_that_does_not_fit_is_refused(both_stages, settings, words, one_line):
    with pytest.raises(ValueError) as raised:
        with_frozen_residual(build_stage2(**settings), both_stages[1])
    one_line(raised, *words)


def test_a_new_local_denoiser_needs_weights_of_both_stages(stage1, tmp_path, one_line):
    with pytest.raises(ValueError) as raised:
        with_frozen_residual(build_stage2(), stage1[1])
    one_line(raised, stage1[1], "depth 0 there, 2 here")
    with pytest.raises(ValueError) as raised:
        with_frozen_residual(build_stage2(), tmp_path / "none.pt")
    one_line(raised, tmp_path / "none.pt")


def test_windows_are_for_stage_1(make_network, one_line):
    assert isinstance(trained_module(make_network(depth=0), 4), PaddedLocal)
    network = make_network(depth=1)
    assert trained_module(network, 0) is network
    with pytest.raises(ValueError) as raised:
        trained_module(network, 4)
    one_line(raised, "local_window", "set it to 0")
