"""Completion of commands, tasks and flags in shells."""

from __future__ import annotations

from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")


def completion(
    shell: str, commands: Mapping[str, str], flags: Mapping[str, list[str]]
) -> str:
    """Return the script that a shell reads to complete ``jaxrnn``.

    Args:
        shell: one of `SHELLS`.
        commands: the help text of each command by its name.
        flags: the flags by the command, and by ``train TASK``.
    """
    if shell == "fish":
        return _fish(commands, flags)
    bash = _bash(commands, flags)
    load = "autoload -U +X bashcompinit && bashcompinit\n"
    return (load if shell == "zsh" else "") + bash


def _tasks(flags: Mapping[str, list[str]]) -> list[str]:
    """Return the names of the tasks."""
    return [name.split()[1] for name in flags if name.startswith("train ")]


def _bash(commands: Mapping[str, str], flags: Mapping[str, list[str]]) -> str:
    """Return the script for bash; file names complete where no flag begins."""
    cases = "\n".join(
        f'    "{name}"*) words="{" ".join(known)}" ;;'
        for name, known in sorted(flags.items(), reverse=True)  # longer names first
    )
    return f"""_jaxrnn() {{
  local words="" current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{" ".join(commands)}"
  elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = train ]; then
    words="{" ".join(_tasks(flags))}"
  elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = completion ]; then
    words="{" ".join(SHELLS)}"
  elif [ "${{current:0:1}}" = - ]; then
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}} " in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _jaxrnn jaxrnn
"""


def _fish(commands: Mapping[str, str], flags: Mapping[str, list[str]]) -> str:
    """Return the script for fish."""
    seen = "__fish_seen_subcommand_from"
    tasks = " ".join(_tasks(flags))
    lines = [
        f'complete -c jaxrnn -n __fish_use_subcommand -f -a {name} -d "{help}"'
        for name, help in commands.items()
    ]
    lines += [
        f'complete -c jaxrnn -n "{seen} train; and not {seen} {tasks}" -f -a "{tasks}"',
        f'complete -c jaxrnn -n "{seen} completion" -f -a "{" ".join(SHELLS)}"',
    ]
    for name, known in flags.items():
        where = "; and ".join(f"{seen} {word}" for word in name.split())
        lines += [
            f'complete -c jaxrnn -n "{where}" -l {flag.removeprefix("--")}'
            for flag in known
        ]
    return "\n".join(lines) + "\n"
