"""`ecgfast convert`: an official checkpoint becomes a model folder."""

from pathlib import Path
from typing import Annotated

import tyro

from ecgfast.commands.arguments import Argument


def convert(
    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT"), Argument],
    out: Annotated[Path, tyro.conf.arg(metavar="OUT"), Argument],
) -> None:
    """Turn an official fairseq-signals checkpoint into a model folder, executing nothing in it.

    Args:
        checkpoint: File with weights and configuration, as the official trainer saves it (.pt).
        out: New or empty folder for model.safetensors and config.json.
    """
    from ecgfast.interop import convert_fairseq

    print(convert_fairseq(checkpoint, out))
    print(f"{out}: model.safetensors, config.json")
