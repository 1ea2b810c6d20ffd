"""Model folders know their weights: every flipped bit is seen, and a swap on purpose is told how."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder, EncoderConfig

TINY = EncoderConfig(stem_channels=4, width=8, layers=1, heads=2, ffn=8, conv_pos=4, conv_pos_groups=2)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Encoder(TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_both_files_are_for_everyone_whom_the_umask_lets(tmp_path):
    mask = os.umask(0o027)
    try:
        Encoder(TINY).save_pretrained(tmp_path / "model")
    finally:
        os.umask(mask)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes == {"model.safetensors": 0o640, "config.json": 0o640}


def test_every_flipped_bit_is_seen(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    seed = 5
    print("seed", seed)
    draw = random.Random(seed)
    places = [0, 7, 8, 9, *draw.sample(range(len(whole)), 150), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(
            EcgfastError, match=r"model\.safetensors: is (damaged|not a safetensors)"
        ) as error:
            Encoder.from_pretrained(folder)
        assert "\n" not in str(error.value)
    file.write_bytes(whole)
    Encoder.from_pretrained(folder)


def test_swapped_weights(folder, tmp_path):
    torch.manual_seed(1)
    other = Encoder(TINY)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other/model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(EcgfastError, match="on purpose, take weights_sha256 out of"):
        Encoder.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["weights_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = Encoder.from_pretrained(folder)
    assert torch.equal(loaded.mask_token, other.mask_token)


DIES = """
    import os, signal, sys, torch
    from ecgfast.nn import Encoder, EncoderConfig
    folder, count = sys.argv[1], int(sys.argv[2])
    replace, calls = os.replace, [0]

    def replace_or_die(*paths):
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1
        replace(*paths)

    os.replace = replace_or_die
    torch.manual_seed(1)
    Encoder(CONFIG).save_pretrained(folder)
"""


@pytest.mark.parametrize("count", [0, 1, 2])
def test_killed_while_it_replaces_a_model(count, folder, tmp_path):
    """Between any two of the renames one of the models can be read, with its own configuration."""
    old = Encoder.from_pretrained(folder)
    other = replace(TINY, norm_padding=True, heads=1)
    script = textwrap.dedent(DIES).replace("CONFIG", repr(other))
    child = subprocess.run(
        [sys.executable, "-c", script, folder, str(count)], capture_output=True, text=True, env=os.environ
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    loaded = Encoder.from_pretrained(folder)
    assert torch.equal(loaded.mask_token, old.mask_token) == (count < 2)
    assert loaded.config == (TINY if count < 2 else other)
    Encoder(other).save_pretrained(folder)
    assert Encoder.from_pretrained(folder).config == other
    assert "replaced" not in json.loads((folder / "config.json").read_text())


def test_a_config_without_digest_loads(folder):
    config = json.loads((folder / "config.json").read_text())
    assert len(config.pop("weights_sha256")) == 64
    (folder / "config.json").write_text(json.dumps(config))
    Encoder.from_pretrained(folder)
