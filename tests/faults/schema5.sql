-- A file of schema 5, as a daemon of eoq 0.1.0 (2694c25) left it when it was killed: messages in each state.
-- The receipt of `done` is 370a033a.2.1, that of `leased` is 370a033a.5.1.
BEGIN TRANSACTION;
CREATE TABLE binding (
  topic text not null,
  queue text not null,
  headers text, -- JSON: only messages that have all of these; null is any
  primary key (topic, queue)
) strict, without rowid;
INSERT INTO "binding" VALUES('topic','q2',NULL);
CREATE TABLE counter (
  name text primary key,
  value integer not null
) strict, without rowid;
CREATE TABLE failure (
  seq integer not null,
  fence integer not null,
  delivered_at real,
  consumer text,
  failed_at real not null,
  error text,
  primary key (seq, fence)
) strict, without rowid;
INSERT INTO "failure" VALUES(3,1,1.79599907559993124004e+09,'pid 28018',1.79599907560054516788e+09,'no paper');
INSERT INTO "failure" VALUES(3,2,1.79599907560794472697e+09,'pid 28018',1.79599907560873746871e+09,'no account');
INSERT INTO "failure" VALUES(4,1,1.7959990756108412742e+09,'pid 28018',1.7959990756155469417e+09,'first failure');
INSERT INTO "failure" VALUES(4,2,1.79599907562798857688e+09,'pid 28018',1.79599907562878799436e+09,'again');
INSERT INTO "failure" VALUES(11,1,1.79599907596449422835e+09,'pid 28018',1.79599907606832242014e+09,'the lease ended before the message was settled');
CREATE TABLE message (
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
, expires_at real, delivered_at real, consumer text, failed_at real, fixed integer not null default 0) strict;
INSERT INTO "message" VALUES(1,1,'ready','ready',0,0,3,1.79599907558038496971e+09,NULL,NULL,X'8B6FB21E4AAA9C57E6F0B28FA3B4467B',NULL,'{"k":"v"}',NULL,X'7265616479',NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "message" VALUES(2,1,'done','done',1,1,9,1.79599907558038496971e+09,NULL,1.79599907559458613396e+09,X'DFD406DB261DA243C8B42F8F885C9890',NULL,NULL,NULL,NULL,X'70616964',NULL,1.79599907559008955953e+09,'pid 28018',NULL,0);
INSERT INTO "message" VALUES(3,1,'dead','dead',2,2,8,1.79599907558038496971e+09,NULL,NULL,X'CDAB638E9B9DF812F7DBAF2D71740B91',NULL,NULL,'no account',X'64656164',NULL,NULL,1.79599907560794472697e+09,'pid 28018',1.79599907560873746871e+09,0);
INSERT INTO "message" VALUES(4,1,'rejected','dead',2,2,7,1.79599907558038496971e+09,NULL,NULL,X'D9B1AF1CF6C2B3D8161959C303B4C44D',NULL,NULL,'again',X'72656A6563746564',NULL,NULL,1.79599907562798857688e+09,'pid 28018',1.79599907562878799436e+09,0);
INSERT INTO "message" VALUES(5,1,'leased','leased',1,1,6,1.79599907558038496971e+09,NULL,NULL,X'F71427485BFD67BB2833B05D131EE562',NULL,NULL,NULL,X'6C6561736564',NULL,NULL,1.79599907563601613041e+09,'pid 28018',NULL,0);
INSERT INTO "message" VALUES(6,1,'last','ready',0,0,5,1.79599907558038496971e+09,NULL,NULL,X'61CABC76CFF50C62B99705BDA5B99238',NULL,NULL,NULL,X'6C617374',NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "message" VALUES(7,1,'delayed','delayed',0,0,0,1.79599907563682746882e+09,4102444800.0,NULL,X'6985BAC0358EDFA41C15696F8B5099F9',NULL,NULL,NULL,X'64656C61796564',NULL,NULL,NULL,NULL,NULL,1);
INSERT INTO "message" VALUES(8,1,'g1','ready',0,0,-1,1.79599907564512634283e+09,NULL,NULL,X'E39226412EA19CCE2414CAB62BC33718','g',NULL,NULL,X'31',NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "message" VALUES(9,1,'g2','blocked',0,0,-1,1.79599907564512634283e+09,NULL,NULL,X'2E972FD504A8D80B6659AA75F04CF41B','g',NULL,NULL,X'32',NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "message" VALUES(10,1,'expired','expired',0,0,20,1.79599907565206456179e+09,NULL,1.79599907570268893237e+09,X'94600D665A98564700CF34E22492D747',NULL,NULL,'its time to live was over',NULL,NULL,1.7959990757020645141e+09,NULL,NULL,NULL,0);
INSERT INTO "message" VALUES(11,1,'given-up','expired',1,1,20,1.79599907596022677425e+09,NULL,1.79599907626040530212e+09,X'94600D665A98564700CF34E22492D747',NULL,NULL,'its time to live was over',NULL,NULL,1.79599907626022672652e+09,1.79599907596449422835e+09,'pid 28018',1.79599907606832242014e+09,0);
INSERT INTO "message" VALUES(12,2,'purged','dropped',0,0,0,1.79599907696864700317e+09,NULL,1.79599907697523117062e+09,X'442A44457137672B3218C1007DC8F76A',NULL,NULL,'the queue was purged',NULL,NULL,NULL,NULL,NULL,NULL,0);
CREATE TABLE once (
  number integer primary key,
  key text not null unique,
  token text not null,         -- of the caller that runs it, or ran it
  fingerprint text,            -- what the caller says it runs, to refuse the same key for something else
  state text not null,         -- running, done
  status integer,              -- exit status of a command
  output blob,                 -- null where it was too large to keep
  output_bytes integer,
  expires_at real              -- seconds since the epoch; null is never
) strict;
INSERT INTO "once" VALUES(1,'key','01a229e3-12ee-7b84-865b-0a0bb37559a2',NULL,'done',0,X'6F7574',3,NULL);
CREATE TABLE queue (
  number integer primary key,
  name text not null unique
, paused integer not null default 0) strict;
INSERT INTO "queue" VALUES(1,'q',0);
INSERT INTO "queue" VALUES(2,'purged',0);
INSERT INTO "queue" VALUES(3,'paused',1);
CREATE TABLE schedule (
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
CREATE UNIQUE INDEX message_by_id on message (queue, id);
CREATE INDEX message_ready on message (queue, priority desc, seq) where state = 'ready';
CREATE INDEX message_delayed on message (due_at, queue) where state = 'delayed';
CREATE INDEX message_leased on message (queue, seq) where state = 'leased';
CREATE INDEX message_dead on message (queue, seq) where state = 'dead';
CREATE INDEX message_group on message (queue, "group", state, seq) where "group" is not null;
CREATE INDEX message_settled on message (queue, settled_at) where settled_at is not null;
CREATE INDEX message_ready_by_seq on message (queue, seq) where state = 'ready' and priority <> 0;
CREATE INDEX message_later on message (queue, seq) where state in ('delayed', 'blocked');
CREATE INDEX once_expiring on once (expires_at) where expires_at is not null;
CREATE INDEX message_expiring on message (expires_at)
  where expires_at is not null and state in ('ready', 'delayed', 'blocked');
CREATE INDEX message_given_up on message (queue, seq) where state in ('expired', 'dropped') and fence > 0;
CREATE INDEX schedule_due on schedule (try_at) where try_at is not null;
CREATE INDEX schedule_seen on schedule (seen_at);
COMMIT;
pragma application_id = 1701802289;
pragma user_version = 5;
