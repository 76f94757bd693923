"""Every command of `prdit`: its config files, what may be given by position, and one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Command:
    """A job.

    Args:
        sentence: what it is for.
        stack: names of config files, without `.yaml`.
        positions: settings that may be given without their names, in this order, and what they are called then.
        main: settings that `--help` lists first.
        defaults: settings as typed, where they are not given.
        short: other names of settings.
        instead: settings that stand for a place.
        then: what to type next; settings stand in braces.
        made: without this file there is no next step.
        said: how good what was made is, where that is known.
    """

    sentence: str
    stack: tuple[str, ...]
    positions: Mapping[str, str]
    main: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    then: str = ""
    made: str = ""
    said: str = ""


_SAMPLING = ("num_samples", "seed", "num_inference_steps", "solver", "memory_gb", "dicom", "device")
_EVALUATE = {"real": "real_dir", "generated": "generated_dir"}

COMMANDS = {
    "demo": Command(
        "four volumes now, of the shipped weights (phantoms, not patients)",
        ("inference",),
        {"output_dir": "OUT"},
        main=_SAMPLING,
        defaults={"output_dir": "demo"},
        short={"n": "num_samples"},
        then="look at {output_dir}/view.html in a browser; for weights of your own CT   prdit prepare YOUR_CT DATA",
        said="phantoms, not patients: body, lungs, heart and spine are in place, ribs run together, small vessels are missing",
    ),
    "prepare": Command(
        "my CT (DICOM, NIfTI, MHA, NRRD) -> checked data set",
        ("preprocess",),
        {"source_dir": "SOURCE", "dataset_dir": "DATA"},
        main=("spacing", "size", "min_coverage", "min_lung_ml", "patient_from", "mapping_file", "dry_run"),
        then="look at {dataset_dir}/report.html, then   prdit train {dataset_dir} WEIGHTS",
        made="{dataset_dir}/dataset.json",
    ),
    "train": Command(
        "data set -> weights: both stages, and a finer grid with --up 2",
        ("train",),
        {"dataset_dir": "DATA", "ckpt_dir": "WEIGHTS"},
        main=(
            "max_steps", "max_epochs", "batch_size", "lr", "grid", "field_of_view_mm", "hidden_size", "depth", "flip_prob",
            "finetune_from", "num_workers", "device",
        ),  # fmt: skip
        then="prdit sample {weights} OUT",
    ),
    "sample": Command(
        "weights -> volumes in HU (NIfTI)",
        ("inference",),
        {"ckpt_path": "WEIGHTS", "output_dir": "OUT"},
        main=_SAMPLING,
        short={"n": "num_samples"},
        then="prdit evaluate {output_dir} REPORT --real DATA",
    ),
    "evaluate": Command(
        "how good are they? report.html",
        ("evaluate",),
        {"generated_dir": "VOLUMES", "output_dir": "OUT"},
        main=("real_dir", "training_dir", "metrics", "max_volumes", "feature_weights", "device"),
        short=_EVALUATE,
        instead={"generated_dir": "generated_dirs"},
        then="look at {output_dir}/report.html",
    ),
    "view": Command(
        "a page to look at volumes, in any browser, offline",
        ("view",),
        {"source_dir": "VOLUMES", "output_dir": "OUT"},
        short={"beside": "beside_dir"},
        then="open {output_dir}/view.html",
    ),
    "review": Command(
        "a blinded study with readers",
        ("review",),
        {"output_dir": "OUT"},
        main=("generated_dir", "real_dir", "readers", "num_cases", "seed", "key_file"),
        short=_EVALUATE,
    ),
    "review-score": Command(
        "what the readers said: accuracy, ROC, kappa",
        ("review_score",),
        {"answers": "ANSWERS", "key_file": "KEY", "output_dir": "OUT"},
    ),
    "export": Command("weights in half the size, to ship them", ("export",), {"ckpt_path": "WEIGHTS", "output_path": "COPY"}),
    "import": Command(
        "the authors' weights -> weights of this bundle", ("import_official",), {"official_ckpt": "FILE", "ckpt_path": "WEIGHTS"}
    ),
    "export-dicom": Command("volumes -> CT series for a PACS", ("export_dicom",), {"source_dir": "VOLUMES", "output_dir": "OUT"}),
    "wscore": Command(
        "critics against real volumes (paper A.9.3)",
        ("evaluate", "wscore"),
        {"generated_dir": "VOLUMES", "output_dir": "OUT"},
        short=_EVALUATE,
        instead={"generated_dir": "generated_dirs"},
    ),
    "tables": Command(
        "the paper's tables and figures, beside its own numbers",
        ("tables",),
        {"models_dir": "MODELS", "output_dir": "OUT"},
        main=("tables", "figures", "real_dir", "num_samples", "num_seeds", "num_inference_steps", "feature_weights", "device"),
        short={"real": "real_dir", "table": "tables", "figure": "figures"},
    ),
    "sweep": Command(
        "samplers and weights compared", ("evaluate", "sampling_sweep"), {"real_dir": "REAL", "output_dir": "OUT"}, short=_EVALUATE
    ),
}  # fmt: skip
SECOND_STAGES = {"local": "--stage 2", "autoencoder": "--with train_latent"}  # by the name of the weights of the first
SAMPLED_WITH = {  # by the name of weights that need other settings than PRDiT's
    "gan": " --num_inference_steps 1",
    "wavelet": " --with ddpm_sampler",
    "latent": " --with ddpm_sampler --num_inference_steps 300",
}
ABOUT = {
    "plan": "what a command would do: time, memory, disk. prdit plan train DATA WEIGHTS",
    "doctor": "versions, device, memory, disk: what to mend",
}


def available() -> dict[str, Command]:
    """The commands whose config files are in this bundle."""
    return {
        name: one for name, one in COMMANDS.items() if all((CONFIGS / f"{part}.yaml").is_file() for part in one.stack)
    }
