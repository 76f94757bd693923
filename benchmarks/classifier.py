"""Whether a small 3D classifier tells generated volumes from phantoms: its AUC on volumes that it was not trained on. Run by hand:

    python benchmarks/classifier.py --generated DIR          # folder of inference.yaml; some minutes for 64 volumes of 64^3

0.5 is a coin, 1 is always right. Each half of the volumes is told by a network that was trained on the other half, with as
many phantoms; the floor is the same with other phantoms in place of the generated volumes. Intervals are of volumes (95 %, bootstrap).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from monai.networks.nets import ResNet
from quality import load_generated, phantoms
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

FIRST_PHANTOM = 300_000  # of those that the classifier sees
FIRST_OF_FLOOR = 310_000
BATCH_SIZE, LR = 8, 1e-3  # the rate rises from nothing and falls to nothing
NUM_BOOTSTRAP = 1000


def scores(volumes: Tensor, labels: Tensor, steps: int, seed: int) -> Tensor:
    """What networks that have not seen a volume think of it, (N,); volumes (N, 1, X, Y, Z)."""
    found, halves = torch.empty(len(labels)), torch.arange(len(labels)) // 2 % 2  # as many of each label in both
    for half in (0, 1):
        torch.manual_seed(seed)
        network = ResNet(
            "basic",
            [1, 1, 1, 1],
            [16, 32, 64, 128],
            n_input_channels=1,
            num_classes=1,
            conv1_t_size=3,
            conv1_t_stride=2,
        )
        train(network, volumes[halves != half], labels[halves != half], steps)
        with torch.no_grad():
            found[halves == half] = torch.cat([network.eval()(one)[:, 0] for one in volumes[halves == half].split(8)])
    return found


def train(network: ResNet, volumes: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH_SIZE,))
        batch = volumes[chosen].roll(tuple(torch.randint(-4, 5, (3,)).tolist()), (2, 3, 4))
        loss = binary_cross_entropy_with_logits(network(batch)[:, 0], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


def auc(found: Tensor, labels: Tensor) -> str:
    """With its interval."""
    draws = torch.randint(len(labels), (NUM_BOOTSTRAP, len(labels)), generator=torch.Generator().manual_seed(0))
    values = [compute_roc_auc(found[one], labels[one]) for one in draws if 0 < labels[one].sum() < len(one)]
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{compute_roc_auc(found, labels):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generated = load_generated(args.generated)
    sidecar = json.loads(sorted(args.generated.glob("seed_*.json"))[0].read_text())
    sizes = len(generated), sidecar["grid"], sidecar["field_of_view_mm"]
    others = phantoms(*sizes, FIRST_PHANTOM)
    for name, ones in (("generated", generated), ("other phantoms (floor)", phantoms(*sizes, FIRST_OF_FLOOR))):
        volumes = torch.from_numpy(np.stack([ones, others], 1)).float().flatten(0, 1)[:, None] / 1000  # in turns
        labels = torch.tensor([1.0, 0.0]).repeat(len(ones))
        print(f"{len(ones)} {name}: AUC {auc(scores(volumes, labels, args.steps, args.seed), labels)}", flush=True)


if __name__ == "__main__":
    main()
