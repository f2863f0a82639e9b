"""The directive ``command-line``: the reference of the program, out of its parser."""

import argparse
import re
from unittest import mock

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Caught(Exception):
    """The parser with which the program would have parsed its arguments."""


def parser_of(*argv):
    """Return the parser that the program makes for some arguments."""
    from jaxrnn.cli import main

    def caught(parser, *args, **kwargs):
        raise Caught(parser)

    # main reports what it does not know; what is caught must pass it by.
    with mock.patch.object(argparse.ArgumentParser, "parse_args", caught):
        try:
            main(list(argv))
        except Caught as error:
            return error.args[0]
    raise RuntimeError("jaxrnn parses its arguments by parse_args no more")


def commands_of(parser):
    """Return the commands of a parser: a dict of parsers, and one of their helps."""
    actions = [
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    if not actions:
        return {}, {}
    helps = {choice.dest: choice.help for choice in actions[0]._choices_actions}
    return actions[0].choices, helps


def plain(text):
    """Escape what reStructuredText would read as markup, and keep flags as they are."""
    escaped = re.sub(r"([\\*`|_<>])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"``\1``", escaped)


def lines_of(parser):
    """Return the usage and the options of one parser."""
    usage = parser.format_usage().removeprefix("usage: ").strip()
    yield from ["::", "", *("   " + line for line in usage.splitlines()), ""]
    yield f".. program:: {parser.prog}"
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        if action.help == argparse.SUPPRESS:
            continue
        formatter = parser._get_formatter()
        shown = formatter._format_action_invocation(action)
        text = plain(formatter._expand_help(action)) if action.help else ""
        yield from ["", f".. option:: {shown}", "", f"   {text}"]


class CommandLine(SphinxDirective):
    """Show every command and its options."""

    def run(self):
        """Return a section for each command, and for each task that is trained."""
        from jaxrnn.tasks.runner import TASKS

        commands, helps = commands_of(parser_of("sample"))
        sections = []
        for name, parser in commands.items():
            section = self.section(f"jaxrnn {name}", helps.get(name), parser)
            for task in TASKS if name == "train" else ():
                train = commands_of(parser_of("train", task))[0]["train"]
                train.prog = f"jaxrnn train {task}"
                section += self.section(train.prog, None, train, {"task"})
            sections.append(section)
        return sections

    def section(self, title, text, parser, without=()):
        """Return one section."""
        parser._actions = [a for a in parser._actions if a.dest not in without]
        section = nodes.section("", nodes.title("", title), names=[title])
        self.state.document.note_implicit_target(section, section)
        if text:
            section += nodes.paragraph("", text[:1].upper() + text[1:] + ".")
        section += self.parse_text_to_nodes("\n".join(lines_of(parser)))
        return section


def setup(app):
    """Add the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
