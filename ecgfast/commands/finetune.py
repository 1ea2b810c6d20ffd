"""`ecgfast finetune`: training a model on a store's labels or numbers."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ecgfast.commands.arguments import Argument, File


def command(args: Sequence[str]) -> Callable[..., None]:
    """The command whose settings are by default those of the file in `args`, or the paper's."""
    from ecgfast import finetuning

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--config", nargs="?")
    given = scan.parse_known_args(args)[0].config
    default = finetuning.FinetuneConfig() if given is None else finetuning.read_config(Path(given))

    def finetune(
        store: Annotated[Path, tyro.conf.arg(metavar="STORE"), Argument],
        model: Annotated[str, tyro.conf.arg(metavar="MODEL"), Argument],
        run: Annotated[Path, tyro.conf.arg(metavar="RUN"), Argument],
        file: Annotated[File, tyro.conf.arg(name="config")] = None,
        config: Annotated[finetuning.FinetuneConfig, tyro.conf.arg(name="")] = default,
    ) -> None:
        """Fine-tune an encoder on a store's labels or numbers.

        RUN/model is the best by validation; `ecgfast predict STORE RUN OUT` uses it. The same command takes
        a stopped run up again. Several processes: torchrun -m ecgfast finetune ...

        Args:
            store: Folder written by `ecgfast prepare`.
            model: Model folder, run of `ecgfast pretrain`, official checkpoint (.pt), or random.
            run: Folder for the model, checkpoints, metrics and curves.
            file: A run's config.json, or its `config` part, where the settings below start from.
            config: Settings.
        """
        is_main = os.environ.get("RANK", "0") == "0"
        trained = finetuning.finetune(store, model, run, config, progress=is_main)
        if is_main:
            if not trained:
                print(f"{run}: nothing to do, the run is finished")
            print(finetuning.summarize(run))

    return finetune
