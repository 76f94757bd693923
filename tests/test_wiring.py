"""What the configs connect: laws of the objects that a stack builds, without training it."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import TINY, assert_refused, config_files, train
from monai.bundle import ConfigParser
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys

from scripts.networks import network_from_checkpoint, read_card
from scripts.training.objectives import StepNumbers

HIGH = {"refiner_hidden_size": 16, "refiner_patch_size": 6, "refiner_stride": 4, "device": "cpu"}


def parsed(stack, **settings):
    parser = ConfigParser()
    parser.read_config(config_files(*stack))
    parser.update(settings)
    parser.parse(True)
    return parser


# loggers


@pytest.mark.parametrize("stack", [["train"], ["train", "train_high_resolution"], ["train", "flow_matching"]])
def test_what_is_logged_is_the_loss_that_is_trained(stack):
    """TensorBoard's and MLflow's, without the package mlflow."""
    parser = parsed([*stack, "mlflow"])
    handlers = parser["train"]["handlers"]
    (mlflow,) = (f"train::handlers::{i}" for i, one in enumerate(handlers) if one["_target_"] == "MLFlowHandler")
    terms = {name: torch.rand(()) for name in parser.get_parsed_content("objective").terms}
    loss = float(parser.get_parsed_content("train::trainer::loss_function")(terms, None))
    assert loss == pytest.approx(sum(map(float, terms.values())), rel=1e-6)
    numbers, state = StepNumbers(), SimpleNamespace(iteration=7, output={Keys.PRED: terms})
    numbers.add(SimpleNamespace(state=state))
    ((step, of_tensorboard),) = numbers.fetch()
    of_mlflow = parser.get_parsed_content(f"{mlflow}::output_transform")({Keys.PRED: terms})
    assert step == 7
    for values in (of_mlflow, of_tensorboard):
        assert values["loss"] == pytest.approx(loss, rel=1e-6) and set(values) == {"loss", *terms}


# transforms


@pytest.fixture
def lopsided(tmp_path):
    """A volume in HU that no flip leaves as it is."""
    values = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([20.0, 20.0, 20.0, 1.0])), tmp_path / "ct.nii.gz")
    return str(tmp_path / "ct.nii.gz")


def transforms_of(stack, **settings):
    parser = parsed(stack, grid=[16, 16, 16], **settings)
    return [parser.get_parsed_content(f"{part}::preprocessing") for part in ("train", "validate")]


def seen(transform, path):
    """(1, X, Y, Z) of a volume's file after a transform."""
    return convert_to_tensor(transform({"image": path})["image"], track_meta=False)


def test_flips_swap_left_and_right_and_nothing_else(lopsided):
    training_transform, validation = transforms_of(["train"], flip_prob=1.0)
    flipped, plain = (seen(transform, lopsided) for transform in (training_transform, validation))
    assert torch.equal(flipped, plain.flip(1)) and not torch.equal(flipped, plain)
    unflipped, _ = transforms_of(["train"], flip_prob=0.0)
    assert torch.equal(seen(unflipped, lopsided), plain)


def test_an_appended_augmentation_never_reaches_validation(lopsided, tmp_path):
    noise = {"_target_": "RandGaussianNoised", "keys": "image", "prob": 1.0, "sample_std": False, "std": 100.0}
    (tmp_path / "noise.yaml").write_text(yaml.safe_dump({"+train::random_transforms": [noise]}))
    stack = ["train", str(tmp_path / "noise")]
    training_transform, validation = transforms_of(stack, flip_prob=1.0)
    expected = seen(transforms_of(["train"])[1], lopsided)
    for _ in range(2):
        assert torch.equal(seen(validation, lopsided), expected)
    augmented = seen(training_transform, lopsided)
    difference = augmented - expected.flip(1)
    assert 50 < float(difference.std()) < 200  # flipped, with noise


