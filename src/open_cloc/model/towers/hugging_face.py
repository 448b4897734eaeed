"""open_clip's own two transformers as transformers' `CLIPModel`, and back: configs and names of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from open_cloc.config import convert
from open_cloc.errors import UserError
from open_cloc.model.towers.siglip_network import ratio_of

# Prefixes of names, open_clip's and transformers'.
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.": "text_model.final_layer_norm.",
    "text.transformer.resblocks.": "text_model.encoder.layers.",
}
# The same, within a block.
BLOCK_NAMES = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text.text_projection": "text_projection.weight"}
EPS = 1e-5
# transformers' activations that a CLIP may have: whether it is GELU by its approximation.
APPROXIMATE = {"quick_gelu": False, "gelu": False, "gelu_pytorch_tanh": True}
ACTIVATIONS: dict[type[nn.Module], str] = {nn.GELU: "gelu", QuickGELU: "quick_gelu"}


def reason_against_vision(visual: Any) -> str:
    """Why an image tower is not one of `CLIPVisionModel`'s, in words; empty if it is."""
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {kind_of(visual)}, and CLIPVisionModel is open_clip's own ViT"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        return "its image tower does not end in the class token, as CLIPVisionModel does"
    if isinstance(visual.ln_pre, nn.Identity):
        return "its image tower has no norm before the first block, which CLIPVisionModel has"
    if visual.grid_size[0] != visual.grid_size[1] or visual.patch_size[0] != visual.patch_size[1]:
        return "its pictures or patches are not square, as CLIPVisionModel's are"
    return _reason_against_blocks(visual, (visual.ln_pre, visual.ln_post))


def reason_against_text(text: Any) -> str:
    """Why a text tower is not one of `CLIPTextModel`'s, in words; empty if it is."""
    if not isinstance(text, TextTransformer):
        return f"its text tower is a {kind_of(text)}, and CLIPTextModel is open_clip's own transformer"
    if text.attn_mask is None or text.cls_emb is not None or text.pool_type not in ("argmax", "eos"):
        return "its text tower does not end in the end-of-text token, as CLIPTextModel does"
    if isinstance(text.text_projection, nn.Linear):
        return "the projection of its text tower has a bias, which CLIPModel's has not"
    return _reason_against_blocks(text, (text.ln_final,))


def kind_of(tower: Any) -> str:
    """What a tower is, in words."""
    if hasattr(tower, "trunk"):
        return f"{type(tower.trunk).__name__} of timm"
    return type(getattr(tower, "transformer", None) or tower).__name__


def _reason_against_blocks(tower: Any, norms: tuple[nn.LayerNorm, ...]) -> str:
    blocks = tower.transformer.resblocks
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        return "its blocks have norms or scales that CLIPModel's have not"
    kinds = {type(block.mlp.gelu) for block in blocks}
    exact = all(getattr(block.mlp.gelu, "approximate", "none") == "none" for block in blocks)
    if len(kinds) > 1 or not kinds <= set(ACTIVATIONS) or not exact:
        return "its blocks' activation is neither GELU nor QuickGELU"
    norms = (*norms, *(norm for block in blocks for norm in (block.ln_1, block.ln_2)))
    if any(abs(norm.eps - EPS) > 1e-12 for norm in norms):
        return f"a norm's eps is not {EPS}"
    return ""


def vision_config(visual: VisionTransformer, embed_dim: int) -> dict[str, Any]:
    """What `CLIPVisionConfig` takes, of a tower without a reason against it."""
    return {
        **_block_config(visual),
        "image_size": visual.grid_size[0] * visual.patch_size[0],
        "patch_size": visual.patch_size[0],
        "projection_dim": embed_dim,
    }


def text_config(text: TextTransformer, embed_dim: int) -> dict[str, Any]:
    """What `CLIPTextConfig` takes, of a tower without a reason against it."""
    end = text.eos_id if text.pool_type == "eos" else text.vocab_size - 1  # the largest id, as OpenAI has it
    return {
        **_block_config(text),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.num_pos,
        "projection_dim": embed_dim,
        "bos_token_id": text.vocab_size - 2,
        "eos_token_id": end,
        "pad_token_id": end,  # whatever stands behind the end is not looked at
    }


