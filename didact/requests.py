"""Requests: the parameters of `run` and `compare`, and those they share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class Common:
    """The parameters of both `run` and `compare`; `options.COMMON` has their help texts.

    Args:
        model: the start model.
        data: files by parameter (`forget`, `retain`) or, in a comparison, by record kind.
        fit: training options.
        out: the folder that everything is written to; a stopped run or comparison resumes from it.
        seed: of all randomness; a comparison counts its test seeds from it.
        device: cpu, cuda, ...
        dtype: data type of the weights.
        quantize: hold the start model's matrices in fewer bits; adapters are trained on them.
        rename: names of the files' fields, by the records' fields.
        skip_bad: drop bad lines.
        chat: how conversations become prompts.
        chat_template: a file with a chat template in place of the tokenizer's own.
        turns: assistant turns of `messages` to train on.
        max_length: most tokens of a prompt and its completion together.
        truncate: the side on which prompts are cut.
        track: an experiment tracker that gets the curves too.
        group_by: a field; records with the same value are on the same side of a split.
        final_answer: how final answers are extracted; a comparison then ranks its arms by them.
        stops: stop strings of answers.
        retention: general text that shows what training damaged; a small one is embedded.
        metric: the user's own metric, `module:function`; a comparison then ranks its arms by it.
        gold: a model that was never trained on what must be forgotten.
        function_timeout: seconds for one call of a user's function.
        overwrite: replace the results in `out`.
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
    """One `didact run`: all the user's options, and where each came from.

    Args:
        method: name of the method.
        preset: a named set of its options.
        options: the method's own options, by name.
        provenance: where each option that is not a default came from.
        holdout: share of the records that is held out from training.
        score_on: a file of records to score on, in place of that share.
        evaluate_every: steps between evaluations during training.
        keep_best: the result is the model of the best evaluation.
        config: the file that options were read from.
        budget_calls: most calls to a served model.
        budget_tokens: most tokens of a served model.
        parallel_calls: concurrent calls to a server.
        generate_with: the address of a vLLM server that samples in the rounds in place of the model itself.
        keep_checkpoints: keep checkpoints after the end.
        print_config: print the options and stop.
        dry_run: only report what the run would take.
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
    """One `didact compare`: all the user's options. Without model and data it runs the embedded example.

    Args:
        arms: `METHOD[:PRESET]`, a YAML file with `method:` and options, or a model that is scored as it is: a folder, a
            hub id, a server. If all arms are models, `model` is not needed.
        budget: what each arm may use, `20M-tokens`, `1e15-flops` or `90-seconds`.
        seeds: number of test seeds.
        lrs: learning rates every arm is tuned over; by default a grid that depends on the model's size.
        beyond_lrs: further rates that an arm may try while its best is at the edge of those tried.
        lora_lrs: factor on the rates of arms that train an adapter; 10 for the grid by size, 1 for `lrs`.
        folds: cross-validation in place of one split, seed k on fold k.
        judge: `module:function`, a reward model's folder, or `http://host/v1#name`.
        protocol: how arms are scored; by default chosen by the records.
        diagnostics: which seeds' models also answer, are judged and read general text: all, every arm's first, none.
        no_models: do not save the model of every arm's first seed.
        workers: processes of this machine that share the work.
        on: a Ray cluster that does the work: `auto`, `host:6379`, `ray://host:10001`. Its nodes share the folder `out`.
        gpus_per_arm: GPUs that a unit of work needs there.
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
