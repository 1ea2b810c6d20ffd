"""Official checkpoints: converted exactly, refused in one line when foreign, never executed."""

import io
import os
import pickle
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.interop import convert_fairseq
from ecgfast.interop.fairseq import rename_tensors
from ecgfast.interop.inert_pickle import Global, Inert, InertUnpickler
from ecgfast.interop.torch_checkpoint import StoredTensor, TorchCheckpoint
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.objectives import W2VCMSC, W2VCMSCConfig
from tests.fixtures.golden import load_golden

ENCODER = EncoderConfig(stem_channels=8, width=16, layers=2, heads=2, ffn=12, conv_pos=6, conv_pos_groups=4)
CONFIG = W2VCMSCConfig(encoder=ENCODER, final_dim=8, entries=5, latent_dim=4)


def official_names(model: W2VCMSC) -> dict[str, Tensor]:
    """The model's parameters as the official code names them."""
    encoder = {k.removeprefix("encoder."): v for k, v in model.state_dict().items()}
    names = {
        "stem.convs.{0}.weight": "feature_extractor.conv_layers.{0}.0.weight",
        "transformer.layers.{0}.attention.out.{1}": "encoder.layers.{0}.self_attn.out_proj.{1}",
        "transformer.layers.{0}.attention_norm.{1}": "encoder.layers.{0}.self_attn_layer_norm.{1}",
        "transformer.layers.{0}.fc1.{1}": "encoder.layers.{0}.fc1.{1}",
        "transformer.layers.{0}.fc2.{1}": "encoder.layers.{0}.fc2.{1}",
        "transformer.layers.{0}.ffn_norm.{1}": "encoder.layers.{0}.final_layer_norm.{1}",
        "stem.norm.{1}": "feature_extractor.conv_layers.0.2.{1}",
        "feature_norm.{1}": "layer_norm.{1}",
        "projection.{1}": "post_extract_proj.{1}",
        "mask_token": "mask_emb",
        "positional.conv.bias": "conv_pos.pos_conv.0.bias",
        "positional.conv.parametrizations.weight.original0": "conv_pos.pos_conv.0.weight_g",
        "positional.conv.parametrizations.weight.original1": "conv_pos.pos_conv.0.weight_v",
        "transformer.norm.{1}": "encoder.layer_norm.{1}",
        "quantizer.projection.{1}": "quantizer.weight_proj.{1}",
        "project_q.{1}": "project_q.{1}",
        "final_proj.{1}": "final_proj.{1}",
    }
    found = {}
    for layer in range(4):
        for kind in ("weight", "bias"):
            for ours, theirs in names.items():
                if ours.format(layer, kind) in encoder:
                    found[theirs.format(layer, kind)] = encoder[ours.format(layer, kind)]
            fused = encoder.get(f"transformer.layers.{layer}.attention.qkv.{kind}")
            if fused is not None:
                for name, part in zip("qkv", fused.chunk(3), strict=True):
                    found[f"encoder.layers.{layer}.self_attn.{name}_proj.{kind}"] = part.clone()
    found["quantizer.vars"] = encoder["quantizer.codebook"].reshape(1, 10, 2)
    return found


def settings(**model) -> dict:
    return {
        "model": {"encoder_attention_heads": 2, "feature_grad_mult": 0.1, **model},
        "criterion": {"loss_weights": [0.2, 5.0], "temp": 0.05},
        "task": {"normalize": False},
    }


@pytest.fixture
def model() -> W2VCMSC:
    torch.manual_seed(0)
    return W2VCMSC(CONFIG).eval()


@pytest.fixture
def save(tmp_path):
    def write(content, name="checkpoint.pt", **options) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


def refused(path: Path, message: str) -> None:
    out = path.parent / "out"
    with pytest.raises(EcgfastError, match=message) as error:
        convert_fairseq(path, out)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not out.exists()


def test_official_checkpoint(shared, tmp_path):
    convert_fairseq(shared("golden/tiny_fairseq_checkpoint.pt"), tmp_path / "out")
    golden = load_golden(shared("golden/tiny.safetensors"))
    model = W2VCMSC.from_pretrained(tmp_path / "out")
    for name, value in golden.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        tokens = Encoder.from_pretrained(tmp_path / "out")(golden.input["source"]).tokens
    torch.testing.assert_close(tokens, golden.out["eval_encoder"], rtol=1e-5, atol=1e-5)


