"""The manual pages: one for each command, complete, and without a word that man(7)'s readers complain of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from kvnode.cli import kvnode
from kvnode.cli.manual import EXIT_CODES, main, pages

PAGES = pages(kvnode, "2026-11-27")
MANDOC, GROFF = shutil.which("mandoc"), shutil.which("groff")


def test_each_command_has_a_page_with_all_its_options() -> None:
    def walk(context: click.Context) -> None:
        command = context.command
        page = PAGES[f"{context.command_path.replace(' ', '-')}.1"]
        for param in command.params:
            for option in param.opts if isinstance(param, click.Option) and not param.hidden else ():
                assert option.replace("-", r"\-") in page, (context.command_path, option)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                walk(click.Context(found, info_name=name, parent=context))

    walk(click.Context(kvnode, info_name="kvnode"))
    assert len(PAGES) > 40
    for code in EXIT_CODES:
        assert rf"\fB{code}\fR" in PAGES["kvnode.1"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("man") / "man1"
    main(str(target))
    assert {path.name for path in target.iterdir()} == set(PAGES)
    return target


@pytest.mark.skipif(MANDOC is None, reason="needs mandoc: apt-get install mandoc")
def test_mandoc_finds_nothing_wrong(directory: Path) -> None:
    assert MANDOC is not None
    command = [MANDOC, "-T", "lint", "-W", "warning", *sorted(map(str, directory.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


@pytest.mark.skipif(GROFF is None, reason="needs groff: apt-get install groff-base")
def test_groff_renders_each_page_without_a_warning(directory: Path) -> None:
    assert GROFF is not None
    for page in sorted(directory.iterdir()):
        command = [GROFF, "-man", "-Tutf8", "-ww", "-z", str(page)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), page.name


@pytest.mark.skipif(GROFF is None, reason="needs groff: apt-get install groff-base")
def test_a_page_reads_as_the_help_does(directory: Path) -> None:
    assert GROFF is not None
    command = [GROFF, "-man", "-Tascii", "-P-c", "-P-b", "-P-u", str(directory / "kvnode-list.1")]
    shown = " ".join(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    assert "kvnode list [OPTIONS] [PREFIX]" in shown
    assert r"\\, \t, \n, \x00" in shown
    assert "--limit N" in shown
