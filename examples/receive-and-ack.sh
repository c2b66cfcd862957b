#!/usr/bin/env bash
# A worker in the shell: receives one message after the other, runs a command for each, and acks it with the command's
# output as the result. If the command fails, the message is given back and comes again. Ends when the queue is empty.
# Needs jq.
#
#   usage: receive-and-ack.sh QUEUE COMMAND [ARGUMENT…]
#   try it:
#     eoq send words 'hello world'
#     examples/receive-and-ack.sh words wc -w
#     eoq queues
#
# The command gets the body on standard input, and EOQ_ID, EOQ_ATTEMPT and EOQ_RECEIPT in its environment. A long one may
# call `eoq extend "$EOQ_RECEIPT" 300` now and then. If this script is killed between the command and the ack, the message
# comes again: hand EOQ_ID on to whatever must not happen twice.
#
# WAIT   seconds without a message after which the queue counts as empty (2)
# LEASE  seconds the command may take; after that the message is delivered to somebody else as well (300)
set -u -o pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 QUEUE COMMAND [ARGUMENT…]" >&2
  exit 2
fi
queue=$1
shift

folder=$(mktemp -d) || exit
trap 'rm -rf "$folder"' EXIT

# The body as bytes: text as it is, anything else from base64.
body() {
  if [ "$(jq 'has("body")' <<< "$message")" = true ]; then
    jq -j .body <<< "$message"
  else
    jq -r .body_base64 <<< "$message" | base64 -d
  fi
}

# The exit status of eoq when it refused this one ack: the lease has ended, or the output is too large for a result (1 MiB).
# It has said which; the message comes again, so go on with the next.
refused=65

handle() {
  local status
  EOQ_RECEIPT=$(jq -r .receipt <<< "$message") || return
  EOQ_ID=$(jq -r .id <<< "$message") || return
  EOQ_ATTEMPT=$(jq -r .attempt <<< "$message") || return
  export EOQ_RECEIPT EOQ_ID EOQ_ATTEMPT
  body > "$folder/body" || return
  "${command[@]}" < "$folder/body" > "$folder/result" 2> "$folder/errors"
  status=$?
  cat "$folder/errors" >&2
  if [ $status -eq 0 ]; then
    eoq ack "$EOQ_RECEIPT" --result - < "$folder/result"
  else
    eoq nack "$EOQ_RECEIPT" --error="exit status $status: $(tail -c 1000 "$folder/errors" | tr -d '\0')"
  fi
}

command=("$@")
while true; do
  message=$(eoq receive "$queue" --json --wait "${WAIT:-2}" --lease "${LEASE:-300}")
  status=$?
  if [ $status -eq 1 ]; then
    exit 0 # there was no message
  elif [ $status -ne 0 ]; then
    exit $status # eoq has said why
  fi
  handle
  status=$?
  if [ $status -ne 0 ] && [ $status -ne $refused ]; then
    exit $status
  fi
done
