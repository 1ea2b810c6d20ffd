"""`ecgfast pretrain`: pre-training an encoder on a store."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ecgfast.commands.arguments import Argument, value


def command(args: Sequence[str]) -> Callable[..., None]:
    """The command with the fields of the preset that `args` names as its defaults."""
    from ecgfast import training

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--preset", nargs="?")
    name = scan.parse_known_args(args)[0].preset
    default = training.PRESETS.get(name, training.PRESETS["small"])()

    def pretrain(
        store: Argument[Path],
        run: Argument[Path],
        preset: Literal["demo", "small", "paper"] = "small",
        init: Annotated[Path | None, value("MODEL")] = None,
        config: Annotated[training.PretrainConfig, tyro.conf.arg(name="")] = default,
    ) -> None:
        """Pre-train an encoder on a store with W2V + CMSC + RLM.

        The same command takes a stopped run up again; with more steps, a finished one.

        Several processes: torchrun --nproc-per-node N -m ecgfast pretrain ...

        Args:
            store: Folder written by `ecgfast prepare`.
            run: Folder for the model, checkpoints, metrics and curves.
            preset: Where the settings below start from: demo takes minutes on two CPU cores,
                small hours on a GPU, paper is the paper's. Their values are shown as defaults.
            init: Model folder to start from (ecgfast export, convert, or a run's model).
            config: Settings.
        """
        is_main = os.environ.get("RANK", "0") == "0"
        trained = training.pretrain(store, run, config, init=init, progress=is_main)
        if is_main:
            if not trained:
                print(f"{run}: nothing to do, the run is finished")
            print(training.summarize_run(run))

    return pretrain
