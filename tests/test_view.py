"""view.html: its files, and in a real browser what a radiologist sees and does."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import assert_refused, run, sample
from pages import button, canvas, click, drag, drawn, label, opened, point_at, press, screen_of, wait_for, white_box
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from scripts.review import Viewed, write_view, write_volume_script

SHAPE, SPACING = (24, 20, 16), (1.0, 2.0, 4.0)
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # axes across, down, through


def numbered(shape=SHAPE):
    """A volume in which no two voxels are equal."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - np.int16(1000)


def viewed(volume, spacing=SPACING, name="one", **more):
    return Viewed(name, lambda: (volume, spacing), **more)


def content(script):
    """Header and array (X, Y, Z) of a volume's script."""
    header, data = re.search(r'prditVolume\((\{.*\}),"(.*)"\);', script.read_text()).groups()
    header = json.loads(header)
    values = np.frombuffer(gzip.decompress(base64.b64decode(data)), "<i2")
    return header, values.reshape(header["shape"], order="F")


class Tags(HTMLParser):
    """What elements and attributes a page has."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


# files


def test_a_script_holds_the_volume_and_its_geometry(tmp_path):
    volume = numbered()
    write_volume_script(tmp_path / "a.js", volume, SPACING, "case_001")
    header, values = content(tmp_path / "a.js")
    assert header == {"name": "case_001", "shape": list(SHAPE), "spacing": list(SPACING)}
    assert np.array_equal(values, volume)
    write_volume_script(tmp_path / "b.js", volume, SPACING, "case_001")
    assert (tmp_path / "a.js").read_bytes() == (tmp_path / "b.js").read_bytes()


def test_scripts_that_are_not_compressed_have_one_size(tmp_path):
    noise = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    for name, volume in {"noise": noise, "flat": np.zeros(SHAPE, np.int16)}.items():
        for compress in (True, False):
            write_volume_script(tmp_path / f"{name}{compress}.js", volume, SPACING, "case", compress=compress)
    size = {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
    assert size["noiseFalse"] == size["flatFalse"] and size["noiseTrue"] > 2 * size["flatTrue"]
    assert np.array_equal(content(tmp_path / "noiseFalse.js")[1], noise)


def test_a_page_is_replaced_and_what_is_not_ours_stays(tmp_path):
    (tmp_path / "view").mkdir()
    foreign = tmp_path / "view" / "library.js"
    foreign.write_text("somebody's")
    write_view(tmp_path, [viewed(numbered(), name=str(i), digest=str(i)) for i in range(3)], "first")
    first = (tmp_path / "view" / "000.js").stat().st_mtime_ns

    def never():
        raise AssertionError("the script of the same file is there already")

    write_view(tmp_path, [Viewed("0", never, digest="0"), viewed(numbered() + np.int16(1), digest="new")], "second")
    assert sorted(path.name for path in (tmp_path / "view").iterdir()) == ["000.js", "001.js", "library.js"]
    assert (tmp_path / "view" / "000.js").stat().st_mtime_ns == first and foreign.read_text() == "somebody's"
    assert content(tmp_path / "view" / "001.js")[1][0, 0, 0] == -999
    for path in (tmp_path / "view.html", tmp_path / "view" / "000.js"):
        path.write_text("somebody's")
        with pytest.raises(ValueError, match=f"{path.name} was not made by this command"):
            write_view(tmp_path, [viewed(numbered())], "third")
        assert path.read_text() == "somebody's"
        path.unlink()


def test_a_page_needs_nothing_from_elsewhere_and_names_cannot_break_it(tmp_path):
    name = '</script><img src="http://x">\udcff\u2028'
    write_view(tmp_path, [viewed(numbered(), name=name)], name, [name])
    page, parser = (tmp_path / "view.html").read_text(), Tags()
    parser.feed(page)
    assert {"script", "style", "title", "main"} <= set(parser.tags) and "img" not in parser.tags
    assert not {"src", "href"} & parser.attributes and "url(" not in page and "@import" not in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1])
    assert data["volumes"][0]["name"] == name and data["volumes"][0]["script"] == "view/000.js"


@pytest.fixture
def folders(tmp_path):
    """A folder with a volume that lies left-posterior-inferior in its file, and one with a volume of another grid."""
    volume = numbered()
    flipped = volume[::-1, ::-1, ::-1]
    (tmp_path / "source").mkdir()
    (tmp_path / "beside").mkdir()
    nib.save(nib.Nifti1Image(flipped, np.diag([-1.0, -2, -4, 1])), tmp_path / "source" / "ct.nii.gz")
    nib.save(nib.Nifti1Image(volume[::2], np.diag([2.0, 2, 4, 1])), tmp_path / "beside" / "ct.nii")
    return tmp_path / "source", tmp_path / "beside"


def test_view_yaml_shows_folders_of_nifti_in_ras(folders, tmp_path, capsys):
    source, beside = folders
    run("run", ["view"], source_dir=source, beside_dir=beside, output_dir=tmp_path / "page")
    assert "view.html of 2 volumes" in capsys.readouterr().out
    header, values = content(tmp_path / "page" / "view" / "000.js")
    assert header == {"name": "ct", "shape": list(SHAPE), "spacing": list(SPACING)}
    assert np.array_equal(values, numbered())
    header, values = content(tmp_path / "page" / "view" / "001.js")
    assert header["spacing"] == [2, 2, 4] and np.array_equal(values, numbered()[::2])


def test_view_yaml_leaves_out_what_is_no_ct_and_says_so(folders, tmp_path):
    source, _ = folders
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), source / "labels.nii.gz")
    (source / "broken.nii").write_bytes(b"no NIfTI")
    settings = {"source_dir": source, "output_dir": tmp_path / "page"}
    with assert_refused("2 volumes left out", "labels.nii.gz is not a chest CT in HU", "broken.nii: cannot be read"):
        run("run", ["view"], **settings)
    assert "broken is left out" in (tmp_path / "page" / "view.html").read_text()
    for path in (source / "ct.nii.gz", source / "broken.nii"):
        path.unlink()
    with assert_refused("labels.nii.gz is not a chest CT in HU"):
        run("run", ["view"], **settings)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"source_dir": "nowhere"}, "source_dir must be a folder that exists, got 'nowhere'"),
        ({"beside_dir": "{tmp_path}"}, "holds no NIfTI file"),
        ({"output_dir": "{source}"}, "output_dir"),
        ({"output_dir": "{source}/page"}, "lies in source_dir"),
        ({"output_dir": None}, "output_dir is needed"),
        ({"max_volumes": 0}, "max_volumes must be a whole number from 1"),
    ],
)
def test_bad_settings_of_view_yaml(settings, fact, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"{source}": folders[0], "{source}/page": folders[0] / "page", "{tmp_path}": tmp_path / "empty"}
    given = {"source_dir": folders[0], "output_dir": tmp_path / "page"}
    given |= {name: places.get(value, value) for name, value in settings.items()}
    with assert_refused(fact):
        run("run", ["view"], **given)
    assert not (tmp_path / "page").exists() and len(list(folders[0].iterdir())) == 1


# beside generated volumes


def test_sampling_writes_a_page_of_all_generated_volumes_of_the_folder(trained, tmp_path, monkeypatch, capsys):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path}

    def names():
        page = (tmp_path / "view.html").read_text()
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1])
        return [one["name"] for one in data["volumes"]], data["notes"]

    sample(num_samples=1, seed=7, **settings, writers=["nifti"])
    assert not (tmp_path / "view.html").exists()
    nib.save(nib.Nifti1Image(numbered(), np.eye(4)), tmp_path / "seed_9.nii.gz")  # somebody's
    sample(num_samples=1, seed=5, **settings)
    assert names() == (
        ["seed_000005", "seed_000007"],
        ["synthetic CT by PRDiT, no patient", "for research only, not for diagnosis"],
    )
    header, values = content(tmp_path / "view" / "001.js")
    image = nib.load(tmp_path / "seed_000007.nii.gz")
    assert np.array_equal(values, np.asanyarray(image.dataobj)) and header["spacing"] == [20, 20, 20]
    monkeypatch.setattr("scripts.output.writers._VIEWED", 2)
    before = (tmp_path / "view" / "000.js").stat().st_mtime_ns
    sample(num_samples=2, seed=5, **settings)
    assert names()[0] == ["seed_000005", "seed_000006"] and "the first 2 of 3 volumes are shown" in names()[1]
    assert (tmp_path / "view" / "000.js").stat().st_mtime_ns == before
    (tmp_path / "view.html").write_text("somebody's")
    capsys.readouterr()
    sample(num_samples=1, seed=5, **settings)
    assert (tmp_path / "view.html").read_text() == "somebody's"
    assert "view.html was not made by this command" in capsys.readouterr().out
    sample(num_samples=1, seed=5, **settings, overwrite=True)
    assert len(names()[0]) == 2


# in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of three volumes: one on another grid in another group, and one that is bright on the patient's right."""
    folder = tmp_path_factory.mktemp("page")
    bright = np.full(SHAPE, -1000, np.int16)
    bright[12:, 10:, 8:] = 1000  # right, anterior, head
    other = numbered((12, 20, 16)) + np.int16(7)
    volumes = [viewed(numbered(), name="numbered"), viewed(bright, name="bright")]
    write_view(folder, [*volumes, viewed(other, (2.0, 2.0, 4.0), "other", group="real")], "a page")
    return folder / "view.html"


