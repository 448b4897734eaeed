"""What scenes may show: glyphs, colours, their names, and the pairs that training never sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from open_cloc.data.scenes.backgrounds import BACKGROUNDS
from open_cloc.errors import UserError


class Glyph(NamedTuple):
    """A character of the font and the noun that a person would use for it."""

    character: str
    name: str


class Colour(NamedTuple):
    """A colour name with the RGB that is drawn on dark and on light backgrounds."""

    name: str
    on_dark: tuple[int, int, int]
    on_light: tuple[int, int, int]


# Chosen by looking at all pictographs of the font at 18 pixels: solid shapes first, near-duplicates left out.
# Any prefix is a vocabulary; the first 24 are told apart most easily, those with thin lines come last.
GLYPHS = (
    Glyph("\u2602", "umbrella"),
    Glyph("\u2605", "star"),
    Glyph("\u2665", "heart"),
    Glyph("\u2693", "anchor"),
    Glyph("\u2708", "airplane"),
    Glyph("\u260e", "telephone"),
    Glyph("\u2699", "gear"),
    Glyph("\u2709", "envelope"),
    Glyph("\u2702", "pair of scissors"),
    Glyph("\u2600", "sun"),
    Glyph("\u2601", "cloud"),
    Glyph("\u2691", "flag"),
    Glyph("\u265b", "crown"),
    Glyph("\u265e", "chess knight"),
    Glyph("\u2620", "skull"),
    Glyph("\u27a1", "arrow"),
    Glyph("\u266c", "music note"),
    Glyph("\u2744", "snowflake"),
    Glyph("\u262f", "yin yang"),
    Glyph("\u261b", "pointing hand"),
    Glyph("\u26a1", "lightning bolt"),
    Glyph("\u2714", "check mark"),
    Glyph("\u265c", "chess rook"),
    Glyph("\u2660", "spade"),
    Glyph("\u270e", "pencil"),
    Glyph("\u263b", "smiley"),
    Glyph("\u2618", "shamrock"),
    Glyph("\u262a", "crescent moon"),
    Glyph("\u2646", "trident"),
    Glyph("\u2302", "house"),
    Glyph("\u273f", "flower"),
    Glyph("\u2692", "pair of hammers"),
    Glyph("?", "question mark"),
    Glyph("\u267b", "recycling symbol"),
    Glyph("\u262e", "peace symbol"),
    Glyph("\u2666", "diamond"),
    Glyph("\u2615", "cup"),
    Glyph("\U0001f431", "cat"),
    Glyph("\u267f", "wheelchair"),
    Glyph("\u2603", "snowman"),
)

# The first six lie a sixth of the hue circle apart; orange and purple fall between two of them.
COLOURS = (
    Colour("red", (238, 40, 40), (205, 15, 25)),
    Colour("blue", (70, 115, 255), (25, 60, 215)),
    Colour("green", (60, 205, 75), (15, 140, 45)),
    Colour("yellow", (250, 225, 50), (238, 205, 0)),
    Colour("pink", (255, 105, 190), (240, 50, 150)),
    Colour("cyan", (65, 220, 230), (0, 175, 195)),
    Colour("orange", (255, 135, 20), (235, 100, 0)),
    Colour("purple", (160, 80, 235), (110, 30, 165)),
)

SPLITS = {"train": 0, "val": 1, "test": 2}  # the number enters the seed: do not renumber
NUM_PLACES = 40  # tries for one object, and then for a whole layout


@dataclass(frozen=True)
class SceneConfig:
    """What the scenes look like. Two equal configs give the same scenes.

    Attributes:
        image_size: Height and width in pixels.
        num_glyphs: Length of the prefix of `GLYPHS` in use.
        num_colours: Length of the prefix of `COLOURS` in use.
        min_objects: Fewest objects in a scene.
        max_objects: Most objects in a scene.
        min_object_size: Shortest long side of an object, as a fraction of the image.
        max_object_size: Longest long side, as a fraction too; crowded scenes fall back to smaller ones.
        max_overlap: Largest share of the smaller of two boxes that the other may cover.
        backgrounds: Keys of `BACKGROUNDS`, drawn with equal chance.
        held_out_fraction: Share of colour-glyph pairs that never occur in training.
        held_out_share: Share of the objects of val and test that are drawn from the held-out pairs.
        seed: Chooses the held-out pairs and every scene.

    Raises:
        UserError: On a value out of range or values that do not fit together.
    """

    image_size: int = 64
    num_glyphs: int = 24
    num_colours: int = 6
    min_objects: int = 2
    max_objects: int = 5
    min_object_size: float = 0.22
    max_object_size: float = 0.45
    max_overlap: float = 0.1
    backgrounds: tuple[str, ...] = ("flat", "gradient", "noise", "stripes")
    held_out_fraction: float = 0.15
    held_out_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("image_size", 32, 1024),
            ("num_glyphs", 2, len(GLYPHS)),
            ("num_colours", 2, len(COLOURS)),
            ("min_objects", 1, self.max_objects),
            ("max_objects", 1, 20),
            ("min_object_size", 0.05, self.max_object_size),
            ("max_object_size", 0.05, 1.0),
            ("max_overlap", 0.0, 1.0),
            ("held_out_fraction", 0.0, 1.0),
            ("held_out_share", 0.0, 0.9),
            ("seed", 0, 2**63),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"scenes: {name} must be in [{low}, {high}]; got {value}")
        self._check_backgrounds()
        self._check_room()
        self._check_seen_pairs()

    def _check_backgrounds(self) -> None:
        unknown = [name for name in self.backgrounds if name not in BACKGROUNDS]
        if unknown or not self.backgrounds:
            got = ", ".join(unknown) or "none"
            raise UserError(f"scenes: backgrounds must be some of {', '.join(BACKGROUNDS)}; got {got}")

    def _check_room(self) -> None:
        covered = self.max_objects * self.min_object_size**2
        if covered > 0.4:  # random placing jams near 0.55
            raise UserError(
                f"scenes: {self.max_objects} objects of at least {self.min_object_size:g} of the image cover "
                f"{covered:.2f} of it; expected at most 0.4: lower max_objects or min_object_size"
            )

    def _check_seen_pairs(self) -> None:
        held_out = self.num_held_out
        seen = self.num_glyphs * self.num_colours - held_out
        colours_left = self.num_colours - math.ceil(held_out / self.num_glyphs)
        glyphs_left = self.num_glyphs - math.ceil(held_out / self.num_colours)
        if min(colours_left, glyphs_left) < 2 or seen < self.max_objects:
            raise UserError(
                f"scenes: held_out_fraction={self.held_out_fraction:g} leaves {seen} of "
                f"{self.num_glyphs} x {self.num_colours} pairs for training; expected at least 2 colours for "
                f"each glyph, 2 glyphs for each colour and {self.max_objects} pairs for a scene"
            )

    @property
    def num_held_out(self) -> int:
        """Number of colour-glyph pairs kept out of training."""
        return round(self.held_out_fraction * self.num_glyphs * self.num_colours)


@dataclass(frozen=True)
class Vocabulary:
    """The words of a config's scenes.

    Attributes:
        glyphs: Nouns, in the order of `GLYPHS`.
        colours: Colour names, in the order of `COLOURS`.
        phrases: A phrase for each colour-glyph pair; glyph by glyph, colours innermost.
    """

    glyphs: tuple[str, ...]
    colours: tuple[str, ...]
    phrases: tuple[str, ...]


def phrase_of(colour: str, glyph: str) -> str:
    """Name a colour-glyph pair: "a red umbrella", "an orange star"."""
    article = "an" if colour[0] in "aeiou" else "a"
    if glyph.startswith("pair of "):
        return f"a pair of {colour} {glyph.removeprefix('pair of ')}"
    return f"{article} {colour} {glyph}"


def vocabulary(config: SceneConfig) -> Vocabulary:
    """List the words that the scenes of a config can use, held-out pairs included."""
    glyphs = tuple(glyph.name for glyph in GLYPHS[: config.num_glyphs])
    colours = tuple(colour.name for colour in COLOURS[: config.num_colours])
    phrases = tuple(phrase_of(colour, glyph) for glyph in glyphs for colour in colours)
    return Vocabulary(glyphs, colours, phrases)


def held_out_pairs(config: SceneConfig) -> frozenset[tuple[str, str]]:
    """Return the (colour, glyph) names that never occur in training.

    The pairs lie on diagonals of the glyph-by-colour table, rows and columns shuffled by the seed, so that
    all glyphs, and all colours, lose the same number of pairs to within one.
    """
    return frozenset((COLOURS[c].name, GLYPHS[g].name) for g, c in held_out_indices(config))


def held_out_phrases(config: SceneConfig) -> frozenset[str]:
    """Return the phrases of the held-out pairs."""
    return frozenset(phrase_of(colour, glyph) for colour, glyph in held_out_pairs(config))


def held_out_indices(config: SceneConfig) -> list[tuple[int, int]]:
    """Return the held-out pairs as (row of `GLYPHS`, row of `COLOURS`)."""
    rng = np.random.default_rng([config.seed, len(SPLITS)])
    glyphs = rng.permutation(config.num_glyphs).tolist()
    colours = rng.permutation(config.num_colours).tolist()
    # Walk down the diagonal; where it would meet its own start, step to the next one.
    period = math.lcm(len(glyphs), len(colours))
    return [
        (glyphs[k % len(glyphs)], colours[(k + k // period) % len(colours)])
        for k in range(config.num_held_out)
    ]
