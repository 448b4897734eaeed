"""`open-cloc doctor`: versions, devices, and what is there or missing; asks nothing of the network."""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from open_cloc.cli.parse import parse
from open_cloc.cli.screen import say
from open_cloc.errors import UserError
from open_cloc.files import version_of, versions

DISTRIBUTION = "open-cloc"

# Libraries that change numbers.
LIBRARIES = (
    DISTRIBUTION,
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "huggingface_hub",
    "webdataset",
    "tyro",
)

# What each extra of the package is for.
ENABLES = {
    "wandb": "train --run.report-to wandb",
    "label": "label, and tables in Parquet",
    "fonts": "labels drawn in scripts that the system has no font for",
    "onnx": "export onnx, onnx-int8",
    "eval": "eval detection, polygons of outlines",
    "lora": "train --optim.lora-rank",
    "index": "index, and LanceDB tables that embed their own regions",
    "serve": "serve",
    "supervision": "Predictor.detections",
    "autodistill": "a base model that labels folders",
    "fiftyone": "a model of its zoo, text search over regions",
    "docs": "make docs",
    "cvat": "a function for cvat-cli",
    "dev": "make check",
}


@dataclass(frozen=True)
class Options:
    """Print versions, devices, and what is there or missing; asks nothing of the network."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; always 0: what is missing is said, not judged."""
    parse(Options, argv, "open-cloc doctor")
    for title, rows in (
        ("versions", [("python", platform.python_version()), *versions(*LIBRARIES).items()]),
        ("devices", devices()),
        ("extras", extras()),
        ("phrases of `open-cloc label`", [tagger()]),
        ("weights of `open-cloc train small-pretrained`", small_weights()),
    ):
        say(title)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            say(f"  {name:{width}}  {value}")
    return 0


def devices() -> list[tuple[str, str]]:
    """What torch can run on, and whether it knows bf16 there."""
    import torch

    rows = [("cpu", f"{torch.get_num_threads()} threads, bf16 {_cpu_bf16(torch)}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "yes" if torch.cuda.is_bf16_supported() else "no"
        rows.append(
            (f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, bf16 {bf16}")
        )
    if torch.backends.mps.is_available():
        rows.append(("mps", "yes"))
    if len(rows) == 1:
        rows.append(("gpu", "none that this torch can use"))
    return rows


def _cpu_bf16(torch: ModuleType) -> str:
    # torch has no public word for this; where it does not know either, we do not.
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if known is None:
        return "unknown"
    return "native" if known() else "emulated (slow)"


def extras() -> list[tuple[str, str]]:
    """The package's extras, and which of their libraries are missing."""
    rows = []
    for extra, libraries in libraries_of_extras().items():
        missing = [library for library in libraries if version_of(library) == "not installed"]
        advice = f"not installed ({', '.join(missing)}): pip install '{DISTRIBUTION}[{extra}]'"
        purpose = f"; for {ENABLES[extra]}" if extra in ENABLES else ""
        rows.append((extra, (advice if missing else "installed") + purpose))
    return rows


def libraries_of_extras() -> dict[str, list[str]]:
    """What each extra installs, by the package's metadata; empty where it is not installed as a package."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for requirement in requirements:
        extra = re.search(r"""extra == ['"]([\w-]+)""", requirement)
        library = re.match(r"[\w.-]+", requirement)
        if extra and library and library[0] != DISTRIBUTION:
            found[extra[1]].append(library[0])
    return dict(found)


def tagger() -> tuple[str, str]:
    """The spaCy pipeline that labelling takes unless told otherwise."""
    from open_cloc.labelling.phrases.noun_phrases import find_pipeline
    from open_cloc.labelling.recipe import PhraseConfig

    model = PhraseConfig().spacy_model
    try:
        return model, f"installed: {find_pipeline(model)}"
    except UserError:
        return model, f"not installed: python -m spacy download {model}"


def small_weights() -> list[tuple[str, str]]:
    """Packages from the package index that hold the towers of the recipe `small-pretrained`."""
    from open_cloc.training.recipes import SMALL_PRETRAINED, package_file

    rows = []
    for distribution, (module, pattern) in SMALL_PRETRAINED.items():
        path = package_file(module, pattern)
        state = f"installed: {path}" if path else f"not installed: pip install {distribution}"
        rows.append((distribution, state))
    return rows
