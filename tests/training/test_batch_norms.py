"""Batch norms over ranks: the tower must stay the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from open_cloc.model.cloc import CLOC
from open_cloc.training.parallelize import learning_batch_norms, synchronize_batch_norms

NETWORKS = (
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "regnetx_002",
    "densenet121",
    "resnet18",
    "convnext_atto",
)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_synchronized_norms_change_no_output(tiny_model_cfg: dict[str, Any], name: str) -> None:
    vision = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    model = CLOC({**tiny_model_cfg, "vision_cfg": vision})
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):  # as after some steps
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2.0)
    norms, names = learning_batch_norms(model), list(model.state_dict())
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    before = model.eval().encode_image(images).image_features
    synchronize_batch_norms(model)
    torch.testing.assert_close(model.encode_image(images).image_features, before)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == len(norms)
