-- A lease is not written into its message any more: it is known in memory. One row for each claim says what it has
-- delivered, so that the next daemon knows it after a kill. The row goes when the last of its messages is settled or
-- given back.
create table delivery (
  number integer primary key,
  queue integer not null,
  delivered_at real not null,
  consumer text,
  handles integer,    -- how many of them are handled at once, in this order; null is all
  seqs text not null  -- JSON: the messages, in the order of delivery
) strict;

-- One row for each start of a daemon.
create table life (
  number integer primary key,
  token text not null unique,       -- random; begins each receipt of this life
  started_at real not null,
  clean integer not null default 0  -- whether it stopped, and was not killed
) strict;

-- The leases of the last daemon end like those of one that was killed.
insert into delivery (queue, delivered_at, consumer, seqs)
select queue, coalesce(delivered_at, enqueued_at), consumer, json_array(seq)
from message
where state = 'leased'
order by seq;

update message
set state = 'ready', attempts = attempts - 1, fence = fence - 1
where state = 'leased';

drop index message_leased;

-- How many deliveries of a message have ended.
alter table message rename column fence to deliveries;
alter table failure rename column fence to delivery;

-- The newest delivery that has ended, and its life. Where it ended the message, it may say so again.
alter table message add column life integer;
alter table message add column delivery integer;
