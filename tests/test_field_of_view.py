"""Preprocessing and training fit each other: what the network sees follows from the volumes."""

import json

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import assert_refused, run, sample

from scripts.data import ct_datalist, fit_volumes, require_little_padding
from scripts.hardware import device_name
from scripts.networks import read_card

PHANTOMS = {"training": [{"image": 0}], "validation": [{"image": 1}]}


@pytest.fixture
def data_set(tmp_path):
    """Makes a prepared data set of this size whose volumes nobody reads."""

    def make(size, spacing):
        (tmp_path / "a.nii.gz").write_bytes(b"not read")
        items = [{"image": "a.nii.gz"}]
        content = {"training": items, "validation": items, "size": size, "spacing_mm": spacing}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        return tmp_path

    return make


def seen(folder, grid=None, field_of_view_mm=None, strides=(8, 4)):
    return fit_volumes(ct_datalist(folder), folder, grid, field_of_view_mm, strides)


def test_phantoms_are_seen_as_ever():
    found = fit_volumes(PHANTOMS, None, None, None, (8, 4))
    assert (found["grid"], found["field_of_view_mm"], found["padding"]) == ([64] * 3, 320.0, 0.0)
    assert found["covered_mm"] is None and found["spacing_mm"] is None
    assert fit_volumes(PHANTOMS, None, [16, 16, 8], [320, 320, 160], (8, None))["field_of_view_mm"] == [320, 320, 160]


def test_the_field_of_view_is_that_of_the_data_set(data_set):
    found = seen(data_set([256] * 3, [1.0] * 3))
    assert (found["grid"], found["field_of_view_mm"], found["padding"]) == ([64] * 3, 256.0, 0.0)
    found = seen(data_set([256] * 3, [1.0] * 3), grid=[32, 64, 64])
    assert (found["grid"], found["field_of_view_mm"]) == ([32, 64, 64], 256.0)


@pytest.mark.parametrize("strides", [(8, 4), (10, 4), (6, None), (16, 8)])
@pytest.mark.parametrize("size", [[400, 320, 320], [256, 256, 200], [512, 512, 96], [320, 320, 321]])
def test_voxels_are_cubes_and_sides_whole_strides(data_set, size, strides):
    found = seen(data_set(size, [0.8, 0.8, 1.0]), strides=strides)
    step = np.lcm.reduce([stride for stride in strides if stride])
    lengths, sides = np.broadcast_to(found["field_of_view_mm"], 3), np.array(found["grid"])
    voxels = lengths / sides
    assert not (sides % step).any() and np.ptp(voxels) < 1e-3 and 64 - step < max(sides) <= 64
    covered = np.multiply(size, [0.8, 0.8, 1.0])
    assert (np.abs(lengths - covered) <= voxels * step / 2 + 1e-3)[sides > step].all()


@pytest.mark.parametrize("strides", [(8, 4), (5, None), (1, 1)])
@pytest.mark.parametrize("spacing", [[10.0] * 3, [7.0, 7.0, 10.0]])
@pytest.mark.parametrize("size", [[32, 32, 32], [44, 40, 36], [40, 23, 40], [57, 57, 57]])
def test_no_grid_is_finer_than_the_volumes_unless_it_is_typed(data_set, size, spacing, strides, capsys):
    found = seen(data_set(size, spacing), strides=strides)
    voxels = np.broadcast_to(found["field_of_view_mm"], 3) / found["grid"]
    assert (voxels >= np.array(spacing) - 1e-3).all() and found["padding"] < 0.2
    require_little_padding(found, 0.2)
    assert capsys.readouterr().err == ""
    if size == [32] * 3 and spacing == [10.0] * 3 and strides[0] == 8:
        assert (found["grid"], found["field_of_view_mm"]) == ([32] * 3, 320.0)
    for axis in range(3):
        typed = list(size)
        typed[axis] += 1
        require_little_padding(seen(data_set(size, spacing), grid=typed), 0.2)
        assert "finer than the volumes, which have " + " x ".join(map(str, size)) in capsys.readouterr().err
    require_little_padding(seen(data_set(size, spacing), grid=size), 0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "PIR"])
