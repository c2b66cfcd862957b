#!/bin/sh
# Enqueues a daily job from cron. The script builds the message's id from the job and the day. So a second run on the
# same day (a run by hand, a retry, a clock set back) stores no second message.
#
#   usage: cron-enqueue.sh QUEUE JOB [DAY]
#   by hand: examples/cron-enqueue.sh reports nightly-report
#   run it for a day that was missed: examples/cron-enqueue.sh reports nightly-report 2026-01-31
#   crontab (cron has a short PATH, so add the folder of eoq; cron may have no XDG_RUNTIME_DIR, so set the socket that
#   `eoq status` shows):
#     PATH=/usr/local/bin:/usr/bin:/bin
#     EOQ_SOCKET=/run/user/1000/eoq/eoq.sock
#     15 2 * * * /opt/shop/cron-enqueue.sh reports nightly-report
#
# The script prints nothing if it succeeds, because cron mails all output. If the daemon cannot be reached, it prints an
# error on standard error and exits with status 69. You can run it again, as often as you like.
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

# Both are put into JSON without escaping, so refuse characters that JSON would escape.
case $job$day in
  *[!A-Za-z0-9._-]*)
    echo "$0: use letters, digits, dots, dashes and underscores for JOB and DAY" >&2
    exit 2
    ;;
esac

# The body depends only on the job and the day. The daemon would refuse the same id with another body as a conflict.
eoq send "$queue" "{\"job\": \"$job\", \"day\": \"$day\"}" \
  --id="$job-$day" --header content-type=application/json > /dev/null
