"""The sampler that weights are made for: their card says it, users replace it, and a grid of patches that moves."""

import json
import sys

import pytest
import torch
from bundle_runs import CONFIGS, TINY, assert_refused, run, sample

from scripts.data import RandRolld
from scripts.inferers import DiffusionGenerator, Item
from scripts.networks import read_card
from scripts.networks.card import Card
from scripts.schedulers import CosineSineScheduler, sampler_settings

sys.path.insert(0, str(CONFIGS.parents[1] / "benchmarks"))
import fit_steps  # noqa: E402

SHAPE = (8, 6, 4)
STUDENT = {"num_inference_steps": 4, "solver": "ddim", "predictor_ratio": 1000.0, "spacing": "uniform"}
FITTED = {"positions": [1.0, 0.6, 0.2], "predictor_ratios": [3.0, 2.0, 1.0], "memories": [1.0, 0.8, 1.2]}


def test_what_is_not_asked_for_is_what_the_weights_are_made_for():
    plain = sampler_settings({})
    assert (plain["solver"], plain["spacing"], plain["num_inference_steps"]) == ("multistep", "two_sided", 20)
    assert sampler_settings(STUDENT)["predictor_ratio"] == 1000.0
    assert {**sampler_settings(STUDENT, num_inference_steps=2)}.items() >= {**STUDENT, "num_inference_steps": 2}.items()
    other = sampler_settings(STUDENT, solver="euler")
    assert (other["predictor_ratio"], other["spacing"], other["num_inference_steps"]) == (None, "two_sided", 20)
    assert sampler_settings({"num_inference_steps": 1}, solver="euler")["num_inference_steps"] == 1  # of a GAN
    assert sampler_settings(STUDENT, eta=0.5)["predictor_ratio"] is None
    fitted = {"schedules": {"3": FITTED}}
    assert sampler_settings(fitted)["schedule"] is None
    assert sampler_settings(fitted, num_inference_steps=3)["schedule"] == FITTED
    assert sampler_settings(fitted, num_inference_steps=3, spacing="uniform")["schedule"] is None


def test_the_shipped_weights_have_schedules_for_few_calls():
    """Of as many steps as calls; other numbers of calls, and a spacing of the user's, take the usual steps."""
    made_for = read_card(CONFIGS.parent / "models" / "model.pt").sampling
    for calls in (6, 8, 10):
        schedule = sampler_settings(made_for, num_inference_steps=calls)["schedule"]
        assert {name: len(numbers) for name, numbers in schedule.items()} == dict.fromkeys(FITTED, calls)
        assert sampler_settings(made_for, num_inference_steps=calls, spacing="uniform")["schedule"] is None
    assert sampler_settings(made_for)["num_inference_steps"] == 20
    assert sampler_settings(made_for)["schedule"] is None


def sampled(generator, make_volume):
    """What a solver makes of a network that predicts something of its input."""
    generator.set_timesteps(3)
    x = make_volume(1, 1, 4, 4, 4)
    generator.generator = torch.Generator().manual_seed(0)
    for t in generator.timesteps:
        x, _ = generator.step(torch.cat([x.sin(), x.cos()], 1), t, x)
    return x


