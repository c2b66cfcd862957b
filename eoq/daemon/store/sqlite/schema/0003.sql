-- The dedup service: one row a key, from the moment its first caller runs until it is forgotten.
create table once (
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

-- forgetting: which keys have expired?
create index once_expiring on once (expires_at) where expires_at is not null;
