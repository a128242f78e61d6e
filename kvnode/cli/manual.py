"""`python -m kvnode.cli.manual DIRECTORY` writes a manual page for each command, in man(7), from what its --help says.

The help stays the only text. `make man` writes the pages to man/, for packages of distributions and for users who add
that directory to MANPATH.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from kvnode import __version__

SECTION: Final = "1"
EXIT_CODES: Final = {
    0: "Done.",
    1: "An error.",
    2: "The command line is wrong.",
    3: "There is no such key, lease or token.",
    4: "A precondition failed.",
    5: "No leader, or unavailable: nothing was applied.",
    6: "The outcome is unknown.",
    7: "Not allowed.",
}


def pages(root: click.Command, date: str) -> dict[str, str]:
    """By file name: kvnode.1, kvnode-put.1, kvnode-lease-grant.1 and so on."""
    commands = dict(_commands(click.Context(root, info_name="kvnode")))
    return {f"{name}.{SECTION}": _page(name, context, commands, date) for name, context in commands.items()}


def _commands(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    """Each command's page and its context, a group before its own commands."""
    yield context.command_path.replace(" ", "-"), context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from _commands(click.Context(command, info_name=name, parent=context))


def _page(name: str, context: click.Context, commands: dict[str, click.Context], date: str) -> str:
    command = context.command
    about = command.get_short_help_str(limit=200).rstrip(".")
    lines = [f'.TH "{text(name.upper())}" "{SECTION}" "{date}" "kvnode {__version__}" "kvnode"']
    lines += [".SH NAME", rf"{text(name)} \- {text(about)}"]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", rf"\fB{text(context.command_path)}\fR {text(usage)}"]
    lines += [".SH DESCRIPTION", *_paragraphs(command.help or about)]
    if command.epilog and context.parent is not None:
        lines += _paragraphs(command.epilog)
    records = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    lines.append(".SH OPTIONS")
    for options, meaning in records:
        if meaning:  # arguments have none; the synopsis names them
            lines += [".TP", rf"\fB{text(options)}\fR", text(meaning)]
    own = [each for each in commands.values() if each.parent is context]
    if own:
        lines.append(".SH COMMANDS")
        for each in own:
            summary = each.command.get_short_help_str(limit=200)
            lines += [".TP", rf"\fB{text(each.command_path)}\fR", text(summary)]
    if context.parent is None:
        lines.append(".SH EXIT STATUS")
        for code, meaning in EXIT_CODES.items():
            lines += [".TP", rf"\fB{code}\fR", text(meaning)]
    others = [each for each in commands if commands[each] is context.parent or commands[each] in own]
    lines += [".SH SEE ALSO", ", ".join(rf"\fB{text(each)}\fR({SECTION})" for each in others)]
    return "\n".join(lines) + "\n"


def _paragraphs(help_text: str) -> Iterator[str]:
    """Of a docstring as click reads it: what follows a line of \\b keeps its lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(help_text).partition("\f")[0].strip())):
        lines = [line for line in paragraph.splitlines() if line != "\b"]
        if number:
            yield ".PP"
        if "\b" in paragraph.splitlines():
            yield from (".nf", *map(text, lines), ".fi")
        else:
            yield text(" ".join(line.strip() for line in lines))


def text(plain: str) -> str:
    """As roff prints it: no escape, no request at a line's beginning, and ASCII alone, whatever the locale."""
    escaped = plain.replace("\\", r"\e").replace("-", r"\-").replace("\n", " ")
    escaped = "".join(letter if letter.isascii() else rf"\[u{ord(letter):04X}]" for letter in escaped)
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(directory: str) -> None:
    from kvnode.cli import kvnode

    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    # reproducible-builds.org: a package that is built again has the same bytes.
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    for name, page in pages(kvnode, date).items():
        (target / name).write_text(page, encoding="ascii")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m kvnode.cli.manual DIRECTORY")
    main(sys.argv[1])
