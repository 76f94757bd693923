"""Procedural chest phantom in Hounsfield units: seeded, deterministic, and the same patient at every grid.

All organs live in one "design" frame in mm (x to the patient's Right, y Anterior, z Superior; an average adult) that a
per-seed scale, offset and spine curve map to the world. Surfaces are signed distances, negative inside; a distance
becomes a voxel coverage by a ramp one voxel wide, so that a coarse grid looks like an average-pooled CT.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

_NAMES = "air fat muscle lung vessel airway heart great_vessel liver abdomen bone disc nodule table cartilage "
_NAMES += "mediastinum"
LABELS: dict[str, int] = {name: code for code, name in enumerate(_NAMES.split())}

_RANGES: dict[str, tuple[float, float]] = {
    "sx": (0.90, 1.02), "sy": (0.90, 1.05), "sz": (0.92, 1.05), "dx": (-6, 6), "dy": (-16, -6), "dz": (-8, 8),
    "fat": (4, 13), "sex": (0, 1), "breast": (14, 30), "bend": (-5, 5), "bend_at": (0, 6.28), "kyphosis": (2, 11),
    "dome_right": (-62, -40), "dome_drop": (4, 18), "dome_tilt": (0.0, 0.25), "heart": (0.86, 1.12),
    "heart_x": (-24, -14), "heart_tilt": (0.35, 0.65), "aorta": (11.5, 15.5), "arch": (46, 58), "lung_hu": (-885, -825),
    "lung_slope": (0.2, 0.7), "rib_shift": (-0.5, 0.5), "rib_pitch": (22.5, 25.5), "rib_drop": (0.85, 1.15),
    "vertebra": (22, 25.5), "vertebra_at": (0, 24), "marrow": (100, 190), "cortex": (480, 800),
    "contrast": (-230, 230), "liver_hu": (42, 66),
    "table_gap": (1, 7), "table_curve": (700, 1500), "gas": (-0.8, 0.7), "spleen": (0.8, 1.2), "scapula": (0.85, 1.15),
    "cage_power": (2.15, 2.5), "muscle_hu": (45, 62), "trachea": (7.5, 9.5),
}  # fmt: skip


def _cover(distance: np.ndarray, width: float) -> np.ndarray:
    """Voxel coverage (0..1) of the inside of a surface at signed `distance` (mm), ramp of `width` mm."""
    return np.clip(0.5 - distance * np.float32(1.0 / width), 0, 1)


def _smooth_min(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Union of two signed distances (mm) with a fillet of about `k` mm."""
    h = np.maximum(k - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / k)


def _ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: Sequence[float], axes: Sequence[float]
) -> np.ndarray:
    """Near-surface signed distance (mm) to an axis-aligned ellipsoid at broadcastable coordinates (mm)."""
    parts = [((c - m) / np.float32(s)) ** 2 for c, m, s in zip((x, y, z), centre, axes)]
    k0 = np.sqrt(parts[0] + parts[1] + parts[2])
    k1 = np.sqrt(sum(q / np.float32(s * s) for q, s in zip(parts, axes))) + np.float32(1e-6)
    return k0 * (k0 - 1) / k1


def _section(
    x: np.ndarray, y: np.ndarray, half_x: np.ndarray | float, half_y: np.ndarray | float, power: float
) -> np.ndarray:
    """Ray distance (mm) to the superellipse |x/half_x|^power + |y/half_y|^power = 1 at broadcastable x, y."""
    f = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** np.float32(1 / power) + np.float32(1e-4)
    return np.sqrt(x * x + y * y) * (1 - 1 / f)


