"""Image towers small enough to train from scratch on a laptop, registered with timm by function name.

timm's own small networks end at a stride of 32, which leaves a 64-pixel picture 4 tokens; these keep a stride
of 8 (64 tokens), so that small objects keep places of their own.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

from open_cloc.errors import UserError

default_cfgs = generate_default_cfgs(
    {
        "cloc_resnet10_s8.untrained": {
            "input_size": (3, 64, 64),
            "pool_size": (8, 8),
            "classifier": "fc",
            "first_conv": "conv1.0",
        }
    }
)


@register_model
def cloc_resnet10_s8(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A 10-layer ResNet, 32 to 256 channels, stride 8: 64 pixels a side give 8 x 8 tokens of width 256."""
    if pretrained:
        raise UserError("cloc_resnet10_s8 has no pretrained weights")
    arguments = {
        "channels": (32, 64, 128, 256),
        "stem_type": "deep",
        "stem_width": 16,
        "output_stride": 8,
        **kwargs,
    }
    return build_model_with_cfg(
        ResNet, "cloc_resnet10_s8", pretrained=False, block=BasicBlock, layers=[1, 1, 1, 1], **arguments
    )
