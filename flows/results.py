"""How flows keep what they return."""

from typing import Any

# Never pickle: anyone who can write to the result store could run code in whoever reads it.
JSON_RESULTS: dict[str, Any] = {"persist_result": True, "result_serializer": "json"}