class _Canvas:
    """The volume being painted, with world and design coordinates of its voxel centres."""

    def __init__(self, p: SimpleNamespace, grid: Sequence[int], fov: Sequence[float], labels: bool) -> None:
        self.p, self.grid, self.step = p, tuple(grid), np.array([f / n for f, n in zip(fov, grid)])
        self.origin = 0.5 * self.step - 0.5 * np.asarray(fov)
        axes = [(self.origin[i] + self.step[i] * np.arange(n)).astype(np.float32) for i, n in enumerate(grid)]
        z = axes[2][None, None, :]
        bend, kyphosis = (v.astype(np.float32) for v in _curve(p, z))
        self.x = (axes[0][:, None, None] - bend) / np.float32(p.sx)
        self.y = (axes[1][None, :, None] - kyphosis) / np.float32(p.sy)
        self.z = (z - np.float32(p.dz)) / np.float32(p.sz)
        self.scale = (p.sx * p.sy * p.sz) ** (1 / 3)
        self.h = float(np.prod(self.step) ** (1 / 3)) / self.scale
        self.hu = np.full(self.grid, -1000, np.float32)
        self.labels = np.zeros(self.grid, np.uint8) if labels else None

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[tuple[slice, ...], tuple[np.ndarray, ...]]:
        """Slices and design coordinates of a block (design mm) grown by one and a half voxels."""
        cut = []
        for axis, coordinate in enumerate((self.x, self.y, self.z)):
            values = np.moveaxis(coordinate, axis, 0).reshape(self.grid[axis], -1)
            near = (values.max(1) > low[axis] - 1.5 * self.h) & (values.min(1) < high[axis] + 1.5 * self.h)
            index = np.flatnonzero(near)
            cut.append(slice(int(index[0]), int(index[-1]) + 1) if index.size else slice(0, 0))
        sx, sy, sz = cut
        return (sx, sy, sz), (self.x[sx, :, sz], self.y[:, sy, sz], self.z[:, :, sz])

    def paint(self, alpha: np.ndarray, hu: float | np.ndarray, label: str, where: object = ...) -> None:
        """Blends material `hu` over the block `where` with coverage `alpha` (broadcastable, 0..1)."""
        block = self.hu[where]
        block += alpha * (hu - block)
        if self.labels is not None:
            self.labels[where][alpha > 0.4] = LABELS[label]

    def tubes(self, start: np.ndarray, stop: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Coverage of capsules: `start`, `stop` (n, 3), `radius` (n,) in design mm; thin ones fade by area."""
        start, stop = _to_world(self.p, start), _to_world(self.p, stop)
        radius, h = np.asarray(radius, np.float64) * self.scale, self.h * self.scale
        count = np.maximum(np.ceil(np.linalg.norm(stop - start, axis=1) / np.maximum(h, 0.6 * radius)), 1).astype(int)
        owner = np.repeat(np.arange(len(count)), count)
        part = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)) / count[owner]
        delta = ((stop - start) / count[:, None])[owner]
        first, r = start[owner] + part[:, None] * (stop - start)[owner], radius[owner]
        reach = np.ceil((r + 0.5 * h + 0.5 * np.linalg.norm(delta, axis=1)) / self.step.min() + 0.3).astype(int)
        pad = int(reach.max())  # a border wide enough that no capsule needs masking voxel by voxel
        out = np.zeros([n + 2 * pad for n in self.grid], np.float32)
        middle = np.rint((first + 0.5 * delta - self.origin) / self.step).astype(int)
        seen = ((middle >= 0) & (middle < self.grid)).all(1)
        for m in np.unique(reach[seen]):
            chosen = np.flatnonzero(seen & (reach == m))
            for some in np.array_split(chosen, 1 + chosen.size * (2 * int(m) + 1) ** 3 // 1_500_000):
                self._splat(out, pad, int(m), middle[some], first[some], delta[some], r[some])
        return out[pad:-pad, pad:-pad, pad:-pad]

    def _splat(
        self, out: np.ndarray, pad: int, m: int, middle: np.ndarray, first: np.ndarray, delta: np.ndarray, r: np.ndarray
    ) -> None:
        """Raises `out` to the coverages of capsules (world mm) over the (2m + 1)^3 voxels around their middles."""
        h = np.float32(self.h * self.scale)
        side = np.arange(-m, m + 1)
        offset = [axis.ravel() for axis in np.meshgrid(side, side, side, indexing="ij")]
        corner = (middle * self.step + self.origin - first).astype(np.float32)
        gap = [corner[:, i, None] + (offset[i] * self.step[i]).astype(np.float32) for i in range(3)]
        d = delta.astype(np.float32)
        unit = d / np.maximum((d * d).sum(1, keepdims=True), 1e-9)
        t = np.clip(sum(gap[i] * unit[:, i, None] for i in range(3)), 0, 1)
        distance = np.sqrt(sum((gap[i] - t * d[:, i, None]) ** 2 for i in range(3)))
        broad = np.maximum(r, 0.5 * h).astype(np.float32)
        amount = np.where(r < 0.5 * h, r * r / (broad * broad + h * h / 12), 1).astype(np.float32)
        value = amount[:, None] * _cover(distance - broad[:, None], h)
        index = np.ravel_multi_index(tuple((middle + pad).T), out.shape)[:, None]
        index = index + (offset[0] * out.shape[1] + offset[1]) * out.shape[2] + offset[2]
        used = value > 0
        np.maximum.at(out.reshape(-1), index[used], value[used])


def _curve(p: SimpleNamespace, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sideways and forward displacement (mm) of the patient's axis at world height `z` (mm)."""
    return p.dx + p.bend * np.sin(z / 80 + p.bend_at), p.dy + p.kyphosis * ((z / 110) ** 2 - 0.5)


def _to_world(p: SimpleNamespace, points: np.ndarray) -> np.ndarray:
    """Maps design points (n, 3) to world mm."""
    z = points[:, 2] * p.sz + p.dz
    bend, kyphosis = _curve(p, z)
    return np.stack([points[:, 0] * p.sx + bend, points[:, 1] * p.sy + kyphosis, z], 1)


def _texture(lattice: np.ndarray, c: _Canvas) -> np.ndarray:
    """Smooth random field: a cubic `lattice` over +-200 design mm, interpolated separably; grid-independent."""
    n = lattice.shape[0]
    weights = []
    for axis, size in enumerate(c.grid):
        t = ((c.origin[axis] + c.step[axis] * np.arange(size)) / 400 + 0.5) * (n - 1)
        gap = np.clip(1 - np.abs(t[:, None] - np.arange(n)) / 1.5, 0, 1)
        weights.append((gap * gap * (3 - 2 * gap)).astype(np.float32))
    out = np.tensordot(weights[0], lattice.astype(np.float32), (1, 0))
    out = np.matmul(weights[1], out)
    return np.matmul(out, weights[2].T)


def _cage(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the inner chest wall: a superellipse that closes into a dome towards the apices."""
    u = np.clip((z + 70) / 192, 0, 0.9995)
    half_x, half_y = 115 * np.sqrt(1 - u**2.9), 77 * np.sqrt(1 - u**2.6)
    slope = np.clip(166 * u**1.9 / np.maximum(half_x, 12), 0, 2.5)
    flat = _section(x, y + 18 * u * u, half_x, half_y, p.cage_power) / np.sqrt(1 + 0.5 * slope * slope)
    return np.maximum(flat, z - 122)


def _diaphragm(p: SimpleNamespace, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height (design mm) of the two diaphragm domes over (x, y), deepest at the back and the sides."""
    back = 50 * (np.minimum(y - 18, 0) / 85) ** 2 + 26 * (np.maximum(y - 18, 0) / 60) ** 2
    right = p.dome_right - 52 * ((x - 38) / 78) ** 2
    left = p.dome_right - p.dome_drop - 50 * ((x + 56) / 62) ** 2
    return np.maximum(right, left) - back - p.dome_tilt * np.abs(y)


def _heart(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the heart: a body with its apex to the left and front, right atrium, left atrium."""
    k, t = p.heart, p.heart_tilt
    dx, dy, dz = x - p.heart_x, y - 16, z + 30
    long = -0.76 * dx + 0.45 * dy - t * 0.75 * dz
    long, wide = long / 1.03, 0.51 * dx + 0.86 * dy
    up = dz - 0.45 * t * dx
    ventricles = _ellipsoid(long, wide, up, (8, 0, 0), (58 * k, 40 * k, 40 * k))
    atria = _ellipsoid(x, y, z, (20, 6, -26), (31 * k, 33 * k, 38 * k))
    return _smooth_min(ventricles, _smooth_min(atria, _ellipsoid(x, y, z, (0, -16, -14), (38, 22, 26)), 8), 10)


def _mediastinum(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to everything between the lungs except the tubes painted later."""
    core = _ellipsoid(x, y, z, (0, -2, 45), (30, 43, 125))
    sheet = np.abs(x + 3) - 4 - 0.003 * (y - 45) ** 2 - 16 * np.clip((y - 62) / 20, 0, 1)
    sheet = np.maximum(sheet, -y - 30)
    spine = np.sqrt(x * x + np.minimum(y + 50, 0) ** 2 * 0.15 + np.maximum(y + 50, 0) ** 2) - 22
    return _smooth_min(_smooth_min(_heart(p, x, y, z) - 3, core, 12), _smooth_min(sheet, spine, 10), 10)


def _lung(
    p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray, cage: np.ndarray | None = None
) -> np.ndarray:
    """Signed distance (mm) to both lungs; inside the cage, above the diaphragm, outside the mediastinum."""
    cage = _cage(p, x, y, z) if cage is None else cage
    open_side = np.maximum(cage, -_mediastinum(p, x, y, z))
    return -_smooth_min(-open_side, (z - _diaphragm(p, x, y)) * np.float32(0.7), 6)


def _tree(rng: np.random.Generator, root: np.ndarray, targets: np.ndarray, tip: float) -> tuple[np.ndarray, ...]:
    """Vessel tree from `root` (3,) to `targets` (n, 3): starts, stops (2n, 3) and radii (2n,), in design mm."""
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))]
    nodes = np.vstack([root, np.zeros((2 * len(targets), 3))])
    parent, path = np.zeros(len(nodes), int), np.zeros(len(nodes))
    jitter = rng.normal(0, 0.09, targets.shape)
    for i, target in enumerate(targets):
        m = 2 * i + 1
        gap = np.sqrt(((nodes[:m] - target) ** 2).sum(1))
        j = int(np.argmin(gap + 0.45 * path[:m]))
        nodes[m], nodes[m + 1] = 0.5 * (nodes[j] + target) + jitter[i] * gap[j], target
        parent[m], parent[m + 1] = j, m
        path[m], path[m + 1] = path[j] + 0.5 * gap[j], path[j] + gap[j]
    leaves = np.zeros(len(nodes))
    leaves[2::2] = 1
    for i in range(len(nodes) - 1, 0, -1):
        leaves[parent[i]] += leaves[i]
    return nodes[parent[1:]], nodes[1:], tip * leaves[1:] ** 0.365


