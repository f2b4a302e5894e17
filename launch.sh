#!/usr/bin/env bash
# Installs jaxvit if necessary, then runs it.
#
#   ./launch.sh                 train the default experiment (handwritten digits) and print its test accuracy
#   ./launch.sh test [ARGS]     install the test extras and run pytest ARGS; a `reproduce --queue` on this machine pauses
#   ./launch.sh VERB [ARGS]     any verb: ./launch.sh train --config=digits:cct --workdir=runs/mine
#   ./launch.sh --on=slurm|tpu|k8s|local [FLAGS] VERB [ARGS]
#                               the same elsewhere; ./launch.sh --on=slurm --help lists the flags
#
# After an installation, and after the default experiment, it prints a command to try next.
#
# JAXVIT_ACCELERATOR=cpu|cuda12|cuda13|tpu   which jax to install (default: detected)
# JAXVIT_PYTHON=python3.13                   Python for the environment (default: python3.11, used for all tests and
#                                            results; else 3.13, 3.12)
# JAXVIT_VENV=DIR                            folder of the environment (default: .venv beside this file)
#
# A run that exits with code 75 (stopped by SIGTERM, state saved) is started again, unless --limit stopped it. A run
# stopped by Ctrl-C is not started again.
set -u

from=$PWD
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 2
venv=${JAXVIT_VENV:-$here/.venv}
case $venv in /*) ;; *) venv=$from/$venv ;; esac  # the default experiment and the tests change the working folder

fail() { printf 'launch.sh: %s\n' "$1" >&2; exit "${2:-2}"; }

# --- which jax to install -------------------------------------------------------------------------------------------

accelerator() {
  if [ -n "${JAXVIT_ACCELERATOR:-}" ]; then
    case $JAXVIT_ACCELERATOR in
      cpu|cuda12|cuda13|tpu) echo "$JAXVIT_ACCELERATOR" ;;
      *) fail "JAXVIT_ACCELERATOR=$JAXVIT_ACCELERATOR: must be cpu, cuda12, cuda13 or tpu" ;;
    esac
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    # The driver limits the CUDA version: CUDA 13 needs driver 580 or later.
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
    if [ "${driver%%.*}" -ge 580 ] 2>/dev/null; then echo cuda13; else echo cuda12; fi
  elif [ -n "${TPU_NAME:-}" ] || ls /dev/accel0 /dev/vfio/0 >/dev/null 2>&1; then
    echo tpu
  else
    echo cpu
  fi
}

find_python() {
  local candidate
  for candidate in ${JAXVIT_PYTHON:-python3.11 python3.13 python3.12 python3}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"; return
    fi
  done
  fail "${JAXVIT_PYTHON:+JAXVIT_PYTHON=$JAXVIT_PYTHON is not usable: }jaxvit needs Python 3.11 or newer with venv; install it, or name one with JAXVIT_PYTHON=/path/to/python3.11"
}

# --- the environment --------------------------------------------------------------------------------------------------

# A stamp file records what is installed, so that a second call installs nothing.
stamp=$venv/.jaxvit-installed
wanted() { echo "[$1] $(cat "$here/setup.cfg" "$here/pyproject.toml" | cksum) $here"; }
installed() { [ -x "$venv/bin/python" ] && grep -qxF "$(wanted "$1")" "$stamp" 2>/dev/null; }

install() {  # install EXTRAS, such as "" or "cuda12,test"
  local extras=$1 free log=$venv/install.log
  local parent needed=1500
  parent=$(dirname "$venv")
  case $extras in *cuda*) needed=8000 ;; *tpu*) needed=3000 ;; esac
  free=$(df -Pk "$parent" 2>/dev/null | awk 'NR == 2 {print int($4 / 1024)}')
  if [ -n "$free" ] && [ "$free" -lt "$needed" ]; then
    fail "the disk is almost full: $free MB are free in $parent, the installation needs $needed MB" 70
  fi
  if [ ! -x "$venv/bin/python" ]; then
    local base; base=$(find_python) || exit 2
    echo "launch.sh: making $venv with $("$base" --version)"
    "$base" -m venv "$venv" >/dev/null 2>&1 ||
      fail "cannot make an environment in $venv; is the folder writable, and does $base have the venv module?" 70
  fi
  echo "launch.sh: installing jaxvit${extras:+[$extras]} (a few minutes the first time)"
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -e "$here${extras:+[$extras]}" >"$log" 2>&1; then
    if grep -qi 'no space left' "$log"; then fail "the disk is full; make room and start again (details in $log)" 70; fi
    if grep -qiE 'name resolution|name or service not known|connection|network is unreachable|max retries|timed out|from versions: none' "$log"; then
      fail "the packages cannot be fetched: no network, or no version for this Python (details in $log)" 70
    fi
    fail "the installation failed: $(grep -iE '^error' "$log" | tail -n 1) (details in $log)" 70
  fi
  wanted "$extras" >>"$stamp"
  new=1
}

# --- what comes next --------------------------------------------------------------------------------------------------

# A path relative to the folder in which the user called this script, quoted.
typed() { printf '%q' "${1#"$from"/}"; }

say_next() {  # say_next ARGS: how to call jaxvit, with ARGS as an example
  printf '\nNext, for example:  %s %s\n' "$(typed "$venv/bin/jaxvit")" "$*"
  printf 'To use the command jaxvit in this terminal:  source %s\n' "$(typed "$venv/bin/activate")"
}

# --- run --------------------------------------------------------------------------------------------------------------

new=  # set if this call has installed something
kind=$(accelerator) || exit 2
[ "$kind" = cpu ] && kind=   # plain jax
with_tests=${kind:+$kind,}test

for flag in "$@"; do
  case $flag in
    --on|--on=*)
      # shellcheck source=launch/anywhere.sh
      . "$here/launch/anywhere.sh"
      launch_elsewhere "$@"
      exit ;;
    --*) ;;
    *) break ;;
  esac
done

if [ "${1:-}" = test ]; then
  shift
  installed "$with_tests" || install "$with_tests"
  cd "$here" || exit 2
  [ -n "$new" ] || exec "$venv/bin/python" -m jaxvit.devices.quiet "$venv/bin/python" -m pytest "$@"
  "$venv/bin/python" -m jaxvit.devices.quiet "$venv/bin/python" -m pytest "$@"
  code=$?
  say_next train --config=digits --workdir=runs/digits
  exit "$code"
fi

# The test environment includes everything that a run needs.
installed "$kind" || installed "$with_tests" || install "$kind"

next=(--help)
default=
if [ $# -eq 0 ]; then
  cd "$here" || exit 2
  set -- train --config=digits --workdir=runs/digits
  default=1
  next=(evaluate "--workdir=$(typed "$here/runs/digits")")
fi

child='' terminated='' limited=''
for word in "$@"; do
  case $word in --limit|--limit=*) limited=1 ;; esac
done
trap 'terminated=1; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' TERM
trap ':' INT  # a terminal sends Ctrl-C to the run too; wait until it has saved

while :; do
  # In the background, so that SIGTERM is passed on immediately; the shell would make such a child ignore Ctrl-C.
  (trap - INT; exec "$venv/bin/python" -m jaxvit "$@") <&0 &
  child=$!
  # wait returns early on a trapped signal; repeat until the run has ended.
  while :; do wait "$child"; code=$?; kill -0 "$child" 2>/dev/null || break; done
  if [ "$code" -eq 134 ]; then
    fail "the run was aborted; if it is one of several processes, another one has failed (see its output)" 70
  fi
  if [ "$code" -ne 75 ] || [ -n "$terminated$limited" ]; then break; fi
  echo "launch.sh: the run was stopped and its state is saved; starting it again" >&2
done

if [ -n "$new" ] || { [ -n "$default" ] && [ "$code" -eq 0 ]; }; then
  [ "$code" -eq 0 ] || next=(--help)
  say_next "${next[@]}"
fi
exit "$code"
