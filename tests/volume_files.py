"""Writes volumes as other programs do, and as they should not."""

import gzip
import struct

import nibabel as nib
import numpy as np


def header_nrrd(shape, affine, space="left-posterior-superior", data="", **fields):
    """Header of a NRRD of int16; `fields` replace or add lines, None leaves one out."""
    signs = {"left-posterior-superior": (-1, -1, 1), "LAS": (-1, 1, 1)}.get(space, (1, 1, 1))
    turned = np.diag([*signs, 1.0]) @ affine
    columns = " ".join("(" + ",".join(f"{v:.6f}" for v in turned[:3, axis]) + ")" for axis in range(3))
    lines = {"type": "short", "dimension": "3", "space": space, "sizes": " ".join(map(str, shape))}
    lines |= {"space directions": columns, "endian": "little", "encoding": "gzip" if data.endswith("gz") else "raw"}
    lines |= {"space origin": "(" + ",".join(f"{v:.6f}" for v in turned[:3, 3]) + ")"}
    lines |= {"data file": data} if data else {}
    lines |= {name.replace("_", " "): value for name, value in fields.items()}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None)
    return ("NRRD0004\n" + text + "\n").encode()


def header_mha(shape, affine, data="LOCAL", **fields):
    """Header of a MetaImage of int16; `fields` replace or add lines, None leaves one out."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    lines = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
    lines |= {"TransformMatrix": " ".join(f"{v:.9f}" for v in (lps[:3, :3] / spacing).T.ravel())}
    lines |= {
        "Offset": " ".join(f"{v:.6f}" for v in lps[:3, 3]),
        "ElementSpacing": " ".join(f"{v:.6f}" for v in spacing),
    }
    lines |= {"DimSize": " ".join(map(str, shape)), "ElementType": "MET_SHORT"} | fields | {"ElementDataFile": data}
    return "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None).encode()


def raw(volume):
    """(X, Y, Z) as the bytes of int16, X running fastest."""
    return np.rint(volume).astype("<i2").tobytes(order="F")


def nifti_bytes(volume, affine, sform=1, qform=1, qform_affine=None, dtype=np.int16, change=None):
    """A NIfTI file; `change` gets its bytes to damage them."""
    image = nib.Nifti1Image(np.asarray(volume, dtype), affine)
    image.set_sform(affine, sform)
    image.set_qform(affine if qform_affine is None else qform_affine, qform)
    if qform_affine is None:
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    content = bytearray(image.to_bytes())
    if change is not None:
        change(content)
    return bytes(content)


def put(content, place, form, *values):
    """Writes numbers into the bytes of a header."""
    content[place : place + struct.calcsize(form)] = struct.pack(form, *values)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".nii.gz") else content)
    return path