def test_a_schedule_of_the_usual_numbers_is_the_usual_sampler(make_volume):
    usual = sampled(CosineSineScheduler(solver="multistep", predictor_ratio=2.0), make_volume)
    same = {"positions": [1.0, 2 / 3, 1 / 3], "predictor_ratios": [2.0] * 3, "memories": [1.0] * 3}
    assert torch.equal(sampled(CosineSineScheduler(solver="multistep", schedule=same), make_volume), usual)
    for name, value in {
        "positions": [1.0, 0.6, 0.3],
        "predictor_ratios": [2.0, 1.5, 2.0],
        "memories": [1.0, 0.5, 1.0],
    }.items():
        other = sampled(CosineSineScheduler(solver="multistep", schedule={**same, name: value}), make_volume)
        assert not torch.allclose(other, usual, atol=1e-3), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "euler", "schedule": FITTED}, "for the solver multistep"),
        ({"solver": "multistep", "eta": 0.5, "schedule": FITTED}, "leave predictor_ratio and eta out"),
        ({"solver": "multistep", "schedule": {**FITTED, "positions": [1.0, 0.5]}}, "one number for each step"),
        ({"solver": "multistep", "schedule": {**FITTED, "positions": [1.0, 0.2, 0.5]}}, "must fall"),
        ({"solver": "multistep", "schedule": {**FITTED, "predictor_ratios": [3, 0.5, 1]}}, "1 to 100"),
        ({"solver": "multistep", "schedule": {**FITTED, "memories": [1, 1, 1e300]}}, "-100 to 100"),
        ({"solver": "multistep", "schedule": {**FITTED, "memories": [1, 1, float("nan")]}}, "-100 to 100"),
        ({"solver": "multistep", "schedule": {"positions": [1]}}, "predictor_ratios"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings, words, one_line):
    with pytest.raises(ValueError) as raised:
        CosineSineScheduler(**settings)
    one_line(raised, words)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"schedules": {"03": FITTED}}, "such as '8', got '03'"),
        ({"schedules": {" 3 ": FITTED}}, "such as '8', got ' 3 '"),
        ({"schedules": {"three": FITTED}}, "such as '8', got 'three'"),
        ({"schedules": {"0": FITTED}}, "1 to 1000, a whole number, got 0"),
        ({"schedules": {"4": FITTED}}, "3 steps alone"),
        ({"schedules": [FITTED]}, "by the number of network calls"),
        ({"schedules": {"3": None}}, "by the number of network calls"),
        ({"schedules": {"3": {**FITTED, "memories": 1}}}, "memories of a schedule must be a list of numbers"),
        ({"schedules": {"3": {**FITTED, "memories": ["a", 1, 1]}}}, "must be a list of numbers"),
        ({"schedules": {"3": {**FITTED, "memories": [True, 1, 1]}}}, "must be a list of numbers"),
        ({"schedules": {"3": {**FITTED, "memories": [1, 1, 10**400]}}}, "-100 to 100"),
        ({"num_inference_steps": "6"}, "a whole number, got '6'"),
        ({"num_inference_steps": 6.7}, "a whole number, got 6.7"),
        ({"num_inference_steps": True}, "a whole number, got True"),
        ({**STUDENT, "schedules": {"3": FITTED}}, "for the solver multistep"),
    ],
)
def test_cards_with_a_sampler_that_cannot_be_are_refused(sampling, words):
    with pytest.raises(ValueError, match=words) as raised:
        Card(sha256="", network={"kind": "prdit"}, sampling=sampling)
    assert len(raised.value.errors()) == 1


def test_steps_are_fitted_to_no_weights_of_another_solver(tmp_path, one_line):
    """A student's JSON stays readable: it is not given steps that its solver does not take."""
    shipped = CONFIGS.parent / "models" / "model.pt"
    (tmp_path / "student.pt").symlink_to(shipped)
    card = json.loads(shipped.with_suffix(".json").read_text())
    three = {"3": FITTED}
    (tmp_path / "student.json").write_text(json.dumps({**card, "sampling": STUDENT}))
    with pytest.raises(ValueError) as raised:
        fit_steps.with_schedules(tmp_path / "student.pt", three)
    one_line(raised, "student.pt takes no fitted steps", "for the solver multistep")
    (tmp_path / "student.json").write_text(
        json.dumps({**card, "sampling": {"random_offset": True, "schedules": three}})
    )
    written = fit_steps.with_schedules(tmp_path / "student.pt", {"2": fit_steps.schedule_of(fit_steps.START, 2)})
    assert written["sampling"]["random_offset"] and set(written["sampling"]["schedules"]) == {"2", "3"}


def test_a_schedule_has_its_number_of_steps(one_line):
    with pytest.raises(ValueError) as raised:
        CosineSineScheduler(solver="multistep", schedule=FITTED).set_timesteps(4)
    one_line(raised, "3 steps alone", 4)


# the grid of patches


def test_volumes_are_rolled_by_up_to_half_a_stride(make_volume):
    volume, roll, seen = make_volume(1, 8, 6, 4), RandRolld("image", 4), set()
    roll.set_random_state(0)
    for _ in range(200):
        rolled = roll({"image": volume})["image"]
        (offset,) = [
            (i, j, k) for i in range(-2, 2) for j in range(-2, 2) for k in range(-2, 2)
            if torch.equal(rolled, volume.roll((i, j, k), (1, 2, 3)))
        ]  # fmt: skip
        seen.add(offset)
    assert [{offset[axis] for offset in seen} for axis in range(3)] == [{-2, -1, 0, 1}] * 3


