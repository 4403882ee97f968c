"""One arm in its own process: `python -m bench.arm training.sft_trl '{"packing": true}'` prints one JSON line."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings


def main() -> None:
    """Run the function with the settings, both from the command line."""
    target, settings = sys.argv[1], json.loads(sys.argv[2])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, _, name = target.partition(".")
    result = getattr(importlib.import_module(f"bench.{module}"), name)(**settings)
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
