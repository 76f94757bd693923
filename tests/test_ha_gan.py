"""HA-GAN: sizes, the axis of slabs, two players in one step, and the configs from end to end."""

import json

import pytest
import torch
from bundle_runs import assert_refused, run
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.inferers import DirectGenerator, Item
from scripts.networks import HADiscriminator, HAGenerator, load_network, read_card
from scripts.networks.high_resolution import downsample_nearest
from scripts.spaces import HUWindow
from scripts.training import Adversarial, two_rates

SIZES = {"channels": 16, "latent_size": 8}
GIVEN = {
    **SIZES, "grid": [32, 32, 32], "num_phantoms": 4, "num_validation_phantoms": 1, "batch_size": 2, "val_interval": 1,
    "num_pictures": 1, "bf16": False, "device": "$torch.device('cpu')",
}  # fmt: skip


@pytest.mark.parametrize(
    ("side", "discriminator"), [(32, 4_240_834), (64, 6_592_130), (128, 7_241_442), (256, 7_402_258)]
)
def test_the_networks_have_the_published_number_of_parameters(side, discriminator):
    with torch.device("meta"):
        networks = HAGenerator(side), HADiscriminator(side)
    numbers = [sum(one.numel() for one in network.parameters()) for network in networks]
    assert numbers == [52_518_210, discriminator]


@pytest.fixture
def players():
    torch.manual_seed(0)
    return HAGenerator(32, **SIZES), HADiscriminator(32, 16)


def test_a_slab_is_cut_along_z_and_lies_where_it_starts(players):
    """z is the last axis; a slab sees its own slice of the features and nothing of those beside it."""
    generator, latent = players[0].eval(), torch.randn(2, 8)
    with torch.no_grad():
        whole = generator(latent)
        low, slab = generator.both(latent, 8)
        assert whole.shape == (2, 1, 32, 32, 32) and low.shape == (2, 1, 8, 8, 8) and slab.shape == (2, 1, 32, 32, 4)
        torch.testing.assert_close(slab, generator.high(generator.features(latent)[:, :, :, :, 2:3]))
        assert not torch.allclose(slab, generator.both(latent, 12)[1])


def test_the_discriminator_knows_where_a_slab_starts(players):
    discriminator = players[1].eval()
    low, slab = torch.randn(2, 1, 8, 8, 8), torch.randn(2, 1, 32, 32, 4)
    with torch.no_grad():
        assert discriminator(low, slab, 0).shape == (2, 1)
        assert not torch.allclose(discriminator(low, slab, 0), discriminator(low, slab, 28))


def test_slabs_start_at_features_and_reach_both_ends(players):
    objective, generator = Adversarial(*players, HUWindow()), torch.Generator().manual_seed(0)
    starts = {objective.slab(generator) for _ in range(300)}
    assert starts == {0, 4, 8, 12, 16, 20, 24, 28}


def test_one_backward_pass_gives_each_player_its_own_gradient(players, make_volume):
    """Against separate passes: the generator's term alone, and the discriminator's two alone on what is cut off."""
    generator, discriminator = (one.eval() for one in players)  # power iterations would move between the passes
    volumes, latent, slab = make_volume(2, 1, 32, 32, 32).clamp(-1, 1), torch.randn(2, 8), 12
    terms = Adversarial(generator, discriminator, HUWindow(), bf16=False).errors(volumes, latent, slab)
    sum(terms.values()).backward()
    together = [one.grad.clone() for player in players for one in player.parameters()]

    def loss(logits, truth):
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))

    low, high = generator.both(latent, slab)
    apart = torch.autograd.grad(loss(discriminator(low, high, slab), 1.0), list(generator.parameters()))
    real = discriminator(downsample_nearest(volumes, 4), volumes[..., 12:16], slab)
    fake = discriminator(low.detach(), high.detach(), slab)
    apart += torch.autograd.grad(loss(real, 1.0) + loss(fake, 0.0), list(discriminator.parameters()))
    assert list(terms) == ["generator", "real", "generated"] and len(together) == len(apart)
    for one, other in zip(together, apart):
        torch.testing.assert_close(one, other)


def test_each_player_has_its_rate(players):
    groups = two_rates(Adversarial(*players, HUWindow()), 1e-4, 4e-4)
    assert [group["lr"] for group in groups] == [1e-4, 4e-4]
    assert [len(group["params"]) for group in groups] == [len(list(player.parameters())) for player in players]


def test_a_volume_is_its_seed_alone(players):
    generator = DirectGenerator(players[0].eval(), [32] * 3, HUWindow(-500, 500))
    three = generator.sample([Item(seed) for seed in (3, 5, 4)])
    assert three.shape == (3, 1, 32, 32, 32) and three.min() >= -500 and three.max() <= 500
    torch.testing.assert_close(generator.sample([Item(5)]), three[1:2], rtol=0, atol=0.05)


def test_it_trains_resumes_and_samples_by_the_configs(tmp_path, capsys):
    stack, whole, broken = ["train", "train_gan"], tmp_path / "whole", tmp_path / "broken"
    run("training", stack, ckpt_dir=whole, max_epochs=2, **GIVEN)
    assert "the last, after epoch 2" in capsys.readouterr().out
    for epochs in (1, 2):
        run("training", stack, ckpt_dir=broken, max_epochs=epochs, **GIVEN)
    card = read_card(whole / "gan.pt")
    assert card.kind == "ha_gan" and card.facts["training"]["epoch"] == 2  # the last
    assert "train_generator,train_real,train_generated" in (whole / "gan_losses.csv").read_text()
    assert (whole / "gan_losses.csv").read_text() == (broken / "gan_losses.csv").read_text()
    one, other = (torch.load(folder / "gan_checkpoint_epoch=2.pt", weights_only=True) for folder in (whole, broken))
    for player in ("network", "discriminator"):
        assert all(torch.equal(value, other[player][name]) for name, value in one[player].items())
    assert list((whole / "pictures").glob("gan_epoch_*.png"))
    sampling = {"ckpt_path": whole / "gan.pt", "num_samples": 2, "bf16": False}
    run("run", ["inference"], output_dir=tmp_path / "out", **sampling)
    facts = json.loads((tmp_path / "out" / "seed_000001.json").read_text())
    assert facts["process"] == "direct" and facts["grid"] == [32] * 3
    assert load_network(card).side == 32
    for wrong, words in (
        ({"num_inference_steps": 20}, ("num_inference_steps", 1, 20)),
        ({"grid": 64}, ("grid", [32] * 3, [64] * 3)),
        ({"guidance": 0.5}, ("guidance", "transformer block")),
    ):
        with assert_refused(*words):
            run("run", ["inference"], output_dir=tmp_path / "no", **sampling, **wrong)
    with assert_refused("GAN", "discriminator"):
        run("training", ["train", "finetune"], finetune_from=whole / "gan.pt", ckpt_dir=tmp_path / "no")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"grid": [48, 48, 48]}, ("32, 64, 128 or 256", 48)),
        ({"grid": [32, 32, 64]}, ("every axis", [32, 32, 64])),
        ({"channels": 24}, ("channels", 16, 24)),
    ],
)
def test_sizes_that_it_cannot_take_are_refused(tmp_path, wrong, words):
    with assert_refused(*words):
        run("training", ["train", "train_gan"], ckpt_dir=tmp_path, **{**GIVEN, **wrong})
