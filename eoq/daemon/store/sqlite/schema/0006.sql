-- The file itself, in one row. Applications store the identity beside the ids that they have processed, so that the
-- messages of another daemon's file are never taken for those of this one.
create table daemon (
  identity text not null
) strict;

insert into daemon (identity) values (lower(hex(randomblob(16))));
