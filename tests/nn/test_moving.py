"""Encoders and models on their way elsewhere: pickled, copied, sent to another process, exported."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import torch

from ecgfast import ops
from ecgfast.nn import Encoder
from ecgfast.objectives import W2VCMSC, Views, W2VCMSCConfig
from tests.ops.test_transforms import CONFIG

# What a fresh process does with files that another wrote: it knows the ops and outputs after this import.
READ = """
import sys, torch
import ecgfast.nn
folder = sys.argv[1]
program = torch.export.load(f"{folder}/encoder.pt2").module()
whole = torch.load(f"{folder}/encoder.pt", weights_only=False)
x, want = torch.load(f"{folder}/x.pt"), torch.load(f"{folder}/want.pt")
assert torch.equal(program(x).tokens, want[0]) and torch.equal(whole(x).tokens, want[0])
assert torch.equal(program(x[:2]).tokens, want[1])
"""


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    assert all(map(torch.equal, a.values(), b.values()))


def test_whole_models_are_pickled_and_copied():
    torch.manual_seed(0)
    model = W2VCMSC(W2VCMSCConfig(encoder=CONFIG, final_dim=8, latent_dim=8, entries=4, dropout_features=0))
    views = Views(torch.randn(4, 12, 160), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    want = model(views, ops.make_rng(1)).total
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        same_state(other, model)
        assert other.config == model.config
        got = other(views, ops.make_rng(1)).total
        assert torch.equal(got, want)
        got.backward()


def test_a_fresh_process_reads_an_exported_and_a_pickled_encoder(tmp_path):
    torch.manual_seed(0)
    encoder, x = Encoder(CONFIG).eval(), torch.randn(3, 12, 96)
    with torch.no_grad():
        want = encoder(x).tokens, encoder(x[:2]).tokens
        shapes = {"signal": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}}
        program = torch.export.export(encoder, (x,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "encoder.pt2")
    torch.save(encoder, tmp_path / "encoder.pt")
    torch.save(x, tmp_path / "x.pt")
    torch.save(want, tmp_path / "want.pt")
    subprocess.run([sys.executable, "-c", READ, str(tmp_path)], check=True)


def embed(encoder, x):
    with torch.no_grad():
        return encoder.embed(x).tolist()


def test_an_encoder_is_sent_to_a_spawned_process():
    torch.manual_seed(0)
    encoder, x = Encoder(CONFIG).eval(), torch.randn(2, 12, 96)
    spawn = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        got = pool.submit(embed, encoder, x).result()
    torch.testing.assert_close(got, embed(encoder, x))
