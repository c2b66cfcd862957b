-- Queues: whether deliveries are paused.
alter table queue add column paused integer not null default 0;

-- Two more ends of a message: expired (its time was over), dropped (by an operator, or to make room). Both are settled.
alter table message add column expires_at real;
alter table message add column delivered_at real; -- the newest delivery,
alter table message add column consumer text;     -- and to whom
alter table message add column failed_at real;    -- when the newest failed: the moment of `error`
alter table message add column fixed integer not null default 0; -- due_at is a moment that was asked for, not a wait

-- the timer of expiry: what has expired, and when does the next?
create index message_expiring on message (expires_at)
  where expires_at is not null and state in ('ready', 'delayed', 'blocked');

-- watermark: what was delivered and then given up may have been processed all the same, so it holds the watermark back
create index message_given_up on message (queue, seq) where state in ('expired', 'dropped') and fence > 0;

-- Deliveries that failed, for operators: show, dead letters. The newest delivery stands with its message.
create table failure (
  seq integer not null,
  fence integer not null,
  delivered_at real,
  consumer text,
  failed_at real not null,
  error text,
  primary key (seq, fence)
) strict, without rowid;

-- Topics: a send to one stores a message in each queue that is bound to it.
create table binding (
  topic text not null,
  queue text not null,
  headers text, -- JSON: only messages that have all of these; null is any
  primary key (topic, queue)
) strict, without rowid;
