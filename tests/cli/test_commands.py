"""Suggested commands name the same network, photos and options as the command that suggests them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from repedge import cli
from repedge.cli import commands

NETWORK = (
    "my.nets:make --weights 'a b/best.pth' --input-size 96x64 --mean=0.5,0.5,0.5 --std 0.2 "
    "--resize letterbox --interpolation bicubic --color BGR --labels 'my labels.txt' --task classify"
)
PHOTOS = (
    "--calib 'some photos' --calib-count 32 --calib-seed 7 --recipe best --keep-float a,b --keep-float 'c*'"
)


def meaning(line: str) -> tuple[str, dict[str, Any]]:
    """What the program would make of a line: the verb, and each parameter that is given."""
    name, *arguments = shlex.split(line)
    assert name == "repedge"
    import typer

    group: Any = typer.main.get_command(cli.app)
    verb, *rest = arguments
    context = group.commands[verb].make_context(verb, list(rest))
    source = context.get_parameter_source
    return verb, {k: v for k, v in context.params.items() if source(k).name == "COMMANDLINE"}


def test_a_suggestion_takes_over_everything() -> None:
    given = f"repedge diagnose {NETWORK} {PHOTOS} -t gpu -p w8a8 --top 3 --html x.html --force --json"
    commands.started(shlex.split(given)[1:])
    verb, found = meaning(commands.command("compile", target=["gpu"], precision=["w8a8"]))
    _, wanted = meaning(given)
    assert verb == "compile"
    for name in ("top", "html", "force", "as_json", "target", "precision"):
        wanted.pop(name)
    assert found == {**wanted, "target": ["gpu"], "precision": ["w8a8"]}
    assert len(found) == 17


def test_what_a_verb_does_not_know_is_left_out() -> None:
    commands.started(shlex.split(f"compile {NETWORK} -t tflite --images 'my photos' --count 8"))
    line = commands.command("verify", keep=("images", "count"), bundle=Path("build/a b"))
    assert line == "repedge verify 'build/a b' --images 'my photos' --count 8"
    assert commands.command("eval", keep=(), what=["b", "YOUR_PHOTOS"]) == "repedge eval b YOUR_PHOTOS"


def test_values_that_look_like_options() -> None:
    commands.started(["diagnose", "net", "--mean=-0.1,0,0"])
    assert meaning(commands.command("compile"))[1]["mean"] == "-0.1,0,0"


@pytest.mark.slow
def test_diagnose_suggests_the_network_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as suggested, step by step, the trained weights are what is compiled."""
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "suggested_nets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import suggested_nets  # type: ignore[import-not-found]

    net = suggested_nets.make()
    net[1].running_mean += 0.1
    (tmp_path / "my weights").mkdir()
    torch.save(net.state_dict(), tmp_path / "my weights" / "best.pth")

    def run(line: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(shlex.split(line)[1:])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return captured.out + captured.err

    first = "repedge diagnose suggested_nets:make --input-size 32"
    assert "all at their initial values" in run(first)
    said = run(f"{first} --weights 'my weights/best.pth'")
    assert "initial values" not in said
    (suggested,) = [line for line in said.splitlines() if line.startswith("next:")]
    line = suggested.removeprefix("next:").partition("   (")[0].strip()
    assert meaning(line)[1] == {
        "model": "suggested_nets:make", "input_size": "32",
        "weights": "my weights/best.pth", "calib": "PHOTOS",
    }  # fmt: skip
