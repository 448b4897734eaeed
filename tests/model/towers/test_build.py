"""What open_clip builds of a config, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_cloc.model.towers import image_tower_of, text_tower_of
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.open_clip import architecture_cfg
from tests.model.towers.tower_cases import VIT, small_cfg


def test_what_gives_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="CoCa"):
        build_clip(architecture_cfg("coca_ViT-B-32"))
    with pytest.raises(ValueError, match="no grid of image tokens"):
        build_clip(small_cfg({**VIT, "attentional_pool": True, "attn_pooler_heads": 2}))
    with pytest.raises(ValueError, match="patch_dropout must be 0"):
        build_clip(small_cfg({**VIT, "patch_dropout": 0.5}))
    visual = build_clip(small_cfg({"image_size": 64, "timm_model_name": "xcit_nano_12_p16_224"})).visual
    with pytest.raises(ValueError, match="Xcit gives no grid of image tokens"):
        image_tower_of(visual.eval()).encode(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"embed_dim": 8}, "lacks 'vision_cfg'"),
        (small_cfg({**VIT, "pool": "avg"}), "open_clip cannot build.*pool"),
        (
            small_cfg({"image_size": 64, "timm_model_name": "no_such_net"}),
            "open_clip cannot build.*no_such_net",
        ),
    ],
)
def test_wrong_configs_are_one_sentence(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_clip(cfg)
    assert "\n" not in str(error.value)


# Each stands for one family of open_clip's architectures.
REPRESENTATIVES = {
    "ViT-B-32": (7, 7),
    "ViT-B-16-quickgelu": (14, 14),
    "ViT-L-14-CLIPA": (16, 16),
    "RN50": (7, 7),
    "convnext_base": (7, 7),
    "ViT-B-16-SigLIP": (14, 14),
    "EVA02-B-16": (14, 14),
    "MobileCLIP-S1": (8, 8),
    "MobileCLIP-B": (14, 14),
    "ViTamin-S": (14, 14),
    "PE-Core-S-16-384": (24, 24),
    "swin_base_patch4_window7_224": (7, 7),
    "ViT-SO400M-14-SigLIP-384": (27, 27),
}


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_architectures_of_open_clip_build_and_run(name: str) -> None:
    """Shapes only, on the meta device: no memory, no arithmetic."""
    cfg = architecture_cfg(name)
    assert cfg == architecture_cfg(name)
    for part in ("vision_cfg", "text_cfg"):  # fewer layers tell the same story sooner
        if isinstance(cfg[part].get("layers"), int):
            cfg[part]["layers"] = 1
    with torch.device("meta"):
        clip = build_clip(cfg).eval()
    size = cfg["vision_cfg"]["image_size"]
    output = image_tower_of(clip.visual).encode(torch.zeros(1, 3, size, size, device="meta"))
    rows, columns = output.grid_size
    assert (rows, columns) == REPRESENTATIVES[name]
    assert output.image_tokens.shape == (1, rows * columns, image_tower_of(clip.visual).token_width)
    assert output.image_features.shape == (1, cfg["embed_dim"])
    context = cfg["text_cfg"].get("context_length", 77)
    text = text_tower_of(clip.text).encode(torch.zeros(2, context, dtype=torch.long, device="meta"))
    assert text.shape == (2, cfg["embed_dim"])
