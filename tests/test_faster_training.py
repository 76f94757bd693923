"""Overlays that train the same network with less work: tokens that skip blocks, tokens that are dropped, Muon."""

import copy

import pytest
import torch
from bundle_runs import TINY, assert_refused, bytes_of, run

from scripts.networks.layers import pick_tokens, put_tokens, token_grid, unpatchify
from scripts.schedulers import CosineSineScheduler
from scripts.spaces import HUWindow
from scripts.training import Denoising, MuonAndAdamW, Routed, TrainingStep, local_denoising, sum_of_terms
from scripts.training.muon import orthogonalized

STAGE_2 = ["train", "train_global"]
SIZES = {"depth": 4, "patch_size": 4, "stride": 2}


@pytest.fixture
def batch(make_volume):
    return {"image": 500 * make_volume(3, 1, 8, 8, 4), "index": torch.arange(3)}


def terms_of(objective, batch):
    torch.manual_seed(0)
    terms = objective(batch)
    objective.zero_grad()
    sum_of_terms(terms).backward()
    return terms


# routing


def test_tokens_go_where_they_came_from(make_volume):
    tokens, kept = make_volume(2, 7, 3), torch.tensor([[5, 0, 3], [1, 2, 6]])
    picked = pick_tokens(tokens, kept)
    assert torch.equal(picked[1], tokens[1, [1, 2, 6]])
    assert torch.equal(put_tokens(tokens, kept, picked), tokens)
    changed = put_tokens(tokens, kept, -picked)
    assert torch.equal(changed[0, [5, 0, 3]], -tokens[0, [5, 0, 3]])
    assert torch.equal(changed[0, [1, 2, 4, 6]], tokens[0, [1, 2, 4, 6]])


@pytest.mark.parametrize("dropped", [False, True])
def test_a_route_of_all_tokens_is_no_route(make_network, make_volume, dropped):
    network, x, times = make_network(**SIZES), make_volume(2, 1, 8, 8, 4), torch.tensor([100.0, 800.0])
    everything = torch.stack([torch.randperm(32) for _ in range(2)])
    routed = network.forward_routed(x, times, (everything, dropped))
    torch.testing.assert_close(routed, network(x, times), rtol=1e-5, atol=1e-5)


def test_routed_tokens_see_the_first_and_the_last_block_alone(make_network, make_volume):
    """What the inner blocks do to other tokens changes nothing, and what the last one does is all they get."""
    network, x, times = make_network(**SIZES), make_volume(1, 1, 8, 8, 4), torch.tensor([500.0])
    kept, seen = torch.tensor([[3, 30, 7]]), []
    for block in network.residual.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    network.forward_routed(x, times, (kept, False))
    assert [one.shape[1] for one, _ in seen] == [32, 3, 3, 32]
    others = [i for i in range(32) if i not in kept[0].tolist()]
    assert torch.equal(seen[3][0][0, others], seen[0][1][0, others])
    assert torch.equal(seen[3][0][0, kept[0]], seen[2][1][0])


def test_dropped_tokens_have_the_local_prediction_and_no_loss(make_network, batch):
    network = make_network(**SIZES, parametrization="skip")
    objective = Routed(network, CosineSineScheduler(), HUWindow(), 0.75, True)
    seen = []
    objective.predict_routed = lambda noisy, times, kept: seen.append((noisy, times, kept)) or predict(
        noisy, times, kept
    )
    predict = Routed.predict_routed.__get__(objective)
    terms = terms_of(objective, batch)
    (noisy, times, kept), residual = seen[0], network.forward_parts(seen[0][0], seen[0][1])
    inside = unpatchify(
        put_tokens(torch.zeros(3, 32, 8), kept, torch.ones(3, 8, 8)), token_grid([8, 8, 4], 2), 2
    ).bool()
    whole = predict(noisy, times, kept).detach()
    outside = ~inside.expand_as(whole)
    torch.testing.assert_close(whole[outside], residual[0][outside])  # the residual part is 0 there
    torch.manual_seed(0)
    volumes = HUWindow().encode(batch["image"])
    target = torch.cat([CosineSineScheduler().sample_noise(volumes), volumes], 1)
    noise, signal = ((whole - target) ** 2).chunk(2, 1)
    assert float(terms["noise"].detach()) == pytest.approx(float(noise[inside].mean().detach()), rel=1e-4)
    assert float(terms["signal"].detach()) == pytest.approx(float(signal[inside].mean().detach()), rel=1e-4)


