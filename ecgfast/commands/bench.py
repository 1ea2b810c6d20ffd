"""`ecgfast bench`: the ops against other variants of them."""

import sys
from typing import Annotated, Literal

from ecgfast.commands.arguments import Argument, File, Folder, value


def bench(
    op: Argument[str],
    device: Literal["cpu", "cuda"] = "cpu",
    json: File = None,
    json_dir: Folder = None,
    markdown: File = None,
    sizes: Annotated[dict[str, int] | None, value("NAME INT ...")] = None,
    dtypes: Annotated[tuple[str, ...], value("DTYPE ...")] = (),
    passes: Annotated[tuple[str, ...], value("PASS ...")] = (),
    variants: Annotated[tuple[str, ...], value("VARIANT ...")] = (),
    pages: Annotated[tuple[str, ...], value("PAGES ...")] = (),
    budget: float = 10.0,
    quick: bool = False,
) -> None:
    """Time an op against its official and tuned PyTorch variants, in one run.

    Args:
        op: patch_embed, gumbel_quantize, local_contrastive, global_contrastive, nt_xent, lead_pairs,
            positional_conv, gather_segments, lead_mask, span_mask, masks (both of them), or all.
        device: Where the ops run.
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
