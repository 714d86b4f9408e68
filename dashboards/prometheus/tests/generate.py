#!/usr/bin/env python3
"""Writes the tests of the alert rules that need long series: `incident.yml` and `spikes.yml`, into a directory.

Each pool has 100 connections and is scraped every 15 s. What is scraped is made from a small model, second by
second: demand of healthy work, checkouts that are leaked, checkouts that pause for a while and go on. The same
arguments give the same files, byte for byte. Standard library only.

  generate.py DIRECTORY [--lead SECONDS]
"""

import argparse
import math
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "rules"

SIZE = 100  # connections
SCRAPE = 15  # seconds
SUSPECT = 15  # seconds until a silent checkout is stale: half of leaks.idle_in_transaction
CALM = 600  # seconds before anything happens
RATE = 200  # requests per second at 40 connections in use
PATIENCE = 5  # seconds: pool.wait_timeout
# Standard deviation of the demand, in connections, and how many healthy checkouts pause long enough to be suspect.
NOISE = {"low": (0.5, 0.0), "medium": (2.0, 0.3), "high": (4.0, 1.5)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lead", type=int, default=420, help="seconds before exhaustion at which the alert must have fired (420)")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    (options.directory / "incident.yml").write_text(incident(options.lead))
    (options.directory / "spikes.yml").write_text(spikes())
    return 0


# --- the incident ---

CLIMB, RUSH, AFTER = 720, 180, 900  # 40 to 85 %, 85 to 100 %, and what follows
LEAKS_PER_SECOND = 45 / CLIMB


def incident(lead: int) -> str:
    """40 to 85 % in twelve minutes, all of it leaked; then, to 100 % in three, the leak goes on and traffic rises."""
    series, tests = alive(CALM + CLIMB + RUSH + AFTER), []
    for name, (deviation, pauses) in NOISE.items():
        pool = Pool(f"incident-{name}", deviation, pauses)
        for second in range(CALM + CLIMB + RUSH + AFTER):
            begun = max(second - CALM, 0)
            rising = min(max(begun - CLIMB, 0), RUSH) / RUSH
            pool.step(healthy=40 + rising * (15 - RUSH * LEAKS_PER_SECOND), leaked=begun * LEAKS_PER_SECOND)
        series += pool.series()
        full = pool.exhausted()
        fires = f'ALERTS{{alertname="PgleashPoolLeakClimb", severity="critical", alertstate="firing", pool="{pool.name}"}}'
        classic = f'ALERTS{{alertname="ClassicPoolFull", alertstate="firing", pool="{pool.name}"}}'
        tests += [
            (f"{name} noise: nothing before the leak", f"count_over_time({fires}[{CALM}s])", CALM, None),
            (f"{name} noise: {lead} s before the pool is exhausted", f"count({fires})", full - lead, 1),
            (f"{name} noise: and until it is", f"count({fires})", full - SCRAPE, 1),
            (f"{name} noise: the classic alert is silent until the pool is exhausted", f"count_over_time({classic}[1h])", full, None),
            (f"{name} noise: and fires after it", f"count({classic})", full + 360, 1),
        ]
    return document("The incident: a leak that becomes an outage", [RULES / "recording.yml", RULES / "alerts.yml", HERE / "classic.yml"], series, tests)


# --- twelve spikes ---

def bump(second: float, middle: float, width: float) -> float:
    return math.exp(-(((second - middle) / width) ** 2))


# Demand in connections, `second` from the end of the calm; 40 before it. More than 100 is a queue.
SPIKES = {
    "step": lambda second: 94 if second < 900 else 40,
    # The very climb of the incident, by traffic.
    "ramp": lambda second: 40 + 45 * min(second / CLIMB, 1) + 14 * min(max(second - CLIMB, 0) / RUSH, 1) if second < 1200 else 40,
    "triangle": lambda second: 40 + 55 * max(1 - abs(second - 450) / 450, 0),
    "bell": lambda second: 40 + 58 * bump(second, 600, 200),
    "two-peaks": lambda second: 40 + 55 * bump(second, 300, 80) + 58 * bump(second, 900, 120),
    "sawtooth": lambda second: 40 + 55 * (second % 300) / 300,
    "burst-and-decay": lambda second: 40 + 70 * math.exp(-second / 180),
    "blip": lambda second: 160 if 300 <= second < 330 else 40,
    "full-for-two-minutes": lambda second: 115 if 300 <= second < 420 else 40,
    "every-minute": lambda second: 95 if second % 60 < 12 else 40,
    "stairs": lambda second: 40 + 9 * min(second // 150, 6) if second < 1500 else 40,
    # The application stops in the middle of its transactions, now and then, for 25 s: a collection of garbage.
    "pauses": lambda second: 40,
}


BEFORE = 3600  # an ordinary hour, as the budgets of the wait objective look back on


def spikes() -> str:
    """Each shape with medium noise and no leak. No critical alert may fire, ever; that the spikes are seen at all is shown too."""
    length = BEFORE + 1800
    series = alive(length)
    for index, (name, demand) in enumerate(SPIKES.items()):
        pool = Pool(name, *NOISE["medium"], seed=index)
        for second in range(length):
            begun = second - BEFORE
            stopped = 30 if name == "pauses" and begun >= 0 and begun % 240 < 25 else 0
            pool.step(healthy=demand(begun) if begun >= 0 else 40, leaked=0, stopped=stopped)
        series += pool.series()
    everything = f"{length}s"
    tests = [
        ("no critical alert", f'count by (alertname, pool) (count_over_time(ALERTS{{severity="critical", alertstate="firing"}}[{everything}]))', length, None),
        ("not even one that waits to be sure that the leak climbs",
         f'count by (pool) (count_over_time(ALERTS{{alertname="PgleashPoolLeakClimb", alertstate="firing"}}[{everything}]))', length, None),
        ("all twelve are there", "count(count by (pool) (pgleash_pool_connections_max))", length, len(SPIKES)),
        ("a long plateau is worth a warning",
         f'count(count_over_time(ALERTS{{alertname="PgleashPoolNearlyFull", alertstate="firing", pool="step"}}[{everything}]))', length, 1),
        ("queues were there", f'count(max_over_time(pgleash_pool_waiting_clients{{pool=~"blip|full-for-two-minutes"}}[{everything}]) > 10)', length, 2),
        ("suspects were there", f'count(max_over_time(pool:pgleash_checkouts_stale:sum{{pool="pauses"}}[{everything}]) > 25)', length, 1),
    ]
    return document("Twelve spikes without a leak", [RULES / "recording.yml", RULES / "alerts.yml"], series, tests)


# --- the model of a pool ---

class Pool:
    """Demand, second by second; what a scrape shows, every fifteenth."""

    def __init__(self, name: str, deviation: float, pauses: float, seed: int = 0):
        self.name, self.deviation, self.pauses = name, deviation, pauses
        self.random = random.Random(f"{name}-{seed}")
        self.second = 0
        self.in_use, self.stale, self.waiting = [], [], []
        self.prompt, self.served, self.timeouts = [], [], []
        self.leaks, self.leaked_at = 0, []
        self.drift = 0.0
        self.totals = [0.0, 0.0, 0.0]

    def step(self, healthy: float, leaked: float, stopped: int = 0) -> None:
        """One second: so many connections are wanted by healthy work, so many were leaked so far, so many are stopped."""
        # Demand wanders around its mean; its deviation is `deviation`.
        self.drift = 0.8 * self.drift + self.random.gauss(0, self.deviation * 0.6)
        # A leak takes a connection: there are never more than the pool has.
        while self.leaks < min(int(leaked), SIZE):
            self.leaks += 1
            self.leaked_at.append(self.second)
        wanted = max(healthy + self.drift, 1)
        busy = min(round(wanted), SIZE - self.leaks)
        excess = max(wanted - (SIZE - self.leaks), 0)
        paused = min(self.poisson(self.pauses), busy)
        stale = sum(1 for at in self.leaked_at if self.second - at >= SUSPECT) + max(paused, min(stopped, busy))
        requests = RATE * wanted / 40
        # While there is a queue everybody waits in it; what cannot be served within the patience is turned away.
        served = requests * min(busy / wanted, 1)
        refused = (requests - served) if excess > 20 * (busy > 0) and self.recent_queue() else 0
        self.totals[0] += 0 if excess > 1 else served
        self.totals[1] += served
        self.totals[2] += refused
        if self.second % SCRAPE == 0:
            self.in_use.append(self.leaks + busy)
            self.stale.append(stale)
            self.waiting.append(round(excess))
            for kept, total in zip((self.prompt, self.served, self.timeouts), self.totals):
                kept.append(round(total))
        self.second += 1

    def recent_queue(self) -> bool:
        return bool(self.waiting) and self.waiting[-1] > 0

    def poisson(self, mean: float) -> int:
        limit, count, product = math.exp(-mean), 0, self.random.random()
        while product > limit:
            count, product = count + 1, product * self.random.random()
        return count

    def exhausted(self) -> int:
        """The first scrape that shows a full pool."""
        return self.in_use.index(SIZE) * SCRAPE

    def series(self) -> list[tuple[str, list]]:
        def named(metric, **labels):
            return f"{metric}{{{', '.join(f'{key}={chr(34)}{value}{chr(34)}' for key, value in (TARGET | {'pool': self.name} | labels).items())}}}"

        steps = len(self.in_use)
        nothing = [0] * steps
        return [
            (named("pgleash_pool_connections_max"), [SIZE] * steps),
            (named("pgleash_pool_utilization_ratio"), [count / SIZE for count in self.in_use]),
            (named("pgleash_pool_checkouts_stale", activity="idle_in_transaction"), self.stale),
            (named("pgleash_pool_checkouts_stale", activity="held"), nothing),
            (named("pgleash_pool_checkouts", app="payments"), self.in_use),
            (named("pgleash_pool_waiting_clients"), self.waiting),
            (named("pgleash_pool_oldest_wait_seconds"), [min(count, PATIENCE) for count in self.waiting]),
            (named("pgleash_checkout_wait_duration_seconds_bucket", le="0.1"), self.prompt),
            (named("pgleash_checkout_wait_duration_seconds_count"), self.served),
            (named("pgleash_checkout_timeouts_total"), self.timeouts),
        ]


# --- what promtool reads ---

# By itself promtool takes the groups of rules in any order.
ORDER = "pgleash.leaks, pgleash.wait-slo, pgleash.pools, pgleash.watchdog, classic"
TARGET = {"job": "pgleash", "instance": "shop-1:9632"}


def alive(length: int) -> list[tuple[str, list]]:
    """A watchdog in good health."""
    steps = length // SCRAPE + 1
    labels = ", ".join(f'{key}="{value}"' for key, value in TARGET.items())
    return [
        (f"up{{{labels}}}", [1] * steps),
        (f'pgleash_build_info{{{labels}, version="0.1.0"}}', [1] * steps),
        (f"pgleash_enforcement_enabled{{{labels}}}", [1] * steps),
        (f"pgleash_last_observation_timestamp_seconds{{{labels}}}", [step * SCRAPE for step in range(steps)]),
    ]


def document(title: str, rules: list[Path], series: list, tests: list) -> str:
    lines = [f"# {title}. Written by generate.py.", "rule_files:"]
    lines += [f"  - {path}" for path in rules]
    lines += [f"evaluation_interval: {SCRAPE}s", f"group_eval_order: [{ORDER}]", "tests:", f"  - interval: {SCRAPE}s", "    input_series:"]
    for name, values in series:
        lines += [f"      - series: '{name}'", f"        values: '{' '.join(f'{value:g}' for value in values)}'"]
    lines.append("    promql_expr_test:")
    for what, expression, at, value in tests:
        lines += [f"      # {what}", f"      - expr: '{expression}'", f"        eval_time: {at}s"]
        lines += ["        exp_samples: []"] if value is None else ["        exp_samples:", f"          - {{labels: '{{}}', value: {value}}}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
