"""Test that the benchmark of plug-ins runs, and writes the figures that it prints."""

import json

from qkedit.plugins.registry import PLUGINS
from tests.scripts.loading import SCRIPTS, load_script


def test_the_other_methods_are_measured(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    script = load_script("benchmark_plugins")
    script.main(["--shape", "tiny", "--cells", "3x4", "--text", "6", "--tokens", "2", "--repeats", "1", "--rivals"])
    printed = capsys.readouterr().out
    named = set(PLUGINS) - {"scr", "dscr"} | {"none", "none, again"}
    assert {line.split(" | ")[0][2:] for line in printed.splitlines() if line.startswith("| ")} == named | {"plug-in"}


def test_every_plugin_is_measured_at_every_size(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))  # like Python for a script
    script = load_script("benchmark_plugins")
    figures = tmp_path / "figures.json"
    arguments = ["--shape", "tiny", "--cells", "3x4", "5x5", "--text", "6", "--tokens", "2", "--repeats", "1"]
    script.main([*arguments, "--json", str(figures)])
    printed = capsys.readouterr().out
    written = json.loads(figures.read_text())
    assert [(image["rows"], image["columns"]) for image in written["images"]] == [(3, 4), (5, 5)]
    for image in written["images"]:
        assert {"none", "scr", "scr, remembered", "dscr", "scr and dscr"} <= image["timings"].keys()
        for name, timings in image["timings"].items():
            assert f"| {name} | {1e3 * timings['prefill']['seconds'][0]:.1f} |" in printed
            assert min(timings["prefill"]["seconds"] + timings["step"]["seconds"]) > 0
