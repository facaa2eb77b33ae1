"""ACT, which joins a transformer and a convolutional network (Yoo et al., WACV 2023): the row "ACTNet" of the paper's Table 1; book part "Results".

The paper's citation for this row is a segmentation network of the same short name; its toolkit holds the super-resolution network.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import ChannelAttention, Residual, SuperResolutionNetwork, convolution, residual_block, upsampler

PATCH = 3  # side of a token's patch [px]
WIDE = 2 * PATCH  # side of the overlapping patches of the multi-scale step [px]
HEAD_FEATURES = 72
VARIANTS = ("paper", "released")


def cut(image: torch.Tensor, patch: int) -> torch.Tensor:
    """Image (B, F, g, g) to tokens (B, T, F patch^2), one patch every 3 pixels."""
    return nn.functional.unfold(image, patch, stride=PATCH).mT


def join(tokens: torch.Tensor, size: int, patch: int) -> torch.Tensor:
    """Tokens (B, T, F patch^2) to an image (B, F, size, size); where patches overlap they add up."""
    return nn.functional.fold(tokens.mT, size, patch, stride=PATCH)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Layer norm, linear, GELU, linear."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def attention_block(features: int, blocks: int) -> Residual:
    """A residual group of blocks with channel attention, as in RCAN."""

    def block():
        return Residual(convolution(features, features), nn.ReLU(), convolution(features, features), ChannelAttention(features, 16))

    return Residual(*(block() for _ in range(blocks)), convolution(features, features))


class Attention(nn.Module):
    """Tokens (B, T, W) gather from context tokens (B, U, W), or from each other if there is no context; all are normalised before."""

    def __init__(self, width: int, heads: int, own: bool):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.norm_context = None if own else nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, tokens, context=None):
        tokens = self.norm(tokens)
        query = self.query(tokens)
        key, value = self.key_value(tokens if self.norm_context is None else self.norm_context(context)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.project((weights @ value).transpose(1, 2).flatten(2))


class TokenStage(nn.Module):
    """Self-attention among tokens, then an exchange between one half of their channels and larger, overlapping patches of the other half."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        half, wide = width // 2, WIDE**2 * width // (2 * PATCH**2)
        self.attention, self.perceptron = Attention(width, heads, own=True), perceptron(width, 4 * width, width)
        self.widen = perceptron(wide, half, half)
        self.fine_from_wide, self.wide_from_fine = Attention(half, heads // 2, own=False), Attention(half, heads // 2, own=False)
        self.narrow = perceptron(half, half, wide)
        self.closing = perceptron(width, 4 * width, width)

    def forward(self, tokens, size):
        tokens = tokens + self.attention(tokens)
        tokens = tokens + self.perceptron(tokens)
        fine, other = tokens.chunk(2, dim=-1)
        wide = self.widen(cut(join(other, size, PATCH), WIDE))
        fine, wide = fine + self.fine_from_wide(fine, wide), wide + self.wide_from_fine(wide, fine)
        tokens = torch.cat([fine, cut(join(self.narrow(wide), size, WIDE), PATCH)], dim=-1)
        return tokens + self.closing(tokens)


class Actnet(SuperResolutionNetwork):
    """ACT: four stages of a transformer on tokens of 3 x 3 pixels beside four residual groups of convolutions, which exchange features after each stage.

    After a stage the maps of both branches are stacked and mixed by 1 x 1 convolutions; one half of the result goes back to the tokens, the other to the
    convolutions, each through two layers and added to what it had. As in the reference toolkit, maps are stacked in the order (convolutions, tokens) and
    taken apart in the order (tokens, convolutions). Tokens see all of what is shown, so a window gets another answer than its place in the whole frame.

    46,175,105 parameters at c = 3. The printed count of 46,212,033 includes 36,928 parameters of one convolution that the toolkit creates and never calls
    (``dead_parameters``); it is left out here.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    plane : FocalPlane
        Only its frame shape matters.
    start : bool
        Accepted so that all networks are made alike.
    features : int
        Channels of the convolutions, a multiple of 16; a token has 9 times as many.
    stages, blocks : int
        Stages of both branches; blocks of a residual group.
    variant : {"paper", "released"}
        What happens to rows and columns that fill no token. 11 pixels are three tokens and two pixels more. ``paper`` adds zeros at the bottom and the right
        until all pixels belong to a token. ``released`` repeats the toolkit: 40 of the 121 pixels belong to none, and get zeros from the transformer.

    Raises
    ------
    ValueError
        For an unknown variant or a number of features that is no multiple of 16; in the released variant, for windows below 6 pixels.

    >>> Actnet(features=16, stages=1, blocks=1)(torch.zeros(2, 11, 11)).shape
    torch.Size([2, 33, 33])
    """

    dead_parameters = 36_928
    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, features: int = 64, stages: int = 4, blocks: int = 12,
                 variant: str = "paper"):
        super().__init__(ratio, plane, start)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        if features < 16 or features % 16:
            raise ValueError(f"features must be a multiple of 16; got {features!r}. The paper uses 64")
        if stages < 1:
            raise ValueError(f"stages must be at least 1; got {stages!r}. The paper uses 4")
        self.variant = variant
        width = PATCH**2 * features
        heads = width // HEAD_FEATURES
        self.head = nn.Sequential(convolution(1, features), residual_block(features, 5), residual_block(features, 5))
        self.embed = Residual(nn.Linear(width, width))
        self.token_stages = nn.ModuleList(TokenStage(width, heads) for _ in range(stages))
        self.groups = nn.ModuleList(attention_block(features, blocks) for _ in range(stages))
        self.fusions = nn.ModuleList(Residual(*(mixing_block(2 * features) for _ in range(4))) for _ in range(stages))
        self.to_tokens = nn.ModuleList(perceptron(width, 4 * width, width) for _ in range(stages - 1))
        self.to_maps = nn.ModuleList(
            nn.Sequential(convolution(features, features), nn.ReLU(), convolution(features, features)) for _ in range(stages - 1)
        )
        self.closing = convolution(2 * features, features)
        self.tail = nn.Sequential(upsampler(features, self.ratio), convolution(features, 1))

    def token_size(self, size: int) -> int:
        """Side of the square that tokens cover in an image of a given side [px]."""
        if self.variant == "paper":
            return max(WIDE, -(-size // PATCH) * PATCH)
        if size < WIDE:
            raise ValueError(f"the released variant needs at least {WIDE} x {WIDE} pixels; got {size} x {size}. Use variant='paper' or whole frames")
        return size // PATCH * PATCH

    def upscale(self, image):
        head = maps = self.head(image)
        size = image.shape[-1]
        covered = self.token_size(size)
        margin = (0, covered - size, 0, covered - size)  # negative where pixels are left out
        tokens = self.embed(cut(nn.functional.pad(head, margin), PATCH))
        for number, (token_stage, group, fusion) in enumerate(zip(self.token_stages, self.groups, self.fusions)):
            tokens, maps = token_stage(tokens, covered), group(maps)
            seen = nn.functional.pad(join(tokens, covered, PATCH), [-side for side in margin])
            fused = fusion(torch.cat([maps, seen], dim=1))
            if number < len(self.to_tokens):
                for_tokens, for_maps = fused.chunk(2, dim=1)
                tokens = tokens + self.to_tokens[number](cut(nn.functional.pad(for_tokens, margin), PATCH))
                maps = maps + self.to_maps[number](for_maps)
        return self.tail(self.closing(fused) + head)


def mixing_block(features: int) -> Residual:
    """1 x 1 convolution, ReLU, 1 x 1 convolution, plus the input."""
    return Residual(convolution(features, features, 1, bias=False), nn.ReLU(), convolution(features, features, 1, bias=False))
