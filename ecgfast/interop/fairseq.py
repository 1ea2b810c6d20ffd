"""Checkpoints of the official implementation (fairseq-signals) as model folders of ours."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.interop.inert_pickle import Inert
from ecgfast.interop.torch_checkpoint import StoredTensor, TorchCheckpoint
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.pretrained import load_tensors
from ecgfast.objectives import W2VCMSC, W2VCMSCConfig

_FIRST_CONV = "feature_extractor.conv_layers.0.0.weight"
_HEADS = ("quantizer.vars", "project_q.weight", "final_proj.weight")
_MAX_ITEMS, _MAX_TEXT = 1000, 10000  # of a setting

_RENAMES = [
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", r"stem.convs.\1.\2"),
    (r"feature_extractor\.conv_layers\.0\.2\.(weight|bias)", r"stem.norm.\1"),
    (r"layer_norm\.(weight|bias)", r"feature_norm.\1"),
    (r"post_extract_proj\.(weight|bias)", r"projection.\1"),
    (r"mask_emb", r"mask_token"),
    (r"conv_pos\.pos_conv\.0\.bias", r"positional.conv.bias"),
    (
        r"conv_pos\.pos_conv\.0\.parametrizations\.weight\.original([01])",
        r"positional.conv.parametrizations.weight.original\1",
    ),
    # What torch's older weight_norm calls the two.
    (r"conv_pos\.pos_conv\.0\.weight_g", r"positional.conv.parametrizations.weight.original0"),
    (r"conv_pos\.pos_conv\.0\.weight_v", r"positional.conv.parametrizations.weight.original1"),
    (r"encoder\.layer_norm\.(weight|bias)", r"transformer.norm.\1"),
    (
        r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)",
        r"transformer.layers.\1.attention.out.\2",
    ),
    (
        r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)",
        r"transformer.layers.\1.attention_norm.\2",
    ),
    (r"encoder\.layers\.(\d+)\.(fc[12])\.(weight|bias)", r"transformer.layers.\1.\2.\3"),
    (
        r"encoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)",
        r"transformer.layers.\1.ffn_norm.\2",
    ),
]
_ATTENTION = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_HEAD_RENAMES = {
    "quantizer.weight_proj.weight": "quantizer.projection.weight",
    "quantizer.weight_proj.bias": "quantizer.projection.bias",
    "quantizer.vars": "quantizer.codebook",
    **{f"{m}.{p}": f"{m}.{p}" for m in ("project_q", "final_proj") for p in ("weight", "bias")},
}


def convert_fairseq(checkpoint: Path | str, out: Path | str) -> None:
    """Convert an official checkpoint to a model folder.

    A pre-training checkpoint (wav2vec2_cmsc) becomes a `W2VCMSC`; a fine-tuned model that holds the
    encoder becomes an `Encoder`, its task's head left behind. The checkpoint is read as data:
    nothing in it is imported or called.

    Args:
        checkpoint: `.pt` file written by the official trainer.
        out: new or empty folder to write `model.safetensors` and `config.json` to.

    Raises:
        EcgfastError: the file is absent, damaged, hostile or of another kind of model, or `out`
            holds something. Nothing is written then.
    """
    out = Path(out)
    _check_new(out)
    with TorchCheckpoint(checkpoint) as opened:
        root = opened.root
        if not isinstance(root, dict) or not isinstance(root.get("model"), dict):
            raise EcgfastError(f"{checkpoint}: is no official checkpoint: it holds no 'model'")
        if root.get("cfg") is None:
            raise EcgfastError(f"{checkpoint}: is no official checkpoint: it holds no 'cfg'")
        model = {name: value for name, value in root["model"].items() if isinstance(name, str)}
        prefix = _find_encoder(model, checkpoint)
        pretraining = all(prefix + name in model for name in _HEADS)
        stored = _select(model, prefix, pretraining, checkpoint)
        tensors = {name: opened.read(tensor).float() for name, tensor in stored.items()}
    settings = Settings(root.get("cfg"))
    try:
        normalized = settings.get("task", "normalize", False)
        converted = build_model(tensors, settings, pretraining=pretraining)
    except EcgfastError as error:
        raise EcgfastError(f"{checkpoint}: {error}") from None
    if normalized:
        warnings.warn(
            f"{checkpoint}: was trained on records of zero mean and unit variance per lead: "
            "normalise signals before encoding"
        )
    converted.save_pretrained(out)


def _check_new(out: Path) -> None:
    try:
        if out.is_symlink() and not out.exists():
            raise EcgfastError(f"out: {out} is a link to nothing, want a new or empty folder")
        if out.exists() and not out.is_dir():
            raise EcgfastError(f"out: {out} is there and is no folder, want a new or empty folder")
        if out.is_dir() and any(out.iterdir()):
            raise EcgfastError(f"out: {out} is not empty, want a new or empty folder")
    except OSError as error:
        raise EcgfastError(f"out: can't look into {out}: {error.strerror}") from None


class Settings:
    """Looks up values of an official configuration: OmegaConf containers held as data, or dicts."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def get(self, section: str, name: str, default: Any) -> Any:
        """A scalar or flat list of a section; for `model`, of the pre-training it was made from.

        Raises:
            EcgfastError: it is anything else, which is not shown: its text could be endless.
        """
        root = self._root
        if section == "model":
            # A fine-tuned model keeps the configuration of its pre-training in `args`.
            root = _lookup(self._root, "model", "args") or root
        value = _lookup(root, section, name)
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference:
            value = _lookup(root, *reference[1].split("."))
        if value is None:
            return default
        plain = _plain(value)
        if plain is None:
            raise EcgfastError(f"has a {name} that is no number, text or short list of them")
        return plain


