"""From metrics to a rank pair: fit the laws, choose, and a person's approval."""
