"""Checked configurations, and their way from and to plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, lead_indices

Config = TypeVar("Config")


def check_integers(config: Any, minimum: int, *names: str) -> None:
    """Refuse a field that is not an integer of at least `minimum`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise EcgfastError(f"{name} takes an integer >= {minimum}, got {value!r}")


def check_numbers(config: Any, low: float, high: float, *names: str) -> None:
    """Refuse a field that is not a number in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise EcgfastError(f"{name} takes a number in [{low}, {high}], got {value!r}")


def check_flags(config: Any, *names: str) -> None:
    """Refuse a field that is not a bool."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise EcgfastError(f"{name} takes true or false, got {getattr(config, name)!r}")


def config_from_dict(kind: type[Config], data: Any, source: str) -> Config:
    """A configuration from plain data: unknown fields are refused, absent ones take defaults.

    A field of the configuration's `BEFORE` that is absent takes the value there: the data were written before
    there was such a field. A field of its `RENAMED` that has the name there is the one that it became.
    """
    if not isinstance(data, Mapping):
        raise EcgfastError(f"{source}: takes a JSON object, got {type(data).__name__}")
    data = renamed(kind, data)
    unknown = sorted(set(data) - {field.name for field in fields(kind)})
    if unknown:
        raise EcgfastError(f"{source}: unknown fields {', '.join(unknown)} for {kind.__name__}")
    try:
        return kind(**{**getattr(kind, "BEFORE", {}), **data})
    except EcgfastError as error:
        raise EcgfastError(f"{source}: {error}") from None


def renamed(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration under their present names."""
    names = getattr(kind, "RENAMED", {})
    return {names.get(name, name): value for name, value in data.items()}


@dataclass
class EncoderConfig:
    """Architecture of the encoder; the defaults are the paper's.

    Attributes:
        n_leads: channels of the input; `leads` names them in order.
        stem_channels: channels C of the stem's convolutions.
        stem_layers: number of convolutions (kernel 2, stride 2): a token is 2**stem_layers samples.
        stem_bias: whether the stem's convolutions have biases.
        width: width E of the transformer.
        layers: number of transformer layers.
        heads: attention heads per layer.
        ffn: width of the feed-forward layers.
        norm_first: normalise before attention and feed-forward rather than after.
        conv_pos: kernel size of the convolutional position embedding.
        conv_pos_groups: its groups.
        dropout: after attention, after feed-forward, and before the first layer.
        attention_dropout: on attention weights.
        activation_dropout: inside feed-forward, after the GELU.
        layer_drop: probability of skipping a layer in training.
        feature_grad_mult: factor on gradients into the stem; 0 freezes it.
        dropout_input: on the projected features.
        leads: names of the input channels.
        norm_padding: whether the stem's normalisation and the position see padding, as in the official
            implementation: what a padded segment becomes then depends on how far it is padded. Models
            converted from official checkpoints have it, and those of folders written before there was this
            field, which were trained so. False: a segment gives what it would give cut to its length.
    """

    BEFORE: ClassVar[Mapping[str, Any]] = {"norm_padding": True}

    n_leads: int = 12
    stem_channels: int = 256
    stem_layers: int = 4
    stem_bias: bool = False
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    norm_first: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layer_drop: float = 0.0
    feature_grad_mult: float = 0.1
    dropout_input: float = 0.1
    leads: tuple[str, ...] = STANDARD_LEADS
    norm_padding: bool = False

    def __post_init__(self) -> None:
        check_integers(self, 1, "n_leads", "stem_channels", "stem_layers", "width", "heads", "ffn")
        check_integers(self, 1, "conv_pos", "conv_pos_groups")
        check_integers(self, 0, "layers")
        check_flags(self, "stem_bias", "norm_first", "norm_padding")
        check_numbers(self, 0, 1, "dropout", "attention_dropout", "activation_dropout")
        check_numbers(self, 0, 1, "layer_drop", "dropout_input")
        check_numbers(self, 0, float("inf"), "feature_grad_mult")
        for name in ("heads", "conv_pos_groups"):
            if self.width % getattr(self, name):
                raise EcgfastError(f"width {self.width} is no multiple of {name} {getattr(self, name)}")
        if isinstance(self.leads, str) or not all(isinstance(name, str) for name in self.leads):
            raise EcgfastError(f"leads takes a sequence of names, got {self.leads!r}")
        self.leads = tuple(self.leads)
        lead_indices(self.leads)
        if len(self.leads) != self.n_leads:
            raise EcgfastError(f"leads names {len(self.leads)} leads, n_leads is {self.n_leads}")

    def n_tokens(self, n_samples: int) -> int:
        """Number of tokens N of a signal; a last incomplete token is dropped."""
        return n_samples >> self.stem_layers

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for JSON."""
        return asdict(self)
