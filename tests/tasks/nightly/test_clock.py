"""A night that the clock of summer time lacks or has twice is one night all the same."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from prefect.server.schemas.schedules import CronSchedule as ServersSchedule

from tasks.nightly.schedules import _cron

ZONE = "Europe/Berlin"
EVES = {"summer begins": date(2026, 3, 27), "summer ends": date(2026, 10, 23)}


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 3 * * *", "15 1 * * *"])
@pytest.mark.parametrize("eve", EVES.values(), ids=EVES.keys())
def test_every_date_has_one_night_when_the_clock_changes(cron, eve):
    made = _cron(cron, ZONE)
    server = ServersSchedule(cron=made.cron, timezone=made.timezone)
    noon = datetime(eve.year, eve.month, eve.day, 12, tzinfo=ZoneInfo(ZONE))
    nights = asyncio.run(server.get_dates(4, noon))
    assert [night.date() for night in nights] == [eve + timedelta(days=number) for number in range(1, 5)]
    hour, minute = int(cron.split()[1]), int(cron.split()[0])
    # 2:30 does not exist when summer begins: that night is an hour later.
    late = [night for night in nights if (night.hour, night.minute) != (hour, minute)]
    assert len(late) == (1 if hour == 2 and eve == EVES["summer begins"] else 0)
