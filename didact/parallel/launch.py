"""What a launcher (`torchrun`, `accelerate launch`) asked for, by the environment it leaves to its processes."""

from __future__ import annotations

import os
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


def world(environ: Mapping[str, str] | None = None) -> int:
    """How many processes there are: 1 without a launcher."""
    return _number("WORLD_SIZE", 1, os.environ if environ is None else environ)


def on_node(environ: Mapping[str, str] | None = None) -> int:
    """How many processes of them this node has."""
    env = os.environ if environ is None else environ
    return _number("LOCAL_WORLD_SIZE", world(env), env)


def several(parallel: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuse to lay a model over several processes where there is one.

    Raises:
        UserError: there is no launcher.
    """
    if parallel != "ddp" and world(environ) == 1:
        raise UserError(
            f"parallel = {parallel}: goes with several processes: torchrun --nproc_per_node 8 -m didact run ... "
            f"--parallel {parallel}"
        )


def check(precision: str | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Refuse what a launcher's configuration asks for and training here would not do.

    Args:
        precision: of the training, where it is known.
        environ: of the process.

    Raises:
        UserError: the configuration shards or compiles the model, or names another precision.
    """
    env = os.environ if environ is None else environ
    if found := next((told for name, told in PLUGINS.items() if env.get(name, "").lower() not in OFF), None):
        raise UserError(
            f"accelerate's configuration asks for {found}, which is not honoured: launch with torchrun or "
            "`accelerate launch --multi_gpu`, and give --parallel fsdp2 where memory is short"
        )
    if env.get("ACCELERATE_DYNAMO_BACKEND", "").lower() not in OFF:
        raise UserError(
            "accelerate's configuration asks for torch.compile, which is not honoured: take dynamo_backend out"
        )
    asked = env.get("ACCELERATE_MIXED_PRECISION", "").lower()
    wanted = PRECISIONS.get(asked)
    if asked not in OFF and not (wanted and precision in (None, wanted)):
        mend = wanted or "bfloat16 or float32"
        raise UserError(f"accelerate's configuration asks for {asked}, which is not honoured: give --precision {mend}")


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
