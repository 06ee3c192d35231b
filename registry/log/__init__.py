"""The log: events, the journal that holds them, the folds, and the database that answers questions."""
