-- A new message enters only the indexes it needs: those of settled messages and of states it is not in cost it nothing.
drop index message_settled;

-- forgetting: those of a queue that were settled longest ago
create index message_settled on message (queue, settled_at) where settled_at is not null;

-- watermark: the first message of a queue that is not settled, together with the indexes of ready (for priority 0,
-- which most messages have), leased and dead
create index message_ready_by_seq on message (queue, seq) where state = 'ready' and priority <> 0;
create index message_later on message (queue, seq) where state in ('delayed', 'blocked');
