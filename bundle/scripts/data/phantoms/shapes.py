"""The geometry of the chest phantom: solids, the surfaces of the chest's large parts, and the canvas they are drawn on.

Shapes live in one "design" frame in mm (x to the patient's Right, y Anterior, z Superior; an average adult). A patient
`p` maps it to the scanner's frame ("world", mm, 0 in the middle of the volume) by scales (sx, sy, sz), shifts
(dx, dy, dz) and the curve of the spine (bend, bend_at, kyphosis); `phantom._RANGES` says what else `p` holds.

Coordinates x, y, z are arrays in design mm that broadcast together, and a result has the shape they broadcast to.
Distances are signed, in mm, negative inside. A ramp one voxel wide turns a distance into the part of the voxel that is
covered, so that a coarse grid looks like an average-pooled fine one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType, SimpleNamespace

import numpy as np

Tube = list[tuple[float, ...]]  # points (x, y, z, radius) along the middle, design mm
Block = tuple[slice, ...] | tuple[np.ndarray, ...] | EllipsisType  # what indexes a part of the volume


def cover(distance: np.ndarray, width: float) -> np.ndarray:
    """Part (0..1) of a voxel that lies inside a surface at signed `distance` (mm), a ramp `width` mm wide."""
    return np.clip(0.5 - distance * np.float32(1.0 / width), 0, 1)


def smooth_min(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Signed distance (mm) to the union of two shapes at `a` and `b` (mm), with a fillet of about `k` mm."""
    h = np.maximum(k - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / k)


def ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: Sequence[float], axes: Sequence[float]
) -> np.ndarray:
    """Signed distance (mm), true near the surface, to an ellipsoid: `centre` and half `axes` along x, y, z in mm."""
    parts = [((c - m) / np.float32(s)) ** 2 for c, m, s in zip((x, y, z), centre, axes)]
    k0 = np.sqrt(parts[0] + parts[1] + parts[2])
    k1 = np.sqrt(sum(q / np.float32(s * s) for q, s in zip(parts, axes))) + np.float32(1e-6)  # not 0 at the centre
    return k0 * (k0 - 1) / k1


def superellipse(
    x: np.ndarray, y: np.ndarray, half_x: np.ndarray | float, half_y: np.ndarray | float, power: float
) -> np.ndarray:
    """Signed distance (mm), along the ray from the axis x = y = 0, to |x / half_x|^power + |y / half_y|^power = 1."""
    f = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** np.float32(1 / power) + np.float32(1e-4)
    return np.sqrt(x * x + y * y) * (1 - 1 / f)


