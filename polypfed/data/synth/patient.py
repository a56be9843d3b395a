"""One patient's bowel: the tube with its folds, the vessel pattern and the polyps, constant over all sequences."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from polypfed.data.synth.look import Style, Triple
from polypfed.data.synth.seeds import Float, cv, rng

AROUND, ALONG, LENGTH = 96, 360, 12.0
"""Wall table: samples around, samples along, length in tube radii after which the tube repeats."""
TEXTURE, TEXTURES = 256, 12


@dataclass(frozen=True)
class Lesion:
    """A polyp in tube coordinates; lengths in tube radii, angles in radians."""

    kind: str
    phi: float
    z: float
    size: float
    stretch: float
    turn: float
    height: float
    tint: Triple
    grain: float
    lobes: float
    phases: tuple[np.float32, ...]  # seven angles that shape the rim and the surface


@dataclass(frozen=True, eq=False)
class Patient:
    """What stays the same over all of a patient's sequences."""

    wall: Float  # (AROUND, ALONG): distance of the wall from the axis
    texture: Float  # (TEXTURE, TEXTURE, 2): vessel density, mottling; periodic both ways
    corner: tuple[float, float]  # where on the texture the patient's bowel begins
    mucosa: Triple
    tone: Triple
    lesions: tuple[Lesion, ...]

    def radius(self, phi: float, z: float) -> float:
        """Distance of the wall from the axis, in mean tube radii."""
        row, column = phi / (2 * np.pi) * AROUND, z / LENGTH * ALONG
        return float(self.wall[int(row) % AROUND, int(column) % ALONG])


@lru_cache(maxsize=8)
def patient(look: Style, name: str) -> Patient:
    """The anatomy drawn from (seed, site, patient)."""
    draw = rng("patient", look.seed, look.site, name)
    return Patient(
        wall=_wall(look, draw),
        texture=_texture(int(draw.integers(TEXTURES))),
        corner=(float(draw.uniform(0, TEXTURE)), float(draw.uniform(0, TEXTURE))),
        mucosa=_vary(draw, look.mucosa, (0.02, 0.10, 0.13)),
        tone=_vary(draw, look.tone, (0.05, 0.04, 0.06)),
        lesions=_lesions(look, draw),
    )


def _wall(look: Style, draw: np.random.Generator) -> Float:
    phi = np.linspace(0, 2 * np.pi, AROUND, endpoint=False, dtype=np.float32)[:, None]
    z = np.linspace(0, LENGTH, ALONG, endpoint=False, dtype=np.float32)[None, :]
    corner = draw.uniform(0, 6.28, 3)
    shape = 1 + 0.06 * np.cos(3 * phi - corner[0]) + 0.05 * np.cos(2 * phi - corner[1])
    wall: Float = (shape + 0.05 * np.cos(phi - corner[2] + 4 * np.pi * z / LENGTH)).astype(np.float32)
    at = 0.0
    while at < LENGTH - 0.35 * look.pitch:
        _fold(look, draw, wall, phi, at)
        at += look.pitch * float(draw.uniform(0.55, 1.6))
    return wall


def _fold(look: Style, draw: np.random.Generator, wall: Float, phi: Float, at: float) -> None:
    """Press one crescent into the wall: deep over part of the ring, slanted and wavy, steeper on its far side."""
    lean, wave, turn = draw.uniform(-0.25, 0.25), draw.uniform(0.02, 0.1), draw.uniform(0, 6.28, 3)
    crescent = 0.5 + 0.38 * np.cos(phi - turn[0]) + 0.25 * np.cos(3 * phi - turn[1])
    depth = look.folds * float(draw.uniform(0.4, 1.2)) * np.clip(crescent, 0, 1.1)
    ring = at + lean * np.cos(phi - turn[2]) + wave * np.cos(4 * phi - turn[0])
    width, step = float(draw.uniform(0.10, 0.22)), LENGTH / ALONG
    columns = np.arange(int((at - 0.8) / step), int((at + 0.8) / step))
    gap = (columns * np.float32(step) - ring).astype(np.float32)
    gap *= np.where(gap > 0, np.float32(1 / (0.6 * width)), np.float32(1 / width))
    wall[:, columns % ALONG] -= (depth * np.exp(-gap * gap)).astype(np.float32)


