# shellcheck shell=bash disable=SC2154 # launch.sh and anywhere.sh set here, venv, kind and flag_NAME
# --on=local: this machine. Read by anywhere.sh.

about() {
  cat <<'TEXT'
Runs on this machine, as without --on: a run that exits with 75 (stopped, state saved) is started again.

  ./launch.sh --on=local train --config=digits --workdir=runs/digits
TEXT
}

flags() { :; }

submit() {
  if [ -n "$flag_dry_run" ]; then show "$venv/bin/python" -m jaxvit "$@"; exit 0; fi
  exec "$here/launch.sh" "$@"
}
