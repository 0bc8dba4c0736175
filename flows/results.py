"""How flows keep what they return, and what of it is read again."""

from __future__ import annotations

from typing import Any

from prefect.serializers import JSONSerializer, PickleSerializer

# Never pickle: anyone who can write to the result store could run code in whoever reads it.
JSON_RESULTS: dict[str, Any] = {"persist_result": True, "result_serializer": "json"}

PLAIN = JSONSerializer()


def read_json_alone() -> None:
    """Have this process read stored results that are JSON as Prefect writes it, and no others.

    A stored result names the way to read it, so that what MARS writes does not decide what is read: whoever can write
    to the result store could put a pickle there.
    """
    read = JSONSerializer.loads

    def refuse_pickle(self: PickleSerializer[Any], blob: bytes) -> Any:
        raise ValueError("a stored result is a pickle, which could run code: MARS writes none; delete it and run again")

    def read_plain(self: JSONSerializer[Any], blob: bytes) -> Any:
        if (self.jsonlib, self.object_decoder) not in ((PLAIN.jsonlib, PLAIN.object_decoder), (PLAIN.jsonlib, None)):
            raise ValueError(
                f"a stored result names {self.jsonlib!r} and {self.object_decoder!r} to read it by, expected Prefect's "
                "own JSON: delete it and run again"
            )
        return read(self, blob)

    PickleSerializer.loads = refuse_pickle  # type: ignore[method-assign]
    JSONSerializer.loads = read_plain  # type: ignore[method-assign]


read_json_alone()
