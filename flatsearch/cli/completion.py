"""`flatsearch completion`."""

from __future__ import annotations

from dataclasses import dataclass

from flatsearch.cli.command import Command
from flatsearch.settings import REQUIRED, SettingsRecord, setting
from flatsearch.settings.values import Choice

__all__ = ["COMMAND"]


@dataclass(frozen=True)
class _Options(SettingsRecord):
    """What `flatsearch completion` is told."""

    shell: str = setting(
        REQUIRED, Choice("shell", ("bash", "zsh", "fish")), "the shell", positional=True
    )


def _completion(options: _Options) -> None:
    import shtab

    from flatsearch.cli import make_parser

    parser, _ = make_parser(complete=True)
    print(shtab.complete(parser, shell=options.shell))


COMMAND = Command(
    "completion",
    "print what makes a shell complete commands and options",
    "Print a script that makes a shell complete commands, options, choices and files. bash: put"
    ' eval "$(flatsearch completion bash)" into ~/.bashrc. zsh: flatsearch completion zsh >'
    " ~/.zfunc/_flatsearch, with fpath+=~/.zfunc before compinit in ~/.zshrc. fish: flatsearch"
    " completion fish > ~/.config/fish/completions/flatsearch.fish",
    (_Options,),
    _completion,
)
