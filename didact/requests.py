"""What the larger verbs are asked for, with what they have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class Common:
    """What `run` and `compare` both take; `options.COMMON` says what each means.

    Args:
        model: where training starts.
        data: files by parameter (`forget`, `retain`) or, of a comparison, by record kind.
        fit: training options.
        out: the folder that everything is written to, where what was stopped goes on.
        seed: of everything drawn; of a comparison test seeds are counted from it.
        device: cpu, cuda, ...
        dtype: of the weights.
        quantize: hold the start model's matrices in fewer bits; adapters are trained on them.
        rename: fields of the files.
        skip_bad: drop bad lines.
        chat: conversations to the model.
        chat_template: a file with a chat template in place of the tokenizer's own.
        turns: assistant turns of `messages` that are learnt.
        max_length: tokens of a prompt and its completion at most.
        truncate: the side on which prompts are cut.
        track: a tool that curves go to as well.
        group_by: a field whose equal values are never on both sides of a split.
        final_answer: how final answers are found; arms of a comparison are then ranked by them.
        stops: texts that end answers before them.
        retention: text on which it is seen what training broke; a little is embedded.
        metric: the user's own, `module:function`, which arms of a comparison are then ranked by.
        gold: a model that never saw what must be forgotten.
        function_timeout: seconds for one call of a function of the user's.
        overwrite: replace what stands in `out`.
        argv: the command line, shown on the page.
    """

    model: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    quantize: Literal["nf4", "int8"] | None = None
    rename: dict[str, str] = field(default_factory=dict)
    skip_bad: bool = False
    chat: Literal["auto", "template", "plain"] = "auto"
    chat_template: str | None = None
    turns: Literal["last", "all"] = "last"
    max_length: int | None = None
    truncate: Literal["left", "right"] = "left"
    track: Literal["tensorboard", "wandb"] | None = None
    group_by: str | None = None
    final_answer: str | None = None
    stops: Sequence[str] = ()
    retention: str | None = None
    metric: str | None = None
    gold: str | None = None
    function_timeout: float = 3600.0
    overwrite: bool = False
    argv: Sequence[str] = ()


@dataclass(kw_only=True)
class Request(Common):
    """One `didact run`: everything the user said, with where each option came from.

    Args:
        method: its name.
        preset: of its options.
        options: its own, by name.
        provenance: where each option that is not a default came from.
        holdout: share of the records that is kept from training.
        score_on: records to score on, in place of that share.
        evaluate_every: steps between scores on the way.
        keep_best: the result is the model that scored best.
        config: the file that options were read from.
        budget_calls: to a served model, at most.
        budget_tokens: of a served model, at most.
        parallel_calls: to a server, under way at once.
        generate_with: the address of a vLLM server that samples in the rounds in place of the model itself.
        keep_checkpoints: also after the end.
        print_config: print the options and stop.
        dry_run: only say what it would take.
    """

    method: str
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    holdout: float = 0.2
    score_on: str | None = None
    evaluate_every: int | None = None
    keep_best: bool = False
    config: str | None = None
    budget_calls: int | None = None
    budget_tokens: int | None = None
    parallel_calls: int | None = None
    generate_with: str | None = None
    keep_checkpoints: bool = False
    print_config: bool = False
    dry_run: bool = False


@dataclass(kw_only=True)
class Comparison(Common):
    """One `didact compare`: everything the user asked for. Without model and data it is the embedded example.

    Args:
        arms: `METHOD[:PRESET]`, a YAML file with `method:` and options, or a model that is scored as it is: a folder, a
            hub id, a server. With nothing but models among them no model need be given.
        budget: what each arm may use, `20M-tokens`, `1e15-flops` or `90-seconds`.
        seeds: how many test seeds.
        lrs: learning rates every arm is tuned over; a grid by the model's size where none are given.
        beyond_lrs: rates more that an arm may try, while its best is at the edge of those it tried.
        lora_lrs: what the rates are multiplied by for arms that train an adapter; 10 for the grid by size, 1 for `lrs`.
        folds: cross-validation in place of one split, seed k on fold k.
        judge: `module:function`, a reward model's folder, or `http://host/v1#name`.
        protocol: how arms are scored; by the records where not given.
        diagnostics: which seeds' models also answer, are judged and read general text: all, every arm's first, none.
        no_models: do not save the model of every arm's first seed.
        workers: processes of this machine that share the work.
        on: a Ray cluster that does it: `auto`, `host:6379`, `ray://host:10001`. Its nodes share the folder `out`.
        gpus_per_arm: what a unit of work needs there.
    """

    arms: Sequence[str] = ()
    out: str = "runs/compare"
    budget: str | None = None
    seeds: int = 5
    lrs: Sequence[float] = ()
    beyond_lrs: int = 3
    lora_lrs: float | None = None
    folds: int = 0
    judge: str | None = None
    protocol: str | None = None
    diagnostics: Literal["all", "first", "none"] = "all"
    no_models: bool = False
    workers: int = 1
    on: str | None = None
    gpus_per_arm: float = 0.0
