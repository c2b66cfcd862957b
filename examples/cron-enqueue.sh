#!/bin/sh
# Enqueues a daily job from cron. The message's id is made of the job and the day, so that a second run on the same day
# (a run by hand, a retry, a clock set back) is no second message.
#
#   usage: cron-enqueue.sh QUEUE JOB [DAY]
#   by hand: examples/cron-enqueue.sh reports nightly-report
#   catch up on a day that was missed: examples/cron-enqueue.sh reports nightly-report 2026-01-31
#   crontab (cron's PATH is short, so name the folder eoq is in; and it may have no XDG_RUNTIME_DIR, so name the socket
#   that `eoq status` shows):
#     PATH=/usr/local/bin:/usr/bin:/bin
#     EOQ_SOCKET=/run/user/1000/eoq/eoq.sock
#     15 2 * * * /opt/shop/cron-enqueue.sh reports nightly-report
#
# Prints nothing when all is well, because cron mails what is printed. When the daemon cannot be reached, the error goes
# to standard error and the exit status is 69: run it again, as often as you like.
set -eu
LC_ALL=C
export LC_ALL

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  echo "usage: $0 QUEUE JOB [DAY]" >&2
  exit 2
fi
queue=$1
job=$2
day=${3:-$(date +%F)}

# Both go into JSON as they are, so they may have nothing that JSON would escape.
case $job$day in
  *[!A-Za-z0-9._-]*)
    echo "$0: use letters, digits, dots, dashes and underscores for JOB and DAY" >&2
    exit 2
    ;;
esac

# The body depends on the job and the day alone: the same id with another body would be refused as a conflict.
eoq send "$queue" "{\"job\": \"$job\", \"day\": \"$day\"}" \
  --id="$job-$day" --header content-type=application/json > /dev/null
