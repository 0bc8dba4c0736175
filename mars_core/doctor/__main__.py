"""`python -m mars_core.doctor`: what `mars doctor --train` does, where there is no Prefect and no MLflow."""

from __future__ import annotations

import sys

from mars_core.doctor.table import markdown
from mars_core.doctor.training import device_at_hand, try_training


def main() -> int:
    """Print the table; 1 where something failed."""
    device = device_at_hand()
    checks = list(try_training(device=device))
    print(markdown(checks, device))
    return int(any(check.state == "failed" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
