"""An encoder as it is run where nothing is learnt: the same numbers as its `forward`, up to rounding.

Weights are cast once instead of for every batch. On x86 the linear layers are oneDNN's, which has the weights
in the order in which it multiplies, and computes the GELU while a product's rows are in the cache.
"""

import copy
import platform
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgfast.nn import Encoder
from ecgfast.nn.transformer import TransformerLayer

_ROWS = 2048  # for which oneDNN orders weights; it takes any other number too


class Inference:
    """Runs an encoder without gradients or dropout.

    Args:
        encoder: Where it is to run; it is not changed.
        precision: "fp32", or "bf16" where autocast allows it.
    """

    def __init__(self, encoder: Encoder, precision: str) -> None:
        self._bf16 = precision == "bf16"
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        self._encoder = _twin(encoder)
        self._encoder.transformer = _twin(encoder.transformer)
        with torch.inference_mode():
            layers = [_Layer(layer, dtype) for layer in encoder.transformer.layers]
        self._encoder.transformer.layers = nn.ModuleList(layers)
        self._encoder.eval()

    @torch.inference_mode()
    def __call__(
        self, signal: Tensor, leads: Sequence[str], lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens, float32 [B, N, E], and which of them are padding (None: none), as `Encoder.forward`."""
        with torch.autocast(signal.device.type, torch.bfloat16, enabled=self._bf16):
            output = self._encoder(signal, leads, lengths=lengths)
        return output.tokens.float(), output.padding


def _twin(module: nn.Module) -> nn.Module:
    """A module with the same parts, of which others can be put in without changing the first."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


class _Layer(nn.Module):
    """`TransformerLayer` in evaluation mode."""

    def __init__(self, layer: TransformerLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        self.heads = layer.attention.heads
        self.attention_norm, self.ffn_norm = layer.attention_norm, layer.ffn_norm
        self.qkv, self.out = _Linear(layer.attention.qkv, dtype), _Linear(layer.attention.out, dtype)
        self.fc1, self.fc2 = _Linear(layer.fc1, dtype, gelu=True), _Linear(layer.fc2, dtype)

    def attention(self, x: Tensor, attend: Tensor | None) -> Tensor:
        batch, n, width = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value, attend)
        return self.out(y.transpose(1, 2).reshape(batch, n, width))

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), attend)
            return x + self.fc2(self.fc1(self.ffn_norm(x)))
        x = self.attention_norm(x + self.attention(x, attend))
        return self.ffn_norm(x + self.fc2(self.fc1(x)))


class _Linear(nn.Module):
    """A linear layer, with a GELU after it if asked for, whose weights are ready in a dtype."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, gelu: bool = False) -> None:
        super().__init__()
        self._gelu, self._dtype = gelu, dtype
        self._weight = linear.weight.detach().to(dtype)
        self._bias = linear.bias.detach().to(dtype)
        self._packed = _takes_onednn(self._weight)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, _ROWS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if not self._packed:
            y = F.linear(x, self._weight, self._bias)
            return F.gelu(y) if self._gelu else y
        after, how = ("gelu", "none") if self._gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after, [], how)


def _takes_onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with this weight."""
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
