"""One run, from a config to a finished folder: parts put together, trained, saved, resumed."""
