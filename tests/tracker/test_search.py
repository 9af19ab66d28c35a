"""Searches find what plain Python finds, in the same order, page by page."""

import asyncio
import math
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from headrace.v1 import run_service_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.filters.syntax import Aggregate, Expression, OrderTerm
from gateway.domain.runs import RunState
from gateway.domain.searches import Cursor, RunSearch
from gateway.store.connections import Database
from gateway.store.search import SearchStore
from tests.conftest import run_apart
from tests.support.gateway_process import GatewayProcess
from tests.tracker import expressions
from tests.tracker.conftest import Tracker, failure, param, tag
from tests.tracker.expressions import KEYS, NAMES, TEXTS, order_terms
from tests.tracker.naive import NaiveRun, matches, ordered

RUNS = 150
VALUES = [-20.0, -0.25, 0.0, 0.5, 1.0, 2.0, 1e5, 1e300, math.nan, math.inf, -math.inf]


def random_runs(seed: int) -> list[NaiveRun]:
    choose = random.Random(seed)
    summaries: list[float | str] = [*VALUES, *TEXTS]

    def some(keys: list[str]) -> list[str]:
        return [key for key in keys if choose.random() < 0.5]

    def time() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(
            milliseconds=choose.choice([0, 0, 500, 1_000, 2_000]),
            microseconds=choose.choice([0, 1]),
        )

    return [
        NaiveRun(
            run_id=uuid.UUID(int=choose.getrandbits(128)).hex,
            attributes={
                "name": choose.choice(NAMES),
                "state": choose.choice(["RUNNING", "FINISHED", "FAILED", "KILLED"]),
                "start_time": time(),
                "end_time": choose.choice([None, time()]),
            },
            metrics={
                key: {
                    Aggregate.LAST: choose.choice(VALUES),
                    Aggregate.MIN: choose.choice(VALUES),
                    Aggregate.MAX: choose.choice(VALUES),
                    Aggregate.STEP: choose.choice([-20, 0, 1, 2, 100_000, 2**62 - 1]),
                }
                for key in some(KEYS)
            },
            params={key: choose.choice(TEXTS) for key in some(KEYS)},
            tags={key: choose.choice(TEXTS) for key in some(KEYS)},
            summary={key: choose.choice(summaries) for key in some(KEYS)},
            datasets=[
                {"name": "a", "digest": choose.choice(["a", "ab"]), "context": ""}
                for _ in range(choose.choice([0, 0, 1]))
            ],
        )
        for _ in range(RUNS)
    ]


async def insert(dsn: str, runs: list[NaiveRun]) -> None:
    connection = await asyncpg.connect(dsn)
    for run in runs:
        run_id = uuid.UUID(run.run_id)
        attributes = run.attributes
        await connection.execute(
            "INSERT INTO runs (run_id, workspace_id, experiment_id, name, state, started_at,"
            " ended_at) VALUES ($1, 0, 0, $2, $3, $4, $5)",
            run_id,
            attributes["name"],
            int(RunState[attributes["state"]]),
            attributes["start_time"],
            attributes["end_time"],
        )
        for key, of in run.metrics.items():
            await connection.execute(
                "INSERT INTO run_metrics VALUES ($1, 0, $2, 0, 1, $3, 0, $4, $5, $6)",
                run_id,
                key,
                of[Aggregate.STEP],
                of[Aggregate.LAST],
                of[Aggregate.MIN],
                of[Aggregate.MAX],
            )
        for table, items in (("run_params", run.params), ("run_tags", run.tags)):
            await connection.executemany(
                f"INSERT INTO {table} VALUES ($1, 0, $2, $3)",
                [(run_id, key, value) for key, value in items.items()],
            )
        for key, result in run.summary.items():
            number = None if isinstance(result, str) else result
            text = result if isinstance(result, str) else None
            await connection.execute(
                "INSERT INTO run_summary VALUES ($1, $2, $3, $4)", run_id, key, number, text
            )
        for dataset in run.datasets:
            await connection.execute(
                "INSERT INTO run_datasets (run_id, name, digest, context, source_type, source,"
                " schema, profile) VALUES ($1, $2, $3, $4, '', '', '', '')",
                run_id,
                *dataset.values(),
            )
    await connection.close()


class History:
    """The runs, in Python and in PostgreSQL."""

    def __init__(self, store: SearchStore, runs: list[NaiveRun]) -> None:
        self.store = store
        self.runs = runs


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def history(shared_gateway: GatewayProcess, loop: asyncio.AbstractEventLoop) -> Iterator[History]:
    runs = random_runs(7)
    run_apart(insert(shared_gateway.dsn, runs))
    database = loop.run_until_complete(
        Database.connect(shared_gateway.dsn, ingest_connections=0, query_connections=1)
    )
    yield History(SearchStore(database), runs)
    loop.run_until_complete(database.close())