@pytest.fixture
def view(browser, page):
    opened(browser, page)
    drawn(browser)
    return browser


def go(browser, number, slot=0):
    browser.execute_script("show(arguments[0], arguments[1])", slot, number)
    wait_for(browser, f"return loaded[{slot}] !== null")
    drawn(browser)


@pytest.mark.parametrize("plane", PLANES)
def test_hu_under_the_cursor_and_of_the_crosshair_are_those_of_the_array(plane, view):
    volume, through = numbered(), PLANES[plane][2]
    rng = np.random.default_rng(0)
    for _ in range(4):
        index = rng.integers(0, SHAPE)
        middle = view.execute_script("return viewer.indexAt(viewer.first, viewer.position)")
        index[through] = middle[through]  # of the slice that is shown
        point = screen_of(view, plane, index)
        point_at(view, plane, point)
        assert label(view, plane, "reading") == f"{volume[tuple(index)]} HU"
        click(view, plane, point)
        assert view.execute_script("return viewer.indexAt(viewer.first, viewer.position)") == index.tolist()
        status = view.find_element(By.CLASS_NAME, "status").text
        assert f"{volume[tuple(index)]} HU" in status and ", ".join(map(str, index)) in status
        sides = ("LR", "PA", "FH")
        mm = (index - (np.array(SHAPE) - 1) / 2) * SPACING
        assert "  ".join(f"{sides[axis][int(mm[axis] > 0)]} {abs(mm[axis]):.1f} mm" for axis in range(3)) in status


