"""Backgrounds of scenes: flat, gradients, stripes and noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

DARK_LEVELS = (22.0, 88.0)  # grey levels of dark and light backgrounds; nothing between, for contrast

LIGHT_LEVELS = (188.0, 238.0)

TINT = 14.0  # backgrounds: largest distance of a channel from grey


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


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform in [low, high]; `rng.integers` takes ten times as long for a single number."""
    return low + int(rng.random() * (high - low + 1))
