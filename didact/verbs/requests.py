"""What a verb is asked for, where it is more than a few values. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class Comparison:
    """One `didact compare`: everything the user asked for. Without model and data it is the embedded example.

    Args:
        arms: `METHOD[:PRESET]`, a YAML file with `method:` and options, or a model that is scored as it is: a folder, a
            hub id, a server.
        model: where all arms start; with nothing but models among the arms it need not be given.
        data: files by record kind or by parameter (`forget`, `retain`).
        budget: what each arm may use, `20M-tokens`, `1e15-flops` or `90-seconds`.
        out: the folder, where a stopped comparison goes on.
        seeds: how many test seeds.
        seed: from which they are counted.
        lrs: learning rates every arm is tuned over; a grid by the model's size where none are given.
        beyond_lrs: rates more that an arm may try, while its best is at the edge of those it tried.
        lora_lrs: what the rates are multiplied by for arms that train an adapter; 10 for the grid by size, 1 for `lrs`.
        fit: training options of all arms.
        folds: cross-validation in place of one split, seed k on fold k.
        group_by: a field whose equal values are never on both sides of a split.
        final_answer: how final answers are found, as `didact run` has it; arms are then ranked by them.
        stops: texts that end answers before them.
        chat_template: a file with a chat template in place of the tokenizer's own.
        gold: a model that never saw what must be forgotten.
        judge: `module:function`, a reward model's folder, or `http://host/v1#name`.
        protocol: how arms are scored; by the records where not given.
        retention: text on which it is seen what training broke; a little is embedded.
        metric: the user's own, `module:function`, which arms are then ranked by.
        no_models: do not save the model of every arm's first seed.
        device: cpu, cuda, ...
        dtype: of the weights.
        rename: fields of the files.
        skip_bad: drop bad lines.
        chat: conversations to the model, as `didact run` has it.
        turns: assistant turns of `messages` that are learnt, as `didact run` has it.
        max_length: tokens of a prompt and its completion at most.
        truncate: the side on which prompts are cut.
        track: a tool that curves go to as well.
        function_timeout: seconds for one call of a function of the user's.
        overwrite: replace the comparison that stands in `out`.
        argv: the command line, shown on the page.
    """

    arms: Sequence[str] = ()
    model: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    budget: str | None = None
    out: str = "runs/compare"
    seeds: int = 5
    seed: int = 0
    lrs: Sequence[float] = ()
    beyond_lrs: int = 3
    lora_lrs: float | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 0
    group_by: str | None = None
    final_answer: str | None = None
    stops: Sequence[str] = ()
    gold: str | None = None
    judge: str | None = None
    protocol: str | None = None
    retention: str | None = None
    metric: str | None = None
    no_models: bool = False
    device: str | None = None
    dtype: str = "float32"
    rename: Mapping[str, str] = field(default_factory=dict)
    skip_bad: bool = False
    chat: Literal["auto", "template", "plain"] = "auto"
    chat_template: str | None = None
    turns: Literal["last", "all"] = "last"
    max_length: int | None = None
    truncate: Literal["left", "right"] = "left"
    track: Literal["tensorboard", "wandb"] | None = None
    function_timeout: float = 3600.0
    overwrite: bool = False
    argv: Sequence[str] = ()