def test_the_patients_right_front_and_head_are_left_and_on_top(view):
    go(view, 1)
    press(view, "x")  # the crosshair is in the way
    for plane, (across, down, through) in PLANES.items():
        view.execute_script("viewer.moveTo(viewer.mmOf(viewer.first, arguments[0]))", [side - 1 for side in SHAPE])
        drawn(view)
        width, height, left, right, top, bottom = white_box(view, plane)
        assert right <= width / 2 + 2 and bottom <= height / 2 + 2  # in the top left quarter
        # anisotropic voxels have their true proportions
        size = np.multiply(SHAPE, SPACING)
        assert (right - left + 1) / (bottom - top + 1) == pytest.approx(size[across] / size[down], rel=0.05)
        letters = [label(view, plane, place) for place in ("left", "right", "top", "bottom")]
        assert "".join(letters) == {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}[plane]
    assert "the patient's right is on the left" in view.find_element(By.CLASS_NAME, "status").text


def test_the_ruler_and_the_scale_bar_are_in_mm(view):
    press(view, "m")
    for plane, (across, down, through) in PLANES.items():
        start, end = [3, 3, 3], [3, 3, 3]
        start[through] = end[through] = (SHAPE[through] - 1) // 2
        end[across], end[down] = 15, 13
        drag(view, plane, screen_of(view, plane, start), screen_of(view, plane, end))
        from_mm, to_mm = view.execute_script("const { from, to } = viewer.measures.at(-1); return [from, to]")
        expected = np.linalg.norm((np.array(end) - start) * SPACING)
        pixel = 1 / view.execute_script(
            "return viewer._scale(viewer.panes.find((one) => one.plane === arguments[0]))", plane
        )
        assert np.linalg.norm(np.subtract(from_mm, to_mm)) == pytest.approx(expected, abs=2 * pixel)
    assert view.execute_script("return viewer.position") == [0.5, 1, 2]  # measuring moves nothing
    button(view, "Reset").click()
    assert view.execute_script("return viewer.measures.length") == 0


