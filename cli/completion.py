"""`spark completion bash|zsh|fish`: a script that the shell reads once; completing runs nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cli.completion_spec import SHELLS, Command, Option, Value, commands, settings
from cli.tail import OTHERS, STREAMS
from common.errors import SettingsError
from common.live import LIVE


def script(shell: str) -> str:
    """The script of a shell. Raises SettingsError for one that is not known."""
    from cli.commands import Spark

    if shell not in SCRIPTS:
        raise SettingsError(f"no completion for {shell!r}; there is one for {', '.join(SHELLS)}")
    known = commands(Spark, {"what": (*STREAMS, *OTHERS)})
    return SCRIPTS[shell](known)


def _want(value: Value) -> str:
    """How a script names what completes a value: ``run``, ``words:a b``."""
    return f"words:{' '.join(value.words)}" if value.kind == "words" else value.kind


def _offered(command: Command) -> list[str]:
    return [flag for option in command.options for flag in option.flags]


def _name(command: Command) -> str:
    return " ".join(command.path)


def _with_values(known: Sequence[Command]) -> Iterator[tuple[str, str]]:
    """(command and option, what completes its value)."""
    for command in known:
        for option in command.options:
            for flag in option.flags if option.value else ():
                yield f"{_name(command)} {flag}", _want(option.value or Value())


def _places(command: Command) -> Iterator[tuple[int, Value]]:
    return enumerate(command.positionals)


# -- bash: its own words are split at `:` and `=`, so the line is split anew ----------------------------------------

BASH: Final = r"""# bash completion of spark; load it with: source <(spark completion bash)
_spark() {
    local line=${COMP_LINE:0:COMP_POINT} path=spark place=0 want= word cur skip
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    cur=${words[${#words[@]}-1]}
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ $want ]]; then want=; continue; fi
        case "$path $word" in
            @COMMANDS@) path="$path $word"; place=0 ;;
@VALUES@
            *) [[ $word == -* ]] || place=$((place + 1)) ;;
        esac
    done
    if [[ -z $want && $cur == -* ]]; then
        case $path in
@OPTIONS@
        esac
    elif [[ -z $want ]]; then
        case "$path $place" in
