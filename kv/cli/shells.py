"""The completion scripts of the shells: ``kv completion`` prints them, and completions/ holds them.

bash and fish get argcomplete's own scripts. zsh gets a function of ours, because argcomplete's passes the whole line
and then completes nothing after ``a && ``, ``a | `` or ``X=1 ``. Ours passes only the words of this command. zsh
removes their quotes, and the function quotes them again in a way that argcomplete always reads. zsh quotes the answers
itself.
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
    """Return the script for one of SHELLS."""
    if shell == "zsh":
        return _ZSH
    from argcomplete.shell_integration import shellcode

    # Without argcomplete's default "-o default": with it bash offers file names as keys when nothing matches.
    return str(shellcode(["kv"], shell=shell, complete_arguments=["-o", "nospace"]))
