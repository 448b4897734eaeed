"""Backgrounds of scenes: flat, gradients, stripes and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

# Grey levels of dark and of light backgrounds; nothing between them, for contrast.
DARK_LEVELS, LIGHT_LEVELS = (22.0, 88.0), (188.0, 238.0)
TINT = 14.0  # largest distance of a channel from grey


@lru_cache(maxsize=8)
def _ramp(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def _slope(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """A plane that rises in a random direction, (H, W) from 0, and its highest value."""
    angle = 2 * math.pi * rng.random()
    across, down = math.cos(angle), math.sin(angle)
    ramp = _ramp(size)
    rows = (ramp if down > 0 else 1 - ramp) * np.float32(abs(down))
    columns = (ramp if across > 0 else 1 - ramp) * np.float32(abs(across))
    return rows[:, None] + columns, abs(down) + abs(across)


def _flat(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.full((1, 1), rng.random(), dtype=np.float32)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    plane, highest = _slope(rng, size)
    return plane * np.float32(1 / highest)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    plane, _ = _slope(rng, size)
    plane *= np.float32(4 + 8 * rng.random())  # stripes along a side
    plane -= np.floor(plane)
    return np.clip(np.abs(plane * 4 - 2) - 0.5, 0, 1)  # a square wave with soft edges


@lru_cache(maxsize=32)
def _interpolation(size: int, knots: int) -> np.ndarray:
    """(H, knots) weights that stretch a row of knots over the image."""
    place = _ramp(size) * (knots - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots))).astype(np.float32)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    weights = _interpolation(size, 3 + int(6 * rng.random()))
    knots = rng.random((weights.shape[1],) * 2, dtype=np.float32)
    return weights @ knots @ weights.T


# Each returns where a scene's background lies between its two colours: (H, W), or (1, 1), in [0, 1].
BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "flat": _flat,
    "gradient": _gradient,
    "noise": _noise,
    "stripes": _stripes,
}


def draw_background(
    rng: np.random.Generator, size: int, kinds: Sequence[str], levels: tuple[float, float]
) -> np.ndarray:
    """Draw a background between two near-grey colours of similar lightness.

    Args:
        rng: Source of every random choice.
        size: Height and width in pixels.
        kinds: Keys of `BACKGROUNDS`, drawn with equal chance.
        levels: Lowest and highest grey level, in 0..255.

    Returns:
        (H, W, 3) float32 in 0..255.
    """
    low, high = levels
    draws = rng.random(8)
    greys = low + (high - low) * draws[:2]
    first, second = (greys[:, None] + TINT * (2 * draws[2:].reshape(2, 3) - 1)).astype(np.float32)  # (3,)
    kind = kinds[random_integer(rng, 0, len(kinds) - 1)]
    share = BACKGROUNDS[kind](rng, size)[..., None]  # (H, W, 1)
    return np.broadcast_to(first + share * (second - first), (size, size, 3))


def random_integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform in [low, high]; `rng.integers` takes ten times as long for a single number."""
    return low + int(rng.random() * (high - low + 1))
