"""Times the pre-training step of a preset: forward, backward, AdamW, on one batch that stays on the device.

    python -m benchmarks.training.step --device cuda --preset paper --json out.json

Variants: ``official`` (its ops, eager), ``tuned_compiled`` (the tuned ops, the model under torch.compile),
``ecgfast``, ``ecgfast_graph`` (the step as one CUDA graph) and ``ecgfast_compiled``. All share the
transformer (scaled_dot_product_attention), bf16 autocast and the fused AdamW. The official variant draws its
masks on the host, with as many masked tokens as the fewest in the batch; the others mask 62 of each segment.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.variants import ops_of
from ecgfast.benchmarking import machine
from ecgfast.benchmarking.report import variant_of
from ecgfast.nn import EncoderConfig
from ecgfast.objectives import W2VCMSC, Views, W2VCMSCConfig
from ecgfast.ops import make_rng
from ecgfast.training import PRESETS, PretrainConfig
from ecgfast.training.optim import make_optimizer

# In the order in which they are prepared: what is worth most first, for where time runs out.
VARIANTS = ("ecgfast", "official", "ecgfast_graph", "ecgfast_compiled", "tuned_compiled")
_MASKED = 62


def tiny() -> PretrainConfig:
    """A step of milliseconds on a CPU, to see that everything runs."""
    encoder = EncoderConfig(
        stem_channels=16, width=32, layers=1, heads=2, ffn=32, conv_pos=8, conv_pos_groups=2
    )
    model = W2VCMSCConfig(encoder=encoder, final_dim=16, entries=8, latent_dim=16, n_negatives=5)
    return PretrainConfig(model=model, batch_pairs=2, segment_samples=1600)


class Step:
    """One variant's model, optimiser and batch; a call is an update."""

    def __init__(self, variant: str, config: PretrainConfig, device: str, *, bf16: bool = True) -> None:
        torch.manual_seed(0)
        self.bf16 = bf16
        self.ops, _, mode = variant.partition("_")
        n_masked = None if variant == "official" else _MASKED
        self.model = W2VCMSC(dataclasses.replace(config.model, n_masked=n_masked)).to(device).train()
        self.forward = torch.compile(self.model, dynamic=False) if mode == "compiled" else self.model
        self.optimizer = make_optimizer(self.model.parameters(), config.optim)
        self.rng = make_rng(0, 0, device)
        b, leads = 2 * config.batch_pairs, config.model.encoder.n_leads
        g = torch.Generator().manual_seed(0)
        signal = torch.randint(-1000, 1000, (b, leads, config.segment_samples), generator=g)
        ids = torch.arange(b, device=device)
        self.views = Views(signal.to(device, torch.int16), ids % (b // 2), ids)
        self.device = device
        self.graph = self._captured() if mode == "graph" else None

    def _captured(self) -> torch.cuda.CUDAGraph:
        if self.device != "cuda":
            raise RuntimeError("a graph needs a CUDA device")
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._update()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update()
        return graph

    def __call__(self) -> None:
        if self.graph is None:
            self._update()
        else:
            self.graph.replay()

    def _update(self) -> None:
        with ops_of(self.ops), torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            losses = self.forward(self.views, self.rng)
        (losses.total / losses.size).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.rng[1:].add_(1)

    def peak_mib(self) -> float | None:
        """Memory of a step at its highest, over weights, moments and batch."""
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)

    def seconds(self, steps: int) -> float:
        """Mean time of some steps that follow each other."""
        return mean_seconds(self, steps, self.device)


def mean_seconds(step: Callable[[], None], steps: int, device: str) -> float:
    """Mean time of some calls that follow each other."""
    machine.synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    machine.synchronize(device)
    return (time.perf_counter() - start) / steps


def measure(
    config: PretrainConfig,
    device: str,
    variants: list[str],
    rounds: int,
    steps: int,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Medians of turns of all variants (A B C A B C ...), each of some steps.

    ``keep`` is called with the result so far after each variant's preparation, with a turn of its own, and
    after each round.
    """
    built: dict[str, tuple[Step, float | None]] = {}
    taken: dict[str, list[float]] = {}
    result: dict[str, Any] = {
        "device": device,
        "hardware": machine.hardware(device),
        "torch": torch.__version__,
        "commit": machine.commit(),
        "segments": 2 * config.batch_pairs,
        "parameters": sum(p.numel() for p in W2VCMSC(config.model).parameters()),
        "rows": [],
        "failed": [],
    }

    def tell() -> None:
        result["rows"] = [_row(variant, *built[variant], taken[variant]) for variant in built]
        keep(result)

    for variant in variants:
        try:
            step = Step(variant, config, device)
            for _ in range(3):
                step()
            built[variant] = step, step.peak_mib()
        except RuntimeError as error:
            result["failed"].append({"variant": variant, "error": str(error).split("\n")[0][:200]})
        else:
            taken[variant] = [step.seconds(steps)]
        tell()
    for i in range(rounds):
        for variant, (step, _) in built.items():
            turn = step.seconds(steps)
            taken[variant] = [turn] if i == 0 else [*taken[variant], turn]
        tell()
    return result


def _row(variant: str, step: Step, peak: float | None, taken: list[float]) -> dict[str, Any]:
    seconds = statistics.median(taken)
    row = {"variant": variant, "ms": round(seconds * 1e3, 3), "peak_mib": peak, "turns": len(taken)}
    return row | {"segments_per_second": round(len(step.views.signal) / seconds, 1)}


def markdown(result: dict[str, Any]) -> str:
    """The result as a table, with ratios to the official variant."""
    official = next((row["ms"] for row in result["rows"] if variant_of(row) == "official"), None)
    size = f"{result['segments']} segments, {result['parameters'] / 1e6:.1f} M parameters"
    lines = [
        f"## Training step: {size}, bf16",
        "",
        "| variant | ms | segments/s | vs official | MiB over weights and moments |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        ratio = f"{official / row['ms']:.2f}x" if official else "–"
        peak = "–" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
        speed = f"{row['segments_per_second']:,.0f}"
        lines.append(f"| {variant_of(row)} | {row['ms']:.2f} | {speed} | {ratio} | {peak} |")
    lines += [f"\nNot measured: {variant_of(failure)}: {failure['error']}" for failure in result["failed"]]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time the pre-training step.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=(*PRESETS, "tiny"), default="paper")
    # --forms is its old name.
    parser.add_argument("--variants", "--forms", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    config = tiny() if args.preset == "tiny" else PRESETS[args.preset]()

    def keep(result: dict[str, Any]) -> None:
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=1) + "\n")

    result = measure(config, args.device, args.variants, args.rounds, args.steps, keep)
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
