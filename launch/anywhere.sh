# shellcheck shell=bash
# Read by launch.sh if a flag --on=WHERE comes before the verb: flags, help and checks that all places share.
#
# Each place is a file beside this one that defines
#   about                 its help text: one line, then examples
#   flags                 a table with a line NAME|DEFAULT|VALUE|MEANING for each flag. VALUE is empty for a flag without
#                         a value, and ends in ... for a flag that may be repeated
#   submit VERB ARG…      starts the run; the flags are in the variables flag_NAME. With $flag_dry_run it only prints
# The scripts work with bash 3.2, which macOS has.

: "${here:?launch.sh reads this file}" "${venv:?}"
PLACES="local slurm tpu k8s"

# An array may be empty, which bash 3.2 reports as unset; so arrays are expanded as ${name[@]+"${name[@]}"}.

listed() {  # listed WORD WORD…: whether the first word is among the others
  local word=$1 other; shift
  for other in "$@"; do [ "$other" = "$word" ] && return 0; done
  return 1
}

all_flags() { flags; echo 'dry_run|||print what would be submitted, and submit nothing'; }

help() {
  local name default value meaning
  printf 'usage: ./launch.sh --on=%s [FLAGS] VERB [ARGUMENTS OF THE VERB]\n\n%s\n\n' "$on" "$(about)"
  printf 'flags, before the verb; words after the verb are passed to it unchanged:\n'
  while IFS='|' read -r name default value meaning; do
    printf '  %-26s %s%s\n' "--$name${value:+=$value}" "$meaning" "${default:+ (default: $default)}"
  done < <(all_flags)
}

nearest_flag() {  # nearest_flag NAME: " (did you mean --…?)" for a flag that begins alike
  local name rest
  while IFS='|' read -r name rest; do
    case $name in "${1:0:3}"*) printf ' (did you mean --%s?)' "$name"; return ;; esac
  done < <(all_flags)
}

set_flag() {  # set_flag WORD: the word is --NAME or --NAME=VALUE
  local word=$1 given name default value meaning
  given=${word%%=*} given=${given#--} given=${given//-/_}
  while IFS='|' read -r name default value meaning; do
    [ "$name" = "$given" ] || continue
    case $value,$word in
      ,*=*) fail "$word: --$name takes no value; see ./launch.sh --on=$on --help" ;;
      ,*) printf -v "flag_$name" 1 ;;
      *,*=) fail "$word: the value is missing; write --$name=$value" ;;
      *...,*=*) eval "flag_$name+=(\"\${word#*=}\")" ;;
      *,*=*) printf -v "flag_$name" '%s' "${word#*=}" ;;
      *) fail "$word: write its value after =, such as --$name=$value" ;;
    esac
    return
  done < <(all_flags)
  fail "--on=$on has no flag ${word%%=*}$(nearest_flag "$given"); flags of the verb come after the verb; see ./launch.sh --on=$on --help"
}

whole() {  # whole NAME SMALLEST: the flag's value must be a whole number of this size or more
  local name=flag_$1
  if ! [[ ${!name} =~ ^[0-9]{1,9}$ ]] || [ "$((10#${!name}))" -lt "$2" ]; then
    fail "--$1=${!name}: must be a whole number, $2 or more"
  fi
}

needs() {  # needs COMMAND PLACE HOW-TO-GET-IT
  [ -n "$flag_dry_run" ] || command -v "$1" >/dev/null 2>&1 || fail "--on=$2 needs the command $1: $3"
}

quoted() {  # quoted WORD…: the words as one line for a shell, which a reader can follow
  local word line='' quote="'" escaped="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//$quote/$escaped}'"
    line="$line${line:+ }$word"
  done
  printf '%s' "$line"
}

show() {  # show WORD…: prints a command, quoted for the shell, one flag per line
  local word line='' before=''
  for word in "$@"; do
    case $before,$word in
      *,--*|--*,/*) printf '%s \\\n' "$line"; line="  $(quoted "$word")" ;;
      *) line="$line${line:+ }$(quoted "$word")" ;;
    esac
    before=$word
  done
  printf '%s\n' "$line"
}

refuse_bucket() {  # refuse_bucket ARG…: a run on another machine would refuse it too, but only after a wait in the queue
  local word before=''
  for word in "$@"; do
    case $before,$word in
      *,--workdir=gs://*|*,--workdir=s3://*|*,--data=gs://*|*,--data=s3://*) word=${word#*=} ;;
      --workdir,gs://*|--workdir,s3://*|--data,gs://*|--data,s3://*) ;;
      *) before=$word; continue ;;
    esac
    fail "$word is a bucket, and jaxvit reads and writes file systems only: mount one on every machine, or copy the folder there first"
  done
}

check_verb() {  # check_verb VERB: finds a mistake before the job waits in a queue
  local verbs
  verbs=$(sed -n '/^VERBS = {/,/^}/s/^    "\([a-z]*\)": .*/\1/p' "$here/jaxvit/cli/command_line.py" | tr '\n' ' ')
  [ -n "$1" ] ||
    fail "the verb is missing, such as: ./launch.sh --on=$on train --config=digits --workdir=runs/digits"
  # shellcheck disable=SC2086 # a list of words
  listed "$1" $verbs || fail "there is no verb '$1' to launch; verbs: $(printf '%s' "$verbs" | sed 's/ *$//; s/ /, /g')"
}

launch_elsewhere() {  # launch_elsewhere FLAG… VERB ARG…: everything that launch.sh was called with
  local word name default value meaning
  on=''
  for word in "$@"; do
    case $word in
      --on=*) on=${word#--on=} ;;
      --on) fail "--on: write the place after =, such as --on=slurm; places: ${PLACES// /, }" ;;
      --*) ;;
      *) break ;;
    esac
  done
  # shellcheck disable=SC2086 # a list of words
  listed "$on" $PLACES || fail "--on=$on: must be one of ${PLACES// /, }"
  # shellcheck source=/dev/null
  . "$here/launch/$on.sh"
  while IFS='|' read -r name default value meaning; do
    case $value in *...) eval "flag_$name=()" ;; *) printf -v "flag_$name" '%s' "$default" ;; esac
  done < <(all_flags)
  while [ $# -gt 0 ]; do
    case $1 in
      --help|-h) help; exit 0 ;;
      --on=*) ;;
      -*) set_flag "$1" ;;
      *) break ;;
    esac
    shift
  done
  [ "$on" = local ] || check_verb "${1:-}"
  [ "$on" = local ] || refuse_bucket "$@"
  submit "$@"
}