def test_a_plain_folder_is_seen_by_its_headers(tmp_path, axes):
    image = nib.Nifti1Image(np.zeros((80, 64, 54), np.int16), np.diag([4.0, 4.0, 4.8, 1.0]))
    to = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    for name in "abc":
        nib.save(image.as_reoriented(to), tmp_path / f"{name}.nii.gz")
    found = seen(tmp_path)
    assert found["covered_mm"] == [320, 256, 259.2] and found["padding"] == 0
    assert np.allclose(found["spacing_mm"], [4, 4, 4.8])
    assert (found["grid"], found["field_of_view_mm"]) == ([64, 48, 48], [320.0, 240.0, 240.0])


def test_much_padding_is_refused_and_little_is_told(data_set, one_line, capsys):
    found = seen(data_set([256] * 3, [1.0] * 3), field_of_view_mm=320.0)
    with pytest.raises(ValueError) as raised:
        require_little_padding(found, 0.2)
    one_line(raised, "49%", "256 x 256 x 256", '--field_of_view_mm "[256,256,256]"', "max_padding")
    with pytest.raises(ValueError) as raised:
        require_little_padding({**found, "covered_mm": [320.0] * 3}, 0.2)  # most cover it, and some hardly at all
    one_line(raised, "differ much in size", "preprocess.yaml")
    require_little_padding(found, 0.5)
    printed = capsys.readouterr().out
    assert printed == "the network sees 320 x 320 x 320 mm in 64 x 64 x 64 voxels of 5 mm; 49% of it is padding\n"


def test_the_commands_of_the_readme_fit_each_other(prepare, tmp_path, write_nifti, chest, capsys):
    """Nobody types a grid or a field of view; stage 2 and sampling take them from the weights before."""
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    for number in range(3):
        write_nifti(np.roll(chest, number, 1), affine, f"source/{number}.nii.gz")
    status, folder, _ = prepare(tmp_path / "source", size=[32, 24, 32])
    network = {
        "hidden_size": 24, "num_heads": 4, "patch_size": 8, "stride": 8, "local_patch_size": 8, "local_stride": 8,
        "local_window": 2, "batch_size": 64, "max_epochs": 1, "num_validation_times": 1, "warmup": 0, "num_pictures": 0,
        "device": "$torch.device('cpu')", "ckpt_dir": tmp_path / "ckpt",
    }  # fmt: skip
    run("training", ["train"], **network, dataset_dir=folder)
    told = capsys.readouterr().out
    assert "trains stage 1 (the local denoiser): " in told and " million parameters, in " in told
    assert f" on {device_name('cpu')}\n" in told and "TFLOP" not in told and f"-> {tmp_path / 'ckpt'}/" in told
    assert f"{tmp_path / 'ckpt' / 'local.pt'}: val_loss" in told
    assert "1 step of 2 volumes, 1 epoch, on 2 training volumes; validates every epoch\n" in told  # all that there are
    assert status == 0 and "320 x 240 x 320 mm in 32 x 24 x 32 voxels of 10 mm; 0% of it is padding" in told
    data = read_card(tmp_path / "ckpt" / "local.pt").data
    assert (data.grid, data.field_of_view_mm) == ([32, 24, 32], [320.0, 240.0, 320.0])
    second = {**network, "local_window": 0, "depth": 1}
    run("training", ["train", "train_global"], **second, dataset_dir=folder)
    assert read_card(tmp_path / "ckpt" / "model.pt").data == data
    with assert_refused("is a folder: give the weights in it", "model.pt"):
        sample(ckpt_path=tmp_path / "ckpt", num_samples=1, num_inference_steps=1, output_dir=tmp_path / "out")
    sample(ckpt_path=tmp_path / "ckpt" / "model.pt", num_samples=1, num_inference_steps=1, output_dir=tmp_path / "out")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert all("is too short to learn much" in line or "only 2 training volumes" in line for line in warnings)
    with assert_refused("local.pt is of stage 1", "allow_stage_1"):
        sample(ckpt_path=tmp_path / "ckpt" / "local.pt", num_samples=1, output_dir=tmp_path / "noise")
    image = nib.load(tmp_path / "out" / "seed_000000.nii.gz")
    assert image.shape == (32, 24, 32) and np.allclose(image.header.get_zooms(), 10)
    # a data set that does not fit the weights
    _, small, _ = prepare(tmp_path / "source", "small", size=[20, 20, 20])
    finetuning = {**second, "ckpt_dir": tmp_path / "tuned", "finetune_from": tmp_path / "ckpt" / "model.pt"}
    for stack, settings in ((["train", "train_global"], second), (["train", "finetune"], finetuning)):
        with assert_refused("cover 200 x 200 x 200 mm", "padding"):
            run("training", stack, **settings, dataset_dir=small)
