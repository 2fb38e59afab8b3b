"""The flags of a command's output: its path, what it replaces, and how it is copied and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qkedit.cli.flags.flag import MODE, flag
from qkedit.cli.flags.groups import FlagGroup
from qkedit.cli.flags.model import ArchitecturesOption
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.steering.steer_options import OutputOptions

OutOption = Annotated[Path | None, flag("--out", "-o", help="The directory to write.")]
OverwriteOption = Annotated[
    bool, flag("--overwrite", help="Replace an earlier output; files that qkedit did not write stop the run.")
]
ForceOption = Annotated[bool, flag("--force", help="Replace the directory at --out, whatever it holds.")]
FsyncOption = Annotated[bool, flag("--fsync/--no-fsync", panel=MODE, help="Wait until the output is on the disk.")]
VerifyOption = Annotated[
    bool,
    flag(
        "--verify",
        panel=MODE,
        help="Read the finished output back and compare all of it with the base before it appears.",
    ),
]
LinkOption = Annotated[
    str,
    flag(
        "--link",
        panel=MODE,
        help="How to copy unchanged shards: auto (reflink where possible), copy, reflink, hard or symlink.",
    ),
]
FollowLinksOption = Annotated[
    bool, flag("--follow-links", panel=MODE, help="Copy files outside the model's directory that its links point to.")
]
KeepPluginsOption = Annotated[
    bool, flag("--keep-plugins", panel=MODE, help="Also copy the plug-ins that are attached to the model.")
]
RankOption = Annotated[
    int | None, flag("--rank", help="Maximum rank per layer of an adapter; the error of the truncation is reported.")
]
KeepOriginalOption = Annotated[
    bool, flag("--keep-original", help="Keep the original bytes of the edited tensors next to the model, for revert.")
]


@dataclass(frozen=True)
class OutputFlags(FlagGroup):
    """The flags of an output."""

    overwrite: OverwriteOption = False
    force: ForceOption = False
    fsync: FsyncOption = True
    verify: VerifyOption = False
    architectures: ArchitecturesOption = None

    def options(self, out: Path, layout: str, **more: Any) -> OutputOptions:
        """Return the options of an output with this layout; `more` are options that only this command has."""
        from qkedit.steering.steer_options import OutputOptions

        return OutputOptions(
            out,
            layout,  # type: ignore[arg-type]  # checks the name
            overwrite=self.overwrite,
            force=self.force,
            fsync=self.fsync,
            verify=self.verify,
            **more,
        )


@dataclass(frozen=True)
class FullOutputFlags(OutputFlags):
    """The flags of an output that can hold all files of the base."""

    link: LinkOption = "auto"
    follow_links: FollowLinksOption = False

    def options(self, out: Path, layout: str, **more: Any) -> OutputOptions:
        """Return the options of an output of this layout; `more` are those that this command alone has."""
        return super().options(out, layout, link=self.link, follow_links=self.follow_links, **more)


def required_out(out: Path | None) -> Path:
    """Return the path of the output. Raises UsageError if no `--out` is given."""
    if out is None:
        raise UsageError("no output directory is given", where="--out", remedy="give a directory")
    return out
