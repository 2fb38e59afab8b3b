"""The options vocabulary: a flag means the same in every command.

Each flag can also be set as `QKEDIT_<NAME>` in the environment and as a key of the YAML file given with `--config`;
the flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.steering.options import SteerOptions

EDIT = "Layers, heads and modes"
MODE = "How to run"
# What is taken for true and false in the environment and in a file.
YES = ("1", "true", "t", "yes", "y", "on")
NO = ("0", "false", "f", "no", "n", "off")


def flag(name: str, *more: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return a Typer option that can also be set in the environment, as its name in capitals after `QKEDIT_`."""
    variable = "QKEDIT_" + name.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, *more, help=help, envvar=variable, show_envvar=False, rich_help_panel=panel, **settings)


def read_settings(file: Path) -> dict[Any, Any]:
    """Return what a YAML file sets: each value as the text that is written there, or None for null.

    The options read the text as they read the command line's. To YAML itself 007 would be 7, and 1.10 would be 1.1.

    Raises:
        typer.BadParameter: the file cannot be read or is no mapping in YAML.
    """
    import yaml

    class AsWritten(yaml.SafeLoader):
        pass

    AsWritten.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    try:
        settings = yaml.load(file.read_text("utf-8"), Loader=AsWritten)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8
        raise typer.BadParameter(f"{file} is no valid YAML: {' '.join(str(error).split())}.") from None
    if settings is not None and not isinstance(settings, dict):
        raise typer.BadParameter(f"{file} must hold a mapping such as 'layers: 10-20'.")
    return settings or {}


def _read_configuration(context: typer.Context, file: Path | None) -> Path | None:
    """Take the defaults of the command's options from a YAML file with the same keys as the flags."""
    if file is None or context.resilient_parsing:
        return file
    parameters = _parameters(context.command)
    del parameters["config"]
    defaults: dict[str, Any] = {}
    for key, value in read_settings(file).items():
        name = str(key).replace("_", "-")
        if name == "config":
            raise typer.BadParameter(f"{file}: a file cannot name another by {key!r}; take the line out.")
        if name not in parameters:
            if name in _options_of_all_commands():
                continue  # one file may serve every command of a pipeline, as the environment does
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"this command has {', '.join(sorted(parameters))}."
            raise typer.BadParameter(f"{file}: there is no option {key!r}; {hint}")
        if value is None:
            continue
        parameter = parameters[name]
        takes_several = getattr(parameter, "multiple", False)
        entries = value if takes_several and isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            taken = "values, not lists" if takes_several else "one value, not a list"
            raise typer.BadParameter(f"{file}: {key!r} takes {taken}; write it as text.")
        if f"--{name}" in parameter.secondary_opts:  # such as no-fsync, of which fsync is the parameter
            value = "false" if value.lower() in YES else "true" if value.lower() in NO else value
        defaults[parameter.name] = entries if takes_several else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return file


@cache
def _options_of_all_commands() -> frozenset[str]:
    """The long flags that any command has."""
    from qkedit.cli.main import application

    every_command: Any = typer.main.get_command(application())
    return frozenset(flag for command in every_command.commands.values() for flag in _parameters(command))


