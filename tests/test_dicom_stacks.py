"""DICOM slices to series: what belongs together, what is a copy, and which stacks are regular."""

import itertools

import numpy as np
import pytest
from dicom_series import compress, ct, only, reason, rewrite, series_in, uid, write_enhanced, write_series

from scripts.data.dicom import read_series

# acquisitions of one series


def write_part(folder, volume, part, first=0.0, **tags):
    """One of several acquisitions (rows 3 mm apart, from z = `first`) with the UIDs of one study and series."""
    tags = {"StudyInstanceUID": uid("study"), "SeriesInstanceUID": uid("series"), **tags}
    return write_series(folder, volume, f"part{part}", origin=(-10, -20, first), **tags)


def same(results, volumes):
    """Whether the results are series with exactly these HU, in any order."""
    found = [read_series(result) for result in results]
    return len(found) == len(volumes) and all(any(np.array_equal(one, volume) for one in found) for volume in volumes)


def tag_slices(paths, name, values):
    for path, value in zip(paths, values):
        rewrite(path, lambda item: setattr(item, name, value))


@pytest.mark.parametrize("shift", [0.0, 1.5, 7.0, 12.0])
@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("AcquisitionNumber", (1, 2)),
        ("AcquisitionTime", ("101112.5", "101512.5")),
        ("AcquisitionDateTime", ("20200102101112", "20200102101512")),
        ("TemporalPositionIdentifier", (1, 2)),
        ("TriggerTime", (0, 400)),
        ("NominalPercentageOfCardiacPhase", (30, 70)),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("KVP", (80, 140)),
    ],
)
def test_what_overlaps_is_told_apart(tmp_path, tag, values, shift):
    """At the same places, half a step away (together they would look regular), and anywhere else."""
    volumes = [ct(10, 4, 4, seed=1), ct(10, 4, 4, seed=2)]
    paths = []
    for part, (volume, value) in enumerate(zip(volumes, values)):
        paths += write_part(tmp_path, volume, part, shift * part, **{tag: value})
    assert same(series_in(paths), volumes)


@pytest.mark.parametrize(("tag", "first", "step"), [("AcquisitionTime", 101112.0, 0.4), ("AcquisitionNumber", 5, 1)])
def test_passes_are_told_apart_by_what_counts_slices(tmp_path, tag, first, step):
    volumes = [ct(10, 4, 4, seed=1), ct(10, 4, 4, seed=2)]
    paths = [path for part, volume in enumerate(volumes) for path in write_part(tmp_path, volume, part, 1.5 * part)]
    tag_slices(paths, tag, [str(first + step * number) for number in range(20)])
    assert same(series_in(paths), volumes)


