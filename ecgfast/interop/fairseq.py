"""Checkpoints of the official implementation (fairseq-signals) as model folders of ours."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.interop.official_settings import Settings, conv_layers, describe_inputs
from ecgfast.interop.torch_checkpoint import StoredTensor, TorchCheckpoint
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.pretrained import check_new_folder, load_tensors
from ecgfast.objectives import W2VCMSC, W2VCMSCConfig

_FIRST_CONV = "feature_extractor.conv_layers.0.0.weight"
_SAMPLE_RATE = 500

_MAX_LAYERS = 1000
_NORMED = "parametrizations.weight.original"

# Official names and ours; {0} is the number of a layer, {1} `weight` or `bias`.
_NAMES = {
    "feature_extractor.conv_layers.{0}.0.{1}": "stem.convs.{0}.{1}",
    "feature_extractor.conv_layers.0.2.{1}": "stem.norm.{1}",
    "layer_norm.{1}": "feature_norm.{1}",
    "post_extract_proj.{1}": "projection.{1}",
    "mask_emb": "mask_token",
    "conv_pos.pos_conv.0.bias": "positional.conv.bias",
    # What torch's older weight_norm calls the two, and what the present one does.
    "conv_pos.pos_conv.0.weight_g": f"positional.conv.{_NORMED}0",
    "conv_pos.pos_conv.0.weight_v": f"positional.conv.{_NORMED}1",
    **{f"conv_pos.pos_conv.0.{_NORMED}{i}": f"positional.conv.{_NORMED}{i}" for i in (0, 1)},
    "encoder.layer_norm.{1}": "transformer.norm.{1}",
    "encoder.layers.{0}.self_attn.out_proj.{1}": "transformer.layers.{0}.attention.out.{1}",
    "encoder.layers.{0}.self_attn_layer_norm.{1}": "transformer.layers.{0}.attention_norm.{1}",
    "encoder.layers.{0}.fc1.{1}": "transformer.layers.{0}.fc1.{1}",
    "encoder.layers.{0}.fc2.{1}": "transformer.layers.{0}.fc2.{1}",
    "encoder.layers.{0}.final_layer_norm.{1}": "transformer.layers.{0}.ffn_norm.{1}",
}
_ATTENTION = "encoder.layers.{0}.self_attn.{1}_proj.{2}"
_QKV = "transformer.layers.{0}.attention.qkv.{1}"
_HEAD_NAMES = {
    "quantizer.weight_proj.weight": "quantizer.projection.weight",
    "quantizer.weight_proj.bias": "quantizer.projection.bias",
    "quantizer.vars": "quantizer.codebook",
    **{f"{m}.{p}": f"{m}.{p}" for m in ("project_q", "final_proj") for p in ("weight", "bias")},
}


@dataclass(frozen=True)
class Conversion:
    """What `convert_fairseq` made of a checkpoint.

    Attributes:
        model_type: of the folder written: a whole pre-training model or an encoder.
        converted: the official names of the tensors that were converted.
        left_behind: the names of the model's other tensors, such as a fine-tuned head's.
        dropped: what else the checkpoint holds, such as the optimiser's state.
        inputs: what its configuration says of the signals it was trained on.
    """

    model_type: str
    converted: tuple[str, ...]
    left_behind: tuple[str, ...]
    dropped: tuple[str, ...]
    inputs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        heads = sum(name in _HEAD_NAMES for name in self.converted)
        parts = f"{len(self.converted) - heads} tensors of the encoder"
        if heads:
            parts += f" and {heads} of the pre-training heads (quantizer, project_q, final_proj)"
        left = [*_grouped(self.left_behind), *self.dropped]
        told = ", ".join(f"{name} {_shown(value)}" for name, value in self.inputs.items())
        return (
            f"converted {parts}; left behind: {', '.join(left) or 'nothing'}\n"
            f"its inputs: {told or 'not told'}. Their scaling is yours to match: it is not part of a "
            "checkpoint (kept in config.json, `origin`)"
        )


def convert_fairseq(checkpoint: Path | str, out: Path | str) -> Conversion:
    """Convert an official checkpoint to a model folder.

    A pre-training checkpoint (wav2vec2_cmsc) becomes a `W2VCMSC`; a fine-tuned model that holds the
    encoder becomes an `Encoder`, its task's head left behind. The checkpoint is read as data:
    nothing in it is imported or called. What its configuration says of the inputs (sample rate,
    normalisation, ...) stands in `config.json` under `origin`; the encoder itself scales nothing.

    Args:
        checkpoint: `.pt` file written by the official trainer.
        out: new or empty folder to write `model.safetensors` and `config.json` to.

    Raises:
        EcgfastError: the file is absent, damaged, hostile, incomplete, not finite or of another kind
            of model, or `out` holds something. Nothing is written then.
    """
    out = Path(out)
    check_new_folder("out", out)
    with TorchCheckpoint(checkpoint) as opened:
        root = opened.root
        if not isinstance(root, dict) or not isinstance(root.get("model"), dict):
            raise EcgfastError(f"{checkpoint}: is no official checkpoint: it holds no 'model'")
        if root.get("cfg") is None:
            raise EcgfastError(f"{checkpoint}: is no official checkpoint: it holds no 'cfg'")
        model = {name: value for name, value in root["model"].items() if isinstance(name, str)}
        settings = Settings(root["cfg"])
        try:
            prefix = _find_encoder(model)
            heads = _find_heads(model, prefix, settings)
            stored = _select(model, prefix, heads)
            tensors = {name: opened.read(tensor).float() for name, tensor in stored.items()}
            _check_finite(tensors, prefix)
            inputs = describe_inputs(settings)
            converted = build_model(tensors, settings, pretraining=heads)
        except EcgfastError as error:
            # Errors of reading name the file already.
            text = str(error).removeprefix(f"{checkpoint}: ")
            raise EcgfastError(f"{checkpoint}: {text}") from None
    _warn_of_inputs(checkpoint, inputs)
    origin = {"format": "fairseq-signals", "checkpoint": Path(checkpoint).name, "inputs": inputs}
    encoder = converted if isinstance(converted, Encoder) else converted.encoder
    converted.preprocessing = _preprocessing(encoder.config, inputs)
    converted.save_pretrained(out, origin=origin)
    others = [str(name) for name, value in root.items() if name not in ("cfg", "args", "model") and value]
    kept = {prefix + name for name in stored}
    return Conversion(
        converted.model_type,
        tuple(stored),
        tuple(name for name in model if name not in kept),
        tuple(others),
        inputs,
    )


def _preprocessing(config: EncoderConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """How the official code's signals are made, as far as it says, in the words of a store's `store.json`.

    They are millivolts, which is what the encoder makes of a store's microvolts. By default nothing is
    filtered or normalised, and no lead is derived (Oh et al., CHIL 2022, and its code).
    """
    told: dict[str, Any] = {
        "filters": [{"official": inputs["filter"]}] if inputs.get("filter") else [],
        "derived_leads": [],
        "sample_rate": inputs.get("sample_rate", _SAMPLE_RATE),
        "leads": list(config.leads),
        "sources": ["fairseq-signals"],
    }
    if inputs.get("normalize"):
        told["normalized"] = "zero mean and unit variance per lead"
    return told


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _grouped(names: Iterable[str]) -> list[str]:
    """The names, those of large modules counted."""
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.partition(".")[0], []).append(name)
    return [
        text
        for module, some in modules.items()
        for text in (some if len(some) <= 3 else [f"{module} ({len(some)} tensors)"])
    ]


def _warn_of_inputs(source: Path | str, inputs: Mapping[str, Any]) -> None:
    if inputs.get("normalize"):
        warnings.warn(
            f"{source}: was trained on records of zero mean and unit variance per lead: "
            "normalise signals before encoding"
        )
    if inputs.get("sample_rate", _SAMPLE_RATE) != _SAMPLE_RATE:
        warnings.warn(
            f"{source}: was trained on {inputs['sample_rate']} samples per second, stores hold "
            f"{_SAMPLE_RATE}: resample signals before encoding"
        )


def _find_encoder(model: Mapping[str, Any]) -> str:
    """What the encoder's parameter names begin with: nothing, or a fine-tuned model's attribute."""
    found = [
        name.removesuffix(_FIRST_CONV)
        for name in model
        if name == _FIRST_CONV or name.endswith("." + _FIRST_CONV)
    ]
    if len(found) != 1:
        what = "no" if not found else "more than one"
        raise EcgfastError(f"is no model of a kind taken: it holds {what} ECG transformer ({_FIRST_CONV})")
    return found[0]


def _find_heads(model: Mapping[str, Any], prefix: str, settings: Settings) -> bool:
    """Whether the model has the heads of pre-training; some of them alone are an error."""
    missing = [prefix + name for name in _HEAD_NAMES if prefix + name not in model]
    kind = settings.get("model", "_name", "")
    pretraining = str(kind).startswith("wav2vec2") and not prefix and not settings.fine_tuned
    if not missing or (len(missing) == len(_HEAD_NAMES) and not pretraining):
        return not missing
    raise EcgfastError(
        f"is incomplete: it lacks {len(missing)} tensors of the pre-training heads: {_few(missing)}"
    )


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _select(model: Mapping[str, Any], prefix: str, pretraining: bool) -> dict[str, StoredTensor]:
    """The tensors to convert, by official name; a task's head stays behind."""
    selected = {}
    for name, tensor in model.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            continue
        if not pretraining and not prefix and _ours(inner) is None and inner not in _HEAD_NAMES:
            continue  # the head of a model that is its own encoder
        if not (
            isinstance(tensor, StoredTensor)
            and tensor.storage.dtype.is_floating_point
            and math.prod(tensor.shape)
        ):
            raise EcgfastError(f"model entry {name} is no float tensor")
        selected[inner] = tensor
    return selected


