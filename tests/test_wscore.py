"""The W-score's critic against what it must do, and the config as a user runs it."""

import json
import math

import numpy as np
import pytest
import torch
from bundle_runs import assert_refused, run
from evaluations import phantom, write

from scripts.metrics.critic import (
    CriticPairs,
    critic_losses,
    critic_network,
    gradient_penalty,
    held_out,
    mixes,
    w_ratio,
)

GRID = [16, 16, 16]
TINY = {"num_steps": 6, "batch_size": 2, "critic_channels": [4, 8], "num_seeds": 2, "lr": 1.0e-3}


def test_gradient_penalty_of_a_linear_critic():
    weight = torch.full((1, 8 * 8 * 8), 3.0) / math.sqrt(512)  # gradient of length 3 everywhere
    real, fake = torch.randn(4, 1, 8, 8, 8), torch.randn(4, 1, 8, 8, 8)

    def critic(x):
        return x.flatten(1) @ weight.T

    mix = torch.rand(4)
    assert float(gradient_penalty(critic, real, fake, mix)) == pytest.approx(4, rel=1e-5)
    losses = critic_losses(critic, real, fake, mix, 10.0)
    expected = float((critic(real) - critic(fake)).mean())
    assert float(losses["distance"]) == pytest.approx(expected, rel=1e-4)
    assert float(losses["loss"]) == pytest.approx(40 - expected, rel=1e-4)


def test_critic_is_seeded_scores_volumes_apart_and_halves_the_grid():
    critic = critic_network(GRID, [4, 8, 16], 1)
    x = torch.randn(3, 1, *GRID)
    assert critic(x).shape == (3, 1)
    assert torch.allclose(critic(x)[1:2], critic(x[1:2]), atol=1e-5)
    assert torch.equal(critic(x), critic_network(GRID, [4, 8, 16], 1)(x))
    assert critic.net(x).shape == (3, 16, 2, 2, 2)
    with pytest.raises(ValueError, match="critic_channels"):
        critic_network([8, 16, 16], [4] * 4, 0)


def test_pairs_are_the_same_after_a_break_and_mix_all_generators():
    volumes = [{"image": index} for index in range(30)]
    whole = CriticPairs(volumes, range(10), [range(10, 12), range(12, 30)], 400, 0, seed=3).pairs
    assert CriticPairs(volumes, range(10), [range(10, 12), range(12, 30)], 400, 150, seed=3).pairs == whole[150:]
    assert {real for real, _ in whole} == set(range(10)) and {fake for _, fake in whole} == set(range(10, 30))
    assert 150 < sum(fake < 12 for _, fake in whole) < 250  # half, though it has 2 of 20 volumes


def test_held_out_volumes():
    hashes = [f"{i}" for i in range(20)] + ["3", "7"]
    kept = held_out(hashes, 0.2)
    assert sum(kept[:20]) == 4 and kept[20] == kept[3] and kept[21] == kept[7]
    assert held_out(list(reversed(hashes)), 0.2) == list(reversed(kept))
    assert sum(held_out(["a", "b"], 0.01)) == 1 == sum(held_out(["a", "b"], 0.99))


def test_ratios_of_known_distances():
    found = w_ratio([2.0, 8.0], [1.0, 2.0])
    assert found["ratio"] == {"mean": 3, "std": pytest.approx(math.sqrt(2)), "num_seeds": 2, "num_undefined": 0}
    assert found["log_ratio"]["mean"] == pytest.approx(-math.log(8) / 2)  # the further one is worse: below 0
    back = w_ratio([1.0, 2.0], [2.0, 8.0])["log_ratio"]
    assert back == {**found["log_ratio"], "mean": -found["log_ratio"]["mean"]}
    # one blind critic takes nothing from the others, and is counted
    assert w_ratio([2.0, 3.0, 8.0], [1.0, -0.1, 2.0])["ratio"] == {**found["ratio"], "num_undefined": 1}
    assert w_ratio([0.0], [1.0])["ratio"] == {"mean": None, "std": None, "num_seeds": 0, "num_undefined": 1}


