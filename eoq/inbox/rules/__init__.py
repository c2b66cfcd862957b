"""What holds for the inbox in every database: which ids may be deleted, what a redelivery gets, how messages end."""
