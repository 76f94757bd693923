"""What the rows of the paper's tables and figures are made from: weights or volumes below a folder, and how to get them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Mapping, NamedTuple, Optional, Sequence

import yaml

from ..errors import bundle_root
from ..networks.card import read_card
from .sweep import SamplingSweep

PAPER = yaml.safe_load(Path(__file__).with_name("paper_tables.yaml").read_text(encoding="utf-8"))
REAL = "real"  # the row of real volumes
_WEIGHTS = ("model.pt", "high_resolution.pt", "latent.pt")  # of a folder; else what else is there, but for:
_NO_MODELS = ("local", "high_resolution_finetuned", "autoencoder")
_SAMPLER = ("solver", "predictor_ratio", "eta", "spacing", "prediction", "guidance")


class Model(NamedTuple):
    """What stands for a row: weights, or the folders of its volumes, one for each seed of sampling."""

    weights: Optional[Path]
    folders: list[str]


@dataclass(frozen=True)
class Place:
    """A data set of the paper: its real volumes (None: phantoms), and the folder of what was trained on it."""

    name: str
    real_dir: Optional[str]
    models_dir: Optional[str]

    def find(self, name: str) -> Optional[Model]:
        """A model below the folder: weights, the folder of a training, or one with volumes, or with several of these."""
        if name == REAL or self.models_dir is None:
            return None
        path = Path(self.models_dir) / name
        others = [one.with_suffix(".pt") for one in sorted(path.glob("*.json")) if one.stem not in _NO_MODELS]
        for weights in (path, path.with_name(f"{path.name}.pt"), *(path / one for one in _WEIGHTS), *others):
            if weights.suffix == ".pt" and weights.is_file():
                return Model(weights, [])
        folders = [path] if any(path.glob("*.nii*")) else sorted({one.parent for one in path.glob("*/*.nii*")})
        return Model(None, [str(one) for one in folders]) if folders else None

    def found(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Model]:
        """The models of rows that are there."""
        models = {row: self.find(spec["model"]) for row, spec in rows.items()}
        return {row: model for row, model in models.items() if model is not None}

    def missing(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """What to type for the models of rows that are not there."""
        names = {row: spec["model"] for row, spec in rows.items() if spec["model"] != REAL}
        return {row: self.how_to_make(name) for row, name in names.items() if self.find(name) is None}

    def how_to_make(self, name: str) -> str:
        models = self.models_dir or "MODELS"
        text = PAPER["made_by"][name]
        facts = {"recipe": PAPER["recipes"][self.name], "size_mm": PAPER["sizes_mm"][self.name]}
        return text.format(real=self.real_dir or "DATA", models=models, **facts)


def require_some(what: str, rows: Mapping[str, Mapping[str, Any]], places: Collection[Place]) -> list[Place]:
    """The data sets for which a model of some row is there; ValueError in one line where there is none at all."""
    found = [place for place in places if place.found(rows)]
    if not found:
        place = next(iter(places))
        ours = [name for name in (spec["model"] for spec in rows.values()) if name in PAPER["made_by"]]
        raise ValueError(
            f"{what} has none of its {len(rows)} rows: {place.models_dir or 'models_dir'} holds none of "
            f"{', '.join(dict.fromkeys(spec['model'] for spec in rows.values()))}; the first is made by: "
            f"{place.how_to_make(ours[0])}"
        )
    return found


class PaperSampler:
    """The paper's sampler, for weights of all rows; those of rivals have their own.

    Args:
        num_samples: volumes of each seed.
        num_inference_steps: network calls of each.
        batch_size: of sampling.
        device: where it samples.
        output_dir: gets a folder for each model, sampler and seed, which the next run finds.
    """

    def __init__(
        self, num_samples: int, num_inference_steps: int, batch_size: int, device: Any, output_dir: str
    ) -> None:
        self.num_inference_steps = num_inference_steps
        self.settings = self.settings_of("paper_sampler")
        self.num_samples, self.batch_size, self.device, self.folder = num_samples, batch_size, device, output_dir
        self.notes: list[str] = []  # what a reader of what is made of the volumes has to know

    def settings_of(self, overlay: str) -> dict[str, Any]:
        """What an overlay of inference.yaml says of the sampler."""
        config = yaml.safe_load((Path(bundle_root()) / "configs" / f"{overlay}.yaml").read_text(encoding="utf-8"))
        given = {name: config[name] for name in _SAMPLER if name in config}
        return {**dict.fromkeys(_SAMPLER), "guidance": 0, **given, "num_inference_steps": self.num_inference_steps}

    def steps_of(self, weights: Path) -> int:
        """Network calls per volume: no more than the weights have times, and one of a GAN."""
        card = read_card(weights)
        return 1 if card.process.get("name") == "direct" else min(self.num_inference_steps, card.num_train_timesteps)

    def folders(self, place: Place, spec: Mapping[str, Any], model: Model, num_seeds: int) -> list[str]:
        """The folders of a row's volumes, one for each seed, sampled where they are missing."""
        if model.weights is None:
            return model.folders[:num_seeds]
        settings = {**self.settings_of(overlay_of(model.weights)), **spec.get("sampler", {})}
        settings["num_inference_steps"] = self.steps_of(model.weights)
        values = {name: [value] for name, value in settings.items()}
        values["seed"] = [index * self.num_samples for index in range(num_seeds)]
        name = spec["model"].removesuffix(".pt").replace("/", "_")
        sweep = SamplingSweep(
            {name: str(model.weights)}, values, self.num_samples, self.batch_size, str(Path(self.folder) / place.name),
            device=self.device, allow_stage_1=True, writers=["nifti"],
        )  # fmt: skip
        sweep.run()
        self.notes += [note for note in sweep.notes if note not in self.notes]
        return list(sweep.folders.values())


def overlay_of(weights: Path) -> str:
    """The sampler that weights were published with: of DDPM its own, of all others the paper's."""
    name = read_card(weights).process.get("name", "")
    return "ddpm_sampler" if name.startswith("ddpm") else "paper_sampler"


def sets_of(folders: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A name for each folder of the rows, once each."""
    names: dict[str, str] = {}
    for row, of_seeds in folders.items():
        for number, folder in enumerate(of_seeds, 1):
            names.setdefault(folder, row if len(of_seeds) == 1 else f"{row}, set {number}")
    return names
