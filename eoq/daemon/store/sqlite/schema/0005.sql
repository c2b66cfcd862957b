-- Schedules: one row each. An occurrence is a message whose id is made of the schedule's name and the occurrence's
-- time, stored in the transaction that moves next_at on.
create table schedule (
  number integer primary key,
  name text not null unique,
  origin text not null,        -- client, config
  queue text not null,
  cron text,                   -- either this
  timezone text,
  every integer,               -- or that: seconds, from at on
  at integer,
  catch_up text not null,      -- last, all, none
  content text not null,       -- the message, as JSON with the fields of a send
  seen_at real not null,       -- all occurrences up to here have been sent or dropped
  next_at integer,             -- the first one that has not; null where there is none any more
  try_at real,                 -- when to look at it: next_at, or later where its queue refused it
  last_at integer,             -- the newest one that was sent
  error text                   -- why the last one was refused
) strict;

-- the timer: which are due, and when is the next?
create index schedule_due on schedule (try_at) where try_at is not null;

-- a clock that was set back: which have seen more than there has been?
create index schedule_seen on schedule (seen_at);
