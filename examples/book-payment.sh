#!/bin/sh
# Books one payment in a SQLite file, exactly once, with the shell and `sqlite3`. `eoq work` runs it for each message.
#
#   usage: book-payment.sh LEDGER       with the body on standard input and the message's id in EOQ_ID
#   try it:
#     eoq send payments '{"account": "dave", "cents": 300}' --id ledger-4
#     eoq work payments --until-empty -- examples/book-payment.sh ledger.db
#   see that it may be killed anywhere:
#     eoq prove payments --db ledger.db --body '{"account": "dave", "cents": 300}' -- examples/book-payment.sh ledger.db
#
# The id is stored in the transaction of the effect, and it is the primary key there. If the script is killed, the message
# is delivered again. Then either nothing was committed, or the id is found and nothing is booked a second time.
set -eu

if [ $# -ne 1 ] || [ -z "${EOQ_ID:-}" ]; then
  echo "usage: eoq work QUEUE -- $0 LEDGER" >&2
  exit 2
fi

body=$(mktemp)
trap 'rm -f "$body"' EXIT
cat > "$body"

# The body stays in a file, and no letter of it becomes SQL. The id does, so its quotes are doubled.
id=$(printf %s "$EOQ_ID" | sed "s/'/''/g")
read_body="cast(readfile('$body') as text)"

# What can never be a payment is not tried again: for `eoq work`, exit status 100 makes it a dead letter.
valid=$(sqlite3 :memory: "
  with message (body) as (select iif(json_valid($read_body), $read_body, 'null'))
  select json_type(body, '\$.account') = 'text' and json_type(body, '\$.cents') = 'integer' from message")
if [ "$valid" != 1 ]; then
  echo 'no payment: it looks like {"account": "alice", "cents": 500}' >&2
  exit 100
fi

# `eoq work` stores what this prints as the result of the message. Where the file is locked for half a minute or the disk is
# full, sqlite3 fails, and the message is tried again later.
sqlite3 -bail "$1" <<SQL
.timeout 30000
pragma synchronous = extra;
begin immediate;
create table if not exists booked (payment text primary key, account text not null, cents integer not null) strict;
create table if not exists balance (account text primary key, cents integer not null) strict;

insert into booked
select '$id', json_extract(body, '\$.account'), json_extract(body, '\$.cents')
from (select $read_body as body)
where true
on conflict do nothing;

insert into balance
select account, cents
from booked
where payment = '$id' and changes() = 1 -- only if the first statement has stored it
on conflict (account) do update
set cents = cents + excluded.cents;

select account || ' has ' || balance.cents || ' cents'
from booked
join balance using (account)
where payment = '$id';
commit;
SQL