@lru_cache(maxsize=TEXTURES)
def _texture(number: int) -> Float:
    """Branching vessels and mottling on a torus. Patients share a dozen, each seen from a place of its own."""
    cv2, side, draw = cv(), TEXTURE, rng("texture", number)
    lines: list[list[np.ndarray]] = [[], [], []]
    for _ in range(int(draw.integers(9, 15))):
        start, heading = draw.uniform(side / 2, 1.5 * side, 2), float(draw.uniform(0, 6.28))
        _branch(lines, draw, start, heading, 2, int(draw.integers(16, 30)))
    canvas = np.zeros((2 * side, 2 * side), np.uint8)  # twice the side, folded onto the torus below
    for order, level in enumerate((120, 180, 250)):
        cv2.polylines(canvas, lines[order], False, level, 1 + order // 2, cv2.LINE_AA, 3)
    folded = canvas.reshape(2, side, 2, side).max((0, 2))
    vessels = cv2.GaussianBlur(folded, (0, 0), 0.8).astype(np.float32) * np.float32(1 / 255)
    mottle = sum(w * _lattice(draw, cells) for cells, w in ((8, 0.6), (16, 0.5), (64, 0.4), (128, 0.4)))
    made: Float = cv2.merge([vessels, mottle])
    return made


def _lattice(draw: np.random.Generator, cells: int) -> Float:
    """Periodic noise (TEXTURE, TEXTURE), one value per cell, cubic between."""
    coarse = np.pad(draw.standard_normal((cells, cells), dtype=np.float32), 2, mode="wrap")
    side, edge = TEXTURE * (cells + 4) // cells, TEXTURE * 2 // cells
    grown = cv().resize(coarse, (side, side), interpolation=cv().INTER_CUBIC)
    made: Float = grown[edge : edge + TEXTURE, edge : edge + TEXTURE]
    return made


def _branch(
    lines: list[list[np.ndarray]], draw: np.random.Generator, start: np.ndarray, heading: float, order: int, steps: int
) -> None:
    """Add a wandering line and its thinner children, in eighths of a texel."""
    headings = heading + np.cumsum(draw.normal(0, 0.28, steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * 5.0
    path = start + np.cumsum(moves, 0)
    lines[order].append(np.round(path * 8).astype(np.int32)[:, None])
    if order:
        for at, turn in zip(draw.integers(1, steps, order + 1), draw.uniform(-1.1, 1.1, order + 1), strict=True):
            _branch(lines, draw, path[at], float(headings[at] + turn), order - 1, max(4, int(steps * 0.6)))


def _lesions(look: Style, draw: np.random.Generator) -> tuple[Lesion, ...]:
    """One to three polyps; several lie near each other so that they share a frame."""
    count = 1 + int(draw.uniform() < look.several) * int(draw.integers(1, 3))
    phi, z = float(draw.uniform(0, 2 * np.pi)), float(draw.uniform(0.5, LENGTH - 0.5))
    made: list[Lesion] = []
    for k in range(count):
        made.append(_lesion(look, draw, phi % (2 * np.pi), z, 1.0 if k == 0 else 0.75))
        phi += float(draw.choice((-1, 1)) * draw.uniform(0.6, 1.3))
        z += float(draw.uniform(-0.4, 0.9))
    return tuple(made)


def _lesion(look: Style, draw: np.random.Generator, phi: float, z: float, scale: float) -> Lesion:
    kind = str(draw.choice(("flat", "sessile", "stalked"), p=look.polyp_kinds))
    return Lesion(
        kind=kind,
        phi=phi,
        z=z,
        tint=_vary(draw, look.polyp_tint, (0.05, 0.09, 0.09)),
        size=scale * float(np.clip(np.exp(draw.normal(np.log(0.26), 0.35)), 0.10, 0.55)),
        height={"flat": 0.3, "sessile": 0.85, "stalked": 1.0}[kind] * float(draw.uniform(0.8, 1.25)),
        stretch=float(draw.uniform(0.78, 1.28)),
        turn=float(draw.uniform(0, np.pi)),
        grain=look.polyp_grain,
        lobes=float(draw.uniform(0, 0.35) ** 2),
        phases=tuple(draw.uniform(0, 6.28, 7).astype(np.float32)),
    )


def _vary(draw: np.random.Generator, colour: Triple, spread: Triple) -> Triple:
    red, green, blue = (float(c * f) for c, f in zip(colour, np.exp(draw.normal(0, spread)), strict=True))
    return red, green, blue
