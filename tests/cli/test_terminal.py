"""Test output to people and pipes: help without torch, 80 columns, progress, colours, closed pipes, encodings."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from qkedit.cli.command_table import COMMANDS, PANELS
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from tests.cli.command import ROOT, Runs, qkedit

QKEDIT = [sys.executable, "-c", "from qkedit.cli.app import run; run()"]
# Importing any of these would make every start wait for torch, so here their import fails.
HEAVY = "torch", "transformers", "accelerate", "numpy", "safetensors"
WITHOUT_TORCH = f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))\n"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QKEDIT_", "LC_", "LANG"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING", "PYTHONUTF8"):
        kept.pop(name, None)
    return kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **variables}


def on_a_terminal(
    command: list[str], *, columns: int = 80, variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command on a terminal of a width, and return its exit code and output."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(ROOT)
        os.execvpe(command[0], command, environment(**(variables or {})))
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other end has been closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()


def lines(shown: str) -> list[str]:
    return [ESCAPE.sub("", line).rstrip("\r") for line in shown.split("\n")]


def in_python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter; fail if it fails."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=True)


def test_help_and_dry_run_import_no_torch(tmp_path: Path) -> None:
    script = WITHOUT_TORCH + (
        "from qkedit.cli.app import run\n"
        "for words in ['--help', 'steer --help', 'apply --help', 'verify --help', 'diff --help', '--version',\n"
        "              'steer demo --dry-run', 'steer demo --dry-run --json --layers 0.2-0.5 --layout delta',\n"
        "              'steer demo --layers 77 --dry-run']:\n"
        "    sys.argv = ['qkedit', *words.split()]\n"
        "    try:\n"
        "        run()\n"
        "    except SystemExit as leaving:\n"
        "        print('CODE', leaving.code or 0)\n"
        "    if words == '--version':\n"
        "        print('IMPORTED', *{'yaml'} & sys.modules.keys())\n"
        "print('AT LAST', *{'pydantic'} & sys.modules.keys())\n"
    )
    result = in_python(script)
    assert "\nIMPORTED\n" in result.stdout
    assert "\nAT LAST\n" in result.stdout
    codes = re.findall(r"^CODE (\d+)$", result.stdout, re.MULTILINE)
    assert codes == ["0"] * 8 + ["2"], result.stdout + result.stderr


def test_importing_the_package_imports_no_torch() -> None:
    script = WITHOUT_TORCH + "import qkedit; print(qkedit.__version__)"
    in_python(script)


def test_a_command_does_not_import_other_commands() -> None:
    script = (
        "import sys\n"
        "from qkedit.cli.app import run\n"
        "from qkedit.cli.command_table import COMMANDS\n"
        "sys.argv = ['qkedit', 'steer', 'demo', '--dry-run', '--quiet']\n"
        "try:\n"
        "    run()\n"
        "except SystemExit as leaving:\n"
        "    assert not leaving.code\n"
        "imported = {name.rpartition('.')[2] for name in sys.modules if name.startswith('qkedit.cli.commands.')}\n"
        "words = {name.replace(' ', '_').replace('-', '_') for name in COMMANDS}\n"
        "print(*(words & imported), file=sys.stderr)\n"
    )
    result = in_python(script)
    assert result.stderr.split() == ["steer"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_found_by_its_name(command: str) -> None:
    result = qkedit(*command.split(), "--help")
    assert result.code == 0
    assert f"Usage: qkedit {command} " in result.stdout


@pytest.mark.parametrize(
    "command", [["--help"], ["plugins", "--help"], ["steer", "--help"], ["apply", "--help"], ["verify", "--help"]]
)
def test_help_fits_eighty_columns_without_cutting_options(command: list[str]) -> None:
    code, shown = on_a_terminal([*QKEDIT, *command])
    assert code == 0
    assert max(map(len, lines(shown))) <= 80
    assert "…" not in shown, "an option's name or text was cut off"


def test_a_plan_fits_eighty_columns() -> None:
    code, shown = on_a_terminal([*QKEDIT, "steer", SMALL_DEMO, "--layers", "2-4", "--dry-run"])
    assert code == 0
    assert max(map(len, lines(shown))) <= 80
    assert "Nothing was written." in shown
    plan = lines(shown)
    rows = "".join(line[plan[0].index("tensor") :].strip() for line in plan[1 : plan.index("")])
    assert rows == "".join(f"language_model.model.layers.{layer}.self_attn.q_proj.weight" for layer in (2, 3, 4))


@pytest.mark.parametrize("columns", [30, 40, 48, 66])
def test_a_plan_is_readable_on_a_narrow_terminal(columns: int) -> None:
    code, shown = on_a_terminal([*QKEDIT, "steer", SMALL_DEMO, "--layers", "2-4", "--dry-run"], columns=columns)
    assert code == 0
    plan = lines(shown)
    assert max(map(len, plan)) <= columns
    layers = plan[: plan.index("")]
    # Only a name longer than a line is broken, and it keeps every letter.
    words = " ".join(layers).split()
    for layer in (2, 3, 4):
        assert f"language_model.model.layers.{layer}.self_attn.q_proj.weight" in "".join(words)
    assert {"layer", "form", "separate,", "heads", "edited", "all,", "size"} <= set(words)
    assert len(layers) <= 3 * 6


def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(children: Runs, tmp_path: Path) -> None:
    steer = ["steer", SMALL_DEMO, "--layers", "2", "--no-fsync", "--out"]
    code, shown = on_a_terminal([*QKEDIT, *steer, str(tmp_path / "watched")])
    assert code == 0
    assert "layer " in shown
    facts = lines(shown.split("steered")[-1])[1:]
    assert max(map(len, facts)) <= 80
    # Long values are continued in their own column.
    energy = next(number for number, line in enumerate(facts) if line.startswith("energy"))
    assert facts[energy + 1].startswith(" " * 9)
    piped = children(*steer, tmp_path / "piped")
    assert (piped.code, piped.stderr) == (0, "")
    assert "\x1b" not in piped.stdout
    assert piped.stdout.startswith("steered")


def test_no_color_removes_colours() -> None:
    command = [*QKEDIT, "steer", SMALL_DEMO, "--layers", "77", "--dry-run"]
    assert COLOUR.search(on_a_terminal(command)[1])
    code, shown = on_a_terminal(command, variables={"NO_COLOR": "1"})
    assert code == 2
    assert not COLOUR.search(shown)
    assert "error: layers: '77' goes beyond the model" in " ".join(lines(shown))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("steer demo --dry-run", 0),
        ("steer demo --dry-run --json", 0),
        ("steer demo --layers 77 --dry-run --json", 2),
        ("steer demo --layers 77 --dry-run", 2),
        ("steer --nonsense --json", 2),
    ],
)
def test_closed_pipes_do_not_change_the_exit_code(words: str, code: int) -> None:
    """Close both streams before anything is written, like `| head -1`."""
    ends = [os.pipe(), os.pipe()]
    for reading, _ in ends:
        os.close(reading)
    result = subprocess.run(
        [*QKEDIT, *words.split()],
        stdout=ends[0][1],
        stderr=ends[1][1],
        cwd=ROOT,
        env=environment(),
        check=False,
    )
    for _, writing in ends:
        os.close(writing)
    assert result.returncode == code


def in_a_shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `qkedit` is this version."""
    defined = f'qkedit() {{ "{sys.executable}" -c "from qkedit.cli.app import run; run()" "$@"; }}\n'
    return subprocess.run(
        ["sh", "-c", defined + command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(**variables),
        check=False,
    )


@pytest.mark.parametrize("words", ["steer --help", "--help", "--version", ""])
def test_help_into_a_closed_pipe_is_no_error(words: str) -> None:
    """Close the pipe early, like `| head -1`: the command `:` does not read."""
    result = in_a_shell(f"{{ sleep 0.2; qkedit {words}; echo code $? >&2; }} | :")
    assert (result.stdout, result.stderr) == ("", "code 0\n")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "--json >&-", "<&- >&- 2>&-"])
