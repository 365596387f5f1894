# Completion of kv for bash 4.4 and later.
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
