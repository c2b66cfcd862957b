-- The ids that a queue knows, of messages that are stored and of settled ones. An id stays where it is when its message
-- is settled. So the order of the ids, which may be random, matters at the send alone.
create table known_id (
  queue integer not null,
  id text not null,    -- the idempotency key, unique in its queue
  seq integer not null,
  digest blob not null, -- of body, headers and group: tells a duplicate from a conflict
  primary key (queue, id)
) strict, without rowid;

-- How a message was settled. The rows are in the order of sending, whatever the ids are.
create table outcome (
  seq integer primary key,
  queue integer not null,
  outcome text not null,     -- done, forwarded, expired, dropped, cancelled
  settled_at real not null,
  life integer,              -- the newest delivery that had ended, and its life; null where it was never delivered.
  delivery integer           -- A done message was settled by it.
) strict;

drop index settled_given_up;
-- What the table `settled` has is copied after this script (migration.py).
alter table settled rename to settled_before;
create index settled_before_by_seq on settled_before (seq);
