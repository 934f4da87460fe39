"""What people do, in a real browser: every page and every action, with the mouse, the keyboard and a phone."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, Route, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Outbox, State, control
from outbox.fastapi import api_keys
from outbox.keys import Scope
from tests.dashboard.conftest import Sessions, application, furnish, make_key
from tests.factories import plant, plant_many, read
from tests.service.servers import service, serving
from tests.waiting import DEADLINE, eventually, until

DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

PAGES = {
    "overview": "",
    "week": "?window=7d",
    "queues": "/queues",
    "jobs": "/jobs",
    "failed": "/jobs?q=state:failed",
    "refused": "/jobs?q=colour:red",
    "change": "/jobs/change?action=retry&q=state:failed",
    "schedules": "/schedules",
    "workers": "/workers",
    "batches": "/batches",
    "doctor": "/doctor",
    "audit": "/audit",
    "missing": "/jobs/00000000-0000-7000-8000-000000000000",
}

HOSTILE = (
    '<img src=x onerror="alert(1)">',
    "\"'><script>alert(1)</script>",
    "javascript:alert(1)//{{7*7}}${7*7}</title></script>",
    "' onmouseover='alert(1)' hx-on:click='alert(1)' x='",
    "﷽ 👩 " + "W" * 120,
)
"""What must stand in a page as it is, and do nothing."""


@contextmanager
def faultless(page: Page, *expected: int) -> Iterator[list[str]]:
    """The page says nothing on its console, opens no dialog and breaks no rule of its policy.

    :param expected: answers that are meant, which a browser reports all the same.
    """
    faults: list[str] = []

    def note(kind: str, said: str) -> None:
        if not any(f"status of {code}" in said for code in expected):
            faults.append(f"{kind}: {said}")

    page.on("console", lambda message: note(message.type, message.text))
    page.on("pageerror", lambda error: note("error", str(error)))
    page.on("dialog", lambda dialog: note("dialog", dialog.message))
    page.on("requestfailed", lambda request: note("request", f"{request.url} {request.failure}"))
    yield faults
    assert [each for each in faults if "net::ERR_ABORTED" not in each] == []  # those ended with their page


@asynccontextmanager
async def opened(browser: Browser, **options: Any) -> AsyncIterator[Page]:
    context = await browser.new_context(**options)
    context.set_default_timeout(15_000)
    page = await context.new_page()
    yield page
    await context.close()


@pytest.fixture
async def page(browser: Browser, url: str) -> AsyncIterator[Page]:
    """A page on a desk. It is closed before the server, which would wait for it."""
    async with opened(browser, **DESK) as page:
        yield page


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("desk", DESK),
        pytest.param("phone", PHONE, marks=pytest.mark.slow),
        pytest.param("dark", DESK | {"color_scheme": "dark"}, marks=pytest.mark.slow),
    ],
)
async def test_every_page_is_drawn_without_a_fault(
    browser: Browser,
    url: str,
    engine: AsyncEngine,
    sessions: Sessions,
    outbox: Outbox,
    pictures: Path,
    name: str,
    options: dict[str, Any],
) -> None:
    ids = await furnish(engine, sessions, outbox, "receipts")
    await plant_many(engine, 60)
    pages = PAGES | {f"job-{kind}": f"/jobs/{id}" for kind, id in ids.items() if kind != "batch"}
    pages["batch"] = f"/batches/{ids['batch']}"
    async with opened(browser, **options) as page:
        for title, path in pages.items():
            with faultless(page, *([404] if title == "missing" else [])):
                await page.goto(url + path)
                await expect(page.locator("main")).to_be_visible()
                await page.screenshot(path=pictures / f"{name}-{title}.png", full_page=True)
                width = await page.evaluate("document.documentElement.scrollWidth")
                assert width <= options["viewport"]["width"], title


@pytest.mark.slow
@pytest.mark.parametrize("word", HOSTILE)
async def test_what_is_hostile_is_shown_and_does_nothing(
    browser: Browser, url: str, engine: AsyncEngine, sessions: Sessions, outbox: Outbox, word: str
) -> None:
    ids = await furnish(engine, sessions, outbox, word)
    pages = list(PAGES.values()) + [f"/jobs/{id}" for kind, id in ids.items() if kind != "batch"]
    pages += [f"/batches/{ids['batch']}", "?queue=" + await _quoted(word), "/jobs?q=" + await _quoted(f'task:"{word}"')]
    async with opened(browser, **DESK) as page:
        seen = 0
        for path in pages:
            with faultless(page, 404, 422):
                await page.goto(url + path)
                seen += await page.evaluate("word => document.body.innerText.includes(word)", word[:40])
                assert not await page.evaluate("Boolean(document.querySelector('main img, main script'))")
                width = await page.evaluate("document.documentElement.scrollWidth")
                assert width <= 1280, path
        assert seen >= 12


async def _quoted(word: str) -> str:
    from urllib.parse import quote

    return quote(word)


async def test_one_goes_from_page_to_page_and_back(page: Page, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed")
    with faultless(page):
        await page.goto(url)
        await page.evaluate("window.same = true")
        for title in ("Queues", "Schedules", "Workers", "Batches", "Doctor", "Audit", "Jobs"):
            await page.click(f"nav >> text={title}")
            await expect(page.locator(f'nav a[aria-current="page"]:has-text("{title}")')).to_be_visible()
            await expect(page).to_have_title(re.compile(title))
        await page.click(f'a[href="/outbox/jobs/{id}"]')
        await expect(page.locator("h1")).to_have_text("noop")
        await page.go_back()
        await expect(page.locator(f"#row-{id}")).to_be_visible()
        assert await page.evaluate("window.same"), "the browser has left the page"


async def test_a_page_follows_what_happens(page: Page, url: str, engine: AsyncEngine, sessions: Sessions) -> None:
    id = await plant(engine, "scheduled")
    with faultless(page):
        await page.goto(f"{url}/jobs/{id}")
        await expect(page.locator("main .state")).to_contain_text("scheduled")
        async with sessions.begin() as session:
            await control.cancel(session, id)
        await expect(page.locator("main .state")).to_contain_text("cancelled")
        await page.goto(f"{url}/jobs")
        other = await plant(engine)
        await expect(page.locator(f"#row-{other}")).to_be_visible()


async def test_a_page_rests_while_one_selects_and_when_it_is_told_to(page: Page, url: str, engine: AsyncEngine) -> None:
    witness = await page.context.new_page()

    async def seen_by_the_other() -> UUID:
        """A new job that another page shows by now, which hears the same; the second of two, so that all had time."""
        first = await plant(engine)
        await expect(witness.locator(f"#row-{first}")).to_be_visible()
        second = await plant(engine)
        await expect(witness.locator(f"#row-{second}")).to_be_visible()
        return first

    chosen = await plant(engine)
    await witness.goto(f"{url}/jobs")
    with faultless(page):
        await page.goto(f"{url}/jobs")
        await page.check(f'#row-{chosen} input[name="id"]')
        held = await seen_by_the_other()
        assert await page.locator(f"#row-{held}").count() == 0
        await page.uncheck(f'#row-{chosen} input[name="id"]')
        await expect(page.locator(f"#row-{held}")).to_be_visible()
        await page.click(".pulse")
        await expect(page.locator(".pulse")).to_contain_text("paused")
        held = await seen_by_the_other()
        assert await page.locator(f"#row-{held}").count() == 0
        await page.click(".pulse")
        await expect(page.locator(f"#row-{held}")).to_be_visible()


@asynccontextmanager
async def held_up(page: Page, address: str, go: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """The page asks for itself again, and the answer comes only at the end of the block; then it has been dealt with.

    :param go: where the page is that asks.
    """
    asked, let = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if "hx-request" in route.request.headers and not asked.is_set():
            asked.set()
            await let.wait()
        await route.continue_()

    await page.route(address, hold)
    await go()
    await asyncio.wait_for(asked.wait(), DEADLINE)
    await page.evaluate(
        "window.over = new Promise((is) => document.addEventListener('htmx:finally:request', ({ detail }) => {"
        "    if (detail.ctx.select === '#live') is(); })); undefined"
    )
    yield
    let.set()
    await page.evaluate("window.over.then(() => null)")


async def test_an_answer_that_comes_while_one_selects_moves_nothing(page: Page, url: str, engine: AsyncEngine) -> None:
    chosen = await plant(engine)
    with faultless(page):
        async with held_up(page, f"{url}/jobs", lambda: page.goto(f"{url}/jobs")):
            await page.check(f'#row-{chosen} input[name="id"]')
            held = await plant(engine)
        assert await page.locator(f"#row-{held}").count() == 0
        await page.uncheck(f'#row-{chosen} input[name="id"]')
        await expect(page.locator(f"#row-{held}")).to_be_visible()


async def test_an_answer_that_comes_when_one_is_elsewhere_is_not_shown_there(
    page: Page, url: str, engine: AsyncEngine
) -> None:
    id = await plant(engine)
    with faultless(page):
        async with held_up(page, url, lambda: page.goto(url)):
            await page.click('nav a[data-key="j"]')
            await expect(page.locator(f"#row-{id}")).to_be_visible()
        assert await page.locator("#chart-throughput").count() == 0
        await expect(page.locator(f"#row-{id}")).to_be_visible()


async def test_a_failed_job_is_retried_from_its_page(page: Page, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed")
    with faultless(page):
        await page.goto(f"{url}/jobs/{id}")
        await page.click("main >> text=Retry")
        await expect(page.locator(".toast")).to_have_text("Runs again.")
        await expect(page.locator("main .state")).to_contain_text("ready")
        await expect(page).to_have_url(f"{url}/jobs/{id}")
    assert (await read(engine, id)).state is State.PENDING


async def test_what_cannot_be_undone_is_asked_about(page: Page, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed")
    await page.goto(f"{url}/jobs/{id}")
    page.once("dialog", lambda dialog: dialog.dismiss())
    await page.click("button:has-text('Discard')")
    assert (await read(engine, id)).state is State.FAILED
    page.once("dialog", lambda dialog: dialog.accept())
    await page.click("button:has-text('Discard')")
    await expect(page).to_have_url(f"{url}/jobs")
    await expect(page.locator("main")).to_contain_text("There are no jobs yet")


async def test_many_are_changed_after_being_counted(page: Page, url: str, engine: AsyncEngine) -> None:
    await plant_many(engine, 2300)
    with faultless(page):
        await page.goto(f"{url}/jobs?q=task:noop")
        await page.click("text=Cancel …")
        await expect(page.locator("h1")).to_have_text("Cancel 2,300 jobs?")
        await page.click("button.danger")
        await expect(page.locator(".toast")).to_have_text("2,300 jobs: cancelled; what runs was asked to stop.")
    async with engine.connect() as connection:
        assert (await connection.execute(text("select count(*) from outbox.live_job"))).scalar_one() == 0


async def test_some_are_selected_and_changed(page: Page, url: str, engine: AsyncEngine) -> None:
    ids = [await plant(engine, "failed") for _ in range(3)]
    with faultless(page):
        await page.goto(f"{url}/jobs?q=state:failed")
        for id in ids[:2]:
            await page.check(f'#row-{id} input[name="id"]')
        await expect(page.locator(".selected")).to_have_text("2 selected:")
        await page.click("text=Priority …")
        await expect(page.locator("h1")).to_have_text("Change the priority of 0 jobs?")
        await page.go_back()
        for id in ids[:2]:
            await page.check(f'#row-{id} input[name="id"]')
        await page.click("text=Retry …")
        await page.click("button:has-text('Retry 2 jobs')")
        await expect(page.locator(".toast")).to_have_text("2 jobs: runs again.")
    assert [(await read(engine, id)).state for id in ids] == [State.PENDING, State.PENDING, State.FAILED]


async def test_queues_are_paused_resumed_and_limited(page: Page, url: str, engine: AsyncEngine) -> None:
    await plant(engine, queue="mail")
    with faultless(page):
        await page.goto(f"{url}/queues")
        await page.click("button:has-text('Pause')")
        await expect(page.locator(".state.warn")).to_contain_text("paused")
        await page.click("button:has-text('Resume')")
        await expect(page.locator("button:has-text('Pause')")).to_be_visible()
        await page.click("summary:has-text('Limits')")
        await page.fill('input[name="concurrency"]', "4")
        await page.click('.pop form:has(input[name="concurrency"]) button')
        await expect(page.locator("main")).to_contain_text("runs 4 at once")
        await page.click("summary:has-text('Limits')")
        await page.fill('input[name="ceiling"]', "900")
        await page.click('.pop form:has(input[name="ceiling"]) button')
        await expect(page.locator("main")).to_contain_text("takes 900 at most")


async def test_schedules_are_paused_resumed_and_run(
    page: Page, url: str, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    await furnish(engine, sessions, outbox, "nightly")
    with faultless(page):
        await page.goto(f"{url}/schedules")
        await expect(page.locator("main")).to_contain_text("Every 5 minutes")
        await page.click("button:has-text('Pause')")
        await expect(page.locator(".state.warn")).to_contain_text("paused")
        await page.click("button:has-text('Resume')")
        await expect(page.locator("button:has-text('Pause')")).to_be_visible()
        await page.click("button:has-text('Run now')")
        await expect(page.locator("h1")).to_have_text("noop")
        await expect(page.locator(".toast")).to_have_text("Enqueued.")


async def test_a_batch_is_cancelled_and_its_flow_is_drawn(
    page: Page, url: str, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    ids = await furnish(engine, sessions, outbox, "import")
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.goto(f"{url}/batches/{ids['batch']}")
    await expect(page.locator(".graph .node")).to_have_count(3)
    await expect(page.locator(".graph .arrow")).to_have_count(2)
    await page.click("main >> text=Cancel >> nth=0")
    await expect(page.locator(".graph .node.cancelled")).to_have_count(3)
    await page.click(".graph .node >> nth=0")
    await expect(page.locator("h1")).to_have_text("noop")


async def test_a_job_that_waits_gets_a_priority_and_runs_now(page: Page, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "scheduled")
    with faultless(page):
        await page.goto(f"{url}/jobs/{id}")
        await page.select_option('select[name="priority"]', "3")
        await page.click("button:has-text('Set')")
        await expect(page.locator(".toast")).to_have_text("Has its new priority.")
        await page.click("button:has-text('Run now')")
        await expect(page.locator(".toast")).to_have_text("Due now.")
    assert (await read(engine, id)).priority == 3


async def test_the_filter_bar_proposes_and_finds(page: Page, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed", task="send_receipt")
    other = await plant(engine, "pending")
    with faultless(page):
        await page.goto(f"{url}/jobs")
        await page.keyboard.press("/")
        await page.keyboard.type("ta")
        await expect(page.locator("#proposals li")).to_have_count(2)  # task and tag
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("Enter")
        await expect(page.locator("#q")).to_have_value("task:")
        await page.keyboard.type("rec")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Tab")
        await expect(page.locator("#q")).to_have_value("task:send_receipt ")
        await page.keyboard.press("Escape")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(r"q=task(:|%3A)send_receipt"))
        await expect(page.locator(f"#row-{id}")).to_be_visible()
        await expect(page.locator(f"#row-{other}")).to_have_count(0)
        await page.click(".chip:has-text('task:send_receipt')")
        await expect(page.locator(f"#row-{other}")).to_be_visible()
        await page.click(".chip:has-text('failed')")
        await expect(page.locator(f"#row-{other}")).to_have_count(0)
        await page.fill("#q", "colour:red")
        await page.keyboard.press("Enter")
        await expect(page.locator("[role=alert]")).to_contain_text("can't be asked for")


async def test_all_can_be_done_by_keys(page: Page, url: str, engine: AsyncEngine) -> None:
    ids = [await plant(engine, "failed") for _ in range(3)][::-1]
    with faultless(page):
        await page.goto(url)
        await page.keyboard.press("?")
        await expect(page.locator("#help")).to_be_visible()
        await page.keyboard.press("Escape")
        await page.keyboard.press("g")
        await page.keyboard.press("j")
        await expect(page).to_have_title(re.compile("Jobs"))
        await page.keyboard.press("j")
        await page.keyboard.press("x")
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        await page.keyboard.press("k")
        await expect(page.locator("tr.at")).to_have_id(f"row-{ids[1]}")
        await expect(page.locator(".selected")).to_have_text("1 selected:")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{url}/jobs/{ids[1]}")
        await page.keyboard.press("r")
        await expect(page.locator(".toast")).to_have_text("Runs again.")
    assert (await read(engine, ids[1])).state is State.PENDING


async def test_colours_are_chosen_and_kept(page: Page, url: str) -> None:
    with faultless(page):
        await page.goto(url)
        light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.keyboard.press("t")
        await page.keyboard.press("t")
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        await page.reload()
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


async def test_charts_are_drawn_and_say_what_is_under_the_mouse(
    page: Page, url: str, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    await furnish(engine, sessions, outbox, "mail")
    with faultless(page):
        await page.goto(url)
        await expect(page.locator(".chart canvas")).to_have_count(4)
        over = page.locator("#chart-throughput .u-over")
        box = await over.bounding_box()
        assert box is not None

        async def says_five() -> bool:
            for share in range(90, 101):
                await page.mouse.move(box["x"] + box["width"] * share / 100 - 2, box["y"] + 20)
                if "5" in await page.locator("#chart-throughput .u-legend tr:last-child .u-value").inner_text():
                    return True
            return False

        assert await eventually(says_five)
        assert "mail" in await page.locator("#chart-backlog .u-legend").inner_text()
        await over.click(position={"x": box["width"] - 2, "y": 20})
        await expect(page.locator("#q")).to_have_value(re.compile(r"after:20\d\d-\S+Z before:20\d\d-\S+Z"))
        await page.go_back()
        await expect(page.locator(".chart canvas")).to_have_count(4)


async def test_a_tree_folds_and_is_copied(browser: Browser, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "succeeded", payload={"order": {"id": 7, "lines": [1, 2]}}, result={"ok": True})
    async with opened(browser, **DESK, permissions=["clipboard-read", "clipboard-write"]) as page:
        with faultless(page):
            await page.goto(f"{url}/jobs/{id}")
            tree = page.locator("[aria-label=Arguments]")
            await expect(tree).to_contain_text("lines")
            await tree.locator("summary >> nth=0").click()
            await expect(tree.locator("text=lines")).to_be_hidden()
            await page.click("section:has-text('Arguments') >> .copy")
            assert '"lines": [' in await page.evaluate("navigator.clipboard.readText()")


async def test_one_logs_in_and_out(browser: Browser, outbox: Outbox, sessions: Sessions, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed", payload={"x": "canary"})
    key = await make_key(sessions, Scope.READ)
    app = application(outbox, sessions, access=api_keys(sessions))
    async with serving(app) as base, opened(browser, **DESK) as page:
        with faultless(page, 401):
            await page.goto(f"{base}/outbox/jobs/{id}")
            await expect(page.locator("h1")).to_have_text("Log in")
            await page.fill("#key", "obx_wrong")
            await page.keyboard.press("Enter")
            await expect(page.locator("[role=alert]")).to_contain_text("not known")
            await page.fill("#key", key)
            await page.keyboard.press("Enter")
            await expect(page.locator("h1")).to_have_text("noop")
            await expect(page.locator("main")).to_contain_text("Not shown")
            assert "canary" not in await page.content()
            assert await page.locator("main >> text=Retry").count() == 0
            await page.click("text=Log out")
            await expect(page.locator("h1")).to_have_text("Log in")


async def test_it_works_without_scripts(browser: Browser, url: str, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed")
    async with opened(browser, **DESK, java_script_enabled=False) as page:
        await page.goto(f"{url}/jobs?q=state:failed")
        await page.click(f'a[href="/outbox/jobs/{id}"]')
        await page.click("main >> text=Retry")
        await expect(page.locator(".toast")).to_have_text("Runs again.")
    assert (await read(engine, UUID(str(id)))).state is State.PENDING


async def test_nothing_comes_from_elsewhere_and_all_of_it_is_small(browser: Browser, url: str) -> None:
    asked: dict[str, int] = {}

    async with opened(browser, **DESK) as page:

        async def note(response: Any) -> None:
            asked[response.url] = len(await response.body()) if "/static/" in response.url else 0

        page.on("response", lambda response: asyncio.ensure_future(note(response)))
        await page.goto(url)
        await page.wait_for_selector("canvas")
        await eventually(lambda: _all_in(asked))
    base = url.removesuffix("/outbox")
    assert all(address.startswith(base) for address in asked)
    assert 0 < sum(asked.values()) < 150_000


async def _all_in(asked: dict[str, int]) -> bool:
    return sum(size > 0 for size in asked.values()) >= 7


async def test_a_stopping_server_is_not_held_up_by_an_open_page(
    browser: Browser, database_url: str, tmp_path: Path
) -> None:
    with service(database_url, tmp_path) as (base, process):
        async with opened(browser, **DESK) as page:
            await page.goto(f"{base}/outbox")
            await expect(page.locator(".pulse")).to_contain_text("live")
            process.terminate()
            await until(lambda: process.poll() is not None)  # it would wait for ever for a stream that stays open
            await expect(page.locator(".pulse")).to_contain_text("no connection")
