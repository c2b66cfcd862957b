#!/bin/sh
# Leaves a daily job in the spool, with nothing but the shell: eoq need not be installed for this user, nor its daemon run.
# The daemon takes the file as soon as it runs with `--spool`. The message's id is made of the job and the day, so that a
# second run on the same day is no second message.
#
#   usage: spool-from-cron.sh SPOOL QUEUE JOB [DAY]
#   by hand: examples/spool-from-cron.sh spool reports nightly-report
#   crontab: 15 2 * * * /opt/shop/spool-from-cron.sh /var/spool/shop reports nightly-report
#
# Where eoq is installed, `eoq send QUEUE BODY --spool SPOOL` does this by itself, and only if the daemon is away.
set -eu
LC_ALL=C
export LC_ALL

if [ $# -lt 3 ] || [ $# -gt 4 ]; then
  echo "usage: $0 SPOOL QUEUE JOB [DAY]" >&2
  exit 2
fi
folder=$1/$2
job=$3
day=${4:-$(date +%F)}

# Both go into JSON and into a file's name as they are.
case $job$day in
  *[!A-Za-z0-9._-]*)
    echo "$0: use letters, digits, dots, dashes and underscores for JOB and DAY" >&2
    exit 2
    ;;
esac

umask 077
mkdir -p "$folder"
# A name that begins with a dot is not ready: half a file is never taken.
file=$folder/.$job-$day.$$
trap 'rm -f "$file"' EXIT

# The name's end, .eoq, says that the first line has options; what follows is the body, to the byte.
{
  printf '{"id": "%s", "headers": {"content-type": "application/json"}}\n' "$job-$day"
  printf '{"job": "%s", "day": "%s"}' "$job" "$day"
} > "$file"
sync "$file" 2> /dev/null || sync # on disk before it is ready, so that a loss of power leaves all of it or nothing
mv "$file" "$folder/$job-$day.$$.eoq"