async def search_all(store: SearchStore, search: RunSearch) -> list[str]:
    found: list[str] = []
    after: Cursor | None = search.after
    while True:
        page, after = await store.runs(
            RunSearch(
                workspace_id=0,
                experiment_ids=(0,),
                expression=search.expression,
                order=search.order,
                limit=search.limit,
                after=after,
            )
        )
        assert len(page) <= search.limit
        found += [run.run_id.hex for run in page]
        if after is None:
            return found
        assert len(page) == search.limit


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    expression=st.none() | expressions.expressions(),
    order=st.lists(order_terms(), max_size=3),
    limit=st.sampled_from([1_000, 40, 15]),
)
def test_a_search_finds_what_plain_python_finds_in_the_same_order(
    history: History,
    loop: asyncio.AbstractEventLoop,
    expression: Expression | None,
    order: list[OrderTerm],
    limit: int,
) -> None:
    store, runs = history.store, history.runs
    search = RunSearch(workspace_id=0, expression=expression, order=tuple(order), limit=limit)
    found = loop.run_until_complete(search_all(store, search))
    wanted = [run for run in runs if matches(run, expression)]
    if order:
        assert found == [run.run_id for run in ordered(wanted, search.order)]
    else:
        assert sorted(found) == sorted(run.run_id for run in wanted)


HOSTILE = [
    "'; DROP TABLE runs; --",
    "' OR '1'='1",
    "\\",
    "$1",
    "%s",
    "x' AND pg_sleep(10) IS NOT NULL AND 'a'='a",
    "\N{FULLWIDTH APOSTROPHE}; SELECT 1",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_what_users_write_never_becomes_sql(
    tracker: Tracker, experiment: str, text: str
) -> None:
    quoted = text.replace("'", "''")
    key = text.replace("`", "``")
    run_id = await tracker.create_run(experiment, entries=[param(text, text), tag(text, text)])
    other = await tracker.create_run(experiment)
    for field in ("params", "tags"):
        found = await tracker.search(
            experiments=[experiment], filter=f"{field}.`{key}` = '{quoted}'"
        )
        assert [run.run_id for run in found] == [run_id]
        found = await tracker.search(experiments=[experiment], order_by=[f"{field}.`{key}` DESC"])
        assert [run.run_id for run in found] == [run_id, other]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("metrics.loss = 'low'", 1),
        ("params.a = '1' AND metrics.loss LIKE 'x'", 20),
        ("name = 5", 1),
        ("start_time > 'yesterday'", 1),
        ("state = 'SLEEPING'", 1),
        ("state < 'RUNNING'", 1),
        ("params.a LIKE 'x\\'", 1),
        ("start_time > 1e299", 1),
    ],
)
async def test_what_cannot_be_compared_says_where(tracker: Tracker, text: str, column: int) -> None:
    failed = await failure(tracker.search(filter=text))
    assert (failed.reason, failed.metadata["column"]) == ("FILTER_INVALID", str(column))


async def test_paging_reaches_every_run_while_others_are_inserted(
    tracker: Tracker, experiment: str
) -> None:
    for order in ([], ["params.p DESC"], ["metrics.none", "name"], ["name"]):
        wanted = {
            await tracker.create_run(experiment, entries=[param("p", str(number % 3))])
            for number in range(11)
        }
        seen: list[str] = []
        token = ""
        while True:
            page = await tracker.runs.SearchRuns(
                pb.SearchRunsRequest(
                    experiments=[experiment], order_by=order, page_size=3, page_token=token
                )
            )
            seen += [run.run_id for run in page.runs]
            await tracker.create_run(experiment, entries=[param("p", "1")] if len(seen) % 2 else [])
            token = page.next_page_token
            if not token:
                break
        assert len(seen) == len(set(seen))
        assert wanted <= set(seen)


async def test_a_token_belongs_to_its_request(tracker: Tracker, experiment: str) -> None:
    for _ in range(3):
        await tracker.create_run(experiment)
    request = pb.SearchRunsRequest(experiments=[experiment], page_size=1)
    token = (await tracker.runs.SearchRuns(request)).next_page_token
    good = pb.SearchRunsRequest(experiments=[experiment], page_size=2, page_token=token)
    assert len((await tracker.runs.SearchRuns(good)).runs) == 2
    for bad in (
        pb.SearchRunsRequest(experiments=[experiment], filter="name = 'a'", page_token=token),
        pb.SearchRunsRequest(experiments=[experiment], order_by=["name"], page_token=token),
        pb.SearchRunsRequest(experiments=[experiment], page_token=token[:-4]),
        pb.SearchRunsRequest(experiments=[experiment], page_token="gar" + "bage"),
        pb.SearchRunsRequest(experiments=[experiment], page_token="é" * 50),
    ):
        failed = await failure(tracker.runs.SearchRuns(bad))
        assert failed.reason == "PAGE_TOKEN_INVALID"


async def test_page_sizes_are_kept_to(tracker: Tracker, experiment: str) -> None:
    negative = pb.SearchRunsRequest(experiments=[experiment], page_size=-1)
    assert (await failure(tracker.runs.SearchRuns(negative))).reason == "FIELD_INVALID"
    await tracker.create_run(experiment)
    large = pb.SearchRunsRequest(experiments=[experiment], page_size=2**31 - 1)
    assert len((await tracker.runs.SearchRuns(large)).runs) == 1
