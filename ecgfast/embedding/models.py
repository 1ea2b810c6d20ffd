"""Opening what a command is given as MODEL: its encoder, and what its folder tells of it."""

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ecgfast.data import Store, describe_differences
from ecgfast.errors import EcgfastError
from ecgfast.interop import convert_fairseq
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.pretrained import CONFIG, WEIGHTS, file_digest
from ecgfast.training import PRESETS

RANDOM = "random"
"""As a model: an encoder with random weights."""

SEGMENT_SAMPLES = 2500
"""Samples of a segment of models that don't tell theirs."""


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model that is ready to encode.

    Attributes:
        name: What it was given as.
        encoder: In evaluation mode, on the CPU.
        digest: SHA-256 of its weights; of a random one, what it follows from.
        segment_samples: Of the segments that it was trained on, 2500 where it doesn't tell.
        preprocessing: Of the stores that it was trained on, as `describe_differences` takes it.
        folder: Its model folder; None: it has none.
        kind: `model_type` in its `config.json`.
        run: The `config.json` of the run that it is of, where MODEL is a run or its model.
        run_folder: That run's folder.
    """

    name: str
    encoder: Encoder
    digest: str
    segment_samples: int = SEGMENT_SAMPLES
    preprocessing: Any = None
    folder: Path | None = None
    kind: str = ""
    run: dict[str, Any] | None = None
    run_folder: Path | None = None

    def warn_of_preprocessing(self, store: Store) -> list[str]:
        """Warn of a store that was made otherwise than the training's; the lines are returned too."""
        beside = {name: store.description.get(name) for name in ("sample_rate", "unit", "leads")}
        own = {**(store.description.get("preprocessing") or {}), **beside}
        lines = describe_differences(self.preprocessing, own)
        told = [
            f"{store.path}: was made with other preprocessing than {self.name}'s training: {line}"
            for line in lines
        ]
        for line in told:
            warnings.warn(line)
        return told


def open_model(
    model: str | Path, *, seed: int = 0, like: str | Path | None = None, preset: str | None = None
) -> OpenedModel:
    """A model by what the user calls it.

    Args:
        model: A model folder, a run that has one, an official checkpoint, or "random".
        seed: Of "random".
        like: The model whose architecture "random" has.
        preset: Of pre-training, whose encoder "random" is.

    Raises:
        EcgfastError: there is no such model; "random" without an architecture, or another with one.
    """
    name = str(model)
    if name == RANDOM:
        if (like is None) == (preset is None):
            raise EcgfastError("MODEL: random must have --like MODEL or --preset NAME beside it, one of both")
        return random_model(_preset(preset) if like is None else open_model(like), seed)
    if like is not None or preset is not None:
        raise EcgfastError(f"like, preset: must go with the model random, got {name!r}")
    path = Path(name)
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            convert_fairseq(path, Path(folder) / "model")
            encoder = Encoder.from_pretrained(Path(folder) / "model")
        return OpenedModel(name, encoder, file_digest(path), preprocessing=encoder.preprocessing)
    if not path.is_dir():
        raise EcgfastError(
            f"MODEL: must be a model folder, a run, an official checkpoint or random, got {name!r}"
        )
    run_folder = next((one for one in (path, path.resolve().parent) if (one / "checkpoint").is_dir()), None)
    folder = path
    if run_folder == path and not (path / WEIGHTS).is_file():
        if not (path / "model").is_dir():
            raise EcgfastError(f"MODEL: {name!r} must be a finished run, got one without a model yet")
        folder = path / "model"
    elif run_folder is not None and path.resolve().name != "model":
        run_folder = None
    run = None if run_folder is None else _read(run_folder / CONFIG)
    encoder = Encoder.from_pretrained(folder)
    content = _read(folder / CONFIG)
    samples = content.get("segment_samples", (run or {}).get("config", {}).get("segment_samples"))
    return OpenedModel(
        name,
        encoder,
        file_digest(folder / WEIGHTS),
        samples if type(samples) is int else SEGMENT_SAMPLES,
        content.get("preprocessing"),
        folder,
        content.get("model_type", ""),
        run,
        run_folder,
    )


def random_model(like: OpenedModel | EncoderConfig, seed: int) -> OpenedModel:
    """An encoder with the architecture of another, or with this one, and the random weights of a seed."""
    config = like if isinstance(like, EncoderConfig) else like.encoder.config
    samples = SEGMENT_SAMPLES if isinstance(like, EncoderConfig) else like.segment_samples
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(config).eval()
    digest = f"{RANDOM} {seed} {json.dumps(config.to_dict(), sort_keys=True)}"
    return OpenedModel(RANDOM, encoder, digest, samples)


def _preset(name: str | None) -> EncoderConfig:
    if name not in PRESETS:
        raise EcgfastError(f"preset: must be of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]().model.encoder


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EcgfastError(f"{file}: is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise EcgfastError(f"{file}: must hold a JSON object, got {type(content).__name__}")
    return content
