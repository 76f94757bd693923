"""Writes DICOM series as scanners do, and as they should not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from scripts.data.dicom import BadSeries, Series, assemble, read_slices

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*names):
    return generate_uid(entropy_srcs=[str(name) for name in names])


def base(pixels, uids, intercept=-1024, slope=1.0, **tags):
    """A CT image (rows, columns) or (frames, rows, columns) in HU without its plane; `tags` go on top."""
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = tags.pop("SOPClassUID", CTImageStorage)
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = uid(*uids)
    item.StudyInstanceUID, item.SeriesInstanceUID = uid("study", uids[0]), uid("series", uids[0])
    item.Modality, item.PatientID, item.PatientName = "CT", "ID-0042", "Doe^Jane"
    item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    item.Rows, item.Columns = pixels.shape[-2:]
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 1
    item.RescaleIntercept, item.RescaleSlope = intercept, slope
    item.PixelData = np.rint((pixels - intercept) / slope).astype("<i2").tobytes()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def save(item, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder,
    volume,
    name="a",
    origin=(-10.0, -20.0, -5.0),
    orientation=AXIAL,
    spacing=(2.0, 1.5),
    step=(0.0, 0.0, 3.0),
    left_out=(),
    positions=None,
    **tags,
):
    """Writes HU (slices, rows, columns), one file a slice; returns the paths.

    Args:
        folder: made if need be.
        volume: HU.
        name: of the series; files of one name belong together.
        origin: first pixel of the first slice, LPS mm.
        orientation: as in the tag.
        spacing: between rows, between columns, mm.
        step: from slice to slice, LPS mm.
        left_out: numbers of missing slices.
        positions: instead of origin and step, one for each slice.
        tags: more tags, and what `base` takes.
    """
    paths = []
    for i, pixels in enumerate(volume):
        if i in left_out:
            continue
        item = base(pixels, (name, i), **tags)
        place = np.add(origin, np.multiply(step, i)) if positions is None else positions[i]
        item.ImagePositionPatient = [float(f"{value:.6f}") for value in place]
        item.ImageOrientationPatient = [float(f"{value:.9f}") for value in orientation]
        item.PixelSpacing, item.SliceThickness, item.InstanceNumber = list(spacing), 3.0, i + 1
        paths.append(save(item, Path(folder) / f"{name}_{i:03d}"))
    return paths


def write_enhanced(
    path, volume, origin=(-10.0, -20.0, -5.0), spacing=(2.0, 1.5), step=(0.0, 0.0, 3.0), order=None, groups=None, **tags
):
    """Writes HU (slices, rows, columns) as one multi-frame file.

    Args:
        path: of the file.
        volume: HU.
        origin: as in `write_series`.
        spacing: as in `write_series`.
        step: as in `write_series`.
        order: the number of the slice for each frame; as many slices as frames in their order without it.
        groups: a dictionary for each slice, of functional groups by name, each one a dictionary of tags or None where it
            is empty; 'place' is the number of the slice along the patient.
        tags: as in `write_series`.
    """
    order = list(range(len(volume)) if order is None else order)
    groups = [{}] * len(volume) if groups is None else groups
    item = base(volume[order], ("enhanced",), SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(volume), **tags)
    del item.RescaleIntercept, item.RescaleSlope
    item.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    shared = item.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = Sequence([_group(ImageOrientationPatient=list(AXIAL))])
    shared.PixelMeasuresSequence = Sequence([_group(PixelSpacing=list(spacing), SliceThickness=3.0)])
    rescale = _group(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")
    shared.PixelValueTransformationSequence = Sequence([rescale])
    frames = []
    for i in order:
        frame, place = Dataset(), groups[i].get("place", i)
        position = np.add(origin, np.multiply(step, place)).tolist()
        frame.PlanePositionSequence = Sequence([_group(ImagePositionPatient=position)])
        for name, content in groups[i].items():
            if name != "place":
                setattr(frame, name, Sequence([] if content is None else [_group(**content)]))
        frames.append(frame)
    item.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return save(item, path)


def _group(**tags):
    group = Dataset()
    for name, value in tags.items():
        setattr(group, name, value)
    return group


def rewrite(path, change):
    """Changes tags of a written file."""
    item = pydicom.dcmread(path)
    change(item)
    item.save_as(path)


def compress(path, syntax, quality=None):
    """Compresses the pixels of a written file by GDCM, without loss where no quality (up to 100) is given."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    if quality is not None:
        codec = gdcm.JPEGCodec()
        codec.SetLossless(False)
        codec.SetQuality(quality)
        change.SetUserCodec(codec)
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def truncate(path, share=0.5):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * share)])


def as_dicom(volume):
    """RAS (X, Y, Z) -> (slices, rows, columns) of an axial series: columns run to the left, rows to the back."""
    return volume.transpose(2, 1, 0)[:, ::-1, ::-1]


def ct(*shape, seed=0):
    """Noise in HU; no two slices are alike."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.float32)


def series_in(paths, **options):
    """What is made of files."""
    return assemble([item for path in paths for item in read_slices(path)], **options)


def only(results):
    (result,) = results
    assert isinstance(result, Series), result.reason
    return result


def reason(results):
    (result,) = results
    assert isinstance(result, BadSeries)
    return result.reason
