"""The ECG encoder: stem, projection, convolutional position, transformer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple
from typing_extensions import Self

from ecgfast.errors import EcgfastError
from ecgfast.leads import lead_indices
from ecgfast.nn.config import EncoderConfig, config_from_dict
from ecgfast.nn.positional_conv import PositionalConv
from ecgfast.nn.pretrained import ENCODER_TYPE, PREPROCESSING, load_tensors, read_model, write_model
from ecgfast.nn.stem import Stem, scale_gradient
from ecgfast.nn.transformer import Transformer
from ecgfast.ops._dispatch import INTS, as_int64, readable


class Features(NamedTuple):
    """What the stem makes of segments.

    Attributes:
        features: [B, N, C], the stem's output after LayerNorm.
        stem: [B, N, C], before it; zeros at padding, unless `config.norm_padding`.
        padding: [B, N] bool, true for tokens past a segment's length; None without lengths.
    """

    features: Tensor
    stem: Tensor
    padding: Tensor | None


class EncoderOutput(NamedTuple):
    """What the encoder returns.

    Attributes:
        tokens: [B, N, E], the transformer's output.
        features: [B, N, C], the stem's output after LayerNorm.
        stem: [B, N, C], before it; zeros at padding, unless `config.norm_padding`.
        padding: [B, N] bool, true for tokens past a segment's length; None without lengths.
    """

    tokens: Tensor
    features: Tensor
    stem: Tensor
    padding: Tensor | None


# By these names torch.export.save writes such outputs, and torch.export.load finds them after this import.
for _kind in (Features, EncoderOutput):
    _register_namedtuple(_kind, serialized_type_name=f"ecgfast.nn.{_kind.__name__}")


def mean_tokens(tokens: Tensor, padding: Tensor | None, *, nonzero: bool = False) -> Tensor:
    """Mean over tokens that are not padding: [B, N, E] -> [B, E]; zeros where all are padding.

    With `nonzero` each component's sum is divided by the number of tokens in which it is not zero, as in FS.
    """
    if padding is None and not nonzero:
        return tokens.mean(1)
    total = (tokens if padding is None else tokens.masked_fill(padding[..., None], 0)).sum(1)
    if nonzero:
        counted = tokens != 0 if padding is None else (tokens != 0) & ~padding[..., None]
        return total / counted.sum(1).clamp(min=1)
    return total / (~padding).sum(1, keepdim=True).clamp(min=1)


class Encoder(nn.Module):
    """ECG encoder (Oh et al., CHIL 2022, section 3) for any subset of its leads.

    Args:
        config: the architecture; the paper's by default.
    """

    model_type = ENCODER_TYPE

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = EncoderConfig() if config is None else config
        self.preprocessing: Any = None  # of the model folder, see `ecgfast.nn.pretrained.write_model`
        self.stem = Stem(config.n_leads, config.stem_channels, config.stem_layers, bias=config.stem_bias)
        self.feature_norm = nn.LayerNorm(config.stem_channels)
        same = config.stem_channels == config.width
        self.projection = nn.Identity() if same else nn.Linear(config.stem_channels, config.width)
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.mask_token = nn.Parameter(torch.rand(config.width))
        self.positional = PositionalConv(config.width, config.conv_pos, config.conv_pos_groups)
        self.transformer = Transformer(config)

    def forward(
        self,
        signal: Tensor,
        leads: Sequence[str] | None = None,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode segments.

        Args:
            signal: [B, L, T], float millivolts or int16 microvolts, T at least one token's samples.
            leads: names of the L leads in the signal's order, in any usual spelling ("DII", see
                `ecgfast.leads.find_lead`); None: the encoder's own leads. Leads not named count as zero.
            lengths: [B] integer, samples of each segment, 1..T (checked on the CPU, where that
                waits for no device); the rest is padding, whatever it holds. None: all T.
            keep: [B, L] bool, leads to keep; the others count as zero. None keeps all.
            mask: [B, N] bool, tokens to replace by the mask token.

        Raises:
            EcgfastError: an unknown lead, or a signal, lengths, keep or mask of another shape,
                dtype or device than the one taken.
        """
        features = self.features(signal, leads, lengths=lengths, keep=keep)
        tokens = self.contextualize(features.features, mask=mask, padding=features.padding)
        return EncoderOutput(tokens, *features)

    def features(
        self,
        signal: Tensor,
        leads: Sequence[str] | None = None,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Features:
        """What the stem makes of segments, token by token; arguments and errors as in `forward`."""
        channels = self._channels(leads)
        signal = self._check_signal(signal, self.config.n_leads if channels is None else len(channels))
        batch, n_leads, n_samples = signal.shape
        if keep is not None:
            _check("keep", keep, (batch, n_leads), (torch.bool,), signal.device)
        padding = None
        if lengths is not None:
            _check("lengths", lengths, (batch,), INTS, signal.device)
            _check_values(lengths, n_samples)
            lengths = as_int64(lengths)
            padding = _past(lengths >> self.config.stem_layers, self.config.n_tokens(n_samples))
            if self.config.norm_padding:  # it sees padding, as zeros
                signal, lengths = signal.masked_fill(_past(lengths, n_samples)[:, None], 0), None

        frozen = self.config.feature_grad_mult == 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            stem = self.stem(signal, keep, channels, lengths)
        stem = scale_gradient(stem, self.config.feature_grad_mult) if not frozen else stem
        if self._zeroes(padding):  # these tokens hold nothing of the segment, and must get no gradient
            stem = stem.masked_fill(padding[..., None], 0)
        return Features(self.feature_norm(stem), stem, padding)

    def contextualize(
        self,
        features: Tensor,
        *,
        mask: Tensor | None = None,
        visible: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """What the transformer makes of tokens that see each other.

        Args:
            features: [B, N, C], of `features`.
            mask: [B, N] bool, tokens to replace by the mask token.
            visible: [B, M] integer, 0..N-1: the only tokens that are seen, as by an encoder that is given
                no masked ones. The others count as zeros for the position and are left out after it.
            padding: [B, N] bool, tokens that are no part of a segment.

        Returns:
            [B, N, E]; [B, M, E] for visible tokens.

        Raises:
            EcgfastError: a mask, visible or padding of another shape, dtype or device than the one taken.
        """
        batch, n = features.shape[:2]
        for name, x in (("mask", mask), ("padding", padding)):
            if x is not None:
                _check(name, x, (batch, n), (torch.bool,), features.device)
        x = self.dropout_input(self.projection(features))
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        if self._zeroes(padding):
            x = x.masked_fill(padding[..., None], 0)  # as the position's convolution has it past the end
        if visible is None:
            return self.transformer(self.positional(x), padding)
        if visible.ndim != 2:
            raise EcgfastError(f"visible: takes shape [{batch}, M], got {list(visible.shape)}")
        _check("visible", visible, (batch, visible.shape[1]), INTS, features.device)
        visible = visible.long()
        seen = torch.zeros(batch, n, dtype=torch.bool, device=x.device).scatter(1, visible, True)
        x = self.positional(x.masked_fill(~seen[..., None], 0))
        x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[-1]))
        return self.transformer(x, None if padding is None else padding.gather(1, visible))

    def _zeroes(self, padding: Tensor | None) -> bool:
        """Whether tokens of padding count as zeros, rather than as what the stem makes of padding."""
        return padding is not None and not self.config.norm_padding

    def embed(
        self, signal: Tensor, leads: Sequence[str] | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """One vector per segment, [B, E]: the mean over its tokens.

        With lengths it is that of each segment cut to its length, however far it is padded, to the
        rounding of fp32; not for models of `config.norm_padding`, in which padding takes part. A segment
        of less than a token's samples gives zeros. Arguments and errors as in `forward`.
        """
        output = self(signal, leads, lengths=lengths)
        return mean_tokens(output.tokens, output.padding)

    def save_pretrained(self, folder: Path | str, *, origin: Mapping[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `config.json` into a folder, made if need be.

        Args:
            folder: where to.
            origin: where the encoder is from, kept in `config.json` for people.
        """
        config = self.config.to_dict()
        write_model(folder, self.model_type, config, self, origin=origin, preprocessing=self.preprocessing)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """The encoder of a model folder, in evaluation mode; of a pre-training model, its encoder.

        Raises:
            EcgfastError: the folder is absent, of another kind, or not consistent.
        """
        model_type, config, tensors, start = read_model(folder)
        if start is None:
            raise EcgfastError(f"{folder}: must hold an encoder, got model_type {model_type!r} without one")
        preprocessing = config.pop(PREPROCESSING, None)
        if start:
            config = config.get("encoder")
            tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        with torch.device("meta"):
            encoder = cls(config_from_dict(EncoderConfig, config, f"{folder}/config.json"))
        load_tensors(encoder, tensors, folder)
        encoder.preprocessing = preprocessing
        return encoder.eval()

    def _channels(self, leads: Sequence[str] | None) -> list[int] | None:
        """Input channel of each named lead; None for all of them in order."""
        if leads is None:
            return None
        own = lead_indices(self.config.leads)
        named = lead_indices(leads)
        for name, lead in zip(leads, named, strict=True):
            if lead not in own:
                takes = ", ".join(self.config.leads)
                raise EcgfastError(f"leads: {name!r} is not a lead of this encoder: {takes}")
        return None if named == own else [own.index(lead) for lead in named]

    def _check_signal(self, signal: Tensor, n_leads: int) -> Tensor:
        weight = self.stem.convs[0].weight
        if signal.ndim != 3 or signal.shape[1] != n_leads:
            raise EcgfastError(f"signal: takes [B, {n_leads}, T], got {list(signal.shape)}")
        if signal.shape[2] < 1 << self.config.stem_layers:
            least = 1 << self.config.stem_layers
            raise EcgfastError(f"signal: takes at least {least} samples, got {signal.shape[2]}")
        if signal.device != weight.device:
            raise EcgfastError(f"signal: is on {signal.device}, the encoder on {weight.device}")
        if signal.dtype == torch.int16:
            return signal
        if not signal.is_floating_point():
            takes = "a float dtype (millivolts) or int16 (microvolts)"
            raise EcgfastError(f"signal: takes {takes}, got {signal.dtype}")
        return signal.to(weight.dtype)


def _past(lengths: Tensor, n: int) -> Tensor:
    """[B, n] bool, true from each length on."""
    return torch.arange(n, device=lengths.device) >= lengths[:, None]


def _check_values(lengths: Tensor, n_samples: int) -> None:
    if not readable(lengths) or lengths.numel() == 0:
        return
    least, most = int(lengths.min()), int(lengths.max())
    if least < 1 or most > n_samples:
        raise EcgfastError(f"lengths: takes 1..{n_samples}, got {least if least < 1 else most}")


def _check(
    name: str,
    x: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    if tuple(x.shape) != shape:
        raise EcgfastError(f"{name}: takes shape {list(shape)}, got {list(x.shape)}")
    if x.dtype not in dtypes:
        raise EcgfastError(f"{name}: takes {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if x.device != device:
        raise EcgfastError(f"{name}: is on {x.device}, the signal on {device}")