def _parameters(command: Any) -> dict[str, Any]:
    """The parameter of each long flag of a command; a pair such as --fsync and --no-fsync has one."""
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    }


ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A directory, a hub id (org/name), an alias (qwen2-vl) or 'demo'."),
]
ModelOption = Annotated[str | None, flag("--model", "-m", help="The same as MODEL.")]
RevisionOption = Annotated[
    str | None,
    flag("--revision", help="Branch, tag or commit of a hub model."),
]
LayersOption = Annotated[
    str,
    flag(
        "--layers",
        panel=EDIT,
        help="10-20, 3,5,8-12, all, mid or 0.35-0.7; both ends included.",
    ),
]
HeadsOption = Annotated[
    str,
    flag("--heads", panel=EDIT, help="Query heads: all or 0,3,8-12."),
]
ModesOption = Annotated[
    int | None,
    flag(
        "--k",
        "-k",
        panel=EDIT,
        help="Dominant modes a head to suppress; 4 by default.",
    ),
]
EnergyOption = Annotated[
    float | None,
    flag(
        "--energy",
        panel=EDIT,
        help="Instead of --k: as many modes as carry this share of the energy.",
    ),
]
ResidualOption = Annotated[
    float,
    flag(
        "--residual",
        panel=EDIT,
        help="Share of each suppressed mode that stays, 0 to below 1.",
    ),
]
ChannelOption = Annotated[
    str,
    flag(
        "--channel",
        panel=EDIT,
        help="full, symmetric or antisymmetric part of the product.",
    ),
]
ControlOption = Annotated[
    str,
    flag(
        "--control",
        panel=EDIT,
        help="A random control instead of the edit: none, index or norm.",
    ),
]
SeedOption = Annotated[
    int,
    flag("--seed", panel=EDIT, help="Of the control's random draws."),
]
TextOnlyOption = Annotated[
    bool,
    flag(
        "--allow-text-only",
        help="Take a checkpoint without vision too.",
    ),
]
DeviceOption = Annotated[
    str,
    flag(
        "--device",
        panel=MODE,
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
]
ComputeDtypeOption = Annotated[
    str,
    flag(
        "--compute-dtype",
        panel=MODE,
        help="float32 or float64 arithmetic; the small cores are float64 anyway.",
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
LinkOption = Annotated[
    str,
    flag(
        "--link",
        panel=MODE,
        help="Untouched shards: auto (reflink where possible), copy, reflink, hard or symlink.",
    ),
]
FsyncOption = Annotated[
    bool,
    flag(
        "--fsync/--no-fsync",
        panel=MODE,
        help="Wait until the disk holds the output.",
    ),
]
VerifyOption = Annotated[
    bool,
    flag(
        "--verify",
        panel=MODE,
        help="Read the finished output back and compare all of it with the base before it appears.",
    ),
]
BaseOption = Annotated[
    str | None,
    flag("--base", help="The model the edit was made from."),
]
ConfigOption = Annotated[
    Path | None,
    flag(
        "--config",
        is_eager=True,
        callback=_read_configuration,
        panel=MODE,
        help="YAML file with the same keys as the flags.",
    ),
]
JsonOption = Annotated[
    bool,
    flag(
        "--json",
        panel=MODE,
        help="One JSON document on standard output.",
    ),
]
QuietOption = Annotated[
    bool,
    flag("--quiet", "-q", panel=MODE, help="Only errors are said."),
]
DebugOption = Annotated[
    bool,
    flag("--debug", panel=MODE, help="Show tracebacks of errors."),
]


# Where a value can come from, as Typer calls it, the strongest first.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


def on_command_line(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given there, and not in the environment or a file, which serve other commands too."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
    """Return where to write. Raises UsageError when it was not said."""
    if out is None:
        raise UsageError("it is not said where to write", where="--out", remedy="give a directory")
    return out


def _rank(context: typer.Context, name: str) -> int:
    source = context.get_parameter_source(name)
    return _SOURCES.index(source.name if source else "DEFAULT")


def steer_options(
    context: typer.Context,
    *,
    layers: str,
    heads: str,
    k: int | None,
    energy: float | None,
    residual: float,
    channel: str,
    control: str,
    seed: int,
    device: str,
    compute_dtype: str,
    allow_text_only: bool,
) -> SteerOptions:
    """Return the request that the flags make. Raises UsageError when they do not fit together."""
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
        residual,
        channel,  # type: ignore[arg-type]  # checks the name itself
        control,  # type: ignore[arg-type]
        seed,
    )
    return SteerOptions(layers, heads, suppression, compute_dtype, device, allow_text_only)  # type: ignore[arg-type]
