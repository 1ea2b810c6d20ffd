"""`ecgfast compare`: evaluations and runs of fine-tuning in one table."""

import json
from pathlib import Path
from typing import Annotated

from ecgfast._outputs import check_output, write_whole
from ecgfast.commands.arguments import Argument, File, value


def compare(
    runs: Argument[tuple[Path, ...]],
    metric: Annotated[str | None, value("NAME")] = None,
    random: bool = True,
    out: File = None,
) -> None:
    """Put evaluations and runs of fine-tuning into one table: scores, differences to the first, settings.

    Evaluations on the same test recordings are compared pair by pair: the differences have p-values.

    Args:
        runs: Folders of `ecgfast evaluate` or `ecgfast finetune`.
        metric: macro_auroc, macro_auprc, macro_f1, challenge, mae, r, r2, rank_1, rank_5, eer,
            tar_at_far_1e_2 or tar_at_far_1e_3; by default the main one of each.
        random: Have the rows of random encoders too.
        out: File for the table (.md) or for programs (.json).
    """
    from ecgfast.assessment import compare as compare_runs

    if out is not None:
        check_output("out", out, ("md", "json"))
    found = compare_runs(runs, metric=metric, random=random)
    text = found.markdown()
    if out is not None:
        is_json = out.suffix.casefold() == ".json"
        content = json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n" if is_json else text
        write_whole(out, lambda path: path.write_text(content, encoding="utf-8"))
    print(text, end="")
