"""The schedule of a pipeline's stages, and its simulation."""

from __future__ import annotations

from typing import NamedTuple

from didact.parallel.spec import Layout


class Pass(NamedTuple):
    """A micro-batch's forward or backward pass through one chunk of a stage."""

    micro: int
    chunk: int
    backward: bool


class Event(NamedTuple):
    """A pass with its stage and times."""

    stage: int
    work: Pass
    start: float
    end: float


def order(layout: Layout, stage: int) -> list[Pass]:
    """Return a stage's passes in order: all forward then all backward (GPipe), or alternating after a warm-up (1F1B).

    Interleaved, micro-batches go through a stage's chunks in groups of `pp`, which must divide their number.
    """
    pp, v, m = layout.pp, layout.chunks, layout.micros
    count = m * v

    def pass_of(k: int, backward: bool) -> Pass:
        if v == 1:
            return Pass(k, 0, backward)
        group, offset = divmod(k, pp * v)
        chunk = offset // pp
        return Pass(group * pp + offset % pp, v - 1 - chunk if backward else chunk, backward)

    if layout.schedule == "gpipe":
        warm = count
    else:
        warm = min(count, pp - stage - 1 if v == 1 else 2 * (pp - stage - 1) + (v - 1) * pp)
    steady = [p for k in range(count - warm) for p in (pass_of(warm + k, False), pass_of(k, True))]
    return [pass_of(k, False) for k in range(warm)] + steady + [pass_of(k, True) for k in range(count - warm, count)]


def after(layout: Layout, stage: int, work: Pass) -> tuple[int, Pass] | None:
    """Return the pass whose result this one waits for, with its stage; None if there is none."""
    last, v = layout.pp - 1, layout.chunks
    micro, chunk, backward = work
    if not backward:
        if stage:
            return stage - 1, work
        return (last, Pass(micro, chunk - 1, False)) if chunk else None
    if stage < last:
        return stage + 1, work
    return (0, Pass(micro, chunk + 1, True)) if chunk < v - 1 else (stage, Pass(micro, chunk, False))


def simulate(layout: Layout, forward: float = 1.0, backward: float = 2.0) -> list[Event]:
    """Return every pass with its times: a stage starts one when it is free and the pass's input is ready.

    `forward` and `backward` are the seconds of a pass through a whole stage; a chunk takes its share of them.
    """
    duration = {False: forward / layout.chunks, True: backward / layout.chunks}
    queues = [order(layout, stage)[::-1] for stage in range(layout.pp)]
    free, finished = [0.0] * layout.pp, dict[tuple[int, Pass], float]()
    events: list[Event] = []
    while any(queues):
        moved = False
        for stage, queue in enumerate(queues):
            while queue and ((dependency := after(layout, stage, queue[-1])) is None or dependency in finished):
                work = queue.pop()
                start = max(free[stage], finished[dependency] if dependency else 0.0)
                free[stage] = finished[stage, work] = start + duration[work.backward]
                events.append(Event(stage, work, start, free[stage]))
                moved = True
        assert moved, "deadlock in the pipeline schedule"
    return events


def idle(events: list[Event]) -> float:
    """Return the pipeline's idle time over the computing time of its busiest stage."""
    busy: dict[int, float] = {}
    for event in events:
        busy[event.stage] = busy.get(event.stage, 0.0) + event.end - event.start
    return max(event.end for event in events) / max(busy.values()) - 1
