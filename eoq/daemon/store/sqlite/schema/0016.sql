-- While a daemon has the file open: the number of the file in its file system, and the version of its schema. Null after a
-- clean stop. A copy of the file has another number: one that was made meanwhile needs the log as well. A copy that SQLite
-- has made has another version.
alter table daemon add column open_as text;
