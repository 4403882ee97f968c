"""One arm in a process of its own: `python -m bench.arm training.sft_trl '{"packing": true}'` prints one JSON line."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings


def main() -> None:
    """Run the named function with the given settings."""
    place, settings = sys.argv[1], json.loads(sys.argv[2])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, _, name = place.partition(".")
    told = getattr(importlib.import_module(f"bench.{module}"), name)(**settings)
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
