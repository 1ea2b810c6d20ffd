"""The encoder and its parts: modules over `ecgfast.ops`."""

from ecgfast.nn.config import EncoderConfig
from ecgfast.nn.encoder import Encoder, EncoderOutput, mean_tokens
from ecgfast.nn.positional_conv import PositionalConv
from ecgfast.nn.quantizer import Quantizer, QuantizerOutput, perplexity
from ecgfast.nn.stem import Stem, scale_gradient
from ecgfast.nn.transformer import Transformer

__all__ = [
    "Encoder",
    "EncoderConfig",
    "EncoderOutput",
    "PositionalConv",
    "Quantizer",
    "QuantizerOutput",
    "Stem",
    "Transformer",
    "mean_tokens",
    "perplexity",
    "scale_gradient",
]
