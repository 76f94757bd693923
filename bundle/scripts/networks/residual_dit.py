"""Stage 2: a diffusion transformer over all patches that adds the global residual (paper section 3.2)."""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .layers import (
    AdaptiveModulation,
    check_patches,
    make_norm,
    modulate,
    pad_volume,
    patchify,
    pick_tokens,
    position_code,
    put_tokens,
    token_grid,
    unpatchify,
    zero_init,
)

Guide = Tuple[int, float]  # of layer-skip guidance: the block that is left out, and the weight w
Route = Tuple[
    Tensor, bool
]  # in training: numbers of the tokens (B, K) that see all blocks, and whether others see none


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, F) -> (B, N, F), in memory linear in N.

    Args:
        size: number of features F.
        num_heads: number of heads, a divisor of F.
        kernel: 'sdpa' (PyTorch), 'xformers' (CUDA only, the `cuda` extra) or 'auto': 'sdpa', but plain matrix
            products for up to SHORT tokens on a CPU, where they are faster (benchmarks/attention.py).
    """

    SHORT = 512

    def __init__(self, size: int, num_heads: int, kernel: str = "auto") -> None:
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise ValueError(f"hidden_size {size} must be a multiple of num_heads {num_heads}")
        if kernel not in ("auto", "sdpa", "xformers"):
            raise ValueError(f"attention must be 'auto', 'sdpa' or 'xformers', got '{kernel}'")
        if kernel == "xformers":
            try:
                import xformers.ops  # noqa: F401
            except ImportError:
                raise ValueError("attention 'xformers' needs the package xformers: pip install .[cuda]") from None
        self.num_heads, self.use_xformers = num_heads, kernel == "xformers"
        self.short = self.SHORT if kernel == "auto" else 0
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    @torch.jit.unused
    def _xformers(self, qkv: Tensor) -> Tensor:
        from xformers.ops import memory_efficient_attention

        q, k, v = qkv.unbind(2)  # each (B, N, heads, F / heads)
        return memory_efficient_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, size = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, size // self.num_heads)
        if self.use_xformers and not torch.jit.is_scripting():
            y = self._xformers(qkv)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, F / heads)
            if tokens <= self.short and not x.is_cuda:
                weights = torch.matmul(q * (q.shape[3] ** -0.5), k.transpose(2, 3)).softmax(dim=-1)  # (B, heads, N, N)
                y = torch.matmul(weights, v).transpose(1, 2)
            else:
                y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(y.reshape(batch, tokens, size))


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero (Peebles & Xie 2023): the time gives shift, scale and gate of both parts."""

    def __init__(self, size: int, num_heads: int, mlp_ratio: float, norm: str, attention: str) -> None:
        super().__init__()
        hidden = int(size * mlp_ratio)
        self.modulation = AdaptiveModulation(size, size, 6, norm)
        self.norm1 = make_norm(norm, size)
        self.attention = Attention(size, num_heads, attention)
        self.norm2 = make_norm(norm, size)
        self.mlp = nn.Sequential(nn.Linear(size, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, size))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, F) and modulation (6, B or 1, F) -> (B, N, F)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(0)
        x = torch.addcmul(x, gate1[:, None], self.attention(modulate(self.norm1(x), shift1, scale1)))  # (B, N, F)
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class PatchEmbedding(nn.Module):
    """Patch vectors to features, (B, N, C p**3) -> (B, N, F): an MLP beside a linear skip, then LayerNorm."""

    def __init__(self, patch_width: int, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(patch_width, 4 * size), nn.GELU(approximate="tanh"), nn.Linear(4 * size, size)
        )
        self.skip = nn.Linear(patch_width, size, bias=False)
        self.norm = nn.LayerNorm(size)

    def forward(self, patches: Tensor) -> Tensor:
        return self.norm(self.mlp(patches) + self.skip(patches))


