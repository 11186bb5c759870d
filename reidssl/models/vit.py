"""The backbone: timm's VisionTransformer for person images, with the ICS stem and crops of any size.

Shapes: B images, D width, (h, w) the grid of patches, N = h * w. Image size is (height, width).
The output is the class token after the final layer norm; activations are exact GELU.
"""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reidssl.models.drop_path import one_kind_of_drop_path
from reidssl.models.ics import IcsStem, patch_products
from reidssl.models.initialization import seeded
from reidssl.models.model_config import VitConfig

SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
LAYER_SCALE = 1e-5  # initial value in DINOv2


def vit_config(size: str, **fields: Any) -> VitConfig:
    """The configuration of a "tiny", "small", "base" or "large" ViT; `fields` of VitConfig override its values.

    >>> vit_config("base", image_size=(384, 128), stem="patch").width
    768
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}: got {size!r}")
    width, depth, heads = SIZES[size]
    return VitConfig(**{"width": width, "depth": depth, "heads": heads, **fields})


class PatchProjection(nn.Module):
    """The plain stem, one linear projection of each patch: float (B, 3, H, W) -> (B, D, h, w)."""

    def __init__(self, width: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        return patch_products(self.proj, images)


def _build_stem(config: VitConfig) -> nn.Module:
    stride = config.stride or config.patch_size
    if config.stem == "ics":
        stem: nn.Module = IcsStem(config.width, config.patch_size, stride, config.stem_width)
    else:
        stem = PatchProjection(config.width, config.patch_size, stride)
    rows, columns = config.grid(*config.image_size)
    stem.num_patches = rows * columns  # type: ignore[assignment]  # timm sizes the position embeddings by it
    return stem


class Vit(VisionTransformer):
    """A vision transformer for person images. Build it with `build_vit`."""

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, config: VitConfig) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
            init_values=config.layer_scale or None,
            norm_layer=lambda width, **options: nn.LayerNorm(width, eps=config.norm_eps, **options),
            act_layer=nn.GELU,
            embed_layer=lambda **_: _build_stem(config),
        )
        self.config = config
        self._embedding, self._block = _embedding_of, _output_of
        nn.init.trunc_normal_(self.cls_token, std=0.02)  # as DINO does; timm's default is nearly zero
        self.camera_embed: nn.Parameter | None = None
        if config.num_cameras:
            self.camera_embed = nn.Parameter(torch.empty(config.num_cameras, 1, config.width))
            nn.init.trunc_normal_(self.camera_embed, std=0.02)

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        camids: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        all_tokens: bool = False,
    ) -> Tensor:
        """Features of images.

        Args:
            images: float (B, 3, H, W), normalized; any H and W that `config.grid` accepts.
            camids: int64 (B,) in [0, num_cameras); required with camera embeddings, ignored without.
            mask: bool (B, N), row by row of the grid, for masked image modeling. The embedding of a masked patch is replaced by
                `mask_token` before the position embeddings are added.
            mask_token: float (D,), required with a mask.
            all_tokens: return all tokens, as `forward_tokens` does.

        Returns:
            float (B, D), the class token (plus the pooled patch tokens with `gem_pooling`). With `all_tokens`: all tokens
            after the final norm, (B, 1 + N, D), class token first.

        Raises ValueError for an image size, camids or a mask that do not fit.
        """
        tokens = self.forward_tokens(images, camids, mask, mask_token)
        return tokens if all_tokens else self.pooled(tokens)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The feature (B, D) from all tokens (B, 1 + N, D): class token, plus GeM pooling if configured."""
        features = tokens[:, 0]
        if self.config.gem_pooling:
            features = features + tokens[:, 1:].clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3)
        return features

    def forward_tokens(
        self, images: Tensor, camids: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """All tokens after the final norm, (B, 1 + N, D), class token first. Arguments as in `forward`."""
        return self.last_block(self.tokens_before_last_block(images, camids, mask, mask_token))

    def tokens_before_last_block(
        self, images: Tensor, camids: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """All tokens before the last block, (B, 1 + N, D), class token first. Arguments as in `forward`."""
        tokens = self._embedding(self, images, camids, mask, mask_token)
        for block in self.blocks[:-1]:
            tokens = self._through(block, tokens)
        return tokens

    def last_block(self, tokens: Tensor) -> Tensor:
        """The last block and the final norm: the result of `tokens_before_last_block` -> that of `forward_tokens`."""
        normed: Tensor = self.norm(self._through(self.blocks[-1], tokens))
        return normed

    def _through(self, block: nn.Module, tokens: Tensor) -> Tensor:
        # With timm's set_grad_checkpointing(True), activations are computed again in the backward pass to save memory.
        if self.grad_checkpointing:
            result: Tensor = checkpoint(self._block, block, tokens, use_reentrant=False)
            return result
        return self._block(block, tokens)

    def compile_parts(self, **options: Any) -> None:
        """Compile the embedding and the blocks in place. Names of parameters do not change, and copies are not compiled.

        All blocks share one graph for each size of images, so that compilation takes a fraction of the time that the whole model
        would take. The random numbers of drop path are others than those of a model that is not compiled.

        options: arguments of torch.compile.
        """
        one_kind_of_drop_path(self)
        self._embedding = torch.compile(_embedding_of, dynamic=False, **options)
        self._block = torch.compile(_output_of, dynamic=False, **options)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"_embedding": _embedding_of, "_block": _output_of}

    def forward_features(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """The same as `forward_tokens`, under timm's name."""
        return self.forward_tokens(x)

    @torch.no_grad()
    def class_attention(self, images: Tensor, camids: Tensor | None = None) -> Tensor:
        """Attention weights from the class token to the patches in the last block.

        Returns:
            float (B, heads, N), row by row of the grid. Together with the class token's attention to itself, which is not
            returned, the weights of a head sum to 1.
        """
        tokens = self._embed(images, camids)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last: Any = self.blocks[-1]
        channels = self.config.width // self.config.heads
        qkv = last.attn.qkv(last.norm1(tokens)).unflatten(-1, (3, -1, channels))  # (B, 1 + N, 3, heads, channels)
        query, keys = qkv[:, 0, 0], qkv[:, :, 1]
        weights = torch.einsum("bhd,bnhd->bhn", query * channels**-0.5, keys).softmax(dim=-1)
        return weights[:, :, 1:]

    def _embed(
        self, images: Tensor, camids: Tensor | None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Stem, class token, position and camera embeddings: (B, 3, H, W) -> (B, 1 + N, D)."""
        rows, columns = self.config.grid(*images.shape[-2:])
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        if mask is not None:
            if mask_token is None or mask.shape != patches.shape[:2] or mask.dtype != torch.bool:
                raise ValueError(
                    f"a mask must be bool {tuple(patches.shape[:2])} and come with a mask_token: got "
                    f"{mask.dtype} {tuple(mask.shape)}{' and none' if mask_token is None else ''}"
                )
            patches = torch.where(mask[..., None], mask_token.to(patches), patches)
        # shape[0] instead of len(), so that traced and exported graphs accept any batch size
        tokens = torch.cat((self.cls_token.expand(images.shape[0], -1, -1), patches), dim=1)
        tokens = tokens + self._positions(rows, columns)
        if self.camera_embed is not None:
            cameras = self._check_cameras(camids, len(images))
            tokens = tokens + self.config.camera_weight * self.camera_embed[cameras]
        return tokens

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings for a grid, (1, 1 + rows * columns, D).

        For a grid other than the configured one they are interpolated (bicubic, align_corners off) with the scale factors
        ((rows + 0.1) / rows0, (columns + 0.1) / columns0), which also set the sampling points. In the method's code the 0.1
        prevents rounding down. Interpolating to a given size instead would change the outputs of released weights by 2e-2.
        """
        own_rows, own_columns = self.config.grid(*self.config.image_size)
        if (rows, columns) == (own_rows, own_columns):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (own_rows, own_columns)).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / own_rows, (columns + 0.1) / own_columns)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)

    def _check_cameras(self, camids: Tensor | None, count: int) -> Tensor:
        cameras = self.config.num_cameras
        if camids is None or camids.shape != (count,):
            seen = "none" if camids is None else f"shape {tuple(camids.shape)}"
            raise ValueError(f"a backbone with num_cameras={cameras} needs one camid for each of {count} images: got {seen}")
        if count and not 0 <= int(camids.min()) <= int(camids.max()) < cameras:
            raise ValueError(
                f"camids must be in [0, {cameras}): got {int(camids.min())} to {int(camids.max())}; "
                "number the cameras from 0, or build the backbone with num_cameras=0"
            )
        return camids


def _embedding_of(vit: Vit, images: Tensor, camids: Tensor | None, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    return vit._embed(images, camids, mask, mask_token)


def _output_of(block: nn.Module, tokens: Tensor) -> Tensor:
    result: Tensor = block(tokens)
    return result


def build_vit(config: VitConfig, seed: int = 0) -> Vit:
    """A new backbone whose weights depend on (config, seed) alone. The global random state is not changed."""
    with seeded(seed):
        return Vit(config)
