#!/bin/bash
# systemd_in_a_box.sh - run a command under a real, throw-away systemd.
#
#   systemd_in_a_box.sh HOSTDIR COMMAND [ARG...]
#
# Boots systemd as PID 1 of a container (systemd-nspawn) whose root is a
# copy-on-write view of this machine's /, runs COMMAND in it as root, prints
# what it prints (stdout and stderr kept apart) and ends with its status.
# Inside:
#   - HOSTDIR is the real directory, read-write, at the same path; every other
#     change lands in RAM and is gone afterwards;
#   - COMMAND starts in the caller's directory if that is below HOSTDIR, else in
#     HOSTDIR, with the caller's exported variables and /dev/null on stdin;
#   - only journald, tmpfiles, sysusers and the D-Bus socket are started; every
#     other installed unit is there, and stays off until COMMAND starts it;
#   - the network is an empty one of its own, with only lo.
# Mind that units with PrivateTmp= or ProtectHome= (DynamicUser= implies the former)
# do not see a program that lies below /tmp or /home, /root: have COMMAND install it
# in /opt or /usr/local first; that costs nothing, it is gone afterwards.
# It needs root and the packages systemd, systemd-container, util-linux, procps; it
# does not matter whether systemd is PID 1 outside.
#
# Variables:
#   BOX_TIMEOUT=300    seconds until everything is killed (status 124)
#   BOX_BIND_RO="..."  more directories to show, read-only (blank-separated);
#                      needed for what is on another file system than /
#   BOX_JOURNAL=FILE   write the whole journal there (also after a timeout); not
#                      below /run
#   BOX_VERBOSE=1      show systemd's own messages on stderr
#
# Status: COMMAND's (128+N if signal N ended it); 124 time limit; 125 the box
# itself failed; 126/127 as in a shell.
#
# Nothing is left behind, whatever ends it, SIGKILL included: all mounts are in a
# private mount namespace, all processes in a private PID namespace, and both end
# with the last process. No temporary directory exists outside of them. (After
# SIGKILL an empty cgroup directory remains; the next run removes it.)

set -euo pipefail
shopt -s nullglob

die() { echo "systemd-in-a-box: $*" >&2; exit 125; }