class ResidualDiT(nn.Module):
    """Predicts the residual that the local denoiser cannot know, from all patches of the volume together.

    The output layer starts at zero, so that a new stage 2 equals stage 1.

    Args:
        in_channels: channels of the volume.
        out_channels: channels of the prediction.
        patch_size: side p of the patches, in voxels.
        stride: side s of what a token predicts.
        hidden_size: features of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLP over hidden_size.
        norm: 'layer' or 'rms', the two published variants.
        attention: kernel, see `Attention`.
        activation_checkpointing: computes the blocks again in the backward pass to save memory.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        stride: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        norm: str = "layer",
        attention: str = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_patches(patch_size, stride)
        self.patch_size, self.stride, self.hidden_size = patch_size, stride, hidden_size
        self.activation_checkpointing = activation_checkpointing
        self.time_head = nn.Linear(hidden_size, hidden_size)
        self.embedding = PatchEmbedding(in_channels * patch_size**3, hidden_size)
        self.blocks = nn.ModuleList(
            [DiTBlock(hidden_size, num_heads, mlp_ratio, norm, attention) for _ in range(depth)]
        )
        # The published RMSNorm variant keeps LayerNorm here, and no norm on this modulation.
        self.final_norm = make_norm("layer", hidden_size)
        self.final_modulation = AdaptiveModulation(hidden_size, hidden_size, 2)
        self.output = zero_init(nn.Linear(hidden_size, out_channels * stride**3))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, D, H, W) and shared time features (B, hidden_size) -> (B, C_out, D, H, W)."""
        return self.refine(x, self.modulations(time))

    def modulations(self, time: Tensor) -> List[Tensor]:
        """What the time makes of each block, (6, B, F), and of the output, (2, B, F)."""
        time = self.time_head(time)
        parts = [torch.stack(block.modulation(time)) for block in self.blocks]  # type: ignore[operator]
        parts.append(torch.stack(self.final_modulation(time)))
        return parts

    def positions(self, spatial_shape: List[int]) -> Tensor:
        """Position code of a volume's tokens, (1, N, F), on the weights' device and in their precision."""
        weight = self.output.weight
        return position_code(token_grid(spatial_shape, self.stride), self.hidden_size, weight.device).to(weight.dtype)[
            None
        ]

    def embed(self, x: Tensor, positions: Optional[Tensor], kept: Optional[Tensor] = None) -> Tensor:
        """A volume's tokens (B, N, F), or those of them that are kept (B, K, F), with their position code."""
        if positions is None:
            positions = self.positions([x.shape[2], x.shape[3], x.shape[4]])
        patches = patchify(pad_volume(x, self.patch_size, self.stride), self.patch_size, self.stride)
        if kept is not None:
            patches, positions = pick_tokens(patches, kept), pick_tokens(positions, kept)
        tokens = self.embedding(patches)
        return tokens + positions.to(tokens.dtype)  # autocast has other ones than the weights

    def predicted(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        """What tokens predict after the last block, (B, N, F) -> (B, N, s**3 C_out)."""
        shift, scale = modulation.unbind(0)
        return self.output(modulate(self.final_norm(tokens), shift, scale))

    def refine(
        self,
        x: Tensor,
        modulations: List[Tensor],
        positions: Optional[Tensor] = None,
        guide: Optional[Guide] = None,
        route: Optional[Route] = None,
    ) -> Tensor:
        """As `forward`, with what `modulations` made of the time, and `positions` of the volume's shape.

        With a guide R + w (R - R'), where R' leaves a block out and shares all blocks before it; the modulations must then
        be of one time. With a route the other tokens pass by all blocks but the first and the last (TREAD, Krause et al.
        2025), or are not there, and get a residual of 0 (SPRINT, Park et al. 2025).
        """
        kept, dropped = (None, False) if route is None else route
        routed = None if dropped else kept
        tokens, left_out = self.embed(x, positions, kept if dropped else None), -1 if guide is None else guide[0]
        waiting, last = tokens, len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            if routed is not None and i == 1:
                waiting, tokens = tokens, pick_tokens(tokens, routed)
            if routed is not None and i == last:
                tokens = put_tokens(waiting, routed, tokens)
            if not torch.jit.is_scripting() and self.activation_checkpointing and torch.is_grad_enabled():
                after = checkpoint(block, tokens, modulations[i], use_reentrant=False)
            else:
                after = block(tokens, modulations[i])
            tokens = torch.cat([after, tokens]) if i == left_out else after  # from then on (2B, N, F), of R and R'
        output = self.predicted(tokens, modulations[len(self.blocks)])
        if guide is not None:
            whole, weaker = output.chunk(2)
            output = torch.lerp(weaker, whole, 1.0 + guide[1])
        grid = token_grid([x.shape[2], x.shape[3], x.shape[4]], self.stride)
        if kept is not None and dropped:
            count = grid[0] * grid[1] * grid[2]
            output = put_tokens(output.new_zeros(output.shape[0], count, output.shape[2]), kept, output)
        return unpatchify(output, grid, self.stride)
