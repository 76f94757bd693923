"""3D-LDM: the autoencoder and its codebook, the factorised U-Net, and the configs of both stages from end to end."""

import json

import pytest
import torch
from bundle_runs import assert_refused, run

from scripts.inferers import DiffusionGenerator, Item
from scripts.networks import VQGAN, Discriminators, LatentSpace, build_network, load_network, read_card, space_of
from scripts.networks.latent_unet import Attention, LatentUNet, RelativeBias, along_z, in_slices, rotated
from scripts.networks.vq_gan import Codebook
from scripts.schedulers.process import CosineDDPMScheduler
from scripts.spaces import HUWindow
from scripts.training import Denoising, Reconstructing

GIVEN = {
    "grid": [16, 16, 16], "channels": 16, "factor": 2, "num_codes": 64, "num_phantoms": 4, "num_validation_phantoms": 1,
    "batch_size": 2, "val_interval": 1, "num_pictures": 1, "lr": 1.0e-3, "bf16": False, "device": "$torch.device('cpu')",
}  # fmt: skip
LATENT = {
    "channels": 8, "multipliers": [1, 2], "num_phantoms": 4, "num_validation_phantoms": 1, "batch_size": 2, "val_interval": 1,
    "num_validation_times": 2, "num_pictures": 1, "device": "$torch.device('cpu')",
}  # fmt: skip


def count(network):
    return sum(one.numel() for one in network.parameters())


def test_the_networks_have_the_published_number_of_parameters():
    with torch.device("meta"):
        assert [count(VQGAN(factor, num_codes=4)) for factor in (8, 4, 2)] == [5_884_201, 1_391_081, 266_825]
        both = Discriminators()
        assert (count(both.slices), count(both.volumes)) == (2_764_481, 11_049_665)
        assert [count(LatentUNet(8, channels)) for channels in (16, 32)] == [3_019_944, 9_981_512]


@pytest.mark.parametrize("factor", [2, 4])
def test_the_autoencoder_brings_a_volume_back_to_its_grid(factor):
    network, volume = VQGAN(factor, num_codes=16).eval(), torch.randn(1, 1, 8, 16, 8)
    found, _ = network(volume)
    assert (
        network.encoder(volume).shape == (1, 8, 8 // factor, 16 // factor, 8 // factor) and found.shape == volume.shape
    )


def test_codes_are_the_nearest_and_follow_the_latents():
    torch.manual_seed(0)
    codebook, latents = Codebook(16), torch.randn(2, 8, 4, 4, 4)
    codebook(latents)  # the first batch starts it
    assert codebook.started and codebook.training
    flat = latents.movedim(1, -1).reshape(-1, 8)
    before = codebook.codes.clone()
    found = codebook(latents)
    nearest = ((flat[:, None] - before[None]) ** 2).sum(-1).argmin(1)
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, 8), before[nearest])
    for code in range(16):  # each code of enough latents is on its way to their mean
        mine = flat[nearest == code]
        if len(mine) > 20:
            assert (codebook.codes[code] - mine.mean(0)).norm() < (before[code] - mine.mean(0)).norm()
    assert torch.equal(codebook.eval()(latents), codebook(latents))  # evaluation leaves it as it is


def test_codes_without_latents_are_drawn_anew_from_the_batch():
    torch.manual_seed(0)
    codebook, latents = Codebook(4), torch.randn(1, 8, 4, 4, 4)
    codebook(latents)
    codebook.codes[0], codebook.counts[0] = 1e3, 1.0  # nothing is near
    codebook(latents)
    flat = latents.movedim(1, -1).reshape(-1, 8)
    assert ((flat - codebook.codes[0]) ** 2).sum(-1).min() < 1e-6


def test_the_codebook_survives_being_saved():
    codebook = Codebook(16)
    codebook(torch.randn(1, 8, 4, 4, 4))
    again = Codebook(16)
    again.load_state_dict(codebook.state_dict())
    assert again.started and torch.equal(again.codes, codebook.codes)
    codes = again.codes.clone()
    again.train()(torch.randn(1, 8, 4, 4, 4) + 50)
    assert (again.codes - codes).abs().min() < 1  # not started anew with the batch


def test_attention_along_z_and_in_slices_mixes_these_axes_alone():
    torch.manual_seed(0)
    x = torch.randn(1, 16, 4, 4, 6, requires_grad=True)
    z, plane = Attention(16, along_z=True), Attention(16, along_z=False)
    (grad,) = torch.autograd.grad(along_z(z, x, RelativeBias()(6))[0, :, 1, 2, 3].sum(), x)
    seen = grad.abs().sum((0, 1)) > 0
    assert seen[1, 2].all() and seen.sum() == 6
    (grad,) = torch.autograd.grad(in_slices(plane, x)[0, :, 1, 2, 3].sum(), x)
    seen = grad.abs().sum((0, 1)) > 0
    assert seen[..., 3].all() and seen.sum() == 16