@PLACES@
        esac
    fi
    local IFS=$'\n'
    COMPREPLY=()
    case $want in
        words:*) COMPREPLY=($(IFS=' '; compgen -W "${want#words:}" -- "$cur")) ;;
        setting) COMPREPLY=($(IFS=' '; compgen -S = -W '@SETTINGS@' -- "$cur")); compopt -o nospace ;;
        live) COMPREPLY=($(IFS=' '; compgen -S = -W '@LIVE@' -- "$cur")); compopt -o nospace ;;
        file) COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames ;;
        toml) COMPREPLY=($(compgen -f -X '!*.toml' -- "$cur") $(compgen -d -- "$cur")); compopt -o filenames ;;
        run)
            for word in "$cur"*/config.toml "$cur"*/*/config.toml; do
                [[ -f $word ]] && COMPREPLY+=("${word%/config.toml}")
            done
            (( ${#COMPREPLY[@]} )) || COMPREPLY=($(compgen -d -- "$cur"))
            compopt -o filenames ;;
    esac
    if [[ $want == words:* || $want == setting || $want == live ]]; then  # readline replaces what follows : or =
        skip=${cur%"${cur##*[:=]}"}
        COMPREPLY=("${COMPREPLY[@]#"$skip"}")
    fi
}
complete -F _spark spark
"""


def _bash(known: Sequence[Command]) -> str:
    below = [f"'{_name(command)}'" for command in known[1:]]
    values = [f"            '{option}') want={_quoted(want)} ;;" for option, want in _with_values(known)]
    options = [f"            '{_name(command)}') want='words:{' '.join(_offered(command))}' ;;" for command in known]
    places = [f"            {pattern}) want={_quoted(want)} ;;" for pattern, want in _bash_places(known)]
    return (
        BASH.replace("@COMMANDS@", "|".join(below))
        .replace("@VALUES@", "\n".join(values))
        .replace("@OPTIONS@", "\n".join(options))
        .replace("@PLACES@", "\n".join(places))
        .replace("@SETTINGS@", " ".join(settings()))
        .replace("@LIVE@", " ".join(LIVE))
    )


def _bash_places(known: Sequence[Command]) -> Iterator[tuple[str, str]]:
    for command in known:
        if command.commands:
            yield f"'{_name(command)} 0'", f"words:{' '.join(name for name, _ in command.commands)}"
        for place, value in _places(command):
            yield f"'{_name(command)} '{'*' if value.many else place}", _want(value)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- zsh ----------------------------------------------------------------------------------------------------------

ZSH: Final = r"""#compdef spark
# zsh completion of spark; load it with: source <(spark completion zsh)
_spark_runs() {
    local -a runs
    runs=( $PREFIX*/config.toml(N:h) $PREFIX*/*/config.toml(N:h) )
    (( $#runs )) && compadd -f -- $runs || _files -/
}
_spark_settings() { compadd -S = -- @SETTINGS@ }
_spark_live() { compadd -S = -- @LIVE@ }
@FUNCTIONS@
if [[ $funcstack[1] == _spark ]]; then _spark "$@"; else compdef _spark spark; fi
"""
ZSH_ACTIONS: Final = {
    "run": "_spark_runs",
    "toml": '_files -g "*.toml"',
    "file": "_files",
    "setting": "_spark_settings",
    "live": "_spark_live",
    "nothing": " ",
}


def _zsh(known: Sequence[Command]) -> str:
    functions = "\n".join(_zsh_function(command) for command in reversed(known))
    filled = ZSH.replace("@SETTINGS@", " ".join(settings())).replace("@LIVE@", " ".join(LIVE))
    return filled.replace("@FUNCTIONS@", functions)


def _zsh_function(command: Command) -> str:
    specs = [_zsh_option(option) for option in command.options]
    specs += [
        _quoted(f"{'*' if value.many else place + 1}:{value.name}:{_zsh_action(value)}")
        for place, value in _places(command)
    ]
    function = "_".join(("", *command.path))
    if not command.commands:
        return f"{function}() {{\n    _arguments {' '.join(specs)}\n}}"
    told = " ".join(_quoted(f"{name}:{about}") for name, about in command.commands)
    return (
        f"{function}() {{\n    local line state\n    local -a commands\n    commands=({told})\n"
        f"    _arguments -C {' '.join(specs)} '1: :->command' '*:: :->rest'\n"
        "    case $state in\n        command) _describe command commands ;;\n"
        f"        rest) (( $+functions[{function}_$line[1]] )) && {function}_$line[1] ;;\n    esac\n}}"
    )


def _zsh_option(option: Option) -> str:
    about = "".join(f"\\{letter}" if letter in "[]:\\" else letter for letter in option.about)
    argument = f":{option.value.name}:{_zsh_action(option.value)}" if option.value else ""
    repeated = "*" if option.value and option.value.kind == "setting" else f"({' '.join(option.flags)})"
    return " ".join(_quoted(f"{repeated}{flag}[{about}]{argument}") for flag in option.flags)


def _zsh_action(value: Value) -> str:
    words = " ".join(word.replace(":", "\\:") for word in value.words)
    return f"({words})" if value.kind == "words" else ZSH_ACTIONS[value.kind]


# -- fish ---------------------------------------------------------------------------------------------------------

FISH: Final = r"""# fish completion of spark; load it with: spark completion fish | source
function __spark_at  # command and place of the word that is being written
    set -l path spark
    set -l place 0
    set -l skip 0
    set -l words (commandline -opc)
    for word in $words[2..-1]
        if test $skip = 1
            set skip 0
        else if contains -- "$path $word" @COMMANDS@
            set path "$path $word"
            set place 0
        else if contains -- "$path $word" @VALUES@
            set skip 1
        else if not string match -q -- '-*' $word
            set place (math $place + 1)
        end
    end
    string match -qr -- $argv[1] "$path $place"
end
function __spark_runs
    set -l cur (commandline -ct)
    set -l files $cur*/config.toml $cur*/*/config.toml  # no error when none is there
    string replace -- /config.toml '' $files
end
function __spark_settings
    string join \n @SETTINGS@
end
function __spark_live
    string join \n @LIVE@
end
complete -c spark -f
@LINES@
"""
FISH_ACTIONS: Final = {
    "run": "(__spark_runs)",
    "toml": "(__fish_complete_suffix .toml)",
    "setting": "(__spark_settings)=",
    "live": "(__spark_live)=",
}


def _fish(known: Sequence[Command]) -> str:
    names = " ".join(f'"{_name(command)}"' for command in known[1:])
    values = " ".join(f'"{option}"' for option, _ in _with_values(known))
    lines = "\n".join(line for command in known for line in _fish_lines(command))
    filled = FISH.replace("@COMMANDS@", names).replace("@VALUES@", values)
    filled = filled.replace("@SETTINGS@", " ".join(settings())).replace("@LIVE@", " ".join(LIVE))
    return filled.replace("@LINES@", lines)


def _fish_lines(command: Command) -> Iterator[str]:
    start = f"complete -c spark -n '__spark_at \"^{_name(command)}"
    for name, about in command.commands:
        yield f"{start} 0\\$\"' -a {name} -d {_fish_quoted(about)}"
    for place, value in _places(command):
        if action := _fish_action(value):
            yield f"{start} {'[0-9]+' if value.many else place}\\$\"' {action}"
    for option in command.options:
        flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
        takes = f" -r {_fish_action(option.value)}" if option.value else ""
        yield f"{start} [0-9]+\\$\"' {flags}{takes} -d {_fish_quoted(option.about)}"


def _fish_action(value: Value) -> str:
    if value.kind == "words":
        return f"-a '{' '.join(value.words)}'"
    if value.kind == "file":
        return "-F"
    return f"-a '{FISH_ACTIONS[value.kind]}'" if value.kind in FISH_ACTIONS else ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: Final[dict[str, Callable[[Sequence[Command]], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
