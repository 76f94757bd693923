"""Every setting of every config file: what it may be, its unit and what it does.

Defaults stand in the config files alone, since overlays change them. `check_settings` reads this table, and so does
`--help`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .choices import ENCODINGS, LARGEST_IN_SCHEDULE, PROCESSES, SOLVERS, SPACINGS, TRAINING_TIMES, WRITERS
from .kinds import (
    COMPONENT,
    DEVICE,
    FILE,
    FILE_OR_HUB,
    FOLDER,
    INPUT,
    INPUT_FILE,
    INPUT_FOLDER,
    INPUT_WEIGHTS,
    INPUTS,
    NAME,
    NEW_WEIGHTS,
    READERS,
    SWITCH,
    TEXT,
    WINDOW,
    Kind,
    choice,
    components,
    lengths,
    maybe,
    named,
    number,
    only,
    several,
    sides,
    whole,
)

LARGEST_SEED = 2**63 - 1
MILLION = 1_000_000


@dataclass(frozen=True)
class Setting:
    """One setting: its kind, what it does in one sentence, its unit, the setting that is null where this is typed, and the
    ones beside which it would have no effect."""

    kind: Kind
    sentence: str
    unit: str = ""
    instead_of: str = ""
    not_beside: tuple[str, ...] = ()


_GRID = sides(1, 4096)
_FIELD_OF_VIEW = lengths(10, 2000)
_SHARE = number(0, 1)
_NO_WINDOW = Setting(only(0, "0 in this stage, where every patch sees every other"), "0: whole volumes", "patches")
_BF16 = Setting(maybe(SWITCH), "bfloat16; null: where the hardware is faster with it")
_TF32 = Setting(
    SWITCH, "float32 products of NVIDIA GPUs with 10 of 23 bits of each factor, faster; no effect on bfloat16"
)
_DEVICE = Setting(DEVICE, "where it runs; cuda:0 where there is a GPU")
_WORKERS = Setting(whole(0, 256), "processes that load data; 0: none but the main one")
_RANK = Setting(whole(0, MILLION), "of this process; multi_gpu.yaml sets it")
_WORLD_SIZE = Setting(whole(1, MILLION), "number of processes; multi_gpu.yaml sets it")
_PROCESS_GROUP = Setting(COMPONENT, "joins the processes; multi_gpu.yaml sets it")
_GUIDANCE = {
    "guidance": Setting(maybe(number(0, 100)), "weight of layer-skip guidance; 0: none; null: that of the weights"),
    "guidance_block": Setting(
        maybe(whole(0, 256)), "transformer block that guidance leaves out, from 0; null: that of the weights, or 1"
    ),
    "guidance_below": Setting(
        maybe(_SHARE), "guidance works below this position of the path, 1 is noise; null: that of the weights, or 0.5"
    ),
}
_CHUNKS = whole(0, 2**31)

_TRAIN = {
    "dataset_dir": Setting(maybe(INPUT_FOLDER), "prepared data set or folder of CT volumes; null: generated phantoms"),
    "ckpt_dir": Setting(FOLDER, "where weights, checkpoints and losses are written"),
    "log_dir": Setting(FOLDER, "where TensorBoard's files are written"),
    "device": _DEVICE,
    "seed": Setting(whole(0, 2**32 - 1), "of the first weights and of all that is drawn in training"),
    "grid": Setting(
        maybe(_GRID),
        "what the network sees, along x, y, z; null: cubic, at most 64 along a side, none finer than the data",
        "voxels",
    ),
    "field_of_view_mm": Setting(
        maybe(_FIELD_OF_VIEW), "size of what the network sees; null: what the volumes cover, or 320 for phantoms", "mm"
    ),
    "max_padding": Setting(_SHARE, "largest share of the field of view outside of the volumes"),
    "hu_window": Setting(WINDOW, "scaled to [-1, 1]; stored with the weights and reversed on output", "HU"),
    "flip_prob": Setting(_SHARE, "probability of a left-right flip; half of the hearts are then on the right"),
    "num_phantoms": Setting(
        whole(1, MILLION), "training phantoms, where dataset_dir is null", not_beside=("dataset_dir",)
    ),
    "num_validation_phantoms": Setting(
        whole(1, MILLION), "validation phantoms, where dataset_dir is null", not_beside=("dataset_dir",)
    ),
    "cache_gb": Setting(number(0, 100_000), "host memory for cached volumes, per process", "GB"),
    "depth": Setting(whole(0, 256), "transformer blocks; 0: stage 1 alone"),
    "hidden_size": Setting(whole(1, 65_536), "width of the transformer and of the time features"),
    "num_heads": Setting(whole(1, 1024), "attention heads"),
    "patch_size": Setting(whole(1, 256), "side of the transformer's patches", "voxels"),
    "stride": Setting(whole(1, 256), "distance of the transformer's patches", "voxels"),
    "local_patch_size": Setting(maybe(whole(1, 256)), "of the local denoiser; null: patch_size", "voxels"),
    "local_stride": Setting(maybe(whole(1, 256)), "of the local denoiser; null: stride", "voxels"),
    "norm": Setting(choice("layer", "rms"), "LayerNorm (PRDiT) or RMSNorm (TF-PRDiT)"),
    "parametrization": Setting(choice("none", "skip"), "none is the paper's; skip predicts what is missing from x_t"),
    "chunk_tokens": Setting(_CHUNKS, "patches of the local denoiser at a time, to save memory; 0: all"),
    "attention": Setting(choice("auto", "sdpa", "xformers"), "kernel of the attention; auto: the fastest there is"),
    "activation_checkpointing": Setting(SWITCH, "computes activations again in the backward pass, to save memory"),
    "stage": Setting(NAME, "name of the weights' file; the overlays set it"),
    "encoding": Setting(choice(*ENCODINGS), "what the network sees of a volume; the overlays set it"),
    "trains": Setting(TEXT, "what the opening line says is trained; the overlays set it"),
    "max_steps": Setting(
        whole(1, 1000 * MILLION), "of the optimiser in all, to the end of an epoch", "steps", not_beside=("max_epochs",)
    ),
    "max_epochs": Setting(
        maybe(whole(1, 100 * MILLION)), "in all, instead of max_steps; null: as max_steps says", "epochs"
    ),
    "epoch_length": Setting(maybe(whole(1, 100 * MILLION)), "of an epoch; null: once over the data", "steps"),
    "batch_size": Setting(whole(1, 65_536), "per process and step", "volumes"),
    "local_window": Setting(
        whole(0, 1024), "stage 1 trains on this many patches cubed per volume and step; 0: whole volumes", "patches"
    ),
    "lr": Setting(number(above=0), "learning rate after the warm-up"),
    "betas": Setting(
        several(number(0, below=1), 2, 2, "two numbers from 0 to less than 1, such as [0.9,0.999]"), "of AdamW"
    ),
    "warmup": Setting(_SHARE, "share of the steps over which the learning rate rises from 0"),
    "lr_decay_to": Setting(_SHARE, "share of lr at the end; 1: constant, as in the paper"),
    "max_grad_norm": Setting(number(above=0), "longer gradients are shortened to it; 1.0e+9: never"),
    "max_bad_steps": Setting(whole(1, MILLION), "steps in a row without a finite loss that stop the run", "steps"),
    "ema_decay": Setting(number(above=0, below=1), "of the average of the weights, per step"),
    "process_name": Setting(choice(*PROCESSES), "the diffusion process"),
    "noise_std": Setting(number(above=0, most=100), "standard deviation of the noise; the authors' first code has 0.5"),
    "training_times": Setting(choice(*TRAINING_TIMES), "how times are drawn"),
    "time_power": Setting(number(above=0, most=100), "with uniform times: more than 1 prefers little noise"),
    "bf16": _BF16,
    "tf32": _TF32,
    "compile": Setting(SWITCH, "torch.compile"),
    "num_workers": _WORKERS,
    "val_interval": Setting(maybe(whole(1, MILLION)), "between validations; null: eight of them in the run", "epochs"),
    "num_validation_times": Setting(whole(1, 1000), "times at which each validation volume is denoised"),
    "num_pictures": Setting(whole(0, 64), "samples in the picture after each validation; 0: no pictures"),
    "dry_run": Setting(SWITCH, "tells what would be trained, in which time, and what it needs, and writes nothing"),
    "keep_last": Setting(SWITCH, "keeps the weights of the last validation, not of the best"),
    "keep_checkpoints": Setting(whole(1, MILLION), "newest checkpoints that are kept"),
    "checkpoint_interval": Setting(
        maybe(whole(1, MILLION)),
        "between checkpoints; null: 1, in runs of 100 epochs and more 50 to 100 of them",
        "epochs",
    ),
    "process_group": _PROCESS_GROUP,
    "rank": _RANK,
    "sampler": Setting(COMPONENT, "of training volumes; multi_gpu.yaml sets it"),
    "validation_sampler": Setting(COMPONENT, "of validation volumes; multi_gpu.yaml sets it"),
    "tracker": Setting(COMPONENT, "asks whether MLflow's server is there; mlflow.yaml sets it"),
}

_SAMPLE = {
    "ckpt_path": Setting(INPUT_WEIGHTS, "weights (.pt) to sample, with their JSON beside them"),
    "output_dir": Setting(FOLDER, "where the volumes are written"),
    "writers": Setting(components(*WRITERS), "what is written; everything else is made of the NIfTI"),
    "dicom": Setting(SWITCH, "writes a DICOM series of each volume too, also of those that are there already"),
    "num_samples": Setting(whole(1, 10 * MILLION), "volumes to make"),
    "seed": Setting(whole(0, LARGEST_SEED), "volume i is made from seed + i alone, whatever the batch"),
    "grid": Setting(maybe(_GRID), "of the volumes, along x, y, z; null: that of the weights", "voxels"),
    "num_inference_steps": Setting(
        maybe(whole(1, 1000)),
        "network calls per volume, of heun a multiple of 2, of rk4 of 4; null: as many as the weights are made for, or 20; "
        "the shipped weights have fitted steps for 6, 8 and 10",
    ),
    "solver": Setting(
        maybe(choice(*SOLVERS)), "how a step is taken, see docs/sampling.md; null: that of the weights, or multistep"
    ),
    "predictor_ratio": Setting(
        maybe(number(1)), "p of Algorithm 1; 1: no noise is injected; null: the solver's own", instead_of="eta"
    ),
    "eta": Setting(
        maybe(_SHARE), "instead of p; 0: no noise, 1: the noise of the ancestral sampler", instead_of="predictor_ratio"
    ),
    "spacing": Setting(
        maybe(choice(*SPACINGS)),
        "of the steps' times; null: that of the weights, or two_sided",
        not_beside=("schedule",),
    ),
    "schedule": Setting(
        maybe(
            named(
                several(number(-LARGEST_IN_SCHEDULE, LARGEST_IN_SCHEDULE)),
                "{'positions': [1, 0.5], 'predictor_ratios': [1, 1], 'memories': [1, 1]}",
            )
        ),
        "of multistep, the start, p and memory of each step; null: as fitted for the weights, if at all",
    ),
    "random_offset": Setting(
        maybe(SWITCH), "patches are cut elsewhere at each call, against seams; null: as the weights were trained"
    ),
    "prediction": Setting(maybe(choice("noise")), "null: all that the network predicts; noise: that alone (Eq. 7-8)"),
    "process_name": Setting(maybe(choice(*PROCESSES)), "null: that of the weights; another one is refused"),
    "allow_stage_1": Setting(SWITCH, "samples weights of stage 1 too, which draw noise without anatomy"),
    **_GUIDANCE,
    "memory_gb": Setting(maybe(number(above=0)), "memory to stay within: sets batch_size and chunk_tokens", "GB"),
    "batch_size": Setting(maybe(whole(1, 65_536)), "at a time; null: 1, or by memory_gb", "volumes"),
    "chunk_tokens": Setting(maybe(_CHUNKS), "patches of the local denoiser at a time; null: all, or by memory_gb"),
    "bf16": _BF16,
    "tf32": _TF32,
    "compile": Setting(maybe(SWITCH), "torch.compile; null: where it pays"),
    "attention": _TRAIN["attention"],
    "overwrite": Setting(SWITCH, "makes volumes again that are there already"),
    "dry_run": Setting(SWITCH, "tells what would be made, in which time, and what it needs, and writes nothing"),
    "device": _DEVICE,
    "process_group": _PROCESS_GROUP,
    "rank": _RANK,
    "world_size": _WORLD_SIZE,
}


def _values(name: str) -> Setting:
    """Several values of a setting of inference.yaml, each of which is sampled."""
    one = _SAMPLE[name]
    return replace(one, kind=several(one.kind), sentence=f"each in turn: {one.sentence}")


_EVALUATE = {
    "dataset_dir": Setting(maybe(INPUT_FOLDER), "another name of real_dir, as in training"),
    "real_dir": Setting(maybe(INPUT_FOLDER), "real volumes: prepared data set or folder of CT; null: phantoms"),
    "real_section": Setting(choice("training", "validation", "all"), "of a prepared data set"),
    "generated_dir": Setting(maybe(INPUT_FOLDER), "folder of generated NIfTI in HU"),
    "generated_dirs": Setting(
        maybe(named(INPUT_FOLDER, "{'ours': 'A', 'other': 'B'}")), "several folders, with a name each"
    ),
    "intensity": Setting(
        maybe(named(choice("0 to 1", "-1 to 1"), "{'other': '0 to 1', 'real': '-1 to 1'}")),
        "what volumes of a set are scaled to that are no HU, as in the published pipelines; null: all are HU",
    ),
    "training_dir": Setting(
        maybe(INPUT_FOLDER), "what the generator was trained on, to search for copies; null: real_dir"
    ),
    "output_dir": Setting(FOLDER, "where the report is written"),
    "cache_dir": Setting(FOLDER, "what was measured of each volume; share it between evaluations to save time"),
    "metrics": Setting(maybe(several(TEXT)), "beginnings of names, such as ['FID','MMD']; null: all"),
    "num_phantoms": Setting(whole(1, MILLION), "where real_dir is null", not_beside=("real_dir", "dataset_dir")),
    "max_volumes": Setting(maybe(whole(1, MILLION)), "at most so many of each set, evenly spaced"),
    "grid": Setting(maybe(_GRID), "to compare at; null: that of the generated volumes", "voxels"),
    "field_of_view_mm": Setting(maybe(_FIELD_OF_VIEW), "goes with grid", "mm"),
    "hu_window": Setting(WINDOW, "HU are clipped to it before anything is measured", "HU"),
    "feature_weights": Setting(
        maybe(FILE_OR_HUB), "Med3D's weights (resnet_50_23dataset.pth), or hub; null: statistics of texture"
    ),
    "astra": Setting(SWITCH, "features of Astra, a network of chest CT, beside them; pip install .[features]"),
    "bf16": _BF16,
    "seam_strides": Setting(several(whole(2, 256)), "distances of the patches whose seams are measured", "voxels"),
    "segmenter": Setting(COMPONENT, "of organs; totalsegmentator.yaml sets it"),
    "sampling": Setting(COMPONENT, "makes the volumes before they are looked for; sampling_sweep.yaml sets it"),
    "notes": Setting(several(TEXT, 0), "what a reader of the report has to know; sampling_sweep.yaml sets it"),
    "num_bootstrap": Setting(whole(2, MILLION), "draws of the set for the intervals"),
    "num_ms_ssim_pairs": Setting(whole(1, MILLION), "pairs of volumes whose likeness is measured"),
    "memorisation_threshold": Setting(
        number(above=0, most=100), "nearer than this share of the usual distance of real volumes is a near copy"
    ),
    "num_slices": Setting(whole(1, 1000), "volumes of each set that the report shows"),
    "seed": Setting(whole(0, 2**32 - 1), "of the bootstrap and of pairs"),
    "batch_size": Setting(whole(1, 65_536), "at a time", "volumes"),
    "num_workers": _WORKERS,
    "device": _DEVICE,
    "process_group": _PROCESS_GROUP,
    "rank": _RANK,
    "world_size": _WORLD_SIZE,
}

_PREPROCESS = {
    "source_dir": Setting(INPUTS, "folder, list of files (.txt) or datalist (.json), or several of them"),
    "dataset_dir": Setting(FOLDER, "the data set, outside source_dir; a broken run continues"),
    "spacing": Setting(maybe(lengths(0.01, 100)), "of the new voxels; null: 1, or 0.8 for RAD-ChestCT", "mm"),
    "size": Setting(maybe(sides(8, 2048)), "of the new volumes; null: as many as hold 320 mm", "voxels"),
    "center": Setting(choice("lungs", "body", "volume"), "the middle of the crop"),
    "remove_table": Setting(SWITCH, "what is outside the body becomes air"),
    "min_coverage": Setting(_SHARE, "a scan that covers less of the crop along an axis is rejected"),
    "min_lung_ml": Setting(number(least=0), "a scan with less lung is no chest and rejected; 0: all are taken", "ml"),
    "min_slices": Setting(whole(1, 100_000), "of a DICOM series", "slices"),
    "paper_compat": Setting(SWITCH, "scales each volume by its own quantile as published, which loses HU"),
    "patient_from": Setting(
        maybe(TEXT), "regular expression that finds the patient in a path; null: DICOM says, a file is one"
    ),
    "salt_file": Setting(maybe(FILE), "secret of the pseudonyms; null: DATASET_DIR.salt"),
    "mapping_file": Setting(maybe(FILE), "CSV of which volume is which patient; null: not written"),
    "remove_missing": Setting(SWITCH, "deletes the volumes of sources that are gone"),
    "num_workers": Setting(maybe(whole(0, 256)), "processes, at least one; null: one per core and 2 GiB of memory"),
    "dry_run": Setting(SWITCH, "tells what would be done, and writes nothing"),
}

_REVIEW = {
    "generated_dir": Setting(maybe(INPUT_FOLDER), "folder of generated NIfTI in HU"),
    "dataset_dir": _EVALUATE["dataset_dir"],
    "real_dir": _EVALUATE["real_dir"],
    "real_section": _EVALUATE["real_section"],
    "readers": Setting(READERS, "how many, or their names"),
    "num_cases": Setting(whole(2, 10_000), "of each kind, real and generated", "cases"),
    "trial_case": Setting(SWITCH, "one more case comes first, for practice, and does not count"),
    "title": Setting(TEXT, "of the readers' pages"),
    "seed": Setting(whole(0, 2**32 - 1), "of the draw of cases and of each reader's order"),
    "spacing": Setting(maybe(lengths(0.01, 100)), "of the cases; null: as coarse as the coarsest volume", "mm"),
    "field_of_view_mm": Setting(maybe(_FIELD_OF_VIEW), "of the cases; null: what all volumes cover", "mm"),
    "remove_table": _PREPROCESS["remove_table"],
    "hu_window": Setting(WINDOW, "HU of the cases are clipped to it", "HU"),
    "blur": Setting(number(0, 5), "standard deviation of a Gaussian that smooths all cases; 0: none", "voxels"),
    "window": Setting(WINDOW, "that the pages show at first", "HU"),
    "output_dir": Setting(FOLDER, "where each reader gets a folder; empty or new"),
    "key_file": Setting(maybe(FILE), "which case is what, for the organiser alone; null: OUTPUT_DIR.key.json"),
}

_REVIEW_SCORE = {
    "answers": Setting(INPUTS, "files that the readers' pages exported, or a folder of them"),
    "key_file": Setting(INPUT_FILE, "that review.yaml wrote"),
    "study_dir": Setting(
        maybe(INPUT_FOLDER), "review.yaml's output_dir, for pictures; null: KEY_FILE without .key.json"
    ),
    "incomplete": Setting(
        choice("refuse", "leave_out"), "what to do with readers, cases and questions without an answer"
    ),
    "num_bootstrap": Setting(whole(2, MILLION), "draws of cases and readers for the intervals"),
    "seed": Setting(whole(0, 2**32 - 1), "of the bootstrap and of permutations"),
    "output_dir": Setting(FOLDER, "where score.html and score.json are written"),
}

_TABLES = {
    "models_dir": Setting(maybe(INPUT_FOLDER), "holds 4L, 8L, 12L, HA-GAN, ...: weights, or folders of volumes"),
    "real_dir": Setting(maybe(INPUT_FOLDER), "LIDC-IDRI, as evaluate.yaml takes it; null: phantoms"),
    "rad_models_dir": Setting(maybe(INPUT_FOLDER), "models_dir of RAD-ChestCT"),
    "rad_real_dir": Setting(maybe(INPUT_FOLDER), "RAD-ChestCT; null: phantoms"),
    "tables": Setting(several(choice(1, 2, 3, 4, 5, 6, 7, 8, 11), 0), "numbers of the paper's tables"),
    "figures": Setting(several(choice(4, 5, 7, 8, 9, 10, 11, 15), 0), "numbers of the paper's figures"),
    "output_dir": Setting(FOLDER, "where tables, figures and samples are written"),
    "num_samples": Setting(whole(1, 10 * MILLION), "of each seed of sampling", "volumes"),
    "num_seeds": Setting(whole(1, 1000), "of sampling, over which FID and MMD have a mean and a spread"),
    "num_inference_steps": Setting(whole(1, 1000), "network calls per volume"),
    "sampling_batch_size": Setting(whole(1, 65_536), "at a time", "volumes"),
    "num_timed": Setting(whole(1, MILLION), "whose sampling is timed, one by one (Table 6)", "volumes"),
    **{
        name: _EVALUATE[name]
        for name in (
            "max_volumes", "grid", "field_of_view_mm", "hu_window", "feature_weights", "bf16",
            "batch_size", "num_workers", "device",
        )
    },
    "num_phantoms": Setting(whole(1, MILLION), "where real_dir or rad_real_dir is null"),
    "critic_real_section": Setting(choice("training", "validation", "all"), "real volumes of the critics"),
    "critic_steps": Setting(whole(1, 100 * MILLION), "of each critic", "steps"),
    "critic_batch_size": Setting(whole(1, 65_536), "real volumes per step, and as many generated ones", "volumes"),
    "critic_lr": _TRAIN["lr"],
    "critic_channels": Setting(several(whole(1, 65_536)), "of the critic's levels"),
    "critic_seeds": Setting(maybe(whole(1, 1000)), "null: the paper's, 3 in Table 1 and 4 in Table 11"),
    "cache_gb": _TRAIN["cache_gb"],
}  # fmt: skip

# By the name of the config file; in a stack, later files replace what earlier ones say.
SETTINGS: dict[str, dict[str, Setting]] = {
    "train": _TRAIN,
    "train_global": {"local_ckpt": Setting(FILE, "stage 1's weights"), "local_window": _NO_WINDOW},
    "finetune": {
        "finetune_from": Setting(INPUT_WEIGHTS, "weights to start from, of networks of any sizes"),
        "local_window": _NO_WINDOW,
    },
    "distill": {
        "distill_from": Setting(INPUT_WEIGHTS, "weights to start from, of networks of any sizes, but not of stage 1"),
        "num_inference_steps": Setting(whole(1, 1000), "network calls per volume that the new weights are made for"),
        "intervals": Setting(
            several(whole(1, 1000)),
            "how many the path is cut into, in equal parts of the run; one number holds for all of it",
        ),
        "anchor_weight": Setting(
            number(0, MILLION), "of the denoising of half of a batch; 0: none, and the whole batch is for consistency"
        ),
        "local_window": _NO_WINDOW,
    },
    "finetune_high_resolution": {"finetune_from": Setting(INPUT_WEIGHTS, "weights to start from")},
    "train_new_local": {
        "local_window": _NO_WINDOW,
        "residual_ckpt": Setting(INPUT_WEIGHTS, "weights of both stages, whose transformer stays"),
    },
    "train_wavelet": {
        "channels": Setting(whole(32, 4096), "features of the first level, a multiple of 32"),
        "multipliers": Setting(several(whole(1, 64)), "features of each level over those of the first"),
        "local_window": _NO_WINDOW,
    },
    "train_autoencoder": {
        "factor": Setting(whole(2, 16), "voxels along one latent: 2, 4, 8 or 16"),
        "channels": Setting(whole(16, 4096), "features at the full grid, a multiple of 16"),
        "num_codes": Setting(whole(2, MILLION), "of the codebook; about a quarter of a batch's latents"),
        "discriminator_start": Setting(whole(0, 1000 * MILLION), "before the discriminators play", "steps"),
        "perceptual": Setting(COMPONENT, "distance of two slices, such as LPIPS"),
        "local_window": _NO_WINDOW,
    },
    "train_latent": {
        "autoencoder_ckpt": Setting(FILE, "weights of the autoencoder"),
        "channels": Setting(whole(8, 4096), "features of the first level, a multiple of 8"),
        "multipliers": Setting(several(whole(1, 64)), "features of each level over those of the first"),
        "local_window": _NO_WINDOW,
    },
    "train_gan": {
        "channels": Setting(whole(16, 4096), "c, a multiple of 16; the features are 16c at 4³"),
        "latent_size": Setting(whole(1, 65_536), "numbers that a volume is drawn from"),
        "discriminator_lr": Setting(number(above=0), "learning rate of the discriminator"),
        "local_window": _NO_WINDOW,
    },
    "train_high_resolution": {
        "backbone_ckpt": Setting(INPUT_WEIGHTS, "weights of the lower grid that are refined"),
        "freeze_backbone": Setting(SWITCH, "trains the refiner alone"),
        "factor": Setting(whole(2, 16), "the new grid over that of the backbone"),
        "refiner_hidden_size": Setting(whole(1, 65_536), "of the refiner's own time embedding"),
        "refiner_patch_size": Setting(whole(1, 256), "side of the refiner's patches", "voxels"),
        "refiner_stride": Setting(whole(1, 256), "distance of the refiner's patches", "voxels"),
        "refiner_parametrization": _TRAIN["parametrization"],
        "refiner_window": Setting(whole(0, 1024), "patches cubed per volume and step; 0: whole volumes", "patches"),
        "consistency_weight": Setting(number(0, 1000), "of the low-frequency consistency; 0: Eq. 3 alone"),
    },
    "route_tokens": {
        "routed_share": Setting(number(0, below=1), "of the tokens, that pass by the inner blocks in training; 0: none")
    },
    "drop_tokens": {
        "dropped_share": Setting(number(0, below=1), "of the tokens, that no block sees in training; 0: none")
    },
    "muon": {"muon_lr": Setting(number(above=0), "learning rate of the blocks' matrices after the warm-up")},
    "mlflow": {
        "tracking_uri": Setting(TEXT, "MLflow's server or database"),
        "experiment_name": Setting(TEXT, "of MLflow"),
        "run_name": Setting(TEXT, "of MLflow; a run that was interrupted is found by it and continued"),
    },
    "inference": _SAMPLE,
    "export": {
        "ckpt_path": Setting(INPUT_WEIGHTS, "weights (.pt) of a training run"),
        "output_path": Setting(NEW_WEIGHTS, "the copy (.pt)"),
        "dtype": Setting(choice("float32", "bfloat16", "float16"), "of the copy"),
        "time_dtype": Setting(
            maybe(choice("float32", "bfloat16", "float16", "float8_e4m3fn")), "of the matrices that see the time alone"
        ),
        **_GUIDANCE,
    },
    "export_dicom": {
        "source_dir": Setting(INPUT, "NIfTI file in HU, or a folder of them"),
        "output_dir": Setting(FOLDER, "gets a folder NAME_dicom for each NAME.nii.gz"),
        "synthetic": Setting(
            maybe(SWITCH), "whether the volumes are generated, not scans; null: the JSON beside generated ones says it"
        ),
        "body_part": Setting(maybe(TEXT), "BodyPartExamined of volumes that are not ours; null: not said"),
        "overwrite": Setting(SWITCH, "replaces series of other volumes or settings"),
    },
    "import_official": {
        "official_ckpt": Setting(INPUT_FILE, "weights of the authors' code"),
        "ckpt_path": Setting(NEW_WEIGHTS, "the new weights (.pt)"),
        "grid": Setting(_GRID, "what the weights were trained for, along x, y, z", "voxels"),
        "factor": Setting(whole(2, 16), "of high-resolution weights: their grid over that of their base"),
        "field_of_view_mm": Setting(_FIELD_OF_VIEW, "what the weights were trained for", "mm"),
        "hu_window": _TRAIN["hu_window"],
        "noise_std": _TRAIN["noise_std"],
        "num_heads": Setting(maybe(whole(1, 1024)), "attention heads, for sizes that are not published"),
        "norm": Setting(maybe(choice("layer", "rms")), "null: found out by a denoising test"),
    },
    "preprocess": _PREPROCESS,
    "evaluate": _EVALUATE,
    "view": {
        "source_dir": Setting(INPUT_FOLDER, "folder of NIfTI in HU, such as generated volumes"),
        "beside_dir": Setting(
            maybe(INPUT_FOLDER), "another one, such as real volumes, to look at beside them, in step"
        ),
        "output_dir": Setting(FOLDER, "where view.html is written, outside of source_dir and beside_dir"),
        "max_volumes": Setting(whole(1, 1000), "of each folder, the first by name"),
        "hu_window": Setting(WINDOW, "volumes that were clipped to it are HU, too", "HU"),
    },
    "totalsegmentator": {"fast": Setting(SWITCH, "TotalSegmentator's network for 3 mm; false: that for 1.5 mm")},
    "wscore": {
        "anchor": Setting(maybe(TEXT), "generator that ratios are taken to; null: the first"),
        "critics": Setting(
            choice("anchor", "pairs", "joint"),
            "one per competitor and the anchor (Table 1), one per pair (Table 11), or one of all generators",
        ),
        "output_dir": Setting(FOLDER, "where wscore.json and the critics are written"),
        "num_steps": Setting(whole(1, 100 * MILLION), "of each critic", "steps"),
        "batch_size": Setting(whole(1, 65_536), "real volumes per step, and as many generated ones", "volumes"),
        "lr": _TRAIN["lr"],
        "critic_channels": Setting(several(whole(1, 65_536)), "of the critic's levels"),
        "num_seeds": Setting(whole(1, 1000), "evaluations, each with critics of its own"),
        "held_out_share": Setting(
            number(above=0, below=1), "of the volumes of each set, kept from the critics' training"
        ),
        "checkpoint_interval": Setting(whole(1, 100 * MILLION), "between checkpoints", "steps"),
        "cache_gb": _TRAIN["cache_gb"],
    },
    "tables": _TABLES,
    "review": _REVIEW,
    "review_score": _REVIEW_SCORE,
    "sampling_sweep": {
        "checkpoints": Setting(
            named(INPUT_WEIGHTS, "{'shipped': 'bundle/models/model.pt'}"), "weights to sample, by name"
        ),
        **{name: _values(name) for name in ("solver", "predictor_ratio", "eta", "spacing", "prediction", "guidance")},
        "num_inference_steps": _values("num_inference_steps"),
        "num_samples": Setting(whole(1, 10 * MILLION), "volumes of each combination, from the same seeds"),
        "sampling_seed": Setting(several(whole(0, LARGEST_SEED)), "of the first volume; several: each in turn"),
        "sampling_batch_size": Setting(whole(1, 65_536), "at a time", "volumes"),
        "allow_stage_1": _SAMPLE["allow_stage_1"],
        "samples_dir": Setting(FOLDER, "where the volumes are written"),
    },
}