def test_a_volume_depends_on_its_seed_alone_at_any_batch_and_offset(make_network):
    network = make_network(depth=2, stride=2)

    def volumes(*seeds, **settings):
        generator = DiffusionGenerator(network, CosineSineScheduler(), 4, SHAPE, **settings)
        return generator.sample([Item(seed) for seed in seeds])

    together = volumes(3, 4, 5, random_offset=True)
    for i, seed in enumerate((3, 4, 5)):
        torch.testing.assert_close(volumes(seed, random_offset=True)[0], together[i], rtol=0, atol=0.01)
    assert not torch.allclose(volumes(3), together[:1], atol=10)


class Voxelwise(torch.nn.Linear):
    """Predicts from each voxel alone, so that it does not matter where patches are cut."""

    def __init__(self):
        super().__init__(1, 1)
        self.seen = []

    def strides(self):
        return [4]

    def forward(self, x, timesteps):
        self.seen.append(x)
        return torch.cat([x, 0.5 * x], 1)


def test_the_network_sees_what_is_rolled_and_the_step_what_is_rolled_back(monkeypatch):
    network = Voxelwise()
    generator = DiffusionGenerator(network, CosineSineScheduler(predictor_ratio=1.0), 3, SHAPE, random_offset=True)
    result, moved = generator.sample([Item(1)]), network.seen
    draw, network.seen = generator._offsets, []
    offsets = draw([torch.Generator().manual_seed(1)], "cpu")[0]
    monkeypatch.setattr(generator, "_offsets", lambda *given: draw(*given) and [])  # the same noise, and no offset
    torch.testing.assert_close(generator.sample([Item(1)]), result)
    for one, other, offset in zip(network.seen, moved, offsets):
        torch.testing.assert_close(one.roll(offset, (2, 3, 4)), other)
    assert len(set(map(tuple, offsets))) == 3


def test_weights_are_sampled_as_they_were_trained(trained, tmp_path, capsys):
    """An overlay puts the moving grid onto the card, and what draws volumes follows it unless it is told otherwise."""
    given = {name: value for name, value in TINY.items() if name not in ("grid", "depth") and "_size" not in name}
    given = {name: value for name, value in given.items() if "stride" not in name and name not in ("num_heads",)}
    run("training", ["train", "finetune", "random_offset"], **{**given, "local_window": 0, "num_pictures": 1},
        finetune_from=trained / "ckpt" / "model.pt", ckpt_dir=tmp_path, max_epochs=1)  # fmt: skip
    card = read_card(tmp_path / "model.pt")
    assert card.sampling == {"random_offset": True}
    settings = {"ckpt_path": tmp_path / "model.pt", "num_samples": 1, "bf16": False, "device": TINY["device"]}
    description = json.loads((tmp_path / "model.json").read_text())
    description["sampling"] |= {
        "num_inference_steps": 3,
        "schedules": {"2": {name: list[:2] for name, list in FITTED.items()}},
    }
    (tmp_path / "model.json").write_text(json.dumps(description))
    facts = {}
    for name, asked in {
        "own": {},
        "two": {"num_inference_steps": 2},
        "four": {"num_inference_steps": 4},
        "off": {"random_offset": False},
    }.items():
        sample(**settings, **asked, output_dir=tmp_path / name)
        told = capsys.readouterr()
        facts[name] = json.loads((tmp_path / name / "seed_000000.json").read_text())
        assert ("made for 3 network calls" in told.err) == (name == "four")
        assert ("with fitted steps" in told.out) == (name == "two")
    assert (facts["own"]["random_offset"], facts["own"]["num_inference_steps"], facts["own"]["schedule"]) == (
        True,
        3,
        None,
    )
    assert facts["two"]["schedule"] == {name: list[:2] for name, list in FITTED.items()}
    says = [[one[name] for name in ("spacing", "predictor_ratio", "eta")] for one in (facts["two"], facts["own"])]
    assert says == [[None] * 3, ["two_sided", 3.0, None]]  # a schedule is in the place of all three
    assert facts["off"]["random_offset"] is None
    two = {**settings, "num_inference_steps": 2}
    with assert_refused("was made with fitted steps, now it is without", "spacing"):
        sample(**two, spacing="two_sided", output_dir=tmp_path / "two")
    sample(**two, spacing="two_sided", output_dir=tmp_path / "usual")
    with assert_refused("was made without fitted steps, now it is with"):
        sample(**two, output_dir=tmp_path / "usual")
    description["sampling"] = {"solver": "guess"}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with assert_refused("model.json", "sampling", "guess"):
        sample(**settings, output_dir=tmp_path / "no")
