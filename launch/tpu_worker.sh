#!/usr/bin/env bash
# Runs on every worker of a Cloud TPU slice, called by `launch.sh --on=tpu` over ssh.
#
#   tpu_worker.sh start VERB ARG…    starts launch.sh in the background, unless the same command is running already
#   tpu_worker.sh follow SEEN        prints the log without its first SEEN lines until the run ends, and its exit code
#
# The run does not depend on the connection: a lost one neither stops nor restarts it.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
state=$HOME/jaxvit-run
mkdir -p "$state" || exit 70

running() { [ -s "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }

case ${1:-} in
  start)
    shift
    printf '%s\0' "$@" >"$state/new"
    if running; then
      cmp -s "$state/new" "$state/command" && exit 0
      echo "tpu_worker.sh: another command is running on $(hostname); stop it by: kill $(cat "$state/pid")" >&2
      exit 2
    fi
    mv "$state/new" "$state/command"
    rm -f "$state/code"
    # Ubuntu 22.04, which these VMs have, comes with Python 3.10; jaxvit needs 3.11.
    if ! command -v python3.11 >/dev/null && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv || exit 70
    fi
    # Relative paths of the command are those of the home folder, where --copy puts files.
    cd "$HOME" || exit 70
    export JAXVIT_ACCELERATOR=${JAXVIT_ACCELERATOR:-tpu}
    launch=$OLDPWD/launch.sh
    # shellcheck disable=SC2016 # the inner shell expands these
    nohup setsid bash -c '
      launch=$1 state=$2; shift 2
      "$launch" "$@"; echo $? >"$state/code.new"; mv "$state/code.new" "$state/code"
    ' run "$launch" "$state" "$@" >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    ;;
  follow)
    seen=$2
    while :; do
      ended=''; [ -e "$state/code" ] && ended=1
      running || ended=1
      lines=$(wc -l <"$state/log") || exit 70
      if [ "$lines" -gt "$seen" ]; then
        sed -n "$((seen + 1)),${lines}p" "$state/log"
        seen=$lines
      fi
      [ -z "$ended" ] || break
      sleep "${JAXVIT_POLL:-2}"
    done
    # A run without a code was killed; 137 is the shell's number for it.
    echo "tpu_worker.sh: ended with $(cat "$state/code" 2>/dev/null || echo 137)"
    ;;
  *) echo "tpu_worker.sh: start or follow" >&2; exit 2 ;;
esac
