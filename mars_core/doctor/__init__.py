"""What a machine does with real training: packs against separate runs, a final run, reload and merge."""
