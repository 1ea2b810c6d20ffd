"""Runs that start from a config file: what a run leaves behind, in any version, with flags on top."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ecgfast.cli import main
from ecgfast.errors import EcgfastError
from ecgfast.nn import EncoderConfig
from ecgfast.objectives.registry import DEFAULT, OBJECTIVES
from ecgfast.training import PretrainConfig, pretrain, read_config, read_metrics
from ecgfast.training.config import completed, config_from_json, renamed
from tests.training.test_pretraining import assert_same_run

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1"


@pytest.fixture(scope="module")
def finished(store, tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(store, run, tiny, progress=False)
    return run


def error_of(capsys, *args) -> str:
    assert main([str(arg) for arg in args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ecgfast: error: ")
    assert err.count("\n") == 1
    return err


def test_a_run_tells_its_configuration(finished, tiny, tmp_path):
    assert read_config(finished / "config.json") == (tiny, None)
    part = tmp_path / "part.json"
    part.write_text(json.dumps(json.loads((finished / "config.json").read_text())["config"]))
    assert read_config(part) == (tiny, None)


def test_the_same_run_again(finished, store, tmp_path):
    assert (
        main(["pretrain", str(store), str(tmp_path / "run"), "--config", str(finished / "config.json")]) == 0
    )
    assert_same_run(finished, tmp_path / "run")


def test_flags_go_on_top(finished, store, tiny, tmp_path, capsys):
    """In a new run, and where a run goes on for longer."""
    command = ["pretrain", str(store), str(tmp_path / "run"), "--config"]
    assert main([*command, str(finished / "config.json"), "--max-steps=4", "--model.dropout-features=0"]) == 0
    own = tmp_path / "run/config.json"
    model = dataclasses.replace(tiny.model, dropout_features=0.0)
    assert read_config(own)[0] == dataclasses.replace(tiny, max_steps=4, model=model)
    assert main([*command, str(own), "--max-steps", "6"]) == 0
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["step"] == 6
    assert main([*command, str(own)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    told = error_of(capsys, "pretrain", store, tmp_path / "run")
    assert f"give its settings (--config {own})" in told


def test_a_run_that_was_started_from_a_model_says_so(finished, store, tmp_path, capsys):
    command = ["pretrain", str(store), str(tmp_path / "a"), "--config", str(finished / "config.json")]
    command += ["--max-steps", "1"]
    assert main([*command, "--init", str(finished / "model")]) == 0
    command[2:5] = [str(tmp_path / "b"), "--config", str(tmp_path / "a/config.json")]
    capsys.readouterr()
    assert main(command) == 0
    assert f"--init {finished / 'model'} starts it so too" in capsys.readouterr().err
    assert main(command) == 0
    assert "--init" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        ("{", "holds no JSON"),
        (b"\xff\xfe", "holds no JSON"),
        pytest.param("[" * 100000, "holds no JSON", id="deep"),
        ("[]", "must hold a JSON object, got list"),
        ('{"config": 3}', "config must be a JSON object, got int"),
        ('{"task": "finetune", "config": {}}', "is of a run of another task, finetune"),
        ('{"model_type": "ecgfast_encoder", "width": 8}', "is the config.json of a model folder"),
        ('{"batch_pair": 3}', "has an unknown setting 'batch_pair'; did you mean batch_pairs?"),
        (
            '{"objective": ["cmsc"]}',
            f"objective: must be one of {', '.join(OBJECTIVES)}, got ['cmsc']",
        ),
        ('{"objective": "jepa"}', "w2v_cmsc_rlm, got 'jepa'"),
        ('{"batch_pairs": "3"}', "batch_pairs: got '3'; an integer of at least 1 is taken"),
        ('{"batch_pairs": true}', "batch_pairs: got True; an integer"),
        ('{"epochs": 1.5}', "epochs: got 1.5; an integer"),
        ('{"compile": 1}', "compile: got 1; true or false is taken"),
        ('{"device": 3}', "device: got 3; auto, cpu"),
        ('{"loader": ["stream"]}', "loader: got ['stream']; stream or resident is taken"),
        ('{"optim": {"lr": "1"}}', "optim: optim.lr: got '1'; a positive number"),
        ('{"optim": {"betas": 1}}', "optim.betas: got 1; two numbers"),
        ('{"optim": {"speed": 1}}', "optim: unknown fields speed"),
        ('{"optim": 1}', "optim: takes a JSON object, got int"),
        ('{"model": {"entry": 1}}', "unknown fields entry"),
        ('{"model": {"encoder": {"wide": 1}}}', "encoder: unknown fields wide"),
        ('{"model": {"encoder": {"leads": 5}}}', "model: a value has the wrong type"),
        ('{"model": 5}', "model: takes a JSON object, got int"),
        ('{"objective": "w2v_cms"}', "must be one of"),
        ('{"objective": 3}', "objective: must be one of"),
        ('{"objective": null}', "objective: must be one of"),
    ],
)
def test_other_files_are_refused(content, message, store, tmp_path, capsys):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = error_of(capsys, "pretrain", store, tmp_path / "run", "--config", file)
    assert f"config: '{file}': " in told
    assert message in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "F", "--preset", "demo"], "can't be given beside --config"),
        (["--preset=demo", "--config=F"], "can't be given beside --config"),
        (
            ["--config", "F", "--objective", "w2v"],
            "--objective w2v can't be given beside --config, which sets it",
        ),
        (["--config"], "--config must have a value"),
        (["--config", "."], "config: '.': can't be read: Is a directory"),
        (["--objective", "w2w"], "objective: must be one of w2v, cmsc"),
        (["--objective", "w2v_cms"], "did you mean w2v_cmsc"),
        (["--objective"], "--objective must have a value"),
    ],
)
def test_bad_combinations(args, message, capsys):
    assert message in error_of(capsys, "pretrain", "S", "R", *args)


def test_configurations_of_earlier_versions(tiny):
    """Without an objective, under the names of that time, and without settings that are newer."""
    described = json.loads((OLD / "stopped/config.json").read_text())
    config = config_from_json(described, "config")
    assert config.objective == DEFAULT
    assert config.model.encoder.norm_padding
    assert config.model.codebook_groups == 2
    assert config.model.gumbel_temperature == (2.0, 0.5, 0.999995)
    told = completed(described["config"])
    assert told == json.loads(json.dumps(dataclasses.asdict(config)))
    assert "groups" not in renamed(described["config"])["model"]
    assert "norm_padding" not in renamed(described["config"])["model"]["encoder"]


def test_an_old_run_goes_on_by_its_config_file(tmp_path):
    run = shutil.copytree(OLD / "stopped", tmp_path / "run")
    command = ["pretrain", str(OLD / "store"), str(run), "--config", str(run / "config.json")]
    assert main([*command, "--max-steps", "12", "--device", "cpu"]) == 0
    told = json.loads((run / "config.json").read_text())
    assert told["config"]["max_steps"] == 12
    assert "codebook_groups" in told["config"]["model"]
    assert "groups" not in told["config"]["model"]
    assert main(command) == 0  # its own names now


@pytest.mark.parametrize("model", [3, None, [], {"encoder": 3}, {}])
def test_an_edited_run_is_told(finished, store, tiny, tmp_path, model):
    run = shutil.copytree(finished, tmp_path / "run")
    described = json.loads((run / "config.json").read_text())
    described["config"]["model"] = model
    (run / "config.json").write_text(json.dumps(described))
    with pytest.raises(EcgfastError, match="was started with"):
        pretrain(store, run, tiny, progress=False)


def test_what_a_file_leaves_out_is_the_papers():
    config = config_from_json({"model": {"encoder": {"width": 64, "heads": 4}}, "max_steps": 3}, "config")
    assert config.model.encoder == EncoderConfig(width=64, heads=4)
    assert config == PretrainConfig(model=config.model, max_steps=3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_has_a_configuration(name):
    assert config_from_json({"objective": name}, "config") == PretrainConfig(objective=name)
    described = json.loads(json.dumps(dataclasses.asdict(PretrainConfig(objective=name))))
    assert config_from_json({"config": described}, "config") == PretrainConfig(objective=name)


def test_the_model_is_the_objectives_own():
    other = next(
        name
        for name in OBJECTIVES
        if type(PretrainConfig(objective=name).model) is not type(PretrainConfig().model)
    )
    with pytest.raises(EcgfastError, match=f"model: must be .* for objective {other}, got W2VCMSCConfig"):
        PretrainConfig(objective=other, model=PretrainConfig().model)
