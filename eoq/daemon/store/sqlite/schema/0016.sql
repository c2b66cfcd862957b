-- The number that the file has in its file system while a daemon has it open; null after a clean stop. A copy has another
-- number: one that was made meanwhile needs the log as well.
alter table daemon add column open_as integer;
