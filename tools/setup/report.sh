# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
#
# Sourced by the tools that run several things: each goes on after a failure,
# says how far it is, and ends with a summary and the number of tests.

begun=$(date +%s)
summary=
failed=0
step=0
# How many things will be run, where that is known.
steps=

# Where whatever runs tests notes how many; who runs this may have said.
counts=
if [ -z "${VIRTLOGD_COUNTS-}" ]; then
    counts=$(mktemp)
    VIRTLOGD_COUNTS=$counts
    export VIRTLOGD_COUNTS
fi

as_root=
# Root leaves no compiled files in the tree of somebody else.
[ "$(id -u)" = 0 ] || as_root="sudo --preserve-env=VIRTLOGD_COUNTS
    env PYTHONDONTWRITEBYTECODE=1"

# run NAME COMMAND...
run() {
    name=$1
    shift
    step=$((step + 1))
    printf '\n== %s%s: %s (after %s s) ==\n' "$step" "${steps:+ of $steps}" \
        "$name" "$(($(date +%s) - begun))"
    start=$(date +%s)
    if "$@"; then
        result=passed
    else
        result=FAILED
        failed=1
    fi
    summary="$summary
$name: $result, $(($(date +%s) - start)) s"
}

# beside FILE COMMAND...: in the background, what it says into a file; $! is
# its process, and the first of its group
beside() {
    output=$1
    shift
    setsid "$@" >"$output" 2>&1 &
}

# wait_for PROCESS FILE: what it says, as it says it; its exit status
wait_for() {
    tail --follow --lines=+1 --pid="$1" --sleep-interval=0.5 "$2"
    wait "$1"
}

# finish: the summary; the exit status says whether anything failed
finish() {
    printf '\n== Summary ==%s\nall: %s s\n' \
        "$summary" "$(($(date +%s) - begun))"
    if [ -n "$counts" ]; then
        echo
        python3 tools/setup/counts.py "$counts"
        rm -f "$counts"
    fi
    exit $failed
}
