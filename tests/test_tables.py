"""The paper's tables and figures: what their rows are made from, what is said of them, and one of each from end to end."""

import io
import json
import shlex
from contextlib import redirect_stdout

import numpy as np
import pytest
from bundle_runs import assert_refused, run
from evaluations import phantom, write
from PIL import Image
from test_docs import check_run

from scripts.commands import run as prdit
from scripts.evaluation.models import PAPER, PaperSampler, Place, overlay_of, sets_of
from scripts.evaluation.sweep import SamplingSweep
from scripts.evaluation.tables import _cell, as_latex, as_markdown
from scripts.networks import build_network, save_weights
from scripts.settings.description import SETTINGS

GRID = [16, 16, 16]
TINY = {"num_samples": 3, "num_seeds": 2, "num_inference_steps": 1, "num_phantoms": 4, "num_timed": 3, "bf16": False,
        "critic_steps": 2, "critic_batch_size": 2, "critic_channels": [4, 8], "critic_seeds": 1, "critic_real_section": "all",
        "cache_gb": 0.1, "device": "$torch.device('cpu')"}  # fmt: skip


def make(models_dir, output_dir, **settings):
    run("run", ["tables"], **{**TINY, **settings}, models_dir=models_dir, output_dir=output_dir)


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """Weights of one model in a folder of training, of another in a file, and two sets of a third in folders."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("12L/model", "4L"):
        for end in ("pt", "json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / f"{name}.{end}").write_bytes((trained / "ckpt" / f"model.{end}").read_bytes())
    for number, name in enumerate(("first", "second")):
        for seed in range(3):
            write(folder / "HA-GAN" / name, f"{seed}.nii.gz", phantom(10 * number + seed, GRID), GRID)
    return folder


# what the tables are made from


def test_every_row_of_the_paper_has_numbers_and_a_way_to_be_made():
    for what in ("tables", "figures"):
        kind = SETTINGS["tables"][what].kind
        assert all(kind.allows([number]) for number in PAPER[what]) and not kind.allows([99])
        for content in PAPER[what].values():
            assert {spec["model"] for spec in content["rows"].values()} <= {*PAPER["made_by"], "real"}
    for table in PAPER["tables"].values():
        for spec in table["rows"].values():
            for name in table.get("data_sets", ["LIDC-IDRI"]):
                assert len(spec[name]) == len(table.get("columns", table["rows"]))
    ratios = [[float(text.split()[0]) for text in spec["LIDC-IDRI"]] for spec in PAPER["tables"][11]["rows"].values()]
    assert np.array_equal(ratios, -np.transpose(ratios))  # the paper's matrix is anti-symmetric


@pytest.mark.parametrize("name", PAPER["made_by"])
def test_what_makes_a_row_can_be_typed(name):
    for place in (Place("LIDC-IDRI", "D", "M"), Place("RAD-ChestCT", "E", "R")):
        printed = io.StringIO()
        with redirect_stdout(printed):
            for command in place.how_to_make(name).split(", then "):
                prdit([*shlex.split(command)[1:], "--show"])
        for line in printed.getvalue().splitlines():
            check_run(shlex.split(line.partition("monai.bundle run ")[2]))
        if name in ("4L", "8L"):
            assert ("paper_rad_128.yaml" in printed.getvalue()) == (place.name == "RAD-ChestCT")


def test_models_are_weights_or_volumes(models):
    place = Place("LIDC-IDRI", None, str(models))
    assert place.find("4L").weights == models / "4L.pt" and place.find("12L").weights == models / "12L" / "model.pt"
    assert place.find("HA-GAN").folders == [str(models / "HA-GAN" / name) for name in ("first", "second")]
    assert place.find("8L") is None and Place("LIDC-IDRI", None, None).find("4L") is None
    assert sets_of({"a": ["x", "y"], "b": ["x"]}) == {"x": "a, set 1", "y": "a, set 2"}


def test_weights_of_rivals_are_sampled_as_they_were_made(tmp_path):
    """The autoencoder beside latent.pt is no model; each has its own sampler and number of calls."""
    data = {"grid": [32] * 3, "field_of_view_mm": 320.0, "hu_window": [-1000.0, 1000.0]}
    latent = {"kind": "latent", "autoencoder": {"kind": "vq_gan", "factor": 2, "channels": 16, "num_codes": 4}, "channels": 8,
              "multipliers": [1, 2]}  # fmt: skip
    rivals = {
        "3D-LDM/latent": (latent, {"name": "ddpm_cosine", "num_train_timesteps": 300}, {**data, "encoding": "latents"}),
        "3D-LDM/autoencoder": (latent["autoencoder"], {"name": "direct"}, data),
        "HA-GAN/gan": ({"kind": "ha_gan", "side": 32, "channels": 16, "latent_size": 4}, {"name": "direct"}, data),
    }
    for name, (network, process, seen) in rivals.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_weights(build_network(**network), tmp_path / f"{name}.pt", {"process": process, "data": seen})
    place, sampler = Place("LIDC-IDRI", None, str(tmp_path)), PaperSampler(1, 1000, 1, "cpu", str(tmp_path))
    found = {name: place.find(name).weights for name in ("3D-LDM", "HA-GAN")}
    assert {name: path.stem for name, path in found.items()} == {"3D-LDM": "latent", "HA-GAN": "gan"}
    assert [sampler.steps_of(path) for path in found.values()] == [300, 1]
    assert overlay_of(found["3D-LDM"]) == "ddpm_sampler"


# what is said of them


def test_cells_are_means_and_spreads_over_seeds_in_the_papers_unit():
    assert _cell([0.002, 0.003], 1000)["text"] == "2.5 ± 0.71"
    assert _cell([0.14159], 1)["text"] == "0.1416" and _cell([None, 1.0], 1)["text"] == "undefined"


def test_both_layouts_have_our_numbers_the_papers_and_what_is_missing():
    table = PAPER["tables"][3]
    cells = {row: {} for row in table["rows"]}
    cells["PRDiT 64 ↑128"]["FID·10³ ↓"] = _cell([0.001, 0.003], 1000)
    found = {
        "LIDC-IDRI": {
            "rows": cells,
            "missing": {"x_y": "prdit train"},
            "notes": ["100 % of it"],
            "sampler": {"solver": "ddim"},
        }
    }
    text, latex = as_markdown(3, table, found), as_latex(3, table, found)
    assert "| 2 ± 1.4" in text and "12 GPUh" in text and "missing, LIDC-IDRI: x_y: prdit train" in text
    assert (
        r"PRDiT 64 $\uparrow$128 & 2 $\pm$ 1.4 & -- & -- \\" in latex and r"100 \% of it" in latex and r"x\_y" in latex
    )
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert not set(latex) & set("±·²³↑↓–")


def test_noise_alone_tests_nothing_with_skip(trained, tmp_path):
    """The JSON of the tiny weights says skip; the report of a sweep over the noise alone says what that means."""
    weights = {"A": str(trained / "ckpt" / "model.pt")}
    assert "tests nothing" in SamplingSweep(weights, {"prediction": ["noise", None]}, 1, 1, str(tmp_path)).notes[0]
    assert SamplingSweep(weights, {"prediction": [None]}, 1, 1, str(tmp_path)).notes == []


# from end to end


def test_a_table_of_weights_and_of_others_volumes(models, tmp_path, capsys):
    make(models, tmp_path, tables=[1])
    found = json.loads((tmp_path / "table_1.json").read_text())["found"]["LIDC-IDRI"]
    measured = json.loads((tmp_path / "table_1_LIDC-IDRI" / "metrics.json").read_text())["distances"]
    for row, sets in {"PRDiT-12L (ours)": 2, "HA-GAN": 2}.items():
        values = [measured[f"{row}, set {number}"]["FID"]["value"] for number in (1, 2)]
        cell = found["rows"][row]["FID·10³ ↓"]
        assert cell["values"] == pytest.approx([1000 * value for value in values]) and len(values) == sets
        assert cell["mean"] == pytest.approx(500 * sum(values)) and cell["std"] > 0
    assert found["rows"]["PRDiT-12L (ours)"]["W-score ↓"]["text"] == "1.00" and found["rows"]["WDM-3D"] == {}
    assert (
        found["rows"]["PRDiT-4L (ours)"]["FID·10³ ↓"] == found["rows"]["PRDiT-12L (ours)"]["FID·10³ ↓"]
    )  # the same weights
    assert set(found["missing"]) == {"3D-LDM", "WDM-3D", "PRDiT-8L (ours)"}
    assert "--depth 8" in found["missing"]["PRDiT-8L (ours)"]
    assert [one["num_volumes"] for one in found["sets"]["HA-GAN"]] == [3, 3]
    sampled = {path: path.stat().st_mtime_ns for path in tmp_path.glob("samples/LIDC-IDRI/*/*.nii.gz")}
    assert len(sampled) == 2 * 2 * 3
    seeds = [json.loads((path.parent / f"{path.name.split('.')[0]}.json").read_text()) for path in sampled]
    assert {one["solver"] for one in seeds} == {"predictor_corrector"} and {
        one["predictor_ratio"] for one in seeds
    } == {2.0}
    assert (
        "intensity and texture statistics" in (tmp_path / "table_1.md").read_text()
        and "| 1.41 ± 0.17" in capsys.readouterr().out
    )
    make(models, tmp_path, tables=[2 + 1, 6])
    assert {path: path.stat().st_mtime_ns for path in sampled} == sampled
    cost = json.loads((tmp_path / "table_3.json").read_text())["found"]["LIDC-IDRI"]["rows"]["PRDiT 128, scratch"]
    assert (
        "CPUh" in cost["Training cost"]["text"]
        and cost["Training cost"]["hours_in_all"] > cost["Training cost"]["hours"] > 0
    )
    timed = json.loads((tmp_path / "table_6.json").read_text())["found"]["LIDC-IDRI"]["rows"]["PRDiT-4L (ours)"]
    seconds = timed["Mean (s)"]["values"]
    assert len(seconds) == 3 and float(timed["Mean (s)"]["text"]) == pytest.approx(np.mean(seconds), abs=1e-4)
    assert float(timed["Std (s)"]["text"]) == pytest.approx(np.std(seconds, ddof=1), abs=1e-4)


def test_figures_are_rows_of_models(models, tmp_path, capsys):
    make(models, tmp_path, figures=[5, 15])
    methods, parts = (np.asarray(Image.open(tmp_path / f"figure_{number}.png")) for number in (5, 15))
    rows = 3  # HA-GAN, ours and the real volumes
    assert methods.shape[1] > 3 * 224 and abs(methods.shape[0] / rows / 280 - 1) < 0.2 and methods.std() > 10
    assert parts.shape[1] > 5 * 224 and parts.shape[0] > 4 * 224 and parts.std() > 10
    assert "missing, LIDC-IDRI: WDM-3D" in capsys.readouterr().out


def test_bad_input_is_one_line(models, tmp_path):
    with assert_refused("give --tables or --figures", "1, 2, 3"):
        make(models, tmp_path / "a")
    with assert_refused("table 8 has none of its 2 rows", "up_256", "--recipe paper_up_256"):
        make(models, tmp_path / "b", tables=[8])
    with assert_refused("figure 11 has none of its 2 rows"):
        make(None, tmp_path / "b", figures=[11])
    with assert_refused("tables must be a list, each one of 1, 2"):
        make(models, tmp_path / "c", tables=[9])
    with assert_refused("num_samples must be 2 or more, got 1"):
        make(models, tmp_path / "c", tables=[1], num_samples=1)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "table_3.md").write_text("mine")
    with assert_refused("table_3.md was not made by this command"):
        make(models, tmp_path / "d", tables=[3])
    assert not [name for name in "abc" if (tmp_path / name).exists()]