def _draw(seed: int) -> SimpleNamespace:
    """Draws one patient; nothing here may depend on the grid."""
    rng = np.random.default_rng(seed)
    p = SimpleNamespace(**{name: rng.uniform(low, high) for name, (low, high) in _RANGES.items()})
    p.contrast = max(p.contrast, 0.0)
    p.blood = 42 + p.contrast
    p.coarse, p.fine = rng.standard_normal((9, 9, 9)), rng.standard_normal((34, 34, 34))
    points = rng.uniform((-116, -84, -130), (116, 76, 122), (3600, 3))
    inside = points[_lung(p, *points.T) < -4]
    trees = []
    for side in (1, -1):
        mine = inside[inside[:, 0] * side > 0]
        trees.append(_tree(rng, np.array([side * 34.0, -8, 14]), mine[:260], 0.88))
        trees.append(_tree(rng, np.array([side * 30.0, -18, -8]), mine[260:420], 0.84))
    p.vessels = [np.concatenate(parts) for parts in zip(*trees)]
    number = int(rng.integers(0, 5))
    p.nodules = list(zip(inside[-number:] if number else [], rng.uniform(0, 1, (4, 5))))
    return p


def _paths(c: _Canvas, tubes: Sequence[Sequence[Sequence[float]]], grow: float = 0.0) -> np.ndarray:
    """Coverage of smooth tubes, each a list of points (x, y, z, radius) in design mm, widened by `grow` mm."""
    parts = []
    for tube in tubes:
        rows = np.asarray(tube, float)
        for _ in range(2 if len(rows) > 2 else 0):  # corner cutting rounds the bends
            inner = np.stack([0.75 * rows[:-1] + 0.25 * rows[1:], 0.25 * rows[:-1] + 0.75 * rows[1:]], 1)
            rows = np.vstack([rows[:1], inner.reshape(-1, 4), rows[-1:]])
        parts.append(np.hstack([rows[:-1, :3], rows[1:, :3], 0.5 * (rows[:-1, 3:] + rows[1:, 3:]) + grow]))
    every = np.concatenate(parts)
    return c.tubes(every[:, :3], every[:, 3:6], every[:, 6])


