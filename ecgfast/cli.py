"""The command line: `ecgfast COMMAND ...`.

Every command is a function whose signature and docstring tyro turns into options and help. What a
command needs is imported when it runs, so `ecgfast --help` answers at once.
"""

import argparse
import contextlib
import functools
import inspect as inspect_
import itertools
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from ecgfast._outputs import PICTURES, check_output, check_space, write_whole
from ecgfast._parsing import parse
from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError

Argument = tyro.conf.Positional
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]


def synth(
    out: Annotated[Path, tyro.conf.arg(metavar="OUT"), Argument],
    patients: int = 100,
    records: int = 2,
    seconds: float = 10.0,
    seed: int = 0,
    workers: int = 0,
    into_store: bool = False,
) -> None:
    """Write synthetic 12-lead records (WFDB, 500 Hz), for trying things out without data.

    Args:
        out: New or empty folder for the records (.hea and .dat files) or the store; left alone if
            it holds these very records.
        patients: Number of patients, each with a heart of their own.
        records: Recordings of each patient.
        seconds: Length of a recording in seconds.
        seed: Same seed, same records.
        workers: Threads that make records; 0: one per core.
        into_store: Write a store, as `ecgfast prepare` does, and no files of single records.
    """
    from ecgfast.data import synthetic_store, write_synthetic

    if not out.exists():  # else it may hold them already
        check_space("patients", patients * records * seconds * 500 * 12 * 2, out)
    written = (synthetic_store if into_store else write_synthetic)(
        out,
        patients=patients,
        records=records,
        seconds=seconds,
        seed=seed,
        workers=workers or os.cpu_count() or 1,
    )
    what = f"{_count(patients * records, 'record')} of {_count(patients, 'patient')}, {seconds:g} s each"
    print(f"{out}: {what}" if written else f"{out}: nothing to do, it holds {what}")


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def prepare(
    source: Annotated[Path, tyro.conf.arg(metavar="SOURCE"), Argument],
    store: Annotated[Path, tyro.conf.arg(metavar="STORE"), Argument],
    format: str = "auto",
    unit: str | None = None,
    rename: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = (),
    leads: str | None = None,
    workers: int = 0,
    bandpass: tuple[float, float] | None = None,
    notch: float | None = None,
    baseline: bool = False,
    derive_leads: bool = False,
    longest_gap: float = 0.0,
) -> None:
    """Import a folder of records into a store: int16 microvolts at 500 Hz, leads by name.

    Args:
        source: Folder of WFDB records at any depth, PTB-XL, MIMIC-IV-ECG, CODE-15, ECG-ID or .npy files.
        store: Folder to write; taken up again if an earlier import of SOURCE was stopped.
        format: ptbxl, ptbxl100, mimic, code15, ecgid, wfdb or npy; auto: the first that SOURCE looks like.
        unit: V, mV, uV or nV, where SOURCE tells no unit (npy, code15); its usual one otherwise.
        rename: NAME=LEAD ...: signals of these names are these leads, such as MLII=II.
        leads: Leads that the signals of each record are, in its order, such as I,II,-,V1: for signals with
            other or no names; - is none.
        workers: Processes that read records; 0: one per core.
        bandpass: Lower and upper cut-off in Hz of a zero-phase Butterworth filter; 0 as the lower: low-pass.
        notch: Mains frequency in Hz to take out.
        baseline: Subtract the baseline that running medians of 0.2 and 0.6 s find.
        derive_leads: Compute absent III, aVR, aVL and aVF from I and II.
        longest_gap: Seconds of invalid samples to bridge by a line.
    """
    from ecgfast.data import Preprocessing
    from ecgfast.data import prepare as run
    from ecgfast.leads import LeadNames

    names = LeadNames.of(_pairs(rename), leads.split(",") if leads is not None else None)
    how = Preprocessing(bandpass, notch, baseline, derive_leads, longest_gap, names)
    workers = workers or os.cpu_count() or 1
    print(run(source, store, format=format, unit=unit, preprocessing=how, workers=workers))


