"""What runs where: work pools, queues and schedules."""