@pytest.mark.parametrize("setting", ["routed_share", "dropped_share"])
def test_a_share_of_0_is_todays_training(make_network, setting):
    objective = local_denoising(make_network(**SIZES), CosineSineScheduler(), HUWindow(), **{setting: 0.0})
    assert type(objective) is Denoising


@pytest.mark.parametrize("settings", [{"routed_share": 0.5}, {"dropped_share": 0.75}])
def test_checkpointed_activations_and_bf16_give_the_same_gradients(make_network, batch, settings):
    found = {}
    for name, checkpointing, bf16 in (("plain", False, False), ("again", True, False), ("bf16", True, True)):
        network = make_network(**SIZES, activation_checkpointing=checkpointing).train()
        objective = local_denoising(network, CosineSineScheduler(), HUWindow(), bf16=bf16, **settings)
        terms = terms_of(objective, batch)
        found[name] = torch.cat(
            [sum_of_terms(terms).detach()[None], network.residual.blocks[1].mlp[0].weight.grad.flatten()]
        )
    torch.testing.assert_close(found["again"], found["plain"], rtol=1e-5, atol=1e-7)
    assert float((found["bf16"] - found["plain"]).norm()) < 0.05 * float(found["plain"].norm())
    assert not torch.equal(found["bf16"], found["plain"])


def test_the_calculated_work_counts_the_tokens_that_are_there(make_network):
    """Blocks are half of the work of this network: without 3/4 of the tokens it falls, and most where they are dropped."""

    def tflop(**settings):
        objective = local_denoising(
            make_network(**SIZES, hidden_size=192), CosineSineScheduler(), HUWindow(), **settings
        )
        return TrainingStep(objective, [8, 8, 8], 2, "cpu").needs(2)["tflop"]

    whole, routed, dropped = tflop(), tflop(routed_share=0.75), tflop(dropped_share=0.75)
    blocks = (whole - tflop_without_blocks(make_network)) / whole
    assert blocks > 0.5
    assert whole - routed == pytest.approx(0.75 * blocks / 2 * whole, rel=0.1)  # 2 of 4 blocks, and less attention
    assert dropped < routed < whole and dropped < 0.4 * whole


def tflop_without_blocks(make_network):
    network = make_network(**SIZES, hidden_size=192)
    network.residual.blocks = network.residual.blocks[:0]
    return TrainingStep(Denoising(network, CosineSineScheduler(), HUWindow()), [8, 8, 8], 2, "cpu").needs(2)["tflop"]


@pytest.mark.parametrize(
    ("settings", "share", "words"),
    [({"depth": 2}, 0.5, "3 or more blocks, this one has 2"), ({"depth": 0}, 0.5, "3 or more blocks, this one has 0"),
     ({"depth": 3}, 0.99, "of 32 tokens leaves 0"), ({"depth": 3}, 0.01, "of 32 tokens leaves 32")],
)  # fmt: skip
def test_too_few_blocks_or_tokens_are_refused(make_network, batch, one_line, settings, share, words):
    with pytest.raises(ValueError) as raised:
        local_denoising(make_network(**settings), CosineSineScheduler(), HUWindow(), routed_share=share)(batch)
    one_line(raised, "routed_share", words)


# Muon


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(make_network):
    network = make_network(depth=2)
    optimizer = MuonAndAdamW(network, 1e-3, (0.9, 0.99), 2e-3)
    adamw, muon = optimizer.param_groups
    names = {id(one): name for name, one in network.named_parameters()}
    of_muon = {names[id(one)] for one in muon["params"]}
    layers = ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
    local = {f"local.block{i}.{layer}.weight" for i in (1, 2) for layer in ("gate_up", "output")}
    assert of_muon == {f"residual.blocks.{i}.{layer}.weight" for i in range(2) for layer in layers} | local
    assert len(adamw["params"]) + len(of_muon) == len(names)
    assert (adamw["lr"], muon["lr"]) == (1e-3, 2e-3)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (4, 9)])
