"""SigLIP's two transformers as transformers' `SiglipModel`, and back: configs and names of weights.

open_clip builds SigLIP of timm's ViT, which pools by attention, and of its own text transformer, which sees
all tokens and pools the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from open_cloc.errors import UserError, first_line
from open_cloc.model.towers.hugging_face import Part, kind_of
from open_cloc.model.towers.siglip_network import SiglipShape, approximation, network_of, ratio_of

# Names of ours and of theirs that hold the same rows, one behind the other.
Names = tuple[tuple[str, ...], tuple[str, ...]]

EPS = 1e-6
# GELU's `approximate` -> transformers' name.
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
# Names within a block, transformers' to those of timm and of open_clip.
VISION_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TEXT_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
VISION_REST = {
    "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
    "vision_model.post_layernorm": "visual.trunk.norm",
    "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
    "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
    "vision_model.head.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
    "vision_model.head.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
}
TEXT_REST = {
    "text_model.final_layer_norm": "text.ln_final",
    "text_model.head": "text.text_projection",
}


def is_siglip_vision(visual: Any) -> bool:
    """Whether an image tower is of SigLIP's kind: patches alone, pooled by attention."""
    trunk: Any = getattr(visual, "trunk", None)
    return (
        isinstance(visual, TimmModel)
        and type(trunk) is VisionTransformer
        and trunk.num_prefix_tokens == 0
        and isinstance(trunk.attn_pool, AttentionPoolLatent)
    )