def _paint_body(c: _Canvas, cage: np.ndarray) -> None:
    """Table, skin, fat, muscle."""
    p, x, y, z = c.p, c.x, c.y, c.z
    neck = 1 - 0.5 * np.clip((z - 88) / 95, 0, 1) ** 1.6
    body = _section(x, y + 4, (132 + p.fat) * neck, (101 + p.fat) * (0.5 + 0.5 * neck), 2.35)
    furrow = 7 * np.exp(-((x / 16) ** 2)) - 4 * np.exp(-((np.abs(x) / 34 - 1.4) ** 2))  # between the back muscles
    body = body + furrow * np.clip(-y / 60, 0, 1) - 2 * _texture(p.coarse, c)
    where, (bx, by, bz) = c.box((-400, -400, 40), (400, 400, 400))
    along = np.clip((bz - 95) / 90, 0, 1)
    arm = np.sqrt((np.abs(bx) - 92 - 55 * along) ** 2 + (by + 18) ** 2 + (bz - 95 - 90 * along) ** 2 * 0.6)
    body[where] = _smooth_min(body[where], arm - 46 - 0.5 * p.fat, 18)
    skin, breast = body, p.sex > 0.5
    if breast:
        where, (bx, by, bz) = c.box((-135, 55, -80), (135, 170, 60))
        bump = _ellipsoid(np.abs(bx), by, bz, (72, 82, -14), (56, 14 + p.breast, 56))
        skin = body.copy()
        skin[where] = _smooth_min(body[where], bump, 32)
    back = p.dy - (105 + p.fat) * p.sy - p.table_gap - p.kyphosis * 0.5
    tx = (c.x * p.sx) ** 2 / p.table_curve
    plate = (c.y * p.sy + _curve(p, c.z * p.sz + p.dz)[1]) - tx - back
    for top, thick in ((0.0, 2.5), (-22.0 + tx * 0.6, 2.5)):
        shell = _cover(plate - top, c.h * c.scale) - _cover(plate - top + thick, c.h * c.scale)
        c.paint(shell, -120, "table")
    c.paint(_cover(skin, c.h), 10, "fat")
    fibro = np.clip(_texture(p.fine, c) * 60 - 30, 0, 110) if breast else 0
    c.paint(_cover(skin + 2, c.h), -105 + fibro, "fat")
    wall = np.maximum(body + (2 + p.fat) * (1.15 if breast else 1.0), 0.12 * body + cage * 0.4 - 26)
    c.paint(_cover(wall, c.h), p.muscle_hu + 6 * _texture(p.fine, c), "muscle")
    seam = _cover(np.abs(cage - 21 - 4 * _texture(p.coarse, c)) - 1.6, c.h)
    c.paint(0.75 * seam * _cover(wall + 3, c.h), -95, "fat")


