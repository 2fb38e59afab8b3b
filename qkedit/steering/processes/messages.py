"""Messages between processes, as JSON and bytes, without pickles: an edited tensor, or an error in its place."""

from __future__ import annotations

import hashlib
import json
import zlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.manifest_file import HeadEdit
from qkedit.checkpoint.record_reader import MACHINE_WRITTEN, as_plain, read_record
from qkedit.errors import QkeditError, memory_that_ran_out
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor, FactoredEdit
from qkedit.steering.plan import PlannedLayer, SteerPlan
from qkedit.steering.processes.connection import Connection
from qkedit.version import __version__

if TYPE_CHECKING:
    from qkedit.spectral.changes.low_rank import LowRankChange

_FACTOR_BYTES = 8  # float64


def fingerprint(plan: SteerPlan) -> str:
    """Return the facts that must be equal in two processes for them to write the same bytes for a plan."""
    libraries = {name: version(name) for name in ("torch", "numpy")}
    content = [plan.as_dict(), {"qkedit": __version__} | libraries]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def send_edited(connection: Connection, edited: EditedTensor, plan: str) -> None:
    """Send an edited tensor of a plan with this fingerprint."""
    from qkedit.steering.engine.layer_weights import stored_bytes

    contents = [stored_bytes(edited.tensor)]
    factors = None
    if edited.factored is not None:
        heads = edited.factored.heads
        factors = {
            "error": edited.factored.error,
            "heads": [[head, *change.left.shape, change.right.shape[1]] for head, change in heads.items()],
        }
        contents += [
            stored_bytes(part.contiguous()) for change in heads.values() for part in (change.left, change.right)
        ]
    message = {
        "plan": plan,
        "tensor": edited.name,
        "sha256_before": edited.record.sha256_before,
        "heads": as_plain(edited.record.heads),
        "factors": factors,
        "crc32": [zlib.crc32(content) for content in contents],
    }
    connection.send(message, contents)


def receive_edited(connection: Connection, planned: PlannedLayer, plan: str, sender: str) -> EditedTensor:
    """Return the edited tensor of one layer.

    Raises:
        QkeditError: the other process failed, or has another plan, or bytes were changed on the way.
        KeyboardInterrupt: the other process was interrupted.
        LostConnectionError: the other process has ended.
    """
    from qkedit.steering.engine.layer_weights import tensor_of

    message = connection.receive()
    if "interrupted" in message:
        raise KeyboardInterrupt
    if "error" in message:
        raise _error_of(message["error"])
    layer, entry = planned.layer, planned.layer.query.tensor
    if (message.get("plan"), message.get("tensor")) != (plan, entry.name):
        raise QkeditError(
            "has other files, options or versions than the first one",
            where=sender,
            remedy="start all processes with one command, on machines with the same model and the same installation",
        )
    checksums = iter(message["crc32"])

    def read(length: int) -> bytearray:
        content = connection.read(length)
        if zlib.crc32(content) != next(checksums):
            raise QkeditError(
                "sent bytes that were changed on the way",
                where=sender,
                remedy="check the network, and run again",
            )
        return content

    heads = tuple(read_record(HeadEdit, head, sender, MACHINE_WRITTEN) for head in message["heads"])
    record = EditRecord(layer.index, layer.form, layer.norm_kind, entry, message["sha256_before"], heads)
    tensor = tensor_of(read(entry.nbytes), entry)
    factors = message["factors"]
    if factors is None:
        return EditedTensor(entry.name, tensor, record)
    changes = {head: _change(read, rows, rank, columns) for head, rows, rank, columns in factors["heads"]}
    return EditedTensor(entry.name, tensor, record, FactoredEdit(changes, factors["error"]))


def _change(read: Any, rows: int, rank: int, columns: int) -> LowRankChange:
    import torch

    from qkedit.spectral.changes.low_rank import LowRankChange

    left, right = (
        torch.frombuffer(read(height * width * _FACTOR_BYTES), dtype=torch.float64).view(height, width)
        for height, width in ((rows, rank), (rank, columns))
    )
    return LowRankChange(left, right)


def send_failure(connection: Connection, error: BaseException, sender: str) -> None:
    """Send the error for which no further layer will come."""
    if isinstance(error, KeyboardInterrupt):
        connection.send({"interrupted": True})
        return
    if not isinstance(error, QkeditError):
        whose = memory_that_ran_out(error)
        what = f"{whose} ran out" if whose else f"unexpected {type(error).__name__}: {error}"
        error = QkeditError(what, where=sender, remedy="start fewer processes on one machine" if whose else "")
    described = {"what": error.what, "where": error.where, "remedy": error.remedy, "exit_code": error.exit_code}
    connection.send({"error": described})


def _error_of(described: dict[str, Any]) -> QkeditError:
    error = QkeditError(described["what"], where=described["where"], remedy=described["remedy"])
    error.exit_code = described["exit_code"]
    return error
