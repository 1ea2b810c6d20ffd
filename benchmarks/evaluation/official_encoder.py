"""The official encoder as fairseq-signals runs it, written again in plain PyTorch, with our weights.

Convolutions and position in channels-first layout, the position's weight normalised at each call, and the
transformer over [tokens, batch, width] with projections of its own for queries, keys and values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgfast.nn import Encoder


class _Layer(nn.Module):
    """A layer that normalises after its sublayers (fairseq's TransformerSentenceEncoderLayer)."""

    def __init__(self, state: dict[str, Tensor], width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name, part in zip("qkv", state["attention.qkv.weight"].chunk(3), strict=True):
            self.register_buffer(f"{name}_weight", part.clone())
        self.register_buffer("qkv_bias", state["attention.qkv.bias"].clone())
        self.out, self.fc1, self.fc2 = (_linear(state, name) for name in ("attention.out", "fc1", "fc2"))
        self.attention_norm, self.ffn_norm = (
            _norm(state, name, width) for name in ("attention_norm", "ffn_norm")
        )

    def forward(self, x: Tensor) -> Tensor:
        y, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            x.shape[-1],
            self.heads,
            torch.empty([0]),
            self.qkv_bias,
            None,
            None,
            False,
            0.0,
            self.out.weight,
            self.out.bias,
            False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_weight,
            k_proj_weight=self.k_weight,
            v_proj_weight=self.v_weight,
        )
        x = self.attention_norm(x + y)
        y = F.gelu(self.fc1(x).float()).type_as(x)
        return self.ffn_norm(x + self.fc2(y))


class OfficialEncoder(nn.Module):
    """[B, 12, T] float millivolts -> [B, N, E]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config, state = encoder.config, encoder.state_dict()
        if config.norm_first or config.stem_bias:
            raise ValueError("the official encoder normalises after, and its stem has no bias")
        self.convs = [state[f"stem.convs.{i}.weight"] for i in range(config.stem_layers)]
        self.stem_norm = state["stem.norm.weight"], state["stem.norm.bias"]
        self.layer_norm = _norm(state, "feature_norm", config.stem_channels)
        same = config.stem_channels == config.width
        self.projection = nn.Identity() if same else _linear(state, "projection")
        conv = encoder.positional.conv
        position = nn.Conv1d(
            config.width,
            config.width,
            config.conv_pos,
            padding=config.conv_pos // 2,
            groups=config.conv_pos_groups,
        )
        self.position = nn.utils.parametrizations.weight_norm(position, name="weight", dim=2)
        self.position.load_state_dict(conv.state_dict())
        self.norm = _norm(state, "transformer.norm", config.width)
        self.layers = nn.ModuleList(
            _Layer(_below(state, f"transformer.layers.{i}."), config.width, config.heads)
            for i in range(config.layers)
        )

    def forward(self, signal: Tensor) -> Tensor:
        x = signal
        for i, weight in enumerate(self.convs):
            x = F.conv1d(x, weight, stride=2)
            if i == 0:
                x = F.group_norm(x.float(), x.shape[1], *self.stem_norm).type_as(x)
            x = F.gelu(x)
        x = self.projection(self.layer_norm(x.transpose(1, 2)))
        y = self.position(x.transpose(1, 2))
        if self.position.kernel_size[0] % 2 == 0:
            y = y[:, :, :-1]
        x = x + F.gelu(y).transpose(1, 2)
        x = self.norm(x).transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(0, 1)


def _below(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _linear(state: dict[str, Tensor], name: str) -> nn.Linear:
    weight = state[f"{name}.weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})
    return linear


def _norm(state: dict[str, Tensor], name: str, width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    norm.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
    return norm
