"""`ecgfast bench`: the ops against other variants of them."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ecgfast.commands.arguments import Argument, File


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
