"""A small study that is run in this process, without servers, and what is done to it."""