def test_orthogonalized_is_a_polynomial_of_the_singular_values(shape, monkeypatch):
    monkeypatch.setattr("scripts.training.muon.has_fast_bf16", lambda device: False)
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonalized(matrices)
    torch.testing.assert_close(found.double(), u @ values.diag_embed() @ v, rtol=0, atol=1e-4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("bf16, tolerance", [(True, 0.01), (False, 0.1)])
def test_steps_are_those_of_pytorchs_optimisers(make_network, batch, monkeypatch, bf16, tolerance):
    """Also after the rate was changed and the state saved and loaded; PyTorch's Muon computes in bf16 alone."""
    monkeypatch.setattr("scripts.training.muon.has_fast_bf16", lambda device: bf16)
    networks = [make_network(depth=2) for _ in range(2)]
    before = [one.detach().clone() for one in networks[0].parameters()]
    ours = MuonAndAdamW(networks[0], 1e-3, (0.9, 0.99), 2e-3)
    named = dict(networks[1].named_parameters())
    chosen = {
        name for name, one in networks[0].named_parameters() if any(one is p for p in ours.param_groups[1]["params"])
    }
    theirs = [
        torch.optim.AdamW(
            [one for name, one in named.items() if name not in chosen], 1e-3, (0.9, 0.99), weight_decay=0
        ),
        torch.optim.Muon([named[name] for name in chosen], 2e-3, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(4):
        for network in networks:
            network.zero_grad()
        terms_of(Denoising(networks[0], CosineSineScheduler(), HUWindow()), batch)
        for one, other in zip(networks[0].parameters(), networks[1].parameters()):
            other.grad = None if one.grad is None else one.grad.clone()
        if step == 2:
            state = ours.state_dict()
            ours = MuonAndAdamW(networks[0], 1.0, (0.0, 0.0), 1.0)
            ours.load_state_dict(state)
        for group in [*ours.param_groups, *(group for one in theirs for group in one.param_groups)]:
            group["lr"] *= 0.5
        for one in [ours, *theirs]:
            one.step()
    for (name, one), other, start in zip(networks[0].named_parameters(), networks[1].parameters(), before):
        if name in chosen:
            assert (one - other).norm() <= tolerance * (one - start).norm(), name
        else:
            assert torch.equal(one, other)


def test_a_copy_makes_the_same_steps_and_leaves_the_first_alone(make_network, batch):
    network = make_network(depth=2)
    ours = MuonAndAdamW(network, 1e-3, (0.9, 0.99), 2e-3)
    terms_of(Denoising(network, CosineSineScheduler(), HUWindow()), batch)
    ours.step()
    other, copied = copy.deepcopy((network, ours))
    before = [one.detach().clone() for one in network.parameters()]
    for one, twin in zip(network.parameters(), other.parameters()):
        twin.grad = one.grad
    copied.step()
    assert all(torch.equal(one, old) for one, old in zip(network.parameters(), before))
    assert not torch.equal(network.residual.blocks[0].mlp[0].weight, other.residual.blocks[0].mlp[0].weight)
    ours.step()
    assert all(torch.equal(one, twin) for one, twin in zip(network.parameters(), other.parameters()))


# as users run them


def test_the_overlays_train_and_continue(trained, tmp_path):
    """Routing, Muon, activation checkpointing and bf16 together, in one go and broken off, and a continued run is the same."""
    weights = {}
    for name, lengths in (("whole", [2]), ("broken", [1, 2])):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("local.pt", "local.json"):
            (folder / file).write_bytes((trained / "ckpt" / file).read_bytes())
        given = {name: value for name, value in TINY.items() if "local" not in name and name not in SIZES_OF_STAGE_1}
        for epochs in lengths:
            run("training", [*STAGE_2, "route_tokens", "muon"], **given, depth=3, ckpt_dir=folder, max_epochs=epochs,
                lr_decay_to=1.0, warmup=0.0, activation_checkpointing=True, bf16=True)  # fmt: skip
        weights[name] = bytes_of(folder / "model_checkpoint_epoch=2.pt")
    assert weights["whole"] == weights["broken"]
    with assert_refused("another optimizer"):
        run("training", STAGE_2, **given, depth=3, ckpt_dir=folder, max_epochs=3)


SIZES_OF_STAGE_1 = ("grid", "hidden_size", "num_heads", "patch_size", "stride", "depth")


def test_dropped_tokens_train(trained, tmp_path):
    settings = {name: value for name, value in TINY.items() if "local" not in name and name not in SIZES_OF_STAGE_1}
    run("training", [*STAGE_2, "drop_tokens"], **settings, local_ckpt=trained / "ckpt" / "local.pt", ckpt_dir=tmp_path,
        depth=1, max_epochs=1, activation_checkpointing=True, bf16=True)  # fmt: skip
    assert (tmp_path / "model.pt").is_file()


def test_routing_needs_a_stage_with_a_transformer(tmp_path):
    with assert_refused("routed_share needs a transformer of 3 or more blocks, this one has 0"):
        run("training", ["train", "route_tokens"], **TINY, ckpt_dir=tmp_path)
