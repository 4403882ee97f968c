"""What a launcher (`torchrun`, `accelerate launch`) asked for, by the environment it leaves to its processes."""

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
    """How many processes there are: 1 without a launcher."""
    return _number("WORLD_SIZE", 1, os.environ if environ is None else environ)


def on_node(environ: Mapping[str, str] | None = None) -> int:
    """How many processes of them this node has."""
    env = os.environ if environ is None else environ
    return _number("LOCAL_WORLD_SIZE", world(env), env)


def sizes(text: str, option: str = "layout") -> tuple[int, int, int]:
    """`2x1x2` as stages, copies and parts.

    Raises:
        UserError: it is no layout.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match or not all(map(int, match.groups())):
        names = f"{', '.join(NAMED)} or " if option == "parallel" else ""
        raise UserError(
            f"{option} = {text}: must be {names}PPxDPxTP, stages by copies by parts of a layer: 2x1x2 for 4 processes"
        )
    pp, dp, tp = map(int, match.groups())
    return pp, dp, tp


def parallel(text: str) -> tuple[int, int, int] | None:
    """The layout that a `parallel` names; None where it is a word.

    Raises:
        UserError: it is neither.
    """
    return None if text in NAMED else sizes(text, "parallel")


def several(said: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuse to lay a model over other processes than there are.

    Raises:
        UserError: there is no launcher, or a layout takes more or fewer than it started.
    """
    layout, started = parallel(said), world(environ)
    count = math.prod(layout) if layout else 8
    if said != "ddp" and started == 1:
        raise UserError(
            f"parallel = {said}: goes with several processes: torchrun --nproc_per_node {max(count, 2)} -m didact run "
            f"... --parallel {said}"
        )
    if layout and count != started:
        raise UserError(f"parallel = {said}: takes {count} processes, and there are {started}: start {count}")


def check(precision: str | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Refuse what a launcher's configuration asks for and training here would not do.

    Args:
        precision: of the training, where it is known.
        environ: of the process.

    Raises:
        UserError: the configuration shards or compiles the model, or names another precision.
    """
    env = os.environ if environ is None else environ
    if plugin := next((title for name, title in PLUGINS.items() if env.get(name, "").lower() not in OFF), None):
        raise UserError(
            f"accelerate's configuration asks for {plugin}, which is not honoured: launch with torchrun or "
            "`accelerate launch --multi_gpu`, and give --parallel fsdp2 where memory is short"
        )
    if env.get("ACCELERATE_DYNAMO_BACKEND", "").lower() not in OFF:
        raise UserError(
            "accelerate's configuration asks for torch.compile, which is not honoured: take dynamo_backend out"
        )
    mixed = env.get("ACCELERATE_MIXED_PRECISION", "").lower()
    supported = PRECISIONS.get(mixed)
    if mixed not in OFF and not (supported and precision in (None, supported)):
        advice = supported or "bfloat16 or float32"
        raise UserError(f"accelerate's configuration asks for {mixed}, which is not honoured: give --precision {advice}")


def alone(verb: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuse a verb that several processes would each do by themselves while their trainings wait for each other.

    Raises:
        UserError: a launcher started several.
    """
    if (count := world(environ)) > 1:
        raise UserError(f"{verb} runs in one process, not {count}: start it without torchrun or accelerate launch")


def device(kind: str, count: int, environ: Mapping[str, str] | None = None) -> tuple[str, int | None]:
    """The device of this process, `(kind, number)`, of `count` on its node; no number without a launcher.

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
        raise UserError(f"the variable {name} is '{env[name]}': a whole number is expected") from None
