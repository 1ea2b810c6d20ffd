"""Configurations of the training tasks and their presets."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ecgfast.errors import EcgfastError
from ecgfast.nn import EncoderConfig
from ecgfast.objectives import W2VCMSCConfig

# Each process and each epoch may add to the seed, which torch takes in 64 bits.
_SEED_END = 2**63 - 2**20


@dataclass(frozen=True)
class OptimConfig:
    """Adam with decoupled weight decay, constant learning rate (CHIL 2022, appendix)."""

    lr: float = 5e-5
    """Learning rate, constant after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the first and the second moment."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled decay: each update multiplies every parameter by 1 - decay * lr."""
    warmup_steps: int = 0
    """Updates of linear warm-up of the learning rate."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this total norm; 0: no clipping."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise EcgfastError(f"optim.lr: got {self.lr}; a positive number is taken")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise EcgfastError(f"optim.betas: got {self.betas}; two numbers in [0, 1) are taken")
        for name in ("eps", "weight_decay", "warmup_steps", "clip_norm"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise EcgfastError(f"optim.{name}: got {value}; a number of at least 0 is taken")


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training with W2V + CMSC + RLM. The defaults are the paper's."""

    model: W2VCMSCConfig = field(default_factory=W2VCMSCConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_pairs: int = 64
    """Pairs of adjacent segments per process and micro-batch."""
    accumulation: int = 2
    """Micro-batches per update."""
    epochs: int = 200
    """Passes over the store."""
    max_steps: int = 0
    """Updates after which training ends, whatever `epochs` says; 0: `epochs` decides."""
    segment_samples: int = 2500
    """Length of a segment in samples at 500 Hz (2500: 5 s)."""
    offsets: Literal["fixed", "random"] = "fixed"
    """Where a recording's pair starts: fixed as in the paper, or drawn each epoch."""
    seed: int = 0
    """Seed of the weights, the batches, the masks and the dropout."""
    loader: Literal["stream", "resident"] = "stream"
    """Where batches come from: read from the store ahead of their use, or cropped on the device out of
    a store that is kept whole in its memory. The numbers are the same."""
    global_batch: bool = False
    """With several processes, contrast segments with those of all of them in the global loss; the
    official code contrasts within each process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic: float32, or bfloat16 where autocast allows it."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    compile: bool = False
    """Compile the model with torch.compile."""
    log_every: int = 50
    """Updates between log points; the device is read only there."""
    checkpoint_every: int = 500
    """Updates between checkpoints of the training state."""

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_pairs", 1),
            ("accumulation", 1),
            ("epochs", 1),
            ("max_steps", 0),
            ("segment_samples", 16),
            ("log_every", 1),
            ("checkpoint_every", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise EcgfastError(f"{name}: got {value}; an integer of at least {least} is taken")
        for name, choices in (
            ("precision", ("fp32", "bf16")),
            ("offsets", ("fixed", "random")),
            ("loader", ("stream", "resident")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise EcgfastError(f"{name}: got {value!r}; {' or '.join(choices)} is taken")
        if not 0 <= self.seed < _SEED_END:
            raise EcgfastError(
                f"seed: got {self.seed}; an integer of at least 0 and below {_SEED_END} is taken"
            )
        tokens = self.model.encoder.n_tokens(self.segment_samples)
        n_masked = self.model.n_masked or 1
        if tokens < n_masked:
            raise EcgfastError(
                f"segment_samples: got {self.segment_samples}, which make {tokens} tokens; at least "
                f"{n_masked} are taken (model.n_masked)"
            )
        self._check_masks(tokens)

    def _check_masks(self, tokens: int) -> None:
        """Masks must leave tokens as context, and give a masked one others as negatives."""
        n_masked, length = self.model.n_masked, self.model.mask_length
        if n_masked == 1:
            raise EcgfastError(
                "model.n_masked: got 1; a masked token alone has no negatives, so at least 2 are taken"
            )
        if n_masked == tokens:
            raise EcgfastError(
                f"model.n_masked: got {n_masked}, all tokens of {self.segment_samples} samples; fewer are "
                "taken, which leave some as context"
            )
        if n_masked is None and length >= tokens:
            raise EcgfastError(
                f"model.mask_length: got {length}; fewer than {tokens} are taken (the tokens of "
                f"{self.segment_samples} samples), or model.n_masked beside it"
            )


# About what the paper's spans leave of 156 tokens at its batch size; fixed, so that shapes are
# static.
_N_MASKED = 64


def _small() -> PretrainConfig:
    encoder = EncoderConfig(width=256, layers=4, heads=4, ffn=1024)
    return PretrainConfig(
        model=W2VCMSCConfig(encoder=encoder, n_masked=_N_MASKED),
        optim=OptimConfig(lr=2e-4, warmup_steps=200),
        batch_pairs=32,
        accumulation=1,
        epochs=50,
    )


def _demo() -> PretrainConfig:
    # Besides its size it differs from the paper in what slows the first minutes down: it has no
    # dropout, the stem's full gradient, few codes and a higher learning rate.
    encoder = EncoderConfig(
        stem_channels=64,
        width=64,
        layers=2,
        heads=4,
        ffn=128,
        dropout=0.0,
        attention_dropout=0.0,
        dropout_input=0.0,
        feature_grad_mult=1.0,
    )
    model = W2VCMSCConfig(
        encoder=encoder,
        final_dim=64,
        latent_dim=64,
        entries=16,
        n_masked=_N_MASKED,
        dropout_features=0.0,
    )
    return PretrainConfig(
        model=model,
        optim=OptimConfig(lr=1e-3, warmup_steps=20),
        batch_pairs=8,
        accumulation=1,
        epochs=1000,
        max_steps=800,
        log_every=20,
        checkpoint_every=100,
    )


PRESETS = {"demo": _demo, "small": _small, "paper": PretrainConfig}
"""Makers of the presets: `demo` for two CPU cores and minutes, `small` for one GPU, `paper`."""