def _open(node: Any) -> Any:
    """What an OmegaConf node holds."""
    if isinstance(node, Inert) and isinstance(node.state, dict):
        return node.state.get("_content", node.state.get("_val"))
    return node


def _lookup(node: Any, *path: str) -> Any:
    for name in path:
        node = _open(node)
        node = node.get(name) if isinstance(node, dict) else None
    return _open(node)


def _plain(value: Any) -> Any:
    """A scalar or a list of scalars; None for what is neither."""
    if not isinstance(value, list | tuple):
        return value if _is_scalar(value) else None
    items = [_open(item) for item in value[:_MAX_ITEMS]]
    return items if len(value) <= _MAX_ITEMS and all(map(_is_scalar, items)) else None


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return isinstance(value, float)


def _find_encoder(model: Mapping[str, Any], source: Path | str) -> str:
    """What the encoder's parameter names begin with: nothing, or a fine-tuned model's attribute."""
    found = [
        name.removesuffix(_FIRST_CONV)
        for name in model
        if name == _FIRST_CONV or name.endswith("." + _FIRST_CONV)
    ]
    if len(found) != 1:
        what = "no" if not found else "more than one"
        raise EcgfastError(f"{source}: is no model of a kind taken: it holds {what} ECG transformer")
    return found[0]


def _select(
    model: Mapping[str, Any], prefix: str, pretraining: bool, source: Path | str
) -> dict[str, StoredTensor]:
    """The tensors to convert, by official name; a task's head stays behind."""
    selected = {}
    for name, tensor in model.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            continue
        if not (
            isinstance(tensor, StoredTensor)
            and tensor.storage.dtype.is_floating_point
            and math.prod(tensor.shape)
        ):
            raise EcgfastError(f"{source}: model entry {name} is no float tensor")
        if pretraining or inner not in _HEAD_RENAMES:
            selected[inner] = tensor
    return selected


def build_model(tensors: Mapping[str, Tensor], settings: Settings, *, pretraining: bool) -> W2VCMSC | Encoder:
    """The model of official parameters, in evaluation mode.

    Args:
        tensors: by their official names, without prefix.
        settings: the official configuration, for what shapes don't tell.
        pretraining: whether the tensors include the heads of pre-training.
    """
    config = _encoder_config(tensors, settings)
    groups = settings.get("model", "latent_groups", 2)
    if not isinstance(groups, int) or groups < 1:
        raise EcgfastError(f"has latent_groups {groups!r}, takes a positive integer")
    encoder, heads = rename_tensors(tensors, groups)
    # Fine-tuned models drop the mask token, which plays no part in encoding.
    encoder.setdefault("mask_token", torch.zeros(config.width))
    # Without memory until every tensor is known to fit: sizes are those that a file claims.
    with torch.device("meta"):
        if not pretraining:
            model, parameters = Encoder(config), encoder
        else:
            model = W2VCMSC(_pretraining_config(config, tensors, settings, groups))
            parameters = {**{f"encoder.{k}": v for k, v in encoder.items()}, **heads}
    load_tensors(model, parameters, "the model")
    return model.eval()