def test_the_window_of_hu_becomes_minus_one_to_one(lopsided):
    transform = transforms_of(["train"], hu_window=[-200.0, 600.0])[1]
    hu = torch.from_numpy(np.asanyarray(nib.load(lopsided).dataobj).astype(np.float32))
    space = parsed(["train"], hu_window=[-200.0, 600.0]).get_parsed_content("objective").space
    found = space.encode(seen(transform, lopsided)[0])
    torch.testing.assert_close(found, ((hu + 200) / 400 - 1).clamp(-1, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_cached_volumes_are_plain_tensors_that_no_augmentation_changes(flip_prob):
    settings = {"grid": [16, 16, 16], "flip_prob": flip_prob, "num_phantoms": 2, "num_validation_phantoms": 1}
    parser = parsed(["train"], **settings)
    dataset, loader = (parser.get_parsed_content(f"train::{part}") for part in ("dataset", "dataloader"))
    assert loader.dataset is dataset
    cached = [dataset._cache[i]["image"] for i in range(2)]
    before = [volume.clone() for volume in cached]
    assert {type(volume) for volume in cached} == {torch.Tensor}
    seen_once = [dataset[i]["image"] for i in range(2)]
    for volume, kept, drawn in zip(cached, before, seen_once):
        assert torch.equal(volume, kept)
        assert torch.equal(convert_to_tensor(drawn, track_meta=False), kept.flip(1) if flip_prob else kept)
    (batch,) = [one["image"] for one in loader]
    batch.zero_()
    assert all(torch.equal(volume, kept) for volume, kept in zip(cached, before))


# the number of time steps


def test_the_network_counts_the_time_steps_of_its_process(tmp_path):
    """In every stack, in the JSON, and in what is built from it."""
    tiny = {**TINY, "process::num_train_timesteps": 500}
    assert parsed(["train"], **tiny).get_parsed_content("network_def").num_train_timesteps == 500
    train(1, tmp_path, max_epochs=1, **{"process::num_train_timesteps": 500})
    path = tmp_path / "ckpt" / "local.pt"
    assert read_card(path).process["num_train_timesteps"] == 500
    assert network_from_checkpoint(path).num_train_timesteps == 500
    high = {**HIGH, "backbone_ckpt": str(path), "process::num_train_timesteps": 500}
    network = parsed(["train", "train_high_resolution"], **high).get_parsed_content("network_def")
    assert network.num_train_timesteps == network.backbone.num_train_timesteps == 500


# grids


def test_stage_1_refuses_a_grid_that_stage_2_could_not_see(tmp_path):
    with assert_refused("multiple of the stride 8", "[20, 20, 20]"):
        train(1, tmp_path, grid=[20, 20, 20], stride=8, patch_size=10)
    with assert_refused("too small for patch_size 30"):
        train(1, tmp_path, patch_size=30, stride=4, grid=[12, 12, 12])
    assert not list((tmp_path / "ckpt").glob("*.pt"))


# recipes


OF_ALL = {"warmup": 0, "flip_prob": 0, "lr_decay_to": 1, "betas": [0.9, 0.999]}


@pytest.mark.parametrize(("depth", "rate"), [(4, 9e-5), (8, 6e-5), (12, 4e-5)])
@pytest.mark.parametrize(("over", "grid", "size_mm"), [((), 128, 256), (("rad_128",), 128, 204.8), (("64",), 64, 256)])
def test_the_papers_recipe_is_the_papers(depth, rate, over, grid, size_mm):
    """A.9: 6,000 and 8,000 epochs, 16 volumes on each GPU; the rate of stage 2 follows from the depth."""
    recipe = ["paper_128", *(f"paper_{name}" for name in over)]
    first, second = parsed(["train", *recipe]), parsed(["train", "train_global", *recipe], depth=depth)
    expected = {"batch_size": 16, "local_window": 0, "max_grad_norm": 1}
    seen = {"grid": [grid] * 3, "field_of_view_mm": size_mm}  # which stage 2 takes from stage 1
    for parser, own in (
        (first, {"depth": 0, "lr": 1e-4, "parametrization": "none", **seen}),
        (second, {"depth": depth, "lr": rate}),
    ):
        same = {**OF_ALL, **expected, **own}
        assert {name: parser.get_parsed_content(name) for name in same} == same
    for parser, epochs in ((first, 6000), (second, 8000)):
        assert steps_in_epochs_of(parser, 57) == 57 * epochs


@pytest.mark.parametrize(
    ("stack", "own"),
    [
        (["paper_up_128"], {"grid": [128] * 3, "lr": 6e-5, "batch_size": 8, "max_grad_norm": 1.0, "epochs": 2000}),
        (["paper_up_128", "paper_up_256"], {"grid": [256] * 3, "lr": 6e-5, "batch_size": 8, "epochs": 2000}),
        (
            ["finetune_high_resolution", "paper_finetune_256"],
            {"grid": [256] * 3, "lr": 1e-6, "batch_size": 2, "max_grad_norm": 0.4, "epochs": 100},
        ),
    ],
)
def test_the_papers_high_resolution_is_the_papers(stack, own):
    """A.8.1, on all patches."""
    parser = parsed(["train", "train_high_resolution", *stack])
    assert steps_in_epochs_of(parser, 57) == 57 * own.pop("epochs")
    same = {**OF_ALL, **own, "refiner_window": 0}
    assert {name: parser.get_parsed_content(name) for name in same} == same
    if "paper_up_128" in stack:
        refiner = {
            "refiner_parametrization": "none",
            "refiner_patch_size": 12,
            "refiner_stride": 8,
            "freeze_backbone": True,
        }
        assert {name: parser.get_parsed_content(name) for name in refiner} == refiner


def steps_in_epochs_of(parser, batches):
    """Steps that a recipe trains on a loader of so many batches."""
    steps = {**parser["max_steps"], "batches": batches}
    parser["max_steps"] = steps
    parser.parse(True)
    return parser.get_parsed_content("max_steps")
