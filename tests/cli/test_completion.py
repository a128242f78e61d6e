"""`kvnode completion`: its script in the real shell, and what the shell then offers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import environment

BASH, ZSH, FISH = shutil.which("bash"), shutil.which("zsh"), shutil.which("fish")

# What readline does when TAB is pressed: the function that the script registered for `kvnode` fills COMPREPLY.
IN_BASH = """
eval "$(kvnode completion bash)"
complete -p kvnode >&2
COMP_WORDS=(%s) COMP_CWORD=%d COMP_TYPE=9
$(complete -p kvnode | sed -nE 's/.*-F (\\S+) .*/\\1/p') kvnode
printf '%%s\\n' "${COMPREPLY[@]}"
"""
# The completion system wants a terminal: what the script calls of it prints here what it is given to show.
IN_ZSH = """
compdef() { registered=$1; [[ $2 == kvnode ]] }
_describe() { print -rl -- ${(P)3} }
compadd() { print -rl -- ${(P)5} }
eval "$(kvnode completion zsh)"
words=(%s) CURRENT=%d
$registered || [[ $? == 1 ]]
"""


def shown(command: list[str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env=environment({"PATH": path, "TERM": "dumb", "COLUMNS": "200"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CASES = [
    (["kvnode", "tra"], "transfer"),
    (["kvnode", "lease", "keep"], "keepalive"),
    (["kvnode", "get", "--nothing"], None),
    (["kvnode", "list", "--val"], "--values"),
    (["kvnode", "--prof"], "--profile"),
    (["kvnode", "completion", "z"], "zsh"),
]


@pytest.mark.skipif(BASH is None, reason="needs bash: apt-get install bash")
@pytest.mark.parametrize(("words", "offered"), CASES)
def test_bash_completes(words: list[str], offered: str | None) -> None:
    assert BASH is not None
    script = IN_BASH % (" ".join(words), len(words) - 1)
    assert shown([BASH, "--norc", "-c", script]).split() == ([] if offered is None else [offered])


@pytest.mark.skipif(ZSH is None, reason="needs zsh: apt-get install zsh")
@pytest.mark.parametrize(("words", "offered"), CASES)
def test_zsh_completes(words: list[str], offered: str | None) -> None:
    assert ZSH is not None
    lines = shown([ZSH, "-f", "-c", IN_ZSH % (" ".join(words), len(words))]).splitlines()
    assert [line.split(":")[0] for line in lines] == ([] if offered is None else [offered])


@pytest.mark.skipif(FISH is None, reason="needs fish: apt-get install fish")
@pytest.mark.parametrize(("words", "offered"), CASES)
def test_fish_completes(words: list[str], offered: str | None) -> None:
    assert FISH is not None
    script = f"kvnode completion fish | source; complete --do-complete '{' '.join(words)}'"
    assert [line.split("\t")[0] for line in shown([FISH, "--no-config", "-c", script]).splitlines()] == (
        [] if offered is None else [offered]
    )
