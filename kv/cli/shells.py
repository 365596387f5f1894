"""The completion scripts of the shells: ``kv completion`` prints them, and completions/ holds them.

fish gets argcomplete's own script. bash gets a function of ours, because argcomplete's takes the answers by an
unquoted ``$(...)``: bash expands a key such as ``a*`` to the names of files there, and a file's name can end the quotes
of the line and be a command. Ours takes them by ``mapfile``, which expands nothing.

zsh gets a function of ours, because argcomplete's passes the whole line and then completes nothing after ``a && ``,
``a | `` or ``X=1 ``. Ours passes only the words of this command. zsh removes their quotes, and the function quotes them
again in a way that argcomplete always reads. zsh quotes the answers itself.
"""

SHELLS = ("bash", "zsh", "fish")

_BASH = r"""# Completion of kv for bash 4.4 and later.
_kv() {
    local suppress=0
    compopt +o nospace 2>/dev/null && suppress=1
    mapfile -d $'\v' -t COMPREPLY < <(
        COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT COMP_TYPE=$COMP_TYPE \
        _ARGCOMPLETE_COMP_WORDBREAKS=$COMP_WORDBREAKS _ARGCOMPLETE=1 _ARGCOMPLETE_SHELL=bash \
        _ARGCOMPLETE_IFS=$'\v' _ARGCOMPLETE_SUPPRESS_SPACE=$suppress \
        "$1" 8>&1 1>/dev/null 2>&1 </dev/null
    )
    # A word that goes on (key=, a directory/, a namespace:) gets no blank after it.
    if ((suppress)) && [[ ${COMPREPLY-} == *[=/:] ]]; then
        compopt -o nospace
    fi
}
complete -o nospace -F _kv kv
"""

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

_OURS = {"bash": _BASH, "zsh": _ZSH}


def script(shell: str) -> str:
    """Return the script for one of SHELLS."""
    if shell in _OURS:
        return _OURS[shell]
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["kv"], shell=shell))
