"""What makes two models the same for embeddings: every number that they compute with."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from open_cloc.model.cloc import CLOC


def identity_of(model: CLOC) -> str:
    """A name for a model by its config and weights; embeddings of one name may be compared.

    The same weights in another type, such as bfloat16, are another model: their embeddings differ.

    Returns:
        32 hexadecimal digits.
    """
    config: Any = model._hub_mixin_config
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        # Bytes, since numpy knows no bfloat16.
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(content.numpy())
    return digest.hexdigest()
