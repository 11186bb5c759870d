"""The jigsaw patch module (JPM) of TransReID (arXiv 2102.04378, section 3.2): local features from shuffled patches.

Shapes: B images, N patches, D width, P parts, C identities.
"""

import copy

import torch
from torch import Tensor, nn

from reidssl.models.model_config import JigsawConfig
from reidssl.models.neck import batch_norm_neck, identity_classifier
from reidssl.models.vit import Vit
from reidssl.seeding import mix


def shuffle_patches(patches: Tensor, shift: int, groups: int) -> Tensor:
    """Shift and shuffle patches so that each part covers the whole image: (B, N, D) -> (B, N or N + 1, D).

    The first shift - 1 patches move to the end (the released code counts the class token as the first position). The sequence is
    then cut into `groups` equal groups, and their patches are interleaved: the first of each group, the second of each group, ...
    If N is not a multiple of `groups`, the last patch but one is appended once, as in the released code.

    >>> shuffle_patches(torch.arange(8.0).view(1, 8, 1), shift=3, groups=2).flatten().tolist()
    [2.0, 6.0, 3.0, 7.0, 4.0, 0.0, 5.0, 1.0]
    """
    patches = patches.roll(1 - shift, dims=1)
    if patches.shape[1] % groups:
        patches = torch.cat((patches, patches[:, -2:-1]), dim=1)
    mixed: Tensor = patches.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return mixed


class JigsawBranch(nn.Module):
    """The local branch: P features of an image, each from the class token and a P-th of its shuffled patches.

    All parts share one transformer block and layer norm, which begin as copies of the backbone's last ones. Every part has its
    own neck and classifier. Raises ValueError if the backbone's patches cannot be divided so.
    """

    def __init__(self, backbone: Vit, config: JigsawConfig, num_classes: int = 0, seed: int = 0, cosine: bool = False) -> None:
        super().__init__()
        rows, columns = backbone.config.grid(*backbone.config.image_size)
        config.check(rows * columns)
        self.config = config
        self.width = backbone.config.width
        self.block = copy.deepcopy(backbone.blocks[-1])
        self.norm = copy.deepcopy(backbone.norm)
        self.bottlenecks = nn.ModuleList(batch_norm_neck(self.width) for _ in range(config.parts))
        self.classifiers = nn.ModuleList()
        self.reset_classifiers(num_classes, seed, cosine)

    def reset_classifiers(self, num_classes: int, seed: int = 0, cosine: bool = False) -> None:
        """Replace the classifiers by new ones for num_classes identities; 0 removes them."""
        device = next(self.block.parameters()).device
        parts = range(self.config.parts if num_classes else 0)
        seeds = (mix(seed, 1 + part) for part in parts)
        self.classifiers = nn.ModuleList(identity_classifier(self.width, num_classes, each, cosine) for each in seeds).to(device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Local features (B, P * D), part by part, from the tokens (B, 1 + N, D) before the backbone's last block.

        A part has N // P patches. Patches that are left over at the end are not used.
        """
        token, patches = tokens[:, :1], shuffle_patches(tokens[:, 1:], self.config.shift, self.config.groups)
        size = (tokens.shape[1] - 1) // self.config.parts
        parts = (patches[:, part * size : (part + 1) * size] for part in range(self.config.parts))
        return torch.cat([self.norm(self.block(torch.cat((token, part), dim=1)))[:, 0] for part in parts], dim=1)
