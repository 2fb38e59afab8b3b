"""`qkedit verify`: check an output against its manifest and its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.loading import DtypeOption, TrustOption
from qkedit.cli.flags.model import ArchitecturesOption, BaseOption, DeviceOption, RevisionOption
from qkedit.cli.output import command
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.evaluation.runs.endpoint import Endpoint

ENDPOINT = "Whether a server has the edit"


def verify(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="A directory that qkedit wrote.")],
    base: BaseOption = None,
    revision: RevisionOption = None,
    endpoint: Annotated[
        str | None,
        flag(
            "--endpoint",
            panel=ENDPOINT,
            help="URL of a server; compare its log probabilities with those of the base and of the edit.",
        ),
    ] = None,
    endpoint_model: Annotated[
        str | None,
        flag("--endpoint-model", panel=ENDPOINT, help="Name of the edit on the server, if it has several models."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    architectures: ArchitecturesOption = None,
) -> None:
    """Check an output against its manifest and its base.

    A base on the hub is found automatically, a local one is given with --base. The exit code is 3 on a mismatch. With
    --endpoint, it is also 3 if the server serves the base, as it does with an adapter that it did not apply; the base
    is then loaded here, with --device and --dtype.

    Example: qkedit verify ./edited --base ./Qwen2-VL-7B-Instruct
    """
    with command(context, architectures) as output:
        from qkedit.cli.progress import reading_bar
        from qkedit.report.terminal_text import lines
        from qkedit.steering.verify import mismatched
        from qkedit.steering.verify import verify as check

        server = _server(endpoint, endpoint_model)
        with reading_bar(output) as on_bytes:
            result = check(directory, base=base, revision=revision, on_bytes=on_bytes)
        if result.mismatches:
            error = mismatched(result, directory, result.remedy)
            output.mismatch(result.as_dict(), lines(*result.mismatches), error)
        if result.compared_with_base is None:
            output.warn("no base was given: tensors and files that were not edited have not been compared")
        fields, said = result.as_dict(), [f"{result.sentence()}."]
        if server is not None:
            from qkedit.evaluation.served_edit import probe
            from qkedit.steering.engine.device import choose_device

            loading = {"device": str(choose_device(device)), "dtype": dtype, "trust_remote_code": trust_remote_code}
            served = probe(server, directory, base=base, revision=revision, **loading)
            fields["served"] = served.as_dict()
            if (failure := served.failure()) is not None:
                output.mismatch(fields, lines(*said), failure)
            said.append(f"{served.endpoint} serves the edit as {served.model}: {served.sentence()}.")
        output.result(fields, lines(*said), summary=True)


def _server(url: str | None, model: str | None) -> Endpoint | None:
    """Return the endpoint that is named, if any. Raises UsageError for an invalid address."""
    if url is None:
        if model is not None:
            raise UsageError("no server is named", where="--endpoint-model", remedy="name it with --endpoint")
        return None
    from qkedit.evaluation.runs.endpoint import Endpoint

    server = Endpoint(url, model)
    _ = server.base_url  # before files are read
    return server
