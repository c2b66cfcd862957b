-- One row a queue: its number stands for its name everywhere else.
create table queue (
  number integer primary key,
  name text not null unique
) strict;

-- One row a message, from its send until its settled record is forgotten.
--
--   ready ──claim──▶ leased ──ack──▶ done
--     ▲                │ nack, lease ended, disconnect, restart: back to ready (or delayed)
--     │                └─reject, or no attempt left──▶ dead
--   delayed (until due_at) · blocked (until the message before it in its group is done or dead)
create table message (
  seq integer primary key,             -- order of storing; never used twice
  queue integer not null,
  id text not null,                    -- the idempotency key, unique in its queue
  state text not null,
  attempts integer not null default 0, -- deliveries that count towards the last one
  fence integer not null default 0,    -- all deliveries: the receipt of an earlier one settles nothing
  priority integer not null default 0,
  enqueued_at real not null,           -- seconds since the epoch, as all times here
  due_at real,
  settled_at real,
  digest blob not null,                -- of body, headers and group: tells a duplicate from a conflict
  "group" text,
  headers text,                        -- JSON, null where there are none
  error text,                          -- why the last delivery failed
  body blob,                           -- null once done
  result blob
) strict;

-- send: is this id stored? result, show: where is it?
create unique index message_by_id on message (queue, id);

-- receive: the next messages of a queue
create index message_ready on message (queue, priority desc, seq) where state = 'ready';

-- the timer of delayed messages: what is due, and when is the next?
create index message_delayed on message (due_at, queue) where state = 'delayed';

-- start: which leases ended with the daemon that gave them?
create index message_leased on message (queue, seq) where state = 'leased';

-- dead letters of a queue
create index message_dead on message (queue, seq) where state = 'dead';

-- watermark: the first message of a queue that is not settled; forgetting: those settled longest ago
create index message_settled on message (queue, settled_at, seq);

-- groups: is one of this group before it? which comes next?
create index message_group on message (queue, "group", state, seq) where "group" is not null;

-- Numbers that outlive the rows they count: next_seq, written whenever rows are deleted.
create table counter (
  name text primary key,
  value integer not null
) strict, without rowid;
