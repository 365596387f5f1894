"""The completion scripts of the shells: what ``kv completion`` prints and what completions/ holds.

bash and fish get argcomplete's own. zsh gets a function of ours, because the stock one passes the whole line, on which
it finds nothing behind ``a && ``, ``a | `` or ``X=1 ``: ours hands over only the words of this command, dequoted by zsh
and quoted again in the one way that argcomplete surely reads, and leaves the quoting of the answers to zsh.
"""

SHELLS = ("bash", "zsh", "fish")

_ZSH = r"""#compdef kv
_kv() {
    emulate -L zsh
    local word line current
    local -a answers values shown words_before
    # PREFIX is as typed; inside of quotes zsh has already taken the opening quote off.
    current=$PREFIX
    [[ -z ${compstate[quote]} ]] && current=${(Q)PREFIX}
    line=kv
    words_before=("${(@)words[2,CURRENT-1]}")
    for word in "${words_before[@]}"; do
        line+=" ${(qq)${(Q)word}}"
    done
    word=${(qq)current}
    line+=" ${word%\'}"
    answers=("${(@ps:\v:)$(
        COMP_LINE=$line COMP_POINT=${#line} _ARGCOMPLETE=1 _ARGCOMPLETE_SHELL=fish \
        _ARGCOMPLETE_IFS=$'\v' _ARGCOMPLETE_DFS=$'\t' _ARGCOMPLETE_SUPPRESS_SPACE=1 \
        command ${(Q)words[1]} 8>&1 1>/dev/null 2>&1 </dev/null
    )}")
    answers=(${answers:#})
    (( $#answers )) || return 1
    values=("${(@)answers%%$'\t'*}")
    # A description is shown beside its word, as zsh does for its own commands.
    for word in "${answers[@]}"; do
        if [[ -n ${word#*$'\t'} ]]; then
            shown+=("${word%%$'\t'*}  -- ${word#*$'\t'}")
        else
            shown+=("${word%%$'\t'*}")
        fi
    done
    # A word that goes on (key=, a directory/, a namespace:) gets no blank behind it.
    if [[ $#values == 1 && $values[1] == *[=/:] ]]; then
        compadd -S '' -l -d shown -a -- values
    else
        compadd -l -d shown -a -- values
    fi
}
if [[ $zsh_eval_context == *func ]]; then
    _kv "$@"
else
    compdef _kv kv
fi
"""


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    if shell == "zsh":
        return _ZSH
    from argcomplete.shell_integration import shellcode

    # Without argcomplete's default "-o default": with it bash offers file names as keys when nothing matches.
    return str(shellcode(["kv"], shell=shell, complete_arguments=["-o", "nospace"]))
