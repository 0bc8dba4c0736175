"""What runs beside a study: the local stack, runs of deployments, time limits, the device's slot."""
