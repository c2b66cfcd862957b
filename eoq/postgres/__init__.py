"""PostgreSQL as the application's database: inbox and outbox there. It needs psycopg 3, the extra ``postgres``."""

from .driver import DriverMissing as DriverMissing  # first of all: without psycopg no other file can be imported