def test_pretraining_checkpoint(model, save, tmp_path):
    temperature = {"latent_temp": "(1.5, 0.25, 0.9)", "layer_norm_first": True, "dropout": 0.3}
    path = save({"cfg": settings(**temperature), "model": official_names(model)})
    convert_fairseq(path, tmp_path / "out")
    converted = W2VCMSC.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    config = converted.config
    assert config.gumbel_temperature == (1.5, 0.25, 0.9)
    assert (config.diversity_weight, config.feature_penalty_weight) == (0.2, 5.0)
    assert config.global_temperature == 0.05
    assert config.encoder.norm_first
    assert (config.encoder.dropout, config.encoder.dropout_input) == (0.3, 0.0)
    assert config.encoder.heads == 2
    assert config.encoder.conv_pos_groups == 4


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_fine_tuned_checkpoint(prefix, model, save, tmp_path):
    heads = ("quantizer.", "project_q.", "final_proj.", "mask_emb")
    kept = {k: v for k, v in official_names(model).items() if not k.startswith(heads)}
    state = {**{prefix + k: v.half() for k, v in kept.items()}}
    if prefix:
        state["proj.weight"] = torch.zeros(26, 16)
    # Its own settings are of the new task; those of its pre-training stand in `args`.
    cfg = {"model": {"encoder_attention_heads": 4, "args": settings()}}
    convert_fairseq(save({"cfg": cfg, "model": state}), tmp_path / "out")
    encoder = Encoder.from_pretrained(tmp_path / "out")
    assert encoder.config.heads == 2
    assert not encoder.mask_token.any()
    weight = model.encoder.transformer.layers[1].fc1.weight
    assert torch.equal(encoder.transformer.layers[1].fc1.weight, weight.half().float())


def test_normalised_input_is_told(model, save, tmp_path):
    cfg = {**settings(normalize="${task.normalize}"), "task": {"normalize": True}}
    path = save({"cfg": cfg, "model": official_names(model)})
    with pytest.warns(UserWarning, match="normalise signals"):
        convert_fairseq(path, tmp_path / "out")


def test_shared_and_strided_tensors(save):
    base = torch.arange(12.0)
    path = save({"a": base[2:8], "b": base.view(3, 4).t(), "c": torch.ones(()), "d": base.int()})
    with TorchCheckpoint(path) as opened:
        assert all(isinstance(t, StoredTensor) for t in opened.root.values())
        tensors = {k: opened.read(t) for k, t in opened.root.items()}
    assert torch.equal(tensors["a"], base[2:8])
    assert torch.equal(tensors["b"], base.view(3, 4).t())
    assert torch.equal(tensors["c"], torch.ones(()))
    assert torch.equal(tensors["d"], base.int())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model"), "holds no 'model'"),
        (lambda c: c.pop("cfg"), "holds no 'cfg'"),
        (lambda c: c.update(model={"fc.weight": torch.ones(2)}), "holds no ECG transformer"),
        (lambda c: c["model"].pop("layer_norm.bias"), "incomplete: it lacks 1 tensors: layer_norm.bias"),
        (
            lambda c: c["model"].pop("encoder.layers.1.self_attn.k_proj.bias"),
            "lacks 1 tensors: encoder.layers.1.self_attn.k_proj.bias",
        ),
        (
            lambda c: c["model"].update(extra=torch.ones(1)),
            "1 tensors that its model has no place for: extra",
        ),
        (lambda c: c["model"].update(mask_emb=torch.ones(3)), r"mask_emb has shape \[3\], takes \[16\]"),
        (lambda c: c["model"].update(mask_emb=7), "model entry mask_emb is no float tensor"),
        (lambda c: c["model"].update(mask_emb=torch.ones(0)), "is no float tensor"),
        (lambda c: c["cfg"]["model"].update(extractor_mode="layer_norm"), "extractor_mode"),
        (lambda c: c["cfg"]["model"].update(encoder_attention_heads="x"), "heads takes an integer"),
        (lambda c: c["cfg"]["model"].update(latent_groups=3), "quantizer.vars has shape"),
        (lambda c: c["cfg"]["model"].update(latent_groups="2"), "latent_groups '2'"),
        (lambda c: c["cfg"]["model"].update(latent_temp="exit()"), "temperature takes"),
        (lambda c: c["cfg"]["model"].update(conv_feature_layers="[(8, 10, 5)]"), r"\(8, 10, 5\)"),
        (lambda c: c["cfg"]["model"].update(conv_feature_layers="exit()"), "conv_feature_layers"),
    ],
)
def test_foreign_model(change, message, model, save):
    content = {"cfg": settings(), "model": official_names(model)}
    change(content)
    refused(save(content), message)


