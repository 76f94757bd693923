"""Procedural chest phantom in Hounsfield units: seeded, deterministic, and the same patient at every grid.

A seed draws a patient; the organs are painted one over another, from the skin to the bones, and noise comes last.
Frames, units and array shapes are those of `shapes`: x, y, z are coordinates in design mm that broadcast
together, distances are signed and negative inside, and lengths are in design mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from .shapes import (
    Block,
    Canvas,
    Tube,
    cage_shape,
    cover,
    diaphragm_height,
    ellipsoid,
    grow_tree,
    heart_shape,
    lung_shape,
    smooth_min,
    spine_curve,
    superellipse,
)

_NAMES = (
    "air fat muscle lung vessel airway heart great_vessel liver abdomen bone disc nodule table cartilage mediastinum"
)
LABELS: dict[str, int] = {name: code for code, name in enumerate(_NAMES.split())}  # codes of the label volume

# Lowest and highest value of what differs between patients. They are drawn in this order, so a seed is another patient
# once an entry is added, removed or moved.
_RANGES: dict[str, tuple[float, float]] = {
    "sx": (0.90, 1.02), "sy": (0.90, 1.05), "sz": (0.92, 1.05),  # size along x, y, z, in average adults
    "dx": (-6, 6), "dy": (-16, -6), "dz": (-8, 8),  # shift in the scanner, mm
    "fat": (4, 13), "sex": (0, 1), "breast": (14, 30),  # thickness, mm; breasts where sex is above 0.5
    "bend": (-5, 5), "bend_at": (0, 6.28), "kyphosis": (2, 11),  # spine: sideways, mm; its phase, rad; forward, mm
    "dome_right": (-62, -40), "dome_drop": (4, 18), "dome_tilt": (0.0, 0.25),  # diaphragm: z, mm; left lower, mm; mm/mm
    "heart": (0.86, 1.12), "heart_x": (-24, -14), "heart_tilt": (0.35, 0.65),  # size; x, mm; apex down, mm/mm
    "aorta": (11.5, 15.5), "arch": (46, 58),  # radius, mm; z of the arch, mm
    "lung_hu": (-885, -825), "lung_slope": (0.2, 0.7),  # HU; HU per mm, as the back of the lung is denser
    "rib_shift": (-0.5, 0.5), "rib_pitch": (22.5, 25.5), "rib_drop": (0.85, 1.15),  # pitches; mm; slant, as a factor
    "vertebra": (22, 25.5), "vertebra_at": (0, 24),  # from one vertebra to the next; shift along z, mm
    "marrow": (100, 190), "cortex": (480, 800),  # HU
    "contrast": (-230, 230), "liver_hu": (42, 66),  # contrast medium in blood, HU, none where below 0; liver without it
    "table_gap": (1, 7), "table_curve": (700, 1500),  # below the back, mm; twice the radius of the table's curve, mm
    "gas": (-0.8, 0.7), "spleen": (0.8, 1.2), "scapula": (0.85, 1.15),  # level in the stomach / 44 mm; sizes
    "cage_power": (2.15, 2.5), "muscle_hu": (45, 62), "trachea": (7.5, 9.5),  # exponent of the cage; HU; radius, mm
}  # fmt: skip


def _draw(seed: int) -> SimpleNamespace:
    """Draws one patient; nothing here may depend on the grid.

    Returns:
        The values of `_RANGES` by name; `blood` in HU; `coarse` and `fine`, lattices for `Canvas.texture`; `vessels`,
        the starts (n, 3), stops (n, 3) and radii (n,) of the lungs' vessels in design mm; `nodules`, a list of
        (centre (3,) in design mm, five numbers in 0..1).
    """
    rng = np.random.default_rng(seed)
    p = SimpleNamespace(**{name: rng.uniform(low, high) for name, (low, high) in _RANGES.items()})
    p.contrast = max(p.contrast, 0.0)  # half of the patients have none
    p.blood = 42 + p.contrast
    p.coarse, p.fine = rng.standard_normal((9, 9, 9)), rng.standard_normal((34, 34, 34))
    points = rng.uniform((-116, -84, -130), (116, 76, 122), (3600, 3))
    x, y, z = points.T
    inside = points[lung_shape(p, x, y, z, cage_shape(p, x, y, z)) < -4]
    trees = []
    for side in (1, -1):
        mine = inside[inside[:, 0] * side > 0]  # arteries to the first 260 points, veins to the next 160
        trees.append(grow_tree(rng, np.array([side * 34.0, -8, 14]), mine[:260], 0.88))
        trees.append(grow_tree(rng, np.array([side * 30.0, -18, -8]), mine[260:420], 0.84))
    p.vessels = [np.concatenate(parts) for parts in zip(*trees)]
    number = int(rng.integers(0, 5))
    p.nodules = list(zip(inside[-number:] if number else [], rng.uniform(0, 1, (4, 5))))
    return p


def _paint_body(c: Canvas, cage: np.ndarray) -> None:
    """Table, skin, fat and muscle; `cage` (X, Y, Z) is the signed distance (mm) to the inner chest wall."""
    p, x, y, z = c.p, c.x, c.y, c.z
    neck = 1 - 0.5 * np.clip((z - 88) / 95, 0, 1) ** 1.6
    body = superellipse(x, y + 4, (132 + p.fat) * neck, (101 + p.fat) * (0.5 + 0.5 * neck), 2.35)
    furrow = 7 * np.exp(-((x / 16) ** 2)) - 4 * np.exp(-((np.abs(x) / 34 - 1.4) ** 2))  # between the back muscles
    body = body + furrow * np.clip(-y / 60, 0, 1) - 2 * c.texture(p.coarse)
    where, (bx, by, bz) = c.box((-400, -400, 40), (400, 400, 400))  # shoulders and arms, which are up
    along = np.clip((bz - 95) / 90, 0, 1)
    arm = np.sqrt((np.abs(bx) - 92 - 55 * along) ** 2 + (by + 18) ** 2 + (bz - 95 - 90 * along) ** 2 * 0.6)
    body[where] = smooth_min(body[where], arm - 46 - 0.5 * p.fat, 18)
    skin, breast = body, p.sex > 0.5
    if breast:
        where, (bx, by, bz) = c.box((-135, 55, -80), (135, 170, 60))
        bump = ellipsoid(np.abs(bx), by, bz, (72, 82, -14), (56, 14 + p.breast, 56))
        skin = body.copy()
        skin[where] = smooth_min(body[where], bump, 32)
    # the table is no part of the patient: its distances are in world mm
    back = p.dy - (105 + p.fat) * p.sy - p.table_gap - p.kyphosis * 0.5
    tx = (c.x * p.sx) ** 2 / p.table_curve
    plate = (c.y * p.sy + spine_curve(p, c.z * p.sz + p.dz)[1]) - tx - back
    for top in (0.0, -22.0 + tx * 0.6):  # its two shells, 2.5 mm thick
        shell = cover(plate - top, c.edge * c.scale) - cover(plate - top + 2.5, c.edge * c.scale)
        c.paint(shell, -120, "table")
    c.fill(skin, 10, "fat")
    fibro = np.clip(c.texture(p.fine) * 60 - 30, 0, 110) if breast else 0  # HU of glands within the fat
    c.fill(skin + 2, -105 + fibro, "fat")
    wall = np.maximum(body + (2 + p.fat) * (1.15 if breast else 1.0), 0.12 * body + cage * 0.4 - 26)
    c.fill(wall, p.muscle_hu + 6 * c.texture(p.fine), "muscle")
    # a seam of fat between two layers of muscle
    seam = cover(np.abs(cage - 21 - 4 * c.texture(p.coarse)) - 1.6, c.edge)
    c.paint(0.75 * seam * cover(wall + 3, c.edge), -95, "fat")


def _paint_abdomen(c: Canvas, cage: np.ndarray) -> None:
    """Fat, liver, spleen and stomach under the diaphragm, a sheet of muscle; `cage` as in `_paint_body`."""
    p = c.p
    where, (x, y, z) = c.box((-400, -400, -400), (400, 400, p.dome_right + 8))
    sheet = np.maximum(cage[where], z - diaphragm_height(p, x, y) + 1)
    c.fill(sheet, p.muscle_hu, "muscle", where)
    room, top = sheet + 3, p.dome_right - p.dome_drop  # what the muscle leaves; z of the left dome
    c.fill(room, -98, "abdomen", where)
    spleen = np.maximum(ellipsoid(x, y, z, (-78, -34, top - 42), (32 * p.spleen, 44 * p.spleen, 46)), room + 1)
    c.fill(spleen, 50 + 0.3 * p.contrast, "abdomen", where)
    liver = ellipsoid(x, y, z, (52, 2, p.dome_right - 70), (92, 92, 76))
    c.fill(np.maximum(liver, room), p.liver_hu + 0.22 * p.contrast, "liver", where)
    stomach = np.maximum(ellipsoid(x, y, z, (-50, 18, top - 40), (36, 44, 40)), room + 1)
    c.fill(stomach, 40, "abdomen", where)
    c.fill(stomach + 4, 18, "abdomen", where)  # what it holds, inside a wall of 4 mm
    bubble = np.maximum(stomach + 4, 18 + 44 * p.gas - y)  # supine: the gas floats to the front, flat below
    c.fill(bubble, -960, "airway", where)


def _paint_lungs(c: Canvas, cage: np.ndarray) -> None:
    """Mediastinal fat, lung tissue, its vessels and nodules; `cage` as in `_paint_body`."""
    p = c.p
    chest = np.maximum(cage, diaphragm_height(p, c.x, c.y) - c.z)
    c.fill(chest + 2, -70 + 25 * c.texture(p.fine), "mediastinum")
    lung = cover(lung_shape(p, c.x, c.y, c.z, cage), c.edge)
    tissue = p.lung_hu - p.lung_slope * c.y + 14 * c.texture(p.coarse) + 16 * c.texture(p.fine)
    c.paint(lung, tissue, "lung")
    c.paint(c.capsules(*p.vessels) * lung, 35 + 0.8 * p.contrast, "vessel")
    # few nodules are large, a fifth are ground glass
    for centre, (size, solid, deep, high, dense) in p.nodules:
        r = 3 + 11 * size**2
        where, (x, y, z) = c.box(centre - 1.5 * r, centre + 1.5 * r)
        axes = (r, r * (0.75 + 0.4 * deep), r * (0.75 + 0.4 * high))
        lumps = np.sin((x - centre[0]) * 5 / r) * np.sin((y - centre[1]) * 4 / r + 1) * np.sin((z - centre[2]) * 4 / r)
        shape = ellipsoid(x, y, z, centre, axes) + lumps * r * 0.15
        c.paint(cover(shape, c.edge) * lung[where], -620 if solid < 0.2 else 10 + 50 * dense, "nodule", where)


def _arteries_and_veins(p: SimpleNamespace) -> list[Tube]:
    """Great vessels but for the lower vena cava, which takes up less contrast medium."""
    r, top = p.aorta, p.arch
    ascending: Tube = [(-4, 8, -12, r), (10, 22, 12, r * 1.1), (11, 20, top - 18, r * 1.08), (2, 4, top + 4, r)]
    descending: Tube = [(-16, -22, top + 2, r * 0.9), (-21, -38, top - 24, r * 0.86), (-21, -42, 0, r * 0.84)]
    lumbar: Tube = [(-16, -34, -80, r * 0.8), (-6, -26, -190, r * 0.75)]
    return [
        ascending + descending + lumbar,
        # pulmonary trunk, right and left pulmonary artery, right and left pulmonary veins
        [(-16, 36, -12, 13), (-18, 28, 10, 13), (-20, 8, 24, 12.5)],
        [(-20, 8, 22, 11), (8, 0, 17, 10), (38, -8, 14, 8)],
        [(-20, 8, 24, 11.5), (-30, -6, 27, 10), (-38, -14, 20, 8)],
        [(0, -16, -10, 9), (36, -20, -8, 6)],
        [(0, -16, -8, 9), (-34, -20, -6, 6)],
        # from the arch: to the right arm and head, to the head on the left, to the left arm
        [(6, 10, top, 6), (16, 4, 88, 5.5), (24, -4, 190, 4)],
        [(-6, -2, top, 5), (-14, -4, 100, 4), (-22, -8, 190, 3.5)],
        [(-14, -16, top, 5), (-26, -20, 95, 5), (-60, -10, 140, 4)],
        # upper vena cava, the veins that join in it from the left and from the right
        [(25, 8, 95, 8), (25, 6, 50, 9), (24, 6, -10, 10)],
        [(25, 10, 90, 8), (-4, 20, 78, 6.5), (-36, 14, 104, 6.5)],
        [(25, 10, 90, 7), (38, 8, 108, 6.5)],
    ]


def _airways(t: float) -> list[Tube]:
    """Trachea of radius `t` (design mm), right and left main bronchus, bronchi of four lobes."""
    return [
        [(0, -2, 190, t), (1, -10, 90, t), (3, -16, 38, t)],
        [(3, -16, 40, t * 0.8), (20, -15, 24, t * 0.75), (44, -18, 6, t * 0.5)],
        [(3, -16, 40, t * 0.75), (-18, -17, 24, t * 0.68), (-44, -20, 8, t * 0.5)],
        [(26, -15, 20, 4.5), (46, -8, 36, 2.8)],
        [(42, -18, 8, 4), (54, -32, -40, 2.2)],
        [(-42, -20, 9, 4), (-56, -36, -40, 2.2)],
        [(-40, -19, 10, 4), (-58, 2, 34, 2.4)],
    ]


def _paint_heart(c: Canvas) -> None:
    """Heart with its chambers, great vessels, oesophagus and airways."""
    p = c.p
    where, (x, y, z) = c.box((-105, -45, -90), (65, 75, 30))
    heart = heart_shape(p, x, y, z)
    c.fill(heart + 2, 45 + 0.25 * p.contrast, "heart", where)
    ventricles = [((p.heart_x - 22, 16, -34), (27, 22, 24)), ((p.heart_x + 8, 38, -34), (34, 16, 26))]  # left, right
    atria = [((22, 8, -26), (22, 24, 28)), ((0, -16, -14), (32, 16, 20))]  # right, left
    inner = np.minimum.reduce([ellipsoid(x, y, z, *chamber) for chamber in ventricles + atria])
    c.fill(np.maximum(inner, heart + 5), p.blood - 4, "heart", where)  # at least 5 mm of muscle around the blood
    c.paint(c.tubes(_arteries_and_veins(p)), p.blood, "great_vessel")
    lower_vena_cava: Tube = [(20, -4, -40, 11), (20, -8, -80, 12), (18, -20, -190, 11)]
    c.paint(c.tubes([lower_vena_cava]), 42 + 0.5 * p.contrast, "great_vessel")
    gullet: Tube = [(-3, -26, 190, 6), (-5, -27, 40, 6.5), (-8, -28, -40, 7), (-22, -14, -90, 8)]
    c.paint(c.tubes([gullet]), 32, "mediastinum")
    for grow, hu in ((1.6, 15), (0.0, -985)):  # the wall, then the air in it
        c.paint(c.tubes(_airways(p.trachea), grow), hu, "airway")


def _bone(c: Canvas, distance: np.ndarray, shell: float, where: Block = ...) -> None:
    """Cortex, `shell` mm thick, with marrow inside it, from one signed distance (mm), shaped as the block `where`."""
    c.fill(distance, c.p.cortex, "bone", where)
    c.fill(distance + shell, c.p.marrow, "bone", where)


def _paint_wall(c: Canvas, cage: np.ndarray) -> None:
    """Ribs, their cartilages and the scapulae, as bands in the wall; `cage` as in `_paint_body`.

    Only the n voxels near the wall are worked on, so all arrays here are (n,).
    """
    p = c.p
    index = np.nonzero((cage > -1 - c.edge) & (cage < 26 + c.edge) & (c.z < 122))
    x, y, z = (np.broadcast_to(v, c.grid)[index] for v in (c.x, c.y, c.z))
    depth, side = cage[index], np.abs(x)
    theta = np.arctan2(side, -(y + 8)) / np.float32(np.pi)  # 0 at the spine, 1 at the sternum
    rise = 2.2 * np.maximum(theta - 0.72, 0) ** 1.2  # the cartilages climb back to the sternum
    fall = np.sin(np.minimum(theta / 0.72, 1) * np.pi / 2) ** 1.3 - rise
    top, first, more = 118 + p.rib_shift * p.rib_pitch, 27 * p.rib_drop, 8.8 * p.rib_drop
    pitch = p.rib_pitch + more * fall  # mm from rib to rib; a lower rib falls more
    number = (top - z - first * fall) / pitch
    rib = np.clip(np.rint(number), 0, 11)  # the nearest of the twelve, from 0 at the top
    high = (number - rib) * pitch * 0.82  # mm from its middle, across the slanting rib
    end = np.where(rib > 9.5, 0.42, 0.78 - 0.012 * rib)  # theta where cartilage takes over; ribs 10, 11 just end
    section = (np.sqrt((high / 5.7) ** 2 + ((depth - 5) / 3.6) ** 2) - 1) * 4.0
    tip = (theta - end) * 300  # theta spans some 300 mm
    bone, soft = np.maximum(section, np.maximum(tip, (0.085 - theta) * 260)), np.maximum(section, -tip)
    soft = np.where(rib < 9.5, soft, 9)  # those two have no cartilage: 9 mm away is out of reach
    thick = 1.6 + 2.5 * np.clip((side - 92) / 16, 0, 1)
    blade = np.maximum(np.abs(depth - 17 - 3 * np.sin(z / 18)) - thick, np.abs(z - 52) - 62 * p.scapula)
    blade = np.maximum(blade, np.abs(side - 84 - 0.18 * (z - 52)) - 8 - 0.2 * np.clip(z + 10, 0, 110))
    blade = np.maximum(blade, y + 10)
    c.fill(soft, 95, "cartilage", index)
    c.fill(np.minimum(bone, blade), p.cortex, "bone", index)
    c.fill(bone + 1.4, p.marrow, "bone", index)


def _paint_spine(c: Canvas) -> None:
    """Vertebrae with their arches and processes, discs and the spinal canal."""
    p = c.p
    where, (x, y, z) = c.box((-42, -112, -400), (42, -30, 400))
    side, body = np.abs(x), superellipse(x, y + 50, 17.5 - 0.02 * z, 14.5 - 0.015 * z, 2.3)

    def level(shift: float | np.ndarray) -> np.ndarray:
        """Height (mm) over the middle of the nearest vertebra, for points `shift` mm above (x, y, z)."""
        height = z + shift + p.vertebra_at
        return height - p.vertebra * np.rint(height / p.vertebra)

    waist = body + 1.8 * np.cos(level(0) * (6.28 / p.vertebra)) - 0.6
    c.fill(body, 85, "disc", where)
    _bone(c, np.maximum(waist, np.abs(level(0)) - p.vertebra / 2 + 2.4), 0.9, where)
    back = -(y + 50)  # mm behind the middle of the body
    arch = np.maximum(superellipse(x, y + 73, 15, 13, 2), np.abs(level(0)) - 8)
    drop = level(np.maximum(back - 30, 0) * 0.55)  # the spinous processes point down
    spinous = np.maximum(np.maximum(side - 3.6, np.abs(drop) - 6), np.maximum(back - 53, 28 - back))
    lateral = np.sqrt((back - 24 - 0.25 * side) ** 2 + (level(0) - 3) ** 2) - 5.5
    lateral = np.maximum(lateral, np.maximum(side - 33, 10 - side))
    _bone(c, np.minimum(np.minimum(arch, spinous), lateral), 2.2, where)
    canal = superellipse(x, y + 72, 9.5, 8.2, 2)
    c.fill(canal, 10, "muscle", where)  # fluid and fat
    c.fill(canal + 3, 38, "muscle", where)  # spinal cord


def _paint_front_bones(c: Canvas) -> None:
    """Sternum, clavicles and upper arm bones."""
    p = c.p
    where, (x, y, z) = c.box((-34, 30, -70), (34, 110, 92))
    u = np.clip((z + 70) / 192, 0, 0.99)
    front = 77 * np.sqrt(1 - u**2.6) - 18 * u * u + 6  # 6 mm in front of the cage's front, see `cage_shape`
    wide = 15 + 11 * np.clip((z - 45) / 35, 0, 1) - 8 * np.clip((-z - 30) / 30, 0, 1)
    plate = (np.sqrt((x / wide) ** 4 + ((y - front) / 6) ** 4) ** 0.5 - 1) * 6
    _bone(c, np.maximum(plate, np.maximum(z - 84, -62 - z)), 0.9, where)
    clavicle: Tube = [(24, 30, 88, 7), (58, 32, 100, 5.5), (92, 6, 124, 6), (118, -12, 138, 7)]
    clavicles: list[Tube] = [[(s * px, *rest) for px, *rest in clavicle] for s in (1, -1)]
    arms: list[Tube] = [[(s * 112, -18, 118, 17), (s * 150, -16, 190, 12)] for s in (1, -1)]
    c.paint(c.tubes(clavicles + arms), p.cortex * 0.9, "bone")
    c.paint(np.maximum(c.tubes(clavicles, -2.2), c.tubes(arms, -3.5)), p.marrow * 0.8, "bone")


def chest_phantom(
    seed: int,
    grid: Sequence[int] = (64, 64, 64),
    field_of_view_mm: float | Sequence[float] = 320.0,
    return_labels: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Builds one patient's chest CT, arms up, lying on a table.

    Axes are (x, y, z) in RAS+ orientation: index 0 of axis 0 is the patient's left (the liver lies at high x),
    axis 1 grows to anterior (the table lies at low y), axis 2 to superior (the lung apices lie at high z).

    Args:
        seed: The patient; the anatomy comes from `np.random.default_rng(seed)` alone and is the same at every grid.
        grid: Voxels along (x, y, z); 32 to 256 are sensible.
        field_of_view_mm: Size of the volume in mm, one for all axes or one per axis, centred on the scanner's axis.
        return_labels: Whether to return the label volume as well.

    Returns:
        HU, float32 of shape `grid`, in [-1024, 2000]; with `return_labels` also uint8 codes of `LABELS`, same shape.
    """
    fov = [float(size) for size in np.broadcast_to(np.asarray(field_of_view_mm, float), (3,))]
    c = Canvas(_draw(seed), [int(n) for n in grid], fov, LABELS if return_labels else None)
    cage = cage_shape(c.p, c.x, c.y, c.z)
    _paint_body(c, cage)
    _paint_abdomen(c, cage)
    _paint_lungs(c, cage)
    _paint_heart(c)
    _paint_wall(c, cage)
    _paint_spine(c)
    _paint_front_bones(c)
    c.add_noise(seed)
    hu = np.clip(c.hu, -1024, 2000).astype(np.float32, copy=False)
    return hu if c.labels is None else (hu, c.labels)
