"""A task whose arguments have changed twice."""

from typing import Any

from outbox import Outbox

outbox = Outbox()


@outbox.task(version=3)
async def send_receipt(order: int, to: list[str]) -> str:
    return f"receipt {order} sent to {' and '.join(to)}"


@send_receipt.upcast(1)  # version 1 said {"order": 7, "email": "ada@example.com"}
def rename_email(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"order": arguments["order"], "to": arguments["email"]}


@send_receipt.upcast(2)  # version 2 said {"order": 7, "to": "ada@example.com"}
def allow_several(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "to": [arguments["to"]]}
