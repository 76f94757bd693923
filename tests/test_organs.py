"""Organs by TotalSegmentator, with a package in its place that knows the answer: its weights are no part of a test."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from bundle_runs import run
from evaluations import QUICK, phantom, write

from scripts.metrics import ORGAN_NAMES, OrganSegmenter

CLASSES = {1: "heart", 2: "liver", 3: "lung_upper_lobe_left", 4: "lung_middle_lobe_right", 5: "rib_left_1", 6: "rib_right_1",
           7: "vertebrae_T3", 8: "vertebrae_L1", 9: "sternum", 10: "aorta", 11: "trachea"}  # fmt: skip


@pytest.fixture
def totalsegmentator(monkeypatch):
    """A package of that name whose network reads the labels off the HU; the calls it got."""
    calls = []

    def segment(image, output, **settings):
        calls.append((image, output, settings))
        return type(image)(np.asarray(image.dataobj).clip(0, max(CLASSES)), image.affine)

    package = types.ModuleType("totalsegmentator")
    for name, content in (
        ("python_api", {"totalsegmentator": segment}),
        ("map_to_binary", {"class_map": {"total": CLASSES}}),
    ):
        module = types.ModuleType(f"totalsegmentator.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "totalsegmentator", package)
    monkeypatch.setattr("scripts.metrics.organs.version", lambda name: "2.18.0")
    return calls


def test_organs_are_summed_over_their_parts_and_counted(totalsegmentator):
    labels = torch.zeros(10, 10, 10)
    for code, voxels in ((1, 100), (3, 30), (4, 50), (5, 4), (6, 1), (7, 20), (8, 60)):
        labels.view(-1)[torch.arange(voxels) + 100 * (code - 1)] = code
    sizes = OrganSegmenter(torch.device("cpu"))(labels, [10.0, 10.0, 5.0])  # voxels of half a millilitre
    found = dict(zip(ORGAN_NAMES, sizes.tolist()))
    expected = {"lungs (ml)": 40, "heart (ml)": 50, "ribs (ml)": 2.5, "vertebrae (ml)": 10, "liver (ml)": 0}
    assert {name: found[name] for name in expected} == expected
    assert found["number of ribs"] == 1 and found["number of vertebrae"] == 1  # a rib of half a millilitre is none
    image, output, settings = totalsegmentator[0]
    assert image.header.get_zooms() == (10, 10, 5) and output is None
    assert settings["ml"] and settings["fast"] and settings["device"] == "cpu"


def test_totalsegmentator_is_asked_for_in_one_line(monkeypatch, totalsegmentator, one_line):
    def offline(*arguments, **settings):
        raise ConnectionError("no route")

    segmenter = OrganSegmenter(torch.device("cpu"))
    segmenter.segment = offline
    with pytest.raises(ValueError) as raised:
        segmenter(torch.zeros(4, 4, 4), [10.0] * 3)
    one_line(raised, "TotalSegmentator stopped: ConnectionError", "totalseg_download_weights -t total_fast")
    monkeypatch.setitem(sys.modules, "totalsegmentator.python_api", None)
    with pytest.raises(ValueError) as raised:
        OrganSegmenter(torch.device("cpu"))
    one_line(raised, "pip install TotalSegmentator")


def test_the_report_has_organs(totalsegmentator, tmp_path):
    for seed in range(4):
        write(tmp_path / ("real" if seed < 2 else "generated"), f"{seed}.nii.gz", phantom(seed))
    folders = {f"{name}_dir": tmp_path / name for name in ("real", "generated", "output")}
    settings = {**QUICK, "device": "$torch.device('cpu')", "metrics": ["lungs", "number of", "lung"]}
    run("run", ["evaluate", "totalsegmentator"], **folders, **settings)
    assert len(totalsegmentator) == 4  # each volume once
    results = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert results["settings"]["segmenter"] == {"TotalSegmentator": "2.18.0", "task": "total", "fast": True}
    assert set(results["properties"]["generated"]) >= {"lungs (ml)", "number of ribs", "lung volume (l)"}
    assert "By TotalSegmentator" in (tmp_path / "output" / "report.html").read_text(encoding="utf-8")
