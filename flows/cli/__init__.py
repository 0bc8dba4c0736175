"""The `mars` command line: one module per group of commands."""