def zipped(path: Path, pickled: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in entries.items():
            file.writestr(f"archive/{name}", data)
    return path


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calls(os.system, "touch hacked"), "(posix|nt).system"),
        (Calls(eval, "open('hacked', 'w')"), "(builtins|__builtin__).eval"),
        (Calls(exec, "open('hacked', 'w')"), "(builtins|__builtin__).exec"),
        (Calls(getattr, "x", "format"), "(builtins|__builtin__).getattr"),
        (Calls(torch.load, "other.pt"), r"torch.serialization.load"),
        (Calls(__import__, "os"), "(builtins|__builtin__).__import__"),
    ],
)
def test_hostile_call(protocol, call, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps({"model": call}, protocol)
    refused(zipped(tmp_path / "bad.pt", pickled), f"refers to {name}")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cposix\nsystem\n.",
        b"(S'touch hacked'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch hacked'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x09omegaconf\x8c\x0bos.system\x8c\x01x\x93R.",
        b"comegaconf.x\nY\n}(X\x0c\x00\x00\x00__setstate__cos\nsystem\nub.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",  # BUILD a global
        b"ctyping\nAny\n(N}X\x01\x00\x00\x00aK\x01stb.",  # slot state of a class
        b"cbuiltins\ndict\n)\x81K\x01b}b.b",
        b"]]h\x05.",  # unknown memo
        b"0.",  # an empty stack
        b"K\x01)R.",  # calls a number
        b"}]K\x01s.",  # an unhashable key
        b"\x80\x02}",  # no end
        b"\x80\x02X\xff\xff\xff\x7fa.",  # text longer than the file
        b"",
        b"((((",
    ],
)
def test_hostile_pickle(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(zipped(tmp_path / "bad.pt", pickled), "refers to|damaged|no checkpoint needs|holds no")
    assert not (tmp_path / "hacked").exists()


def test_names_and_calls_stay_data():
    pickled = b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81}X\x01\x00\x00\x00acargparse\nNamespace\nsb."
    loaded = InertUnpickler(lambda *_: None, lambda _: None, ()).load(pickled)
    assert isinstance(loaded, Inert)
    assert loaded.kind == Global("omegaconf.dictconfig", "DictConfig")
    assert loaded.state == {"a": Global("argparse", "Namespace")}


def nested(depth: int, kind: type = list) -> list | tuple:
    """A list or tuple whose text has 2**depth items, though it is small."""
    value = kind(("x", "y"))
    for _ in range(depth):
        value = kind((value, value))
    return value


@pytest.mark.parametrize(
    "value",
    [nested(60), nested(60, tuple), {"a": nested(60)}, 10**5000, [10**5000], "x" * 10001, [1] * 1001],
    ids=["lists", "tuples", "dict", "integer", "integers", "text", "long list"],
)
@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("model", "extractor_mode"),
        ("model", "latent_groups"),
        ("model", "conv_feature_layers"),
        ("model", "encoder_attention_heads"),
        ("model", "latent_temp"),
        ("model", "dropout"),
        ("criterion", "loss_weights"),
        ("criterion", "temp"),
        ("task", "normalize"),
    ],
)
def test_endless_settings(section, name, value, model, save):
    content = {"cfg": settings(), "model": official_names(model)}
    content["cfg"][section][name] = value
    start = time.monotonic()
    refused(save(content), f"has a {name} that is no number, text or short list of them")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("make", [b"}", b"ccollections\nOrderedDict\n)R"])
@pytest.mark.parametrize("setter", [b"%sNs", b"(%sNu"])
def test_keys_that_hash_for_ever(make, setter, tmp_path):
    key = b"K\x01" + b"q\x00h\x00\x86" * 60
    start = time.monotonic()
    refused(zipped(tmp_path / "bad.pt", b"\x80\x02" + make + setter % key + b"."), "key that is no scalar")
    reduced = b"\x80\x02ccollections\nOrderedDict\n](" + key + b"N\x86e\x85R."
    refused(zipped(tmp_path / "bad.pt", reduced), "key that is no scalar")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (1 << 20, 1 << 20), (0, 0)), "does not fit"),
        ((0, (5,), (1,)), "does not fit"),
        ((2, (3,), (1,)), "does not fit"),
        ((0, (2,), (-1,)), "strange shape"),
        ((0, (2, 2), (1,)), "strange shape"),
    ],
)
def test_tensors_outside_their_storage(arguments, message, tmp_path):
    buffer, storage = io.BytesIO(), Calls(None)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if obj is storage else None

    rebuild = Calls(torch._utils._rebuild_tensor_v2, storage, *arguments, False, None)
    Pickler(buffer, 2).dump({"model": {"x": rebuild}})
    path = zipped(tmp_path / "bad.pt", buffer.getvalue(), **{"data/0": bytes(16)})
    refused(path, message)


