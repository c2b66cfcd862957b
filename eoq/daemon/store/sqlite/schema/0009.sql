-- Settled messages leave the table `message`. Of each one compact row is remembered, for as long as its queue says.
create table settled (
  queue integer not null,
  id text not null,
  outcome text not null,     -- done, expired, dropped
  digest blob not null,
  settled_at real not null,
  life integer,              -- the newest delivery that had ended, and its life; null where it was never delivered.
  delivery integer,          -- A done message was settled by it.
  seq integer not null,
  primary key (queue, id)
) strict, without rowid;

-- watermark: what was delivered and then given up may have been processed all the same, so it holds the watermark back
create index settled_given_up on settled (queue, seq) where outcome <> 'done' and delivery is not null;

-- What only some of them have.
create table result (
  seq integer primary key,
  result blob,
  error text,
  sent integer               -- the first seq of the messages that were sent with its ack
) strict;
