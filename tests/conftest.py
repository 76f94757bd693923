"""Tiny networks, volumes and data sets for all tests."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import train
from ingest import SIDE_MM

from scripts.data import chest_phantom, prepare_dataset
from scripts.networks import build_prdit


def randomise(network, seed):
    """Moves every parameter away from its start, so that no test passes because an output layer is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.fixture
def make_network():
    """Builds a tiny PRDiT with random weights: make_network(seed=0, depth=2, ...)."""

    def make(seed=0, **settings):
        torch.manual_seed(seed)
        settings = {"hidden_size": 24, "num_heads": 4, "depth": 2, "patch_size": 4, "stride": 2, **settings}
        return randomise(build_prdit(**settings), seed)

    return make


@pytest.fixture
def make_volume():
    """Gaussian volumes (B, C, D, H, W), the same for the same seed."""

    def make(*shape, seed=0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def write_nifti(tmp_path):
    """Writes an array (X, Y, Z) as a NIfTI file and returns its path."""

    def write(array, affine=None, name="ct.nii.gz", dtype=np.float32):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(array, dtype), np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def one_line():
    """A message for the user: one line that holds all the given words."""

    def check(raised, *words):
        message = str(raised.value)
        assert "\n" not in message
        assert [word for word in words if str(word) not in message] == [], message

    return check


@pytest.fixture(scope="module")
def chest():
    """A phantom in HU, (X, Y, Z), RAS, 32 voxels of 10 mm."""
    return chest_phantom(3, (32, 32, 32), (320, 320, 320))


@pytest.fixture
def prepare(tmp_path):
    """Runs prepare_dataset in this process on 32 voxels of 10 mm; returns the exit status, folder and records."""

    def run(source, folder="set", **settings):
        folder = tmp_path / folder
        settings = {"spacing": SIDE_MM, "size": 32, "center": "volume", "num_workers": 0, **settings}
        status = 0
        try:
            prepare_dataset(source, folder, salt_file=tmp_path / "salt", **settings)
        except SystemExit as stop:
            status = stop.code
        records = [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))]
        return status, folder, records

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with both stages trained on tiny phantoms; the tests may read it, not write."""
    folder = tmp_path_factory.mktemp("trained")
    train(1, folder, max_epochs=12, ema_decay=0.5, warmup=0.1)
    train(2, folder, max_epochs=6, ema_decay=0.5, warmup=0.1)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, whose downloads come to `browser.downloads`; one for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("Debian's packages chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    folder = tmp_path_factory.mktemp("browser")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    driver.downloads = folder / "downloads"
    driver.set_script_timeout(20)
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(driver.downloads)})
    yield driver
    driver.quit()
