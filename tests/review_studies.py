"""Tiny reader studies, and readers who answer as a test says."""

import json

from bundle_runs import run

from scripts.data import chest_phantom, grid_affine
from scripts.output import save_volume

SIZE_MM = [320.0] * 3
READERS = ["Ana", "Ben", "Zoë"]


def write_phantoms(folder, seeds, side=16, size_mm=SIZE_MM, change=lambda hu: hu):
    """Phantoms on a grid of so many voxels, drawn at 32 and averaged as a training set is."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        hu = chest_phantom(seed, [32] * 3, SIZE_MM)
        if side == 16:
            hu = hu.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
        save_volume(change(hu), grid_affine([side] * 3, size_mm), folder / f"p{seed}_secret.nii.gz")
    return folder


def make_study(folder, name="study", **settings):
    """Runs review.yaml on the folders `real` and `generated`; returns the folder and the key."""
    given = {"real_dir": folder / "real", "generated_dir": folder / "generated", "readers": READERS, "num_cases": 3}
    run("run", ["review"], output_dir=folder / name, **{**given, **settings})
    return folder / name, json.loads((folder / f"{name}.key.json").read_text())


def answer(case, synthetic, **more):
    """An answer like the page's."""
    scores = {
        "confidence": 3,
        "realism": 3,
        "consistency": 3,
        "anatomy": 3,
        "comment": "",
        "marks": [],
        "seconds": 30.5,
    }
    return {"case": case, "verdict": "synthetic" if synthetic else "real", **scores, **more}


def write_answers(folder, key, say, **fields):
    """Writes a file for each reader; say(reader, index of the volume, whether it is synthetic, case) makes each answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for reader, cases in key["readers"].items():
        rows = [say(reader, i, key["volumes"][i]["set"] == "generated", case) for case, i in cases.items()]
        content = {"format": 1, "study": key["key_of_study"], "reader": reader, "submitted": "2026-01-02T03:04:05.000Z"}
        content |= {"cases": [answer("case_000", True), *rows]} | fields
        (folder / f"{reader}.json").write_text(json.dumps(content))
    return folder


def score(folder, key_file, output_dir, **settings):
    """Runs review_score.yaml; returns what score.json says and the page."""
    given = {"answers": folder, "key_file": key_file, "output_dir": output_dir, "num_bootstrap": 50}
    run("run", ["review_score"], **{**given, **settings})
    return json.loads((output_dir / "score.json").read_text()), (output_dir / "score.html").read_text()
