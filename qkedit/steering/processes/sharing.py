"""Share the layers of a plan out over the processes of a launcher.

Each process edits every `size`-th layer. The first one also receives the others' tensors, in the order of the layers:
to whoever writes them it is one stream of edits, the same to the byte as that of a single process.
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
from qkedit.steering.processes.connection import LostConnectionError, first_of, others_of
from qkedit.steering.processes.launch import Launch
from qkedit.steering.processes.messages import fingerprint, receive_edited, send_edited, send_failure

EditsOf = Callable[[SteerPlan], Iterator[EditedTensor]]


def shared_edits(plan: SteerPlan, launch: Launch, edits_of: EditsOf) -> Iterator[EditedTensor]:
    """Yield the edits of a whole plan in the first process; the others edit most of it (`hand_over_edits`).

    Args:
        plan: the whole.
        launch: of the first process.
        edits_of: the edits of a part of the plan, as this process makes them.

    Raises:
        QkeditError: a process could not edit a layer, or has ended.
        KeyboardInterrupt: one was asked to end.
    """
    common = fingerprint(plan)
    with prefetch(edits_of(_part(plan, launch)), pace_of(plan).edited) as own, others_of(launch) as others:
        rank = 0
        try:
            for place, planned in enumerate(plan.layers):
                rank = place % launch.size
                yield receive_edited(others[rank], planned, common, launch.name_of(rank)) if rank else next(own)
            for connection in others.values():
                connection.send({})  # they may go
        except LostConnectionError as error:
            raise _lost(launch, rank, str(error)) from None
        except KeyboardInterrupt:
            # A launcher that sees one process die asks the others to end; what has happened is that death.
            for rank, connection in others.items():
                if connection.has_ended():
                    raise _lost(launch, rank, "ended before its layers were edited") from None
            # Of those signals that are still to come to this process, none shall cut off the clearing up.
            signal.raise_signal(signal.SIGINT)
            raise


def hand_over_edits(launch: Launch, plan_of: Callable[[], SteerPlan], edits_of: EditsOf) -> None:
    """Edit the layers of one process that is not the first, and hand them over to that one.

    Whatever goes wrong is told there as well, and this process stays until the first one knows: a launcher ends
    them all as soon as one fails, and the first one must have said why.

    Args:
        launch: of this process.
        plan_of: makes the whole plan.
        edits_of: as for `shared_edits`.

    Raises:
        QkeditError: what went wrong here, or the first process has ended.
    """
    try:
        with first_of(launch) as first:
            try:
                plan = plan_of()
                common, part = fingerprint(plan), _part(plan, launch)
                if part.layers:
                    with prefetch(edits_of(part), pace_of(part).edited) as edits:
                        for edited in edits:
                            with interrupts_deferred():  # else what follows half a message would be taken for its rest
                                send_edited(first, edited, common)
                            del edited  # while the next layer is edited
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


def _part(plan: SteerPlan, launch: Launch) -> SteerPlan:
    return replace(plan, layers=plan.layers[launch.rank :: launch.size])


def _lost(launch: Launch, rank: int, what: str) -> QkeditError:
    return QkeditError(what, where=launch.name_of(rank), remedy="see what the launcher says of it, and run again")
