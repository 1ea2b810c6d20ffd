"""`ecgfast convert`: an official checkpoint becomes a model folder."""

from pathlib import Path

from ecgfast.commands.arguments import Argument


def convert(
    checkpoint: Argument[Path],
    out: Argument[Path],
) -> None:
    """Turn an official checkpoint into a model folder, executing nothing in it.

    Args:
        checkpoint: File with weights and configuration, as fairseq-signals saves it (.pt).
        out: New or empty folder for model.safetensors and config.json.
    """
    from ecgfast.interop import convert_fairseq

    print(convert_fairseq(checkpoint, out))
    print(f"{out}: model.safetensors, config.json")
