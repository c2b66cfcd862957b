-- For how long ids were remembered, for the daemon after this one.
create table remembered (
  only_row integer primary key check (only_row = 1),
  retentions text not null,  -- JSON: each pattern of the configuration with its retention, in seconds
  forgotten_until real       -- what was first tried before may be forgotten, however long the retention is now
) strict;