def spine_curve(p: SimpleNamespace, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far (mm, to the right and to the front) the patient's axis is displaced at world height `z` (mm)."""
    return p.dx + p.bend * np.sin(z / 80 + p.bend_at), p.dy + p.kyphosis * ((z / 110) ** 2 - 0.5)


def to_world(p: SimpleNamespace, points: np.ndarray) -> np.ndarray:
    """Maps points (n, 3) in design mm to world mm."""
    z = points[:, 2] * p.sz + p.dz
    right, front = spine_curve(p, z)
    return np.stack([points[:, 0] * p.sx + right, points[:, 1] * p.sy + front, z], 1)


def cage_shape(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the inner chest wall: a superellipse that closes into a dome towards the apices."""
    u = np.clip((z + 70) / 192, 0, 0.9995)  # 0 up to the level of the diaphragm, near 1 at the apices
    half_x, half_y = 115 * np.sqrt(1 - u**2.9), 77 * np.sqrt(1 - u**2.6)
    slope = np.clip(166 * u**1.9 / np.maximum(half_x, 12), 0, 2.5)
    flat = superellipse(x, y + 18 * u * u, half_x, half_y, p.cage_power)
    flat = flat / np.sqrt(1 + 0.5 * slope * slope)  # where the wall leans in, it is nearer than within the slice
    return np.maximum(flat, z - 122)


def diaphragm_height(p: SimpleNamespace, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height z (design mm) of the diaphragm over (x, y): two domes, lowest at the back and the sides."""
    back = 50 * (np.minimum(y - 18, 0) / 85) ** 2 + 26 * (np.maximum(y - 18, 0) / 60) ** 2
    right = p.dome_right - 52 * ((x - 38) / 78) ** 2
    left = p.dome_right - p.dome_drop - 50 * ((x + 56) / 62) ** 2
    return np.maximum(right, left) - back - p.dome_tilt * np.abs(y)


def heart_shape(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the heart: ventricles with the apex to the left and front, right atrium, left atrium."""
    k, t = p.heart, p.heart_tilt
    dx, dy, dz = x - p.heart_x, y - 16, z + 30
    long, wide, up = (-0.76 * dx + 0.45 * dy - t * 0.75 * dz) / 1.03, 0.51 * dx + 0.86 * dy, dz - 0.45 * t * dx
    ventricles = ellipsoid(long, wide, up, (8, 0, 0), (58 * k, 40 * k, 40 * k))
    right = ellipsoid(x, y, z, (20, 6, -26), (31 * k, 33 * k, 38 * k))
    left = ellipsoid(x, y, z, (0, -16, -14), (38, 22, 26))
    return smooth_min(ventricles, smooth_min(right, left, 8), 10)


def mediastinum_shape(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to everything between the lungs except the tubes painted later."""
    core = ellipsoid(x, y, z, (0, -2, 45), (30, 43, 125))  # around the trachea and the great vessels
    sheet = np.abs(x + 3) - 4 - 0.003 * (y - 45) ** 2 - 16 * np.clip((y - 62) / 20, 0, 1)
    sheet = np.maximum(sheet, -y - 30)  # keeps the lungs apart in front of the heart
    spine = np.sqrt(x * x + np.minimum(y + 50, 0) ** 2 * 0.15 + np.maximum(y + 50, 0) ** 2) - 22
    return smooth_min(smooth_min(heart_shape(p, x, y, z) - 3, core, 12), smooth_min(sheet, spine, 10), 10)


def lung_shape(p: SimpleNamespace, x: np.ndarray, y: np.ndarray, z: np.ndarray, cage: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to both lungs: inside the `cage` (mm), outside the mediastinum, above the diaphragm."""
    walls = np.maximum(cage, -mediastinum_shape(p, x, y, z))
    above = (z - diaphragm_height(p, x, y)) * np.float32(0.7)  # less than the height, as the domes are steep
    return -smooth_min(-walls, above, 6)


def grow_tree(rng: np.random.Generator, root: np.ndarray, targets: np.ndarray, tip: float) -> tuple[np.ndarray, ...]:
    """Grows a vessel tree from `root` (3,) that ends at each of `targets` (n, 3) with radius `tip`, all in design mm.

    Returns:
        The starts (2n, 3), stops (2n, 3) and radii (2n,) of its straight pieces, in design mm.
    """
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))]  # from the inside out
    nodes = np.vstack([root, np.zeros((2 * len(targets), 3))])
    parent, path = np.zeros(len(nodes), int), np.zeros(len(nodes))
    jitter = rng.normal(0, 0.09, targets.shape)
    for i, target in enumerate(targets):
        m = 2 * i + 1
        gap = np.sqrt(((nodes[:m] - target) ** 2).sum(1))
        j = int(np.argmin(gap + 0.45 * path[:m]))  # a short branch, but no long detour from the root
        nodes[m], nodes[m + 1] = 0.5 * (nodes[j] + target) + jitter[i] * gap[j], target  # a node halfway bends it
        parent[m], parent[m + 1] = j, m
        path[m], path[m + 1] = path[j] + 0.5 * gap[j], path[j] + gap[j]
    leaves = np.zeros(len(nodes))
    leaves[2::2] = 1
    for i in range(len(nodes) - 1, 0, -1):
        leaves[parent[i]] += leaves[i]
    return nodes[parent[1:]], nodes[1:], tip * leaves[1:] ** 0.365  # near Murray's law, whose exponent is 1/3


class Canvas:
    """The volume of one patient while it is painted; it starts as air, and later paint covers earlier paint.

    Args:
        p: The patient; only what maps design mm to world mm is used here.
        grid: Voxels (X, Y, Z).
        fov: Size of the volume along x, y, z in mm.
        codes: The code of each label by name; None where no label volume is wanted.

    Attributes:
        p, grid: As given.
        hu: The volume in HU, float32 (X, Y, Z).
        labels: The codes, uint8 (X, Y, Z), or None.
        x, y, z: Design mm of the voxel centres, float32, (X, 1, Z), (1, Y, Z) and (1, 1, Z): the spine curves with z.
        step, origin: World mm from voxel to voxel, and world mm of the first voxel's centre, (3,) each.
        scale: World mm per design mm, the geometric mean over the axes.
        edge: Edge of a voxel in design mm, the geometric mean over the axes.
    """

    def __init__(
        self, p: SimpleNamespace, grid: Sequence[int], fov: Sequence[float], codes: Mapping[str, int] | None
    ) -> None:
        self.p, self.grid, self.step = p, tuple(grid), np.array([f / n for f, n in zip(fov, grid)])
        self.origin = 0.5 * self.step - 0.5 * np.asarray(fov)
        axes = [(self.origin[i] + self.step[i] * np.arange(n)).astype(np.float32) for i, n in enumerate(grid)]
        z = axes[2][None, None, :]
        right, front = (v.astype(np.float32) for v in spine_curve(p, z))
        self.x = (axes[0][:, None, None] - right) / np.float32(p.sx)
        self.y = (axes[1][None, :, None] - front) / np.float32(p.sy)
        self.z = (z - np.float32(p.dz)) / np.float32(p.sz)
        self.scale = float((p.sx * p.sy * p.sz) ** (1 / 3))
        self.edge = float(np.prod(self.step) ** (1 / 3)) / self.scale
        self.hu = np.full(self.grid, -1000, np.float32)
        self.codes = codes or {}
        self.labels = None if codes is None else np.zeros(self.grid, np.uint8)

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[tuple[slice, ...], tuple[np.ndarray, ...]]:
        """Finds the voxels between two corners (x, y, z) in design mm, and 1.5 voxels more for the ramp.

        Returns:
            Slices along the three axes, and the block's x, y, z in design mm, shaped as those of the canvas.
        """
        cut = []
        for axis, coordinate in enumerate((self.x, self.y, self.z)):
            values = np.moveaxis(coordinate, axis, 0).reshape(self.grid[axis], -1)
            near = (values.max(1) > low[axis] - 1.5 * self.edge) & (values.min(1) < high[axis] + 1.5 * self.edge)
            index = np.flatnonzero(near)
            cut.append(slice(int(index[0]), int(index[-1]) + 1) if index.size else slice(0, 0))
        sx, sy, sz = cut
        return (sx, sy, sz), (self.x[sx, :, sz], self.y[:, sy, sz], self.z[:, :, sz])

    def paint(self, alpha: np.ndarray, hu: float | np.ndarray, label: str, where: Block = ...) -> None:
        """Mixes `hu` into the block `where` by `alpha`, the part (0..1) of each voxel that it covers, shaped as it."""
        self.hu[where] += alpha * (hu - self.hu[where])
        if self.labels is not None:
            block = self.labels[where]
            block[alpha > 0.4] = self.codes[label]  # less than half, so that thin things keep their label
            self.labels[where] = block  # where `where` holds indices, block is a copy

    def fill(self, distance: np.ndarray, hu: float | np.ndarray, label: str, where: Block = ...) -> None:
        """Paints the inside of the surface at signed `distance` (design mm), shaped as the block `where`."""
        self.paint(cover(distance, self.edge), hu, label, where)

    def texture(self, lattice: np.ndarray) -> np.ndarray:
        """Smooth random field, float32 (X, Y, Z): `lattice` (n, n, n) spans +-200 world mm, so any grid samples it."""
        n = lattice.shape[0]
        weights = []
        for axis, size in enumerate(self.grid):
            t = ((self.origin[axis] + self.step[axis] * np.arange(size)) / 400 + 0.5) * (n - 1)
            gap = np.clip(1 - np.abs(t[:, None] - np.arange(n)) / 1.5, 0, 1)
            weights.append((gap * gap * (3 - 2 * gap)).astype(np.float32))
        out = np.tensordot(weights[0], lattice.astype(np.float32), (1, 0))  # one axis at a time is far less work
        out = np.matmul(weights[1], out)
        return np.matmul(out, weights[2].T)

    def tubes(self, tubes: Sequence[Tube], grow: float = 0.0) -> np.ndarray:
        """Coverage (0..1), (X, Y, Z), of tubes with rounded bends, each widened by `grow` design mm."""
        parts = []
        for tube in tubes:
            rows = np.asarray(tube, float)
            for _ in range(2 if len(rows) > 2 else 0):  # corner cutting rounds the bends
                inner = np.stack([0.75 * rows[:-1] + 0.25 * rows[1:], 0.25 * rows[:-1] + 0.75 * rows[1:]], 1)
                rows = np.vstack([rows[:1], inner.reshape(-1, 4), rows[-1:]])
            parts.append(np.hstack([rows[:-1, :3], rows[1:, :3], 0.5 * (rows[:-1, 3:] + rows[1:, 3:]) + grow]))
        every = np.concatenate(parts)
        return self.capsules(every[:, :3], every[:, 3:6], every[:, 6])

    def capsules(self, start: np.ndarray, stop: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Coverage (0..1), (X, Y, Z), of rods with round ends from `start` to `stop`, (n, 3), `radius` (n,), design mm.

        Each is cut into pieces about as long as a voxel or a radius, so that one piece touches a small cube of voxels.
        """
        start, stop = to_world(self.p, start), to_world(self.p, stop)
        radius, h = np.asarray(radius, np.float64) * self.scale, self.edge * self.scale
        count = np.maximum(np.ceil(np.linalg.norm(stop - start, axis=1) / np.maximum(h, 0.6 * radius)), 1).astype(int)
        owner = np.repeat(np.arange(len(count)), count)  # the rod of each piece
        part = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)) / count[owner]
        delta = ((stop - start) / count[:, None])[owner]
        first, r = start[owner] + part[:, None] * (stop - start)[owner], radius[owner]
        reach = np.ceil((r + 0.5 * h + 0.5 * np.linalg.norm(delta, axis=1)) / self.step.min() + 0.3).astype(int)
        pad = int(reach.max())  # a border wide enough that no piece needs masking voxel by voxel
        out = np.zeros([n + 2 * pad for n in self.grid], np.float32)
        middle = np.rint((first + 0.5 * delta - self.origin) / self.step).astype(int)
        seen = ((middle >= 0) & (middle < self.grid)).all(1)
        for m in np.unique(reach[seen]):
            chosen = np.flatnonzero(seen & (reach == m))
            # about 1.5 million voxels at a time, which bounds the memory
            for some in np.array_split(chosen, 1 + chosen.size * (2 * int(m) + 1) ** 3 // 1_500_000):
                self._stamp(out, pad, int(m), middle[some], first[some], delta[some], r[some])
        return out[pad:-pad, pad:-pad, pad:-pad]

    def _stamp(
        self, out: np.ndarray, pad: int, m: int, middle: np.ndarray, first: np.ndarray, delta: np.ndarray, r: np.ndarray
    ) -> None:
        """Raises `out`, which has a border of `pad` voxels, to the coverage of k pieces of rods.

        A piece runs from `first` (k, 3) to first + `delta` (k, 3) with radius `r` (k,), in world mm, and changes the
        (2m + 1)^3 voxels around voxel `middle` (k, 3). One thinner than a voxel is drawn a voxel thick, but fainter.
        """
        h = np.float32(self.edge * self.scale)
        side = np.arange(-m, m + 1)
        offset = [axis.ravel() for axis in np.meshgrid(side, side, side, indexing="ij")]
        corner = (middle * self.step + self.origin - first).astype(np.float32)
        gap = [corner[:, i, None] + (offset[i] * self.step[i]).astype(np.float32) for i in range(3)]
        d = delta.astype(np.float32)
        unit = d / np.maximum((d * d).sum(1, keepdims=True), 1e-9)
        t = np.clip(sum(gap[i] * unit[:, i, None] for i in range(3)), 0, 1)  # where on the piece a voxel is nearest
        distance = np.sqrt(sum((gap[i] - t * d[:, i, None]) ** 2 for i in range(3)))
        broad = np.maximum(r, 0.5 * h).astype(np.float32)
        # the ratio of the cross-sections; the ramp of `cover` adds h * h / 12 to the square of the drawn radius
        amount = np.where(r < 0.5 * h, r * r / (broad * broad + h * h / 12), 1).astype(np.float32)
        value = amount[:, None] * cover(distance - broad[:, None], float(h))
        index = np.ravel_multi_index(tuple((middle + pad).T), out.shape)[:, None]
        index = index + (offset[0] * out.shape[1] + offset[1]) * out.shape[2] + offset[2]
        used = value > 0
        np.maximum.at(out.reshape(-1), index[used], value[used])

    def add_noise(self, seed: int) -> None:
        """Adds a scanner's noise, a bit correlated in plane: about 22 HU at voxels of 1 mm, 8 HU at 4 mm."""
        rng = np.random.default_rng([seed, *self.grid])
        noise = rng.standard_normal(self.grid, dtype=np.float32)
        for axis in (0, 1):
            noise = noise + np.float32(0.35) * np.roll(noise, 1, axis)
        noise *= np.float32(22 * (self.edge * self.scale) ** -0.73 / (1 + 0.35**2))
        self.hu += noise * np.where(self.hu > -900, np.float32(1), np.float32(0.7))  # air is quieter than tissue
