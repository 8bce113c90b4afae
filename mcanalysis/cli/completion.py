"""Completion of `mcanalysis NAME --flag value` in a shell, made from the parsers of the scripts."""

from __future__ import annotations

from collections.abc import Mapping

from mcanalysis.cli.flags import Parser

SHELLS = ("bash", "zsh")
_BASH = """\
# Completion of mcanalysis, made by `mcanalysis completion {shell}`: source it in your {shell}.
{start}_mcanalysis() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words="{names}"
    else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
        *)
            case "$word" in -*)
                case "${{COMP_WORDS[1]}}" in
{flags}
                esac
            esac
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _mcanalysis mcanalysis
"""
_ZSH_START = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def completion(shell: str, parsers: Mapping[str, Parser]) -> str:
    """The script that completes names, their flags and the values of flags that have choices; files elsewhere.

    `shell`: bash, or zsh, which runs the same by its own `bashcompinit`; `parsers` by the name that they are run by.
    """
    values, flags = [], []
    for name, parser in parsers.items():
        for action in parser._actions:
            if action.choices is not None and action.option_strings:
                where = "|".join(f'"{name} {flag}"' for flag in action.option_strings)
                values.append(f'        {where}) words="{" ".join(map(str, action.choices))}" ;;')
        known = " ".join(flag for action in parser._actions for flag in action.option_strings)
        flags.append(f'                {name}) words="{known}" ;;')
    return _BASH.format(
        shell=shell, start=_ZSH_START if shell == "zsh" else "", names=" ".join(parsers), values="\n".join(values),
        flags="\n".join(flags),
    )  # fmt: skip