def _paint_abdomen(c: _Canvas, cage: np.ndarray) -> None:
    """Fat, liver, spleen and stomach under the diaphragm, which stays as a thin muscle sheet."""
    p = c.p
    where, (x, y, z) = c.box((-400, -400, -400), (400, 400, p.dome_right + 8))
    sheet = np.maximum(cage[where], z - _diaphragm(p, x, y) + 1)
    c.paint(_cover(sheet, c.h), p.muscle_hu, "muscle", where)
    room, top = sheet + 3, p.dome_right - p.dome_drop
    c.paint(_cover(room, c.h), -98, "abdomen", where)
    spleen = np.maximum(_ellipsoid(x, y, z, (-78, -34, top - 42), (32 * p.spleen, 44 * p.spleen, 46)), room + 1)
    c.paint(_cover(spleen, c.h), 50 + 0.3 * p.contrast, "abdomen", where)
    liver = _ellipsoid(x, y, z, (52, 2, p.dome_right - 70), (92, 92, 76))
    c.paint(_cover(np.maximum(liver, room), c.h), p.liver_hu + 0.22 * p.contrast, "liver", where)
    stomach = np.maximum(_ellipsoid(x, y, z, (-50, 18, top - 40), (36, 44, 40)), room + 1)
    c.paint(_cover(stomach, c.h), 40, "abdomen", where)
    c.paint(_cover(stomach + 4, c.h), 18, "abdomen", where)
    bubble = np.maximum(stomach + 4, 18 + 44 * p.gas - y)  # supine: the gas floats to the front, flat below
    c.paint(_cover(bubble, c.h), -960, "airway", where)


