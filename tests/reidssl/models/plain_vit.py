"""The backbone of the published code in plain functions on a state dict, without modules or timm."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.models.model_config import VitConfig


def plain_stem(state: dict[str, Tensor], images: Tensor, config: VitConfig, training: bool = False) -> Tensor:
    """Patch projection, or conv - IBN - ReLU - conv - IBN - ReLU - conv - BN - ReLU - conv.

    training: batch norms use the statistics of `images`, as in train mode.
    """
    stride = config.stride or config.patch_size
    s = {name.removeprefix("patch_embed."): value for name, value in state.items() if name.startswith("patch_embed.")}
    if config.stem == "patch":
        return F.conv2d(images, s["proj.weight"], s["proj.bias"], stride)

    def batch_norm(x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (s[f"{name}.{part}"][:, None, None] for part in parts)
        if training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def instance_norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * s[f"{name}.weight"][:, None, None] + s[f"{name}.bias"][:, None, None]

    def ibn(x: Tensor, name: str) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat((instance_norm(x[:, :half], f"{name}.instance"), batch_norm(x[:, half:], f"{name}.batch")), dim=1)

    x = ibn(F.conv2d(images, s["conv1.weight"], stride=2, padding=3), "norm1").relu()
    x = ibn(F.conv2d(x, s["conv2.weight"], padding=1), "norm2").relu()
    x = batch_norm(F.conv2d(x, s["conv3.weight"], padding=1), "norm3").relu()
    return F.conv2d(x, s["proj.weight"], s["proj.bias"], stride // 2)


def plain_vit(state: dict[str, Tensor], images: Tensor, config: VitConfig, training: bool = False) -> Tensor:
    """Features (B, D) of float (B, 3, H, W) images, without cameras and drop path. training: see `plain_stem`."""

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        spread = (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centered / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def scaled(x: Tensor, name: str) -> Tensor:
        return x * state[f"{name}.gamma"] if config.layer_scale else x

    maps = plain_stem(state, images, config, training)
    rows, columns = maps.shape[2:]
    own_rows, own_columns = config.grid(*config.image_size)
    positions = state["pos_embed"]
    if (rows, columns) != (own_rows, own_columns):
        cells = positions[:, 1:].reshape(1, own_rows, own_columns, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / own_rows, (columns + 0.1) / own_columns)
        cells = F.interpolate(cells, scale_factor=scale, mode="bicubic", align_corners=False)
        positions = torch.cat((positions[:, :1], cells.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), dim=1)
    patches = maps.permute(0, 2, 3, 1).reshape(len(images), rows * columns, -1)
    x = torch.cat((state["cls_token"].expand(len(images), -1, -1), patches), dim=1) + positions
    for i in range(config.depth):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, config.heads, -1))
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))  # (B, heads, N, channels)
        weights = (query @ key.transpose(-1, -2) / (config.width // config.heads) ** 0.5).softmax(-1)
        x = x + scaled(linear((weights @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj"), f"{block}.ls1")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        x = x + scaled(linear(hidden, f"{block}.mlp.fc2"), f"{block}.ls2")
    x = norm(x, "norm")
    if config.gem_pooling:
        return x[:, 0] + x[:, 1:].clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
    return x[:, 0]
