"""The store: objects by their digest, how each is encoded, what is needed and what goes."""
