"""The CLIP that CLOC wraps: any open_clip model, or a timm image tower joined to a Hugging Face text tower.

A model is described by open_clip's own `model_cfg` dict, so that what is saved never depends on a name in a
registry. Shapes: B images, N image tokens, C tower width, D shared embedding, H W pixels, U texts, T text
tokens.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from timm.layers import Format, resample_abs_pos_embed
from torch import Tensor, nn
from torch.func import functional_call

from open_cloc.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

# Folder of a saved model that holds the Hugging Face text tower's config and tokenizer.
TEXT_TOWER_FOLDER = "text_tower"
CACHED_TEXTS = 2**13  # a few megabytes of token ids


@dataclass(frozen=True)
class TowerOutput:
    """An image tower's two products.

    Attributes:
        image_features: (B, D) pooled and projected, exactly the wrapped tower's output.
        image_tokens: (B, N, C) before pooling and projection, after the tower's last norm.
        grid_size: (rows, columns) of the N tokens.
    """

    image_features: Tensor
    image_tokens: Tensor
    grid_size: tuple[int, int]


def build_clip(model_cfg: Mapping[str, Any]) -> nn.Module:
    """Make an untrained open_clip model with separate `visual` and `text` towers.

    Args:
        model_cfg: open_clip's model config: `embed_dim`, `vision_cfg`, `text_cfg`, ...

    Raises:
        UserError: If the config is not one open_clip understands.
    """
    cfg = deepcopy(dict(model_cfg))
    cfg.pop("custom_text", None)
    for part in ("embed_dim", "vision_cfg", "text_cfg"):
        if part not in cfg:
            raise UserError(f"model_cfg lacks {part!r}; got keys {sorted(cfg)}")
    if cfg["vision_cfg"].get("patch_dropout"):
        raise UserError("patch_dropout must be 0: regions need every image token")
    if "multimodal_cfg" in cfg:
        raise UserError("CoCa models are not supported: their captioning decoder has no place in CLOC")
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    if cfg["text_cfg"].get("hf_model_name"):
        cfg["text_cfg"]["hf_model_pretrained"] = False
        _require_local_text_tower(cfg["text_cfg"]["hf_model_name"])
    try:
        clip = open_clip.model.CustomTextCLIP(**cfg, nonscalar_logit_scale=True)
    except (TypeError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, KeyError):  # its table of Hugging Face architectures
            reason = f"text towers of type {error} are not among those it knows"
        raise UserError(f"open_clip cannot build this model_cfg: {reason}") from error
    _allow_any_image_size(clip.visual)
    _fit_projection(clip.visual)
    image_tower_kind(clip.visual)  # refuses a tower that gives no token grid
    return clip


def _require_local_text_tower(name: str) -> None:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise MissingFileError(f"text tower folder {name} holds no config.json")


def _allow_any_image_size(visual: nn.Module) -> None:
    """Make a timm transformer as timm builds it for inputs of any size (`dynamic_img_size`).

    open_clip's wrapper cannot pass that on, so its effects are set afterwards.
    """
    trunk = getattr(visual, "trunk", None)
    if trunk is None or not hasattr(trunk, "dynamic_img_size") or trunk.dynamic_img_size:
        return
    trunk.dynamic_img_size = True
    trunk.patch_embed.strict_img_size = False
    trunk.patch_embed.flatten = False
    trunk.patch_embed.output_fmt = Format.NHWC
    for module in trunk.modules():
        if hasattr(
            module, "dynamic_mask"
        ):  # Swin: masks of the shifted windows, else those of the training size
            module.dynamic_mask = True
        if hasattr(module, "_use_cached_embed"):  # EVA: rotary positions, likewise
            module._use_cached_embed = False


def _fit_projection(visual: Any) -> None:
    """Project from the width of a timm network's pooled output, which MobileNetV3's feature map has not."""
    trunk: Any = getattr(visual, "trunk", None)
    head: Any = getattr(visual, "head", None)
    width = getattr(trunk, "head_hidden_size", None)
    old = getattr(head, "proj", None)
    if width and isinstance(old, nn.Linear) and old.in_features != width:
        head.proj = nn.Linear(width, old.out_features, bias=old.bias is not None)


def architecture_cfg(name: str) -> dict[str, Any]:
    """open_clip's config of an architecture.

    Raises:
        UserError: If open_clip does not know the name; lists the nearest ones.
    """
    cfg = open_clip.get_model_config(name)
    if cfg is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.3)
        raise UserError(f"unknown architecture {name!r}; open_clip's nearest names: {', '.join(near)}")
    return cfg


def joined_towers_cfg(
    timm_model: str, text_tower: str, *, embed_dim: int, image_size: int, context_length: int = 77
) -> dict[str, Any]:
    """Config of a timm image tower joined to a Hugging Face text tower by linear projections.

    Args:
        timm_model: Any name timm knows, ViT or convolutional.
        text_tower: Folder with the text tower's `config.json` and tokenizer.
        embed_dim: D of the shared space.
        image_size: Pixels a side.
        context_length: Longest text in tokens.
    """
    import timm

    if not timm.is_model(timm_model):
        near = difflib.get_close_matches(timm_model, timm.list_models(), n=5, cutoff=0.3)
        raise UserError(f"unknown timm model {timm_model!r}; nearest names: {', '.join(near)}")
    if not Path(text_tower).is_dir():
        raise MissingFileError(f"text tower folder not found: {text_tower}")
    _require_local_text_tower(text_tower)
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": image_size,
            "timm_model_name": timm_model,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "hf_model_name": text_tower,
            "hf_tokenizer_name": text_tower,
            # A shared space as wide as the text tower's is the text tower's: nothing to project.
            "hf_proj_type": None if _text_width(Path(text_tower)) == embed_dim else "linear",
            "hf_pooler_type": "mean_pooler",
            "context_length": context_length,
        },
    }


def _text_width(folder: Path) -> int:
    """Width of a Hugging Face text tower's output."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).hidden_size


