"""The fused ops, each with its plain PyTorch reference beside it (``<name>_reference``)."""

from ecgfast.ops._dispatch import use_reference
from ecgfast.ops._flops import register_flops
from ecgfast.ops.gather_segments import gather_segments, gather_segments_reference
from ecgfast.ops.global_contrastive import global_contrastive, global_contrastive_reference
from ecgfast.ops.gumbel_quantize import draw_gumbel, gumbel_quantize, gumbel_quantize_reference
from ecgfast.ops.lead_mask import lead_mask, lead_mask_reference
from ecgfast.ops.local_contrastive import (
    draw_negatives,
    local_contrastive,
    local_contrastive_reference,
)
from ecgfast.ops.patch_embed import patch_embed, patch_embed_reference
from ecgfast.ops.positional_conv import positional_conv, positional_conv_reference
from ecgfast.ops.random import Purpose, make_rng, philox4x32
from ecgfast.ops.span_mask import span_mask, span_mask_reference

__all__ = [
    "Purpose",
    "draw_gumbel",
    "draw_negatives",
    "gather_segments",
    "gather_segments_reference",
    "global_contrastive",
    "global_contrastive_reference",
    "gumbel_quantize",
    "gumbel_quantize_reference",
    "lead_mask",
    "lead_mask_reference",
    "local_contrastive",
    "local_contrastive_reference",
    "make_rng",
    "patch_embed",
    "patch_embed_reference",
    "philox4x32",
    "positional_conv",
    "positional_conv_reference",
    "span_mask",
    "span_mask_reference",
    "use_reference",
]

register_flops()
