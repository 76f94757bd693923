"""The evaluation as a user runs it, on tiny phantoms without a feature network."""

import json
import shutil
import subprocess
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import assert_refused, config_files, run, run_process
from evaluations import GRID, QUICK, SIZE_MM, evaluate, phantom, write
from monai.bundle import ConfigParser

from scripts.data import grid_affine
from scripts.evaluation import Comparison, SamplingSweep, common_grid, load_sets
from scripts.evaluation.figures import dot_plot, line_plot
from scripts.evaluation.headline import headline as headline_of
from scripts.hardware import device_name
from scripts.networks import save_weights

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Folders 'real' with 14 phantoms and 'generated' with 7 others, then copies of three of the real ones."""
    folder = tmp_path_factory.mktemp("planted")
    for seed in range(14):
        write(folder / "real", f"patient{seed:02d}.nii.gz", phantom(seed))
    for seed in range(7):
        write(folder / "generated", f"new{seed}.nii.gz", phantom(1000 + seed))
    noise = np.random.default_rng(0).normal(0, 15, GRID)
    write(folder / "generated", "copy_exact.nii.gz", phantom(3))
    write(folder / "generated", "copy_mirrored.nii.gz", phantom(5)[::-1])
    write(folder / "generated", "copy_noised.nii.gz", phantom(8) + noise)
    return folder


@pytest.fixture(scope="module")
def results(planted):
    return evaluate(planted / "report", real_dir=planted / "real", generated_dir=planted / "generated")


def test_planted_copies_are_found_and_new_volumes_are_not(results, planted):
    found = results["memorisation"]["generated"]
    assert found["flagged_names"] == ["copy_exact.nii.gz", "copy_mirrored.nii.gz", "copy_noised.nii.gz"]
    rows = found["flagged"]
    # patients are listed in the order of a hash of their names: the report says who is near whom
    assert [found["voxels"]["mirrored"][i] for i in rows] == [False, True, False]
    page = (planted / "report" / "report.html").read_text(encoding="utf-8")
    for copy, original in (("exact", "03.nii.gz"), ("mirrored", "05.nii.gz (mirrored)"), ("noised", "08.nii.gz")):
        assert f"<td>copy_{copy}.nii.gz</td><td>patient{original}</td>" in page
    assert found["training_flagged"] == 0 and found["num_training"] == 14


def test_copies_are_searched_among_the_training_volumes_where_they_are_given(planted, tmp_path):
    found = evaluate(
        tmp_path,
        training_dir=planted / "real",
        generated_dir=planted / "generated",
        num_phantoms=2,
        cache_dir=planted / "report" / "cache",
        metrics=["memorisation"],
    )
    assert found["memorisation"]["against"] == "training" and found["sets"]["training"]["num_volumes"] == 14
    assert len(found["memorisation"]["generated"]["flagged"]) == 3
    page = (tmp_path / "report.html").read_text()
    assert found["distances"] == {"generated": {}} and "nearest of training" in page
    assert "Distance to the phantoms" in page and "<b>reference phantoms</b>" in page  # which are not called real
    assert "real volumes" not in page and "<b>real</b>" not in page


def test_a_training_set_of_copies_gives_a_note_and_no_numbers():
    comparison = Comparison({}, 5, 0, torch.device("cpu"))
    volumes = torch.rand(4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    generated = {"coarse": volumes, "features": volumes.flatten(1)}
    training = {name: value[:1].expand(4, *value.shape[1:]) for name, value in generated.items()}
    assert "copies of others" in comparison.memorisation(generated, training, 0.5)["note"]
    assert "needs 3" in comparison.memorisation(generated, {n: v[:2] for n, v in generated.items()}, 0.5)["note"]
    assert comparison.memorisation(generated, generated, 0.5)["flagged"] == [0, 1, 2, 3]


def test_every_number_has_an_interval_and_a_floor(results):
    assert results["sets"]["real"]["num_volumes"] == 14 and results["sets"]["generated"]["num_volumes"] == 10
    for metric, estimate in results["distances"]["generated"].items():
        floor = results["floor"]["distances"][metric]
        assert floor["low"] <= floor["value"] <= floor["high"], metric  # lowest, mean and highest of some splits
        assert np.isfinite([estimate["low"], estimate["high"]]).all(), metric
        assert estimate["low"] < estimate["high"] or estimate["low"] == estimate["value"], metric
    assert results["features"]["label"] == "intensity and texture statistics"
    text = " ".join(results["warnings"])
    assert "No trained features" in text and "real (14)" in text and "FID has a bias" in text
    assert results["properties"]["real"]["MS-SSIM"]["note"].startswith("3 pairs")


def test_the_headline_says_what_was_measured_and_no_more(results):
    headline = results["headlines"]["generated"]
    assert headline.startswith("In short, generated: ") and "10 volumes only: take 50 or more." in headline
    assert "3 near copies of training volumes" in headline and "FID" not in headline  # of untrained features
    bare = {"distances": {"a": {}}, "floor": {"distances": {}}, "memorisation": {}, "properties": {}}
    bare |= {"features": {"trained": False}, "sets": {n: {"num_volumes": 60, "phantoms": False} for n in ("a", "real")}}
    assert headline_of("a", bare) == "In short, a: nothing that a sentence can say was measured."
    far, floor = ({"HU-Wasserstein (HU)": {"value": value}, "FID": {"value": value}} for value in (6.0, 3.0))
    one = {**bare, "distances": {"a": far}, "floor": {"distances": floor}, "features": {"trained": True}}
    assert headline_of("a", one) == "In short, a: HU off by 6.00 HU (floor 3.00), FID off by 6.00 (floor 3.00)."
    near = {**one, "distances": {"a": floor}, "sets": {n: {"num_volumes": 1, "phantoms": True} for n in ("a", "real")}}
    assert headline_of("a", near) == "In short, a: HU and FID as in the phantoms. 1 volume only: take 50 or more."


def test_volumes_that_are_too_alike_are_warned_of(planted, results, tmp_path):
    """Half of each volume is one and the same chest: every picture may pass, the set does not."""
    for seed in range(8):
        write(tmp_path / "alike", f"{seed}.nii.gz", 0.5 * phantom(500) + 0.5 * phantom(1000 + seed))
    shared = {"cache_dir": planted / "report" / "cache", "metrics": ["HU", "likeness", "excess"]}
    folders = {"alike": str(tmp_path / "alike"), "<b>other": str(planted / "generated")}
    found = evaluate(tmp_path / "r", real_dir=planted / "real", generated_dirs=folders, **shared)
    excess = {name: one["excess likeness"] for name, one in found["distances"].items()}
    assert excess["alike"]["low"] > 0 > excess["<b>other"]["low"]
    real, alike = (found["properties"][name]["likeness"]["value"] for name in ("real", "alike"))
    assert excess["alike"]["value"] == pytest.approx(alike - real)
    assert found["features"]["sha256"] is None and found["features"]["label"] == "no features"  # none were asked for
    assert "too alike (likeness" in found["headlines"]["alike"] and "as varied as" in found["headlines"]["<b>other"]
    warnings = [text for text in found["warnings"] if "Too little diversity" in text]
    assert len(warnings) == 1 and "of alike are" in warnings[0]
    assert not any("Too little diversity" in text for text in results["warnings"])
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    headings = [page.index(f"<h2>{title}") for title in ("Fidelity and diversity", "Distance to the real volumes")]
    assert page.index("Too little diversity") < headings[0] < headings[1]
    assert page.count('<td class="bad">') == 1 and "<b>other" not in page and "<th>&lt;b&gt;other</th>" in page


def test_a_set_against_itself_is_at_no_distance(planted, tmp_path):
    shutil.copytree(planted / "real", tmp_path / "copy")
    shared = {"cache_dir": planted / "report" / "cache", "metrics": ["FID", "MMD", "HU", "log10", "coverage"]}
    found = evaluate(tmp_path / "r", real_dir=planted / "real", generated_dir=tmp_path / "copy", **shared)
    distances = found["distances"]["generated"]
    for name in ("FID", "MMD", "HU-Wasserstein (HU)", "log10 spectrum error"):
        assert abs(distances[name]["value"]) < 1e-4, name
    assert distances["coverage"]["value"] == 1
    assert found["sets"]["real"]["sha256"] == found["sets"]["generated"]["sha256"]
    assert not list((tmp_path / "r").glob("cache/*"))  # nothing measured twice: the content is known


def test_worse_volumes_score_worse(planted, tmp_path):
    for seed in range(7):
        blurred = phantom(1000 + seed)
        for axis in (0, 1, 2, 0, 1, 2):
            blurred = (np.roll(blurred, 1, axis) + blurred + np.roll(blurred, -1, axis)) / 3
        write(tmp_path / "blurred", f"{seed}.nii.gz", blurred)
        write(tmp_path / "good", f"{seed}.nii.gz", phantom(1000 + seed))
    found = evaluate(
        tmp_path / "r",
        real_dir=planted / "real",
        generated_dirs={"good": str(tmp_path / "good"), "blurred": str(tmp_path / "blurred")},
        cache_dir=planted / "report" / "cache",
        metrics=["FID", "MMD", "KID", "HU-Wasserstein (HU)", "log10", "precision"],
    )
    for name, good in found["distances"]["good"].items():
        blurred = found["distances"]["blurred"][name]
        assert (good["low"] > blurred["high"]) if name == "precision" else (good["high"] < blurred["low"]), name


def test_the_report_needs_no_network_and_shows_the_numbers(results, planted):
    page = (planted / "report" / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert page.count("<svg") == page.count("</svg>") >= 9 and page.count("data:image/png;base64,") == 3
    assert "copy_mirrored.nii.gz" in page and "intensity and texture statistics" in page
    assert f"{results['sets']['real']['sha256']}" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_report_in_a_browser(results, planted, tmp_path):
    page = (planted / "report" / "report.html").resolve()
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    text = subprocess.run(
        [*command, "--dump-dom", f"file://{page}"], capture_output=True, text=True, timeout=120
    ).stdout
    assert text.count("<svg") >= 9 and "3 of 10 volumes flagged" in text


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(planted, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = {"num_phantoms": 5, "field_of_view_mm": 320, "num_bootstrap": 5, "bf16": False}
    settings.update(grid=[16, 16, 16], metrics=["FID", "HU", "lung", "memorisation"])
    one = evaluate(tmp_path / "one", generated_dir=planted / "generated", **settings)
    folders = {"generated_dir": planted / "generated", "output_dir": tmp_path / "two"}
    process = run_process("run", ["evaluate", "multi_gpu"], tmp_path, launcher, **folders, **settings)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.count("generated (N = 10) against phantoms") == 1  # rank 0 alone
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert one["distances"] == two["distances"] and one["properties"] == two["properties"]
    # again, with nothing left to measure
    process = run_process("run", ["evaluate", "multi_gpu"], tmp_path, launcher, **folders, **settings)
    assert process.returncode == 0, process.stderr[-2000:]


def test_a_sweep_samples_every_combination_once_and_compares_them(make_network, tmp_path):
    settings = {
        "stage": "model",
        "process": {"name": "cosine_sine", "num_train_timesteps": 1000, "noise_std": 1.0},
        "data": {"grid": [16, 16, 16], "field_of_view_mm": 320.0, "hu_window": [-1000.0, 1000.0]},
    }
    for seed, name in enumerate(("a", "b")):
        save_weights(make_network(seed), tmp_path / f"{name}.pt", settings)
    given = {
        "checkpoints": {name: str(tmp_path / f"{name}.pt") for name in ("a", "b")},
        "predictor_ratio": [1, 2],
        "num_inference_steps": [2],
        "num_samples": 2,
        "metrics": ["FID", "HU-Wasserstein (HU)"],
        "num_phantoms": 3,
        "output_dir": tmp_path / "r",
        **QUICK,
    }
    parser = ConfigParser()
    parser.read_config(config_files("evaluate", "sampling_sweep"))
    parser.update({name: str(one) if isinstance(one, Path) else one for name, one in given.items()})
    assert len(parser.get_parsed_content("generated_dirs")) == 4 and not (tmp_path / "r").exists()  # read, not sampled
    run("run", ["evaluate", "sampling_sweep"], **given)
    found = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert list(found["distances"]) == [
        f"{name}, predictor_corrector, p = {p}, uniform, guidance 0, 2 calls, seeds from 0"
        for name in "ab"
        for p in (1, 2)
    ]
    first = tmp_path / "r" / "samples" / "a_predictor_corrector_1_uniform_0_2_0_n2" / "seed_000000.nii.gz"
    facts = json.loads(first.with_name("seed_000000.json").read_text())
    of_paper = {
        "solver": "predictor_corrector",
        "predictor_ratio": 1,
        "eta": None,
        "spacing": "uniform",
        "guidance": None,
    }
    assert {name: facts[name] for name in of_paper} == of_paper
    written = first.stat().st_mtime_ns
    run("run", ["evaluate", "sampling_sweep"], **given)
    assert first.stat().st_mtime_ns == written


def test_a_sweep_passes_every_setting_of_the_sampler_that_it_is_given(tmp_path, trained):
    weights = str(trained / "ckpt" / "model.pt")
    samplers = {
        "solver": ["ddim", "heun"], "predictor_ratio": [None], "eta": [0.0, 0.5], "spacing": ["quadratic"],
        "prediction": [None, "noise"], "guidance": [0.25], "num_inference_steps": [4], "seed": [0, 7],
    }  # fmt: skip
    sweep = SamplingSweep({"a": weights}, samplers, 3, 2, str(tmp_path))
    assert len(sweep.folders) == len(set(sweep.folders.values())) == len(sweep._runs) == 16
    for values in product(*samplers.values()):
        wanted = {**dict(zip(samplers, values)), "ckpt_path": weights, "num_samples": 3, "batch_size": 2}
        assert sum(wanted.items() <= run.items() for run in sweep._runs.values()) == 1
    others = [
        SamplingSweep({"a": weights}, {**samplers, "seed": [seed]}, n, 2, str(tmp_path))
        for seed, n in ((0, 3), (5, 3), (0, 2))
    ]
    assert len({folder for one in others for folder in one.folders.values()}) == 3 * 8
    assert "a, heun, eta = 0.5, quadratic, noise alone, guidance 0.25, 4 calls, seeds from 7" in sweep.folders


def test_a_sweep_refuses_what_it_cannot_sample_before_it_starts(tmp_path, trained):
    weights = {name: str(trained / "ckpt" / f"{name}.pt") for name in ("model", "local")}
    with pytest.raises(ValueError, match="local.pt is of stage 1"):
        SamplingSweep(weights, {"num_inference_steps": [1]}, 1, 1, str(tmp_path))
    sweep = SamplingSweep({"a#1": weights["model"]}, {"num_inference_steps": [1, 2000]}, 1, 1, str(tmp_path / "b#2"))
    with pytest.raises(ValueError, match="a#1, 2000 calls: num_inference_steps must be .* got 2000"):
        sweep.run()
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_one_volume_says_which_metrics_need_more(planted, results, tmp_path, capsys):
    write(tmp_path / "one", "a.nii.gz", phantom(77))
    shared = {"cache_dir": planted / "report" / "cache", "real_dir": planted / "real"}
    found = evaluate(tmp_path / "r", generated_dir=tmp_path / "one", **shared)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "compares 1 generated volume with 14 real volumes, at 32³ voxels of 10 mm; looks for copies among the same"
    )
    assert second.startswith(
        f"measures 1 volume (14 are measured already) on {device_name('cpu')}; metrics: all, intensity"
    )
    assert second.endswith(f"-> {tmp_path / 'r'}/")
    distances = found["distances"]["generated"]
    assert distances["FID"]["value"] is None and "needs 2 volumes in each set, there is 1" in distances["FID"]["note"]
    assert "needs 7" in distances["recall"]["note"]
    assert distances["HU-Wasserstein (HU)"]["value"] > 0 and distances["HU-Wasserstein (HU)"]["low"] is None
    assert "needs 2 volumes" in found["properties"]["generated"]["MS-SSIM"]["note"]


def test_real_volumes_of_another_grid_are_brought_to_the_generated_one(planted, tmp_path):
    """CT as scanners write it: other size, spacing, orientation; smaller than the field of view is told."""
    for seed in range(2):
        affine = np.diag([-5.0, -5.0, 5.0, 1.0])
        write(tmp_path / "ct", f"{seed}.nii.gz", phantom(seed, [64] * 3)[::-1, ::-1, 8:56], affine=affine)
    write(tmp_path / "made", "0.nii.gz", phantom(0))
    found = evaluate(tmp_path / "r", real_dir=tmp_path / "ct", generated_dir=tmp_path / "made", metrics=["HU", "lung"])
    assert found["settings"]["grid"] == GRID and found["settings"]["field_of_view_mm"] == SIZE_MM
    assert any("2 volumes of real are smaller than the field of view" in warning for warning in found["warnings"])
    lungs = [found["properties"][name]["lung volume (l)"]["value"] for name in ("real", "generated")]
    assert lungs[0] == pytest.approx(lungs[1], rel=0.15)


def test_common_grid_of_another_orientation(tmp_path):
    write(tmp_path / "g", "a.nii.gz", phantom(0, [16, 20, 24]), [16, 20, 24])
    image = nib.load(tmp_path / "g" / "a.nii.gz")
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), [[2, 1], [0, -1], [1, 1]])
    )
    nib.save(turned, tmp_path / "g" / "b.nii.gz")
    sets = load_sets(None, str(tmp_path / "g"), num_phantoms=2)
    assert common_grid(sets) == {"grid": [16, 20, 24], "field_of_view_mm": SIZE_MM}


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({}, ["generated_dir is not given"]),
        ({"generated_dir": "missing"}, ["generated_dir must be a folder that exists, or null, got 'missing'"]),
        ({"generated_dir": "empty"}, ["empty holds no NIfTI"]),
        ({"generated_dir": "good", "real_dir": "good"}, ["real and generated share files"]),
        ({"generated_dir": "good", "real_dir": "empty"}, ["empty holds no NIfTI"]),
        ({"generated_dirs": {"real": "good"}}, ["real is the name of another set"]),
        ({"generated_dir": "good", "metrics": ["FVD"]}, ["FVD is unknown", "FID"]),
        ({"generated_dir": "mixed"}, ["b.nii.gz", "[16, 16, 16]", "--grid"]),
        ({"generated_dir": "good", "grid": [16, 16, 16]}, ["grid and field_of_view_mm go together"]),
        ({"generated_dir": "normalised"}, ["a.nii.gz is not a chest CT in HU"]),
        ({"generated_dir": "nan"}, ["a.nii.gz has voxels that are not numbers"]),
        ({"generated_dir": "constant"}, ["a.nii.gz is not a chest CT in HU"]),
        ({"generated_dir": "compat"}, ["scaled volume by volume", "never mixed"]),
        ({"generated_dir": "good", "feature_weights": "missing.pth"}, ["missing.pth"]),
        ({"generated_dir": "good", "output_dir": "/proc/nowhere"}, ["/proc/nowhere", "not writable"]),
        ({"generated_dir": "good", "real_section": "test"}, ["real_section must be"]),
    ],
)
def test_bad_input(tmp_path, monkeypatch, settings, facts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "good", "a.nii.gz", phantom(0))
    write(tmp_path / "mixed", "a.nii.gz", phantom(0))
    write(tmp_path / "mixed", "b.nii.gz", phantom(1, [16] * 3), [16] * 3)
    write(tmp_path / "compat", "a.nii.gz", phantom(0))
    (tmp_path / "compat" / "a.json").write_text('{"intensity": "paper_compat"}')
    for name, values in (("normalised", phantom(0) / 1000), ("nan", phantom(0) * np.nan), ("constant", 0 * phantom(0))):
        (tmp_path / name).mkdir()
        image = nib.Nifti1Image(values.astype(np.float32), grid_affine(GRID, SIZE_MM))
        nib.save(image, tmp_path / name / "a.nii.gz")
    given = {"output_dir": "r", "num_phantoms": 2, **QUICK, **settings}
    if settings.get("real_section"):
        given["real_dir"] = "mixed"
    with assert_refused(*facts):
        run("run", ["evaluate"], **given)


def test_plots_are_the_same_bytes_and_survive_any_name_and_number():
    dots = {"real": [1.0, float("nan"), 3.0], "x & $y$ <b>": []}
    drawn = [dot_plot(dots, "a < b"), line_plot({"$a_b$": (range(4), [0, 1, float("nan"), 2])}, "x", "y", log_y=True)]
    again = [dot_plot(dots, "a < b"), line_plot({"$a_b$": (range(4), [0, 1, float("nan"), 2])}, "x", "y", log_y=True)]
    assert drawn == again
    for text in drawn:
        elements = ElementTree.fromstring(text.replace("xlink:href", "href"))
        assert elements.tag == "svg" and "nan" not in text and "http" not in text and "<style" not in text
    labels = [element.text for element in ElementTree.fromstring(drawn[0].replace("xlink:href", "href")).iter("text")]
    assert "x & $y$ <b>" in labels and labels.count("N = 2") == labels.count("N = 0") == 1


def test_dots_stand_where_their_numbers_are():
    """The largest above the smallest, and the bar at the median."""
    elements = ElementTree.fromstring(dot_plot({"real": [1.0, 2.0, 9.0]}, "y").replace("xlink:href", "href"))
    dots = [element for element in elements.iter("use") if "fill-opacity: 0.55" in element.get("style", "")]
    low, middle, high = (float(one.get("y")) for one in dots)
    assert low - middle == pytest.approx((middle - high) / 7, rel=1e-3)
    bars = [one.get("d").split() for one in elements.iter("path") if "stroke-width: 1.8" in one.get("style", "")]
    assert [float(bar[2]) for bar in bars] == pytest.approx([middle], abs=1e-3)


@pytest.mark.parametrize("log_y", [True, False])
@pytest.mark.parametrize(("x", "y"), [([1.0], [2.0]), ([], []), ([1.0, 2.0], [0.0, 0.0])])
def test_plots_of_few_numbers(x, y, log_y):
    assert "nan" not in line_plot({"real": (x, y)}, "x", "y", log_y=log_y)


def test_networks_share_a_cache_and_each_is_measured_alone(planted, tmp_path, monkeypatch, capsys):
    """Astra beside the statistics: what is measured stays, the numbers carry their names, and another network is told."""

    class Stand(torch.nn.Module):
        label, trained, sha256, geometry, seen = "Astra stand-in", True, "1" * 64, [1], 0
        preprocessing = "Halved."

        def forward(self, volumes):
            Stand.seen += len(volumes)
            return torch.nn.functional.adaptive_avg_pool3d(volumes, 2).flatten(1)

    monkeypatch.setattr("scripts.metrics.features.Astra", Stand)
    settings = {"real_dir": planted / "real", "generated_dir": planted / "generated", "cache_dir": tmp_path / "cache"}
    settings["metrics"] = ["FID", "coverage", "memorisation"]
    alone = evaluate(tmp_path / "a", **settings)
    (measured,) = (tmp_path / "cache").glob("features_*")
    times = {path: path.stat().st_mtime_ns for path in measured.glob("*.pt")}
    both = evaluate(tmp_path / "b", astra=True, **settings)
    assert Stand.seen == 23 and times == {path: path.stat().st_mtime_ns for path in measured.glob("*.pt")}
    found = both["distances"]["generated"]
    assert found["FID"] == alone["distances"]["generated"]["FID"] and found["FID, Astra"]["value"] > 1
    assert both["meaning"]["FID, Astra"]["of_features"] == "astra" and both["astra"]["label"] == "Astra stand-in"
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "coverage, Astra" in page and "Astra stand-in" in page and "by Astra" in page
    assert "FID, Astra" in both["headlines"]["generated"] and "astra" in both["memorisation"]["generated"]
    capsys.readouterr()
    Stand.sha256 = "2" * 64
    evaluate(tmp_path / "c", astra=True, **settings)
    assert Stand.seen == 46 and "holds other features or grids, too (astra_" in capsys.readouterr().out


def test_scaled_folders_are_read_by_their_intensity_and_never_mixed_with_hu(planted, tmp_path):
    for seed in range(4):
        volume = phantom(seed).clip(-1000, 1000)
        for name, scaled in (("unit", (volume + 1000) / 2000), ("signed", volume / 1000)):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(scaled, grid_affine(GRID, SIZE_MM)), tmp_path / name / f"{seed}.nii.gz")
    settings = {"real_dir": tmp_path / "unit", "generated_dirs": {"other": str(tmp_path / "signed")}}
    settings |= {"cache_dir": tmp_path / "cache", "metrics": ["FID", "HU-Wasserstein (HU)"]}
    found = evaluate(tmp_path / "r", intensity={"real": "0 to 1", "other": "-1 to 1"}, **settings)
    assert all(abs(one["value"]) < 1e-2 for one in found["distances"]["other"].values())  # the same volumes
    for intensity, facts in (
        ({"real": "0 to 1"}, ["real is scaled volume by volume", "never mixed"]),
        ({"real": "0 to 1", "other": "0 to 1"}, ["signed", "values are -1 to", "not 0 to 1"]),
        ({"real": "0 to 1", "theirs": "0 to 1"}, ["intensity names theirs", "real, other"]),
        ({"real": "0 to 2", "other": "0 to 1"}, ["intensity"]),
    ):
        with assert_refused(*facts):
            evaluate(tmp_path / "r", intensity=intensity, **settings)