def _paint_lungs(c: _Canvas, cage: np.ndarray) -> None:
    """Mediastinal fat, lung tissue, the vessel trees and nodules."""
    p = c.p
    chest = np.maximum(cage, _diaphragm(p, c.x, c.y) - c.z)
    c.paint(_cover(chest + 2, c.h), -70 + 25 * _texture(p.fine, c), "mediastinum")
    lung = _cover(_lung(p, c.x, c.y, c.z, cage), c.h)
    tissue = p.lung_hu - p.lung_slope * c.y + 14 * _texture(p.coarse, c) + 16 * _texture(p.fine, c)
    c.paint(lung, tissue, "lung")
    c.paint(c.tubes(*p.vessels) * lung, 35 + 0.8 * p.contrast, "vessel")
    for centre, (size, solid, *squash) in p.nodules:
        r = 3 + 11 * size**2
        where, (x, y, z) = c.box(centre - 1.5 * r, centre + 1.5 * r)
        axes = (r, r * (0.75 + 0.4 * squash[0]), r * (0.75 + 0.4 * squash[1]))
        lumps = np.sin((x - centre[0]) * 5 / r) * np.sin((y - centre[1]) * 4 / r + 1) * np.sin((z - centre[2]) * 4 / r)
        shape = _ellipsoid(x, y, z, centre, axes) + lumps * r * 0.15
        c.paint(_cover(shape, c.h) * lung[where], -620 if solid < 0.2 else 10 + 50 * squash[2], "nodule", where)


def _great_vessels(p: SimpleNamespace) -> list[list[tuple[float, ...]]]:
    """Tubes as points (x, y, z, radius) in design mm; the last one is the inferior vena cava."""
    r, top = p.aorta, p.arch
    ascending = [(-4, 8, -12, r), (10, 22, 12, r * 1.1), (11, 20, top - 18, r * 1.08), (2, 4, top + 4, r)]
    descending = [(-16, -22, top + 2, r * 0.9), (-21, -38, top - 24, r * 0.86), (-21, -42, 0, r * 0.84)]
    lumbar = [(-16, -34, -80, r * 0.8), (-6, -26, -190, r * 0.75)]
    pulmonary = [
        [(-16, 36, -12, 13), (-18, 28, 10, 13), (-20, 8, 24, 12.5)],
        [(-20, 8, 22, 11), (8, 0, 17, 10), (38, -8, 14, 8)],
    ]
    pulmonary += [[(-20, 8, 24, 11.5), (-30, -6, 27, 10), (-38, -14, 20, 8)], [(0, -16, -10, 9), (36, -20, -8, 6)]]
    pulmonary += [[(0, -16, -8, 9), (-34, -20, -6, 6)]]
    arteries = [
        [(6, 10, top, 6), (16, 4, 88, 5.5), (24, -4, 190, 4)],
        [(-6, -2, top, 5), (-14, -4, 100, 4), (-22, -8, 190, 3.5)],
    ]
    arteries += [[(-14, -16, top, 5), (-26, -20, 95, 5), (-60, -10, 140, 4)]]
    veins = [
        [(25, 8, 95, 8), (25, 6, 50, 9), (24, 6, -10, 10)],
        [(25, 10, 90, 8), (-4, 20, 78, 6.5), (-36, 14, 104, 6.5)],
    ]
    veins += [[(25, 10, 90, 7), (38, 8, 108, 6.5)], [(20, -4, -40, 11), (20, -8, -80, 12), (18, -20, -190, 11)]]
    return [ascending + descending + lumbar] + pulmonary + arteries + veins


def _airways(t: float) -> list[list[tuple[float, ...]]]:
    """Trachea of radius `t`, main and lobar bronchi, as points (x, y, z, radius) in design mm."""
    return [
        [(0, -2, 190, t), (1, -10, 90, t), (3, -16, 38, t)],
        [(3, -16, 40, t * 0.8), (20, -15, 24, t * 0.75), (44, -18, 6, t * 0.5)],
        [(3, -16, 40, t * 0.75), (-18, -17, 24, t * 0.68), (-44, -20, 8, t * 0.5)],
        [(26, -15, 20, 4.5), (46, -8, 36, 2.8)],
        [(42, -18, 8, 4), (54, -32, -40, 2.2)],
        [(-42, -20, 9, 4), (-56, -36, -40, 2.2)],
        [(-40, -19, 10, 4), (-58, 2, 34, 2.4)],
    ]


