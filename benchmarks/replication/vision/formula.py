"""Images made by formulas, in classes, from a seed alone: what the base of the vision suites is trained on.

Every class is a function on the plane, and an image of it is that function on a grid of pixels that was
rotated, stretched, moved and bent. Four families:

    strokes   ink near a few Bézier curves, whose control points tremble       (like letters)
    contours  the inside of r < 1 + Σ a_k cos(kθ + φ_k), with holes             (like things)
    fractals  how long z ← z² + c stays small                                   (Julia 1918)
    waves     a sum of plane waves                                              (like textures)

After Kataoka et al., Pre-training without Natural Images (2020), which uses fractals only.
"""

from __future__ import annotations

import math

import torch

__all__ = ["CLASSES", "SIZE", "Formulas"]

SIZE = 32
FAMILIES = {"strokes": 500, "contours": 200, "fractals": 100, "waves": 200}
CLASSES = sum(FAMILIES.values())
POINTS = 20
"""Of each curve; neighbours are about a pixel apart."""


class Formulas:
    """The classes of a seed; `draw` makes images of them."""

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.curves = torch.rand(FAMILIES["strokes"], 4, 4, 2, generator=draw) * 1.7 - 0.85
        number = torch.randint(1, 5, (FAMILIES["strokes"], 1), generator=draw)
        self.used = torch.arange(4) < number
        straight = torch.rand(FAMILIES["strokes"], 4, generator=draw) < 0.35
        ends = torch.linspace(0, 1, 4)[:, None]
        lines = self.curves[:, :, :1] * (1 - ends) + self.curves[:, :, 3:] * ends
        self.curves = torch.where(straight[..., None, None], lines, self.curves)
        joined = torch.rand(FAMILIES["strokes"], 3, generator=draw) < 0.5  # a curve goes on where one ended
        for k in range(3):
            move = (self.curves[:, k, 3] - self.curves[:, k + 1, 0]) * joined[:, k, None]
            self.curves[:, k + 1] += move[:, None]
        middle = (self.curves.amax((1, 2)) + self.curves.amin((1, 2))) / 2
        self.curves = (self.curves - middle[:, None, None]).clamp(-1, 1)

        count, waves = FAMILIES["contours"], torch.arange(1, 7)
        self.amplitudes = torch.randn(count, 2, 6, generator=draw) * 0.55 / waves
        self.phases = torch.rand(count, 2, 6, generator=draw) * 2 * math.pi
        self.hole = torch.rand(count, generator=draw) * 1.2 - 0.5  # its radius; none where it is negative

        angle = torch.rand(FAMILIES["fractals"], generator=draw) * 2 * math.pi
        radius = (1 - angle.cos()) / 2  # on the edge of the main cardioid, where the sets are richest
        edge = radius * torch.exp(1j * angle) + 0.25
        self.constants = edge * (1.02 + 0.13 * torch.rand(len(angle), generator=draw))

        count = FAMILIES["waves"]
        pace = 2 + 9 * torch.rand(count, 3, generator=draw) ** 1.5
        rotation = torch.rand(count, 3, generator=draw) * math.pi
        self.paces = torch.stack([pace * rotation.cos(), pace * rotation.sin()], -1)
        self.weights = torch.rand(count, 3, generator=draw)
        self.sharp = 0.5 + 4 * torch.rand(count, generator=draw)

    def draw(self, count: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images, shape [n, 3, 32, 32], in [0, 1], and their classes, shape [n]."""
        labels = torch.randint(CLASSES, (count,), generator=draw)
        grid = _grid(count, draw)
        shown, first = torch.empty(count, SIZE * SIZE), 0
        for family, number in FAMILIES.items():
            which = ((labels >= first) & (labels < first + number)).nonzero()[:, 0]
            if len(which):
                shown[which] = getattr(self, f"_{family}")(labels[which] - first, grid[which], draw)
            first += number
        behind = torch.randint(FAMILIES["waves"], (count,), generator=draw)
        ground = self._waves(behind, _grid(count, draw), draw)
        return _coloured(shown, ground, draw), labels

    def _strokes(self, which: torch.Tensor, grid: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        curves = self.curves[which]
        curves = curves + 0.07 * torch.randn(curves.shape, generator=draw)
        t = torch.linspace(0, 1, POINTS)[:, None]
        bases = torch.cat([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
        points = torch.einsum("pk,nckd->ncpd", bases, curves)
        points = points + 1e3 * (~self.used[which])[..., None, None]  # far away: not drawn
        distance = torch.cdist(grid, points.flatten(1, 2)).amin(2)
        width = 0.05 + 0.12 * torch.rand(len(which), 1, generator=draw)
        soft = 0.02 + 0.03 * torch.rand(len(which), 1, generator=draw)
        return torch.sigmoid((width - distance) / soft)

    def _contours(self, which: torch.Tensor, grid: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        radius, angle = grid.norm(dim=2), torch.atan2(grid[..., 1], grid[..., 0])
        waves = torch.arange(1, 7)
        sizes = self.amplitudes[which] * (1 + 0.15 * torch.randn(len(which), 2, 6, generator=draw))
        phases = angle[:, None, :, None] * waves + self.phases[which][:, :, None]
        edge = 0.75 + 0.5 * torch.einsum("nckw,ncw->nck", phases.cos(), sizes)
        outer = torch.sigmoid((edge[:, 0] - radius) / 0.04)
        inner = torch.sigmoid((self.hole[which][:, None] * edge[:, 1] - radius) / 0.04)
        return outer * (1 - inner)

    def _fractals(self, which: torch.Tensor, grid: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        z = torch.view_as_complex(1.35 * grid.contiguous())
        noise = 0.006 * torch.randn(len(which), 2, generator=draw)
        c = self.constants[which] + torch.view_as_complex(noise)
        stays = torch.zeros(grid.shape[:2])
        for _ in range(14):
            z = z * z + c[:, None]
            z = torch.where(z.abs() < 4, z, torch.full_like(z, 4.0))
            stays += z.abs() < 2
        return (stays / 14) ** 1.5

    def _waves(self, which: torch.Tensor, grid: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        phase = torch.rand(len(which), 1, 3, generator=draw) * 2 * math.pi
        phases = torch.einsum("nkd,nwd->nkw", grid, self.paces[which]) + phase
        total = torch.einsum("nkw,nw->nk", phases.cos(), self.weights[which])
        return torch.sigmoid(self.sharp[which][:, None] * total)


def _grid(count: int, draw: torch.Generator) -> torch.Tensor:
    """Return pixels' places in the formulas' planes, shape [n, 1024, 2]: an affine map, then a bend."""

    def around(size: float) -> torch.Tensor:
        return size * (2 * torch.rand(count, generator=draw) - 1)

    rotation, shear = around(0.3), around(0.25)
    wide, high = torch.exp(around(0.25) + 0.12), torch.exp(around(0.25) + 0.12)
    linear = torch.stack(
        [wide * rotation.cos(), shear - wide * rotation.sin(), high * rotation.sin(), high * rotation.cos()]
    )
    line = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    pixels = torch.cartesian_prod(line, line).flip(1)
    moved = pixels - torch.stack([around(0.2), around(0.2)], 1)[:, None]
    grid = moved @ linear.T.reshape(count, 2, 2).transpose(1, 2)
    bend = torch.stack([around(0.08), around(0.08)], 1)[:, None]
    return grid + bend * (2.5 * grid.flip(2) + torch.stack([around(3), around(3)], 1)[:, None]).sin()


def _coloured(shown: torch.Tensor, ground: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return images whose ink and ground have colours, greys or a texture, with noise."""
    count = len(shown)

    def bernoulli(share: float) -> torch.Tensor:
        return (torch.rand(count, 1, 1, generator=draw) < share).float()

    ink, paper, spots = torch.rand(3, count, 3, 1, generator=draw)
    plain, black = bernoulli(0.6), bernoulli(0.7)
    ink, paper = ((1 - plain) * c + plain * c.mean(1, keepdim=True) for c in (ink, paper))
    ink = black * (0.75 + 0.25 * ink) + (1 - black) * ink  # most are light on dark, as drawings of digits are
    paper = black * 0.12 * paper * bernoulli(0.5) + (1 - black) * paper
    close = (ink - paper).abs().amax(1, keepdim=True) < 0.3
    ink = torch.where(close, 1 - paper.round(), ink)
    behind = paper + (1 - black) * bernoulli(0.5) * (spots - paper) * ground[:, None] * 0.6
    image = behind + shown[:, None] * (ink - behind)
    image = image + bernoulli(0.12) * (1 - 2 * image)  # inverted
    noise = 0.08 * torch.rand(count, 1, 1, generator=draw) ** 2 * torch.randn(image.shape, generator=draw)
    return (image + noise).clamp(0, 1).view(count, 3, SIZE, SIZE)
