#!/usr/bin/env bash
# A worker in the shell. It receives one message after the other and runs a command for each. It acks the message with
# the command's output as the result. If the command fails, it gives the message back, and the message is delivered
# again. It ends when the queue is empty. It needs jq.
#
#   usage: receive-and-ack.sh QUEUE COMMAND [ARGUMENT…]
#   try it:
#     eoq send words 'hello world'
#     examples/receive-and-ack.sh words wc -w
#     eoq queues
#
# The command gets the body on standard input, and EOQ_ID, EOQ_ATTEMPT and EOQ_RECEIPT in its environment. A long
# command should call `eoq extend "$EOQ_RECEIPT" 300` from time to time. If this script is killed between the command
# and the ack, the message is delivered again. Pass EOQ_ID as an idempotency key to systems whose effect must not happen
# twice.
#
# WAIT   seconds without a message after which the queue counts as empty (2)
# LEASE  seconds that the command may take; after them the message is also delivered to another consumer (300)
set -u -o pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 QUEUE COMMAND [ARGUMENT…]" >&2
  exit 2
fi
queue=$1
shift

folder=$(mktemp -d) || exit
trap 'rm -rf "$folder"' EXIT

# Print the body as bytes: text as it is, anything else decoded from base64.
body() {
  if [ "$(jq 'has("body")' <<< "$message")" = true ]; then
    jq -j .body <<< "$message"
  else
    jq -r .body_base64 <<< "$message" | base64 -d
  fi
}

# The exit status of eoq if it refused this ack: the lease has ended, or the output is too large for a result (1 MiB).
# eoq has printed which. The message is delivered again, so continue with the next one.
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
    exit $status # eoq has printed the reason
  fi
  handle
  status=$?
  if [ $status -ne 0 ] && [ $status -ne $refused ]; then
    exit $status
  fi
done