@pytest.mark.parametrize("group", [{"FrameAcquisitionNumber": 1}, {"TemporalPositionIndex": 1}, {"StackID": "1"}])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_time_points_of_a_multi_frame_file_are_told_apart(tmp_path, group, shift):
    volume = ct(20, 4, 4)
    groups = [
        {
            "place": i % 10 + shift * (i // 10),
            "FrameContentSequence": {key: type(one)(i // 10 + 1) for key, one in group.items()},
        }
        for i in range(20)
    ]
    path = write_enhanced(
        tmp_path / "e", volume, groups=groups, order=np.random.default_rng(0).permutation(20).tolist()
    )
    assert same(series_in([path]), [volume[:10], volume[10:]])


@pytest.mark.parametrize("size", [1, 3, 10])
def test_acquisitions_that_abut_are_one(tmp_path, size):
    """GE counts the turns of the gantry, each of some slices, or what was scanned one after another."""
    volume = ct(20, 4, 4)
    paths = write_part(tmp_path, volume, 0)
    tag_slices(paths, "AcquisitionNumber", [str(i // size) for i in range(20)])
    assert same(series_in(paths), [volume])


def test_acquisitions_that_are_regular_together_alone_are_one(tmp_path):
    volume = ct(20, 4, 4)
    paths = write_part(tmp_path, volume, 0)
    tag_slices(paths, "AcquisitionNumber", ["2" if i in (6, 7, 13) else "1" for i in range(20)])
    assert same(series_in(paths), [volume])


def test_acquisitions_with_other_steps_are_told_apart(tmp_path):
    """The chest in steps of 3 mm, then the abdomen in steps of 5 mm."""
    chest, abdomen = ct(12, 4, 4, seed=1), ct(9, 4, 4, seed=2)
    paths = write_part(tmp_path, abdomen, 1, -45.0, step=(0, 0, 5.0), AcquisitionNumber=2)
    assert same(series_in(paths + write_part(tmp_path, chest, 0, AcquisitionNumber=1)), [chest, abdomen])


def test_two_kernels_of_two_acquisitions_are_four_series(tmp_path):
    volumes = [ct(10, 4, 4, seed=seed) for seed in range(4)]
    paths = []
    for part, (number, kernel) in enumerate(itertools.product((1, 2), ("B30f", "B70f"))):
        tags = {"AcquisitionNumber": number, "ConvolutionKernel": kernel}
        paths += write_part(tmp_path, volumes[part], part, 1.0 * number, **tags)
    assert same(series_in(paths), volumes)


def test_gap_of_one_phase_costs_that_phase_alone(tmp_path):
    paths = write_part(tmp_path, ct(10, 4, 4), 0, AcquisitionNumber=1)
    paths += write_part(tmp_path, ct(12, 4, 4, seed=1), 1, AcquisitionNumber=2, left_out=(5,))
    good, bad = series_in(paths)
    assert len(good.slices) == 10 and bad.reason == "1 slice is missing, between 12.0 and 18.0 mm"


def test_gap_between_turns_of_the_gantry_is_a_gap(tmp_path):
    paths = write_part(tmp_path, ct(30, 4, 4), 0, left_out=(10,))
    tag_slices(paths, "AcquisitionNumber", [str(i // 10) for i in range(30)])
    assert reason(series_in(paths)) == "1 slice is missing, between 27.0 and 33.0 mm"


def test_slice_taken_again_is_named_once(tmp_path):
    """Nobody knows which of the two belongs to the others."""
    paths = write_part(tmp_path, ct(20, 4, 4), 0)
    paths += write_part(tmp_path, ct(1, 4, 4, seed=1), 1, 30.0)
    tag_slices(paths, "AcquisitionNumber", [str(i) for i in range(21)])
    assert reason(series_in(paths)) == "1 place holds two different slices, at 30.0 mm"


def test_tracking_of_the_contrast_medium_costs_one_reject(tmp_path):
    volume = ct(20, 4, 4)
    paths = write_part(tmp_path, volume, 0, AcquisitionNumber=9)
    for number in range(5):
        paths += write_part(tmp_path, ct(1, 4, 4, seed=number + 1), number + 1, 30.5, AcquisitionNumber=number)
    good, bad = series_in(paths)
    assert np.array_equal(read_series(good), volume) and bad.reason == "5 slices, at least 8 are needed"


# patients


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("tell", ["PatientID", "SOPInstanceUID"])
def test_patients_with_the_same_uids_never_share_a_volume(tmp_path, tell, shift):
    """At the same places, or one behind the other; where PatientID is constant too, repeated instances tell."""
    volumes = [ct(10, 4, 4, seed=1), ct(10, 4, 4, seed=2)]
    for part, volume in enumerate(volumes):
        tags = {"PatientID": f"P{part}"} if tell == "PatientID" else {}
        paths = write_part(tmp_path / f"p{part}", volume, part, shift * part, **tags)
        if tell == "SOPInstanceUID":
            tag_slices(paths, tell, [uid(i) for i in range(10)])
    assert same(series_in(sorted(tmp_path.rglob("part*"))), volumes)


@pytest.mark.parametrize("every", [2, 3, 9])
def test_one_scan_that_names_two_patients_is_refused(tmp_path, every):
    """As when ids were corrected in a part of the files: no share of the slices is taken for the whole."""
    paths = write_part(tmp_path, ct(30, 4, 4), 0)
    tag_slices(paths[::every], "PatientID", ["ID-42"] * 30)
    assert reason(series_in(paths)) == "its slices are one scan, but name 2 patients"
    assert reason(series_in(paths[:20] + paths[21:])) == "its slices are one scan, but name 2 patients"


def test_slices_that_name_no_patient_belong_to_the_others(tmp_path):
    volume = ct(20, 4, 4)
    paths = write_part(tmp_path, volume, 0)
    tag_slices(paths[::3], "PatientID", [""] * 20)
    assert only(series_in(paths)).slices[0].patient == "ID-0042"
    tag_slices(paths, "PatientID", [""] * 20)
    assert only(series_in(paths)).slices[0].patient == uid("study")


# tolerance


@pytest.mark.parametrize(
    "jitter", [{"ImageOrientationPatient": (1, 0.0002, 0, -0.0002, 1, 0)}, {"PixelSpacing": (2.0006, 1.5006)}]
)
@pytest.mark.parametrize("every", [2, 3])
def test_tags_may_jitter(tmp_path, jitter, every):
    volume = ct(20, 4, 4)
    paths = write_part(tmp_path, volume, 0)
    ((name, value),) = jitter.items()
    tag_slices(paths[::every], name, [list(value)] * 20)
    assert same(series_in(paths), [volume])


@pytest.mark.parametrize(
    "jitter", [{"ImageOrientationPatient": (1, 0.01, 0, -0.01, 1, 0)}, {"PixelSpacing": (2.02, 1.52)}]
)
@pytest.mark.parametrize("every", [2, 3])
def test_no_share_of_the_slices_is_taken_for_the_whole(tmp_path, jitter, every):
    paths = write_part(tmp_path, ct(30, 4, 4), 0)
    ((name, value),) = jitter.items()
    tag_slices(paths[::every], name, [list(value)] * 30)
    assert reason(series_in(paths)) == "orientation or pixel spacing varies from slice to slice"


def test_reconstructions_of_other_fields_of_view_are_told_apart(tmp_path):
    volumes = [ct(10, 4, 4, seed=1), ct(10, 4, 4, seed=2)]
    paths = write_part(tmp_path, volumes[0], 0) + write_part(tmp_path, volumes[1], 1, spacing=(1.96, 1.47))
    assert same(series_in(paths), volumes)


def test_turned_planes_are_one_reject(tmp_path):
    """Reformatted images around an axis: each is a stack of its own."""
    paths = write_part(tmp_path, ct(12, 4, 4), 0)
    angles = np.arange(12) * np.pi / 12
    tag_slices(paths, "ImageOrientationPatient", [[np.cos(a), np.sin(a), 0, 0, 0, -1] for a in angles.round(6)])
    assert reason(series_in(paths)) == "1 slice, at least 8 are needed (12 stacks)"


# spacing


@pytest.mark.parametrize(("step", "digits"), [(0.625, 1), (0.4, 1), (1.2345, 2)])
def test_rounded_positions_are_regular(tmp_path, step, digits):
    positions = [(0, 0, round(step * i, digits)) for i in range(40)]
    series = only(series_in(write_series(tmp_path, ct(40, 4, 4), positions=positions)))
    assert series.step_mm == pytest.approx(step, rel=2e-3)  # the line through all of them


@pytest.mark.parametrize(("step", "digits"), [(0.625, 1), (1.0, 0), (2.0, 0)])
def test_gaps_in_rounded_positions_are_found(tmp_path, step, digits):
    positions = [(0, 0, round(step * i, digits)) for i in range(60)]
    paths = write_series(tmp_path, ct(60, 4, 4), positions=positions, left_out=(31,))
    assert reason(series_in(paths)).startswith("1 slice is missing")


@pytest.mark.parametrize(
    ("steps", "words"), [((5.0, 5.45), "spacing varies from 5.00 to 5.45"), ((1.0, 1.02), "varies")]
)
def test_steps_that_drift_are_refused(tmp_path, steps, words):
    """Each step is nearly right, the places are not."""
    z = np.cumsum(np.repeat(steps, 30))
    assert words in reason(series_in(write_series(tmp_path, ct(60, 4, 4), positions=[(0, 0, place) for place in z])))


def test_missing_slices_are_named(tmp_path):
    paths = write_series(tmp_path, ct(20, 4, 4), left_out=(4, 5, 11))
    assert reason(series_in(paths)) == "3 slices are missing, between 4.0 and 13.0; 25.0 and 31.0 mm"


def test_varying_spacing_is_named(tmp_path):
    positions = [(0, 0, z) for z in (*range(10), *np.arange(10, 30, 2.5))]
    assert reason(series_in(write_series(tmp_path, ct(18, 4, 4), positions=positions))).startswith(
        "spacing varies from 1.00 to 2.50 mm"
    )


def test_slices_shifted_sideways_are_refused(tmp_path):
    positions = [(0.8 * (i % 2), 0, 3 * i) for i in range(10)]
    assert "shifted" in reason(series_in(write_series(tmp_path, ct(10, 4, 4), positions=positions)))


def test_few_slices_are_refused(tmp_path):
    assert reason(series_in(write_series(tmp_path, ct(7, 4, 4)))) == "7 slices, at least 8 are needed"
    only(series_in(write_series(tmp_path, ct(7, 4, 4)), min_slices=7))


def test_skewed_axes_are_refused(tmp_path):
    assert "perpendicular" in reason(series_in(write_series(tmp_path, ct(9, 4, 4), orientation=(1, 0, 0, 0.6, 0.8, 0))))


# copies


def test_series_in_one_folder_are_told_apart(tmp_path):
    volumes = [ct(10, 6, 8, seed=1), ct(12, 6, 8, seed=2)]
    paths = [path for name, volume in zip("ab", volumes) for path in write_series(tmp_path, volume, name)]
    found = sorted((read_series(item) for item in series_in(paths)), key=len)
    assert all(np.array_equal(a, b) for a, b in zip(found, volumes))


def test_copies_of_slices_are_left_out(tmp_path):
    volume = ct(10, 6, 8)
    paths = write_series(tmp_path / "one", volume) + write_series(tmp_path / "two", volume)
    rewrite(paths[13], lambda item: setattr(item, "SOPInstanceUID", uid("copy")))  # the same pixels, another name
    assert np.array_equal(read_series(only(series_in(paths))), volume)


def test_two_different_slices_at_one_place_are_refused(tmp_path):
    paths = write_series(tmp_path, ct(10, 6, 8)) + write_series(tmp_path, ct(10, 6, 8, seed=1), "b")
    for number, path in enumerate(paths):
        rewrite(path, lambda item: setattr(item, "SeriesInstanceUID", uid("a")))
        rewrite(path, lambda item: setattr(item, "StudyInstanceUID", uid("a")))
    assert reason(series_in(paths)) == (
        "10 places hold two different slices, at -5.0, -2.0, 1.0, 4.0 mm and 6 other places"
    )


def test_copies_with_rounded_positions_are_left_out(tmp_path):
    volume = ct(12, 4, 4)
    z = -117.0049 + 6.00147 * np.arange(12)
    paths = write_part(tmp_path, volume, 0, positions=[(0, 0, place) for place in z])
    for digits in (3, 2, 1):
        paths += write_part(
            tmp_path / str(digits), volume, digits, positions=[(0, 0, place) for place in z.round(digits)]
        )
    assert np.array_equal(read_series(only(series_in(paths))), volume)


def test_copies_that_were_compressed_are_left_out(tmp_path):
    volume = ct(10, 16, 16)
    paths = write_part(tmp_path / "one", volume, 0)
    for path in write_part(tmp_path / "two", volume, 0):
        compress(path, "RLELossless")
        paths.append(path)
    assert np.array_equal(read_series(only(series_in(paths))), volume)


def test_other_hu_from_the_same_pixels_are_no_copy(tmp_path):
    paths = write_part(tmp_path, ct(10, 4, 4), 0) + write_part(tmp_path, ct(10, 4, 4) + 1, 1, intercept=-1023)
    assert reason(series_in(paths)).startswith("10 places hold two different slices")


def test_slices_that_lack_rescale_tags_are_counted(tmp_path):
    paths = write_part(tmp_path, ct(20, 4, 4), 0)
    for path in paths[5:9]:
        rewrite(path, lambda item: (delattr(item, "RescaleSlope"), delattr(item, "RescaleIntercept")))
    assert reason(series_in(paths)) == "4 of 20 slices lack RescaleSlope or RescaleIntercept, the others have them"


def test_multi_frame_files_are_read_once(tmp_path, monkeypatch):
    """Two hundred frames in pairs at one place: what is read grows with the file, not with its square."""
    from scripts.data.dicom import contents

    groups = [{"place": i // 2} for i in range(200)]
    path = write_enhanced(tmp_path / "e", ct(200, 4, 4), groups=groups)
    reads, dcmread = [], contents.pydicom.dcmread
    monkeypatch.setattr(contents.pydicom, "dcmread", lambda *args, **more: reads.append(args) or dcmread(*args, **more))
    assert reason(series_in([path])).startswith("100 places hold two different slices")
    assert len(reads) == 2  # its header, its pixels
