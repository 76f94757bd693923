"""Builds the release of a commit: the bundle as a zip for `monai.bundle download`, with its sha256 beside it.

    python tools/release.py [--output_dir dist] [--commit HEAD]

The files come from the commit, not from the working tree. Added to them are what only a release has, each made from its
one source: configs/train.json and inference.json from the YAML, for `monai.bundle.load`, and models/model.safetensors
from model.pt. The same commit gives the same bytes: names are sorted, times are the commit's, nothing is compressed,
since the bytes of a compressor change with its version and weights hardly shrink.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

NAME = "prdit_ct_generation"
ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> bytes:
    """Output of git in this repository; ValueError with its first line of complaint."""
    here = ["-c", f"safe.directory={ROOT}", "-C", str(ROOT)]  # a container may own the checkout differently
    process = subprocess.run(["git", *here, *arguments], capture_output=True)
    if process.returncode:
        complaint = process.stderr.decode(errors="replace").splitlines()
        raise ValueError(complaint[0] if complaint else f"git {arguments[0]} failed")
    return process.stdout


def committed_files(commit: str) -> dict[str, bytes]:
    """Content of the files below bundle/, by their path there."""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", f"{commit}:bundle"))) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                files[member.name] = file.read()
    return files


def json_config(text: bytes) -> bytes:
    """A YAML config as JSON."""
    return (json.dumps(yaml.safe_load(text), indent=4) + "\n").encode()


def safetensors_weights(weights: bytes, settings: bytes) -> bytes:
    """model.pt as safetensors, with its JSON in the header."""
    state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    stored = {name: value for name, value in json.loads(settings).items() if name != "sha256"}  # that of model.pt
    # one entry only: safetensors writes several in any order
    return save({name: value.contiguous() for name, value in state.items()}, {"settings": json.dumps(stored)})


def in_the_release(text: bytes) -> bytes:
    """A page of the docs, whose commands call the bundle's folder by the name that it has after unpacking."""
    return re.sub(rb"(?<![\w./])bundle/", f"{NAME}/".encode(), text)


def released_files(commit: str) -> dict[str, bytes]:
    """Content of the release, by path."""
    files = committed_files(commit)
    for name in [name for name in files if name.startswith("docs/") and name.endswith(".md")]:
        files[name] = in_the_release(files[name])
    for name in ("train", "inference"):
        files[f"configs/{name}.json"] = json_config(files[f"configs/{name}.yaml"])
    files["models/model.safetensors"] = safetensors_weights(files["models/model.pt"], files["models/model.json"])
    return files


def write_zip(path: Path, files: dict[str, bytes], seconds: int) -> None:
    """Writes the files into one folder NAME; all with the same time, in seconds since 1970."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{NAME}/{name}", time.gmtime(seconds)[:6])
            info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix, whatever packs it
            archive.writestr(info, files[name])


def build(output_dir: Path, commit: str = "HEAD") -> Path:
    """Writes the zip and `<zip>.sha256`, and returns the path of the zip.

    Raises:
        ValueError: in one line, when git does not know the commit or the version has no entry in the changelog.
    """
    files = released_files(commit)
    metadata = json.loads(files["configs/metadata.json"])
    version = metadata["version"]
    if version not in metadata["changelog"]:
        raise ValueError(f"bundle/configs/metadata.json: the changelog has no entry for version {version}")
    path = output_dir / f"{NAME}_v{version}.zip"
    output_dir.mkdir(parents=True, exist_ok=True)
    write_zip(path, files, int(git("log", "-1", "--format=%ct", commit)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the release of a commit.")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist")
    parser.add_argument("--commit", default="HEAD")
    given = parser.parse_args()
    try:
        path = build(given.output_dir, given.commit)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(path, Path(f"{path}.sha256").read_text().split()[0])


if __name__ == "__main__":
    main()
