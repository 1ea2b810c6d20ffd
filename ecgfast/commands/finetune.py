"""`ecgfast finetune`: training a model on a store's labels or numbers."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ecgfast.commands.arguments import Argument, File

if TYPE_CHECKING:
    from ecgfast.finetuning import FinetuneConfig


def command(args: Sequence[str]) -> Callable[..., None]:
    """The command whose settings are by default those of the file or protocol in `args`, or the paper's."""
    from ecgfast import finetuning

    default = _settings(args)

    def finetune(
        store: Annotated[Path, tyro.conf.arg(metavar="STORE"), Argument],
        model: Annotated[str, tyro.conf.arg(metavar="MODEL"), Argument],
        run: Annotated[Path, tyro.conf.arg(metavar="RUN"), Argument],
        file: Annotated[File, tyro.conf.arg(name="config")] = None,
        config: Annotated[finetuning.FinetuneConfig, tyro.conf.arg(name="")] = default,
    ) -> None:
        """Fine-tune an encoder to tell classes, numbers, or whose a recording is.

        What is learnt is one of:
        - the store's labels, all of them or --classes;
        - a column of the store's numbers: --target age;
        - labels or numbers of a table of your own: --labels labels.csv --label-columns lvef;
        - what a protocol says, with its parts and settings: --protocol helme:super;
        - whose a recording is: --task identification, or --protocol id-gallery-probe.

        RUN/model is the best by validation; `ecgfast predict STORE RUN OUT` uses it. RUN/parts.json names
        the recordings of each part. The same command takes a stopped run up again. Several processes:
        torchrun -m ecgfast finetune ...

        Args:
            store: Folder written by `ecgfast prepare`.
            model: Model folder, run of `ecgfast pretrain`, official checkpoint (.pt), or random.
            run: Folder for the model, checkpoints, metrics and curves.
            file: A run's config.json, or its `config` part, where the settings below start from. Without it
                they are those of the protocol, of which the values are shown as defaults, or the paper's.
            config: Settings.
        """
        is_main = os.environ.get("RANK", "0") == "0"
        trained = finetuning.finetune(store, model, run, config, progress=is_main, report=print)
        if is_main:
            if not trained:
                print(f"{run}: nothing to do, the run is finished")
            print(finetuning.summarize(run))

    return finetune


def _settings(args: Sequence[str]) -> "FinetuneConfig":
    """What the settings start from."""
    from ecgfast import finetuning

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--protocol", "--task"):
        scan.add_argument(name, nargs="?")
    given = scan.parse_known_args(args)[0]
    if given.config is not None:
        return finetuning.read_config(Path(given.config))
    if given.protocol:
        return finetuning.recipe_config(given.protocol)
    if given.task == "identification":
        recipe = finetuning.recipe_config("id-gallery-probe")
        return dataclasses.replace(recipe, protocol="", task="identification")
    return finetuning.FinetuneConfig()
