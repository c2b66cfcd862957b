-- How a forwarded message ended elsewhere: `awaited` until that comes back. Its `error` is the place where it went.
alter table result add column far_outcome text;
alter table result add column far_error text;