def test_rotary_products_depend_on_the_distance_alone():
    q, k = torch.randn(32), torch.randn(32)
    queries, keys = rotated(q.expand(9, 32)), rotated(k.expand(9, 32))
    products = queries @ keys.T
    for offset in (-3, 0, 4):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_the_relative_bias_is_of_t5s_buckets():
    """Distances to 7 have buckets of their own, then two a doubling; a side of its own for keys behind."""
    bias = RelativeBias()
    bias.values.weight.data = torch.arange(32.0)[:, None].expand(32, 8).clone()
    row = bias(40)[0]
    assert row[39, 39] == 0 and [int(row[39, 39 - d]) for d in (1, 7, 8, 31)] == [1, 7, 8, 15]
    assert [int(row[5, 5 + d]) for d in (1, 7, 31)] == [17, 23, 31]


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return Reconstructing(VQGAN(2, num_codes=32), Discriminators(start=0), HUWindow(), bf16=False)


def test_one_backward_pass_gives_each_player_its_own_gradient(objective, make_volume):
    objective.eval()  # running means would move between the passes
    volumes = make_volume(2, 1, 16, 16, 16).clamp(-1, 1)
    terms = objective.errors(volumes, [3, 9])
    assert tuple(terms) == objective.terms and all(float(terms[name]) != 0 for name in terms if name != "perceptual")
    players = list(objective.network.parameters()), list(objective.discriminators.parameters())
    ours = sum(value for name, value in terms.items() if name != "discriminator")
    together = torch.autograd.grad(sum(terms.values()), [*players[0], *players[1]], retain_graph=True)
    apart = [
        *torch.autograd.grad(ours, players[0], retain_graph=True),
        *torch.autograd.grad(terms["discriminator"], players[1]),
    ]
    assert all(torch.equal(one, other) for one, other in zip(together, apart))
    assert all(one is None for one in torch.autograd.grad(ours, players[1], allow_unused=True, retain_graph=True))


def test_discriminators_play_from_their_start_on(objective, make_volume):
    objective.discriminators.start = 1
    batch = {"image": 500 * make_volume(1, 1, 16, 16, 16)}
    first, second = objective(batch), objective(batch)
    assert not first["adversarial"] and not first["discriminator"] and second["adversarial"] and second["features"]
    again = Discriminators(start=1)
    again.load_state_dict(objective.discriminators.state_dict())
    assert again.steps == 2


def test_slices_are_axial(objective, make_volume):
    volumes, seen = make_volume(1, 1, 16, 16, 16), []
    objective.discriminators.slices.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    objective.errors(volumes, [5])
    torch.testing.assert_close(seen[1], volumes[..., 5])


def latent_space(window=(-1000, 1000)):
    torch.manual_seed(0)
    autoencoder = VQGAN(2, num_codes=32)
    autoencoder(torch.randn(1, 1, 16, 16, 16))
    return LatentSpace(window, autoencoder)


def test_latents_are_scaled_by_the_codebook_and_decoded_by_its_codes():
    space, hu = latent_space((-500, 500)), 1000 * torch.rand(1, 1, 16, 16, 16) - 500
    latents, codes = space.encode(hu), space.autoencoder.codebook.codes
    raw = space.autoencoder.encoder(hu / 500)
    torch.testing.assert_close(latents, 2 * (raw - codes.min()) / (codes.max() - codes.min()) - 1)
    expected = space.autoencoder.decoder(space.autoencoder.codebook(raw)).clamp(-1, 1) * 500
    torch.testing.assert_close(space.decode(latents), expected, rtol=0, atol=0.1)
    assert space.shape(1, [16, 16, 8]) == (8, 8, 8, 4)
    assert space.train().autoencoder.codebook.training is False


def test_a_volume_is_its_seed_alone():
    space = latent_space()
    network = build_network(
        kind="latent", autoencoder=space.autoencoder.settings, channels=8, multipliers=[1, 2]
    ).eval()
    generator = DiffusionGenerator(network, CosineDDPMScheduler(300, solver="ddim", eta=1.0), 4, [16] * 3, space)
    three = generator.sample([Item(seed) for seed in (3, 5, 4)])
    assert three.shape == (3, 1, 16, 16, 16)
    torch.testing.assert_close(generator.sample([Item(5)]), three[1:2], rtol=0, atol=0.5)


