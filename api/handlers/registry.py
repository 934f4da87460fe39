"""The registry that all handlers of this service are declared in."""

from typing import Annotated

from api.database import sessions
from api.settings import Settings, get_settings
from outbox import Depends, Outbox

outbox = Outbox(sessions=sessions)

SettingsDep = Annotated[Settings, Depends(get_settings)]
