"""Times one LIDC-like DICOM series to a NIfTI of 1 mm, 320^3 by this bundle, 256^3 by the published pipeline.

The published pipeline is dicom2nifti, then scipy's cubic zoom, crop and scaling; it needs `pip install dicom2nifti`.
Each runs in a process of its own, on one core, alternating. Prints seconds without and with the start of Python and its
imports, and peak memory (the largest resident set of one of its processes).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "bundle"), str(HERE.parent / "tests")]


def write_scan(folder: Path) -> None:
    """A phantom as 300 slices of 512 x 512, 0.7 x 0.7 x 1.1 mm, with noise, as 16-bit files without compression."""
    from dicom_series import as_dicom, write_series

    from scripts.data import chest_phantom

    coarse = chest_phantom(0, (128, 128, 75), (358.4, 358.4, 330.0))
    volume = np.rint(as_dicom(coarse)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    volume += np.random.default_rng(0).normal(0, 20, volume.shape).round()
    corner = (-179.0, -179.0, -164.5)
    write_series(folder, volume, origin=corner, spacing=(0.7, 0.7), step=(0, 0, 1.1), Manufacturer="SIEMENS")


def ours(source: Path, target: Path) -> float:
    from scripts.data import prepare_dataset

    start = time.perf_counter()
    prepare_dataset(source, target, num_workers=0)
    return time.perf_counter() - start


def published(source: Path, target: Path) -> float:
    import dicom2nifti
    import nibabel as nib
    from scipy.ndimage import zoom

    start = time.perf_counter()
    target.mkdir()
    dicom2nifti.convert_directory(str(source), str(target))
    image = nib.load(next(target.glob("*.nii.gz")))
    volume = zoom(image.get_fdata(), image.header.get_zooms(), order=3, mode="nearest")
    low = [(side - 256) // 2 for side in volume.shape]
    volume = volume[low[0] : low[0] + 256, low[1] : low[1] + 256, low[2] : low[2] + 256]
    volume = np.clip(volume, -1000, np.quantile(volume, 0.999))
    volume = (volume - volume.min()) / (volume.max() - volume.min())
    nib.save(nib.Nifti1Image(volume, np.eye(4)), target / "processed.nii.gz")
    return time.perf_counter() - start


def measure(name: str, source: Path, target: Path) -> None:
    start = time.perf_counter()
    seconds = {"ours": ours, "published": published, "write": lambda *_: write_scan(source)}[name](source, target)
    whole = time.perf_counter() - start
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "whole": whole, "gb": kilobytes / 2**20}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="used by itself")
    arguments = parser.parse_args()
    if arguments.measure:
        name, source, target = arguments.measure
        return measure(name, Path(source), Path(target))
    results: dict[str, list[dict[str, float]]] = {"ours": [], "published": []}
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: the peak memory of a process counts that of the one it was forked from
        subprocess.run(
            [sys.executable, __file__, "--measure", "write", f"{folder}/scan", folder],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for repeat in range(arguments.repeats):
            for name, found in results.items():
                command = [
                    sys.executable,
                    "-W",
                    "ignore",
                    __file__,
                    "--measure",
                    name,
                    f"{folder}/scan",
                    f"{folder}/{name}{repeat}",
                ]
                output = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                found.append(json.loads(output.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in results.items()
    }
    for name, median in medians.items():
        print(
            f"{name}: {median['seconds']:.1f} s, with imports {median['whole']:.1f} s, peak {median['gb']:.2f} GB (median of {arguments.repeats})"
        )
    print(f"published / ours: {medians['published']['seconds'] / medians['ours']['seconds']:.1f}")


if __name__ == "__main__":
    main()
