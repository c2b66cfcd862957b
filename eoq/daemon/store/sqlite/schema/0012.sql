-- What each queue has stored, delivered and ended since the file was made: one update a queue and commit. The queue 0
-- stands for all that were deleted.
create table total (
  queue integer primary key,
  sent integer not null default 0,       -- messages that were stored
  duplicates integer not null default 0, -- messages that were stored before
  conflicts integer not null default 0,  -- sends that were refused: an id had other content
  refused integer not null default 0,    -- sends that were refused: there was no room
  delivered integer not null default 0,
  done integer not null default 0,
  retried integer not null default 0,    -- deliveries that failed, so that another one follows
  dead integer not null default 0,
  expired integer not null default 0,
  dropped integer not null default 0,
  cancelled integer not null default 0,
  forwarded integer not null default 0
) strict;

-- A file of an earlier version begins with what is known of it.
insert into total (queue, sent, done, expired, dropped)
select queue, sum(number), sum(iif(outcome = 'done', number, 0)), sum(iif(outcome = 'expired', number, 0)),
  sum(iif(outcome = 'dropped', number, 0))
from (
  select queue, null as outcome, count(*) as number from message group by queue
  union all
  select queue, outcome, count(*) from settled group by queue, outcome
)
group by queue;

update total
set dead = (select count(*) from message where queue = total.queue and state = 'dead');
