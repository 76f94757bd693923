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
import tempfile
import time
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
import yaml
from safetensors.torch import save

NAME = "prdit_ct_generation"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.errors import require_writable  # noqa: E402
from scripts.files import remove_leftovers, require_own, whole_file, write_text  # noqa: E402
from scripts.machine import machine_fault  # noqa: E402


def git(*arguments: str) -> bytes:
    """Output of git in this repository; ValueError with its first line of complaint."""
    here = ["-c", f"safe.directory={ROOT}", "-C", str(ROOT)]  # a container may own the checkout differently
    try:
        process = subprocess.run(["git", *here, *arguments], capture_output=True)
    except FileNotFoundError:
        raise ValueError("git is not installed; a release is made of a commit") from None
    if process.returncode:
        complaint = process.stderr.decode(errors="replace").splitlines()
        raise ValueError(complaint[0] if complaint else f"git {arguments[0]} failed")
    return process.stdout


def committed_files(commit: str) -> dict[str, bytes]:
    """Content of the files below bundle/, by their path there; ValueError in one line for a link."""
    files = {}
    content = git("archive", "--format=tar", "--end-of-options", f"{commit}:bundle")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            if member.issym():  # the zip, and Windows, know no links
                raise ValueError(f"bundle/{member.name} is a link: commit the file itself")
            if member.isfile():
                files[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return files


def json_config(text: bytes) -> bytes:
    """A YAML config as JSON."""
    return (json.dumps(yaml.safe_load(text), indent=4) + "\n").encode()


def require_fitting_weights(files: dict[str, bytes]) -> None:
    """Refuses weights that users could not load, tried as they would: by the code and the JSON of the release itself."""
    program = "import sys; from scripts.networks import network_from_checkpoint as load; load(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        command = [sys.executable, "-W", "ignore", "-c", program, "models/model.pt"]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if process.returncode:
        raise ValueError(f"bundle/models/model.pt cannot be loaded: {process.stderr.strip().splitlines()[-1]}")


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
    needed = (
        "configs/metadata.json",
        "configs/train.yaml",
        "configs/inference.yaml",
        "models/model.pt",
        "models/model.json",
    )
    missing = [name for name in needed if name not in files]
    if missing:
        raise ValueError(f"the commit has no file bundle/{missing[0]}")
    require_fitting_weights(files)
    for name in [name for name in files if name.startswith("docs/") and name.endswith(".md")]:
        files[name] = in_the_release(files[name])
    for name in ("train", "inference"):
        files[f"configs/{name}.json"] = json_config(files[f"configs/{name}.yaml"])
    files["models/model.safetensors"] = safetensors_weights(files["models/model.pt"], files["models/model.json"])
    return files


def write_zip(file: BinaryIO, files: dict[str, bytes], seconds: int) -> None:
    """Writes the files into one folder NAME; all with the same time, in seconds since 1970."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{NAME}/{name}", time.gmtime(seconds)[:6])
            info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix, whatever packs it
            archive.writestr(info, files[name])


def build(output_dir: Path, commit: str = "HEAD") -> Path:
    """Writes the zip and `<zip>.sha256`, and returns the path of the zip.

    Raises:
        ValueError: in one line, when git does not know the commit, the version has no entry in the changelog, the weights
            do not fit their JSON, output_dir is not writable, or another file has the zip's name.
    """
    files = released_files(commit)
    require_writable(output_dir, "--output_dir")
    metadata = json.loads(files["configs/metadata.json"])
    version = metadata["version"]
    if version not in metadata.get("changelog", {}):
        raise ValueError(f"bundle/configs/metadata.json: the changelog has no entry for version {version}")
    path = output_dir / f"{NAME}_v{version}.zip"
    hash_path = path.with_name(f"{path.name}.sha256")
    require_own(path, f"{NAME}/configs/metadata.json", "output_dir")
    seconds = int(git("log", "-1", "--format=%ct", "--end-of-options", commit))
    remove_leftovers(output_dir)
    with whole_file(path) as file:
        write_zip(file, files, seconds)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        hash_path.unlink(missing_ok=True)  # none rather than one of another zip, if this is killed
    write_text(hash_path, f"{digest}  {path.name}\n")
    return path


def _folder(text: str) -> Path:
    if not text.strip():  # of a variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the release of a commit.")
    parser.add_argument("--output_dir", type=_folder, default=ROOT / "dist")
    parser.add_argument("--commit", default="HEAD")
    given = parser.parse_args()
    try:
        path = build(given.output_dir, given.commit)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {machine_fault(error) or error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command begins again")
    print(path, Path(f"{path}.sha256").read_text().split()[0])


if __name__ == "__main__":
    main()
