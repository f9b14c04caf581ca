"""The command line stays small enough to be learned: few commands, few options, one line of help for each."""

from __future__ import annotations

import pytest
from routerretriever.cli.main import app
from typer.main import get_command

TOP = get_command(app)
COMMANDS = {
    f"{group} {name}".strip(): command
    for group, commands in [("", TOP.commands)]
    + [(name, one.commands) for name, one in TOP.commands.items() if hasattr(one, "commands")]
    for name, command in commands.items()
    if not hasattr(command, "commands")
}


def test_commands_stay_few():
    assert len(COMMANDS) <= 36, sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_few_options_and_says_what_each_does(name):
    command = COMMANDS[name]
    options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
    assert len(options) <= 8, [one.name for one in options]
    assert all(one.help for one in options), [one.name for one in options if not one.help]
    assert len(command.get_short_help_str(limit=200)) > 10
