"""Bytes, loading time and frames per second of view.html with a phantom of 256^3, in headless Chromium without a GPU.

With --niivue PATH, the file niivue.umd.js of the npm package @niivue/niivue, the same of a page that shows it by NiiVue.

    python benchmarks/view_page.py --niivue node_modules/@niivue/niivue/dist/niivue.umd.js
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 120
# calls `step` once a frame; tells milliseconds from frame to frame, and those that `step` took
FRAME_LOOP = """
const done = arguments[arguments.length - 1];
const times = [], costs = [];
let frame = 0;
requestAnimationFrame(function next(now) {
  times.push(now);
  if (frame++ === %d) {
    const sorted = costs.sort((a, b) => a - b);
    return done([(times.at(-1) - times[0]) / (times.length - 1), sorted[sorted.length >> 1], sorted[sorted.length >> 3]]);
  }
  const start = performance.now();
  step(frame);
  costs.push(performance.now() - start);
  requestAnimationFrame(next);
});
""" % FRAMES
NIIVUE_PAGE = """<!doctype html><meta charset="utf-8"><body style="margin:0"><canvas id="gl" style="width:100vw;height:100vh"></canvas>
<script>%s</script><script>const data = "%s";
async function load() {
  const start = performance.now();
  const viewer = new niivue.Niivue({ isResizeCanvas: true });
  await viewer.attachToCanvas(document.getElementById("gl"));
  const image = await niivue.NVImage.loadFromBase64({ base64: data, name: "ct.nii.gz" });
  viewer.addVolume(image);
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  finish(viewer);
  window.viewer = viewer;
  return performance.now() - start;
}
const finish = (viewer) => viewer.gl.readPixels(0, 0, 1, 1, viewer.gl.RGBA, viewer.gl.UNSIGNED_BYTE, new Uint8Array(4));
</script>"""


def browser(*flags: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1600,1000", *flags):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    driver.set_script_timeout(200)
    return driver


def cpu_seconds(driver: webdriver.Chrome) -> float:
    """Time that all processes of the browser have computed, whatever else the machine does."""
    parents, times = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            times[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours = {driver.service.process.pid}
    while found := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= found
    return sum(times[pid] for pid in ours if pid in times)


def frames(driver: webdriver.Chrome, step: str) -> str:
    before = cpu_seconds(driver)
    interval, median, best = driver.execute_async_script(f"const step = (frame) => {{ {step} }};" + FRAME_LOOP)
    cpu = 1000 * (cpu_seconds(driver) - before) / FRAMES
    return f"{1000 / interval:5.1f} frames/s; {cpu:5.1f} ms of CPU; drawing {median:5.1f} ms (median), {best:5.1f} (best eighth)"


def measure_ours(folder: Path, volume: np.ndarray, spacing: Any) -> None:
    from scripts.review import Viewed, write_view

    volumes = [Viewed(name, lambda: (volume, spacing)) for name in ("one", "other")]
    write_view(folder, volumes, "benchmark")
    driver = browser("--disable-gpu")
    print(
        f"view.html {(folder / 'view.html').stat().st_size / 1e3:.0f} kB, a volume {(folder / 'view' / '000.js').stat().st_size / 1e6:.1f} MB"
    )
    driver.get((folder / "view.html").as_uri())
    before = cpu_seconds(driver)
    loaded = driver.execute_async_script("""
        const done = arguments[0];
        (async () => {
            while (!viewer.first) await new Promise((go) => setTimeout(go, 50));
            const start = performance.now();
            await show(0, 1);
            viewer._drawAll();
            done(performance.now() - start);
        })();""")
    print(f"ours: loading {loaded / 1000:.2f} s, {cpu_seconds(driver) - before:.2f} s of CPU")
    for name, step in {
        "axial": "viewer.scroll('axial', frame < 60 ? 1 : -1);",
        "sagittal": "viewer.scroll('sagittal', frame < 60 ? 1 : -1);",
        "window": "viewer.setWindow(-1000 - frame, 500 + frame);",
    }.items():
        print(f"ours: {name:28s}", frames(driver, step))
    driver.execute_script("viewer.setSlab(20)")
    print("ours: axial, 20 mm slab           ", frames(driver, "viewer.scroll('axial', frame < 60 ? 1 : -1);"))
    driver.execute_script("viewer.setSlab(0); toggleBeside()")
    driver.execute_async_script(
        "const done = arguments[0]; (function wait() { loaded[1] ? done() : setTimeout(wait, 50) })()"
    )
    print("ours: axial, two volumes          ", frames(driver, "viewer.scroll('axial', frame < 60 ? 1 : -1);"))
    driver.quit()


def measure_niivue(folder: Path, volume: np.ndarray, spacing: Any, code: Path) -> None:
    nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1.0])), folder / "ct.nii.gz")
    data = base64.b64encode((folder / "ct.nii.gz").read_bytes()).decode()
    text = code.read_text()
    (folder / "niivue.html").write_text(NIIVUE_PAGE % (text.replace("</script", "<\\/script"), data))
    print(f"niivue.umd.js {len(text) / 1e3:.0f} kB")
    for flags in (
        ("--disable-gpu", "--disable-software-rasterizer"),
        ("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    ):
        driver = browser(*flags)
        driver.get((folder / "niivue.html").as_uri())
        before = cpu_seconds(driver)
        loaded = driver.execute_async_script(
            "const done = arguments[0]; load().then(done, (error) => done(String(error)))"
        )
        if not isinstance(loaded, (int, float)):
            print(f"niivue with {flags}: {loaded}")
        else:
            print(f"niivue: loading {loaded / 1000:.2f} s, {cpu_seconds(driver) - before:.2f} s of CPU")
            for name, axis in {"axial": 2, "sagittal": 0}.items():
                move = ", ".join("frame < 60 ? 1 : -1" if one == axis else "0" for one in range(3))
                print(f"niivue: {name:26s}", frames(driver, f"viewer.moveCrosshairInVox({move}); finish(viewer);"))
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--niivue", type=Path)
    parser.add_argument("--side", type=int, default=256)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "bundle"))
    from scripts.data import chest_phantom

    side = given.side
    coarse = chest_phantom(0, (side // 4,) * 3, (320.0,) * 3).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    noise = np.random.default_rng(0).normal(0, 20, coarse.shape)  # what makes a CT hard to compress
    volume = np.rint(coarse + noise).astype(np.int16)
    spacing = (320 / side,) * 3
    with tempfile.TemporaryDirectory() as folder:
        measure_ours(Path(folder), volume, spacing)
        if given.niivue:
            measure_niivue(Path(folder), volume, spacing, given.niivue)


if __name__ == "__main__":
    main()
