"""What this service does in the background, one file per business area. A worker is told ``api.handlers:outbox``.

Every handler may run more than once (a worker can die after the work and before it is recorded), so each says how a
repetition is harmless.
"""

from api.handlers import analytics, demo, imports, inventory, mail, reports, warehouse
from api.handlers.registry import outbox

__all__ = ["analytics", "demo", "imports", "inventory", "mail", "outbox", "reports", "warehouse"]
