"""Transformer encoder, normalising after (the paper's) or before each sublayer."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ecgfast.nn.config import EncoderConfig
from ecgfast.ops._dispatch import differentiated


class SelfAttention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """[B, N, E] -> [B, N, E]; `attend` [B, 1, 1, N] is true for keys to look at."""
        batch, n, width = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        # The fused kernels have neither forward-mode derivatives nor second ones.
        with sdpa_kernel(SDPBackend.MATH) if differentiated() else nullcontext():
            y = F.scaled_dot_product_attention(query, key, value, attend, dropout)
        return self.out(y.transpose(1, 2).reshape(batch, n, width))


class TransformerLayer(nn.Module):
    """Self-attention and a GELU feed-forward network, each with a residual and a LayerNorm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config.width, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout(F.gelu(self.fc1(x))))

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), attend))
            return x + self.dropout(self.feed_forward(self.ffn_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, attend)))
        return self.ffn_norm(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    """The stack of layers with one more LayerNorm: before them (post-norm) or after (pre-norm)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.layer_drop = config.layer_drop
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """[B, N, E] -> [B, N, E]; `padding` [B, N] bool marks tokens that nothing may look at."""
        attend = None
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
            attend = ~padding
            # The first key stays visible: a segment shorter than one token would give 0 / 0.
            attend = torch.cat([torch.ones_like(attend[:, :1]), attend[:, 1:]], 1)[:, None, None]
        if not self.norm_first:
            x = self.norm(x)
        x = self.dropout(x)
        for layer in self.layers:
            y = layer(x, attend)
            if self.training and self.layer_drop > 0:
                # Drawn on the device and computed all the same: the step keeps one shape.
                y = torch.where(torch.rand((), device=x.device) < self.layer_drop, x, y)
            x = y
        return self.norm(x) if self.norm_first else x
