"""The old address of `mars_core.evaluation.objectives`: metrics in users' packages import `record` from here."""