def rename_tensors(tensors: Mapping[str, Tensor], groups: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official tensors by our names: those of the encoder, and those of the pre-training heads."""
    encoder: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _HEAD_RENAMES:
            if name == "quantizer.vars":
                if tensor.ndim != 3 or tensor.shape[1] % groups:
                    raise EcgfastError(f"quantizer.vars has shape {list(tensor.shape)}")
                tensor = tensor.reshape(groups, -1, tensor.shape[-1])
            heads[_HEAD_RENAMES[name]] = tensor
        elif match := _ATTENTION.fullmatch(name):
            layer, _, kind = match.groups()
            key = f"transformer.layers.{layer}.attention.qkv.{kind}"
            if key not in encoder:
                names = [f"encoder.layers.{layer}.self_attn.{x}_proj.{kind}" for x in "qkv"]
                encoder[key] = torch.cat([_take(tensors, part) for part in names])
        else:
            encoder[_rename(name)] = tensor
    return encoder, heads


def _rename(name: str) -> str:
    for pattern, ours in _RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    raise EcgfastError(f"is no model of a kind taken: it holds a parameter {name}")


def _take(tensors: Mapping[str, Tensor], name: str, ndim: int | None = None) -> Tensor:
    if name not in tensors:
        raise EcgfastError(f"is no model of a kind taken: it lacks {name}")
    if ndim is not None and tensors[name].ndim != ndim:
        raise EcgfastError(f"{name} has shape {list(tensors[name].shape)}, takes {ndim} dimensions")
    return tensors[name]


def _encoder_config(tensors: Mapping[str, Tensor], settings: Settings) -> EncoderConfig:
    """Sizes from the tensors; from the configuration what their shapes don't tell."""
    mode = settings.get("model", "extractor_mode", "default")
    if mode != "default":
        raise EcgfastError(f"has extractor_mode {mode!r}, takes 'default'")
    for channels, kernel, stride in _conv_layers(settings):
        if (kernel, stride) != (2, 2):
            raise EcgfastError(f"has a convolution ({channels}, {kernel}, {stride}), takes 2, 2")
    conv = _take(tensors, _FIRST_CONV, 3)
    if conv.shape[1] != 12:
        raise EcgfastError(f"has {conv.shape[1]} input leads, takes the 12 standard ones")
    conv_names = r"feature_extractor\.conv_layers\.(\d+)\.0\.weight"
    layer_names = r"encoder\.layers\.(\d+)\.fc1\.weight"
    position = [n for n in tensors if n.endswith((".weight.original1", ".weight_v"))]
    if len(position) != 1:
        raise EcgfastError("is no model of a kind taken: it has no convolutional position")
    width, per_group, conv_pos = _take(tensors, position[0], 3).shape
    layers = _count(layer_names, tensors)
    ffn = _take(tensors, "encoder.layers.0.fc1.weight", 2).shape[0] if layers else 1
    return EncoderConfig(
        stem_channels=conv.shape[0],
        stem_layers=_count(conv_names, tensors),
        stem_bias="feature_extractor.conv_layers.0.0.bias" in tensors,
        width=width,
        layers=layers,
        heads=settings.get("model", "encoder_attention_heads", 12),
        ffn=ffn,
        norm_first=settings.get("model", "layer_norm_first", False),
        conv_pos=conv_pos,
        conv_pos_groups=width // max(per_group, 1),
        dropout=settings.get("model", "dropout", 0.1),
        attention_dropout=settings.get("model", "attention_dropout", 0.1),
        activation_dropout=settings.get("model", "activation_dropout", 0.0),
        layer_drop=settings.get("model", "encoder_layerdrop", 0.0),
        feature_grad_mult=settings.get("model", "feature_grad_mult", 1.0),
        dropout_input=settings.get("model", "dropout_input", 0.0),
        norm_padding=True,
    )


def _pretraining_config(
    encoder: EncoderConfig, tensors: Mapping[str, Tensor], settings: Settings, groups: int
) -> W2VCMSCConfig:
    final_dim, latent_dim = _take(tensors, "project_q.weight", 2).shape
    weights = settings.get("criterion", "loss_weights", [0.1, 10.0])
    if not isinstance(weights, list) or len(weights) != 2:
        raise EcgfastError(f"has loss_weights {weights}, takes two")
    temperature = settings.get("model", "latent_temp", [2.0, 0.5, 0.999995])
    if isinstance(temperature, str):  # "(2.0, 0.5, 0.999995)"
        temperature = temperature.strip("()[] ").split(",")
    return W2VCMSCConfig(
        encoder=encoder,
        final_dim=final_dim,
        groups=groups,
        entries=_take(tensors, "quantizer.vars", 3).shape[1] // groups,
        latent_dim=latent_dim,
        n_negatives=settings.get("model", "num_negatives", 100),
        mask_prob=settings.get("model", "mask_prob", 0.65),
        mask_length=settings.get("model", "mask_length", 10),
        local_temperature=settings.get("model", "logit_temp", 0.1),
        global_temperature=settings.get("criterion", "temp", 0.1),
        temperature=temperature,
        diversity_weight=weights[0],
        feature_penalty_weight=weights[1],
        dropout_features=settings.get("model", "dropout_features", 0.0),
    )


def _count(pattern: str, names: Mapping[str, Any]) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def _conv_layers(settings: Settings) -> Iterator[tuple[int, ...]]:
    """The convolutions in a text such as "[(256, 2, 2)] * 4", which is searched, not evaluated."""
    text = settings.get("model", "conv_feature_layers", "[(256, 2, 2)] * 4")
    triple = r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,?\s*\)"
    if not isinstance(text, str):
        raise EcgfastError("has conv_feature_layers of a strange form")
    if re.sub(triple, "", text).strip(" []*+,0123456789"):
        raise EcgfastError(f"has conv_feature_layers {text[:60]!r}, takes [(channels, 2, 2)] * layers")
    for match in re.finditer(triple, text):
        yield tuple(map(int, match.groups()))
