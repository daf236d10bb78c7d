"""Tests of gateway.cache: one contract, in memory and on a real Redis."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from core.errors import Unavailable
from gateway.cache.base import TTL_S, Cache, NoCache
from gateway.cache.memory import MemoryCache
from gateway.cache.open_cache import open_cache
from gateway.cache.redis import RedisCache
from tests.support.redis_server import HOST, Line, redis_server

pytestmark = pytest.mark.store


class Source:
    """The source of the values; ``answering`` can hold a load up after it has read."""

    def __init__(self) -> None:
        self.value: str | None = "first"
        self.loads = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.read = asyncio.Event()

    async def load(self) -> str | None:
        self.loads += 1
        found = self.value
        self.read.set()
        await self.answering.wait()
        return found


class CacheContract:
    """``gateways``: caches that share their values."""

    @pytest.fixture
    def source(self) -> Source:
        return Source()

    async def test_the_source_is_asked_once(self, gateways: list[Cache], source: Source) -> None:
        for gateway in gateways * 2:
            assert await gateway.read("k", source.load) == "first"
        assert source.loads == 1

    async def test_keys_are_apart(self, gateways: list[Cache], source: Source) -> None:
        await gateways[0].read("k", source.load)
        source.value = "other"
        assert await gateways[0].read("l", source.load) == "other"
        await gateways[1].forget("l")
        assert await gateways[0].read("k", source.load) == "first"

    @pytest.mark.parametrize("value", ["", "V", "L", "ünï\n\x1f", "x" * 500_000])
    async def test_what_is_kept_comes_back_as_it_was(
        self, gateways: list[Cache], source: Source, value: str
    ) -> None:
        source.value = value
        assert await gateways[0].read("k", source.load) == value
        assert await gateways[1].read("k", source.load) == value
        assert source.loads == 1

    async def test_nothing_is_not_kept(self, gateways: list[Cache], source: Source) -> None:
        source.value = None
        assert await gateways[0].read("k", source.load) is None
        source.value = "made"
        await gateways[1].forget("k")
        assert await gateways[0].read("k", source.load) == "made"

    async def test_what_is_forgotten_is_read_again_by_all(
        self, gateways: list[Cache], source: Source
    ) -> None:
        one, other = gateways
        for key in "kl":
            await one.read(key, source.load)
        source.value = "second"
        await other.forget("k", "l", "never kept")
        assert [await one.read(key, source.load) for key in "kl"] == ["second"] * 2
        assert [await other.read(key, source.load) for key in "kl"] == ["second"] * 2
        assert source.loads == 4

    async def test_a_slow_reader_brings_nothing_old_back(
        self, gateways: list[Cache], source: Source
    ) -> None:
        one, other = gateways
        source.answering.clear()
        slow = asyncio.create_task(one.read("k", source.load))
        await source.read.wait()
        source.value = "second"
        await other.forget("k")
        source.answering.set()
        assert await slow == "first"
        assert await other.read("k", source.load) == "second"
        assert await one.read("k", source.load) == "second"

    async def test_nor_when_a_quick_one_was_between(
        self, gateways: list[Cache], source: Source
    ) -> None:
        one, other = gateways
        source.answering.clear()
        slow = asyncio.create_task(one.read("k", source.load))
        await source.read.wait()
        source.value = "second"
        await one.forget("k")
        quick = Source()
        quick.value = "second"
        assert await other.read("k", quick.load) == "second"
        source.answering.set()
        await slow
        assert await other.read("k", source.load) == "second"
        assert source.loads == quick.loads == 1

    async def test_a_failing_source_fails_its_reader_only(
        self, gateways: list[Cache], source: Source
    ) -> None:
        async def fail() -> str | None:
            raise Unavailable("away")

        with pytest.raises(Unavailable):
            await gateways[0].read("k", fail)
        assert await gateways[1].read("k", source.load) == "first"
        await gateways[0].forget("k")
        assert await gateways[0].read("k", source.load) == "first"

    async def test_a_cancelled_reader_leaves_the_key_usable(
        self, gateways: list[Cache], source: Source
    ) -> None:
        source.answering.clear()
        reader = asyncio.create_task(gateways[0].read("k", source.load))
        await source.read.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        source.answering.set()
        await gateways[0].forget("k")
        for gateway in gateways * 2:
            assert await gateway.read("k", source.load) == "first"
        assert source.loads == 2

    @pytest.mark.parametrize("seed", range(5))
    async def test_readers_and_writers_in_any_order_agree_in_the_end(
        self, gateways: list[Cache], seed: int
    ) -> None:
        chance = random.Random(seed)
        truth = dict.fromkeys("abc", 0)
        told = dict.fromkeys("abc", 0)
        written = 0

        async def pause() -> None:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

        def loading(key: str) -> Callable[[], Awaitable[str | None]]:
            async def load() -> str | None:
                await pause()
                found = truth[key]
                await pause()
                return str(found)

            return load

        async def write(key: str) -> None:
            nonlocal written
            await pause()
            written += 1
            truth[key] = mine = written
            await pause()
            await chance.choice(gateways).forget(key)
            told[key] = max(told[key], mine)

        async def read(key: str) -> None:
            await pause()
            at_least = told[key]
            found = await chance.choice(gateways).read(key, loading(key))
            assert found is not None and int(found) >= at_least

        deeds = [write] * 30 + [read] * 120
        chance.shuffle(deeds)
        await asyncio.gather(*(deed(chance.choice("abc")) for deed in deeds))
        for gateway in gateways:
            for key in "abc":
                assert await gateway.read(key, loading(key)) == str(truth[key])


class TestMemory(CacheContract):
    @pytest.fixture
    def gateways(self) -> list[Cache]:
        # A cache in memory serves one process, so both gateways have the same one.
        return [MemoryCache()] * 2

    async def test_a_value_expires(self, source: Source) -> None:
        time = 0.0
        cache = MemoryCache(clock=lambda: time)
        await cache.read("k", source.load)
        time = TTL_S - 1
        await cache.read("k", source.load)
        assert source.loads == 1
        time = TTL_S
        await cache.read("k", source.load)
        assert source.loads == 2

    async def test_the_least_used_make_room(self) -> None:
        source = Source()
        source.value = "x" * 10
        cache = MemoryCache(max_characters=25)
        for key in ("a", "b", "a", "c", "a", "c"):
            await cache.read(key, source.load)
        assert source.loads == 3
        await cache.read("b", source.load)
        assert source.loads == 4
        await cache.forget("a", "b", "c")
        for key in ("a", "b", "a", "b"):
            await cache.read(key, source.load)
        assert source.loads == 6

    async def test_what_is_too_large_is_not_kept(self) -> None:
        async def load() -> str | None:
            return "x" * 11

        cache = MemoryCache(max_characters=10)
        assert await cache.read("k", load) == "x" * 11
        assert await cache.read("k", load) == "x" * 11


class TestRedis(CacheContract):
    @pytest.fixture(scope="class")
    @classmethod
    async def server(cls, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
        async with redis_server(tmp_path_factory.mktemp("redis")) as port:
            yield port

    @pytest.fixture
    async def port(self, server: int) -> int:
        async with Redis(host=HOST, port=server) as redis:
            await redis.flushall()
        return server

    @pytest.fixture
    async def line(self, port: int) -> AsyncIterator[Line]:
        async with Line(port).serve() as line:
            yield line

    @pytest.fixture
    async def gateways(self, port: int) -> AsyncIterator[list[Cache]]:
        # The contract tests no deadlines: on a busy machine Redis must not count as slow.
        caches = [RedisCache(f"redis://{HOST}:{port}/0", deadline_s=20) for _ in range(2)]
        yield [*caches]
        for cache in caches:
            await cache.aclose()

    async def test_what_is_kept_expires_and_so_do_leases(
        self, port: int, gateways: list[Cache], source: Source
    ) -> None:
        await gateways[0].read("k", source.load)
        source.value = None
        await gateways[0].read("absent", source.load)
        async with Redis(host=HOST, port=port) as redis:
            assert 0 < TTL_S * 1000 - await redis.pttl("switchroom:k") < 60_000
            assert 0 < await redis.pttl("switchroom:absent") <= 10_000

    async def test_a_silent_redis_is_waited_for_once(
        self, line: Line, source: Source, caplog: pytest.LogCaptureFixture
    ) -> None:
        line.silence()
        cache = RedisCache(f"redis://{HOST}:{line.port}", deadline_s=0.5, retry_s=60)
        with caplog.at_level(logging.INFO, "gateway.cache.redis"):
            for _ in range(5):
                assert await cache.read("k", source.load) == "first"
            await cache.forget("k", "l")
        assert source.loads == 5
        assert line.connections == 1
        assert [record.message for record in caplog.records] == [
            "cache is away; the database answers"
        ]
        await cache.aclose()

    async def test_no_redis_at_all_is_no_failure(
        self, source: Source, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Nothing listens on the discard port.
        cache = RedisCache(f"redis://user:s3cret@{HOST}:9", retry_s=60)
        with caplog.at_level(logging.INFO, "gateway.cache.redis"):
            assert await cache.read("k", source.load) == "first"
            await cache.forget("k")
            await cache.aclose()
        assert "s3cret" not in caplog.text
        assert len(caplog.records) == 2

    async def test_what_changed_while_it_was_away_is_told_first_on_return(
        self, line: Line, gateways: list[Cache], source: Source
    ) -> None:
        near = gateways[0]
        far = RedisCache(f"redis://{HOST}:{line.port}", deadline_s=0.5, retry_s=0.01)
        assert await near.read("k", source.load) == "first"
        line.silence()
        source.value = "second"
        await far.forget("k")
        assert await far.read("k", source.load) == "second"
        assert await near.read("k", source.load) == "first"
        line.restore()
        # Only ``far`` can have invalidated the key when ``near`` reads the new value.
        async with asyncio.timeout(20):
            while await near.read("k", source.load) != "second":
                pass
        assert await far.read("k", source.load) == "second"
        await far.aclose()

    async def test_a_last_try_is_made_at_the_end(
        self, line: Line, gateways: list[Cache], source: Source
    ) -> None:
        near = gateways[0]
        far = RedisCache(f"redis://{HOST}:{line.port}", deadline_s=1, retry_s=60)
        await near.read("k", source.load)
        line.silence()
        source.value = "second"
        await far.forget("k")
        line.restore()
        await far.aclose()
        assert await near.read("k", source.load) == "second"

    async def test_a_late_answer_is_nobody_elses(self, line: Line, source: Source) -> None:
        """The answer to a cancelled command is not taken for the answer to the next one."""
        cache = RedisCache(f"redis://{HOST}:{line.port}", deadline_s=20)
        await cache.read("k", source.load)
        line.silence()
        given_up = [asyncio.create_task(cache.read("k", source.load)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        line.restore()
        source.value = "other"
        assert await cache.read("l", source.load) == "other"
        assert await cache.read("k", source.load) == "first"
        await cache.aclose()

    async def test_a_broken_connection_is_no_absence(self, line: Line, source: Source) -> None:
        cache = RedisCache(f"redis://{HOST}:{line.port}", deadline_s=20, retry_s=60)
        await cache.read("k", source.load)
        line.cut()
        assert await cache.read("k", source.load) == "first"
        assert source.loads == 1
        await cache.aclose()

    async def test_a_full_redis_is_as_good_as_none(
        self, port: int, gateways: list[Cache], source: Source
    ) -> None:
        async with Redis(host=HOST, port=port) as redis:
            await redis.config_set("maxmemory", "1")
            try:
                assert await gateways[0].read("k", source.load) == "first"
                await gateways[0].forget("k")
            finally:
                await redis.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "http://localhost",
        "redis://h:s3cret/0",
        "redis://h:99999",
        "redis://[s3cret",
        "memcached://s3cret@h",
    ],
)
def test_a_foreign_address_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(ValueError, match="CACHE_URL") as refusal:
        open_cache(url, shared_database=False)
    assert "s3cret" not in str(refusal.value)


async def test_memory_keeps_nothing_of_a_database_that_others_write() -> None:
    source = Source()
    cache = open_cache("memory://", shared_database=True)
    assert isinstance(cache, NoCache)
    await cache.read("k", source.load)
    source.value = "second"
    assert await cache.read("k", source.load) == "second"
    assert isinstance(open_cache("memory://", shared_database=False), MemoryCache)