# --- image ----------------------------------------------------------------------------------------


def image_tower_kind(visual: nn.Module) -> str:
    """`vit`, `timm` or `resnet`.

    Raises:
        UserError: For a tower that gives no grid of image tokens.
    """
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return "vit"
    if isinstance(visual, TimmModel):
        return "timm"
    if isinstance(visual, ModifiedResNet):
        return "resnet"
    raise UserError(
        f"image tower {type(visual).__name__} gives no grid of image tokens that regions could use"
    )


def encode_image(visual: nn.Module, images: Tensor) -> TowerOutput:
    """Run an image tower once: images (B, 3, H, W), already normalised -> features and tokens."""
    return _ENCODERS[image_tower_kind(visual)](visual, images)


def _encode_vit(visual: Any, images: Tensor) -> TowerOutput:
    patches = visual.conv1(images)  # (B, C, rows, columns)
    grid_size = (patches.shape[2], patches.shape[3])
    x = patches.flatten(2).transpose(1, 2)  # (B, N, C)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = x + _resized_positions(visual.positional_embedding, visual.grid_size, grid_size).to(x.dtype)
    x = visual.transformer(visual.ln_pre(x))
    if visual.final_ln_after_pool:
        pooled, tokens = visual._pool(x)
    else:
        pooled, tokens = visual._global_pool(visual.ln_post(x))
    if tokens.shape[1] > grid_size[0] * grid_size[1]:  # pool_type "none" keeps the class token
        tokens = tokens[:, 1:]
    features = pooled @ visual.proj if visual.proj is not None else pooled
    return TowerOutput(features, tokens, grid_size)


