"""A connection that is cut around the COMMIT of an enqueuing transaction: jobs and business rows share one fate."""

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.cluster import Cluster
from tests.crash.clients import Clients
from tests.crash.database import Database, Report
from tests.crash.history import must_be_right
from tests.crash.processes import Crew
from tests.crash.proxy import Cut, Proxy

TRANSACTIONS = 50

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("cut", [Cut.BEFORE_COMMIT, Cut.AFTER_COMMIT, Cut.WITH_COMMIT])
async def test_connection_is_cut_at_the_commit(
    cluster: Cluster, database: Database, crew: Crew, seed: int, cut: Cut, report: Report
) -> None:
    upstream = make_url(database.url)
    assert upstream.port is not None
    async with Proxy(upstream.port).listening() as proxy:
        engine = create_async_engine(upstream.set(port=proxy.port))
        clients = Clients(engine, database, seed=seed, seconds=0.01)
        proxy.cut = cut
        while proxy.cuts < TRANSACTIONS:
            await clients.transact()
        await engine.dispose()
    ledger = clients.ledger
    assert ledger.committed == set(), "a client took a cut for a commit"
    assert len(ledger.unknown) >= TRANSACTIONS
    await crew.started()
    await database.comes_to_rest()

    history = await database.history(ledger)
    must_be_right(history)
    there = {job.id for job in history.jobs}
    if cut is Cut.BEFORE_COMMIT:
        assert there == set()
    elif cut is Cut.AFTER_COMMIT:
        assert there == ledger.unknown
    else:
        assert there <= ledger.unknown
    report(cuts=proxy.cuts, jobs=len(ledger.unknown), there=len(there), rolled_back=len(ledger.rolled_back))
