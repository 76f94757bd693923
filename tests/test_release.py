"""The release as its users get it: packed, downloaded, and run from there without this repository."""

import functools
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import monai.bundle
import nibabel as nib
import pytest
import torch
import yaml

from scripts.networks import network_from_checkpoint

safetensors = pytest.importorskip("safetensors")

ROOT = Path(__file__).resolve().parents[1]
NAME = "prdit_ct_generation"
TOOL = [sys.executable, str(ROOT / "tools" / "release.py")]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The zip of the current commit; the tests may read it, not write."""
    if not (ROOT / ".git").exists():
        pytest.skip("a release is made of a git commit")
    folder = tmp_path_factory.mktemp("release")
    process = subprocess.run([*TOOL, "--output_dir", folder], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return next(folder.glob("*.zip"))


@pytest.fixture
def url(release):
    """The zip on a web server of this machine."""
    handler = functools.partial(QuietHandler, directory=release.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{release.name}"
        server.shutdown()


@pytest.fixture(scope="module")
def unpacked(release, tmp_path_factory):
    """The bundle's folder; the tests may read it, not write."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(release) as archive:
        archive.extractall(folder)
    return folder / NAME


def run_elsewhere(arguments, folder):
    """Runs Python in `folder`, as where this repository is not."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_the_same_commit_gives_the_same_bytes(release, tmp_path):
    env = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    subprocess.run([*TOOL, "--output_dir", tmp_path], cwd=tmp_path, env=env, check=True, capture_output=True)
    again = (tmp_path / release.name).read_bytes()
    assert again == release.read_bytes()
    stated = (tmp_path / f"{release.name}.sha256").read_text()
    assert stated == f"{hashlib.sha256(again).hexdigest()}  {release.name}\n"


def test_an_unknown_commit_is_one_line(tmp_path, monkeypatch, one_line):
    monkeypatch.syspath_prepend(ROOT / "tools")
    with pytest.raises(ValueError) as raised:
        importlib.import_module("release").build(tmp_path / "dist", "nothing")
    one_line(raised, "nothing")
    assert not list(tmp_path.iterdir())


def test_what_users_could_not_load_is_not_released_and_foreign_files_stay(tmp_path, monkeypatch, one_line):
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("release")
    files = tool.committed_files("HEAD")
    other = {**json.loads(files["models/model.json"]), "sha256": "0" * 64}
    monkeypatch.setattr(
        tool, "committed_files", lambda commit: {**files, "models/model.json": json.dumps(other).encode()}
    )
    with pytest.raises(ValueError) as raised:
        tool.build(tmp_path / "dist")
    one_line(raised, "bundle/models/model.pt cannot be loaded", "sha256 differs")
    monkeypatch.setattr(
        tool, "committed_files", lambda commit: {n: c for n, c in files.items() if n != "models/model.pt"}
    )
    with pytest.raises(ValueError) as raised:
        tool.build(tmp_path / "dist")
    one_line(raised, "no file bundle/models/model.pt")
    version = json.loads(files["configs/metadata.json"])["version"]
    foreign = tmp_path / f"{NAME}_v{version}.zip"
    foreign.write_bytes(b"another zip")
    monkeypatch.setattr(tool, "released_files", lambda commit: files)
    with pytest.raises(ValueError) as raised:
        tool.build(tmp_path)
    one_line(raised, foreign, "was not made by this command")
    assert [path.name for path in tmp_path.iterdir()] == [foreign.name]


def test_links_and_places_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, one_line):
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool, packed = importlib.import_module("release"), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("docs/README.md")
        link.type, link.linkname = tarfile.SYMTYPE, "../../README.md"
        archive.addfile(link)
    monkeypatch.setattr(tool, "git", lambda *arguments: packed.getvalue())
    with pytest.raises(ValueError) as raised:
        tool.build(tmp_path)
    one_line(raised, "bundle/docs/README.md is a link")
    monkeypatch.setattr(tool, "released_files", lambda commit: {})
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "dist", Path("/proc/1/dist")):
        with pytest.raises(ValueError) as raised:
            tool.build(place)
        one_line(raised, "--output_dir", place, "is not writable")


def test_a_commit_is_no_option_of_git(tmp_path, monkeypatch, one_line):
    monkeypatch.syspath_prepend(ROOT / "tools")
    with pytest.raises(ValueError) as raised:
        importlib.import_module("release").build(tmp_path / "dist", f"--output={tmp_path}/F")
    one_line(raised, f"--output={tmp_path}/F")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "stopped; the same command begins again"),
        (OSError(28, "No space left"), "1.zip: No space"),
    ],
)
def test_a_stop_and_a_full_disk_are_one_line_and_leave_nothing(tmp_path, monkeypatch, error, line):
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("release")

    def fail(*arguments):
        raise error

    metadata = b'{"version": "1", "changelog": {"1": ""}}'
    monkeypatch.setattr(tool, "released_files", lambda commit: {"configs/metadata.json": metadata})
    monkeypatch.setattr(tool, "write_zip", fail)
    monkeypatch.setattr(sys, "argv", ["release.py", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert line in ended.value.code and "\n" not in ended.value.code.strip()
    assert not list(tmp_path.iterdir())


def test_safetensors_hold_what_model_pt_holds(unpacked):
    with safetensors.safe_open(unpacked / "models" / "model.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["settings"])
        state = {name: file.get_tensor(name) for name in file.keys()}
    expected = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    stored = json.loads((unpacked / "models" / "model.json").read_text())
    assert stored == {"sha256": stored["sha256"], **settings}


def test_json_configs_are_the_yaml(unpacked):
    for name in ("train", "inference"):
        text = (unpacked / "configs" / f"{name}.yaml").read_text()
        assert json.loads((unpacked / "configs" / f"{name}.json").read_text()) == yaml.safe_load(text)


def test_the_short_commands_are_in_it(unpacked):
    process = run_elsewhere([unpacked / "prdit.py", "sample", "--show"], unpacked.parent)
    assert process.stdout == f"python -m monai.bundle run --config_file {NAME}/configs/inference.yaml\n", process.stderr


def test_commands_of_the_docs_name_the_unpacked_folder(unpacked):
    text = (unpacked / "docs" / "README.md").read_text()
    assert f"--config_file {NAME}/configs/inference.yaml" in text and " bundle/" not in text and "'bundle/" not in text


def test_download_and_run_without_this_repository(url, tmp_path):
    arguments = ["-m", "monai.bundle", "download", "--name", NAME, "--url", url, "--bundle_dir", tmp_path / "bundles"]
    process = run_elsewhere(arguments, tmp_path)
    assert process.returncode == 0, process.stderr
    assert "not found" not in process.stderr
    bundle = tmp_path / "bundles" / NAME
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = ["-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "inference.yaml"]
    settings = ["--num_samples", "1", "--num_inference_steps", "2", "--grid", "[16,16,16]"]
    process = run_elsewhere([*arguments, *settings, "--output_dir", tmp_path / "out"], elsewhere)
    assert process.returncode == 0, process.stderr
    volume = nib.load(tmp_path / "out" / "seed_000000.nii.gz")
    assert volume.shape == (16, 16, 16) and volume.get_fdata().std() > 10
    page = (tmp_path / "out" / "view.html").read_text()  # with the style and code of files that are no Python
    assert "class Viewer" in page and ".toolbar {" in page and (tmp_path / "out" / "view" / "000.js").is_file()
    assert not list(elsewhere.iterdir())


def test_load_in_python(unpacked):
    """`monai.bundle.load` finds the JSON configs and gives the network with the shipped weights."""
    network = monai.bundle.load(NAME, bundle_dir=unpacked.parent, workflow_type="inference", device="cpu")
    expected = network_from_checkpoint(unpacked / "models" / "model.pt").state_dict()
    state = network.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_weights_of_another_file_are_told(unpacked, tmp_path, one_line):
    """A download that was cut off or changed on the way, against the sha256 in the JSON."""
    content = (unpacked / "models" / "model.pt").read_bytes()
    (tmp_path / "model.json").write_bytes((unpacked / "models" / "model.json").read_bytes())
    for broken in (content[:-1000], content[:-1] + bytes([content[-1] ^ 1])):
        (tmp_path / "model.pt").write_bytes(broken)
        with pytest.raises(ValueError) as raised:
            network_from_checkpoint(tmp_path / "model.pt")
        one_line(raised, tmp_path / "model.pt", "truncated", "sha256 differs")


@pytest.mark.parametrize(("kind", "name"), [("inference", "inference"), ("train", "train")])
def test_create_workflow_and_check_properties(unpacked, tmp_path, monkeypatch, kind, name):
    tiny = {"num_phantoms": 2, "num_validation_phantoms": 2, "grid": [16, 16, 16], "batch_size": 2, "depth": 0}
    settings = {"output_dir": str(tmp_path)} if kind == "inference" else {"ckpt_dir": str(tmp_path / "ckpt"), **tiny}
    for suffix in ("yaml", "json"):
        workflow = monai.bundle.create_workflow(
            config_file=str(unpacked / "configs" / f"{name}.{suffix}"), workflow_type=kind, **settings
        )
        assert workflow.check_properties() == []
        assert workflow.version == json.loads((unpacked / "configs" / "metadata.json").read_text())["version"]


def bundle_arguments(unpacked):
    return {
        "net_id": "network_def",
        "config_file": str(unpacked / "configs" / "inference.yaml"),
        "meta_file": str(unpacked / "configs" / "metadata.json"),
    }


def test_metadata_describes_the_network(unpacked):
    monai.bundle.verify_net_in_out(**bundle_arguments(unpacked), device="cpu")
    arguments = bundle_arguments(unpacked)
    metadata = json.loads((unpacked / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 1
    (unpacked.parent / "wrong.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="channel"):
        monai.bundle.verify_net_in_out(**{**arguments, "meta_file": str(unpacked.parent / "wrong.json")}, device="cpu")


def test_export_to_torchscript(unpacked, tmp_path):
    weights = str(unpacked / "models" / "model.pt")
    monai.bundle.ckpt_export(**bundle_arguments(unpacked), filepath=str(tmp_path / "model.ts"), ckpt_file=weights)
    exported = torch.jit.load(tmp_path / "model.ts")
    volume = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for time in (10.0, 700.0):
            times = torch.tensor([time])
            expected = network_from_checkpoint(weights).eval()(volume, times)
            assert torch.allclose(exported(volume, times), expected, atol=1e-5)


@pytest.mark.slow
def test_export_to_onnx(unpacked, tmp_path):
    reference = pytest.importorskip("onnx.reference")
    weights = str(unpacked / "models" / "model.pt")
    path = str(tmp_path / "model.onnx")
    shape = [1, 1, 16, 16, 16]
    monai.bundle.onnx_export(**bundle_arguments(unpacked), filepath=path, ckpt_file=weights, input_shape=shape)
    volume = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exported = reference.ReferenceEvaluator(path)
    (prediction,) = exported.run(None, {exported.input_names[0]: volume.numpy()})
    with torch.inference_mode():
        expected = network_from_checkpoint(weights).eval()(volume)
    assert torch.allclose(torch.from_numpy(prediction), expected, atol=1e-4)
