"""Tokens of the last block read otherwise, against loops over heads and tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.dense import Readout, _joined, last_block
from tests.evaluation.tiny_data import make_samples
from tests.tiny import tiny_model

VISION: dict[str, dict[str, Any]] = {
    "open_clip": {"image_size": 48, "patch_size": 16, "width": 32, "layers": 3, "head_width": 8},
    "open_clip, scaled": {
        "image_size": 48,
        "patch_size": 16,
        "width": 32,
        "layers": 1,
        "head_width": 16,
        "ls_init_value": 0.3,
    },
    "norm behind the pooling": {
        "image_size": 48,
        "patch_size": 16,
        "width": 32,
        "layers": 2,
        "head_width": 8,
        "pool_type": "avg",
        "final_ln_after_pool": True,
    },
    "timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
}
TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 8}


@pytest.fixture(params=VISION)
def visual(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    clip = open_clip.model.CustomTextCLIP(24, VISION[request.param], TEXT)
    with torch.no_grad():
        for parameter in clip.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return clip.visual.eval()


def by_loops(queries: Tensor, keys: Tensor, values: Tensor, readout: Readout) -> np.ndarray:
    """One image's tokens (H, T, c), mixed as the readout says: (T, H * c)."""
    q, k, v = (part.double().numpy() for part in (queries, keys, values))
    heads, tokens, width = v.shape
    mixed = np.zeros((tokens, heads * width))
    for head in range(heads):
        for token in range(tokens):
            if readout != "csa":
                row = v[head, token]
            else:
                weights = np.zeros(tokens)
                for x in (q, k):
                    scores = np.exp(x[head] @ x[head, token] / np.sqrt(width))
                    weights += scores / scores.sum()
                row = weights @ v[head]
            mixed[token, head * width : (head + 1) * width] = row
    return mixed


@torch.inference_mode()
@pytest.mark.parametrize("readout", ["value", "value_block", "csa"])
def test_tokens_equal_loops(visual: Any, readout: Readout) -> None:
    size = 160 if hasattr(visual, "trunk") else 48
    pixels = torch.randn(2, 3, size, size)
    with last_block(visual) as caught:
        output = image_tower_of(visual).encode(pixels)
        found = caught.tokens(readout)
    last, (x, rope) = caught._last, caught._came[0]
    assert found.shape == output.image_tokens.shape
    for image in range(2):
        own = x[image : image + 1]
        parts = (part[0] for part in last.queries_keys_values(own, rope))
        mixed = torch.tensor(by_loops(*parts, readout), dtype=torch.float32)[None]
        added = last.project(mixed, own)
        expected = last.norm(added if readout == "value" else last.rest(own, added))[0, last.prefix :]
        torch.testing.assert_close(found[image], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, output.image_tokens, atol=1e-2)


@torch.inference_mode()
def test_the_parts_of_the_block_are_the_block(visual: Any) -> None:
    """Put together in the usual way they give the tower's own tokens."""
    size = 160 if hasattr(visual, "trunk") else 48
    with last_block(visual) as caught:
        output = image_tower_of(visual).encode(torch.randn(2, 3, size, size))
    last, (x, rope) = caught._last, caught._came[0]
    q, k, v = last.queries_keys_values(x, rope)
    attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    tokens = last.norm(last.rest(x, last.project(_joined(attention @ v), x)))[:, last.prefix :]
    torch.testing.assert_close(tokens, output.image_tokens, atol=1e-5, rtol=1e-4)
    assert not last.block._forward_pre_hooks


@pytest.mark.parametrize("tokens", ["last", "value", "csa"])
def test_roialign_pools_them(tokens: str) -> None:
    model = tiny_model().eval()
    result = evaluate(
        model, make_samples(), "zeroshot_region_classification", method=f"roialign,tokens={tokens}"
    )
    assert result["protocol"]["tokens"] == tokens


def test_a_tower_without_blocks_is_refused() -> None:
    model: CLOC = tiny_model()
    cfg = dict(model.model_cfg)
    cfg["vision_cfg"] = {
        "image_size": 64,
        "timm_model_name": "test_resnet",
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    import open_cloc

    made = open_cloc.create_model(cfg, device="cpu").eval()
    with pytest.raises(UserError, match="of a plain ViT alone; this image tower is a ResNet"):
        evaluate(made, make_samples(), "zeroshot_region_classification", method="roialign,tokens=value")
    with pytest.raises(UserError, match="tokens"):
        open_method("roialign,tokens=first", model)
