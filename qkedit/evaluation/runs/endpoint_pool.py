"""Ask several servers of the same model at once, such as the replicas of one engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qkedit.errors import UsageError
from qkedit.evaluation.runs.endpoint import Endpoint
from qkedit.evaluation.runs.endpoint_session import EndpointSession, Unreachable
from qkedit.evaluation.runs.run_files import recorded_identity


@dataclass(frozen=True)
class EndpointPool:
    """Servers that share the questions; the next question goes to a free server.

    A server that cannot be reached is left out with a warning, as long as another one answers.

    Attributes:
        endpoints: the servers, at least two.
    """

    endpoints: tuple[Endpoint, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return self.endpoints[0].settings

    @cached_property
    def name(self) -> str:
        """The name of the model that all servers have.

        Raises:
            UsageError: they serve several models, or a server is named twice.
            QkeditError: no server answers, or one serves no model.
        """
        urls = [endpoint.base_url for endpoint in self.endpoints]
        if twice := next((url for url in urls if urls.count(url) > 1), None):
            raise UsageError(f"{twice} is named twice", where="--endpoint", remedy="name it once")
        found: dict[str, str] = {}
        failure: Unreachable | None = None
        for endpoint in self.endpoints:
            try:
                found[endpoint.base_url] = endpoint.name
            except Unreachable as error:
                failure = failure or error
        if failure is not None and not found:
            raise failure
        if len(set(found.values())) > 1:
            said = " and ".join(f"{url} serves {name}" for url, name in found.items())
            raise UsageError(said, where="--endpoint", remedy="name servers of one model, or --endpoint-model")
        return next(iter(found.values()))

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        of_one = self._with(model=self.name).endpoints[0].identity()
        return of_one | {"endpoint": sorted(endpoint.base_url for endpoint in self.endpoints)}

    def or_as_recorded(self, run: Mapping[str, Any]) -> EndpointPool:
        """Return these servers, with the model's name from the record of an earlier run if none of them answers.

        So a finished run can be scored again without its servers.

        Args:
            run: the identity of that run; empty if there was none.
        """
        recorded = run.get("endpoint_model")
        named = sorted(endpoint.base_url for endpoint in self.endpoints)
        if self.endpoints[0].model is not None or run.get("endpoint") != named or not isinstance(recorded, str):
            return self
        try:
            return self._with(model=self._with(retries=0).name)
        except Unreachable:
            return self._with(model=recorded)

    @contextmanager
    def session(self) -> Iterator[EndpointSession]:
        """See `Backend`."""
        named = self._with(model=self.name)
        with ExitStack() as opened:
            yield EndpointSession([opened.enter_context(endpoint.lane()) for endpoint in named.endpoints])

    def _with(self, **changes: Any) -> EndpointPool:
        return EndpointPool(tuple(replace(endpoint, **changes) for endpoint in self.endpoints))


def backend_of(endpoints: Sequence[Endpoint], out: Path) -> Endpoint | EndpointPool:
    """Return the backend of a run at servers of one model; a run in `out` is resumed with the name it recorded."""
    backend = endpoints[0] if len(endpoints) == 1 else EndpointPool(tuple(endpoints))
    return backend.or_as_recorded(recorded_identity(out))