def test_the_loss_is_the_mean_absolute_error_of_the_noise(make_volume):
    space, times, noise = latent_space(), torch.tensor([40.0, 250.0]), torch.randn(2, 8, 8, 8, 8)
    network = build_network(
        kind="latent", autoencoder=space.autoencoder.settings, channels=8, multipliers=[1, 2]
    ).eval()
    process = CosineDDPMScheduler(300)
    objective = Denoising(network, process, space, bf16=False, loss="l1")
    with torch.no_grad():
        latents = space.encode(500 * make_volume(2, 1, 16, 16, 16))
        terms = objective.errors(latents, noise, times)
        expected = (network(process.add_noise(latents, noise, times), times) - noise).abs().mean()
    assert list(terms) == ["noise"]
    torch.testing.assert_close(terms["noise"], expected)


def test_both_stages_train_resume_and_sample_by_the_configs(tmp_path):
    first, second, whole, broken = "train_autoencoder", "train_latent", tmp_path / "whole", tmp_path / "broken"
    run("training", ["train", first], ckpt_dir=whole, max_epochs=2, discriminator_start=1, **GIVEN)
    for epochs in (1, 2):
        run("training", ["train", first], ckpt_dir=broken, max_epochs=epochs, discriminator_start=1, **GIVEN)
    assert (whole / "autoencoder_losses.csv").read_text() == (broken / "autoencoder_losses.csv").read_text()
    assert len(list((whole / "pictures").glob("autoencoder_epoch_*.png"))) == 2
    one, other = (load_network(read_card(folder / "autoencoder.pt")).state_dict() for folder in (whole, broken))
    assert all(torch.equal(value, other[name]) for name, value in one.items()) and one["codebook.started"]
    run("training", ["train", second], ckpt_dir=whole, max_epochs=1, **LATENT)
    run("training", ["train", second], ckpt_dir=whole, max_epochs=2, **LATENT)
    card = read_card(whole / "latent.pt")
    assert card.kind == "latent" and card.num_train_timesteps == 300 and card.data.encoding == "latents"
    assert card.facts["autoencoder_sha256"] == read_card(whole / "autoencoder.pt").sha256
    assert isinstance(space_of(card), LatentSpace)
    frozen = load_network(card).autoencoder.state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in one.items())
    sampling = {"ckpt_path": whole / "latent.pt", "num_samples": 1, "num_inference_steps": 3}
    run("run", ["inference", "ddpm_sampler"], output_dir=tmp_path / "out", **sampling)
    facts = json.loads((tmp_path / "out" / "seed_000000.json").read_text())
    assert facts["process"] == "ddpm_cosine" and facts["grid"] == [16] * 3
    with assert_refused("autoencoder", "draws nothing"):
        run("run", ["inference"], output_dir=tmp_path / "no", ckpt_path=whole / "autoencoder.pt")
    for name, words in (("latent.pt", ("num_train_timesteps 300",)), ("autoencoder.pt", ("GAN", "discriminator"))):
        with assert_refused(*words):
            kind = {"latent.pt": "ddpm_cosine", "autoencoder.pt": "direct"}[name]
            run(
                "training",
                ["train", "finetune"],
                finetune_from=whole / name,
                process_name=kind,
                ckpt_dir=tmp_path / "no",
            )


def test_latents_of_no_or_another_autoencoder_are_refused(tmp_path):
    with assert_refused("autoencoder", "train_autoencoder.yaml"):
        run("training", ["train", "train_latent"], ckpt_dir=tmp_path / "empty", **LATENT)
    for seed in (0, 1):
        run("training", ["train", "train_autoencoder"], ckpt_dir=tmp_path / str(seed), max_epochs=1, seed=seed, **GIVEN)
    run("training", ["train", "train_latent"], ckpt_dir=tmp_path / "0", max_epochs=1, **LATENT)
    other = tmp_path / "1" / "autoencoder.pt"
    with assert_refused("another autoencoder"):
        run(
            "training",
            ["train", "train_latent"],
            ckpt_dir=tmp_path / "0",
            max_epochs=2,
            autoencoder_ckpt=other,
            **LATENT,
        )
    with assert_refused("factor", 6):
        run("training", ["train", "train_autoencoder"], ckpt_dir=tmp_path / "2", **{**GIVEN, "factor": 6})
    with assert_refused("grid", "strides [32]"):
        wrong = {**LATENT, "multipliers": [1, 1, 1, 1, 1], "max_epochs": 1}
        run("training", ["train", "train_latent"], ckpt_dir=tmp_path / "1", **wrong)