def _paint_heart(c: _Canvas) -> None:
    """Heart with its chambers, great vessels, oesophagus and airways."""
    p = c.p
    where, (x, y, z) = c.box((-105, -45, -90), (65, 75, 30))
    heart = _heart(p, x, y, z)
    c.paint(_cover(heart + 2, c.h), 45 + 0.25 * p.contrast, "heart", where)
    k = p.heart_x
    chambers = [((k - 22, 16, -34), (27, 22, 24)), ((22, 8, -26), (22, 24, 28)), ((0, -16, -14), (32, 16, 20))]
    chambers.append(((k + 8, 38, -34), (34, 16, 26)))  # left ventricle, right atrium, left atrium, right ventricle
    inner = np.minimum.reduce([_ellipsoid(x, y, z, *chamber) for chamber in chambers])
    c.paint(_cover(np.maximum(inner, heart + 5), c.h), p.blood - 4, "heart", where)
    tubes = _great_vessels(p)
    c.paint(_paths(c, tubes[:-1]), p.blood, "great_vessel")
    c.paint(_paths(c, tubes[-1:]), 42 + 0.5 * p.contrast, "great_vessel")
    gullet = [(-3, -26, 190, 6), (-5, -27, 40, 6.5), (-8, -28, -40, 7), (-22, -14, -90, 8)]
    c.paint(_paths(c, [gullet]), 32, "mediastinum")
    for grow, hu in ((1.6, 15), (0.0, -985)):
        c.paint(_paths(c, _airways(p.trachea), grow), hu, "airway")


def _bone(c: _Canvas, distance: np.ndarray, shell: float, where: object = ...) -> None:
    """Cortex with marrow inside it from one signed distance (mm)."""
    c.paint(_cover(distance, c.h), c.p.cortex, "bone", where)
    c.paint(_cover(distance + shell, c.h), c.p.marrow, "bone", where)


def _paint_wall(c: _Canvas, cage: np.ndarray) -> None:
    """Ribs, their cartilages and the scapulae: bands in the shell around the cage, found in closed form."""
    p = c.p
    index = np.nonzero((cage > -1 - c.h) & (cage < 26 + c.h) & (c.z < 122))
    x, y, z = (np.broadcast_to(v, c.grid)[index] for v in (c.x, c.y, c.z))
    depth, side = cage[index], np.abs(x)
    theta = np.arctan2(side, -(y + 8)) / np.float32(np.pi)  # 0 at the spine, 1 at the sternum
    rise = 2.2 * np.maximum(theta - 0.72, 0) ** 1.2  # the cartilages climb back to the sternum
    fall = np.sin(np.minimum(theta / 0.72, 1) * np.pi / 2) ** 1.3 - rise
    top, first, more = 118 + p.rib_shift * p.rib_pitch, 27 * p.rib_drop, 8.8 * p.rib_drop
    pitch = p.rib_pitch + more * fall
    number = (top - z - first * fall) / pitch
    rib = np.clip(np.rint(number), 0, 11)
    high = (number - rib) * pitch * 0.82
    end = np.where(rib > 9.5, 0.42, 0.78 - 0.012 * rib)
    section = (np.sqrt((high / 5.7) ** 2 + ((depth - 5) / 3.6) ** 2) - 1) * 4.0
    tip = (theta - end) * 300
    bone, soft = np.maximum(section, np.maximum(tip, (0.085 - theta) * 260)), np.maximum(section, -tip)
    thick = 1.6 + 2.5 * np.clip((side - 92) / 16, 0, 1)
    blade = np.maximum(np.abs(depth - 17 - 3 * np.sin(z / 18)) - thick, np.abs(z - 52) - 62 * p.scapula)
    blade = np.maximum(blade, np.abs(side - 84 - 0.18 * (z - 52)) - 8 - 0.2 * np.clip(z + 10, 0, 110))
    blade = np.maximum(blade, y + 10)
    block = c.hu[index]
    layers = [(np.where(rib < 9.5, soft, 9), 95.0, "cartilage"), (np.minimum(bone, blade), p.cortex, "bone")]
    layers.append((bone + 1.4, p.marrow, "bone"))
    for distance, hu, label in layers:
        alpha = _cover(distance, c.h)
        block += alpha * (hu - block)
        if c.labels is not None:
            c.labels[tuple(i[alpha > 0.4] for i in index)] = LABELS[label]
    c.hu[index] = block


