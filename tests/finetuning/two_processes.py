"""Runs of fine-tuning one after another, in one of several processes: `python two_processes.py STAGES.json`.

The processes are started once for all runs, which costs most of the time.
"""

import json
import os
import sys
from pathlib import Path

from ecgfast.finetuning import finetune, read_config

if __name__ == "__main__":
    for stage in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(stage["port"])
        config = read_config(Path(stage["config"]))
        finetune(Path(stage["store"]), stage["model"], Path(stage["run"]), config, progress=False)