def reason_against_siglip_vision(visual: Any) -> str:
    """Why an image tower is not one of `SiglipVisionModel`'s, in words; empty if it is."""
    if not is_siglip_vision(visual):
        return f"its image tower is a {kind_of(visual)}, and SiglipVisionModel is a ViT pooled by attention"
    trunk = visual.trunk
    pool, blocks = trunk.attn_pool, list(trunk.blocks)
    if list(visual.head.parameters()):
        return "its image tower has a projection, which SiglipVisionModel has not"
    plain = (trunk.norm_pre, trunk.fc_norm, trunk.patch_embed.norm, pool.q_norm, pool.k_norm)
    parts = [[b.ls1, b.ls2, b.attn.q_norm, b.attn.k_norm, b.attn.norm, b.mlp.norm] for b in blocks]
    if not all(type(block) is Block for block in blocks) or not all(
        isinstance(part, nn.Identity) for part in [*plain, *(part for row in parts for part in row)]
    ):
        return "its image tower has norms or scales that SiglipVisionModel has not"
    if (
        pool.latent_len != 1
        or pool.pos_embed is not None
        or pool.mlp is None
        or not isinstance(pool.q, nn.Linear)
    ):
        return "its attention pooling is not SiglipVisionModel's"
    rows, columns = trunk.patch_embed.grid_size
    if rows != columns or len(set(trunk.patch_embed.patch_size)) > 1 or trunk.pos_embed is None:
        return "its pictures or patches are not square, or have no positions of their own"
    mlps = [*(block.mlp for block in blocks), pool.mlp]
    if len({mlp.fc1.out_features for mlp in mlps}) > 1 or pool.num_heads != blocks[0].attn.num_heads:
        return "its attention pooling has another number of heads or another width than its blocks"
    norms = [trunk.norm, pool.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    return _reason_against(norms, [mlp.act for mlp in mlps], "image")


def reason_against_siglip_text(text: Any, embed_dim: int) -> str:
    """Why a text tower is not one of `SiglipTextModel`'s, in words; empty if it is.

    Args:
        text: The tower.
        embed_dim: Of the features that both towers give.
    """
    if not isinstance(text, TextTransformer):
        return f"its text tower is a {kind_of(text)}, and SiglipTextModel is open_clip's own transformer"
    if text.attn_mask is not None or text.cls_emb is not None or text.pool_type != "last":
        return "its text tower does not see all tokens and end in the last, as SiglipTextModel does"
    projection = text.text_projection
    if (
        not isinstance(projection, nn.Linear)
        or projection.bias is None
        or projection.out_features != embed_dim
    ):
        return "its text tower has no projection with a bias, as SiglipTextModel has"
    blocks = list(text.transformer.resblocks)
    if not all(type(b) is ResidualAttentionBlock and isinstance(b.ls_1, nn.Identity) for b in blocks):
        return "its text tower has norms or scales that SiglipTextModel has not"
    norms = [text.ln_final, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    return _reason_against(norms, [block.mlp.gelu for block in blocks], "text")


def _reason_against(norms: list[Any], activations: list[Any], which: str) -> str:
    if not all(isinstance(norm, nn.LayerNorm) and abs(norm.eps - EPS) < 1e-12 for norm in norms):
        return f"a norm's eps in its {which} tower is not {EPS:g}"
    kinds = set(map(approximation, activations))
    if len(kinds) > 1 or not kinds <= set(ACTIVATIONS):
        return f"the activation of its {which} tower is not GELU"
    return ""


def siglip_vision_config(visual: Any) -> dict[str, Any]:
    """What `SiglipVisionConfig` takes, of a tower without a reason against it."""
    trunk = visual.trunk
    block = trunk.blocks[0]
    return {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "hidden_act": ACTIVATIONS[approximation(block.mlp.act) or "none"],
        "layer_norm_eps": EPS,
    }


def siglip_text_config(text: TextTransformer) -> dict[str, Any]:
    """What `SiglipTextConfig` takes, of a tower without a reason against it."""
    block: Any = text.transformer.resblocks[0]
    return {
        "hidden_size": text.transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(text.transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.num_pos,
        "projection_size": text.text_projection.out_features,
        "hidden_act": ACTIVATIONS[block.mlp.gelu.approximate],
        "layer_norm_eps": EPS,
        "pad_token_id": text.pad_id,
    }


def siglip_model_cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's config of a `SiglipModel`'s, without its tokenizer.

    Raises:
        UserError: If a value is of another type, or asks for what these towers have not.
    """
    vision, text = (Part(config, part) for part in ("vision_config", "text_config"))
    for part in (vision, text):
        if abs(part.get(float, "layer_norm_eps", EPS) - EPS) > 1e-12:
            raise UserError(f"{part.name}.layer_norm_eps of a SiglipModel must be {EPS:g}")
    width, size = vision.get(int, "hidden_size", 768), vision.get(int, "image_size", 224)
    shape = SiglipShape(
        size,
        vision.get(int, "patch_size", 16),
        width,
        vision.get(int, "num_hidden_layers", 12),
        vision.heads(width, 12),
        vision.get(int, "intermediate_size", 3072),
        _approximate(vision),
    )
    text_width = text.get(int, "hidden_size", 768)
    return {
        "embed_dim": width,
        "init_logit_bias": -10.0,
        "vision_cfg": {
            "image_size": size,
            "timm_model_name": network_of(shape),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.get(int, "max_position_embeddings", 64),
            "vocab_size": text.get(int, "vocab_size", 32000),
            "width": text_width,
            "heads": text.heads(text_width, 12),
            "layers": text.get(int, "num_hidden_layers", 12),
            "mlp_ratio": ratio_of(text.get(int, "intermediate_size", 3072), text_width),
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": EPS},
            "act_kwargs": {"approximate": _approximate(text)},
        },
    }


def _approximate(part: Part) -> str:
    """How a tower approximates GELU: `none` or `tanh`."""
    activation = part.get(str, "hidden_act", "gelu_pytorch_tanh")
    backwards = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if activation not in backwards:
        raise UserError(
            f"{part.name}.hidden_act of a SiglipModel must be one of {', '.join(backwards)}; "
            f"got {activation!r:.40}"
        )
    return backwards[activation]


def to_siglip(clip: Any) -> dict[str, Tensor]:
    """Weights of an open_clip model by the names of `SiglipModel`."""
    own = _own_state(clip)
    state = vision_to_siglip(clip) | _renamed(own, _text_names(len(clip.text.transformer.resblocks)))
    state["logit_scale"] = own["logit_scale"].reshape(1)
    # A model that was trained by a softmax has none, and it changes no order.
    state["logit_bias"] = own.get("logit_bias", torch.zeros(1)).reshape(1)
    return state


def vision_to_siglip(clip: Any) -> dict[str, Tensor]:
    """Weights of the image tower alone, by the names that they have in `SiglipModel`."""
    own = _own_state(clip)
    positions = own["visual.trunk.pos_embed"][0].clone()
    state = {"vision_model.embeddings.position_embedding.weight": positions}
    return state | _renamed(own, _vision_names(len(clip.visual.trunk.blocks)))


def _own_state(clip: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu() for name, tensor in clip.state_dict().items()}


def _renamed(own: Mapping[str, Tensor], names: Iterable[Names]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for ours, theirs in names:
        parts = torch.cat([own[name] for name in ours]).chunk(len(theirs))
        state |= {name: part.clone() for name, part in zip(theirs, parts)}
    return state


def state_from_siglip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `SiglipModel` by open_clip's names.

    Raises:
        UserError: If one is lacking, or of another shape.
    """
    vision, text = (_count(state, f"{tower}_model.encoder.layers.") for tower in ("vision", "text"))
    own: dict[str, Tensor] = {}
    try:
        for names, theirs in [*_vision_names(vision), *_text_names(text)]:
            joined = torch.cat([state[name] for name in theirs])
            # Two of ours are the query's third and the rest.
            sizes = [len(joined)] if len(names) == 1 else [len(joined) // 3, len(joined) - len(joined) // 3]
            own |= {name: part.clone() for name, part in zip(names, joined.split(sizes))}
        own["visual.trunk.pos_embed"] = state["vision_model.embeddings.position_embedding.weight"][None]
        own |= {name: state[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    except KeyError as error:
        raise UserError(f"the weights of this SiglipModel lack {error}") from None
    except (RuntimeError, TypeError, IndexError) as error:  # torch's, of shapes that do not go together
        raise UserError(f"the weights of this SiglipModel have odd shapes: {first_line(error)}") from None
    return own


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)}
    return len(numbers)


def _vision_names(layers: int) -> Iterator[Names]:
    yield ("visual.trunk.attn_pool.latent",), ("vision_model.head.probe",)
    pool = "visual.trunk.attn_pool"
    for kind in ("weight", "bias"):
        for theirs, ours in VISION_REST.items():
            yield (f"{ours}.{kind}",), (f"{theirs}.{kind}",)
        yield (f"{pool}.q.{kind}", f"{pool}.kv.{kind}"), (f"vision_model.head.attention.in_proj_{kind}",)
        for number in range(layers):
            ours, theirs = f"visual.trunk.blocks.{number}", f"vision_model.encoder.layers.{number}"
            yield (f"{ours}.attn.qkv.{kind}",), _thirds(theirs, kind)
            for their, our in VISION_BLOCK.items():
                yield (f"{ours}.{our}.{kind}",), (f"{theirs}.{their}.{kind}",)


def _text_names(layers: int) -> Iterator[Names]:
    yield ("text.token_embedding.weight",), ("text_model.embeddings.token_embedding.weight",)
    yield ("text.positional_embedding",), ("text_model.embeddings.position_embedding.weight",)
    for kind in ("weight", "bias"):
        for theirs, ours in TEXT_REST.items():
            yield (f"{ours}.{kind}",), (f"{theirs}.{kind}",)
        for number in range(layers):
            ours, theirs = f"text.transformer.resblocks.{number}", f"text_model.encoder.layers.{number}"
            yield (f"{ours}.attn.in_proj_{kind}",), _thirds(theirs, kind)
            for their, our in TEXT_BLOCK.items():
                yield (f"{ours}.{our}.{kind}",), (f"{theirs}.{their}.{kind}",)


def _thirds(block: str, kind: str) -> tuple[str, ...]:
    return tuple(f"{block}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
