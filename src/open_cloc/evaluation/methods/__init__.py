"""Ways to embed regions, by name: each turns a model into what the evaluation tasks need."""

from __future__ import annotations

from typing import get_type_hints

import torch

from open_cloc.config import call_with_options, lookup, parse_spec
from open_cloc.errors import UserError
from open_cloc.evaluation.method import Method, Setup, Weights
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.model.create import names_towers

__all__ = ["DEFAULT", "METHODS", "check_method", "grounding_methods", "open_method"]

# name -> `module:function` taking (WHAT, Setup, **options) and giving a Method.
METHODS = {
    "prompter": "open_cloc.evaluation.methods.prompter:open_prompter",
    "ranked": "open_cloc.evaluation.methods.prompter:open_prompter",
    "head": "open_cloc.evaluation.methods.prompter:open_head",
    "roialign": "open_cloc.evaluation.methods.roialign:open_roialign",
    "mask_pool": "open_cloc.evaluation.methods.mask_pool:open_mask_pool",
    "crop": "open_cloc.evaluation.methods.crop:open_crop",
    "blur": "open_cloc.evaluation.methods.blur:open_blur",
    "whole": "open_cloc.evaluation.methods.whole:open_whole",
    "sum": "open_cloc.evaluation.methods.summed:open_sum",
    "hf_clip": "open_cloc.evaluation.methods.hf_clip:open_hf_clip",
    "fgclip": "open_cloc.evaluation.methods.fgclip:open_fgclip",
    "tipsv2": "open_cloc.evaluation.methods.tipsv2:open_tipsv2",
    "owlv2": "open_cloc.evaluation.methods.owlv2:open_owlv2",
}

DEFAULT = "prompter"
# What a task takes where no method is named: it needs an embedding for each place.
DEFAULTS = {"segmentation": "roialign"}
OF_PICTURES = ("zeroshot_classification", "zeroshot_retrieval")  # tasks that ask for no region

# Names for ways to find a phrase, which embed regions as `prompter` does, and the task that asks for one.
FOR_PHRASES, PHRASE_TASKS = ("ranked", "head"), ("grounding", "pointing")


def open_method(
    spec: str = DEFAULT,
    weights: Weights | None = None,
    config: EvaluationConfig | None = None,
    device: str | torch.device | None = None,
) -> Method:
    """Open a method by `NAME[:WHAT][,option=value...]`.

    Args:
        spec: NAME is a key of `METHODS` or `package.module:Name` of a callable of the same form.
        weights: A CLOC model, or the folder or hub id of one; None for a method that brings its own model.
        config: How to measure.
        device: Where weights are loaded to; None takes a GPU if there is one.

    Raises:
        UserError: On an unknown method or option, and if weights are lacking, or given to no end.
        MissingFileError: If there are no such weights.
    """
    name, what, options = parse_spec(spec, METHODS)
    setup = Setup(weights, config or EvaluationConfig(), device)
    return call_with_options(lookup(METHODS, name, "method"), what, setup, options=options, where=spec)


def default_method(task: str, weights: object) -> str:
    """The method that a task takes where none is named.

    Plain towers have no Prompter: where no region is asked for, nothing misses it.

    Args:
        task: Name of the task.
        weights: As `evaluate` takes them.
    """
    if task in OF_PICTURES and isinstance(weights, str) and names_towers(weights):
        return "whole"
    return DEFAULTS.get(task, DEFAULT)


def check_method(spec: str, task: str) -> None:
    """Refuse a method whose name says what another task measures.

    Args:
        spec: As `open_method` takes it.
        task: Name of the task.

    Raises:
        UserError: If a way to find phrases is asked for where none are looked for.
    """
    kind = parse_spec(spec, METHODS).kind
    if kind in FOR_PHRASES and task not in PHRASE_TASKS:
        others = ", ".join(name for name in METHODS if name not in FOR_PHRASES)
        raise UserError(
            f"method {kind} finds phrases, which {task} does not ask for; expected one of {others}"
        )


def grounding_methods() -> list[str]:
    """Names of the methods that can find the box of a phrase, by what their functions say they give."""
    return [
        name for name in METHODS if hasattr(get_type_hints(lookup(METHODS, name, ""))["return"], "ground")
    ]
