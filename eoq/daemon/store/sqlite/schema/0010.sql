-- All settled messages have left the table `message` by now (migration.py).
drop index message_settled;
drop index message_given_up;
alter table message drop column settled_at;
alter table message drop column result;