def _resized_positions(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    if tuple(old) == tuple(new):
        return embedding
    return resample_abs_pos_embed(
        embedding[None], new_size=list(new), old_size=list(old), num_prefix_tokens=1, interpolation="bicubic"
    )[0]


def _encode_timm(visual: Any, images: Tensor) -> TowerOutput:
    trunk = visual.trunk
    height, width = images.shape[2:]
    name = type(trunk).__name__
    patches: Any = getattr(trunk, "patch_embed", None)
    rows, columns = 0, 0
    if hasattr(patches, "dynamic_feat_size"):
        rows, columns = patches.dynamic_feat_size((height, width))
        if (
            not patches.dynamic_img_pad
        ):  # the patches' convolution leaves the rest of a last patch out as well
            patch_h, patch_w = patches.feat_ratio(as_scalar=False)
            images = images[..., : rows * patch_h, : columns * patch_w]
    try:
        x = trunk.forward_features(images)
    except AssertionError as error:  # how timm refuses a size
        raise UserError(f"image tower {name} takes no images of {height} x {width}: {error}") from error
    features = visual.head(trunk.forward_head(x))
    if x.ndim == 4:
        feature_map = _channels_first(trunk, x)
        grid_size = (feature_map.shape[2], feature_map.shape[3])
        return TowerOutput(features, feature_map.flatten(2).transpose(1, 2), grid_size)
    tokens = x[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if rows * columns != tokens.shape[1]:
        raise UserError(f"image tower {name} gives no grid of image tokens that regions could use")
    return TowerOutput(features, tokens, (rows, columns))


def _channels_first(trunk: Any, x: Tensor) -> Tensor:
    """Some timm towers (Swin) give (B, rows, columns, C); they say so in `output_fmt`."""
    return x.permute(0, 3, 1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else x


def _encode_resnet(visual: Any, images: Tensor) -> TowerOutput:
    x = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)  # (B, C, rows, columns)
    grid_size = (x.shape[2], x.shape[3])
    return TowerOutput(_attention_pool(visual, x), x.flatten(2).transpose(1, 2), grid_size)


def _attention_pool(visual: Any, feature_map: Tensor) -> Tensor:
    """CLIP-ResNet's pooling of a (B, C, rows, columns) map, its position embedding resized: (B, D)."""
    pool = visual.attnpool
    side = math.isqrt(len(pool.positional_embedding) - 1)
    rows, columns = feature_map.shape[2:]
    positions = _resized_positions(pool.positional_embedding, (side, side), (rows, columns))
    return functional_call(pool, {"positional_embedding": positions}, (feature_map,))


_ENCODERS: dict[str, Callable[[Any, Tensor], TowerOutput]] = {
    "vit": _encode_vit,
    "timm": _encode_timm,
    "resnet": _encode_resnet,
}


def project_pooled(visual: Any, pooled: Tensor) -> Tensor:
    """The tower's own pooling and projection, applied to the tokens of a region: (X, S, C) -> (X, D).

    This is how a plain CLIP embeds a region from its feature map, with S = 49 samples of RoIAlign.
    """
    kind = image_tower_kind(visual)
    mean = pooled.mean(1)  # (X, C)
    if kind == "vit":
        features = visual.ln_post(mean) if visual.final_ln_after_pool else mean
        return features @ visual.proj if visual.proj is not None else features
    side = int(pooled.shape[1] ** 0.5)
    if kind == "resnet":
        return _attention_pool(visual, pooled.transpose(1, 2).unflatten(2, (side, side)))
    trunk = visual.trunk
    if hasattr(trunk, "num_prefix_tokens"):
        # A ViT pools its class token or its patches: the region's mean stands for either.
        prefix = mean[:, None].expand(-1, trunk.num_prefix_tokens, -1)
        return visual.head(trunk.forward_head(torch.cat([prefix, pooled], dim=1)))
    feature_map = pooled.unflatten(1, (side, side))  # (X, side, side, C)
    if getattr(trunk, "output_fmt", "NCHW") != "NHWC":
        feature_map = feature_map.permute(0, 3, 1, 2)
    return visual.head(trunk.forward_head(feature_map))


def token_width(visual: Any) -> int:
    """C, the width of the tower's image tokens."""
    kind = image_tower_kind(visual)
    if kind == "vit":
        return visual.ln_post.normalized_shape[0]
    if kind == "resnet":
        return visual.attnpool.c_proj.in_features
    return visual.trunk.num_features


def own_projection(visual: Any) -> Tensor | None:
    """The tower's linear map from C to D as a (D, C) matrix, or None where its head is something else."""
    kind = image_tower_kind(visual)
    if kind == "vit":
        return None if visual.proj is None else visual.proj.detach().T
    head = getattr(visual, "head", None)
    if kind == "timm" and head is not None and isinstance(getattr(head, "proj", None), nn.Linear):
        return head.proj.weight.detach()
    return None


# --- both towers ----------------------------------------------------------------------------------


def set_grad_checkpointing(clip: Any, enable: bool) -> None:
    """Recompute activations in the backward pass, or not; warns of a tower that cannot."""
    if enable and image_tower_kind(clip.visual) == "resnet":
        logger.warning("this image tower (CLIP-ResNet) has no gradient checkpointing: it keeps activations")
    clip.visual.set_grad_checkpointing(enable)  # of a timm tower that cannot, open_clip itself warns
    if isinstance(clip.text, TextTransformer):
        clip.text.set_grad_checkpointing(enable)
        return
    # open_clip's wrapper can only switch it on; transformers 5 has renamed the switch.
    tower, verb = clip.text.transformer, "enable" if enable else "disable"
    old = f"gradient_checkpointing_{verb}"
    new = f"activation_checkpointing_{verb}"
    getattr(tower, new if hasattr(tower, new) else old)()


# --- text -----------------------------------------------------------------------------------------


def encode_text(text: Any, token_ids: Tensor) -> Tensor:
    """Run a text tower: token ids (U, T) -> (U, D). T may be shorter than the context where that is exact."""
    if not isinstance(text, TextTransformer):
        return text(token_ids)
    x, mask = text._embeds(token_ids)
    if mask is not None:
        mask = mask[..., : x.shape[1], : x.shape[1]]
    x = text.transformer(x, attn_mask=mask)
    if text.cls_emb is not None:
        pooled = text.ln_final(text_global_pool(x, pool_type="last"))
    else:
        pooled = text_global_pool(text.ln_final(x), token_ids, text.pool_type, eos_token_id=text.eos_id)
    if text.text_projection is None:
        return pooled
    if isinstance(text.text_projection, nn.Linear):
        return text.text_projection(pooled)
    return pooled @ text.text_projection


def padding_id(text: Any) -> int | None:
    """The token that a text tower may be spared, or None where padding reaches the feature.

    Padding is without effect in causal towers that pool at the end-of-text token, and in Hugging Face towers,
    which mask it. Others (SigLIP attends to its padding) need the whole context.
    """
    if not isinstance(text, TextTransformer):
        return text.config.pad_token_id
    exact = text.attn_mask is not None and text.pool_type in ("argmax", "eos") and text.cls_emb is None
    return text.pad_id if exact else None


def trim_padding(token_ids: Tensor, pad_id: int | None) -> Tensor:
    """Cut (U, T) token ids to the longest text; None leaves them whole."""
    if pad_id is None:
        return token_ids
    used = (token_ids != pad_id).any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 1
    return token_ids[:, :longest]


class TextTokenizer:
    """Texts -> (U, T) token ids, cut to the longest text where the text tower allows it exactly.

    Small to pickle: a spawned loader worker gets the text tower's config, not the model, and reads the
    vocabulary itself. Region phrases come back in every batch, so token ids are kept for a while.
    """

    def __init__(self, model_cfg: Mapping[str, Any], pad_id: int | None) -> None:
        self.model_cfg = {"text_cfg": model_cfg["text_cfg"]}
        self.pad_id = pad_id
        self.full = build_tokenizer(self.model_cfg)
        self._rows: dict[str, Tensor] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        if len(self._rows) > CACHED_TEXTS:
            self._rows.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            self._rows.update(zip(new, self.full(new)))
        if not texts:
            return torch.zeros(0, 1, dtype=torch.int64)
        return trim_padding(torch.stack([self._rows[text] for text in texts]), self.pad_id)

    def lengths(self, token_ids: Tensor) -> Tensor:
        """How many tokens of each row (U, T) the text tower needs: (U,); all, where cutting is not exact."""
        if self.pad_id is None:
            return torch.full(token_ids.shape[:1], token_ids.shape[1])
        places = torch.arange(1, token_ids.shape[1] + 1)
        return ((token_ids != self.pad_id) * places).amax(1).clamp(min=1)

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[dict[str, Any], int | None]]:
        return TextTokenizer, (self.model_cfg, self.pad_id)


def build_tokenizer(model_cfg: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer for a model config: texts -> (U, T) padded to the context length."""
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    cfg = model_cfg["text_cfg"]
    context_length = cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
    kwargs = cfg.get("tokenizer_kwargs") or {}
    name = cfg.get("hf_tokenizer_name")
    if not name:
        return SimpleTokenizer(context_length=context_length, **kwargs)
    try:
        return HFTokenizer(
            name, context_length=context_length, tokenizer_mode=cfg.get("tokenizer_mode"), **kwargs
        )
    except OSError as error:
        raise MissingFileError(f"tokenizer {name!r} is neither a local folder nor cached: {error}") from error
