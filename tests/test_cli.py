"""The command line: help, one-line errors, and the way from records to an encoder."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from ecgfast.cli import COMMANDS, main
from ecgfast.data import Store
from ecgfast.nn import Encoder
from ecgfast.training import read_metrics

SETTINGS = {
    "preset": "demo",
    "device": "cpu",
    "batch-pairs": 2,
    "max-steps": 6,
    "log-every": 2,
    "segment-samples": 320,
    "model.n-masked": 8,
    "model.entries": 4,
    "model.encoder.stem-channels": 8,
    "model.encoder.width": 16,
    "model.encoder.layers": 1,
    "model.encoder.heads": 2,
    "model.encoder.ffn": 16,
    "model.encoder.conv-pos": 4,
    "model.encoder.conv-pos-groups": 2,
}
TINY = [f"--{name}={value}" for name, value in SETTINGS.items()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four records of two synthetic patients, imported."""
    folder = tmp_path_factory.mktemp("cli")
    records = str(folder / "records")
    assert main(["synth", records, "--patients", "2", "--records", "2", "--seconds", "3"]) == 0
    assert main(["prepare", records, str(folder / "store"), "--workers", "1"]) == 0
    return folder / "store"


def error_of(capsys, *args) -> str:
    """The message with which the command refuses `args`: one line, and exit code 2."""
    assert main([str(arg) for arg in args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ecgfast: error: ")
    assert err.count("\n") == 1
    return err


def run_process(*args, **options):
    command = [sys.executable, "-m", "ecgfast", *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    options["env"] = os.environ | options.get("env", {})
    return subprocess.run(command, text=True, **options)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"] if command else ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: ecgfast" in text
    for name in COMMANDS if command is None else ():
        assert name in text


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--preset", "paper", "--help"])
    text = capsys.readouterr().out
    assert "(default: 5e-05)" in text
    assert "--model.n-masked INT|None" in text
    assert "(default: 768)" in text


def test_version_and_configuration(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ecgfast ")
    assert main(["show-config"]) == 0
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no command given"),
        (["fly"], "COMMAND: got 'fly'; one of synth, prepare, inspect, pretrain, finetune, predict, embed"),
        (["--fly"], "unrecognized arguments: --fly"),
        (["synth"], "OUT"),
        (["synth", "out", "--patients", "many"], "--patients"),
        (["synth", "out", "--patients", "9" * 14], "GB are free"),
        (["--version", "extra"], "unrecognized arguments: extra"),
        (["synth", "out", "--patients"], "--patients"),
        (["prepare", "source"], "STORE"),
        (["prepare", "a", "b", "--format", "edf"], "format: got 'edf', want auto, ptbxl"),
        (["convert", "a", "b", "c"], "Unrecognized options: c"),
        (["pretrain", "a", "b", "--preset", "huge"], "'huge'"),
        (["pretrain", "a", "b", "--optim.speed", "1"], "--optim.speed"),
        (["pretrain", "a", "b", "--batch-pairs", "0"], "batch_pairs: got 0"),
        (["pretrain", "a", "b", "--optim.betas", "1.5", "0.9"], "optim.betas: got (1.5, 0.9)"),
        (["pretrain", "a", "b", "--optim.warmup-steps", "-1"], "optim.warmup_steps: got -1"),
        (["pretrain", "a", "b", "--seed", "9" * 20], "seed: got 9999"),
        (["pretrain", "a", "b", "--model.n-masked", "200"], "make 156 tokens; at least 200"),
        (["pretrain", "a", "b", "--segment-samples", "200"], "make 12 tokens; at least 64"),
        (["pretrain", "a", "b", "--model.encoder.heads", "5"], "heads"),
        (["pretrain", "a", "b", "--model.encoder.leads", "I", "V7"], "V7"),
    ],
)
def test_bad_arguments(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("pretian", "did you mean pretrain?"),
        ("showconfig", "did you mean show-config?"),
        ("--verison", "did you mean --version?"),
        ("pretrain S R --lr 1e-3", "Unrecognized options: --lr; did you mean --optim.lr?"),
        ("pretrain --lr=1e-3 S R", "--lr; did you mean --optim.lr?"),
        ("pretrain S R --learning-rate 1e-3", "did you mean --optim.lr?"),
        ("pretrain S R --lead_mask_pro 0.5", "did you mean --lead-mask-prob or --model.lead-mask-prob?"),
        ("pretrain S R --model.lead_maskprob 0.5", "did you mean --model.lead-mask-prob or"),
        ("pretrain S R --batch-size 8", "did you mean --batch-pairs?"),
        ("pretrain S R --warmup 8", "did you mean --optim.warmup-steps?"),
        ("pretrain S R --dropout 0", "did you mean --model.encoder.dropout"),
        (
            "pretrain S R --seeds 8 --lr 1",
            "for --seeds did you mean --seed?; for --lr did you mean --optim.lr?",
        ),
        ("pretrain S R --no-compiled", "did you mean --no-compile"),
        ("pretrain --lr", "Unrecognized options: --lr; did you mean --optim.lr?"),
        ("pretrain S R --preset smal", "must be one of demo, small, paper, got 'smal'; did you mean small?"),
        ("pretrain S R --preset=smal", "did you mean small?"),
        (
            "pretrain S R --precision fp23",
            "--precision must be one of fp32, bf16, got 'fp23'; did you mean fp32?",
        ),
        ("synth OUT --patient 3", "did you mean --patients?"),
        ("synth --patient 3", "did you mean --patients?"),
        ("prepare . STORE --format ptbx", "did you mean ptbxl"),
        ("prepare S T --baselin", "did you mean --baseline"),
        ("inspect --recrod", "did you mean --record?"),
        ("bench lead-mask", "did you mean lead_mask?"),
        ("bench masks --variants offical", "did you mean official?"),
        ("bench masks --sizes b 3", "did you mean B?"),
        ("bench masks --device cuba", "did you mean cuda?"),
        ("bench masks --json-dri x", "did you mean --json-dir"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_near_names(args, wanted, columns, capsys, tmp_path, monkeypatch):
    """A mistyped name is told with the one that it may stand for, on terminals of any width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", columns)
    assert wanted in error_of(capsys, *args.split())
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("pretrain", "missing: STORE, RUN ("),
        ("convert x", "missing: OUT, new or empty folder for model.safetensors and config.json ("),
        ("bench", "lead_mask, span_mask"),
        ("convert a b c", "Unrecognized options: c; besides options it takes CHECKPOINT OUT ("),
        ("synth a b", "Unrecognized options: b; besides options it takes OUT ("),
        ("show-config x", "besides options it takes nothing ("),
        ("synth OUT --patients many", "--patients must be an integer, got 'many' ("),
        ("synth OUT --patients 1.5", "--patients must be an integer, got '1.5' ("),
        ("synth OUT --seconds long", "--seconds must be a number, got 'long' ("),
        ("synth OUT --patients", "--patients must have a value, got none ("),
        ("pretrain S R --optim.betas 0.9", "--optim.betas must have 2 values, got fewer ("),
        ("pretrain S R --optim.betas 0.9 x", "--optim.betas must be 2 numbers, got 0.9 x ("),
        ("pretrain S R --model.n-masked x", "--model.n-masked must be None or an integer, got x ("),
        ("prepare S T --bandpass 3", "--bandpass must be"),
        ("prepare S T --baseline yes", "--baseline is a flag and must have no value, got 'yes' ("),
        ("pretrain S R --global-batch=1", "--global-batch is a flag and must have no value, got '1' ("),
        ("pretrain S R --xyzzy 3", "Unrecognized options: --xyzzy ("),
    ],
)
def test_errors_of_parsing(args, wanted, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wanted in error_of(capsys, *args.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_reads_well_on_a_terminal(command, capsys, monkeypatch):
    """No line is broken by the terminal, and values have names, not types in brackets."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"] if command else ["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "{None}" not in text
    assert "[STR" not in text


def test_help_breaks_long_lines_between_words(capsys, monkeypatch):
    def show_config():
        """Print it.

        - one: a sentence in a list that is so long that no terminal of eighty columns can show it in a line.
        """

    monkeypatch.setattr("ecgfast.commands.show_config.show_config", show_config)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["show-config", "--help"])
    assert re.search(r"\n- one: a sentence .*\n  .*can show it in a line\.\n", capsys.readouterr().out)


def test_help_breaks_no_line_early(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    text = capsys.readouterr().out
    assert re.search("its name: its leads, a rhythm strip, heart rate and +│? *\n", text)
    assert "(default: None)" not in text


def on_terminal(*args, **env):
    """What the command prints on a terminal, and its exit code."""
    leader, follower = pty.openpty()
    try:
        ended = run_process(*args, stdout=follower, stderr=follower, env={"TERM": "xterm", **env})
        return os.read(leader, 1 << 16).decode(), ended.returncode
    finally:
        os.close(leader)
        os.close(follower)


def test_errors_are_plain_on_terminals():
    text, code = on_terminal("pretrain", "S", "R", "--lr", "1", FORCE_COLOR="1")
    assert code == 2
    assert text.startswith("ecgfast: error: Unrecognized options: --lr; did you mean --optim.lr? (")
    assert text.count("\n") == 1
    text, code = on_terminal("convert", "--help", NO_COLOR="1")
    assert code == 0
    assert "CHECKPOINT" in text
    assert "\x1b" not in text


def test_errors_without_stdout():
    command = [sys.executable, "-m", "ecgfast", "pretrain", "S", "R", "--lr", "1"]
    ended = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert "did you mean --optim.lr?" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_characters_that_stdout_lacks(tmp_path):
    store = tmp_path / "心 store"
    assert main(["synth", str(store), "--patients", "1", "--records", "1", "--into-store"]) == 0
    ended = run_process("inspect", store, env={"PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0, ended.stderr
    assert "\\u5fc3 store" in ended.stdout


def test_near_records(store, capsys):
    ids = Store(store).index["record_id"].to_pylist()
    wrong = ids[1].upper() + "x"
    assert f"did you mean {ids[1]}" in error_of(capsys, "inspect", store, "--record", wrong)
    for odd in ("", "$x {0} %s", "心", "a/../b", "-1"):
        assert f"has no {odd!r}" in error_of(capsys, "inspect", store, f"--record={odd}")


@pytest.mark.parametrize(
    "args",
    [
        ["prepare", "missing", "out"],
        ["prepare", "empty", "out"],
        ["prepare", "file", "out"],
        ["pretrain", "missing", "out"],
        ["pretrain", "empty", "out"],
        ["pretrain", "file", "out"],
        ["convert", "missing", "out"],
        ["convert", "empty", "out"],
        ["convert", "file", "out"],
    ],
)
def test_bad_inputs_leave_nothing(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no records, no store, no checkpoint")
    before = sorted(tmp_path.iterdir())
    assert args[1] in error_of(capsys, *args)
    assert sorted(tmp_path.iterdir()) == before


def test_foreign_folders_are_refused(store, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    error_of(capsys, "synth", tmp_path)
    error_of(capsys, "prepare", store.parent / "records", tmp_path)
    assert "no run of ecgfast" in error_of(capsys, "pretrain", store, tmp_path, *TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_from_records_to_an_encoder(store, capsys, tmp_path):
    command = ["pretrain", str(store), str(tmp_path / "run"), *TINY]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "told from their negatives" in out
    assert "segments/s" in err
    points = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [point["step"] for point in points] == [1, 2, 4, 6]
    assert Encoder.from_pretrained(tmp_path / "run/model").config.width == 16

    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    message = error_of(capsys, *command, "--optim.lr", "0.5")
    assert "was started with optim.lr = " in message
    assert "(now 0.5)" in message


def test_two_stores_and_a_validation_part(store, capsys, tmp_path):
    other = tmp_path / "other"
    synth = ["synth", str(other), "--patients", "3", "--records", "1", "--seed", "5", "--into-store"]
    assert main(synth) == 0
    command = ["pretrain", str(store), "--also", str(other), "--store-weights", "1", "2"]
    command += ["--lead-mask-prob", "0.25", "--validation-fraction", "0.2", "--validate-every", "2"]
    command += [str(tmp_path / "run"), *TINY, "--objective", "w2v"]
    assert main(command) == 0
    assert "validation_loss" in capsys.readouterr().out
    told = json.loads((tmp_path / "run/config.json").read_text())
    assert [one["path"] for one in told["stores"]] == [str(store), str(other)]
    assert told["config"]["store_weights"] == [1, 2]
    assert told["config"]["model"]["lead_mask_prob"] == 0.25
    points = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [point["step"] for point in points if "validation_local" in point] == [2, 4, 6]
    assert "RUN" in error_of(capsys, "pretrain", store, "--also", other)


def test_the_objective_comes_first_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    places = [text.index(f"--{name} ") for name in ("objective", "accumulation", "max-steps", "batch-pairs")]
    assert places == sorted(places)


def test_commands_do_nothing_twice(store, capsys):
    records = store.parent / "records"
    again = ["synth", str(records), "--patients", "2", "--records", "2", "--seconds", "3"]
    assert main(again) == 0
    assert main(["prepare", str(records), str(store)]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2


def test_synthetic_records_go_into_a_store(capsys, tmp_path):
    command = ["synth", str(tmp_path / "store"), "--patients", "2", "--records", "1", "--seconds", "2"]
    assert main([*command, "--into-store", "--workers", "2"]) == 0
    assert main([*command, "--into-store"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 1
    assert main(["inspect", str(tmp_path / "store")]) == 0
    assert "synthetic" in capsys.readouterr().out


def test_module_tells_errors_in_one_line(tmp_path):
    child = run_process("pretrain", tmp_path / "none", tmp_path / "run")
    assert child.returncode == 2
    assert child.stderr.startswith("ecgfast: error: ")
    assert child.stderr.count("\n") == 1


@pytest.mark.parametrize("variable", ["ECGFAST_CPU_ISA", "ECGFAST_OPS"])
def test_bad_environment_is_told_in_one_line(tmp_path, variable):
    environment = os.environ | {variable: "foo"}
    child = run_process("pretrain", tmp_path / "none", tmp_path / "run", env=environment)
    assert child.returncode == 2
    assert child.stderr.startswith(f"ecgfast: error: {variable} must be ")
    assert child.stderr.count("\n") == 1


def test_missing_modules_keep_their_traceback(monkeypatch):
    def show_config():
        import no_such_module  # noqa: F401

    monkeypatch.setattr("ecgfast.commands.show_config.show_config", show_config)
    with pytest.raises(ModuleNotFoundError):
        main(["show-config"])


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("command", "code"),
    [("show-config", 128 + signal.SIGPIPE), ("--help", 0), ("show-config --help", None)],
)
def test_reader_that_leaves_ends_the_command_quietly(command, code, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = run_process(*command.split(), stdout=writer, env={"PYTHONUNBUFFERED": unbuffered})
    finally:
        os.close(writer)
    assert ended.stderr == ""
    # tyro's help meets the broken pipe itself or leaves it in the buffer
    assert ended.returncode in ((0, 128 + signal.SIGPIPE) if code is None else (code,))


def test_error_after_output_that_nobody_reads(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        program = (
            "import sys; from ecgfast.cli import main; print('lost'); sys.exit(main(['inspect', 'absent']))"
        )
        command, env = [sys.executable, "-c", program], os.environ | {"PYTHONUNBUFFERED": ""}
        ended = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env
        )
    finally:
        os.close(writer)
    assert ended.returncode == 2
    assert ended.stderr.startswith("ecgfast: error: ")
    assert ended.stderr.count("\n") == 1


def test_closed_output_is_no_error():
    command = [sys.executable, "-m", "ecgfast", "show-config"]
    ended = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_other_broken_pipes_are_errors(monkeypatch, capsys):
    def show_config():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ecgfast.commands.show_config.show_config", show_config)
    assert "Broken pipe" in error_of(capsys, "show-config")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_saves_and_exits(store, tmp_path, signum, code):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ecgfast", "pretrain", str(store), str(run), *TINY]
    command += ["--max-steps", "1000000", "--epochs", "1000000", "--checkpoint-every", "1000000"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one_thread())
    try:
        wait_for(lambda: read_metrics(run / "metrics.jsonl"), child)
        child.send_signal(signum)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == code
    assert "stopped and saved after step" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (run / "checkpoint/state.pt").exists()


def one_thread():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for(condition, child, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_values_with_brackets_and_quotes_are_shown_whole():
    from ecgfast._parsing import _words

    assert _words("['a', 'b']") == ["a", "b"]
    assert _words("['a]") == ["['a]"]
    assert _words("'a' b'") == "'a' b'"