def _check_finite(tensors: Mapping[str, Tensor], prefix: str) -> None:
    bad = [prefix + name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise EcgfastError(f"holds values that are not finite in {len(bad)} tensors: {_few(bad)}")


def build_model(tensors: Mapping[str, Tensor], settings: Settings, *, pretraining: bool) -> W2VCMSC | Encoder:
    """The model of official parameters, in evaluation mode.

    Args:
        tensors: by their official names, without prefix.
        settings: the official configuration, for what shapes don't tell.
        pretraining: whether the tensors include the heads of pre-training.

    Raises:
        EcgfastError: a tensor is missing, unknown, or of another shape than the configuration's.
    """
    config = _encoder_config(tensors, settings)
    codebook_groups = settings.get("model", "latent_groups", 2)
    if not isinstance(codebook_groups, int) or codebook_groups < 1:
        raise EcgfastError(f"has latent_groups {codebook_groups!r}, takes a positive integer")
    # Without memory until every tensor is known to fit: sizes are those that a file claims.
    with torch.device("meta"):
        if pretraining:
            model = W2VCMSC(_pretraining_config(config, tensors, settings, codebook_groups))
        else:
            model = Encoder(config)
    if not pretraining:
        # Fine-tuned models drop the mask token, which plays no part in encoding.
        tensors = {"mask_emb": torch.zeros(config.width), **tensors}
    _check_complete(tensors, model, settings)
    encoder, heads = rename_tensors(tensors, codebook_groups)
    parameters = {**{f"encoder.{k}": v for k, v in encoder.items()}, **heads} if pretraining else encoder
    load_tensors(model, parameters, "the model")
    return model.eval()


def _pattern(template: str) -> re.Pattern:
    text = (
        re.escape(template)
        .replace(r"\{0\}", r"(?P<layer>\d{1,6})")
        .replace(r"\{1\}", "(?P<kind>weight|bias)")
    )
    return re.compile(text)


_PATTERNS = [(_pattern(official), ours) for official, ours in _NAMES.items()]
_ATTENTION_PATTERN = re.compile(r"encoder\.layers\.(\d{1,6})\.self_attn\.([qkv])_proj\.(weight|bias)")


def _ours(name: str) -> str | None:
    """Our name of an encoder's tensor; for attention that of the three together."""
    if match := _ATTENTION_PATTERN.fullmatch(name):
        return _QKV.format(match[1], match[3])
    for pattern, ours in _PATTERNS:
        if match := pattern.fullmatch(name):
            named = match.groupdict()
            return ours.format(named.get("layer"), named.get("kind"))
    return None


def _official(ours: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The official names of an encoder's tensor: one, or for attention three."""
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.attention\.qkv\.(weight|bias)", ours):
        return [_ATTENTION.format(match[1], x, match[2]) for x in "qkv"]
    found = []
    for official, template in _NAMES.items():
        if match := _pattern(template).fullmatch(ours):
            named = match.groupdict()
            found.append(official.format(named.get("layer"), named.get("kind")))
    return [next((name for name in found if name in tensors), found[-1])]


def _check_complete(tensors: Mapping[str, Tensor], model: W2VCMSC | Encoder, settings: Settings) -> None:
    """Refuse missing, unknown and misshapen tensors, by their official names."""
    pretraining = isinstance(model, W2VCMSC)
    encoder = model.encoder if pretraining else model
    wanted = [name for ours in encoder.state_dict() for name in _official(ours, tensors)]
    wanted += list(_HEAD_NAMES) if pretraining else []
    told = settings.get("model", "encoder_layers", None)
    why = f" (encoder_layers is {told})" if told is not None else ""
    if missing := [name for name in wanted if name not in tensors]:
        raise EcgfastError(f"is incomplete: it lacks {len(missing)} tensors{why}: {_few(missing)}")
    if unknown := tensors.keys() - set(wanted):
        raise EcgfastError(
            f"holds {len(unknown)} tensors that its model has no place for{why}: {_few(unknown)}"
        )
    for ours, value in encoder.state_dict().items():
        names = _official(ours, tensors)
        shape = (value.shape[0] // len(names), *value.shape[1:]) if value.ndim else ()
        for name in names:
            if tuple(tensors[name].shape) != shape:
                raise EcgfastError(f"{name} has shape {list(tensors[name].shape)}, takes {list(shape)}")


def rename_tensors(
    tensors: Mapping[str, Tensor], codebook_groups: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official tensors by our names: those of the encoder, and those of the pre-training heads."""
    encoder: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _HEAD_NAMES:
            if name == "quantizer.vars":
                tensor = tensor.reshape(codebook_groups, -1, tensor.shape[-1])
            heads[_HEAD_NAMES[name]] = tensor
        elif match := _ATTENTION_PATTERN.fullmatch(name):
            key = _QKV.format(match[1], match[3])
            if key not in encoder:
                names = [_ATTENTION.format(match[1], x, match[3]) for x in "qkv"]
                encoder[key] = torch.cat([_take(tensors, part) for part in names])
        else:
            ours = _ours(name)
            if ours is None:
                raise EcgfastError(f"is no model of a kind taken: it holds a parameter {name}")
            encoder[ours] = tensor
    return encoder, heads


def _take(tensors: Mapping[str, Tensor], name: str, ndim: int | None = None) -> Tensor:
    if name not in tensors:
        raise EcgfastError(f"is incomplete: it lacks {name}")
    if ndim is not None and tensors[name].ndim != ndim:
        raise EcgfastError(f"{name} has shape {list(tensors[name].shape)}, takes {ndim} dimensions")
    return tensors[name]


def _encoder_config(tensors: Mapping[str, Tensor], settings: Settings) -> EncoderConfig:
    """Sizes from the tensors, which must be the configuration's; from it what they don't tell."""
    mode = settings.get("model", "extractor_mode", "default")
    if mode != "default":
        raise EcgfastError(f"has extractor_mode {mode!r}, takes 'default'")
    convs = conv_layers(settings)
    stem_layers = len(convs) if convs is not None else _count("feature_extractor.conv_layers.", tensors)
    if stem_layers > _MAX_LAYERS:
        raise EcgfastError(f"has {stem_layers} convolutions, takes {_MAX_LAYERS} at most")
    for channels, kernel, stride in convs or []:
        if (kernel, stride) != (2, 2):
            raise EcgfastError(f"has a convolution ({channels}, {kernel}, {stride}), takes 2, 2")
    conv = _take(tensors, _FIRST_CONV, 3)
    if conv.shape[1] != 12:
        raise EcgfastError(f"has {conv.shape[1]} input leads, takes the 12 standard ones")
    position = [n for n in tensors if n.endswith((".weight.original1", ".weight_v"))]
    if len(position) != 1:
        raise EcgfastError("is incomplete: it lacks the weight of the convolutional position (conv_pos)")
    width, per_group, conv_pos = _take(tensors, position[0], 3).shape
    layers = _count("encoder.layers.", tensors)
    n_layers = settings.get("model", "encoder_layers", layers)
    if not isinstance(n_layers, int) or not 0 <= n_layers <= _MAX_LAYERS or layers > _MAX_LAYERS:
        raise EcgfastError(f"has encoder_layers {n_layers!r}, takes an integer from 0 to {_MAX_LAYERS}")
    first = "encoder.layers.0.fc1.weight"
    ffn = _take(tensors, first, 2).shape[0] if layers else 1
    _check_told(
        settings,
        [
            ("in_d", conv.shape[1], _FIRST_CONV),
            ("encoder_embed_dim", width, position[0]),
            ("conv_pos", conv_pos, position[0]),
            ("conv_pos_groups", width // max(per_group, 1), position[0]),
            *([("encoder_ffn_embed_dim", ffn, first)] if layers else []),
        ],
    )
    if convs is not None and convs[0][0] != conv.shape[0]:
        raise EcgfastError(
            f"{_FIRST_CONV} has {conv.shape[0]} channels, its configuration says {convs[0][0]}"
        )
    return EncoderConfig(
        stem_channels=conv.shape[0],
        stem_layers=stem_layers,
        stem_bias=settings.get("model", "conv_bias", "feature_extractor.conv_layers.0.0.bias" in tensors),
        width=width,
        layers=n_layers,
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


def _check_told(settings: Settings, found: list[tuple[str, int, str]]) -> None:
    """Refuse a size that isn't the configuration's."""
    for name, value, tensor in found:
        told = settings.get("model", name, value)
        if told != value:
            raise EcgfastError(f"has {name} {told} in its configuration, but {value} in {tensor}")


def _pretraining_config(
    encoder: EncoderConfig, tensors: Mapping[str, Tensor], settings: Settings, codebook_groups: int
) -> W2VCMSCConfig:
    final_dim, latent_dim = _take(tensors, "project_q.weight", 2).shape
    codebook = _take(tensors, "quantizer.vars", 3)
    if codebook.shape[1] % codebook_groups or latent_dim % codebook_groups:
        shapes = f"{list(codebook.shape)}, project_q.weight {[final_dim, latent_dim]}"
        raise EcgfastError(
            f"quantizer.vars has shape {shapes}: not for {codebook_groups} groups (latent_groups)"
        )
    entries = codebook.shape[1] // codebook_groups
    told = {name: settings.get("model", name, 0) for name in ("final_dim", "latent_dim")}
    final = told["final_dim"] or final_dim
    _check_told(settings, [("latent_vars", entries, "quantizer.vars")])
    for name, value, want in (
        ("final_dim", final_dim, final),
        ("latent_dim", latent_dim, told["latent_dim"]),
    ):
        # 0 stands for another width.
        if want and value != want:
            raise EcgfastError(f"has {name} {want} in its configuration, but {value} in project_q.weight")
    weights = settings.get("criterion", "loss_weights", [0.1, 10.0])
    if not isinstance(weights, list) or len(weights) != 2:
        raise EcgfastError(f"has loss_weights {weights}, takes two")
    temperature = settings.get("model", "latent_temp", [2.0, 0.5, 0.999995])
    if isinstance(temperature, str):  # "(2.0, 0.5, 0.999995)"
        temperature = temperature.strip("()[] ").split(",")
    return W2VCMSCConfig(
        encoder=encoder,
        final_dim=final_dim,
        codebook_groups=codebook_groups,
        entries=entries,
        latent_dim=latent_dim,
        n_negatives=settings.get("model", "num_negatives", 100),
        mask_prob=settings.get("model", "mask_prob", 0.65),
        mask_length=settings.get("model", "mask_length", 10),
        local_temperature=settings.get("model", "logit_temp", 0.1),
        global_temperature=settings.get("criterion", "temp", 0.1),
        gumbel_temperature=temperature,
        diversity_weight=weights[0],
        feature_penalty_weight=weights[1],
        dropout_features=settings.get("model", "dropout_features", 0.0),
    )


def _count(start: str, names: Iterable[str]) -> int:
    """One more than the largest number after `start`."""
    numbers = [re.match(re.escape(start) + r"(\d{1,6})\.", name) for name in names]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)