# ---------------------------------------------------------------- stage 1
# PID 1 of the private PID namespace, in the private mount namespace.
stage1() {
    local box=/run/box root=/run/box/root etc lib=/lib/systemd/system host=$1 d rc=0
    shift

    # Hold HOSTDIR by a descriptor: it may be below /run, which we cover now.
    # nspawn keeps its own state below /run too; so that is private as well.
    exec 9<"$host"
    mount -t tmpfs -o mode=0755,size=80% box /run || die "cannot mount a tmpfs"
    mkdir -p $box/{upper,work,root,host,io,journal}
    mount --bind /proc/self/fd/9 $box/host
    exec 9<&-

    # The root: this machine's /, with changes kept in the tmpfs.
    mount -t overlay box -o lowerdir=/,upperdir=$box/upper,workdir=$box/work $root ||
        die "cannot put an overlay on /"

    # Which units start? None but these. Removing the machine's configuration,
    # the vendor's default dependencies and the generators (fstab, sysv, ...) is
    # quicker and surer than masking units one by one.
    rm -rf $root/etc/systemd/system $root/etc/systemd/user \
           $root$lib/*.wants $root$lib/*.requires \
           $root/lib/systemd/system-generators $root/usr/local/lib/systemd
    etc=$root/etc/systemd/system
    mkdir -p $etc/{sysinit,sockets,multi-user}.target.wants $etc/systemd-tmpfiles-setup.service.d
    ln -s $lib/systemd-{journald,tmpfiles-setup,sysusers}.service $etc/sysinit.target.wants/
    ln -s $lib/{systemd-journald,systemd-journald-dev-log,dbus}.socket $etc/sockets.target.wants/
    # A real boot empties /tmp. Here that could hit the caller's files.
    printf '[Service]\nExecStart=\nExecStart=systemd-tmpfiles --create --boot --exclude-prefix=/dev\n' \
        > $etc/systemd-tmpfiles-setup.service.d/keep.conf
    mkdir -p $root/etc/systemd/journald.conf.d
    printf '[Journal]\nStorage=volatile\nForwardToConsole=no\nRateLimitBurst=0\n' \
        > $root/etc/systemd/journald.conf.d/box.conf
    # A valid id: without one, systemd takes this for a first boot and enables
    # every unit that its presets name.
    systemd-id128 new > $root/etc/machine-id

    # The command. Type=exec, not oneshot: a pending start job would keep
    # `systemctl is-system-running` at "starting".
    cat > $etc/box.service <<-UNIT
	[Unit]
	Description=The command in the box
	After=multi-user.target
	SuccessAction=exit-force
	FailureAction=exit-force
	[Service]
	Type=exec
	ExecStart=/bin/bash /run/box/run
	ExecStopPost=/bin/sh -c 'echo \$EXIT_CODE \$EXIT_STATUS >/run/box/status'
	# what COMMAND left running ends with it
	KillSignal=SIGKILL
	TasksMax=infinity
	Delegate=yes
	UNIT
    cat > $etc/box.target <<-UNIT
	[Unit]
	Requires=multi-user.target box.service
	After=multi-user.target
	UNIT
    {
        echo 'exec </dev/null >/run/box/out 2>/run/box/err'
        # Exported variables, less those that tie a process to the outer system.
        export -p | grep -Ev '^declare -[a-zA-Z]*x[a-zA-Z]* (BOX_[A-Z_]*|NOTIFY_SOCKET|LISTEN_[A-Z]+|INVOCATION_ID|JOURNAL_STREAM|XDG_[A-Z_]+|DBUS_[A-Z_]+|MANAGERPID|SYSTEMD_[A-Z_]+|SHLVL|OLDPWD|PWD)(=|$)' || :
        printf 'cd %q\n' "$BOX_CWD"
        echo 'systemctl is-system-running --wait >/dev/null || systemctl --failed --no-legend --plain >&2'
        printf 'exec'; printf ' %q' "$@"; echo
    } > $box/io/run
    mkfifo $box/io/{out,err}
    : > $box/console
    cat $box/io/out & local out=$!
    cat $box/io/err >&2 & local err=$!

    local -a args=(
        --quiet --boot --directory="$root" --register=no --keep-unit
        --private-network --console=passive --resolv-conf=off --timezone=off --link-journal=no
        # let systemd in the box use BPF (IPAddressDeny=, SocketBindDeny=, ...)
        --system-call-filter=bpf --capability="CAP_BPF,CAP_PERFMON,CAP_SYS_RESOURCE"
        --bind="$box/io:/run/box" --bind="$box/journal:/run/log/journal"
        --bind="$box/host:${host//:/\\:}"
    )
    for d in ${BOX_BIND_RO-}; do args+=(--bind-ro="$d"); done
    local -a init=(--unit=box.target)
    if [ -n "${BOX_VERBOSE-}" ]; then
        init+=(--show-status=yes --log-target=console --log-level=info)
    else
        init+=(--show-status=no --log-target=journal)
    fi
    # /tmp is not to be an empty tmpfs; cgroup v2 also where the host has v1.
    export SYSTEMD_NSPAWN_TMPFS_TMP=0 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    systemd-nspawn "${args[@]}" -- "${init[@]}" </dev/null >>$box/console 2>&1 & local nspawn=$!
    # The time limit. Kill the system (nspawn's child), not nspawn: the system
    # would survive it. Should that not do, kill whatever is in our namespace.
    {
        sleep "${BOX_TIMEOUT-300}"
        echo killed 9 > $box/timeout
        # shellcheck disable=SC2046  # one word for each process
        kill -KILL $(pgrep -P $nspawn) || :
        sleep 3
        kill -KILL -- -1
    } 2>/dev/null &
    [ -z "${BOX_VERBOSE-}" ] || { tail -n +1 -f -s 0.1 --pid=$nspawn $box/console >&2 & }
    wait $nspawn || rc=$?

    # Release a `cat` that nobody ever wrote to, and let both finish.
    : <>$box/io/out; : <>$box/io/err
    wait $out $err || :
    if [ -n "${BOX_JOURNAL-}" ]; then
        journalctl --directory=$box/journal --no-pager --output=short-precise > "$BOX_JOURNAL" || :
    fi
    if [ -e $box/timeout ]; then
        echo "systemd-in-a-box: killed after ${BOX_TIMEOUT-300} s; the last of the journal:" >&2
        journalctl --directory=$box/journal --no-pager --lines=30 >&2 || :
        exit 124
    elif [ -s $box/io/status ]; then
        local how status
        read -r how status < $box/io/status
        [ "$how" = exited ] || status=$((128 + $(kill -l "$status")))
        exit "$status"
    fi
    cat $box/console >&2
    journalctl --directory=$box/journal --no-pager --lines=30 >&2 || :
    die "the system ended (status $rc) before the command did"
}

case ${1-} in
    --stage0b)                # pdeathsig is set; is the parent it watches the right one?
        [ "$PPID" = "$2" ] || exit 125
        shift 2
        exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
            "$0" --stage1 "$@" ;;
    --stage1) shift; stage1 "$@" ;;
esac

# ---------------------------------------------------------------- stage 0
child=
cgroups=()
clean_cgroups() {                       # rmdir DIR and what is below it, if empty
    find "$@" -depth -type d -exec rmdir {} + 2>/dev/null
}
# shellcheck disable=SC2317  # reached through the trap
finish() {
    trap '' TERM INT HUP
    [ -z "${child-}" ] || kill -KILL "$child" 2>/dev/null || :
    [ -z "${child-}" ] || wait "$child" 2>/dev/null || :
    for d in "${cgroups[@]}"; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do                # the kernel may need a moment
            if [ ! -d "$d" ] || clean_cgroups "$d"; then break; fi
            sleep 0.05
        done
    done
}
# Early: while bash waits for a command, an untrapped SIGINT is lost.
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

[ $# -ge 2 ] || { sed -n '4s/^#  */usage: /p' "$0" >&2; exit 125; }
[ "$(id -u)" = 0 ] || die "needs root"
for tool in systemd-nspawn unshare setpriv systemd-id128 journalctl pgrep; do
    command -v $tool >/dev/null || die "$tool is missing (packages systemd-container, util-linux, procps)"
done
[ -d "$1" ] || die "$1: no such directory"
hostdir=$(realpath -e -- "$1")
[ "$hostdir" != / ] || die "HOSTDIR must not be /"
shift
case $PWD/ in "$hostdir"/*) BOX_CWD=$PWD ;; *) BOX_CWD=$hostdir ;; esac
[ -z "${BOX_JOURNAL-}" ] || BOX_JOURNAL=$(realpath -m -- "$BOX_JOURNAL")
export BOX_CWD BOX_JOURNAL

# A cgroup of our own for nspawn to work in. Under systemd, ask for a delegated
# scope; otherwise make a directory.
self=$(realpath -e -- "$0")
if [ -d /run/systemd/system ]; then
    if [ -z "${BOX_IN_SCOPE-}" ]; then
        BOX_IN_SCOPE=1 exec systemd-run --quiet --scope --collect --property=Delegate=yes \
            --property=TasksMax=infinity -- "$self" "$hostdir" "$@"
    fi
else
    mnt=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    [ -n "$mnt" ] || die "no cgroup2 file system is mounted"
    # On a hybrid host, nspawn repeats the path in the v1 hierarchy "systemd".
    for mnt in "$mnt" $(awk '$3 == "cgroup" && $4 ~ /name=systemd/ { print $2 }' /proc/self/mounts); do
        for d in "$mnt${own%/}"/systemd-in-a-box-*; do   # left by a SIGKILL
            [ -d "/proc/${d##*-}" ] || clean_cgroups "$d" || :
        done
        cgroups+=("$mnt${own%/}/systemd-in-a-box-$$")
    done
    mkdir "${cgroups[0]}" || die "cannot create a cgroup"
fi

# Death is contagious downwards: this shell -> stage 0b = unshare (setpriv
# --pdeathsig) -> stage 1 (unshare --kill-child) -> all of its PID namespace.
(
    [ ${#cgroups[@]} = 0 ] || echo $BASHPID > "${cgroups[0]}/cgroup.procs"
    exec setpriv --pdeathsig KILL "$self" --stage0b $$ "$hostdir" "$@"
) &
child=$!
rc=0
wait "$child" || rc=$?
child=
exit "$rc"