def test_wheel_and_keys_scroll_from_head_to_feet(view):
    def index():
        return view.execute_script("return viewer.indexAt(viewer.first, viewer.position)")

    start = index()
    origin = canvas(view, "axial")
    ActionChains(view, 0).scroll_from_origin(_origin(origin), 0, 120).perform()
    wait_for(view, f"return viewer.indexAt(viewer.first, viewer.position)[2] === {start[2] - 1}")
    for _ in range(4):  # of a touch pad, less than one slice each
        ActionChains(view, 0).scroll_from_origin(_origin(origin), 0, 20).perform()
    wait_for(view, f"return viewer.indexAt(viewer.first, viewer.position)[2] === {start[2] - 3}")
    press(view, Keys.ARROW_UP)
    assert index() == [start[0], start[1], start[2] - 2]
    point_at(view, "sagittal", (20, 20))
    press(view, Keys.END)
    assert index()[0] == 0
    drawn(view)
    assert label(view, "sagittal", "place").startswith(f"sagittal {SHAPE[0]}/{SHAPE[0]}  L 11.5 mm")
    press(view, Keys.PAGE_UP)
    assert index()[0] == 10
    press(view, Keys.HOME * 2)
    assert index()[0] == SHAPE[0] - 1


def _origin(element):
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    return ScrollOrigin.from_element(element)


def test_windows_by_preset_key_number_and_drag(view):
    def window():
        return view.execute_script("return viewer.window")

    assert window() == [-1350, 150]
    button(view, "Mediastinum").click()
    assert window() == [-160, 240]
    assert button(view, "Mediastinum").get_attribute("aria-pressed") == "true"
    press(view, "3")
    assert window() == [-450, 1050]
    drag(view, "axial", (100, 100), (160, 100), key=Keys.SHIFT)  # right: wider
    assert window()[1] - window()[0] > 1500 and sum(window()) / 2 == pytest.approx(300, abs=1)
    press(view, "4")
    drag(view, "axial", (100, 100), (100, 140), key=Keys.SHIFT)  # down: higher middle, so darker
    assert window()[1] - window()[0] == 2000 and sum(window()) > 0
    assert view.execute_script("return viewer.position") == [0.5, 1, 2]
    width, level = view.find_elements(By.CSS_SELECTOR, ".toolbar input")[:2]
    for field, value in ((width, "500"), (level, "-100")):
        field.clear()
        field.send_keys(value + Keys.ENTER)
    assert window() == [-350, 150]


@pytest.mark.parametrize("plane", PLANES)
def test_a_slab_shows_the_maximum_over_its_thickness(plane, view):
    across, down, through = PLANES[plane]
    volume, count = numbered(), 3
    view.execute_script("viewer.setSlab(arguments[0])", count * SPACING[through])
    drawn(view)
    middle = view.execute_script("return viewer.indexAt(viewer.first, viewer.position)")[through]
    shown = view.execute_script(
        "const one = viewer.panes.find(({ plane }) => plane === arguments[0]); return [one.rows, one.columns, [...one.values]]",
        plane,
    )
    slab = np.take(volume, range(middle - 1, middle + 2), axis=through).max(axis=through)
    expected = slab[::-1, ::-1].T  # columns and rows run against the voxels
    assert np.array_equal(np.reshape(shown[2], shown[:2]), expected)
    assert f"MIP {count * SPACING[through]:g} mm" in label(view, plane, "place")


