"""Attach a selection of a server's plug-ins for one answer at a time; they are bound to the model only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qkedit.plugins.core.pictures import reads_pictures
from qkedit.plugins.settings import PluginSettings, make_plugins

if TYPE_CHECKING:
    from qkedit.plugins.core.modules import VLMModules
    from qkedit.plugins.core.protocol import BoundPlugin
    from qkedit.plugins.core.report import RequestReport
    from qkedit.plugins.transformers.attach import Attachment


@dataclass(frozen=True)
class _BoundOnce:
    """A plug-in that is already bound, so that its loaded models and caches serve every selection."""

    name: str
    bound: BoundPlugin

    def bind(self, parts: VLMModules) -> BoundPlugin:
        return self.bound


class PluginSwitch:
    """The plug-ins of a server.

    Raises:
        QkeditError: one of them does not fit the model.
    """

    def __init__(self, model: Any, plugins: Sequence[PluginSettings]) -> None:
        from qkedit.plugins.transformers.modules import vlm_modules

        self.settings = {plugin.name: plugin for plugin in plugins}
        self._model = model
        made = make_plugins(plugins)
        self._bound = {plugin.name: _BoundOnce(plugin.name, plugin.bind(vlm_modules(model))) for plugin in made}
        self._readers = {plugin.name for plugin in made if reads_pictures(plugin)}
        self._attachments: dict[tuple[str, ...], Attachment] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the plug-ins, in order."""
        return tuple(self.settings)

    def reads_pictures(self, names: Sequence[str]) -> bool:
        """Return whether one of the named plug-ins reads the pictures of a request while it is answered."""
        return not self._readers.isdisjoint(names)

    @contextmanager
    def on(self, names: Sequence[str]) -> Iterator[Callable[[], RequestReport | None]]:
        """Attach the named plug-ins during the block, in this order.

        Only one thread may do so at a time.

        Yields:
            A function that returns the report on the block's last prefill; None before a prefill with images.
        """
        if not names:
            yield lambda: None
            return
        attachment = self._attachment(tuple(names))
        before = _last(attachment)

        def report() -> RequestReport | None:
            last = _last(attachment)
            return None if last is before else last

        with attachment:
            yield report

    def _attachment(self, names: tuple[str, ...]) -> Attachment:
        from qkedit.plugins.transformers.attach import Attachment

        if names not in self._attachments:
            self._attachments[names] = Attachment(self._model, *(self._bound[name] for name in names))
        return self._attachments[names]


def _last(attachment: Attachment) -> RequestReport | None:
    reports = attachment.report()
    return reports[-1] if reports else None