def test_generators_that_share_a_critic():
    names = ["a", "b", "c"]
    assert mixes(names, "b", "anchor") == [("a", "b"), ("b", "c")]
    assert mixes(names, "b", "pairs") == [("a", "b"), ("a", "c"), ("b", "c")]
    assert mixes(names, "b", "joint") == [("a", "b", "c")]
    assert mixes(["a"], "a", "anchor") == mixes(["a"], "a", "pairs") == [("a",)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wscore")
    noise = np.random.default_rng(0).normal(0, 300, [12, *GRID])
    for seed in range(12):
        write(folder / "real", f"{seed}.nii.gz", phantom(seed, GRID), GRID)
        write(folder / "near", f"{seed}.nii.gz", phantom(100 + seed, GRID), GRID)
        write(folder / "far", f"{seed}.nii.gz", phantom(200 + seed, GRID) + noise[seed], GRID)
    return folder


def score(folders, output_dir, **settings):
    given = {"real_dir": folders / "real", "device": "$torch.device('cpu')", "cache_gb": 0.1, **TINY, **settings}
    given = {"real_section": "all", **given}
    given.setdefault("generated_dirs", {name: str(folders / name) for name in ("near", "far")})
    run("run", ["evaluate", "wscore"], output_dir=output_dir, **given)
    return json.loads((output_dir / "wscore.json").read_text())


def test_the_nearer_generator_has_the_smaller_score(folders, tmp_path):
    found = score(folders, tmp_path, num_steps=80, anchor="near", num_seeds=3, held_out_share=0.5)
    assert found["num_volumes"]["real"] == {"training": 6, "held_out": 6}
    (critic,) = found["per_critic"]
    near, far = (np.array(critic["distance"][name]) for name in ("near", "far"))
    assert (far > near).all() and far.mean() > 2 * abs(near.mean()), (near, far)
    if (near > 0).any():
        assert found["ratio"]["far"]["mean"] > 1 and found["log_ratio"]["near"]["far"]["mean"] > 0


def test_a_critic_per_pair_is_that_of_the_pair_alone_and_is_taken_again(folders, tmp_path, capsys):
    dirs = {name: str(folders / name) for name in ("near", "far")}
    two = score(folders, tmp_path, generated_dirs=dirs)
    critics = {path: path.stat().st_mtime_ns for path in tmp_path.glob("critic_*.pt")}
    for seed in range(12):
        write(folders / "third", f"{seed}.nii.gz", phantom(300 + seed, GRID), GRID)
    more = {"third": str(folders / "third"), "renamed": dirs["far"], "near": dirs["near"]}
    three = score(folders, tmp_path, generated_dirs=more, anchor="near")
    assert len(critics) == 2 and len(list(tmp_path.glob("critic_*.pt"))) == 4
    assert critics == {path: path.stat().st_mtime_ns for path in critics}  # neither trained nor written again
    old, new = two["per_critic"][0]["distance"], three["per_critic"][1]
    assert new["models"] == ["renamed", "near"]
    assert new["distance"] == {"renamed": old["far"], "near": old["near"]}
    assert list(three["ratio"]) == list(three["log_ratio"]) == list(more) and three["ratio"]["near"]["mean"] in (
        1,
        None,
    )
    assert set(three["log_ratio"]["third"]) == {"third", "near"}  # of the anchor's column alone
    joint = score(folders, tmp_path, generated_dirs=more, critics="joint", num_seeds=1)
    assert [one["models"] for one in joint["per_critic"]] == [list(more)] and len(joint["log_ratio"]["third"]) == 3
    every = score(folders, tmp_path, generated_dirs=more, critics="pairs", num_seeds=1)
    assert len(every["per_critic"]) == 3 and len(every["log_ratio"]["third"]) == 3
    assert "nearer to the real volumes than the column" in capsys.readouterr().out


def test_a_broken_run_continues_as_if_it_had_not_been_broken(folders, tmp_path, monkeypatch):
    whole = score(folders, tmp_path / "whole", checkpoint_interval=2)
    from scripts.evaluation.wscore import WScore

    save = WScore._save

    def break_off(self, critic, optimizer, path, step):
        save(self, critic, optimizer, path, step)
        if path.stem.endswith("seed1") and step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(WScore, "_save", break_off)
    with pytest.raises(KeyboardInterrupt):
        score(folders, tmp_path / "broken", checkpoint_interval=2)
    monkeypatch.undo()
    broken = score(folders, tmp_path / "broken", checkpoint_interval=2)
    assert broken["per_critic"] == whole["per_critic"]
    other = score(folders, tmp_path / "broken", checkpoint_interval=2, hu_window=[-1000, 400])
    assert other["per_critic"] != whole["per_critic"]  # other volumes have critics of their own


def test_bad_settings(folders, tmp_path):
    with assert_refused("anchor must be one of near, far"):
        score(folders, tmp_path, anchor="best")
    write(tmp_path / "one", "a.nii.gz", phantom(1, GRID), GRID)
    with assert_refused("generated has 1 different volume, the W-score needs 2"):
        score(folders, tmp_path / "r", generated_dirs=None, generated_dir=tmp_path / "one")
    with assert_refused("12 real volumes of the W-score lie in training_dir, too", "real_section"):
        score(folders, tmp_path / "r", training_dir=folders / "real")
    write(tmp_path / "data", "a.nii.gz", phantom(1, GRID), GRID)
    names = {"training": [{"image": "a.nii.gz"}], "validation": [{"image": "a.nii.gz"}]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(names))
    with assert_refused("real has 1 different volume,", "--real_section all"):
        score(folders, tmp_path / "r", real_dir=tmp_path / "data", real_section="validation")