def test_damaged_files(model, save, tmp_path):
    path = save({"cfg": settings(), "model": official_names(model)})
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        refused(path, "is no checkpoint")
    middle = whole.index(official_names(model)["mask_emb"].numpy().tobytes())
    path.write_bytes(whole[:middle] + b"\xff\xff" + whole[middle + 2 :])
    refused(path, "is damaged")
    refused(tmp_path / "absent.pt", "no such file")
    path.write_text("not a checkpoint")
    refused(path, "is no checkpoint")
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("data.pkl"))
    refused(path, "is no checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other", b"")
    refused(path, "no data.pkl")


def test_compressed_entries_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    refused(tmp_path / "bad.pt", "compressed")


def test_missing_storage(model, save, tmp_path):
    path = save({"cfg": settings(), "model": official_names(model)})
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].split("/")[0]
        pickled = archive.read(f"{prefix}/data.pkl")
    refused(zipped(tmp_path / "bad.pt", pickled), "data/0 is missing")
    short = {f"data/{i}": b"abcd" for i in range(80)}
    refused(zipped(tmp_path / "bad.pt", pickled, **short), "has 4 bytes, .* are declared")


def test_out_is_a_file(model, save, tmp_path):
    path = save({"cfg": settings(), "model": official_names(model)})
    (tmp_path / "out").touch()
    with pytest.raises(EcgfastError, match="is there and is no folder"):
        convert_fairseq(path, tmp_path / "out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(EcgfastError, match="is a link to nothing"):
        convert_fairseq(path, tmp_path / "link")


def test_out_is_not_empty(model, save, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with pytest.raises(EcgfastError, match=r"out: .* is not empty"):
        convert_fairseq(tmp_path / "never read", out)
    assert (out / "config.json").read_text() == "mine"
    (out / "config.json").unlink()
    convert_fairseq(save({"cfg": settings(), "model": official_names(model)}), out)
    assert (out / "config.json").exists()


def test_every_official_name_is_known(model):
    encoder, heads = rename_tensors(official_names(model), 2)
    ours = {f"encoder.{k}" for k in encoder} | heads.keys()
    assert ours == model.state_dict().keys()


def test_members_of_enumerations_by_name():
    """Python 3.11 writes them as getattr(class, name); of any other class that is refused."""
    choices = b"cfairseq_signals.dataclass.constants\nChoices\n"
    member = b"\x80\x02cbuiltins\ngetattr\n" + choices + b"X\x06\x00\x00\x00static\x86R."
    loaded = InertUnpickler(lambda *_: None, lambda _: None, ()).load(member)
    assert loaded.kind == Global("fairseq_signals.dataclass.constants", "Choices")
    assert loaded.args == ("static",)
    other = member.replace(b"fairseq_signals.dataclass.constants", b"argparse").replace(
        b"Choices", b"Namespace"
    )
    with pytest.raises(EcgfastError, match=r"refers to builtins\.getattr"):
        InertUnpickler(lambda *_: None, lambda _: None, ()).load(other)


@pytest.mark.parametrize(
    "opcode", [b"\x8e", b"\x8d", b"\x96"], ids=["BINBYTES8", "BINUNICODE8", "BYTEARRAY8"]
)
@pytest.mark.parametrize("length", [1 << 60, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("before", ["", "magic", "zip"])
def test_declared_lengths_ask_for_no_memory(opcode, length, before, tmp_path):
    hostile = b"\x80\x04" + opcode + length.to_bytes(8, "little") + b"abc"
    path = tmp_path / "checkpoint.pt"
    if before == "zip":
        zipped(path, hostile)
    else:
        magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) if before else b""
        path.write_bytes(magic + hostile)
    refused(path, "is damaged" if before else "is no checkpoint of torch")
