-- All ids and outcomes are in their tables by now (migration.py).
drop table settled_before;
drop index message_by_id;

-- claim: what holds the watermark back?
create index outcome_given_up on outcome (queue, seq) where outcome <> 'done' and delivery is not null;

-- All that is remembered of a settled message.
create view settled (queue, id, outcome, digest, settled_at, life, delivery, seq) as
select known_id.queue, id, outcome, digest, settled_at, life, delivery, outcome.seq
from known_id
cross join outcome on outcome.seq = known_id.seq;
