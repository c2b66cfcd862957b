-- The clock as the daemon saw it last. After a stop it tells a clock that was set from time that passed.
create table clock (
  only_row integer primary key check (only_row = 1),
  moment real not null,   -- the wall clock
  elapsed real not null,  -- the clock that is never set, at the same time
  boot text not null      -- the start of the machine from which `elapsed` counts; '' is unknown
) strict;

-- How often the wall clock was set forward. Settled records are not older for that.
create table clock_jump (
  number integer primary key,
  moment real not null,  -- the wall clock afterwards
  seconds real not null
) strict;
