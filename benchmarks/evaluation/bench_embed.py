"""Times the embedding of a store: from its files to a mean over tokens, one row a recording.

    python -m benchmarks.evaluation.bench_embed FOLDER --preset paper --json out.json

Variants: ``official`` (the official encoder, eager), ``tuned_compiled`` (the tuned ops and our transformer
under torch.compile) and ``tuned_frozen`` (the same with weights as constants, packed by Inductor), each over
float batches that lie in memory; and ``ecgfast``, which reads the store's files, by number of leads. All have
the same weights, run in the same process in turn (A B C A B C ...), and must agree.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.evaluation.official_encoder import OfficialEncoder
from benchmarks.training.variants import ops_of
from ecgfast.benchmarking import machine
from ecgfast.data import SegmentLoader, Store, Windows, synthetic_store
from ecgfast.embedding import embed_store
from ecgfast.nn import Encoder, mean_tokens
from ecgfast.training import PRESETS

VARIANTS = ("official", "tuned_compiled", "tuned_frozen", "ecgfast", "ecgfast_2_leads", "ecgfast_bf16")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_SECONDS = 5
_AGREES = 2e-3  # greatest difference of an embedding's numbers, which are about 1


class Work:
    """A store, an encoder, and what each variant makes of them: float32 [n, E]."""

    def __init__(self, folder: Path, preset: str, recordings: int, batch: int) -> None:
        path = folder / f"store-{recordings}"
        synthetic_store(path, patients=recordings, records=1, seconds=_SECONDS, seed=0, progress=False)
        self.store, self.batch = Store(path), batch
        torch.manual_seed(0)
        self.encoder = Encoder(PRESETS[preset]().model.encoder).eval()
        self.official = OfficialEncoder(self.encoder).eval()
        loader = SegmentLoader(Windows(self.store, batch), dtype="float32")
        self.batches = [one.signal.clone() for one in loader]
        self.compiled: dict[str, Callable[[Tensor], Tensor]] = {}

    def variant(self, name: str) -> Callable[[], np.ndarray]:
        if name == "official":
            return lambda: self._over_batches(self.official)
        if name.startswith("tuned"):
            return lambda: self._tuned(name)
        leads = ("I", "II") if name.endswith("2_leads") else None
        precision = "bf16" if name.endswith("bf16") else "fp32"
        return lambda: embed_store(self.store, self.encoder, leads=leads, precision=precision, device="cpu")

    @torch.inference_mode()
    def _over_batches(self, model: Callable[[Tensor], Tensor]) -> np.ndarray:
        return np.concatenate([mean_tokens(model(batch), None).numpy() for batch in self.batches])

    def _tuned(self, name: str) -> np.ndarray:
        import torch._inductor.config as inductor

        def tokens(signal: Tensor) -> Tensor:
            # The tuned stem takes a mask; here it is all true, and costs next to nothing.
            keep = torch.ones(signal.shape[:2], dtype=torch.bool)
            return self.encoder(signal, keep=keep).tokens

        frozen = name == "tuned_frozen"
        with ops_of("tuned"), inductor.patch(freezing=frozen), torch.no_grad():
            if name not in self.compiled:
                torch._dynamo.reset()
                self.compiled[name] = torch.compile(tokens, dynamic=False)
            return np.concatenate(
                [mean_tokens(self.compiled[name](batch), None).numpy() for batch in self.batches]
            )


def measure(
    work: Work,
    variants: list[str],
    rounds: int,
    clock: str,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Medians of turns of all variants, and how far each is from the official embeddings."""
    taken: dict[str, list[float]] = {}
    apart: dict[str, float | None] = {}
    result: dict[str, Any] = {
        "hardware": machine.hardware("cpu"),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "torch": torch.__version__,
        "commit": machine.commit(),
        "recordings": len(work.store),
        "batch": work.batch,
        "parameters": sum(p.numel() for p in work.encoder.parameters()),
        "rows": [],
    }
    want = work.variant("official")()
    for name, seconds, got in _turns(work, variants, rounds, CLOCKS[clock]):
        if name not in taken:  # its first call, which compiles
            taken[name] = []
            apart[name] = None if "2_leads" in name else float(np.abs(got - want).max())
            if "bf16" not in name and apart[name] is not None and apart[name] > _AGREES:
                raise SystemExit(f"{name} differs from the official embeddings by {apart[name]:.2g}")
            continue
        taken[name].append(seconds)
        result["rows"] = [
            {
                "variant": name,
                "seconds": round(statistics.median(times), 3),
                "per_second": round(len(work.store) / statistics.median(times), 2),
                "turns": len(times),
                "apart": apart[name],
            }
            for name, times in taken.items()
            if times
        ]
        keep(result)
    return result


def _turns(
    work: Work, variants: list[str], rounds: int, clock: Callable[[], float]
) -> Iterator[tuple[str, float, np.ndarray]]:
    called = {name: work.variant(name) for name in variants}
    for _ in range(rounds + 1):
        for name, call in called.items():
            start = clock()
            got = call()
            yield name, clock() - start, got


def markdown(result: dict[str, Any]) -> str:
    """The result as a table, with ratios to the official variant and to the best compiled one."""
    times = {row["variant"]: row["seconds"] for row in result["rows"]}
    tuned = [seconds for name, seconds in times.items() if name.startswith("tuned")]
    lines = [
        f"# Embedding a store on {result['hardware']}",
        "",
        f"torch {result['torch']}, {result['threads']} threads, {result['clock']} clock, "
        f"commit {result['commit']}; {result['recordings']} recordings of {_SECONDS} s, "
        f"{result['parameters'] / 1e6:.1f} M parameters, batches of {result['batch']} (ecgfast: its own)",
        "",
        "| variant | s | recordings/s | vs official | vs best compiled | largest difference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        seconds = row["seconds"]
        ratios = [
            f"{other / seconds:.2f}x" if other else "–"
            for other in (times.get("official"), min(tuned, default=0))
        ]
        apart = "–" if row["apart"] is None else f"{row['apart']:.1e}"
        cells = (row["variant"], f"{seconds:.2f}", f"{row['per_second']:.1f}", *ratios, apart)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time the embedding of a store.")
    parser.add_argument("folder", type=Path, help="for the store that is made; it stays there")
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--recordings", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="of the other variants")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of a machine that others use, with one thread"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    args.folder.mkdir(parents=True, exist_ok=True)

    def keep(result: dict[str, Any]) -> None:
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=1) + "\n")

    work = Work(args.folder, args.preset, args.recordings, args.batch)
    result = measure(work, args.variants, args.rounds, args.clock, keep)
    print(markdown(result), end="")
    if args.markdown is not None:
        args.markdown.write_text(markdown(result))


if __name__ == "__main__":
    main()
