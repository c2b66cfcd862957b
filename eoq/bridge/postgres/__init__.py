"""The engine PostgreSQL: the table `eoq_forward` between the machines."""
