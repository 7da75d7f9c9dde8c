"""What learns: the 2.5D network, how it is fed and trained. Imports `data` and below."""