def _block_config(tower: Any) -> dict[str, Any]:
    block = tower.transformer.resblocks[0]
    return {
        "hidden_size": tower.transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(tower.transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": ACTIVATIONS[type(block.mlp.gelu)],
        "layer_norm_eps": EPS,
    }


def to_hugging_face(clip: Any) -> dict[str, Tensor]:
    """Weights of an open_clip model by the names of `CLIPModel`.

    A layer scale is multiplied into the layer before it, and a tower without a projection gets the identity.
    """
    own = {name: tensor.detach().float().cpu() for name, tensor in clip.state_dict().items()}
    state = {"logit_scale": own.pop("logit_scale").reshape(())}
    own.pop("logit_bias", None)
    for name, target in PROJECTIONS.items():
        norm = "visual.ln_post.weight" if name.startswith("visual") else "text.ln_final.weight"
        width, projection = len(own[norm]), own.pop(name, None)
        state[target] = torch.eye(width) if projection is None else projection.T.contiguous()
    for name in [name for name in own if name.endswith(".gamma")]:
        before = name.replace("ls_1.gamma", "attn.out_proj").replace("ls_2.gamma", "mlp.c_proj")
        gamma = own.pop(name)
        own[f"{before}.weight"] = own[f"{before}.weight"] * gamma[:, None]
        own[f"{before}.bias"] = own[f"{before}.bias"] * gamma
    for name, tensor in own.items():
        if name == "text.attn_mask":
            continue
        if ".attn.in_proj_" in name:
            for part, letter in zip(tensor.chunk(3), "qkv"):
                state[_renamed(name.replace("attn.in_proj_", f"self_attn.{letter}_proj."))] = part.clone()
        else:
            state[_renamed(name)] = tensor
    return state


def _renamed(name: str, back: bool = False) -> str:
    for own, theirs in (NAMES | BLOCK_NAMES).items():
        old, new = (theirs, own) if back else (own, theirs)
        inside = old in BLOCK_NAMES or old in BLOCK_NAMES.values()
        if name.startswith(old) or (inside and re.search(rf"\.\d+\.{re.escape(old)}", name)):
            name = name.replace(old, new, 1)
    return name


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's config of a `CLIPModel`'s.

    Raises:
        UserError: If a value is of another type, or asks for what open_clip has not.
    """
    vision, text = (Part(config, part) for part in ("vision_config", "text_config"))
    activations = sorted({part.get(str, "hidden_act", "quick_gelu") for part in (vision, text)})
    if len(activations) > 1 or activations[0] not in APPROXIMATE:
        raise UserError(
            f"CLIPModel's activations must both be one of {', '.join(APPROXIMATE)}; got {activations!s:.80}"
        )
    width, text_width = vision.get(int, "hidden_size", 768), text.get(int, "hidden_size", 512)
    return {
        "embed_dim": convert(int, config.get("projection_dim", 512), "projection_dim"),
        "quick_gelu": activations == ["quick_gelu"],
        "vision_cfg": {
            "image_size": vision.get(int, "image_size", 224),
            "patch_size": vision.get(int, "patch_size", 32),
            "width": width,
            "layers": vision.get(int, "num_hidden_layers", 12),
            "head_width": width // vision.heads(width, 12),
            "mlp_ratio": ratio_of(vision.get(int, "intermediate_size", 3072), width),
            **_own_parts(vision),
        },
        "text_cfg": {
            "context_length": text.get(int, "max_position_embeddings", 77),
            "vocab_size": text.get(int, "vocab_size", 49408),
            "width": text_width,
            "heads": text.heads(text_width, 8),
            "layers": text.get(int, "num_hidden_layers", 12),
            "mlp_ratio": ratio_of(text.get(int, "intermediate_size", 2048), text_width),
            **_own_parts(text),
            **_end_of(text),
        },
    }


def _end_of(text: Part) -> dict[str, Any]:
    """Which token ends a text, where it is not the largest one as CLIP has it.

    transformers, too, takes the largest for configs of old, which say 2.
    """
    end = text.found.get("eos_token_id")
    if not isinstance(end, int) or end in (2, text.get(int, "vocab_size", 49408) - 1):
        return {}
    return {"pool_type": "eos", "eos_id": end}


def _own_parts(part: Part) -> dict[str, Any]:
    """open_clip's options of norms and activations that are not as it has them by itself."""
    eps = part.get(float, "layer_norm_eps", EPS)
    options: dict[str, Any] = {} if abs(eps - EPS) < 1e-12 else {"norm_kwargs": {"eps": eps}}
    if APPROXIMATE[part.get(str, "hidden_act", "quick_gelu")]:
        options["act_kwargs"] = {"approximate": "tanh"}
    return options


class Part:
    """A table of a config, whose values are of the type that is asked for."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        found = config.get(name) or {}
        if not isinstance(found, Mapping):
            raise UserError(f"{name} must be a table; got {found!r:.80}")
        self.found, self.name = found, name

    def get(self, kind: type, key: str, default: Any) -> Any:
        value = convert(kind, self.found.get(key, default), f"{self.name}.{key}")
        if kind is int and value < 1:
            raise UserError(f"{self.name}.{key} must be at least 1; got {value}")
        return value

    def heads(self, width: int, default: int) -> int:
        """How many heads share a width, which they must do evenly."""
        heads = self.get(int, "num_attention_heads", default)
        if width % heads:
            raise UserError(
                f"{self.name}.num_attention_heads must divide hidden_size evenly; got {heads} for {width}"
            )
        return heads


def state_from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `CLIPModel` by open_clip's names."""
    given = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    back = partial(_renamed, back=True)
    own: dict[str, Tensor] = {}
    if "logit_scale" in given:
        own["logit_scale"] = given.pop("logit_scale").reshape(1)
    for name, theirs in PROJECTIONS.items():
        if theirs in given:
            own[name] = given.pop(theirs).T.contiguous()
    for name in [name for name in given if ".self_attn.q_proj." in name]:
        names = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        if all(part in given for part in names):
            joined = torch.cat([given.pop(part) for part in names])
            own[back(name).replace("self_attn.q_proj.", "attn.in_proj_")] = joined
    return own | {back(name): tensor for name, tensor in given.items()}