def test_a_run_with_closed_streams_succeeds(tmp_path: Path, closed: str) -> None:
    out = tmp_path / "out"
    result = in_a_shell(f"qkedit steer demo --layers 2 --no-fsync --out {out} {closed}")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("steered") == (closed == "2>&-")
    assert (out / "qkedit.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_printed_is_reported(unbuffered: str) -> None:
    said = (
        "error: standard output: the result could not be printed (No space left on device); "
        "send it elsewhere (what the command wrote to files is in place).\n"
    )
    for words in ("steer demo --dry-run", "steer demo --dry-run --json", "steer --nonsense --json", "--help", ""):
        result = in_a_shell(f"qkedit {words} >/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert (result.returncode, result.stderr) == (1, said), words


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["steer demo --dry-run --json", "--help"])
def test_a_partly_printed_result_is_a_failure(tmp_path: Path, words: str, unbuffered: str) -> None:
    """A file size limit of 512 or 1,024 bytes simulates a nearly full disk."""
    file = tmp_path / "printed"
    result = in_a_shell(f"ulimit -f 1; qkedit {words} > {file}", PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 1
    assert result.stderr.startswith("error: standard output: the result could not be printed (File too large); ")
    assert file.stat().st_size in (512, 1024)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_an_error_that_cannot_be_printed_keeps_its_exit_code() -> None:
    assert in_a_shell("qkedit steer demo --dry-run --k 0 2>/dev/full").returncode == 2
    result = in_a_shell("qkedit steer demo --dry-run --layers 2 --k 99 2>/dev/full")
    assert result.returncode == 0


def test_ctrl_c_during_the_first_imports_shows_no_traceback() -> None:
    script = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        "from qkedit.cli.app import run\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("times", [1, 2])
def test_repeated_ctrl_c_before_the_command_begins_is_one_sentence(times: int) -> None:
    script = (
        "import os, signal, sys\n"
        "from qkedit.cli import app, output\n"
        f"def interrupted(*arguments): os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may inherit that it is ignored\n"
        "app._prepare_streams = interrupted\n"
        "class Again(output.Interrupted):\n"
        "    def __init__(self, remedy):\n"
        f"        if {times} > 1: interrupted()\n"
        "        super().__init__(remedy)\n"
        "output.Interrupted = Again\n"
        "app.run()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert (result.returncode, result.stderr) == (130, "error: interrupted; run again if you want to.\n")


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_output_works_with_narrow_encodings(tmp_path: Path, variables: dict[str, str]) -> None:
    source = tmp_path / "modèle ≤ 東"
    source.symlink_to(demo_checkpoint(SMALL_DEMO))
    command = [*QKEDIT, "steer", str(source), "--dry-run", "--layers"]
    for words, code in ((["mid"], 0), (["ü"], 2), (["0.9-0.1", "--json"], 2)):
        result = subprocess.run(
            [*command, *words],
            capture_output=True,
            cwd=ROOT,
            env=environment(**variables, PYTHONWARNINGS="ignore"),
            check=False,
        )
        assert result.returncode == code, result.stderr
        assert b"Traceback" not in result.stderr


def test_a_name_outside_the_encoding_does_not_fail_a_finished_run(tmp_path: Path) -> None:
    source = tmp_path / "modèle [東]"
    source.symlink_to(demo_checkpoint(SMALL_DEMO))
    for extra in ([], ["--json"]):
        out = tmp_path / f"é{len(extra)}"
        result = qkedit("steer", source, "--layers", "2", "--out", out, "--no-fsync", *extra, encoding="ascii")
        assert (result.code, result.stderr) == (0, "")
        assert r"\xe9" in result.stdout or r"\u00e9" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    result = subprocess.run(
        QKEDIT,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(_QKEDIT_COMPLETE=f"source_{shell}"),
        check=False,
    )
    assert "qkedit" in result.stdout
    assert "_QKEDIT_COMPLETE" in result.stdout


def test_commands_and_options_are_completed_without_torch() -> None:
    script = WITHOUT_TORCH + "from qkedit.cli.app import run; run()"
    completed = {}
    for words, word in (("qkedit ", ""), ("qkedit steer --lay", "--lay")):
        result = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(
                _QKEDIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - bool(word))
            ),
            check=False,
        )
        completed[words] = result.stdout.split()
    assert {"steer", "apply", "verify", "diff"} <= set(completed["qkedit "])
    assert {"--layers", "--layout"} == set(completed["qkedit steer --lay"])


def test_help_is_wrapped_once() -> None:
    code, shown = on_a_terminal([*QKEDIT, "demo", "--help"])
    assert code == 0
    shown_lines = [line.strip() for line in lines(shown)]
    start = next(number for number, line in enumerate(shown_lines) if line.startswith("Without MODEL"))
    paragraph = shown_lines[start : shown_lines.index("", start)]
    # No line has room for the first word of the next; lines begin and end with 2 blanks.
    for line, following in pairwise(paragraph):
        assert len(line) + 1 + len(following.split()[0]) > 76


def test_a_help_page_has_one_column_of_descriptions() -> None:
    page = qkedit("steer", "--help").stdout.split("\n")
    headings = [line for line in page if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Options:", "Layers, heads and modes:", "How to run:"]
    rows = [re.match(r"  (-\S.*?|MODEL)  +(?=\S)", line) for line in page]
    assert len({found.end() for found in rows if found}) == 1
    assert any(line.endswith(" [default: full]") for line in page)
    assert "  MODEL  " in "\n".join(page), "an argument is shown without a type"


def test_the_list_of_commands_has_panels_and_summaries() -> None:
    page = qkedit("--help").stdout
    assert [line for line in page.split("\n") if line.endswith(":")] == ["Options:", *(f"{name}:" for name in PANELS)]
    assert "Check an output against its manifest and its base.\n" in page