def _paint_spine(c: _Canvas) -> None:
    """Vertebrae with discs, canal and processes."""
    p = c.p
    where, (x, y, z) = c.box((-42, -112, -400), (42, -30, 400))
    side, body = np.abs(x), _section(x, y + 50, 17.5 - 0.02 * z, 14.5 - 0.015 * z, 2.3)

    def level(shift: float | np.ndarray) -> np.ndarray:
        height = z + shift + p.vertebra_at
        return height - p.vertebra * np.rint(height / p.vertebra)

    waist = body + 1.8 * np.cos(level(0) * (6.28 / p.vertebra)) - 0.6
    c.paint(_cover(body, c.h), 85, "disc", where)
    _bone(c, np.maximum(waist, np.abs(level(0)) - p.vertebra / 2 + 2.4), 0.9, where)
    back = -(y + 50)
    arch = np.maximum(_section(x, y + 73, 15, 13, 2), np.abs(level(0)) - 8)
    drop = level(np.maximum(back - 30, 0) * 0.55)
    spinous = np.maximum(np.maximum(side - 3.6, np.abs(drop) - 6), np.maximum(back - 53, 28 - back))
    lateral = np.sqrt((back - 24 - 0.25 * side) ** 2 + (level(0) - 3) ** 2) - 5.5
    lateral = np.maximum(lateral, np.maximum(side - 33, 10 - side))
    _bone(c, np.minimum(np.minimum(arch, spinous), lateral), 2.2, where)
    canal = _section(x, y + 72, 9.5, 8.2, 2)
    c.paint(_cover(canal, c.h), 10, "muscle", where)
    c.paint(_cover(canal + 3, c.h), 38, "muscle", where)


def _paint_front_bones(c: _Canvas) -> None:
    """Sternum, clavicles and upper arm bones."""
    p = c.p
    where, (x, y, z) = c.box((-34, 30, -70), (34, 110, 92))
    u = np.clip((z + 70) / 192, 0, 0.99)
    front = 77 * np.sqrt(1 - u**2.6) - 18 * u * u + 6
    wide = 15 + 11 * np.clip((z - 45) / 35, 0, 1) - 8 * np.clip((-z - 30) / 30, 0, 1)
    plate = (np.sqrt((x / wide) ** 4 + ((y - front) / 6) ** 4) ** 0.5 - 1) * 6
    _bone(c, np.maximum(plate, np.maximum(z - 84, -62 - z)), 0.9, where)
    clavicle = [(24, 30, 88, 7), (58, 32, 100, 5.5), (92, 6, 124, 6), (118, -12, 138, 7)]
    clavicles = [[(s * px, *rest) for px, *rest in clavicle] for s in (1, -1)]
    arms = [[(s * 112, -18, 118, 17), (s * 150, -16, 190, 12)] for s in (1, -1)]
    c.paint(_paths(c, clavicles + arms), p.cortex * 0.9, "bone")
    c.paint(np.maximum(_paths(c, clavicles, -2.2), _paths(c, arms, -3.5)), p.marrow * 0.8, "bone")


def _add_noise(c: _Canvas, seed: int) -> None:
    """Adds quantum noise, a bit correlated in plane: about 22 HU at 1 mm, 8 HU at 4 mm."""
    rng = np.random.default_rng([seed, *c.grid])
    noise = rng.standard_normal(c.grid, dtype=np.float32)
    for axis in (0, 1):
        noise = noise + np.float32(0.35) * np.roll(noise, 1, axis)
    noise *= np.float32(22 * (c.h * c.scale) ** -0.73 / (1 + 0.35**2))
    c.hu += noise * np.where(c.hu > -900, np.float32(1), np.float32(0.7))


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
        field_of_view_mm: Edge length in mm, one for all axes or one per axis, centred on the scanner's axis.
        return_labels: Whether to return the label volume as well.

    Returns:
        HU, float32 of shape `grid`, in [-1024, 2000]; with `return_labels` also uint8 codes of `LABELS`, same shape.
    """
    fov = np.broadcast_to(np.asarray(field_of_view_mm, float), (3,))
    p = _draw(seed)
    c = _Canvas(p, [int(n) for n in grid], fov, return_labels)
    cage = _cage(p, c.x, c.y, c.z)
    _paint_body(c, cage)
    _paint_abdomen(c, cage)
    _paint_lungs(c, cage)
    _paint_heart(c)
    _paint_wall(c, cage)
    _paint_spine(c)
    _paint_front_bones(c)
    _add_noise(c, seed)
    hu = np.clip(c.hu, -1024, 2000).astype(np.float32, copy=False)
    return (hu, c.labels) if return_labels else hu
