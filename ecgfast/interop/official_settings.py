"""The configuration in an official checkpoint, held as data."""

import re
from typing import Any

from ecgfast.errors import EcgfastError
from ecgfast.interop.inert_pickle import Inert

_MAX_ITEMS, _MAX_TEXT = 1000, 10000  # of a setting
_MAX_DEPTH = 4  # of nodes within nodes


class Settings:
    """Looks up values of an official configuration: OmegaConf containers held as data, or dicts."""

    def __init__(self, root: Any) -> None:
        self._root = root

    @property
    def fine_tuned(self) -> bool:
        """Whether the model was made from a pre-trained one."""
        return bool(_lookup(self._root, "model", "args"))

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
    """What an OmegaConf node, a namespace or a member of an enumeration holds."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(node, Inert):
            break
        if isinstance(node.state, dict):
            plain = node.kind.module.partition(".")[0] != "omegaconf"
            node = node.state if plain else node.state.get("_content", node.state.get("_val"))
        elif len(node.args) == 1:
            node = node.args[0]
        else:
            break
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


def conv_layers(settings: Settings) -> list[tuple[int, int, int]] | None:
    """The convolutions in a text such as "[(256, 2, 2)] * 4", which is parsed, not evaluated.

    Channels, kernel and stride of each; None where the configuration does not tell.
    """
    text = settings.get("model", "conv_feature_layers", None)
    if text is None:
        return None
    if not isinstance(text, str):
        raise EcgfastError("has conv_feature_layers of a strange form")
    shown, text = text[:60], "".join(text.split())
    triple = r"\((\d{1,9}),(\d{1,9}),(\d{1,9}),?\)"
    block = rf"\[(?:{triple},?)+\](?:\*\d{{1,9}})?"
    if not re.fullmatch(rf"{block}(?:\+{block})*", text):
        raise EcgfastError(f"has conv_feature_layers {shown!r}, takes [(channels, 2, 2)] * layers")
    layers: list[tuple[int, int, int]] = []
    for part in text.split("+"):
        times = int(part.partition("*")[2] or 1)
        some = [tuple(map(int, match.groups())) for match in re.finditer(triple, part)]
        if len(layers) + len(some) * times > _MAX_ITEMS:
            raise EcgfastError(f"has conv_feature_layers {shown!r}, takes {_MAX_ITEMS} at most")
        layers += some * times
    return layers


def describe_inputs(settings: Settings) -> dict[str, Any]:
    """What the configuration says of the signals that the model was trained on."""
    names = (
        "sample_rate",
        "normalize",
        "filter",
        "mean_path",
        "std_path",
        "leads_to_load",
        "max_sample_size",
    )
    found = {name: settings.get("task", name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}
