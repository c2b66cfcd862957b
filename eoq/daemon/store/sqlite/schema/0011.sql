-- By how many seconds the wall clock was set since the file was made, forward and back added up. `expires_at` (here and
-- in `once`), and `due_at` where it is not `fixed`, are without it: so they need not be changed when the clock is set.
alter table clock add column set_by real not null default 0;

-- the timer of delayed messages: of both kinds, what is due, and when is the next?
drop index message_delayed;
create index message_delayed on message (fixed, due_at, queue) where state = 'delayed';
