# shellcheck shell=bash
# Shared by the scripts of this directory: messages, packages, and the processes of one
# demo cluster. Sourced, never run.
#
# A process is known by its pid AND its start time (run/NAME.pid holds both), so a pid
# that the system has given to somebody else is never signalled.

# Where the cluster is kept; the scripts set it.
: "${data:=}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    warn "$*"
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root (and there is no sudo): $*"
    fi
}

# Installs those of the Debian packages $@ that are missing.
install_packages() {
    local package missing=()
    for package in "$@"; do
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
            'install ok installed') ;;
            *) missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get here to do it)"
    # What a script prints may be for another program.
    say "installing ${missing[*]}" >&2
    as_root apt-get update -q >/dev/null || warn "apt-get update failed; trying with the old package lists"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
        die "could not install: ${missing[*]}"
}

require_cargo() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null || die "Rust is missing. Install it with
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
open a new shell, and run this again."
}

require_fuse() {
    [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || die "/dev/fuse is missing: this kernel (or container) cannot mount FUSE file systems"
}

# Where cargo puts release binaries.
release_directory() { printf '%s/release' "${CARGO_TARGET_DIR:-$root/target}"; }

# Builds what is to be installed or measured, into $(dist_directory).
build_dist() {
    require_cargo
    say "building (optimized across crates, which takes some minutes)"
    (cd "$root" && cargo build --profile dist --locked --quiet -p dfs-server -p dfs-mount) || die "the build failed"
}
dist_directory() { printf '%s/dist' "${CARGO_TARGET_DIR:-$root/target}"; }

default_data() { printf '%s/dfs-demo' "${XDG_DATA_HOME:-$HOME/.local/share}"; }

# The start time of a process in clock ticks since boot: field 22 of its stat, counted behind the name's ')'.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    # A zombie has ended; only its parent has not noticed.
    [ "${stat%% *}" != Z ] || return 1
    local -a fields
    read -ra fields <<<"$stat"
    printf '%s' "${fields[19]}"
}

# Prints the pid behind run/$1.pid while that very process lives.
live_pid() {
    local pid started
    read -r pid started 2>/dev/null <"$data/run/$1.pid" || return 1
    [ "$(start_time "$pid")" = "$started" ] || return 1
    printf '%s' "$pid"
}

# Starts "$@" detached as $name, with its output in log/NAME.log.
start() {
    local name=$1 pid started
    shift
    # The session leader is the daemon itself: no terminal, no signals of ours.
    setsid "$@" </dev/null >>"$data/log/$name.log" 2>&1 9>&- &
    pid=$!
    disown "$pid" 2>/dev/null || true
    started=$(start_time "$pid") || started=gone
    printf '%s %s\n' "$pid" "$started" >"$data/run/$name.pid"
}

# Waits up to $1 seconds until the rest of the command succeeds, and as long as process $2 ('' for none) lives.
wait_until() {
    local deadline=$((SECONDS + $1)) name=$2
    shift 2
    until "$@"; do
        [ -z "$name" ] || live_pid "$name" >/dev/null || return 1
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.05
    done
}

gone() { ! live_pid "$1" >/dev/null; }

# The last lines of a process's log, for an error message.
log_tail() { tail -n 15 "$data/log/$1.log" 2>/dev/null | sed 's/^/    /' >&2; }

# Names of all processes that were recorded, in the order in which they stop: mounts write
# back, file servers publish what is under way, the services that they need go last.
recorded() {
    local kind file
    for kind in mount file lock directory all; do
        for file in "$data/run/$kind"*.pid; do
            [ -e "$file" ] || continue
            file=${file##*/}
            printf '%s\n' "${file%.pid}"
        done
    done
}

# Ends process $1: SIGTERM, and SIGKILL after $2 seconds.
stop_process() {
    local name=$1 limit=$2 pid
    if pid=$(live_pid "$name"); then
        kill -TERM "$pid" 2>/dev/null || true
        if ! wait_until "$limit" '' gone "$name"; then
            warn "$name (process $pid) did not end within $limit s: killing it"
            kill -KILL "$pid" 2>/dev/null || true
            wait_until 5 '' gone "$name" || warn "process $pid cannot be killed (is it waiting for a disk?)"
        fi
    fi
    rm -f "$data/run/$name.pid"
}

# Through the environment, because awk -v would read the escapes of the name.
is_mounted() { at=$1 awk '$5 == ENVIRON["at"] { found = 1 } END { exit !found }' /proc/self/mountinfo; }

# mountinfo writes blanks and backslashes of a path in octal.
mountinfo_name() { printf '%s' "$1" | sed 's/\\/\\134/g; s/ /\\040/g; s/\t/\\011/g'; }

unmount() {
    local at=$1 name
    name=$(mountinfo_name "$at")
    is_mounted "$name" || return 0
    if umount "$at" 2>/dev/null || fusermount3 -u "$at" 2>/dev/null; then
        return 0
    fi
    is_mounted "$name" || return 0
    warn "$at is in use: unmounting it lazily, it goes when its last user is done"
    umount -l "$at" 2>/dev/null || fusermount3 -uz "$at" || warn "$at cannot be unmounted"
}

# Unmounts and ends everything that belongs to the cluster in $data.
stop_cluster() {
    local name at
    if [ -e "$data/run/mounts" ]; then
        while IFS= read -r at; do
            [ -z "$at" ] || unmount "$at"
        done <"$data/run/mounts"
        rm -f "$data/run/mounts"
    fi
    for name in $(recorded); do
        # A mount writes back what is dirty: it gets time to end by itself.
        case $name in mount*) wait_until 30 '' gone "$name" || true ;; esac
        stop_process "$name" 20
    done
}
