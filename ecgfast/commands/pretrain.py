"""`ecgfast pretrain`: pre-training an encoder on stores."""

import argparse
import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ecgfast.commands.arguments import Argument, File, Folder, value
from ecgfast.errors import EcgfastError

if TYPE_CHECKING:
    from ecgfast.training import PretrainConfig


def command(args: Sequence[str]) -> Callable[..., None]:
    """The command whose settings are by default those of the file, or preset and objective, in `args`."""
    from ecgfast import training
    from ecgfast.objectives.base import Size

    default, started_from = _settings(args)

    def pretrain(
        store: Annotated[Path, tyro.conf.arg(metavar="STORE"), Argument],
        run: Annotated[Path, tyro.conf.arg(metavar="RUN"), Argument],
        preset: Size = "small",
        file: Annotated[File, tyro.conf.arg(name="config")] = None,
        init: Folder = None,
        also: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="STORE ...", help_behavior_hint="")] = (),
        config: Annotated[training.PretrainConfig, tyro.conf.arg(name="")] = default,
        lead_mask_prob: Annotated[float | None, value("FLOAT")] = None,
    ) -> None:
        """Pre-train an encoder on one store or several.

        The same command takes a stopped run up again; with a larger max-steps or epochs, a finished one
        too. Several processes: torchrun -m ecgfast pretrain ...

        Objectives, with settings of their own:
        {objectives}

        Args:
            store: Folder written by `ecgfast prepare`.
            run: Folder for the model, checkpoints, metrics and curves.
            preset: Where the settings below start from: demo takes minutes on two CPU cores,
                small hours on a GPU, paper is the paper's. Their values are shown as defaults.
            file: A run's config.json, or its `config` part, where they start from instead; RUN/config.json
                to go on with RUN. The preset and the objective are those in it.
            init: Model folder to start from (ecgfast export, convert, or a run's model).
            also: More such folders to train on; --store-weights has STORE's weight first, then theirs.
            config: Settings.
            lead_mask_prob: Probability that a lead is masked (random lead masking), for any objective: short
                for --model.lead-mask-prob.
        """
        is_main = os.environ.get("RANK", "0") == "0"
        if started_from is not None and init is None and is_main and not (run / "config.json").exists():
            warnings.warn(
                f"config: the run of {str(file)!r} was started from the model {started_from}, this one is "
                f"from random weights; --init {started_from} starts it so too"
            )
        if lead_mask_prob is not None:
            if not hasattr(config.model, "lead_mask_prob"):
                raise EcgfastError(
                    f"--lead-mask-prob: must go with another objective, got {config.objective}"
                )
            config = dataclasses.replace(
                config, model=dataclasses.replace(config.model, lead_mask_prob=lead_mask_prob)
            )
        trained = training.pretrain([store, *also], run, config, init=init, progress=is_main)
        if is_main:
            if not trained:
                print(f"{run}: nothing to do, the run is finished")
            print(training.summarize_run(run))

    pretrain.__doc__ = inspect.cleandoc(pretrain.__doc__ or "").replace("{objectives}", _objectives())
    return pretrain


def _objectives() -> str:
    """A line for each objective."""
    from ecgfast.objectives.registry import OBJECTIVES

    return "\n".join(f"- {name}: {entry.summary}" for name, entry in OBJECTIVES.items())


def _settings(args: Sequence[str]) -> tuple["PretrainConfig", str | None]:
    """What the settings start from, and the model that the run of a file was started from."""
    from ecgfast import training

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--objective", "--config"):
        scan.add_argument(name, nargs="?")
    given = scan.parse_known_args(args)[0]
    if given.config is not None:
        for name in ("preset", "objective"):
            if (value := getattr(given, name)) is not None:
                raise EcgfastError(f"--{name} {value} can't be given beside --config, which sets it")
        return training.read_config(Path(given.config))
    preset = training.PRESETS.get(given.preset, training.PRESETS["small"])
    return (preset() if given.objective is None else preset(given.objective)), None
