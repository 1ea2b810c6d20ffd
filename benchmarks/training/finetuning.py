"""Times the fine-tuning step beside the pre-training step, on one batch that stays on the device.

    python -m benchmarks.training.finetuning --preset demo --json out.json

Rows: the pre-training step of the preset's objective, then for each part that is frozen the fine-tuning step
with 26 classes, in the variants ``official`` (its ops, eager), ``tuned_compiled`` and ``ecgfast``. All share
the transformer and the fused AdamW. What fine-tuning leaves out (masks, codebook, both losses) should be gone
from its time: the step on all weights may take no longer than pre-training's, the others less.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.step import Step, mean_seconds, tiny
from benchmarks.training.variants import ops_of
from ecgfast.benchmarking import machine
from ecgfast.finetuning.classifier import FREEZES, Classifier, ClassifierConfig, LabelledBatch
from ecgfast.ops import make_rng
from ecgfast.training import PRESETS, PretrainConfig
from ecgfast.training.optim import make_optimizer

VARIANTS = ("ecgfast", "official", "tuned_compiled")
PRETRAINING = "pre-training"
_CLASSES = 26


class FinetuningStep:
    """One variant's classifier, optimiser and batch; a call is an update."""

    def __init__(self, variant: str, freeze: str, config: PretrainConfig, device: str, bf16: bool) -> None:
        torch.manual_seed(0)
        self.ops, _, mode = variant.partition("_")
        encoder = config.model.encoder
        settings = ClassifierConfig(
            encoder=encoder,
            names=tuple(f"class {k}" for k in range(_CLASSES)),
            segment_samples=config.segment_samples,
            freeze=freeze,
        )
        self.model = Classifier(settings).to(device).train()
        self.forward = torch.compile(self.model, dynamic=False) if mode == "compiled" else self.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(trained, config.optim)
        b, generator = 2 * config.batch_pairs, torch.Generator().manual_seed(0)
        shape = (b, encoder.n_leads, config.segment_samples)
        signal = torch.randint(-1000, 1000, shape, generator=generator).to(device, torch.int16)
        targets = (torch.rand(b, _CLASSES, generator=generator) < 0.1).float()
        self.batch = LabelledBatch(signal, targets.to(device))
        self.rng, self.device, self.bf16 = make_rng(0, 0, device), device, bf16

    def __call__(self) -> None:
        with ops_of(self.ops), torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            losses = self.forward(self.batch, self.rng)
        (losses.total / losses.size).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure(
    config: PretrainConfig, device: str, variants: list[str], rounds: int, steps: int, bf16: bool
) -> dict[str, Any]:
    """Medians of turns of all steps (A B C A B C ...), each of some updates."""
    built: dict[tuple[str, str], Callable[[], None]] = {}
    for variant in variants:
        built[PRETRAINING, variant] = Step(variant, config, device, bf16=bf16)
        for freeze in reversed(FREEZES):
            built[freeze, variant] = FinetuningStep(variant, freeze, config, device, bf16)
    for step in built.values():
        for _ in range(2):
            step()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in built}
    for _ in range(rounds):
        for key, step in built.items():
            taken[key].append(mean_seconds(step, steps, device))
    rows = [
        {"step": task, "variant": variant, "ms": round(1e3 * statistics.median(seconds), 3)}
        for (task, variant), seconds in taken.items()
    ]
    return {
        "device": device,
        "hardware": machine.hardware(device),
        "torch": torch.__version__,
        "commit": machine.commit(),
        "precision": "bf16" if bf16 else "fp32",
        "segments": 2 * config.batch_pairs,
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a table, with ratios to the pre-training step and to the official variant."""
    ms = {(row["step"], row["variant"]): row["ms"] for row in result["rows"]}
    lines = [
        f"## Fine-tuning step: {result['segments']} segments, {result['precision']}",
        "",
        "| step | variant | ms | of the pre-training step | official / this |",
        "|---|---|---:|---:|---:|",
    ]
    for (task, variant), value in ms.items():
        name = task if task == PRETRAINING else f"fine-tuning, frozen: {task}"
        share = f"{value / ms[PRETRAINING, variant]:.2f}"
        official = ms.get((task, "official"))
        ratio = f"{official / value:.2f}x" if official else "–"
        lines.append(f"| {name} | {variant} | {value:.2f} | {share} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time the fine-tuning step beside the pre-training step.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=(*PRESETS, "tiny"), default="demo")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="updates in a turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    config = tiny() if args.preset == "tiny" else PRESETS[args.preset]()
    bf16 = args.precision == "bf16"
    result = measure(config, args.device, args.variants, args.rounds, args.steps, bf16)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
