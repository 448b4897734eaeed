"""What a recipe's numbers may be; a value that cannot be meant is refused by its option's name."""

from __future__ import annotations

import math

from open_cloc.errors import UserError
from open_cloc.labelling.recipe import (
    OWN,
    CaptionConfig,
    DetectorConfig,
    FilterConfig,
    LabelRecipe,
    LabelRunConfig,
    PhraseConfig,
)
from open_cloc.precision import PRECISIONS


def check_recipe(recipe: LabelRecipe) -> None:
    """Refuse a recipe that cannot be meant, before anything is opened.

    Raises:
        UserError: If a value is out of range, or two of them contradict each other; names the option.
    """
    check_caption(recipe.caption)
    check_phrases(recipe.phrases)
    check_detector(recipe.detect)
    _check_filter(recipe.filter, bool(recipe.cycle_weights))
    _check_run(recipe.run)
    if recipe.cycle_weights == OWN and recipe.detect.kind != "cloc" and ":" not in recipe.detect.kind:
        raise UserError(
            f"cycle_weights {OWN!r} needs a CLOC model as detector; got detect.kind {recipe.detect.kind!r}"
        )


def check_caption(config: CaptionConfig) -> None:
    """Refuse a captioner's numbers that cannot be meant. Raises UserError."""
    for name, least in (("max_new_tokens", 1), ("requests", 1), ("retries", 0)):
        _at_least(f"caption.{name}", getattr(config, name), least)
    if not config.timeout > 0:
        raise UserError(f"caption.timeout must be more than 0 seconds; got {config.timeout}")


def check_phrases(config: PhraseConfig) -> None:
    """Refuse phrase rules' numbers that cannot be meant. Raises UserError."""
    for name in ("max_phrases", "max_words", "ngram_words"):
        _at_least(f"phrases.{name}", getattr(config, name), 1)


def check_detector(config: DetectorConfig) -> None:
    """Refuse a detector's settings that cannot be meant. Raises UserError."""
    known = ("auto", *PRECISIONS)
    if config.precision not in known:
        raise UserError(f"detect.precision must be one of {', '.join(known)}; got {config.precision!r}")
    if config.prompt.count("{}") != 1:
        raise UserError(f"detect.prompt must hold {{}} once, for the phrase; got {config.prompt!r}")
    _within("detect.raw_score", config.raw_score, 0, 1)
    _at_least("detect.max_boxes", config.max_boxes, 1)
    if config.image_size < 0:
        raise UserError(f"detect.image_size must be a number of pixels, or 0; got {config.image_size}")


def _check_filter(config: FilterConfig, has_cycle: bool) -> None:
    for name in ("min_score", "nms_iou", "min_side", "max_area"):
        _within(f"filter.{name}", getattr(config, name), 0, 1)
    _within("filter.min_cycle", config.min_cycle, -1, 1)
    _at_least("filter.max_regions", config.max_regions, 0)
    if config.min_cycle > -1 and not has_cycle:
        raise UserError("filter.min_cycle needs a cycle score; set cycle_weights to a CLOC model")


def _check_run(run: LabelRunConfig) -> None:
    for name in ("batch_size", "samples_per_shard", "captioners", "phrasers", "writers"):
        _at_least(f"run.{name}", getattr(run, name), 1)
    _at_least("run.detectors", run.detectors, 0)
    _within("run.max_bad_fraction", run.max_bad_fraction, 0, 1)


def _at_least(option: str, value: float, least: float) -> None:
    if math.isnan(value) or value < least:
        raise UserError(f"{option} must be at least {least}; got {value}")


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{option} must lie in [{low}, {high}]; got {value}")