def _pairs(texts: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """The pairs of `--rename NAME=LEAD ...`, in one option or several."""
    pairs: dict[str, str] = {}
    for text in itertools.chain.from_iterable(texts):
        name, equals, lead = text.rpartition("=")
        if not equals or not name.strip():
            raise EcgfastError(f"rename: must be NAME=LEAD, such as MLII=II, got {text!r}")
        if pairs.setdefault(name, lead) != lead:
            raise EcgfastError(f"rename: {name!r} must become one lead, got {pairs[name]} and {lead}")
    return pairs


def inspect(
    store: Annotated[Path, tyro.conf.arg(metavar="STORE"), Argument],
    record: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None,
    plot: File = None,
    start: float = 0.0,
    rhythm: Annotated[str | None, tyro.conf.arg(metavar="LEAD", help_behavior_hint="")] = None,
    json: File = None,
    verify: bool = False,
) -> None:
    """Show what a store holds, or draw one of its recordings on ECG paper.

    Args:
        store: Folder written by `ecgfast prepare`.
        record: Id of a recording: show it alone.
        plot: File for a page of the recording, PNG, PDF or SVG by its name: its leads, a rhythm strip, heart
            rate and labels, 25 mm/s, 10 mm/mV.
        start: Second at which the page begins.
        rhythm: Lead of the rhythm strip; by default II, or I or V1, or the first that is there.
        json: File for the figures, for programs.
        verify: Read every signal and compare it with its checksum.
    """
    from ecgfast.data import Store
    from ecgfast.data.store.inspection import describe_recording, find_recording, summarize

    if plot is not None and record is None:
        raise EcgfastError("plot: want --record ID beside it")
    if plot is not None:
        check_output("plot", plot, PICTURES)
    if json is not None:
        check_output("json", json)
    opened = Store(store)
    if verify:
        opened.verify()
    if record is None:
        found = summarize(opened)
        table = str(found)
        figures = found.as_dict()
    else:
        at = find_recording(opened, record)
        figures = describe_recording(opened, at)
        table = "\n".join(f"{name:<12} {value}" for name, value in figures.items())
    if plot is not None:
        from ecgfast.plotting import plot_recording

        title = f"{figures['record']}   {figures['patient']}"
        plot_recording(
            opened.signal(at),
            opened.index["leads"][at].as_py(),
            plot,
            rate=opened.rate,
            start=start,
            rhythm=rhythm,
            title=title,
            labels=opened.index["labels"][at].as_py(),
        )
    if json is not None:
        text = dumps(figures, indent=2) + "\n"
        write_whole(json, lambda path: path.write_text(text, encoding="utf-8"))
    print(table)  # after all that may be refused
    if plot is not None:
        print(plot)
    if verify:
        print("every signal has its checksum")


def _pretrain_command(args: Sequence[str]) -> Callable[..., None]:
    """The command with the fields of the preset that `args` names as its defaults."""
    from ecgfast import training

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--preset", nargs="?")
    name = scan.parse_known_args(args)[0].preset
    default = training.PRESETS.get(name, training.PRESETS["small"])()

    def pretrain(
        store: Annotated[Path, tyro.conf.arg(metavar="STORE"), Argument],
        run: Annotated[Path, tyro.conf.arg(metavar="RUN"), Argument],
        preset: Literal["demo", "small", "paper"] = "small",
        init: Path | None = None,
        config: Annotated[training.PretrainConfig, tyro.conf.arg(name="")] = default,
    ) -> None:
        """Pre-train an encoder on a store with W2V + CMSC + RLM.

        The same command takes a stopped run up again; with a larger max-steps or epochs, a finished one
        too. Several processes: torchrun -m ecgfast pretrain ...

        Args:
            store: Folder written by `ecgfast prepare`.
            run: Folder for the model, checkpoints, metrics and curves.
            preset: Where the settings below start from: demo takes minutes on two CPU cores,
                small hours on a GPU, paper is the paper's. Their values are shown as defaults.
            init: Model folder to start from (ecgfast export, convert, or a run's model).
            config: Settings.
        """
        is_main = os.environ.get("RANK", "0") == "0"
        trained = training.pretrain(store, run, config, init=init, progress=is_main)
        if is_main:
            if not trained:
                print(f"{run}: nothing to do, the run is finished")
            print(training.summarize_run(run))

    return pretrain


def export(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN"), Argument],
    out: Annotated[Path, tyro.conf.arg(metavar="OUT"), Argument],
) -> None:
    """Write the model of a run's last checkpoint, also while it trains.

    Args:
        run: Folder of `ecgfast pretrain`.
        out: New or empty folder for model.safetensors and config.json.
    """
    from ecgfast import training

    step = training.export(run, out)
    print(f"{out}: model.safetensors, config.json of step {step}")


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


def bench(
    op: Annotated[str, tyro.conf.arg(metavar="OP"), Argument],
    device: str = "cpu",
    json: File = None,
    json_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
    markdown: File = None,
    sizes: Annotated[
        dict[str, int] | None, tyro.conf.arg(metavar="NAME INT ...", help_behavior_hint="")
    ] = None,
    dtypes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DTYPE ...", help_behavior_hint="")] = (),
    passes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PASS ...", help_behavior_hint="")] = (),
    variants: Annotated[tuple[str, ...], tyro.conf.arg(metavar="VARIANT ...", help_behavior_hint="")] = (),
    pages: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PAGES ...", help_behavior_hint="")] = (),
    budget: float = 10.0,
    quick: bool = False,
) -> None:
    """Time an op against the official form and tuned PyTorch, in one interleaved run.

    Args:
        op: patch_embed, gumbel_quantize, local_contrastive, global_contrastive, positional_conv,
            gather_segments, lead_mask, span_mask, masks (both of them), or all.
        device: cpu or cuda.
        json: File for the result; its folder is made if it is absent, as for the others.
        json_dir: Folder for a result per op (for all).
        markdown: File for the table; it is printed as well.
        sizes: Sizes in place of the defaults, such as B 16 T 1000.
        dtypes: float32, bfloat16; all by default.
        passes: forward, forward_backward; both by default.
        variants: official, tuned_eager, tuned_compiled, ecgfast; all by default.
        pages: plain (the C allocator as it is) or kept (it keeps its pages); both by default.
        budget: Seconds for each dtype, pass and pages mode.
        quick: Tiny sizes and two rounds: see that it runs.
    """
    from ecgfast import benchmarking

    results = benchmarking.bench(
        op,
        device=device,
        json_file=json,
        json_dir=json_dir,
        markdown_file=markdown,
        sizes=sizes,
        dtypes=dtypes,
        passes=passes,
        variants=variants,
        pages=pages,
        budget_s=budget,
        quick=quick,
        log=lambda line: print(line, file=sys.stderr),
    )
    print(benchmarking.markdown(results), end="")


def show_config() -> None:
    """Print how this installation was built and what it runs on."""
    import ecgfast

    ecgfast.show_config()


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], Callable[..., None]]]] = {
    "synth": ("write synthetic 12-lead records", lambda args: synth),
    "prepare": ("import a folder of records into a store", lambda args: prepare),
    "inspect": ("show what a store holds, or draw a recording", lambda args: inspect),
    "pretrain": ("pre-train an encoder on a store", _pretrain_command),
    "convert": ("turn an official checkpoint into a model folder", lambda args: convert),
    "export": ("write the model of a run that is not finished", lambda args: export),
    "show-config": ("print how this installation was built", lambda args: show_config),
    "bench": ("time the ops against other forms of them", lambda args: bench),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if found := re.match(r"unrecognized arguments: (--?[^\s=]+)", message):
            message += did_you_mean(found[1], ["--version", "--help"])
        raise EcgfastError(f"{message} ({self.prog} --help lists the options)")


def _top_parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<12} {text}" for name, (text, _) in COMMANDS.items()]
    parser = _Parser(
        prog="ecgfast",
        description="Self-supervised learning on electrocardiograms.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`ecgfast COMMAND --help` shows its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER)
    return parser


def _parse_and_run(name: str, args: Sequence[str]) -> None:
    function = COMMANDS[name][1](args)

    # Parsing alone has its errors rewritten: the command runs after it.
    @functools.wraps(function)
    def bind(*positional: Any, **keywords: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **keywords)

    # tyro keeps the line breaks of a description, wherever its own fall.
    function.__doc__ = re.sub(r"(?<=\S)\n {8,}(?=\S)", " ", inspect_.cleandoc(function.__doc__ or ""))
    parse(bind, f"ecgfast {name}", args)()


def _run(args: Sequence[str]) -> None:
    parser = _top_parser()
    options = parser.parse_args(args)
    if options.version:
        if options.command is not None:
            parser.error(f"unrecognized arguments: {options.command}")
        import ecgfast

        print(f"ecgfast {ecgfast.__version__}")
    elif options.command is None:
        parser.error("no command given")
    elif options.command not in COMMANDS:
        near = did_you_mean(options.command, COMMANDS)
        parser.error(f"COMMAND: got {options.command!r}; one of {', '.join(COMMANDS)} is taken{near}")
    else:
        _parse_and_run(options.command, options.arguments)


def _reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as in `ecgfast ... | head -1`."""
    if sys.__stdout__ is None:
        return False
    poll = select.poll()
    poll.register(sys.__stdout__, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _write_what_can_be() -> None:
    """Make stdout show characters that its encoding lacks as escapes, as stderr does, rather than fail."""
    if sys.stdout is not None and (sys.stdout.encoding or "").casefold().replace("-", "") != "utf8":
        with contextlib.suppress(AttributeError):  # some other file of the caller's
            sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:  # it is where the process was started with stdout closed
        sys.stdout.flush()


def _drop_unwritten() -> None:
    """Drop what was printed and can't be written, lest Python complain of it when it exits."""
    try:
        _flush()
    except OSError:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
    text = " ".join(str(message).split())
    if not issubclass(category, UserWarning):
        text = f"{category.__name__}: {text}"
    print(f"ecgfast: warning: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code.

    0: done; 2: bad input, told in one line on stderr; 128 + the signal: stopped by it, or by the
    end of the pipe it printed to.
    """
    _write_what_can_be()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(sys.argv[1:] if argv is None else argv)
        _flush()
    except (EcgfastError, ImportError, OSError) as error:
        # Python's own ImportErrors name a module; ecgfast's tell a bad setting or installation.
        if isinstance(error, ImportError) and error.name is not None:
            raise
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 128 + signal.SIGPIPE
        print(f"ecgfast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"ecgfast: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(stop, "signum", signal.SIGINT)
    finally:
        _drop_unwritten()
    return 0
