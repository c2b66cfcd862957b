-- A message that is cancelled while it is leased ends as cancelled when its delivery ends without an ack.
alter table message add column cancelled_at real;

-- start: which of them were leased by the daemon before?
create index message_cancelled on message (cancelled_at) where cancelled_at is not null;

-- A paused schedule has no `try_at`.
alter table schedule add column paused integer not null default 0;
