#!/bin/sh
# Leaves a daily job in the spool, using only the shell. eoq need not be installed for this user, and the daemon need
# not run. A daemon with `--spool` stores the file as a message as soon as it runs. The script builds the message's id
# from the job and the day. So a second run on the same day stores no second message.
#
#   usage: spool-from-cron.sh SPOOL QUEUE JOB [DAY]
#   by hand: examples/spool-from-cron.sh spool reports nightly-report
#   crontab: 15 2 * * * /opt/shop/spool-from-cron.sh /var/spool/shop reports nightly-report
#
# If eoq is installed, use `eoq send QUEUE BODY --spool SPOOL` instead. It uses the spool only if the daemon is away.
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

# Both are put into JSON and into a file name without escaping, so refuse special characters.
case $job$day in
  *[!A-Za-z0-9._-]*)
    echo "$0: use letters, digits, dots, dashes and underscores for JOB and DAY" >&2
    exit 2
    ;;
esac

umask 077
mkdir -p "$folder"
# The daemon ignores names that begin with a dot, so it never reads half a file.
file=$folder/.$job-$day.$$
trap 'rm -f "$file"' EXIT

# In a file whose name ends in .eoq, the first line has options. The rest is the body, byte for byte.
{
  printf '{"id": "%s", "headers": {"content-type": "application/json"}}\n' "$job-$day"
  printf '{"job": "%s", "day": "%s"}' "$job" "$day"
} > "$file"
sync "$file" 2> /dev/null || sync # on disk before the rename, so that a loss of power leaves the whole file or nothing
mv "$file" "$folder/$job-$day.$$.eoq"
