"""The options vocabulary: a flag means the same in every command.

Each flag can also be set as `QKEDIT_<NAME>` in the environment and as a key of the YAML file given with `--config`
(`settings.py`); the flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qkedit.cli import completion
from qkedit.cli.settings import on_command_line, read_configuration, unless_of_environment, variable_of
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.cli.output import Output
    from qkedit.steering.options import SteerOptions

Share = TypeVar("Share", float, str)

EDIT = "Layers, heads and modes"
MODE = "How to run"


def flag(name: str, *more: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return a Typer option that can also be set in the environment, as its name in capitals after `QKEDIT_`."""
    variable = variable_of(name.split("/")[0].removeprefix("--"))
    return typer.Option(name, *more, help=help, envvar=variable, show_envvar=False, rich_help_panel=panel, **settings)


def utf8(text: str | None) -> str | None:
    """Return what is asked of a model. Raises typer.BadParameter for bytes of a command line that are not UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it holds bytes that are not UTF-8.") from None
    return text


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A directory, a hub id (org/name), an alias (qwen2-vl) or 'demo'.",
        autocompletion=completion.models,
    ),
]
ModelOption = Annotated[
    str | None, flag("--model", "-m", help="The same as MODEL, as an option.", autocompletion=completion.models)
]
RevisionOption = Annotated[
    str | None,
    flag("--revision", help="Branch, tag or commit of a hub model."),
]
ArchitecturesOption = Annotated[
    list[Path] | None,
    flag(
        "--architectures",
        panel=MODE,
        metavar="DIR",
        callback=unless_of_environment,
        help="A directory of architecture records for models that qkedit does not know; may be repeated.",
    ),
]
LayersOption = Annotated[
    str,
    flag(
        "--layers",
        autocompletion=completion.layers,
        panel=EDIT,
        help="Layers: 10-20, 3,5,8-12, all, mid or 0.35-0.7; both ends included.",
    ),
]
HeadsOption = Annotated[
    str,
    flag("--heads", panel=EDIT, help="Query heads: all or 0,3,8-12.", autocompletion=completion.heads),
]
ModesOption = Annotated[
    int | None,
    flag(
        "--k",
        "-k",
        panel=EDIT,
        help="Number of dominant modes to suppress per head; 4 by default.",
    ),
]
EnergyOption = Annotated[
    float | None,
    flag(
        "--energy",
        panel=EDIT,
        help="Instead of --k: suppress as many modes as carry this share of the energy.",
    ),
]
RetainOption = Annotated[
    float,
    flag(
        "--retain",
        panel=EDIT,
        help="Share of each suppressed mode that stays, 0 to below 1.",
    ),
]
OldRetainOption = Annotated[
    float | None, flag("--residual", help="The same as --retain, by its old name.", hidden=True)
]
ChannelOption = Annotated[
    str,
    flag(
        "--channel",
        autocompletion=completion.channels,
        panel=EDIT,
        help="Part of the product to edit: full, symmetric or antisymmetric.",
    ),
]
ControlOption = Annotated[
    str,
    flag(
        "--control",
        autocompletion=completion.controls,
        panel=EDIT,
        help="A random control instead of the edit: none, index or norm.",
    ),
]
SeedOption = Annotated[
    int,
    flag("--seed", panel=EDIT, help="Seed of the control's random draws."),
]
TextOnlyOption = Annotated[
    bool,
    flag(
        "--allow-text-only",
        help="Accept a checkpoint without vision, too.",
    ),
]
DeviceOption = Annotated[
    str,
    flag(
        "--device",
        autocompletion=completion.devices,
        panel=MODE,
        help="Device: auto, cpu, cuda (for steer every GPU), cuda:N or mps.",
    ),
]
ComputeDtypeOption = Annotated[
    str,
    flag(
        "--compute-dtype",
        autocompletion=completion.compute_dtypes,
        panel=MODE,
        help="Arithmetic: float32 or float64. The small cores are always float64.",
    ),
]
OutOption = Annotated[
    Path | None,
    flag("--out", "-o", help="The directory to write."),
]
OverwriteOption = Annotated[
    bool,
    flag("--overwrite", help="Replace an earlier output; files that qkedit did not write stop the run."),
]
ForceOption = Annotated[
    bool,
    flag("--force", help="Replace the directory at --out, whatever it holds."),
]
KeepPluginsOption = Annotated[
    bool,
    flag("--keep-plugins", panel=MODE, help="Copy the plug-ins that are attached to the model, too."),
]
FollowLinksOption = Annotated[
    bool,
    flag("--follow-links", panel=MODE, help="Copy files outside the model's directory that its links lead to."),
]
LinkOption = Annotated[
    str,
    flag(
        "--link",
        autocompletion=completion.links,
        panel=MODE,
        help="How to copy unchanged shards: auto (reflink where possible), copy, reflink, hard or symlink.",
    ),
]
FsyncOption = Annotated[
    bool,
    flag("--fsync/--no-fsync", panel=MODE, help="Wait until the output is on the disk."),
]
VerifyOption = Annotated[
    bool,
    flag(
        "--verify",
        panel=MODE,
        help="Read the finished output back and compare all of it with the base before it appears.",
    ),
]
RankOption = Annotated[
    int | None,
    flag("--rank", help="Of an adapter: the largest rank per layer; what that takes from the edit is reported."),
]
KeepOriginalOption = Annotated[
    bool,
    flag("--keep-original", help="Keep the original bytes of the edited tensors beside the model, for revert."),
]
BaseOption = Annotated[
    str | None,
    flag("--base", help="The model that was edited.", autocompletion=completion.models),
]

# The flags of every command, which may come before its name, too: name, type, default, how it is written, help.
_GLOBAL: tuple[tuple[str, Any, Any, tuple[str, ...], str], ...] = (
    (
        "config",
        Path | None,
        None,
        ("--config",),
        "YAML file with options, at the top level or in a section named after a command.",
    ),
    ("json", bool, False, ("--json",), "Print one JSON document on standard output."),
    ("quiet", bool, False, ("--quiet", "-q"), "Print no progress, warnings or summaries."),
    ("debug", bool, False, ("--debug",), "Show tracebacks of errors."),
)


def global_flags(*, of_command: bool) -> list[Parameter]:
    """Return the parameters that declare the global flags, of a command or of the group before it.

    The environment and the file of `--config` are read for the command alone, once it is known which one that is.
    """
    parameters = []
    for name, kind, default, words, text in _GLOBAL:
        if not of_command:
            option = typer.Option(*words, help=text)
        elif name == "config":
            option = flag(*words, help=text, panel=MODE, is_eager=True, callback=read_configuration)
        else:
            option = flag(*words, help=text, panel=MODE)
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]))
    return parameters


# Where a value can come from, as Typer calls it, the strongest first.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


def one_model(context: typer.Context, argument: str | None, option: str | None) -> str:
    """Return the model that was named once, as the argument or as the option.

    Raises:
        UsageError: it was named twice on the command line, or not at all.
    """
    if argument is not None and option is not None and on_command_line(context, "model"):
        raise UsageError("the model is named twice", where="--model", remedy="give it once")
    model = argument if argument is not None else option
    if model is None:
        raise UsageError(
            "no model is named", remedy="give a directory, a hub id, an alias or demo, first or as --model"
        )
    return model


def required_out(out: Path | None) -> Path:
    """Return the path of the output. Raises UsageError if no `--out` is given."""
    if out is None:
        raise UsageError("no output directory is given", where="--out", remedy="give a directory")
    return out


def _rank(context: typer.Context, name: str) -> int:
    source = context.get_parameter_source(name)
    return _SOURCES.index(source.name if source else "DEFAULT")


def share_that_stays(context: typer.Context, output: Output, retain: Share, residual: Share | None) -> Share:
    """Return what --retain says, or --residual, its old name, where that was said nearer to the run; with a warning.

    Raises:
        UsageError: both were said in one place.
    """
    if residual is None:
        return retain
    output.warn("--residual is now --retain; the old name works until version 1.0")
    rank_of_retain, rank_of_residual = _rank(context, "retain"), _rank(context, "residual")
    if rank_of_retain == rank_of_residual:
        raise UsageError("both say which share stays", where="--retain and --residual", remedy="give --retain alone")
    return retain if rank_of_retain < rank_of_residual else residual


def steer_options(
    context: typer.Context,
    *,
    layers: str,
    heads: str,
    k: int | None,
    energy: float | None,
    retain: float,
    channel: str,
    control: str,
    seed: int,
    device: str,
    compute_dtype: str,
    allow_text_only: bool,
) -> SteerOptions:
    """Return the request that the flags make. Raises UsageError if they do not fit together."""
    from qkedit.spectral.options import Suppression
    from qkedit.steering.options import SteerOptions

    if k is not None and energy is not None:
        # What was said nearer to the run replaces the other, as it does for one flag alone.
        rank_of_k, rank_of_energy = _rank(context, "k"), _rank(context, "energy")
        if rank_of_k == rank_of_energy:
            raise UsageError("both say how many modes to take", where="--k and --energy", remedy="give one of them")
        k, energy = (k, None) if rank_of_k < rank_of_energy else (None, energy)
    suppression = Suppression(
        Suppression.k if k is None else k,
        energy,
        retain,
        channel,  # type: ignore[arg-type]  # checks the name itself
        control,  # type: ignore[arg-type]
        seed,
    )
    return SteerOptions(layers, heads, suppression, compute_dtype, device, allow_text_only)  # type: ignore[arg-type]
