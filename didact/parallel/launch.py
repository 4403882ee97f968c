"""The launcher's (`torchrun`, `accelerate launch`) settings, read from the environment of its processes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

from didact.errors import UserError

PLUGINS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
OFF = ("", "0", "no", "false", "none")
PRECISIONS = {"bf16": "bfloat16"}
NAMED = ("ddp", "fsdp2", "hsdp")


def world(environ: Mapping[str, str] | None = None) -> int:
    """Return the number of processes: 1 without a launcher."""
    return _number("WORLD_SIZE", 1, os.environ if environ is None else environ)


def on_node(environ: Mapping[str, str] | None = None) -> int:
    """Return the number of processes on this node."""
    env = os.environ if environ is None else environ
    return _number("LOCAL_WORLD_SIZE", world(env), env)


def sizes(text: str, option: str = "layout") -> tuple[int, int, int]:
    """Parse a layout such as `2x1x2` into stages, replicas and tensor-parallel parts.

    Raises:
        UserError: it is not a layout.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match or not all(map(int, match.groups())):
        names = f"{', '.join(NAMED)} or " if option == "parallel" else ""
        raise UserError(
            f"{option} = {text}: must be {names}PPxDPxTP (stages x replicas x parts of a layer): 2x1x2 for 4 processes"
        )
    pp, dp, tp = map(int, match.groups())
    return pp, dp, tp


def parallel(text: str) -> tuple[int, int, int] | None:
    """Parse the layout in an option `parallel`; None if it is a name such as ddp.

    Raises:
        UserError: it is neither.
    """
    return None if text in NAMED else sizes(text, "parallel")


def several(kind: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuse an option `parallel` that does not fit the number of processes.

    Raises:
        UserError: there is no launcher, or it started another number of processes than the layout needs.
    """
    layout, started = parallel(kind), world(environ)
    count = math.prod(layout) if layout else 8
    if kind != "ddp" and started == 1:
        raise UserError(
            f"parallel = {kind}: needs several processes: torchrun --nproc_per_node {max(count, 2)} -m didact run "
            f"... --parallel {kind}"
        )
    if layout and count != started:
        raise UserError(f"parallel = {kind}: needs {count} processes, but {started} were started: start {count}")


def check(precision: str | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Refuse settings of a launcher's configuration that training would ignore.

    Args:
        precision: of the training, if known.
        environ: of the process.

    Raises:
        UserError: the configuration shards or compiles the model, or names another precision.
    """
    env = os.environ if environ is None else environ
    if plugin := next((title for name, title in PLUGINS.items() if env.get(name, "").lower() not in OFF), None):
        raise UserError(
            f"accelerate's configuration asks for {plugin}, which didact ignores: launch with torchrun or "
            "`accelerate launch --multi_gpu`, and give --parallel fsdp2 where memory is short"
        )
    if env.get("ACCELERATE_DYNAMO_BACKEND", "").lower() not in OFF:
        raise UserError(
            "accelerate's configuration asks for torch.compile, which didact ignores: remove dynamo_backend from it"
        )
    mixed = env.get("ACCELERATE_MIXED_PRECISION", "").lower()
    supported = PRECISIONS.get(mixed)
    if mixed not in OFF and not (supported and precision in (None, supported)):
        advice = supported or "bfloat16 or float32"
        raise UserError(f"accelerate's configuration asks for {mixed}, which didact ignores: give --precision {advice}")


def alone(verb: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuse several processes for a verb that each would run alone, while their trainings wait for each other.

    Raises:
        UserError: a launcher started several.
    """
    if (count := world(environ)) > 1:
        raise UserError(f"{verb} runs in one process, not {count}: start it without torchrun or accelerate launch")


def device(kind: str, count: int, environ: Mapping[str, str] | None = None) -> tuple[str, int | None]:
    """Return this process's device `(kind, index)` of `count` on its node; no index without a launcher.

    Raises:
        UserError: this node has more processes than devices.
    """
    env = os.environ if environ is None else environ
    if world(env) == 1:
        return kind, None
    local = _number("LOCAL_RANK", 0, env)
    if local >= count:
        raise UserError(
            f"process {local + 1} of this node has no {kind} device, there {'is' if count == 1 else 'are'} {count}: "
            f"start {count} processes a node, or give --device cpu"
        )
    return kind, local


def _number(name: str, default: int, env: Mapping[str, str]) -> int:
    try:
        return int(env.get(name, default))
    except ValueError:
        raise UserError(f"the environment variable {name} is '{env[name]}': must be a whole number") from None
