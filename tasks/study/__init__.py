"""A study's revisions: what they were made with, and who is at work on them."""
