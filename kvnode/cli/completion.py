"""`kvnode completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kvnode.cli.command import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete kvnode.

    \b
    bash   eval "$(kvnode completion bash)"                                 in ~/.bashrc
    zsh    eval "$(kvnode completion zsh)"                                  in ~/.zshrc
    fish   kvnode completion fish >~/.config/fish/completions/kvnode.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # From the class's template: source() would first run the shell to ask for its version.
    script = kind(ctx.find_root().command, {}, "kvnode", "_KVNODE_COMPLETE")
    print(script.source_template % script.source_vars())