def test_volumes_come_and_go_one_at_a_time(view):
    assert view.execute_script("return viewer.volumes.map((one) => one.name)") == ["numbered"]
    press(view, "n")
    wait_for(view, "return viewer.volumes[0]?.name === 'bright'")
    press(view, Keys.ARROW_LEFT * 2)
    wait_for(view, "return viewer.volumes[0]?.name === 'other'")
    assert view.execute_script("return [loaded.length, document.querySelectorAll('head script').length]") == [1, 0]


def test_two_volumes_of_other_grids_stay_in_step(view):
    press(view, "b")
    wait_for(view, "return loaded[1] !== null")
    drawn(view)
    assert view.execute_script("return viewer.volumes.map((one) => one.name)") == ["numbered", "other"]
    click(view, "axial", screen_of(view, "axial", [16, 15, 7], slot=1), slot=0)
    place = view.execute_script("return viewer.volumes.map((one) => viewer.indexAt(one, viewer.position))")
    mm = [(np.array(index) - (np.array(shape) - 1) / 2) * spacing
          for index, shape, spacing in zip(place, (SHAPE, (12, 20, 16)), (SPACING, (2.0, 2.0, 4.0)))]  # fmt: skip
    assert np.abs(mm[0] - mm[1]).max() <= 1.0  # half a voxel of the coarser one
    values = [numbered()[tuple(place[0])], numbered((12, 20, 16))[tuple(place[1])] + 7]
    assert f"{values[0]} HU | {values[1]} HU" in view.find_element(By.CLASS_NAME, "status").text
    point = screen_of(view, "coronal", place[1], slot=1)
    assert point == pytest.approx(screen_of(view, "coronal", place[0], slot=0), abs=10)
    press(view, "b")
    assert view.execute_script("return [loaded.length, viewer.volumes.length]") == [1, 1]


def test_zoom_keeps_what_is_under_the_pointer(view):
    index = [20, 15, 7]
    point = screen_of(view, "axial", index)
    wheel = """
        const [canvas, x, y] = arguments, box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, ctrlKey: true, clientX: box.left + x, clientY: box.top + y }));
        viewer._drawAll();"""
    view.execute_script(wheel, canvas(view, "axial"), *point)
    assert view.execute_script("return viewer.views.axial.zoom") > 2
    assert screen_of(view, "axial", index) == pytest.approx(point, abs=2)  # whole pixels
    press(view, "0")
    assert view.execute_script("return viewer.views.axial.zoom") == 1


def test_a_missing_or_damaged_volume_is_told_and_the_others_are_shown(browser, tmp_path):
    write_view(tmp_path, [viewed(numbered(), name=str(i)) for i in range(3)], "damaged")
    (tmp_path / "view" / "000.js").unlink()
    text = (tmp_path / "view" / "001.js").read_text()
    (tmp_path / "view" / "001.js").write_text(text[:200] + text[400:])
    browser.get((tmp_path / "view.html").as_uri())
    for number, word in ((0, "missing"), (1, "damaged")):
        browser.execute_script(f"show(0, {number})")
        wait_for(browser, f"return viewer.messages?.[0]?.includes('view/00{number}.js is {word}')")
        drawn(browser)
        assert word in label(browser, "axial", "message")
    go(browser, 2)
    assert label(browser, "axial", "message") == ""


def test_all_is_there_in_a_window_of_1024_pixels(view):
    view.set_window_size(1024, 768)
    try:
        drawn(view)
        script = "return [document.documentElement.scrollWidth, innerWidth, viewer.grid.clientHeight, innerHeight]"
        width, window_width, height, window_height = view.execute_script(script)
        assert width <= window_width <= 1024 and height > 0.6 * window_height
    finally:
        view.set_window_size(1280, 900)
