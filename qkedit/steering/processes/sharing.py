"""Distribute the layers of a plan over the processes of a launcher.

Each process edits every `size`-th layer. The first one also receives the others' tensors, in the order of the layers:
the writer sees one stream of edits, byte-equal to that of a single process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from qkedit.checkpoint.io.interrupts import interrupts_deferred
from qkedit.errors import QkeditError
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.pace import pace_of
from qkedit.steering.engine.prefetch import prefetch
from qkedit.steering.plan import SteerPlan
from qkedit.steering.processes.connection import Connection, LostConnectionError, first_of, others_of
from qkedit.steering.processes.launch import Launch
from qkedit.steering.processes.messages import fingerprint, receive_edited, send_edited, send_failure

EditsOf = Callable[[SteerPlan], Iterator[EditedTensor]]


def shared_edits(plan: SteerPlan, launch: Launch, edits_of: EditsOf) -> Iterator[EditedTensor]:
    """Yield the edits of a whole plan in the first process; the others calculate most of them (`hand_over_edits`).

    Args:
        plan: the whole plan.
        launch: the place of this process, which is the first one.
        edits_of: calculates the edits of a part of the plan in this process.

    Raises:
        QkeditError: a process could not edit a layer, or has ended.
        KeyboardInterrupt: a process was interrupted.
    """
    common = fingerprint(plan)
    with prefetch(edits_of(_part(plan, launch)), pace_of(plan).edited) as own, others_of(launch) as others:
        rank = 0
        try:
            for place, planned in enumerate(plan.layers):
                rank = place % launch.size
                yield receive_edited(others[rank], planned, common, launch.name_of(rank)) if rank else next(own)
            for connection in others.values():
                connection.send({})  # the others may end
        except LostConnectionError as error:
            raise _lost(launch, rank, str(error)) from None
        except KeyboardInterrupt:
            # A launcher that sees one process die interrupts the others; the cause to report is that death.
            for rank, connection in others.items():
                if connection.has_ended():
                    raise _lost(launch, rank, "ended before its layers were edited") from None
            # Signals that still arrive must not interrupt the clean-up.
            signal.raise_signal(signal.SIGINT)
            raise


def hand_over_edits(launch: Launch, plan_of: Callable[[], SteerPlan], edits_of: EditsOf) -> None:
    """Edit the layers of a process that is not the first, and send them to the first one.

    Errors are sent there as well, and this process waits until the first one has them: a launcher ends all processes
    as soon as one fails, and the first one must have reported the reason by then.

    Args:
        launch: the place of this process.
        plan_of: makes the whole plan.
        edits_of: as for `shared_edits`.

    Raises:
        QkeditError: this process failed, or the first process has ended.
    """
    try:
        with first_of(launch) as first:
            try:
                plan = plan_of()
                _send_part(first, _part(plan, launch), fingerprint(plan), edits_of)
                first.receive()
            except LostConnectionError:
                raise
            except BaseException as error:
                with suppress(LostConnectionError):
                    send_failure(first, error, launch.name_of(launch.rank))
                    first.receive()
                raise
    except LostConnectionError as error:
        raise _lost(launch, 0, str(error)) from None


def _send_part(first: Connection, part: SteerPlan, common: str, edits_of: EditsOf) -> None:
    """Edit the layers of a part of a plan and send them; `common` is the fingerprint of the whole plan."""
    if not part.layers:
        return
    with prefetch(edits_of(part), pace_of(part).edited) as edits:
        for edited in edits:
            with interrupts_deferred():  # an error after half a message would be read as its rest
                send_edited(first, edited, common)
            del edited  # while the next layer is edited


def _part(plan: SteerPlan, launch: Launch) -> SteerPlan:
    return replace(plan, layers=plan.layers[launch.rank :: launch.size])


def _lost(launch: Launch, rank: int, what: str) -> QkeditError:
    return QkeditError(what, where=launch.name_of(rank), remedy="read the launcher's messages about it, and run again")
